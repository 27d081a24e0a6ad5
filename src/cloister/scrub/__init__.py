"""Find personal data in text."""

from cloister.scrub.find import Detector, Scrubber
from cloister.scrub.spans import Found, Span

__all__ = ["Detector", "Found", "Scrubber", "Span"]
