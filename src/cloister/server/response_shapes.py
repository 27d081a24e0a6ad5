"""The bodies and answers of `/v1/responses`, in the API's words."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from cloister.server.shapes import Body, Given, Item, Metadata, Paging, Query

Name = Annotated[str, msgspec.Meta(max_length=256)]
Penalty = Annotated[float, msgspec.Meta(ge=-2, le=2)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Tools = Annotated[list[dict[str, Any]], msgspec.Meta(max_length=128)]
ToolChoice = Literal["none", "auto", "required"] | dict[str, Any]
Status = Literal["in_progress", "completed", "incomplete", "failed"]


class ConversationId(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    id: Name


class ReasoningAsked(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Say how much the model is to think."""

    effort: Annotated[str, msgspec.Meta(max_length=32)] | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None
    context: Literal["auto", "current_turn", "all_turns"] | None = None
    mode: Annotated[str, msgspec.Meta(max_length=32)] | None = None


class TextAsked(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Say what form the text is to have."""

    format: dict[str, Any] | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class StreamOptions(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    include_obfuscation: bool | None = None


class Asked(Body):
    """Be what a request about a response has in common with one that only counts it."""

    input: str | list[Given] | None = None
    model: Name | None = None
    instructions: str | None = None
    conversation: Name | ConversationId | None = None
    previous_response_id: Name | None = None
    tools: Tools | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    text: TextAsked | None = None
    reasoning: ReasoningAsked | None = None
    truncation: Literal["auto", "disabled"] | None = None


class NewResponse(Asked):
    """Ask for a response."""

    stream: bool | None = None
    stream_options: StreamOptions | None = None
    store: bool | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] | None = None
    top_p: Share | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    max_output_tokens: Annotated[int, msgspec.Meta(ge=1, le=1 << 31)] | None = None
    max_tool_calls: Annotated[int, msgspec.Meta(ge=0, le=1 << 31)] | None = None
    top_logprobs: Annotated[int, msgspec.Meta(ge=0, le=20)] | None = None
    include: Annotated[list[str], msgspec.Meta(max_length=32)] | None = None
    metadata: Metadata | None = None
    safety_identifier: Name | None = None
    user: Name | None = None
    prompt_cache_key: Name | None = None
    prompt_cache_options: dict[str, Any] | None = None
    prompt_cache_retention: str | None = None
    service_tier: str | None = None
    background: bool | None = None
    background_options: dict[str, Any] | None = None
    context_management: list[Any] | None = None
    prompt: dict[str, Any] | None = None
    moderation: dict[str, Any] | None = None
    image: dict[str, Any] | None = None
    access_programs: dict[str, Any] | None = None


class CountTokens(Asked):
    """Ask what a request would cost in the model's window."""

    personality: Annotated[str, msgspec.Meta(max_length=64)] | None = None


class Compaction(msgspec.Struct):
    """Ask for a conversation to be compacted, which this server does not do, whatever is sent."""


class Reading(Query):
    """Say how a response is to be given."""

    stream: bool = False
    starting_after: Annotated[int, msgspec.Meta(ge=0)] | None = None
    include: list[str] | None = None
    include_obfuscation: bool | None = None


class InputPaging(Paging):
    """Say which page of the input."""


class InputDetails(msgspec.Struct, kw_only=True):
    cached_tokens: int = 0
    cache_write_tokens: int = 0


class OutputDetails(msgspec.Struct, kw_only=True):
    reasoning_tokens: int = 0


class ResponseUsage(msgspec.Struct, kw_only=True):
    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class ResponseError(msgspec.Struct, kw_only=True):
    code: str
    message: str


class IncompleteDetails(msgspec.Struct, kw_only=True):
    reason: Literal["max_output_tokens", "content_filter"]


class ReasoningSaid(msgspec.Struct, kw_only=True):
    effort: str | None = None
    summary: str | None = None


class TextSaid(msgspec.Struct, kw_only=True):
    format: dict[str, Any]
    verbosity: str = "medium"


class Echo(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Be what a response repeats of its request; what is remembered of it, as far as it is not what it mostly is."""

    instructions: str | None = None
    metadata: dict[str, str] = {}
    tools: list[dict[str, Any]] = []
    tool_choice: str | dict[str, Any] = "auto"
    parallel_tool_calls: bool = True
    text: TextSaid = msgspec.field(default_factory=lambda: TextSaid(format={"type": "text"}))
    reasoning: ReasoningSaid = msgspec.field(default_factory=ReasoningSaid)
    truncation: str = "auto"
    temperature: float = 1.0
    top_p: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    top_logprobs: int = 0
    max_output_tokens: int | None = None
    max_tool_calls: int | None = None
    previous_response_id: str | None = None
    safety_identifier: str | None = None
    user: str | None = None
    prompt_cache_key: str | None = None
    service_tier: str = "default"


class Response(Echo, kw_only=True, omit_defaults=False):
    """Be a response, whole, as it is in the events of a stream and as it is given later."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    completed_at: int | None = None
    status: Status
    background: bool = False
    conversation: ConversationId | None = None
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    model: str
    output: list[Item] = []
    prompt: None = None
    prompt_cache_retention: None = None
    store: bool
    usage: ResponseUsage | None = None


class ResponseDeleted(msgspec.Struct, kw_only=True):
    id: str
    object: Literal["response.deleted"] = "response.deleted"
    deleted: bool = True


class InputTokens(msgspec.Struct, kw_only=True):
    object: Literal["response.input_tokens"] = "response.input_tokens"
    input_tokens: int
