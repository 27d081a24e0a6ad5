"""The report of ``cloister prove``: it is signed, it can be checked, and the command writes it, or says why not."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from tests.leaky import PagesOfAnybody

from cloister.audit import AuditKey
from cloister.cli import main
from cloister.errors import ConfigurationError
from cloister.probe import prove, report
from cloister.probe.report import Outcome, Report
from cloister.settings import Settings

ROOT = Path(__file__).parent.parent
PASSED = Outcome("lists", "Everybody is listed what is theirs", "pass", "3 and 2 sessions", 7)
FAILED = Outcome("foreign ids", "Alike | refused", "fail", "<b>`x`</b> | another's\nrows", 9)
BEYOND = Outcome("audit log", "It tells", "beyond rights", "an operator's", 1)


def made(*outcomes: Outcome, **changes: Any) -> Report:
    values = {
        "format": report.FORMAT, "run": "cafe", "cloister": "1", "store": "sqlite:///x.db", "server": "SQLite",
        "began": "2026-01-01 00:00:00Z", "ended": "2026-01-01 00:00:01Z", "canaries": ["user 'a'", "user 'b'"],
        "audit_ids": ["a_1"], "turns": 50, "signer": "made", "verdict": report.verdict_of(outcomes),
        "outcomes": list(outcomes),
    }  # fmt: skip
    return Report(**{**values, **changes})


KEY = AuditKey.generate()
SIGNED = report.to_json(report.sign(made(PASSED, FAILED), KEY))


# --- the signature ----------------------------------------------------------------------------------------------------


def test_what_was_signed_is_read() -> None:
    """A report comes back as it was signed, under the key that it names or the one that is given."""
    for public in (None, KEY.public, f" {KEY.public}\n"):
        signed = report.read(SIGNED, public)
        assert signed.report == made(PASSED, FAILED)
        assert signed.key == KEY.public


def test_every_value_is_signed() -> None:
    """Whatever is changed in a report, the signature does not hold."""

    def edits(value: Any) -> list[Any]:
        match value:
            case dict():
                return [{**value, name: other} for name in value for other in edits(value[name])]
            case list():
                below = [[*value[:n], other, *value[n + 1 :]] for n in range(len(value)) for other in edits(value[n])]
                return [*below, value[1:], [*value, value[-1]]]
            case "pass" | "fail":
                return ["fail" if value == "pass" else "pass"]
            case int():
                return [value + 1]
        return [value + "x"]

    values = json.loads(SIGNED)
    changed = [{**values, "report": other} for other in edits(values["report"])]
    assert len(changed) > 25
    for one in changed:
        with pytest.raises(ValueError, match=r"changed after it was made|no report|another version"):
            report.read(json.dumps(one))


def test_another_key_is_refused() -> None:
    """A report signed anew by somebody else does not pass for the one whose key is given."""
    forged = report.to_json(report.sign(made(PASSED), AuditKey.generate()))
    assert report.read(forged).report.verdict == "pass"
    with pytest.raises(ValueError, match="another key"):
        report.read(forged, KEY.public)


def test_a_signature_is_for_one_purpose() -> None:
    """Signed heads of an audit log are no report, and a report's signature none over heads."""
    body = json.dumps(json.loads(SIGNED)["report"], sort_keys=True, separators=(",", ":")).encode()
    signature = json.loads(SIGNED)["signature"]
    from cloister.audit import check_signature

    assert check_signature(KEY.public, "cloister prove", body, signature)
    assert not check_signature(KEY.public, "cloister", b"prove\x00" + body, signature)
    assert not check_signature(KEY.public, "cloister prove", body, "x")
    assert not check_signature("x", "cloister prove", body, signature)


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[]", "null", '{"report": 1, "key": "", "signature": ""}', SIGNED.replace('"run"', '"ran"'),
     SIGNED.replace('"turns": 50', '"turns": 50, "turns": 50'), SIGNED.replace('"turns": 50', '"turns": 50, "more": 1'),
     "[" * 5_000, SIGNED.replace(report.FORMAT, "cloister prove, 2")],
)  # fmt: skip
def test_what_is_no_report(text: str) -> None:
    """What is no report of this version, or says something twice, is said not to be one."""
    with pytest.raises(ConfigurationError, match="report"):
        report.read(text)


