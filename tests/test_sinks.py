"""Destinations: a file, standard logging, a webhook. Each takes whole records or says that it could not."""

from __future__ import annotations

import asyncio
import errno
import io
import json
import logging
import os
import ssl
import subprocess
import sys
import time
import traceback
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.certificates import write_certificates
from tests.shipped import Receiver, status

from cloister import exports
from cloister.alarms import Alarm
from cloister.audit import Chain, Entry, Event, verify
from cloister.auditing import Evidence
from cloister.errors import ConfigurationError
from cloister.sinks import LineFile, LogSink, SignedHeads, SinkError, Webhook, connect, lines, verify_webhook, webhook
from cloister.sinks.base import line

ROOT = Path(__file__).parent.parent
SECRET = "canary-of-the-webhook-secret"
NASTY = [
    "line\nbreak",
    "carriage\rreturn",
    "\x1b[2J\x1b[31mred",
    "nul\x00",
    "del\x7f",
    "next\x85line",
    "separator\u2028and\u2029",
    "\u202etxt.exe",
    "\u2066hidden\u2069",
    "half \ud800 surrogate",
    '"}\n{"event":"forged","severity":"info"}',
    '{"class_uid":3002,"activity_id":1,"severity_id":5}',
    "%s%n ${jndi:ldap://x} {0}",
    "CEF:0|forged|x=1",
]


def some(count: int = 3, detail: dict[str, Any] | None = None) -> list[Entry]:
    chain, found = Chain.new(), []
    for number in range(count):
        chain, entry = chain.extend(
            Event("turn.committed", 1_700_000_000_000_000 + number, detail=detail or {}), "", ""
        )
        found.append(entry)
    return found


def alarm(**values: Any) -> Alarm:
    return Alarm(**{"rule": "access.foreign", "severity": "alert", "meaning": "x", "at": 1, **values})


def files(folder: Path) -> list[Path]:
    """The files there, oldest first."""
    return sorted(folder.iterdir(), key=lambda path: -int(path.suffix[1:]) if path.suffix[1:].isdigit() else 0)


def read(path: Path) -> list[Any]:
    """What stands there, but for the line that says what the file leaves out."""
    said = [json.loads(each) for each in path.read_bytes().decode("ascii").splitlines()]
    return said[1:] if "export" in said[0] else said


# --- a file -----------------------------------------------------------------------------------------------------------


async def test_a_file_has_a_line_for_each_record(tmp_path: Path) -> None:
    """Entries stand there as they are in the log, alarms and signed heads under their names."""
    entries = some()
    sink = LineFile(tmp_path / "x.jsonl")
    await sink.deliver(entries)
    await sink.deliver([alarm()])
    await sink.deliver([SignedHeads("signed")])
    *first, second, third = (tmp_path / "x.jsonl").read_bytes().splitlines()
    assert [msgspec.json.decode(each, type=Entry) for each in first] == entries
    assert verify((msgspec.json.decode(each, type=Entry) for each in first), {}).faults == []
    assert json.loads(second)["alarm"]["rule"] == "access.foreign"
    assert json.loads(third) == {"heads": "signed"}


async def test_a_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    """Nobody else may read it or what it was rotated to, whatever the mask of the process."""
    before = os.umask(0)
    try:
        sink = LineFile(tmp_path / "x.jsonl", rotate=1)
        await sink.deliver(some(1))
        await sink.deliver(some(1))
    finally:
        os.umask(before)
    found = [(path.name, path.stat().st_mode & 0o777) for path in files(tmp_path)]
    assert found == [("x.jsonl.1", 0o600), ("x.jsonl", 0o600)]


async def test_a_file_is_rotated_and_the_oldest_goes(tmp_path: Path) -> None:
    """No file grows beyond the size, none is cut, and as many stay as were asked for."""
    entries = some(40)
    size = len(line(entries[0])) * 5
    sink = LineFile(tmp_path / "x.jsonl", rotate=size, keep=3)
    for entry in entries:
        await sink.deliver([entry])
    there = files(tmp_path)
    assert [path.name for path in there] == ["x.jsonl.3", "x.jsonl.2", "x.jsonl.1", "x.jsonl"]
    assert all(path.stat().st_size <= size for path in there)
    assert [exports.File(path).window.since is not None for path in there] == [True] * 4
    assert [exports.verify_file(exports.File(path), Evidence())[1] for path in there] == [[]] * 4
    kept = [each["number"] for path in there for each in read(path)]
    assert kept == list(range(41 - len(kept), 41))
    assert len(kept) > 9


