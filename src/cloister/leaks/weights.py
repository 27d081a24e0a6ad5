"""What each kind of feature weighs: minus the logarithm of how often it fires on replies that leak nothing.

Made by ``scripts/learn_leaks.py`` from clean dialogues, and bounded there: one collection of dialogues says too little
about others to trust any kind further than that.
"""

from __future__ import annotations

WEIGHTS: dict[str, tuple[float, ...]] = {
    "email": (14.0,),
    "name": (7.2, 7.2, 7.1, 6.5, 6.0),
    "joined": (7.0, 7.0, 6.5, 6.0, 6.0),
    "pair": (6.5, 6.5, 6.2, 6.0, 5.0),
    "place": (8.0, 6.0, 5.0, 5.0, 4.0),
    "code": (7.0, 7.0, 6.5, 6.0),
    "word": (4.0, 3.5, 3.0),
    "phrase": (4.0, 3.5),
    "public": (7.0,),
    "reversed": (6.5,),
}
SEEN: dict[str, float] = {"number": 0.05, "identifier": 0.01, "amount": 0.02, "price": 0.1}
"""How often a reply has one that its receiver did not know."""
CAPS: dict[str, float] = {"number": 14.0, "identifier": 14.0, "amount": 6.5, "price": 4.0}
