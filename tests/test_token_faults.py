"""Sealed tokens under attack: lost replies, cancelled requests, broken disks, ledgers that answer late or wrongly."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import secrets
from pathlib import Path

import pytest
from tests.fakes import Watched, opened

from cloister import Cloister, stores
from cloister.errors import (
    BudgetExceeded,
    SessionExpired,
    StoreUnavailable,
    TokenInvalid,
)
from cloister.keyring import Keyring

ALONE = "token://?allow_replay=1"


def over(tmp_path: Path) -> str:
    return f"token://?ledger=sqlite:///{tmp_path / 'ledger.db'}"


# --- who may --------------------------------------------------------------------------------------------------------


def test_the_synchronous_calls(tmp_path: Path) -> None:
    """The same calls without await follow the token too."""
    keyring = Keyring.generate()
    with Cloister.open(over(tmp_path), provider="offline", keyring=keyring) as cloister:
        session = cloister.user("ana").start()
        first = session.id
        reply = session.send("My name is Ana.")
        assert reply.session.id == session.id != first
        stable = session.stable_id
        with session.stream("What is my name?") as stream:
            assert "Ana" in "".join(stream)
        token = stream.reply.session.id
    with Cloister.open(over(tmp_path), provider="offline", keyring=keyring) as cloister:
        again = cloister.user("ana").resume(token)
        assert again.stable_id == stable
        assert "Ana" in again.send("What is my name?").text
        with pytest.raises(TokenInvalid):
            cloister.user("ben").resume(again.id)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_token_goes_on_and_ends_after_a_fork(tmp_path: Path) -> None:
    """A child follows and ends the session that it inherited; its parent finds it over (row 51)."""
    with Cloister.open(over(tmp_path), provider="offline", keyring=Keyring.generate()) as cloister:
        session = cloister.user("ana").start()
        child = os.fork()
        if child == 0:
            code = 1
            try:
                told = [session.send(said).session.id for said in ("one", "two")]
                session.end()
                code = 0 if told[0] != told[1] == session.id else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        with pytest.raises(SessionExpired):
            session.history()


async def test_a_ledger_behind_something_else_is_still_one(tmp_path: Path) -> None:
    """A store in front of the ledger, which watches or measures it, does not make used tokens good again."""
    watched = Watched(stores.connect(over(tmp_path)))
    async with opened(watched.store, keyring=Keyring.generate()) as house:
        session = await house.ana.start()
        token = session.id
        await session.send("one")
        with pytest.raises(TokenInvalid, match="used before"):
            await (await house.ana.resume(token)).send("two")


# --- limits ---------------------------------------------------------------------------------------------------------


async def test_no_token_is_given_out_that_is_too_long_to_be_read(tmp_path: Path) -> None:
    """Metadata alone can fill a small token; that is refused, and the token from before stays good."""
    many = {str(n): secrets.token_hex(200) for n in range(16)}
    async with opened(f"{ALONE}&audit={tmp_path / 'audit.jsonl'}&limit=4096") as house:
        with pytest.raises(BudgetExceeded):
            await house.ana.start(metadata=many)
        session = await house.ana.start()
        with pytest.raises(BudgetExceeded):
            await session.update(metadata=many)
        assert len(session.id) <= 4_096
        assert (await (await house.ana.resume(session.id)).send("one")).text == "You said: one"


async def test_what_lies_beside_the_items_counts_before_the_model_is_asked(tmp_path: Path) -> None:
    """A question that finds no room beside the metadata is refused before a model is paid for it."""
    async with opened(f"{ALONE}&audit={tmp_path / 'audit.jsonl'}&limit=4096", context_tokens=1_000_000) as house:
        session = await house.ana.start(metadata={str(n): secrets.token_hex(50) for n in range(8)})
        with pytest.raises(BudgetExceeded):
            await session.send(secrets.token_hex(1_300))
        assert house.provider.requests == []


@pytest.mark.parametrize("url", ["redis+cluster://a:7301,b:7302", "rediss+cluster://a:7301"])
def test_a_plus_in_the_url_of_a_ledger_is_a_plus(url: str) -> None:
    """The URL of a Redis Cluster is taken as it is written."""
    assert "+cluster://a:7301" in stores.connect(f"token://?ledger={url}").url


# --- the file of the audit log --------------------------------------------------------------------------------------


async def test_a_refusal_that_is_cancelled_leaves_the_log_whole(tmp_path: Path) -> None:
    """Ben, who goes away while he is being refused, cannot make the log look as if somebody had changed it."""
    async with opened(f"{ALONE}&audit={tmp_path / 'audit.jsonl'}") as house:
        anas = (await house.ana.start()).id
        for step in range(12):
            trying = asyncio.ensure_future(house.ben.resume(anas))
            for _ in range(step):
                await asyncio.sleep(0)
            trying.cancel()
            with contextlib.suppress(asyncio.CancelledError, TokenInvalid):
                await trying
            await house.cloister.vault.settle()
        await house.ana.start()
        assert (await house.audited()).faults == []


@pytest.mark.parametrize("fault", ["sync", "short"])
async def test_a_disk_that_fails_leaves_a_log_that_verifies(
    tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was written before a disk failed is nobody's forgery: a new writer goes on, and says so."""
    async with opened(f"{ALONE}&audit={tmp_path / 'audit.jsonl'}") as house:
        session = await house.ana.start()
        real = os.fsync
        failing = [True] * 2

        def fsync(descriptor: int) -> None:
            if failing:
                failing.pop()
                if fault == "short":
                    os.ftruncate(descriptor, os.fstat(descriptor).st_size - 9)
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            real(descriptor)

        monkeypatch.setattr(os, "fsync", fsync)
        with pytest.raises(StoreUnavailable, match="cannot be written"):
            await session.send("one")
        assert (await session.send("two")).text == "You said: two"
        report = await house.audited()
        assert report.faults == []
        assert "writer.replaced" in await house.events()
