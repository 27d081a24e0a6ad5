"""`cloister serve` as processes: what begins, what refuses to, what dies, and how it ends."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gc
import logging
import os
import secrets
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from tests.certificates import write_certificates
from tests.processes import Reply, Running, request, rest, running

from cloister import Keyring, StoreUnavailable
from cloister.cli import main
from cloister.server.monitoring import Monitoring
from cloister.server.refusals import Refused
from cloister.server.serve import Lines
from cloister.server.settings import ServerSettings
from cloister.stores.base import Store

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs POSIX processes")

OPERATOR = "Authorization: Bearer operator"


def eventually(what: Callable[[], Any]) -> Any:
    """Give what is true at last."""
    for _ in range(1_000):
        if found := what():
            return found
        time.sleep(0.01)
    raise AssertionError("it never came")


def refused(folder: Path, *arguments: str, environ: dict[str, str] | None = None) -> str:
    """Give the one line in which `cloister serve` says why it does not."""
    done = subprocess.run(
        [sys.executable, "-m", "cloister", "serve", "--port", "0", *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        cwd=folder,
        env={**os.environ, **(environ or {})},
    )
    assert done.returncode == 1, done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert "Traceback" not in line
    return line


# --- beginning --------------------------------------------------------------------------------------------------------


def test_it_says_what_it_serves(tmp_path: Path) -> None:
    """The command prints where it listens, on what store, with which limits and protections, and how to get a key."""
    with running(tmp_path, "--provider", "offline") as server:
        said = server.said(r"cloister tenants keys new")
        assert server.url.startswith("http://127.0.0.1:")
        assert "sqlite:///cloister.db" in server.log
        for what in (
            "provider   offline",
            "tenancy    required",
            "limits     sessions end",
            "scrub",
            "leaks",
            "alarms",
        ):
            assert what in server.log
        assert "off:" not in server.log
        assert "cloister tenants add" in said.string
        assert server.ask("/healthz").json == {"status": "ok"}
        assert server.ask("/readyz").status == 200
        assert server.stop() == 0


def test_it_says_that_nothing_is_counted(tmp_path: Path) -> None:
    """Where the package for /metrics is missing, that is said at the start and not by a 404 alone."""
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['prometheus_client'] = None\n")
    for chosen, said in (("open", True), ("off", False)):
        environ = {"CLOISTER_SERVER_METRICS": chosen, "PYTHONPATH": str(tmp_path)}
        with running(tmp_path, "--provider", "offline", environ=environ) as server:
            server.said(r"cloister tenants keys new")
            assert ("pip install 'cloister[metrics]'" in server.log) is said
            assert server.ask("/metrics").status == 404
            assert server.stop() == 0


def test_it_says_where_the_first_key_is_to_be_made(tmp_path: Path) -> None:
    """A store or file that was named by an option is named in what is to be run next: it would go elsewhere."""
    (tmp_path / "other.toml").touch()
    named = ("--store", "sqlite:///x y.db", "--config", "other.toml")
    with running(tmp_path, "--provider", "offline", *named) as server:
        server.said(r"tenants add acme --store 'sqlite:///x y.db' --config other.toml && ")
        server.said(r"keys new acme --store 'sqlite:///x y.db' --config other.toml\n")
        assert server.stop() == 0


def test_it_says_which_tenants_there_are_not(tmp_path: Path) -> None:
    """Settings for a tenant that nobody added bound nobody, which is said at the start: a name is soon misspelt."""
    (tmp_path / "cloister.toml").write_text(
        "[server.tenants.acme]\nmodels = ['m']\n[server.tenants.amce]\nmodels = ['m']\n"
        "[[server.issuers]]\nissuer = 'login'\naudience = ['chat']\nalgorithms = ['ES256']\ntenants = ['glboex']\n"
        "jwks_url = 'https://login.example/keys'\n"
    )
    added = subprocess.run([sys.executable, "-m", "cloister", "tenants", "add", "acme"], cwd=tmp_path, check=False)
    assert added.returncode == 0
    with running(tmp_path, "--provider", "offline") as server:
        server.said(r"tenants    amce, glboex: set up here and never added")
        assert server.stop() == 0


def test_it_says_what_is_off(tmp_path: Path) -> None:
    """A protection that is switched off is said at the start."""
    with running(tmp_path, "--provider", "offline", environ={"CLOISTER_LEAKS": "off"}) as server:
        server.said(r"leaks      off: ")
        assert server.stop() == 0


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--provider", "offline", "--store", "memory://", "--workers", "2"], "2 workers"),
        (["--provider", "offline", "--store", "token://?allow_replay=1"], "without a ledger"),
        ([], "name who answers"),
        (["--provider", "offline", "--store", "sqlite:///nowhere/chats.db"], "does not exist"),
        (["--provider", "offline", "--tls-cert", "server.crt", "--tls-key", "open.key"], "can be read by others"),
        (["--provider", "offline", "--tls-cert", "server.crt", "--tls-key", "other.key"], "cannot be used for TLS"),
        (["--provider", "offline", "--tls-cert", "server.crt"], "go together"),
        (["--provider", "offline", "--host", "0.0.0.0"], "no key and no issuer"),
        (["--provider", "offline", "--host", "::"], "no key and no issuer"),
        (["--provider", "offline", "--host", "192.0.2.1"], "name another with --host"),
        (["--provider", "offline", "--host", "::1%nowhere"], "name one with --host"),
        (["--provider", "offline", "--host", "no..name"], "name one with --host"),
    ],
)
def test_what_cannot_be_served_is_refused(tmp_path: Path, arguments: list[str], why: str) -> None:
    """What would be unsafe, or nothing at all, ends at once with one line that says what to do."""
    write_certificates(tmp_path)
    (tmp_path / "open.key").write_bytes((tmp_path / "server.key").read_bytes())
    (tmp_path / "open.key").chmod(0o644)
    (tmp_path / "other.key").touch(0o600)
    (tmp_path / "other.key").write_text("no key\n")
    assert why in refused(tmp_path, *arguments)


def test_a_taken_port_is_refused(tmp_path: Path) -> None:
    """A port that somebody else listens on is said to be taken."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert "name another with --port" in refused(tmp_path, "--provider", "offline", "--port", port)


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the packages of the server are missing, the error names the command that installs them."""
    from click.testing import CliRunner

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    done = CliRunner().invoke(main, ["serve"])
    assert done.exit_code == 1
    assert "pip install 'cloister[server]'" in done.output


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_keys_are_nowhere_to_be_read(tmp_path: Path) -> None:
    """Master keys reach the workers, and are in nobody's environment or arguments: not even in the one begun with."""
    key = base64.b64encode(secrets.token_bytes(32)).decode()
    environ = {"CLOISTER_KEYS": f"one:{key}", "CLOISTER_WEBHOOK_SECRET": "hush" * 10, "PGPASSWORD": "hush" * 10}
    assert Keyring.from_env(dict(environ)).names == ("one",)
    with running(tmp_path, environ=environ, workers=2, words=2) as server:
        assert server.ask("/turn", method="POST").status == 200
        pids = {server.process.pid, *server.pids(2)}
        assert len(pids) == 3
        for pid in pids:
            for file in ("environ", "cmdline"):
                found = Path(f"/proc/{pid}/{file}").read_bytes()
                assert key.encode() not in found
                assert b"hushhush" not in found
        assert b"CLOISTER_KEYS" in Path(f"/proc/{server.process.pid}/environ").read_bytes(), "it looked elsewhere"
        assert not list(tmp_path.glob("*.keys")), "the store made keys of its own"
        for kept in tmp_path.iterdir():
            assert key.encode() not in kept.read_bytes()
        assert server.stop() == 0


