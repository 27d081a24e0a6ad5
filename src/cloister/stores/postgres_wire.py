"""One connection to PostgreSQL: requests that bring their nonce back, and what a server's refusals mean."""

from __future__ import annotations

import hmac
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

import asyncpg

from cloister.errors import CloisterError, ConfigurationError, IntegrityError, StoreError, StoreUnavailable
from cloister.stores.pool import untrusted

OURS = ("connections", "allow_old", "pooler")
_TYPES = (
    *("cloister.sessions", "cloister.sessions[]", "cloister.audit[]", "cloister.credentials", "cloister.credentials[]"),
    *("bigint[]", "bytea[]", "text[]"),
)
_PORT = re.compile(r"\d{0,5}")

# What the driver raises for bytes that are no answer to what was asked, and whatever else may come out of it: a
# connection that broke while it lay idle is found in states that the driver has no other word for.
_UNREADABLE = (asyncpg.ProtocolError, UnicodeDecodeError, BufferError, LookupError)
_BROKEN = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
    EOFError,
    RuntimeError,
    ValueError,
    TypeError,
    AttributeError,
)


# What a server says of a setting in the URL that it does not know.
_UNKNOWN = asyncpg.UndefinedObjectError, asyncpg.CantChangeRuntimeParamError, asyncpg.InvalidParameterValueError

# What keeps a server from its work, and what to do about it.
_MEND: dict[type[Exception], str] = {
    asyncpg.DiskFullError: "has no room on its disk: make some",
    asyncpg.OutOfMemoryError: "is out of memory: give it more",
    asyncpg.TooManyConnectionsError: "has no connection left: raise its max_connections, or lower ?connections=",
    asyncpg.ReadOnlySQLTransactionError: (
        "takes no writes, as a replica does: name the primary, or all of them and target_session_attrs=read-write"
    ),
    asyncpg.PostgresSystemError: "cannot read or write its disk: see its log",
    asyncpg.DataCorruptedError: "has damaged data: see its log, restore it",
    asyncpg.IndexCorruptedError: "has a damaged index: see its log, REINDEX",
    asyncpg.CannotConnectNowError: "starts up or shuts down: wait a moment",
}


def public(url: str) -> str:
    """Give *url* without its password and options; `ConfigurationError` where they cannot be told apart."""
    parts = urlsplit(url)
    user, at, hosts = parts.netloc.rpartition("@")
    ports = [host.rpartition("]")[2].partition(":")[2] for host in hosts.split(",")]
    if "@" in parts.path + parts.query + parts.fragment or parts.fragment or not all(map(_PORT.fullmatch, ports)):
        # The rest of a password perhaps, which must not be shown as a host, a path or an option.
        raise ConfigurationError(
            f"{parts.scheme}://user:password@host:port/database is what such a URL looks like: write / ? # @ and : "
            "inside a user's name or a password as %2F %3F %23 %40 and %3A"
        )
    return f"{parts.scheme}://{user.partition(':')[0]}{at}{hosts}{parts.path}"


@contextmanager
def store_errors(url: str) -> Iterator[None]:
    """Raise what server or driver say inside the block as errors of ours."""
    try:
        yield
    except CloisterError:
        raise
    except _UNREADABLE as error:
        raise IntegrityError("the database gave an answer that fits no question; its connection was dropped") from error
    except _BROKEN as error:
        raise ours(error, url) from error


class Wire:
    """Be one connection to the server."""

    def __init__(self, driver: Any, url: str) -> None:
        self.driver = driver
        self.url = url

    def usable(self) -> bool:
        return not self.driver.is_closed()

    def abort(self) -> None:
        self.driver.terminate()

    async def close(self) -> None:
        await self.driver.close(timeout=2)

    async def call(self, function: str, *args: object) -> Any:
        """Call a function of the schema with a nonce and *args*; give the one row that it returns.

        Raises `IntegrityError` for an answer without the nonce, and then the connection must not be used again.
        """
        nonce = secrets.token_bytes(16)
        marks = ", ".join(f"${n}" for n in range(1, len(args) + 2))
        statement = f"SELECT * FROM cloister.{function}({marks})"  # noqa: S608 - of our own words; values are bound
        with store_errors(self.url):
            row = await self.driver.fetchrow(statement, nonce, *args)
            echo = row["echo"] if row is not None else None
        if type(echo) is not bytes or not hmac.compare_digest(echo, nonce):
            raise IntegrityError("the database answered another request than this one; its connection was dropped")
        return row


