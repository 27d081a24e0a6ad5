"""What a scan came to: values, JSON, and what has to be said beside the figures.

Unless asked to show them, no report holds a word of a conversation or the name of a user, tenant or conversation.
"""

from __future__ import annotations

import msgspec

from cloister import terminal
from cloister.model import Owner
from cloister.scan.files import Place, Survey
from cloister.scan.judge import MOST_FOUND, Finding, Piece, Quote, Scan
from cloister.scan.transcripts import Message

FORMAT = "cloister leaks scan, 1"


class Where(msgspec.Struct, frozen=True):
    """Be a place in what was scanned: file, line, and the message on that line; both are counted from 1."""

    file: str
    line: int
    message: int


class Who(msgspec.Struct, frozen=True):
    """Be a user: under a mark that is the same throughout one report, or by name. Without a user, a conversation."""

    user: str | None
    conversation: str | None
    tenant: str | None


class Words(msgspec.Struct, frozen=True):
    """Be a detail, quoted."""

    before: str
    said: str
    behind: str


class Detail(msgspec.Struct, frozen=True):
    """Be one piece of evidence: of what kind, how heavy, from where to where in the reply, said where before."""

    kind: str
    weight: float
    start: int
    end: int
    origin: Where | None
    reply: Words | None
    original: Words | None


class Row(msgspec.Struct, frozen=True):
    """Be one reply. ``part`` is "call" for the arguments with which the model called a tool."""

    action: str
    score: float
    where: Where
    part: str
    characters: int
    cut: int | None
    receiver: Who
    other: Who
    evidence: list[Detail]


class Unread(msgspec.Struct, frozen=True):
    """Be a line that could not be read, or not all of it."""

    file: str
    line: int
    why: str


class Counts(msgspec.Struct, frozen=True):
    """Count what was scanned and what was found."""

    lines: int
    unreadable: int
    messages: int
    replies: int
    conversations: int
    users: int
    tenants: int
    alerted: int
    blocked: int


class Report(msgspec.Struct, frozen=True):
    """Be what a scan came to; ``rows`` has the worst first."""

    format: str
    cloister: str
    made: str
    files: list[str]
    order: str
    scope: str
    shown: bool
    counts: Counts
    notes: list[str]
    unread: list[Unread]
    rows: list[Row]


def to_json(report: Report) -> bytes:
    """Give a report as JSON."""
    return msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n"


def make(scan: Scan, version: str, made: str, *, show: bool) -> Report:
    """Give the report on *scan*; with *show*, details are quoted and users named."""
    survey = scan.survey
    files = [terminal.line(source.name) for source in survey.sources]
    return Report(
        format=FORMAT,
        cloister=version,
        made=made,
        files=files,
        order="time" if survey.by_time else "file",
        scope=scan.scope,
        shown=show,
        counts=Counts(
            lines=survey.lines,
            unreadable=survey.unreadable,
            messages=survey.messages,
            replies=survey.replies,
            conversations=len(survey.left),
            users=len(survey.owners) + survey.nameless,
            tenants=len(survey.tenants - {None}),
            alerted=scan.alerted,
            blocked=scan.blocked,
        ),
        notes=notes(scan),
        unread=[Unread(terminal.line(fault.file), fault.line, fault.why) for fault in survey.faults],
        rows=[_row(files, finding, show) for finding in scan.findings],
    )


def notes(scan: Scan) -> list[str]:
    """Say what a reader has to know to trust the figures no further than they go."""
    survey, said = scan.survey, []
    if survey.unreadable:
        more = f"; the first {len(survey.faults)} are named" if survey.unreadable > len(survey.faults) else ""
        said.append(f"{survey.unreadable:,} of {survey.lines:,} lines could not be read, or not all of them{more}")
    said.append(_order(survey))
    if len(survey.owners) + survey.nameless == 1:
        said.append("there is one user only, so there was nobody whose details could be told to another")
    if survey.nameless:
        said.append(
            f"{survey.nameless:,} of {len(survey.left):,} conversations name no user, and each was taken for a user of "
            "its own: what one person says in two of them looks like another's"
        )
    if survey.shared:
        said.append(
            f"in {len(survey.shared):,} of {len(survey.left):,} conversations several users speak; what each says and "
            "is told was taken for a conversation of its own"
        )
    if len(survey.tenants) > 1 and scan.scope == "tenant":
        said.append("users were compared within their tenant only; --scope all compares them all")
    if scan.forgotten:
        said.append(
            f"{scan.forgotten:,} times a conversation was still going on when what its user knew was forgotten to make "
            "room: what is repeated to them after that may be alerted without need"
        )
    if scan.index.dropped:
        said.append(
            f"{scan.index.dropped:,} details of the oldest conversations were forgotten to make room: who repeated "
            "them after that was not seen"
        )
    if scan.alerted + scan.blocked > len(scan.findings):
        said.append(f"the {MOST_FOUND:,} worst replies are listed, of {scan.alerted + scan.blocked:,}")
    return said


def many(count: int, one: str, more: str = "") -> str:
    """Give a number of things in words."""
    return f"{count:,} {one if count == 1 else more or one + 's'}"


def _order(survey: Survey) -> str:
    if survey.by_time:
        return "messages were judged in the order of their times"
    why = "no message has a time" if not survey.timed else f"{survey.messages - survey.timed:,} have no time"
    return (
        f"messages were judged in the order in which they lie in the files, since {why}: what a later line tells of an "
        "earlier one is seen, and nothing the other way round"
    )


def _row(files: list[str], finding: Finding, show: bool) -> Row:
    said, verdict = finding.said, finding.verdict
    message = said.message
    if show:
        receiver = _named(message)
        other = _named(finding.whose) if finding.whose else _marked(verdict.owner)
    else:
        receiver = Who(said.owner.user, f"{said.conversation:016x}", said.owner.tenant)
        other = _marked(verdict.owner)
    return Row(
        action=verdict.action,
        score=verdict.score,
        where=_where(files, said.place),
        part="call" if message.call else "reply",
        characters=finding.characters,
        cut=verdict.cut,
        receiver=receiver,
        other=other,
        evidence=[_detail(files, piece, show) for piece in finding.pieces],
    )


def _detail(files: list[str], piece: Piece, show: bool) -> Detail:
    return Detail(
        kind=piece.kind,
        weight=piece.weight,
        start=piece.start,
        end=piece.end,
        origin=_where(files, piece.origin) if piece.origin else None,
        reply=_words(piece.quote) if show else None,
        original=_words(piece.original) if show and piece.original else None,
    )


def _where(files: list[str], place: Place) -> Where:
    return Where(files[place.file], place.line, place.message)


def _marked(owner: Owner | None) -> Who:
    return Who(owner.user if owner else None, None, owner.tenant if owner else None)


def _words(quote: Quote) -> Words:
    return Words(terminal.line(quote.before), terminal.line(quote.said), terminal.line(quote.behind))


def _named(message: Message) -> Who:
    return Who(
        *(None if name is None else terminal.line(name) for name in (message.user, message.session, message.tenant))
    )
