"""Databases for the tests: a migrated one for each, copied from one that was migrated once; and leases forgotten."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import asyncpg
import pytest
from tests.fakes import House

from cloister.stores.postgres_schema import _TABLES, migrate

_EMPTY = ";".join(
    [
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()",
        "SET session_replication_role = replica",  # whatever refers to what
        *(f"DELETE FROM cloister.{table}" for table in _TABLES if table != "meta"),
        "SELECT setval(format('cloister.%I', sequencename), 1, false) FROM pg_sequences WHERE schemaname = 'cloister'",
    ]
)


@dataclass
class Database:
    """A migrated database of one's own."""

    server: str
    name: str

    def url(self, role: str = "cloister_app", port: int | None = None) -> str:
        host = self.server.rpartition("@")[2] if port is None else f"127.0.0.1:{port}"
        return f"postgresql://{role}@{host}/{self.name}"

    @contextlib.asynccontextmanager
    async def connected(self, role: str = "owner", port: int | None = None) -> AsyncIterator[Any]:
        """A plain connection, without cloister; behind a pooler without prepared statements."""
        driver = await asyncpg.connect(self.url(role, port), statement_cache_size=0)
        try:
            yield driver
        finally:
            await driver.close()

    async def run(self, sql: str, role: str = "owner") -> Any:
        async with self.connected(role) as driver:
            return await driver.fetch(sql)


async def made_database(server: str, name: str, template: str | None = None) -> Database:
    driver = await asyncpg.connect(f"{server}/postgres")
    await driver.execute(f"CREATE DATABASE {name}" + (f" TEMPLATE {template}" if template else ""))
    await driver.close()
    return Database(server, name)


async def forget_leases(house: House, url: str) -> None:
    """Make every lease as old as one is that nobody has renewed for its whole life."""
    if url.startswith("redis"):
        store: Any = house.cloister.store
        for address in await store._nodes.primaries():
            for key in await store._plain(address, "KEYS", f"{store._prefix}*l:*"):
                await store._plain(address, "DEL", key)
        return
    driver = await asyncpg.connect(
        url.replace("cloister_app@", "owner@").partition("?")[0], statement_cache_size=0 if "pooler" in url else 100
    )
    await driver.execute("DELETE FROM cloister.leases")
    await driver.close()


async def _prepare(server: str) -> str:
    made = await made_database(server, "template_" + secrets.token_hex(4))
    async with made.connected() as driver:
        await migrate(driver, "cloister_app")
    return made.name


@pytest.fixture(scope="session")
def migrated(postgres: str) -> str:
    """The name of a database from which others are copied."""
    return asyncio.run(_prepare(postgres))


async def empty(made: Database) -> None:
    """Leave of a database what it was when it was new, and nobody connected to it."""
    async with made.connected() as driver:
        await driver.execute(_EMPTY)


async def dropped(made: Database) -> None:
    driver = await asyncpg.connect(f"{made.server}/postgres")
    await driver.execute(f"DROP DATABASE {made.name} WITH (FORCE)")
    await driver.close()


@pytest.fixture
async def database(postgres: str, migrated: str) -> AsyncIterator[Database]:
    """A database that nobody else had or gets: a test may change its schema and settings."""
    made = await made_database(postgres, "t_" + secrets.token_hex(6), migrated)
    yield made
    await dropped(made)


@pytest.fixture(scope="session")
def emptied(postgres: str) -> Iterator[list[Database]]:
    """Those that were emptied for the next test that only writes rows."""
    kept: list[Database] = []
    yield kept
    for made in kept:
        asyncio.run(dropped(made))


@pytest.fixture
async def rows(postgres: str, migrated: str, emptied: list[Database]) -> AsyncIterator[Database]:
    """A database without rows, for a test that changes nothing else: it takes a twentieth of the time of a new one."""
    made = emptied.pop() if emptied else await made_database(postgres, "t_" + secrets.token_hex(6), migrated)
    yield made
    await empty(made)
    emptied.append(made)
