"""Read a whole answer, whoever gave it: text, or a response of one of the three formats."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cloister.errors import ProviderError
from cloister.model import Usage

# What each format calls the end of an answer, in the words of the chat format. Words that are missing here stand for
# an answer that was broken off (DeepSeek's "insufficient_system_resource", vLLM's "abort", Anthropic's "pause_turn").
_CHAT_ENDS = {
    "stop": "stop",
    "length": "length",
    "model_length": "length",
    "tool_calls": "tool_calls",
    "content_filter": "content_filter",
}
_RESPONSE_ENDS = {"max_output_tokens": "length", "content_filter": "content_filter"}
_ANTHROPIC_ENDS = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
# Traces of tools that the provider ran itself. The answer does not need them; anything else unknown is refused.
_RESPONSE_TRACES = {"web_search_call", "file_search_call", "code_interpreter_call", "mcp_list_tools", "mcp_call"}


_MOST_TOKENS = 1 << 40
"""What a call is believed to take: beyond any bill, and millions of it still add up to what a session can hold."""
_MODEL = re.compile(r"[A-Za-z0-9._:/@+-]{1,128}")


class Refusal(str):
    """Be text in which a model says that it will not answer; shown as any other, and told apart by its type."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """Be what a model said, in the words of the OpenAI chat format.

    ``text`` is the refusal where the model refused. ``finish_reason`` is ``stop``, ``length``, ``tool_calls`` or
    ``content_filter``. ``extra`` keeps what is needed to send the answer back faithfully: ``reasoning`` (text),
    ``refusal``, ``annotations``, ``thinking_blocks`` (Anthropic, with signatures), ``reasoning_items`` (Responses).
    Arguments of tool calls are the model's own text: models do write invalid JSON, and whoever runs the tool decides.
    """

    text: str = field(repr=False)
    tool_calls: tuple[dict[str, Any], ...] = field(default=(), repr=False)
    usage: Usage | None = None
    model: str | None = None
    finish_reason: str | None = None
    extra: dict[str, Any] | None = field(default=None, repr=False)

    @property
    def channels(self) -> dict[str, str]:
        """Give all that the model wrote, by the channels of `Reader`: what a check of the answer must look at."""
        extra = self.extra or {}
        refusal = extra.get("refusal", "")
        return {
            "text": "" if self.text == refusal else self.text,
            "reasoning": _reasoning(extra),
            "refusal": refusal,
            "tool": "".join(arguments(call) for call in self.tool_calls),
        }


def read(answer: object) -> Answer:
    """Read a whole answer: text, or an OpenAI ChatCompletion, OpenAI Response or Anthropic Message.

    The last three may be dicts or an SDK's objects. Lone surrogates become U+FFFD. Raises `ProviderError` for an
    answer that is malformed, incomplete, empty or an error, or that holds several choices.
    """
    if isinstance(answer, str):
        return whole(Answer(mend(answer), finish_reason="stop"))
    message = plain(answer)
    refuse_error(message)
    if "choices" in message:
        return completion(message)
    if "output" in message:
        return response(message)
    if message.get("type") == "message":
        return anthropic_message(message)
    raise ProviderError("the answer is of no known format (text, chat completion, Response, Anthropic Message)")


def completion(message: Mapping[str, Any]) -> Answer:
    """Read an OpenAI ChatCompletion."""
    choices = objects(message["choices"])
    if len(choices) != 1:
        raise ProviderError(f"the answer has {len(choices)} choices; ask for exactly one (n=1)")
    said = mapping(choices[0].get("message"))
    if said.get("function_call") or said.get("audio"):
        raise ProviderError("the answer holds a function_call or audio, which cloister does not carry; ask with tools")
    refusal = mend(string(said.get("refusal")))
    extra: dict[str, Any] = {
        "reasoning": mend(string(said.get("reasoning_content") or said.get("reasoning"))),
        "refusal": refusal,
        "annotations": said.get("annotations"),
    }
    return whole(
        Answer(
            mend(_content(said.get("content"))) or refusal,
            tuple(_chat_call(call) for call in objects(said.get("tool_calls") or [])),
            _chat_usage(message.get("usage")),
            model_name(message.get("model")),
            _end(choices[0].get("finish_reason"), _CHAT_ENDS),
            {key: value for key, value in extra.items() if value} or None,
        )
    )


def response(message: Mapping[str, Any]) -> Answer:
    """Read an OpenAI Response."""
    status = message.get("status")
    if status == "incomplete":
        end = _end(mapping(message.get("incomplete_details")).get("reason"), _RESPONSE_ENDS)
    elif status == "completed":
        end = "stop"
    else:
        raise ProviderError(f"the answer is not complete: its status is {word(status)}")
    text, refusal = "", ""
    calls: list[dict[str, Any]] = []
    reasoning: list[dict[str, Any]] = []
    for entry in objects(message["output"]):
        kind = entry.get("type")
        if kind == "message":
            for part in objects(entry.get("content")):
                text += mend(string(part.get("text")))
                refusal += mend(string(part.get("refusal")))
        elif kind in ("function_call", "custom_tool_call"):
            calls.append(_response_call(entry))
        elif kind == "reasoning":
            reasoning.append(_mended(entry))
        elif kind not in _RESPONSE_TRACES:
            raise ProviderError(f"the answer holds an item of type {word(kind)}, which cloister does not carry")
    extra: dict[str, Any] = {"refusal": refusal, "reasoning_items": reasoning}
    return whole(
        Answer(
            text or refusal,
            tuple(calls),
            _response_usage(message.get("usage")),
            model_name(message.get("model")),
            end,
            {key: value for key, value in extra.items() if value} or None,
        )
    )


def anthropic_message(message: Mapping[str, Any]) -> Answer:
    """Read an Anthropic Message. The input of a tool may be JSON text, as a stream gives it."""
    end = _end(message.get("stop_reason"), _ANTHROPIC_ENDS)
    text = ""
    calls: list[dict[str, Any]] = []
    thinking: list[dict[str, Any]] = []
    for block in objects(message.get("content")):
        kind = block.get("type")
        if kind == "text":
            text += mend(string(block.get("text")))
        elif kind == "tool_use":
            calls.append(_anthropic_call(block))
        elif kind in ("thinking", "redacted_thinking"):
            thinking.append(_mended(block))
        elif kind != "server_tool_use" and not str(kind).endswith("_tool_result"):
            raise ProviderError(f"the answer holds a block of type {word(kind)}, which cloister does not carry")
    extra: dict[str, Any] = {}
    if thinking:
        extra["thinking_blocks"] = thinking
    if end == "content_filter" and not text:
        text = extra["refusal"] = mend(string(mapping(message.get("stop_details")).get("explanation")))
    return whole(
        Answer(
            text,
            tuple(calls),
            _anthropic_usage(message.get("usage")),
            model_name(message.get("model")),
            end,
            extra or None,
        )
    )


def whole(answer: Answer) -> Answer:
    """Return *answer*, unless it is empty."""
    if answer.text or answer.tool_calls:
        if answer.tool_calls and answer.finish_reason == "stop":
            return Answer(answer.text, answer.tool_calls, answer.usage, answer.model, "tool_calls", answer.extra)
        return answer
    if answer.finish_reason == "length":
        raise ProviderError("the model used up its tokens before the first word of an answer; raise max_tokens")
    if answer.finish_reason == "content_filter":
        raise ProviderError("the provider's content filter withheld the answer")
    raise ProviderError("the answer is empty: it has neither text nor tool calls")


def plain(answer: object) -> Mapping[str, Any]:
    """Turn an SDK's object into a dict, without importing any SDK."""
    if isinstance(answer, Mapping):
        return answer
    dump = getattr(answer, "model_dump", None)
    dumped = dump(warnings=False) if callable(dump) else None
    if isinstance(dumped, Mapping):
        return dumped
    raise ProviderError(f"a {type(answer).__name__} is not an answer; give text, a dict or an SDK's response object")


