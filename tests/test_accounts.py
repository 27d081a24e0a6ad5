"""Budgets: whatever comes, an account says what was spent and reserved, and the contract rejects stores that do not."""

from __future__ import annotations

import asyncio
import secrets
import sys
import tempfile
from asyncio.subprocess import PIPE
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from tests.databases import Database

from cloister import stores
from cloister.errors import ConfigurationError
from cloister.model import Owner, SealedSession
from cloister.stores.accounts import Accounts
from cloister.stores.base import Account, Charge, Commit, Loaded, Receipt, Store
from cloister.stores.memory import MemoryStore
from cloister.stores.redis import RedisStore
from cloister.stores.sqlite import SqliteStore
from cloister.stores.sqlite_accounts import Accounts as SqliteAccounts
from cloister.testing import StoreConformance, grown, load, nonce, sealed_items, sealed_session
from cloister.testing.rows import ANA, BEN

ROOT = Path(__file__).parent.parent


class ChecksOnly(Accounts):
    """Looks whether there is room, and takes none."""

    def reserve(self, lease: bytes, charges: Sequence[Charge]) -> Account | None:
        before = deepcopy(self._accounts)
        over = super().reserve(lease, charges)
        self._accounts = before
        return over


class ReservesNothing(Accounts):
    """Keeps to limits, and counts what was spent only."""

    def spent(self, account: Account) -> int:
        kept = self._accounts.get(account)
        return 0 if kept is None else kept.spent - sum(kept.reserved.values())


class SettlesTwice(Accounts):
    """Counts what is settled under a lease whether or not it was before."""

    def settle(self, lease: bytes | None, charges: Sequence[Charge]) -> None:
        for charge in charges:
            if charge.account in self._accounts:
                self._accounts[charge.account].reserved.setdefault(lease or b"", 0)
        super().settle(lease, charges)


class BringsBack(Accounts):
    """Counts what is settled in an account that is gone."""

    def settle(self, lease: bytes | None, charges: Sequence[Charge]) -> None:
        gone = [replace(charge, amount=0, limit=None) for charge in charges if charge.account not in self._accounts]
        self.reserve(lease or b"", gone)
        super().settle(lease, charges)


class SettlesBelow(Accounts):
    """Never gives back what was reserved too much."""

    def settle(self, lease: bytes | None, charges: Sequence[Charge]) -> None:
        held = [self._accounts[charge.account].reserved.get(lease or b"", 0) for charge in charges]
        some = zip(charges, held, strict=True)
        super().settle(lease, [replace(charge, amount=max(charge.amount, least)) for charge, least in some])


class LimitForgotten(Accounts):
    """Only counts."""

    def reserve(self, lease: bytes, charges: Sequence[Charge]) -> Account | None:
        return super().reserve(lease, [replace(charge, limit=None) for charge in charges])


class LimitNotReached(Accounts):
    """Refuses the last that there is room for."""

    def reserve(self, lease: bytes, charges: Sequence[Charge]) -> Account | None:
        less = [replace(charge, limit=charge.limit and charge.limit - 1) for charge in charges]
        return super().reserve(lease, less)


class HalfReserved(Accounts):
    """Reserves in the accounts before the one that is full."""

    def reserve(self, lease: bytes, charges: Sequence[Charge]) -> Account | None:
        for charge in charges:
            if (over := super().reserve(lease, [charge])) is not None:
                return over
        return None


class LastNamed(Accounts):
    """Names the last account that is full."""

    def reserve(self, lease: bytes, charges: Sequence[Charge]) -> Account | None:
        return super().reserve(lease, list(reversed(charges)))


class ReservesTwice(Accounts):
    """Does not know a reservation that it has."""

    def reserve(self, lease: bytes, charges: Sequence[Charge]) -> Account | None:
        for kept in self._accounts.values():
            kept.reserved.pop(lease, None)
        return super().reserve(lease, charges)


