"""The PostgreSQL schema: how it is made, and what is refused because row-level security would not hold.

A superuser, a role with BYPASSRLS and the owner of the tables see everybody's rows; so does everybody through one
policy too many. Whoever opens the store is told so before anything is read.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib import resources
from typing import Any

from cloister.errors import ConfigurationError

VERSION = 5
APPLICATION, OPERATOR, LOOKUP = "cloister_application", "cloister_operator", "cloister_lookup"
_LOCK = 7_163_915
# The first minor releases in which row-level security holds in every plan (CVE-2024-10976 and CVE-2025-8713, -8714).
_SAFE = {15: 150_014, 16: 160_010, 17: 170_006}
_MINE = (  # as the server writes it, without spaces
    "((tenant=current_setting('cloister.tenant'::text,true))AND(\"user\"=current_setting('cloister.user'::text,true)))"
)
_OURS = (
    "((tenant=current_setting('cloister.tenant'::text,true))AND(current_setting('cloister.user'::text,true)<>''::text)"
    "AND((\"user\"=current_setting('cloister.user'::text,true))OR(\"user\"=''::text)))"
)
_OWNED = ("sessions", "items", "leases", "records", "audit_owners")
_SHARED = ("accounts", "charges")
_TABLES = (*_OWNED, *_SHARED, "claims", "fingerprints", "credentials", "audit", "meta", "tenancy")
_POLICIES = {
    *((table, "lookup", LOOKUP, "ALL", "true", "true") for table in _TABLES),
    *((table, "mine", APPLICATION, "ALL", _MINE, "") for table in _OWNED),
    *((table, "mine_and_shared", APPLICATION, "ALL", _OURS, "") for table in _SHARED),
    ("audit", "written", APPLICATION, "INSERT", "", "true"),
    ("meta", "known", APPLICATION, "SELECT", "true", ""),
}
# Who may become one of these reads past every policy: as such a role, or in the files of the server.
_FILES = ["pg_read_server_files", "pg_write_server_files", "pg_execute_server_program"]


def script() -> str:
    """Give the statements that make the schema."""
    return resources.files("cloister.stores").joinpath("postgres.sql").read_text(encoding="utf-8")


def role(name: str) -> str:
    """Give *name* back if it can be a role's; `ConfigurationError` if not."""
    if not re.fullmatch(r"[a-z_][a-z0-9_]{0,62}", name):
        raise ConfigurationError("a role's name has up to 63 lower-case letters, digits and underscores")
    return name


def steps(app_role: str, operator_role: str | None) -> list[tuple[str, str]]:
    """Give what `migrate` does, in order: what it is for, and the statements. Each is safe to repeat."""
    app = role(app_role)
    roles = [(LOOKUP, "NOLOGIN"), (APPLICATION, "NOLOGIN"), (OPERATOR, "NOLOGIN"), (app, "LOGIN")]
    if operator_role is not None:
        roles.append((role(operator_role), "LOGIN"))
    made = [(f"role {name}", _ROLE.format(name=name, login=login)) for name, login in roles]
    if operator_role is None:
        granted = f"GRANT {APPLICATION}, {OPERATOR} TO {app}"
    else:
        granted = f"GRANT {APPLICATION} TO {app}, {operator_role}; GRANT {OPERATOR} TO {operator_role};"
        granted += f" REVOKE {OPERATOR} FROM {app}"
    return [*made, ("schema cloister", script()), ("grants", granted)]


_LET_IN = "SELECT format('ALTER ROLE %I PASSWORD %L', $1::text, $2::text)"
_ROLE = """DO $$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{name}') THEN
        CREATE ROLE {name} {login};
    END IF;
END $$"""


async def migrate(
    driver: Any,
    app_role: str,
    operator_role: str | None = None,
    report: Callable[[str], None] = lambda _: None,
    *,
    password: str | None = None,
    keep: bool = True,
) -> None:
    """Make schema, roles and grants over a connection of the schema's owner to be, in one transaction.

    Without *keep* everything is undone at its end. Raises `ConfigurationError` for a schema of another version.
    """
    transaction = driver.transaction()
    await transaction.start()
    try:
        await driver.execute("SELECT pg_advisory_xact_lock($1)", _LOCK)
        for what, statements in steps(app_role, operator_role):
            if what.startswith("schema"):
                if await _version(driver) == VERSION:
                    report(f"{what}: is there, version {VERSION}")
                    continue
                # Whoever makes the schema hands over what reads across owners, for which it must be a member.
                await driver.execute(f"GRANT {LOOKUP} TO CURRENT_USER")
            await driver.execute(statements)
            report(what)
        if password is not None:
            quoted = await driver.fetchval(
                "SELECT format('ALTER ROLE %I PASSWORD %L', $1::text, $2::text)", app_role, password
            )
            await driver.execute(quoted)
            report(f"password of {app_role}")
    except BaseException:
        await transaction.rollback()
        raise
    await (transaction.commit() if keep else transaction.rollback())


async def _version(driver: Any) -> int | None:
    if await driver.fetchval("SELECT to_regclass('cloister.meta')") is None:
        return None
    version: int = await driver.fetchval("SELECT version FROM cloister.meta") or 0
    if version not in (VERSION, 0):
        raise ConfigurationError(
            f"the schema cloister is of version {version}, and this cloister reads version {VERSION}: use the cloister "
            "that wrote it, or name another database"
        )
    return version or VERSION  # its forced owner sees no rows


