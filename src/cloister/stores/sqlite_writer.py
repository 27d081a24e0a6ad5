"""The one thread that writes to the SQLite file: all that waits, in one transaction."""

from __future__ import annotations

import asyncio
import queue
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

from cloister.audit import Chain, Entry, Event, Heads, audit_id, columns, event, introduces
from cloister.errors import CloisterError, SessionConflict, StoreUnavailable
from cloister.model import Owner, SealedItem, SealedSession, from_micros
from cloister.stores.base import Record
from cloister.stores.sqlite_file import BUSY_SECONDS, MINE, SESSION, names, ours

T = TypeVar("T")

_MOST_AT_ONCE = 256
_NAMES_AT_MOST = 10_000
_TURN = 2
_INSERT = "INSERT INTO items VALUES (?, ?, ?, ?, ?, ?, ?)"
_INSERT_TURN = f"{_INSERT}, (?, ?, ?, ?, ?, ?, ?)"


class _Job(NamedTuple):
    work: Callable[[Writing], Any]
    loop: asyncio.AbstractEventLoop
    outcome: asyncio.Future[Any]


class Writer:
    """Carry out jobs in the order in which they come, in a thread, and keep the audit chain of its connection."""

    def __init__(self, connect: Callable[[], sqlite3.Connection], url: str) -> None:
        self._connect = connect
        self._url = url
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._heads: Heads = {}
        self._writing: Writing | None = Writing(connect(), url)
        self._writing.truncate()  # a crash may have come between an erasure and the emptying of the log
        self._thread: threading.Thread | None = threading.Thread(target=self._work, name="cloister-sqlite", daemon=True)
        self._thread.start()

    async def close(self) -> None:
        """Do what still waits, then stop."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._jobs.put(None)
            await asyncio.to_thread(thread.join)

    def heads(self) -> Heads:
        """Say how far the chains of this writer have come."""
        return dict(self._heads)

    async def write(self, work: Callable[[Writing], T]) -> T:
        """Do *work* in the next transaction, and give what it gives or raise what it raises."""
        loop = asyncio.get_running_loop()
        outcome: asyncio.Future[T] = loop.create_future()
        if self._thread is None:
            raise StoreUnavailable(f"{self._url} is closed")
        self._jobs.put(_Job(work, loop, outcome))
        return await outcome

    def _work(self) -> None:
        """Carry out jobs until told to stop: all that wait, in one transaction."""
        stopping = False
        while not stopping:
            jobs = [self._jobs.get()]
            while len(jobs) < _MOST_AT_ONCE and not self._jobs.empty():
                jobs.append(self._jobs.get())
            stopping = None in jobs
            wanted = [job for job in jobs if job is not None]
            if wanted:
                _tell(wanted, self._write_all(wanted))
        if self._writing is not None:
            self._writing.db.close()

    def _write_all(self, jobs: Sequence[_Job]) -> list[Any]:
        """Give the outcome of each job, an exception where it failed."""
        try:
            if self._writing is None:
                self._writing = Writing(self._connect(), self._url, after_fault=True)
            outcomes = self._writing.transaction([job.work for job in jobs])
            chain = self._writing.chain
            self._heads[chain.writer] = chain.number, chain.last.hex()
            return outcomes
        except sqlite3.Error as error:
            self._abandon()
            return [ours(error, self._url) for _ in jobs]
        except Exception as error:  # noqa: BLE001 - a fault of ours: the callers must hear of it, and the thread must live
            self._abandon()
            return [error] * len(jobs)

    def _abandon(self) -> None:
        """Give up a connection whose last outcome is unknown; its successor begins a chain of its own."""
        if self._writing is not None:
            self._writing.db.close()
            self._writing = None


def _tell(jobs: Sequence[_Job], outcomes: Sequence[Any]) -> None:
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Any], Any]]] = {}
    for job, outcome in zip(jobs, outcomes, strict=True):
        by_loop.setdefault(job.loop, []).append((job.outcome, outcome))
    for loop, told in by_loop.items():
        if not loop.is_closed():
            loop.call_soon_threadsafe(_resolve, told)


def _resolve(told: Sequence[tuple[asyncio.Future[Any], Any]]) -> None:
    for future, outcome in told:
        if future.done():  # whoever waited was cancelled
            continue
        if isinstance(outcome, BaseException):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)


class _Contradiction(Exception):
    """A job failed after it had written something."""

    def __init__(self, cause: CloisterError) -> None:
        self.cause = cause


class Writing:
    """The one connection that writes, and the audit chain that belongs to it."""

    def __init__(self, db: sqlite3.Connection, url: str, *, after_fault: bool = False) -> None:
        self.db = db
        self.execute = db.execute
        self.chain = Chain.new()
        self.destroyed = False
        self._url = url
        self._after_fault = after_fault
        self._entries: list[Entry] = []
        self._names: dict[Owner, str] = {}
        self._version = -1

    def transaction(self, works: Sequence[Callable[[Writing], T]]) -> list[T | BaseException]:
        """Do *works* in one transaction; one that raises leaves nothing, and the others stand."""
        try:
            outcomes = self._together(works)
        except _Contradiction as error:
            # One wrote something before it failed: all is undone, and each has to stand for itself.
            outcomes = [self._alone(work) for work in works] if len(works) > 1 else [error.cause]
        if self.destroyed:
            self.truncate()
        return outcomes

    def _alone(self, work: Callable[[Writing], T]) -> T | BaseException:
        try:
            return self._together([work])[0]
        except _Contradiction as error:
            return error.cause

    def _together(self, works: Sequence[Callable[[Writing], T]]) -> list[T | BaseException]:
        began = self.chain
        self.execute("BEGIN IMMEDIATE")
        try:
            self._forget_names()
            if self._after_fault:
                self.put([event("writer.replaced", from_micros(time.time_ns() // 1000))])
            outcomes = [self._outcome(work) for work in works]
            self._write_entries()
            self.execute("COMMIT")
        except BaseException as error:
            self.chain = began
            self._entries.clear()
            self._names.clear()
            if isinstance(error, _Contradiction):
                self.execute("ROLLBACK")
            raise
        self._after_fault = False
        return outcomes

    def _outcome(self, work: Callable[[Writing], T]) -> T | BaseException:
        changes, entries = self.db.total_changes, len(self._entries)
        try:
            return work(self)
        except CloisterError as error:
            refused: CloisterError = error
        except (sqlite3.IntegrityError, sqlite3.DataError) as error:  # what it stores contradicts what is there
            refused = ours(error, self._url)
        if (self.db.total_changes, len(self._entries)) != (changes, entries):
            raise _Contradiction(refused)
        return refused

    def truncate(self) -> None:
        """Copy the write-ahead log into the file and empty it, so that what was destroyed is in neither."""
        self.execute("PRAGMA busy_timeout = 0")
        busy, *_ = self.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        self.execute(f"PRAGMA busy_timeout = {BUSY_SECONDS * 1e3:.0f}")
        self.destroyed = bool(busy)  # somebody is reading, whom nobody waits for: once more after the next commit

    def insert_session(self, session: SealedSession) -> None:
        self.execute(
            f"INSERT INTO sessions ({SESSION}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                *names(session.owner),
                session.id,
                session.wrapped,
                session.head,
                session.version,
                session.count,
                session.tokens,
                session.created_at,
                session.updated_at,
                session.expires_at,
                session.turn,
                session.carry,
                session.ended,
            ),
        )

    def insert_items(self, key: tuple[str, str, str], items: Sequence[SealedItem]) -> None:
        rows = [(*key, item.position, item.role, item.tokens, item.sealed) for item in items]
        if len(rows) == _TURN:  # in one step: each one lets go of the interpreter, and waits to have it back
            self.execute(_INSERT_TURN, (*rows[0], *rows[1]))
        else:
            self.db.executemany(_INSERT, rows)

    def keep(self, owner: Owner, record: Record | None, replaces: Record | None = None) -> None:
        if record is not None:
            held = (*names(owner), record.session, record.key)
            if replaces is not None:
                seen = f"{MINE} AND key = ? AND holder = ? AND sealed IN (?, x'')"
                self.execute(f"DELETE FROM records WHERE {seen}", (*held, replaces.holder, replaces.sealed))
            if self.execute(f"SELECT 1 FROM records WHERE {MINE} AND key = ?", held).fetchone():
                raise SessionConflict("this idempotency key was answered meanwhile; send it again for the answer")
            values = (*names(owner), record.session, record.holder, record.key, record.sealed, record.expires_at)
            self.execute("INSERT INTO records VALUES (?, ?, ?, ?, ?, ?, ?)", values)

    def put(self, events: Sequence[Event]) -> None:
        for noted in events:
            owner = self._audit_id(noted.owner, introduce=introduces(noted))
            self.chain, entry = self.chain.extend(noted, owner, self._audit_id(noted.other, introduce=False))
            self._entries.append(entry)

    def _write_entries(self) -> None:
        self.db.executemany(
            "INSERT INTO audit VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", [columns(entry) for entry in self._entries]
        )
        self._entries.clear()

    def _forget_names(self) -> None:
        """Forget who has which name in the log if anybody else wrote to the file: it may have been an erasure."""
        (version,) = self.execute("PRAGMA data_version").fetchone()
        if version != self._version or len(self._names) > _NAMES_AT_MOST:
            self._names.clear()
            self._version = version

    def forget(self, owner: Owner) -> None:
        """Let go of an owner's name in the log, which is being erased."""
        self._names.pop(owner, None)

    def _audit_id(self, owner: Owner | None, *, introduce: bool) -> str:
        if owner is None:
            return ""
        if owner not in self._names and (name := self._look_up(owner, introduce=introduce)):
            self._names[owner] = name
        return self._names.get(owner, "")

    def _look_up(self, owner: Owner, *, introduce: bool) -> str:
        who = names(owner)
        row = self.execute("SELECT audit_id FROM audit_owners WHERE tenant = ? AND user = ?", who).fetchone()
        if row is not None:
            return str(row[0])
        if not introduce:
            return ""
        salt = secrets.token_bytes(16)
        named = audit_id(owner, salt)
        self.execute("INSERT INTO audit_owners VALUES (?, ?, ?, ?)", (*who, named, salt))
        return named
