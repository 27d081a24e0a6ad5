"""Put items into what models are asked, and messages into items."""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from cloister.model import API, Item, Role
from cloister.wire.answers import Answer, arguments

_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}
# Of what a client sent beside the content, only this is part of a chat message. The rest stays with us.
_CHAT_KEYS = ("name", "refusal", "audio")
CARRIED = ("thinking_blocks", "is_error")
"""What messages carry beside for the one format that has it, Anthropic's."""
_KNOWN = {"role", "content", "tool_calls", "tool_call_id", *_CHAT_KEYS, "function_call", "annotations"}
_MAX_DEPTH = 64
_SURROGATE = re.compile("[\ud800-\udfff]")
_PLACEHOLDER = re.compile(r"\[[A-Z]{2,12}~\w{8}~\w{4}\]")

Part = Mapping[str, Any]


def chat(items: Iterable[Item], *, carrying: bool = False) -> list[dict[str, Any]]:
    """Return the ``messages`` of an OpenAI chat completion. Nothing in them is shared with the items.

    With *carrying*, they have what `CARRIED` names, which is for a provider of cloister's own.
    Calls that lie in items of their own join the message before them: this format wants those of an answer in one.
    """
    messages: list[dict[str, Any]] = []
    for entry in items:
        if entry.unsent:
            continue
        if entry.tool_calls and entry.content is None and messages and messages[-1]["role"] == "assistant":
            messages[-1].setdefault("tool_calls", []).extend(copy.deepcopy(entry.tool_calls))
        else:
            messages.append(message(entry))
            if carrying and entry.extra:
                messages[-1].update({key: copy.deepcopy(entry.extra[key]) for key in CARRIED if key in entry.extra})
    return messages


def message(entry: Item) -> dict[str, Any]:
    """Return the message of one item, whatever stands before it."""
    if type(entry.content) is str and not (entry.tool_calls or entry.tool_call_id or entry.extra):
        return {"role": entry.role, "content": entry.content}  # nearly all of them: kept cheap
    message: dict[str, Any] = {"role": entry.role, "content": copy.deepcopy(entry.content)}
    if entry.tool_calls:
        message["tool_calls"] = copy.deepcopy(entry.tool_calls)
    if entry.tool_call_id is not None:
        message["tool_call_id"] = entry.tool_call_id
    extra = entry.extra or {}
    message.update({key: copy.deepcopy(extra[key]) for key in _CHAT_KEYS if key in extra})
    if "name" in message and _PLACEHOLDER.search(message["name"]):  # no API takes one for a name
        del message["name"]
    if message.get("refusal") == message["content"]:  # an answer's text is its refusal: do not send it twice
        message.pop("refusal", None)
    return message


def responses(items: Iterable[Item]) -> dict[str, Any]:
    """Return ``input`` and ``instructions`` (from system items at the start) of an OpenAI Response.

    Raises ValueError for a part that this format cannot carry.
    """
    rest = [entry for entry in items if not entry.unsent]
    instructions = []
    while rest and rest[0].role == "system":
        instructions.append(rest.pop(0).text)
    custom = {call["id"] for entry in rest for call in entry.tool_calls or () if call["type"] == "custom"}
    keywords: dict[str, Any] = {"input": [entry for item in rest for entry in _response(item, custom)]}
    if instructions:
        keywords["instructions"] = "\n\n".join(instructions)
    return keywords


def _response(entry: Item, custom: set[str]) -> list[dict[str, Any]]:
    if entry.role == "tool":
        kind = "custom_tool_call_output" if entry.tool_call_id in custom else "function_call_output"
        output = entry.content if isinstance(entry.content, str) else _parts(entry, _response_part)
        return [{"type": kind, "call_id": entry.tool_call_id, "output": output}]
    extra = entry.extra or {}
    # Only what is encrypted can be sent back: with store=false, the provider knows no ids.
    given = [copy.deepcopy(one) for one in extra.get("reasoning_items", ()) if one.get("encrypted_content")]
    if entry.content:
        part = _output_part if entry.role == "assistant" else _response_part
        content = entry.content if isinstance(entry.content, str) else _parts(entry, part)
        given.append({"role": entry.role, "content": content})
    elif isinstance(extra.get("refusal"), str):
        given.append({"role": entry.role, "content": extra["refusal"]})
    for call in entry.tool_calls or ():
        if call["type"] == "custom":
            body = {"name": call["custom"]["name"], "input": call["custom"]["input"]}
            given.append({"type": "custom_tool_call", "call_id": call["id"], **body})
        else:
            body = {"name": call["function"]["name"], "arguments": call["function"]["arguments"]}
            given.append({"type": "function_call", "call_id": call["id"], **body})
    return given


