"""How well and how fast personal data is found: python -m bench.scrub [DATASET.jsonl.gz]

Scores `Scrubber` on made-up texts: those of `bench.scrub_texts`, which were looked at when the rules were written, and
those of `bench.scrub_held_out`, which were not; and on *DATASET*, if one is named: lines of JSON with ``text``,
``spans`` and ``labelled``. A span is found if half of its characters are covered by
findings of its type, and a finding is right if half of its own are. Speeds are compared with six plain patterns in the
same run: a machine that is busy is busy for both. Needs ``faker`` for the texts.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import statistics
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from cloister.scrub import Scrubber, lists
from cloister.scrub.find import TYPES

Spans = Sequence[tuple[int, int, str]]
SIX = [
    re.compile(pattern)
    for pattern in (
        r"\b[A-Z][a-z]+ [A-Z][a-z]+\b",
        r"\b[\w.+-]+@[\w-]+\.[a-z]{2,}\b",
        r"\b\d{3}[-.\s]?\d{3}[-.\s]?\d{4}\b",
        r"\b\d{4}[- ]?\d{4}[- ]?\d{4}[- ]?\d{4}\b",
        r"\b\d{3}-\d{2}-\d{4}\b",
        r"\b\d{5}(?:-\d{4})?\b",
    )
]
# What may be found on something else that is marked without being wrong: a postcode is part of its address.
BESIDE = {"ZIP": {"STREET_ADDRESS"}, "STREET_ADDRESS": {"ZIP", "LOCATION"}, "URL": {"EMAIL", "USERNAME"}}
MESSAGE = (
    "Hi there, I ordered a coffee grinder two weeks ago and it still has not arrived. The tracking page has said "
    "'in transit' since Monday the 3rd, and your chat told me to write again after five days. My name is Ana Silva, "
    "my number is 212-555-0123 and the mail address of the account is ana.silva@example.com. Could you please check "
    "what happened, and send a new one if it is lost? Many thanks in advance!"
)


def six(text: str) -> str:
    """Replace what the six patterns match."""
    for pattern in SIX:
        text = pattern.sub("[X]", text)
    return text


def score(rows: Iterable[tuple[str, Spans, set[str]]], find: Callable[[str], Spans]) -> dict[str, Counter[str]]:
    """Count, for each type, what is there, found, reported and right; and characters that are there and covered."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for text, gold, labelled in rows:
        found = find(text)
        cover = bytearray(len(text))
        for start, end, _ in found:
            cover[start:end] = b"\1" * (end - start)
        for start, end, kind in gold:
            if kind in labelled:
                counts["ALL"]["characters"] += end - start
                counts["ALL"]["covered"] += sum(cover[start:end])
        for kind in labelled:
            there = [span[:2] for span in gold if span[2] == kind]
            reported = [span[:2] for span in found if span[2] == kind]
            beside = [span[:2] for span in gold if span[2] in BESIDE.get(kind, ())]
            reported = [span for span in reported if _half(span, there) or not _half(span, beside)]
            groups = ("ALL", kind) if kind == "PERSON" else ("ALL", "not PERSON", kind)
            for group in groups:
                counts[group]["there"] += len(there)
                counts[group]["found"] += sum(_half(span, reported) for span in there)
                counts[group]["reported"] += len(reported)
                counts[group]["right"] += sum(_half(span, there) for span in reported)
    return counts


def _half(span: tuple[int, int], others: Iterable[tuple[int, int]]) -> bool:
    start, end = span
    return 2 * sum(max(0, min(end, stop) - max(start, begin)) for begin, stop in others) >= end - start


def accuracy(title: str, rows: list[tuple[str, Spans, set[str]]]) -> None:
    counts = score(rows, Scrubber().find)
    print(f"\n{title}: {len(rows)} texts\n{'type':16}{'there':>6} {'P':>6} {'R':>6} {'F1':>6} {'F2':>6}")
    for kind in ("ALL", "not PERSON", *TYPES):
        count = counts[kind]
        if not count["there"]:
            continue
        recall, precision = count["found"] / count["there"], count["right"] / max(1, count["reported"])
        f1, f2 = ((1 + b) * precision * recall / max(1e-9, b * precision + recall) for b in (1, 4))
        print(f"{kind:16}{count['there']:6} {precision:6.3f} {recall:6.3f} {f1:6.3f} {f2:6.3f}")
    whole = counts["ALL"]
    print(f"characters that leak: {1 - whole['covered'] / whole['characters']:.3f}")


