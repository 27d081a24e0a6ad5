"""Whether the server lives, whether it can work, and what it counts: for those who keep it running.

Every worker counts for itself, and writes its counts into small files of one folder, in which there is no more than
names of ours and numbers. Whichever worker is asked adds up all of them, those of dead workers too: no count falls.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import msgspec

from cloister.server import errors
from cloister.server.refusals import Refused
from cloister.server.routes import ANYBODY, Answer, Call, Route, Scope
from cloister.server.settings import ServerSettings
from cloister.stores.base import Store
from cloister.telemetry import Telemetry

_log = logging.getLogger("cloister.server")

_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
_PATIENCE = 1.0
"""How many seconds a store may take to answer, and how long its answer is good for everybody who asks."""
_TEXT = "text/plain; version=0.0.4; charset=utf-8"


class Health(msgspec.Struct):
    status: Literal["ok"] = "ok"


@contextlib.contextmanager
def counting(options: ServerSettings) -> Iterator[None]:
    """Have a folder for the counts of all workers inside the block, where they are wanted and can be kept.

    It has to be there before anything of prometheus-client is imported.
    """
    if not is_counting(options):
        yield
        return
    before = os.environ.get(_FOLDER)
    folder = tempfile.mkdtemp(prefix="cloister-counts-")
    os.environ[_FOLDER] = folder
    try:
        yield
    finally:
        if before is None:
            del os.environ[_FOLDER]
        else:
            os.environ[_FOLDER] = before
        shutil.rmtree(folder, ignore_errors=True)


def is_counting(options: ServerSettings) -> bool:
    """Say whether anything is counted: it is wanted, and ``cloister[metrics]`` is installed."""
    return options.metrics != "off" and importlib.util.find_spec("prometheus_client") is not None


class Monitoring:
    """Be the routes for whoever watches a server; *store* gives the one that is open."""

    def __init__(self, options: ServerSettings, store: Callable[[], Store]) -> None:
        self._options = options
        self._store = store
        self._asked: asyncio.Task[object] | None = None
        self._answered = float("-inf")

    def telemetry(self) -> Sequence[Telemetry]:
        """Give what counts, for a cloister that is about to be opened."""
        if not is_counting(self._options):
            return ()
        from cloister.metrics import Prometheus

        return (Prometheus(),)

    def routes(self) -> tuple[Route, ...]:
        """Give what can be asked here."""
        found = [
            Route("GET", "/healthz", self.healthz, "Whether it lives", answer=Health, scopes=ANYBODY, owned=False),
            Route("GET", "/readyz", self.readyz, "Whether it can work", answer=Health, scopes=ANYBODY, owned=False),
        ]
        if is_counting(self._options):
            asked_by: frozenset[Scope] = ANYBODY if self._options.metrics == "open" else frozenset({"operator"})
            counts = "Counts, for Prometheus"
            found.append(Route("GET", "/metrics", self.metrics, counts, scopes=asked_by, owned=False, kind=_TEXT))
        return tuple(found)

    async def healthz(self, call: Call) -> Health:
        """Say that the process is there; of the store nothing."""
        return Health()

    async def readyz(self, call: Call) -> Health:
        """Say that the store answers, within a second."""
        if time.monotonic() - self._answered > _PATIENCE and not await self._answers():
            raise Refused(503, "server_error", "not_ready", "not now", headers={"retry-after": "1"})
        return Health()

    async def _answers(self) -> bool:
        # One question at a time, however many ask; it is left to end by itself, since a connection that is given up in
        # the middle is lost.
        if self._asked is None or self._asked.done():
            self._asked = asyncio.ensure_future(self._store().tenanted())
            self._asked.add_done_callback(_say_why)  # it may end when nobody waits for it any more
        done, _ = await asyncio.wait({self._asked}, timeout=_PATIENCE)
        if not done or self._asked.cancelled() or self._asked.exception() is not None:
            return False
        self._answered = time.monotonic()
        return True

    async def metrics(self, call: Call) -> Answer:
        """Give what all workers have counted since the server began."""
        from prometheus_client import CollectorRegistry, generate_latest
        from prometheus_client.multiprocess import MultiProcessCollector

        def added_up() -> bytes:
            registry = CollectorRegistry()
            MultiProcessCollector(registry, path=os.environ[_FOLDER])  # type: ignore[no-untyped-call]
            return generate_latest(registry)

        return Answer(await asyncio.to_thread(added_up), kind=_TEXT)


def _say_why(asked: asyncio.Task[object]) -> None:
    if not asked.cancelled() and (error := asked.exception()) is not None:
        _log.warning("the store does not answer: %s", errors.reason(error))