def anthropic(items: Iterable[Item]) -> dict[str, Any]:
    """Return ``system`` and ``messages`` of an Anthropic Message; ``max_tokens`` is the caller's to add.

    All system items go into ``system``; neighbours of the same role become one message, as this format wants. Raises
    ValueError for a part that it cannot carry.
    """
    system: list[str] = []
    messages: list[dict[str, Any]] = []
    for entry in items:
        if entry.unsent:
            continue
        if entry.role == "system":
            system.append(entry.text)
            continue
        role = "assistant" if entry.role == "assistant" else "user"
        blocks = _blocks(entry)
        if messages and messages[-1]["role"] == role:
            messages[-1]["content"] += blocks
        elif blocks:
            messages.append({"role": role, "content": blocks})
    for message in messages:
        blocks = message["content"]
        if len(blocks) == 1 and blocks[0]["type"] == "text":
            message["content"] = blocks[0]["text"]
    keywords: dict[str, Any] = {"messages": messages}
    if system:
        keywords["system"] = "\n\n".join(system)
    return keywords


def _blocks(entry: Item) -> list[dict[str, Any]]:
    content = _parts(entry, _anthropic_part)
    if entry.role == "tool":
        text = entry.content if isinstance(entry.content, str) else content
        failed = {"is_error": True} if (entry.extra or {}).get("is_error") is True else {}
        return [{"type": "tool_result", "tool_use_id": entry.tool_call_id, "content": text, **failed}]
    extra = entry.extra or {}
    blocks = _thinking(extra.get("thinking_blocks"))
    if not content and isinstance(extra.get("refusal"), str):
        content = [{"type": "text", "text": extra["refusal"]}]
    blocks += [block for block in content if block.get("text") != ""]  # empty text is refused by the API
    for call in entry.tool_calls or ():
        name = call[call["type"]]["name"]
        blocks.append({"type": "tool_use", "id": call["id"], "name": name, "input": _input(arguments(call))})
    return blocks


_THOUGHT = {"thinking": ("thinking", "signature"), "redacted_thinking": ("data",)}


def _thinking(blocks: object) -> list[dict[str, Any]]:
    """Return those of *blocks* in which a model thought, and nothing else that a client may have put there."""
    thought = []
    for block in blocks if isinstance(blocks, list | tuple) else ():
        kind = block.get("type") if isinstance(block, Mapping) else None
        fields = _THOUGHT.get(kind) if isinstance(kind, str) else None
        if fields and all(isinstance(block.get(field), str) for field in fields):
            thought.append({"type": kind, **{field: block[field] for field in fields}})
    return thought


