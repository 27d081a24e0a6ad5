"""Keep the conversations of many users of one language model apart.

Names are loaded when they are first used, so that importing cloister costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cloister.alarms import Alarms
    from cloister.audit import AuditKey
    from cloister.client import AsyncCloister
    from cloister.costs.budget import Budget
    from cloister.costs.prices import Prices
    from cloister.errors import (
        BudgetExceeded,
        CloisterError,
        ConfigurationError,
        CredentialInvalid,
        IntegrityError,
        KeyReused,
        NoScope,
        OptionRefused,
        ProviderAuth,
        ProviderError,
        ProviderRateLimited,
        ProviderTimeout,
        RateLimited,
        ReplyBlocked,
        ScopeClosed,
        SessionBusy,
        SessionConflict,
        SessionExpired,
        SessionNotFound,
        StoreError,
        StoreUnavailable,
        TokenInvalid,
    )
    from cloister.keyring import Keyring
    from cloister.leaks.detector import LeakDetector
    from cloister.leaks.settings import LeakGuard
    from cloister.model import Erasure, Item, Limits, Owner, Reply, Usage
    from cloister.providers.anthropic import Anthropic
    from cloister.providers.base import Provider, Request
    from cloister.providers.offline import Offline
    from cloister.providers.openai import OpenAICompatible
    from cloister.rates import Rates
    from cloister.scope import Scope, current
    from cloister.scrub.settings import Scrub
    from cloister.sealing import MasterKeys
    from cloister.services import Tenant
    from cloister.session import Session
    from cloister.stores.base import Store
    from cloister.stream import ReplyStream
    from cloister.sync import Cloister
    from cloister.turn import Turn
    from cloister.user import User

_HOMES = {
    "alarms": "Alarms",
    "audit": "AuditKey",
    "client": "AsyncCloister",
    "costs.budget": "Budget",
    "costs.prices": "Prices",
    "errors": (
        "BudgetExceeded CloisterError ConfigurationError CredentialInvalid IntegrityError KeyReused NoScope"
        " OptionRefused ProviderAuth ProviderError ProviderRateLimited ProviderTimeout RateLimited ReplyBlocked"
        " ScopeClosed SessionBusy SessionConflict SessionExpired SessionNotFound StoreError StoreUnavailable"
        " TokenInvalid"
    ),
    "keyring": "Keyring",
    "leaks.detector": "LeakDetector",
    "leaks.settings": "LeakGuard",
    "model": "Erasure Item Limits Owner Reply Usage",
    "providers.anthropic": "Anthropic",
    "providers.base": "Provider Request",
    "providers.offline": "Offline",
    "providers.openai": "OpenAICompatible",
    "rates": "Rates",
    "scope": "Scope current",
    "scrub.settings": "Scrub",
    "sealing": "MasterKeys",
    "services": "Tenant",
    "stores.base": "Store",
    "stream": "ReplyStream",
    "sync": "Cloister",
    "turn": "Turn",
    "session": "Session",
    "user": "User",
}
_HOME = {name: home for home, names in _HOMES.items() for name in names.split()}

__all__ = [
    "Alarms",
    "Anthropic",
    "AsyncCloister",
    "AuditKey",
    "Budget",
    "BudgetExceeded",
    "Cloister",
    "CloisterError",
    "ConfigurationError",
    "CredentialInvalid",
    "Erasure",
    "IntegrityError",
    "Item",
    "KeyReused",
    "Keyring",
    "LeakDetector",
    "LeakGuard",
    "Limits",
    "MasterKeys",
    "NoScope",
    "Offline",
    "OpenAICompatible",
    "OptionRefused",
    "Owner",
    "Prices",
    "Provider",
    "ProviderAuth",
    "ProviderError",
    "ProviderRateLimited",
    "ProviderTimeout",
    "RateLimited",
    "Rates",
    "Reply",
    "ReplyBlocked",
    "ReplyStream",
    "Request",
    "Scope",
    "ScopeClosed",
    "Scrub",
    "Session",
    "SessionBusy",
    "SessionConflict",
    "SessionExpired",
    "SessionNotFound",
    "Store",
    "StoreError",
    "StoreUnavailable",
    "Tenant",
    "TokenInvalid",
    "Turn",
    "Usage",
    "User",
    "current",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("cloister")
    if name in ("costs", "leaks", "scrub", "settings", "sinks", "testing", "stores", "providers", "wire"):
        return import_module(f"cloister.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'cloister' has no attribute {name!r}")
    value = getattr(import_module(f"cloister.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
