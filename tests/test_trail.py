"""Following the log of each kind of store: what moves positions about, or commits late, makes nobody miss an entry."""

from __future__ import annotations

import contextlib
import secrets
import sqlite3
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.databases import Database

from cloister import stores
from cloister.audit import Chain, Entry, event, verify
from cloister.errors import StoreError, StoreUnavailable
from cloister.model import Owner
from cloister.stores import redis_scripts as scripts
from cloister.stores.base import Store, Trail, every_entry
from cloister.stores.postgres import PostgresStore
from cloister.stores.redis import RedisStore
from cloister.stores.redis_log import Log, _Row, _woven
from cloister.testing import START, nonce

ANA = Owner("acme", "ana")


async def record(store: Store, *sessions: str) -> None:
    for session in sessions:
        await store.record([event("turn.committed", START, ANA, session)], nonce=nonce())


async def follow(store: Store, after: bytes = b"", limit: int = 2) -> tuple[list[str], bytes]:
    """Give the sessions that the entries behind *after* are about, and where the log ends."""
    found: list[str] = []
    for _ in range(100):
        page = await store.trail(after=after, limit=limit)
        found += [entry.session for entry in page.entries]
        after = page.after
        if len(page.entries) < limit:
            return found, after
    raise AssertionError("the log has no end")


@contextlib.asynccontextmanager
async def at(url: str) -> AsyncIterator[Any]:
    store = stores.connect(url)
    await store.open()
    yield store
    await store.close()


@pytest.mark.parametrize("url", ["sqlite", "redis", "cluster", "postgres", "token"], indirect=True)
async def test_another_process_goes_on(url: str) -> None:
    """A position is good in a store that somebody else opened, for what others committed meanwhile."""
    async with at(url) as one:
        await record(one, "a", "b", "c")
        found, after = await follow(one)
        assert sorted(found) == ["a", "b", "c"]
    async with at(url) as two, at(url) as three:
        await record(two, "d")
        await record(three, "e")
        found, last = await follow(three, after)
        assert sorted(found) == ["d", "e"]
        assert (await follow(two, last))[0] == []


# --- PostgreSQL -------------------------------------------------------------------------------------------------------


class ByNumber(PostgresStore):
    """Goes by the numbers of the rows alone, which are given out before a transaction commits."""

    async def trail(self, *, after: bytes, limit: int) -> Trail:
        rows = (await self._call("audit_tail", 1_000))["rows"] or ()
        first = int(after or b"0")
        new = [row for row in rows if row["id"] > first][:limit]
        last = new[-1]["id"] if new else first
        return Trail([Entry(*tuple(row)[1:-1]) for row in new], b"%d" % last)


_PUT = "SELECT cloister.put($1)"


def _json(session: str) -> str:
    entry = Chain.new().extend(event("turn.committed", START, None, session), "", "")[1]
    return msgspec.json.encode([entry]).decode()


async def _late(database: Database, kind: type[PostgresStore]) -> list[list[str]]:
    """Follow the log beside transactions that begin early and commit late, or never; give what is found each time."""
    store = kind(database.url())
    await store.open()
    found, after = [], b""
    try:
        async with contextlib.AsyncExitStack() as held:
            drivers = [await held.enter_async_context(database.connected("cloister_app")) for _ in range(3)]
            begun = [driver.transaction() for driver in drivers]
            for number, (driver, transaction) in enumerate(zip(drivers, begun, strict=True)):
                await transaction.start()
                await driver.execute(_PUT, _json(f"late {number}"))
            await record(store, "early")
            for ending in (None, begun[1].commit, begun[0].commit, begun[2].rollback, None):
                if ending is not None:
                    await ending()
                some, after = await follow(store, after)
                found.append(some)
            await record(store, "last")
            found.append((await follow(store, after))[0])
    finally:
        await store.close()
    return found


_SEEN = [["early"], ["late 1"], ["late 0"], [], [], ["last"]]


async def test_a_late_commit_is_not_passed_over(database: Database) -> None:
    """Entries of transactions that were open when others' were read come as soon as they are committed."""
    assert await _late(database, PostgresStore) == _SEEN


