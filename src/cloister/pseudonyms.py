"""Whom a request is for, as a provider is told: the same name each time, which says nothing without our keys.

A provider can tell one abuser from all others by it, and keeps what it caches for one owner apart from what it caches
for another: else the time that an answer takes would tell whether somebody else has asked the same.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from typing import Any

from cloister.model import Owner
from cloister.sealing import MasterKeys, owner_fields, tenant_keys

FIELDS = ("safety_identifier", "prompt_cache_key", "cache_salt")
"""The options in which it goes along; a provider leaves out those that its API does not know."""
_OURS = frozenset({*FIELDS, "user"})


async def pseudonym(keys: MasterKeys, owner: Owner) -> str:
    """Give the name of *owner*: 64 hexadecimal digits, until the oldest master key is retired."""
    derived = await tenant_keys(keys, owner.tenant, "pseudonym")
    return hmac.digest(next(iter(derived.values())), owner_fields(owner), "sha256").hex()


def without(options: Mapping[str, Any] | None) -> dict[str, Any]:
    """Give a caller's *options* but for those that say whom a request is for: that is not for a caller to say."""
    return {name: value for name, value in (options or {}).items() if name not in _OURS}


def named(options: Mapping[str, Any], pseudonym: str) -> dict[str, Any]:
    """Give *options* that say whom a request is for."""
    return {**options, **dict.fromkeys(FIELDS, pseudonym)}
