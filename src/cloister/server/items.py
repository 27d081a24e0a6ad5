"""The API's items, and the items of a session that they become: nothing that a client stored is lost on the way.

Each item of the API becomes one of a session. What a model is sent of it lies where it lies in any other, and what
stands beside that, in ``extra``: so personal data is replaced in all of it, and no text is there twice. Kinds that no
model is sent, those that nobody knows yet among them, lie there whole. What a model answered is one item of a session
and may be several of the API: what it thought, what it said, which tools it called.
"""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from cloister import wire
from cloister.model import API, Item
from cloister.server import ids
from cloister.server.errors import NOT_FOUND
from cloister.server.refusals import Refused, invalid, unsupported
from cloister.server.routes import Call
from cloister.server.shapes import SCHEMES
from cloister.session import Session

Entry = dict[str, Any]
"""An item as the API has it."""

REFERENCE = "item_reference"
_CALLS = {"function_call": ("function", "arguments"), "custom_tool_call": ("custom", "input")}
_OUTPUTS = ("function_call_output", "custom_tool_call_output")
_ROLES = ("user", "assistant", "system", "developer")
_PREFIXES = {
    "message": "msg",
    "function_call": "fc",
    "function_call_output": "fco",
    "custom_tool_call": "ctc",
    "custom_tool_call_output": "ctco",
    "reasoning": "rs",
    "compaction": "cmp",
    "file_search_call": "fs",
    "web_search_call": "ws",
    "image_generation_call": "ig",
    "code_interpreter_call": "ci",
    "computer_call": "cu",
    "computer_call_output": "cuo",
    "local_shell_call": "lsh",
    "local_shell_call_output": "lsho",
    "shell_call": "sh",
    "shell_call_output": "sho",
    "apply_patch_call": "apc",
    "apply_patch_call_output": "apco",
    "mcp_call": "mcp",
    "mcp_list_tools": "mcpl",
    "mcp_approval_request": "mcpr",
    "mcp_approval_response": "mcpa",
    "tool_search_call": "tsc",
    "tool_search_output": "tso",
    "program": "prg",
    "program_output": "prgo",
}
# What is never under way; all other kinds that are known say how far they are.
_STATELESS = ("compaction", "mcp_list_tools", "mcp_approval_request", "mcp_approval_response", "program")
_KIND = re.compile(r"[A-Za-z][\w.:-]{0,63}", re.ASCII)
# Neither is looked through for personal data, so neither has room for any.
_CALL_ID, _NAME = re.compile(r"[\w.:/+=|-]{1,256}", re.ASCII), re.compile(r"[\w.:-]{1,128}", re.ASCII)


# --- from a client ----------------------------------------------------------------------------------------------------


def taken(given: Sequence[Entry], param: str = "items") -> list[Item]:
    """Give the items of a session that the API's items become, one for each.

    Ids that a client gives are left out: ours are minted when they are stored. Raises `Refused`, which names the part
    of *param* that is at fault.
    """
    return [_taken(entry, f"{param}[{number}]") for number, entry in enumerate(given)]


def _taken(entry: Entry, where: str) -> Item:
    kind = kind_of(entry, where)
    rest = {name: value for name, value in entry.items() if name != "id"} | {"type": kind}
    if kind in _PREFIXES and kind not in _STATELESS and rest.get("status") is None:
        rest["status"] = "completed"
    if kind == REFERENCE:
        raise unsupported("references to items here", where)
    if kind == "message":
        message = _message(rest, where)
    elif kind in _CALLS:
        message = _called(rest, where)
    elif kind in _OUTPUTS and rest.get("call_id") is not None:
        message = _output(rest, where)
    else:
        message = _kept("assistant", rest)
    try:
        item = wire.item(message)
    except ValueError as error:
        raise invalid(str(error), where) from None
    # Nearly all are what they would be shown as anyway.
    plain = Item(item.role, item.content, tool_calls=item.tool_calls, tool_call_id=item.tool_call_id)
    return plain if not plain.unsent and shown(plain) == shown(item) else item


def kind_of(entry: Entry, where: str) -> str:
    """Say what kind of item this is: a message need not say so, nor a reference."""
    kind = entry.get("type")
    if kind is None and "role" in entry:
        return "message"
    if kind is None and entry.keys() <= {"type", "id"} and "id" in entry:
        return REFERENCE
    if not isinstance(kind, str) or not _KIND.fullmatch(kind):
        raise invalid("an item needs a type, such as message", f"{where}.type")
    return kind


