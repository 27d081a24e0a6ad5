"""Settings: where they come from, which one wins, and what a wrong one is told."""

from __future__ import annotations

import base64
import secrets
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister import auditing, doctor, settings, sinks
from cloister.alarms import Alarms
from cloister.audit import AuditKey, Entry
from cloister.client import AsyncCloister
from cloister.costs import Budget, Prices
from cloister.errors import ConfigurationError
from cloister.keyring import Keyring
from cloister.model import Limits
from cloister.providers.anthropic import Anthropic
from cloister.providers.offline import Offline
from cloister.providers.openai import OpenAICompatible
from cloister.scrub import Scrub
from cloister.settings import Settings

ONE_KEY = "first:" + base64.urlsafe_b64encode(bytes(32)).decode()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read(environ: dict[str, str] | None = None, **given: Any) -> Settings:
    return Settings.read(environ={} if environ is None else environ, **given)


def test_nothing_set() -> None:
    """Without any setting the store is a file in the working folder, the limits are strict, and nobody answers."""
    found = read()
    assert found.store == "sqlite:///cloister.db"
    assert found.limits() == Limits.strict()
    assert found.answerer() is None
    assert found.keyring() is None


def test_order(folder: Path) -> None:
    """The environment beats the file, and arguments beat both."""
    (folder / "cloister.toml").write_text('store = "sqlite:///file.db"\ncontext_tokens = 1\nturn_wait = "1s"\n')
    found = read({"CLOISTER_STORE": "sqlite:///environment.db", "CLOISTER_CONTEXT_TOKENS": "2"}, context_tokens=3)
    assert (found.store, found.context_tokens) == ("sqlite:///environment.db", 3)
    assert found.turn_wait == timedelta(seconds=1)
    assert found.config == Path("cloister.toml")


def test_named_file(folder: Path) -> None:
    """CLOISTER_CONFIG names another file, and the argument yet another."""
    (folder / "one.toml").write_text("context_tokens = 1\n")
    (folder / "two.toml").write_text("context_tokens = 2\n")
    assert read({"CLOISTER_CONFIG": "one.toml"}).context_tokens == 1
    assert read({"CLOISTER_CONFIG": "one.toml"}, file="two.toml").context_tokens == 2
    with pytest.raises(ConfigurationError, match=r"none\.toml does not exist"):
        read({"CLOISTER_CONFIG": "none.toml"})


@given(st.integers(1, 36_500), st.sampled_from([("s", "seconds"), ("m", "minutes"), ("h", "hours"), ("d", "days")]))
def test_durations(number: int, unit: tuple[str, str]) -> None:
    """A duration is a number with its unit."""
    found = read({"CLOISTER_IDLE_TIMEOUT": f"{number}{unit[0]}", "CLOISTER_ABSOLUTE_TIMEOUT": "never"})
    assert found.limits().idle_timeout == timedelta(**{unit[1]: number})
    assert found.limits().absolute_timeout is None


def test_keep_days() -> None:
    """KEEP_DAYS stands for both timeouts, and leaves the wait for a turn alone."""
    found = read({"CLOISTER_KEEP_DAYS": "7", "CLOISTER_TURN_WAIT": "3s"})
    assert found.limits() == Limits(timedelta(days=7), None, timedelta(seconds=3))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("IDLE_TIMEOUT", "30"),
        ("IDLE_TIMEOUT", "30 weeks"),
        ("IDLE_TIMEOUT", "0m"),
        ("ABSOLUTE_TIMEOUT", "-1h"),
        ("TURN_WAIT", "never"),
        ("KEEP_DAYS", "0"),
        ("KEEP_DAYS", "1.5"),
        ("KEEP_DAYS", "99999999999"),
        ("IDLE_TIMEOUT", "999999999d"),
        ("CONTEXT_TOKENS", "many"),
        ("TENANCY", "multiple"),
        ("KEEP_FAILED", "perhaps"),
        ("STORE", ""),
        ("PROVIDER", " "),
        ("BUDGET_USER_DAILY", "-2"),
        ("BUDGET_USER_DAILY", "2,00"),
        ("BUDGET_TENANT_MONTHLY", "$2"),
        ("BUDGET_SESSION", "1e3"),
        ("BUDGET_CURRENCY", "dollars"),
        ("PRICES", ""),
    ],
)
def test_bad_value(name: str, value: str) -> None:
    """A bad value is refused by the name of its variable, with what it must be."""
    with pytest.raises(ConfigurationError, match=rf"^CLOISTER_{name} must be "):
        read({f"CLOISTER_{name}": value})


