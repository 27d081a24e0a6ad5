"""Every call of the OpenAPI document, asked with what the document says and with what it forbids.

Requests are made by schemathesis from the document alone and sent through the door with a real key. Whatever comes, no
answer is a failure of the server, or one that the document does not have: in status, content type, headers and shape.
What has to be accepted is seen too: each call is answered well at least once.
"""

from __future__ import annotations

import asyncio
import copy
import itertools
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast
from urllib.parse import quote

import httpx2
import pytest
import requests
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from schemathesis import Case, GenerationMode, openapi
from schemathesis.checks import not_a_server_error
from schemathesis.config import SchemathesisConfig
from schemathesis.specs.openapi import checks
from tests.serving import UNRATED
from tests.test_matrix import bearer, belongings

from cloister.client import AsyncCloister
from cloister.server import openapi as documents
from cloister.server.app import ROUTES, Application

URL = "http://server"
MODEL = "cloister-offline-demo"
SOAK = os.environ.get("HYPOTHESIS_PROFILE") == "soak"
EXAMPLES = 300 if SOAK else 8
CHECKS = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
]
NOT_OFFERED = {"POST /v1/responses/compact", "POST /v1/responses/{response}/cancel"}
"""Calls that are there to say that they are not."""


def described() -> dict[str, Any]:
    """Give the document without who is asked for, which is not left to chance."""
    app = Application(opened, UNRATED)
    said = copy.deepcopy(documents.document(app.routes))
    for methods in said["paths"].values():
        for operation in methods.values():
            kept = [one for one in operation.get("parameters", ()) if one["name"] != "Cloister-User"]
            operation["parameters"] = kept
    return said


def opened() -> AsyncCloister:
    return AsyncCloister.open("memory://", provider="offline", tenancy="required")


# With a key of ours: those that it makes up are refused, which is tested elsewhere.
CONFIG = SchemathesisConfig.from_dict({"generation": {"with-security-parameters": False}})
DOCUMENT = described()
SCHEMA = openapi.from_dict(DOCUMENT, config=CONFIG)
OPERATIONS = sorted(f"{method.upper()} {path}" for path, methods in DOCUMENT["paths"].items() for method in methods)
BOUNDED = settings(
    max_examples=EXAMPLES, derandomize=not SOAK, database=None, deadline=None, suppress_health_check=list(HealthCheck)
)


def _cases(name: str, mode: GenerationMode) -> SearchStrategy[Case[Any]]:
    operation = SCHEMA.find_operation_by_label(name)
    assert operation is not None
    return operation.as_strategy(generation_mode=mode)


def _can_be_wrong(name: str) -> bool:
    """Say whether there is anything in a request that the document could forbid."""
    method, path = name.split()
    said = DOCUMENT["paths"][path][method.lower()]
    return "requestBody" in said or any(one["schema"].keys() > {"type", "minLength"} for one in said["parameters"])


def _thin(case: Case[Any], more: int) -> None:
    """Leave out what need not be in a body, but for a few: of thirty fields one is always something not offered."""
    if more == 3 or not isinstance(case.body, dict):
        return
    needed = {"input", "messages", "max_tokens", "items", "metadata"}
    kept = [name for name in case.body if name not in needed][:more]
    case.body = {name: value for name, value in case.body.items() if name in needed or name in kept}
    if case.operation.path.startswith("/v1/responses") and not case.body.get("input"):
        case.body["input"] = "Hello."  # the one field that is optional there and missed
    if case.operation.path == "/v1/cloister/tokens" and more == 0:
        case.body["user"] = "ana"  # most texts are nobody's name


