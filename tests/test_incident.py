"""What happens to stores that trust a pool: the incident of March 2023, and answers that are crossed on their way.

These stores are naive on purpose, and the tests show that they leak; `test_faults` shows that ours do not.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets

import asyncpg
from tests.servers import talk

from cloister.probe.proxy import Faults, Proxy

PEOPLE = [f"{name}-{number}" for number in range(4) for name in ("ana", "ben")]


class Naive:
    """A user's messages by GET, over connections that go back to the pool whatever became of their command."""

    def __init__(self, address: str, prefix: str) -> None:
        self._host, _, self._port = address.partition(":")
        self._prefix = prefix
        self._pool: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def messages(self, user: str) -> str:
        connection = self._pool.pop() if self._pool else await asyncio.open_connection(self._host, int(self._port))
        reader, writer = connection
        try:
            key = f"{self._prefix}:{user}".encode()
            writer.write(b"*2\r\n$3\r\nGET\r\n$%d\r\n%s\r\n" % (len(key), key))
            header = await reader.readuntil(b"\r\n")
            return (await reader.readexactly(int(header[1:]) + 2))[:-2].decode()
        finally:
            self._pool.append(connection)  # the fault: an answer may still be under way on it

    async def close(self) -> None:
        for _, writer in self._pool:
            writer.close()
            await writer.wait_closed()


async def test_cancelled_command_leaks_to_the_next_user(redis: str) -> None:
    """A command is cancelled, its connection goes back to the pool, and the next user reads the answer."""
    prefix = secrets.token_hex(8)
    host, _, port = redis.partition(":")
    assert host in ("127.0.0.1", "localhost")
    for user in PEOPLE:
        talk(int(port), "SET", f"{prefix}:{user}", f"what {user} said")
    naive, crossed, asked = Naive(redis, prefix), 0, 0
    for number in range(200):
        user = PEOPLE[number % len(PEOPLE)]
        task = asyncio.create_task(naive.messages(user))
        if number % 10 == 0:
            await asyncio.sleep(0)  # it is sent ...
            if number >= 10:
                task.cancel()  # ... and nobody waits for its answer
        with contextlib.suppress(asyncio.CancelledError):
            asked += 1
            crossed += await task != f"what {user} said"
    await naive.close()
    assert crossed > asked / 2  # from the first cancellation on, nearly every answer is somebody else's


async def test_an_owner_in_the_statement_does_not_help(postgres: str) -> None:
    """Where answers are crossed on their way, ``WHERE owner = …`` hands over other users' rows."""
    table = f"naive_{secrets.token_hex(6)}"
    direct = await asyncpg.connect(f"{postgres}/postgres")
    await direct.execute(f"CREATE TABLE {table} (owner text, said text)")
    await direct.executemany(f"INSERT INTO {table} VALUES ($1, $2)", [(user, f"what {user} said") for user in PEOPLE])
    account, _, address = postgres.rpartition("@")
    host, _, port = address.partition(":")
    try:
        async with Proxy(host, int(port or 5432), "postgres") as proxy:
            dsn = f"{account}@127.0.0.1:{proxy.port}/postgres"
            clients = [await asyncpg.connect(dsn) for _ in range(4)]

            async def crossed(client: asyncpg.Connection, turns: int) -> int:
                """Ask for each user's messages in turn; count the answers that are not theirs."""
                wrong = 0
                for number in range(turns):
                    user = PEOPLE[(number + clients.index(client)) % len(PEOPLE)]
                    said = await client.fetchval(f"SELECT said FROM {table} WHERE owner = $1", user)
                    wrong += said != f"what {user} said"
                return wrong

            assert sum([await crossed(client, 10) for client in clients]) == 0
            proxy.faults = Faults(0.05, ["swap"], seed=1)
            wrong = sum(await asyncio.gather(*(crossed(client, 100) for client in clients)))
            swapped = proxy.injected["swap"]
            for client in clients:
                client.terminate()
            assert swapped
            assert wrong
    finally:
        await direct.execute(f"DROP TABLE {table}")
        await direct.close()
