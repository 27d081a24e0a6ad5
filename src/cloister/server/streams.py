"""An answer that fails while it is written: its status is gone, so the last event says what became of it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator

from cloister.server import errors
from cloister.server.door import sse
from cloister.server.errors import Style


async def told(pieces: AsyncGenerator[bytes, None], request_id: str, style: Style) -> AsyncGenerator[bytes, None]:
    """Give *pieces*; what fails after the first of them is said in an event, what fails before is raised."""
    begun = False
    async with contextlib.aclosing(pieces):
        try:
            async for piece in pieces:
                begun = True
                yield piece
            return
        except Exception as error:
            if not begun:
                raise
            refused = errors.refusal(error)
            errors.log(error, request_id, refused.status, streamed=True)
    yield sse(errors.shape(refused, style, request_id), "error" if style == "anthropic" else None)
