"""The texts of an item, wherever in it they stand, and those inside JSON: all that may hold personal data."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, TypeAlias

import msgspec

from cloister.model import Item

Kind = Literal["text", "json", "name", "machine"]
"""What a text of an item is: words, JSON, the name of a field, of which an object has each once, or what a field holds
that is meant for machines but does not look it."""
Change: TypeAlias = Callable[[str, Kind], str]
"""Takes a text of an item, and what it is; gives what comes in its place."""
Call: TypeAlias = Callable[[str, str, Kind], str]
"""The same for what a tool is called with; takes the tool's name first."""

SIGNED = ("thinking_blocks", "reasoning_items")
"""The fields in which blocks stand that a provider signs, and takes back only as they were."""

# What machines read: ids, addresses, media. Only what looks it: whoever writes a message chooses the names in it.
# None of it has brackets: so where something was replaced, it is looked at again on its way back.
_WORD, _ADDRESS = re.compile(r"[\w./:+-]{0,256}", re.ASCII), re.compile(r"[^\s\[\]]*")
_MEDIA = re.compile(r"(?:data:[\w./;=+-]{0,200};base64,)?[\w+/=\r\n-]*", re.ASCII)
_DATA_URL = re.compile(r"data:[\w./;=+-]{0,200};base64,[\w+/=-]*", re.ASCII)
_LEFT = {
    **dict.fromkeys("type id call_id item_id tool_call_id file_id".split(), _WORD),
    **dict.fromkeys("detail format media_type mime_type role status".split(), _WORD),
    **dict.fromkeys("data file_data encrypted_content signature".split(), _MEDIA),
    "url": _ADDRESS,
}
_SEALED = ("signature", "encrypted_content")
# Fields beside the content that are of a provider's format. All others are an application's own, and texts throughout.
_FORMATS = ("audio", "annotations", "function_call", *SIGNED)

# One that does not end is one to the end: else each quote in it would be tried again.
_LITERAL = re.compile(r'"((?:[^"\\]++|\\.)*+)(?:"|\\?\Z)', re.DOTALL)
_NAMES = re.compile(r'\s*+:\s*+"')  # behind a string: it is the name of a field that holds another one
_ESCAPE = re.compile(
    r"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|\\u[0-9a-fA-F]{4}|\\.|[^\\]", re.DOTALL
)


def mapped(item: Item, change: Change, call: Call | None = None, *, signed: bool = False) -> Item:
    """Give *item* with each of its texts changed, in the same order always; arguments of tools by *call* if given.

    What a provider signed comes last, and only with *signed*.
    """
    content, calls, extra = item.content, item.tool_calls, item.extra
    if isinstance(content, str):
        content = change(content, "text")
        if not (calls or extra):
            return item if content is item.content else msgspec.structs.replace(item, content=content)
    elif content:
        content = [_fields(part, change) for part in content]
    if calls:
        calls = [_called(one, change, call) for one in calls]
    if extra:
        extra = _fields(extra, change, own=True)
        if signed:
            extra = {name: _blocks(value, change, True) if name in SIGNED else value for name, value in extra.items()}
    return msgspec.structs.replace(item, content=content, tool_calls=calls, extra=extra)


def _fields(fields: dict[str, Any], change: Change, *, own: bool = False, left: bool = True) -> dict[str, Any]:
    """Change an object, the names of its fields included. With *own* it is what stands beside the content."""
    changed: dict[str, Any] = {}
    for name, value in fields.items():
        key = name if name.isidentifier() else change(name, "name")
        while key in changed:  # both were redacted
            key += "'"
        shape = _LEFT.get(name) if left and not own else None
        if own and name in SIGNED:
            changed[key] = _blocks(value, change, False)
        elif shape is not None and isinstance(value, str) and shape.fullmatch(value):
            changed[key] = value
        elif shape is not None and isinstance(value, str):
            changed[key] = change(value, "machine")
        else:
            changed[key] = _walked(value, change, name in _FORMATS if own else left)
    return changed


def _walked(value: Any, change: Change, left: bool) -> Any:
    if isinstance(value, str):
        return value if _DATA_URL.fullmatch(value) else change(value, "text")
    if isinstance(value, list):
        return [_walked(one, change, left) for one in value]
    if isinstance(value, dict):
        return _fields(value, change, left=left)
    return value


def _blocks(blocks: Any, change: Change, signed: bool) -> Any:
    """Change those of *blocks* that are *signed*, or those that are not."""
    if not isinstance(blocks, list):
        return blocks if signed else _walked(blocks, change, True)
    return [_walked(block, change, True) if is_signed(block) is signed else block for block in blocks]