def spent(answer: object) -> Usage:
    """Give what an answer says that it took, even one that `read` refuses."""
    if isinstance(answer, str):
        return Usage()
    message = plain(answer)
    usage = message.get("usage")
    if message.get("type") == "message":
        return _anthropic_usage(usage) or Usage()
    return (_chat_usage(usage) if "prompt_tokens" in mapping(usage) else _response_usage(usage)) or Usage()


def refuse_error(message: Mapping[str, Any]) -> None:
    """Raise if *message* is a provider's report of an error.

    Only its code or type is repeated: the text of an error may quote the prompt.
    """
    error = message.get("error")
    if error or message.get("type") == "error" or message.get("object") == "error":
        details = error if isinstance(error, Mapping) else message
        code = details.get("code") or details.get("type")
        raise ProviderError(f"the model reported an error: {word(code)}")


def mend(text: str) -> str:
    """Join halves of surrogate pairs, and put U+FFFD for a half without its other: it could not be stored."""
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def word(name: object) -> str:
    """Quote a word of somebody else's in an error, if it is one."""
    return name if isinstance(name, str) and re.fullmatch(r"[A-Za-z_.]{1,48}", name) else "unknown"


def string(value: object) -> str:
    """Return *value* if it is text, and nothing for None."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    raise ProviderError(f"the answer is malformed: a {type(value).__name__} stands where text belongs")


def mapping(value: object) -> Mapping[str, Any]:
    """Return *value* if it is an object, and an empty one for None."""
    if value is None:
        return {}
    if isinstance(value, Mapping):
        return value
    raise ProviderError(f"the answer is malformed: a {type(value).__name__} stands where an object belongs")


def objects(value: object) -> list[Mapping[str, Any]]:
    """Return *value* if it is a list of objects."""
    if isinstance(value, (list, tuple)):
        return [mapping(entry) for entry in value]
    raise ProviderError(f"the answer is malformed: a {type(value).__name__} stands where a list belongs")


def arguments(call: Mapping[str, Any]) -> str:
    """Return what a tool call says to its tool."""
    return str(call["custom"]["input"] if call["type"] == "custom" else call["function"]["arguments"])


def _content(value: object) -> str:
    if not isinstance(value, (list, tuple)):
        return string(value)
    text = ""
    for part in objects(value):
        if part.get("type") != "text":
            raise ProviderError(f"the answer holds a part of type {word(part.get('type'))}, not text")
        text += string(part.get("text"))
    return text


def _call(id: object, kind: str, name: object, said: str) -> dict[str, Any]:
    if not (isinstance(id, str) and id and isinstance(name, str) and name):
        raise ProviderError("the answer is malformed: a tool call has no id or no name")
    body = {"name": mend(name), "input" if kind == "custom" else "arguments": mend(said)}
    return {"id": mend(id), "type": kind, kind: body}


def _chat_call(call: Mapping[str, Any]) -> dict[str, Any]:
    if call.get("type") == "custom":
        custom = mapping(call.get("custom"))
        return _call(call.get("id"), "custom", custom.get("name"), string(custom.get("input")))
    function = mapping(call.get("function"))
    return _call(call.get("id"), "function", function.get("name"), _json(function.get("arguments")))


def _response_call(entry: Mapping[str, Any]) -> dict[str, Any]:
    if entry.get("type") == "custom_tool_call":
        return _call(entry.get("call_id"), "custom", entry.get("name"), string(entry.get("input")))
    return _call(entry.get("call_id"), "function", entry.get("name"), string(entry.get("arguments")))


def _anthropic_call(block: Mapping[str, Any]) -> dict[str, Any]:
    return _call(block.get("id"), "function", block.get("name"), _json(block.get("input")) or "{}")


def _json(value: object) -> str:
    """Return JSON text; some servers give the object itself."""
    if isinstance(value, Mapping):
        return json.dumps(value, ensure_ascii=False, default=str)
    return string(value)


def _mended(value: Any) -> Any:
    if isinstance(value, str):
        return mend(value)
    if isinstance(value, Mapping):
        return {mend(str(key)): _mended(entry) for key, entry in value.items() if entry is not None}
    if isinstance(value, (list, tuple)):
        return [_mended(entry) for entry in value]
    return value


def _reasoning(extra: Mapping[str, Any]) -> str:
    text: str = extra.get("reasoning", "")
    text += "".join(block.get("thinking", "") for block in extra.get("thinking_blocks", ()))
    for entry in extra.get("reasoning_items", ()):
        parts = [*entry.get("summary", ()), *entry.get("content", ())]
        text += "".join(part.get("text", "") for part in parts)
    return text


def _end(reason: object, ends: Mapping[str, str]) -> str:
    if isinstance(reason, str) and reason in ends:
        return ends[reason]
    if reason is None:
        raise ProviderError("the answer is not complete: it does not say why it ended")
    raise ProviderError(f"the model broke off its answer: {word(reason)}")


def model_name(model: object) -> str | None:
    """Give *model* back if it can be a model's name: it goes on record, where no text may hide in it."""
    return model if isinstance(model, str) and _MODEL.fullmatch(model) else None


