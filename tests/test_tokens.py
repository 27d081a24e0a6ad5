"""Sealed tokens: the conversation in its owner's hands, with a ledger beside it and without one."""

from __future__ import annotations

import asyncio
import base64
import logging
import random
import secrets
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.fakes import Clock, House, Watched, files_in, opened, put_back, told

from cloister import stores, tokens, upkeep
from cloister.audit import Entry, verify
from cloister.client import AsyncCloister
from cloister.errors import (
    BudgetExceeded,
    ConfigurationError,
    IntegrityError,
    ProviderError,
    SessionConflict,
    SessionExpired,
    StoreUnavailable,
    TokenInvalid,
)
from cloister.keyring import Keyring
from cloister.model import Item, Owner, SealedSession, to_micros
from cloister.sealing import SessionKeys
from cloister.stores.base import Fingerprint
from cloister.tokens import Tokens

ALONE = "token://?allow_replay=1"
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def said(*texts: str) -> list[Item]:
    roles: Any = ("user", "assistant")
    return [Item(roles[n % 2], text, id=f"item_{n}_0", time=NOW, tokens=7) for n, text in enumerate(texts)]


# --- the rules --------------------------------------------------------------------------------------------------------


@given(st.lists(st.text(max_size=300), max_size=12), st.integers(0, 2**40), st.binary(min_size=16, max_size=16))
def test_what_is_packed_is_unpacked(texts: list[str], count: int, last: bytes) -> None:
    """Items come out of a token as they went in, and in their order."""
    items = said(*texts)
    body, beyond = tokens.pack(items, Tokens(), count, last, 1 << 20)
    assert beyond == 0
    assert tokens.unpack(body, Tokens()) == (count, last, items)


@given(st.binary(max_size=5_000))
def test_padding_comes_off_again(plain: bytes) -> None:
    """What was padded is what it was, and at most a third longer, where it is not short."""
    filled = tokens.padded(plain)
    assert tokens.unpadded(filled) == plain
    assert len(filled) == 1_024 or len(filled) <= (len(plain) + 4) * 4 / 3


def test_length_tells_little() -> None:
    """Over all lengths up to 64 KiB there are 26 padded lengths; everything short has one and the same."""
    lengths = {len(tokens.padded(bytes(size))) for size in range(0, 1 << 16, 7)}
    assert len(lengths) <= 26
    assert min(lengths) == 1_024


def test_an_item_is_compressed_by_itself() -> None:
    """The length of a token does not tell whether an item says what another says: they share no compression."""
    noise = random.Random(7)
    secret = "".join(noise.choices("abcdefghijklmnop", k=300))
    wrong = "".join(noise.sample(secret, 300))
    both = [len(tokens.pack(said(secret, guess), Tokens(), 2, b"", 1 << 20)[0]) for guess in (secret, wrong)]
    alone = [len(tokens.pack(said("", guess), Tokens(), 2, b"", 1 << 20)[0]) for guess in (secret, wrong)]
    assert both[0] - both[1] == alone[0] - alone[1]


def test_whole_turns_leave_oldest_first() -> None:
    """What finds no room leaves from the front, and never half a turn."""
    items = said(*(secrets.token_urlsafe(150) for _ in range(40)))
    body, beyond = tokens.pack(items, Tokens(), 40, b"", 3_000)
    kept = tokens.unpack(body, Tokens())[2]
    assert beyond == 0
    assert len(body) < 3_100
    assert kept == items[len(items) - len(kept) :]
    assert kept[0].role == "user"
    assert 8 <= len(kept) < 16


def test_a_newest_turn_that_finds_no_room_says_by_how_much() -> None:
    """If not even the newest turn fits, nothing is packed."""
    items = said("a", "b", secrets.token_urlsafe(3_000), "short")
    assert tokens.pack(items, Tokens(), 4, b"", 1_000)[1] > 2_000


