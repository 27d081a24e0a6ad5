"""Looking at long texts: beside the event loop, in few threads, and at one text of an owner's at a time.

A look is nothing but computing, so more threads than these would not be through sooner: each would only keep the event
loop waiting longer for the interpreter. What takes seconds has a thread of its own, so that the others need not wait
for it.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import TypeVar
from weakref import WeakKeyDictionary, WeakValueDictionary

from cloister.errors import RateLimited
from cloister.model import Owner

T = TypeVar("T")

_HUGE = 200_000  # characters: they are searched in seconds
_LONG_AT_ONCE = 2
_MOST = 16_000_000
"""How many characters of one owner's may wait: they lie in memory, also where whoever sent them is gone."""
_AGAIN = timedelta(seconds=10)


class _Line:
    """Be where the texts of one owner wait for each other."""

    def __init__(self) -> None:
        self.turn = asyncio.Lock()
        self.size = 0


class _Threads:
    """Be the threads of one event loop. They end with it."""

    def __init__(self) -> None:
        self.long = ThreadPoolExecutor(_LONG_AT_ONCE, "cloister-long")
        self.huge = ThreadPoolExecutor(1, "cloister-huge")
        self.owners: WeakValueDictionary[Owner, _Line] = WeakValueDictionary()


_threads: WeakKeyDictionary[asyncio.AbstractEventLoop, _Threads] = WeakKeyDictionary()


async def beside(owner: Owner, size: int, look: Callable[[], T], *, begins: bool = False) -> T:
    """Give what *look* gives, which looks at texts of so many characters that are *owner*'s.

    Raises `RateLimited` where it *begins* something, and too many of the owner's wait already.
    """
    loop = asyncio.get_running_loop()
    threads = _threads.get(loop)
    if threads is None:
        threads = _threads[loop] = _Threads()
    line = threads.owners.get(owner)
    if line is None:
        line = threads.owners[owner] = _Line()
    if begins and line.size > _MOST:
        raise RateLimited("too many long texts of this user wait to be looked at", _AGAIN)
    line.size += size
    try:
        async with line.turn:
            thread = threads.huge if size > _HUGE else threads.long
            return await loop.run_in_executor(thread, contextvars.copy_context().run, look)
    finally:
        line.size -= size
