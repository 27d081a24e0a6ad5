"""Where audit entries, alarms and signed heads go: out of the store, so that what happens to it shows elsewhere."""

from __future__ import annotations

from cloister.sinks.heads import HeadFile, HeadList, HeadSink, audit_key

__all__ = ["HeadFile", "HeadList", "HeadSink", "audit_key"]