async def test_numbers_alone_pass_over_a_late_commit(database: Database) -> None:
    """Whoever goes by the numbers of the rows misses what commits late: the test above can fail."""
    assert await _late(database, ByNumber) != _SEEN


async def test_pages_hold_between_two_moments(database: Database) -> None:
    """What commits between two pages is passed over by neither, and given once, each writer's in order."""
    async with at(database.url()) as store, database.connected("cloister_app") as driver:
        await record(store, *"abc")
        transaction = driver.transaction()
        await transaction.start()
        await driver.execute(_PUT, _json("x"))
        await record(store, *"def")
        page = await store.trail(after=b"", limit=2)
        await transaction.commit()
        await record(store, "g")
        found, _ = await follow(store, page.after)
        assert [entry.session for entry in page.entries] + found == [*"abcdef", "x", "g"]


async def test_a_restored_dump_is_followed_from_its_beginning(database: Database) -> None:
    """Where transactions have other numbers, old entries still come, and a position from elsewhere begins anew."""
    async with at(database.url()) as store:
        await record(store, "a", "b")
        _, after = await follow(store)
        seen, *rest = msgspec.msgpack.decode(after)
        low, high, _ = seen.split(":")
        elsewhere = msgspec.msgpack.encode((f"{int(low) + 10**9}:{int(high) + 10**9}:", *rest))
        await database.run("UPDATE cloister.audit SET tx = (tx::text::bigint + 1000000000)::text::xid8")
        await record(store, "c")
        assert sorted((await follow(store, elsewhere))[0]) == ["a", "b", "c"]
        found, after = await follow(store)
        assert sorted(found) == ["a", "b", "c"]
        await record(store, "d")
        assert (await follow(store, after))[0] == ["d"]
        assert [entry.session for entry in (await store.audit_tail(2)).entries] == ["c", "d"]


async def test_the_moment_of_an_entry_is_not_the_writers_to_choose(database: Database) -> None:
    """The application's role cannot say in which transaction an entry was written, and so put it behind a reader."""
    with pytest.raises(Exception, match="permission denied"):
        await database.run(
            "INSERT INTO cloister.audit (writer, number, at, event, severity, owner, other, session, detail, previous,"
            " hash, tx) VALUES ('w', 1, 1, 'x', 'info', '', '', '', '', '', '', '3')",
            role="cloister_app",
        )


# --- SQLite -----------------------------------------------------------------------------------------------------------


async def test_rows_that_were_renumbered_are_found_again(tmp_path: Path) -> None:
    """After VACUUM rows have other numbers: a position means the same entry, wherever it lies."""
    path = tmp_path / "x.db"
    async with at(f"sqlite:///{path}") as store:
        await record(store, *"abcdef")
        _, after = await follow(store)
        with contextlib.closing(sqlite3.connect(path)) as db:
            db.execute("DELETE FROM audit WHERE session IN ('a', 'b', 'c')")
            db.commit()
            db.execute("VACUUM")
            assert db.execute("SELECT max(rowid) FROM audit").fetchone() == (3,), "nothing was renumbered"
        await record(store, "g", "h")
        assert (await follow(store, after))[0] == ["g", "h"]


async def test_after_an_entry_that_is_gone_everything_comes(tmp_path: Path) -> None:
    """Where the entry that was last is not there any more, what is left comes from its beginning."""
    path = tmp_path / "x.db"
    async with at(f"sqlite:///{path}") as store:
        await record(store, *"abc")
        _, after = await follow(store)
        with contextlib.closing(sqlite3.connect(path)) as db:
            db.execute("DELETE FROM audit")
            db.commit()
        await record(store, *"defg")
        assert (await follow(store, after))[0] == list("defg")


# --- a file -----------------------------------------------------------------------------------------------------------


async def test_a_file_that_was_cut_is_followed(tmp_path: Path) -> None:
    """In a file from which old lines were taken, a position means the same entry; in another file, its beginning."""
    path = tmp_path / "log"
    async with at(f"token://?allow_replay=1&audit={path}") as store:
        await record(store, *"abcd")
        _, after = await follow(store)
        path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[2:]))
        await record(store, "e")
        assert (await follow(store, after))[0] == ["e"]
        path.write_bytes(b"")
        await record(store, *"fghijk")
        assert (await follow(store, after))[0] == list("fghijk")


