#!/usr/bin/env python3
"""Learn what each kind of evidence weighs: `scripts/learn_leaks.py dialogues.jsonl[.gz]` writes ``weights.py``.

Wants dialogues in which nobody's details leak, each a line of JSON with ``turns`` of ``role`` and ``text``, of as many
different people. Every reply is judged with only what was said before it in the whole service. Never use live traffic:
leaks in it would teach that leaks are normal.
"""

from __future__ import annotations

import gzip
import json
import math
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from cloister.leaks import LeakDetector, features, packed
from cloister.leaks.evidence import NUMBERS
from cloister.leaks.spoken import Feature
from cloister.model import Owner

TABLE = Path(__file__).resolve().parent.parent / "src/cloister/leaks/weights.py"
WARM = 10
"""How many people come first, whose replies do not count."""
BOUNDS = {
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
"""The most that each may weigh. Dialogues of a few trades say too little about all others to trust a kind further."""
LEAST_SEEN = {"number": 0.05, "identifier": 0.01, "amount": 0.02, "price": 0.1}
"""How many replies are taken to have such a number that is new to their receiver, at least."""
CAPS = {"number": 14.0, "identifier": 14.0, "amount": 6.5, "price": 4.0}


def dialogues(path: Path) -> Iterator[list[dict[str, str]]]:
    """Give the turns of each dialogue."""
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as lines:
        for line in lines:
            yield json.loads(line)["turns"]


def fired(detector: LeakDetector, owner: Owner, text: str, known: list[tuple[str, str]]) -> set[tuple[str, int]]:
    """Give the kinds and levels of which a clean reply has evidence; numbers also if they meet nobody's."""
    context = detector.context()
    for role, said in known:
        context.add(said, document=role == "tool")

    def fires(feature: Feature) -> bool:
        if context.exempts(feature) or context.shows(text[feature.start : feature.end]):
            return False
        owners = detector.owners(feature.text)
        return feature.kind in NUMBERS or (bool(owners) and owner not in (owners or ()))

    return {(each.kind, each.level) for each in features(text, packed(), claims=False) if fires(each)}


def count(path: Path) -> tuple[Counter[tuple[str, int]], int]:
    """Count what fires, and the replies."""
    detector = LeakDetector(bytes(32))
    seen: Counter[tuple[str, int]] = Counter()
    replies = 0
    for number, turns in enumerate(dialogues(path)):
        owner = Owner(None, f"user {number}")
        for place, turn in enumerate(turns):
            if turn["role"] == "assistant" and number >= WARM:
                replies += 1
                known = [(each["role"], each["text"]) for each in turns[:place]]
                seen.update(fired(detector, owner, turn["text"], known))
        for turn in turns:
            if turn["role"] in ("user", "assistant"):
                detector.register(owner, "s", "user" if turn["role"] == "user" else "assistant", turn["text"])
    return seen, replies


def main() -> None:
    seen, replies = count(Path(sys.argv[1]))
    weights: dict[str, tuple[float, ...]] = {}
    for kind, bounds in BOUNDS.items():
        row: list[float] = []
        for level, bound in enumerate(bounds):
            times = seen[kind, level]
            learned = -math.log(times / replies) if times else bound
            row.append(round(min(bound, learned, *row), 1))
        weights[kind] = tuple(row)
    rates = {
        kind: round(max(least, sum(times for (each, _), times in seen.items() if each == kind) / replies), 3)
        for kind, least in LEAST_SEEN.items()
    }
    print(f"{replies:,} replies; fired: " + ", ".join(f"{k}:{n} {times}" for (k, n), times in sorted(seen.items())))
    before = TABLE.read_text().partition("WEIGHTS: ")[0]
    rows = "\n".join(f'    "{kind}": {row},' for kind, row in weights.items())
    TABLE.write_text(
        f"{before}WEIGHTS: dict[str, tuple[float, ...]] = {{\n{rows}\n}}\n"
        f"SEEN: dict[str, float] = {json.dumps(rates)}\n"
        '"""How often a reply has one that its receiver did not know."""\n'
        f"CAPS: dict[str, float] = {json.dumps(CAPS)}\n"
    )


if __name__ == "__main__":
    main()
