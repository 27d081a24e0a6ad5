"""Whether a turn costs more the longer its session is: ours alone, on whatever stores are named beside ``memory://``.

    python -m bench.lengths ['redis+cluster://host:port,host:port?prefix=bench:' …]

A turn as in `bench.turns`. Lengths are measured in turn; each figure is a median, a ratio the median of the rounds'
ratios to 100 messages. What it writes belongs to a user ``ana``, who is erased at the end.
"""

from __future__ import annotations

import statistics
import sys

import uvloop
from bench.raw import timed
from bench.turns import Ours

LENGTHS = (10, 100, 1_000, 10_000)
ROUNDS, TURNS = 9, 12


async def measure(url: str) -> None:
    ours = Ours(url)
    await ours.open()
    sessions = {length: await ours.start(length) for length in LENGTHS}
    for session in sessions.values():
        await timed(ours.turn, session, 3)
    found: dict[int, list[float]] = {length: [] for length in LENGTHS}
    for _ in range(ROUNDS):
        for length, times in found.items():
            times.append(await timed(ours.turn, sessions[length], 2 if length == 10 else TURNS))
    print(ours.cloister.store.url)
    for length, times in found.items():
        ratio = statistics.median(b / a for a, b in zip(found[100], times, strict=True))
        print(f"{length:>10,} messages: {statistics.median(times) * 1e3:.3f} ms, {ratio:.2f} times as much as 100")
    await ours.cloister.user("ana").erase()
    await ours.close()


async def main() -> None:
    for url in ("memory://", *sys.argv[1:]):
        await measure(url)


if __name__ == "__main__":
    uvloop.run(main())
