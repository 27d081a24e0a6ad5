"""The search and the placeholders by themselves, without sessions."""

from __future__ import annotations

import os
from collections.abc import Collection

from cloister.scrub.find import Detector, Finder
from cloister.scrub.masking import Mask
from cloister.scrub.placeholders import Placeholders, Restorer, put_back, restore, stands_for
from cloister.scrub.settings import Scrub


class Scrubbed(str):
    """Be a text with placeholders in the place of personal data, and what they stand for."""

    __slots__ = ("_values",)
    _values: tuple[str, ...]

    @classmethod
    def of(cls, text: str, values: Collection[str]) -> Scrubbed:
        scrubbed = cls(text)
        scrubbed._values = tuple(values)
        return scrubbed


class Scrubber(Finder):
    """Find personal data, put placeholders in its place, and put it back.

    Remembers what it has replaced, so keep one for each conversation, and never one for several. Links and network
    addresses are found, and not replaced. A text of more than *limit* characters is not searched, but replaced whole.
    """

    def __init__(self, *detectors: Detector, limit: int = 1_000_000) -> None:
        super().__init__(*detectors, limit=limit)
        key = os.urandom(32)
        self._mask = Mask(Scrub(detectors=detectors, limit=limit), lambda: key)
        self._placeholders = Placeholders(key)
        self._values: dict[str, str] = {}

    def scrub(self, text: str) -> Scrubbed:
        """Give *text* with placeholders in the place of personal data."""
        scrubbed, values = self._mask.text(text)
        self._values.update(stands_for(scrubbed, values, self._placeholders))
        return Scrubbed.of(scrubbed, values)

    def restore(self, text: str) -> str:
        """Put the data back: into what `scrub` gave exactly, into any other text but not where links are."""
        if isinstance(text, Scrubbed):
            return put_back(text, text._values)
        return restore(text, self._placeholders, self._values)

    def restorer(self) -> Restorer:
        """Give what puts the data back into a text that comes in pieces."""
        return Restorer(self._placeholders, self._values)
