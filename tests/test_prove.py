"""``cloister prove`` passes where promises are kept, and each check finds the store that breaks its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from tests.databases import Database
from tests.fakes import opened
from tests.leaky import LEAKY, Eavesdropper

from cloister import stores
from cloister.errors import ConfigurationError, IntegrityError, StoreUnavailable
from cloister.keyring import Keyring
from cloister.model import Owner
from cloister.probe import lifetimes, prove
from cloister.probe.attack import Attack, Beyond, Fence, Leak, NotRun, Tampered, Trespass, Witness
from cloister.probe.prove import CHECKS, TOKENS, Check, checks, judged
from cloister.probe.report import Outcome
from cloister.sealing import SessionKeys
from cloister.settings import Settings
from cloister.stores.base import Receipt, Store
from cloister.stores.memory import MemoryStore
from cloister.stores.token import Alone, Ledger
from cloister.token_vault import TokenVault
from cloister.vault import Vault

TURNS = 60


def attack_on(store: Store) -> Attack:
    """An attack on a store that is in this process."""
    return Attack(lambda: store, "memory://", turns=TURNS)


async def outcomes_of(settings: Settings) -> list[Outcome]:
    """All that comes of an attack on the store of *settings*."""
    found: list[Outcome] = []
    await prove.prove(await prove.prepare(settings, TURNS), found.append)
    return found


def failed(outcomes: list[Outcome]) -> dict[str, str]:
    return {one.check: one.said for one in outcomes if one.verdict == "fail"}


# --- stores that keep their promises ----------------------------------------------------------------------------------


async def test_a_sound_store_passes(url: str) -> None:
    """Every check passes on every store but where there is no network, and nobody else's session is touched.

    Not even one whose time is up, which is for the deployment to end. Nothing of the canaries remains.
    """
    outcomes = await beside_ana(url, None)
    not_run = {one.check for one in outcomes if one.verdict != "pass"}
    if url.startswith("token"):
        assert not_run == {"crossed replies", *Ledger.unconcerned}
    else:
        assert not_run == ({"crossed replies"} if url.startswith(("memory", "sqlite")) else set())


@pytest.mark.parametrize("url", ["memory", "sqlite"], indirect=True)
async def test_a_store_with_tenants_passes(url: str) -> None:
    """So it is in a store with tenants, with canaries that have one."""
    assert failed(await beside_ana(url, "acme")) == {}


async def beside_ana(url: str, tenant: str | None) -> list[Outcome]:
    """What comes of an attack on a store in which Ana has a session that timed out long ago, which it must leave."""
    store, keyring = (MemoryStore() if url == "memory://" else None), Keyring.generate()
    tenancy: Any = "single" if tenant is None else "required"
    async with opened(store or url, tenancy=tenancy, keyring=keyring) as house:  # in January
        session = await house.cloister.user("ana", tenant=tenant).start()
        await session.send("My name is Ana.")
    attack = Attack((lambda: store) if store else (lambda: stores.connect(url)), url, tenant, TURNS)
    found: list[Outcome] = []
    await prove.prove(attack, found.append)
    assert failed(found) == {}
    assert found[-1].check == "cleaned up"
    async with opened(store or url, tenancy=tenancy, keyring=keyring) as house:
        again = await house.cloister.user("ana", tenant=tenant).resume(session.id)  # which is its last token, or its id
        assert [item.text for item in await again.history()] == ["My name is Ana.", "You said: My name is Ana."]
        for canary in attack.owners:
            assert await house.cloister.user(canary.user, tenant=tenant).sessions() == []
        assert not set(attack.owners) & set((await house.cloister.store.audit_owners()).values())
    return found


async def test_a_sound_cluster_passes(redis_cluster: str) -> None:
    """So it does on a cluster, before whose nodes the fault injector cannot stand unless they say so."""
    outcomes = await outcomes_of(Settings(store=f"redis+cluster://{redis_cluster}?prefix=prove:"))
    assert failed(outcomes) == {}
    assert [one.check for one in outcomes if one.verdict == "beyond rights"] == ["crossed replies"]


async def test_an_empty_store_is_empty_again(url: str) -> None:
    """A store that was attacked before anybody used it settles nothing: users with tenants may come, or without."""
    store = MemoryStore() if url == "memory://" else None
    attack = Attack((lambda: store) if store else (lambda: stores.connect(url)), url, turns=TURNS)
    async with attack.opened() as house:
        await house.planted(house.a)
    await prove.erase(attack)
    async with opened(store or url, tenancy="required", keyring=Keyring.generate()) as there:
        await there.cloister.user("ana", tenant="acme").start()


async def test_tokens_without_a_ledger_pass(tmp_path: Any) -> None:
    """Where nothing is kept, the tokens themselves and the log are attacked, and the rest is said not to concern it."""
    outcomes = await outcomes_of(Settings(store=f"token://?allow_replay=1&audit={tmp_path}/log"))
    assert failed(outcomes) == {}
    passed = [one.check for one in outcomes if one.verdict == "pass"]
    assert passed == [
        "changed tokens",
        "foreign ids",
        "malformed ids",
        "audit log",
        "expired sessions",
        "readable words",
    ]


def test_only_checks_are_passed_by() -> None:
    """What a store says does not concern it are names of checks."""
    names = {check.name for check in (*CHECKS, *TOKENS)} | {"cleaned up"}
    assert set(Alone.unconcerned) | set(Ledger.unconcerned) <= names


async def test_a_token_that_is_good_twice_fails(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a token that was used, or changed, is taken for the newest one, the check about that fails."""
    url = f"token://?ledger=sqlite:///{tmp_path}/x.db"
    attack = Attack(lambda: stores.connect(url), url, turns=TURNS)

    async def join(_: object, opened: Any, held: Any, **__: object) -> None:
        opened.name = held.name

    monkeypatch.setattr(TokenVault, "_join", join)
    assert set(failed([await judged(check, attack) for check in TOKENS])) == {"changed tokens", "used tokens"}


