"""What any provider must do, as tests."""

from __future__ import annotations

from typing import Any

from cloister import wire
from cloister.providers.base import Provider, Request


class ProviderConformance:
    """What any provider must do. Give a ``provider`` fixture."""

    async def test_answers_whole(self, provider: Provider) -> None:
        """A whole answer can be read, and is text."""
        answer = wire.read(await provider.complete(Request([{"role": "user", "content": "Say something."}])))
        assert answer.text

    async def test_streams_with_an_end(self, provider: Provider) -> None:
        """A streamed answer can be read to its finish marker."""
        reader = wire.Reader()
        async for chunk in provider.stream(Request([{"role": "user", "content": "Say something."}])):
            reader.feed(chunk)
        assert reader.finish().text

    async def test_a_stream_can_be_left(self, provider: Provider) -> None:
        """A stream that is closed before its end lets go of its call, and the next one is its own."""
        stream: Any = provider.stream(Request([{"role": "user", "content": "Say something long."}]))
        await anext(stream)
        await stream.aclose()
        answer = wire.read(await provider.complete(Request([{"role": "user", "content": "Say something else."}])))
        assert answer.text

    async def test_names_itself(self, provider: Provider) -> None:
        """A provider says what it is and which model it asks, and shows no key."""
        assert provider.name
        assert provider.model
        assert "key" not in repr(provider).lower() or "…" in repr(provider) or "***" in repr(provider)
