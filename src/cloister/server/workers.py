"""Processes that serve together: forked from one that opens nothing itself, started again when they die, drained.

What the workers need, secrets among it, reaches them in memory: a fork takes no disk, no arguments and no environment.
The parent has no threads and no event loop, so that a fork copies nothing in the middle of something.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, NoReturn

_log = logging.getLogger("cloister.server")

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
_LONG_LIVED = 60.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 30.0
_LATE = 10.0
"""How many seconds a worker may take to close beyond those that its requests were given."""
_LONGEST = 500

Report = dict[str, Any]
Work = Callable[["Child"], int]


class Child:
    """Be what a worker knows of its parent."""

    def __init__(self, alive: int, reports: int) -> None:
        self.alive = alive
        """A file descriptor that ends when the parent does."""
        self._reports = reports

    def ready(self, facts: Report) -> None:
        """Say that requests are answered from now on."""
        self._say({"ready": facts})

    def failed(self, why: str) -> None:
        """Say why there is nothing to be served."""
        self._say({"failed": why[:_LONGEST]})

    def _say(self, report: Report) -> None:
        # One short write, which a pipe never mixes with another's.
        line = json.dumps({"pid": os.getpid(), **report})
        with contextlib.suppress(OSError):
            os.write(self._reports, line.encode() + b"\n")


@dataclass(slots=True)
class _Worker:
    began: float = field(default_factory=time.monotonic)
    ready: bool = False
    old: bool = False
    """To be drained once somebody has taken its place."""
    told: bool = False


class Crew:
    """Keep so many processes doing *work* until it is told to stop. Made and run in the main thread, once.

    The first worker is started alone: whether it comes to anything shows whether the others would. *began* is told what
    it found.
    """

    def __init__(self, count: int, work: Work, grace: float, began: Callable[[Report], None]) -> None:
        self._count = count
        self._work = work
        self._grace = grace
        self._began = began
        self._workers: dict[int, _Worker] = {}
        self._up = False
        self._stopping: float | None = None
        self._code = 0
        self._deaths = 0
        self._next = 0.0
        self._buffer = b""
        self._alive = os.pipe()
        self._reports = os.pipe()
        self._wake = os.pipe()
        os.set_blocking(self._reports[0], False)
        for end in self._wake:
            os.set_blocking(end, False)

    def run(self, reload: Callable[[], None], stopping: Callable[[], None]) -> int:
        """Start the workers and watch them; give the exit code. *reload* is called on SIGHUP, *stopping* once."""
        self._reload, self._on_stop = reload, stopping
        with self._listening():
            self._start()
            while self._workers or (self._stopping is None and not self._code):
                self._wait()
                self._hear()
                self._bury()
                self._mind()
        return self._code

    @contextlib.contextmanager
    def _listening(self) -> Iterator[None]:
        before = {each: signal.signal(each, self._signalled) for each in _SIGNALS}
        awake = signal.set_wakeup_fd(self._wake[1], warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(awake)
            for each, handler in before.items():
                signal.signal(each, handler)

    def _signalled(self, number: int, _: FrameType | None) -> None:
        """Do nothing: what wakes the loop says which signal it was."""

    def _wait(self) -> None:
        """Sleep until something happens, or is due."""
        now = time.monotonic()
        due = [self._stopping] if self._stopping is not None else []
        if self._stopping is None and self._missing():
            due.append(self._next)
        timeout = min(max(0.0, min(due) - now), _LONGEST_PAUSE) if due else None
        select.select([self._wake[0], self._reports[0]], [], [], timeout)
        for number in _drained(self._wake[0]):
            self._told(signal.Signals(number))

    def _told(self, number: signal.Signals) -> None:
        if number is signal.SIGHUP and self._stopping is None and self._up:
            self._replace()
        elif number in (signal.SIGTERM, signal.SIGINT):
            if self._stopping is None:
                self._stop()
            else:
                _log.warning("told a second time to stop: the workers are killed")
                self._kill()

    def _replace(self) -> None:
        """Have all workers give way to new ones, with certificates read anew."""
        try:
            self._reload()
        except Exception as error:  # noqa: BLE001 (what runs goes on running)
            _log.error("nothing was loaded anew: %s", error)
            return
        _log.info("every worker is replaced")
        for worker in self._workers.values():
            worker.old = True
        self._next = 0.0

    def _stop(self) -> None:
        _log.info("stopping: open requests have %g seconds", self._grace)
        self._on_stop()
        self._stopping = time.monotonic() + self._grace + _LATE
        for pid in self._workers:
            self._send(pid, signal.SIGTERM)

    def _kill(self) -> None:
        self._code = 1
        self._stopping = float("inf")
        for pid in self._workers:
            self._send(pid, signal.SIGKILL)

    def _send(self, pid: int, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)

    # --- what workers say, and how they end ---------------------------------------------------------------------------

    def _hear(self) -> None:
        *lines, self._buffer = (self._buffer + _drained(self._reports[0])).split(b"\n")
        for line in lines:
            report = json.loads(line)
            if (worker := self._workers.get(report["pid"])) is None:
                continue
            if "failed" in report:
                self._failed(report["failed"])
            else:
                self._is_ready(worker, report["ready"])

    def _is_ready(self, worker: _Worker, facts: Report) -> None:
        worker.ready = True
        if not self._up:
            self._up = True
            self._began(facts)
        # One in, one out.
        for pid, other in self._workers.items():
            if other.old and not other.told:
                other.told = True
                self._send(pid, signal.SIGTERM)
                break

    def _failed(self, why: str) -> None:
        if self._up:
            _log.error("a worker could not begin: %s", why)
        elif not self._code:
            self._code = 1
            print(f"cloister: {why}", file=sys.stderr)  # noqa: T201 (what the command is answered)

    def _bury(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            self._hear()  # its last words
            worker = self._workers.pop(pid, None)
            if worker is not None:
                self._died(worker, os.waitstatus_to_exitcode(status))

    def _died(self, worker: _Worker, code: int) -> None:
        if self._stopping is not None:
            # One that had not begun yet knows no better way of stopping.
            self._code = self._code or int(code not in (0, -signal.SIGTERM))
            return
        if worker.told:
            return
        if not self._up:
            if not self._code:
                self._failed(f"the first worker ended before it began, with {_how(code)}")
            return
        lived = time.monotonic() - worker.began
        self._deaths = 1 if lived > _LONG_LIVED else self._deaths + 1
        pause = min(_FIRST_PAUSE * 2 ** (self._deaths - 1), _LONGEST_PAUSE)
        self._next = time.monotonic() + pause
        _log.error("a worker ended, with %s; another is started in %.2f s", _how(code), pause)

    def _missing(self) -> int:
        """Say how many workers are to be started."""
        if not self._up or self._code:
            return 0
        fresh = sum(not worker.old for worker in self._workers.values())
        return self._count - fresh

    def _mind(self) -> None:
        now = time.monotonic()
        if self._stopping is not None:
            if now > self._stopping:
                _log.error("workers that did not end in time are killed")
                self._kill()
            return
        if self._missing() and now >= self._next:
            for _ in range(self._missing()):
                self._start()

    # --- a worker -----------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        # A signal for the parent must not find the child with the parent's ways of taking it.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        pid = os.fork()
        if not pid:
            self._be_child(before)
        self._workers[pid] = _Worker()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _be_child(self, mask: set[signal.Signals | int]) -> NoReturn:
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            for each in _SIGNALS:
                signal.signal(each, signal.SIG_DFL)
            # Whoever presses Ctrl-C means the parent, which says when to stop.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            for end in (self._alive[1], self._reports[0], *self._wake):
                os.close(end)
            code = self._work(Child(self._alive[0], self._reports[1]))
        except BaseException as error:  # noqa: BLE001 (there is nobody above who could take it)
            _log.critical("a worker failed", exc_info=error)
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)


def _drained(end: int) -> bytes:
    data = b""
    with contextlib.suppress(BlockingIOError):
        while part := os.read(end, 4_096):
            data += part
    return data


def _how(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"
