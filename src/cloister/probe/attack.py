"""What an attack on a store works with: two owners of its own, a fence around everybody else, a store that tampers.

The keyring is thrown away afterwards. So nothing that was there before can be opened with it, and nothing that is
planted needs a secret of the deployment.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import msgspec

from cloister import sessions
from cloister.alarms import Alarms
from cloister.audit import Event
from cloister.client import AsyncCloister
from cloister.errors import CloisterError
from cloister.keyring import Keyring
from cloister.model import Limits, Owner, SealedSession
from cloister.session import Session
from cloister.stores.base import Commit, Loaded, Receipt, Store
from cloister.user import User

LIMITS = Limits(timedelta(minutes=30), timedelta(hours=12), turn_wait=timedelta(seconds=30))
_PAGE = 1_000
_PATIENT = Alarms(suspend_after=1_000_000)  # who is refused for a while finds out nothing more
SYSTEM = "Answer politely."
"""What the application says in every planted session, so that there is a carried text to tamper with."""


class Leak(Exception):
    """Say that a promise does not hold on this store, and how that showed."""


class Beyond(Exception):
    """Say why a check could not be made with the rights that there are."""


class NotRun(Exception):
    """Say why a check has nothing to look at here."""


class Trespass(Exception):
    """Say that a request was about to touch what is not a canary's. It was not sent."""


@dataclass
class Witness:
    """Look through every answer of the store for what was said, and count what was put on record."""

    marker: bytes
    answers: int = 0
    readable: list[str] = field(default_factory=list)
    """The requests whose answers held planted words in clear."""
    events: Counter[str] = field(default_factory=Counter)

    def look(self, name: str, answer: object) -> None:
        self.answers += 1
        if self.marker in msgspec.msgpack.encode(answer):
            self.readable.append(name)


class Fence:
    """Stand before a store and let no request through that names another owner than the canaries.

    Nothing of anybody else's is changed, by housekeeping neither: a session whose time is up is for the deployment to
    end. What reads across owners goes through: sealed rows and the log.
    """

    def __init__(self, store: Store, ours: Callable[[Owner], bool], witness: Witness) -> None:
        self._store = store
        self._ours = ours
        self._witness = witness

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._store, name)
        if not asyncio.iscoroutinefunction(real):
            return real

        async def ask(*args: Any, **options: Any) -> Any:
            for owner in _concerned(args, options):
                if not self._ours(owner):
                    raise Trespass(f"{name} names an owner who is not one of the canaries")
            for event in _events(args, options):
                self._witness.events[event.kind] += 1
            answer = await real(*args, **options)
            self._witness.look(name, answer)
            return answer

        return ask

    async def expired(self, **options: Any) -> Any:
        return [due for due in await self._store.expired(**options) if self._ours(due.owner)]

    async def sweep(self, *, nonce: bytes, **_: Any) -> Receipt:
        return Receipt(nonce)


def _concerned(args: tuple[Any, ...], options: dict[str, Any]) -> list[Owner]:
    """Give every owner whom a request names."""
    found = []
    for given in args:
        row = given.session if isinstance(given, Commit) else given
        if isinstance(row, SealedSession | Owner):
            found.append(row.owner if isinstance(row, SealedSession) else row)
    events = _events(args, options)
    return found + [owner for event in events for owner in (event.owner, event.other) if owner is not None]


def _events(args: tuple[Any, ...], options: dict[str, Any]) -> list[Event]:
    commits = [given.entries for given in args if isinstance(given, Commit)]
    lists = [*commits, *(given for given in args if isinstance(given, list)), options.get("entries", ())]
    return [event for entries in lists for event in entries if isinstance(event, Event)]


Change = Callable[[Any], Any]


class Tampered:
    """Stand before a store and change what it answers: ``changes`` maps a request's name to what is done to its answer.

    ``done`` counts the answers that came out changed.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self.changes: dict[str, Change] = {}
        self.done = 0

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._store, name)
        if not asyncio.iscoroutinefunction(real):
            return real

        async def ask(*args: Any, **options: Any) -> Any:
            answer = await real(*args, **options)
            if name in self.changes:
                changed = self.changes[name](answer)
                self.done += changed != answer
                return changed
            return answer

        return ask


class Clock:
    """Be a clock that stands still until it is moved."""

    def __init__(self, now: datetime) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now


@dataclass
class House:
    """Be an open cloister on the store under attack, with a door for each of the two."""

    attack: Attack
    cloister: AsyncCloister
    tampered: Tampered
    a: User
    b: User

    async def planted(self, user: User, turns: int = 3) -> Session:
        """Start a session in which something was said."""
        session = await user.start(system=SYSTEM)
        for _ in range(turns):
            await self.talk(session)
        return session

    async def talk(self, session: Session, said: str | None = None, **options: Any) -> str:
        """Say something, answer it as a model would, and give what was said.

        Raises `Leak` if the model would have been sent anything that was not said by the same owner.
        """
        text = said or self.attack.words(session.owner)
        async with session.turn(text, **options) as turn:
            if not turn.repeated:
                for message in turn.messages:
                    self.attack.check_own(session.owner, str(message["content"]))
                await asyncio.sleep(0)  # while the model thinks, others get on
                await turn.finish(answer_to(text))
        return text

    async def told(self, session: Session) -> list[str]:
        """Give all that a session holds, system text apart. Raises `Leak` if any of it is not its owner's."""
        found: list[str] = []
        after = None
        while True:
            page = await session.history(limit=_PAGE, after=after)
            found += [item.text for item in page if item.role != "system"]
            if len(page) < _PAGE:
                break
            after = page[-1].id
        for text in found:
            self.attack.check_own(session.owner, text)
        return found

    async def load(self, owner: Owner, session_id: str, **options: Any) -> Loaded:
        """Ask the store itself for a session."""
        vault = self.cloister.vault
        return await vault.ask(vault.store.load, owner, session_id, **{"budget": 1_000_000, **options})

    async def secret(self, session: Session) -> bytes:
        """Give the wrapped secret of a session, as the store has it."""
        row = (await self.load(session.owner, session.stable_id)).session
        if row is None or row.wrapped is None:
            raise Leak("the store does not have what was planted a moment before")
        return row.wrapped


