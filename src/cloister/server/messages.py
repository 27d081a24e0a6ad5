"""Anthropic's Messages, in a session of ours or without one, as chat completions are."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from functools import partial
from typing import Annotated, Any, Literal

import msgspec

from cloister import looking, window, wire
from cloister.model import Item, Reply, Usage
from cloister.server import blocks, said, turns
from cloister.server.door import sse
from cloister.server.refusals import invalid, unsupported
from cloister.server.routes import Answer, Call, Route, Stream
from cloister.server.shapes import Body, Query
from cloister.server.streams import told
from cloister.session import Session
from cloister.stream import ReplyStream

Part = Annotated[float, msgspec.Meta(ge=0, le=1)]
Whole = Annotated[int, msgspec.Meta(ge=1, le=1 << 31)]


class Beta(Query):
    """Be what the SDK's beta calls say; what they add to the body is not taken."""

    beta: bool = False


class Metadata(Body):
    user_id: Annotated[str, msgspec.Meta(max_length=512)] | None = None


class JsonOutput(Body, tag_field="type", tag="json_schema"):
    schema: dict[str, Any]


class OutputConfig(Body):
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: JsonOutput | None = None


class Thinking(Body, omit_defaults=True):
    type: Literal["enabled", "disabled", "adaptive", "between_tools"]
    budget_tokens: Whole | None = None
    display: Literal["summarized", "omitted"] | None = None


class Counted(Body):
    """Be what counts: everything that a model would read."""

    messages: Annotated[list[blocks.Message], msgspec.Meta(min_length=1)]
    model: turns.Model | None = None
    system: str | list[blocks.TextBlock] | None = None
    tools: list[blocks.ToolDefinition] | None = None
    tool_choice: blocks.ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    cache_control: Any = None
    # What this server does not offer.
    mcp_servers: Any = None
    context_management: Any = None
    speed: Literal["standard", "fast"] | None = None
    user_profile_id: Any = None
    workspace_id: Any = None


class NewMessage(Counted, kw_only=True):
    max_tokens: Whole
    stream: bool | None = None
    temperature: Part | None = None
    top_p: Part | None = None
    top_k: Whole | None = None
    stop_sequences: list[str] | None = None
    metadata: Metadata | None = None
    service_tier: Literal["auto", "standard_only"] | None = None
    container: Any = None
    diagnostics: Any = None
    inference_geo: Any = None


_UNOFFERED = {
    "mcp_servers": "MCP servers that the provider asks",
    "context_management": "the provider's own management of the context",
    "user_profile_id": "profiles of users at the provider",
    "workspace_id": "workspaces of the provider",
    "container": "containers",
    "diagnostics": "diagnostics",
    "inference_geo": "a say in where the model runs",
}
_FORWARDED = ("max_tokens", "temperature", "top_p", "top_k")


class OutputDetails(msgspec.Struct):
    thinking_tokens: int = 0


class MessageUsage(msgspec.Struct, kw_only=True):
    input_tokens: int
    output_tokens: int
    cache_creation_input_tokens: int = 0
    cache_read_input_tokens: int = 0
    output_tokens_details: OutputDetails | None = None


class Message(msgspec.Struct, kw_only=True):
    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    model: str
    content: list[dict[str, Any]]
    stop_reason: str | None
    stop_sequence: str | None = None
    usage: MessageUsage


class Count(msgspec.Struct):
    input_tokens: int


async def create(call: Call, body: NewMessage) -> Answer | Stream:
    """Answer messages."""
    system, messages = _read(call, body)
    question = turns.Question(messages, body.model, _options(body), system)
    session, question.kept = await turns.session_for(call)
    if body.stream:
        return _streamed(call, body, question, session)
    reply = await turns.ask(call, session, question)
    headers = turns.headers(reply) if question.kept else {}
    return Answer(_message(call, body, reply), headers=headers, written=question.delivered)


