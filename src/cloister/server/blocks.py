"""Anthropic's messages, made into those of the chat format, and replies made into Anthropic's blocks.

`cloister.wire` has the other directions, for providers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

import msgspec

from cloister import wire
from cloister.model import Item, Reply
from cloister.server.refusals import invalid, unsupported
from cloister.server.said import CallId, ToolName
from cloister.server.shapes import Body
from cloister.session import Session


class Block(Body):
    """Be a block of a message. Hints for the provider's cache are taken and go no further."""

    cache_control: Any = None


class TextBlock(Block, tag_field="type", tag="text", kw_only=True):
    text: str
    citations: Any = None


class Base64(Body, tag_field="type", tag="base64"):
    media_type: Annotated[str, msgspec.Meta(pattern=r"^[\w.+-]+/[\w.+-]+$", max_length=128)]
    data: str

    @property
    def url(self) -> str:
        return f"data:{self.media_type};base64,{self.data}"


class Url(Body, tag_field="type", tag="url"):
    url: str


class FileId(Body, tag_field="type", tag="file"):
    file_id: str


class Plain(Body, tag_field="type", tag="text"):
    media_type: Literal["text/plain"]
    data: str


class ImageBlock(Block, tag_field="type", tag="image", kw_only=True):
    source: Base64 | Url | FileId
    transformations: Any = None


class Content(Body, tag_field="type", tag="content"):
    content: str | list[TextBlock | ImageBlock]


class DocumentBlock(Block, tag_field="type", tag="document", kw_only=True):
    source: Base64 | Plain | Content | Url | FileId
    title: str | None = None
    context: str | None = None
    citations: Any = None


class SearchResult(Block, tag_field="type", tag="search_result", kw_only=True):
    source: str
    title: str
    content: list[TextBlock]
    citations: Any = None


class ThinkingBlock(Body, tag_field="type", tag="thinking"):
    thinking: str
    signature: str


class RedactedThinking(Body, tag_field="type", tag="redacted_thinking"):
    data: str


class ToolUse(Block, tag_field="type", tag="tool_use", kw_only=True):
    id: CallId
    name: ToolName
    input: dict[str, Any]
    caller: Any = None


class ToolResult(Block, tag_field="type", tag="tool_result", kw_only=True):
    tool_use_id: CallId
    content: str | list[TextBlock | ImageBlock | DocumentBlock | SearchResult] = ""
    is_error: bool | None = None


UserBlock = TextBlock | ImageBlock | DocumentBlock | SearchResult | ToolResult
AssistantBlock = TextBlock | ThinkingBlock | RedactedThinking | ToolUse


class UserMessage(Body, tag_field="role", tag="user"):
    content: str | list[UserBlock]


class AssistantMessage(Body, tag_field="role", tag="assistant"):
    content: str | list[AssistantBlock]


class SystemMessage(Body, tag_field="role", tag="system"):
    content: str | list[TextBlock]


Message = UserMessage | AssistantMessage | SystemMessage


def chat(given: Message, where: str) -> Iterator[dict[str, Any]]:
    """Give the messages of the chat format that say what a message of Anthropic's says."""
    if isinstance(given, AssistantMessage):
        yield _assistant(given.content)
    elif isinstance(given, SystemMessage):
        yield {"role": "system", "content": text_of(given.content)}
    elif isinstance(given.content, str):
        yield {"role": "user", "content": given.content}
    else:
        yield from _user(given.content, where)


def text_of(content: str | Sequence[TextBlock]) -> str:
    """Give the text of a system prompt."""
    return content if isinstance(content, str) else "\n\n".join(block.text for block in content)


def _user(blocks: Sequence[UserBlock], where: str) -> Iterator[dict[str, Any]]:
    """Give results of tools as messages of their own, each run of other blocks as one."""
    parts: list[dict[str, Any]] = []
    for number, block in enumerate(blocks):
        at = f"{where}.content[{number}]"
        if not isinstance(block, ToolResult):
            parts += _parts(block, at)
            continue
        if parts:
            yield _said("user", parts)
            parts = []
        yield _result(block, at)
    if parts or not blocks:
        yield _said("user", parts)


def _result(block: ToolResult, where: str) -> dict[str, Any]:
    content = block.content
    if isinstance(content, str):
        said: dict[str, Any] = {"role": "tool", "content": content}
    else:
        parts = [part for number, one in enumerate(content) for part in _parts(one, f"{where}.content[{number}]")]
        said = _said("tool", parts) if parts else {"role": "tool", "content": ""}
    said["tool_call_id"] = block.tool_use_id
    if block.is_error:
        said["is_error"] = True
    return said