async def test_a_file_that_lacks_what_is_less_severe_says_so(tmp_path: Path) -> None:
    """Nobody takes it for a log that was tampered with: its first line says what is not in it."""
    sink = LineFile(tmp_path / "x.jsonl", "warning")
    await sink.deliver(some(1))
    await sink.deliver(some(1))
    assert sink.path.read_bytes().splitlines()[0] == b'{"export":{"severity":"warning"}}'
    assert len(read(sink.path)) == 2
    with pytest.raises(ConfigurationError, match="severity"):
        exports.File(sink.path)


async def test_more_than_a_file_may_hold_is_written_whole(tmp_path: Path) -> None:
    """What is delivered at once is never parted, even if it alone is larger than the size."""
    sink = LineFile(tmp_path / "x.jsonl", rotate=10)
    await sink.deliver(some(5))
    await sink.deliver(some(2))
    assert [len(read(path)) for path in files(tmp_path)] == [5, 2]


class FullDisk(io.FileIO):
    """A file for which there is room for some bytes only."""

    room = 0

    def write(self, data: Any) -> int:
        if not FullDisk.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(bytes(data)[: FullDisk.room])


@pytest.mark.parametrize("room", [0, 1, 50, 300])
async def test_a_full_disk_leaves_no_half_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    """What does not fit is not there at all, the destination says so, and goes on when there is room."""
    sink = LineFile(tmp_path / "x.jsonl")
    await sink.deliver(some(2))
    before = sink.path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(io, "FileIO", FullDisk)
        FullDisk.room = room
        with pytest.raises(SinkError, match="No space"):
            await sink.deliver(some(2))
    assert sink.path.read_bytes() == before
    await sink.deliver(some(1))
    assert len(read(sink.path)) == 3


@pytest.mark.parametrize("torn", [b'{"half": ', b"x" * 200_000])
async def test_a_line_that_was_never_finished_goes(tmp_path: Path, torn: bytes) -> None:
    """What a process left behind that died while it wrote was never acknowledged: it comes again, whole."""
    sink = LineFile(tmp_path / "x.jsonl")
    await sink.deliver(some(2))
    with sink.path.open("ab") as file:
        file.write(torn)
    await sink.deliver(some(1))
    assert len(read(sink.path)) == 3


async def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    """A pipe, a folder or a place that is not there is a failure that says so, and hangs nobody."""
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, tmp_path / "not" / "there"):
        with pytest.raises(SinkError):
            await LineFile(path).deliver(some(1))


async def test_a_file_that_another_holds_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that does not let go of the file is not waited for without end."""
    import fcntl

    monkeypatch.setattr(lines, "_TRIES", 3)
    sink = LineFile(tmp_path / "x.jsonl")
    await sink.deliver(some(1))
    with sink.path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(SinkError, match="another process"):
            await sink.deliver(some(1))
    await sink.deliver(some(1))


async def test_a_file_that_was_moved_meanwhile_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process may rotate the file after it was opened and before it is locked: then the new one is written."""
    sink = LineFile(tmp_path / "x.jsonl")
    await sink.deliver(some(1))
    real, moved = lines._locked, list[int]()

    def locked(file: io.FileIO) -> bool:
        if not moved:
            moved.append(1)
            os.replace(sink.path, f"{sink.path}.1")
        return real(file)

    monkeypatch.setattr(lines, "_locked", locked)
    await sink.deliver(some(2))
    assert [len(read(path)) for path in files(tmp_path)] == [1, 2]


_WRITER = """
import asyncio, sys
from tests.test_sinks import some
from cloister.sinks import LineFile

async def main():
    entries = some(150)
    print(entries[0].writer)
    sink = LineFile(sys.argv[1], rotate=20_000, keep=50)
    for first in range(0, 150, 3):
        await sink.deliver(entries[first:first + 3])

asyncio.run(main())
"""


