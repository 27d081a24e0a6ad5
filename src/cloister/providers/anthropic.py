"""Anthropic's Messages API, asked in the words of the OpenAI chat format."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from datetime import timedelta
from typing import Any

from cloister import wire
from cloister.errors import OptionRefused, ProviderError
from cloister.providers import http
from cloister.providers.base import Request
from cloister.providers.http import Endpoint, Key, Retries, Sleep, Timeouts, check_url, patience

VARIABLE = "ANTHROPIC_API_KEY"
PREFIX = "sk-ant-"
MODEL = "claude-sonnet-5-5"  # offered on 2026-11-20
MAX_TOKENS = 4096  # the API wants a bound, the chat format does not

_Option = dict[str, Any]


class Anthropic:
    """Answer through Anthropic's Messages API. Arguments are those of `OpenAICompatible`."""

    name = "anthropic"

    def __init__(
        self,
        *,
        api_key: str | None = None,
        model: str | None = None,
        base_url: str | None = None,
        timeout: timedelta | float | Timeouts = Timeouts(),  # noqa: B008 (immutable)
        retries: Retries = Retries(),  # noqa: B008 (immutable)
        check_key: bool = True,
        allow_http: bool = False,
        sleep: Sleep | None = None,
    ) -> None:
        api_key = key = Key(api_key) if api_key else None  # not even a traceback with locals shows it
        self.model = model or MODEL
        ours = base_url is None  # somebody else's address may have keys of any form, or none
        http.check_key(key, variable=VARIABLE, prefix=PREFIX if ours else "", required=ours, check=check_key)
        url = check_url(base_url or "https://api.anthropic.com", key=key, allow_http=allow_http)
        headers = {"anthropic-version": "2023-06-01", **({"x-api-key": key} if key else {})}
        endpoint = Endpoint(self.name, url, VARIABLE, key, headers, patience(timeout), retries, sleep, "/v1/models")
        from cloister.providers.client import Client  # imports aiohttp, which costs more than all of cloister

        self._client = Client(endpoint)

    def __repr__(self) -> str:
        return f"Anthropic(model={self.model!r})"

    async def complete(self, request: Request) -> dict[str, Any]:
        """Return a Message. Raises `ProviderError`, and `ConfigurationError` for an option that Anthropic lacks."""
        return await self._client.post("/v1/messages", self._body(request))

    async def stream(self, request: Request) -> AsyncGenerator[dict[str, Any], None]:
        """Yield Anthropic events. Raises as `complete` does."""
        finished = False
        async with aclosing(self._client.stream("/v1/messages", {**self._body(request), "stream": True})) as events:
            async for event in events:
                finished = finished or event.get("type") == "message_stop"
                yield event
        if not finished:
            raise ProviderError("anthropic cut off its answer: the stream ended without its finish marker")

    async def close(self) -> None:
        """Close all connections."""
        await self._client.close()

    def _body(self, request: Request) -> dict[str, Any]:
        try:
            messages = wire.anthropic(wire.item(message) for message in request.messages)
        except ValueError as error:  # a part of a kind that this format cannot carry
            raise OptionRefused(str(error), "messages") from None
        return {"model": request.model or self.model, **messages, **_options(request.options)}


def _options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Translate options of the chat format. What has no counterpart is refused, not dropped."""
    given = {name: value for name, value in options.items() if value is not None}
    sent: dict[str, Any] = {"max_tokens": MAX_TOKENS}
    for name, value in given.items():
        if name not in _TRANSLATED:
            known = ", ".join(sorted(_TRANSLATED))
            raise OptionRefused(f"unknown option {name} for anthropic; it takes {known}", name)
        for field, translated in _TRANSLATED[name](value).items():
            # Two options of the chat format lie in one of this.
            sent[field] = {**sent.get(field, {}), **translated} if field == "output_config" else translated
    if given.get("parallel_tool_calls") is False and sent.get("tool_choice", {}).get("type") != "none":
        sent["tool_choice"] = {**sent.get("tool_choice", {"type": "auto"}), "disable_parallel_tool_use": True}
    if "tools" not in sent:
        sent.pop("tool_choice", None)
    return sent


def _same(name: str) -> Callable[[Any], _Option]:
    return lambda value: {name: value}


def _nothing(value: Any) -> _Option:
    return {}


def _only(name: str, *plain: Any) -> Callable[[Any], _Option]:
    """Take an option only at a value that changes nothing."""

    def translate(value: Any) -> _Option:
        if value not in plain:
            raise OptionRefused(f"anthropic has nothing that corresponds to this value of {name}; leave it out", name)
        return {}

    return translate


def _tools(tools: list[Mapping[str, Any]]) -> _Option:
    translated = []
    for tool in tools:
        if tool.get("type") != "function":
            raise OptionRefused("anthropic takes tools of type function only", "tools")
        function = tool["function"]
        schema = function.get("parameters") or {"type": "object", "properties": {}}
        described = {"description": function["description"]} if function.get("description") else {}
        strict = {"strict": True} if function.get("strict") else {}
        translated.append({"name": function["name"], **described, "input_schema": schema, **strict})
    return {"tools": translated}


def _tool_choice(choice: Any) -> _Option:
    if isinstance(choice, Mapping):
        if choice.get("type") != "function":
            raise OptionRefused("anthropic takes a function as tool_choice, or a word", "tool_choice")
        return {"tool_choice": {"type": "tool", "name": choice["function"]["name"]}}
    words = {"auto": "auto", "none": "none", "required": "any"}
    if choice not in words:
        raise OptionRefused("tool_choice must be auto, none, required or a function", "tool_choice")
    return {"tool_choice": {"type": words[choice]}}


def _response_format(form: Mapping[str, Any]) -> _Option:
    if form.get("type") == "text":
        return {}
    schema = form.get("json_schema", {}).get("schema") if form.get("type") == "json_schema" else None
    if not isinstance(schema, Mapping):
        raise OptionRefused(
            "anthropic takes text and json_schema, with a schema, as response_format", "response_format"
        )
    return {"output_config": {"format": {"type": "json_schema", "schema": schema}}}


def _effort(effort: str) -> _Option:
    if effort not in _EFFORTS:
        raise OptionRefused(f"anthropic takes {', '.join(_EFFORTS)} as reasoning_effort", "reasoning_effort")
    return {"output_config": {"effort": effort}}


_EFFORTS = ("low", "medium", "high", "xhigh", "max")
_TRANSLATED: dict[str, Callable[[Any], _Option]] = {
    "temperature": _same("temperature"),
    "top_p": _same("top_p"),
    "top_k": _same("top_k"),
    "max_tokens": _same("max_tokens"),
    "max_completion_tokens": _same("max_tokens"),
    "stop": lambda stop: {"stop_sequences": [stop] if isinstance(stop, str) else list(stop)},
    "tools": _tools,
    "tool_choice": _tool_choice,
    "parallel_tool_calls": _nothing,  # together with tool_choice, in `_options`
    "response_format": _response_format,
    "reasoning_effort": _effort,
    "thinking": _same("thinking"),
    "n": _only("n", 1),
    "user": lambda user: {"metadata": {"user_id": user}},
    "safety_identifier": lambda user: {"metadata": {"user_id": user}},
    "prompt_cache_key": _nothing,
    "cache_salt": _nothing,
}
