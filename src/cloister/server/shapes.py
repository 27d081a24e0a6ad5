"""The bodies and answers that several routes share, in the API's words."""

from __future__ import annotations

from typing import Annotated, Any, Generic, Literal, TypeVar

import msgspec

ItemT = TypeVar("ItemT")

MetadataKey = Annotated[str, msgspec.Meta(max_length=64)]
MetadataValue = Annotated[str, msgspec.Meta(max_length=512)]
Metadata = Annotated[dict[MetadataKey, MetadataValue], msgspec.Meta(max_length=16)]


SCHEMES = ("https://", "http://", "data:")
"""Where an image may lie. Some providers read files of their own machine by other ones."""


class Body(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Be what a client sends: nothing that is not named here."""


class Query(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Be what a client says behind the ``?``."""


class ErrorSaid(msgspec.Struct):
    message: str
    type: str
    param: str | None
    code: str


class Error(msgspec.Struct):
    """Be a refusal in OpenAI's shape."""

    error: ErrorSaid


class AnthropicErrorSaid(msgspec.Struct):
    type: str
    message: str


class AnthropicError(msgspec.Struct):
    """Be a refusal in Anthropic's shape."""

    type: Literal["error"]
    error: AnthropicErrorSaid
    request_id: str


class Page(msgspec.Struct, Generic[ItemT], kw_only=True):
    """Be one page of a list."""

    object: Literal["list"] = "list"
    data: list[ItemT]
    first_id: str | None
    last_id: str | None
    has_more: bool


class Paging(Query):
    """Say which page of a list."""

    after: str | None = None
    limit: Annotated[int, msgspec.Meta(ge=1, le=100)] = 20
    order: Literal["asc", "desc"] = "desc"
    include: list[str] | None = None


Item = dict[str, Any]
"""An item of the API, of any of its kinds."""

_MESSAGE = {
    "required": ["role", "content"],
    "properties": {
        "type": {"const": "message"},
        "role": {"enum": ["user", "assistant", "system", "developer"]},
        "content": {
            "anyOf": [
                {"type": "string"},
                {"type": "array", "minItems": 1, "items": {"type": "object", "required": ["type"]}},
            ]
        },
    },
}
_TYPED = {
    "required": ["type"],
    "properties": {"type": {"type": "string", "pattern": "^[A-Za-z][A-Za-z0-9_.:-]{0,63}$"}},
}
Given = Annotated[Item, msgspec.Meta(extra_json_schema={"anyOf": [_MESSAGE, _TYPED]})]
"""An item as it is sent: a message, which need not say so, or whatever says what it is."""