@pytest.mark.parametrize(
    "line",
    [
        *("idle_timeout = 30", 'context_tokens = "x"', "keep_failed = 1", "context_tokens = true"),
        *("context_tokens = 1.5", "budget_session = true", "budget_session = nan", "prices = 1.5"),
    ],
)
def test_bad_value_in_file(folder: Path, line: str) -> None:
    """A bad value in the file is refused by its name and the file's."""
    (folder / "cloister.toml").write_text(line + "\n")
    with pytest.raises(ConfigurationError, match=rf"^{line.split()[0]} in cloister\.toml must be "):
        read()


def test_unknown_setting(folder: Path) -> None:
    """An unknown setting is refused wherever it stands, and the error lists the known ones."""
    with pytest.raises(ConfigurationError, match=r"CLOISTER_TIMEOUT is no setting .*idle_timeout"):
        read({"CLOISTER_TIMEOUT": "30m"})
    with pytest.raises(ConfigurationError, match=r"^colour is no setting"):
        read(colour="red")
    (folder / "cloister.toml").write_text("[limits]\nidle = 3\n")
    with pytest.raises(ConfigurationError, match=r"limits in cloister\.toml is no setting"):
        read()


def test_variables_of_others() -> None:
    """What Kubernetes sets beside a service called cloister is not taken for a setting."""
    given = {"CLOISTER_SERVICE_HOST": "x", "CLOISTER_PORT": "tcp://x:1", "CLOISTER_PORT_80_TCP_ADDR": "x"}
    assert read(given).store == settings.DEFAULT_STORE


