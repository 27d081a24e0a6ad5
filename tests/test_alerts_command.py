"""``cloister alerts test``: whether an alarm arrives at each destination, as an operator finds out."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cloister.cli import main
from cloister.sinks import verify_webhook

SECRET = "canary-of-the-webhook-secret"
Run = Callable[..., Result]


class Hook(HTTPServer):
    """A receiver in a thread, which answers with ``status`` and keeps what it is sent."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.status = 200
        self.posted: list[tuple[str, bytes]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/canary-path"


class _Handler(BaseHTTPRequestHandler):
    server: Hook

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.posted.append((self.headers["cloister-signature"], body))
        self.send_response(self.server.status)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hook() -> Iterator[Hook]:
    with Hook() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Work in an empty folder, on a store that is there."""
    monkeypatch.chdir(tmp_path)

    def invoke(*arguments: str, said: str | None = None, **environ: str) -> Result:
        return CliRunner(env=environ).invoke(main, arguments, input=said, catch_exceptions=False)

    assert invoke("chat", "--user", "ana", said="hello\n").exit_code == 0
    return invoke


def test_each_destination_is_tried(run: Run, hook: Hook, tmp_path: Path) -> None:
    """Each is sent one alarm that says it is a test, whatever its severity, and says what became of it."""
    named = {"CLOISTER_SINKS": f"log info=file:audit.jsonl {hook.url}", "CLOISTER_WEBHOOK_SECRET": SECRET}
    result = run("alerts", "test", **named)
    assert result.exit_code == 0
    said = [line.rpartition(": ")[::2] for line in result.stdout.splitlines()]
    assert [name.partition("/...")[0] for name, _ in said] == [
        "log",
        f"file:{tmp_path}/audit.jsonl",
        hook.url.removesuffix("/canary-path"),
    ]
    assert {outcome for _, outcome in said} == {"took it"}
    (line,) = (tmp_path / "audit.jsonl").read_text().splitlines()
    ((signature, body),) = hook.posted
    assert json.loads(line)["alarm"]["rule"] == json.loads(body)["alarm"]["rule"] == "alert.tested"
    verify_webhook(SECRET, signature, body, now=float(signature[2:].partition(",")[0]))
    assert "canary" not in result.stdout + line


def test_one_that_fails_is_named(run: Run, hook: Hook) -> None:
    """The others are tried all the same; the command says why it was not taken, and exits with 1."""
    hook.status = 403
    result = run("alerts", "test", CLOISTER_SINKS=f"{hook.url} file:audit.jsonl", CLOISTER_WEBHOOK_SECRET=SECRET)
    assert result.exit_code == 1
    first, second = result.stdout.splitlines()
    assert first.endswith("FAILED: it answered 403")
    assert second.endswith("took it")


def test_a_test_is_on_record_and_sent_once(run: Run, hook: Hook) -> None:
    """That somebody tested stands in the log; whoever delivers the log sends no second alarm for it."""
    named = {"CLOISTER_SINKS": hook.url, "CLOISTER_WEBHOOK_SECRET": SECRET}
    assert run("chat", "--user", "ana", said="hello\n", **named).exit_code == 0
    assert run("alerts", "test", **named).exit_code == 0
    assert run("chat", "--user", "ana", said="hello\n", **named).exit_code == 0
    events = [json.loads(line)["event"] for line in run("audit", "tail", "--json").stdout.splitlines()]
    assert events.count("alert.tested") == 1
    assert len(hook.posted) == 1


def test_without_destinations_there_is_nothing_to_test(run: Run) -> None:
    """The error says what to set."""
    result = run("alerts", "test")
    assert (result.exit_code, "CLOISTER_SINKS" in result.stderr) == (1, True)


def test_a_secret_that_is_missing_is_said(run: Run, hook: Hook) -> None:
    """A webhook is never left unsigned."""
    result = run("alerts", "test", CLOISTER_SINKS=hook.url)
    assert (result.exit_code, "CLOISTER_WEBHOOK_SECRET" in result.stderr) == (1, True)
    assert "canary" not in result.stderr
    assert hook.posted == []
