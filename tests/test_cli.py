"""The command line, as somebody uses it who has only ``cloister --help``."""

from __future__ import annotations

import base64
import json
import os
import re
import select
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from cloister import stores, terminal
from cloister.cli import main
from cloister.doctor import examine
from cloister.settings import Settings

Run = Callable[..., Result]
ANA = ("--user", "ana", "--reason", "ticket 4711")
ONE_KEY = "first:" + base64.urlsafe_b64encode(bytes(32)).decode()
ESCAPES = "\x1b[31mred\x07\u202e"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run() -> Run:
    def invoke(*arguments: str, said: str | None = None, **environ: str) -> Result:
        return CliRunner(env=environ).invoke(main, arguments, input=said, catch_exceptions=False)

    return invoke


@pytest.fixture
def told(run: Run) -> Run:
    """A store in which Ana has said her name."""
    assert run("chat", "--user", "ana", said="My name is Ana.\n").exit_code == 0
    return run


def latest(run: Run, user: str = "ana") -> str:
    """Give the id of a user's latest session."""
    return run("sessions", "list", "--user", user, "--reason", "test").stdout.split("\t")[0]


def kinds(run: Run) -> list[str]:
    """Give the events of the audit log."""
    return [json.loads(line)["event"] for line in run("audit", "tail", "-n", "1000", "--json").stdout.splitlines()]


# --- help and errors --------------------------------------------------------------------------------------------------


def every_command() -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = [()]
    for name, command in main.commands.items():
        found.append((name,))
        found += [(name, below) for below in getattr(command, "commands", {})]
    return found


@pytest.mark.parametrize("command", every_command(), ids=" ".join)
def test_help(run: Run, command: tuple[str, ...]) -> None:
    """Every command explains itself, and takes --store unless it only holds others, takes two of them, or none."""
    result = run(*command, "--help")
    assert result.exit_code == 0
    options = ("--from", "--to") if command == ("copy",) else ("--store",)
    groups = ("sessions", "tenants", "tenants keys", "keys", "audit", "alerts", "scrub", "leaks", "leaks scan")
    assert not command or " ".join(command) in groups or all(name in result.stdout for name in options)


def test_version(run: Run) -> None:
    """The version is one line."""
    result = run("--version")
    assert result.exit_code == 0
    assert result.stdout.startswith("cloister")


@pytest.mark.parametrize(
    "command",
    [
        ("sessions", "list", *ANA),
        ("sessions", "erase", "--yes", *ANA),
        ("keys", "list"),
        ("keys", "rotate"),
        ("keys", "retire", "x"),
        ("audit", "tail"),
        ("audit", "verify"),
    ],
)
def test_missing_store(run: Run, folder: Path, command: tuple[str, ...]) -> None:
    """A command that reads a store says in one line that there is none, and makes none."""
    result = run(*command)
    assert result.exit_code == 1
    assert result.stderr == (
        "cloister: there is no store sqlite:///cloister.db; name the one you mean with --store or CLOISTER_STORE\n"
    )
    assert os.listdir(folder) == []


def test_errors_are_one_line(run: Run) -> None:
    """An error of cloister is one line on stderr and exit code 1, wrong usage is 2, and neither is a traceback."""
    for arguments in (("chat", "--user", "ana", "--store", "carrier-pigeon://x"), ("chat", "--user", "a\x1b[2Jb")):
        result = run(*arguments, said="")
        assert result.exit_code == 1
        assert result.stderr.splitlines()[-1].startswith("cloister: ")
        assert "\x1b" not in result.output
    assert run("chat").exit_code == 2
    assert run("sessions", "list", "--user", "ana").exit_code == 2
    assert run("sessions", "list", "--user", "ana", "--reason", " ").exit_code == 2


