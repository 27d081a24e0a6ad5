"""Whom a request is for, as a provider is told: a name that is stable, and that nobody else can give or resolve."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from tests.fakes import Parrot, opened
from tests.test_providers import KEY
from tests.upstreams import OK, Upstream, http

from cloister.keyring import Keyring
from cloister.model import Owner
from cloister.providers.anthropic import Anthropic
from cloister.providers.base import Provider
from cloister.providers.openai import OpenAICompatible
from cloister.pseudonyms import FIELDS, pseudonym

MESSAGE = {
    "type": "message",
    "role": "assistant",
    "model": "m",
    "content": [{"type": "text", "text": "Hello"}],
    "stop_reason": "end_turn",
    "usage": {"input_tokens": 1, "output_tokens": 1},
}


async def test_one_name_for_each_owner_and_key() -> None:
    """Another user, another tenant and another deployment have others; it says nothing of who it is."""
    keys = Keyring.generate()
    owners = [
        Owner(None, "ana"),
        Owner(None, "ben"),
        Owner("acme", "ana"),
        Owner("globex", "ana"),
        Owner("acme", "ben"),
    ]
    names = [await pseudonym(keys, owner) for owner in owners]
    assert names == [await pseudonym(keys, owner) for owner in owners]
    names += [await pseudonym(Keyring.generate(), owner) for owner in owners]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[0-9a-f]{64}", name) for name in names)


async def test_it_stays_when_the_keys_are_rotated(tmp_path: Any) -> None:
    """A newer master key changes nothing for the provider."""
    keys = Keyring.create_file(tmp_path / "keys")
    before = await pseudonym(keys, Owner(None, "ana"))
    keys.add()
    assert await pseudonym(keys, Owner(None, "ana")) == before


async def test_every_request_of_a_provider_carries_it(url: str) -> None:
    """Whole or streamed, in a session, one that is begun and a passing one: the owner's own, always the same."""
    async with opened(url) as house:
        await (await house.ana.start()).send("question")
        await (await house.ana.begin()).send("question")
        async with house.ana.passing().stream("question") as stream:
            _ = [text async for text in stream]
        await (await house.ben.start()).send("question")
        told = [[request.options[name] for name in FIELDS] for request in house.provider.requests]
        assert told[0] == told[1] == told[2] != told[3]
        assert len({name for names in told for name in names}) == 2


async def test_a_caller_cannot_say_who_it_is_for() -> None:
    """Values of a caller's own, `user` among them, are not passed on; other options are."""
    async with opened("memory://") as house:
        session = await house.ana.start()
        forged = dict.fromkeys((*FIELDS, "user"), "ben")
        await session.send("question", options={**forged, "temperature": 0.5})
        (request,) = house.provider.requests
        assert "ben" not in request.options.values()
        assert request.options["temperature"] == 0.5
        assert request.options.keys() == {*FIELDS, "temperature"}


@pytest.mark.parametrize(
    ("profile", "fields"),
    [
        ("openai", {"safety_identifier", "prompt_cache_key"}),
        ("vllm", {"cache_salt"}),
        ("deepseek", set()),
        ("anthropic", {"metadata"}),
    ],
)
async def test_what_goes_over_the_wire(upstream: Upstream, profile: str, fields: set[str]) -> None:
    """Each API is told in the fields that it knows, and in no others."""
    upstream.replies = [http("200 OK", json.dumps(MESSAGE).encode()) if profile == "anthropic" else OK]
    options: dict[str, Any] = {"base_url": upstream.url, "model": "m"}
    provider: Provider = (
        Anthropic(api_key="sk-ant-0123", **options)
        if profile == "anthropic"
        else OpenAICompatible(profile, api_key=KEY, **options)
    )
    async with opened("memory://", provider=provider) as house:
        await (await house.ana.start()).send("question", options={"user": "ben", "safety_identifier": "ben"})
        name = await pseudonym(house.cloister.vault.keys, Owner(None, "ana"))
        (_, _, body) = upstream.requests[0]
        told = {"user_id": name} if profile == "anthropic" else name
        known = {*FIELDS, "metadata", "user"}
        assert {field: body[field] for field in known & body.keys()} == dict.fromkeys(fields, told)
    await provider.close()


async def test_it_costs_no_round_trip_and_no_room() -> None:
    """The window of a turn is as large as without it."""
    parrot = Parrot()
    async with opened("memory://", provider=parrot) as house:
        session = await house.ana.start()
        async with session.turn("question") as turn:
            tokens = turn.tokens
            await turn.finish("You said: question")
        other = await house.ana.start()
        reply = await other.send("question")
        assert reply.usage.input_tokens == tokens