def test_broken_file(folder: Path) -> None:
    """A file that is not TOML is refused with the place, and one that is not UTF-8 too."""
    (folder / "cloister.toml").write_text("store = \n")
    with pytest.raises(ConfigurationError, match=r"not TOML: .*line 1"):
        read()
    (folder / "cloister.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigurationError, match="not TOML"):
        read()


def test_errors_show_no_value() -> None:
    """An error does not repeat a value: somebody may have put a secret in the wrong place."""
    for name in ("CONTEXT_TOKENS", "IDLE_TIMEOUT", "TENANCY", "KEEP_FAILED"):
        with pytest.raises(ConfigurationError) as caught:
            read({f"CLOISTER_{name}": "s3cret"})
        assert "s3cret" not in str(caught.value)


def test_keys_leave_the_environment() -> None:
    """CLOISTER_KEYS is removed from the environment once it is read, even if another setting is wrong."""
    environ = {"CLOISTER_KEYS": ONE_KEY}
    found = read(environ)
    assert "CLOISTER_KEYS" not in environ
    keyring = found.keyring()
    assert isinstance(keyring, Keyring)
    assert keyring.names == ("first",)
    assert "AAAA" not in repr(found)
    environ = {"CLOISTER_COLOUR": "red", "CLOISTER_KEYS": ONE_KEY}
    with pytest.raises(ConfigurationError):
        read(environ)
    assert "CLOISTER_KEYS" not in environ


def test_keys_not_in_a_file(folder: Path) -> None:
    """Keys do not belong into a configuration file."""
    (folder / "cloister.toml").write_text(f'keys = "{ONE_KEY}"\n')
    with pytest.raises(ConfigurationError, match="in the environment only"):
        read()


def test_key_file(folder: Path) -> None:
    """A key file and an audit key file are read from where they are named."""
    made = Keyring.create_file(folder / "my.keys")
    (folder / "my.audit").write_bytes(base64.urlsafe_b64encode(bytes(32)))
    (folder / "my.audit").chmod(0o600)
    found = read({"CLOISTER_KEY_FILE": "my.keys", "CLOISTER_AUDIT_KEY_FILE": "my.audit"})
    keyring, key = found.keyring(), found.audit_key()
    assert keyring is not None
    assert keyring.names == made.names
    assert key is not None
    assert key.public == AuditKey(bytes(32)).public


@pytest.mark.parametrize(
    "given",
    [
        {"CLOISTER_KEYS": ONE_KEY, "CLOISTER_KEY_FILE": "x"},
        {"CLOISTER_KEEP_DAYS": "3", "CLOISTER_IDLE_TIMEOUT": "3h"},
    ],
)
def test_contradictions(given: dict[str, str]) -> None:
    """Two settings that say the same thing are refused in one place."""
    with pytest.raises(ConfigurationError, match="are both set"):
        read(given)


def test_nearer_rival_wins(folder: Path) -> None:
    """Of two that say the same thing in different places the nearer one counts; a model goes when another
    provider takes the place of the one that it belongs to."""
    (folder / "cloister.toml").write_text('idle_timeout = "5m"\nkey_file = "x"\nprovider = "openai"\nmodel = "m"\n')
    found = read({"CLOISTER_KEEP_DAYS": "3", "CLOISTER_KEYS": ONE_KEY, "CLOISTER_PROVIDER": "offline"})
    assert found.limits().idle_timeout == timedelta(days=3)
    assert (found.key_file, found.model) == (None, None)
    (folder / "cloister.toml").unlink()
    alone = {"CLOISTER_MODEL": "m", "CLOISTER_BASE_URL": "http://127.0.0.1:9/v1"}
    assert read(alone, provider="vllm").base_url == "http://127.0.0.1:9/v1"
    assert read({**alone, "CLOISTER_PROVIDER": "vllm"}, provider="vllm").model == "m"
    assert read({**alone, "CLOISTER_PROVIDER": "vllm"}, provider="openai").base_url is None


def test_budget(folder: Path) -> None:
    """Amounts come exactly as they are written, in the environment and in the file; a float is refused."""
    assert read().budget() is None
    (folder / "cloister.toml").write_text("budget_user_daily = 0.10\nbudget_session = 1\n")
    found = read({"CLOISTER_BUDGET_TENANT_MONTHLY": "500.00", "CLOISTER_BUDGET_CURRENCY": "EUR"}).budget()
    assert found == Budget(user_daily="0.10", session=1, tenant_monthly=500, currency="EUR")
    with pytest.raises(ConfigurationError, match=r"^budget_session must be text such as '0\.1'.*not exact"):
        read(budget_session=0.1)


def test_budgets_that_contradict_each_other() -> None:
    """A day that may cost more than its month is refused when the budget is asked for."""
    found = read({"CLOISTER_BUDGET_USER_DAILY": "3", "CLOISTER_BUDGET_USER_MONTHLY": "2"})
    with pytest.raises(ConfigurationError, match="never be reached"):
        found.budget()


def test_price_table(folder: Path) -> None:
    """A file of prices is laid over those that cloister knows."""
    row = 'provider = "openai"\nmodel = "gpt-4.1"\ninput = 1.1\noutput = 2\nas_of = 2026-11-01\nsource = "ours"\n'
    (folder / "mine.toml").write_text("[[price]]\n" + row)
    assert read().price_table() == Prices.default()
    price = read({"CLOISTER_PRICES": "mine.toml"}).price_table().find("openai", "gpt-4.1")
    assert price is not None
    assert (price.input, price.source) == (Decimal("1.1"), "ours")
    with pytest.raises(ConfigurationError, match=r"none\.toml cannot be read"):
        read({"CLOISTER_PRICES": "none.toml"}).price_table()


def findings(environ: dict[str, str]) -> dict[str, list[doctor.Finding]]:
    found: dict[str, list[doctor.Finding]] = {}
    for one in doctor.examine(read({**environ, "CLOISTER_STORE": "memory://"})):
        found.setdefault(one.what, []).append(one)
    return found


def test_doctor_shows_the_age_of_prices(monkeypatch: pytest.MonkeyPatch) -> None:
    """The doctor says how old the newest price is, and that another table is due where it is too old."""
    for limit, state in ((-1, "note"), (1 << 20, "ok")):
        monkeypatch.setattr(doctor, "_OLD", limit)
        (found,) = findings({})["prices"]
        assert (found.state, bool(found.mend)) == (state, state == "note")
        assert "days old" in found.said


def test_doctor_shows_what_tenants_give_up(folder: Path) -> None:
    """A protection that is off for one tenant is reported with the tenant's name; what cannot be used too."""
    (folder / "cloister.toml").write_text("[tenants.acme]\nscrub = 'off'\n[tenants.other]\nkeep_failed = true\n")
    (off,) = [one for one in doctor.examine(read()) if one.state == "off"]
    assert (off.what, off.said) == ("personal data", "for tenant acme: scrub=None")
    (folder / "cloister.toml").write_text("[tenants.acme]\nprovider = 'openai'\n")
    (found,) = [one for one in doctor.examine(read()) if one.what == "tenants"]
    assert found.state == "missing"
    acme = "[tenants.acme]\nprovider = 'vllm'\nmodel = 'own'\nbase_url = 'http://127.0.0.1:1/v1'\n"
    budgets = "budget_currency = 'EUR'\nbudget_user_daily = 2\n"
    (folder / "cloister.toml").write_text("provider = 'offline'\n" + budgets + acme)
    said = [one.said for one in doctor.examine(read()) if one.what == "prices" and one.state == "missing"]
    assert len(said) == 2
    assert said[1] == "for tenant acme: vllm, model own is paid in USD, and the budget is in EUR"


def test_doctor_shows_budgets() -> None:
    """The doctor names what is bounded, and a model that has no price to hold against it."""
    assert findings({})["budget"][0].state == "note"
    known = {"CLOISTER_BUDGET_USER_DAILY": "2", "CLOISTER_PROVIDER": "offline"}
    assert "user daily 2.00 USD" in findings(known)["budget"][0].said
    assert len(findings(known)["prices"]) == 1
    model = {"CLOISTER_PROVIDER": "openai", "OPENAI_API_KEY": "sk-abcdefgh", "CLOISTER_MODEL": "new"}
    (_, missing) = findings({**known, **model})["prices"]
    assert (missing.state, missing.said) == (
        "missing",
        "no price is known for openai, model new, so no budget can be kept for it",
    )
    euros = findings({**known, "CLOISTER_BUDGET_CURRENCY": "EUR"})["prices"][1]
    assert "is paid in USD, and the budget is in EUR" in euros.said
    assert findings({**known, "CLOISTER_BUDGET_USER_MONTHLY": "1"})["costs"][0].state == "unsafe"
    assert findings({"CLOISTER_PRICES": "none.toml"})["costs"][0].state == "unsafe"


def test_provider() -> None:
    """A provider finds its key in the environment, and takes the model and the address that are set."""
    environ = {"OPENAI_API_KEY": "sk-abcdefgh", "CLOISTER_PROVIDER": "openai", "CLOISTER_MODEL": "gpt-x"}
    provider = read(environ).answerer()
    assert provider is not None
    assert (provider.name, provider.model) == ("openai", "gpt-x")
    elsewhere = read({"CLOISTER_PROVIDER": "vllm", "CLOISTER_BASE_URL": "http://127.0.0.1:9/v1"}).answerer()
    assert elsewhere is not None
    assert elsewhere.name == "vllm"
    with pytest.raises(ConfigurationError, match="OPENAI_API_KEY"):
        read({"CLOISTER_PROVIDER": "openai"}).answerer()
    with pytest.raises(ConfigurationError, match="base_url goes with"):
        read({"CLOISTER_PROVIDER": "offline", "CLOISTER_BASE_URL": "http://127.0.0.1:9/v1"}).answerer()


async def test_open() -> None:
    """What is set arrives in the cloister that is opened, and a provider object is taken as it is."""
    model = Offline()
    environ = {"CLOISTER_TENANCY": "required", "CLOISTER_CONTEXT_TOKENS": "99", "CLOISTER_KEEP_FAILED": "yes"}
    async with settings.open(environ=environ, store="memory://", provider=model, keep_days=2) as cloister:
        assert isinstance(cloister, AsyncCloister)
        assert cloister.provider is model
        assert (cloister.tenancy, cloister.services.window(), cloister.keep_failed) == ("required", 99, True)
        assert cloister.limits.idle_timeout == timedelta(days=2)


def test_every_setting_is_described() -> None:
    """Each setting has a field of its own and a meaning for the list that `cloister doctor --settings` prints."""
    described = dict(settings.describe())
    assert set(described) == set(settings.NAMES) == set(Settings.__dataclass_fields__) - {"config", "environ"}
    assert all(described.values())


def test_store_without_a_scheme() -> None:
    """Whoever names a file where a URL belongs is told the URL; other texts are not taken for files."""
    with pytest.raises(ConfigurationError, match=r"did you mean sqlite:///chats\.db\?"):
        Settings(store="chats.db").connect()
    with pytest.raises(ConfigurationError) as caught:
        Settings(store="mysql://ana:secret@host/chats.db").connect()
    assert "did you mean" not in str(caught.value)


async def test_a_log_on_a_server_is_signed_where_that_is_set_up(tmp_path: Path, redis: str) -> None:
    """For a store without a file, key and signed heads lie where the settings say, and a cut-off log shows."""
    key_file, store = tmp_path / "audit-key", f"redis://{redis}/0?prefix={secrets.token_hex(4)}:"
    chosen = Settings(store=store, keys=Keyring.generate(), audit_key_file=str(key_file))
    with pytest.raises(ConfigurationError, match=r"does not exist: .* cloister keys new --audit$"):
        chosen.open()
    sinks.audit_key(key_file)
    async with chosen.open() as cloister:
        await cloister.user("ana").start()
    signed = auditing.evidence(chosen, chosen.connect())
    assert not signed.faults
    assert len(signed.signed.heads) == 1
    assert (tmp_path / "audit-key.heads").exists()
    opened = chosen.connect()
    await opened.open()
    assert (await auditing.verify(opened, signed))[1] == []
    await opened.close()
    emptied = Settings(store=f"{store}x", keys=Keyring.generate(), audit_key_file=str(key_file)).connect()
    await emptied.open()
    (fault,) = (await auditing.verify(emptied, signed))[1]
    assert "cut off or removed" in fault
    await emptied.close()


@pytest.mark.parametrize("alone", ["audit_key", "audit_heads"])
async def test_a_key_without_its_file_is_refused(tmp_path: Path, redis: str, alone: str) -> None:
    """Where nothing lies beside the store, one of key and file alone is an error, and not passed over."""
    options: dict[str, Any] = {"audit_key": AuditKey.generate(), "audit_heads": tmp_path / "heads"}
    cloister = AsyncCloister.open(f"redis://{redis}", keyring=Keyring.generate(), **{alone: options[alone]})
    with pytest.raises(ConfigurationError, match="name both"):
        await cloister.__aenter__()


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("model", Scrub()),
        ("store", Scrub(where="store")),
        ("off", Scrub(where="off")),
        ("seed", Scrub.seed()),
        ("email=redact, url = placeholder", Scrub(email="redact", url="placeholder")),
        ("restore_tools=send_mail look_up,where=model", Scrub(restore_tools=["send_mail", "look_up"])),
    ],
)
def test_personal_data(folder: Path, said: str, meant: Scrub) -> None:
    """What becomes of personal data is one word, or parts; a table in the file says the same."""
    assert read({"CLOISTER_SCRUB": said}).scrub == meant
    (folder / "cloister.toml").write_text(f'scrub = "{said}"\n')
    assert read().scrub == meant