def test_store_from_the_environment(run: Run, folder: Path) -> None:
    """CLOISTER_STORE names the store, and --store another one."""
    run("chat", "--user", "ana", said="hello\n", CLOISTER_STORE="sqlite:///one.db")
    run("chat", "--user", "ana", "--store", "sqlite:///two.db", said="hello\n", CLOISTER_STORE="sqlite:///one.db")
    assert (folder / "one.db").exists()
    assert (folder / "two.db").exists()
    assert not (folder / "cloister.db").exists()


@given(st.text())
def test_nothing_printed_steers_a_terminal(text: str) -> None:
    """What is printed holds no control character but line ends and tabs, and can be encoded."""
    shown = terminal.printable(text)
    assert not any(ord(character) < 32 or 127 <= ord(character) < 160 for character in shown if character not in "\n\t")
    shown.encode()
    assert terminal.line(text).isprintable() or not any(c in terminal.line(text) for c in "\n\t\r\x1b")


@pytest.mark.parametrize("width", [60, 200])
def test_table(width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """On a terminal an id stands whole on one line, however narrow the terminal is."""
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    terminal.table(["session", "title"], [["i" * 46, "t" * 30], ["j" * 46, ESCAPES]], [None, "bold red"])
    shown = capsys.readouterr().out
    assert "i" * 46 in shown
    assert "t" * 30 in shown
    assert "\x07" not in shown


# --- chat -------------------------------------------------------------------------------------------------------------


def test_chat_remembers(told: Run) -> None:
    """The next chat goes on in the latest session, and says so."""
    result = told("chat", "--user", "ana", said="What is my name?\n")
    assert result.stdout == "Your name is Ana.\n"
    assert "Going on with the latest session" in result.stderr


def test_chat_keeps_users_apart(told: Run) -> None:
    """Another user starts with nothing, and cannot go on in Ana's session."""
    assert told("chat", "--user", "ben", said="What is my name?\n").stdout == "Nobody has told me your name.\n"
    result = told("chat", "--user", "ben", "--session", latest(told), said="What is my name?\n")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.splitlines()[-1] == "cloister: this owner has no such session; start a new one"


def test_chat_commands(told: Run) -> None:
    """A new session knows nothing of the one before, which is kept; /history shows what was said; /end destroys."""
    said = "/new\nWhat is my name?\n/history\n/end\n/history\n/what\n//slash\n/exit\nnever said\n"
    result = told("chat", "--user", "ana", "--provider", "offline", said=said)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[:3] == ["Nobody has told me your name.", "user: What is my name?", f"assistant: {lines[0]}"]
    assert len(lines) == 4
    assert "There is no command /what" in result.stderr
    assert told("sessions", "list", *ANA).stdout.count("\n") == 2


def test_chat_in_a_chosen_session(told: Run) -> None:
    """--new starts another session, and --session goes back to the first."""
    first = latest(told)
    assert told("chat", "--user", "ana", "--new", said="What is my name?\n").stdout == "Nobody has told me your name.\n"
    back = told("chat", "--user", "ana", "--session", first, said="What is my name?\n")
    assert back.stdout == "Your name is Ana.\n"
    assert told("chat", "--user", "ana", "--new", "--session", first, said="").exit_code == 2


@pytest.mark.parametrize("store", ["token://?ledger=sqlite:///ledger.db", "token://?allow_replay=1&audit=audit.jsonl"])
def test_chat_in_tokens(run: Run, store: str) -> None:
    """A conversation in a token goes on with that token, for its owner alone; the audit log of either kind verifies."""
    environ = {"CLOISTER_STORE": store, "CLOISTER_KEYS": ONE_KEY}
    result = run("chat", "--user", "ana", said="My name is Ana.\n", **environ)
    token = result.stderr.split()[-1]
    assert token.startswith("ct_")
    back = run("chat", "--user", "ana", "--session", token, said="What is my name?\n", **environ)
    assert back.stdout == "Your name is Ana.\n"
    refused = run("chat", "--user", "ben", "--session", token, said="What is my name?\n", **environ)
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert "access.foreign" in run("audit", "tail", "--json", **environ).stdout
    assert "the audit log is whole" in run("audit", "verify", **environ).stdout


def test_what_tokens_have_no_use_for(run: Run) -> None:
    """The demonstration and copying say why not, and doctor what is given up without a ledger."""
    alone = {"CLOISTER_KEYS": ONE_KEY, "CLOISTER_STORE": "token://?allow_replay=1"}
    assert "name another store" in run("demo", **alone).stderr
    assert "nothing to copy" in run("copy", "--from", "token://?ledger=sqlite:///x.db", "--to", "memory://").stderr
    assert "can be used again" in run("doctor", **alone).stdout
    assert "ledger=redis://" in run("sessions", "list", *ANA, **alone).stderr


def test_chat_renews(run: Run) -> None:
    """Whoever comes back too late is told so, and goes on in a new session."""
    soon = {"CLOISTER_IDLE_TIMEOUT": "1s", "CLOISTER_ABSOLUTE_TIMEOUT": "never"}
    run("chat", "--user", "ana", said="My name is Ana.\n", **soon)
    session = latest(run)
    with closing(sqlite3.connect("cloister.db")) as db, db:
        assert db.execute("SELECT count(*) FROM items").fetchone() == (2,)
    code = (
        "import datetime, sys; from cloister import chat; from cloister.settings import Settings; "
        "late = datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=1); "
        "chosen = Settings(provider='offline'); "
        "opened = chosen.open(clock=lambda: late); "
        "Settings.open = lambda self: opened; "
        "sys.exit(chat.talk(chosen, 'ana', None, sys.argv[1], new=False, system=None))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, session], input="What is my name?\n", capture_output=True, text=True, check=False
    )
    assert result.stdout == "Nobody has told me your name.\n"
    assert "has timed out and was deleted" in result.stderr
    assert result.returncode == 0


def test_chat_tells_of_failure(run: Run) -> None:
    """A model that cannot be reached is told of in words fit for a user, and makes a script fail."""
    result = run(
        "chat", "--user", "ana", "--provider", "vllm", said="hello\n/history\n", CLOISTER_BASE_URL="http://127.0.0.1:9"
    )
    assert result.exit_code == 1
    result = run("chat", "--user", "ana", "--provider", "openai", said="hello\n")
    assert result.exit_code == 1
    assert "OPENAI_API_KEY" in result.stderr


def test_chat_escapes(run: Run) -> None:
    """What was said cannot steer the terminal when it is shown."""
    result = run("chat", "--user", "ana", said=f"My name is {ESCAPES}.\nWhat is my name?\n/history\n")
    assert "red" in result.output
    assert not set(ESCAPES) - set("[31mred") & set(result.output)


def test_chat_system_text(run: Run) -> None:
    """--system is what the model is told before everything else."""
    result = run("chat", "--user", "ana", "--system", "The user's name is Ana.", said="What is my name?\n")
    assert result.stdout == "Your name is Ana.\n"


def test_chat_with_tenants(told: Run) -> None:
    """A store without tenants refuses --tenant, one with tenants wants it, and both say what to do."""
    assert "leave --tenant out" in told("chat", "--user", "ana", "--tenant", "acme", said="").stderr
    named = ("chat", "--user", "ana", "--tenant", "acme", "--store", "sqlite:///tenants.db")
    assert told(*named, said="My name is Ana.\n", CLOISTER_TENANCY="required").exit_code == 0
    assert told(*named, said="What is my name?\n").stdout == "Your name is Ana.\n"
    assert "--tenant" in told("chat", "--user", "ana", "--store", "sqlite:///tenants.db", said="").stderr


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_interrupt() -> None:
    """Ctrl-C stops a reply, which leaves nothing behind, and the conversation goes on."""
    import pty

    code = """if True:
        import sys
        from cloister import chat
        from cloister.providers.offline import Offline
        from cloister.settings import Settings

        class Once(Offline):
            cut, hang, asked = 2, True, 0
            def stream(self, request):
                self.asked += 1
                self.cut, self.hang = (2, True) if self.asked == 1 else (None, False)
                return super().stream(request)

        sys.exit(chat.talk(Settings(provider=Once(), leaks=None), "ana", None, None, new=True, system=None))
    """
    child, terminal_side = pty.fork()
    if child == 0:
        os.execv(sys.executable, [sys.executable, "-c", code])
    seen = b""

    def wait_for(text: bytes) -> None:
        nonlocal seen
        while text not in seen:
            assert select.select([terminal_side], [], [], 20)[0], f"{text!r} did not come, but {seen!r}"
            seen += os.read(terminal_side, 4096)
        seen = seen.partition(text)[2]

    try:
        wait_for(b"> ")
        os.write(terminal_side, b"My name is Ana.\n")
        wait_for(b"Nice to ")
        os.write(terminal_side, b"\x03")
        wait_for(b"nothing of it was kept")
        wait_for(b"> ")
        for _ in range(40):  # between writing its prompt and waiting for keys, Python's readline does not hear Ctrl-C
            os.write(terminal_side, b"\x03")
            if select.select([terminal_side], [], [], 0.5)[0]:
                break
        wait_for(b"Ctrl-D or /exit leaves")
        wait_for(b"> ")
        os.write(terminal_side, b"What is my name?\n")
        wait_for(b"Nobody has told me your name.")
        wait_for(b"> ")
        os.write(terminal_side, b"\x04")
        _, status = os.waitpid(child, 0)
    finally:
        os.close(terminal_side)
    assert os.waitstatus_to_exitcode(status) == 0


# --- an operator's reads ----------------------------------------------------------------------------------------------


def test_operator_is_on_record(told: Run) -> None:
    """Each read of an operator leaves an entry with action and reason, before it shows anything."""
    session = latest(told)
    assert told("sessions", "show", session, *ANA).exit_code == 0
    assert told("sessions", "export", *ANA).exit_code == 0
    assert told("sessions", "show", "cs_nobody", *ANA).exit_code == 1
    assert told("sessions", "end", session, *ANA).stdout == "ended 1 session of user 'ana'\n"
    entries = [json.loads(line) for line in told("audit", "tail", "--json").stdout.splitlines()]
    noted = [json.loads(entry["detail"]) for entry in entries if entry["event"] == "operator.access"]
    assert [(one["action"], one["reason"]) for one in noted] == [
        ("list", "test"),
        *((action, "ticket 4711") for action in ("show", "export", "show", "end")),
    ]
    assert "owner.exported" in kinds(told)


def test_show(told: Run) -> None:
    """A session is shown with times and roles, without the personal data in it."""
    lines = told("sessions", "show", latest(told), *ANA).stdout.splitlines()
    assert [line.split()[-1] for line in lines] == ["user", lines[1].split()[-1], "assistant", lines[1].split()[-1]]
    assert re.fullmatch(r"My name is \[PERSON~\w{8}~\w{4}\]\.", lines[1])


def test_end_all(told: Run) -> None:
    """All of a user's sessions end, and others' stay."""
    told("chat", "--user", "ana", "--new", said="hello\n")
    told("chat", "--user", "ben", said="hello\n")
    assert told("sessions", "end", *ANA).exit_code == 2
    assert told("sessions", "end", "--all", *ANA).stdout == "ended 2 sessions of user 'ana'\n"
    assert "no live session" in told("sessions", "list", *ANA).stderr
    assert latest(told, "ben").startswith("cs_")


def test_export_to_a_file(told: Run, folder: Path) -> None:
    """An export is JSON lines in a new file for the operator alone; an existing file is left as it is."""
    assert told("sessions", "export", "-o", "ana.jsonl", *ANA).exit_code == 0
    path = folder / "ana.jsonl"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    items = [json.loads(line) for line in path.read_text().splitlines()]
    assert [item.get("content") for item in items] == [None, "My name is Ana.", "Nice to meet you, Ana."]
    before = path.read_bytes()
    again = told("sessions", "export", "-o", "ana.jsonl", *ANA)
    assert again.exit_code == 1
    assert "ana.jsonl" in again.stderr
    assert path.read_bytes() == before


def test_erase_asks(told: Run) -> None:
    """Erasing asks first, and its receipt says what remains elsewhere."""
    assert told("sessions", "erase", *ANA, said="n\n").exit_code == 1
    assert told("sessions", "erase", *ANA, said="").exit_code == 1
    assert latest(told).startswith("cs_")
    result = told("sessions", "erase", *ANA, said="y\n")
    assert result.exit_code == 0
    assert "gone: 1 session." in result.stdout
    assert "provider" in result.stdout
    with closing(sqlite3.connect("cloister.db")) as db:
        assert db.execute("SELECT count(*) FROM sessions").fetchone() == (0,)


# --- keys -------------------------------------------------------------------------------------------------------------


def test_new_keys(run: Run, folder: Path) -> None:
    """`keys new` makes the key file for a store to come, and adds a key to it later."""
    assert run("keys", "new").exit_code == 0
    assert stat.S_IMODE((folder / "cloister.db.keys").stat().st_mode) == 0o600
    assert run("chat", "--user", "ana", said="hello\n").exit_code == 0
    assert run("keys", "new").exit_code == 0
    rows = [line.split("\t") for line in run("keys", "list").stdout.splitlines()]
    assert [row[1:] for row in rows] == [["opens only", "1", "0"], ["seals", "0", "0"]]


def test_lost_key_file(told: Run, folder: Path) -> None:
    """For a store that has lost its key file no other one is made."""
    (folder / "cloister.db.keys").unlink()
    for command in (("keys", "new"), ("keys", "list"), ("chat", "--user", "ana")):
        result = told(*command, said="")
        assert result.exit_code == 1
        assert "key file" in result.stderr
    assert not (folder / "cloister.db.keys").exists()
    assert told("doctor").exit_code == 1


def test_rotate_and_retire(told: Run) -> None:
    """A key that sessions are under cannot be retired; after rotation it can, and they still open."""
    first = told("keys", "list").stdout.split("\t")[0]
    assert told("keys", "retire", first).exit_code == 1
    told("keys", "new")
    result = told("keys", "retire", first)
    assert result.exit_code == 1
    assert "1 session" in result.stderr
    result = told("keys", "rotate", "--resume")
    assert result.exit_code == 0
    assert "1 of 1" in result.stderr
    assert told("keys", "rotate").exit_code == 0
    assert told("keys", "retire", first, said="n\n").exit_code == 1
    assert first in told("keys", "list").stdout
    assert told("keys", "retire", "--yes", first).exit_code == 0
    names = told("keys", "list").stdout
    assert first not in names
    assert names.count("\n") == 2
    assert told("chat", "--user", "ana", said="What is my name?\n").stdout == "Your name is Ana.\n"
    assert kinds(told).count("key.rotated") == 2
    assert kinds(told).count("key.retired") == 1
    assert told("keys", "retire", "nobody").exit_code == 1


def test_keys_in_the_environment(run: Run) -> None:
    """With CLOISTER_KEYS the commands say what to change, and re-wrap once it is changed."""
    other = run("keys", "new", "--print").stdout.strip()
    assert run("chat", "--user", "ana", said="My name is Ana.\n", CLOISTER_KEYS=ONE_KEY).exit_code == 0
    rotate = run("keys", "rotate", CLOISTER_KEYS=ONE_KEY)
    assert rotate.exit_code == 1
    assert "CLOISTER_KEYS" in rotate.stdout
    appended = run("keys", "new", CLOISTER_KEYS=ONE_KEY).stdout.strip()
    assert appended.count(":") == 1
    both = f"{ONE_KEY},{other}"
    assert run("keys", "retire", "first", CLOISTER_KEYS=both).exit_code == 1
    assert run("keys", "rotate", "--resume", CLOISTER_KEYS=both).exit_code == 0
    retire = run("keys", "retire", "first", CLOISTER_KEYS=both)
    assert "Remove it from CLOISTER_KEYS" in retire.stdout
    assert run("chat", "--user", "ana", said="What is my name?\n", CLOISTER_KEYS=other).stdout == "Your name is Ana.\n"
    assert not Path("cloister.db.keys").exists()


# --- the audit log ----------------------------------------------------------------------------------------------------


def test_tail_names_both(told: Run) -> None:
    """An attempt on somebody else's session shows who tried and whose it is."""
    told("chat", "--user", "ben", "--session", latest(told), said="")
    (line,) = [line for line in told("audit", "tail").stdout.splitlines() if "access.foreign" in line]
    assert line.split("\t")[1:5] == ["alert", "access.foreign", "user 'ben'", "whose: user 'ana'"]
    found = [json.loads(line) for line in told("audit", "tail", "--json").stdout.splitlines()]
    (entry,) = [entry for entry in found if entry["event"] == "access.foreign"]
    assert (entry["owner"]["user"], entry["other"]["user"]) == ("ben", "ana")
    assert len(told("audit", "tail", "-n", "1").stdout.splitlines()) == 1


def test_tail_is_one_line_each(told: Run) -> None:
    """What an operator typed as a reason cannot add lines to the log or steer the terminal."""
    told("sessions", "list", "--user", "ana", "--reason", f"a\n2026 alert forged {ESCAPES}\u009b")
    for as_json in ((), ("--json",)):
        shown = told("audit", "tail", *as_json).stdout
        assert not set("\x1b\x07\u202e\u009b") & set(shown)
        assert len(shown.splitlines()) == len(kinds(told))


def test_verify(told: Run) -> None:
    """The log verifies without any key that opens sessions, and one changed byte is found and named."""
    Path("cloister.db.keys").unlink()
    result = told("audit", "verify")
    assert result.exit_code == 0
    assert result.stdout == "4 entries by 1 writers; 0 not signed for yet\nthe audit log is whole\n"
    with closing(sqlite3.connect("cloister.db")) as db, db:
        db.execute("UPDATE audit SET severity = 'Info' WHERE rowid = 2")
    result = told("audit", "verify")
    assert result.exit_code == 1
    assert "entry 2: was changed" in result.stdout


def test_verify_finds_a_cut(told: Run) -> None:
    """Entries cut off the end are found by the signed heads, which the public key checks as well."""
    public = next(line for line in told("doctor").stdout.splitlines() if "public key is" in line).split()[-1]
    with closing(sqlite3.connect("cloister.db")) as db, db:
        db.execute("DELETE FROM audit WHERE rowid = 4")
    Path("cloister.db.audit-key").rename("elsewhere")
    for more in (("--public-key", public), ()):
        result = told("audit", "verify", *more)
        assert result.exit_code == 1
        assert ("cut off" in result.stdout) is bool(more)
    assert not Path("cloister.db.audit-key").exists()
    assert told("audit", "verify", "--public-key", "nonsense").exit_code == 1


def test_verify_without_heads(told: Run) -> None:
    """Missing heads are a fault as soon as there are entries, and nothing is made to hide that."""
    Path("cloister.db.heads").unlink()
    result = told("audit", "verify")
    assert result.exit_code == 1
    assert "cloister.db.heads is missing" in result.stdout
    assert not Path("cloister.db.heads").exists()


# --- the set-up -------------------------------------------------------------------------------------------------------


def test_doctor_makes_nothing(run: Run, folder: Path) -> None:
    """On a fresh machine the doctor finds nothing unsafe, says what is missing and makes nothing."""
    result = run("doctor")
    assert result.exit_code == 0
    assert "missing provider" in result.stdout
    assert "ok      scrub" in result.stdout
    assert os.listdir(folder) == []
    assert "CLOISTER_KEEP_DAYS" in run("doctor", "--settings").stdout


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("off", "personal data is stored and sent to the model as it was said"),
        ("store", "replaced before it is stored; as they are: IP, URL"),
        ("url=redact,ip=redact", "replaced before it is stored and sent"),
    ],
)
def test_doctor_says_what_becomes_of_personal_data(
    run: Run, monkeypatch: pytest.MonkeyPatch, setting: str, said: str
) -> None:
    """The doctor says before whom personal data is replaced, and reports it where it is not."""
    monkeypatch.setenv("CLOISTER_SCRUB", setting)
    assert said in " ".join(run("doctor").stdout.split())