@given(st.binary(max_size=60))
def test_any_bytes_are_refused(data: bytes) -> None:
    """No bytes make the reader crash."""
    with pytest.raises(ConfigurationError):
        report.read(data)


def test_the_verdict_on_the_whole() -> None:
    """One failure is a failure, and so is a report in which nothing passed; what was beyond rights takes nothing."""
    assert report.verdict_of([PASSED, BEYOND]) == "pass"
    assert report.verdict_of([PASSED, FAILED]) == "fail"
    assert report.verdict_of([BEYOND]) == report.verdict_of([]) == "fail"
    assert report.summary(made(PASSED, FAILED, BEYOND)) == "1 passed, 1 failed, 1 beyond rights"


# --- the text ---------------------------------------------------------------------------------------------------------


def test_the_text_says_what_the_report_says() -> None:
    """Every outcome is one row of four cells, in which nothing is markup; the same report gives the same text."""
    signed = report.sign(made(PASSED, FAILED, BEYOND), KEY)
    text = report.to_markdown(signed)
    assert text == report.to_markdown(report.read(report.to_json(signed)))
    rows = [line for line in text.splitlines() if re.match(r"\| (lists|foreign ids|audit log) \|", line)]
    assert len(rows) == 3
    assert all(len(re.findall(r"(?<!\\)\|", row)) == 5 for row in rows)
    assert "**FAIL**" in rows[1]
    assert "<b>" not in text.replace("\\<b", "")
    assert "not who made the report" in " ".join(text.split())
    assert signed.signature in text


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str, **environ: str) -> Result:
    return CliRunner(env=environ).invoke(main, arguments, catch_exceptions=False)


@pytest.fixture
def store(folder: Path) -> Path:
    """A store in which Ana has said her name."""
    assert CliRunner().invoke(main, ["chat", "--user", "ana"], input="My name is Ana.\n").exit_code == 0
    return folder / "cloister.db"


def users(store: Path) -> set[str]:
    with closing(sqlite3.connect(store)) as db:
        return {user for table in ("sessions", "audit_owners") for (user,) in db.execute(f"SELECT user FROM {table}")}


@dataclass
class Proved:
    """A store that was attacked, without its master keys, and what was printed."""

    store: Path
    printed: str
    written: Path


@pytest.fixture(scope="module")
def proved(tmp_path_factory: pytest.TempPathFactory) -> Proved:
    folder = tmp_path_factory.mktemp("proved")
    store, keys = folder / "cloister.db", folder / "cloister.db.keys"
    url = f"sqlite:///{store}"
    assert CliRunner().invoke(main, ["chat", "--user", "ana", "--store", url], input="My name is Ana.\n").exit_code == 0
    keys.rename(folder / "elsewhere")
    done = run("prove", "--store", url, "--out", str(folder / "evidence"))
    assert done.exit_code == 0, done.output
    assert not keys.exists()
    (folder / "elsewhere").rename(keys)
    (written,) = (folder / "evidence").glob("cloister-prove-*.json")
    return Proved(store, done.output, written)


def test_writes_a_report_that_verifies(proved: Proved) -> None:
    """A sound store passes, and the report on it holds under its audit key, which `doctor` shows."""
    signed = report.read(proved.written.read_bytes())
    assert (signed.report.verdict, signed.report.signer) == ("pass", "audit")
    assert signed.report.store == f"sqlite:///{proved.store}"
    assert len(signed.report.audit_ids) == 2
    assert [one.check for one in signed.report.outcomes] == [*(check.name for check in prove.CHECKS), "cleaned up"]
    for arguments in ([], ["--public-key", signed.key]):
        checked = run("prove", "--verify", str(proved.written), *arguments)
        assert checked.exit_code == 0, checked.output
        assert "as it was signed" in checked.output
    assert signed.key in run("doctor", "--store", f"sqlite:///{proved.store}").output


