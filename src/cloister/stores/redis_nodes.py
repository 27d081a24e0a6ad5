"""The nodes of Redis or a Redis Cluster: which of them serves which slot, and the connections to each."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from redis.asyncio.connection import Connection as Driver
from redis.asyncio.connection import SSLConnection
from redis.crc import key_slot
from redis.exceptions import (
    AskError,
    ClusterDownError,
    MasterDownError,
    MovedError,
    ReadOnlyError,
    RedisError,
    TryAgainError,
)

from cloister.errors import CloisterError, ConfigurationError, StoreUnavailable
from cloister.stores.pool import Lent, Pool
from cloister.stores.redis_wire import Request, Stale, Wire, ours

T = TypeVar("T")

_PORT = 6379
_HOPS = 5

Address = tuple[str, int]


def address_of(text: str) -> Address:
    """Give host and port of *text*, in which the port may be left out."""
    host, colon, port = text.rpartition(":")
    if colon and not port.isdecimal():
        raise ConfigurationError("a port is a number: redis://host:6379")
    return (host or "localhost", int(port)) if colon else (text, _PORT)


class Nodes:
    """Know which node serves which slot, and keep connections to each."""

    def __init__(
        self, url: str, seeds: Sequence[Address], clustered: bool, secure: bool, driver: dict[str, Any], size: int
    ) -> None:
        self._url = url
        self._seeds = list(seeds)
        self.clustered = clustered
        self._class = SSLConnection if secure else Driver
        self._driver = driver
        self._size = size
        self._pools: dict[Address, Pool[Wire]] = {}
        self._slots: list[tuple[int, int, Address]] = []
        self._refreshing = asyncio.Lock()
        self._closing: set[asyncio.Task[None]] = set()

    def pool(self, address: Address) -> Pool[Wire]:
        """Give the connections to a node."""
        if address not in self._pools:

            async def connect() -> Wire:
                driver = self._class(
                    host=address[0],
                    port=address[1],
                    protocol=2,  # with the newer protocol the driver does not look for replies that nobody read
                    socket_timeout=None,
                    socket_connect_timeout=3,
                    **self._driver,
                )
                try:
                    await driver.connect()  # type: ignore[no-untyped-call] # the driver's types are not all there
                except BaseException:
                    await driver.disconnect(nowait=True)
                    raise
                return Wire(driver, self._closing)

            self._pools[address] = Pool(connect, self._url, size=self._size)
        return self._pools[address]

    @property
    def pools(self) -> list[Pool[Wire]]:
        return list(self._pools.values())

    async def close(self) -> None:
        """Close every connection."""
        for pool in self.pools:
            await pool.close()
        while self._closing:
            await asyncio.gather(*self._closing, return_exceptions=True)

    async def primaries(self) -> list[Address]:
        """Name the nodes that hold slots."""
        if not self.clustered:
            return self._seeds[:1]
        if not self._slots:
            await self._refresh()
        return sorted({address for _, _, address in self._slots})

    async def run(self, key: bytes, work: Callable[[Pool[Wire], Lent[Wire]], Awaitable[T]]) -> T:
        """Do *work* on a connection to the node that serves *key*."""
        asking: Address | None = None
        for _ in range(_HOPS):
            address = asking or await self._serving(key)
            pool = self.pool(address)

            async def guarded(lent: Lent[Wire], pool: Pool[Wire] = pool, asked: bool = asking is not None) -> Any:
                try:
                    if asked:
                        await lent.connection.command("ASKING")
                    return await work(pool, lent)
                except (MovedError, AskError, TryAgainError) as error:  # whole answers: it is the wrong place
                    return error

            asking = None
            try:
                outcome = await pool.run(guarded)
            except Stale:
                continue
            except (ClusterDownError, MasterDownError, ReadOnlyError, OSError, RedisError, TypeError) as error:
                self._slots = []
                raise ours(error, self._url) from error
            except StoreUnavailable:
                self._slots = []
                raise
            if isinstance(outcome, MovedError | AskError) and not self.clustered:
                raise ours(outcome, self._url)
            if isinstance(outcome, MovedError):
                self._slots = []
            elif isinstance(outcome, AskError):
                asking = (outcome.host or address[0], outcome.port)
            elif isinstance(outcome, TryAgainError):
                await asyncio.sleep(0.02)
            else:
                return outcome  # type: ignore[no-any-return]
        raise StoreUnavailable(f"{self._url} keeps moving what was asked for; try again")

    async def run_all(self, requests: Sequence[Request]) -> list[list[Any]]:
        """Run scripts that may be run twice, those that concern one node in their order and in one go.

        Gives what each says.
        """
        by_node: dict[Address, list[int]] = {}
        for number, (_, keys, _) in enumerate(requests):
            by_node.setdefault(await self._serving(keys[0]), []).append(number)
        found: dict[int, list[Any] | None] = {}

        async def ask(numbers: list[int]) -> None:
            first = requests[numbers[0]][1][0]
            some = [requests[number] for number in numbers]
            said = await self.run(first, lambda _, lent: lent.connection.run_all(some))
            found.update(zip(numbers, said, strict=True))

        await asyncio.gather(*map(ask, by_node.values()))
        return [found[number] or await self._one(request) for number, request in enumerate(requests)]

    async def _one(self, request: Request) -> list[Any]:
        """Ask alone what went to a node that does not serve it any more, or did not know the script yet."""
        return await self.run(request[1][0], lambda _, lent: lent.connection.run(*request))

    async def _serving(self, key: bytes) -> Address:
        if not self.clustered:
            return self._seeds[0]
        if not self._slots:
            await self._refresh()
        slot = key_slot(key)
        for first, last, address in self._slots:
            if first <= slot <= last:
                return address
        self._slots = []
        raise StoreUnavailable(f"no node of {self._url} serves this session at the moment; try again")

    async def _refresh(self) -> None:
        """Ask one node after another who serves what."""
        async with self._refreshing:
            if self._slots:
                return
            wrong: CloisterError | None = None
            for address in dict.fromkeys([*self._pools, *self._seeds]):
                try:
                    said = await self.pool(address).run(lambda lent: lent.connection.plain("CLUSTER", "SLOTS"))
                    self._slots = [
                        (first, last, (node[0].decode() or address[0], node[1])) for first, last, node, *_ in said
                    ]
                except (OSError, RedisError) as error:
                    found = ours(error, self._url)
                    wrong = found if isinstance(found, ConfigurationError) else wrong
                except (StoreUnavailable, TypeError, ValueError, Stale):
                    continue
                if self._slots:
                    return
        if wrong is not None:  # trying again would not help
            raise wrong
        raise StoreUnavailable(f"no node of {self._url} can be reached, or says who serves what; try again")
