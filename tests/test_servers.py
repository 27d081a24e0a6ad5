"""The servers that tests run against: they come up, survive being killed, and do not outlive the run."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import asyncpg
import pytest
from redis import Redis
from tests.databases import Database, empty
from tests.fakes import opened
from tests.servers import (
    listens,
    postgres_folders,
    running_cluster,
    running_postgres,
    running_redis,
    talk,
    until,
)
from tests.test_budgets import PRICES

from cloister import Budget


@pytest.mark.parametrize("programs", postgres_folders(), ids=lambda path: path.parent.name)
async def test_killed_postgres_comes_back(programs: Path) -> None:
    """Every PostgreSQL of this machine starts, and has what was committed after it was killed."""
    with running_postgres(programs) as server:
        dsn = f"postgresql://owner@127.0.0.1:{server.port}/postgres"
        connection = await asyncpg.connect(dsn)
        await connection.execute("CREATE TABLE kept (x int)")
        await connection.execute("INSERT INTO kept VALUES (7)")
        server.kill()
        connection.terminate()
        assert not listens(server.port)
        server.start()
        for _ in range(100):  # it listens while it recovers, and says so
            try:
                connection = await asyncpg.connect(dsn)
                break
            except asyncpg.CannotConnectNowError:
                continue
        assert await connection.fetchval("SELECT x FROM kept") == 7
        await connection.close()


def test_killed_redis_comes_back() -> None:
    """A Redis that is killed and started again listens on the same port, without what it did not write to disk."""
    with running_redis() as server:
        talk(server.port, "SET", "x", "7")
        server.kill()
        assert not listens(server.port)
        server.start()
        assert talk(server.port, "GET", "x") == "$-1\r\n"


def test_cluster_survives_a_primary() -> None:
    """A replica takes the place of a primary that is killed, and the one that comes back becomes a replica."""
    with running_cluster() as cluster:
        slot = int(talk(cluster.nodes[0].port, "CLUSTER", "KEYSLOT", "ana")[1:])
        primary = cluster.primary_of(slot)
        with Redis(port=primary.port) as client:
            client.set("ana", "7")
            assert client.wait(1, 10_000) == 1  # of what this connection wrote: a replica has it
        primary.kill()
        others = [node for node in cluster.nodes if node is not primary]
        try:
            until(lambda: any(talk(node.port, "GET", "ana").endswith("\r\n7\r\n") for node in others), "failover")
        except TimeoutError as error:
            error.add_note(cluster.account())
            raise
        assert cluster.primary_of(slot) is not primary
        primary.start()
        until(cluster.settled, "the cluster")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with the one that started it")
def test_nothing_outlives_the_run() -> None:
    """Servers end even with a test run that is killed."""
    code = (
        "import time; from tests.servers import running_redis\n"
        "with running_redis() as server: print(server.port, server.folder, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=Path(__file__).parents[1]) as run:
        assert run.stdout is not None
        port, folder = run.stdout.readline().decode().split()
        assert listens(int(port))
        run.send_signal(signal.SIGKILL)
    until(lambda: not listens(int(port)), "the end of the server")
    shutil.rmtree(folder)


async def test_an_emptied_database_is_as_new(rows: Database, database: Database) -> None:
    """Whatever a test wrote into a database is gone for the next one, and numbers begin at 1 again."""

    async def holds(made: Database) -> list[tuple[str, int]]:
        async with made.connected() as driver:
            tables = await driver.fetch(
                "SELECT relname FROM pg_class WHERE relnamespace = 'cloister'::regnamespace AND relkind IN ('r', 'S')"
            )
            return sorted(
                [(name, await driver.fetchval(f"SELECT count(*) FROM cloister.{name}")) for (name,) in tables]
                + await driver.fetch(
                    "SELECT sequencename, coalesce(last_value, 0) FROM pg_sequences WHERE schemaname = 'cloister'"
                )
            )

    async with opened(rows.url(), tenancy="required", budget=Budget(user_daily="9"), prices=PRICES) as house:
        session = await house.cloister.user("ana", tenant="acme").start()
        await session.send("hello", idempotency_key="k")
        assert sum(count for _, count in await holds(rows)) > sum(count for _, count in await holds(database))
    await empty(rows)
    assert await holds(rows) == await holds(database)