def test_personal_data_in_a_table(folder: Path) -> None:
    """In the file the parts can stand in a table."""
    (folder / "cloister.toml").write_text('[scrub]\nemail = "redact"\nrestore_tools = ["send_mail"]\n')
    assert read().scrub == Scrub(email="redact", restore_tools=["send_mail"])


@pytest.mark.parametrize("said", ["on", "", "email=hide", "mail=redact", "where=nowhere", "limit=5"])
def test_personal_data_said_wrongly(said: str) -> None:
    """What is no setting is refused, so that a slip does not switch protection off."""
    with pytest.raises(ConfigurationError, match="CLOISTER_SCRUB must be"):
        read({"CLOISTER_SCRUB": said})


class TestTenants:
    """What a file says of single tenants."""

    async def test_are_read_from_tables(self, tmp_path: Path) -> None:
        """Each table is one tenant's settings; what it leaves out is as for everybody."""
        file = tmp_path / "cloister.toml"
        file.write_text(
            'store = "memory://"\nprovider = "offline"\ntenancy = "required"\n'
            '[tenants.acme]\nidle_timeout = "5m"\nscrub = "off"\nbudget_user_daily = 0.50\ncontext_tokens = 100\n'
            "[tenants.other]\nkeep_failed = true\n",
            encoding="utf-8",
        )
        async with settings.open(environ={}, file=file) as cloister:
            acme = cloister.user("ana", tenant="acme")._cloister
            other = cloister.user("ana", tenant="other")._cloister
            assert acme.limits.idle_timeout == timedelta(minutes=5)
            assert (acme.scrub.where, acme.window(), acme.keep_failed) == ("off", 100, False)
            assert acme.budget is not None
            assert str(acme.budget.user_daily) == "0.50"
            assert (other.budget, other.keep_failed) == (None, True)
            assert other.limits == cloister.limits

    def test_have_nothing_that_was_said_of_another_provider(self) -> None:
        """A tenant with a provider of its own is not sent to the address of everybody's, nor asks for its model."""
        keys = {"OPENAI_API_KEY": "sk-1234567890", "ANTHROPIC_API_KEY": "sk-ant-1234567890"}
        everybody = {"provider": "openai", "model": "gpt-4.1", "base_url": "https://gateway.example/v1"}
        tenants = {"acme": {"provider": "anthropic"}, "other": {"provider": "openai", "model": "gpt-4.1-mini"}}
        read = Settings.read(environ=keys, store="memory://", tenancy="required", tenants=tenants, **everybody)
        apart = read.tenants_apart()
        acme, other = apart["acme"].provider, apart["other"].provider
        assert isinstance(acme, Anthropic)
        assert acme._client._at.base_url == "https://api.anthropic.com"
        assert acme.model != "gpt-4.1"
        assert isinstance(other, OpenAICompatible)
        assert (other._client._at.base_url, other.model) == ("https://gateway.example/v1", "gpt-4.1-mini")

    def test_may_live_shorter_than_days(self) -> None:
        """A tenant's own timeouts hold where everybody's sessions are kept for days, and the other way round."""
        tenants = {"acme": {"idle_timeout": "5m"}, "other": {"keep_days": 3}}
        apart = Settings.read(environ={}, tenancy="required", keep_days=30, tenants=tenants).tenants_apart()
        assert apart["acme"].limits == Limits(idle_timeout=timedelta(minutes=5))
        assert apart["other"].limits == Limits.keep(3)
        both = {"acme": {"idle_timeout": "5m", "keep_days": 3}}
        with pytest.raises(ConfigurationError, match="keep_days and idle_timeout"):
            Settings.read(environ={}, tenancy="required", tenants=both).tenants_apart()

    @pytest.mark.parametrize(
        "said",
        ["tenants = 3", "[tenants]\nacme = 3", "[tenants.acme]\nkeys = 'x'", "[tenants.acme]\nscrub = 'sometimes'"],
    )
    def test_mistakes_are_named(self, said: str, tmp_path: Path) -> None:
        """A table with something that tenants cannot have, or a bad value, is refused."""
        file = tmp_path / "cloister.toml"
        file.write_text(said, encoding="utf-8")
        with pytest.raises(ConfigurationError, match="tenants"):
            Settings.read(environ={}, file=file)