def _number(details: Mapping[str, Any], *names: str) -> int:
    for name in names:
        value = details.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return min(value, _MOST_TOKENS)
    return 0


def _details(usage: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    details = usage.get(name)
    return details if isinstance(details, Mapping) else {}


def _chat_usage(usage: object) -> Usage | None:
    if not isinstance(usage, Mapping):
        return None
    read, wrote = _number(usage, "prompt_tokens"), _number(usage, "completion_tokens")
    details = _details(usage, "prompt_tokens_details")
    thought = _number(_details(usage, "completion_tokens_details"), "reasoning_tokens")
    # Some services leave what the model thought out of the completion, and count it in the total alone.
    unnamed = max(_number(usage, "total_tokens") - read - wrote, 0) if read else 0
    return _told(
        Usage(
            read,
            wrote + unnamed,
            _number(details, "cached_tokens") or _number(usage, "prompt_cache_hit_tokens", "cached_tokens"),
            max(thought, unnamed),
            usage.get("estimated") is True,  # the offline provider says so
            _number(details, "cache_write_tokens"),
        )
    )


def _response_usage(usage: object) -> Usage | None:
    if not isinstance(usage, Mapping):
        return None
    details = _details(usage, "input_tokens_details")
    return _told(
        Usage(
            _number(usage, "input_tokens"),
            _number(usage, "output_tokens"),
            _number(details, "cached_tokens"),
            _number(_details(usage, "output_tokens_details"), "reasoning_tokens"),
            cache_write_tokens=_number(details, "cache_write_tokens"),
        )
    )


def _anthropic_usage(usage: object) -> Usage | None:
    if not isinstance(usage, Mapping):
        return None
    cached, written = _number(usage, "cache_read_input_tokens"), _number(usage, "cache_creation_input_tokens")
    # Anthropic counts what it read from or wrote to its cache apart from the rest of the input.
    return _told(
        Usage(
            _number(usage, "input_tokens") + cached + written,
            _number(usage, "output_tokens"),
            cached,
            _number(_details(usage, "output_tokens_details"), "thinking_tokens", "reasoning_tokens"),
            cache_write_tokens=written,
        )
    )


def _told(usage: Usage) -> Usage | None:
    """Give *usage*, unless it says that the call took nothing: no call does, so the provider has not told."""
    return usage if usage.total_tokens else None
