"""Stand-in until the real one is here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any


@dataclass(frozen=True, slots=True)
class Policy:
    end_users_may: tuple[str, ...] = ()
    body_user: bool = False
    models: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class ServerSettings:
    host: str = "127.0.0.1"
    port: int = 8787
    workers: int = 1
    tls_cert: str | None = None
    tls_key: str | None = None
    trusted_proxies: tuple[Any, ...] = ()
    max_headers: int = 32 << 10
    shutdown_grace: timedelta = timedelta(seconds=30)
    metrics: str = "operator"
    requests_per_minute_user: int | None = 120
    requests_per_minute_tenant: int | None = 6_000
    turns_at_once_user: int | None = 8
    turns_at_once_tenant: int | None = 256
    max_body: int = 1 << 20
    policies: Mapping[str, Policy] = field(default_factory=dict)
    default: Policy = Policy()

    @classmethod
    def read(cls, *, file: Any = None, **given: Any) -> ServerSettings:
        for n in ("port", "workers"):
            if n in given:
                given[n] = int(given[n])
        return cls(**given)

    def policy(self, tenant: str | None) -> Policy:
        return self.policies.get(tenant or "", self.default)
