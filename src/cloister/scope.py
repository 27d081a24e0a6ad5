"""Who the current task works for: a ContextVar that is closed, not only reset, when its block ends."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from contextvars import ContextVar, Token
from dataclasses import dataclass, field

from cloister.errors import NoScope, ScopeClosed
from cloister.model import Owner


@dataclass(frozen=True, slots=True)
class Scope:
    """Name the owner and the session that the current task works for."""

    owner: Owner
    session_id: str = field(repr=False)


class _Frame:
    """A scope, the one around it, and whether its block is still running. Tasks that copied the context share it."""

    __slots__ = ("around", "closed", "scope")

    def __init__(self, scope: Scope, around: _Frame | None) -> None:
        self.scope = scope
        self.around = around
        self.closed = False


_current: ContextVar[_Frame | None] = ContextVar("cloister_scope", default=None)


def current() -> Scope:
    """Give the scope that this task was started in.

    Raises `NoScope` outside any, and `ScopeClosed` in a task that outlived its block.
    """
    frame = _current.get()
    if frame is None:
        raise NoScope
    if frame.closed:
        raise ScopeClosed
    return frame.scope


@contextlib.contextmanager
def open_scope(scope: Scope) -> Iterator[Scope]:
    """Make *scope* the current one inside the block, in every task and `asyncio.to_thread` started there.

    Not around a ``yield``: generators that take turns in one task share its context. Pass the `Scope` value there.
    """
    frame = _Frame(scope, _current.get())
    token = _current.set(frame)
    try:
        yield scope
    finally:
        frame.closed = True
        _leave(frame, token)


_source: ContextVar[str] = ContextVar("cloister_source", default="")
_LONGEST = 200
_SESSION = re.compile(r"(c[st]_)[A-Za-z0-9_-]{40,}")


class source:
    """Put *name* on record as where the calls inside the block come from: an address, a route, a job.

    At most 200 characters of it. Never a secret; what looks like a session id, as in a path, is left out.
    """

    __slots__ = ("_before", "_name")

    def __init__(self, name: str) -> None:
        if not isinstance(name, str):
            raise TypeError(f"where a call comes from is a text, not {type(name).__name__}")
        self._name = name

    def __enter__(self) -> None:
        self._before = _source.get()
        _source.set(self._name)

    def __exit__(self, *_: object) -> None:
        _source.set(self._before)


def source_of() -> dict[str, str]:
    """Give where the current call comes from, as a detail of an audit entry; nothing if nobody said."""
    name = _source.get()
    if not name:
        return {}
    # Half a surrogate pair, as in a path that is no UTF-8, could not be read again by everybody.
    return {"source": _SESSION.sub(r"\1…", name).encode("utf-8", "replace").decode()[:_LONGEST]}


def _leave(frame: _Frame, token: Token[_Frame | None]) -> None:
    inner = _current.get()
    if inner is frame:
        # A generator's block may be left in another context than it was entered in: nothing is given back there.
        with contextlib.suppress(ValueError):
            _current.reset(token)
            _current.set(frame.around)
        return
    # Left before a block inside it: that one stays current, and gives way to what was around this one.
    while inner is not None and inner.around is not frame:
        inner = inner.around
    if inner is not None:
        inner.around = frame.around
