"""Sealed tokens under attack: lost replies, cancelled requests, broken disks, ledgers that answer late or wrongly."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import secrets
from pathlib import Path
from typing import Any

import pytest
from tests.fakes import Watched, files_in, opened, put_back, told

from cloister import Cloister, current, stores, tokens, upkeep
from cloister.doctor import examine
from cloister.errors import (
    BudgetExceeded,
    ConfigurationError,
    IntegrityError,
    SessionConflict,
    SessionExpired,
    StoreUnavailable,
    TokenInvalid,
)
from cloister.keyring import Keyring
from cloister.model import Owner, SealedSession
from cloister.sealing import after_name
from cloister.settings import Settings
from cloister.stores.token import Ledger
from cloister.tokens import Tokens

ALONE = "token://?allow_replay=1"


def over(tmp_path: Path) -> str:
    return f"token://?ledger=sqlite:///{tmp_path / 'ledger.db'}"


# --- replies that never arrived ---------------------------------------------------------------------------------------


async def test_a_client_without_its_reply_asks_again(tmp_path: Path) -> None:
    """The same request, with the old token, in another process: the same reply and the new token, and no alarm."""
    async with opened(over(tmp_path)) as house:
        token = (await (await house.ana.start()).send("hello")).session.id
        first = await (await house.ana.resume(token)).send("one", idempotency_key="k")
    async with opened(over(tmp_path)) as house:
        again = await (await house.ana.resume(token)).send("one", idempotency_key="k")
        assert (again.text, again.session.id) == (first.text, first.session.id)
        assert house.provider.requests == []
        assert (await again.session.send("two")).text == "You said: two"
        assert "token.replayed" not in await house.events()


async def test_a_late_duplicate_is_answered_too(tmp_path: Path) -> None:
    """A request that comes again after the session went on gets its reply, raises no alarm, and moves nothing back."""
    async with opened(over(tmp_path)) as house:
        session = await house.ana.start()
        token = session.id
        first = await session.send("one", idempotency_key="k")
        await session.send("two")
        newest = session.id
        late = await (await house.ana.resume(token)).send("one", idempotency_key="k")
        assert late.text == first.text == "You said: one"
        assert (await session.send("one", idempotency_key="k")).text == "You said: one"
        assert session.id == newest
        assert (await session.send("three")).text == "You said: three"
        assert "token.replayed" not in await house.events()


async def test_a_renewal_whose_reply_was_lost_is_found_again(tmp_path: Path) -> None:
    """The request that renewed a timed-out session, sent again with the old token, leads to the same new session."""
    async with opened(over(tmp_path)) as house:
        token = (await (await house.ana.start(system="Be kind.")).send("my secret")).session.id
        house.clock.move(minutes=30)
        first = await (await house.ana.resume(token)).send("hello", idempotency_key="k")
    async with opened(over(tmp_path), clock=house.clock) as house:
        again = await (await house.ana.resume(token)).send("hello", idempotency_key="k")
        assert (again.text, again.renewed, again.session.id) == (first.text, True, first.session.id)
        assert await told(again.session) == ["Be kind.", "hello", "You said: hello"]
        await again.session.send("on")
        late = await (await house.ana.resume(token)).send("hello", idempotency_key="k")
        assert (late.text, late.session.stable_id) == (first.text, first.session.stable_id)
        assert len(await house.ana.sessions()) == 1
        assert "token.replayed" not in await house.events()


async def test_an_idempotency_key_is_its_sessions(tmp_path: Path) -> None:
    """The same key with a token of another session, or of another user, gives nobody that reply (row 77)."""
    async with opened(over(tmp_path)) as house:
        anas = await house.ana.start()
        token = anas.id
        await anas.send("my secret", idempotency_key="k")
        for other in (await house.ana.start(), await house.ben.start()):
            assert (await other.send("x", idempotency_key="k")).text == "You said: x"
        spliced = await house.ben.start()
        spliced.id, spliced.stable_id = token, anas.stable_id
        with pytest.raises(TokenInvalid):
            await spliced.send("my secret", idempotency_key="k")
        with pytest.raises(ValueError, match="used for something else"):
            await (await house.ana.resume(token)).send("another", idempotency_key="k")


async def test_a_used_token_does_nothing(tmp_path: Path) -> None:
    """Whoever has only a used token reads and changes nothing: each attempt is an alert. A handle can still end it."""
    async with opened(over(tmp_path)) as house:
        used = await house.ana.start(items=[{"role": "user", "content": "my secret"}])
        session = await house.ana.resume(used.id)
        await session.send("one")
        calls = [
            house.ana.resume(used.id),
            used.history(),
            used.send("x"),
            used.append({"role": "user", "content": "x"}),
            used.update(title="x"),
            used.hide((await session.history())[0].id),
            used.send("x", idempotency_key="k"),
        ]
        for call in calls:
            with pytest.raises(TokenInvalid, match="used before"):
                await call
        assert (await house.events()).count("token.replayed") == len(calls)
        await used.end()
        with pytest.raises(SessionExpired):
            await house.ana.resume(session.id)


async def test_a_token_used_with_a_key_does_nothing_but_ask_again(tmp_path: Path) -> None:
    """What resumes for the sake of a lost reply reads nothing, takes no other turn, and is soon forgotten."""
    async with opened(over(tmp_path)) as house:
        session = await house.ana.start()
        await session.send("zero")
        token = session.id
        await session.send("one", idempotency_key="k")
        for call in ((await house.ana.resume(token)).history(), (await house.ana.resume(token)).send("x")):
            with pytest.raises(TokenInvalid, match="used before"):
                await call
        for n in range(4):
            await session.send(str(n), idempotency_key=f"k{n}")
        with pytest.raises(TokenInvalid, match="used before"):
            await house.ana.resume(token)


async def test_a_turn_cancelled_anywhere_strands_nobody_with_a_key() -> None:
    """However far a request came before its client went away, the same one again is answered, and stored once."""
    stored = set()
    for steps in range(40):
        async with opened("token://?ledger=memory://", keyring=Keyring.generate()) as house:
            token = (await (await house.ana.start()).send("hello")).session.id
            session = await house.ana.resume(token)
            sending = asyncio.ensure_future(session.send("one", idempotency_key="k"))
            for _ in range(steps):
                await asyncio.sleep(0)
            sending.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await sending
            stored.add((session.id != token, len(house.provider.requests)))
            reply = await (await house.ana.resume(token)).send("one", idempotency_key="k")
            assert reply.text == "You said: one"
            assert session.id in (token, reply.session.id)
            assert await told(reply.session) == ["hello", "You said: hello", "one", "You said: one"]
            assert (await house.audited()).faults == []
    assert stored == {(False, 1), (False, 2), (True, 2)}


async def test_a_history_beside_a_turn_is_no_replay(tmp_path: Path) -> None:
    """Whoever reads a session while a turn of the same handle is being stored gets one state or the other."""
    watched = Watched(stores.connect(f"sqlite:///{tmp_path / 'ledger.db'}"))
    ledger: Any = Ledger(Tokens(), watched.store)
    async with opened(ledger, keyring=Keyring.generate()) as house:
        session = await house.ana.start()
        stored, answered = asyncio.Event(), asyncio.Event()

        async def late(real: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
            receipt = await real(*args, **options)
            stored.set()
            await answered.wait()
            return receipt

        watched.answers["commit"] = late
        sending = asyncio.ensure_future(session.send("one"))
        await stored.wait()
        reading = asyncio.ensure_future(session.history())
        await asyncio.wait([reading], timeout=0.05)
        answered.set()
        await sending
        assert [item.text for item in await reading] in ([], ["one", "You said: one"])
        assert "token.replayed" not in await house.events()


# --- who may --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["ledger", "alone"])
async def test_the_same_name_in_another_tenant(kind: str, tmp_path: Path) -> None:
    """Ana of one firm is refused with the token of Ana of another, whether it is good, used, or over (row 5)."""
    url = over(tmp_path) if kind == "ledger" else f"{ALONE}&audit={tmp_path / 'audit.jsonl'}"
    async with opened(url, tenancy="required") as house:
        acme, globex = (house.cloister.user("ana", tenant=name) for name in ("acme", "globex"))
        session = await acme.start(system="Be kind.")
        tokens_of_hers = [session.id, (await session.send("my secret")).session.id, session.stable_id]
        refused = set()
        for _ in range(2):
            for token in tokens_of_hers:
                with pytest.raises(TokenInvalid) as caught:
                    await globex.resume(token)
                refused.add(str(caught.value))
                borrowed = await globex.start()
                borrowed.id = token
                with pytest.raises(TokenInvalid) as caught:
                    await borrowed.send("x")
                refused.add(str(caught.value))
            house.clock.move(hours=13)
            await house.cloister.sweep()
        assert len(refused) == 1
        assert len(house.provider.requests) == 1
        assert (await house.audited()).faults == []


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


def test_each_token_is_under_a_key_of_its_own() -> None:
    """Two tokens of the same state commit to different keys, so that no count of turns wears out a nonce (11.3.4)."""
    row = SealedSession(Owner(None, "ana"), "cs_" + "A" * 43, b"w", b"h", 1, 0, 0, 1, 1, None, b"t" * 16, b"c")
    made = [tokens.under_deployment({"k1": bytes(32)}, Tokens(), row, b"body") for _ in range(64)]
    behind_name = [after_name(tokens.decoded(token, Tokens())[1:]) for token in made]
    assert len({blob[:16] for blob in behind_name}) == len({blob[16:48] for blob in behind_name}) == 64


async def test_the_master_key_wraps_once_and_not_with_every_turn(tmp_path: Path) -> None:
    """A secret is wrapped when its session starts and when there is a newer key: with a KMS, each time is a call."""
    keyring = Keyring.create_file(tmp_path / "keys")
    wraps = []
    real = keyring.wrap

    async def wrap(secret: bytes, context: bytes) -> bytes:
        wraps.append(context)
        return await real(secret, context)

    keyring.wrap = wrap  # type: ignore[method-assign]
    async with opened(f"{ALONE}&audit={tmp_path / 'audit.jsonl'}", keyring=keyring) as house:
        session = await house.ana.start(system="Be kind.")
        await session.send("one")
        await session.send("two")
        assert len(wraps) == 1
        keyring.add()
        await session.send("three")
        await session.send("four")
        assert len(wraps) == 2


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


async def test_a_logger_that_drops_entries_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    """Whoever leaves logging as it is would have no record of who did what, and learns so."""
    caplog.set_level(logging.WARNING, logger="cloister.audit")
    async with opened(ALONE):
        assert "not on record" in caplog.text
    caplog.clear()
    caplog.set_level(logging.INFO, logger="cloister.audit")
    async with opened(ALONE):
        assert "not on record" not in caplog.text


def test_doctor_looks_through_tokens_at_what_is_behind(tmp_path: Path) -> None:
    """What is switched off of a ledger, or for want of a file, is reported as for any other store."""
    ledger = over(tmp_path) + "?synchronous=normal"
    found = {finding.what for finding in examine(Settings(store=ledger)) if finding.state == "off"}
    assert "durability" in found
    for url, said in ((ALONE, True), (f"{ALONE}&audit={tmp_path / 'audit.jsonl'}", False)):
        found = {finding.what for finding in examine(Settings(store=url)) if finding.state == "off"}
        assert ("audit log" in found) is said


# --- a ledger that fails ----------------------------------------------------------------------------------------------


@pytest.fixture(params=["sqlite", "redis", "postgres"])
def shared(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Name a ledger that several processes use."""
    if request.param == "sqlite":
        return over(tmp_path)
    if request.param == "redis":
        server = request.getfixturevalue("redis")
        return f"token://?ledger=redis://{server}/0?prefix={secrets.token_hex(4)}:"
    return f"token://?ledger={request.getfixturevalue('database').url()}"


