"""The log: every change to what was written shows, and the entry is named."""

from __future__ import annotations

import base64
import copy
import itertools
import json
import os
import pickle
import threading
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.audit import (
    EVENTS,
    SEVERITIES,
    AuditKey,
    Chain,
    Entry,
    Event,
    Fault,
    Heads,
    Signed,
    audit_id,
    event,
    read_heads,
    verify,
)
from cloister.audit.chain import digest
from cloister.errors import ConfigurationError, StoreUnavailable
from cloister.model import Owner, to_micros
from cloister.sinks import HeadFile, HeadList, audit_key

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SESSION = "0123456789abcdef01234567"
KINDS = sorted(EVENTS)
REPLACE = msgspec.structs.replace


def said(signed: Signed) -> tuple[Heads, list[str]]:
    return signed.heads, list(signed.problems)


def stated(lines: Iterable[str], public: str) -> tuple[Heads, list[str]]:
    return said(read_heads(lines, public))


class Log:
    """Several writers that write into one log."""

    def __init__(self, writers: int) -> None:
        self.chains = [Chain(f"w_{number:016x}") for number in range(writers)]
        self.entries: list[Entry] = []

    def write(self, writer: int, kind: str = "turn.committed", **detail: Any) -> None:
        moment = NOW + timedelta(seconds=len(self.entries))
        noted = Event(kind, to_micros(moment), session=SESSION, detail=detail)
        self.chains[writer], entry = self.chains[writer].extend(noted, "a_0123456789abcdef", "")
        self.entries.append(entry)

    @property
    def heads(self) -> Heads:
        return {chain.writer: (chain.number, chain.last.hex()) for chain in self.chains if chain.number}


def sample(writers: int = 3, each: int = 4) -> Log:
    log = Log(writers)
    for number in range(each):
        for writer in range(writers):
            log.write(writer, KINDS[number], items=number, model="m")
    return log


LOGS = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.sampled_from(KINDS),
        st.dictionaries(
            st.sampled_from(["model", "items", "reason"]),
            st.none() | st.booleans() | st.integers() | st.text(max_size=9),
        ),
    ),
    min_size=1,
    max_size=12,
)


def written(steps: Sequence[tuple[int, str, dict[str, Any]]]) -> Log:
    log = Log(3)
    for writer, kind, detail in steps:
        log.write(writer, kind, **detail)
    return log


def named(entry: Entry) -> tuple[str, int]:
    return entry.writer, entry.number


def first_fault(entries: Sequence[Entry], heads: Heads) -> tuple[str, int] | None:
    report = verify(entries, heads)
    return (report.faults[0].writer, report.faults[0].number) if report.faults else None


def forged(entries: Sequence[Entry], place: int, **changes: Any) -> list[Entry]:
    """Change one entry and hash it and all that follow it in its chain anew, as one who knows the format would."""
    result: list[Entry] = []
    previous: bytes | None = None
    for number, entry in enumerate(entries):
        if number == place:
            entry = REPLACE(entry, **changes)
        elif previous is not None and entry.writer == entries[place].writer:
            entry = REPLACE(entry, previous=previous)
        if number == place or (previous is not None and entry.writer == entries[place].writer):
            entry = REPLACE(entry, hash=digest(entry))
            previous = entry.hash
        result.append(entry)
    return result