async def test_tenants_get_canaries_of_a_tenant(tmp_path: Any) -> None:
    """Where the store has tenants, or is to have them, the two belong to one of their own."""
    url = f"sqlite:///{tmp_path}/x.db"
    assert (await prove.prepare(Settings(store="memory://"), TURNS)).tenant is None
    assert (await prove.prepare(Settings(store="memory://", tenancy="required"), TURNS)).tenant is not None
    async with opened(url, tenancy="required") as house:
        await house.cloister.user("ana", tenant="acme").start()
    attack = await prove.prepare(Settings(store=url), TURNS)
    assert attack.tenant is not None
    assert attack.tenant == attack.a.tenant == attack.b.tenant != "acme"


# --- stores that do not -----------------------------------------------------------------------------------------------


async def each_alone(store: type[MemoryStore]) -> dict[str, str]:
    """What every check finds on a fresh store of its own."""
    return failed([await judged(check, attack_on(store())) for check in CHECKS])


async def test_the_checks_accept_a_sound_store() -> None:
    """The store from which the leaky ones are made passes every check by itself."""
    assert await each_alone(MemoryStore) == {}


@pytest.mark.parametrize(("leaky", "check"), LEAKY.items())
async def test_a_leaky_store_fails(leaky: type[MemoryStore], check: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that leaks in one way fails the check that concerns it, and no other."""
    genuine = SessionKeys.seal_item

    def overheard(self: SessionKeys, item: Any, *rest: Any) -> Any:
        Eavesdropper.heard = item.text.encode()
        return genuine(self, item, *rest)

    monkeypatch.setattr(SessionKeys, "seal_item", overheard)
    found = await each_alone(leaky)
    assert list(found) == [check], found


TAMPERED = [check.name for check in CHECKS if check.about == "rows" and check.run is not lifetimes.sealed]


@pytest.mark.parametrize("forgiven", TAMPERED)
async def test_what_goes_unnoticed_fails(forgiven: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a tampered answer is taken for a true one, the check that tampers so fails, and no other."""
    genuine, forgiving = Vault.ask, False

    async def ask(self: Vault, method: Any, *args: Any, **options: Any) -> Any:
        tampered = getattr(self.store, "changes", None)
        if not (forgiving and tampered):
            return await genuine(self, method, *args, **options)
        assert isinstance(self.store, Tampered)
        self.store.changes = {}  # as if nobody had looked
        try:
            reply = await genuine(self, getattr(self.store, method.__name__, method), *args, **options)
            self.store.done += 1
            return reply
        finally:
            self.store.changes = tampered

    monkeypatch.setattr(Vault, "ask", ask)
    found = []
    for check in CHECKS:
        forgiving = check.name == forgiven
        found.append(await judged(check, attack_on(MemoryStore())))
    assert list(failed(found)) == [forgiven], failed(found)


async def test_words_in_a_file_are_found(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A word that lies readable beside an embedded store is found, and the file is named."""
    genuine = SessionKeys.seal_item

    def overheard(self: SessionKeys, item: Any, *rest: Any) -> Any:
        with (tmp_path / "x.db.debug").open("a") as log:
            log.write(item.text)
        return genuine(self, item, *rest)

    monkeypatch.setattr(SessionKeys, "seal_item", overheard)
    attack = Attack(lambda: stores.connect(f"sqlite:///{tmp_path}/x.db"), "sqlite://")
    assert "x.db.debug" in failed([await judged(CHECKS[-1], attack)])["readable words"]


class Optimist:
    """A store that, once an answer was crossed, takes the next turn for stored without asking."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._crossed = False

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._store, name)
        if not asyncio.iscoroutinefunction(real):
            return real

        async def ask(*args: Any, **options: Any) -> Any:
            if name == "commit" and self._crossed:
                self._crossed = False
                return Receipt(options["nonce"])
            try:
                return await real(*args, **options)
            except IntegrityError:
                self._crossed = True
                raise

        return ask


@pytest.mark.parametrize("url", ["redis", "postgres"], indirect=True)
async def test_a_store_that_loses_turns_on_a_bad_network_fails(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that is sound until answers are crossed fails that check."""
    genuine = stores.connect
    monkeypatch.setattr(stores, "connect", lambda url: Optimist(genuine(url)))
    attack = Attack(lambda: genuine(url), url, turns=TURNS)
    (crossed,) = [check for check in CHECKS if check.name == "crossed replies"]
    outcome = await judged(crossed, attack)
    assert (outcome.verdict, "lost" in outcome.said or "older state" in outcome.said) == ("fail", True), outcome.said


# --- PostgreSQL -------------------------------------------------------------------------------------------------------

POSTGRES = ("role and schema", "row-level security", "owner settings", "ways around")


@pytest.fixture
async def app(database: Database) -> AsyncIterator[str]:
    """A role of one's own for the application: what is granted to a role holds for all databases of the server."""
    name = f"app_{database.name}"
    await execute(database, f"CREATE ROLE {name} LOGIN; GRANT cloister_application TO {name}")
    yield name
    await execute(database, f"DROP OWNED BY {name}; DROP ROLE {name}; DROP ROLE IF EXISTS strong_{database.name}")


async def execute(database: Database, sql: str) -> None:
    """Run several statements as the superuser."""
    async with database.connected() as driver:
        await driver.execute(sql)


async def some(url: str, *more: str) -> list[Outcome]:
    """What comes of the checks about PostgreSQL, one more, and those that are named."""
    attack = Attack(lambda: stores.connect(url), url, turns=TURNS)
    chosen = [check for check in checks(attack) if check.name in (*POSTGRES, "foreign ids", *more)]
    return [await judged(check, attack) for check in chosen]


DEFINER = (
    "CREATE FUNCTION {}.more() RETURNS bigint LANGUAGE sql SECURITY DEFINER AS 'SELECT count(*) FROM cloister.items'"
)
VIEW = "CREATE VIEW public.all_rows AS SELECT * FROM cloister.items; GRANT SELECT ON public.all_rows TO PUBLIC"


async def _accept(*_: object, **__: object) -> None:
    """Stand in for what is looked at when a store is opened: prove does not rest on it."""


@pytest.mark.parametrize(
    ("sql", "check"),
    [
        ("CREATE ROLE strong_{name} BYPASSRLS; GRANT strong_{name} TO app_{name}", "role and schema"),
        ("GRANT pg_read_server_files TO app_{name}", "role and schema"),
        ('ALTER DATABASE {name} SET "cloister.user" = ana', "owner settings"),
        (VIEW, "ways around"),
        (DEFINER.format("cloister"), "ways around"),
        (DEFINER.format("public"), "ways around"),
    ],
)
async def test_a_leaky_database_fails(
    database: Database, app: str, sql: str, check: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A database that has a way past its policies fails the check that looks there, were it opened or not."""
    assert failed(await some(database.url(app))) == {}
    monkeypatch.setattr("cloister.stores.postgres.check", _accept)
    await execute(database, sql.format(name=database.name))
    assert list(failed(await some(database.url(app)))) == [check]


@pytest.mark.parametrize(
    "sql",
    [
        "ALTER TABLE cloister.sessions DISABLE ROW LEVEL SECURITY",
        "CREATE POLICY all_of_it ON cloister.items TO cloister_application USING (true)",
        "GRANT SELECT ON cloister.audit TO PUBLIC; CREATE POLICY read ON cloister.audit FOR SELECT USING (true)",
    ],
)
async def test_rows_without_a_policy_are_read(database: Database, sql: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Were such a schema opened, its rows would be found readable or writable: the check does not rest on start-up."""

    monkeypatch.setattr("cloister.stores.postgres.check", _accept)
    await execute(database, sql)
    assert list(failed(await some(database.url()))) == ["role and schema", "row-level security"]


async def test_a_schema_that_does_not_open_is_a_report(database: Database) -> None:
    """A store that refuses to open for what a check is about fails that check; the others were not run."""
    await database.run("ALTER TABLE cloister.items NO FORCE ROW LEVEL SECURITY")
    outcomes = await outcomes_of(Settings(store=database.url()))
    assert list(failed(outcomes)) == ["role and schema"]
    assert "FORCE ROW LEVEL SECURITY" in outcomes[0].said
    assert {one.verdict for one in outcomes[1:]} == {"not run"}


async def test_a_server_that_is_not_there_is_an_error(tmp_path: Any) -> None:
    """A store that cannot be reached is no report, but an error."""
    with pytest.raises(StoreUnavailable):
        await outcomes_of(Settings(store="redis://127.0.0.1:1/0"))
    with pytest.raises(ConfigurationError):
        await outcomes_of(Settings(store=f"sqlite:///{tmp_path}/missing/x.db"))


async def test_through_a_pooler(database: Database, pgbouncer: int) -> None:
    """A pooler in transaction mode changes nothing, and the report says that there is one."""
    outcomes = await some(f"{database.url(port=pgbouncer)}?pooler=1", "concurrent turns", "crossed replies")
    assert {one.verdict for one in outcomes} == {"pass"}
    assert any("a pooler is between" in one.said for one in outcomes)


async def test_an_application_that_may_not_read_the_log(database: Database, app: str) -> None:
    """Where the log is an operator's to read, that check is beyond rights, and all others pass."""
    outcomes = await some(database.url(app), "audit log", "erased owners")
    assert [(one.check, one.verdict) for one in outcomes if one.verdict != "pass"] == [("audit log", "beyond rights")]
    (erased,) = [one.said for one in outcomes if one.check == "erased owners"]
    assert "beyond this role" in erased


# --- how checks are judged, and what is left --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raised", "verdict"),
    [(Leak("x"), "fail"), (Beyond("x"), "beyond rights"), (NotRun("x"), "not run"), (KeyError("secret"), "fail"),
     (StoreUnavailable("x"), "fail"), (ExceptionGroup("x", [Leak("inner")]), "fail"), (TimeoutError(), "fail")],
)  # fmt: skip
async def test_verdicts(raised: Exception, verdict: str) -> None:
    """What a check raises is its verdict; one that crashes has failed, and nothing of a strange error is told."""

    async def check(_: Attack) -> str:
        """It holds"""
        raise raised

    outcome = await judged(Check("x", "owners", check), attack_on(MemoryStore()))
    assert (outcome.verdict, outcome.promise) == (verdict, "It holds")
    assert "secret" not in outcome.said


async def test_the_fence() -> None:
    """No request that names somebody else comes through, whatever it is; nor is anybody else swept or expired."""
    store, witness = MemoryStore(), Witness(b"word")
    async with opened(store) as house:  # in January
        session = await house.ana.start()
        fence: Any = Fence(store, lambda owner: owner.user.startswith("canary"), witness)
        ana, nonce = Owner(None, "ana"), b"n" * 16
        row = (await store.load(ana, session.id, nonce=nonce, budget=0)).session
        requests = [
            fence.load(ana, session.id, nonce=nonce, budget=0),
            fence.items(ana, session.id, nonce=nonce, first=0, limit=1),
            fence.sessions(ana, nonce=nonce, limit=1, before=None),
            fence.end(ana, session.id, nonce=nonce, ended="ended", now=0),
            fence.erase(ana, nonce=nonce),
            fence.create(row, nonce=nonce),
            fence.rewrap(row, None, None, nonce=nonce),
            fence.renew(ana, session.id, b"l", nonce=nonce),
            fence.release(ana, session.id, b"l", nonce=nonce),
        ]
        for request in requests:
            with pytest.raises(Trespass):
                await request
        assert await fence.expired(now=1 << 60, limit=10, skip=0) == []
        assert await fence.sweep(nonce=nonce, now=1 << 60, tombstones_before=1 << 60, fingerprints=0) == Receipt(nonce)
        assert len(await house.ana.sessions()) == 1


class StaysThere(MemoryStore):
    """Cannot erase."""

    async def erase(self, owner: Owner, **options: Any) -> Receipt:
        raise StoreUnavailable("the disk is full")


async def test_what_cannot_be_cleaned_up_is_said() -> None:
    """Canaries that could not be erased are named, with the command that takes them away."""
    attack, found = attack_on(StaysThere()), list[Outcome]()
    await prove.prove(attack, found.append)
    assert set(failed(found)) == {"erased owners", "cleaned up"}
    for owner in attack.owners:
        assert f"cloister sessions erase --user {owner.user}" in found[-1].said


@pytest.mark.parametrize("after", [1, 4, 10, 16])
async def test_cancelled_it_cleans_up(after: int) -> None:
    """Wherever it is interrupted, both canaries are erased."""
    store, found = MemoryStore(), list[Outcome]()

    def tell(outcome: Outcome) -> None:
        found.append(outcome)
        if len(found) == after:
            running.cancel()

    running = asyncio.create_task(prove.prove(attack_on(store), tell))
    with pytest.raises(asyncio.CancelledError):
        await running
    assert len(found) == after + 1
    assert (found[-1].check, found[-1].verdict) == ("cleaned up", "pass")
    assert store._sessions == {}


async def test_a_store_says_what_does_not_concern_it() -> None:
    """A store that has no rows of a kind says so, and those checks are not run."""

    class Rowless(MemoryStore):
        unconcerned = {"rows": "the id is the conversation", "lists": "nothing is listed"}  # noqa: RUF012

    found: list[Outcome] = []
    await prove.prove(attack_on(Rowless()), found.append)
    passed_by = {one.check: one.said for one in found if one.verdict == "not run"}
    assert passed_by["swapped rows"] == "the id is the conversation"
    assert passed_by["lists"] == "nothing is listed"
    assert failed(found) == {}