async def connect(url: str, *, pooler: bool = False) -> Wire:
    """Open a connection; `StoreUnavailable` or `ConfigurationError` where there is none to be had."""
    cache = {"statement_cache_size": 0} if pooler else {}
    try:
        driver = await asyncpg.connect(url, server_settings={"application_name": "cloister"}, **cache)
    except (asyncpg.ClientConfigurationError, ValueError) as error:
        if untrusted(error):
            raise ours(error, public(url)) from error
        raise ConfigurationError(
            f"{public(url)} is not a URL that the driver understands ({type(error).__name__})"
        ) from error
    except _BROKEN as error:
        # A pooler has one code for all that it refuses.
        if isinstance(error, _UNKNOWN) or "unsupported startup parameter" in str(error):
            raise ConfigurationError(
                f"{public(url)} refuses an option of the URL, or its value ({type(error).__name__}); those of cloister "
                f"are {', '.join(OURS)}, and every other one is the driver's or a setting of the server"
            ) from error
        raise ours(error, public(url)) from error
    try:
        with store_errors(public(url)):
            await _learn(driver)
    except BaseException:
        driver.terminate()
        raise
    return Wire(driver, public(url))


async def _learn(driver: Any) -> None:
    """Let the driver look up the types that requests have, if the schema is there, before the first of them.

    The server would compile the driver's query, which can take longer than a request may. The driver switches that off
    around it, but behind a pooler on whichever connection comes by: hence a transaction, of which nothing is left.
    """
    await driver.execute("BEGIN; SET LOCAL jit = off")
    with suppress(asyncpg.UndefinedObjectError, asyncpg.InvalidSchemaNameError, asyncpg.InsufficientPrivilegeError):
        await driver.fetchrow("SELECT " + ", ".join(f"NULL::{name}" for name in _TYPES))
    await driver.execute("ROLLBACK")


def ours(error: Exception, url: str) -> CloisterError:
    """Say in our words what driver or server said. Never with the statement or its values."""
    name = type(error).__name__
    if untrusted(error):
        return ConfigurationError(
            f"the certificate of {url} is not trusted: name who signed it with sslrootcert=FILE, and the host as it "
            "stands in the certificate"
        )
    for kind, what in _MEND.items():
        if isinstance(error, kind):
            return StoreUnavailable(f"{url} {what}, then try again ({name})")
    if isinstance(error, asyncpg.InvalidAuthorizationSpecificationError | asyncpg.InvalidCatalogNameError):
        return ConfigurationError(f"{url} does not let us in ({name}); check user, password, database")
    if isinstance(error, asyncpg.InsufficientPrivilegeError):
        return ConfigurationError(
            f"the role of {url} may not do this: run `cloister migrate` for it, or use an operator's"
        )
    if isinstance(error, asyncpg.UndefinedFunctionError | asyncpg.InvalidSchemaNameError | asyncpg.UndefinedTableError):
        return ConfigurationError(f"{url} lacks the schema of this version: run `cloister migrate --store …` first")
    if isinstance(error, asyncpg.DuplicatePreparedStatementError | asyncpg.InvalidSQLStatementNameError):
        return ConfigurationError(f"{url} is behind a pooler that knows no prepared statements: say ?pooler=1")
    refused = isinstance(error, asyncpg.DataError | asyncpg.IntegrityConstraintViolationError)
    if refused or isinstance(error, ValueError):  # by the server, or by the driver before it
        return StoreError(f"{url} refused a value ({name}); nothing was stored")
    return StoreUnavailable(f"{url} cannot be reached, or broke off ({name}); try again")
