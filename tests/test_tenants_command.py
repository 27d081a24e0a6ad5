"""``cloister tenants``: keys are made, shown once, listed and revoked from a terminal."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cloister.cli import main
from cloister.errors import CredentialInvalid
from cloister.settings import Settings

Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Work in an empty folder, on a store that is still to be made."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(main, ["tenants", *arguments])

    return run


def _known(secret: str) -> str:
    """Say who has *secret*, as the server finds out."""

    async def check() -> str:
        async with Settings.read(environ={}, tenancy="required").open() as cloister:
            found = await cloister.credentials.check(secret)
        return f"{found.kind} {found.tenant} {found.name}"

    return asyncio.run(check())


def test_a_store_is_made_by_its_first_tenant(run: Run) -> None:
    """`add` makes an embedded store and says so; every other command wants one that is there."""
    for command in (["list"], ["keys", "new", "acme"], ["keys", "list", "acme"], ["keys", "revoke", "acme", "key_1"]):
        result = run(*command)
        assert result.exit_code == 1
        assert "there is no store" in result.stderr
        assert not list(Path().iterdir())
    made = run("add", "acme")
    assert made.exit_code == 0
    assert "so it is made" in made.stderr
    assert made.stdout == ""
    assert "so it is made" not in run("add", "beta").stderr
    again = run("add", "acme")
    assert (again.exit_code, again.stdout) == (1, "")
    assert "before" in again.stderr
    assert [line.split("\t")[0] for line in run("list").stdout.splitlines()] == ["acme", "beta"]
    assert run("add", "acme", "--store", "memory://").exit_code == 1


def test_a_key_stands_alone_on_standard_output(run: Run) -> None:
    """What is printed can be taken as it is, is good at once, and is in no list."""
    run("add", "acme")
    new = run("keys", "new", "acme", "--name", "web shop", "--expires", "90d")
    assert re.fullmatch(r"csk_[A-Za-z0-9_-]{43}\n", new.stdout)
    secret = new.stdout.strip()
    assert secret not in new.stderr
    assert _known(secret) == "key acme web shop"
    listed = run("keys", "list", "acme").stdout
    assert secret[4:] not in listed
    (row,) = [line.split("\t") for line in listed.splitlines()]
    assert row[0] in new.stderr
    assert row[3] == "web shop"
    assert row[2] != "never"
    assert run("keys", "list", "beta").stdout == run("keys", "list", "--operator").stdout == ""


def test_a_revoked_key_is_refused(run: Run) -> None:
    """Revoking takes a key by the name in the list, of that tenant alone, and what used it is refused from then on."""
    for tenant in ("acme", "beta"):
        run("add", tenant)
    secret = run("keys", "new", "acme").stdout.strip()
    key = run("keys", "list", "acme").stdout.split("\t")[0]
    for wrong in (["beta", key], ["acme", "key_" + "0" * 20], ["--operator", key]):
        assert run("keys", "revoke", *wrong).exit_code == 1
    shown = run("keys", "revoke", "acme", secret)
    assert shown.exit_code == 2
    assert secret[4:] not in shown.output
    assert _known(secret) == "key acme "
    assert run("keys", "revoke", "acme", key).exit_code == 0
    assert run("keys", "revoke", "acme", key).exit_code == 1
    with pytest.raises(CredentialInvalid):
        _known(secret)


def test_a_tenant_is_removed_with_its_sessions_or_not_at_all(run: Run) -> None:
    """While its users have sessions, or an issuer lets them in, nothing is touched; erased, nothing of it is left."""

    async def talk() -> None:
        async with Settings.read(environ={}, tenancy="required").open() as cloister:
            await cloister.user("ana", tenant="acme").start()

    for tenant in ("acme", "beta"):
        run("add", tenant)
    secret = run("keys", "new", "acme").stdout.strip()
    asyncio.run(talk())
    issuer = 'issuer = "login"\naudience = ["chat"]\nalgorithms = ["RS256"]\njwks_url = "https://login.example/jwks"'
    Path("cloister.toml").write_text(f'[[server.issuers]]\n{issuer}\ntenants = ["acme"]\n')
    assert "[[server.issuers]]" in run("remove", "acme", "--erase", "--yes").stderr
    Path("cloister.toml").unlink()
    kept = run("remove", "acme", "--yes")
    assert (kept.exit_code, "1 session, so it was left" in kept.stderr) == (1, True)
    assert run("remove", "acme", "--erase").exit_code == 1  # nobody has confirmed
    assert _known(secret) == "key acme "
    gone = run("remove", "acme", "--erase", "--yes")
    assert (gone.exit_code, gone.stdout) == (0, "")
    assert "erased 1 user(s); gone: 1 session." in gone.stderr
    assert "backups" in gone.stderr
    with pytest.raises(CredentialInvalid):
        _known(secret)
    assert [line.split("\t")[0] for line in run("list").stdout.splitlines()] == ["beta"]
    for name in ("acme", "acne"):
        assert run("remove", name, "--erase", "--yes").exit_code == 1
    assert run("remove", "beta", "--yes").exit_code == 0
    assert run("list").stdout == ""


def test_operators_have_keys_of_their_own(run: Run) -> None:
    """An operator's key is of no tenant, and one names either a tenant or --operator."""
    run("add", "acme")
    secret = run("keys", "new", "--operator").stdout.strip()
    assert secret.startswith("cso_")
    assert _known(secret) == "operator None "
    (row,) = run("keys", "list", "--operator").stdout.splitlines()
    assert run("keys", "list", "acme").stdout == ""
    for command in ("new", "list"):
        assert run("keys", command).exit_code == 2
        assert run("keys", command, "acme", "--operator").exit_code == 2
    for wrong in (["acme"], [], ["--operator"], ["acme", "key_1", "--operator"], ["a", "b", "c"]):
        assert run("keys", "revoke", *wrong).exit_code == 2
    assert run("keys", "revoke", "--operator", row.split("\t")[0]).exit_code == 0
    with pytest.raises(CredentialInvalid):
        _known(secret)


