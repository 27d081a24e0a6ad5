"""What a client says in the chat format: the messages and tools that it may send, and what is made of them.

Whatever goes on from here is built anew from what is named here. A reference to something that lies at the provider (a
file, the audio of an earlier answer) could be to another user's, so there is none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec

from cloister import wire
from cloister.server.refusals import Refused, invalid, unsupported
from cloister.server.routes import Call
from cloister.server.shapes import SCHEMES, Body


class Part(Body):
    """Be a part of a message. Hints for the provider's cache are taken and go no further."""

    prompt_cache_breakpoint: Any = None
    cache_control: Any = None


class Text(Part, tag_field="type", tag="text", kw_only=True):
    text: str

    def plain(self, where: str) -> dict[str, Any]:
        return {"type": "text", "text": self.text}


class RefusalPart(Part, tag_field="type", tag="refusal", kw_only=True):
    refusal: str

    def plain(self, where: str) -> dict[str, Any]:
        return {"type": "refusal", "refusal": self.refusal}


class ImageUrl(Body, omit_defaults=True):
    url: str
    detail: Literal["auto", "low", "high", "original"] | None = None


class Image(Part, tag_field="type", tag="image_url", kw_only=True):
    image_url: ImageUrl

    def plain(self, where: str) -> dict[str, Any]:
        if not self.image_url.url[:8].lower().startswith(SCHEMES):
            raise invalid("an image is given by an address that begins with https:, http: or data:", where)
        return {"type": "image_url", "image_url": msgspec.to_builtins(self.image_url)}


class InputAudio(Body):
    data: str
    format: Literal["wav", "mp3"]


class Audio(Part, tag_field="type", tag="input_audio", kw_only=True):
    input_audio: InputAudio

    def plain(self, where: str) -> dict[str, Any]:
        return {"type": "input_audio", "input_audio": msgspec.to_builtins(self.input_audio)}


class FileData(Body, omit_defaults=True):
    file_data: str | None = None
    filename: str | None = None
    file_id: Any = None


class File(Part, tag_field="type", tag="file", kw_only=True):
    file: FileData

    def plain(self, where: str) -> dict[str, Any]:
        if self.file.file_id is not None:
            raise unsupported("files that lie at the provider; send file_data", where)
        if self.file.file_data is None:
            raise invalid("a file needs its file_data", where)
        return {"type": "file", "file": msgspec.to_builtins(self.file)}


# No placeholders have room in ids and names of tools, so personal data must not have either.
CallId = Annotated[str, msgspec.Meta(pattern="^[A-Za-z0-9_.:/+=|-]{1,256}$")]
ToolName = Annotated[str, msgspec.Meta(pattern="^[A-Za-z0-9_.:-]{1,128}$")]
Name = Annotated[str, msgspec.Meta(max_length=256)]


class System(Body, tag_field="role", tag="system"):
    content: str | list[Text]
    name: Name | None = None

    role = "system"

    def plain(self, where: str) -> dict[str, Any]:
        return _plain(self.role, self.content, where, name=self.name)


class Developer(System, tag_field="role", tag="developer"):
    role = "developer"


class User(Body, tag_field="role", tag="user"):
    content: str | list[Text | Image | Audio | File]
    name: Name | None = None

    role = "user"

    def plain(self, where: str) -> dict[str, Any]:
        return _plain("user", self.content, where, name=self.name)


class Function(Body):
    name: ToolName
    arguments: str
    parsed_arguments: Any = None
    """What the SDK made of the arguments: it goes no further."""


class FunctionCall(Body, tag_field="type", tag="function"):
    id: CallId
    function: Function
    index: Any = None

    def plain(self) -> dict[str, Any]:
        said = {"name": self.function.name, "arguments": self.function.arguments}
        return {"id": self.id, "type": "function", "function": said}


class Custom(Body):
    name: ToolName
    input: str


class CustomCall(Body, tag_field="type", tag="custom"):
    id: CallId
    custom: Custom
    index: Any = None

    def plain(self) -> dict[str, Any]:
        return {"id": self.id, "type": "custom", "custom": {"name": self.custom.name, "input": self.custom.input}}


