"""Attacks on PostgreSQL past cloister: what the application's role sees by itself, and the ways around the policies.

They read and write the canaries' rows alone, by their key, and undo what they write.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import parse_qs, urlsplit

import asyncpg

from cloister.errors import ConfigurationError
from cloister.probe.attack import Attack, Beyond, Leak
from cloister.stores import postgres, postgres_schema, postgres_wire

_OWNED = ("sessions", "items", "leases", "records", "audit_owners")
_SAMPLES = 5
_DEFINED = re.compile(r"CREATE FUNCTION cloister\.(\w+)\(.*?AS \$\$(.*?)\$\$;", re.DOTALL)
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
# Whoever is in one of them reads the server's files, or runs programs that do.
_FILES = ["pg_read_server_files", "pg_write_server_files", "pg_execute_server_program"]


@asynccontextmanager
async def _driver(attack: Attack) -> AsyncIterator[Any]:
    """Connect as the application does, and do without its functions."""
    wire = await postgres.from_url(attack.url).wire()
    try:
        yield wire.driver
        await wire.close()
    finally:
        wire.abort()


async def roles(attack: Attack) -> str:
    """The role is nobody who may pass by the policies, and every table has them, forced, and no other"""
    allow_old = parse_qs(urlsplit(attack.url).query).get("allow_old") == ["1"]
    async with _driver(attack) as driver:
        try:
            await postgres_schema.check(driver, postgres_wire.public(attack.url), allow_old=allow_old)
        except ConfigurationError as error:
            raise Leak(str(error)) from None
        if strong := await driver.fetch(_STRONG, _FILES):
            named = ", ".join(row["rolname"] for row in strong)
            raise Leak(f"the role may become {named}, who pass by row-level security: REVOKE them from it")
        me, operator = await driver.fetchrow(_WHO, postgres_schema.OPERATOR)
        number = await driver.fetchval("SELECT count(*) FROM pg_policies WHERE schemaname = 'cloister'")
        also = "; it may read the audit log too, which --operator-role of `cloister migrate` takes from it"
        return (
            f"{me}: no superuser, no BYPASSRLS, no owner; {number} policies, all cloister's{also if operator else ''}"
        )


async def policies(attack: Attack) -> str:
    """Without an owner the role sees nobody's rows, with one only that owner's, and writes no other's"""
    async with attack.opened() as house:
        hers, his = await house.planted(house.a), await house.planted(house.b)
        await house.talk(hers, idempotency_key="once")
        async with _driver(attack) as driver, _undone(driver):
            own = [await _count(driver, attack, "a", table) for table in ("sessions", "items", "records")]
            if not all(own):
                raise Leak("an owner does not see rows of their own, so that this check looked at nothing")
            for table in _OWNED:
                for whose in ("", "b"):
                    if await _count(driver, attack, whose, table):
                        who = "another owner's name" if whose else "no owner's name"
                        raise Leak(f"under {who} the role reads rows of cloister.{table}")
            await _writes(driver, attack, his.stable_id)
            for statement in (
                "SELECT count(*) FROM (SELECT FROM cloister.audit LIMIT 1) x",
                "UPDATE cloister.audit SET detail = '' WHERE false",
                "DELETE FROM cloister.audit WHERE false",
                "SELECT count(*) FROM (SELECT FROM cloister.fingerprints LIMIT 1) x",
                "SELECT count(*) FROM (SELECT FROM cloister.claims LIMIT 1) x",
            ):
                named = re.findall(r"cloister\.\w+", statement)[0]
                await _must_deny(driver, f"the role may {statement.split()[0]} on {named}", statement)
            await driver.execute("SET LOCAL row_security = off")
            await _must_deny(driver, "row_security = off shows rows", "SELECT count(*) FROM cloister.sessions")
        return f"{len(_OWNED)} tables read under no name and another's; 11 writes and reads that are denied"


