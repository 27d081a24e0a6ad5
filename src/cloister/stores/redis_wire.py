"""One connection to a node of Redis: requests that bring their nonce back, and what a server's refusals mean."""

from __future__ import annotations

import asyncio
import hmac
import re
import secrets
from collections.abc import Sequence
from typing import Any

from hiredis import pack_command
from redis.asyncio.connection import Connection as Driver
from redis.exceptions import (
    AskError,
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    ClusterDownError,
    MasterDownError,
    MovedError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)

from cloister.errors import CloisterError, ConfigurationError, IntegrityError, StoreUnavailable
from cloister.stores import redis_scripts as scripts
from cloister.stores.pool import untrusted

Request = tuple[str, Sequence[bytes], Sequence[str | bytes | int]]
"""A script, its keys and its arguments."""


class Stale(Exception):
    """A connection was of no use any more before anything was sent on it."""


class Wire:
    """Be one connection to one node."""

    def __init__(self, driver: Driver, closing: set[asyncio.Task[None]]) -> None:
        self.driver = driver
        self.moment = 0
        """When its last entry was put on record, on the server's clock, which may be set back."""
        self._closing = closing

    def usable(self) -> bool:
        return bool(self.driver.is_connected)

    def abort(self) -> None:
        # The driver knows no other way than to wait, if only for nothing; nobody uses the connection meanwhile.
        task = asyncio.get_running_loop().create_task(self.driver.disconnect(nowait=True))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        await self.driver.disconnect()

    async def command(self, *args: str | bytes | int) -> Any:
        """Send one command and give its whole reply."""
        # Packed in C: the driver would join the parts in Python.
        packed = pack_command(args)  # type: ignore[arg-type] # its stub speaks of a tuple of one
        await self.driver.send_packed_command(packed)
        return await self.driver.read_response(disconnect_on_error=False)

    async def plain(self, *args: str | bytes | int) -> Any:
        """Send a command that takes no nonce with one behind it that does, and give the first one's reply.

        Raises `IntegrityError` if the second's is another than it has to be: then the first's is not to be trusted.
        """
        nonce = secrets.token_bytes(16)
        await self.driver.send_packed_command(self.driver.pack_commands([args, ("ECHO", nonce)]))
        reply = await self.driver.read_response(disconnect_on_error=False)
        if await self.driver.read_response(disconnect_on_error=False) != nonce:
            raise IntegrityError("Redis answered another request than this one; its connection was dropped")
        return reply

    async def run(self, script: str, keys: Sequence[bytes], args: Sequence[str | bytes | int]) -> list[Any]:
        """Run *script* with a nonce before *args*; give what it answers behind that.

        Raises `IntegrityError` for an answer without the nonce, or where one lay ready that nobody had asked for.
        """
        await self._check_unread()
        nonce = secrets.token_bytes(16)
        rest = (len(keys), *keys, nonce, *args)
        try:
            reply = await self.command("EVALSHA", scripts.name_of(script), *rest)
        except NoScriptError:
            reply = await self.command("EVAL", script, *rest)
        return _echoed(reply, nonce)

    async def run_all(self, requests: Sequence[Request]) -> list[list[Any] | None]:
        """Run scripts one behind the other without waiting in between; None for what this node cannot say."""
        await self._check_unread()
        sent = [(scripts.name_of(script), keys, secrets.token_bytes(16), args) for script, keys, args in requests]
        commands = [("EVALSHA", name, len(keys), *keys, nonce, *args) for name, keys, nonce, args in sent]
        await self.driver.send_packed_command(self.driver.pack_commands(commands))
        replies: list[list[Any] | None] = []
        for _, _, nonce, _ in sent:
            try:
                reply = await self.driver.read_response(disconnect_on_error=False)
            except (NoScriptError, MovedError, AskError, TryAgainError):
                replies.append(None)
            else:
                replies.append(_echoed(reply, nonce))
        return replies

    async def _check_unread(self) -> None:
        try:
            unread = await self.driver.can_read()
            if unread:  # a reply, or the end: the server has gone, and nothing was lost
                await self.driver.read_response(timeout=0.1, disconnect_on_error=False)
        except ResponseError:
            unread = True
        except (OSError, RedisError) as error:
            raise Stale from error
        if unread:
            raise IntegrityError("a reply that nobody had asked for lay on a connection to Redis, which was dropped")


