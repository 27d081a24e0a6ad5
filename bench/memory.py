"""What a process has in memory after 32,000 messages: ours against raw, each in a process of its own.

    python -m bench.memory [FOLDER]

32 sessions on SQLite, each with 500 turns of a question and a reply, as in `bench.turns`. What is compared is the peak
of the resident memory, the interpreter, the drivers and what they import included; and what it grew by since the store
was opened.
"""

from __future__ import annotations

import asyncio
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import uvloop
from bench.turns import Ours, Raw, timed

SESSIONS, TURNS = 32, 500
ROUNDS = 3


def _peak() -> float:
    """Give the peak of this process' resident memory so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


async def _run(name: str, folder: Path) -> None:
    side: Raw | Ours = {"raw": Raw, "ours": Ours}[name](folder / "m.db")
    await side.open()
    began = _peak()
    sessions = [await side.start(0) for _ in range(SESSIONS)]
    await asyncio.gather(*(timed(side.turn, session, TURNS) for session in sessions))
    print(_peak(), _peak() - began)
    await side.close()


def main() -> None:
    if sys.argv[1:2] == ["--side"]:
        uvloop.run(_run(sys.argv[2], Path(sys.argv[3])))
        return
    found: dict[str, list[tuple[float, ...]]] = {"raw": [], "ours": []}
    for _ in range(ROUNDS):
        for name, peaks in found.items():
            with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as folder:
                command = [sys.executable, "-m", "bench.memory", "--side", name, folder]
                said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
                peaks.append(tuple(float(part) for part in said.split()))
    for name, peaks in found.items():
        peak, growth = (statistics.median(values) for values in zip(*peaks, strict=True))
        print(f"{name:>5}: {peak:6.1f} MiB, of which {growth:5.1f} MiB since the store was opened")
    ratio = statistics.median(b[0] / a[0] for a, b in zip(found["raw"], found["ours"], strict=True))
    print(f"ours / raw: {ratio:.2f}")


if __name__ == "__main__":
    main()
