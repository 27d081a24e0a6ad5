"""Measure what replacing personal data adds to a turn: processor time with and without it, in turns of one run.

Run it with ``python -m bench.masking``. Question and reply have 400 characters; the history is as long as the window
takes. *plain* holds no personal data, *data* a name, an e-mail address and a phone number in the question.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import AsyncIterator

from cloister import AsyncCloister, Request, Scrub

PLAIN = (
    "Hello, I wanted to ask about the delivery that I was promised last week. The tracking page says that it left the "
    "depot, but nothing has arrived here so far, and nobody answers the phone. Could you please look into it and tell "
    "me when I can expect it? I will be at home in the afternoon on most days, and the neighbour would take it as well "
    "if that is easier for the driver. Thank you very much."
)
DATA = PLAIN.replace("Thank you very much.", "My name is Ana Lopez, write to ana.lopez@example.org or +1 415 555 2671.")
TURNS, ROUNDS = 60, 7


class Answers:
    """A provider that takes no time."""

    name = model = "answers"

    async def complete(self, request: Request) -> str:
        return PLAIN

    async def stream(self, request: Request) -> AsyncIterator[str]:
        yield PLAIN

    async def close(self) -> None:
        pass


async def milliseconds(scrub: Scrub | None, question: str) -> float:
    """Give the median processor time of a turn."""
    async with AsyncCloister.open("memory://", provider=Answers(), scrub=scrub) as cloister:
        session = await cloister.user("ana").start()
        took = []
        for _ in range(TURNS):
            begun = time.process_time()
            await session.send(question)
            took.append((time.process_time() - begun) * 1_000)
    return statistics.median(took[TURNS // 2 :])


async def main() -> None:
    for name, question in (("plain", PLAIN), ("data", DATA)):
        pairs = [(await milliseconds(None, question), await milliseconds(Scrub(), question)) for _ in range(ROUNDS)]
        without, replaced = (statistics.median(times) for times in zip(*pairs, strict=True))
        ratio = statistics.median(after / before for before, after in pairs)
        print(f"{name:5}  without {without:.2f} ms  replaced {replaced:.2f} ms  ratio {ratio:.2f}")


if __name__ == "__main__":
    asyncio.run(main())
