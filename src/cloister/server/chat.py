"""Chat completions, in a session of ours or without one; and the models that may be named.

With the header ``Cloister-Session`` only what is new is sent: the history is ours. Without it the client sends all of
it, and nothing is stored.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Mapping
from typing import Annotated, Any, Literal

import msgspec

from cloister import wire
from cloister.model import Reply, Usage
from cloister.server import said, turns
from cloister.server.door import sse
from cloister.server.refusals import invalid, unsupported
from cloister.server.routes import Answer, Call, Route, Stream
from cloister.server.shapes import Body, Metadata
from cloister.server.streams import told
from cloister.session import Session

Penalty = Annotated[float, msgspec.Meta(ge=-2, le=2)]
Whole = Annotated[int, msgspec.Meta(ge=1, le=1 << 31)]
Stops = Annotated[list[str], msgspec.Meta(max_length=16)]


class StreamOptions(Body):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class NewCompletion(Body):
    messages: Annotated[list[said.Message], msgspec.Meta(min_length=1)]
    model: turns.Model | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    max_tokens: Whole | None = None
    max_completion_tokens: Whole | None = None
    stop: str | Stops | None = None
    seed: Annotated[int, msgspec.Meta(ge=-(1 << 63), le=(1 << 63) - 1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: dict[str, Annotated[float, msgspec.Meta(ge=-100, le=100)]] | None = None
    tools: list[said.ToolDefinition] | None = None
    tool_choice: said.ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: said.ResponseFormat | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    verbosity: Literal["low", "medium", "high"] | None = None
    service_tier: Literal["auto", "default", "flex", "scale", "priority", "fast"] | None = None
    metadata: Metadata | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    # What this server does not offer; taken only at the value that asks for nothing.
    n: int | None = None
    store: bool | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    modalities: list[str] | None = None
    audio: Any = None
    prediction: Any = None
    functions: Any = None
    function_call: Any = None
    web_search_options: Any = None
    moderation: Any = None
    background: bool | None = None
    prompt_cache_retention: Any = None
    prompt_cache_options: Any = None


_NOTHING: tuple[tuple[str, tuple[Any, ...], str], ...] = (
    ("n", (1,), "more than one choice"),
    ("store", (False,), "stored chat completions; use a conversation, or the header Cloister-Session"),
    ("logprobs", (False,), "log probabilities"),
    ("top_logprobs", (0,), "log probabilities"),
    ("modalities", (["text"],), "answers other than text"),
    ("audio", (), "audio"),
    ("prediction", (), "predicted outputs"),
    ("functions", (), "functions; use tools"),
    ("function_call", (), "function_call; use tool_choice"),
    ("web_search_options", (), "tools that run at the provider"),
    ("moderation", (), "the provider's moderation"),
    ("background", (False,), "answers in the background"),
    ("prompt_cache_retention", (), "a say in the provider's cache"),
    ("prompt_cache_options", (), "a say in the provider's cache"),
)
_FORWARDED = (
    "temperature",
    "top_p",
    "max_tokens",
    "max_completion_tokens",
    "stop",
    "seed",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "parallel_tool_calls",
    "reasoning_effort",
    "verbosity",
)
_BUILT = ("tools", "tool_choice", "response_format")


class PromptDetails(msgspec.Struct):
    cached_tokens: int = 0
    cache_write_tokens: int = 0


class CompletionDetails(msgspec.Struct):
    reasoning_tokens: int = 0


class CompletionUsage(msgspec.Struct, kw_only=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails


class CompletionMessage(msgspec.Struct, kw_only=True):
    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: str | None = None
    annotations: list[Any] = []
    tool_calls: list[dict[str, Any]] | msgspec.UnsetType = msgspec.UNSET


class Choice(msgspec.Struct, kw_only=True):
    index: int = 0
    message: CompletionMessage
    finish_reason: str
    logprobs: None = None


class Completion(msgspec.Struct, kw_only=True):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: CompletionUsage


async def create(call: Call, body: NewCompletion) -> Answer | Stream:
    """Answer messages."""
    _refuse_unoffered(body)
    messages = said.messages(call, body.messages)
    system, content = said.led(messages)
    question = turns.Question(content, body.model, _options(body), system)
    session, question.kept = await turns.session_for(call, metadata=body.metadata)
    if body.stream:
        return _streamed(call, body, question, session)
    reply = await turns.ask(call, session, question)
    headers = turns.headers(reply) if question.kept else {}
    return Answer(completed(call, body.model, reply), headers=headers, written=question.delivered)


def _refuse_unoffered(body: NewCompletion) -> None:
    for name, harmless, what in _NOTHING:
        value = getattr(body, name)
        if value is not None and value not in harmless:
            raise unsupported(what, name)
    if body.stream_options is not None and not body.stream:
        raise invalid("stream_options go with stream", "stream_options")


def _options(body: NewCompletion) -> dict[str, Any]:
    options = {name: value for name in _FORWARDED if (value := getattr(body, name)) is not None}
    options.update({name: msgspec.to_builtins(value) for name in _BUILT if (value := getattr(body, name)) is not None})
    if not options.get("tools", True):
        del options["tools"]
    if body.service_tier not in (None, "auto"):
        options["service_tier"] = body.service_tier
    return options


# --- answers ----------------------------------------------------------------------------------------------------------


def completed(call: Call, model: str | None, reply: Reply[Session]) -> Completion:
    """Give a reply as a ChatCompletion."""
    extra = (reply.items[-1].extra if reply.items else None) or {}
    refused = not reply.blocked and bool(reply.text) and extra.get("refusal") == reply.text
    message = CompletionMessage(
        content=None if refused or (reply.tool_calls and not reply.text) else reply.text,
        refusal=reply.text if refused else None,
        tool_calls=list(reply.tool_calls) or msgspec.UNSET,
    )
    return Completion(
        id=_id(call),
        created=int(time.time()),
        model=reply.model or model or "",
        choices=[Choice(message=message, finish_reason=_finish(reply))],
        usage=usage_of(reply.usage),
    )


def _id(call: Call) -> str:
    return "chatcmpl-" + call.request_id.removeprefix("req_")


def _finish(reply: Reply[Session]) -> str:
    return "content_filter" if reply.blocked else reply.finish_reason or "stop"


def usage_of(usage: Usage) -> CompletionUsage:
    """Give what a turn has used in the words of this API."""
    return CompletionUsage(
        prompt_tokens=usage.input_tokens,
        completion_tokens=usage.output_tokens,
        total_tokens=usage.total_tokens,
        prompt_tokens_details=PromptDetails(usage.cached_tokens, usage.cache_write_tokens),
        completion_tokens_details=CompletionDetails(usage.reasoning_tokens),
    )


def _streamed(call: Call, body: NewCompletion, question: turns.Question, session: Session) -> Stream:
    where: dict[str, str] | None = {} if question.kept else None
    pieces = _chunks(call, body, question, session, where)
    return Stream(told(pieces, call.request_id, "openai"), lambda: where or {}, question.delivered)


async def _chunks(
    call: Call, body: NewCompletion, question: turns.Question, session: Session, where: dict[str, str] | None
) -> AsyncGenerator[bytes, None]:
    told_usage = body.stream_options is not None and bool(body.stream_options.include_usage)
    frame: dict[str, Any] = {
        "id": _id(call),
        "object": "chat.completion.chunk",
        "created": int(time.time()),
        "model": body.model or call.model or "",
    }
    if told_usage:
        frame["usage"] = None

    def chunk(delta: Mapping[str, Any], finish: str | None = None) -> bytes:
        return sse({**frame, "choices": [{"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}]})

    begun = chunk({"role": "assistant", "content": "", "refusal": None})
    async with turns.stream(call, session, question) as stream:
        async for text in stream:
            if not text:  # an answer that is given again, and called tools alone
                continue
            if begun and where is not None:
                where.update(turns.headers_of(call, stream))
            yield begun + chunk({"refusal" if isinstance(text, wire.Refusal) else "content": str(text)})
            begun = b""
    reply = turns.had(question, stream.reply)
    if begun and where is not None:
        where.update(turns.headers(reply))
    if where is not None:
        frame.update(turns.carried(call, reply, where))
    for number, one in enumerate(reply.tool_calls):
        begun += chunk({"tool_calls": [{"index": number, **one}]})
    yield begun + chunk({}, _finish(reply))
    if told_usage:
        yield sse({**frame, "choices": [], "usage": usage_of(reply.usage)})
    yield b"data: [DONE]\n\n"


# --- models -----------------------------------------------------------------------------------------------------------


class Model(msgspec.Struct, kw_only=True):
    """Be a model, as both APIs describe one."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "cloister"
    type: Literal["model"] = "model"
    display_name: str
    created_at: str = "1970-01-01T00:00:00Z"


class Models(msgspec.Struct, kw_only=True):
    object: Literal["list"] = "list"
    data: list[Model]
    has_more: bool = False
    first_id: str | None
    last_id: str | None


async def models(call: Call) -> Models:
    """List the models that may be named."""
    listed = [Model(id=name, display_name=name) for name in _offered(call)]
    return Models(data=listed, first_id=listed[0].id if listed else None, last_id=listed[-1].id if listed else None)


async def model(call: Call) -> Model:
    """Describe a model."""
    name = call.path["model"]
    if name not in _offered(call):
        raise turns.no_model()
    return Model(id=name, display_name=name)


def _offered(call: Call) -> tuple[str, ...]:
    return call.models or ((call.model,) if call.model else ())


ROUTES = (
    Route(
        "POST",
        "/v1/chat/completions",
        create,
        "Answer messages, in a session or without one",
        body=NewCompletion,
        answer=Completion,
        waits=True,
        streams=True,
        named=True,
    ),
    Route("GET", "/v1/models", models, "List the models that may be named", answer=Models, owned=False),
    Route("GET", "/v1/models/{model:path}", model, "Describe a model", answer=Model, owned=False),
)