async def _writes(driver: Any, attack: Attack, his: str) -> None:
    await _name(driver, attack, "b")
    tenant, hers = attack.tenant or "", attack.a.user
    for statement in (
        'UPDATE cloister.sessions SET wrapped = NULL WHERE tenant = $1 AND "user" = $2',
        'DELETE FROM cloister.sessions WHERE tenant = $1 AND "user" = $2',
        'DELETE FROM cloister.items WHERE tenant = $1 AND "user" = $2',
    ):
        if not (await driver.execute(statement, tenant, hers)).endswith(" 0"):
            raise Leak(f"under another owner's name the role may {statement.split()[0]} rows")
    lease = 'INSERT INTO cloister.leases (tenant, "user", session, lease, until) VALUES ($1, $2, $3, $4, now())'
    await _must_deny(driver, "the role plants rows on another owner", lease, tenant, hers, "x", b"x")
    give = 'UPDATE cloister.sessions SET "user" = $1 WHERE session = $2'
    await _must_deny(driver, "the role gives its rows to another owner", give, hers, his)


async def settings(attack: Attack) -> str:
    """An owner is named for one transaction alone, and a name that was left on a connection opens nothing"""
    behind = False
    async with attack.opened() as house:
        hers = await house.planted(house.a)
        arguments = (attack.tenant or "", attack.b.user, hers.stable_id)
        for _ in range(_SAMPLES):
            async with _driver(attack) as driver:
                await _unnamed(driver, "a connection begins under the name of an owner")
                own = [attack.tenant or "", attack.a.user, hers.stable_id]
                if (await driver.fetchrow(_LOAD, *own))["session"] is None:
                    raise Leak("an owner's session was not found, so that this check looked at nothing")
                await _unnamed(driver, "the name of an owner outlives the transaction it was set for")
                async with _undone(driver):  # what a plain SET leaves is undone with the transaction
                    await driver.execute("SELECT set_config('cloister.user', $1, false)", attack.a.user)
                    if (await driver.fetchrow(_LOAD, *arguments))["session"] is not None:
                        raise Leak("a name that was left on a connection opens its owner's rows to the next one")
                await _unnamed(driver, "the name of an owner outlives a transaction that was undone")
                behind = await driver.fetchval("SELECT pg_backend_pid()") != driver.get_server_pid()
        between = "a pooler is between" if behind else "no pooler is between"
        return f"{_SAMPLES} connections, after requests and after a plain SET; {between}"


async def detours(attack: Attack) -> str:
    """No view, no function and no copy of the schema's own functions leads around the policies"""
    async with _driver(attack) as driver:
        found = [f"the view {row['name']}" for row in await driver.fetch(_VIEWS)]
        ours = dict(_DEFINED.findall(postgres_schema.script()))
        functions = await driver.fetch(_FUNCTIONS)
        for row in functions:
            if row["schema"] != "cloister":
                found.append(f"the function {row['schema']}.{row['name']}, which runs with its owner's rights")
            elif ours.get(row["name"], "").strip() != row["body"].strip():
                found.append(f"the function cloister.{row['name']}, which is not the one of `cloister migrate --sql`")
        if found:
            raise Leak(f"{'; '.join(found[:5])}: see what made them, and DROP or REVOKE them")
        return f"{len(functions)} functions are those of this version, and no view shows rows with its owner's rights"


