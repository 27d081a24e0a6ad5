"""``cloister scrub``: lines in, lines without personal data out."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cloister.cli import main

Run = Callable[..., Result]
_COMMAND = "import sys; sys.argv[0] = 'cloister'; from cloister.cli import main; main()"


@pytest.fixture
def run() -> Run:
    def invoke(*arguments: str | Path, said: str | bytes | None = None) -> Result:
        return CliRunner().invoke(main, ["scrub", *map(str, arguments)], input=said, catch_exceptions=False)

    return invoke


def test_personal_data_is_replaced_by_its_type(run: Run) -> None:
    """What is found becomes a label, and everything else stays, line ends and a missing last one included."""
    said = "I am Ana Silva, ana@example.com\r\nnothing here\n\nüñí 😀 call 212-555-0123"
    result = run(said=said.encode())
    assert result.exit_code == 0
    assert result.stdout_bytes.decode() == "I am [PERSON], [EMAIL]\r\nnothing here\n\nüñí 😀 call [PHONE]"


def test_files_are_read_one_after_the_other(run: Run, tmp_path: Path) -> None:
    """Files come out in their order, on standard output."""
    (tmp_path / "one").write_text("ana@example.com\n")
    (tmp_path / "two").write_text("4111 1111 1111 1111\n")
    assert run(tmp_path / "one", tmp_path / "two").stdout == "[EMAIL]\n[CREDIT_CARD]\n"


def test_json_gives_the_spans_of_each_line(run: Run) -> None:
    """One line in, one object out, with offsets in characters of the line, and without any of its text."""
    result = run("--json", said="😀 mail ana@example.com\nnothing\nI am Ana Silva")
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert lines == [
        {"spans": [{"start": 7, "end": 22, "type": "EMAIL"}]},
        {"spans": []},
        {"spans": [{"start": 5, "end": 14, "type": "PERSON"}]},
    ]
    assert "ana" not in result.stdout


def test_explain_says_what_and_why(run: Run) -> None:
    """Each finding of a text comes with its type and the rule that found it; no finding is said too."""
    result = run("--explain", "My card is 4111 1111 1111 1111")
    assert result.stdout == "4111 1111 1111 1111\tCREDIT_CARD\ta card number, by the words before it\n"
    assert run("--explain", "Good morning").stdout == "nothing was found\n"


def test_explain_takes_nothing_else(run: Run, tmp_path: Path) -> None:
    """A text to explain and files at once are a mistake that is named."""
    result = run("--explain", "hello", tmp_path)
    assert result.exit_code == 2
    assert "--explain takes the text itself" in result.stderr


def test_each_line_is_written_before_the_next_is_read() -> None:
    """What is piped through comes out line by line, not at the end."""
    with subprocess.Popen(
        [sys.executable, "-c", _COMMAND, "scrub"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as piped:
        assert piped.stdin is not None
        assert piped.stdout is not None
        for _ in range(3):
            piped.stdin.write(b"ana@example.com\n")
            piped.stdin.flush()
            assert piped.stdout.readline() == b"[EMAIL]\n"
        piped.stdin.close()
        assert piped.wait(timeout=60) == 0


def test_what_is_not_utf_8_is_said_with_its_line(run: Run, tmp_path: Path) -> None:
    """A line that cannot be read ends the command, with its number and what to do, and is not written."""
    (tmp_path / "latin").write_bytes(b"fine\nJos\xe9\n")
    result = run(tmp_path / "latin")
    assert result.exit_code == 1
    assert result.stdout == "fine\n"
    assert "line 2 of " in result.stderr
    assert "is not UTF-8; convert it" in result.stderr
    assert "Jos" not in result.stderr


def test_a_missing_file_and_a_folder_are_named(run: Run, tmp_path: Path) -> None:
    """Nothing is written where one of the files cannot be read."""
    (tmp_path / "one").write_text("hello\n")
    missing = run(tmp_path / "one", tmp_path / "absent")
    assert (missing.exit_code, missing.stdout) == (1, "")
    assert f"No such file or directory: {tmp_path / 'absent'}" in missing.stderr
    folder = run(tmp_path / "one", tmp_path)
    assert (folder.exit_code, folder.stdout) == (1, "")
    assert f"{tmp_path} is a folder; name the files in it" in folder.stderr


def test_a_line_too_long_to_search_is_not_passed_on(run: Run) -> None:
    """A line beyond the limit ends the command instead of going through unsearched or piece by piece."""
    result = run(said="x" * 999_990 + " ana@example.com\n")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "line 1 of standard input is longer than 1,000,000 bytes" in result.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_a_bar_shows_how_far_it_has_come(tmp_path: Path) -> None:
    """With a terminal beside the file that is written, the bytes of a long input go by, and none of its text does."""
    import pty
    import termios

    (tmp_path / "long").write_bytes(b"ana@example.com\n" + b"nothing\n" * 60_000)
    (tmp_path / "short").write_bytes(b"ana@example.com\n")

    def shown(name: str) -> bytes:
        ours, theirs = pty.openpty()
        termios.tcsetwinsize(theirs, (24, 200))
        with (tmp_path / "out").open("wb") as out:
            command = [sys.executable, "-c", _COMMAND, "scrub", str(tmp_path / name)]
            done = subprocess.Popen(command, stdout=out, stderr=theirs, env={**os.environ, "TERM": "xterm"})
        os.close(theirs)
        seen = b""
        with contextlib.suppress(OSError):  # Linux says so that the other side was closed
            while more := os.read(ours, 65_536):
                seen += more
        os.close(ours)
        assert done.wait(timeout=60) == 0
        return seen

    seen = shown("long")
    size = len((tmp_path / "long").read_bytes())
    assert (tmp_path / "out").read_bytes() == b"[EMAIL]\n" + b"nothing\n" * 60_000
    steps = [int(done) for done in re.findall(rf"bytes .*?(\d+)/{size}".encode(), seen)]
    assert len(set(steps)) > 2
    assert (steps, steps[-1]) == (sorted(steps), size)
    assert b"ana@" not in seen
    assert shown("short") == b""