def test_no_key_for_a_tenant_that_was_not_added(run: Run) -> None:
    """A mistyped tenant gets no key, and is told how it would be added."""
    run("add", "acme")
    result = run("keys", "new", "acne")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "cloister tenants add" in result.stderr
    assert run("keys", "new", "acme", "--expires", "0d").exit_code != 0


def test_a_store_of_users_without_tenants_is_refused(run: Run) -> None:
    """Beside users who belong to no tenant none is added."""

    async def talk() -> None:
        async with Settings.read(environ={}).open() as cloister:
            await cloister.user("ana").start()

    asyncio.run(talk())
    result = run("add", "acme")
    assert result.exit_code == 1
    assert "without a tenant" in result.stderr


def test_a_master_key_is_not_retired_under_living_keys(run: Run) -> None:
    """`keys retire` refuses while a tenant's key is under the master key; rotated, it goes and the key stays."""
    run("add", "acme")
    secret = run("keys", "new", "acme").stdout.strip()
    master = CliRunner().invoke(main, ["keys", "list"]).stdout.split("\t")[0]
    assert CliRunner().invoke(main, ["keys", "new"]).exit_code == 0
    refused = CliRunner().invoke(main, ["keys", "retire", "--yes", master])
    assert refused.exit_code == 1
    assert "2 credentials" in refused.stderr
    rotated = CliRunner().invoke(main, ["keys", "rotate", "--resume"])
    assert "2 credentials went under it" in rotated.stdout
    assert CliRunner().invoke(main, ["keys", "retire", "--yes", master]).exit_code == 0
    assert _known(secret) == "key acme "


def test_copies_say_that_keys_went_along(run: Run, tmp_path: Path) -> None:
    """`copy` takes keys to the other store and counts them."""
    run("add", "acme")
    run("keys", "new", "acme")
    (tmp_path / "other.db.keys").write_bytes((tmp_path / "cloister.db.keys").read_bytes())
    (tmp_path / "other.db.keys").chmod(0o600)
    copied = CliRunner().invoke(main, ["copy", "--from", "sqlite:///cloister.db", "--to", "sqlite:///other.db"])
    assert copied.exit_code == 0, copied.output
    assert "there now: 2" in copied.stdout
    assert len(run("keys", "list", "acme", "--store", "sqlite:///other.db").stdout.splitlines()) == 1
