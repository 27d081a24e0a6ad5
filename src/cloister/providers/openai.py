"""Everyone who speaks the OpenAI chat format: OpenAI, HolySheep, DeepSeek, vLLM, Ollama, and any other by address."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

from cloister import wire
from cloister.errors import ConfigurationError, OptionRefused, ProviderError
from cloister.providers import http
from cloister.providers.base import Request
from cloister.providers.http import Endpoint, Key, Retries, Sleep, Timeouts, check_url, patience

OPTIONS = frozenset(
    [
        "temperature",
        "top_p",
        "max_tokens",
        "max_completion_tokens",
        "stop",
        "seed",
        "presence_penalty",
        "frequency_penalty",
        "logit_bias",
        "tools",
        "tool_choice",
        "parallel_tool_calls",
        "response_format",
        "reasoning_effort",
        "user",
    ]
)
# Asked for by cloister for every provider; left out where the API does not know it.
_PSEUDONYMS = frozenset({"safety_identifier", "prompt_cache_key", "cache_salt"})


@dataclass(frozen=True, slots=True)
class Profile:
    """Be what is known about a service: its address, its key, a model that it offered on the day ``as_of``."""

    base_url: str
    model: str
    as_of: str
    variable: str = ""
    prefix: str = ""
    knows: frozenset[str] = frozenset()
    """Options beyond those of every service."""
    always: tuple[tuple[str, Any], ...] = ()


PROFILES = {
    "holysheep": Profile(
        "https://api.holysheep.ai/v1", "deepseek-chat", "2026-11-20", variable="HOLYSHEEP_API_KEY", prefix="hs_"
    ),
    "openai": Profile(
        "https://api.openai.com/v1",
        "gpt-4.1",
        "2026-11-20",
        variable="OPENAI_API_KEY",
        prefix="sk-",
        knows=frozenset({"safety_identifier", "prompt_cache_key", "service_tier", "verbosity"}),
        always=(("store", False),),
    ),
    "deepseek": Profile(
        "https://api.deepseek.com/v1", "deepseek-chat", "2026-11-20", variable="DEEPSEEK_API_KEY", prefix="sk-"
    ),
    "vllm": Profile(
        "http://localhost:8000/v1",
        "Qwen/Qwen3-8B",
        "2026-11-20",
        knows=frozenset({"cache_salt", "top_k", "min_p", "repetition_penalty", "chat_template_kwargs"}),
    ),
    "ollama": Profile("http://localhost:11434/v1", "llama3.2", "2026-11-20"),
}


class OpenAICompatible:
    """Answer through an endpoint of the OpenAI chat format.

    Either *profile* names a known service, which gives the address, a model and the rules for keys, or *base_url* and
    *model* do; then the key has no form of its own. A *base_url* beside a profile goes before its address. *timeout*
    bounds a call in all; `Timeouts` says more. *check_key* ``=False`` lets a missing or unusual key pass, *allow_http*
    one that would travel unencrypted. Redirects, proxies and ``.netrc`` of the environment are not followed. Raises
    `ConfigurationError`.
    """

    def __init__(
        self,
        profile: str | None = None,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        model: str | None = None,
        timeout: timedelta | float | Timeouts = Timeouts(),  # noqa: B008 (immutable)
        retries: Retries = Retries(),  # noqa: B008 (immutable)
        check_key: bool = True,
        allow_http: bool = False,
        sleep: Sleep | None = None,
    ) -> None:
        api_key = key = Key(api_key) if api_key else None  # not even a traceback with locals shows it
        self.name, self.model = profile or "provider", model or ""
        known = _profile(profile, base_url, model)
        self.model = model or known.model
        self._profile = known
        variable = known.variable or "api_key"
        ours = base_url is None  # somebody else's address may have keys of any form, or none
        prefix, required = (known.prefix, bool(known.variable)) if ours else ("", False)
        http.check_key(key, variable=variable, prefix=prefix, required=required, check=check_key)
        url = check_url(base_url or known.base_url, key=key, allow_http=allow_http)
        self.name = profile or urlsplit(url).hostname or self.name
        headers = {"authorization": Key(f"Bearer {key}")} if key else {}
        endpoint = Endpoint(self.name, url, variable, key, headers, patience(timeout), retries, sleep)
        from cloister.providers.client import Client  # imports aiohttp, which costs more than all of cloister

        self._client = Client(endpoint)

    def __repr__(self) -> str:
        return f"OpenAICompatible({self.name!r}, model={self.model!r})"

    async def complete(self, request: Request) -> dict[str, Any]:
        """Return a chat.completion. Raises `ProviderError`, and `ConfigurationError` for an unknown option."""
        return await self._client.post("/chat/completions", self._body(request))

    async def stream(self, request: Request) -> AsyncGenerator[dict[str, Any], None]:
        """Yield chat.completion.chunks, with usage at the end. Raises as `complete` does."""
        body = {**self._body(request), "stream": True, "stream_options": {"include_usage": True}}
        finished = False
        async with aclosing(self._client.stream("/chat/completions", body)) as chunks:
            async for chunk in chunks:
                choices = chunk.get("choices")
                if not isinstance(choices, list):
                    raise ProviderError(f"{self.name} gave a malformed answer: a chunk without choices")
                finished = finished or any(isinstance(one, dict) and one.get("finish_reason") for one in choices)
                yield chunk
        if not finished:
            raise ProviderError(f"{self.name} cut off its answer: the stream ended without its finish marker")

    async def close(self) -> None:
        """Close all connections."""
        await self._client.close()

    def _body(self, request: Request) -> dict[str, Any]:
        options = {name: value for name, value in request.options.items() if value is not None}
        if options.pop("n", 1) != 1:
            raise OptionRefused("the option n must be 1: a turn has one answer", "n")
        unknown = options.keys() - OPTIONS - _PSEUDONYMS - self._profile.knows
        if unknown:
            known = ", ".join(sorted(OPTIONS | self._profile.knows))
            name = sorted(unknown)[0]
            raise OptionRefused(f"unknown option {name} for {self.name}; it takes {known}", name)
        sent = {name: value for name, value in options.items() if name in OPTIONS | self._profile.knows}
        return {
            "model": request.model or self.model,
            "messages": [_plain(message) for message in request.messages],
            **sent,
            **dict(self._profile.always),
        }


def _plain(message: dict[str, Any]) -> dict[str, Any]:
    if wire.CARRIED[0] not in message and wire.CARRIED[1] not in message:
        return message
    return {name: value for name, value in message.items() if name not in wire.CARRIED}


def _profile(name: str | None, base_url: str | None, model: str | None) -> Profile:
    if name is None:
        if not base_url or not model:
            raise ConfigurationError(f"give base_url and model, or a profile: one of {', '.join(PROFILES)}")
        return Profile(base_url, model, "")
    if name not in PROFILES:
        raise ConfigurationError(f"unknown profile; it must be one of {', '.join(PROFILES)}")
    return PROFILES[name]