# --- workers ----------------------------------------------------------------------------------------------------------


def test_a_killed_worker_is_replaced(tmp_path: Path) -> None:
    """When a worker is killed the other goes on, a new one takes its place, and what was stored is there."""
    with running(tmp_path, workers=2, words=2) as server:
        assert server.ask("/turn", method="POST").status == 200
        one, other = server.pids(2)
        os.kill(one, signal.SIGKILL)
        server.said("a worker ended, with signal 9")
        pids = server.pids(2)
        assert one not in pids
        assert other in pids
        assert server.ask("/sessions").json == [["Say words.", "word0 word1 "]]
        assert server.stop() == 0


def test_a_worker_that_dies_of_a_request_is_replaced(tmp_path: Path) -> None:
    """With one worker alone, whoever asks after its death is answered by another."""
    with running(tmp_path) as server:
        (first,) = server.pids(1)
        assert server.ask("/die").head == b""
        assert server.ask("/pid").json["pid"] != first
        assert server.stop() == 0


def test_workers_that_keep_dying_are_started_ever_more_slowly(tmp_path: Path) -> None:
    """A worker that dies as soon as it began is not started as fast as the machine can."""
    with running(tmp_path, dies=True) as server:
        began = time.monotonic()
        server.said("another is started in 0.40 s")
        assert time.monotonic() - began > 0.3
        assert len(list(tmp_path.glob("began-*"))) <= 6
        assert server.stop() == 0


