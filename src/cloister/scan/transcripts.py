"""What one line of a transcript says, in the forms that people have: a message, a question with its answer, or a
conversation.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple

from cloister.model import Role

LONGEST = 1_000_000
"""How many characters a message has at most."""

What = Literal["user", "session", "tenant", "role", "text", "time", "messages"]
NAMES: dict[What, tuple[str, ...]] = {
    "user": ("user", "userid", "owner", "ownerid", "username", "customerid"),
    "session": ("session", "sessionid", "conversationid", "threadid", "thread", "chatid", "dialogueid", "conversation"),
    "tenant": ("tenant", "tenantid", "org", "orgid", "organization", "organizationid"),
    "role": ("role", "from", "speaker", "sender", "author"),
    "text": ("content", "text", "value", "message"),
    "time": ("timestamp", "createdat", "time", "ts", "created", "createtime"),
    "messages": ("messages", "conversations", "turns", "conversation", "dialogue"),
}
"""What each field is called, without case, dashes and underscores; the first that is there counts."""

ROLES: dict[str, Role] = {
    **dict.fromkeys(("user", "human", "customer", "client"), "user"),
    **dict.fromkeys(("assistant", "gpt", "bot", "ai", "model", "chatbot", "chatgpt", "agent"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("tool", "function", "observation", "functionresponse", "toolresult"), "tool"),
    **dict.fromkeys(("functioncall", "toolcall"), "assistant"),
}
TURNS = (("question", "answer"), ("prompt", "completion"), ("prompt", "response"), ("input", "output"))
"""How a question and its answer on one line are called."""


class Unreadable(Exception):
    """Say why a line, or a message on it, cannot be read. Quotes nothing of it."""


class Message(NamedTuple):
    """Be one text of a transcript, and where it stands in its line.

    ``number`` counts the messages of a line from 1; the texts of one message share it. ``own_line``: the line is a
    conversation by itself if it names none.
    """

    role: Role
    text: str
    user: str | None
    session: str | None
    tenant: str | None
    time: float | None
    number: int
    call: bool = False
    own_line: bool = False


class Fields:
    """Find the fields of a line by the names that are usual, or by those that were given: ``{"user": "meta.who"}``."""

    def __init__(self, given: Mapping[What, str] | None = None) -> None:
        self._given = {what: path.split(".") for what, path in (given or {}).items()}
        self._plain: dict[str, str] = {}

    def of(self, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Give *values* by names that can be compared."""
        plain = self._plain
        try:
            return {plain[name]: value for name, value in values.items()}
        except KeyError:
            if len(plain) < 1_000:
                plain.update((name, _plain(name)) for name in values if len(name) < 100)
            return {_plain(name): value for name, value in values.items()}

    def get(self, what: What, values: Mapping[str, Any], named: Mapping[str, Any]) -> Any:
        """Give the field of *values*; *named* is what `of` made of them."""
        path = self._given.get(what)
        if path is None:
            for name in NAMES[what]:
                if (value := named.get(name)) is not None:
                    return value
            return None
        found: Any = values
        for name in path:
            found = found.get(name) if isinstance(found, dict) else None
        return found


def _plain(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "")


def read(line: bytes, fields: Fields) -> Iterator[Message | str]:
    """Give the messages of *line* in their order, and in place of one that cannot be read why not.

    Raises `Unreadable` if none of it can be.
    """
    try:
        values = json.loads(line.decode())
    except UnicodeDecodeError:
        raise Unreadable("is not UTF-8") from None
    except RecursionError:
        raise Unreadable("is nested too deeply") from None
    except ValueError:
        raise Unreadable("is not JSON") from None
    if not isinstance(values, dict):
        raise Unreadable("is not a JSON object")
    named = fields.of(values)
    messages = _list(fields, values, named)
    whose = {what: _name(what, fields.get(what, values, named)) for what in _WHOSE}
    if messages is None:
        if whose["user"] is None and whose["session"] is None:
            raise Unreadable("names neither user nor conversation")
        at = moment(fields.get("time", values, named))
        for role, text, call in _turn(named) or _texts(fields, values, named):
            yield Message(role, text, whose["user"], whose["session"], whose["tenant"], at, 1, call)
        return
    if whose["session"] is None:
        whose["session"] = _name("session", named.get("id"))
    latest = moment(fields.get("time", values, named))
    for number, each in enumerate(messages, 1):
        try:
            if not isinstance(each, dict):
                raise Unreadable("is not a JSON object")
            inner = fields.of(each)
            at = moment(fields.get("time", each, inner))
            if at is not None:
                # Inside a conversation time never runs backwards.
                latest = at if latest is None else max(at, latest)
            for role, text, call in _texts(fields, each, inner):
                yield Message(
                    role, text, whose["user"], whose["session"], whose["tenant"], latest, number, call, own_line=True
                )
        except Unreadable as why:
            yield f"message {number} {why}"