def _kept(role: str, rest: Entry) -> dict[str, Any]:
    """Give what no model is sent."""
    return {"role": role, "content": None, API: rest}


def _message(rest: Entry, where: str) -> dict[str, Any]:
    role, content = rest.get("role"), rest.get("content")
    if role not in _ROLES:
        raise invalid(f"a message needs a role: {', '.join(_ROLES)}", f"{where}.role")
    if isinstance(content, str):
        content = [{"type": _text_kind(role), "text": content}]
    if not content and role != "assistant":
        raise invalid("a message needs content: text, or parts", f"{where}.content")
    sent, parts = _split(content, f"{where}.content")
    rest["content"] = parts
    return {"role": role, "content": sent, API: rest} if sent is not None else _kept(role, rest)


def _called(rest: Entry, where: str) -> dict[str, Any]:
    kind, field = _CALLS[rest["type"]]
    call_id = _named(rest.pop("call_id", None), _CALL_ID, f"{where}.call_id")
    name = _named(rest.pop("name", None), _NAME, f"{where}.name")
    text = rest.pop(field, None)
    if not isinstance(text, str):
        raise invalid("this must be text", f"{where}.{field}")
    call = {"id": call_id, "type": kind, kind: {"name": name, field: text}}
    return {"role": "assistant", "tool_calls": [call], API: rest}


def _output(rest: Entry, where: str) -> dict[str, Any]:
    call_id = _named(rest.pop("call_id"), _CALL_ID, f"{where}.call_id")
    output = rest.pop("output", None)
    if isinstance(output, str):
        sent: str | list[dict[str, Any]] | None = output
    else:
        sent, rest["output"] = _split(output, f"{where}.output")
    if sent is None:
        return _kept("assistant", rest | {"call_id": call_id})
    return {"role": "tool", "tool_call_id": call_id, "content": sent, API: rest}


def _named(value: object, shape: re.Pattern[str], where: str) -> str:
    if not isinstance(value, str) or not shape.fullmatch(value):
        raise invalid("this must be a name of ASCII letters, digits and . _ : -", where)
    return value


def _split(parts: object, where: str) -> tuple[str | list[dict[str, Any]] | None, list[Entry]]:
    """Divide the parts of a content: what a model is sent, and what is kept beside it."""
    if not isinstance(parts, list):
        raise invalid("this must be text, or a list of parts", where)
    sent: list[dict[str, Any]] = []
    kept: list[Entry] = []
    for number, part in enumerate(parts):
        at = f"{where}[{number}]"
        kind = part.get("type") if isinstance(part, dict) else None
        if not isinstance(kind, str) or not _KIND.fullmatch(kind):
            raise invalid("a part needs a type, such as input_text", at)
        rest = dict(part)
        if kind in _PARTS:
            sent.append(_PARTS[kind].take(rest, at))
        kept.append(rest)
    if len(sent) == 1 and sent[0]["type"] == "text":
        return sent[0]["text"], kept
    return sent or None, kept


# --- parts, one way and back ------------------------------------------------------------------------------------------


class _Part(NamedTuple):
    take: Callable[[Entry, str], dict[str, Any]]
    """Takes what a model is sent out of a part; gives it in the chat format."""
    give: Callable[[Mapping[str, Any]], Entry]
    """Gives what was taken out of it, from the part in the chat format."""


def _text(field: str, *lists: str) -> _Part:
    def take(part: Entry, where: str) -> dict[str, Any]:
        text = part.pop(field, None)
        if not isinstance(text, str):
            raise invalid("this must be text", f"{where}.{field}")
        for name in lists:
            # What else a model weighed up is its text again, in pieces too small for anything to be found in them.
            if part.get(name) is None or name == "logprobs":
                part[name] = []
        return {"type": "text", "text": text}

    return _Part(take, lambda chat: {field: chat["text"]})


def _take_image(part: Entry, where: str) -> dict[str, Any]:
    if part.get("file_id") is not None:
        raise unsupported("files of a provider", f"{where}.file_id")
    url = part.pop("image_url", None)
    if not isinstance(url, str) or not url[:8].lower().startswith(SCHEMES):
        raise invalid(
            "an image needs its address, at https: or http:, or its data as a data: URL", f"{where}.image_url"
        )
    if part.get("detail") is None:
        part["detail"] = "auto"
    detail = {"detail": part["detail"]} if part["detail"] in ("auto", "low", "high") else {}
    return {"type": "image_url", "image_url": {"url": url, **detail}}


