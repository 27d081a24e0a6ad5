"""What in a text could be somebody's detail: identifiers, amounts, addresses, names, rare words, and where they are.

All features share one name space of strings without separators, so that "night hawk", "Night-Hawk" and "NIGHTHAWK", or
"48-291" and "48291", are the same feature without any fuzzy matching. A feature begins and ends at words, never
reaches over a sentence's end, and depends on no word further away than `REACH`, so that a text can be judged while it
arrives.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from functools import partial
from operator import itemgetter

from cloister.leaks import addresses, numbers
from cloister.leaks.forms import ENCODED
from cloister.leaks.names import Names
from cloister.leaks.spoken import Feature, Spoken, spoken
from cloister.leaks.words import Frequencies


def features(text: str, words: Frequencies, *, claims: bool = True) -> list[Feature]:
    """Find everything in *text* that could be a detail, in the order in which it begins and ends.

    Without *claims*, which is cheaper, ``claim`` says nothing: for a reply that is only to be judged.
    """
    found = _all(spoken(text, words), words, claims)
    found.sort(key=IN_ORDER)
    return found


IN_ORDER = itemgetter(3, 4)


def figures(text: str, words: Frequencies) -> list[Feature]:
    """Find the numbers, identifiers and amounts alone: of a long document the words are enough for all else."""
    found: list[Feature] = []
    spoke = spoken(text, words)
    _figures(spoke, found, partial(decoded, spoke, words))
    return found


def _all(spoke: Spoken, words: Frequencies, claims: bool, within: bool = False) -> list[Feature]:
    """Go through a text once. *within* another it was encoded, and is not looked into for more."""
    found: list[Feature] = []
    look = _nothing if within else partial(decoded, spoke, words)
    bearing = _figures(spoke, found, look)
    addresses.written(spoke.text, found)
    names = Names(spoke, claims, found, look)
    addresses.spelled(spoke, found)
    names.words()
    names.pairs()
    if bearing:
        numbers.places(spoke, bearing, names.cued, names.shouting, found)
    return found


def _figures(spoke: Spoken, found: list[Feature], look: Callable[[int], list[Feature]]) -> list[int]:
    """Find numbers of every kind; give the words that bear digits and belong to no amount, date or time."""
    bears = numbers.bearing(spoke)
    if not bears:
        return []
    taken = numbers.amounts(spoke, bears, found)
    rest = [n for n in bears if n not in taken and spoke.folded[n]]
    if rest:
        numbers.Identifiers(spoke, taken, found, look).find(rest)
    return rest


def _nothing(n: int) -> list[Feature]:
    return []


def decoded(spoke: Spoken, words: Frequencies, n: int) -> list[Feature]:
    """Look into word *n* if it is base64."""
    written, start = spoke.written(n), spoke.starts[n]
    if len(written) < 4 or (written.isalpha() and (written.islower() or written.istitle())):
        return []
    token = ENCODED.match(spoke.text, start)
    if token is None or (start and (spoke.text[start - 1].isalnum() or spoke.text[start - 1] in "+/=_-")):
        return []
    raw = token[0].rstrip("=").replace("-", "+").replace("_", "/")
    try:
        said = base64.b64decode(raw + "=" * (-len(raw) % 4), validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return []
    if not said.isprintable():
        return []
    # The word may reach beyond what is encoded: "UVgtNzczMS04NA's".
    end = max(spoke.ends[each] for each in (n, *spoke.covered(start, token.end())))
    found = _all(spoken(said, words), words, claims=False, within=True)
    return [each._replace(start=start, end=end, claim=False) for each in found]