def test_nothing_is_packed_that_would_not_be_unpacked() -> None:
    """A text that shrinks to almost nothing counts with its full length: no bomb gets in, and none comes out."""
    small = Tokens(limit=4_096)
    bomb = "0" * (small.limit * 8)
    assert tokens.pack(said(bomb), small, 1, b"", 1 << 20)[1] > 0
    packed, _ = tokens.pack(said(bomb), Tokens(limit=1 << 20), 1, b"", 1 << 20)
    assert len(packed) < 2_000
    with pytest.raises(TokenInvalid):
        tokens.unpack(packed, small)


def row() -> SealedSession:
    owner = Owner("acme", "ana")
    return SealedSession(owner, "cs_" + "A" * 43, b"w" * 60, b"h" * 200, 3, 4, 50, 1, 2, None, b"t" * 16, b"carry")


def test_no_changed_token_is_read() -> None:
    """Every changed character, and every length that is cut off, makes it no token, with one error (row 18)."""
    derived = {"k1": bytes(32)}
    token = tokens.under_deployment(derived, Tokens(), row(), b"body")
    assert tokens.read_under_deployment(derived, Tokens(), tokens.decoded(token, Tokens())) == (row(), b"body")
    errors = set()
    for place in range(len(token)):
        changed = "A" if token[place] != "A" else "B"
        for other in (token[:place] + changed + token[place + 1 :], token[:place]):
            with pytest.raises(TokenInvalid) as caught:
                tokens.read_under_deployment(derived, Tokens(), tokens.decoded(other, Tokens()))
            errors.add(str(caught.value))
    assert len(errors) == 1


def test_a_token_has_one_spelling() -> None:
    """Bits that base64 ignores are not ignored, nor are spaces, padding or another alphabet."""
    data = b"\x01" + bytes(40)
    token = tokens.PREFIX + base64.urlsafe_b64encode(data).rstrip(b"=").decode()
    assert tokens.decoded(token, Tokens()) == data
    for other in (token + "=", token + "\n", " " + token, token[:-1] + chr(ord(token[-1]) + 1), token.upper()):
        with pytest.raises(TokenInvalid):
            tokens.decoded(other, Tokens())


@pytest.mark.parametrize("other", [{"k1": b"x" * 32}, {"k2": bytes(32)}, {}], ids=["same name", "other name", "none"])
def test_a_token_under_another_key_is_refused(other: dict[str, bytes]) -> None:
    """A token is read under the key that it names, and names one that we have (row 14)."""
    token = tokens.under_deployment({"k1": bytes(32)}, Tokens(), row(), b"body")
    with pytest.raises(TokenInvalid):
        tokens.read_under_deployment(other, Tokens(), tokens.decoded(token, Tokens()))


def test_a_token_is_for_its_audience() -> None:
    """A token of another deployment under the same keys is refused (row 14)."""
    token = tokens.under_deployment({"k1": bytes(32)}, Tokens(audience="shop"), row(), b"body")
    with pytest.raises(TokenInvalid):
        tokens.read_under_deployment({"k1": bytes(32)}, Tokens(audience="bank"), tokens.decoded(token, Tokens()))
    keys = SessionKeys(bytes(32), Owner(None, "ana"), "cs_" + "A" * 43)
    with pytest.raises(IntegrityError):
        keys.open_token(keys.seal_token(b"body", "shop"), "bank")


def test_a_token_commits_to_its_key() -> None:
    """The commitment in front is compared before anything is opened: GCM alone would open a forged one under two."""
    keys = [SessionKeys(bytes([n]) * 32, Owner(None, "ana"), "cs_" + "A" * 43) for n in (1, 2)]
    sealed = [one.seal_token(b"body", "") for one in keys]
    with pytest.raises(IntegrityError):
        keys[0].open_token(sealed[1][:32] + sealed[0][32:], "")
    assert keys[0].open_token(sealed[0], "") == b"body"