def test_leaves_the_store_as_it_was(proved: Proved) -> None:
    """Nobody but Ana is in the store, with what she said, and its log is whole."""
    store = ("--store", f"sqlite:///{proved.store}")
    assert users(proved.store) == {"ana"}
    assert "My name is Ana." in run("sessions", "export", "--user", "ana", "--reason", "x", *store).output
    assert run("audit", "verify", *store).exit_code == 0


def test_holds_nothing_of_anybodys(proved: Proved) -> None:
    """Neither form of the report holds a session id, a key of the deployment, or a word that was said."""
    kept = [*proved.written.parent.iterdir()]
    assert len(kept) == 2
    keys = (proved.store.parent / "cloister.db.keys").read_text().split()
    secret = (proved.store.parent / "cloister.db.audit-key").read_text().strip()
    for text in [file.read_text() for file in kept]:
        assert not re.search(r"cs_[\w-]{40}|planted-|Ana", text)
        assert secret not in text
        assert not any(key in text for key in keys if len(key) > 20)


def test_is_on_record_as_an_operators(proved: Proved) -> None:
    """The log says before the first alarm that what follows is an attack by the operator's own hand."""
    tail = run("audit", "tail", "-n", "2000", "--json", "--store", f"sqlite:///{proved.store}").stdout
    lines = [json.loads(line) for line in tail.splitlines()]
    kinds = [line["event"] for line in lines]
    assert kinds.index("operator.access") < kinds.index("access.foreign")
    announced = [line for line in lines if "cloister prove, run" in line["detail"]]
    named = report.read(proved.written.read_bytes()).report.audit_ids
    assert {line["owner"]["audit_id"] for line in announced} == set(named)


