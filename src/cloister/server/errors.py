"""Which status, type and code each error has over HTTP, and the two shapes in which APIs say so.

Nothing of an error's own text goes out unless it was written for a client: what is internal is on record and in the
log, under the request's id.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from cloister.errors import (
    BudgetExceeded,
    CloisterError,
    ConfigurationError,
    CredentialInvalid,
    IntegrityError,
    KeyReused,
    OptionRefused,
    ProviderAuth,
    ProviderError,
    ProviderRateLimited,
    ProviderTimeout,
    RateLimited,
    ReplyBlocked,
    SessionBusy,
    SessionConflict,
    SessionExpired,
    SessionNotFound,
    StoreError,
    StoreUnavailable,
    TokenInvalid,
)
from cloister.server.refusals import Refused

_log = logging.getLogger("cloister.server")

Style = Literal["openai", "anthropic"]

SAFE = {
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
    "content-security-policy": "default-src 'none'; base-uri 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
}
"""The headers of every answer, whatever it is."""

NOT_FOUND = "not found: this user has no conversation, response or item of this id; ids come from this server's answers"

# From the most special error to the most general. Texts here are for clients; None takes the error's own, which says
# nothing but names and counts.
_TABLE: tuple[tuple[type[CloisterError], int, str, str, str | None], ...] = (
    (SessionNotFound, 404, "invalid_request_error", "not_found", NOT_FOUND),
    (TokenInvalid, 404, "invalid_request_error", "not_found", NOT_FOUND),
    (CredentialInvalid, 401, "invalid_request_error", "invalid_api_key", "this key or token is not known here"),
    (SessionExpired, 404, "invalid_request_error", "session_expired", None),
    (SessionBusy, 409, "conflict_error", "session_busy", SessionBusy.notice),
    (SessionConflict, 409, "conflict_error", "session_conflict", SessionConflict.notice),
    (KeyReused, 422, "invalid_request_error", "idempotency_key_reused", None),
    (RateLimited, 429, "rate_limit_error", "rate_limit_exceeded", RateLimited.notice),
    (BudgetExceeded, 429, "rate_limit_error", "budget_exceeded", None),
    (ReplyBlocked, 403, "permission_error", "reply_blocked", ReplyBlocked.notice),
    (IntegrityError, 500, "server_error", "integrity_error", IntegrityError.notice),
    (ProviderTimeout, 504, "server_error", "provider_timeout", ProviderTimeout.notice),
    (ProviderAuth, 502, "server_error", "provider_refused", ProviderAuth.notice),
    (ProviderRateLimited, 429, "rate_limit_error", "provider_busy", ProviderRateLimited.notice),
    (ProviderError, 502, "server_error", "provider_error", ProviderError.notice),
    (StoreUnavailable, 503, "server_error", "store_unavailable", StoreUnavailable.notice),
    (StoreError, 503, "server_error", "store_error", StoreError.notice),
    (
        ConfigurationError,
        500,
        "server_error",
        "misconfigured",
        "this server is set up wrongly; its operator has to look",
    ),
)
_ANTHROPIC = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
}


def refusal(error: Exception) -> Refused:
    """Give how *error* is said to a client. What nobody foresaw is a 500 that says nothing."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, BudgetExceeded) and error.too_long:
        return Refused(400, "invalid_request_error", "context_length_exceeded", str(error), "input")
    if isinstance(error, OptionRefused):  # its text may name the provider
        said = "the model behind this server does not take this, or not with this value"
        if error.option in ("messages", "input"):
            said = "one of these cannot be sent to the model; the result of a tool needs the call that it answers"
        return Refused(400, "invalid_request_error", "unsupported", said, error.option or None)
    for kind, status, type, code, text in _TABLE:
        if isinstance(error, kind):
            return Refused(status, type, code, text or str(error), headers=_headers(error, status))
    return Refused(500, "server_error", "internal_error", "something went wrong here; it is in the log under this id")


def reason(error: BaseException) -> str:
    """Give what the log says of *error*: our own words, which are names and counts; of any other only its class."""
    kind = type(error).__name__
    if isinstance(error, Refused):
        return error.code
    return f"{kind}: {error}" if isinstance(error, CloisterError) else kind


def log(error: Exception, request_id: str, status: int, *, streamed: bool = False) -> None:
    """Put in the log why a request failed, where an operator can do something about it; `reason` says what of it."""
    if status < 500 and not isinstance(error, ProviderError):  # its 429 may be an account that is empty
        return
    foreseen = isinstance(error, (CloisterError, Refused))
    when = " while it was streamed" if streamed else ""
    _log.error("%s failed%s: %s", request_id, when, reason(error), exc_info=None if foreseen else error)


def new_request_id() -> str:
    """Name a request, for its caller and the log."""
    return "req_" + os.urandom(12).hex()


def _headers(error: CloisterError, status: int) -> Mapping[str, str]:
    after: float | None = None
    if isinstance(error, RateLimited):
        after = error.retry_after.total_seconds()
    elif isinstance(error, ProviderRateLimited):
        after = error.retry_after
    elif isinstance(error, StoreUnavailable):
        after = 1
    headers = {} if after is None else {"retry-after": str(max(1, math.ceil(after)))}
    # What an SDK would repeat by itself, and what no repetition mends.
    if isinstance(error, BudgetExceeded | IntegrityError | ProviderAuth | ConfigurationError):
        headers["x-should-retry"] = "false"
    return headers


def shape(refused: Refused, style: Style, request_id: str) -> dict[str, Any]:
    """Give what the body says."""
    if style == "anthropic":
        kind = _ANTHROPIC.get(refused.status, "api_error" if refused.status >= 500 else "invalid_request_error")
        return {"type": "error", "error": {"type": kind, "message": refused.message}, "request_id": request_id}
    said = {"message": refused.message, "type": refused.type, "param": refused.param, "code": refused.code}
    return {"error": said}


def encode(refused: Refused, style: Style, request_id: str) -> bytes:
    """Give the body of a refusal."""
    return msgspec.json.encode(shape(refused, style, request_id))
