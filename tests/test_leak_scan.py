"""``cloister leaks scan``: past conversations in, replies with another user's details out."""

from __future__ import annotations

import base64
import contextlib
import gzip
import io
import json
import os
import re
import select
import stat
import sys
from collections.abc import Callable
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from cloister.cli import main
from cloister.scan import files, judge
from cloister.scan.transcripts import Fields, Unreadable, moment, read

SECRET = "QX-7731-84"
TOLD = f"My order is {SECRET}, when does it come?"
LEAK = f"Order {SECRET} is on its way."
Lines = list[dict[str, Any]]


class Runner:
    """Run the command on lines, and read its report."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "talks.jsonl"
        self.json = folder / "report.json"

    def write(self, lines: Lines, name: str = "talks.jsonl") -> Path:
        file = self.folder / name
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return file

    def __call__(self, *arguments: str | Path, said: bytes | None = None) -> Result:
        return CliRunner().invoke(main, ["leaks", "scan", *map(str, arguments)], input=said, catch_exceptions=False)

    def report(self, lines: Lines | None = None, *arguments: str | Path) -> dict[str, Any]:
        if lines is not None:
            self.write(lines)
        result = self(self.file, "--json", self.json, *arguments)
        assert result.exit_code in (0, 1), result.output
        read: dict[str, Any] = json.loads(self.json.read_bytes())
        assert result.exit_code == (1 if read["counts"]["blocked"] else 0)
        return read


@pytest.fixture
def scan(tmp_path: Path) -> Runner:
    return Runner(tmp_path)


def places(report: dict[str, Any]) -> list[tuple[str, int, int]]:
    """Give what was found: the verdict, on which line, in which message."""
    return [(row["action"], row["where"]["line"], row["where"]["message"]) for row in report["rows"]]


def message(user: str, role: str, text: str, **more: Any) -> dict[str, Any]:
    return {"user": user, "session": f"{user} 1", "role": role, "content": text, **more}


def talk(user: str, *texts: str) -> dict[str, Any]:
    """Give a conversation in which user and assistant take turns."""
    roles = ("user", "assistant")
    return {"user": user, "messages": [{"role": roles[n % 2], "content": text} for n, text in enumerate(texts)]}


def told(user: str) -> Lines:
    """Give conversations in which ana says what *user* is then told."""
    return [talk("ana", TOLD, "Soon."), talk(user, "Hello.", LEAK)]


# --- forms of transcripts ---------------------------------------------------------------------------------------------

FORMS: dict[str, Callable[[str], tuple[Lines, tuple[int, int]]]] = {
    "a message on each line": lambda user: (
        [message("ana", "user", TOLD), message(user, "user", "Hello."), message(user, "assistant", LEAK)],
        (3, 1),
    ),
    "other names of the fields": lambda user: (
        [
            {"userId": "ana", "thread_id": 7, "from": "human", "text": TOLD},
            {"userId": user, "thread_id": 8, "from": "bot", "text": LEAK},
        ],
        (2, 1),
    ),
    "the user on the user's own messages only": lambda user: (
        [
            {"session": "1", "role": "system", "content": "Be kind."},
            {"session": "1", "user": "ana", "role": "user", "content": TOLD},
            {"session": "2", "role": "system", "content": "Be kind."},
            {"session": "2", "user": user, "role": "user", "content": "Hello."},
            {"session": "2", "role": "assistant", "content": LEAK},
        ],
        (5, 1),
    ),
    "a question and its answer on each line": lambda user: (
        [
            {"user": "ana", "question": TOLD, "answer": "Soon."},
            {"user": user, "question": "Hello.", "answer": LEAK},
        ],
        (2, 1),
    ),
    "a conversation on each line": lambda user: (told(user), (2, 2)),
    "parts": lambda user: (
        [
            {"user": "ana", "messages": [{"role": "user", "content": [{"type": "text", "text": TOLD}]}]},
            {
                "user": user,
                "messages": [
                    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]},
                    {"role": "assistant", "content": ["Well.", {"type": "output_text", "text": LEAK}]},
                ],
            },
        ],
        (2, 2),
    ),
    "ShareGPT": lambda user: (
        [
            {"user": "ana", "conversations": [{"from": "human", "value": TOLD}]},
            {"user": user, "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": LEAK}]},
        ],
        (2, 2),
    ),
    "turns": lambda user: (
        [
            {"user": "ana", "dialogue_id": "a", "turns": [{"role": "user", "text": TOLD}]},
            {"user": user, "dialogue_id": "b", "turns": [{"role": "assistant", "text": LEAK}]},
        ],
        (2, 1),
    ),
    "arguments of a call": lambda user: (
        [
            talk("ana", TOLD),
            {
                "user": user,
                "messages": [
                    {
                        "role": "assistant",
                        "content": None,
                        "tool_calls": [
                            {"type": "function", "function": {"name": "track", "arguments": json.dumps({"no": SECRET})}}
                        ],
                    },
                    {"role": "assistant", "content": "One moment."},
                ],
            },
        ],
        (2, 1),
    ),
    "arguments of a call in Anthropic's form": lambda user: (
        [
            talk("ana", TOLD),
            {
                "user": user,
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": "Hello."}]},
                    {
                        "role": "assistant",
                        "content": [
                            {"type": "text", "text": "One moment."},
                            {"type": "tool_use", "name": "track", "input": {"no": SECRET}},
                        ],
                    },
                ],
            },
        ],
        (2, 2),
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_leak_is_found_in_every_form(scan: Runner, form: str) -> None:
    """What ana said and ben is told is found where it stands; if ana is told it herself, nothing is."""
    lines, (line, number) = FORMS[form]("ben")
    found = scan.report(lines)
    assert places(found) == [("block", line, number)]
    assert found["unread"] == []
    assert found["counts"]["users"] == 2
    lines, _ = FORMS[form]("ana")
    assert places(scan.report(lines)) == []


def test_fields_may_be_named(scan: Runner) -> None:
    """A field that is called otherwise, or lies deeper, is named; without that its lines cannot be read."""
    lines: Lines = [
        {"who": {"id": user}, "talk": [{"speaks": role, "says": text}]}
        for user, role, text in (("ana", "user", TOLD), ("ben", "assistant", LEAK))
    ]
    named = ["user=who.id", "messages=talk", "role=speaks", "text=says"]
    options = [part for each in named for part in ("--field", each)]
    assert places(scan.report(lines, *options)) == [("block", 2, 1)]
    assert scan(scan.file).exit_code == 2
    for wrong in ("user", "user=", "colour=blue"):
        result = scan(scan.file, "--field", wrong)
        assert result.exit_code == 2
        assert "say user, session" in result.stderr


def test_without_a_user_the_conversation_is_the_user(scan: Runner) -> None:
    """Conversations that name nobody are compared as if each were somebody's, and the report says so."""
    lines = [{"messages": line["messages"]} for line in told("ben")]
    found = scan.report(lines)
    assert places(found) == [("block", 2, 2)]
    assert any(note.startswith("2 of 2 conversations name no user") for note in found["notes"])
    assert not any("name no user" in note for note in scan.report(told("ben"))["notes"])
    same = [{"id": "one", **line} for line in lines]
    assert places(scan.report(same)) == []


