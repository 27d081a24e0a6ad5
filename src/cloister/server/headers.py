"""The headers of a request, read once: each by its name, and which of them stand there twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

USER, SESSION = b"cloister-user", b"cloister-session"


class Headers(Mapping[str, str]):
    """Be the headers of a request, decoded where somebody asks for one; the last of those that stand there twice."""

    __slots__ = ("raw", "repeated")

    def __init__(self, given: Sequence[tuple[bytes, bytes]]) -> None:
        self.raw = dict(given)
        """As they came: names in lower case."""
        self.repeated: frozenset[bytes] = frozenset()
        """The names of those that stand there more than once."""
        if len(self.raw) < len(given):
            counts = Counter(name for name, _ in given)
            self.repeated = frozenset(name for name, count in counts.items() if count > 1)

    def __getitem__(self, name: str) -> str:
        return self.raw[name.encode("latin-1")].decode("latin-1")

    def __iter__(self) -> Iterator[str]:
        return (name.decode("latin-1") for name in self.raw)

    def __len__(self) -> int:
        return len(self.raw)