async def check(driver: Any, url: str, *, allow_old: bool) -> None:
    """Raise `ConfigurationError`, naming the fix, unless row-level security holds for whoever is connected."""
    me = await driver.fetchrow(_ME, LOOKUP, APPLICATION, _FILES)
    if me["number"] < _SAFE.get(me["number"] // 10_000, 0 if me["number"] >= 180_000 else 1 << 30) and not allow_old:
        wanted = _SAFE.get(me["number"] // 10_000)
        newer = f"{wanted // 10_000}.{wanted % 10_000}" if wanted else "15.14"
        raise ConfigurationError(
            f"the server of {url} lacks updates without which row-level security can be passed by: use {newer} or "
            "later, or say ?allow_old=1"
        )
    if me["rolsuper"] or me["rolbypassrls"]:
        what = "a superuser" if me["rolsuper"] else "allowed to bypass row-level security"
        raise ConfigurationError(
            f"the role {me['who']!r} is {what} and sees everybody's rows: open the store as the application's role, "
            f"which `cloister migrate --app-role NAME` makes; or ALTER ROLE {me['who']} NOSUPERUSER NOBYPASSRLS"
        )
    if me["beyond"] is not None:
        raise ConfigurationError(
            f"the role {me['who']!r} is a member of {me['beyond']}, which reads past row-level security: REVOKE "
            f"{me['beyond']} FROM {me['who']}"
        )
    if me["isolation"] != "read committed":
        raise ConfigurationError(
            f"transactions of the role {me['who']!r} are {me['isolation']!r}, in which a session is not seen as it is "
            f"once its turn has come: ALTER ROLE {me['who']} SET default_transaction_isolation = 'read committed'"
        )
    tables = {row["name"]: row for row in await driver.fetch(_STATE)}
    if not tables:
        raise ConfigurationError(
            f"{url} has no schema cloister: run `cloister migrate --store postgresql://owner@…` as the database's owner"
        )
    for name in _TABLES:
        table = tables.get(name)
        if table is None:
            raise ConfigurationError(f"{url} lacks the table cloister.{name}: restore it, or migrate an empty database")
        if table["owned"]:
            raise ConfigurationError(
                f"the role {me['who']!r} owns cloister.{name}, or may become its owner, and could switch row-level "
                "security off: open the store as the application's role, which `cloister migrate` makes"
            )
        if not (table["relrowsecurity"] and table["relforcerowsecurity"]):
            raise ConfigurationError(
                f"row-level security is off on cloister.{name}: ALTER TABLE cloister.{name} ENABLE ROW LEVEL SECURITY, "
                "FORCE ROW LEVEL SECURITY"
            )
    if me["lookup"]:
        raise ConfigurationError(
            f"the role {me['who']!r} is a member of {LOOKUP}, which sees everybody's rows: REVOKE {LOOKUP} FROM "
            f"{me['who']}"
        )
    if not me["application"]:
        raise ConfigurationError(
            f"the role {me['who']!r} may not use the store: GRANT {APPLICATION} TO {me['who']}, or "
            f"`cloister migrate --app-role {me['who']}`"
        )
    found = {
        (
            *(row["tablename"], row["policyname"], ",".join(row["roles"]), row["cmd"]),
            *(re.sub(r"\s", "", row[part] or "") for part in ("qual", "with_check")),
        )
        for row in await driver.fetch(_POLICY)
    }
    for table, name, *_ in sorted(found ^ _POLICIES):
        raise ConfigurationError(
            f"the policy {name!r} on cloister.{table} is missing, changed or not one of cloister's: policies are put "
            "together with OR, so that one too many opens the table. Compare them with `cloister migrate --sql`"
        )
    version = await driver.fetchval("SELECT version FROM cloister.meta")
    if version != VERSION:
        raise ConfigurationError(
            f"the schema cloister is of version {version}, and this cloister reads version {VERSION}: run "
            "`cloister migrate`, or use the cloister that wrote it"
        )


_ME = """
SELECT current_setting('server_version_num')::int AS number, r.rolname AS who,
    current_setting('transaction_isolation') AS isolation, r.rolsuper, r.rolbypassrls,
    (SELECT s.rolname FROM pg_roles s WHERE (s.rolsuper OR s.rolbypassrls OR s.rolname = ANY ($3::text[]))
        AND s.oid <> r.oid AND pg_has_role(r.oid, s.oid, 'MEMBER') ORDER BY s.rolname LIMIT 1) AS beyond,
    coalesce((SELECT pg_has_role(r.oid, l.oid, 'MEMBER') FROM pg_roles l WHERE l.rolname = $1), false) AS lookup,
    coalesce((SELECT pg_has_role(r.oid, a.oid, 'USAGE') FROM pg_roles a WHERE a.rolname = $2), false) AS application
FROM pg_roles r WHERE r.rolname IN (current_user, session_user) ORDER BY r.rolsuper OR r.rolbypassrls DESC LIMIT 1
"""
_STATE = """
SELECT c.relname AS name, c.relrowsecurity, c.relforcerowsecurity,
    pg_has_role(session_user, c.relowner, 'MEMBER') OR pg_has_role(current_user, c.relowner, 'MEMBER') AS owned
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = 'cloister' AND c.relkind IN ('r', 'p')
"""
_POLICY = """
SELECT tablename::text, policyname::text, roles::text[], cmd::text, qual, with_check
FROM pg_policies WHERE schemaname = 'cloister'
"""