def _input(text: str) -> dict[str, Any]:
    """Return the arguments of a tool call as the object that Anthropic wants, whatever the model wrote."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    return value if isinstance(value, dict) else {"arguments": text}


def _parts(entry: Item, convert: Callable[[Part], dict[str, Any]]) -> list[dict[str, Any]]:
    content = entry.content
    parts: list[dict[str, Any]] = [{"type": "text", "text": content}] if isinstance(content, str) else content or []
    return [convert(part) for part in parts]


def _strange(part: Part, format: str) -> ValueError:
    kind = part.get("type")
    shown = kind if isinstance(kind, str) and kind.isidentifier() and len(kind) <= 48 else "unknown"
    return ValueError(f"a content part of type {shown} cannot be sent in the {format} format; leave it out")


def _response_part(part: Part) -> dict[str, Any]:
    kind = part.get("type")
    if kind == "text":
        return {"type": "input_text", "text": part["text"]}
    if kind == "image_url":
        image = part["image_url"]
        return {"type": "input_image", "image_url": image["url"], "detail": image.get("detail", "auto")}
    if kind == "file" and "file_data" in part.get("file", {}):
        file = part["file"]
        return {"type": "input_file", **{key: file[key] for key in ("filename", "file_data") if key in file}}
    raise _strange(part, "Responses")


def _output_part(part: Part) -> dict[str, Any]:
    if part.get("type") == "text":
        return {"type": "output_text", "text": part["text"]}
    if part.get("type") == "refusal":
        return {"type": "refusal", "refusal": part["refusal"]}
    raise _strange(part, "Responses")


_DATA_URL = re.compile(r"data:([\w.+-]+/[\w.+-]+);base64,(.*)", re.DOTALL)


def _anthropic_part(part: Part) -> dict[str, Any]:
    kind = part.get("type")
    if kind == "text":
        return {"type": "text", "text": part["text"]}
    if kind == "refusal":
        return {"type": "text", "text": part["refusal"]}
    if kind == "image_url":
        return {"type": "image", "source": _source(part["image_url"]["url"])}
    if kind == "file" and "file_data" in part.get("file", {}):
        return {"type": "document", "source": _source(part["file"]["file_data"])}
    raise _strange(part, "Anthropic")


def _source(url: str) -> dict[str, str]:
    data = _DATA_URL.fullmatch(url)
    if data:
        return {"type": "base64", "media_type": data[1], "data": data[2]}
    return {"type": "url", "url": url}


def answer_item(answer: Answer) -> Item:
    """Return the assistant item that *answer* is kept as."""
    return Item(
        "assistant",
        answer.text or (None if answer.tool_calls else ""),
        usage=answer.usage,
        tool_calls=copy.deepcopy(list(answer.tool_calls)) if answer.tool_calls else None,
        extra=copy.deepcopy(answer.extra),
    )


def item(message: object) -> Item:
    """Return the item of a message: a dict of the OpenAI chat format, an SDK's message object, or a user's text.

    Keys that cloister does not know are kept in ``extra``, verbatim. Raises ValueError, which says what is wrong but
    repeats nothing of the message.
    """
    if isinstance(message, str):
        message = {"role": "user", "content": message}
    dump = getattr(message, "model_dump", None)
    if callable(dump):
        message = dump(warnings=False)
    if not isinstance(message, Mapping):
        raise ValueError(f"a message must be text or a dict of the OpenAI chat format, not {type(message).__name__}")
    message = {key: value for key, value in message.items() if value is not None or key not in _KNOWN}
    _storable(message)
    role = message.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise ValueError(f"a message needs a role, one of {', '.join(_ROLES)}")
    calls = _calls(message["tool_calls"], role) if "tool_calls" in message else None
    call_id = message.get("tool_call_id")
    if (role == "tool") != (isinstance(call_id, str) and call_id != ""):
        raise ValueError("a tool message, and no other, needs the tool_call_id of the call that it answers")
    content = message.get("content")
    said = role == "assistant" and bool(calls or message.keys() & {"refusal", "audio", "function_call"})
    _content(content, empty=said or API in message)
    for key in ("name", "refusal"):
        if not isinstance(message.get(key, ""), str):
            raise ValueError(f"the {key} of a message must be text")
    extra = {
        key: value for key, value in message.items() if key not in ("role", "content", "tool_calls", "tool_call_id")
    }
    kept: dict[str, Any] = copy.deepcopy({"content": content, "calls": calls, "extra": extra})
    return Item(
        _ROLES[role], kept["content"], tool_calls=kept["calls"], tool_call_id=call_id, extra=kept["extra"] or None
    )


_PART_TEXT = {"text": "text", "refusal": "refusal", "image_url": "url"}


def _content(content: object, *, empty: bool) -> None:
    if isinstance(content, str) or (content is None and empty):
        return
    if content is None:
        raise ValueError("a message needs content; only an assistant's with tool_calls may have none")
    if not isinstance(content, list) or not content:
        raise ValueError("the content of a message must be text or a list of parts with at least one")
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if not isinstance(kind, str) or not kind:
            raise ValueError("each part of a message's content must be a dict with a type")
        body = part.get("image_url") if kind == "image_url" else part
        key = _PART_TEXT.get(kind)
        if key and not (isinstance(body, dict) and isinstance(body.get(key), str)):
            raise ValueError(f"a {kind} part of a message's content lacks its {key}")
        if kind == "file" and not isinstance(part.get("file"), dict):
            raise ValueError("a file part of a message's content lacks its file")


def _calls(calls: object, role: str) -> list[dict[str, Any]]:
    if role != "assistant":
        raise ValueError("only an assistant's message may have tool_calls")
    if not isinstance(calls, list) or not calls:
        raise ValueError("tool_calls must be a list with at least one call; leave it out if there is none")
    for call in calls:
        kind = call.get("type") if isinstance(call, dict) else None
        if kind not in ("function", "custom"):
            raise ValueError("each of the tool_calls must be a dict with the type function or custom")
        body, text = call.get(kind), "arguments" if kind == "function" else "input"
        if not isinstance(call.get("id"), str) or not call["id"]:
            raise ValueError("each of the tool_calls needs an id")
        if not isinstance(body, dict) or not isinstance(body.get("name"), str) or not isinstance(body.get(text), str):
            raise ValueError(f"each of the tool_calls needs a {kind} with name and {text}, both text")
    return calls


def _storable(value: object, depth: int = 0) -> None:
    """Raise ValueError unless *value* survives being stored as JSON."""
    if depth > _MAX_DEPTH:
        raise ValueError(f"a message must not be nested deeper than {_MAX_DEPTH}")
    if isinstance(value, str):
        if not value.isascii() and _SURROGATE.search(value):
            raise ValueError("a message must not contain half a surrogate pair: it is not Unicode text")
    elif isinstance(value, Mapping):
        for key, entry in value.items():
            if not isinstance(key, str):
                raise ValueError("the keys of a message must be text")
            _storable(key)
            _storable(entry, depth + 1)
    elif isinstance(value, list):
        for entry in value:
            _storable(entry, depth + 1)
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError("a message must not contain NaN or infinity: JSON has neither")
    elif isinstance(value, int):
        if not -(2**63) <= value < 2**64:
            raise ValueError("a message must not contain integers of more than 64 bits")
    elif value is not None:
        raise ValueError(f"a message must consist of JSON values; {type(value).__name__} is none")
