"""Session tokens: what an application's back end gives its users, so that they may ask for themselves."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Literal

import msgspec

from cloister.credentials import MOST_TTL, TTL
from cloister.model import Owner
from cloister.server.refusals import Refused, invalid
from cloister.server.routes import Call, Route, Scope
from cloister.server.shapes import Body

_MOST = MOST_TTL // timedelta(seconds=1)
_SERVICE: frozenset[Scope] = frozenset({"service"})


class NewToken(Body):
    """Ask for a token of one user."""

    user: Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
    ttl_seconds: Annotated[int, msgspec.Meta(ge=1, le=_MOST)] = TTL // timedelta(seconds=1)


class Token(msgspec.Struct, kw_only=True):
    """Be a token. It is shown this once; ``id`` names it, to revoke it."""

    id: str
    object: Literal["cloister.token"] = "cloister.token"
    token: str
    user: str
    expires_at: int


class TokenDeleted(msgspec.Struct, kw_only=True):
    id: str
    object: Literal["cloister.token.deleted"] = "cloister.token.deleted"
    deleted: bool = True


async def create(call: Call, body: NewToken) -> Token:
    """Make a token for a user of the caller's tenant."""
    try:
        owner = Owner(call.caller.tenant, body.user)
    except ValueError as error:
        raise invalid(str(error), "user") from None
    made = await call.cloister.credentials.new_token(owner, timedelta(seconds=body.ttl_seconds))
    ends = made.credential.expires_at
    assert ends is not None
    return Token(id=made.credential.id, token=made.secret, user=owner.user, expires_at=int(ends.timestamp()))


async def delete(call: Call) -> TokenDeleted:
    """Revoke a token of the caller's tenant: it is refused from then on."""
    tenant, name = call.caller.tenant, call.path["token"]
    assert tenant is not None
    if not await call.cloister.credentials.revoke_token(tenant, name):
        raise Refused(404, "invalid_request_error", "not_found", "this tenant has no such token; it may have expired")
    return TokenDeleted(id=name)


ROUTES = (
    Route(
        "POST",
        "/v1/cloister/tokens",
        create,
        "Make a session token for a user",
        body=NewToken,
        answer=Token,
        scopes=_SERVICE,
        owned=False,
    ),
    Route(
        "DELETE",
        "/v1/cloister/tokens/{token}",
        delete,
        "Revoke a session token",
        answer=TokenDeleted,
        scopes=_SERVICE,
        owned=False,
    ),
)