def test_several_users_of_one_conversation_are_kept_apart(scan: Runner) -> None:
    """Where several speak in one conversation, a reply is to who spoke last, and the report says so."""
    lines = [
        {"session": "1", "user": "ana", "role": "user", "content": TOLD},
        {"session": "1", "role": "assistant", "content": LEAK},
        {"session": "1", "user": "ben", "role": "user", "content": "Hello."},
        {"session": "1", "role": "assistant", "content": LEAK},
    ]
    found = scan.report(lines)
    assert places(found) == [("block", 4, 1)]
    assert any("several users speak" in note for note in found["notes"])


def test_the_first_place_is_named(scan: Runner) -> None:
    """The report says where the other user said the detail first, and where in the reply it stands."""
    found = scan.report([talk("ana", "Hello.", "Hello."), *told("ben"), talk("ana", TOLD)])
    (row,) = found["rows"]
    (piece,) = row["evidence"]
    assert (piece["origin"]["line"], piece["origin"]["message"]) == (2, 1)
    assert LEAK[piece["start"] : piece["end"]] == SECRET
    assert piece["kind"] == "identifier"


# --- strictly in order ------------------------------------------------------------------------------------------------


def test_a_reply_is_judged_with_what_came_before(scan: Runner) -> None:
    """Without times the files' order counts: what is said on a later line is no evidence."""
    assert places(scan.report(list(reversed(told("ben"))))) == []


