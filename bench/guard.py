"""Measure what looking for other users' details adds to a turn, in turns of one run.

Run it with ``python -m bench.guard [URL of a store …]``; without one it takes memory and a SQLite file. Question and
reply have 400 characters. *turn* is the processor time of a whole turn without and with the guard; *check* is the time
of the guard's own part of it, from the question to what goes with the commit, without the store; *look up* is the one
round trip that it adds, in time of the clock. *plain* holds no details, *data* an order, a mail, a name and a code.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator

from bench.masking import PLAIN

from cloister import AsyncCloister, Keyring, LeakGuard, Request
from cloister.guard import Check
from cloister.model import Item
from cloister.stores.base import Claims

DATA = PLAIN.replace(
    "Thank you very much.", "Ana Lopez, ana.lopez@example.org, order QX-7731-84, code NH-4827-X, +1 415 555 2671."
)
TURNS, ROUNDS, CHECKS = 60, 7, 2_000


class Answers:
    """A provider that takes no time."""

    name = model = "answers"

    def __init__(self, said: str) -> None:
        self._said = said

    async def complete(self, request: Request) -> str:
        return self._said

    async def stream(self, request: Request) -> AsyncIterator[str]:
        yield self._said

    async def close(self) -> None:
        pass


def opened(url: str, said: str, leaks: LeakGuard | None) -> AsyncCloister:
    keyring = Keyring.generate()
    return AsyncCloister.open(url, provider=Answers(said), keyring=keyring, leaks=leaks, scrub=None)


async def of_turn(url: str, said: str, leaks: LeakGuard | None) -> float:
    """Give the median processor time of a turn, in milliseconds."""
    async with opened(url, said, leaks) as cloister:
        session = await cloister.user("ana").start()
        took = []
        for _ in range(TURNS):
            begun = time.process_time()
            await session.send(said)
            took.append((time.process_time() - begun) * 1_000)
    return statistics.median(took[TURNS // 2 :])


async def of_check(said: str) -> list[float]:
    """Give the times of a turn's check without the store, in milliseconds."""
    async with opened("memory://", said, LeakGuard()) as cloister:
        vault, took = cloister.vault, []

        async def claims(scope: str, digests: list[bytes], *, now: int, nonce: bytes) -> Claims:
            return Claims(nonce, {})

        vault.store.claims = claims  # type: ignore[method-assign, assignment]
        question, answer = Item("user", said), Item("assistant", said)
        for _ in range(CHECKS):
            row = vault.begin(cloister.user("ana").owner)
            begun = time.perf_counter()
            check = await Check.over(cloister.services.watch, row)
            await check.hears([question])
            await check.judge(answer)
            await check.fingerprints(answer)
            took.append((time.perf_counter() - begun) * 1_000)
    return sorted(took)


async def of_look(url: str, digests: int) -> float:
    """Give the median time of looking up so many fingerprints, in milliseconds."""
    async with opened(url, PLAIN, LeakGuard()) as cloister:
        ana = await cloister.user("ana").start()
        await ana.send(DATA)
        wanted = [number.to_bytes(8, "big") for number in range(digests)]
        took = []
        for _ in range(300):
            begun = time.perf_counter()
            await cloister.vault.ask(cloister.store.claims, "", wanted, now=0)
            took.append((time.perf_counter() - begun) * 1_000)
    return statistics.median(took)


async def main(urls: list[str]) -> None:
    for name, said in (("plain", PLAIN), ("data", DATA)):
        took = await of_check(said)
        print(f"check   {name:5}  p50 {took[len(took) // 2]:.2f} ms  p99 {took[len(took) * 99 // 100]:.2f} ms")
    for url in urls:
        kind = url.partition(":")[0]
        for name, said in (("plain", PLAIN), ("data", DATA)):
            pairs = [(await of_turn(url, said, None), await of_turn(url, said, LeakGuard())) for _ in range(ROUNDS)]
            without, guarded = (statistics.median(times) for times in zip(*pairs, strict=True))
            ratio = statistics.median(after / before for before, after in pairs)
            print(f"turn    {name:5}  {kind:10} without {without:.2f} ms  guarded {guarded:.2f} ms  ratio {ratio:.2f}")
        print(f"look up        {kind:10} 10: {await of_look(url, 10):.2f} ms  30: {await of_look(url, 30):.2f} ms")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(main(sys.argv[1:] or ["memory://", f"sqlite:///{folder}/bench.db"]))
