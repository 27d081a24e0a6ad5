"""Find personal data, put placeholders in its place, and put it back for its owner.

Names are loaded when they are first used: the rules and lists of the search take time to load, and need not be there.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cloister.scrub.find import Detector
    from cloister.scrub.placeholders import Restorer
    from cloister.scrub.scrubber import Scrubber
    from cloister.scrub.settings import Scrub
    from cloister.scrub.spans import Found, Span

_HOME = {
    "Detector": "find",
    "Found": "spans",
    "Restorer": "placeholders",
    "Scrub": "settings",
    "Scrubber": "scrubber",
    "Span": "spans",
}

__all__ = ["Detector", "Found", "Restorer", "Scrub", "Scrubber", "Span"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'cloister.scrub' has no attribute {name!r}")
    return getattr(import_module(f"cloister.scrub.{_HOME[name]}"), name)