class TestChanges:
    """Other settings than before are on record."""

    async def test_are_put_on_record_once(self, tmp_path: Path) -> None:
        """Opening with the same settings again says nothing; with others it says what they are, without secrets."""
        url = f"sqlite:///{tmp_path / 'x.db'}"

        async def told(**more: Any) -> list[Entry]:
            environ = {"CLOISTER_STORE": url, "CLOISTER_WEBHOOK_SECRET": "s" * 32}
            async with settings.open(environ=environ, **more) as cloister:
                entries = (await cloister.store.audit_tail(100)).entries
            return [entry for entry in entries if entry.event == "configuration.changed"]

        assert len(await told(provider="offline")) == 1
        assert len(await told(provider="offline")) == 1
        changed = await told(provider="offline", keep_days=3)
        assert len(changed) == 2
        assert "keep_days" in changed[-1].detail
        assert "ssss" not in "".join(entry.detail for entry in changed)
        assert len(await told()) == 2  # looked after only

    async def test_are_said_each_time_where_the_log_cannot_be_read(self, caplog: pytest.LogCaptureFixture) -> None:
        """A store whose log goes to standard logging opens as any other."""
        caplog.set_level("INFO", "cloister.audit")
        for _ in range(2):
            keys = Keyring.generate()
            async with settings.open(environ={}, store="token://?allow_replay=1", provider="offline", keys=keys) as one:
                await one.user("ana").start()
        assert caplog.text.count("configuration.changed") == 2

    def test_no_secret_is_among_them(self) -> None:
        """Passwords in addresses, and what comes after whose address it is, are left out; tenants' too."""
        for store in (
            "postgresql://ana:hush@db.example/x?password=hush",
            "redis://:hush@db.example:6379/0",
            "token://?ledger=redis://:hush@db.example:6379/0",
        ):
            said = Settings.read(
                environ={},
                store=store,
                provider="openai",
                base_url="https://gateway.example/hush/v1",
                tenancy="required",
                tenants={"acme": {"base_url": "https://ana:hush@acme.example/v1?key=hush", "model": "gpt-4.1"}},
            ).said()
            assert "hush" not in str(said)
            assert "db.example" in said["store"]
            assert said["base_url"] == "https://gateway.example"
            assert "https://acme.example" in said["tenants"]
            assert said["provider"] == "openai"