@pytest.mark.parametrize("name", ["cloister.db", "cloister.db.keys", "cloister.db.audit-key", "cloister.db.heads"])
def test_doctor_finds_open_files(told: Run, folder: Path, name: str) -> None:
    """A file that others can read is unsafe, and the doctor gives the command that mends it."""
    assert told("doctor").exit_code == 0
    (folder / name).chmod(0o644)
    result = told("doctor")
    assert result.exit_code == 1
    assert f"chmod 600 {name}" in result.stdout
    (folder / name).chmod(0o600)
    assert told("doctor").exit_code == 0


@pytest.mark.parametrize("name", ["cloister.db.keys", "cloister.db.audit-key", "cloister.db.heads"])
def test_doctor_misses_files(told: Run, folder: Path, name: str) -> None:
    """A file that a store should have beside it and has not is unsafe."""
    (folder / name).unlink()
    result = told("doctor")
    assert result.exit_code == 1
    assert name in result.stdout


def test_doctor_shows_no_key(told: Run) -> None:
    """Whether a provider's key is set is said, and never what it is, nor a master key."""
    result = told("doctor", CLOISTER_PROVIDER="openai", OPENAI_API_KEY="sk-abcdefgh", CLOISTER_KEYS=ONE_KEY)
    assert "OPENAI_API_KEY is set" in result.stdout
    assert "abcdefgh" not in result.output
    assert "AAAA" not in result.output
    missing = told("doctor", CLOISTER_PROVIDER="openai")
    assert "missing provider" in missing.stdout
    assert "OPENAI_API_KEY" in missing.stdout


