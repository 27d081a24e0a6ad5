"""PostgreSQL: the contract on a real server, and what row-level security has to withstand."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import re
import secrets
from collections.abc import AsyncIterator, Iterator
from typing import Any

import asyncpg
import pytest
from click.testing import CliRunner
from tests.databases import Database, made_database
from tests.fakes import House, opened, told
from tests.servers import pools_prepared_statements, running_postgres

from cloister import AsyncCloister, Keyring, stores
from cloister.cli import main
from cloister.errors import (
    ConfigurationError,
    IntegrityError,
    SessionNotFound,
    StoreError,
    StoreUnavailable,
)
from cloister.model import Owner
from cloister.stores import postgres_schema
from cloister.stores.base import Fingerprint, Receipt, Store
from cloister.stores.postgres_schema import migrate
from cloister.stores.postgres_wire import Wire, public
from cloister.testing import StoreConformance, nonce, sealed_credential, sealed_items, sealed_session


@pytest.fixture
async def house(database: Database) -> AsyncIterator[House]:
    async with opened(database.url(), keyring=Keyring.generate()) as house:
        yield house


class TestPostgres(StoreConformance):
    @pytest.fixture
    async def store(self, rows: Database) -> AsyncIterator[Store]:
        store = stores.connect(rows.url())
        await store.open()
        yield store
        await store.close()


class TestBehindAPooler(StoreConformance):
    """The same through PgBouncer in transaction mode."""

    @pytest.fixture
    async def store(self, database: Database, pgbouncer: int) -> AsyncIterator[Store]:
        store = stores.connect(database.url(port=pgbouncer) + "?pooler=1")
        await store.open()
        yield store
        await store.close()


_PARTS = """
DO $$ BEGIN
    FOR n IN 0..3 LOOP
        EXECUTE format('CREATE TABLE cloister.items_%s PARTITION OF cloister.items
                        FOR VALUES WITH (MODULUS 4, REMAINDER %s)', n, n);
        EXECUTE format('CREATE TABLE cloister.sessions_%s PARTITION OF cloister.sessions
                        FOR VALUES WITH (MODULUS 4, REMAINDER %s)', n, n);
    END LOOP;
END $$;
"""


@pytest.fixture
async def partitioned(postgres: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Database]:
    """A database whose sessions and items lie in four parts each, by the hash of their owner."""
    script = postgres_schema.script()
    for key, storage in (("session)", " WITH (fillfactor = 80)"), ("session, position)", "")):
        whole = f'PRIMARY KEY (tenant, "user", {key}\n){storage};'
        assert whole in script
        script = script.replace(whole, f'PRIMARY KEY (tenant, "user", {key}\n) PARTITION BY HASH (tenant, "user");')
    monkeypatch.setattr(postgres_schema, "script", lambda: script)
    made = await made_database(postgres, "t_" + secrets.token_hex(6))
    async with made.connected() as driver:
        await migrate(driver, "cloister_app")
        await driver.execute(_PARTS)
    yield made
    async with Database(postgres, "postgres").connected() as driver:
        await driver.execute(f"DROP DATABASE {made.name} WITH (FORCE)")


@pytest.mark.soak
class TestPartitioned(StoreConformance):
    """The same in parts."""

    @pytest.fixture
    async def store(self, partitioned: Database) -> AsyncIterator[Store]:
        store = stores.connect(partitioned.url())
        await store.open()
        yield store
        await store.close()


async def test_parts_are_closed(partitioned: Database) -> None:
    """Where tables are partitioned by owner, people talk as before, and no part can be read past the policies."""
    async with opened(partitioned.url()) as house:
        users = [house.cloister.user(f"user {n}") for n in range(8)]
        for user in users:
            session = await user.start()
            await session.send("hello")
            assert await told(await user.resume(session.id)) == ["hello", "You said: hello"]
        assert (await house.audited()).faults == []
    rows = await partitioned.run("SELECT DISTINCT tableoid FROM cloister.items")
    assert len(rows) > 1
    async with partitioned.connected("cloister_app") as driver:
        assert await driver.fetch("SELECT * FROM cloister.items") == []
        for part in ("items_0", "sessions_3"):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await driver.fetch(f"SELECT * FROM cloister.{part}")


# --- who is let in ---


async def _refused(url: str, named: str) -> None:
    store = stores.connect(url)
    with pytest.raises(ConfigurationError, match=named):
        await store.open()
    await store.close()


async def test_a_superuser_is_refused(database: Database) -> None:
    """A superuser, who sees everybody's rows whatever the policies say, does not open the store."""
    await _refused(database.url("owner"), "superuser")


_UNSAFE = {
    "ALTER ROLE {role} BYPASSRLS": "bypass",
    "ALTER TABLE cloister.items OWNER TO {role}": "owns cloister.items",
    "GRANT cloister_lookup TO {role}": "REVOKE cloister_lookup",
    "REVOKE cloister_application FROM {role}": "may not use the store",
    "ALTER TABLE cloister.items DISABLE ROW LEVEL SECURITY": "ENABLE ROW LEVEL SECURITY",
    "ALTER TABLE cloister.sessions NO FORCE ROW LEVEL SECURITY": "FORCE ROW LEVEL SECURITY",
    "DROP POLICY mine ON cloister.sessions": "'mine' on cloister.sessions",
    "CREATE POLICY open ON cloister.items USING (true)": "'open' on cloister.items",
    "ALTER POLICY mine ON cloister.items USING (true)": "'mine' on cloister.items",
    "ALTER ROLE {role} SET default_transaction_isolation = 'repeatable read'": "read committed",
    "ALTER POLICY mine ON cloister.items WITH CHECK (true)": "'mine' on cloister.items",
    "GRANT pg_read_server_files TO {role}": "REVOKE pg_read_server_files FROM",
    "CREATE ROLE {role}_s SUPERUSER NOLOGIN; GRANT {role}_s TO {role}": "REVOKE role_[0-9a-f]*_s FROM",
    "CREATE ROLE {role}_b BYPASSRLS NOLOGIN; GRANT {role}_b TO {role}": "REVOKE role_[0-9a-f]*_b FROM",
    "DROP TABLE cloister.records": "lacks the table cloister.records",
    "UPDATE cloister.meta SET version = 99": "version 99",
    "DROP SCHEMA cloister CASCADE": "cloister migrate",
}


@pytest.mark.parametrize("change", _UNSAFE)
async def test_an_unsafe_role_or_schema_is_refused(database: Database, change: str) -> None:
    """Where row-level security would not hold, the store does not open, and says how to mend it."""
    role = "role_" + secrets.token_hex(4)
    await database.run(f"CREATE ROLE {role} LOGIN")
    await database.run(f"GRANT cloister_application TO {role}")
    store = stores.connect(database.url(role))
    await store.open()  # as it should be
    await store.close()
    for statement in change.format(role=role).split("; "):
        await database.run(statement)
    await _refused(database.url(role), _UNSAFE[change])
    await database.run(f"ALTER ROLE {role} NOBYPASSRLS")
    await database.run(f"DROP ROLE IF EXISTS {role}_s, {role}_b")


async def _colliding(url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Ask for Ben's as a second process does, whose prepared statements are named like the first one's."""
    ones = await asyncpg.connect(url)
    others = await asyncpg.connect(url)
    monkeypatch.setattr("asyncpg.connection._uid", 100)
    await ones.fetchval("SELECT 'ana: ' || $1::text", "")
    monkeypatch.setattr("asyncpg.connection._uid", 100)
    asleep = asyncio.create_task(ones.execute("SELECT pg_sleep(0.2)"))  # so that the other has to come by another way
    await asyncio.sleep(0.1)
    await others.fetchval("SELECT 'ben: ' || $1::text", "")
    await asleep
    said = ""
    for _ in range(4):
        said += str(await ones.fetchval("SELECT 'ana: ' || $1::text", "hers"))
        said += str(await others.fetchval("SELECT 'ben: ' || $1::text", "his"))
    for driver in (ones, others):
        await driver.close()
    return said


async def test_a_pooler_must_be_named(database: Database, pgbouncer: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind a pooler one process's prepared statement may be carried out for another: it is refused unless named."""
    with contextlib.suppress(asyncpg.PostgresError):  # a pooler that refuses, or that keeps them apart, is a good one
        said = await _colliding(database.url(port=pgbouncer), monkeypatch)
        if not pools_prepared_statements():
            assert "ana: his" in said or "ben: hers" in said, (
                "the attack that this test is about does not work any more"
            )
    await _refused(database.url(port=pgbouncer), r"\?pooler=1")
    for url in (database.url(), database.url(port=pgbouncer) + "?pooler=1"):
        store = stores.connect(url)
        await store.open()
        await store.close()


async def test_types_are_looked_up_without_a_trace(
    database: Database, pgbouncer: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver asks for types in a transaction that is undone, so that nothing is left set behind a pooler, and no
    request waits for it."""
    real, looked_up = asyncpg.Connection._introspect_types, []

    async def noticed(self: Any, *args: Any) -> Any:
        looked_up.append(self.is_in_transaction())
        return await real(self, *args)

    monkeypatch.setattr(asyncpg.Connection, "_introspect_types", noticed)
    for url in (database.url(), database.url(port=pgbouncer) + "?pooler=1"):
        async with opened(url) as house:
            session = await house.ana.start(title="hers", system="Be kind.")
            await session.send("hello", idempotency_key="k")
            await session.history()
            await house.ana.sessions()
            await house.audited()
            await house.ana.erase()
            await house.cloister.sweep()
        assert looked_up
        assert all(looked_up)
        looked_up.clear()
    async with database.connected("cloister_app", pgbouncer) as driver:
        assert await driver.fetch("SELECT name FROM pg_settings WHERE source = 'session' AND name = 'jit'") == []


async def test_an_old_server_is_refused(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server without the updates that row-level security needs is refused unless that is said to be wanted."""
    monkeypatch.setattr(postgres_schema, "_SAFE", {major: major * 10_000 + 9_999 for major in range(15, 30)})
    await _refused(database.url(), "allow_old=1")
    store = stores.connect(database.url() + "?allow_old=1")
    await store.open()
    await store.close()


@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("postgresql://h/d?connections=0", "from 1 to 1000"),
        ("postgresql://h/d?allow_old=yes", "one of 0, 1"),
    ],
)
def test_a_wrong_option_is_refused(url: str, named: str) -> None:
    """An option of ours with another value is refused, with those that there are."""
    with pytest.raises(ConfigurationError, match=named):
        stores.connect(url)


@pytest.mark.parametrize("option", ["frob=1", "work_mem=much", "max_connections=9"])
async def test_an_unknown_option_is_refused(database: Database, pgbouncer: int, option: str) -> None:
    """An option that server or pooler does not know is a wrong set-up, named with those that there are."""
    await _refused(f"{database.url()}?{option}", "connections, allow_old, pooler")
    if option == "frob=1":
        await _refused(f"{database.url(port=pgbouncer)}?pooler=1&{option}", "connections, allow_old, pooler")


def test_no_password_is_shown() -> None:
    """What is shown of a URL has neither password nor options, whatever hosts it names."""
    shown = public("postgresql://ana:s3cret@one:5432,two:5433/chats?sslpassword=s3cret")
    assert shown == "postgresql://ana@one:5432,two:5433/chats"
    assert public("postgresql://ana:s3cret@[::1]:5432/chats") == "postgresql://ana@[::1]:5432/chats"
    assert "s3cret" not in stores.connect("postgresql://ana:s3cret@one/chats").url


@pytest.mark.parametrize(
    "url", ["postgresql://ana:s3/cret@one/chats", "postgresql://ana:s3#cret@one/chats",
            "postgresql://ana:s3?cret@one/chats", "postgresql://ana:s3cret/chats", "postgresql://one/chats#s3cret"]
)  # fmt: skip
def test_a_password_that_breaks_its_url_is_not_shown(url: str) -> None:
    """A password with / ? or # in it, or one without its host, is refused, and not shown as something else."""
    with pytest.raises(ConfigurationError, match="%2F") as refused:
        stores.connect(url)
    assert "s3" not in str(refused.value)


# --- who sees what ---


_AS = "SELECT set_config('cloister.tenant', '', false), set_config('cloister.user', '{}', false)"


async def _two(house: House) -> tuple[str, str]:
    """Sessions of Ana and Ben, in which each said something."""
    anas, bens = await house.ana.start(title="hers"), await house.ben.start(title="his")
    await anas.send("ana's words")
    await bens.send("ben's words")
    return anas.id, bens.id


async def test_the_role_sees_nobodys_rows_by_itself(database: Database, house: House) -> None:
    """Without an owner, and with one that is not there, the application's role reads no row of any table."""
    await _two(house)
    async with database.connected("cloister_app") as driver:
        for setting in ("", "nobody"):
            await driver.execute("SELECT set_config('cloister.user', $1, false)", setting)
            for table in ("sessions", "items", "leases", "records", "audit_owners"):
                assert await driver.fetchval(f"SELECT count(*) FROM cloister.{table}") == 0, table


async def test_an_owner_sees_only_his_own(database: Database, house: House) -> None:
    """With an owner set, every table shows that owner's rows and no other's, joins and counts included."""
    await _two(house)
    async with database.connected("cloister_app") as driver:
        await driver.execute(
            "SELECT set_config('cloister.tenant', '', false), set_config('cloister.user', 'ben', false)"
        )
        for table in ("sessions", "items", "audit_owners"):
            assert {row[0] for row in await driver.fetch(f'SELECT "user" FROM cloister.{table}')} == {"ben"}
        assert await driver.execute("DELETE FROM cloister.items WHERE \"user\" = 'ana'") == "DELETE 0"
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await driver.execute("INSERT INTO cloister.items VALUES ('', 'ana', 'x', 9, 'user', 1, '')")


@pytest.mark.parametrize(
    "forbidden",
    [
        "SELECT * FROM cloister.audit",
        "UPDATE cloister.audit SET detail = ''",
        "DELETE FROM cloister.audit",
        "TRUNCATE cloister.audit",
        "UPDATE cloister.items SET sealed = ''",
        "SELECT * FROM cloister.tenancy",
        "INSERT INTO cloister.fingerprints VALUES (0, 0, '')",
        "SELECT * FROM cloister.fingerprints",
        "SELECT * FROM cloister.claims",
        "SELECT * FROM cloister.credentials",
        "INSERT INTO cloister.credentials VALUES ('x', 'key', 'acme', '', 'key_1', 0, NULL, '')",
        "UPDATE cloister.credentials SET expires_at = NULL",
        "SET ROLE cloister_lookup",
        "ALTER TABLE cloister.items DISABLE ROW LEVEL SECURITY",
        "CREATE VIEW cloister.everything AS SELECT * FROM cloister.items",
        "CREATE FUNCTION cloister.mine() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "DROP TABLE cloister.items",
    ],
)
async def test_what_the_role_may_not_do(database: Database, forbidden: str) -> None:
    """The application's role can neither read nor change the log, nor change an item, nor loosen anything."""
    async with database.connected("cloister_app") as driver:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await driver.execute(forbidden)


async def test_a_view_of_the_owners_leaks(database: Database, house: House) -> None:
    """A view that a superuser makes shows everybody's rows to whoever may read it: none is part of the schema."""
    await _two(house)
    assert not await database.run("SELECT FROM pg_views WHERE schemaname = 'cloister'")
    await database.run("CREATE VIEW public.naive AS SELECT * FROM cloister.items")
    await database.run("GRANT SELECT ON public.naive TO cloister_app")
    naive = await database.run('SELECT DISTINCT "user" FROM public.naive', "cloister_app")
    assert {row[0] for row in naive} == {"ana", "ben"}, "the attack that this test is about does not work any more"
    await database.run("ALTER VIEW public.naive SET (security_invoker = true)")
    assert await database.run("SELECT * FROM public.naive", "cloister_app") == []


async def test_a_plain_set_leaks_through_a_pooler(database: Database, house: House, pgbouncer: int) -> None:
    """Behind a pooler a plain SET stays for the next client; what our functions set is gone with their statement."""
    await _two(house)
    asked = "SELECT current_setting('cloister.user', true)"
    async with database.connected("cloister_app", pgbouncer) as one:
        await one.execute("SET cloister.\"user\" = 'ana'")
    leaked = []
    for _ in range(8):  # connections of the pooler's are handed out anew
        async with database.connected("cloister_app", pgbouncer) as other:
            leaked.append(await other.fetchval(asked))
            await other.execute('RESET cloister."user"')
    assert "ana" in leaked, "the attack that this test is about does not work any more"
    async with database.connected("cloister_app", pgbouncer) as one:
        await one.fetch("SELECT * FROM cloister.listing('n', '', 'ana', 10, 1::bigint << 62, '')")
        assert await one.fetchval(asked) in (None, "")
        assert await one.fetchval("SELECT count(*) FROM cloister.items") == 0


async def test_the_policies_use_the_key(database: Database, house: House) -> None:
    """Reading a session's tail goes backwards through its key and stops: it does not depend on anybody's history."""
    anas, _ = await _two(house)
    async with database.connected("cloister_app") as driver:
        await driver.execute("SET enable_seqscan = off")
        await driver.execute(
            "SELECT set_config('cloister.tenant', '', false), set_config('cloister.user', 'ana', false)"
        )
        plan = await driver.fetch(
            "EXPLAIN SELECT * FROM cloister.items WHERE tenant = '' AND \"user\" = 'ana' AND session = "
            f"'{anas}' ORDER BY position DESC LIMIT 40"
        )
    said = "\n".join(row[0] for row in plan)
    assert "Index Scan Backward using items_pkey" in said
    assert "Sort" not in said


async def test_a_turn_reads_as_much_of_a_long_history_as_of_a_short_one(database: Database) -> None:
    """The pages that a load touches do not become more with the history, whatever plan the server has settled on."""
    store = stores.connect(database.url())
    await store.open()
    touched, plan = {}, ""
    for count in (100, 5_000):
        session = sealed_session(count=count, tokens=10 * count)
        await store.create(session, sealed_items(count), nonce=nonce())
        async with database.connected("cloister_app") as driver:
            for _ in range(8):  # after five the server may settle on one plan for all
                plan = await driver.fetchval(
                    "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON)"
                    f" SELECT * FROM cloister.load('n', 'acme', 'ana', '{session.id}', 400, NULL, 8, NULL)"
                )
        touched[count] = json.loads(plan)[0]["Plan"]["Shared Hit Blocks"]
    await store.close()
    assert touched[5_000] <= 1.2 * touched[100], touched


async def test_the_first_turn_comes_in_between(database: Database, house: House) -> None:
    """A read of an empty session comes to an end, also if the first items are stored in the middle of it."""
    session = await house.ana.start()
    moved = "UPDATE cloister.sessions SET item_count = 1, token_count = 5"
    stored = f"INSERT INTO cloister.items VALUES ('', 'ana', '{session.id}', 0, 'user', 5, 'sealed')"
    asleep = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    async with database.connected("cloister_app") as reader, database.connected() as writer:
        await writer.execute("BEGIN; LOCK TABLE cloister.items")
        load = "SELECT positions FROM cloister.load('n', '', 'ana', $1, 0, NULL, 8, NULL)"
        reading = asyncio.create_task(reader.fetchval(load, session.id, timeout=5))
        for _ in range(1_000):  # it has seen that there are none, and goes for them
            if await writer.fetchval(asleep):
                break
            await asyncio.sleep(0.005)
        await writer.execute(f"{moved}; {stored}; COMMIT")
        assert await reading == [0]


async def test_a_statement_names_its_owner_before_it_reads(database: Database, house: House) -> None:
    """One call after another on one connection, each for another owner, shows each owner's own and nothing else."""
    anas, bens = await _two(house)
    async with database.connected("cloister_app") as driver:
        for user, session, other in (("ana", anas, bens), ("ben", bens, anas)) * 3:
            load = "SELECT (session).session, positions FROM cloister.load('n', '', $1, $2, 10000, NULL, 8, NULL)"
            assert (await driver.fetchrow(load, user, session))[0] == session
            assert tuple(await driver.fetchrow(load, user, other)) == (None, None)


async def test_operators_may_be_others(database: Database) -> None:
    """With an operator's role the application's can neither read the log nor go through all sessions and credentials.

    What a server has to know of keys it does find out.
    """
    app, operator = ("r_" + secrets.token_hex(4) for _ in range(2))
    async with database.connected() as driver:
        await migrate(driver, app, operator)
    store = stores.connect(database.url(app))
    await store.open()
    key = sealed_credential()
    for attempt in (
        *(store.audit_tail(1), store.all(after=b"", limit=1), store.audit_owners()),
        *(store.every_credential(after=b"", limit=1), store.reseal(key, b"", nonce=nonce())),
    ):
        with pytest.raises(ConfigurationError, match="operator"):
            await attempt
    await store.close()
    async with opened(database.url(app), tenancy="required") as house:
        made = house.cloister.credentials
        assert not await made.has_keys()
        await made.add_tenant("acme")
        assert not await made.has_keys()
        token = await made.new_token(Owner("acme", "ana"))
        assert not await made.has_keys(), "a token is no key"
        minted = await made.new_key("acme")
        assert await made.has_keys()
        assert await made.check(token.secret) == token.credential
        assert await made.revoke_key("acme", minted.credential.id)
        await made.new_operator_key()
        assert await made.has_keys()
    theirs = stores.connect(database.url(operator))
    await theirs.open()
    assert [entry.event for entry in (await theirs.audit_tail(1)).entries] == ["credential.created"]
    assert not (await theirs.all(after=b"", limit=1)).sessions
    assert len((await theirs.every_credential(after=b"", limit=9)).credentials) == 3
    await theirs.close()


async def test_names_are_never_statements(database: Database, house: House) -> None:
    """Users named like SQL, patterns or somebody else's setting have sessions like anybody, and see nobody else's."""
    await _two(house)
    names = [
        "'; DROP TABLE cloister.items; --",
        "%",
        "_na",
        "{}",
        "ana' OR '1'='1",
        "$1",
        "\\",
        "ana,ben",
        '"ana"',
        "*",
    ]
    held = {name: await house.cloister.user(name).start() for name in names}
    for name, session in held.items():
        await session.send(name)
    for name, session in held.items():
        assert await told(session) == [name, f"You said: {name}"]
        assert [row.id for row in await house.cloister.user(name).sessions()] == [session.id]
        await house.cloister.user(name).erase()
    assert [row[0] for row in await database.run('SELECT "user" FROM cloister.sessions ORDER BY 1')] == ["ana", "ben"]


async def test_what_reads_across_owners_is_named(database: Database) -> None:
    """Only the functions named here see more than one owner; their search path is fixed, and PUBLIC runs none."""
    rows = await database.run(
        "SELECT p.proname::text AS name, p.prosecdef, p.proconfig, r.rolname AS owner, p.proacl::text AS acl"
        " FROM pg_proc p JOIN pg_roles r ON r.oid = p.proowner WHERE p.pronamespace = 'cloister'::regnamespace"
    )
    across = {row["name"] for row in rows if row["prosecdef"]}
    assert across == {
        "names", "settle", "settle_anew", "claim", "unclaim", "claims", "seed", "clear", "owner_of", "tenanted",
        "credential", "credentials", "every_credential", "reseal", "enrol_row", "revoke_rows",
        "expired", "sweep", "every_session", "audit_trail", "audit_tail", "audit_prune", "audit_names",
    }  # fmt: skip
    for row in rows:
        if row["prosecdef"]:
            assert (row["owner"], row["proconfig"][0]) == ("cloister_lookup", "search_path=pg_catalog, pg_temp")
        assert not re.search("[{,]=", row["acl"]), f"everybody may run {row['name']}"


async def test_tables_of_ones_own_shadow_nothing(database: Database, house: House) -> None:
    """Temporary tables and a search path of the client's make no function look elsewhere."""
    anas, _ = await _two(house)
    async with database.connected("cloister_app") as driver:
        await driver.execute("CREATE TEMP TABLE sessions AS SELECT 'acme' AS tenant, 'zoe' AS \"user\", 'x' AS session")
        await driver.execute("SET search_path = pg_temp, public")
        assert (await driver.fetchrow("SELECT * FROM cloister.owner_of('n', $1)", anas))["user"] == "ana"
        assert (await driver.fetchrow("SELECT * FROM cloister.tenanted('n')"))["tenanted"] is False
        found = await driver.fetchrow("SELECT * FROM cloister.listing('n', '', 'ana', 10, 1::bigint << 62, '')")
        assert [row["session"] for row in found["rows"]] == [anas]


async def test_tenants_and_none_race(database: Database) -> None:
    """Of users with and without a tenant who come at the same moment, only those of one kind are let in."""
    one, other = stores.connect(database.url()), stores.connect(database.url())
    for store in (one, other):
        await store.open()
    for _ in range(5):
        owners = [Owner(tenant, f"user{n}") for n in range(4) for tenant in (None, "acme")]
        made = await asyncio.gather(
            *((one, other)[n % 2].create(sealed_session(owner), nonce=nonce()) for n, owner in enumerate(owners)),
            return_exceptions=True,
        )
        assert {type(outcome) for outcome in made} == {Receipt, ConfigurationError}
        kinds = await database.run("SELECT DISTINCT tenant = '' FROM cloister.sessions")
        assert len(kinds) == 1
        for owner in owners:
            await one.erase(owner, nonce=nonce())
    for store in (one, other):
        await store.close()


async def test_a_sweep_takes_dead_leases(database: Database, house: House) -> None:
    """A lease whose process died, perhaps of a session that is gone, goes with a sweep; one that lives stays."""
    anas, _ = await _two(house)
    for user, age in (("zoe", "1 hour"), ("ana", "0 seconds")):
        await database.run(
            f"INSERT INTO cloister.leases VALUES ('', '{user}', '{anas}', 'x', clock_timestamp() - interval '{age}')"
        )
    await house.cloister.store.sweep(now=0, tombstones_before=0, fingerprints=0, nonce=nonce())
    assert [row[0] for row in await database.run('SELECT "user" FROM cloister.leases')] == ["ana"]


async def test_what_nobody_claims_is_swept(database: Database, house: House) -> None:
    """Erasure takes the names from a session's fingerprints, and sweeping takes the rows, but for what is common."""
    vault = house.cloister.vault
    for owner in (house.ana.owner, house.ben.owner):
        prints = [Fingerprint("", b"12345678"), Fingerprint("", f"of {owner.user}  ".encode()[:8])]
        await vault.commit(vault.begin(owner), fingerprints=prints)
    await vault.ask(vault.store.seed, "", [b"common!!"])
    await house.ana.erase()
    assert [row[0] for row in await database.run('SELECT "user" FROM cloister.claims WHERE session IS NOT NULL')] == [
        "ben"
    ]
    await house.cloister.sweep()
    rows = await database.run("SELECT claim <> 0 FROM cloister.fingerprints ORDER BY 1")
    assert [row[0] for row in rows] == [False, True, True]
    assert len(await database.run("SELECT FROM cloister.claims")) == 1


# --- two people ---


async def test_two_people(house: House) -> None:
    """What Ana said is hers, and for Ben her session does not exist; the log names both."""
    anas, _ = await _two(house)
    with pytest.raises(SessionNotFound):
        await house.ben.resume(anas)
    assert await told(await house.ana.resume(anas)) == ["ana's words", "You said: ana's words"]
    assert "access.foreign" in await house.events()
    assert (await house.audited()).faults == []


async def test_nothing_readable_lies_in_the_database(database: Database, house: House) -> None:
    """No table has a word that anybody said; after an erasure, nor the secret that would open it."""
    anas, _ = await _two(house)
    secret = await database.run(f"SELECT wrapped FROM cloister.sessions WHERE session = '{anas}'")
    dump = str([await database.run(f"SELECT * FROM cloister.{table}") for table in postgres_schema._TABLES])
    assert "words" not in dump
    assert "hers" not in dump
    await house.ana.erase()
    await database.run("VACUUM FULL cloister.sessions")
    for table in ("sessions", "items", "records", "leases", "audit_owners"):
        rows = str(await database.run(f"SELECT * FROM cloister.{table}"))
        assert "'ana'" not in rows
        assert str(secret[0][0]) not in rows


async def test_one_session_from_two_processes(database: Database) -> None:
    """Turns of one session through two cloisters at the same time come one after the other; none is lost or doubled."""
    keyring = Keyring.generate()
    async with opened(database.url(), keyring=keyring) as one, opened(database.url(), keyring=keyring) as other:
        session = await one.ana.start()
        again = await other.ana.resume(session.id)
        said = [f"message {n}" for n in range(10)]
        await asyncio.gather(*((session, again)[n % 2].send(text) for n, text in enumerate(said)))
        kept = await told(session)
    assert sorted(kept[::2]) == sorted(said)
    assert kept[1::2] == [f"You said: {text}" for text in kept[::2]]


@pytest.mark.parametrize("at", range(1, 9))
async def test_a_cancelled_turn_is_whole_or_absent(house: House, at: int) -> None:
    """Cancelled after any number of steps, a turn is stored whole or not at all, and the next one works."""
    session = await house.ana.start()
    task = asyncio.create_task(session.send("hello"))
    for _ in range(at):
        await asyncio.sleep(0)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert await told(session) in ([], ["hello", "You said: hello"])
    await session.send("again")
    assert (await told(session))[-2:] == ["again", "You said: again"]


async def test_an_answer_to_another_request_cuts_its_connection(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer without the request's nonce is an integrity error, on record, and its connection is not used again."""
    session = await house.ana.start()
    await session.send("hello")
    cut: list[Wire] = []
    call, abort = Wire.call, Wire.abort

    async def crossed(self: Wire, function: str, *args: object) -> Any:
        monkeypatch.setattr(Wire, "call", call)
        real = self.driver

        class Crossed:
            async def fetchrow(self, statement: str, nonce: bytes, *args: object) -> Any:
                return await real.fetchrow(statement, b"somebody else's!", *args)

        self.driver = Crossed()
        try:
            return await call(self, function, *args)
        finally:
            self.driver = real

    def noticed(self: Wire) -> None:
        cut.append(self)
        abort(self)

    monkeypatch.setattr(Wire, "call", crossed)
    monkeypatch.setattr(Wire, "abort", noticed)
    with pytest.raises(IntegrityError, match="another request"):
        await session.history()
    assert cut
    assert "integrity.failed" in await house.events()
    await session.send("all is well again")


async def test_a_crowd_behind_a_pooler(database: Database, pgbouncer: int) -> None:
    """Two cloisters share a few connections, turns are cancelled at any moment: nothing crosses, nothing is doubled."""
    url, keyring = database.url(port=pgbouncer) + "?pooler=1", Keyring.generate()
    chance = random.Random(7)
    async with opened(url, keyring=keyring) as one, opened(url, keyring=keyring) as other:

        async def talk(name: str) -> list[str]:
            session = await one.cloister.user(name).start()
            again = await other.cloister.user(name).resume(session.id)
            for n in range(6):
                turn = asyncio.create_task((session, again)[n % 2].send(f"{name} says {n}"))
                if chance.random() < 0.3:
                    await asyncio.wait([turn], timeout=chance.random() * 0.03)
                    turn.cancel()
                with contextlib.suppress(asyncio.CancelledError, StoreUnavailable):
                    await turn
            return await told(session)

        names = [f"user{n}" for n in range(6)]
        for name, kept in zip(names, await asyncio.gather(*map(talk, names)), strict=True):
            asked = kept[::2]
            assert asked
            assert all(text.startswith(f"{name} says ") for text in asked)
            assert asked == sorted(set(asked))
            assert kept[1::2] == [f"You said: {text}" for text in asked]
        assert (await one.audited()).faults == []


@pytest.mark.parametrize("function", ["load", "commit"])
@pytest.mark.parametrize("pooled", [False, True])
async def test_cancelled_while_the_database_works(
    database: Database, pgbouncer: int, function: str, pooled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A turn cancelled while its load or commit waits in the database is whole or absent, and its connection is cut."""
    url = database.url(port=pgbouncer) + "?pooler=1" if pooled else database.url()
    started, cut = asyncio.Event(), []
    call, abort = Wire.call, Wire.abort

    async def noticed(self: Wire, name: str, *args: object) -> Any:
        if name == function:
            asyncio.get_running_loop().call_later(0.05, started.set)
        return await call(self, name, *args)

    def aborted(self: Wire) -> None:
        cut.append(self)
        abort(self)

    async with opened(url, keyring=Keyring.generate()) as house:
        session = await house.ana.start()
        bens = await house.ben.start()
        monkeypatch.setattr(Wire, "call", noticed)
        monkeypatch.setattr(Wire, "abort", aborted)
        table = {"load": "leases", "commit": "items"}[function]
        async with database.connected() as blocker:
            await blocker.execute(f"BEGIN; LOCK TABLE cloister.{table} IN EXCLUSIVE MODE")
            turn = asyncio.create_task(session.send("hello"))
            await started.wait()
            turn.cancel()
            await asyncio.sleep(0.05)
            await blocker.execute("COMMIT")
            with pytest.raises(asyncio.CancelledError):
                await turn
        monkeypatch.undo()
        assert function == "commit" or cut  # a commit is waited for: its outcome is known
        # The load may have gone on without us, and taken a lease that nobody knows: it ends after 8 s, or here.
        await database.run("DELETE FROM cloister.leases")
        for _ in range(4):
            assert await told(session) in ([], ["hello", "You said: hello"])
            assert await told(bens) == []
        await session.send("again")
        assert (await told(session))[-2:] == ["again", "You said: again"]
        assert (await house.audited()).faults == []


async def test_a_database_that_hangs(database: Database, house: House) -> None:
    """What is not answered in time is unavailable, and what waited for it is cut."""
    session = await house.ana.start()
    store: Any = house.cloister.store
    store._pool._deadline = 0.2
    async with database.connected() as blocker:
        await blocker.execute("BEGIN; LOCK TABLE cloister.sessions IN ACCESS EXCLUSIVE MODE")
        for attempt in (session.history(), house.ana.start(), house.ana.sessions()):
            with pytest.raises(StoreUnavailable, match="within"):
                await attempt
        await blocker.execute("COMMIT")
    store._pool._deadline = 5
    await session.send("all is well again")


@pytest.mark.parametrize(
    ("raised", "error"),
    [
        (asyncpg.ProtocolError("number of columns"), IntegrityError),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), IntegrityError),
        (BufferError("unexpected trailing bytes"), IntegrityError),
        (KeyError("echo"), IntegrityError),
        (asyncpg.InternalClientError("cannot switch to state 12"), StoreUnavailable),
        (RuntimeError("the handler is closed"), StoreUnavailable),
        (TypeError("on a dead transport"), StoreUnavailable),
        (asyncpg.DeadlockDetectedError("deadlock"), StoreUnavailable),
        (asyncpg.ConnectionDoesNotExistError("gone"), StoreUnavailable),
        (asyncpg.DataError("value out of range"), StoreError),
        (asyncpg.InsufficientPrivilegeError("permission denied"), ConfigurationError),
        (asyncpg.UndefinedFunctionError("no function"), ConfigurationError),
    ],
)
async def test_whatever_the_driver_raises(
    house: House, monkeypatch: pytest.MonkeyPatch, raised: Exception, error: type[Exception]
) -> None:
    """Whatever comes out of the driver becomes an error of ours that tells no id, and cuts the connection."""
    session = await house.ana.start()
    cut: list[Wire] = []
    abort = Wire.abort

    class Broken:
        async def fetchrow(self, *args: object) -> Any:
            raise raised

    async def broken(self: Wire, function: str, *args: object) -> Any:
        monkeypatch.undo()
        monkeypatch.setattr(Wire, "abort", noticed)
        real, self.driver = self.driver, Broken()
        try:
            return await self.call(function, *args)
        finally:
            self.driver = real

    def noticed(self: Wire) -> None:
        cut.append(self)
        abort(self)

    monkeypatch.setattr(Wire, "call", broken)
    with pytest.raises(error) as refused:
        await session.history()
    assert cut
    assert session.id not in str(refused.value)
    await session.send("all is well again")


@pytest.fixture(scope="module")
def own_server() -> Iterator[Any]:
    """A server that a test may stop."""
    with running_postgres() as server:
        yield server


async def test_several_hosts(database: Database) -> None:
    """Of several hosts the first that is there serves, and one that takes writes if that is asked for."""
    host = database.server.rpartition("@")[2]
    several = database.url().replace(host, f"127.0.0.1:1,{host}")
    for url in (several, several + "?target_session_attrs=read-write"):
        async with opened(url) as house:
            session = await house.ana.start()
            await session.send("hello")
            assert await told(session) == ["hello", "You said: hello"]
    await database.run(f"ALTER DATABASE {database.name} SET default_transaction_read_only = on")
    with pytest.raises(StoreUnavailable):
        async with opened(several + "?target_session_attrs=read-write"):
            pass


async def test_a_log_that_hangs(database: Database, house: House) -> None:
    """Reading the log gives up too where the database does not answer in time."""
    await house.ana.start()
    store: Any = house.cloister.store
    store._pool._deadline = 0.2
    async with database.connected() as blocker:
        await blocker.execute("BEGIN; LOCK TABLE cloister.audit IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(StoreUnavailable, match="within"):
            await house.entries()


async def test_a_server_that_goes_and_comes(own_server: Any) -> None:
    """While the database is down every call says so; once it is back the same cloister goes on."""
    server = f"postgresql://owner@127.0.0.1:{own_server.port}"
    made = await made_database(server, "t_" + secrets.token_hex(6))
    async with made.connected() as driver:
        await migrate(driver, "cloister_app")
    async with opened(made.url(), keyring=Keyring.generate()) as house:
        session = await house.ana.start()
        await session.send("before")
        await asyncio.to_thread(own_server.kill)
        for attempt in (session.send("meanwhile"), house.ana.start(), session.history(), house.ana.resume(session.id)):
            with pytest.raises(StoreUnavailable):
                await attempt
        await asyncio.to_thread(own_server.start)
        for _ in range(600):  # it says yes before it has recovered
            with contextlib.suppress(StoreUnavailable):
                await session.send("after")
                break
            await asyncio.sleep(0.05)
        assert await told(session) == ["before", "You said: before", "after", "You said: after"]
        assert (await house.audited()).faults == []


async def test_an_erased_secret_is_in_no_table_file(own_server: Any) -> None:
    """After an erasure and a VACUUM FULL no file of a table has the secret; the write-ahead log may, until recycled."""
    made = await made_database(f"postgresql://owner@127.0.0.1:{own_server.port}", "t_" + secrets.token_hex(6))
    async with made.connected() as driver:
        await migrate(driver, "cloister_app")
    files = own_server.folder / "data" / "base"

    async def lies_there(secret: bytes) -> bool:
        await made.run("CHECKPOINT")
        return any(secret in path.read_bytes() for path in files.rglob("*") if path.is_file())

    async with opened(made.url(), keyring=Keyring.generate()) as house:
        await _two(house)
        rows = await made.run('SELECT "user", wrapped FROM cloister.sessions')
        held = {row["user"]: row["wrapped"] for row in rows}
        assert await lies_there(held["ana"])  # the search finds what is there
        await house.ana.erase()
        await made.run("VACUUM FULL cloister.sessions")
        assert not await lies_there(held["ana"])
        assert await lies_there(held["ben"])


# --- the command ---


def test_migrate_by_command(postgres: str) -> None:
    """`cloister migrate` makes what the application needs, says so, and may be repeated."""
    made = asyncio.run(made_database(postgres, "t_" + secrets.token_hex(6)))
    run = CliRunner().invoke
    shown = run(main, ["migrate", "--store", made.url("owner"), "--dry-run"])
    assert shown.exit_code == 0, shown.output
    assert "dry run" in shown.output
    assert not asyncio.run(made.run("SELECT FROM pg_namespace WHERE nspname = 'cloister'"))
    given = ["--app-password-env", "TEST_APP_PASSWORD"]
    assert run(main, ["migrate", "--store", made.url("owner"), *given]).exit_code == 1  # the variable is not set
    for more in ([], given):
        shown = run(main, ["migrate", "--store", made.url("owner"), *more], env={"TEST_APP_PASSWORD": "it's s3cret"})
        assert "s3cret" not in shown.output
        assert shown.exit_code == 0, shown.output
        assert "schema cloister" in shown.output
    asyncio.run(_works(made.url()))
    printed = run(main, ["migrate", "--sql", "--app-role", "other_app"])
    assert "CREATE POLICY" in printed.output
    assert "other_app" in printed.output


async def _works(url: str) -> None:
    async with AsyncCloister.open(url, keyring=Keyring.generate(), provider="offline") as cloister:
        session = await cloister.user("ana").start()
        await session.send("My name is Ana.")
        assert "Ana" in (await session.send("What is my name?")).text
        bens = await cloister.user("ben").start()
        assert "Ana" not in (await bens.send("What is my name?")).text
        with pytest.raises(SessionNotFound):
            await cloister.user("ben").resume(session.id)


@pytest.mark.parametrize("bad", ["app-role", "x; DROP", "Ana", ""])
def test_a_roles_name_is_checked(bad: str) -> None:
    """A name that would have to be quoted is refused, before anything is connected to."""
    shown = CliRunner().invoke(main, ["migrate", "--sql", "--app-role", bad])
    assert shown.exit_code == 1
    assert "role's name" in shown.output


def test_stores_without_a_schema_need_no_migration() -> None:
    """The command says so where there is nothing to migrate."""
    shown = CliRunner().invoke(main, ["migrate", "--store", "sqlite:///chats.db"])
    assert shown.exit_code == 1
    assert "needs no migration" in shown.output


def test_the_driver_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the driver the error is the command that installs it."""
    import sys

    monkeypatch.setitem(sys.modules, "asyncpg", None)
    for module in ("postgres", "postgres_wire"):
        monkeypatch.delitem(sys.modules, f"cloister.stores.{module}", raising=False)
    with pytest.raises(ConfigurationError, match=r"pip install 'cloister\[postgres\]'"):
        stores.connect("postgresql://h/d")
