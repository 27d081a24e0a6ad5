"""Exported files: they verify with nothing but the pinned key, and as OCSF events have what the schema requires."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.audit import EVENTS, SEVERITIES, AuditKey, Chain, Entry, Event, event, ocsf
from cloister.audit.chain import digest
from cloister.auditing import Evidence
from cloister.cli.base import SEVERITY
from cloister.errors import ConfigurationError
from cloister.exports import (
    File,
    Selection,
    Window,
    contradictions,
    evidence_about,
    first_lines,
    line,
    ocsf_line,
    verify_file,
)
from cloister.model import Owner, to_micros

NOW = datetime(2026, 1, 1, tzinfo=UTC)
KEY = AuditKey.generate()
NAMES = {"a_1": Owner("acme", "ana"), "a_2": Owner("acme", "ben")}
KINDS = sorted(EVENTS)
STEERING = ["a\nb", "\x1b[2J", "\x7f", "\x85", "\x9b", "\u2028", "\u202e", "\ufeff", "\ud800", '"}\n{"event":"x"', "\0"]


def written(count: int = 9, writers: int = 2) -> list[Entry]:
    chains = [Chain(f"w_{number}") for number in range(writers)]
    entries = []
    for number in range(count):
        noted = Event(KINDS[number], to_micros(NOW + timedelta(hours=number)), None, None, "s", {"count": number})
        place = number % writers
        chains[place], entry = chains[place].extend(noted, "a_1", "a_2" if number % 3 else "")
        entries.append(entry)
    return entries


LOG = written()
WHOLE = Window()
HEADS = {entry.writer: (entry.number, entry.hash.hex()) for entry in LOG}


def exported(path: Path, entries: Sequence[Entry], window: Window = WHOLE, signed: str | None = None) -> File:
    chosen = Selection(window)
    lines = [*first_lines(window, signed), *(line(entry) for entry in entries if chosen(entry))]
    path.write_text("".join(f"{one}\n" for one in lines))
    return File(path)


def faults(file: File, *heads: Path) -> list[str]:
    return verify_file(file, evidence_about(file, heads, KEY.public))[1]


class TestFiles:
    def test_a_whole_export_verifies_by_itself(self, tmp_path: Path) -> None:
        """The file, which holds the newest signed heads, and the pinned key are all that is needed."""
        file = exported(tmp_path / "x", LOG, signed=KEY.sign(HEADS, NOW))
        report, wrong = verify_file(file, evidence_about(file, [], KEY.public))
        assert (report.entries, report.unsigned, wrong) == (len(LOG), 0, [])

    def test_every_line_counts(self, tmp_path: Path) -> None:
        """A line that is removed, repeated, exchanged with the next or changed anywhere is found in the file."""
        path = tmp_path / "x"
        exported(path, LOG, signed=KEY.sign(HEADS, NOW))
        head, *lines = path.read_text().splitlines()
        for place, one in enumerate(lines):
            without = [*lines[:place], *lines[place + 1 :]]
            changed = one.replace('"count', '"Count', 1) if place % 2 else one.replace("a_1", "a_3", 1)
            for some in (
                without,
                [*lines[:place], changed, *lines[place + 1 :]],
                [*lines[:place], one[:-1], *lines[place + 1 :]],
                [*lines[:place], *lines[place : place + 3][::-1], *lines[place + 3 :]]
                if lines[place + 2 :]
                else without,
            ):
                path.write_text("\n".join([head, *some, ""]))
                assert faults(File(path)), (place, some)
        path.write_text("\n".join([head, *lines, ""]))
        assert faults(File(path)) == []

    def test_a_line_cannot_say_more_than_its_hash_covers(self, tmp_path: Path) -> None:
        """A field that is there twice, of which readers see one or the other, or that is no field, is a fault."""
        path = tmp_path / "x"
        exported(path, LOG)
        lines = path.read_text().splitlines()
        for more in ('{"event":"session.ended",', '{"note":"x",', '{"at":1,'):
            path.write_text("\n".join([lines[0].replace("{", more, 1), *lines[1:], ""]))
            (fault,) = verify_file(File(path), Evidence())[1]
            assert "line 1: says more" in fault

    def test_names_are_said_not_to_be_covered(self, tmp_path: Path) -> None:
        """Lines with the names of users verify, and are counted as what no hash covers."""
        path = tmp_path / "x"
        path.write_text("".join(f"{line(entry, NAMES)}\n" for entry in LOG))
        file = File(path)
        report, wrong = verify_file(file, Evidence())
        assert (report.entries, wrong, file.named) == (len(LOG), [], len(LOG))
        assert json.loads(path.read_text().splitlines()[1])["other_name"] == {"tenant": "acme", "user": "ben"}

    def test_a_file_of_a_destination_verifies(self, tmp_path: Path) -> None:
        """Alarms and signed heads may stand between entries, and entries come twice; anything else is a fault."""
        path = tmp_path / "x"
        lines = [line(entry) for entry in LOG]
        between = [json.dumps({"alarm": {"kind": "x"}}), json.dumps({"heads": KEY.sign(HEADS, NOW)})]
        path.write_text("\n".join([*lines[:5], between[0], *lines[2:], between[1], ""]))
        assert faults(File(path)) == []
        for wrong in (
            "{}",
            "x",
            "[]",
            '{"alarm":',
            '{"other":1}',
            "\ud800".encode(errors="surrogatepass").decode("latin"),
        ):
            path.write_text("\n".join([*lines, between[1], wrong, ""]))
            assert any("is no entry" in fault for fault in faults(File(path)))

    def test_a_cut_export_shows(self, tmp_path: Path) -> None:
        """Cut off anywhere, an export lacks what its own first line has signed for."""
        path = tmp_path / "x"
        exported(path, LOG, signed=KEY.sign(HEADS, NOW))
        lines = path.read_text().splitlines()
        for length in range(1, len(lines)):
            path.write_text("\n".join([*lines[:length], ""]))
            assert any("cut off or removed" in fault for fault in faults(File(path)))

    def test_the_signers_key_must_be_named(self, tmp_path: Path) -> None:
        """Signed heads without a pinned key are not passed over, and those of another key are a fault."""
        file = exported(tmp_path / "x", LOG, signed=AuditKey.generate().sign(HEADS, NOW))
        with pytest.raises(ConfigurationError, match="--public-key"):
            evidence_about(file, [], None)
        assert any("not signed by the audit key" in fault for fault in faults(file))

    def test_without_heads_that_is_said(self, tmp_path: Path) -> None:
        """An export without signed heads is a chain, and it is said what nobody can tell."""
        known = evidence_about(exported(tmp_path / "x", LOG), [], None)
        assert "cut off" in known.unchecked[0]

    def test_contradictions_are_named(self, tmp_path: Path) -> None:
        """Two files that each verify and say different things of an entry are found, and the first such entry."""
        other, previous = list(LOG), b""
        for place, entry in enumerate(LOG):
            if entry.writer == "w_1":
                changed = msgspec.structs.replace(entry, previous=previous, owner="a_3" if entry.number > 1 else "a_1")
                other[place] = msgspec.structs.replace(changed, hash=digest(changed))
                previous = other[place].hash
        copies = [exported(tmp_path / "x", LOG), exported(tmp_path / "y", LOG[:4]), exported(tmp_path / "z", other)]
        found = contradictions(copies)
        assert [fault.split(":")[0] for fault in found] == ["writer w_1, entry 2"] * 2

    def test_a_missing_file_is_a_plain_error(self, tmp_path: Path) -> None:
        """A file that cannot be read is said to be so."""
        with pytest.raises(ConfigurationError, match="cannot be read"):
            File(tmp_path / "none")


class TestWindows:
    @given(
        st.none() | st.integers(0, 10),
        st.none() | st.integers(0, 10),
        st.lists(st.integers(-3, 3), min_size=9, max_size=9),
    )
    def test_leave_no_gaps(self, since: int | None, until: int | None, shifts: list[int]) -> None:
        """Of each writer what is exported has no gap, and nothing of that time is missing, whatever a clock did."""
        entries = [
            msgspec.structs.replace(entry, at=entry.at + shift * 3_600_000_000)
            for entry, shift in zip(LOG, shifts, strict=True)
        ]
        window = Window(
            None if since is None else NOW + timedelta(hours=since),
            None if until is None else NOW + timedelta(hours=until),
        )
        chosen = Selection(window)
        found = [entry for entry in entries if chosen(entry)]
        for writer in ("w_0", "w_1"):
            numbers = [entry.number for entry in found if entry.writer == writer]
            assert numbers == list(range(numbers[0], numbers[0] + len(numbers))) if numbers else True
        if until is None:
            first = None if window.since is None else to_micros(window.since)
            assert all(entry in found for entry in entries if first is None or entry.at >= first)

    def test_are_told_and_verify(self, tmp_path: Path) -> None:
        """A part of the log verifies as such; what is missing inside it is found, and what is cut off its end."""
        path, signed = tmp_path / "x", KEY.sign(HEADS, NOW)
        since, until = Window(since=NOW + timedelta(hours=4)), Window(until=NOW + timedelta(hours=6))
        for window in (since, until):
            file = exported(path, LOG, window, signed)
            assert file.window == window
            assert faults(file) == []
            lines = path.read_text().splitlines()
            path.write_text("\n".join([*lines[:4], *lines[5:], ""]))
            assert faults(File(path))
        exported(path, LOG, since, signed)
        path.write_text("\n".join([*path.read_text().splitlines()[:-1], ""]))
        assert any("cut off" in fault for fault in faults(File(path)))
        exported(path, LOG, since, signed)
        path.write_text("\n".join([*path.read_text().splitlines()[1:], ""]))
        assert faults(File(path)), "without the line that says so, it is a log whose beginning was removed"

    def test_one_that_leaves_entries_out_is_refused(self, tmp_path: Path) -> None:
        """An export of some severity lacks entries between others, and cannot be verified: that is said."""
        exported(tmp_path / "y", LOG)
        with pytest.raises(ConfigurationError, match="--severity"):
            exported(tmp_path / "x", LOG, Window(severity="alert"))
        events = [json.loads(one) for one in (tmp_path / "x").read_text().splitlines()[1:]]
        assert events
        assert {one["severity"] for one in events} == {"alert"}

    def test_the_command_line_knows_every_severity(self) -> None:
        """What can be asked for is what there is."""
        assert tuple(SEVERITY.choices) == SEVERITIES


# What the schema requires of each class, besides what every event must have (version 1.3, core).
_EVERY = {"activity_id", "category_uid", "class_uid", "metadata", "severity_id", "time", "type_uid"}
_REQUIRED = {2004: {"finding_info"}, 3002: {"user"}, 3004: {"entity"}, 6003: {"actor", "api", "src_endpoint"}}
_CATEGORY = {2004: 2, 3002: 3, 3004: 3, 6003: 6}


def mapped(kind: str, names: Any = None, **detail: Any) -> dict[str, Any]:
    noted = Event(kind, to_micros(NOW), None, None, "digest", detail)
    entry = Chain("w_0").extend(noted, "a_1", "a_2" if kind == "access.foreign" else "")[1]
    found: dict[str, Any] = json.loads(ocsf_line(entry, names))
    return found


class TestOcsf:
    def test_every_event_has_a_class(self) -> None:
        """No kind of event is left to the fallback, and none is mapped that does not exist."""
        assert set(ocsf.CLASSES) == set(EVENTS)
        assert set(ocsf.SEVERITIES) == set(SEVERITIES)

    @pytest.mark.parametrize("kind", KINDS)
    def test_has_what_is_required(self, kind: str) -> None:
        """Every event has the attributes that its class requires, with numbers that agree with each other."""
        found = mapped(kind, reason="why", source="127.0.0.1")
        uid = found["class_uid"]
        assert found.keys() >= _EVERY | _REQUIRED[uid]
        assert found["category_uid"] == _CATEGORY[uid]
        assert found["type_uid"] == uid * 100 + found["activity_id"]
        assert found["time"] == 1_767_225_600_000
        assert found["severity_id"] == {"info": 1, "notice": 2, "warning": 3, "alert": 4}[EVENTS[kind].severity]
        assert found["metadata"]["version"] == "1.3.0"
        assert {"name", "vendor_name"} <= found["metadata"]["product"].keys()
        assert found["metadata"]["uid"] == "w_0:1"
        assert found["metadata"]["event_code"] == kind
        assert all({"name", "type_id", "value"} <= one.keys() for one in found["observables"])
        if uid == 2004:
            assert {"uid", "title"} <= found["finding_info"].keys()
            assert found["is_alert"] == (EVENTS[kind].severity == "alert")
        if uid == 3002:
            assert found["service"]
            assert found["status_id"] == 2
        if uid == 6003:
            assert found["api"]["operation"] == kind
            assert found["src_endpoint"] == {"ip": "127.0.0.1"}
            assert found["actor"]["user"]["uid"] == "a_1"

    def test_alarms_are_findings(self) -> None:
        """Whatever has the severity of an alarm is a detection finding, which SIEMs show as such."""
        for kind, (known, _) in ocsf.CLASSES.items():
            assert EVENTS[kind].severity != "alert" or known is ocsf.FINDING

    def test_both_owners_of_an_attempt_are_there(self) -> None:
        """Who asked is the actor, and whose it was owns the resource; under audit ids."""
        found = mapped("access.foreign")
        assert found["evidences"][0]["actor"]["user"] == {"uid": "a_1"}
        assert found["resources"] == [{"uid": "digest", "type": "session", "owner": {"uid": "a_2"}}]
        assert {one["value"] for one in found["observables"]} == {"a_1", "a_2", "digest"}

    def test_names_only_where_they_are_asked_for(self) -> None:
        """Without being asked to, no export says whose an audit id is."""
        for kind in KINDS:
            assert "ana" not in json.dumps(mapped(kind)).replace("Management", "").replace("Manage", "")
        assert mapped("access.foreign", NAMES)["evidences"][0]["actor"]["user"] == {
            "uid": "a_1",
            "name": "ana",
            "org": {"name": "acme"},
        }

    def test_an_unknown_event_is_passed_on(self) -> None:
        """An entry that another version wrote is an activity of some other kind, with all that it says."""
        entry = msgspec.structs.replace(LOG[0], event="new.kind", severity="fatal")
        found = json.loads(ocsf_line(entry))
        assert (found["class_uid"], found["activity_id"], found["activity_name"]) == (6003, 99, "new.kind")
        assert (found["severity_id"], found["unmapped"]["detail"]) == (99, {"count": 0})

    def test_a_changed_entry_is_a_finding(self) -> None:
        """An entry with values of other types is reported as changed, and does not end the export."""
        for column in Entry.__struct_fields__:
            for value in (None, b"\xff", 1.5, "x", 2**80):
                if type(value) is type(getattr(LOG[0], column)) and value != 2**80:
                    continue
                found = json.loads(ocsf_line(msgspec.structs.replace(LOG[0], **{column: value})))
                assert (found["class_uid"], found["severity_id"]) == (2004, 4) or column == "number"


class TestInjection:
    @pytest.mark.parametrize("text", STEERING, ids=ascii)
    @pytest.mark.parametrize("column", ["writer", "event", "severity", "owner", "other", "session", "detail"])
    def test_a_record_is_one_printable_line(self, column: str, text: str) -> None:
        """Whatever stands in an entry, even in a log that was tampered with, leaves as one line that steers nothing."""
        entry = msgspec.structs.replace(LOG[1], **{column: text})
        for said in (line(entry, {text: Owner("acme", "ana")}), ocsf_line(entry)):
            assert said.isascii()
            assert said.isprintable()
            assert json.loads(said)

    @pytest.mark.parametrize("text", [text for text in STEERING if text != "\ud800"], ids=ascii)
    def test_what_was_escaped_comes_back(self, tmp_path: Path, text: str) -> None:
        """Details with such characters read back from an export as they were written, and verify."""
        chain, entry = Chain("w_0").extend(event("operator.access", NOW, reason=text, action="x"), "", "")
        file = exported(tmp_path / "x", [entry], signed=KEY.sign({"w_0": (1, chain.last.hex())}, NOW))
        assert faults(file) == []
        assert json.loads(next(file.entries())[0].detail)["reason"] == text
