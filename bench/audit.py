"""What the audit log costs: a turn with its entries against one without, verification, and the tail of a long log.

    python -m bench.audit [URL …] [entries=1000000]

A URL names a store to fill, whose log stays there; without one, a SQLite file in a new folder. A turn reads the newest
40 messages and appends a question of 200 characters and a reply of 400; on the other side the same store is handed no
entries. Sides run in turn, A B A B …; each figure is a median, a ratio the median of the pairs' ratios. Then the log is
filled by four connections at once, verified where it lies and as an exported file, and its tail is read by a new
process, from its start to its end.
"""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import uvloop
from bench.raw import timed
from bench.turns import Ours

from cloister import AsyncCloister, Keyring, Limits
from cloister.audit import Signed, Verification, event
from cloister.auditing import Evidence
from cloister.exports import File, line, verify_file
from cloister.model import Owner
from cloister.stores import connect
from cloister.stores.base import Commit, Receipt, Store, pages

ROUNDS, TURNS = 150, 2
ANA = Owner(None, "ana")
AT_ONCE = 500


class Silent:
    """A store that is handed no entries."""

    def __init__(self, inner: Store) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    async def commit(self, commit: Commit, *, nonce: bytes) -> Receipt:
        return await self.inner.commit(msgspec.structs.replace(commit, entries=()), nonce=nonce)


class Side(Ours):
    def __init__(self, store: Any) -> None:
        self.opening = AsyncCloister.open(
            store, context_tokens=self.budget(), limits=Limits.keep(), keyring=Keyring.generate(), scrub=None
        )


async def turns(url: str) -> tuple[float, float, float]:
    """Give the time of a turn without entries and with them, and their ratio."""
    sides = [Side(Silent(connect(url))), Side(connect(url))]
    for side in sides:
        await side.open()
    sessions = [await side.start(40) for side in sides]
    pairs = []
    for _ in range(ROUNDS + 1):
        pairs.append([await timed(side.turn, session, TURNS) for side, session in zip(sides, sessions, strict=True)])
    for side in sides:
        await side.close()
    without, withal = (statistics.median(each) for each in zip(*pairs[1:], strict=True))
    return without, withal, statistics.median(b / a for a, b in pairs[1:])


async def fill(store: Store, count: int) -> None:
    """Put *count* entries on record such as turns leave."""
    left = iter(range(0, count, AT_ONCE))
    now = datetime.now(UTC)
    detail: dict[str, Any] = {"items": 2, "content": "x" * 24, "provider": "openai", "model": "gpt-4.1"}

    async def work(writer: int) -> None:
        for first in left:
            noted = event("turn.committed", now, ANA, f"{writer:012}{first:012}", **detail, input_tokens=first)
            await store.record([noted] * AT_ONCE, nonce=b"x" * 16)

    await asyncio.gather(*map(work, range(4)))


async def verified(store: Store) -> tuple[int, float, float]:
    began, used = time.perf_counter(), time.process_time()
    verification = Verification(Signed())
    async for page in pages(store):
        verification.add(page)
    report = verification.finish()
    assert not report.faults, report.faults
    return report.entries, time.perf_counter() - began, time.process_time() - used


async def as_file(store: Store, path: Path) -> tuple[int, float, float]:
    with path.open("w") as file:
        async for page in pages(store):
            file.writelines(line(entry) + "\n" for entry in page)
    began, used = time.perf_counter(), time.process_time()
    report, wrong = verify_file(File(path), Evidence())
    assert not wrong, wrong
    return report.entries, time.perf_counter() - began, time.process_time() - used


def tail(url: str) -> float:
    """Give how long `cloister audit tail` takes, from the start of its process to its end."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "cloister", "audit", "tail", "--store", url]
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - began


async def measure(url: str, count: int, folder: Path) -> None:
    name = url.partition(":")[0]
    without, withal, ratio = await turns(url)
    print(f"{name}: a turn {without * 1e3:.2f} ms without entries, {withal * 1e3:.2f} ms with: {ratio:.3f}x")
    if url == "memory://":
        return
    store = connect(url)
    await store.open()
    began = time.perf_counter()
    await fill(store, count)
    print(f"{name}: {count:,} entries written in {time.perf_counter() - began:.1f} s")
    for what, (entries, seconds, cpu) in (
        ("where they lie", await verified(store)),
        ("as a file", await as_file(store, folder / f"{name}.jsonl")),
    ):
        print(f"{name}: verified {what}: {entries / seconds:,.0f} entries/s, {entries / cpu:,.0f} per second of CPU")
    began = time.perf_counter()
    newest = await store.audit_tail(20)
    seconds = time.perf_counter() - began
    assert len(newest.entries) == 20
    await store.close()
    told = statistics.median(tail(url) for _ in range(5))
    print(f"{name}: the newest 20 entries in {seconds * 1e3:.1f} ms; `cloister audit tail` in {told:.2f} s")


async def main(arguments: Sequence[str]) -> None:
    urls = [each for each in arguments if "://" in each]
    count = next((int(each.partition("=")[2]) for each in arguments if each.startswith("entries=")), 1_000_000)
    with tempfile.TemporaryDirectory() as folder:
        for url in urls or [f"sqlite:///{folder}/x.db", "memory://"]:
            await measure(url, count, Path(folder))


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1:]))