@pytest.mark.parametrize("written", ["seconds", "milliseconds", "ISO 8601", "text"])
@pytest.mark.parametrize("packed", [False, True])
def test_the_order_is_that_of_time(scan: Runner, written: str, packed: bool) -> None:
    """If all messages have a time, that decides, however it is written and wherever the lines lie."""
    form: Callable[[int], Any] = {
        "seconds": lambda second: 1_760_000_000 + second,
        "milliseconds": lambda second: (1_760_000_000 + second) * 1000,
        "ISO 8601": lambda second: f"2026-01-01T00:00:{second:02}Z",
        "text": lambda second: f"{1_760_000_000 + second}.5",
    }[written]

    def lines(telling: int) -> Lines:
        return [
            message("ben", "user", "Hello.", timestamp=form(1)),
            message("ben", "assistant", LEAK, timestamp=form(20)),
            message("ben", "assistant", "Goodbye.", timestamp=form(30)),
            message("ana", "user", TOLD, timestamp=form(telling)),
        ]

    for telling, expected in ((10, [("block", 2, 1)]), (25, [])):
        file = scan.write(lines(telling))
        if packed:
            file.write_bytes(gzip.compress(file.read_bytes()))
        found = scan.report()
        assert places(found) == expected
        assert found["order"] == "time"


def test_messages_of_conversations_are_played_in_time(scan: Runner) -> None:
    """Times on the messages of whole conversations interleave these."""
    first = talk("ben", "Hello.", "Hello.", "And?", LEAK)
    second = talk("ana", TOLD, "Soon.")
    for at, each in zip((1, 2, 3, 9), first["messages"], strict=True):
        each["created_at"] = f"2026-01-01T00:00:0{at}+00:00"
    for at, each in zip((4, 5), second["messages"], strict=True):
        each["created_at"] = f"2026-01-01T02:00:0{at}+02:00"
    assert places(scan.report([first, second])) == [("block", 1, 4)]
    assert scan.report()["rows"][0]["evidence"][0]["origin"] == {
        "file": str(scan.file),
        "line": 2,
        "message": 1,
    }


def test_one_message_without_a_time_leaves_the_files_order(scan: Runner) -> None:
    """Half-timed transcripts are taken as they lie, and the report says why."""
    lines = [
        message("ben", "assistant", LEAK, timestamp=20),
        message("ana", "user", TOLD, timestamp=10),
        message("ana", "assistant", "Soon.", timestamp="yesterday"),
    ]
    found = scan.report(lines)
    assert (found["order"], places(found)) == ("file", [])
    assert any("since 1 have no time" in note for note in found["notes"])
    assert places(scan.report(lines[:2])) == [("block", 1, 1)]


def test_what_is_a_time() -> None:
    """Seconds, milliseconds and dates, in UTC unless they say otherwise, are the same moment."""
    same = [1_760_000_000, 1_760_000_000_000, "1760000000", "2025-10-09T08:53:20", "2025-10-09T10:53:20+02:00"]
    assert {moment(value) for value in same} == {1_760_000_000.0}


@pytest.mark.parametrize("value", [None, True, "", "soon", "9" * 400, float("nan"), [1], {"at": 1}, "2026-13-01"])
def test_what_is_no_time(value: object) -> None:
    """What cannot be read as a moment is none."""
    assert moment(value) is None or moment(value) == float("inf")


# --- what is evidence -------------------------------------------------------------------------------------------------


def test_what_the_receiver_was_shown_is_no_evidence(scan: Runner) -> None:
    """A tool's result in the same conversation exempts; one in another conversation does not."""
    tool = {"role": "tool", "content": {"orders": [{"id": SECRET}]}}
    own = talk("ben", "Hello.", LEAK)
    own["messages"].insert(1, tool)
    assert places(scan.report([talk("ana", TOLD), own])) == []
    other = {"user": "ben", "messages": [tool]}
    assert places(scan.report([talk("ana", TOLD), other, talk("ben", "Hello.", LEAK)])) == [("block", 3, 2)]
    block = {"role": "user", "content": [{"type": "tool_result", "content": [{"type": "text", "text": SECRET}]}]}
    own["messages"][1] = block
    assert places(scan.report([talk("ana", TOLD), own])) == []