def _echoed(reply: Any, nonce: bytes) -> list[Any]:
    """Give what a script said, if it is the answer to the request with that *nonce*."""
    echo = reply[0] if isinstance(reply, list) and reply else None
    if type(echo) is not bytes or not hmac.compare_digest(echo, nonce):
        raise IntegrityError("Redis answered another request than this one; its connection was dropped")
    return list(reply[1:])


# What keeps a server from its work, and what to do about it.
_MEND = {
    "OOM": "has no memory left: raise its maxmemory",
    "MISCONF": "cannot save to its disk, and takes no writes: mend that, as its log says",
    "NOREPLICAS": "has fewer replicas than its min-replicas-to-write: bring them back",
    "READONLY": "is a replica, or has just become one: name the primary, or wait until there is one",
    "MASTERDOWN": "is a replica whose primary is down: wait until there is one",
    "CLUSTERDOWN": "has slots that no node serves: wait until they have a primary",
    "LOADING": "is still reading its data: wait a moment",
    "BUSY": "is held up by somebody's script: wait, or end that with SCRIPT KILL",
    "WRONGTYPE": "has something of another kind under a key of ours: give every application a ?prefix= of its own",
    "max number of clients": "has no connection left: raise its maxclients, or lower ?connections=",
}
_GRANT = (
    "does not let this user do what is needed: ACL SETUSER name ~PREFIX* +@all -@admin -@dangerous +info, with the "
    "prefix of the keys"
)
NODE = "is a node of a cluster: begin its URL with redis+cluster://"
_CODES: dict[type[Exception], str] = {
    OutOfMemoryError: "OOM",
    ReadOnlyError: "READONLY",
    MasterDownError: "MASTERDOWN",  # which is a kind of the next one
    ClusterDownError: "CLUSTERDOWN",
    BusyLoadingError: "LOADING",
}


# What is set up wrongly, by what an older or a newer server says of it, and how it is meant to be.
_WRONG = {
    "ACL failure in script|can't run this command|can't access at least one of the keys": _GRANT,
    "protected mode": "lets nobody in from elsewhere without a password: set one (requirepass), and put it in the URL",
    "DB index is out of range": "has no database of that number: name another behind the /",
    "cluster support disabled": "is one server and no cluster: begin its URL with redis://, or rediss:// for TLS",
    "unknown command": "does not know a command that cloister needs: use Redis 6.2 or later, and rename none",
}


def ours(error: BaseException, url: str) -> CloisterError:
    """Say in our words what driver or server said. Never with keys or values."""
    name = type(error).__name__
    if untrusted(error):
        return ConfigurationError(
            f"the certificate of {url} is not trusted: name who signed it with tls_ca=FILE, and the host as it stands "
            "in the certificate"
        )
    if isinstance(error, AuthenticationError | AuthorizationError):
        return ConfigurationError(f"{url} does not let us in ({name}); check user and password")
    if isinstance(error, NoPermissionError):
        return ConfigurationError(f"{url} {_GRANT}")
    if isinstance(error, MovedError | AskError):
        return ConfigurationError(f"{url} {NODE}")
    if isinstance(error, ResponseError):
        for said, what in _WRONG.items():
            if re.search(said, str(error)):
                return ConfigurationError(f"{url} {what}")
    # An error carries no nonce, so it may be another request's: what became of this one is unknown.
    code = next((known for kind, known in _CODES.items() if isinstance(error, kind)), None)
    if code is None and isinstance(error, RedisError):  # older servers name the script first
        code = next((known for known in _MEND if re.search(rf"\b{known}\b", str(error))), None)
    if code is not None:
        return StoreUnavailable(f"{url} {_MEND[code]}, then try again ({code})")
    if isinstance(error, ResponseError):
        return StoreUnavailable(f"{url} refused a request, this one or another ({name}); see its log, try again")
    return StoreUnavailable(f"{url} cannot be reached, or broke off ({name}); try again")
