"""A report as one HTML file: nothing is loaded from elsewhere, nothing runs, and all that is quoted is text."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator
from hashlib import sha256
from html import escape

from cloister.scan.report import Detail, Report, Row, Where, Who, Words, many

MOST_ROWS = 1_000
"""How many replies the page lists: a browser has to show it."""

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --bad: #b3261e; --mark: #ffe08a; --ink: #1a1a1a }
@media (prefers-color-scheme: dark) { :root { --bad: #ff8a80; --mark: #ffd54f } }
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem }
h1 { font-size: 1.4rem } h2 { font-size: 1.1rem; margin-top: 2rem }
table { border-collapse: collapse; width: 100%; margin: .5rem 0 }
th, td { border-bottom: 1px solid var(--line); padding: .3rem .6rem .3rem 0; text-align: left; vertical-align: top }
td.figure { text-align: right; font-variant-numeric: tabular-nums }
article { border: 1px solid var(--line); border-radius: .5rem; margin: 1rem 0; padding: .5rem 1rem; overflow-x: auto }
article.block { border-left: .4rem solid var(--bad) }
h3 { font-size: 1rem; margin: .3rem 0 } h3 b { text-transform: uppercase } .block h3 b { color: var(--bad) }
q, code { overflow-wrap: anywhere } q { quotes: none; white-space: pre-wrap }
mark { background: var(--mark); color: var(--ink) }
.faint { opacity: .75 }
"""
_POLICY = (
    "default-src 'none'; base-uri 'none'; form-action 'none'; style-src 'sha256-"
    + base64.b64encode(sha256(_STYLE.encode()).digest()).decode()
    + "'"
)


def to_html(report: Report) -> bytes:
    """Give a report for people to read; whatever the transcripts hold, it is shown and never acts."""
    return "\n".join(_page(report)).encode("ascii", "xmlcharrefreplace")


def _page(report: Report) -> Iterator[str]:
    counts = report.counts
    yield '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
    yield f'<meta http-equiv="Content-Security-Policy" content="{escape(_POLICY)}">'
    yield '<meta name="viewport" content="width=device-width"><meta name="referrer" content="no-referrer">'
    yield f"<title>Replies with another user's details</title><style>{_STYLE}</style></head><body>"
    yield "<h1>Replies that carried another user's details</h1>"
    yield (
        f"<p>{many(counts.replies, 'reply', 'replies')} to {many(counts.users, 'user')} judged, each with what "
        "had been said before it: "
        f"<b>{counts.blocked:,} would have been blocked, {counts.alerted:,} alerted</b>.</p>"
    )
    yield "<table>"
    facts = [
        ("scanned", ", ".join(report.files)),
        ("lines", f"{counts.lines:,}, of which {counts.unreadable:,} could not be read"),
        ("messages", f"{counts.messages:,} in {many(counts.conversations, 'conversation')}"),
        ("order", report.order),
        ("compared", "users of one tenant" if counts.tenants and report.scope == "tenant" else "all users"),
        ("made", f"{report.made}, by cloister {report.cloister}"),
    ]
    yield from (f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in facts)
    yield "</table><ul>"
    yield from (f"<li>{escape(note)}</li>" for note in report.notes)
    yield "</ul>"
    if report.unread:
        yield "<h2>Lines that could not be read</h2><ul>"
        yield from (f"<li>{escape(each.file)}, line {each.line:,}: {escape(each.why)}</li>" for each in report.unread)
        yield "</ul>"
    yield "<h2>Replies, the worst first</h2>"
    if not report.rows:
        yield "<p>None.</p>"
    for row in report.rows[:MOST_ROWS]:
        yield from _article(row)
    if len(report.rows) > MOST_ROWS:
        yield f"<p>{len(report.rows) - MOST_ROWS:,} more are in the JSON report.</p>"
    if not report.shown:
        yield '<p class="faint">Names and words are left out; the same command with --show quotes them.</p>'
    yield "</body></html>\n"


def _article(row: Row) -> Iterator[str]:
    cut = "" if row.cut is None else f", cut at character {row.cut:,}"
    call = " (arguments of a call)" if row.part == "call" else ""
    yield f'<article class="{"block" if row.action == "block" else "alert"}">'
    yield f"<h3><b>{escape(row.action)}</b> {row.score:.1f} &middot; {_at(row.where)}{call}</h3>"
    yield f"<p>to {_who(row.receiver)}, details of {_who(row.other)}"
    yield f'<span class="faint"> &middot; {row.characters:,} characters{cut}</span></p>'
    yield "<table><tr><th>what</th><th>weight</th><th>characters</th><th>said before</th></tr>"
    for each in row.evidence:
        yield from _cells(each)
    yield "</table></article>"


def _cells(each: Detail) -> Iterable[str]:
    yield f'<tr><td>{escape(each.kind)}</td><td class="figure">{each.weight:.1f}</td>'
    yield f"<td>{each.start:,} to {each.end:,}</td><td>{_at(each.origin) if each.origin else ''}</td></tr>"
    for name, words in (("reply", each.reply), ("before", each.original)):
        if words:
            yield f'<tr><td class="faint">{name}</td><td colspan="3">{_quoted(words)}</td></tr>'


def _quoted(words: Words) -> str:
    return f"<q>{escape(words.before)}<mark>{escape(words.said)}</mark>{escape(words.behind)}</q>"


def _at(where: Where) -> str:
    return f"{escape(where.file)}, line {where.line:,}, message {where.message:,}"


def _who(who: Who) -> str:
    parts = [("user", who.user), ("conversation", who.conversation), ("tenant", who.tenant)]
    return ", ".join(f"{name} <code>{escape(value)}</code>" for name, value in parts if value is not None) or "somebody"