# --- destinations -----------------------------------------------------------------------------------------------------


def test_destinations_come_from_the_environment_or_a_file(tmp_path: Path) -> None:
    """Text with spaces between, or a list in TOML; each with its own severity or that of its kind."""
    secret = "a secret of some length"
    environ = {"CLOISTER_SINKS": f"log  info=file:{tmp_path}/a\thttps://hooks.example/x?a=b"}
    read = settings.Settings.read(environ=environ | {"CLOISTER_WEBHOOK_SECRET": secret})
    found = [(type(sink).__name__, sink.severity) for sink in read.destinations()]
    assert found == [("LogSink", "alert"), ("LineFile", "info"), ("Webhook", "alert")]
    file = tmp_path / "c.toml"
    file.write_text('sinks = ["warning=log", "file:/with space"]\nsinks_state = "/somewhere"\n')
    read = settings.Settings.read(environ={}, file=file)
    assert [(sink.name, sink.severity) for sink in read.destinations()] == [
        ("log", "warning"),
        ("file:/with space", "info"),
    ]
    assert read.sinks_state == "/somewhere"


def test_the_secret_of_webhooks_leaves_the_environment(tmp_path: Path) -> None:
    """It is taken out once read, stands in no repr, and in no file."""
    environ = {"CLOISTER_WEBHOOK_SECRET": "canary-of-a-secret", "CLOISTER_SINKS": "https://hooks.example/canary-path"}
    read = settings.Settings.read(environ=environ)
    assert "CLOISTER_WEBHOOK_SECRET" not in environ
    assert "canary" not in repr(read) + repr(read.destinations())
    file = tmp_path / "c.toml"
    file.write_text('webhook_secret = "canary-of-a-secret"\n')
    with pytest.raises(ConfigurationError, match="environment only") as raised:
        settings.Settings.read(environ={}, file=file)
    assert "canary" not in str(raised.value)


