"""What a route refuses to do, and how that is said."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

_NONE: Mapping[str, str] = MappingProxyType({})


class Refused(Exception):
    """Say that a request is not carried out: with which status and code, and in which words for the client.

    ``param`` names the part of the body or query that is at fault. ``headers`` go along with the answer.
    """

    def __init__(
        self,
        status: int,
        type: str,
        code: str,
        message: str,
        param: str | None = None,
        headers: Mapping[str, str] = _NONE,
    ) -> None:
        super().__init__(message)
        self.status, self.type, self.code, self.message, self.param = status, type, code, message, param
        self.headers = headers


def invalid(message: str, param: str | None = None, code: str = "invalid_value") -> Refused:
    """Give the refusal of what a client sent."""
    return Refused(400, "invalid_request_error", code, message, param)


def unsupported(what: str, param: str | None = None) -> Refused:
    """Give the refusal of what the API has and this server has not."""
    return Refused(400, "invalid_request_error", "unsupported", f"this server does not offer {what}", param)
