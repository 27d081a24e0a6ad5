"""The OpenAPI document, made from the table of routes and the types of their bodies.

It names every status that a call may be answered with, and has no ``default``: what is not in it is a mistake, of the
server or of the document, and the tests that are made from it say so.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

import cloister
from cloister.server import ids
from cloister.server.routes import ANYBODY, JSON, Route
from cloister.server.shapes import AnthropicError, Error

_PARAMETER = re.compile(r"\{(\w+)(?::path)?\}")
_REFERENCE = "#/components/schemas/{name}"

_REFUSED: Mapping[int, str] = {
    400: "the request is not one that this call takes",
    401: "who asks is not shown, or not known here",
    403: "this caller may not do this",
    404: "there is no such object, or not for this user; or it has expired",
    409: "somebody else is at work in this session; try again",
    413: "the body, or the key or token, is too large",
    415: "the body is not JSON, or is encoded",
    422: "this idempotency key came with another request before",
    429: "too often, too much, or the provider is busy",
    500: "something went wrong here; it is in the log under the request's id",
    502: "the provider failed, or refused",
    503: "what this server needs cannot be reached; try again",
    504: "the provider did not answer in time",
}
_LATER = {429, 503}
"""With these may come when to try again."""
_TEXT: Mapping[str, Any] = {"type": "string"}
_HEADERS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "x-request-id": (
        "names this request in the server's log and audit log",
        {**_TEXT, "pattern": "^req_[0-9a-f]{24}$"},
    ),
    "retry-after": ("in how many seconds to try again", {"type": "integer", "minimum": 1}),
    "www-authenticate": ("how to show who asks", _TEXT),
    "cloister-session": ("the session in which the answer lies", {**_TEXT, "pattern": f"^({ids.CONVERSATION}|ct_.+)$"}),
    "cloister-renewed": ("the session is a new one: the one before had timed out", {"const": "true"}),
}
_SHAPES: Mapping[str, str] = {
    "conversation": ids.CONVERSATION,
    "response": ids.RESPONSE,
    "item": ids.ITEM,
    "token": "tok_[0-9a-f]{20}",
}
"""How the ids look that lie in paths."""

_USER = {
    "name": "Cloister-User",
    "in": "header",
    "required": False,
    "description": "for whom a server key asks, percent-encoded UTF-8; left out with a user's own token",
    "schema": {"type": "string", "minLength": 1, "maxLength": 3072},
}
_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "the same request with the same key is carried out once; only for what is stored",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255},
}
_SESSION = {
    "name": "Cloister-Session",
    "in": "header",
    "required": False,
    "description": "the session to go on in, or new for a new one; without it nothing is stored",
    "schema": {"type": "string", "pattern": f"^(new|{ids.CONVERSATION}|ct_.+)$"},
}


def document(routes: Iterable[Route]) -> dict[str, Any]:
    """Give the document of *routes*."""
    listed = list(routes)
    types = [type for route in listed for type in (route.body, route.answer) if type is not None]
    schemas, components = msgspec.json.schema_components([*types, Error, AnthropicError], ref_template=_REFERENCE)
    named = dict(zip([*types, Error, AnthropicError], schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for route in listed:
        paths.setdefault(_PARAMETER.sub(r"{\1}", route.path), {})[route.method.lower()] = _operation(route, named)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "cloister",
            "version": cloister.__version__,
            "description": "OpenAI's and Anthropic's APIs, per user.",
        },
        "paths": paths,
        "components": {
            "schemas": components,
            "headers": {name: _header(name) for name in _HEADERS},
            "securitySchemes": {
                "bearer": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "a tenant's server key, a user's session token, or an issuer's token (JWT)",
                },
                "key": {"type": "apiKey", "in": "header", "name": "x-api-key", "description": "the same"},
            },
        },
        "security": [{"bearer": []}, {"key": []}],
    }


def _header(name: str) -> dict[str, Any]:
    description, schema = _HEADERS[name]
    return {"description": description, "required": name == "x-request-id", "schema": schema}


def _operation(route: Route, named: Mapping[type, Any]) -> dict[str, Any]:
    said: dict[str, Any] = {
        "summary": route.summary,
        "operationId": re.sub(r"[^a-z0-9]+", "_", f"{route.method.lower()}{route.path}").rstrip("_"),
        "x-cloister-scopes": sorted(route.scopes),
        "responses": {
            str(route.status): _answered(route, named),
            **{str(status): _refused(route, status, named) for status in sorted(_refusals(route))},
        },
    }
    headers = [
        *([_USER] if route.owned else []),
        *([_KEY] if route.waits else []),
        *([_SESSION] if route.named else []),
    ]
    if parameters := [*_path(route), *_query(route.query), *headers]:
        said["parameters"] = parameters
    if route.body is not None:
        said["requestBody"] = {"required": True, "content": {JSON: {"schema": named[route.body]}}}
    if route.scopes == ANYBODY:
        said["security"] = []
    return said


def _refusals(route: Route) -> set[int]:
    """Give with which statuses a call may be refused."""
    found = {400, 500, 503}  # 400 for what stands behind the ?, or comes twice
    if route.scopes != ANYBODY:
        found |= {401, 403, 413}
    if route.owned:
        found |= {409, 429}
    if route.body is not None:
        found |= {404, 413, 415}  # of a model or an id in it
    if _PARAMETER.search(route.path):
        found |= {404}
    if route.waits:
        found |= {422, 502, 504}
    return found


def _refused(route: Route, status: int, named: Mapping[type, Any]) -> dict[str, Any]:
    error = named[AnthropicError if route.style == "anthropic" else Error]
    headers = ["x-request-id"]
    if status == 401:
        headers.append("www-authenticate")
    if status in _LATER:
        headers.append("retry-after")
    return {"description": _REFUSED[status], "headers": _named(headers), "content": {JSON: {"schema": error}}}


def _answered(route: Route, named: Mapping[type, Any]) -> dict[str, Any]:
    content: dict[str, Any] = {route.kind: {"schema": named[route.answer] if route.answer else {}}}
    if route.streams:
        content["text/event-stream"] = {
            "schema": {"type": "string", "description": "server-sent events, where asked for"}
        }
    headers = ["x-request-id", *(["cloister-session", "cloister-renewed"] if route.waits or route.streams else [])]
    return {"description": "done", "headers": _named(headers), "content": content}


def _named(headers: Iterable[str]) -> dict[str, Any]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in headers}


def _path(route: Route) -> Sequence[dict[str, Any]]:
    return [
        {"name": name, "in": "path", "required": True, "schema": _shape(name)}
        for name in _PARAMETER.findall(route.path)
    ]


def _shape(name: str) -> dict[str, Any]:
    return (
        {"type": "string", "pattern": f"^{_SHAPES[name]}$"} if name in _SHAPES else {"type": "string", "minLength": 1}
    )


def _query(query: type | None) -> Sequence[dict[str, Any]]:
    if query is None:
        return ()
    schema = msgspec.json.schema(query)
    found = schema["$defs"][query.__name__]
    return [
        {"name": name, "in": "query", "required": name in found.get("required", ()), "schema": _given(each)}
        for name, each in found["properties"].items()
    ]


def _given(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Give the schema of what stands behind the ``?``, where nothing is None: it is left out instead."""
    kinds = [kind for kind in schema.get("anyOf", ()) if kind != {"type": "null"}]
    if len(kinds) != 1:
        return dict(schema)
    rest = {name: value for name, value in schema.items() if name not in ("anyOf", "default")}
    return {**rest, **kinds[0]}
