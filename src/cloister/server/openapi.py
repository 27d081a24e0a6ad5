"""The OpenAPI document, made from the table of routes and the types of their bodies."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

import cloister
from cloister.server.routes import Route
from cloister.server.shapes import AnthropicError, Error

_PARAMETER = re.compile(r"\{(\w+)(?::path)?\}")
_REFERENCE = "#/components/schemas/{name}"
_USER = {
    "name": "Cloister-User",
    "in": "header",
    "required": False,
    "description": "for whom a server key asks; left out with a user's own token",
    "schema": {"type": "string", "minLength": 1, "maxLength": 2048},
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
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}],
    }


def _operation(route: Route, named: Mapping[type, Any]) -> dict[str, Any]:
    error = named[AnthropicError if route.style == "anthropic" else Error]
    said: dict[str, Any] = {
        "summary": route.summary,
        "operationId": f"{route.method.lower()}{re.sub(r'[^a-z]+', '_', route.path)}",
        "x-cloister-scopes": sorted(route.scopes),
        "responses": {
            str(route.status): _answered(route, named),
            "default": {"description": "refused", "content": {"application/json": {"schema": error}}},
        },
    }
    parameters = [*_path(route), *_query(route.query), *([_USER] if route.owned else [])]
    if parameters:
        said["parameters"] = parameters
    if route.body is not None:
        said["requestBody"] = {"required": True, "content": {"application/json": {"schema": named[route.body]}}}
    if not route.scopes:
        said["security"] = []
    return said


def _answered(route: Route, named: Mapping[type, Any]) -> dict[str, Any]:
    content: dict[str, Any] = {"application/json": {"schema": named[route.answer] if route.answer else {}}}
    if route.streams:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    return {"description": "done", "content": content}


def _path(route: Route) -> Sequence[dict[str, Any]]:
    return [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in _PARAMETER.findall(route.path)
    ]


def _query(query: type | None) -> Sequence[dict[str, Any]]:
    if query is None:
        return ()
    schema = msgspec.json.schema(query)
    found = schema["$defs"][query.__name__]
    return [
        {"name": name, "in": "query", "required": name in found.get("required", ()), "schema": each}
        for name, each in found["properties"].items()
    ]