def test_a_name_in_two_fields_was_shown(scan: Runner) -> None:
    """What a tool returned is taken by its words, and what a user typed only as a whole."""
    own = talk("ben", "Who?", "It was Marta Feldkamp.")
    for role, expected in (("tool", []), ("user", [("alert", 2, 3)])):
        own["messages"][1:-1] = [{"role": role, "content": "first: Marta\nlast: Feldkamp"}]
        assert places(scan.report([talk("ana", "My name is Marta Feldkamp."), own])) == expected


def test_system_text_is_no_evidence(scan: Runner) -> None:
    """What the operator told the model in this conversation may be said in it."""
    own = talk("ben", "Hello.", LEAK)
    own["messages"].insert(0, {"role": "system", "content": f"Test order: {SECRET}."})
    assert places(scan.report([talk("ana", TOLD), own])) == []


def test_a_blocked_reply_gives_its_receiver_nothing(scan: Runner) -> None:
    """A leak that is repeated is found again, since the guard would have stopped the first."""
    found = scan.report([talk("ana", TOLD), talk("ben", "Hello.", LEAK, "What?", LEAK)])
    assert sorted(places(found)) == [("block", 2, 2), ("block", 2, 4)]


def test_seeds_are_common_knowledge(scan: Runner) -> None:
    """What the operator's own texts say is nobody's detail."""
    seed = scan.folder / "catalogue.txt"
    seed.write_text(f"Item\n\nOrder {SECRET} is our example.\n")
    assert places(scan.report(told("ben"), "--seed", seed)) == []
    seed.write_text("Something else.\n")
    assert places(scan.report(told("ben"), "--seed", seed)) == [("block", 2, 2)]


def test_tenants_are_compared_only_if_asked_for(scan: Runner) -> None:
    """Within a tenant users are compared, across tenants with ``--scope all``; and what was left out is said."""
    lines = [{"tenant": "acme", **told("ben")[0]}, {"tenant": "zeta", **told("ben")[1]}]
    found = scan.report(lines)
    assert places(found) == []
    assert any("--scope all" in note for note in found["notes"])
    found = scan.report(lines, "--scope", "all")
    assert places(found) == [("block", 2, 2)]
    assert found["rows"][0]["receiver"]["tenant"] != found["rows"][0]["other"]["tenant"]
    lines[1]["tenant"] = "acme"
    assert places(scan.report(lines)) == [("block", 2, 2)]
    alike = [{"tenant": "acme", **told("ana")[0]}, {"tenant": "zeta", **told("ana")[1]}]
    assert places(scan.report(alike, "--scope", "all")) == [("block", 2, 2)]


def test_what_conversations_know_is_bounded(scan: Runner) -> None:
    """When too much is known, the conversation that rested longest begins anew; that is counted and said."""
    own = [message("ben", "user", f"It is {SECRET}."), message("ben", "assistant", LEAK)]
    others = [message(f"user {n}", role, "x" * 400) for role in ("user", "assistant") for n in range(10)]
    file = scan.write([message("ana", "user", TOLD), own[0], *others[:10], own[1], *others[10:]])
    survey = files.Survey([files.Source(file)], Fields(), b"k" * 32)
    survey.take(lambda _: None)
    tight = judge.Scan(survey, most_known=1_000)
    tight.judge(lambda _: None)
    assert tight.forgotten > 5
    roomy = judge.Scan(survey)
    roomy.judge(lambda _: None)
    assert (roomy.forgotten, roomy._known, roomy._sizes, roomy._size) == (0, {}, {}, 0)
    from cloister.scan import report

    assert any("was forgotten to make room" in note for note in report.notes(tight))
    assert not any("forgotten" in note for note in report.notes(roomy))


# --- exit codes -------------------------------------------------------------------------------------------------------