class UsersMixed(Accounts):
    """Counts what all users of a tenant spend together."""

    def reserve(self, lease: bytes, charges: Sequence[Charge]) -> Account | None:
        return super().reserve(lease, [_moved(charge, user=None) for charge in charges])

    def settle(self, lease: bytes | None, charges: Sequence[Charge]) -> None:
        super().settle(lease, [_moved(charge, user=None) for charge in charges])

    def spent(self, account: Account) -> int:
        return super().spent(replace(account, user=None))


class TenantsMixedUp(Accounts):
    """Counts what users of one name spend together, whatever their tenant."""

    def reserve(self, lease: bytes, charges: Sequence[Charge]) -> Account | None:
        return super().reserve(lease, [_moved(charge, tenant=None) for charge in charges])

    def settle(self, lease: bytes | None, charges: Sequence[Charge]) -> None:
        super().settle(lease, [_moved(charge, tenant=None) for charge in charges])

    def spent(self, account: Account) -> int:
        return super().spent(replace(account, tenant=None))


class PeriodsMixed(Accounts):
    """Counts months and days together."""

    def reserve(self, lease: bytes, charges: Sequence[Charge]) -> Account | None:
        return super().reserve(lease, [_moved(charge, period="") for charge in charges])

    def spent(self, account: Account) -> int:
        return super().spent(replace(account, period=""))


class ErasedTenant(Accounts):
    """Erases the tenant's accounts with a user's."""

    def erase(self, owner: Owner) -> None:
        self._keep(lambda account, _: account.tenant != owner.tenant)


class ErasedNobody(Accounts):
    """Forgets to erase accounts."""

    def erase(self, owner: Owner) -> None:
        pass


class NeverSwept(Accounts):
    """Keeps accounts for good."""

    def sweep(self, now: int) -> None:
        pass


class SweptEarly(Accounts):
    """Sweeps accounts in their last microsecond."""

    def sweep(self, now: int) -> None:
        super().sweep(now + 1)


def _moved(charge: Charge, **where: Any) -> Charge:
    return replace(charge, account=replace(charge.account, **where))


class _Counting(MemoryStore):
    def __init__(self, accounts: Accounts) -> None:
        super().__init__()
        self._accounts = accounts


class ReservesForAnything(MemoryStore):
    """Reserves before it looks whether there is a session."""

    async def load(self, owner: Owner, session_id: str, **options: Any) -> Loaded:
        charges, lease = options.pop("charges", ()), options.get("lease")
        if lease and (over := self._accounts.reserve(lease, charges)) is not None:
            return Loaded(options["nonce"], over=over)
        return await super().load(owner, session_id, **options)


class ReservesForReplays(MemoryStore):
    """Reserves for a turn that was answered before."""

    async def load(self, owner: Owner, session_id: str, **options: Any) -> Loaded:
        record = options.pop("record", None)
        loaded = await super().load(owner, session_id, **options)
        return replace(loaded, record=self._records.get((owner, session_id, record or b"")))


class LeaseLeftBehind(MemoryStore):
    """Keeps the lease of a turn that it refuses."""

    async def load(self, owner: Owner, session_id: str, **options: Any) -> Loaded:
        loaded = await super().load(owner, session_id, **options)
        if loaded.over is not None:
            self._take(owner, session_id, options["lease"])
        return loaded


class ReleaseGivesBack(MemoryStore):
    """Gives back what was reserved with the lease."""

    async def release(self, owner: Owner, session_id: str, lease: bytes, *, nonce: bytes) -> Receipt:
        for account, kept in self._accounts._accounts.items():
            if lease in kept.reserved:
                self._accounts.settle(lease, [Charge(account, 0, None, 0)])
        return await super().release(owner, session_id, lease, nonce=nonce)


