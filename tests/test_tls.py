"""Encrypted connections to PostgreSQL and Redis: a certificate that nobody vouches for is refused, and said so."""

from __future__ import annotations

import asyncio
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import pytest
from tests.certificates import write_certificates
from tests.databases import made_database
from tests.fakes import opened, told
from tests.servers import free_port, redis_program, running_postgres, running_redis

from cloister import stores
from cloister.errors import ConfigurationError, StoreUnavailable
from cloister.stores.postgres_schema import migrate


@dataclass
class Secured:
    """A store that speaks TLS: its URL for a host and an authority, and which errors a server without TLS gives."""

    url: str
    trust: str
    folder: Path

    def named(self, authority: str = "ca.pem", host: str = "127.0.0.1") -> str:
        return self.url.format(host=host) + self.trust.format(self.folder / authority)


@pytest.fixture(scope="module")
def secured_postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    folder = tmp_path_factory.mktemp("postgres")
    write_certificates(folder)
    with running_postgres() as server:
        for name in ("server.crt", "server.key"):
            there = server.folder / "data" / name
            shutil.copy(folder / name, there)
            there.chmod(0o600)
            if server.user is not None:
                shutil.chown(there, server.user)

        async def prepare() -> str:
            made = await made_database(f"postgresql://owner@127.0.0.1:{server.port}", "t_" + secrets.token_hex(6))
            async with made.connected() as driver:
                await migrate(driver, "cloister_app")
                try:
                    await driver.execute("ALTER SYSTEM SET ssl = on")
                except asyncpg.PostgresError:
                    pytest.skip("this PostgreSQL speaks no TLS; apt-get install postgresql")
                await driver.execute("SELECT pg_reload_conf()")
            return made.name

        name = asyncio.run(prepare())
        host = "{host}:" + str(server.port)
        yield Secured(f"postgresql://cloister_app@{host}/{name}", "?sslmode=verify-full&sslrootcert={}", folder)


@pytest.fixture(scope="module")
def secured_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    if b"tls-auth-clients" not in Path(redis_program()).read_bytes():
        pytest.skip("this Redis speaks no TLS; apt-get install redis-server")
    folder = tmp_path_factory.mktemp("redis")
    write_certificates(folder)
    port = free_port()
    files = [
        *("--tls-cert-file", f"{folder}/server.crt", "--tls-key-file", f"{folder}/server.key"),
        *("--tls-ca-cert-file", f"{folder}/ca.pem", "--tls-auth-clients", "no", "--tls-port", str(port)),
    ]
    with running_redis(*files):
        yield Secured("rediss://{host}:" + f"{port}/0", "?tls_ca={}", folder)


@pytest.fixture(params=["postgres", "redis"])
def secured(request: pytest.FixtureRequest) -> Secured:
    found: Secured = request.getfixturevalue(f"secured_{request.param}")
    return found


async def test_a_certificate_that_is_vouched_for(secured: Secured) -> None:
    """With the authority named and the host as it stands in the certificate, two people talk as over any wire."""
    async with opened(secured.named()) as house:
        session = await house.ana.start()
        await session.send("hello")
        assert await told(session) == ["hello", "You said: hello"]
        assert (await house.audited()).faults == []


@pytest.mark.parametrize(("authority", "host"), [("other.pem", "127.0.0.1"), ("ca.pem", "localhost")])
async def test_another_certificate_is_refused(secured: Secured, authority: str, host: str) -> None:
    """One that somebody else has signed, or that is another host's, is refused as what it is, with what to do."""
    store = stores.connect(secured.named(authority, host))
    with pytest.raises(ConfigurationError, match=r"certificate .* is not trusted: name who signed it"):
        await store.open()
    await store.close()


async def test_nobody_is_checked_only_where_that_is_said(secured_redis: Secured) -> None:
    """Redis: without an authority the system's are asked, who know nothing of this server; tls_verify=0 asks nobody."""
    url = secured_redis.url.format(host="127.0.0.1")
    with pytest.raises(ConfigurationError, match="certificate"):
        await stores.connect(url).open()
    async with opened(url + "?tls_verify=0") as house:
        await house.ana.start()


async def test_encryption_is_not_given_up(secured_postgres: Secured, postgres: str) -> None:
    """PostgreSQL: what asks for TLS does not go on without, whatever the server offers."""
    driver = await asyncpg.connect(secured_postgres.named())
    assert await driver.fetchval("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
    await driver.close()
    plain = stores.connect(f"{postgres}/postgres?sslmode=require")
    with pytest.raises(StoreUnavailable):
        await plain.open()
    await plain.close()