def test_a_leaky_store_exits_1(store: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that leaks: exit 1, the promise named, and a signed report that says so."""
    leaky = PagesOfAnybody()
    monkeypatch.setattr(Settings, "connect", lambda self: leaky)
    done = run("prove", "--store", "memory://", "--out", str(folder))
    assert done.exit_code == 1
    assert "does NOT hold: Another's session id" in done.output
    (written,) = folder.glob("cloister-prove-*.json")
    assert run("prove", "--verify", str(written)).exit_code == 0
    assert report.read(written.read_bytes()).report.verdict == "fail"
    assert "**A promise does not hold.**" in written.with_suffix(".md").read_text()


def test_a_changed_report_exits_1(folder: Path) -> None:
    """A report that was changed, or whose text was, is told from one that was not."""
    signed = report.sign(made(PASSED), KEY)
    (folder / "r.json").write_text(report.to_json(signed))
    (folder / "r.md").write_text(report.to_markdown(signed))
    assert run("prove", "--verify", "r.json").exit_code == 0
    assert run("prove", "--verify", "r.json", "--public-key", AuditKey.generate().public).exit_code == 1
    (folder / "r.md").write_text(report.to_markdown(signed).replace("1 passed", "9 passed"))
    done = run("prove", "--verify", "r.json")
    assert (done.exit_code, "r.md does not say" in done.output) == (1, True)
    (folder / "r.json").write_text(report.to_json(signed).replace("3 and 2", "4 and 2"))
    done = run("prove", "--verify", "r.json")
    assert (done.exit_code, "changed after it was made" in done.output) == (1, True)
    for name in ("absent.json", "r.md"):
        assert run("prove", "--verify", name).exit_code == 1


def test_signs_with_a_given_key(folder: Path) -> None:
    """A key of the auditor's own can sign, and the report says that it was given."""
    seed = bytes(range(32))
    (folder / "mine").write_text(base64.b64encode(seed).decode())
    (folder / "mine").chmod(0o600)
    done = run("prove", "--store", "memory://", "--json", "r.json", "--key", "mine")
    assert done.exit_code == 0, done.output
    signed = report.read((folder / "r.json").read_bytes())
    assert signed.report.signer == "given"
    assert signed.key == AuditKey(seed).public


def test_says_so_if_nobody_is_known_to_have_signed(folder: Path) -> None:
    """Without a key that lasts, a key is made for the report, which says what that is worth."""
    done = run("prove", "--store", "memory://", "--markdown", "r.md")
    assert done.exit_code == 0, done.output
    assert "a key made for this report alone" in done.output
    assert "a key made for this report alone" in (folder / "r.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--json", "there.json"), "is not written over"),
        (("--out", "nowhere/deeper"), "No such file"),
        (("--json", "nowhere/r.json"), "does not exist"),
        (("--key", "nowhere"), "does not exist"),
        (("--public-key", "x"), "--verify"),
        (("--turns", "7"), "50"),
        (("--store", "sqlite:///absent.db"), "there is no store"),
        (("--store", "redis://127.0.0.1:1/0"), "cannot be reached"),
    ],
)
def test_refuses_before_anything_is_tried(store: Path, folder: Path, arguments: tuple[str, ...], said: str) -> None:
    """What cannot end in a report is refused before the store is attacked."""
    (folder / "there.json").write_text("kept")
    before = len(run("audit", "tail", "-n", "1000").output)
    done = run("prove", *arguments)
    assert done.exit_code != 0
    assert said in done.output
    assert (folder / "there.json").read_text() == "kept"
    assert not list(folder.glob("cloister-prove-*"))
    assert len(run("audit", "tail", "-n", "1000").output) == before


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_erases_both(store: Path, folder: Path, how: signal.Signals) -> None:
    """Ctrl-C, and being asked to end, leave nobody in the store but who was there, and no report."""
    code = "import sys; sys.argv[0] = 'cloister'; from cloister.cli import main; main()"
    command = [sys.executable, "-c", code, "prove"]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        for _ in range(1_000):
            if any(user.endswith("-b") for user in users(store)) or running.poll() is not None:
                break
            time.sleep(0.01)
        assert any(user.endswith("-b") for user in users(store)), running.communicate()
        os.kill(running.pid, how)
        _, errors = running.communicate(timeout=60)
    assert running.returncode not in (0, None)
    assert "both were erased" in errors
    assert users(store) == {"ana"}
    assert not list(folder.glob("cloister-prove-*"))


# --- the page ---------------------------------------------------------------------------------------------------------


def test_the_page_shows_what_is_printed(proved: Proved) -> None:
    """The sample output on the page is what a store prints, but for names, numbers and sizes."""
    page = (ROOT / "docs" / "prove.md").read_text("utf-8")
    (sample,) = re.findall(r"```text\n(pass.*?)```", page, re.DOTALL)

    def shape(text: str) -> list[str]:
        return [re.sub(r"[\d,]+", "0", " ".join(line.split())) for line in text.splitlines()]

    printed = proved.printed
    rows = [line for line in printed.splitlines() if line.startswith(("pass\t", "fail\t", "not run\t"))]
    rows += [line for line in printed.splitlines() if " passed, " in line]
    assert shape(sample) == shape("\n".join(rows))


def test_the_page_names_every_check() -> None:
    """Every check has its row on the page, with its promise."""
    page = " ".join((ROOT / "docs" / "prove.md").read_text("utf-8").split())
    from cloister.probe import database

    named = {"role and schema": database.roles, "row-level security": database.policies}
    named |= {"owner settings": database.settings, "ways around": database.detours}
    promises = {check.name: check.promise for check in (*prove.CHECKS, *prove.TOKENS)}
    promises |= {name: str(function.__doc__) for name, function in named.items()}
    for name, promise in promises.items():
        assert f"| {name} | {promise} |" in page


def test_outcomes_are_frozen() -> None:
    """What came of a check does not change on its way to the report."""
    with pytest.raises(AttributeError):
        PASSED.verdict = "fail"  # type: ignore[misc]
    assert msgspec.structs.replace(PASSED, verdict="fail") != PASSED
