"""What a process has in memory: after 32,000 messages, ours against raw, and for each session that lies idle.

   python -m bench.memory [FOLDER]

On SQLite, with turns as in `bench.turns`, each side in a process of its own. First 32 sessions with 500 turns each:
what is compared is the peak of the resident memory, the interpreter, the drivers and what they import included, and
what it grew by since the store was opened. Then 140,000 sessions, each of another user, that are started with one turn:
what the resident memory grows by for each, if the application lets go of it, and if it keeps it.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import uvloop
from bench.raw import Raw, history, timed

if TYPE_CHECKING:
    from bench.turns import Ours

SESSIONS, TURNS = 32, 500
IDLE, STEP = 140_000, 20_000
ROUNDS = 3


def _peak() -> float:
    """Give the peak of this process' resident memory so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _resident() -> int:
    """Give this process' resident memory now, in bytes."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


async def _busy(side: Raw | Ours) -> None:
    sessions = [await side.start(0) for _ in range(SESSIONS)]
    await asyncio.gather(*(timed(side.turn, session, TURNS) for session in sessions))


async def _idle(side: Ours, *, keep: bool) -> None:
    kept: list[object] = []

    async def one(number: int) -> None:
        kept.append(await side.cloister.user(f"user-{number}").start(items=history(2)))

    grown = []
    before = 0
    for first in range(0, IDLE, STEP):
        for number in range(first, first + STEP, 50):
            await asyncio.gather(*(one(number + k) for k in range(50)))
            if not keep:
                kept.clear()
        now = _resident()
        grown.append((now - before) / STEP)
        before = now
    print(*grown[1:])


def _ours(path: Path) -> Ours:
    """Import cloister only now: raw does without it."""
    return importlib.import_module("bench.turns").Ours(path)  # type: ignore[no-any-return]


async def _run(name: str, path: Path) -> None:
    side = Raw(path) if name == "raw" else _ours(path)
    await side.open()
    if isinstance(side, Raw) or name == "ours":
        began = _peak()
        await _busy(side)
        print(_peak(), _peak() - began)
    else:
        await _idle(side, keep=name == "kept")
    await side.close()


def _measure(name: str) -> list[float]:
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as folder:
        command = [sys.executable, "-m", "bench.memory", "--side", name, folder]
        said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    return [float(part) for part in said.split()]


def main() -> None:
    if sys.argv[1:2] == ["--side"]:
        uvloop.run(_run(sys.argv[2], Path(sys.argv[3]) / "m.db"))
        return
    found: dict[str, list[list[float]]] = {"raw": [], "ours": []}
    for _ in range(ROUNDS):
        for name, peaks in found.items():
            peaks.append(_measure(name))
    for name, peaks in found.items():
        peak, growth = (statistics.median(values) for values in zip(*peaks, strict=True))
        print(f"{name:>5}: {peak:6.1f} MiB, of which {growth:5.1f} MiB since the store was opened")
    for part, what in enumerate(("in all", "since the store was opened")):
        ratio = statistics.median(b[part] / a[part] for a, b in zip(found["raw"], found["ours"], strict=True))
        print(f"ours / raw {what}: {ratio:.2f}")
    for name, how in (("left", "let go of"), ("kept", "kept")):
        print(
            f"idle sessions, {how}, bytes each of the second, third … {STEP:,}:",
            *(f"{each:,.0f}" for each in _measure(name)),
        )


if __name__ == "__main__":
    main()