def test_workers_end_with_their_parent(tmp_path: Path) -> None:
    """Workers whose parent was killed finish what they do, and end."""
    with running(tmp_path, workers=2) as server:
        pids = server.pids(2)
        server.process.kill()
        server.process.wait()
        eventually(lambda: not any(_lives(pid) for pid in pids))
        with pytest.raises(ConnectionRefusedError):
            server.connect()


def _lives(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"  # of an orphan that nobody has buried yet


# --- ending -----------------------------------------------------------------------------------------------------------


def streaming(server: Running) -> socket.socket:
    """Ask for a turn, and wait for its first words."""
    connection = server.connect()
    connection.sendall(request("/turn", method="POST"))
    said = b""
    while b"word0" not in said:
        part = connection.recv(1_000)
        assert part, f"no stream, but {said!r}"
        said += part
    return connection


def is_closed(server: Running) -> bool:
    try:
        server.connect().close()
    except ConnectionRefusedError:
        return True
    return False


@pytest.mark.parametrize("to_all", [False, True])
def test_open_streams_are_finished(tmp_path: Path, to_all: bool) -> None:
    """SIGTERM, or Ctrl-C in the terminal of all processes: no new connections, and open streams go on to their end."""
    with running(tmp_path, words=60, workers=2) as server, streaming(server) as connection:
        if to_all:
            os.killpg(server.process.pid, signal.SIGINT)
        else:
            server.process.send_signal(signal.SIGTERM)
        eventually(lambda: is_closed(server))
        assert b"word59" in rest(connection)
        assert server.ended() == 0
    with running(tmp_path) as server:
        ((_, answer),) = server.ask("/sessions").json
        assert "word59" in answer


def test_streams_that_take_too_long_are_cancelled(tmp_path: Path) -> None:
    """A turn that is cut off stores nothing; its provider is left, the audit log signed, and the exit code 0."""
    with running(tmp_path, words=100_000, grace=1) as server, streaming(server) as connection:
        assert server.stop() == 0
        assert not rest(connection).endswith(b"0\r\n\r\n"), "a stream that was cut off looks finished"
        assert "Traceback" not in server.log
    assert (tmp_path / "left").exists()
    assert (tmp_path / "closed").exists()
    verified = subprocess.run(
        [sys.executable, "-m", "cloister", "audit", "verify", "--store", f"sqlite:///{tmp_path}/chats.db"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert verified.returncode == 0, verified.stdout + verified.stderr
    with running(tmp_path) as server:
        assert server.ask("/sessions").json == [[]]
        assert server.stop() == 0


def test_a_second_signal_does_not_wait(tmp_path: Path) -> None:
    """Whoever says stop twice means now, and is told by the exit code that something was cut off."""
    with running(tmp_path, words=100_000, grace=60) as server, streaming(server):
        server.process.send_signal(signal.SIGTERM)
        eventually(lambda: is_closed(server))
        assert server.stop(signal.SIGINT) == 1


def test_workers_give_way_to_new_ones(tmp_path: Path) -> None:
    """SIGHUP replaces every worker, and the certificate is read anew; one that is none changes nothing."""
    write_certificates(tmp_path)
    trust = trusting(tmp_path)
    files: dict[str, Any] = {"tls_cert": str(tmp_path / "server.crt"), "tls_key": str(tmp_path / "server.key")}
    with running(tmp_path, **files) as server:
        first = server.ask("/pid", context=trust).json["pid"]
        write_certificates(tmp_path)
        server.process.send_signal(signal.SIGHUP)
        renewed = trusting(tmp_path)

        def replaced() -> bool:
            with contextlib.suppress(ssl.SSLCertVerificationError, ConnectionError, ValueError):
                return bool(server.ask("/pid", context=renewed).json["pid"] != first)
            return False

        eventually(replaced)
        eventually(lambda: not _lives(first))
        (tmp_path / "server.key").write_text("no key\n")
        server.process.send_signal(signal.SIGHUP)
        server.said("nothing was loaded anew")
        assert server.ask("/pid", context=renewed).status == 200
        assert server.stop() == 0


# --- TLS and proxies --------------------------------------------------------------------------------------------------


def trusting(folder: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=folder / "ca.pem")


def test_tls(tmp_path: Path) -> None:
    """Over TLS 1.2 and newer, HSTS is on and only HTTP/1.1 is spoken; older versions and plain HTTP get nothing."""
    write_certificates(tmp_path)
    files: dict[str, Any] = {"tls_cert": str(tmp_path / "server.crt"), "tls_key": str(tmp_path / "server.key")}
    with running(tmp_path, **files) as server:
        assert server.url.startswith("https://")
        context = trusting(tmp_path)
        context.set_alpn_protocols(["h2", "http/1.1"])
        with server.connect(context) as connection:
            assert connection.selected_alpn_protocol() == "http/1.1"  # type: ignore[attr-defined]
        reply = server.ask("/pid", context=context)
        assert b"\r\nstrict-transport-security: max-age=31536000; includeSubDomains\r\n" in reply.head
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        assert server.ask("/pid", context=context).status == 200
        old = trusting(tmp_path)
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises((ssl.SSLError, ConnectionResetError)):
            server.connect(old)
        assert server.ask("/pid").status == 0
        assert server.stop() == 0


def test_an_error_over_tls_is_read_whole(tmp_path: Path) -> None:
    """What a client did wrong is said over TLS too, before the connection closes."""
    write_certificates(tmp_path)
    files: dict[str, Any] = {"tls_cert": str(tmp_path / "server.crt"), "tls_key": str(tmp_path / "server.key")}
    with running(tmp_path, **files) as server, server.connect(trusting(tmp_path)) as connection:
        connection.sendall(b"GET /pid HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n")
        assert Reply(rest(connection)).status == 400


@pytest.mark.parametrize(
    ("proxies", "expected"),
    [([], "127.0.0.1"), (["127.0.0.1/32"], "192.0.2.7"), (["192.0.2.0/24"], "127.0.0.1")],
)
def test_only_configured_proxies_are_believed(tmp_path: Path, proxies: list[str], expected: str) -> None:
    """Where a call comes from is what a proxy says only if the proxy is listed; this machine is not by itself."""
    with running(tmp_path, proxies=proxies, environ={"FORWARDED_ALLOW_IPS": "*"}) as server:
        reply = server.ask("/source", "X-Forwarded-For: 198.51.100.1, 192.0.2.7", "X-Forwarded-Proto: https")
        assert f" {expected} " in reply.json["source"] + " "
        assert (b"strict-transport-security" in reply.head) == (expected == "192.0.2.7")
        assert server.stop() == 0


# --- monitoring and the log -------------------------------------------------------------------------------------------


def test_counts_are_those_of_all_workers(tmp_path: Path) -> None:
    """Whichever worker is asked, it gives what all have counted, dead ones too; the files go at the end."""
    (tmp_path / "counts").mkdir()
    with running(tmp_path, workers=2, words=2, environ={"TMPDIR": str(tmp_path / "counts")}) as server:
        killed = min(server.pids(2))
        for _ in range(8):
            assert server.ask("/turn", method="POST").status == 200
        os.kill(killed, signal.SIGKILL)
        server.said("a worker ended")
        server.pids(2)
        for _ in range(6):
            said = server.ask("/metrics", OPERATOR)
            assert said.status == 200
            assert b'\ncloister_turns_total{outcome="committed"} 8.0\n' in said.body
            assert b"\r\ncontent-type: text/plain" in said.head
        assert server.ask("/metrics").status == 403
        assert list((tmp_path / "counts").iterdir())
        assert server.stop() == 0
    assert not list((tmp_path / "counts").iterdir())


class Silent:
    """A store that does not answer, or wrongly, until it is told to."""

    def __init__(self) -> None:
        self.asked = 0
        self.fails: Exception | None = None
        self.answers = asyncio.Event()

    async def tenanted(self) -> bool:
        self.asked += 1
        if self.fails is None:
            await self.answers.wait()
        if self.fails is not None:
            raise self.fails
        return True


async def test_it_is_ready_when_its_store_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an answer of the store within a second nobody is sent here; it is alive all the same."""
    monkeypatch.setattr("cloister.server.monitoring._PATIENCE", 0.05)
    store = Silent()
    monitoring = Monitoring(ServerSettings(), lambda: cast(Store, store))
    call: Any = None
    for _ in range(3):
        with pytest.raises(Refused) as refusal:
            await monitoring.readyz(call)
        assert refusal.value.status == 503
    assert store.asked == 1, "a store that does not answer is asked again and again"
    assert (await monitoring.healthz(call)).status == "ok"
    store.answers.set()
    assert (await monitoring.readyz(call)).status == "ok"
    await asyncio.sleep(0.06)
    store.fails = OSError("postgresql://secret@db")
    with pytest.raises(Refused) as refusal:
        await monitoring.readyz(call)
    assert "secret" not in refusal.value.message


async def test_why_it_is_not_ready_is_in_the_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The log says what is wrong with the store, also where it says so only after nobody waits for it any more."""
    monkeypatch.setattr("cloister.server.monitoring._PATIENCE", 0.05)
    store = Silent()
    monitoring = Monitoring(ServerSettings(), lambda: cast(Store, store))
    call: Any = None
    with pytest.raises(Refused):
        await monitoring.readyz(call)
    store.fails = StoreUnavailable("redis://db did not answer within 5 s")
    store.answers.set()
    for _ in range(3):
        await asyncio.sleep(0)
    store.fails = OSError("postgresql://secret@db")
    with pytest.raises(Refused):
        await monitoring.readyz(call)
    del monitoring
    gc.collect()
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        "the store does not answer: StoreUnavailable: redis://db did not answer within 5 s",
        "the store does not answer: OSError",
    ]


def test_the_log_is_one_line_without_what_was_said() -> None:
    """An error is logged by its name and place, on one line: its text may be what a user said."""
    try:
        raise ValueError("my name is Ana")
    except ValueError as error:
        info = (type(error), error, error.__traceback__)
    said = "line\nerror: forged \x1b[31m"
    line = Lines().format(logging.LogRecord("cloister.server", logging.ERROR, "", 0, said, (), info))
    assert "Ana" not in line
    assert "ValueError, test_serve.py:" in line
    assert line.isprintable()


def test_a_request_is_logged_without_ids(tmp_path: Path) -> None:
    """What is logged of a request names its route, and neither the path nor who asked."""
    with running(tmp_path) as server:
        server.ask("/v1/conversations/conv_secret")
        server.ask("/pid?key=secret", "Authorization: Bearer secret")
        server.said("GET /pid 4")
        assert server.stop() == 0
        assert "secret" not in server.log
        assert "127.0.0.1 " not in server.log


def test_grace_is_what_is_set() -> None:
    """The server waits for open requests as long as its settings say."""
    assert ServerSettings().shutdown_grace == timedelta(seconds=30)