class SettlesRefused(MemoryStore):
    """Settles before it looks whether the turn can be stored."""

    async def commit(self, commit: Commit, *, nonce: bytes) -> Receipt:
        self._accounts.settle(commit.lease, commit.charges)
        return await super().commit(replace(commit, charges=()), nonce=nonce)


class SettlesRepeated(MemoryStore):
    """Settles a turn again when it comes again."""

    async def commit(self, commit: Commit, *, nonce: bytes) -> Receipt:
        receipt = await super().commit(commit, nonce=nonce)
        if receipt.repeated:
            self._accounts.reserve(b"again", [replace(charge, limit=None) for charge in commit.charges])
        return receipt


class FirstTurnsForgotten(MemoryStore):
    """Does not settle with the first turn of a session."""

    async def create(self, session: SealedSession, *args: Any, **options: Any) -> Receipt:
        options.pop("charges", None)
        return await super().create(session, *args, **options)


class ChargesAnybody(MemoryStore):
    """Takes a charge for any account that it names."""

    async def charge(self, owner: Owner, lease: bytes, charges: Sequence[Charge], *, nonce: bytes) -> Receipt:
        self._accounts.reserve(lease, charges)
        return Receipt(nonce)


BROKEN: dict[type[Accounts] | type[MemoryStore], str] = {
    ChecksOnly: "test_turns_at_once_stay_within_the_limit",
    ReservesNothing: "test_a_turn_reserves_and_settles",
    SettlesTwice: "test_charges_by_themselves",
    SettlesBelow: "test_a_turn_reserves_and_settles",
    BringsBack: "test_erasure_takes_the_owners_accounts",
    LimitForgotten: "test_a_limit_is_reached_and_not_passed",
    LimitNotReached: "test_a_limit_is_reached_and_not_passed",
    HalfReserved: "test_all_accounts_or_none",
    LastNamed: "test_all_accounts_or_none",
    ReservesTwice: "test_a_turn_that_never_ends_stays_counted",
    UsersMixed: "test_everybody_has_an_account",
    TenantsMixedUp: "test_everybody_has_an_account",
    PeriodsMixed: "test_everybody_has_an_account",
    ErasedTenant: "test_erasure_takes_the_owners_accounts",
    ErasedNobody: "test_erasure_takes_the_owners_accounts",
    NeverSwept: "test_accounts_are_swept",
    SweptEarly: "test_accounts_are_swept",
    ReservesForAnything: "test_nothing_is_reserved_without_a_turn",
    ReservesForReplays: "test_nothing_is_reserved_without_a_turn",
    LeaseLeftBehind: "test_a_limit_is_reached_and_not_passed",
    ReleaseGivesBack: "test_a_turn_that_never_ends_stays_counted",
    SettlesRefused: "test_a_refused_turn_settles_nothing",
    SettlesRepeated: "test_a_repeated_commit_settles_once",
    FirstTurnsForgotten: "test_a_new_session_settles",
    ChargesAnybody: "test_nobody_is_charged_for_another",
}
"""Each with the promise that it breaks."""


@pytest.mark.parametrize("broken", BROKEN)
async def test_the_contract_rejects(broken: type[Accounts] | type[MemoryStore]) -> None:
    """A store that counts wrongly fails the promise that it breaks."""
    store = broken() if issubclass(broken, MemoryStore) else _Counting(broken())
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        await getattr(StoreConformance(), BROKEN[broken])(store)


# --- every store ------------------------------------------------------------------------------------------------------

PERIOD, UNTIL = "2026-01", 1 << 50
SHARED = ["sqlite", "redis", "cluster", "postgres"]


def _charges(amount: int, limit: int | None = None) -> list[Charge]:
    return [Charge(Account("acme", who, PERIOD), amount, limit, UNTIL) for who in ("ana", None)]


async def _spent(store: Store) -> list[int]:
    return list((await store.spent([charge.account for charge in _charges(0)], nonce=nonce())).amounts)


