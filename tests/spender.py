"""One of several processes that begin turns on one budget, and die: ``python -m tests.spender URL AMOUNT LIMIT``.

It begins a turn for each of ana's sessions that it is told the ids of, every other one as if the session were still to
come, and prints how many it was let begin.
"""

from __future__ import annotations

import asyncio
import os
import sys

from cloister import stores
from cloister.model import Owner
from cloister.stores.base import Account, Charge

ANA = Owner("acme", "ana")


async def main(url: str, amount: int, limit: int) -> int:
    store = stores.connect(url)
    await store.open()
    charges = [Charge(Account("acme", who, "2026-01"), amount, limit, 1 << 50) for who in ("ana", None)]

    async def begin(number: int, session_id: str) -> bool:
        lease = os.urandom(16)
        if number % 2:
            return (await store.charge(ANA, lease, charges, nonce=b"nonce")).over is None
        loaded = await store.load(ANA, session_id, nonce=b"nonce", budget=0, lease=lease, charges=charges)
        return loaded.session is not None

    print("ready", flush=True)
    ids = sys.stdin.readline().split()
    return sum(await asyncio.gather(*(begin(*one) for one in enumerate(ids))))


print(asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))), flush=True)
os._exit(0)