def _said(role: str, parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Give a message, with text where it has nothing else."""
    alone = len(parts) == 1 and parts[0]["type"] == "text"
    return {"role": role, "content": parts[0]["text"] if alone else parts}


def _parts(block: TextBlock | ImageBlock | DocumentBlock | SearchResult, where: str) -> list[dict[str, Any]]:
    if isinstance(block, TextBlock):
        return [_text(block.text)]
    if isinstance(block, ImageBlock):
        return [_image(block, where)]
    if block.citations is not None and block.citations != {"enabled": False}:
        raise unsupported("citations", where)
    if isinstance(block, SearchResult):
        return [_text("\n".join([block.title, block.source, *[each.text for each in block.content]]))]
    return _document(block, where)


def _image(block: ImageBlock, where: str) -> dict[str, Any]:
    source = block.source
    if isinstance(source, FileId):
        raise _no_file(where)
    if block.transformations is not None:
        raise unsupported("transformations of images", where)
    if isinstance(source, Url) and not source.url[:8].lower().startswith(("https://", "http://")):
        raise invalid("an image is given by an address that begins with https: or http:", where)
    return {"type": "image_url", "image_url": {"url": source.url}}


def _document(block: DocumentBlock, where: str) -> list[dict[str, Any]]:
    source = block.source
    head = [_text(text) for text in (block.title, block.context) if text]
    if isinstance(source, FileId):
        raise _no_file(where)
    if isinstance(source, Url):
        raise unsupported("documents by address; send them in base64", where)
    if isinstance(source, Plain):
        return [*head, _text(source.data)]
    if isinstance(source, Base64):
        named = block.title or "document.pdf"
        return [*head, {"type": "file", "file": {"filename": named, "file_data": source.url}}]
    if isinstance(source.content, str):
        return [*head, _text(source.content)]
    return [*head, *[part for each in source.content for part in _parts(each, where)]]


def _no_file(where: str) -> Exception:
    return unsupported("files that lie at the provider; send them in base64", where)


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _assistant(content: str | Sequence[AssistantBlock]) -> dict[str, Any]:
    if isinstance(content, str):
        return {"role": "assistant", "content": content}
    texts = [_text(block.text) for block in content if isinstance(block, TextBlock)]
    said: dict[str, Any] = _said("assistant", texts) if texts else {"role": "assistant", "content": ""}
    calls = [_call(block) for block in content if isinstance(block, ToolUse)]
    if calls:
        said["tool_calls"] = calls
        said["content"] = said["content"] or None
    thinking = [msgspec.to_builtins(block) for block in content if isinstance(block, ThinkingBlock | RedactedThinking)]
    if thinking:
        said["thinking_blocks"] = thinking
    return said


def _call(block: ToolUse) -> dict[str, Any]:
    arguments = msgspec.json.encode(block.input).decode()
    return {"id": block.id, "type": "function", "function": {"name": block.name, "arguments": arguments}}


# --- tools ------------------------------------------------------------------------------------------------------------


class ToolDefinition(Block, kw_only=True):
    name: ToolName
    input_schema: dict[str, Any] | None = None
    description: str | None = None
    type: str | None = None
    strict: bool | None = None
    eager_input_streaming: bool | None = None

    def plain(self, where: str) -> dict[str, Any]:
        if self.type not in (None, "custom"):
            raise unsupported("tools that run at the provider, or are the provider's own", where)
        if self.input_schema is None:
            raise invalid("a tool needs its input_schema", where)
        said: dict[str, Any] = {"name": self.name, "parameters": self.input_schema}
        if self.description is not None:
            said["description"] = self.description
        if self.strict is not None:
            said["strict"] = self.strict
        return {"type": "function", "function": said}


class ToolChoice(Body):
    type: Literal["auto", "any", "tool", "none"]
    name: ToolName | None = None
    disable_parallel_tool_use: bool | None = None

    def options(self) -> dict[str, Any]:
        """Give what it comes to among the options of the chat format."""
        if (self.type == "tool") != (self.name is not None):
            raise invalid("a tool_choice of the type tool, and no other, has a name", "tool_choice")
        words: dict[str, Any] = {"auto": "auto", "any": "required", "none": "none"}
        choice = words.get(self.type) or {"type": "function", "function": {"name": self.name}}
        return {"tool_choice": choice, **({"parallel_tool_calls": False} if self.disable_parallel_tool_use else {})}


# --- replies ----------------------------------------------------------------------------------------------------------


def answered(reply: Reply[Session]) -> list[dict[str, Any]]:
    """Give the blocks of a reply: what the model thought, said, and wants of tools."""
    extra = (reply.items[-1].extra if reply.items and not reply.blocked else None) or {}
    thinking = extra.get("thinking_blocks")
    said = Item(
        "assistant",
        reply.text or None,
        tool_calls=list(reply.tool_calls) or None,
        extra={"thinking_blocks": thinking} if thinking else None,
    )
    content = wire.anthropic([said])["messages"][0]["content"]
    return [_text(content)] if isinstance(content, str) else content


def stop_reason(reply: Reply[Session]) -> str:
    """Say why the model stopped."""
    if reply.blocked:
        return "refusal"
    words = {"length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}
    return words.get(reply.finish_reason or "", "end_turn")