def test_doctor_reports_what_is_off(run: Run) -> None:
    """Weaker durability, sessions without end and a provider reached in clear are reported."""
    environ = {"CLOISTER_IDLE_TIMEOUT": "never", "CLOISTER_ABSOLUTE_TIMEOUT": "never"}
    result = run("doctor", "--store", "sqlite:///x.db?synchronous=normal", **environ)
    assert result.exit_code == 0
    assert "off     durability" in result.stdout
    assert "off     limits" in result.stdout
    result = run("doctor", CLOISTER_PROVIDER="vllm", CLOISTER_BASE_URL="http://models.example/v1")
    assert result.exit_code == 1
    assert "in clear" in result.stdout


def test_doctor_asks_a_server(run: Run, postgres: str, redis: str) -> None:
    """A server that does not let cloister open it, and why, is what the doctor says; one that is down is missing."""
    superuser = run("doctor", "--store", f"{postgres}/postgres")
    assert superuser.exit_code == 1
    assert "unsafe  store: the role 'owner' is a superuser" in superuser.stdout
    assert "answers" in run("doctor", "--store", f"redis://{redis}").stdout
    away = run("doctor", "--store", "redis://127.0.0.1:1", CLOISTER_KEY_FILE="keys")
    assert "missing store" in away.stdout
    assert "cloister keys new" in away.stdout  # a key file that was never there is not said to be gone
    assert "unsafe  store" in run("doctor", "--store", f"redis+cluster://{redis}").stdout