def _take_file(part: Entry, where: str) -> dict[str, Any]:
    for field in ("file_id", "file_url"):
        if part.get(field) is not None:
            raise unsupported("files that lie elsewhere: send file_data", f"{where}.{field}")
    if not isinstance(part.get("file_data"), str):
        raise invalid("a file needs its data", f"{where}.file_data")
    if not isinstance(part.get("filename"), str | None):
        raise invalid("this must be text", f"{where}.filename")
    fields = [field for field in ("filename", "file_data") if part.get(field) is not None]
    return {"type": "file", "file": {field: part.pop(field) for field in fields}}


def _take_audio(part: Entry, where: str) -> dict[str, Any]:
    audio = part.pop("input_audio", None)
    audio = dict(audio) if isinstance(audio, dict) else audio
    if not isinstance(audio, dict) or not isinstance(audio.get("data"), str):
        raise invalid("audio needs its data", f"{where}.input_audio")
    # A provider is sent no more: a reference to what lies there could be to another user's.
    sent = {field: audio.pop(field) for field in ("data", "format") if isinstance(audio.get(field), str)}
    if audio:
        part["input_audio"] = audio
    return {"type": "input_audio", "input_audio": sent}


_PARTS = {
    "input_text": _text("text"),
    "text": _text("text"),
    "output_text": _text("text", "annotations", "logprobs"),
    "refusal": _text("refusal"),
    "input_image": _Part(_take_image, lambda chat: {"image_url": chat["image_url"]["url"]}),
    "input_file": _Part(_take_file, lambda chat: dict(chat["file"])),
    "input_audio": _Part(_take_audio, lambda chat: {"input_audio": chat["input_audio"]}),
}


def _joined(content: object, parts: Sequence[Entry]) -> list[Entry]:
    """Put what a model is sent back into the parts from which it was taken."""
    sent = iter(_chat_parts(content))
    return [
        _whole_part(part, _PARTS[part["type"]].give(next(sent))) if part["type"] in _PARTS else part for part in parts
    ]


def _whole_part(part: Entry, given: Entry) -> Entry:
    beside = part.get("input_audio")
    if isinstance(beside, dict) and "input_audio" in given:
        return {**part, "input_audio": {**beside, **given["input_audio"]}}
    return {**part, **given}


def _chat_parts(content: object) -> list[dict[str, Any]]:
    if isinstance(content, list):
        return content
    return [{"type": "text", "text": content}] if isinstance(content, str) else []


def _text_kind(role: str) -> str:
    return "output_text" if role == "assistant" else "input_text"


# --- to a client ------------------------------------------------------------------------------------------------------


def shown(item: Item) -> list[Entry]:
    """Give the API's items that an item of a session is, in their order, each with its id."""
    stored = _stored(item)
    entries = _made(item) if stored is None else [stored]
    # Numbered by kind: whoever streams an answer names its message before anybody knows what stands in front of it.
    number: Counter[str] = Counter()
    listed: list[Entry] = []
    for entry in entries:
        prefix = _PREFIXES.get(entry["type"], "item")
        listed.append({"id": ids.item(item.id, prefix, number[prefix]), **entry})
        number[prefix] += 1
    return listed


def message_id(item_id: str) -> str:
    """Give the API's id of the message in an answer."""
    return ids.item(item_id, _PREFIXES["message"])


def _stored(item: Item) -> Entry | None:
    """Give the API's item that this one was made of; None for one that was not."""
    kept = (item.extra or {}).get(API)
    try:
        return None if kept is None else _whole(item, kept)
    except (AttributeError, KeyError, StopIteration, TypeError):
        return None  # it comes from elsewhere, where the field means something else


def _whole(item: Item, kept: Entry) -> Entry:
    kind = kept["type"]
    if kind == "message":
        return {**kept, "content": _joined(item.content, kept["content"])}
    if kind in _CALLS and item.tool_calls:
        return {**kept, **_call(item.tool_calls[0])}
    if item.role == "tool":
        output = _joined(item.content, kept["output"]) if "output" in kept else item.content
        return {**kept, "call_id": item.tool_call_id, "output": output}
    return dict(kept)


def _made(item: Item) -> Iterator[Entry]:
    """Give what an item is to the API that no client of it made: the parts of an answer, a message of the chat API."""
    content = item.content
    if item.role == "tool":
        output = content if isinstance(content, str) else _parts(item)
        yield {"type": _OUTPUTS[0], "call_id": item.tool_call_id, "output": output, "status": "completed"}
        return
    if item.role == "assistant":
        yield from _thought(item.extra or {})
    if content or not item.tool_calls:
        yield {"type": "message", "role": item.role, "content": _parts(item), "status": "completed"}
    for call in item.tool_calls or ():
        kind = "custom_tool_call" if call["type"] == "custom" else "function_call"
        yield {"type": kind, **_call(call), "status": "completed"}