async def test_a_line_on_its_way_is_not_read(tmp_path: Path) -> None:
    """A line that has no end yet is left for later; one that never got one is passed over."""
    path = tmp_path / "log"
    async with at(f"token://?allow_replay=1&audit={path}") as store:
        await record(store, "a", "b")
        whole, after = path.read_bytes(), b""
        for cut in (1, 40):
            path.write_bytes(whole[:-cut])
            found, after = await follow(store)
            assert found == ["a"]
            path.write_bytes(whole)
            assert (await follow(store, after))[0] == ["b"]
        path.write_bytes(whole[:-40])
        await record(store, "c")
        assert (await follow(store, after))[0] == ["c"]


@pytest.mark.parametrize("limit", [1, 2, 7, 500, 2_000])
async def test_the_tail_of_a_file_is_its_end(tmp_path: Path, limit: int) -> None:
    """The last entries of a file come oldest first, however many there are before them."""
    path = tmp_path / "log"
    async with at(f"token://?allow_replay=1&audit={path}") as store:
        noted = [event("turn.committed", START, ANA, f"{number}") for number in range(1_000)]
        await store.record(noted, nonce=nonce())
        found = [entry.session for entry in (await store.audit_tail(limit)).entries]
        assert found == [f"{number}" for number in range(1_000)][-limit:]


# --- Redis ------------------------------------------------------------------------------------------------------------


def _store(store: Any) -> RedisStore:
    assert isinstance(store, RedisStore)
    return store


@pytest.mark.parametrize("url", ["redis", "cluster"], indirect=True)
async def test_a_clock_that_is_set_back_reorders_nothing(url: str) -> None:
    """Whatever the server's clock does, a writer's entries come in the order of its writing."""
    async with at(f"{url}&connections=1") as store:
        ahead = 4_000_000_000_000
        for place in range(0, 256, 2):  # half of the streams are an hour ahead of what the clock says now
            key = f"{_store(store)._prefix}{{{place:02x}}}:log".encode()
            entry = Chain.new().extend(event("turn.failed", START), "", "")[1]
            await store._nodes.run(
                key,
                lambda _, lent, key=key, entry=entry: lent.connection.plain(
                    "XADD", key, f"{ahead}-0", "e", msgspec.msgpack.encode(entry)
                ),
            )
        for number in range(60):
            await record(store, secrets.token_hex(4))
            if not number % 20:
                await follow(store)
        entries = [entry async for entry in every_entry(store)]
        assert len(entries) == 128 + 60
        assert verify(entries, store.heads()).faults == []


def _written(writers: Sequence[int], moments: Sequence[int], places: Sequence[int]) -> list[_Row]:
    """Let writers write, one after the other, each entry at a moment no earlier than its last, into some stream."""
    chains = [Chain(f"w_{number}") for number in range(4)]
    reached, ends = [0] * 4, dict.fromkeys(range(3), (0, -1))
    rows = []
    for writer, moment, place in zip(writers, moments, places, strict=False):
        at = max(moment, reached[writer], ends[place][0])
        reached[writer] = at
        ends[place] = at, ends[place][1] + 1 if at == ends[place][0] else 0
        chains[writer], entry = chains[writer].extend(event("turn.failed", START), "", "")
        rows.append(_Row(*ends[place][:1], place, ends[place][1], entry))
    return rows


WRITTEN = st.builds(
    _written,
    st.lists(st.integers(0, 3), max_size=25),
    st.lists(st.integers(0, 4), min_size=25, max_size=25),
    st.lists(st.integers(0, 2), min_size=25, max_size=25),
)


def _in_writers_order(rows: Sequence[_Row]) -> bool:
    last: dict[str, int] = {}
    for row in rows:
        if row.entry.number != last.get(row.entry.writer, 0) + 1:
            return False
        last[row.entry.writer] = row.entry.number
    return True


