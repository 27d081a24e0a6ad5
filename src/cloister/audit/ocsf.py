"""Entries as events of the Open Cybersecurity Schema Framework, which SIEMs read. Version 1.3, core classes alone."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from cloister.audit.chain import ENTRY_TYPES, Entry, columns
from cloister.audit.events import EVENTS
from cloister.model import Owner, from_micros

VERSION = "1.3.0"


class Class(NamedTuple):
    """Be a class of events, and the activities that it knows."""

    uid: int
    name: str
    category: str
    activities: Mapping[int, str]


_CRUD = {1: "Create", 2: "Read", 3: "Update", 4: "Delete", 99: "Other"}
FINDING = Class(2004, "Detection Finding", "Findings", {1: "Create"})
AUTHENTICATION = Class(3002, "Authentication", "Identity & Access Management", {1: "Logon"})
ENTITY = Class(3004, "Entity Management", "Identity & Access Management", _CRUD)
API = Class(6003, "API Activity", "Application Activity", _CRUD)

_CREATE, _READ, _UPDATE, _DELETE, _OTHER = _CRUD
CLASSES: Mapping[str, tuple[Class, int]] = {
    "session.started": (API, _CREATE),
    "session.renewed": (API, _CREATE),
    "session.expired": (API, _DELETE),
    "session.ended": (API, _DELETE),
    "session.updated": (API, _UPDATE),
    "turn.committed": (API, _CREATE),
    "turn.passed": (API, _CREATE),
    "turn.failed": (API, _CREATE),
    "turn.refused": (API, _CREATE),
    "items.appended": (API, _CREATE),
    "item.hidden": (API, _UPDATE),
    "history.read": (API, _READ),
    "data.replaced": (API, _UPDATE),
    "operator.access": (API, _READ),
    "access.refused": (API, _READ),
    "access.absent": (API, _READ),
    "rate.limited": (API, _OTHER),
    "budget.exceeded": (API, _CREATE),
    "sink.failed": (API, _OTHER),
    "sink.recovered": (API, _OTHER),
    "writer.replaced": (API, _OTHER),
    "authentication.failed": (AUTHENTICATION, 1),
    "owner.exported": (ENTITY, _READ),
    "owner.erased": (ENTITY, _DELETE),
    "index.seeded": (ENTITY, _UPDATE),
    "fingerprints.dropped": (ENTITY, _DELETE),
    "sessions.copied": (ENTITY, _CREATE),
    "credential.created": (ENTITY, _CREATE),
    "credential.revoked": (ENTITY, _DELETE),
    "key.rotated": (ENTITY, _UPDATE),
    "key.retired": (ENTITY, _DELETE),
    "protection.off": (ENTITY, _UPDATE),
    "configuration.changed": (ENTITY, _UPDATE),
    "audit.exported": (ENTITY, _READ),
    "audit.pruned": (ENTITY, _DELETE),
    "placeholder.foreign": (FINDING, 1),
    "reply.blocked": (FINDING, 1),
    "reply.alerted": (FINDING, 1),
    "reply.unchecked": (FINDING, 1),
    "document.foreign": (FINDING, 1),
    "access.foreign": (FINDING, 1),
    "access.suspended": (FINDING, 1),
    "identity.contradicted": (FINDING, 1),
    "token.damaged": (FINDING, 1),
    "token.replayed": (FINDING, 1),
    "integrity.failed": (FINDING, 1),
    "session.quarantined": (FINDING, 1),
    "sink.dropped": (FINDING, 1),
    "alert.tested": (FINDING, 1),
}
"""The class of each event, and which of its activities it is."""
SEVERITIES = {"info": (1, "Informational"), "notice": (2, "Low"), "warning": (3, "Medium"), "alert": (4, "High")}
_FAILED = frozenset(
    {"turn.failed", "turn.refused", "access.refused", "access.absent", "rate.limited", "budget.exceeded"}
    | {"authentication.failed", "sink.failed", "writer.replaced"}
)
_CHANGED = "entry.changed"
_OTHER_TYPE, _IP_ADDRESS, _RESOURCE = (99, "User UID"), (2, "IP Address"), (10, "Resource UID")


def event_of(entry: Entry, version: str, names: Mapping[str, Owner] | None = None) -> dict[str, Any]:
    """Give *entry* as an event that this *version* of cloister made; with *names*, of whom it speaks too.

    One that was changed where it lies becomes a finding of its own.
    """
    if tuple(map(type, columns(entry))) != ENTRY_TYPES or not -(1 << 62) < entry.at < 1 << 57:
        entry = Entry("?", 0, 0, _CHANGED, "alert", "", "", "", "{}", b"", b"")
    kind = entry.event if entry.event in CLASSES or entry.event == _CHANGED else "?"
    known, activity = CLASSES.get(kind, (FINDING, 1) if kind == _CHANGED else (API, _OTHER))
    severity_id, severity = SEVERITIES.get(entry.severity, (99, "Other"))
    detail = _detail(entry)
    found: dict[str, Any] = {
        "activity_id": activity,
        "activity_name": entry.event if activity == _OTHER else known.activities[activity],
        "category_uid": known.uid // 1_000,
        "category_name": known.category,
        "class_uid": known.uid,
        "class_name": known.name,
        "type_uid": known.uid * 100 + activity,
        "time": entry.at // 1_000,
        "severity_id": severity_id,
        "severity": severity,
        "message": _meaning(entry.event),
        "metadata": {
            "version": VERSION,
            "product": {"name": "cloister", "vendor_name": "cloister", "version": version},
            "uid": f"{entry.writer}:{entry.number}",
            "event_code": entry.event,
            "log_name": "audit",
            "original_time": from_micros(entry.at).isoformat(),
        },
        "unmapped": {"hash": entry.hash.hex(), "previous": entry.previous.hex(), "detail": detail},
    }
    found |= _about(known, entry, detail, names or {})
    if known is not FINDING:
        failed = entry.event in _FAILED
        found |= {"status_id": 2 if failed else 1, "status": "Failure" if failed else "Success"}
        if "reason" in detail:
            found["status_detail"] = str(detail["reason"])
    observables = list(_observables(found))
    return found | ({"observables": observables} if observables else {})


def _about(known: Class, entry: Entry, detail: dict[str, Any], names: Mapping[str, Owner]) -> dict[str, Any]:
    """Give what the class requires: who did it, to what, and from where."""
    user = _user(entry.owner, names)
    actor: dict[str, Any] = {"user": user} if user else {"app_name": "cloister"}
    if entry.session:
        actor["session"] = {"uid": entry.session}
    resources: list[dict[str, Any]] = [{"uid": entry.session, "type": "session"}] if entry.session else []
    if entry.other:
        resources = [{"uid": entry.session or entry.other, "type": "session", "owner": _user(entry.other, names)}]
    match known.uid:
        case FINDING.uid:
            meaning = _meaning(entry.event)
            about: dict[str, Any] = {
                "finding_info": {"uid": f"{entry.writer}:{entry.number}", "title": entry.event, "desc": meaning},
                "evidences": [{"actor": actor, "data": detail}],
                "is_alert": entry.severity == "alert",
                "status_id": 1,
                "status": "New",
            }
        case AUTHENTICATION.uid:
            about = {"user": user or {"name": "unknown"}, "src_endpoint": _from(detail)}
            about["service"] = {"name": "cloister"}
        case ENTITY.uid:
            entity = {"uid": entry.owner, "type": "user"} if entry.owner else {"name": entry.event.partition(".")[0]}
            about = {"entity": entity, "actor": actor}
            if "reason" in detail:
                about["comment"] = str(detail["reason"])
        case _:
            about = {"api": {"operation": entry.event}, "actor": actor, "src_endpoint": _from(detail)}
    return about | ({"resources": resources} if resources and known not in (AUTHENTICATION, ENTITY) else {})


def _user(audit_id: str, names: Mapping[str, Owner]) -> dict[str, Any]:
    if not audit_id:
        return {}
    owner = names.get(audit_id)
    if owner is None:
        return {"uid": audit_id}
    return {"uid": audit_id, "name": owner.user} | ({"org": {"name": owner.tenant}} if owner.tenant else {})


def _from(detail: dict[str, Any]) -> dict[str, Any]:
    """Give where a call came from, as far as the application said."""
    source = detail.get("source")
    if not isinstance(source, str) or not source:
        return {"name": "unknown"}
    try:
        return {"ip": str(ipaddress.ip_address(source))}
    except ValueError:
        return {"name": source}


def _observables(found: dict[str, Any]) -> Any:
    """Name what an analyst looks for in other events too."""
    places = {
        "actor.user.uid": (_OTHER_TYPE, found.get("actor", {}).get("user", {}).get("uid")),
        "user.uid": (_OTHER_TYPE, found.get("user", {}).get("uid")),
        "src_endpoint.ip": (_IP_ADDRESS, found.get("src_endpoint", {}).get("ip")),
    }
    for evidence in found.get("evidences", ()):
        places["evidences[0].actor.user.uid"] = (_OTHER_TYPE, evidence["actor"].get("user", {}).get("uid"))
    for resource in found.get("resources", ()):
        places["resources[0].uid"] = (_RESOURCE, resource["uid"])
        places["resources[0].owner.uid"] = (_OTHER_TYPE, resource.get("owner", {}).get("uid"))
    for name, ((type_id, type_name), value) in places.items():
        if value:
            yield {"name": name, "type_id": type_id, "type": type_name, "value": value}


def _detail(entry: Entry) -> dict[str, Any]:
    try:
        said = json.loads(entry.detail)
    except ValueError:
        said = None
    return said if isinstance(said, dict) else {"text": entry.detail}


def _meaning(kind: str) -> str:
    if kind == _CHANGED:
        return "An entry of the log was changed where it lies; `cloister audit verify` says which."
    return EVENTS[kind].meaning if kind in EVENTS else kind