async def test_a_token_in_two_processes_is_taken_by_one(shared: str) -> None:
    """Of turns with one token in two cloisters one is stored, over any ledger; the rest are refused (rows 5, 17)."""
    async with opened(shared) as one, opened(shared) as two:
        token = (await one.ana.start()).id
        handles = [await house.ana.resume(token) for house in (one, two) for _ in range(4)]
        outcomes = await asyncio.gather(*(s.send(str(n)) for n, s in enumerate(handles)), return_exceptions=True)
        won = [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]
        assert len(won) == 1
        assert {type(lost) for lost in outcomes if isinstance(lost, BaseException)} == {TokenInvalid}
        assert len(await told(won[0].session)) == 2
        assert (await (await two.ana.resume(won[0].session.id)).send("on")).text == "You said: on"
        assert (await one.audited()).faults == []


@pytest.mark.parametrize("fault", ["before", "after"])
async def test_a_commit_of_unknown_outcome_strands_nobody_with_a_key(tmp_path: Path, fault: str) -> None:
    """Whether a ledger that says nothing has stored the turn or not, the same request again is answered, once."""
    watched = Watched(stores.connect(over(tmp_path)))
    async with opened(watched.store, keyring=Keyring.generate()) as house:
        session = await house.ana.start()
        token = session.id

        async def silent(real: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
            if fault == "after":
                with contextlib.suppress(SessionConflict):
                    await real(*args, **options)
            raise StoreUnavailable("no answer")

        watched.answers["commit"] = silent
        with pytest.raises(StoreUnavailable):
            await session.send("one", idempotency_key="k")
        del watched.answers["commit"]
        reply = await (await house.ana.resume(token)).send("one", idempotency_key="k")
        assert reply.text == "You said: one"
        assert await told(reply.session) == ["one", "You said: one"]
        assert len(house.provider.requests) == (1 if fault == "after" else 2)


@pytest.mark.parametrize("method", ["load", "record", "owner_of"])
async def test_a_ledger_that_is_down_refuses_foreign_and_damaged_alike(tmp_path: Path, method: str) -> None:
    """Where the ledger fails, Ben learns no more from how he is refused than where it works (rows 3, 18, 37)."""
    watched = Watched(stores.connect(over(tmp_path)))
    async with opened(watched.store, keyring=Keyring.generate()) as house:
        anas, bens = (await house.ana.start()).id, (await house.ben.start()).id
        damaged = bens[:60] + ("A" if bens[60] != "A" else "B") + bens[61:]
        absent = anas[:10] + ("B" if anas[10] != "B" else "C") + anas[11:]

        async def down(real: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
            raise StoreUnavailable("down")

        watched.answers[method] = down
        raised = set()
        for token in (anas, absent, *([damaged] if method != "load" else ())):
            with pytest.raises((TokenInvalid, StoreUnavailable)) as caught:
                await house.ben.resume(token)
            raised.add((caught.type, str(caught.value)))
        assert len(raised) == 1
        await house.cloister.vault.settle()


async def test_foreign_and_absent_take_the_same_steps(tmp_path: Path) -> None:
    """What is asked of the ledger for Ana's token and for one of nobody is the same, call by call (row 4)."""
    watched = Watched(stores.connect(over(tmp_path)))
    async with opened(watched.store, keyring=Keyring.generate()) as house:
        anas = (await house.ana.start()).id
        absent = anas[:10] + ("B" if anas[10] != "B" else "C") + anas[11:]
        steps = []
        for token in (anas, absent):
            for way in ("resume", "send"):
                borrowed = await house.ben.start()
                borrowed.id = token
                watched.calls.clear()
                with pytest.raises(TokenInvalid):
                    await (house.ben.resume(token) if way == "resume" else borrowed.send("x"))
                await house.cloister.vault.settle()
                steps.append((way, sorted(watched.names)))
        assert steps[:2] == steps[2:]


async def test_an_erasure_during_a_turn_wins(tmp_path: Path) -> None:
    """Erased while the model thinks: the turn is refused, and no token of it opens anything (row 54)."""
    async with opened(over(tmp_path)) as house:
        session = await house.ana.start()
        house.provider.gate = asyncio.Event()
        sending = asyncio.ensure_future(session.send("one", idempotency_key="k"))
        await house.provider.asked.wait()
        await house.ana.erase()
        house.provider.gate.set()
        with pytest.raises(SessionConflict):
            await sending
        with pytest.raises(TokenInvalid):
            await session.send("one", idempotency_key="k")
        assert await house.ana.sessions() == []


async def test_an_audit_file_that_is_rotated_is_whole_after_a_restart(tmp_path: Path) -> None:
    """Whoever moves the file of entries away and starts again has two logs, and each verifies by itself."""
    path = tmp_path / "audit.jsonl"
    for _ in range(2):
        async with opened(f"{ALONE}&audit={path}") as house:
            await (await house.ana.start()).send("one")
            assert (await house.events())[1:] == ["session.started", "turn.committed"]
            assert (await house.audited()).faults == []
            assert set((await house.cloister.store.audit_owners()).values()) == {house.ana.owner}
        path.rename(tmp_path / "audit.jsonl.1")


async def test_a_restored_ledger_forks_for_nobody_who_is_ahead(tmp_path: Path) -> None:
    """Put back to an older state, it takes the token of that state, and refuses what it gave out in between."""
    keyring = Keyring.generate()
    async with opened(over(tmp_path), keyring=keyring) as house:
        session = await house.ana.start()
        old = session.id
    before = files_in(tmp_path)
    async with opened(over(tmp_path), keyring=keyring) as house:
        newest = (await (await house.ana.resume(old)).send("one")).session.id
    put_back(tmp_path, before)
    async with opened(over(tmp_path), keyring=keyring) as house:
        with pytest.raises(IntegrityError, match="older state"):
            await house.ana.resume(newest)
        again = await house.ana.resume(old)
        await again.send("other")
        with pytest.raises(TokenInvalid, match="used before"):
            await (await house.ana.resume(newest)).history()
        assert await told(again) == ["other", "You said: other"]


async def test_an_old_copy_of_the_ledger_opens_no_token_once_its_key_is_retired(tmp_path: Path) -> None:
    """Erased, and then the ledger is put back: its tokens open while the key lives, and never after (row 81)."""
    keyring = Keyring.create_file(tmp_path / "keys")
    folder = tmp_path / "ledger"
    folder.mkdir()
    (old,) = keyring.names
    async with opened(over(folder), keyring=keyring) as house:
        token = (await (await house.ana.start()).send("my secret")).session.id
        kept = await house.ben.start()
    before = files_in(folder)
    async with opened(over(folder), keyring=keyring) as house:
        await house.ana.erase()
        keyring.add()
        await upkeep.rewrap_all(house.cloister.vault, lambda _: None)
        assert await told(await house.ben.resume(kept.id)) == []
    put_back(folder, before)
    async with opened(over(folder), keyring=keyring) as house:
        assert "my secret" in await told(await house.ana.resume(token))
        keyring.remove(old)
        with pytest.raises(ConfigurationError, match="does not hold"):
            await house.ana.resume(token)


async def test_a_cancelled_turn_without_a_ledger_leaves_one_good_token(tmp_path: Path) -> None:
    """Wherever it is cancelled, the handle holds a token that is read, and the log says what that token holds."""
    ends = set()
    for steps in range(0, 36, 2):
        path = tmp_path / f"{steps}.jsonl"
        async with opened(f"{ALONE}&audit={path}", keyring=Keyring.generate()) as house:
            session = await house.ana.start()
            sending = asyncio.ensure_future(session.send("one"))
            for _ in range(steps):
                await asyncio.sleep(0)
            sending.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await sending
            said = await told(await house.ana.resume(session.id))
            assert said in ([], ["one", "You said: one"])
            assert (await house.events()).count("turn.committed") == len(said) // 2
            assert (await house.audited()).faults == []
            ends.add(len(said))
    assert ends == {0, 2}


async def test_a_scope_names_the_session_and_carries_no_token(tmp_path: Path) -> None:
    """Tools below a turn see an id that stays, and never the conversation itself, sealed as it is."""
    async with opened(over(tmp_path)) as house:
        session = await house.ana.start()
        with session.scope():
            await session.send("one")
            assert current().session_id == session.stable_id != session.id