def test_two_processes_write_one_file(tmp_path: Path) -> None:
    """Whole lines of both, none lost, while the file is rotated under them."""
    command = [sys.executable, "-c", _WRITER, str(tmp_path / "x.jsonl")]
    both = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    writers = [process.communicate(timeout=60)[0].strip() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    found: dict[str, list[int]] = {}
    assert len(files(tmp_path)) > 3
    for path in files(tmp_path):
        for each in read(path):
            found.setdefault(each["writer"], []).append(each["number"])
    assert found == {writer: list(range(1, 151)) for writer in writers}


# --- standard logging -------------------------------------------------------------------------------------------------


async def test_logging_takes_each_at_its_level(caplog: pytest.LogCaptureFixture) -> None:
    """Alarms go to one logger, entries to another, at the level of their severity."""
    caplog.set_level(logging.INFO)
    entries = [
        msgspec.structs.replace(entry, severity=severity)
        for entry, severity in zip(some(4), ["info", "notice", "warning", "alert"], strict=True)
    ]
    sink = LogSink("info")
    await sink.deliver(entries)
    await sink.deliver([alarm()])
    assert [(record.name, record.levelname) for record in caplog.records] == [
        ("cloister.audit", "INFO"),
        ("cloister.audit", "INFO"),
        ("cloister.audit", "WARNING"),
        ("cloister.audit", "ERROR"),
        ("cloister.alerts", "ERROR"),
    ]
    assert json.loads(caplog.messages[0])["number"] == 1


async def test_logging_that_drops_entries_is_a_failure(caplog: pytest.LogCaptureFixture) -> None:
    """A logger whose level swallows what it is handed has not taken it."""
    caplog.set_level(logging.WARNING)
    with pytest.raises(SinkError, match="set it to INFO"):
        await LogSink("info").deliver(some(1))
    await LogSink().deliver([alarm()])


# --- injection --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", NASTY, ids=ascii)
async def test_injection_is_one_escaped_record(
    text: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, receiver: Receiver
) -> None:
    """Whatever a record carries, it is one line of printable ASCII in every destination (rows 45 and 47)."""
    caplog.set_level(logging.INFO)
    entry = some(1, {"reason": text, text: "key"})[0]
    forged = msgspec.structs.replace(entry, owner=text, session=text, writer=text, event=text)
    records: list[Sequence[Any]] = [
        [entry, forged],
        [alarm(meaning=text, owner=text, detail=text)],
        [SignedHeads(text)],
    ]
    file = LineFile(tmp_path / "x.jsonl")
    hook = Webhook(f"http://127.0.0.1:{receiver.port}/", SECRET, "info")
    for some_records in records:
        for sink in (file, LogSink("info"), hook):
            await sink.deliver(some_records)
    await hook.close()
    written = file.path.read_bytes().decode("ascii")
    bodies = [body.decode("ascii") for _, _, body in receiver.requests]
    assert written.count("\n") == 4
    for each in (*written.splitlines(), *caplog.messages, *bodies):
        assert each.isprintable()
        assert isinstance(json.loads(each), dict)
    assert len(written.splitlines()) == len(caplog.records) == 4
    assert [list(json.loads(body)) for body in bodies] == [["entries"], ["alarm"], ["heads"]]
    expected = {"host", "accept", "accept-encoding", "connection", "content-length", "content-type", "user-agent"}
    for _, headers, _ in receiver.requests:
        assert set(headers) - {"connection"} == expected - {"connection"} | {"cloister-delivery", "cloister-signature"}
    assert json.loads(written.splitlines()[0])["detail"] == entry.detail


# --- a webhook --------------------------------------------------------------------------------------------------------


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    await receiver.start()
    yield receiver
    await receiver.stop()


@pytest.fixture
async def hook(receiver: Receiver) -> AsyncIterator[Webhook]:
    sink = Webhook(f"http://127.0.0.1:{receiver.port}/canary-path?token=canary", SECRET, clock=lambda: 1_000.0)
    yield sink
    await sink.close()


async def test_a_webhook_is_signed(hook: Webhook, receiver: Receiver) -> None:
    """What is posted can be verified with the secret, and names itself for a receiver that drops doubles."""
    entries = some()
    await hook.deliver(entries)
    await hook.deliver([alarm(writer="w_1", number=7)])
    (first, headers, body), (_, others, _) = receiver.requests
    assert first == "POST /canary-path?token=canary HTTP/1.1"
    assert headers["content-type"] == "application/json"
    assert headers["cloister-delivery"] == f"entries-{entries[0].writer}-3"
    assert others["cloister-delivery"] == "alarm-w_1-7"
    verify_webhook(SECRET, headers["cloister-signature"], body, now=1_000.0)
    assert [each["number"] for each in json.loads(body)["entries"]] == [1, 2, 3]


_BODY = b'{"alarm":{}}'
_SIGNED = webhook.signature(SECRET, _BODY, 1_000)


@pytest.mark.parametrize(
    ("secret", "header", "body", "now"),
    [
        ("another-secret-of-some-length", _SIGNED, _BODY, 1_000),
        (SECRET, _SIGNED, _BODY + b" ", 1_000),
        (SECRET, _SIGNED.replace("t=1000", "t=1001"), _BODY, 1_000),
        (SECRET, _SIGNED, _BODY, 1_301),
        (SECRET, _SIGNED, _BODY, 699),
        (SECRET, "", _BODY, 1_000),
        (SECRET, "t=1000", _BODY, 1_000),
        (SECRET, "t=1000,v1=", _BODY, 1_000),
        (SECRET, "t=1000," + _SIGNED, _BODY, 1_000),
        (SECRET, _SIGNED.replace("v1", "v0"), _BODY, 1_000),
        (SECRET, _SIGNED.replace("1000", "１０００"), _BODY, 1_000),
        (SECRET, "t=1000,v1=é", _BODY, 1_000),
        (SECRET, "t=" + "9" * 5_000 + ",v1=x", _BODY, 1_000),
    ],
)
def test_what_was_not_signed_is_refused(secret: str, header: str, body: bytes, now: float) -> None:
    """Another secret, body or time, a replay, and what is no signature at all."""
    verify_webhook(SECRET, _SIGNED, _BODY, now=1_300)
    with pytest.raises(ValueError, match="webhook"):
        verify_webhook(secret, header, body, now=now)


def test_a_secret_can_be_replaced() -> None:
    """While it is, a header may carry a signature under either secret."""
    other = webhook.signature("another-secret-of-some-length", _BODY, 1_000).partition(",")[2]
    for header in (f"{_SIGNED},{other}", f"t=1000,{other},{_SIGNED.partition(',')[2]}"):
        verify_webhook(SECRET, header, _BODY, now=1_000)


@pytest.mark.parametrize(
    ("answer", "said", "after", "slow"),
    [
        (status(500), "500", None, False),
        (status(503, "retry-after: 7\r\n"), "503", 7.0, False),
        (status(429, "retry-after: 30\r\n"), "429", 30.0, False),
        (status(429, "retry-after: -1\r\n"), "429", None, False),
        (status(429, "retry-after: " + "9" * 400 + "\r\n"), "429", None, False),
        (status(408), "408", None, False),
        (status(425), "425", None, False),
        (status(400), "400", None, True),
        (status(401), "401", None, True),
        (status(404), "404", None, True),
        (status(302, "location: http://127.0.0.1:1/elsewhere\r\n"), "redirects", None, True),
        (None, "broke off", None, False),
        (b"ICY 200 OK\r\n\r\n", "not HTTP", None, False),
        (b"x" * 100_000, "not HTTP", None, False),
    ],
)
async def test_failures_say_what_to_expect(
    hook: Webhook, receiver: Receiver, answer: bytes | None, said: str, after: float | None, slow: bool
) -> None:
    """Each failure is one, says why without the address, and how soon to try again."""
    receiver.answer = answer
    with pytest.raises(SinkError, match=said) as raised:
        await hook.deliver([alarm()])
    assert (raised.value.after, raised.value.slow) == (after, slow)
    assert receiver.asked == 1
    shown = "".join(traceback.format_exception(raised.value))
    shown += "".join(traceback.TracebackException.from_exception(raised.value, capture_locals=True).format())
    assert "canary" not in shown + repr(hook) + hook.name + str(raised.value)


async def test_a_webhook_that_hangs_is_given_up(
    hook: Webhook, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever says nothing is left after a while; whoever talks without end is not listened to."""
    receiver.answer = status(200).replace(b"content-length: 0", b"content-length: 1000000000")
    await hook.deliver([alarm()])
    monkeypatch.setattr(webhook, "_TOTAL", 0.05)
    receiver.answer = "hang"
    with pytest.raises(SinkError, match="in time"):
        await hook.deliver([alarm()])


async def test_a_webhook_that_nobody_answers_is_a_failure(receiver: Receiver) -> None:
    """Where nobody listens, it cannot be reached."""
    url = f"http://127.0.0.1:{receiver.port}/"
    await receiver.stop()
    sink = Webhook(url, SECRET)
    with pytest.raises(SinkError, match="reached"):
        await sink.deliver([alarm()])
    await sink.close()
    await receiver.start()


async def test_a_certificate_that_is_not_trusted_is_refused(tmp_path: Path) -> None:
    """Nothing is posted to a server that cannot show who it is."""
    write_certificates(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tmp_path / "server.crt", tmp_path / "server.key")
    posted = bytearray()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            posted.extend(await reader.read(1_000))
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    sink = Webhook(f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/", SECRET)
    with pytest.raises(SinkError, match="certificate") as raised:
        await sink.deliver([alarm()])
    assert raised.value.slow
    assert not posted
    await sink.close()
    server.close()
    await server.wait_closed()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://hooks.example/canary", "in clear"),
        ("https://ana:canary@hooks.example/", "password"),
        ("https://hooks.example/#canary", "address like"),
        ("https://hooks.example/\ncanary", "address like"),
        ("https://höoks.example/canary", "address like"),
        ("ftp://hooks.example/canary", "address like"),
        ("https:///canary", "address like"),
        ("https://[canary", "address like"),
        ("https://hooks.example:canary/", "address like"),
    ],
)
def test_an_address_that_is_not_safe_is_refused(url: str, said: str) -> None:
    """Alarms do not travel in clear, and an address shows nothing of itself in an error."""
    with pytest.raises(ConfigurationError, match=said) as raised:
        Webhook(url, SECRET)
    assert "canary" not in str(raised.value)


def test_an_address_in_clear_can_be_allowed() -> None:
    """On this machine, or where somebody says so, http will do."""
    assert Webhook("http://127.0.0.1:8080/x", SECRET).name.startswith("http://127.0.0.1:8080/...")
    assert Webhook("http://[::1]/x", SECRET).name.startswith("http://[::1]/...")
    Webhook("http://hooks.internal/x", SECRET, allow_http=True)


def test_a_secret_that_is_short_is_refused() -> None:
    """A secret that could be guessed is none; the error says how to make one."""
    for secret in ("", "short", "ü" * 20):
        with pytest.raises(ConfigurationError, match="openssl rand"):
            Webhook("https://hooks.example/x", secret)


def test_two_addresses_have_two_names() -> None:
    """Names tell addresses of one host apart, stay the same, and do not give them away."""
    names = {Webhook(f"https://hooks.example/canary{number}", SECRET).name for number in range(100)}
    assert len(names) == 100
    assert names == {Webhook(f"https://hooks.example/canary{number}", SECRET).name for number in range(100)}
    assert "canary" not in str(names)


# --- as settings name them --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "name", "severity"),
    [
        ("log", "log", "alert"),
        ("warning=log", "log", "warning"),
        ("file:/var/log/audit.jsonl", "file:/var/log/audit.jsonl", "info"),
        ("file:///var/log/audit.jsonl", "file:/var/log/audit.jsonl", "info"),
        ("file:/var/my%20log/x?rotate=1GB&keep=9", "file:/var/my log/x", "info"),
        ("alert=file:/a=b", "file:/a=b", "alert"),
        ("https://hooks.example/x?a=b", None, "alert"),
        ("info=https://hooks.example/x", None, "info"),
    ],
)
def test_destinations_are_named_in_text(said: str, name: str | None, severity: str) -> None:
    """A destination is written with its severity, or has that of its kind."""
    sink = connect(said, SECRET)
    assert sink.severity == severity
    assert name in (None, sink.name)


@pytest.mark.parametrize(
    "said",
    [
        *("", "canary", "canary=log", "ALERT=log", "alert=", "=log", "smtp:canary", "file:"),
        *("file:x?canary=1", "file:x?rotate=0", "file:x?rotate=1TB", "file:x?keep=0"),
    ],
)
def test_what_is_no_destination_is_refused(said: str) -> None:
    """An error names what there is, and repeats nothing: it might be a secret address."""
    with pytest.raises(ConfigurationError) as raised:
        connect(said, SECRET)
    assert "canary" not in str(raised.value)


def test_time_is_the_systems_unless_given() -> None:
    """A signature carries the time at which it was made."""
    before = int(time.time())
    header = webhook.signature(SECRET, b"", before)
    verify_webhook(SECRET, header, b"", now=time.time())