_LETTERS = str.maketrans("0123456789", "ghijklmnop")


def _letters(size: int) -> str:
    """Give *size* random bytes in letters: digits might be taken for personal data, and replaced."""
    return secrets.token_hex(size).translate(_LETTERS)


def answer_to(said: str) -> str:
    """Give what the model of the attack answers."""
    return f"In answer to: {said}"


@dataclass
class Attack:
    """Be one attack: on what, as whom, and how many turns are taken over a faulty network.

    ``connect`` gives the store, not yet opened, each time anew. ``url`` names it, with its secrets; empty for a store
    that has none. ``signing`` are the arguments with which a cloister signs the audit log there.
    """

    connect: Callable[[], Store]
    url: str = ""
    tenant: str | None = None
    turns: int = 200
    signing: dict[str, Any] = field(default_factory=dict)
    run: str = field(default_factory=lambda: secrets.token_hex(8))
    keyring: Keyring = field(default_factory=Keyring.generate, repr=False)
    audit_ids: set[str] = field(default_factory=set)
    """Under which names the two stand in the audit log, where that could be read."""

    def __post_init__(self) -> None:
        self.a = Owner(self.tenant, f"cloister-prove-{self.run}-a")
        self.b = Owner(self.tenant, f"cloister-prove-{self.run}-b")
        self._marker = f"planted-{_letters(8)}"
        self.witness = Witness(self._marker.encode())

        store = self.connect()
        self.in_tokens = hasattr(store, "tokens")
        """The session id is the sealed conversation."""
        self.keeps: bool = getattr(store, "ledger", True)
        """The store keeps something of each session: only one for tokens may not."""
        self.unconcerned: dict[str, str] = dict(getattr(store, "unconcerned", {}))
        """Why a check does not concern this store, by its name or by what it is about: the store says so itself."""

    @property
    def owners(self) -> tuple[Owner, Owner]:
        return self.a, self.b

    @property
    def kind(self) -> str:
        """Give the scheme of the store's URL."""
        return self.url.partition("://")[0]

    def ours(self, owner: Owner) -> bool:
        """Say whether an owner is a canary of this attack, or a look-alike of one."""
        return self.run in owner.user and owner.tenant == self.tenant

    def words(self, owner: Owner) -> str:
        """Give something to say that shows who said it, and that nobody else ever said."""
        return f"{self._whose(owner)} {_letters(6)}"

    def check_own(self, owner: Owner, text: str) -> None:
        """Raise `Leak` if *text* is neither the application's nor said by *owner*."""
        if text != SYSTEM and text.removeprefix(answer_to("")).startswith(self._whose(owner)) is False:
            raise Leak("something that its owner never said came out of a session")

    def _whose(self, owner: Owner) -> str:
        return f"{self._marker} {owner.user[-1:]}"

    @contextlib.asynccontextmanager
    async def opened(
        self, *, clock: Callable[[], datetime] | None = None, connect: Callable[[], Store] | None = None
    ) -> AsyncIterator[House]:
        """Open the store as an application would, behind the fence."""
        fence = Fence((connect or self.connect)(), self.ours, self.witness)
        tampered = Tampered(cast(Store, fence))
        async with AsyncCloister.open(
            cast(Store, tampered),
            keyring=self.keyring,
            limits=LIMITS,
            tenancy="single" if self.tenant is None else "required",
            clock=clock,
            alarms=_PATIENT,
            **self.signing,
        ) as cloister:
            a, b = (cloister.user(owner.user, tenant=owner.tenant) for owner in self.owners)
            yield House(self, cloister, tampered, a, b)


async def refusal(call: Coroutine[Any, Any, Any]) -> tuple[str, str]:
    """Give the kind and the words of the error that *call* comes to; two empty texts if it comes to none."""
    try:
        await call
    except CloisterError as error:
        return type(error).__name__, str(error)
    return "", ""


async def must_refuse(call: Awaitable[Any], expected: type[Exception], what: str) -> None:
    """Raise `Leak` unless *call* is refused as *expected*; *what* is what would have happened then."""
    try:
        await call
    except expected:
        return
    except CloisterError as error:
        raise Leak(f"{what}: {type(error).__name__} instead of {expected.__name__}") from error
    raise Leak(what)


def now() -> datetime:
    return datetime.now(UTC)


def absent_id(session: Session) -> str:
    """Give an id that nobody has, in the place of one that somebody has."""
    return sessions.new_id(session.stable_id)