async def count(call: Call, body: Counted) -> Count:
    """Count what messages would cost, by this server's own count, which is never under."""
    system, messages = _read(call, body)
    model = turns.named(call, body.model) or call.model
    options = {"tools": _tools(body)} if body.tools else {}
    look = partial(_tokens, system, messages, options, model)
    return Count(await looking.beside(call.user.owner, len(call.raw), look, begins=True))


def _tokens(system: str | None, messages: list[dict[str, Any]], options: dict[str, Any], model: str | None) -> int:
    counter = window.counter_for(model)
    items = [*([Item("system", system)] if system else []), *[wire.item(message) for message in messages]]
    tokens = sum([window.item_tokens(item, counter) for item in items])
    return tokens + window.options_tokens(options, counter) + window.PRIMING_TOKENS


def _read(call: Call, body: Counted) -> tuple[str | None, list[dict[str, Any]]]:
    """Give system text and messages of the chat format, if all that the body asks for is offered and allowed."""
    for name, what in _UNOFFERED.items():
        if getattr(body, name, None) is not None:
            raise unsupported(what, name)
    if body.speed == "fast":
        raise unsupported("other speeds", "speed")
    if isinstance(body, NewMessage) and body.service_tier == "standard_only":
        raise unsupported("a say in the provider's service tier", "service_tier")
    call.bound_parts(body.messages, [message.content for message in body.messages], "messages")
    messages: list[dict[str, Any]] = []
    for number, message in enumerate(body.messages):
        where = f"messages[{number}]"
        for one in blocks.chat(message, where):
            said.allowed(call, one["role"], where)
            said.checked(one, where)
            messages.append(one)
    call.bound(messages, "messages")  # results of tools have parts within parts
    system = None if body.system is None else blocks.text_of(body.system)
    return turns.instructed(call, system, "system"), messages


def _tools(body: Counted) -> list[dict[str, Any]]:
    return [tool.plain(f"tools[{number}]") for number, tool in enumerate(body.tools or ())]


def _options(body: NewMessage) -> dict[str, Any]:
    options = {name: value for name in _FORWARDED if (value := getattr(body, name)) is not None}
    if body.tools:
        options["tools"] = _tools(body)
        if body.tool_choice is not None:
            options.update(body.tool_choice.options())
    if body.stop_sequences:
        options["stop"] = body.stop_sequences
    if body.thinking is not None and body.thinking.type != "disabled":
        if body.thinking.type == "enabled" and body.thinking.budget_tokens is None:
            raise invalid("thinking that is enabled needs its budget_tokens", "thinking")
        options["thinking"] = msgspec.to_builtins(body.thinking)
    if body.output_config is not None:
        options.update(_output(body.output_config))
    return options


def _output(config: OutputConfig) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if config.effort is not None:
        options["reasoning_effort"] = config.effort
    if config.format is not None:
        schema = {"name": "answer", "schema": config.format.schema, "strict": True}
        options["response_format"] = {"type": "json_schema", "json_schema": schema}
    return options


# --- answers ----------------------------------------------------------------------------------------------------------


def _message(call: Call, body: NewMessage, reply: Reply[Session]) -> Message:
    return Message(
        id=_id(call),
        model=reply.model or body.model or "",
        content=blocks.answered(reply),
        stop_reason=blocks.stop_reason(reply),
        usage=usage_of(reply.usage),
    )


def _id(call: Call) -> str:
    return "msg_" + call.request_id.removeprefix("req_")


def usage_of(usage: Usage) -> MessageUsage:
    """Give what a turn has used in the words of this API, which counts what was cached apart."""
    return MessageUsage(
        input_tokens=max(usage.input_tokens - usage.cached_tokens - usage.cache_write_tokens, 0),
        output_tokens=usage.output_tokens,
        cache_creation_input_tokens=usage.cache_write_tokens,
        cache_read_input_tokens=usage.cached_tokens,
        output_tokens_details=OutputDetails(usage.reasoning_tokens),
    )


