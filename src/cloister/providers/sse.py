"""Server-sent events: the little format in which every provider streams."""

from __future__ import annotations

import re

from cloister.errors import ProviderError

_LINE_END = re.compile(rb"\r\n|\n|\r")
_BOM = b"\xef\xbb\xbf"


class Events:
    """Cut a body into events as its bytes arrive.

    *max_event* and *max_total* are in bytes. An event that is larger, and a body that is, raise `ProviderError`: memory
    belongs to all users, and one endless answer must not take it. Fields other than ``data`` are ignored, as the
    format wants; what an event is called is also in its data, with every provider that we know.
    """

    def __init__(self, max_event: int = 1 << 20, max_total: int = 64 << 20) -> None:
        self._max_event = max_event
        self._max_total = max_total
        self._total = 0
        self._cr = b""
        self._line = bytearray()
        self._data: list[bytes] = []
        self._size = 0

    def feed(self, body: bytes) -> list[bytes]:
        """Take the next bytes and return the data of the events that they complete."""
        if self._total == 0 and body.startswith(_BOM):
            body = body[len(_BOM) :]
        self._total += len(body)
        if self._total > self._max_total:
            raise ProviderError(
                f"the stream is longer than {self._max_total} bytes; it was cut off and nothing is kept"
            )
        body = self._cr + body
        # A CR at the end may be the first half of a CRLF: leave it for the next bytes.
        self._cr = b"\r" if body.endswith(b"\r") else b""
        first, *rest = _LINE_END.split(body[: len(body) - len(self._cr)])
        self._line += first
        events = []
        for piece in rest:
            event = self._take(bytes(self._line))
            if event is not None:
                events.append(event)
            self._line = bytearray(piece)
        if self._size + len(self._line) > self._max_event:
            raise ProviderError(f"an event of the stream is longer than {self._max_event} bytes; nothing is kept")
        return events

    def _take(self, line: bytes) -> bytes | None:
        if not line:
            data, self._data, self._size = self._data, [], 0
            return b"\n".join(data) if data else None
        if line.startswith(b"data:"):
            self._data.append(line[6:] if line.startswith(b"data: ") else line[5:])
            self._size += len(line)
            if self._size > self._max_event:
                raise ProviderError(f"an event of the stream is longer than {self._max_event} bytes; nothing is kept")
        return None