@dataclass
class Asked:
    """Be a server in this process, on a loop of its own, and a key for it."""

    runner: asyncio.Runner
    client: httpx2.AsyncClient
    key: str
    users: Iterator[str] = field(default_factory=lambda: (f"ana {number}" for number in itertools.count()))

    def caller(self) -> dict[str, str]:
        """Give what a back end shows, for a user of whom nobody has heard: who misses too often is slowed down."""
        return {**bearer(self.key), "cloister-user": quote(next(self.users))}

    def own(self, case: Case[Any], caller: Mapping[str, str]) -> None:
        """Put ids of what is there, and the caller's, where ids are."""
        body = case.body if isinstance(case.body, dict) else {}
        if not set(case.path_parameters) | set(body) & {"conversation", "previous_response_id"}:
            return
        ids = self.runner.run(self._made(caller))
        case.path_parameters.update({name: ids[name] for name in case.path_parameters})
        if body.get("conversation"):
            body["conversation"] = ids["conversation"]
        if body.get("previous_response_id"):
            body["previous_response_id"] = ids["response"]

    async def _made(self, caller: Mapping[str, str]) -> dict[str, str]:
        made = await self.client.post("/v1/cloister/tokens", json={"user": "ana"}, headers=caller)
        return {**await belongings(self.client, caller), "token": made.json()["id"], "model": MODEL}

    def send(self, case: Case[Any], caller: Mapping[str, str]) -> httpx2.Response:
        """Send what schemathesis made."""
        made = requests.Request(**case.as_transport_kwargs(base_url=URL)).prepare()
        headers = {**cast(dict[str, str], dict(made.headers)), **caller}
        body = cast(bytes | None, made.body)
        asked = self.client.build_request(str(made.method), str(made.url), content=body, headers=headers)
        return self.runner.run(self.client.send(asked))


@pytest.fixture(scope="module")
def asked() -> Iterator[Asked]:
    with asyncio.Runner() as runner:
        app = Application(opened, UNRATED)
        life = app.opened()

        async def begin() -> Asked:
            await life.__aenter__()
            made = app.behind().cloister.credentials
            await made.add_tenant("acme")
            transport = httpx2.ASGITransport(app=cast(Any, app))
            client = httpx2.AsyncClient(transport=transport, base_url=URL)
            return Asked(runner, client, (await made.new_key("acme")).secret)

        made = runner.run(begin())
        yield made
        runner.run(made.client.aclose())
        runner.run(life.__aexit__(None, None, None))


def test_the_document_is_openapi() -> None:
    """The document keeps to OpenAPI 3.1, and names every call once."""
    said = documents.document(ROUTES)
    openapi.from_dict(said).validate()
    names = [operation["operationId"] for methods in said["paths"].values() for operation in methods.values()]
    assert len(set(names)) == len(names) == len(ROUTES)
    said["paths"]["/v1/models"]["get"]["responses"] = []
    with pytest.raises(ValueError, match="is not of type"):
        openapi.from_dict(said).validate()


@pytest.mark.parametrize("name", OPERATIONS)
def test_what_the_document_says_is_taken(asked: Asked, name: str) -> None:
    """Whatever fits the document is answered as the document says, and some of it well."""
    statuses: set[int] = set()

    @BOUNDED
    @given(_cases(name, GenerationMode.POSITIVE), st.integers(0, 3))
    def ask(case: Case[Any], more: int) -> None:
        caller = asked.caller()
        asked.own(case, caller)
        _thin(case, more)
        answer = asked.send(case, caller)
        statuses.add(answer.status_code)
        case.validate_response(answer, checks=CHECKS)

    ask()
    assert min(statuses) == 400 if name in NOT_OFFERED else min(statuses) == 200, statuses


@pytest.mark.parametrize("name", [name for name in OPERATIONS if _can_be_wrong(name)])
def test_what_the_document_forbids_is_refused(asked: Asked, name: str) -> None:
    """Whatever does not fit the document is refused, in a way that it says."""

    @BOUNDED
    @given(_cases(name, GenerationMode.NEGATIVE))
    def ask(case: Case[Any]) -> None:
        answer = asked.send(case, asked.caller())
        case.validate_response(answer, checks=[*CHECKS, checks.negative_data_rejection])

    ask()
