"""How a turn is taken: what is said finds its session, or begins it, and is fitted to the window."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from types import TracebackType
from typing import Any, Generic, Protocol, TypeVar

import msgspec

from cloister import pseudonyms, sessions
from cloister.content import checked, memory_of, said
from cloister.errors import BudgetExceeded, SessionBusy, SessionConflict, SessionExpired
from cloister.fitting import Fitting
from cloister.guard import Check
from cloister.idempotency import Filing, door, secret_of
from cloister.masks import mask_of, masked, ready, shown_before
from cloister.model import Head, Item, Owner, Record, Reply, SealedSession, Usage
from cloister.opened import Opened
from cloister.question import Question
from cloister.scrub.masking import Mask, shown
from cloister.seeds import Seed
from cloister.services import Services
from cloister.stores.base import Charge, Fingerprint, Loaded
from cloister.telemetry import UNWATCHED, Course, Outcome
from cloister.turn import RENEWED, SessionT, Turn

_REFUSALS = BudgetExceeded, SessionBusy, SessionExpired


TalkT = TypeVar("TalkT", covariant=True)


class Talk(Protocol[TalkT]):
    """Be the session of a turn, as whoever asks holds it: other turns of it move it on."""

    owner: Owner
    id: str
    stable_id: str
    head: Head
    _cloister: Services
    _seed: Seed | None

    def _settled(self, opened: Opened) -> TalkT: ...

    def _follow(self, opened: Opened) -> None: ...


@contextlib.asynccontextmanager
async def taken(session: Talk[SessionT], question: Question) -> AsyncGenerator[Turn[SessionT], None]:
    """Take a turn of *session*: alone, with its lease held, until the block is left."""
    taking = await Taking.of(session, question)
    async with taking, taking.found() as found:
        if (turn := await taking.repeated(found)) is not None:
            yield turn
            return
        turn = await taking.begun(found)
        try:
            await taking.heard()
            yield turn
        except BaseException as error:
            await turn.leave(error)
            raise
        else:
            await turn.leave(None)
        finally:
            taking.left()


class Taking(Generic[SessionT]):
    """Be one question on its way into a session. What it has reserved is settled when the block is left."""

    def __init__(
        self,
        session: Talk[SessionT],
        question: Question,
        seed: Seed | None,
        asked: Sequence[Item],
        new: Sequence[Item],
        over: Item | None,
        filing: Filing | None,
    ) -> None:
        self._cloister, self._vault = session._cloister, session._cloister.vault
        self._session, self._question, self._owner = session, question, session.owner
        self._seed, self._asked, self._new = seed, asked, new
        self._over, self._system = [over] if over else [], over
        self._filing = filing
        self._heard: Sequence[Item] = asked
        self._opened: Opened | None = None
        self._check: Check | None = None
        self._charges: Sequence[Charge] = ()
        self._turn: Turn[SessionT] | None = None
        self._course: Course = UNWATCHED
        model, options = question.model, question.options or {}
        self._budget = self._cloister.window(model)
        beside = [*(seed.items if seed else ()), *new, *self._over]
        self._bill = self._cloister.bill(self._owner, model, session.head.tokens, beside, options)

    @classmethod
    async def of(cls, session: Talk[SessionT], question: Question) -> Taking[SessionT]:
        """Take in what is asked; `ValueError` for what cannot be."""
        cloister, model = session._cloister, question.model
        if question.on_expired not in ("renew", "raise"):
            raise ValueError(f"on_expired is 'renew' or 'raise', not {question.on_expired!r}")
        await cloister.prepare(model)
        question = msgspec.structs.replace(question, options=pseudonyms.without(question.options))
        asked = said(question.content)
        if question.remember is not None and not callable(question.remember):
            memory_of(question.remember)  # before a model is asked
        system = question.system
        over = cloister.counted(checked(Item("system", system)), model) if system is not None else None
        seed, new = (None, asked) if session._seed is None else session._seed.sow(asked)
        filing = await _filing(session, question, seed, [*asked, *([over] if over else [])])
        return cls(session, question, seed, asked, new, over, filing)

    async def __aenter__(self) -> None:
        self._course = self._vault.course()
        self._course.at("load")

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        turn = self._turn
        try:
            if turn is None and isinstance(error, _REFUSALS):
                reason = type(error).__name__
                noted = self._vault.event("turn.refused", self._owner, self._session.stable_id, reason=reason)
                await self._vault.note([noted])
        finally:
            self._course.end(Outcome("refused", type(error).__name__) if turn is None else turn.outcome(error))
            await self._bill.settle(error)

    # --- the session --------------------------------------------------------------------------------------------------

    def found(self) -> contextlib.AbstractAsyncContextManager[Opened | Loaded]:
        """Load the session to work on it alone; or make it, where it comes to be with this turn, or passes."""
        self._vault.admit(self._owner)  # before there is anything to settle
        self._charges = self._bill.reserve()
        return self._there() if self._seed is None else self._unborn(self._seed)

    def _there(self) -> contextlib.AbstractAsyncContextManager[Opened | Loaded]:
        wanted: dict[str, Any] = {"budget": self._budget, "lease": self._bill.lease, "charges": self._charges}
        if self._filing is not None:
            self._filing = self._filing.at(self._session.stable_id)
            if self._filing.looks:
                wanted["record"] = self._filing.under(b"").digest
            if self._filing.looks and self._filing.digest is None:
                wanted["again"] = self._filing.last
        return self._vault.work(self._session, **wanted)

    @contextlib.asynccontextmanager
    async def _unborn(self, seed: Seed) -> AsyncIterator[Opened | Loaded]:
        """Make the session, alone; unless the turn that this one waited for has done so."""
        filing, queue = self._filing, self._vault.queue
        self._vault.check_kept(record=filing is not None, charges=bool(self._charges))
        async with contextlib.AsyncExitStack() as stack:
            if filing is not None:
                name = f"{filing.session} {filing.under(b'').digest.hex()}"
                await stack.enter_async_context(queue.alone(self._owner, name))
            if not seed.passing:  # those wait for nobody
                await stack.enter_async_context(queue.alone(self._owner, self._session.stable_id))
            if self._session._seed is not None:
                made = self.made(passing=seed.passing)
                if filing is not None:
                    made.record = await self._vault.filed(self._owner, filing.session, filing.under(b"").digest)
                yield made
                return
        async with self._there() as found:
            yield found

    def made(self, *, passing: bool) -> Opened:
        """Make the session that is not there yet, in memory."""
        seed = self._seed
        assert seed is not None
        return self._vault.begin(
            self._owner,
            seed.system and self._cloister.counted(seed.system),
            seed.title,
            dict(seed.metadata),
            limits=self._cloister.limits,
            session_id=None if passing else self._session.stable_id,
            passing=passing,
        )

    async def repeated(self, found: Opened | Loaded) -> Turn[SessionT] | None:
        """Give the turn that was stored when the request came before, if it did: it is not taken again."""
        self._course.at("prepare")
        if isinstance(found, Loaded) and found.over is not None:
            self._bill.close()  # nothing was reserved
            await self._bill.refuse(found.over)
        filing, record, vault = self._filing, found.record, self._vault
        if filing is None:
            return None
        if not (isinstance(found, Opened) and found.unborn):
            filing = self._filing = filing.at(self._session.stable_id)
        if record is None or not filing.valid(record, vault.now()):
            return None
        holder = await self._holder(filing, record, found)
        if holder is None:
            return None
        self._turn = await self._again(filing, record, found, holder)
        return self._turn

    async def _holder(self, filing: Filing, record: Record, found: Opened | Loaded) -> Opened | None:
        """Give the session in which the answer lies, None if it answers nobody any more."""
        if isinstance(found, Opened) and record.holder == self._session.stable_id:
            return found
        if isinstance(found, Opened) and found.unborn and not await self._vault.holds(self._owner, record.holder):
            return None  # its session was swept, and took with it what it said
        async with self._vault.guarded(self._owner, self._session.id):
            looked = await self._vault.look(self._owner, record.holder, named_by_record=True)
        if isinstance(looked, SealedSession):
            raise SessionExpired(looked.ended or "expired")
        if filing.digest is None and looked.head.version > 1:
            return None  # who goes on in the session has had the answer, and knows it: this is another request
        return looked

    async def _again(self, filing: Filing, record: Record, found: Opened | Loaded, holder: Opened) -> Turn[SessionT]:
        vault, session, key = self._vault, self._session, filing.under(b"")
        if isinstance(found, Opened) and record.key != key.digest:
            key = filing.under(found.head.turn)
        async with vault.guarded(self._owner, session.id):
            kept = key.open(holder, record)
        holder.name = session.id if holder.id == session.stable_id else kept.token or holder.id
        item = shown(await vault.answer(holder, kept.token, kept.position))
        gone = kept.position in holder.head.hidden
        reply = Reply(
            text="" if gone else item.text,
            session=session._settled(holder),
            usage=item.usage or Usage(),
            model=kept.model,
            tool_calls=() if gone else tuple(item.tool_calls or ()),
            finish_reason=kept.finish_reason,
            blocked=kept.blocked,
            renewed=kept.renewed,
            notice=RENEWED if kept.renewed else None,
            items=() if gone else (item,),
            filed=filing.until_delivered(record),
        )
        return Turn.stored(reply, holder, item.id)

    # --- the window ---------------------------------------------------------------------------------------------------

    async def begun(self, found: Opened | Loaded) -> Turn[SessionT]:
        """Begin the turn in the session that was *found*, or in the one that takes its place."""
        question, bill = self._question, self._bill
        opened = await self._admitted(found)
        if question.after is not None and sessions.position_of(question.after) != opened.head.count - 1:
            raise SessionConflict("the session has gone on behind that item; nothing was asked or stored")
        await bill.admit(opened.head, reserved=isinstance(found, Opened) and not found.fresh)
        await asyncio.sleep(0)  # others have their turn: opening took a while, and so does fitting
        fitting, mask, check, prints = await self.fitted(opened)
        turn = Turn(
            self._cloister,
            opened,
            question,
            fitting,
            self._session._settled,
            mask,
            check,
            bill,
            pseudonym=await pseudonyms.pseudonym(self._vault.keys, self._owner),
            filing=self._filing,
            prints=prints,
            course=self._course,
        )
        if not question.truncate:
            fitting.check_whole()
        fitting.check_sent()
        await bill.cover(opened.head, fitting.tokens())
        self._opened, self._check, self._turn = opened, check, turn
        return turn

    async def _admitted(self, found: Opened | Loaded) -> Opened:
        """Give the session to work on: the one that was *found*, or a new one in its place if its time is up."""
        vault = self._vault
        try:
            if isinstance(found, Loaded):
                raise SessionExpired((found.session and found.session.ended) or "expired")
            sessions.check_alive(found.head, vault.now())
            return found
        except SessionExpired as expired:
            filed = await self._filed(found)
            if isinstance(found, Opened):
                await vault.expire(found)
            if self._question.on_expired == "raise" or expired.reason == "ended":
                raise
        if isinstance(found, Opened):
            system = found.system
        else:
            assert found.session is not None
            async with vault.guarded(self._owner, self._session.id):
                text = await vault.system_of(found.session)
            system = None if text is None else self._cloister.counted(Item("system", text))
        limits, instead_of = self._cloister.limits, self._session.stable_id
        fresh = vault.begin(self._owner, system, limits=limits, instead_of=instead_of)
        fresh.record = filed
        return fresh

    async def _filed(self, found: Opened | Loaded) -> Record | None:
        """Give what is on file of the request that renews the session; nobody looked for it if it is no retry."""
        if self._filing is None:
            return None
        digest = self._filing.under(b"").digest
        if not self._filing.looks:
            return await self._vault.filed(self._owner, self._filing.session, digest)
        return found.record if found.record is not None and found.record.key == digest else None

    async def fitted(self, opened: Opened) -> tuple[Fitting, Mask, Check, list[Fingerprint]]:
        """Fit what is said, behind what *opened* holds, to the window of the model; give what watches over that, too.

        Fingerprints are those of what the session begins with.
        """
        cloister, question, system = self._cloister, self._question, self._system
        mask = mask_of(cloister.scrub, opened)
        asked, prints = self._asked, list[Fingerprint]()
        if self._seed is not None and opened.unborn:
            tools, prints = await self._seed.plant(cloister, opened, mask, question.model)
            asked, self._heard = self._new, [*tools, *self._new]
        check = await Check.over(cloister.watch, opened, lambda: shown_before(opened))
        await ready(mask, opened, system or opened.system)
        new = await masked(cloister, mask, self._owner, asked, question.model)
        self._vault.check_room(opened, new)
        beside = await cloister.beside(self._owner, question.options or {}, question.model)
        return Fitting(cloister, opened, question, new, mask, check, system, self._budget, beside), mask, check, prints

    async def heard(self) -> None:
        """Let the search for other users' details know what was said."""
        assert self._check is not None
        await asyncio.sleep(0)  # and so does this
        # Not before the window has taken it: to look at a long text takes long.
        await self._check.hears([*self._heard, *self._over], self._question.documents)
        self._course.at("ask")

    def left(self) -> None:
        """Let the session go on from what was stored, whoever was still there to hear of it."""
        assert self._opened is not None
        self._session._follow(self._opened)


async def _filing(session: Talk[Any], question: Question, seed: Seed | None, asked: Sequence[Item]) -> Filing | None:
    """Say under what the answer is filed, if the same request may come again."""
    key, request = question.idempotency_key, question.request
    if seed is not None and seed.passing:
        if key is not None:
            raise ValueError("nothing is stored of a passing turn, so that it is not found again under a key")
        return None
    if key is None and request is None:
        return None
    secret = b""
    if request is not None or (seed is not None and key is not None):
        secret = await secret_of(session._cloister.vault.keys, session.owner)
    place = session.stable_id if seed is None else door(secret, session.owner)
    return Filing.of(key, place, asked, request, secret, retry=question.retry)