@pytest.mark.parametrize("padding", ["A", "é", "\U0001f600"])
def test_an_oversized_token_is_refused_before_it_is_read(padding: str) -> None:
    """What is longer than any token of ours costs no decoding and no key (row 19)."""
    with pytest.raises(TokenInvalid, match=r"65536|opens no session"):
        tokens.decoded("ct_" + padding * 70_000, Tokens())


# --- through the library ----------------------------------------------------------------------------------------------


@pytest.fixture(params=["memory", "sqlite", "redis", "postgres"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Name a ledger of each kind."""
    match request.param:
        case "memory":
            return "token://?ledger=memory://"
        case "sqlite":
            return f"token://?ledger=sqlite:///{tmp_path / 'ledger.db'}"
        case "redis":
            server = request.getfixturevalue("redis")
            return f"token://?ledger=redis://{server}/0?prefix={secrets.token_hex(4)}:"
    return f"token://?ledger={request.getfixturevalue('database').url()}"


@pytest.fixture(params=["ledger", "alone"])
def either(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Name tokens with a ledger, and without one."""
    if request.param == "ledger":
        return f"token://?ledger=sqlite:///{tmp_path / 'ledger.db'}"
    return f"{ALONE}&audit={tmp_path / 'audit.jsonl'}"


@pytest.fixture
async def house(either: str) -> AsyncIterator[House]:
    async with opened(either) as house:
        yield house


async def test_fingerprints_are_kept_in_the_process_or_the_ledger() -> None:
    """Without a ledger a process knows what was said in it, until that session's time is up; the ledger's knows all."""
    for url in (ALONE, "token://?ledger=memory://"):
        async with opened(url, keyring=Keyring.generate()) as house:
            vault = house.cloister.vault
            await vault.commit(vault.begin(house.ana.owner), fingerprints=[Fingerprint("", b"12345678")])
            await vault.ask(vault.store.seed, "", [b"87654321"])

            async def known(house: House = house) -> dict[bytes, tuple[Owner, ...]]:
                vault = house.cloister.vault
                asked = to_micros(house.clock.now)
                return (await vault.ask(vault.store.claims, "", [b"12345678", b"87654321"], now=asked)).owners

            assert await known() == {b"12345678": (house.ana.owner,), b"87654321": ()}
            house.clock.move(hours=13)
            assert await known() == {b"87654321": ()}
            await house.cloister.sweep()
            assert await known() == {b"87654321": ()}


async def test_every_kind_of_ledger(ledger: str) -> None:
    """A conversation goes on from token to token, over any ledger; one that was used is refused (rows 16, 17)."""
    async with opened(ledger) as house:
        session = await house.ana.start(system="Be kind.")
        first = session.id
        assert (await session.send("one")).session is session
        second = session.id
        reply = await (await house.ana.resume(second)).send("two")
        third = reply.session
        assert len({first, second, third.id}) == 3
        assert await told(third) == ["Be kind.", "one", "You said: one", "two", "You said: two"]
        for used in (first, second):
            with pytest.raises(TokenInvalid, match="used before"):
                await house.ana.resume(used)
        await third.end()
        for token in (first, second, third.id):
            with pytest.raises(SessionExpired):
                await house.ana.resume(token)
        assert (await house.events()).count("token.replayed") == 2


async def test_a_token_outlives_its_process(either: str) -> None:
    """Whoever has the token goes on after a restart; nothing else is needed but keys and, with one, the ledger."""
    async with opened(either) as house:
        token = (await (await house.ana.start()).send("one")).session.id
    async with opened(either) as house:
        session = await house.ana.resume(token)
        await session.send("two")
        assert await told(session) == ["one", "You said: one", "two", "You said: two"]


async def test_foreign_and_damaged_look_alike(house: House) -> None:
    """Ben gets one error for Ana's token, a damaged one and none at all; the log tells them apart (rows 3, 18)."""
    anas = (await (await house.ana.start()).send("my secret")).session.id
    bens = (await (await house.ben.start()).send("hello")).session.id
    middle = len(bens) // 2
    damaged = bens[:middle] + ("A" if bens[middle] != "A" else "B") + bens[middle + 1 :]
    raised = []
    for token in (anas, damaged, "ct_", "nothing", "cs_" + "A" * 42, bens[:-4]):
        for call in (house.ben.resume(token), house.ben.sessions(after=token)):
            with pytest.raises((TokenInvalid, ConfigurationError)) as caught:
                await call
            if caught.type is TokenInvalid:
                raised.append((str(caught.value), caught.value.notice))
    assert len(raised) >= 6
    assert len(set(raised)) == 1
    entries = await house.entries()
    names = {owner.user: name for name, owner in (await house.cloister.store.audit_owners()).items()}
    foreign = [entry for entry in entries if entry.event == "access.foreign"]
    assert foreign
    assert {(entry.owner, entry.other) for entry in foreign} == {(names["ben"], names["ana"])}
    assert {entry.event for entry in entries} >= {"access.refused", "token.damaged"}
    assert "my secret" not in str(entries)
    assert anas not in str(entries)


async def test_every_call_with_a_borrowed_token_is_refused(house: House) -> None:
    """Whatever Ben tries with Ana's token, nothing of it is done, and hers still works (rows 3, 8)."""
    anas = (await (await house.ana.start()).send("my secret")).session
    borrowed = await house.ben.start()
    borrowed.id = anas.id
    calls = [
        borrowed.send("x"),
        borrowed.append({"role": "user", "content": "x"}),
        borrowed.update(title="x"),
        borrowed.hide((await anas.history())[0].id),
        borrowed.history(),
    ]
    for call in calls:
        with pytest.raises(TokenInvalid):
            await call
    assert house.provider.seen.count("x") == 0
    assert await told(anas) == ["my secret", "You said: my secret"]


async def test_one_token_used_twice_at_once_wins_once(tmp_path: Path) -> None:
    """Of twenty turns with one token, in two processes' worth of cloisters, one is taken (rows 5, 17)."""
    url = f"token://?ledger=sqlite:///{tmp_path / 'ledger.db'}"
    async with opened(url) as one, opened(url) as two:
        token = (await one.ana.start()).id
        sessions = [await house.ana.resume(token) for house in (one, two) for _ in range(10)]
        outcomes = await asyncio.gather(*(s.send(str(n)) for n, s in enumerate(sessions)), return_exceptions=True)
        won = [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]
        assert len(won) == 1
        assert {type(lost) for lost in outcomes if isinstance(lost, BaseException)} <= {TokenInvalid, SessionConflict}
        assert len(await told(won[0].session)) == 2


async def test_turns_of_one_handle_follow_each_other(house: House) -> None:
    """Twenty turns at once on one session are taken one after another, each with the token of the one before."""
    session = await house.ana.start()
    replies = await asyncio.gather(*(session.send(str(n)) for n in range(20)))
    assert {reply.text for reply in replies} == {f"You said: {n}" for n in range(20)}
    assert sorted((await told(session))[::2], key=int) == [str(n) for n in range(20)]


async def test_a_failed_turn_leaves_the_token_usable(house: House) -> None:
    """A model that fails uses up no token: whoever only has the old one can ask again."""
    session = await house.ana.start()
    token = (await session.send("one")).session.id
    house.provider.answer = ProviderError("it broke")
    with pytest.raises(ProviderError):
        await (await house.ana.resume(token)).send("two")
    house.provider.answer = None
    again = await house.ana.resume(token)
    async with again.turn("three") as turn:
        turn.add({"role": "assistant", "content": "spent"})
    assert await told(await house.ana.resume(token)) == ["one", "You said: one"]
    assert (await again.send("two")).text == "You said: two"


async def test_what_is_not_said_changes_no_token_of_a_ledger(tmp_path: Path) -> None:
    """Title, metadata and what is hidden lie in the ledger, so the token stays good; they are there all the same."""
    async with opened(f"token://?ledger=sqlite:///{tmp_path / 'ledger.db'}") as house:
        session = (await (await house.ana.start()).send("one")).session
        token = session.id
        await session.update(title="a title", metadata={"a": "b"})
        await session.hide((await session.history())[0].id)
        assert session.id == token
        again = await house.ana.resume(token)
        assert (again.title, again.metadata) == ("a title", {"a": "b"})
        assert await told(again) == ["You said: one"]


async def test_all_calls_work_on_tokens(house: House) -> None:
    """Import, append, describe, hide and page: as in any other store."""
    session = await house.ana.start(items=[{"role": "user", "content": str(n)} for n in range(6)], title="t")
    added = await session.append({"role": "assistant", "content": "added"})
    await session.update(title="other")
    await session.hide((await session.history())[2].id)
    page = await session.history(limit=3)
    rest = await session.history(after=page[-1].id)
    assert [item.text for item in [*page, *rest]] == ["0", "1", "3", "4", "5", "added"]
    assert rest[-1].id == added[0].id
    assert (session.title, session.item_count) == ("other", 7)
    async with session.stream("streamed") as stream:
        assert "".join([text async for text in stream]).strip() == "You said: streamed"
    assert stream.reply.session.id == session.id
    assert (await told(session))[-1].strip() == "You said: streamed"


async def test_a_timed_out_token_is_renewed(house: House) -> None:
    """Time is up as in any other store: the reply comes from a new session, with the application's text alone."""
    session = await house.ana.start(system="Be kind.")
    await session.send("my secret")
    old = session.id
    house.clock.move(minutes=30)
    with pytest.raises(SessionExpired):
        await (await house.ana.resume(old)).history()
    reply = await (await house.ana.resume(old)).send("hello")
    assert reply.renewed
    assert reply.session.id != old
    assert await told(reply.session) == ["Be kind.", "hello", "You said: hello"]
    assert "my secret" not in str(house.provider.requests[-1].messages)


async def test_a_token_cannot_be_made_younger(house: House) -> None:
    """A clock that goes back does not bring a session back that has seen later times."""
    session = await house.ana.start()
    house.clock.move(minutes=29)
    await session.send("one")
    house.clock.move(hours=-5)
    await session.send("two")
    house.clock.move(hours=5, minutes=31)
    with pytest.raises(SessionExpired):
        await session.history()


async def test_a_token_stays_within_its_limit(either: str) -> None:
    """However long people talk, the token keeps to its limit, and the newest turns are in it."""
    async with opened(f"{either}&limit=8192", scrub=None) as house:  # chance may look like anything
        session = await house.ana.start(system="Be kind.")
        longest = 0
        for n in range(60):
            await session.send(f"{n} {secrets.token_urlsafe(60)}")
            longest = max(longest, len(session.id))
        assert 4_000 < longest <= 8_192
        shown = await told(session)
        assert shown[-2].startswith("59 ")
        assert 10 < len(shown) < 121
        assert session.item_count == 121
        assert house.provider.requests[-1].messages[0] == {"role": "system", "content": "Be kind."}


async def test_a_question_too_long_for_a_token_never_reaches_the_model(either: str) -> None:
    """What finds no room is refused with a clear text, before a model is paid for it, and nothing is lost."""
    async with opened(f"{either}&limit=4096", context_tokens=1_000_000) as house:
        session = await house.ana.start()
        await session.send("short")
        token = session.id
        with pytest.raises(BudgetExceeded, match=r"bytes too long for a token of 4096 characters.*limit="):
            await session.send(secrets.token_urlsafe(5_000))
        with pytest.raises(BudgetExceeded):
            await house.ana.start(items=[{"role": "user", "content": secrets.token_urlsafe(5_000)}])
        house.provider.answer = secrets.token_urlsafe(5_000)
        with pytest.raises(BudgetExceeded):
            await session.send("tell me more")
        assert len(house.provider.requests) == 2
        house.provider.answer = None
        again = await house.ana.resume(token)
        assert await told(again) == ["short", "You said: short"]
        assert (await again.send("go on")).text == "You said: go on"


async def test_the_state_in_the_ledger_must_not_be_older(tmp_path: Path) -> None:
    """A ledger that was put back to an older state is noticed by the token that it gave out meanwhile."""
    url = f"token://?ledger=sqlite:///{tmp_path / 'ledger.db'}"
    async with opened(url) as house:
        session = await house.ana.start()
    before = files_in(tmp_path)
    async with opened(url) as house:
        token = (await (await house.ana.resume(session.id)).send("one")).session.id
    put_back(tmp_path, before)
    async with opened(url) as house:
        with pytest.raises(IntegrityError, match="ledger has an older state"):
            await house.ana.resume(token)
        assert "integrity.failed" in await house.events()


async def test_nothing_said_lies_in_the_ledger(tmp_path: Path) -> None:
    """The ledger holds some hundred bytes for each session, however much was said, and no item."""
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    async with opened(f"token://?ledger={url}") as house:
        session = await house.ana.start(system="Be kind.")
        for n in range(30):
            await session.send(f"{n} NIGHTHAWK {'x' * 500}")
        inner = stores.connect(url)
        await inner.open()
        try:
            loaded = await inner.load(house.ana.owner, session.stable_id, nonce=b"n" * 16, budget=1 << 40)
            kept = loaded.session
            assert kept is not None
            assert loaded.items == []
            assert len(msgspec.msgpack.encode(kept)) < 700
        finally:
            await inner.close()
    assert all(b"NIGHTHAWK" not in data for data in files_in(tmp_path).values())


async def test_erasure_kills_every_token(tmp_path: Path) -> None:
    """With the secret in the ledger go all tokens that were ever given out, also for whoever has all keys."""
    url = f"token://?ledger=sqlite:///{tmp_path / 'ledger.db'}"
    async with opened(url) as house:
        session = (await (await house.ana.start()).send("my secret")).session
        receipt = await house.ana.erase()
        assert receipt.sessions == 1
        with pytest.raises(TokenInvalid):
            await house.ana.resume(session.id)
        with pytest.raises(TokenInvalid):
            await session.send("hello")


async def test_sessions_of_a_ledger_are_listed_and_ended(tmp_path: Path) -> None:
    """A listing names sessions by what stays; they can be ended, but their content needs the token."""
    async with opened(f"token://?ledger=sqlite:///{tmp_path / 'ledger.db'}") as house:
        started = [await house.ana.start(title=str(n)) for n in range(3)]
        await house.ben.start()
        listed = await house.ana.sessions()
        assert {one.title for one in listed} == {"0", "1", "2"}
        assert {one.id for one in listed} == {one.stable_id for one in started}
        for call in (listed[0].history(), listed[0].send("x"), listed[0].update(title="x")):
            with pytest.raises(TokenInvalid, match="lies in its token"):
                await call
        with pytest.raises(TokenInvalid):
            await house.ben.resume(listed[0].id)
        await (await house.ana.resume(listed[0].id)).end()
        lines = [msgspec.json.decode(line) async for line in house.ana.export()]
        assert len(lines) == 4  # what is known of each, and why there is no more
        assert sum("lies in its token" in line.get("error", "") for line in lines) == 2
        assert await house.ana.end_all() == 2
        for one in started:
            with pytest.raises(SessionExpired):
                await house.ana.resume(one.id)


async def test_rotation_touches_no_token_of_a_ledger(tmp_path: Path) -> None:
    """After rotating and retiring the old key, tokens from before go on: only the ledger was under it."""
    keyring = Keyring.create_file(tmp_path / "keys")
    (old,) = keyring.names
    async with opened(f"token://?ledger=sqlite:///{tmp_path / 'ledger.db'}", keyring=keyring) as house:
        token = (await (await house.ana.start(system="Be kind.")).send("one")).session.id
        keyring.add()
        assert await upkeep.rewrap_all(house.cloister.vault, lambda _: None) == (1, 0, 0)
        assert await upkeep.count_under(house.cloister.vault, old) == 0
        keyring.remove(old)
        assert await told(await house.ana.resume(token)) == ["Be kind.", "one", "You said: one"]


# --- without a ledger -------------------------------------------------------------------------------------------------


async def test_what_needs_a_ledger_says_so(tmp_path: Path) -> None:
    """Ending, erasing, listing and idempotency are refused with a text that says what to set up."""
    async with opened(f"{ALONE}&audit={tmp_path / 'audit.jsonl'}") as house:
        session = (await (await house.ana.start()).send("one")).session
        calls = [
            session.end(),
            house.ana.erase(),
            house.ana.end_all(),
            house.ana.sessions(),
            session.send("two", idempotency_key="k"),
        ]
        for call in calls:
            with pytest.raises(ConfigurationError, match=r"ledger=redis://"):
                await call
        with pytest.raises(ConfigurationError, match="ledger"):
            await anext(house.ana.export())
        assert await house.cloister.sweep() == 0
        assert await told(session) == ["one", "You said: one"]


async def test_without_a_ledger_a_token_can_be_used_again(tmp_path: Path) -> None:
    """What allow_replay=1 accepts: an old token goes on from its old state, beside the newer one."""
    async with opened(f"{ALONE}&audit={tmp_path / 'audit.jsonl'}") as house:
        token = (await (await house.ana.start()).send("one")).session.id
        left, right = [await house.ana.resume(token) for _ in range(2)]
        await left.send("left")
        await right.send("right")
        assert await told(left) == ["one", "You said: one", "left", "You said: left"]
        assert await told(right) == ["one", "You said: one", "right", "You said: right"]


async def test_a_token_is_sealed_anew_under_the_newest_key(tmp_path: Path) -> None:
    """The next turn moves a token to the newest master key; then the old key is needed no more, but by older tokens."""
    keyring = Keyring.create_file(tmp_path / "keys")
    (old,) = keyring.names
    async with opened(f"{ALONE}&audit={tmp_path / 'audit.jsonl'}", keyring=keyring) as house:
        session = await house.ana.start(system="Be kind.")
        left = session.id
        keyring.add()
        await session.send("one")
        keyring.remove(old)
        assert await told(await house.ana.resume(session.id)) == ["Be kind.", "one", "You said: one"]
        with pytest.raises(TokenInvalid):
            await house.ana.resume(left)


async def test_the_audit_file_verifies(tmp_path: Path) -> None:
    """Entries go to the file that is named, chained, from several cloisters; a line that was never finished is none."""
    path = tmp_path / "audit.jsonl"
    url = f"{ALONE}&audit={path}"
    async with opened(url) as one, opened(url) as two:
        for house in (one, two):
            for n in range(3):
                await (await house.ana.start()).send(str(n))
        entries = await one.entries()
        heads = one.cloister.store.heads() | two.cloister.store.heads()
        assert (
            len(entries) == 14
        )  # two for each session, and that each of the two cloisters was opened without a ledger
        assert verify(entries, heads).faults == []
        assert verify(entries[1:], heads).faults
    path.write_bytes(path.read_bytes() + b'{"writer":"torn')
    async with opened(url) as house:
        await house.ben.start()
        entries = await house.entries()
        assert len(entries) == 16
        assert set((await house.cloister.store.audit_owners()).values()) == {house.ana.owner, house.ben.owner}
    assert oct(path.stat().st_mode & 0o777) == "0o600"
    assert b"ana" not in path.read_bytes()


async def test_no_turn_without_its_audit_entry(tmp_path: Path) -> None:
    """Where the audit file cannot be written there is no reply, and the text says which file and why."""
    folder = tmp_path / "gone"
    folder.mkdir()
    async with opened(f"{ALONE}&audit={folder / 'audit.jsonl'}") as house:
        session = await house.ana.start()
        token = session.id
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
        with pytest.raises(StoreUnavailable, match=r"audit\.jsonl cannot be written \(No such file"):
            await session.send("one")
        assert session.id == token
        folder.mkdir()
        assert (await session.send("one")).text == "You said: one"


async def test_entries_go_to_standard_logging(caplog: pytest.LogCaptureFixture) -> None:
    """Without audit= in the URL entries are lines of JSON at a level that fits, owners in a logger of their own."""
    caplog.set_level(logging.INFO, logger="cloister.audit")
    async with opened(ALONE) as house:
        token = (await house.ana.start()).id
        with pytest.raises(TokenInvalid):
            await house.ben.resume(token)
        await house.cloister.vault.settle()
        with pytest.raises(ConfigurationError, match="audit="):
            await house.entries()
    lines = [(record.levelname, record.message) for record in caplog.records if record.name == "cloister.audit"]
    decoded = [(level, msgspec.json.decode(line, type=Entry)) for level, line in lines]
    assert [(level, entry.event) for level, entry in decoded] == [
        ("WARNING", "protection.off"),
        ("INFO", "session.started"),
        ("WARNING", "access.refused"),
        ("ERROR", "access.foreign"),
    ]
    assert "ana" not in "".join(line for _, line in lines)
    named = [record.message for record in caplog.records if record.name == "cloister.audit.owners"]
    assert any("ana" in line for line in named)


# --- setting up -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ("token://", "name one, token://\\?ledger="),
        ("token://?limit=9999", "allow_replay=1"),
        ("token://host?allow_replay=1", "takes no name"),
        ("token://?allow_replay=yes", "allow_replay"),
        ("token://?allow_replay=1&limit=12", "from 4096 to"),
        ("token://?allow_replay=1&ledger=memory://", "leave them out"),
        ("token://?ledger=memory://&audit=x", "leave them out"),
        ("token://?ledger=token://?allow_replay=1", "another kind"),
        ("token://?ledger=nothing://x", "no store is known"),
        ("token://?ledger=", "URL of another store"),
        ("token://?leger=memory://", "no option 'leger'"),
    ],
)
def test_a_url_that_is_wrong_says_how(wrong: str, told: str) -> None:
    """Each mistake in the URL has a text of its own."""
    with pytest.raises(ConfigurationError, match=told):
        stores.connect(wrong)