def _call(call: Mapping[str, Any]) -> Entry:
    body = call[call["type"]]
    field = "input" if call["type"] == "custom" else "arguments"
    return {"call_id": call["id"], "name": body["name"], field: body[field]}


def _parts(item: Item) -> list[Entry]:
    extra = item.extra or {}
    if extra.get("refusal") and (not item.content or item.content == extra["refusal"]):
        return [{"type": "refusal", "refusal": extra["refusal"]}]
    parts = [_part(item.role, part) for part in _chat_parts(item.content)]
    if parts and isinstance(notes := extra.get("annotations"), list) and "annotations" in parts[0]:
        parts[0]["annotations"] = [_note(note) for note in notes]
    return parts


def _part(role: str, part: Mapping[str, Any]) -> Entry:
    match part.get("type"):
        case "text" if role == "assistant":
            return {"type": "output_text", "text": part["text"], "annotations": [], "logprobs": []}
        case "text":
            return {"type": "input_text", "text": part["text"]}
        case "image_url":
            image = part["image_url"]
            return {"type": "input_image", "image_url": image["url"], "detail": image.get("detail", "auto")}
        case "file":
            return {"type": "input_file", **part["file"]}
    return dict(part)


def _note(note: Any) -> Any:
    """Give a note to an answer as this API has it: the chat format has its fields one level deeper."""
    kind = note.get("type") if isinstance(note, dict) else None
    body = note.get(kind) if isinstance(kind, str) else None
    return {"type": note["type"], **body} if isinstance(body, dict) else note


def _thought(extra: Mapping[str, Any]) -> Iterator[Entry]:
    """Give what a model thought, in whichever form its provider says so."""
    for block in extra.get("reasoning_items") or ():
        yield {"type": "reasoning", "summary": [], **{name: value for name, value in block.items() if name != "id"}}
    blocks = extra.get("thinking_blocks") or ()
    text = str(extra.get("reasoning") or "") + "".join(str(block.get("thinking", "")) for block in blocks)
    if text:
        content = [{"type": "reasoning_text", "text": text}]
        yield {"type": "reasoning", "summary": [], "content": content, "status": "completed"}


# --- which of them, and who may ---------------------------------------------------------------------------------------


async def found(session: Session, name: str) -> tuple[Item, Entry]:
    """Give the item of a session of that name of the API's, and what it is to the API; `Refused` if there is none."""
    with contextlib.suppress(ValueError):
        item = await session.item(ids.holding(name))
        for entry in shown(item):
            if entry["id"] == name:
                return item, entry
    raise Refused(404, "invalid_request_error", "not_found", NOT_FOUND)


async def resolved(session: Session | None, given: Sequence[Entry], param: str = "items") -> list[Entry]:
    """Put the items themselves in the place of references to them; only those of the same session can be meant."""
    entries: list[Entry] = []
    for number, entry in enumerate(given):
        if kind_of(entry, f"{param}[{number}]") == REFERENCE:
            entry = await _referred(session, entry, f"{param}[{number}].id")
        entries.append(entry)
    return entries


async def _referred(session: Session | None, entry: Entry, where: str) -> Entry:
    try:
        if session is not None:
            return (await found(session, str(entry.get("id"))))[1]
    except Refused:
        pass
    raise invalid("there is no such item in this conversation", where)


def allowed(call: Call, given: Sequence[Entry], param: str = "items") -> None:
    """Raise `Refused` for an item that an end user may not send: all but user messages, unless their tenant lets them.

    What a model says, or calls a tool with, needs ``assistant`` in the tenant's policy, what a tool gave back ``tool``.
    """
    if call.caller.scope != "user":
        return
    for number, entry in enumerate(given):
        role = _speaker(entry, kind_of(entry, f"{param}[{number}]"))
        if role != "user" and role not in call.policy.end_users_may:
            raise Refused(
                403,
                "permission_error",
                "role_not_allowed",
                "end users send user messages here, and nothing else",
                f"{param}[{number}]",
            )


def _speaker(entry: Entry, kind: str) -> str:
    """Say who speaks in an item."""
    if kind == "message":
        role = entry.get("role")
        return role if role in _ROLES else "assistant"
    return "tool" if kind.endswith("_output") else "assistant"
