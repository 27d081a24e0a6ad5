"""What of a streamed answer may be shown by now: with its owner's data put back, and nothing of other users'."""

from __future__ import annotations

from collections.abc import Sequence

from cloister.guard import Check
from cloister.leaks.streaming import StreamCheck
from cloister.scrub.masking import Mask
from cloister.scrub.placeholders import Restorer
from cloister.wire import Refusal

_SHOWN = ("text", "refusal")


class Outlet:
    """Take the pieces of an answer, by channel, and give what may be shown.

    What a piece may be part of is held back until more has come. Where it must be known first whose a detail is,
    ``take`` gives nothing, the outlet is ``waiting``, and `look` goes on.
    """

    def __init__(self, mask: Mask, check: Check) -> None:
        self._mask = mask
        self._check = check
        self._restorers: dict[str, Restorer | None] = {}
        self._streams: dict[str, StreamCheck | None] = {}
        self._plain: list[str] = []
        self._wanted: list[str] = []
        self.holds = False
        """Nothing is shown before the whole answer was judged."""
        self.shown = False
        """Something was given already."""

    def take(self, pieces: Sequence[tuple[str, str]]) -> list[str]:
        """Take more of the answer; give what may be shown."""
        for channel, text in pieces:
            if channel in _SHOWN:
                self._take(channel, text)
        return [] if self.waiting else self._given()

    def _take(self, channel: str, text: str, *, last: bool = False) -> None:
        if not self._restorers:  # once: what nobody looked at while it came is not shown because the reason is over
            self.holds = self._check.holds
        if channel not in self._restorers:
            self._restorers[channel] = self._mask.restorer()
            self._streams[channel] = None if self.holds else self._check.stream()
        restorer, judged = self._restorers[channel], self._streams[channel]
        if restorer is not None:
            text = restorer.finish() if last else restorer.feed(text)
        if judged is None:
            self._plain.append(_as(channel, text))
        else:
            self._wanted += judged.take(text, last=last)

    def _given(self) -> list[str]:
        texts, self._plain = self._plain, []
        if self.holds or self._check.capped:
            return []
        texts += [_as(channel, judged.give()) for channel, judged in self._streams.items() if judged is not None]
        texts = [text for text in texts if text]
        self.shown = self.shown or bool(texts)
        return texts

    @property
    def waiting(self) -> bool:
        """Say whether something was taken that must be looked up first."""
        return bool(self._wanted)

    async def look(self) -> list[str]:
        """Look up whose it is; give what may be shown then. Raises `StoreUnavailable`."""
        wanted, self._wanted = self._wanted, []
        await self._check.look(wanted)
        return self._given()

    async def rest(self) -> list[str]:
        """Give the rest of an answer that has come to its end."""
        for channel in self._restorers:
            self._take(channel, "", last=True)
        return await self.look() if self.waiting else self._given()

    @property
    def blocked(self) -> bool:
        """Say whether another user's details were found: nothing more is to be taken or shown."""
        return any(judged is not None and judged.blocked for judged in self._streams.values())

    def settle(self) -> None:
        """Put on record what was found."""
        found = [judged for judged in self._streams.values() if judged is not None]
        if found:
            worst = max(found, key=lambda judged: (judged.blocked, judged.verdict.score))
            self._check.settle(worst.verdict, worst.telling)

    def forget(self) -> None:
        """Let go of what was held back: whoever keeps a turn does not keep what was withheld."""
        self._restorers, self._streams, self._plain, self._wanted = {}, {}, [], []

    @property
    def foreign(self) -> int:
        """Say how many placeholders of other sessions the answer had."""
        return sum(restorer.foreign for restorer in self._restorers.values() if restorer is not None)


def _as(channel: str, text: str) -> str:
    return Refusal(text) if channel == "refusal" else text