_WHOSE: tuple[What, ...] = ("user", "session", "tenant")


def _list(fields: Fields, values: Mapping[str, Any], named: Mapping[str, Any]) -> list[Any] | None:
    given = fields.get("messages", values, named)
    if isinstance(given, list):
        return given
    return next((named[name] for name in NAMES["messages"] if isinstance(named.get(name), list)), None)


def _name(what: str, value: Any) -> str | None:
    """Give who or what is named; numbers are names too."""
    if isinstance(value, list) and what == "session":
        return None  # "conversation" may be the messages
    if value is None or value == "":
        return None
    if isinstance(value, str) or type(value) is int:
        return str(value)
    raise Unreadable(f"names its {what} by neither text nor a number")


def _turn(named: Mapping[str, Any]) -> list[tuple[Role, str, bool]]:
    """Give a question and its answer, where a line is these."""
    for asked, answered in TURNS:
        if isinstance(named.get(asked), str) and isinstance(named.get(answered), str):
            return [("user", _bounded(named[asked]), False), ("assistant", _bounded(named[answered]), False)]
    return []


def _texts(fields: Fields, values: Mapping[str, Any], named: Mapping[str, Any]) -> Iterator[tuple[Role, str, bool]]:
    """Give what a message says, by role; and whether it is a call of a tool."""
    spoken = fields.get("role", values, named)
    if not isinstance(spoken, str):
        raise Unreadable("has no role")
    role = ROLES.get(_plain(spoken))
    if role is None:
        raise Unreadable("has a role that is not known")
    content = fields.get("text", values, named)
    calls = named.get("toolcalls") or ([{"function": named["functioncall"]}] if named.get("functioncall") else [])
    if content is None and "content" not in named and not calls and "refusal" not in named:
        raise Unreadable("has no text")
    yield from _content(role, content)
    if isinstance(named.get("refusal"), str):
        yield role, _bounded(named["refusal"]), False
    for call in calls if isinstance(calls, list) else []:
        function = call.get("function", call) if isinstance(call, dict) else None
        if isinstance(function, dict):
            yield "assistant", _written(function.get("arguments", "")), True


def _content(role: Role, content: Any) -> Iterator[tuple[Role, str, bool]]:
    """Give the texts of a message's content: text, parts of OpenAI's and of Anthropic's form, or a tool's values."""
    if content is None or isinstance(content, str):
        yield role, _bounded(content or ""), False
        return
    if role == "tool" and not _is_parts(content):
        yield role, _written(content), False
        return
    if not isinstance(content, list):
        raise Unreadable("has a content that is neither text nor parts")
    said: list[str] = []
    rest: list[tuple[Role, str, bool]] = []
    for part in content:
        if isinstance(part, str):
            said.append(part)
        elif isinstance(part, dict):
            if part.get("type") == "tool_result":
                rest.append(("tool", _written(part.get("content")), False))
            elif part.get("type") == "tool_use":
                rest.append(("assistant", _written(part.get("input")), True))
            else:
                text = part.get("text", part.get("refusal"))
                text = text.get("value") if isinstance(text, dict) else text
                if isinstance(text, str):
                    said.append(text)
    if said or not rest:
        yield role, _bounded("\n".join(said)), False
    yield from rest


def _is_parts(content: Any) -> bool:
    return isinstance(content, list) and all(isinstance(part, dict) and "type" in part for part in content)


def _written(value: Any) -> str:
    """Give values as the text that a model reads or writes."""
    if isinstance(value, str):
        return _bounded(value)
    try:
        return _bounded(json.dumps(value, ensure_ascii=False))
    except RecursionError:
        raise Unreadable("is nested too deeply") from None


def _bounded(text: str) -> str:
    if len(text) > LONGEST:
        raise Unreadable(f"has more than {LONGEST:,} characters")
    return text


def moment(value: Any) -> float | None:
    """Give a time in seconds since 1970: ISO 8601, in UTC unless it says otherwise, or seconds or milliseconds."""
    try:
        if isinstance(value, str):
            text = value.strip()
            if not text.replace(".", "", 1).isdecimal():
                read = datetime.fromisoformat(text)
                return (read if read.tzinfo else read.replace(tzinfo=UTC)).timestamp()
            value = float(text)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return None
        return float(value) / (1000 if value > 100_000_000_000 else 1)
    except (ValueError, OverflowError):
        return None
