"""Measure what importing cloister costs: CPU milliseconds of a fresh process, less those of an empty one.

Run it with ``python bench/imports.py``; it prints the median of 21 processes, and which modules cost most.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys

RUNS = 21
SHOWN = 12
STATEMENTS = ("import cloister", "from cloister import AsyncCloister", "import cloister.cli")


def _children_ms() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (usage.ru_utime + usage.ru_stime) * 1000


def cpu_ms(statement: str) -> float:
    """Give the median CPU time of a process that runs *statement*, start-up of Python included."""
    spent = []
    for _ in range(RUNS + 1):
        before = _children_ms()
        subprocess.run([sys.executable, "-c", statement], check=True)
        spent.append(_children_ms() - before)
    return statistics.median(spent[1:])  # the first one may still write byte code


def contributors(statement: str) -> list[tuple[float, str]]:
    """Give milliseconds and name of each module that *statement* imports, dearest first, its own imports excluded."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", statement], check=True, capture_output=True, text=True
    )
    rows = (line.removeprefix("import time:").split("|") for line in done.stderr.splitlines() if "|" in line)
    return sorted(((int(own) / 1000, name.strip()) for own, _, name in rows if own.strip().isdigit()), reverse=True)


def main() -> None:
    """Print the table."""
    empty = cpu_ms("pass")
    print(f"{'empty process':40} {empty:6.1f} ms CPU, median of {RUNS}")
    for statement in STATEMENTS:
        print(f"{statement:40} {cpu_ms(statement) - empty:6.1f} ms CPU beyond that")
    print(f"\nThe dearest modules of `{STATEMENTS[1]}`, wall time of each alone:")
    for own, name in contributors(STATEMENTS[1])[:SHOWN]:
        print(f"{own:8.1f} ms  {name}")


if __name__ == "__main__":
    main()
