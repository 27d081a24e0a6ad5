"""Stand-in until the real one is here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from cloister.model import Owner
from cloister.server.refusals import Refused


@dataclass(frozen=True, slots=True)
class Caller:
    scope: Literal["user", "service", "operator"]
    tenant: str | None
    user: str | None
    credential: str


class Identities:
    def __init__(self, options: Any, cloister: Any) -> None: ...

    async def caller(self, headers: Any, source: str) -> Caller:
        for name, value in headers:
            if name == b"authorization" and value.startswith(b"Bearer test-"):
                return Caller("service", value[12:].decode(), None, "key_test")
        raise Refused(401, "invalid_request_error", "invalid_api_key", "no", headers={"www-authenticate": "Bearer"})

    async def owner(self, caller: Caller, headers: Any, named: str | None) -> Owner:
        for name, value in headers:
            if name == b"cloister-user":
                return Owner(caller.tenant, value.decode())
        raise Refused(400, "invalid_request_error", "missing_user", "name the user: header Cloister-User")