def made(count: int, held_out: bool) -> list[tuple[str, Spans, set[str]]]:
    from bench import scrub_held_out, scrub_texts

    of = scrub_held_out if held_out else scrub_texts
    return [(text.text, text.spans, set(TYPES)) for text in scrub_texts.texts(count, 2026, of.TEMPLATES, of.CLEAN)]


def named(path: Path) -> list[tuple[str, Spans, set[str]]]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        rows: list[dict[str, Any]] = [json.loads(line) for line in lines]
    return [
        (row["text"], [(s["start"], s["end"], s["type"]) for s in row["spans"]], set(row["labelled"]) & set(TYPES))
        for row in rows
    ]


def speed(title: str, texts: Sequence[str], rounds: int = 12) -> None:
    """Compare the time for *texts* with that of the six patterns: of each text, the best of several rounds."""
    find = Scrubber().find
    ours, theirs = (sum(_best(call, text, rounds) for text in texts) for call in (find, six))
    print(
        f"{title}: {ours / len(texts) * 1e6:.0f} us a text, {len(texts) / ours:,.0f} texts/s; six patterns "
        f"{theirs / len(texts) * 1e6:.0f} us; {ours / theirs:.1f} times as long"
    )


def _best(call: Callable[[str], object], text: str, rounds: int) -> float:
    took = []
    for _ in range(rounds):
        begun = time.perf_counter()
        call(text)
        took.append(time.perf_counter() - begun)
    return min(took)


def message() -> None:
    find, took = Scrubber().find, []
    for _ in range(2_000):
        begun = time.perf_counter()
        find(MESSAGE)
        took.append(time.perf_counter() - begun)
    print(f"a message of {len(MESSAGE)} characters: median {statistics.median(took) * 1e6:.0f} us (limit 150)")


def loading() -> None:
    """Measure what the lists cost, in a process of their own."""
    script = (
        "import time, resource\n"
        "from cloister.scrub import lists\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; begun = time.perf_counter()\n"
        "lists.load()\n"
        "took = time.perf_counter() - begun\n"
        "after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "print(f'{took * 1e3:.1f} ms (limit 50), {(after - before) / 1024:.1f} MiB (limit 30)')"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    folder = Path(lists.__file__).parent / "data"
    size = sum(file.stat().st_size for file in folder.iterdir())
    print(f"loading the lists: {done.stdout.strip()}; {size / 1e6:.2f} MB of files, before compression (limit 2)")


def adversarial() -> None:
    """Say which text of 100,000 characters takes longest, and how much longer than one of a quarter of that."""
    from tests.texts import ADVERSARIAL

    find, worst = Scrubber().find, []
    for piece in ADVERSARIAL:
        short, long = ((piece * (size // len(piece) + 1))[:size] for size in (25_000, 100_000))
        took = _best(find, long, 3)
        worst.append((took, took / _best(find, short, 3), piece))
    for took, ratio, piece in sorted(worst, reverse=True)[:5]:
        print(f"100,000 characters of {piece!r}: {took:.2f} s, {ratio:.1f} times as long as 25,000 (linear: 4)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", nargs="?", type=Path)
    parser.add_argument("--texts", type=int, default=2_000, help="how many to make")
    options = parser.parse_args()
    loading()
    message()
    adversarial()
    if options.dataset:
        rows = named(options.dataset)
        accuracy(str(options.dataset.name), rows)
        speed("speed there", [text for text, _, _ in rows][:500])
    for title, held_out in (("made-up texts", False), ("made-up texts, held out", True)):
        rows = made(options.texts, held_out)
        accuracy(title, rows)
        speed("speed there", [text for text, _, _ in rows][:500])


if __name__ == "__main__":
    main()