@pytest.mark.parametrize(
    ("url", "what"),
    [
        ("postgresql://app@h/d?allow_old=1", "updates"),
        ("redis://h?allow_eviction=1", "durability"),
        ("rediss://h?tls_verify=0", "certificates"),
        ("sqlite:///x.db?synchronous=normal", "durability"),
        ("token://?ledger=sqlite:///x.db?synchronous=normal", "durability"),
        ("token://?allow_replay=1", "replay protection"),
    ],
)
def test_doctor_reports_every_option_that_weakens(url: str, what: str) -> None:
    """What an option of the store's URL switches off is reported with the option, and nothing without it."""
    found = [finding for finding in examine(Settings(store=url)) if finding.state == "off" and finding.what == what]
    assert len(found) == 1
    assert url.rpartition("?")[2] in found[0].mend
    assert [one.option for one in getattr(stores.connect(url), "off", ())] == [url.rpartition("?")[2]]
    if "token" not in url:
        assert getattr(stores.connect(url.rpartition("?")[0]), "off", ()) == ()


def test_doctor_finds_writable_configuration(run: Run, folder: Path) -> None:
    """A configuration that others can change is unsafe."""
    (folder / "cloister.toml").write_text('provider = "offline"\n')
    (folder / "cloister.toml").chmod(0o666)
    result = run("doctor")
    assert result.exit_code == 1
    assert "chmod go-w" in result.stdout