class Assistant(Body, tag_field="role", tag="assistant"):
    """Be what a model said, as any server's answer has it: what only answers have goes no further."""

    content: str | list[Text | RefusalPart] | None = None
    name: Name | None = None
    refusal: str | None = None
    tool_calls: list[FunctionCall | CustomCall] | None = None
    annotations: Any = None
    parsed: Any = None
    reasoning_content: Any = None
    audio: Any = None
    function_call: Any = None

    role = "assistant"

    def plain(self, where: str) -> dict[str, Any]:
        if self.audio is not None:
            raise unsupported("audio of earlier answers", f"{where}.audio")
        if self.function_call is not None:
            raise unsupported("function_call; use tool_calls", f"{where}.function_call")
        calls = [call.plain() for call in self.tool_calls] if self.tool_calls else None
        return _plain("assistant", self.content, where, name=self.name, refusal=self.refusal, tool_calls=calls)


class Tool(Body, tag_field="role", tag="tool"):
    content: str | list[Text | Image | File]
    tool_call_id: CallId

    role = "tool"

    def plain(self, where: str) -> dict[str, Any]:
        return _plain("tool", self.content, where, tool_call_id=self.tool_call_id)


Message = System | Developer | User | Assistant | Tool


def _plain(role: str, content: str | Sequence[Any] | None, where: str, **beside: Any) -> dict[str, Any]:
    said: dict[str, Any] = {"role": role, "content": content}
    if content is not None and not isinstance(content, str):
        said["content"] = [part.plain(f"{where}.content[{number}]") for number, part in enumerate(content)]
    said.update({name: value for name, value in beside.items() if value is not None})
    return said


def messages(call: Call, given: Sequence[Message], param: str = "messages") -> list[dict[str, Any]]:
    """Give messages as the library takes them; `Refused` for those that this caller may not send."""
    called = [message.tool_calls for message in given if isinstance(message, Assistant)]
    call.bound_parts(given, [*called, *[message.content for message in given]], param)
    plain = []
    for number, message in enumerate(given):
        where = f"{param}[{number}]"
        allowed(call, message.role, where)
        said = message.plain(where)
        if len(said) > 2 or type(said["content"]) is not str:  # nearly all are but words
            checked(said, where)
        plain.append(said)
    return plain


def allowed(call: Call, role: str, where: str) -> None:
    """Raise `Refused` where an end user may not say what a message of this role says."""
    if role != "user" and call.caller.scope == "user" and role not in call.policy.end_users_may:
        raise Refused(
            403,
            "permission_error",
            "role_not_allowed",
            "end users send messages of the role user here, and no others",
            f"{where}.role",
        )


def checked(message: dict[str, Any], where: str) -> None:
    """Raise `Refused` for a message that the library does not take."""
    try:
        wire.item(message)
    except ValueError as error:  # its text says what is wrong, and repeats nothing
        raise invalid(str(error), where) from None


def led(messages: list[dict[str, Any]]) -> tuple[str | None, list[dict[str, Any]]]:
    """Give the text of the system message at the beginning, if there is one, and the other messages."""
    first = messages[0]
    if len(messages) < 2 or first["role"] not in ("system", "developer") or "name" in first:
        return None, messages
    content = first["content"]
    text = content if isinstance(content, str) else "\n\n".join(part["text"] for part in content)
    return text, messages[1:]


# --- tools ------------------------------------------------------------------------------------------------------------


class FunctionDefinition(Body, omit_defaults=True):
    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class FunctionTool(Body, tag_field="type", tag="function"):
    function: FunctionDefinition


class CustomDefinition(Body, omit_defaults=True):
    name: ToolName
    description: str | None = None
    format: dict[str, Any] | None = None


class CustomTool(Body, tag_field="type", tag="custom"):
    custom: CustomDefinition


ToolDefinition = FunctionTool | CustomTool


class Named(Body):
    name: ToolName


class FunctionChoice(Body, tag_field="type", tag="function"):
    function: Named


class CustomChoice(Body, tag_field="type", tag="custom"):
    custom: Named


class Allowed(Body):
    mode: Literal["auto", "required"]
    tools: list[FunctionChoice | CustomChoice]


class AllowedChoice(Body, tag_field="type", tag="allowed_tools"):
    allowed_tools: Allowed


ToolChoice = Literal["none", "auto", "required"] | FunctionChoice | CustomChoice | AllowedChoice


class TextFormat(Body, tag_field="type", tag="text"): ...


class JsonFormat(Body, tag_field="type", tag="json_object"): ...


class JsonSchema(Body, omit_defaults=True):
    name: ToolName
    description: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class SchemaFormat(Body, tag_field="type", tag="json_schema"):
    json_schema: JsonSchema


ResponseFormat = TextFormat | JsonFormat | SchemaFormat
