"""An answer that fails while it is written: its status is gone, so the last event says what became of it."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncGenerator

from cloister.errors import CloisterError, ProviderError
from cloister.server import errors
from cloister.server.door import sse
from cloister.server.errors import Style
from cloister.server.refusals import Refused

_log = logging.getLogger("cloister.server")


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
            if refused.status >= 500 or isinstance(error, ProviderError):
                unforeseen = None if isinstance(error, (CloisterError, Refused)) else error
                _log.error("%s failed while it was streamed: %s", request_id, errors.reason(error), exc_info=unforeseen)
    yield sse(errors.shape(refused, style, request_id), "error" if style == "anthropic" else None)