def _streamed(call: Call, body: NewMessage, question: turns.Question, session: Session) -> Stream:
    where: dict[str, str] | None = {} if question.kept else None
    pieces = _events(call, body, question, session, where)
    return Stream(told(pieces, call.request_id, "anthropic"), lambda: where or {}, question.delivered)


def _tokens_of(stream: ReplyStream[Session]) -> int:
    """Give what was sent to the model; of a turn that was taken before, what that came to."""
    return stream.reply.usage.input_tokens if stream.turn.repeated else stream.turn.tokens


def _event(kind: str, **fields: Any) -> bytes:
    return sse({"type": kind, **fields}, kind)


async def _events(
    call: Call, body: NewMessage, question: turns.Question, session: Session, where: dict[str, str] | None
) -> AsyncGenerator[bytes, None]:
    begun = index = 0
    async with turns.stream(call, session, question) as stream:
        async for text in stream:
            if not text:  # an answer that is given again, and called tools alone
                continue
            head = b""
            if not begun:
                if where is not None:
                    where.update(turns.headers_of(call, stream))
                head = _start(call, body, _tokens_of(stream)) + _open(0, {"type": "text", "text": ""})
                begun = 1
            yield head + _delta(0, {"type": "text_delta", "text": str(text)})
    reply = turns.had(question, stream.reply)
    rest = b""
    if begun:
        rest, index = _event("content_block_stop", index=0), 1
    else:
        if where is not None:
            where.update(turns.headers(reply))
        rest = _start(call, body, reply.usage.input_tokens)
    # What the model thought comes last: it is known to be free of other users' details once all is.
    others = [block for block in blocks.answered(reply) if not (begun and block["type"] == "text")]
    for number, block in enumerate(others, index):
        rest += _whole(number, block)
    delta = {"stop_reason": blocks.stop_reason(reply), "stop_sequence": None}
    token = {} if where is None else turns.carried(call, reply, where)
    yield rest + _event("message_delta", delta=delta, usage=usage_of(reply.usage), **token) + _event("message_stop")


def _start(call: Call, body: NewMessage, tokens: int) -> bytes:
    usage = MessageUsage(input_tokens=tokens, output_tokens=0)
    named = body.model or call.model or ""
    message = Message(id=_id(call), model=named, content=[], stop_reason=None, usage=usage)
    return _event("message_start", message=message) + _event("ping")


def _open(index: int, block: dict[str, Any]) -> bytes:
    return _event("content_block_start", index=index, content_block=block)


def _delta(index: int, delta: dict[str, Any]) -> bytes:
    return _event("content_block_delta", index=index, delta=delta)


def _whole(index: int, block: dict[str, Any]) -> bytes:
    """Give the events of a block that is known from its beginning to its end."""
    events = b""
    match block["type"]:
        case "thinking":
            events += _open(index, {"type": "thinking", "thinking": "", "signature": ""})
            events += _delta(index, {"type": "thinking_delta", "thinking": block.get("thinking", "")})
            events += _delta(index, {"type": "signature_delta", "signature": block.get("signature", "")})
        case "tool_use":
            events += _open(index, {**block, "input": {}})
            given = msgspec.json.encode(block["input"]).decode()
            events += _delta(index, {"type": "input_json_delta", "partial_json": given})
        case _:
            events += _open(index, block)
    return events + _event("content_block_stop", index=index)


ROUTES = (
    Route(
        "POST",
        "/v1/messages",
        create,
        "Answer Anthropic messages, in a session or without one",
        body=NewMessage,
        query=Beta,
        answer=Message,
        waits=True,
        streams=True,
        named=True,
        style="anthropic",
    ),
    Route(
        "POST",
        "/v1/messages/count_tokens",
        count,
        "Count the tokens of Anthropic messages",
        body=Counted,
        query=Beta,
        answer=Count,
        style="anthropic",
    ),
)