def test_demo_and_module() -> None:
    """`python -m cloister demo` plays everything and exits with 0."""
    environ = {**os.environ, "TMPDIR": os.getcwd()}
    command = [sys.executable, "-m", "cloister", "demo"]
    result = subprocess.run(command, capture_output=True, text=True, env=environ, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "Every verdict holds." in result.stdout


def test_what_to_do_next(told: Run, folder: Path) -> None:
    """A user who was never here, a file that is there already and a rotation each say what to do next."""
    nobody = told("sessions", "erase", "--yes", "--user", "anna", "--reason", "test")
    assert (nobody.exit_code, nobody.stderr) == (1, "cloister: nothing of user 'anna' was here; check the name\n")
    (folder / "ana.jsonl").touch()
    assert "name another file with -o" in told("sessions", "export", "-o", "ana.jsonl", *ANA).stderr
    assert "Backups" in told("keys", "rotate").stdout


def test_new_audit_key(run: Run, folder: Path) -> None:
    """An audit key is made where it is named, for its owner alone, and never over another or after one that signed."""
    named = {"CLOISTER_AUDIT_KEY_FILE": "audit.key"}
    assert run("keys", "new", "--audit", **named).exit_code == 0
    before = (folder / "audit.key").read_bytes()
    assert stat.S_IMODE((folder / "audit.key").stat().st_mode) == 0o600
    assert run("keys", "new", "--audit", **named).exit_code == 1
    assert (folder / "audit.key").read_bytes() == before
    assert run("chat", "--user", "ana", said="hello\n", **named).exit_code == 0
    assert run("audit", "verify", **named).exit_code == 0
    assert run("keys", "new", "--audit").exit_code == 1


def test_doctor_checks_signed_heads(told: Run, folder: Path) -> None:
    """Signed heads without their key, or under another, are unsafe, and it is said how to name the key."""
    key = folder / "cloister.db.audit-key"
    assert told("doctor").exit_code == 0
    key.write_bytes(base64.urlsafe_b64encode(bytes(32)))
    assert "are wrong under this key" in told("doctor").stdout
    key.unlink()
    assert told("doctor").exit_code == 1
    said = told("audit", "verify").stdout
    assert "CLOISTER_AUDIT_KEY_FILE" in said
    assert "--public-key" in said
