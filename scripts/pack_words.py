#!/usr/bin/env python3
"""Pack how common words are, for `cloister.leaks`: `scripts/pack_words.py`, where `wordfreq` is installed.

Writes ``src/cloister/leaks/words.bin``. Its source and licence are named in ``src/cloister/leaks/NOTICE``.
"""

from __future__ import annotations

import math
import sys
import zlib
from pathlib import Path

from wordfreq import get_frequency_dict  # pip install wordfreq, in an environment of its own

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))

from cloister.leaks.words import PACKED, fold  # noqa: E402  (found only now)

LEAST = {"en": 2.8, "de": 3.3, "es": 3.3, "fr": 3.3}
"""The rarest words of each language that are listed, by the logarithm of how often they come in a thousand million."""


def main() -> None:
    found: dict[str, int] = {}
    for language, least in LEAST.items():
        for word, share in get_frequency_dict(language, "large").items():
            tenths = round(10 * (math.log10(share) + 9))
            key = fold(word)
            if tenths >= 10 * least and key.isalpha() and 1 < len(key) <= 24:
                found[key] = max(found.get(key, 0), tenths)
    lines = (
        f"{tenths} {' '.join(sorted(word for word, value in found.items() if value == tenths))}"
        for tenths in sorted(set(found.values()), reverse=True)
    )
    PACKED.write_bytes(zlib.compress("\n".join(lines).encode(), 9))
    print(f"{len(found):,} words, {PACKED.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