def test_exit_codes(scan: Runner) -> None:
    """Blocked is 1, clean is 0, an alert alone is 0, and no verdict is 2."""
    assert scan(scan.write(told("ben"))).exit_code == 1
    assert scan(scan.write(told("ana"))).exit_code == 0
    named = [talk("ana", "My name is Marta Feldkamp."), talk("ben", "Who?", "It was Marta Feldkamp.")]
    assert places(scan.report(named)) == [("alert", 2, 2)]
    assert scan(scan.file).exit_code == 0


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"\n\n", "is empty"),
        (b"hello\nthere\n", "has no line that can be read; line 1 is not JSON"),
        (b'[{"user": "ana"}]\n', "line 1 is not a JSON object"),
        (b'{"user": "ana", "role": "user", "content": "hi"}\n', "there is no reply of an assistant to judge"),
        (gzip.compress(b"x" * 1000, mtime=0)[:-20], "is packed, and damaged"),
        (b"\x1f\x8bnonsense", "is packed, and damaged"),
    ],
)
def test_what_cannot_be_judged_is_no_success(scan: Runner, content: bytes, said: str) -> None:
    """A file without any reply, or that cannot be read, is an error in one line, and no report is written."""
    scan.file.write_bytes(content)
    result = scan(scan.file, "--json", scan.json)
    assert result.exit_code == 2
    assert said in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not scan.json.exists()


def test_one_empty_file_among_others_is_an_error(scan: Runner) -> None:
    """A file that has nothing is not made up for by others."""
    good, empty = scan.write(told("ana"), "good"), scan.write([], "empty")
    result = scan(good, empty)
    assert result.exit_code == 2
    assert f"{empty} is empty" in result.stderr


def test_mistakes_are_said_before_any_work(scan: Runner) -> None:
    """Missing files, folders, and reports that would write over what is read are refused with 2."""
    file = scan.write(told("ana"))
    before = file.read_bytes()
    for arguments, said in (
        ([], "Missing argument"),
        ([scan.folder / "absent"], "No such file or directory"),
        ([scan.folder], "is a folder"),
        ([file, "--json", file], "needs another name"),
        ([file, "--html", scan.folder / "absent" / "x"], "does not exist; create it"),
        ([file, "--json", scan.json, "--html", scan.json], "two names"),
        ([file, "--seed", scan.folder / "absent"], "No such file or directory"),
    ):
        result = scan(*arguments)
        assert (result.exit_code, result.stdout) == (2, ""), said
        assert said in result.stderr
    assert file.read_bytes() == before