def is_signed(block: object) -> bool:
    """Say whether a provider takes this block back only as it was."""
    return isinstance(block, dict) and bool(
        block.get("signature") or block.get("encrypted_content") or block.get("type") == "redacted_thinking"
    )


def _called(call: dict[str, Any], change: Change, instead: Call | None) -> dict[str, Any]:
    kind = call["type"]
    body, field, what = call[kind], *_SAYS[kind]
    text = body[field]
    text = change(text, what) if instead is None else instead(body["name"], text, what)
    rest = {name: value for name, value in body.items() if name not in ("name", field)}
    more = {name: value for name, value in call.items() if name not in ("id", "type", kind)}
    kept = {"id": call["id"], "type": kind, kind: {"name": body["name"], field: text, **_fields(rest, change)}}
    return {**kept, **_fields(more, change)}


_SAYS: dict[str, tuple[str, Kind]] = {"function": ("arguments", "json"), "custom": ("input", "text")}


def readable(item: Item) -> str:
    """Give all that whoever gets *item* could read, each text in a line of its own, JSON without its escapes.

    What is meant for machines comes last: names and ids of calls, addresses. What a provider sealed is for nobody.
    """
    if isinstance(item.content, str) and not (item.tool_calls or item.extra):
        return item.content
    texts: list[str] = []

    def take(text: str, kind: Kind) -> str:
        texts.extend(_strings(text) if kind == "json" and "\\" in text and is_json(text) else [text])
        return text

    mapped(item, take, signed=True)
    texts += _machine([item.content, item.tool_calls, item.extra], "")
    return "\n".join(texts)


def _machine(value: Any, name: str) -> Iterator[str]:
    if isinstance(value, str):
        if name == "name" or (name in _LEFT and name not in _SEALED):
            yield value
    elif isinstance(value, list):
        for one in value:
            yield from _machine(one, name)
    elif isinstance(value, dict):
        for key, one in value.items():
            yield from _machine(one, key)


def _strings(text: str) -> Iterator[str]:
    for literal in _LITERAL.finditer(text):
        yield unescaped(literal[1])
    yield _LITERAL.sub(" ", text)  # numbers stand between them


# --- texts in JSON ----------------------------------------------------------------------------------------------------


def is_json(text: str) -> bool:
    """Say whether *text* is a JSON document."""
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def in_json(text: str, find: Callable[[str], Iterable[tuple[int, int, str]]]) -> Iterator[tuple[int, int, str]]:
    """Find in each string of a JSON document; give where it lies in the document as it is written.

    A string is searched behind the name of its field, which may say what it is: ``{"ssn": "536904399"}``.
    """
    name = ""
    for literal in _LITERAL.finditer(text):
        written, begin = literal[1], literal.start(1)
        field = f"{name}: " if name else ""
        name = written.replace("_", " ") if _NAMES.match(text, literal.end()) else ""
        if "\\" not in written:
            yield from _behind(field, written, find, range(begin, begin + len(written) + 1))
            continue
        said: list[str] = []
        starts: list[int] = []
        for piece in _ESCAPE.finditer(written):
            means = unescaped(piece[0])
            said.append(means)  # of one character, but for what is no escape of JSON's
            starts += range(begin + piece.start(), begin + piece.start() + len(means))
        starts.append(begin + len(written))
        yield from _behind(field, "".join(said), find, starts)


def _behind(
    field: str, said: str, find: Callable[[str], Iterable[tuple[int, int, str]]], places: Sequence[int]
) -> Iterator[tuple[int, int, str]]:
    """Find in what is *said* behind *field*; *places* says where each character lies, and the end."""
    size = len(field)
    for start, end, kind in find(field + said):
        if end > size:
            yield places[max(start - size, 0)], places[end - size], kind


def change_json(text: str, change: Callable[[str], str]) -> str:
    """Change the strings of a JSON document, and nothing else; the whole of what is none."""

    def put(literal: re.Match[str]) -> str:
        said = unescaped(literal[1])
        changed = change(said)
        return literal[0] if changed == said else json.dumps(changed, ensure_ascii=False)

    return _LITERAL.sub(put, text) if is_json(text) else change(text)


def unescaped(text: str) -> str:
    """Give what stands between the quotes of a JSON string as the text that it means."""
    if "\\" not in text:
        return text
    try:
        return str(json.loads(f'"{text}"', strict=False))
    except ValueError:
        return text
