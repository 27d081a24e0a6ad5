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
from typing import TypeVar
from weakref import WeakKeyDictionary, WeakValueDictionary

from cloister.model import Owner

T = TypeVar("T")

_HUGE = 200_000  # characters: they are searched in seconds
_LONG_AT_ONCE = 2


class _Threads:
    """Be the threads of one event loop. They end with it."""

    def __init__(self) -> None:
        self.long = ThreadPoolExecutor(_LONG_AT_ONCE, "cloister-long")
        self.huge = ThreadPoolExecutor(1, "cloister-huge")
        self.owners: WeakValueDictionary[Owner, asyncio.Lock] = WeakValueDictionary()


_threads: WeakKeyDictionary[asyncio.AbstractEventLoop, _Threads] = WeakKeyDictionary()


async def beside(owner: Owner, size: int, look: Callable[[], T]) -> T:
    """Give what *look* gives, which looks at texts of so many characters that are *owner*'s."""
    loop = asyncio.get_running_loop()
    threads = _threads.get(loop)
    if threads is None:
        threads = _threads[loop] = _Threads()
    turn = threads.owners.get(owner)
    if turn is None:
        turn = threads.owners[owner] = asyncio.Lock()
    async with turn:
        thread = threads.huge if size > _HUGE else threads.long
        return await loop.run_in_executor(thread, contextvars.copy_context().run, look)
