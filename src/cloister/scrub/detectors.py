"""Detectors of other projects, which join ours: `PhoneNumbers` and `Presidio`. Each needs an extra to be installed.

    Scrubber(PhoneNumbers("DE", "AT"), Presidio())

What they find comes before what our rules find, where the two overlap.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from cloister.errors import ConfigurationError
from cloister.scrub.spans import UNSEARCHED, Span

_TYPES: Mapping[str, str] = MappingProxyType(
    {
        "EMAIL_ADDRESS": "EMAIL",
        "PHONE_NUMBER": "PHONE",
        "IBAN_CODE": "IBAN",
        "IP_ADDRESS": "IP",
        "LOCATION": "STREET_ADDRESS",
    }
)
"""Presidio's names of what we name otherwise; the others are passed on as they are."""


class PhoneNumbers:
    """Find phone numbers by the numbering plans of the world, with ``phonenumbers``.

    *regions* are the countries, like ``"DE"``, whose numbers are found without a country code too.
    """

    def __init__(self, *regions: str) -> None:
        try:
            import phonenumbers
        except ImportError:
            raise _missing("phonenumbers") from None
        for region in regions:
            if region not in phonenumbers.SUPPORTED_REGIONS:
                raise ConfigurationError(f"there is no region {region!r}: name countries by two capitals, like 'DE'")
        self._matcher = phonenumbers.PhoneNumberMatcher
        self._regions: tuple[str | None, ...] = regions or (None,)

    def find(self, text: str) -> Iterator[Span]:
        """Give the phone numbers in *text*."""
        for region in self._regions:
            # It may try as often as there are characters: were there a limit, what lies behind it would be unmasked.
            for match in self._matcher(text, region, max_tries=len(text) + 1):
                yield Span(match.start, match.end, "PHONE")


class Presidio:
    """Find what the pattern recognisers of Presidio find, or, given one of your own, an ``AnalyzerEngine``.

    Without an *analyzer* no language model is loaded, so Presidio's recognition of names and places takes no part, nor
    do its rules for mail and web addresses. Dates are left out, since few of them are somebody's. *least* is the score
    from which on a finding counts; *patience* the seconds that Presidio gives a pattern, if not what it says itself.
    """

    def __init__(
        self, analyzer: Any = None, *, language: str = "en", least: float = 0.4, patience: float | None = None
    ) -> None:
        self._analyzer = analyzer if analyzer is not None else _patterns(language)
        self._language, self._least = language, least
        self._patience = _patience() if patience is None else patience
        kinds = self._analyzer.get_supported_entities(language)
        self._kinds = [kind for kind in kinds if kind not in ("DATE_TIME", "NRP")]

    def find(self, text: str) -> Iterator[Span]:
        """Give what Presidio finds in *text*; all of it if Presidio may have passed over a pattern."""
        begun = time.monotonic()
        results = self._analyzer.analyze(
            text, language=self._language, entities=self._kinds, score_threshold=self._least
        )
        if time.monotonic() - begun >= self._patience:
            # It goes on without a pattern that takes this long, and tells nobody but its log.
            yield Span(0, len(text), UNSEARCHED)
            return
        for result in results:
            if result.end > result.start:
                yield Span(result.start, result.end, _TYPES.get(result.entity_type, result.entity_type))


def _patterns(language: str) -> Any:
    """Make an analyzer of pattern recognisers alone."""
    try:
        import spacy
        from presidio_analyzer import AnalyzerEngine, RecognizerRegistry
        from presidio_analyzer.nlp_engine import SpacyNlpEngine
    except ImportError:
        raise _missing("presidio") from None
    engine = SpacyNlpEngine(models=[{"lang_code": language, "model_name": "blank"}])
    engine.nlp = {language: spacy.blank(language)}  # cuts a text into words, and knows nothing
    registry = RecognizerRegistry(supported_languages=[language])
    registry.load_predefined_recognizers(languages=[language])
    # The last two ask the network for a list of domains; mail and web addresses are found by our rules.
    for name in ("SpacyRecognizer", "EmailRecognizer", "UrlRecognizer"):
        registry.remove_recognizer(name)
    return AnalyzerEngine(registry=registry, nlp_engine=engine, supported_languages=[language])


def _patience() -> float:
    """Give the seconds after which Presidio passes over a pattern."""
    try:
        from presidio_analyzer import pattern_recognizer
    except ImportError:
        return 60.0
    return float(getattr(pattern_recognizer, "REGEX_TIMEOUT_SECONDS", 60))


def _missing(extra: str) -> ConfigurationError:
    return ConfigurationError(f"this detector needs a package that is not installed: pip install 'cloister[{extra}]'")
