"""What is left of somebody who was erased or whose session expired: in copies made before, and in a server's files."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from tests.fakes import House, opened, told
from tests.servers import Server, running_redis, talk, until

from cloister import Keyring, upkeep
from cloister.errors import ConfigurationError, SessionNotFound
from cloister.model import Owner, SealedItem, SealedSession
from cloister.stores.memory import MemoryStore

ANA, BEN = Owner(None, "ana"), Owner(None, "ben")
Copied = tuple[SealedSession, list[SealedItem]]


async def _copy(house: House, owner: Owner, session_id: str) -> Copied:
    """Take a session's rows out of a store, as a backup does."""
    loaded = await house.cloister.store.load(owner, session_id, nonce=secrets.token_bytes(16), budget=1 << 30)
    assert loaded.session is not None
    return loaded.session, list(loaded.items)


async def _restored(*copied: Copied) -> MemoryStore:
    """A store that holds such rows and nothing else."""
    store = MemoryStore()
    await store.open()
    for session, items in copied:
        await store.create(session, items, nonce=secrets.token_bytes(16))
    return store


async def _expire(house: House) -> None:
    house.clock.move(hours=1)
    assert await house.cloister.sweep() >= 1


async def _erase(house: House) -> None:
    await house.ana.erase()


@pytest.mark.plain_ids
@pytest.mark.parametrize("how", [_erase, _expire], ids=["erased", "expired"])
async def test_an_old_copy_opens_until_its_key_is_retired(
    url: str, how: Callable[[House], Awaitable[None]], tmp_path: Path
) -> None:
    """Put back from a copy with the keyring, what is gone opens while its key lives, and never after (row 81)."""
    keyring = Keyring.create_file(tmp_path / "keys")
    (first,) = keyring.names
    async with opened(url, keyring=keyring) as house:
        anas = await house.ana.start()
        await anas.send("hers")
        copies = [await _copy(house, ANA, anas.id)]
        await how(house)
        bens = await house.ben.start()
        await bens.send("his")
        copies.append(await _copy(house, BEN, bens.id))
        async with opened(await _restored(*copies), keyring=keyring) as old:
            assert await told(await old.ana.resume(anas.id)) == ["hers", "You said: hers"]

        await asyncio.to_thread(keyring.add)
        await upkeep.rewrap_all(house.cloister.vault, lambda _: None)
        await house.cloister.sweep()
        assert await upkeep.count_under(house.cloister.vault, first) == 0
        await asyncio.to_thread(keyring.remove, first)
        assert await told(bens) == ["his", "You said: his"]  # who lives goes on
        async with opened(await _restored(*copies), keyring=keyring) as old:
            for whose, session in ((old.ana, anas), (old.ben, bens)):
                with pytest.raises(ConfigurationError, match=first):
                    await told(await whose.resume(session.id))


def _lies_in_files(server: Server, *wanted: bytes) -> list[bool]:
    """Say of each of *wanted* whether it is in a file of the server's: append-only ones and snapshots."""
    files = [path.read_bytes() for path in server.folder.rglob("*") if path.is_file()]
    return [any(one in data for data in files) for one in wanted]


def _rewritten(server: Server) -> bool:
    said = talk(server.port, "INFO", "persistence")
    return all(
        f"{name}:0" in said for name in ("aof_rewrite_in_progress", "aof_rewrite_scheduled", "rdb_bgsave_in_progress")
    )


@pytest.mark.parametrize("how", [_erase, _expire], ids=["erased", "expired"])
async def test_a_secret_leaves_the_files_of_redis(how: Callable[[House], Awaitable[None]]) -> None:
    """Once they are rewritten, neither append-only file nor snapshot has the secret; words they never have."""
    options = (
        "--appendonly",
        "yes",
        "--appendfsync",
        "always",
        "--rdbcompression",
        "no",
        "--aof-use-rdb-preamble",
        "yes",
    )
    with running_redis(*options) as server:

        async def rewrite() -> None:
            for command in ("BGREWRITEAOF", "BGSAVE"):
                await asyncio.to_thread(until, lambda: _rewritten(server), "what is being written")
                await asyncio.to_thread(talk, server.port, command)
            await asyncio.to_thread(until, lambda: _rewritten(server), "what is being written")

        async with opened(f"redis://127.0.0.1:{server.port}", keyring=Keyring.generate()) as house:
            anas = await house.ana.start(title="CANARY-7d0c", system="CANARY-7d0c")
            await anas.send("CANARY-7d0c", idempotency_key="CANARY-7d0c")
            (hers, _), word = await _copy(house, ANA, anas.id), b"CANARY-7d0c"
            assert hers.wrapped is not None
            await rewrite()
            assert _lies_in_files(server, hers.wrapped, word) == [True, False]  # the search finds what is there
            await how(house)
            bens = await house.ben.start()
            (his, _) = await _copy(house, BEN, bens.id)
            assert his.wrapped is not None
            await rewrite()
            assert _lies_in_files(server, hers.wrapped, his.wrapped, word) == [False, True, False]
            if how is _erase:
                with pytest.raises(SessionNotFound):
                    await house.ana.resume(anas.id)