class TestWhole:
    @given(LOGS)
    def test_what_was_written_verifies(self, steps: list[tuple[int, str, dict[str, Any]]]) -> None:
        """Everything that was written and signed verifies, and is counted."""
        log = written(steps)
        report = verify(log.entries, log.heads)
        assert (report.faults, report.unsigned) == ([], 0)
        assert (report.entries, report.writers) == (len(steps), len({step[0] for step in steps}))

    @given(LOGS, st.randoms(use_true_random=False))
    def test_where_an_entry_lies_does_not_matter(self, steps: list[tuple[int, str, dict[str, Any]]], dice: Any) -> None:
        """Writers may be mixed in any way, as long as each one's entries are in order."""
        log = written(steps)
        queues = [[entry for entry in log.entries if entry.writer == chain.writer] for chain in log.chains]
        mixed = []
        while any(queues):
            mixed.append(dice.choice([queue for queue in queues if queue]).pop(0))
        assert verify(mixed, log.heads).faults == []

    def test_an_empty_log_is_whole(self) -> None:
        """No entries and no heads are no fault."""
        assert verify([], {}).faults == []

    def test_every_event_has_a_severity(self) -> None:
        """Every kind of event says how much it should worry."""
        assert {known.severity for known in EVENTS.values()} <= set(SEVERITIES)
        for kind in KINDS:
            entry = Chain.new().extend(event(kind, NOW), "", "")[1]
            assert (entry.event, entry.severity) == (kind, EVENTS[kind].severity)

    def test_an_unknown_event_is_not_written(self) -> None:
        """A kind that is not in the list is a programming error, and becomes no entry."""
        with pytest.raises((KeyError, ValueError), match=r"turn\.comitted"):
            Chain.new().extend(event("turn.comitted", NOW), "", "")

    def test_writers_have_their_own_names(self) -> None:
        """Two writers never have the same name, nor two audit ids."""
        assert len({Chain.new().writer for _ in range(1_000)}) == 1_000
        assert len({audit_id(Owner(None, "ana"), bytes([n // 256, n % 256])) for n in range(1_000)}) == 1_000

    def test_times_are_microseconds(self) -> None:
        """An entry says when it happened, to the microsecond."""
        assert event("turn.failed", NOW + timedelta(microseconds=1)).at == 1_767_225_600_000_001


TEXTS = ("", "x", "\0", "\u200b", "\ud800", "info", "0")
OTHER_VALUES: dict[str, tuple[Any, ...]] = {
    "writer": ("", "w_0000000000000001", "\x1b[2J", "W_0000000000000000"),
    "number": (0, -1, 2**70, 99),
    "at": (0, -1, 2**70, 1),
    **dict.fromkeys(("event", "severity", "owner", "other", "session", "detail"), TEXTS),
    "previous": (b"", b"\0" * 32, b"x"),
    "hash": (b"", b"\0" * 32, b"x"),
}
OTHER_TYPES: tuple[Any, ...] = (None, "1", "", b"", b"1", 1.0, True, 7)


class TestChanges:
    @pytest.mark.parametrize("column", Entry.__struct_fields__)
    def test_every_column_is_covered(self, column: str) -> None:
        """Any other value in any column of any entry is found, and the entry is named first."""
        log = sample()
        for place, entry in enumerate(log.entries):
            values = [*OTHER_VALUES[column], *(getattr(other, column) for other in log.entries)]
            for value in values:
                if value == getattr(entry, column):
                    continue
                entries = list(log.entries)
                entries[place] = REPLACE(entry, **{column: value})
                fault = first_fault(entries, log.heads)
                assert fault is not None, (place, value)
                if column != "writer" or entry.number > 1:
                    assert fault == named(entry), (place, value)

    @pytest.mark.parametrize("column", Entry.__struct_fields__)
    def test_every_type_is_covered(self, column: str) -> None:
        """A value of another type, even one that reads the same, is found as a fault and does not stop the check."""
        log = sample(2, 3)
        for place, entry in enumerate(log.entries):
            kept = getattr(entry, column)
            same = [str(kept), float(kept)] if isinstance(kept, int) else []
            if isinstance(kept, str):
                same = [kept.encode(), *([base64.b64decode(kept)] if not len(kept) % 4 and kept.isalnum() else [])]
            for value in (*OTHER_TYPES, *same):
                if type(value) is type(kept):
                    continue
                entries = list(log.entries)
                entries[place] = REPLACE(entry, **{column: value})
                report = verify(entries, log.heads)
                assert report.faults, (place, value)
                assert all(str(fault) for fault in report.faults)

    def test_a_deleted_entry_is_found(self) -> None:
        """Any one entry that is missing is found and named."""
        log = sample()
        for place, entry in enumerate(log.entries):
            entries = [*log.entries[:place], *log.entries[place + 1 :]]
            assert first_fault(entries, log.heads) == named(entry)

    def test_an_inserted_entry_is_found(self) -> None:
        """A new entry in a writer's chain, correctly hashed on top of the one before, is found wherever it is put."""
        log = sample()
        for place, entry in enumerate(log.entries):
            _, extra = Chain(*named(entry), entry.hash).extend(event("turn.failed", NOW), "", "")
            entries = [*log.entries[: place + 1], extra, *log.entries[place + 1 :]]
            report = verify(entries, log.heads)
            if entry.number < 4:
                assert (report.faults[0].writer, report.faults[0].number) == (entry.writer, entry.number + 1)
            else:  # behind what was signed: nobody has vouched for it, and the report says so
                assert (report.faults, report.unsigned) == ([], 1)

    def test_a_repeated_entry_is_found(self) -> None:
        """An entry that stands there twice is found, wherever the second one is."""
        log = sample()
        for entry, place in itertools.product(log.entries, range(len(log.entries) + 1)):
            entries = [*log.entries[:place], entry, *log.entries[place:]]
            fault = first_fault(entries, log.heads)
            assert fault is not None
            assert fault[0] == entry.writer

    def test_a_reordered_chain_is_found(self) -> None:
        """Any order of a writer's entries but the one in which they were written is found."""
        log = sample(2, 4)
        mine = [entry for entry in log.entries if entry.writer == log.chains[0].writer]
        rest = [entry for entry in log.entries if entry.writer != log.chains[0].writer]
        for order in itertools.permutations(mine):
            wrong = [true for entry, true in zip(order, mine, strict=True) if entry is not true]
            assert first_fault([*order, *rest], log.heads) == (named(wrong[0]) if wrong else None)

    def test_a_log_cut_off_anywhere_is_found(self) -> None:
        """Cut at any position, the log lacks entries that were signed for, and the first of them is named."""
        log = sample()
        for length in range(len(log.entries)):
            kept, gone = log.entries[:length], log.entries[length:]
            report = verify(kept, log.heads)
            missing = {writer: min(entry.number for entry in gone if entry.writer == writer) for writer in
                       {entry.writer for entry in gone}}  # fmt: skip
            assert {fault.writer: fault.number for fault in report.faults} == missing

    def test_a_writer_removed_whole_is_found(self) -> None:
        """A writer of which nothing is left is named."""
        log = sample()
        for chain in log.chains:
            entries = [entry for entry in log.entries if entry.writer != chain.writer]
            assert first_fault(entries, log.heads) == (chain.writer, 1)
        assert len(verify([], log.heads).faults) == 3

    def test_a_rewritten_chain_is_found(self) -> None:
        """One entry changed and everything after it hashed anew is found against the signed head."""
        log = sample()
        for place, entry in enumerate(log.entries):
            entries = forged(log.entries, place, event="session.started", severity="info", detail="{}")
            fault = first_fault(entries, log.heads)
            assert fault is not None
            assert fault[0] == entry.writer

    def test_entries_of_one_writer_do_not_pass_for_anothers(self) -> None:
        """Renaming a whole writer is found: it is cut off under one name and unsigned under the other."""
        log = sample(1, 4)
        entries = [REPLACE(entry, writer="w_new") for entry in log.entries]
        assert verify(entries, log.heads).faults

    @given(LOGS, st.data())
    def test_no_mix_of_true_entries_passes_for_the_log(
        self, steps: list[tuple[int, str, dict[str, Any]]], data: st.DataObject
    ) -> None:
        """Of all lists of true entries, only those with every writer's entries in order and complete are whole."""
        log = written(steps)
        chosen = data.draw(st.lists(st.sampled_from(range(len(log.entries))), max_size=len(log.entries) + 2))
        entries = [log.entries[place] for place in chosen]
        whole = all(
            [entry for entry in entries if entry.writer == chain.writer]
            == [entry for entry in log.entries if entry.writer == chain.writer]
            for chain in log.chains
        )
        assert (not verify(entries, log.heads).faults) == whole

    def test_many_faults_do_not_drown_the_report(self) -> None:
        """A log full of faults gives the first ones, not all."""
        log = Log(1)
        for _ in range(200):
            log.write(0)
        report = verify([REPLACE(entry, detail="?") for entry in log.entries], log.heads)
        assert 1 <= len(report.faults) <= 25
        assert report.faults[0].number == 1
        assert report.entries == 200


class TestUnsigned:
    def test_what_no_head_covers_is_counted(self) -> None:
        """Entries behind the signed head are no fault, and are counted, entry by entry."""
        log = sample(2, 4)
        for signed in range(5):
            heads = {chain.writer: (signed, _hash(log, chain.writer, signed)) for chain in log.chains}
            report = verify(log.entries, heads)
            assert (report.faults, report.unsigned) == ([], 2 * (4 - signed))

    def test_without_heads_everything_is_unsigned(self) -> None:
        """A log without signed heads verifies as a chain, and says that nothing is signed."""
        report = verify(sample().entries, {})
        assert (report.faults, report.unsigned) == ([], 12)

    def test_a_writer_that_was_made_up_is_unsigned(self) -> None:
        """Whoever can write to the store can add a writer of their own: its entries are counted as unsigned."""
        log = sample()
        forger = Log(1)
        forger.chains = [Chain.new()]
        forger.write(0, "operator.access")
        report = verify([*log.entries, *forger.entries], log.heads)
        assert (report.faults, report.unsigned, report.writers) == ([], 1, 4)

    def test_what_was_rewritten_behind_the_head_is_unsigned(self) -> None:
        """Entries that were forged behind the signed head are never counted as signed."""
        log = sample(1, 4)
        heads = {log.chains[0].writer: (2, log.entries[1].hash.hex())}
        report = verify(forged(log.entries, 2, detail="{}"), heads)
        assert (report.faults, report.unsigned) == ([], 2)

    def test_a_head_in_the_middle_is_checked(self) -> None:
        """A chain that was rewritten before the signed entry is found, however far it goes on behind it."""
        log = sample(1, 4)
        heads = {log.chains[0].writer: (2, log.entries[1].hash.hex())}
        assert first_fault(forged(log.entries, 0, detail="{}"), heads) == (log.chains[0].writer, 2)


def _hash(log: Log, writer: str, number: int) -> str:
    return next((entry.hash.hex() for entry in log.entries if named(entry) == (writer, number)), "")


class TestInjection:
    @pytest.mark.parametrize(
        "text",
        [
            "a\nb",
            "a\r\nb",
            "\x1b[2J\x1b[1;31mALERT",
            '"}\n{"event":"session.started',
            "\0",
            "\x08\x08",
            "\t",
            "\x0b\x0c",
        ],
        ids=ascii,
    )
    def test_control_characters_stay_in_one_record(self, text: str) -> None:
        """Newlines, escapes and quotes in a detail become one line of plain characters that reads back as it was."""
        entry = Chain.new().extend(event("operator.access", NOW, reason=text), "", "")[1]
        assert entry.detail.isprintable()
        assert json.loads(entry.detail) == {"reason": text}

    @pytest.mark.parametrize(
        "text", ["\x7f", "\x85", "\x9b2J", "\u2028", "\u2029", "\u202eevil", "\u2066x", "\ufeff", "\ud800"], ids=ascii
    )
    def test_so_do_the_others_that_terminals_and_log_readers_obey(self, text: str) -> None:
        """Second-row controls, line separators, direction marks and half characters are escaped as well."""
        entry = Chain.new().extend(event("operator.access", NOW, reason=text), "", "")[1]
        assert len(entry.detail.splitlines()) == 1
        assert entry.detail.isprintable()
        assert json.loads(entry.detail) == {"reason": text}

    def test_a_fault_is_one_line(self) -> None:
        """What a tampered entry says about itself is shown escaped: it cannot hide the fault on the screen."""
        for writer in ("\x1b[2J\x1b[H all is well", "w\nwriter x: fine", "\x9b2J", "\u202e"):
            assert str(Fault(writer, 1, "was changed")).isprintable()

    @given(st.dictionaries(st.text(max_size=5), st.text(max_size=20) | st.integers(-(2**53), 2**53) | st.booleans()))
    def test_details_read_back(self, detail: dict[str, Any]) -> None:
        """Whatever the values, the record is one line of JSON with exactly them, and verifies."""
        noted = REPLACE(event("turn.failed", NOW), detail=detail)
        chain, entry = Chain.new().extend(noted, "", "")
        assert "\n" not in entry.detail
        assert json.loads(entry.detail) == detail
        assert verify([entry], {chain.writer: (1, chain.last.hex())}).faults == []


class TestSignedHeads:
    HEADS: ClassVar[Heads] = {"w_a": (3, "aa"), "w_b": (1, "bb")}

    def test_come_back(self) -> None:
        """What was signed is read back under the public half of the key."""
        key = AuditKey.generate()
        assert stated([key.sign(self.HEADS, NOW)], key.public) == (self.HEADS, [])
        assert "\n" not in key.sign({"w\n": (1, "a\nb")}, NOW)

    def test_nobody_else_can_sign(self) -> None:
        """A line by another key counts for nothing and is named, even if it brings its own public half."""
        key, forger = AuditKey.generate(), AuditKey.generate()
        lines = [key.sign(self.HEADS, NOW), forger.sign({"w_a": (9, "ff")}, NOW)]
        posing = json.loads(lines[1])
        posing["key"] = key.public
        heads, problems = stated([*lines, json.dumps(posing)], key.public)
        assert heads == self.HEADS
        assert [problem.split(":")[0] for problem in problems] == ["signed heads, line 2", "signed heads, line 3"]

    def test_no_character_can_be_changed(self) -> None:
        """A line with any character changed says what was signed, or nothing."""
        key = AuditKey.generate()
        line = key.sign({"w_a": (3, "aa")}, NOW)
        for place in range(len(line)):
            for character in {"0", "}", '"', chr(ord(line[place]) ^ 1)} - {line[place]}:
                heads, problems = stated([line[:place] + character + line[place + 1 :]], key.public)
                assert heads in ({}, {"w_a": (3, "aa")})
                assert len(problems) == (not heads)

    @pytest.mark.parametrize(
        "line",
        ["", "{}", "[]", "null", "0", '""', '{"body":1,"key":"","signature":""}',
         '{"body":"{}","key":"","signature":""}',
         '{"body":"\\ud800","key":"","signature":""}', '{"body":"{}","key":"","signature":"\\u00e9"}', "\ufffd", "\0",
         "[" * 100_000, '{"x":' + "[" * 100_000 + "]" * 100_000 + "}"],
        ids=lambda line: ascii(line)[:20],
    )  # fmt: skip
    def test_rubbish_is_named(self, line: str) -> None:
        """A line that is no statement at all is named, and the others are read."""
        key = AuditKey.generate()
        heads, problems = stated([line, key.sign(self.HEADS, NOW)], key.public)
        assert heads == self.HEADS
        assert len(problems) == 1
        assert "line 1" in problems[0]

    def test_something_else_signed_by_the_key_is_no_statement(self) -> None:
        """A body of another form is refused even if its signature is right."""
        key = AuditKey.generate()
        for body in (b"{}", b"[]", b'{"at":"x","heads":{"w":[1]}}', b'{"at":"x","heads":{"w":["1","a"]}}'):
            signature = base64.urlsafe_b64encode(key._key.sign(body)).decode()
            line = json.dumps({"body": body.decode(), "key": key.public, "signature": signature})
            heads, problems = stated([line], key.public)
            assert (heads, len(problems)) == ({}, 1)

    def test_an_older_line_takes_nothing_back(self) -> None:
        """A replayed older line does not set a writer back, in whatever order lines lie."""
        key = AuditKey.generate()
        lines = [key.sign({"w_a": (number, f"{number:02x}")}, NOW) for number in (1, 2, 3)]
        for order in itertools.permutations([*lines, lines[0]]):
            assert stated(order, key.public) == ({"w_a": (3, "03")}, [])

    def test_contradictions_are_named(self) -> None:
        """Two signed lines that say different things about the same entry are a fault of their own."""
        key = AuditKey.generate()
        lines = [key.sign({"w_a": (3, "aa")}, NOW), key.sign({"w_a": (3, "ff")}, NOW)]
        heads, problems = stated(lines, key.public)
        assert heads == {"w_a": (3, "aa")}
        assert len(problems) == 1
        assert "line 2" in problems[0]
        assert "w_a" in problems[0]

    def test_the_public_half_must_be_one(self) -> None:
        """A pinned key that is none is a clear error."""
        for text in ("", "x", "!", base64.urlsafe_b64encode(bytes(31)).decode()):
            with pytest.raises(ConfigurationError):
                read_heads([], text)


class TestAuditKey:
    def test_comes_back_from_text(self) -> None:
        """A key in either base64 alphabet, with or without a newline, is the same key."""
        seed = b"\xfb\xff" * 16
        for text in (base64.b64encode(seed), base64.urlsafe_b64encode(seed), base64.b64encode(seed) + b"\n"):
            assert AuditKey.from_text(text.decode()).public == AuditKey(seed).public

    @pytest.mark.parametrize("text", ["", "x", "!!!!", base64.b64encode(bytes(31)).decode(), "\xe9", "a b"])
    def test_is_refused_when_malformed(self, text: str) -> None:
        """A text that is no key is refused, and not shown."""
        with pytest.raises(ConfigurationError) as caught:
            AuditKey.from_text(text)
        assert not text or text not in str(caught.value).split()

    def test_hides_and_does_not_travel(self) -> None:
        """The repr shows the public half alone, and the key can be neither pickled nor copied."""
        seed = bytes(range(32))
        key = AuditKey(seed)
        assert f"{key!r}" == f"{key}" == f"AuditKey(public={key.public!r})"
        assert base64.urlsafe_b64encode(seed).decode() not in repr(key)
        for travel in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError):
                travel(key)

    def test_is_made_once(self, tmp_path: Path) -> None:
        """Of many that make the key file at the same moment all get the same key."""
        barrier = threading.Barrier(6)
        found: list[str] = []

        def work() -> None:
            barrier.wait(10)
            found.append(audit_key(tmp_path / "key").public)

        threads = [threading.Thread(target=work) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        assert len(found) == 6
        assert len(set(found)) == 1
        assert os.listdir(tmp_path) == ["key"]

    @pytest.mark.skipif(os.name != "posix", reason="file modes are those of POSIX")
    def test_is_private(self, tmp_path: Path) -> None:
        """The key file is for its owner alone, and refused when it is not."""
        audit_key(tmp_path / "key")
        assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
        (tmp_path / "key").chmod(0o640)
        with pytest.raises(ConfigurationError, match="chmod 600"):
            audit_key(tmp_path / "key")


class TestHeadFile:
    KEY = AuditKey(bytes(32))

    @pytest.fixture
    def file(self, tmp_path: Path) -> HeadFile:
        return HeadFile(tmp_path / "heads", self.KEY)

    def test_keeps_what_was_said(self, file: HeadFile) -> None:
        """Heads are read back, the furthest of each writer; the file is for its owner alone."""
        assert said(file.read()) == ({}, [])
        file.keep({"w_a": (1, "aa")}, NOW)
        file.keep({"w_a": (2, "ab")}, NOW)
        assert said(file.read()) == ({"w_a": (2, "ab")}, [])
        if os.name == "posix":
            assert file.path.stat().st_mode & 0o777 == 0o600

    def test_grows_only_when_there_is_news(self, file: HeadFile) -> None:
        """The same heads, or older ones, add no line."""
        file.keep({"w_a": (2, "ab")}, NOW)
        before = file.path.read_bytes()
        for heads in ({"w_a": (2, "ab")}, {"w_a": (1, "aa")}, {}, {"w_z": (0, "")}):
            file.keep(heads, NOW)
        assert file.path.read_bytes() == before

    def test_merges_processes(self, file: HeadFile) -> None:
        """Several processes write into one file; each line repeats what was known, so that the last one has all."""
        others = [HeadFile(file.path, self.KEY) for _ in range(3)]
        for number in range(1, 4):
            for name, other in zip("abc", others, strict=True):
                other.keep({f"w_{name}": (number, f"{number}{name}")}, NOW)
        expected = {f"w_{name}": (3, f"3{name}") for name in "abc"}
        assert said(file.read()) == (expected, [])
        assert stated([file.path.read_text().splitlines()[-1]], self.KEY.public) == (expected, [])

    def test_merges_what_was_written_at_the_same_moment(self, file: HeadFile) -> None:
        """Lines that were written without knowing of each other are merged when they are read."""
        lines = [self.KEY.sign({f"w_{name}": (1, name)}, NOW) for name in "ab"]
        file.path.write_text("".join(f"{line}\n" for line in lines))
        assert said(file.read()) == ({"w_a": (1, "a"), "w_b": (1, "b")}, [])
        file.keep({"w_c": (1, "c")}, NOW)
        assert set(said(file.read())[0]) == {"w_a", "w_b", "w_c"}

    def test_many_at_once_mix_no_lines(self, file: HeadFile) -> None:
        """Threads that write at the same time leave whole lines, and nothing is lost."""

        def work(name: str) -> None:
            mine = HeadFile(file.path, self.KEY)
            for number in range(1, 6):
                mine.keep({f"w_{name}": (number, f"{number:02x}")}, NOW)

        threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        assert said(file.read()) == ({f"w_{name}": (5, "05") for name in "abcd"}, [])

    def test_a_torn_last_line_is_not_read(self, file: HeadFile) -> None:
        """A line that was being written when the process died counts for nothing, and is no fault."""
        file.keep({"w_a": (1, "aa")}, NOW)
        torn = self.KEY.sign({"w_a": (2, "ab")}, NOW)
        for length in (1, len(torn) // 2, len(torn)):
            with file.path.open("a") as opened:
                opened.write(torn[:length])
            assert said(file.read()) == ({"w_a": (1, "aa")}, [])
            file.path.write_text(file.path.read_text()[:-length])

    def test_a_torn_last_line_spoils_no_other(self, file: HeadFile) -> None:
        """After a crash in the middle of a line the next heads are kept and read, and nothing is faulty for ever."""
        file.keep({"w_a": (1, "aa")}, NOW)
        with file.path.open("a") as opened:
            opened.write(self.KEY.sign({"w_a": (2, "ab")}, NOW)[:40])
        file.keep({"w_a": (3, "ac")}, NOW)
        assert said(file.read()) == ({"w_a": (3, "ac")}, [])

    def test_a_line_written_in_part_is_not_taken_for_kept(
        self, file: HeadFile, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """When the disk takes only a part of a line, the heads are kept in the end or the caller is told."""
        write = os.write
        monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, bytes(data)[:20]))
        try:
            file.keep({"w_a": (1, "aa")}, NOW)
        except StoreUnavailable:
            return
        assert said(file.read())[0] == {"w_a": (1, "aa")}

    def test_damage_is_named_and_costs_only_its_line(self, file: HeadFile) -> None:
        """A changed line is named by its number; what other lines say still counts."""
        for number in (1, 2, 3):
            file.keep({"w_a": (number, f"{number:02x}")}, NOW)
        lines = file.path.read_bytes().splitlines()
        file.path.write_bytes(b"\n".join([lines[0], b"\xff\xfe" + lines[1], lines[2], b""]))
        heads, problems = said(file.read())
        assert heads == {"w_a": (3, "03")}
        assert len(problems) == 1
        assert "line 2" in problems[0]

    @pytest.mark.parametrize("name", ["folder", "missing/heads", "endless"])
    def test_where_nothing_can_be_written_the_caller_is_told(self, tmp_path: Path, name: str) -> None:
        """A file that cannot be read or written is `StoreUnavailable`, never skipped, and never another error."""
        (tmp_path / "folder").mkdir()
        (tmp_path / "endless").symlink_to(tmp_path / "endless")
        with pytest.raises(StoreUnavailable):
            HeadFile(tmp_path / name, self.KEY).keep({"w_a": (1, "aa")}, NOW)

    def test_heads_of_a_real_log_find_what_was_cut(self, file: HeadFile) -> None:
        """Signed heads from the file find a log that was cut off, and count what came after them."""
        log = sample()
        file.keep(log.heads, NOW)
        log.write(0)
        assert verify(log.entries, said(file.read())[0]).unsigned == 1
        assert first_fault(log.entries[:5], said(file.read())[0]) is not None


class TestHeadList:
    def test_keeps_the_newest(self) -> None:
        """In memory the newest statement is kept, signed as in a file."""
        heads = HeadList(AuditKey.generate())
        assert said(heads.read()) == ({}, [])
        heads.keep({"w_a": (1, "aa")}, NOW)
        heads.keep({"w_a": (2, "ab")}, NOW)
        assert said(heads.read()) == ({"w_a": (2, "ab")}, [])
