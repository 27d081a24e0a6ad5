"""Stand-in until the real one is here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


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
    max_body: int = 1 << 20
    requests_per_minute_user: int | None = None
    requests_per_minute_tenant: int | None = None
    policies: Mapping[str, Policy] = field(default_factory=dict)
    default: Policy = Policy()

    def policy(self, tenant: str | None) -> Policy:
        return self.policies.get(tenant or "", self.default)
