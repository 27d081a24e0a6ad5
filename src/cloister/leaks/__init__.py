"""Rule: a reply that carries somebody else's details is stopped before it leaves.

`LeakDetector` works by itself, with an index in this process. What it is made of works over any index: `features` finds
what could be a detail, `keys` chooses what to look up, `judge` decides on what was found. `StreamCheck` does so while
a reply arrives. Nothing here has a clock or waits for anything.
"""

from __future__ import annotations

from cloister.leaks.detector import LeakDetector
from cloister.leaks.evidence import Context, Evidence, Thresholds, Verdict, judge, keys
from cloister.leaks.features import features
from cloister.leaks.fingerprints import Digests, Index
from cloister.leaks.settings import LeakGuard
from cloister.leaks.spoken import Feature
from cloister.leaks.streaming import StreamCheck
from cloister.leaks.words import Frequencies, Table, packed

__all__ = [
    "Context",
    "Digests",
    "Evidence",
    "Feature",
    "Frequencies",
    "Index",
    "LeakDetector",
    "LeakGuard",
    "StreamCheck",
    "Table",
    "Thresholds",
    "Verdict",
    "features",
    "judge",
    "keys",
    "packed",
]