async def test_tokens_need_keys() -> None:
    """Nobody makes up keys for tokens that are to be opened elsewhere."""
    with pytest.raises(ConfigurationError, match="name the keys"):
        async with AsyncCloister.open(ALONE):
            pass


def test_a_url_shows_no_password() -> None:
    """What messages show of the ledger is what it shows of itself."""
    store = stores.connect("token://?ledger=redis://user:hunter2@localhost:1/0")
    assert "hunter2" not in store.url
    assert "localhost:1" in store.url


async def test_a_crossed_answer_of_the_ledger_is_noticed() -> None:
    """The ledger is no more trusted than any store: an answer to something else opens nothing."""
    watched = Watched(stores.connect("memory://"))
    from cloister.stores.token import Ledger

    keyring, clock = Keyring.generate(), Clock()
    ledger: Any = Ledger(Tokens(), watched.store)
    async with opened(ledger, keyring=keyring, clock=clock) as house:
        anas, bens = await house.ana.start(), await house.ben.start()

        async def crossed(real: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
            return await real(bens.owner, bens.stable_id, *args[2:], **options)

        watched.answers["load"] = crossed
        with pytest.raises(IntegrityError):
            await anas.send("hello")
        del watched.answers["load"]
        assert (await anas.send("hello")).text == "You said: hello"
