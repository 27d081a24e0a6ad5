"""Where a message ends in the byte streams of Redis and PostgreSQL, however they are cut into chunks.

Nothing is kept but the beginning of a header: what a length announces is counted, not collected.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Literal, Protocol

Mark = Literal["end", "part", "aside", "now"]
"""What ends: a whole request or answer, a message inside one, one that answers nothing, one that cannot wait."""


class Frames(Protocol):
    """Finds ends in one direction of one connection."""

    def ends(self, data: bytes) -> list[tuple[int, Mark]]:
        """Give the offsets in *data*, which follows what was given before, at which something ends.

        Raises `ValueError` where it is not that protocol; the connection is of no use then.
        """
        ...


class Resp:
    """Find the ends of RESP2 and RESP3 values: a reply or, in the other direction, a command each."""

    _LINE_AT_MOST = 32  # a kind and a length; of longer lines, which are text, nothing but the kind matters

    def __init__(self) -> None:
        self._line = b""
        self._skip = 0
        self._open = 1  # values that are still to come before this one is whole
        self._aside: bool | None = None

    def ends(self, data: bytes) -> list[tuple[int, Mark]]:
        found: list[tuple[int, Mark]] = []
        at = 0
        while at < len(data):
            if self._skip:
                step = min(self._skip, len(data) - at)
                at += step
                self._skip -= step
                whole = self._skip == 0
            else:
                newline = data.find(b"\n", at)
                stop = newline + 1 or len(data)
                self._line += data[at : min(stop, at + self._LINE_AT_MOST - len(self._line))]
                at = stop
                whole = newline >= 0 and self._header()
            if whole:
                self._open -= 1
                if not self._open:
                    found.append((at, "aside" if self._aside else "end"))
                    self._open, self._aside = 1, None
        return found

    def _header(self) -> bool:
        """Take a line; say whether the value that it begins ends with it."""
        kind, rest, self._line = self._line[:1], self._line[1:], b""
        if self._aside is None:
            self._aside = kind == b">"
        if kind in b"+-:_#,(" or kind.isalpha():  # a letter: a command typed by hand
            return True
        if kind not in b"$=!*~>%|":
            raise ValueError("this is not RESP")
        length = int(rest)
        if length < 0:  # the nulls of RESP2
            return True
        if kind in b"$=!":
            self._skip = length + 2
            return False
        self._open += length * (2 if kind in b"%|" else 1)
        return kind != b"|"  # attributes precede the value to which they belong


class Postgres:
    """Find the ends of PostgreSQL's messages, those after the start-up, of which some end a request or an answer."""

    def __init__(self, ends: Container[bytes], now: Container[bytes]) -> None:
        self._ends, self._now = ends, now
        self._header = b""
        self._skip = 0

    @classmethod
    def requests(cls) -> Postgres:
        """Look at what a client sends: Query, Sync and FunctionCall are answered to the end, Flush at once."""
        return cls((b"Q", b"S", b"F"), (b"H",))

    @classmethod
    def answers(cls) -> Postgres:
        """Look at what a server sends: ReadyForQuery ends an answer; before a copy the client waits for what came."""
        return cls((b"Z",), (b"G", b"W"))

    def ends(self, data: bytes) -> list[tuple[int, Mark]]:
        found: list[tuple[int, Mark]] = []
        at = 0
        while at < len(data):
            if len(self._header) < 5:
                step = min(5 - len(self._header), len(data) - at)
                self._header += data[at : at + step]
                at += step
                if len(self._header) < 5:
                    break
                self._skip = int.from_bytes(self._header[1:], "big", signed=True) - 4
                if self._skip < 0 or not self._header[:1].isalnum():
                    raise ValueError("this is not PostgreSQL's protocol")
            step = min(self._skip, len(data) - at)
            at += step
            self._skip -= step
            if not self._skip:
                kind, self._header = self._header[:1], b""
                found.append((at, "end" if kind in self._ends else "now" if kind in self._now else "part"))
        return found