def test_an_interrupted_scan_is_no_verdict(scan: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C is neither clean nor blocked, and leaves no report."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(judge.Scan, "_hear", stop)
    result = scan(scan.write(told("ben")), "--json", scan.json)
    assert result.exit_code == 130
    assert "interrupted" in result.stderr
    assert not scan.json.exists()


# --- where it comes from ----------------------------------------------------------------------------------------------


def test_standard_input_packed_files_and_several(scan: Runner) -> None:
    """Standard input, gzip and several files are read alike, in their order."""
    first, second = (json.dumps(line).encode() + b"\n" for line in told("ben"))
    one, two = scan.folder / "one", scan.folder / "two.gz"
    one.write_bytes(first)
    two.write_bytes(gzip.compress(second))
    assert scan(one, two).exit_code == 1
    assert scan(two, one).exit_code == 0
    for said in (second, gzip.compress(second)):
        result = scan(one, "-", said=said)
        assert result.exit_code == 1
        assert "standard input:1, message 2" in result.stdout


def test_standard_input_is_put_in_order(scan: Runner) -> None:
    """What comes through a pipe is read in the order of time too."""
    lines = [message("ben", "assistant", LEAK, time=20), message("ana", "user", TOLD, time=10)]
    said = "".join(json.dumps(line) + "\n" for line in lines).encode()
    assert scan("-", said=said).exit_code == 1
    assert scan("-", said=gzip.compress(said)).exit_code == 1


# --- hostile lines ----------------------------------------------------------------------------------------------------

_GOOD = [json.dumps(line).encode() for line in told("ben")]
HOSTILE = {
    "deep": (b'{"user": "ana", "messages": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", "is nested too deeply"),
    "not UTF-8": (b'{"user": "Jos\xe9"}', "is not UTF-8"),
    "NUL": (b'{"user": "an\x00a"}', "is not JSON"),
    "cut off": (b'{"user": "ana", "mess', "is not JSON"),
    "huge number": (b'{"user": ' + b"9" * 10_000 + b"}", "is not JSON"),
    "list": (b"[1, 2]", "is not a JSON object"),
    "nobody": (b'{"role": "user", "content": "hi"}', "names neither user nor conversation"),
    "odd user": (b'{"user": {"a": 1}, "role": "user", "content": "hi"}', "names its user by neither text nor a number"),
    "no role": (b'{"user": "ana", "content": "hi"}', "has no role"),
    "odd role": (b'{"user": "ana", "role": "\\u001b[2Jpope", "content": "hi"}', "has a role that is not known"),
    "no text": (b'{"user": "ana", "role": "user"}', "has no text"),
    "odd text": (b'{"user": "ana", "role": "user", "content": 5}', "has a content that is neither text nor parts"),
    "odd message": (b'{"user": "ana", "messages": [5]}', "message 1 is not a JSON object"),
    "long message": (
        json.dumps(message("ana", "user", "x" * 1_000_001)).encode(),
        "has more than 1,000,000 characters",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_line_that_cannot_be_read_is_counted_and_named(scan: Runner, name: str) -> None:
    """Such a line is named with its number and what is wrong, never quoted; the others are judged."""
    line, why = HOSTILE[name]
    scan.file.write_bytes(b"\n".join([_GOOD[0], line, _GOOD[1]]))
    found = scan.report()
    assert places(found) == [("block", 3, 2)]
    assert found["unread"] == [{"file": str(scan.file), "line": 2, "why": why}]
    assert found["counts"]["unreadable"] == 1
    result = scan(scan.file)
    assert f"{scan.file}, line 2: {why}" in result.stderr
    assert "1 of 3 lines could not be read" in result.stderr
    assert "pope" not in result.output.replace(str(scan.file), "")  # which names a process of pytest
    assert "\x1b" not in result.output


def test_a_huge_line_is_passed_over(scan: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line beyond the limit is never held as a whole, and the next one is read from its beginning."""
    monkeypatch.setattr(files, "LONGEST_LINE", 1_000)
    for size in (980, 1_000, 1_001, 2_000, 50_000):
        scan.file.write_bytes(b"\n".join([_GOOD[0], b'"' + b"x" * (size - 2) + b'"', _GOOD[1]]))
        found = scan.report()
        assert places(found) == [("block", 3, 2)]
        assert [each["line"] for each in found["unread"]] == [2]


def test_one_bad_message_leaves_the_others(scan: Runner) -> None:
    """In a conversation the messages that can be read are judged."""
    lines = told("ben")
    lines[1]["messages"].insert(1, {"role": "pope", "content": "hi"})
    found = scan.report(lines)
    assert places(found) == [("block", 2, 3)]
    assert [each["why"] for each in found["unread"]] == ["message 2 has a role that is not known"]


def test_only_the_first_bad_lines_are_named(scan: Runner) -> None:
    """Of many bad lines all are counted and some are named."""
    scan.file.write_bytes(b"\n".join([*_GOOD, *[b"x"] * 100]))
    found = scan.report()
    assert found["counts"]["unreadable"] == 100
    assert len(found["unread"]) == files.MOST_FAULTS
    assert any("the first 20 are named" in note for note in found["notes"])


@pytest.mark.parametrize("odd", ["\ud800", "\x00", "\x1b]0;x\x07", "\u202e", "😀", "a" * 5_000])
def test_odd_characters_are_no_obstacle(scan: Runner, odd: str) -> None:
    """Characters that cannot be encoded, or that steer a terminal, are judged, and shown harmlessly."""
    lines = [talk(f"ana{odd}", f"{odd} {TOLD}"), talk(f"ben{odd}", f"{odd} Hello.", f"{odd} {LEAK} {odd}")]
    html = scan.folder / "report.html"
    found = scan.report(lines, "--html", html, "--show")
    assert places(found) == [("block", 2, 2)]
    written = html.read_bytes().decode() + scan.json.read_bytes().decode() + scan(scan.file, "--show").output
    assert not re.search("[\x00-\x08\x0b-\x1f\u202e\ud800]", written)


def test_a_mark_before_the_first_line_is_no_obstacle(scan: Runner) -> None:
    """A byte order mark, and Windows line ends, belong to no line."""
    scan.file.write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(_GOOD) + b"\r\n")
    assert places(scan.report()) == [("block", 2, 2)]
    backwards = scan.write([message("ben", "assistant", LEAK, time=2), message("ana", "user", TOLD, time=1)])
    scan.file.write_bytes(b"\xef\xbb\xbf" + backwards.read_bytes())
    assert places(scan.report()) == [("block", 1, 1)]


def test_a_line_is_read_or_refused(scan: Runner) -> None:
    """Whatever value stands in whatever field, a line gives messages or says why not."""
    odd: list[Any] = [None, True, 0, -1.5, "", "x", [], [[]], [None], {}, {"a": {}}, [{"type": "text"}], "user"]
    names = ["user", "session", "role", "content", "messages", "tool_calls", "function_call", "timestamp", "refusal"]
    base = message("ana", "assistant", "hi", messages=None)
    fields = Fields()
    for name in names:
        for value in odd:
            for line in ({**base, name: value}, {"user": "ana", "messages": [{**base, name: value}]}):
                with contextlib.suppress(Unreadable):
                    for each in read(json.dumps(line).encode(), fields):
                        assert type(each if isinstance(each, str) else each.text) is str


# --- reports ----------------------------------------------------------------------------------------------------------


def test_no_report_holds_words_or_names(scan: Runner) -> None:
    """Unless asked for, neither names nor words of the conversations are anywhere; with ``--show`` they are."""
    lines = [
        {"tenant": "acme", "session": "s-4711", **talk("ana-maria", TOLD)},
        {"tenant": "acme", "session": "s-4712", **talk("benjamin", "Is it hailing?", LEAK)},
    ]
    html = scan.folder / "report.html"
    names = ("ana-maria", "benjamin", "acme", "s-4711", "s-4712", "7731", "on its way", "hailing")

    def written(*arguments: str) -> str:
        scan.report(lines, "--html", html, *arguments)
        return scan.json.read_text() + html.read_text() + scan(scan.file, *arguments).output

    assert [name for name in names if name in written()] == []
    shown = written("--show")
    assert [name for name in names if name not in shown] == ["hailing"]
    for file in (scan.json, html):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_the_json_report_is_whole(scan: Runner) -> None:
    """The report names its format and counts everything."""
    found = scan.report([*told("ben"), talk("carl", "Hi.", "Hello.")])
    assert found["format"] == "cloister leaks scan, 1"
    assert found["counts"] == {
        "lines": 3,
        "unreadable": 0,
        "messages": 6,
        "replies": 3,
        "conversations": 3,
        "users": 3,
        "tenants": 0,
        "alerted": 0,
        "blocked": 1,
    }
    (row,) = found["rows"]
    assert (row["characters"], row["cut"], row["part"]) == (len(LEAK), LEAK.index(SECRET), "reply")
    assert row["receiver"]["user"] != row["other"]["user"]


class Tags(HTMLParser):
    """Collect the elements of a page with their attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.style = self._within = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attributes)))
        self._within = tag

    def handle_data(self, data: str) -> None:
        if self._within == "style":
            self.style += data
            self._within = ""


_PAYLOADS = [
    "<script>alert(1)</script>",
    "</style><img src=x onerror=alert(1)>",
    "\"><svg onload='alert(1)'>",
    "</q></article><iframe srcdoc=x>",
    "<!-- -->&lt;script&gt;",
    "<a href=javascript:alert(1)>",
]


def test_the_page_is_inert(scan: Runner) -> None:
    """Whatever transcripts, names and file names hold, the page has only its own elements and loads nothing."""
    lines = [
        {"tenant": "t", "session": f"s{payload}", **talk(f"{user} {payload}", *texts)}
        for n, payload in enumerate(_PAYLOADS)
        for user, texts in (
            ("ana", (f"{payload} My order is QX-77{n}1-84. {payload}",)),
            ("ben", ("Hi", f"{payload} Order QX-77{n}1-84 {payload}")),
        )
    ]
    lines += [
        talk("ana", "Mine is marta.feld@example.com."),
        talk("ben", "Hi", "It is marta.feld <at> example <dot> com."),
    ]
    scan.file = scan.folder / "<b onclick=x>.jsonl"
    scan.write(lines, scan.file.name)
    html = scan.folder / "report.html"
    found = scan.report(None, "--html", html, "--show")
    assert found["counts"]["blocked"] == len(_PAYLOADS) + 1
    page = html.read_text("ascii")
    tags = Tags(page)
    allowed = "html head meta title style body h1 h2 h3 p b table tr th td ul li article span code q mark"
    assert {tag for tag, _ in tags.seen} <= set(allowed.split())
    assert {name for tag, attributes in tags.seen for name in attributes if tag != "meta"} <= {
        "lang",
        "class",
        "colspan",
    }
    assert "onerror" in page  # as text
    assert "url(" not in tags.style
    (policy,) = [each["content"] for tag, each in tags.seen if each.get("http-equiv") == "Content-Security-Policy"]
    digest = base64.b64encode(sha256(tags.style.encode()).digest()).decode()
    assert policy == f"default-src 'none'; base-uri 'none'; form-action 'none'; style-src 'sha256-{digest}'"
    assert "prefers-color-scheme: dark" in tags.style


def test_the_worst_come_first(scan: Runner) -> None:
    """The terminal lists the worst, and says how many more there are."""
    codes = [f"QX-{7731 + 13 * n}-84" for n in range(15)]
    lines = [talk("ana", "My name is Marta Feldkamp."), talk("ben", "Who?", "It was Marta Feldkamp.")]
    lines += [talk("ana", f"My order is {code}.") for code in codes]
    lines += [talk("ben", "Hi", f"Order {code} is on its way.") for code in codes]
    result = scan(scan.write(lines))
    listed = [line.split("\t")[0] for line in result.stdout.splitlines() if "\t" in line]
    assert listed == ["block"] * 10
    assert "and 6 more" in result.stderr
    scores = [row["score"] for row in scan.report()["rows"]]
    assert scores == sorted(scores, reverse=True)
    assert len(scores) == 16


# --- progress ---------------------------------------------------------------------------------------------------------


def test_without_a_terminal_there_is_no_bar(scan: Runner) -> None:
    """What goes to a file or pipe is the outcome and nothing of the way there."""
    result = scan(scan.write(told("ben")))
    assert "messages judged" not in result.output
    assert "bytes read" not in result.output


@pytest.mark.parametrize("packed", [False, True])
def test_progress_adds_up(scan: Runner, packed: bool) -> None:
    """All steps together are the whole, for the reading, the judging and the tracing."""
    lines = [line for _ in range(800) for line in told("ben")]
    file = scan.write(lines)
    if packed:
        file.write_bytes(gzip.compress(file.read_bytes()))
    survey = files.Survey([files.Source(file)], Fields(), b"k" * 32)
    steps: dict[str, list[int]] = {"read": [], "judged": [], "traced": []}
    survey.take(steps["read"].append)
    made = judge.Scan(survey)
    made.judge(steps["judged"].append)
    made.trace(steps["traced"].append)
    assert sum(steps["read"]) == file.stat().st_size
    assert sum(steps["judged"]) == sum(steps["traced"]) == survey.messages == 3_200
    assert all(len(each) > 2 for each in steps.values())


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_a_terminal_sees_a_bar(scan: Runner) -> None:
    """On a terminal reading, judging and tracing each have a bar that reaches its end."""
    import pty

    file = scan.write(told("ben"))
    code = "import sys; from cloister.cli import main; sys.argv = ['cloister', *sys.argv[1:]]; main()"
    child, terminal_side = pty.fork()
    if child == 0:
        os.environ.update(TERM="xterm", COLUMNS="120")
        os.execv(sys.executable, [sys.executable, "-c", code, "leaks", "scan", str(file)])
    seen = io.BytesIO()
    try:
        for _ in range(10_000):
            if not select.select([terminal_side], [], [], 30)[0]:
                break
            try:
                piece = os.read(terminal_side, 4096)
            except OSError:  # Linux says so at the end
                break
            if not piece:
                break
            seen.write(piece)
        _, status = os.waitpid(child, 0)
    finally:
        os.close(terminal_side)
    assert os.waitstatus_to_exitcode(status) == 1
    shown = re.sub(rb"\x1b\[[0-9;?]*[A-Za-z]", b"", seen.getvalue()).decode()
    size = file.stat().st_size
    for bar in (rf"bytes read.*{size}/{size}", "messages judged.*4/4", "messages traced.*4/4"):
        assert re.search(bar, shown), bar
    assert "1 would have been blocked" in shown
