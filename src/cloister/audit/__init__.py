"""What is on record: events, the hash chain of each writer, signed heads, verification.

A writer is one connection to a store. It numbers its entries from 1 and each names the hash of the one before, so that
a changed, removed, inserted or reordered entry shows, wherever it lies. What a chain alone cannot show, a tail cut off
or a whole writer removed, shows against heads that were signed (Ed25519) and kept outside the entries.
"""

from __future__ import annotations

from cloister.audit.chain import Chain, Entry, Heads, columns
from cloister.audit.events import EVENTS, SEVERITIES, Detail, Event, Kind, audit_id, event, introduces, is_alert
from cloister.audit.heads import AuditKey, Signed, check_signature, read_heads
from cloister.audit.verification import Copy, Fault, Report, Verification, verify

__all__ = [
    "EVENTS",
    "SEVERITIES",
    "AuditKey",
    "Chain",
    "Copy",
    "Detail",
    "Entry",
    "Event",
    "Fault",
    "Heads",
    "Kind",
    "Report",
    "Signed",
    "Verification",
    "audit_id",
    "check_signature",
    "columns",
    "event",
    "introduces",
    "is_alert",
    "read_heads",
    "verify",
]
