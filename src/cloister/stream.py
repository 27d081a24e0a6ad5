"""A reply while it is written: what ``session.stream`` gives."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, Generic

from cloister.asking import streamed
from cloister.model import Reply
from cloister.providers.base import Provider
from cloister.turn import SessionT, Turn


class ReplyStream(Generic[SessionT]):
    """Be a reply while it is written. Made by ``session.stream``; use it in an ``async with`` block, once."""

    def __init__(self, turn: contextlib.AbstractAsyncContextManager[Turn[SessionT]], provider: Provider) -> None:
        self._entering = turn
        self._provider = provider
        self._turn: Turn[SessionT] | None = None
        self._text: AsyncGenerator[str, None] | None = None

    async def __aenter__(self) -> ReplyStream[SessionT]:
        self._turn = await self._entering.__aenter__()
        return self

    def __aiter__(self) -> AsyncIterator[str]:
        return self.texts()

    def texts(self) -> AsyncGenerator[str, None]:
        """Give the text as it comes; the same generator however often it is asked for."""
        turn = self.turn
        if self._text is None:
            source: Any = () if turn.repeated else streamed(self._provider, turn.request())
            self._text = turn.stream(source)
        return self._text

    async def __aexit__(self, *error: Any) -> bool | None:
        try:
            if self._text is not None:
                await self._text.aclose()
        except BaseException as closing:
            # The turn is left in any case: its lease is to be given back.
            await self._entering.__aexit__(type(closing), closing, closing.__traceback__)
            raise
        return await self._entering.__aexit__(*error)

    @property
    def turn(self) -> Turn[SessionT]:
        """Give the turn that is read: it knows where the reply will be stored before the first text comes."""
        if self._turn is None:
            raise RuntimeError("read the stream inside `async with session.stream(…) as stream:`")
        return self._turn

    @property
    def reply(self) -> Reply[SessionT]:
        """Give the stored reply, once the stream has been read to its end; `RuntimeError` before."""
        return self.turn.reply
