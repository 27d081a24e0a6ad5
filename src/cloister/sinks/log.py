"""Standard logging as a destination: alarms go to the logger ``cloister.alerts``, the rest to ``cloister.audit``."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from cloister.alarms import Alarm
from cloister.audit import Entry
from cloister.sinks.base import Record, SinkError, check_severity, line

_alerts = logging.getLogger("cloister.alerts")
_audit = logging.getLogger("cloister.audit")
_LEVELS = {"info": logging.INFO, "notice": logging.INFO, "warning": logging.WARNING, "alert": logging.ERROR}


class LogSink:
    """Hand records to standard logging, each as one line of printable ASCII at the level of its severity."""

    name = "log"

    def __init__(self, severity: str = "alert") -> None:
        self.severity = check_severity(severity)

    async def deliver(self, records: Sequence[Record]) -> None:
        # In a thread: a handler may write to a network or a full pipe, for which no turn waits.
        await asyncio.to_thread(_log, records)

    async def close(self) -> None:
        pass


def _log(records: Sequence[Record]) -> None:
    for record in records:
        logger = _alerts if isinstance(record, Alarm) else _audit
        severity = record.severity if isinstance(record, Entry | Alarm) else "info"
        level = _LEVELS.get(severity, logging.ERROR)
        if not logger.isEnabledFor(level):
            raise SinkError(f"the logger {logger.name} drops what is below its level: set it to INFO", slow=True)
        logger.log(level, "%s", line(record))
