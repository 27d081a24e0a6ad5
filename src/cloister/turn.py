"""One turn, from question to reply.

    load (owner, id), lease taken → check owner, limits → replace personal data → fit the window → provider
    → put the owner's own data back → look for other users' → commit all at once → reply

The steps before the window stand in `cloister.taking`; opening and sealing are the `Vault`'s, replacing and putting
back the `Mask`'s, looking the `Check`'s, and counting the `Calls`'.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import msgspec

from cloister import pseudonyms, sessions, wire
from cloister.asking import close
from cloister.audit import Detail, Event
from cloister.bills import Bill
from cloister.calls import Calls
from cloister.content import checked, memory_of
from cloister.errors import (
    CloisterError,
    ConfigurationError,
    ProviderError,
    ReplyBlocked,
    SessionConflict,
)
from cloister.fitting import Fitting
from cloister.guard import Check
from cloister.idempotency import Filing, Kept
from cloister.masks import counted, looked, replaced
from cloister.model import REMEMBERED, Head, Item, Record, Reply, to_micros
from cloister.opened import Opened
from cloister.outlet import Outlet
from cloister.providers.base import Request
from cloister.question import Question
from cloister.scrub.masking import Mask, shown
from cloister.services import Services
from cloister.stores.base import Fingerprint
from cloister.telemetry import UNWATCHED, Course, Outcome
from cloister.vault import Recorder

SessionT = TypeVar("SessionT")

RENEWED = "Our earlier conversation has timed out and was deleted, so this is a new one."
"""What an end user is told whose session was renewed."""


class _Judged(NamedTuple):
    """Be an answer after it was judged: as its owner is shown it, and as it is stored."""

    answer: wire.Answer
    heard: Item
    kept: Item
    blocked: bool

    @property
    def shown(self) -> str:
        """Give its text at once, as a stream gives it in pieces."""
        refused = (self.heard.extra or {}).get("refusal") == self.heard.text
        return wire.Refusal(self.heard.text) if refused else self.heard.text


class Turn(Generic[SessionT]):
    """Be one question and what it comes to. Made by ``session.turn``."""

    def __init__(
        self,
        cloister: Services,
        opened: Opened,
        question: Question,
        fitting: Fitting,
        settle: Callable[[Opened], SessionT],
        mask: Mask,
        check: Check,
        bill: Bill,
        *,
        pseudonym: str = "",
        filing: Filing | None = None,
        prints: Sequence[Fingerprint] = (),
        course: Course = UNWATCHED,
    ) -> None:
        self._cloister = cloister
        self._opened = opened
        self._model = question.model
        self._mask = mask
        self._check = check
        self._bill = bill
        self._outlet = Outlet(mask, check)
        self._fitting = fitting
        self._brought = len(fitting.new)
        self._settle = settle
        self._options = dict(question.options or {})
        self._pseudonym = pseudonym
        self._filing = filing
        self._filed: Record | None = None
        self._remember = question.remember
        self._prints = prints
        self._answer = secrets.token_hex(6)
        self._course = course
        self._renewed = opened.instead_of is not None
        self._reply: Reply[SessionT] | None = None
        self._closed = False
        self._judged: _Judged | None = None
        self._reader: wire.Reader | None = None
        self._calls = Calls(cloister, bill, question.model, fitting.tokens)
        self.thought = False
        """The model was heard to think aloud, as far as the stream was read."""
        self.repeated = False
        """The idempotency key had been answered before: `reply` is that answer, and no model need be asked."""
        fitting.items()
        for item in fitting.new:
            mask.brought(shown(item))

    @classmethod
    def stored(cls, reply: Reply[SessionT], opened: Opened, answer_id: str) -> Turn[SessionT]:
        """Give a turn that was taken before in *opened*, and came to *reply*."""
        turn = cls.__new__(cls)
        turn.repeated = turn._closed = True
        turn.thought = False
        turn._opened, turn._renewed, turn._answer = opened, reply.renewed, answer_id
        turn._reply = reply
        return turn

    @property
    def session_id(self) -> str:
        """Name the session in which the reply will be stored, by its `Session.stable_id`, before a model is asked."""
        return self._opened.id

    @property
    def renewed(self) -> bool:
        """Say whether that is a new session, in the place of one that had timed out."""
        return self._renewed

    @property
    def answer_id(self) -> str:
        """Name the item that the reply will be; another one after `add`."""
        if self.repeated:
            return self._answer
        return sessions.new_item_id(self._opened.head.count + len(self._first) + len(self._fitting.new), self._answer)

    @property
    def _first(self) -> list[Item]:
        """Give what a session that is not stored yet begins with."""
        opened = self._opened
        return [*([opened.system] if opened.system else []), *opened.brought] if opened.fresh else []

    @property
    def canary(self) -> str:
        """Give what marks this session: planted where only its model reads, it tells if it turns up elsewhere.

        A reply or a document of another session with this in it is withheld. Empty where no `LeakGuard` watches.
        """
        self._unfinished()
        return self._check.canary

    @property
    def reply(self) -> Reply[SessionT]:
        """Give the stored reply; raises `RuntimeError` before there is one."""
        if self._reply is None:
            raise RuntimeError("this turn has no reply yet: call finish(answer), or read stream(answer) to its end")
        return self._reply

    @property
    def tokens(self) -> int:
        """Give how many tokens are sent, by cloister's own count."""
        self._fit()
        return self._fitting.tokens()

    @property
    def messages(self) -> list[dict[str, Any]]:
        """Give what fits the window, as messages of the OpenAI chat format."""
        return wire.chat(self._handed_out())

    def chat(self) -> dict[str, Any]:
        """Give the arguments for ``client.chat.completions.create``, beside the model's name."""
        self._calls.ask()
        return {"messages": self.messages}

    def responses(self) -> dict[str, Any]:
        """Give the arguments for ``client.responses.create``, beside the model's name."""
        self._calls.ask()
        return wire.responses(self._handed_out())

    def anthropic(self) -> dict[str, Any]:
        """Give the arguments for ``client.messages.create``, beside the model's name and ``max_tokens``."""
        self._calls.ask()
        return wire.anthropic(self._handed_out())

    def request(self) -> Request:
        """Give what a provider of cloister's own is asked."""
        provider = self._cloister.provider
        self._calls.ask(provider.name if provider else None)
        options = pseudonyms.named(self._options, self._pseudonym)
        return Request(wire.chat(self._handed_out(), carrying=True), self._model, options)

    def add(self, item: Item | Mapping[str, Any] | object) -> Item:
        """Record an item between question and reply: an assistant's tool calls, as an SDK gave them, or their results.

        Gives it as the application may use it: with the owner's data back in the arguments of the tools that may have
        it. Raises `ValueError` for what is neither a message nor an answer, `ReplyBlocked` for the result of a tool
        that carries what was planted in another session.
        """
        self._unfinished()
        told, model = None, None
        if isinstance(item, Item) or _is_message(item):
            added = checked(item)
        else:
            answer = self._read(item)
            told, model = answer.usage, answer.model
            added = wire.answer_item(answer)
        if added.role == "assistant":
            # Each is a call of a model, whether or not what was added of it says what it took.
            heard = self._cloister.counted(added, self._model).tokens
            self._calls.spend(self._calls.told(told, heard), model)
            self._fit()
            added = self._mask.answered(added)
        self._check.takes(added)
        self._mask.brought(added)
        self._fitting.add(self._counted(self._mask.hide(added)))
        return added

    async def stream(self, source: AsyncIterator[Any]) -> AsyncGenerator[str, None]:
        """Give the text of a streamed answer as it comes, and store the turn when it has come to its end.

        *source* is any SDK's stream, or an async iterator of text, whose normal end is its finish marker. Where it
        comes to another user's details it is closed, and the safe text comes instead.
        Raises `ProviderError` if the stream breaks off, or what storing the turn raises.
        """
        if self.repeated:
            yield self.reply.text
            return
        self._unfinished()
        if not hasattr(source, "__aiter__"):
            raise TypeError(
                "turn.stream takes an async iterator; await the SDK's call first, and pass stream=True to it"
            )
        reader = wire.Reader()
        try:
            async for chunk in source:
                for text in self.read(reader, chunk):
                    yield text
                if self.waiting:
                    for text in await self.look():
                        yield text
                if self.withheld:
                    break
        finally:
            await close(source)
        for text in await self.end(reader):
            yield text
        await self.store()

    def read(self, reader: wire.Reader, chunk: object) -> list[str]:
        """Read one *chunk* of a streamed answer; give what of it may be shown: nothing while something is `waiting`."""
        if reader is not self._reader:  # another attempt, after one that broke off
            self._calls.break_off()
            self._reader = reader
        self._fit()
        pieces = reader.feed(chunk)
        self._calls.hear([text for _, text in pieces])
        self.thought = self.thought or any(channel == "reasoning" for channel, _ in pieces)
        return self._outlet.take(pieces)

    @property
    def waiting(self) -> bool:
        """Say whether something was read that cannot be shown before `look`."""
        return self._outlet.waiting

    @property
    def withheld(self) -> bool:
        """Say whether what was read carries another user's details: nothing more of it is to be read or shown."""
        return self._outlet.blocked

    async def look(self) -> list[str]:
        """Look up whose what was read is; give what may be shown then. Raises `StoreUnavailable`."""
        return await self._outlet.look()

    async def end(self, reader: wire.Reader) -> list[str]:
        """Judge the answer that *reader* has read; give the rest that may be shown, or the safe text. Then `store`.

        Raises `ProviderError` if the answer is not whole.
        """
        self._unfinished()  # the block may have been left, or the turn finished, while the stream was read
        outlet = self._outlet
        shown, texts = outlet.shown, list[str]()
        answer = None if self.withheld else reader.finish()
        if answer is not None:
            texts = await outlet.rest()
        if outlet.blocked:
            answer = None
            outlet.settle()
        self._judged = judged = await self._judge(answer)
        if judged.blocked:
            return ["\n\n" + judged.heard.text if shown else judged.heard.text]
        return [judged.shown] if outlet.holds and judged.heard.text else texts

    async def store(self) -> Reply[SessionT]:
        """Store the turn with the answer that was read to its `end`."""
        self._unfinished()
        assert self._judged is not None
        return await self._commit(self._judged)

    async def finish(self, answer: object) -> Reply[SessionT]:
        """Store the turn with *answer*, which is text or any SDK's response, and give the reply.

        Raises `ProviderError` if it is not a whole answer.
        """
        if self.repeated:
            return self.reply
        self._unfinished()
        self._calls.break_off()
        read = answer if isinstance(answer, wire.Answer) else self._read(answer)
        self._closed = True
        return await self._commit(await self._judge(read))

    def _read(self, answer: object) -> wire.Answer:
        """Read a whole answer; one that cannot be taken is paid for all the same."""
        try:
            return wire.read(answer)
        except ProviderError:
            self._calls.spend_unread(answer)
            raise

    async def _judge(self, answer: wire.Answer | None) -> _Judged:
        """Look for another user's details in an *answer*; None is one in which they were found while it arrived."""
        check, calls = self._check, self._calls
        calls.answered()
        self._course.at("check")
        heard = kept = calls.heard()
        if answer is not None:
            ((heard, kept),) = await looked(self._opened.owner, [wire.answer_item(answer)], self._taken)
        kept = self._counted(kept)
        if answer is None:
            usage = calls.guess(kept)
        else:
            usage = calls.told(answer.usage, kept.tokens)
            calls.spend(usage, answer.model)
        blocked = answer is None or await check.judge(heard)
        if answer is None or blocked:
            model = None if answer is None else answer.model
            answer = wire.Answer(check.safe_text, model=model, finish_reason="content_filter")
            heard, kept = self._taken(wire.answer_item(answer))
            kept = self._counted(kept)
        return _Judged(answer, heard, msgspec.structs.replace(kept, usage=usage), blocked)

    async def _commit(self, judged: _Judged) -> Reply[SessionT]:
        """Store the turn with an answer that may be shown, or with the safe text that stands in its place."""
        self._closed = True
        self._course.at("commit")
        check, answer, blocked = self._check, judged.answer, judged.blocked
        said = self._without_tools() if blocked else self._fitting.new
        opened = self._opened
        items = [*self._first, *said, await self._remembering(judged)]
        items[-1] = msgspec.structs.replace(
            items[-1], id=sessions.new_item_id(opened.head.count + len(items) - 1, self._answer)
        )
        stored = await self._cloister.vault.commit(
            opened,
            items,
            used=self._calls.used,
            entries=self._entries(items, answer),
            fingerprints=await self._fingerprints(None if blocked else judged.heard),
            record=None if self._filing is None else self._recorder(self._filing, answer, blocked),
            settlement=self._bill.settlement(),
        )
        self._bill.close()
        self._reply = Reply(
            text=judged.heard.text,
            session=self._settle(opened),
            usage=self._calls.spent,
            cost=self._bill.cost,
            model=answer.model or self._model,
            tool_calls=tuple(judged.heard.tool_calls or ()),
            finish_reason=answer.finish_reason,
            blocked=blocked,
            renewed=self._renewed,
            notice=RENEWED if self._renewed else None,
            latency=self._calls.latency,
            time_to_first_token=self._calls.time_to_first_token,
            items=tuple(map(shown, stored)),
            filed=self._filed,
        )
        if blocked and check.raises:
            raise ReplyBlocked("the reply carried another user's details, so the safe text was stored instead of it")
        return self._reply

    def _without_tools(self) -> list[Item]:
        """Give what stays of the question where the reply is withheld: tools and model may have said the same before.

        What came with the question keeps its place, empty: the answer lies where it was said to come to lie.
        """
        first = [
            item if item.role in ("user", "system") else self._counted(_emptied(item))
            for item in self._fitting.new[: self._brought]
        ]
        return [*first, *_asked(self._fitting.new[self._brought :])]

    async def _remembering(self, judged: _Judged) -> Item:
        """Give the answer as it is stored, with what the application remembers of it: no model said or is told that."""
        if self._remember is None:
            return judged.kept
        more = Item("assistant", extra={REMEMBERED: memory_of(self._remember, judged.answer)})
        (hidden,) = await looked(self._opened.owner, [more], self._mask.hide)
        return self._mask.join(judged.kept, judged.heard, hidden)

    def outcome(self, error: BaseException | None) -> Outcome:
        """Say, for whoever measures, what the turn has come to."""
        reply = self._reply
        if self.repeated:
            return Outcome("repeated")
        stored = "passed" if self._opened.passing else "committed"
        result = "failed" if reply is None else "blocked" if reply.blocked else stored
        unfinished = "unfinished" if reply is None else None
        return Outcome(
            result,
            error=type(error).__name__ if error else unfinished,
            provider=self._calls.provider,
            model=self._model or self._cloister.model,
            answered_by=reply.model if reply else None,
            finish_reason=reply.finish_reason if reply else None,
            usage=self._calls.spent,
        )

    def _taken(self, item: Item) -> tuple[Item, Item]:
        """Give the model's answer as its owner is shown it, and as it is stored."""
        whole = self._check.without_canary(self._mask.answered(item))
        return whole, self._mask.hide(whole)

    def _entries(self, items: Sequence[Item], answer: wire.Answer) -> list[Event]:
        opened, spent = self._opened, self._calls.detail(answer.model)
        if opened.passing:
            committed = self._event("turn.passed", **spent)
        else:
            content = opened.keys.content_digest(items)
            committed = self._event("turn.committed", items=len(items), content=content, **spent)
        entries = [*self._alarms(), *replaced(committed, self._mask), committed]
        if opened.instead_of is not None:
            entries.insert(0, self._event("session.renewed", after=sessions.digest(opened.instead_of)))
        elif opened.fresh and not opened.passing:
            entries.insert(0, self._event("session.started", imported=len(opened.brought)))
        return entries

    async def _fingerprints(self, answer: Item | None) -> list[Fingerprint]:
        """Give what is remembered of the turn, and of what its session began with."""
        found = {one.digest: one for one in (*self._prints, *await self._check.fingerprints(answer))}
        return list(found.values())

    def _handed_out(self) -> list[Item]:
        """Give what is sent: from here on a model may have been asked."""
        fitted = self._fit()
        self._bill.asked = True
        return fitted

    def _alarms(self) -> list[Event]:
        """Give what is to be put on record of an answer, whether it is stored or not."""
        # A streamed answer is read twice, as it comes and as a whole.
        met = max(self._mask.foreign, self._outlet.foreign)
        return [*self._check.events, *([self._event("placeholder.foreign", count=met)] if met else [])]

    def _event(self, kind: str, **detail: Detail) -> Event:
        return self._cloister.vault.event(kind, self._opened.owner, self._opened.id, **detail)

    def _recorder(self, filing: Filing, answer: wire.Answer, blocked: bool) -> Recorder:
        """Give what makes the record by which the request is known again, once the answer's position is known."""
        until = to_micros(self._cloister.vault.now() + filing.live)

        def record(opened: Opened, head: Head, name: str) -> Record:
            token = "" if name == opened.id else name
            key = filing.under(b"" if opened.fresh else head.turn)
            kept = Kept(key.content, head.count - 1, answer.model, answer.finish_reason, self._renewed, token, blocked)
            sealed = key.seal(opened, kept, until)
            self._filed = filing.until_delivered(sealed)
            return sealed

        return record

    async def leave(self, error: BaseException | None) -> None:
        """Close the turn. If it came to nothing, put that on record and book what it has spent.

        *error* is None if the block was left without a reply.
        """
        if self.repeated:
            return
        self._closed = True
        try:
            if not await self._cloister.vault.stored(self._opened):
                await self._fail(error)
        finally:
            self._opened.forget()
            self._mask.forget()
            self._check.forget()
            self._outlet.forget()
            self._calls.heard()

    async def _fail(self, error: BaseException | None) -> None:
        self._calls.break_off()
        self._bill.give_up(unasked=_unasked(error))
        if self._check.verdict.action == "pass":  # or it is on record already
            self._outlet.settle()
        reason = "unfinished" if error is None else type(error).__name__
        self._calls.failed(reason)
        try:
            failed = self._event("turn.failed", reason=reason, **self._calls.detail(None))
            await self._book([failed, *self._alarms()], error)
        except CloisterError as fault:
            if error is None:
                raise
            error.add_note(f"and this could not be put on record: {fault}")

    async def _book(self, noted: Sequence[Event], error: BaseException | None) -> None:
        vault, opened = self._cloister.vault, self._opened
        kept: list[Item] = []
        if error is not None and self._cloister.keep_failed:
            # What tools and model said on the way was not looked at: that happens with the reply.
            kept = [msgspec.structs.replace(item, error=type(error).__name__) for item in _asked(self._fitting.new)]
        if not opened.fresh and (kept or self._calls.spent.total_tokens or self._bill.nanos):
            used = self._calls.used
            head = sessions.spend(opened.head, used)
            settlement = self._bill.settlement()
            with contextlib.suppress(SessionConflict):  # the session moved on, or is gone: then the entry alone
                if kept:
                    entries = [*replaced(noted[0], self._mask), *noted]
                    prints = await self._check.fingerprints()
                    await vault.commit(
                        opened, kept, used=used, entries=entries, fingerprints=prints, settlement=settlement
                    )
                else:
                    await vault.commit(opened, head=head, entries=noted, settlement=settlement)
                self._bill.close()
                return
            # Not under the owner's name: erasure may just have removed it from the log.
            noted = [msgspec.structs.replace(one, owner=None) for one in noted]
        await vault.note(noted)

    def _fit(self) -> list[Item]:
        """Give the items that are sent."""
        if self.repeated:
            self._unfinished()
        return self._fitting.items()

    def _counted(self, item: Item) -> Item:
        return counted(self._cloister, self._mask, item, self._model)

    def _unfinished(self) -> None:
        if self.repeated:
            raise RuntimeError("this turn was answered before, under its idempotency key: use turn.reply")
        if self._closed:
            raise RuntimeError("this turn is finished, or its block was left; start another with session.turn")

    def __repr__(self) -> str:
        return f"Turn({'finished' if self._reply else 'open'})"


def _emptied(item: Item) -> Item:
    """Give what stays of an item that may hold what was withheld: its place, and which call it answered."""
    content = "" if item.role == "tool" else None
    return msgspec.structs.replace(item, content=content, tool_calls=None, extra=None, values=None)


def _asked(items: Sequence[Item]) -> list[Item]:
    """Give those of *items* that neither a model nor a tool made."""
    return [item for item in items if item.role in ("user", "system")]


def _unasked(error: BaseException | None) -> bool:
    """Say whether the *error* is that the model could not even be asked."""
    return error.unasked if isinstance(error, ProviderError) else isinstance(error, ConfigurationError)


def _is_message(given: object) -> bool:
    """Say whether this is a message of the chat format, and not a whole answer of another one."""
    if isinstance(given, Mapping):
        return "role" in given and given.get("type") != "message"
    return hasattr(given, "model_dump") and hasattr(given, "role") and getattr(given, "type", None) != "message"