async def _sessions(store: Store, count: int) -> list[SealedSession]:
    rows = [sealed_session() for _ in range(count)]
    await asyncio.gather(*(store.create(row, nonce=nonce()) for row in rows))
    return rows


@pytest.fixture
async def store(url: str) -> AsyncIterator[Store]:
    store = stores.connect(url)
    await store.open()
    yield store
    await store.close()


@pytest.mark.parametrize("url", SHARED, indirect=True)
async def test_processes_at_once_stay_within_the_limit(url: str, store: Store) -> None:
    """Processes that begin turns at the same time are let in as far as there is room, and have spent it if they die."""
    ids = [row.id for row in await _sessions(store, 60)]
    command = [sys.executable, "-m", "tests.spender", url, "7", str(7 * 25 + 6)]
    spenders = [await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, cwd=ROOT) for _ in range(3)]
    for spender in spenders:
        assert spender.stdout
        assert await spender.stdout.readline() == b"ready\n"
    said = [spender.communicate(" ".join(ids[number::3]).encode() + b"\n") for number, spender in enumerate(spenders)]
    inside = [int(out) for out, _ in await asyncio.gather(*said)]
    assert sum(inside) == 25, inside
    assert await _spent(store) == [175, 175]
    last = sealed_session()
    await store.create(last, nonce=nonce())
    assert (await load(store, last.owner, last.id, lease=b"l", charges=_charges(7, 181))).over == _charges(0)[0].account