async def check_injectable(url: str) -> None:
    """Raise `Beyond` where a fault injector would take the encryption away from a connection over a network."""
    parts = urlsplit(url)
    mode = parse_qs(parts.query).get("sslmode", ["prefer"])[-1]
    if parts.hostname in _LOOPBACK or mode == "disable":
        return
    wire = await postgres.from_url(url).wire()
    try:
        encrypted = await wire.driver.fetchval("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
        behind = await wire.driver.fetchval("SELECT pg_backend_pid()") != wire.driver.get_server_pid()
    finally:
        wire.abort()
    if encrypted or behind or mode not in ("prefer", "allow"):
        raise Beyond("the connection is encrypted, or may be, and the fault injector does not look into it")


async def describe(url: str) -> str:
    """Say what server this is, and as whom it is used."""
    wire = await postgres.from_url(url).wire()
    try:
        version = await wire.driver.fetchval("SHOW server_version")
        return f"PostgreSQL {version.split()[0]}, as {await wire.driver.fetchval('SELECT current_user')}"
    finally:
        wire.abort()


# --- how it is asked --------------------------------------------------------------------------------------------------


@asynccontextmanager
async def _undone(driver: Any) -> AsyncIterator[None]:
    """Run the block in a transaction that is undone."""
    transaction = driver.transaction()
    await transaction.start()
    try:
        yield
    finally:
        await transaction.rollback()


async def _name(driver: Any, attack: Attack, whose: str) -> None:
    """Name an owner for this transaction, as the functions do; nobody for an empty *whose*."""
    user = {"": "", "a": attack.a.user, "b": attack.b.user}[whose]
    tenant = (attack.tenant or "") if whose else ""
    await driver.execute(
        "SELECT set_config('cloister.tenant', $1, true), set_config('cloister.user', $2, true)", tenant, user
    )


async def _count(driver: Any, attack: Attack, whose: str, table: str) -> int:
    """Count the rows of one canary that are seen under a name."""
    await _name(driver, attack, whose)
    statement = f'SELECT count(*) FROM cloister.{table} WHERE tenant = $1 AND "user" = $2'  # noqa: S608 - ours
    found: int = await driver.fetchval(statement, attack.tenant or "", attack.a.user)
    return found


async def _must_deny(driver: Any, what: str, statement: str, *values: object) -> None:
    point = driver.transaction()
    await point.start()
    try:
        await driver.execute(statement, *values)
    except asyncpg.InsufficientPrivilegeError:
        return
    finally:
        await point.rollback()
    raise Leak(what)


async def _unnamed(driver: Any, what: str) -> None:
    names: Sequence[str | None] = await driver.fetchrow(
        "SELECT current_setting('cloister.user', true), current_setting('cloister.tenant', true)"
    )
    if any(names):
        raise Leak(what)


_WHO = """
SELECT current_user::text,
    coalesce((SELECT pg_has_role(current_user, o.oid, 'USAGE') FROM pg_roles o WHERE o.rolname = $1), false)
"""
_STRONG = """
SELECT rolname::text FROM pg_roles
WHERE (rolsuper OR rolbypassrls OR rolname = ANY($1::text[])) AND pg_has_role(session_user, oid, 'MEMBER')
ORDER BY rolname
"""
_LOAD = "SELECT (session).session FROM cloister.load('\\x00', $1, $2, $3, 1000, NULL, 1, NULL)"
_VIEWS = """
SELECT DISTINCT c.oid::regclass::text AS name
FROM pg_rewrite r
JOIN pg_class c ON c.oid = r.ev_class
JOIN pg_depend d ON d.objid = r.oid AND d.classid = 'pg_rewrite'::regclass AND d.refclassid = 'pg_class'::regclass
JOIN pg_class t ON t.oid = d.refobjid
WHERE t.relnamespace = 'cloister'::regnamespace AND c.oid <> t.oid AND c.relkind IN ('v', 'm')
    AND has_table_privilege(session_user, c.oid, 'SELECT')
    AND NOT (c.relkind = 'v' AND coalesce(c.reloptions::text, '') ~* 'security_invoker=(on|true|yes|1)')
ORDER BY 1
"""
_FUNCTIONS = """
SELECT p.pronamespace::regnamespace::text AS schema, p.proname::text AS name, p.prosrc AS body
FROM pg_proc p
WHERE has_function_privilege(session_user, p.oid, 'EXECUTE')
    AND (p.pronamespace = 'cloister'::regnamespace OR (p.prosecdef AND p.prosrc ~* '\\mcloister\\M'))
ORDER BY 1, 2
"""