@given(WRITTEN, st.data())
def test_streams_are_woven_in_the_order_of_writing(rows: list[_Row], data: st.DataObject) -> None:
    """What was written in one moment is put together so that each stream and each writer is in order."""
    rows = [row._replace(moment=0, order=number) for number, row in enumerate(rows)]
    mixed = sorted(rows, key=lambda row: (row.place, row.order))
    found = list(_woven(mixed))
    assert sorted(found) == sorted(rows)
    assert _in_writers_order(found)
    for place in range(3):
        orders = [row.order for row in found if row.place == place]
        assert orders == sorted(orders)


class Streams:
    """The streams of *rows*, of which more can be seen with every request; on one node, with every round."""

    def __init__(self, rows: Sequence[_Row], steps: Sequence[int], clustered: bool) -> None:
        self.rows = rows
        self.clustered = clustered
        self.seen = 0
        self._steps = list(steps)

    async def run_all(self, requests: Sequence[Any]) -> list[Any]:
        return [[[self._read(script, key, args, n) for n, key in enumerate(keys)]] for script, keys, args in requests]

    def _read(self, script: str, key: bytes, args: Sequence[Any], n: int) -> list[Any]:
        place = int(key.partition(b"{")[2][:2], 16)
        if (self.clustered and place < 3) or (not n and not place):
            self.seen = min(self.seen + self._steps.pop(), len(self.rows)) if self._steps else len(self.rows)
        lines = [
            (f"{row.moment}-{row.order}".encode(), (b"e", msgspec.msgpack.encode(row.entry)))
            for row in self.rows[: self.seen]
            if row.place == place
        ]
        if script == scripts.TAIL:
            return lines[::-1][: args[0]]
        begin, end = args[1 + 2 * n : 3 + 2 * n]
        first = (-1, 0) if begin == "-" else tuple(map(int, begin[1:].split("-")))
        last = tuple(map(int, end.split("-")))
        return [one for one in lines if first < tuple(map(int, one[0].decode().split("-"))) <= last][: args[0]]


@settings(max_examples=200)
@given(WRITTEN, st.lists(st.integers(0, 3), max_size=40), st.sampled_from([True, True, False]), st.integers(1, 9))
async def test_streams_that_are_read_one_by_one_give_no_gaps(
    rows: list[_Row], steps: list[int], clustered: bool, limit: int
) -> None:
    """However entries come in while streams are looked at one after the other, each writer's come in order, and all."""
    streams = Streams(rows, steps, clustered)
    log = Log("x:", cast(Any, streams))
    found: list[Entry] = []
    after = b""
    for _ in range(200):
        before = streams.seen
        page = await log.trail(after, limit)
        found += page.entries
        after = page.after
        if len(page.entries) < limit:
            assert len(found) >= before, "what was there before is given in any case"
            if before == len(rows):
                break
    assert len(found) == len(rows)
    assert _in_writers_order([_Row(0, 0, 0, entry) for entry in found])


@given(WRITTEN, st.integers(1, 99))
async def test_the_tail_of_streams_is_their_end(rows: list[_Row], limit: int) -> None:
    """The newest entries come in the order of writing, and the position behind them is the end."""
    streams = Streams(rows, [len(rows)], False)
    log = Log("x:", cast(Any, streams))
    tail = await log.tail(limit)
    assert len(tail.entries) == min(limit, len(rows))
    last: dict[str, int] = {}
    for entry in tail.entries:
        assert entry.number == last.get(entry.writer, entry.number - 1) + 1
        last[entry.writer] = entry.number
    assert (await log.trail(tail.after, 9)).entries == []


async def test_a_standby_is_not_followed(database: Database) -> None:
    """What a replica says of open transactions is not the truth: it is refused there, with what to do."""
    # There is none here: the function is asked with what it would find.
    definition = (await database.run("SELECT pg_get_functiondef('cloister.audit_trail'::regproc)"))[0][0]
    await database.run(definition.replace("pg_is_in_recovery()", "true"))
    async with at(database.url()) as store:
        with pytest.raises((StoreUnavailable, StoreError), match="primary"):
            await store.trail(after=b"", limit=1)