@pytest.mark.parametrize("url", ["redis", "cluster", "postgres"], indirect=True)
async def test_a_budget_takes_no_request(url: str, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading and storing a turn take as many requests with charges as without, on a cluster one more each."""
    from cloister.stores import postgres_wire, redis_wire

    asked: list[str] = []
    run, call = redis_wire.Wire.run, postgres_wire.Wire.call

    async def ran(self: Any, script: str, keys: Sequence[bytes], args: Sequence[Any]) -> list[Any]:
        asked.append(str(keys))
        return await run(self, script, keys, args)

    async def called(self: Any, function: str, *args: object) -> Any:
        asked.append(str(args))
        return await call(self, function, *args)

    monkeypatch.setattr(redis_wire.Wire, "run", ran)
    monkeypatch.setattr(postgres_wire.Wire, "call", called)

    async def requests(session: SealedSession, charges: Sequence[Charge]) -> list[list[str]]:
        lease, steps = secrets.token_bytes(16), []
        asked.clear()
        await load(store, session.owner, session.id, lease=lease, charges=charges)
        steps.append(list(asked))
        asked.clear()
        await store.commit(grown(session, sealed_items(2), lease, charges=charges), nonce=nonce())
        return [*steps, list(asked)]

    first, *rows = await _sessions(store, 3)
    await requests(first, ())  # the first of an owner looks up more
    without = await requests(rows[0], ())
    charged = await requests(rows[1], _charges(5, 100))
    more = int("cluster" in url)
    assert [len(step) for step in charged] == [len(step) + more for step in without] == [1 + more, 1 + more]
    assert ":a:" not in str(without), "an account was looked at"
    assert PERIOD not in str(without)
    assert await _spent(store) == [5, 5]


@pytest.mark.parametrize("url", ["redis", "cluster"], indirect=True)
async def test_no_name_is_in_a_key(url: str, store: Store) -> None:
    """What Redis keeps of accounts names nobody, neither in keys nor in values."""
    owner = Owner("visible-tenant", "visible-name")
    charges = [Charge(Account(owner.tenant, who, PERIOD), 5, 100, UNTIL) for who in (owner.user, None)]
    await store.charge(owner, b"one", charges, nonce=nonce())
    assert isinstance(store, RedisStore)
    found = []
    for address in await store._nodes.primaries():
        for key in await store._plain(address, "KEYS", f"{store._prefix}*"):
            found.append(key)
            assert b"visible" not in key
            assert b"visible" not in await store._plain(address, "DUMP", key)
    assert len(found) == 3


@pytest.mark.parametrize("url", ["memory", *SHARED], indirect=True)
async def test_nothing_is_left_of_what_is_swept(url: str, store: Store) -> None:
    """Sweeping takes all of an account, what was never settled too; what was settled does not pile up until then."""
    for number, session in enumerate(await _sessions(store, 30)):
        lease = secrets.token_bytes(16)
        await load(store, session.owner, session.id, lease=lease, charges=_charges(5, 1_000))
        if number % 3:
            await store.commit(grown(session, (), lease, charges=_charges(2)), nonce=nonce())
    assert await _spent(store) == [90, 90]
    assert 20 <= await _rows(store, url) <= 42
    await store.sweep(now=UNTIL, tombstones_before=0, fingerprints=9, nonce=nonce())
    assert await _rows(store, url) == 0


async def _rows(store: Any, url: str) -> int:
    """Say how many reservations and accounts a store keeps."""
    if isinstance(store, MemoryStore):
        return sum(1 + len(kept.reserved) for kept in store._accounts._accounts.values())
    if isinstance(store, SqliteStore):
        count = "SELECT count(*) FROM "
        (main,), (side,) = (
            db.execute(count + table).fetchone()
            for db, table in ((store._reader, "accounts"), (store._leases, "reserved"))
        )
        return int(main + side)
    if isinstance(store, RedisStore):
        fields = 0
        for address in await store._nodes.primaries():
            for key in await store._plain(address, "KEYS", f"{store._prefix}*a:*"):
                fields += await store._plain(address, "HLEN", key)
            for key in await store._plain(address, "KEYS", f"{store._prefix}*until"):
                fields += await store._plain(address, "ZCARD", key)
        return fields
    driver = await asyncpg.connect(url)
    await driver.execute(
        "SELECT set_config('cloister.tenant', 'acme', false), set_config('cloister.user', 'ana', false)"
    )
    found = await driver.fetchval("SELECT (SELECT count(*) FROM cloister.accounts) + count(*) FROM cloister.charges")
    await driver.close()
    return int(found)


# --- one store --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
async def test_a_lost_file_of_leases_takes_reservations_alone(url: str, store: Store, tmp_path: Path) -> None:
    """What was settled lies in the database: whoever deletes the file beside it loses what turns had reserved."""
    one, two = await _sessions(store, 2)
    await load(store, one.owner, one.id, lease=b"one", charges=_charges(50, 100))
    await store.commit(grown(one, (), b"one", charges=_charges(30)), nonce=nonce())
    await load(store, two.owner, two.id, lease=b"two", charges=_charges(50, 100))
    assert await _spent(store) == [80, 80]
    await store.close()
    again = stores.connect(url)
    await again.open()
    assert await _spent(again) == [80, 80]
    await again.close()
    for name in ("x.db.leases", "x.db.leases-wal", "x.db.leases-shm"):
        (tmp_path / name).unlink(missing_ok=True)
    await store.open()
    assert await _spent(store) == [30, 30]


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
async def test_dying_at_a_commit_gives_nothing_back(url: str, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that dies when its turn is stored, before what it reserved is removed, has spent both."""
    (session,) = await _sessions(store, 1)
    await load(store, session.owner, session.id, lease=b"one", charges=_charges(50, 100))
    monkeypatch.setattr(SqliteAccounts, "settled", lambda _, write, __, charges, ___: write(charges))
    await store.commit(grown(session, (), b"one", charges=_charges(30)), nonce=nonce())
    assert await _spent(store) == [80, 80]


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
async def test_a_cancelled_settlement_is_settled_once(url: str, store: Store) -> None:
    """Whoever is cancelled while it is settled has settled it, and settling it again changes nothing."""
    await store.charge(ANA, b"one", _charges(50, 100), nonce=nonce())
    settling = asyncio.create_task(store.charge(ANA, b"one", _charges(30), nonce=nonce()))
    await asyncio.sleep(0)
    settling.cancel()
    await asyncio.wait([settling])
    assert settling.cancelled()
    await store.charge(ANA, b"one", _charges(10), nonce=nonce())
    assert await _spent(store) == [30, 30]


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
async def test_another_process_brings_no_account_back(url: str, store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What another process reserves just before an erasure, or settles just after, is gone with the account."""
    one, two = await _sessions(store, 2)
    other = stores.connect(url)
    await other.open()
    await load(other, ANA, one.id, lease=b"one", charges=_charges(5, 100))
    write = store._writer.write

    async def in_between(work: Any) -> Any:
        await load(other, ANA, two.id, lease=b"two", charges=_charges(7, 100))
        receipt = await write(work)
        await other.charge(ANA, b"one", _charges(4), nonce=nonce())
        return receipt

    monkeypatch.setattr(store._writer, "write", in_between)
    await store.erase(ANA, nonce=nonce())
    assert await _spent(store) == [0, 11]
    await other.close()


async def test_a_turn_that_begins_waits_for_an_erasure(database: Database) -> None:
    """While its owner is being erased no turn is reserved, and none is after that."""
    store = stores.connect(database.url())
    await store.open()
    session = (await _sessions(store, 1))[0]
    async with database.connected("cloister_app") as driver:
        await driver.execute("BEGIN")
        await driver.execute("SELECT cloister.erase('', 'acme', 'ana', '[]', '{}', '[]')")
        loading = asyncio.create_task(load(store, ANA, session.id, lease=b"one", charges=_charges(5, 100)))
        await asyncio.wait([loading], timeout=0.2)
        await driver.execute("COMMIT")
    assert (await loading).session is None
    assert await _spent(store) == [0, 0]
    await store.close()


_AS = "SELECT set_config('cloister.tenant', $1, false), set_config('cloister.user', $2, false)"


async def test_row_level_security_holds_for_accounts(database: Database) -> None:
    """The application's role sees and changes the accounts of the owner it names and of the tenant, and no other's."""
    store = stores.connect(database.url())
    await store.open()
    for owner in (ANA, BEN, Owner("other", "ana"), Owner(None, "ana")):
        charges = [Charge(Account(owner.tenant, who, PERIOD), 5, 100, UNTIL) for who in (owner.user, None)]
        await store.charge(owner, b"one", charges, nonce=nonce())
    await store.close()
    async with database.connected("cloister_app") as driver:
        for table in ("accounts", "charges"):
            for tenant, user, seen in (
                ("", "", []),
                ("acme", "", []),
                ("acme", "ben", [("acme", ""), ("acme", "ben")]),
                ("other", "ben", [("other", "")]),
                ("", "ana", [("", ""), ("", "ana")]),
            ):
                await driver.execute(_AS, tenant, user)
                rows = await driver.fetch(f'SELECT tenant, "user" FROM cloister.{table} ORDER BY 1, 2')
                assert [tuple(row) for row in rows] == seen
            await driver.execute(_AS, "acme", "ben")
            for change in ("DELETE FROM cloister.{}", "UPDATE cloister.{} SET period = 'x'"):
                statement = change.format(table) + " WHERE \"user\" = 'ana' OR tenant <> 'acme'"
                assert (await driver.execute(statement)).endswith(" 0")
        for tenant, user in (("acme", "ana"), ("other", ""), ("", "")):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await driver.execute("INSERT INTO cloister.accounts VALUES ($1, $2, '2026', 0, 0)", tenant, user)


async def test_no_turn_waits_for_anothers_commit(database: Database) -> None:
    """While one turn's settlement waits to be made durable, others of its tenant begin and are stored."""
    store = stores.connect(database.url())
    await store.open()
    await store.charge(ANA, b"one", _charges(50, 100), nonce=nonce())
    session = (await _sessions(store, 1))[0]
    async with database.connected("cloister_app") as driver:
        await driver.execute("BEGIN")
        settled = '[{"user": "", "period": "2026-01", "amount": 1}, {"user": "ana", "period": "2026-01", "amount": 1}]'
        sql = "SELECT cloister.charge('', 'acme', 'ana', 'one', $1, false)"
        await driver.execute(sql, settled)
        await load(store, ANA, session.id, lease=b"two", charges=_charges(50, 100))
        await store.commit(grown(session, (), b"two", charges=_charges(3)), nonce=nonce())
        assert await _spent(store) == [53, 53]
        await driver.execute("COMMIT")
    assert await _spent(store) == [4, 4]
    await store.close()


async def test_tokens_are_charged_in_their_ledger() -> None:
    """Sealed tokens are charged where their ledger is, and refused where there is none to charge them in."""
    ledger = stores.connect("token://?ledger=memory://")
    await ledger.open()
    assert (await ledger.charge(ANA, b"one", _charges(50, 40), nonce=nonce())).over is not None
    await ledger.charge(ANA, b"one", _charges(50, 50), nonce=nonce())
    assert await _spent(ledger) == [50, 50]
    alone = stores.connect("token://?allow_replay=1")
    commit = grown(sealed_session(), (), b"one", charges=_charges(1))
    for refused in (
        alone.charge(ANA, b"one", _charges(1, 2), nonce=nonce()),
        alone.spent([_charges(0)[0].account], nonce=nonce()),
        alone.commit(commit, nonce=nonce()),
        alone.create(sealed_session(), nonce=nonce(), charges=_charges(1), lease=b"one"),
    ):
        with pytest.raises(ConfigurationError, match="ledger"):
            await refused


# --- whatever comes ---------------------------------------------------------------------------------------------------

_STEP = st.tuples(
    st.sampled_from(["reserve", "settle"]),
    st.sampled_from([b"one", b"two", b"three"]),
    st.lists(st.tuples(st.sampled_from(["ana", None]), st.integers(0, 9), st.integers(0, 20)), max_size=2),
)


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
@given(steps=st.lists(_STEP, max_size=20))
def test_an_account_is_the_sum_of_its_turns(kind: str, steps: list[Any]) -> None:
    """An account says what its turns reserved last, or were settled at, and a limit was never passed by reserving."""

    async def check(store: Store) -> None:
        reserved: dict[tuple[str | None, bytes], int] = {}
        settled: Counter[str | None] = Counter()

        def stands(who: str | None) -> int:
            return settled[who] + sum(amount for (whose, _), amount in reserved.items() if whose == who)

        for what, lease, wanted in steps:
            each = {who: (amount, limit if what == "reserve" else None) for who, amount, limit in wanted}
            charges = [
                Charge(Account("acme", who, PERIOD), amount, limit, UNTIL) for who, (amount, limit) in each.items()
            ]
            over = (await store.charge(ANA, lease, charges, nonce=nonce())).over
            more = {who: amount - reserved.get((who, lease), 0) for who, (amount, _) in each.items()}
            full = [who for who, (_, most) in each.items() if most is not None and 0 < more[who] > most - stands(who)]
            assert over == (Account("acme", full[0], PERIOD) if full else None)
            for who, (amount, _) in each.items():
                if what == "settle" and (who, lease) in reserved:
                    del reserved[who, lease]
                    settled[who] += amount
                elif what == "reserve" and not full:
                    reserved[who, lease] = amount
            assert await _spent(store) == [stands("ana"), stands(None)]

    async def run() -> None:
        with tempfile.TemporaryDirectory() as folder:
            store = stores.connect("memory://" if kind == "memory" else f"sqlite:///{folder}/x.db?synchronous=normal")
            await store.open()
            try:
                await check(store)
            finally:
                await store.close()

    asyncio.run(run())
