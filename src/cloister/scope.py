"""Who the current task works for: a ContextVar that is closed, not only reset, when its block ends."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field

from cloister.errors import NoScope, ScopeClosed
from cloister.model import Owner


@dataclass(frozen=True, slots=True)
class Scope:
    """Name the owner and the session that the current task works for."""

    owner: Owner
    session_id: str = field(repr=False)


class _Frame:
    """A scope and whether its block is still running. Tasks that copied the context share it."""

    __slots__ = ("closed", "scope")

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
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
    """Make *scope* the current one inside the block, in every task and `asyncio.to_thread` started there."""
    frame = _Frame(scope)
    token = _current.set(frame)
    try:
        yield scope
    finally:
        frame.closed = True
        # A generator may be finalised in another context than it was started in; there is nothing to reset there.
        with contextlib.suppress(ValueError):
            _current.reset(token)