@pytest.mark.parametrize("said", ["smtp:canary", "log info=canary", "file:x?canary=1", "http://hooks.example/canary"])
def test_a_bad_destination_is_named_by_its_setting_alone(said: str) -> None:
    """The error says which setting it is and what there is; an address may be a secret."""
    with pytest.raises(ConfigurationError, match="CLOISTER_SINKS") as raised:
        settings.Settings.read(environ={"CLOISTER_SINKS": said})
    assert "canary" not in str(raised.value)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("off", None),
        ("refusals=3, window=5m", Alarms(refusals=3, window=timedelta(minutes=5))),
        ({"suspend_after": 7}, Alarms(suspend_after=7)),
    ],
)
def test_alarms_are_set_in_parts(said: Any, expected: Alarms | None) -> None:
    """Off, or thresholds by their names."""
    assert settings.Settings.read(environ={}, alarms=said).alarms == expected


@pytest.mark.parametrize("said", ["on", "refusals=0", "refusals=many", "window=2d", "canary=1", 7, {}])
def test_alarms_that_are_none_are_refused(said: Any) -> None:
    """What is no threshold is an error."""
    with pytest.raises(ConfigurationError, match="alarms must be"):
        settings.Settings.read(environ={}, alarms=said)


def test_doctor_says_what_each_destination_is_given(tmp_path: Path) -> None:
    """Destinations with what they get; what is missing, readable by others, or forgotten over a restart."""

    def examined(**given: Any) -> list[tuple[str, str]]:
        read = settings.Settings.read(environ={}, **given)
        return [(found.state, found.said) for found in doctor.examine(read) if found.what == "alarms"]

    ((state, said),) = examined(store="memory://")
    assert (state, "wake nobody" in said) == ("note", True)
    file = tmp_path / "a.jsonl"
    file.write_text("")
    file.chmod(0o644)
    found = examined(store=f"sqlite:///{tmp_path}/x.db", sinks=["log", f"file:{file}"], alarms="off")
    assert [state for state, _ in found] == ["off", "ok", "ok", "unsafe"]
    assert "alarms" in found[1][1]
    assert "entries from info on" in found[2][1]
    found = examined(store="redis://localhost", sinks=["log"])
    assert [state for state, _ in found] == ["ok", "note"]
    assert [state for state, _ in examined(store="redis://localhost", sinks=["log"], sinks_state="x")] == ["ok"]
    ((state, said),) = examined(store="memory://", sinks=["https://hooks.example/x"])
    assert (state, "CLOISTER_WEBHOOK_SECRET" in said) == ("missing", True)
