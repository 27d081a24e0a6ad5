"""What a provider is: something that answers a list of messages, whole or streamed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Request:
    """Be what a provider is asked: messages of the OpenAI chat format, already fitted to the window.

    Messages of a conversation with Anthropic also carry its ``thinking_blocks``, signed, and ``is_error`` for results
    of tools (`cloister.wire.CARRIED`): send them to nobody else. ``model=None`` asks for the provider's own.
    ``options`` are those of the chat format (``temperature``, ``max_tokens``, ``tools`` …), and whom the request is
    for: ``safety_identifier``, ``prompt_cache_key`` and ``cache_salt`` are the owner's pseudonym, for a provider to
    send where its API knows them.
    """

    messages: list[dict[str, Any]] = field(repr=False)
    model: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


class Provider(Protocol):
    """Answers. What it gives back is anything that `cloister.wire` can read.

    ``complete`` gives a whole answer: text, or a response of the OpenAI chat, OpenAI Responses or Anthropic Messages
    format, as a dict or as an SDK's object. ``stream`` gives the chunks of one, or pieces of text; a stream of chunks
    must carry its format's finish marker, the end of the iterator is one only for text. Closing the iterator early
    cancels the call. Every failure is a `ProviderError`.
    """

    name: str
    model: str

    async def complete(self, request: Request) -> Any: ...

    def stream(self, request: Request) -> AsyncIterator[Any]: ...

    async def close(self) -> None: ...
