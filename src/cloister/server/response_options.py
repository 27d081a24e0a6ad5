"""What a request for a response asks for beside its input: in the words of the chat format, and as it is repeated.

What this server has not is refused by name, never dropped: whoever asks for a search must not take the model's own
words for what was found.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from cloister.errors import OptionRefused
from cloister.server.refusals import invalid, unsupported
from cloister.server.response_shapes import Asked, Echo, NewResponse, ReasoningSaid, TextSaid

_UNSUPPORTED = {
    "background_options": "background responses",
    "context_management": "compaction",
    "prompt": "prompt templates",
    "moderation": "moderation by the provider",
    "image": "options of images",
    "access_programs": "access programs",
    "prompt_cache_options": "a say in the provider's cache",
    "prompt_cache_retention": "a say in the provider's cache",
}
_INCLUDABLE = {"message.input_image.image_url", "reasoning.encrypted_content"}
"""What is there anyway, where a provider gives it."""
_NOT_INCLUDABLE = {
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
    "file_search_call.results",
    "message.output_text.logprobs",
    "web_search_call.action.sources",
    "web_search_call.results",
}
_SAME = (
    "temperature",
    "top_p",
    "presence_penalty",
    "frequency_penalty",
    "parallel_tool_calls",
)
"""Called the same in the chat format."""
_NAMES = {
    "max_tokens": "max_output_tokens",
    "reasoning_effort": "reasoning.effort",
    "verbosity": "text.verbosity",
    "response_format": "text.format",
    "messages": "input",
}
"""What this API calls that which the chat format calls otherwise."""
_FUNCTION = ("name", "description", "parameters", "strict")
_ECHOED = (
    *_SAME,
    "instructions",
    "metadata",
    "truncation",
    "top_logprobs",
    "max_output_tokens",
    "max_tool_calls",
    "previous_response_id",
    "safety_identifier",
    "user",
    "prompt_cache_key",
)
_MOST_SCHEMA = 64
"""How deep the schema of a tool or text may be nested."""


def check(body: Asked) -> None:
    """Raise `Refused` for what is asked of this server and not offered."""
    if body.reasoning is not None:
        if body.reasoning.context not in (None, "auto"):
            raise unsupported("a say in which reasoning a model is shown again", "reasoning.context")
        if body.reasoning.mode not in (None, "standard"):
            raise unsupported("modes of reasoning other than the standard one", "reasoning.mode")
    if not isinstance(body, NewResponse):
        return
    if body.background:
        raise unsupported("background responses", "background")
    for name, what in _UNSUPPORTED.items():
        if getattr(body, name):
            raise unsupported(what, name)
    if body.top_logprobs:
        raise unsupported("log probabilities", "top_logprobs")
    if body.service_tier not in (None, "auto", "default"):
        raise unsupported("service tiers other than the default", "service_tier")
    for value in body.include or ():
        check_include(value)
    if body.stream_options is not None and not body.stream:
        raise invalid("this goes with stream=true alone", "stream_options")


def check_include(value: str) -> None:
    """Raise `Refused` for what cannot be included, because it does not come to be here."""
    if value in _NOT_INCLUDABLE:
        raise unsupported("what this would include", "include")
    if value not in _INCLUDABLE:
        raise invalid("this is nothing that can be included", "include")


def options(body: Asked) -> dict[str, Any]:
    """Give the options of the chat format. What names a user is not among them: a provider is told a pseudonym."""
    given: dict[str, Any] = {name: getattr(body, name) for name in _SAME if getattr(body, name, None) is not None}
    if isinstance(body, NewResponse) and body.max_output_tokens is not None:
        given["max_tokens"] = body.max_output_tokens
    if body.reasoning is not None and body.reasoning.effort is not None:
        given["reasoning_effort"] = body.reasoning.effort
    if body.text is not None:
        if body.text.verbosity is not None:
            given["verbosity"] = body.text.verbosity
        form = _response_format(body.text.format)
        if form is not None:
            given["response_format"] = form
    tools, choice = _tools(body)
    if tools:
        given["tools"] = tools
        if choice is not None:
            given["tool_choice"] = choice
    else:
        given.pop("parallel_tool_calls", None)  # services refuse it where there are no tools
    return given


@contextlib.contextmanager
def named() -> Iterator[None]:
    """Name an option that the provider refuses as whoever asked has called it."""
    try:
        yield
    except OptionRefused as error:
        raise OptionRefused(str(error), _NAMES.get(error.option, error.option)) from None


def echo(body: Asked) -> Echo:
    """Give what the response repeats of its request."""
    said: dict[str, Any] = {name: getattr(body, name) for name in _ECHOED if getattr(body, name, None) is not None}
    if body.tools:
        said["tools"] = [_shown(tool) for tool in body.tools]
    if body.tool_choice is not None:
        said["tool_choice"] = body.tool_choice
    if body.text is not None:
        form = body.text.format or {"type": "text"}
        said["text"] = TextSaid(format=form, verbosity=body.text.verbosity or "medium")
    if body.reasoning is not None:
        asked = body.reasoning
        said["reasoning"] = ReasoningSaid(effort=asked.effort, summary=asked.summary or asked.generate_summary)
    return Echo(**said)


def _response_format(form: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if form is None:
        return None
    match form.get("type"):
        case "text":
            return None
        case "json_object":
            return {"type": "json_object"}
        case "json_schema":
            if not isinstance(form.get("name"), str) or not isinstance(form.get("schema"), dict):
                raise invalid("a format of the type json_schema has a name and a schema", "text.format")
            wanted = {name: form[name] for name in ("name", "description", "schema", "strict") if name in form}
            return {"type": "json_schema", "json_schema": wanted}
    raise invalid("a format is of the type text, json_object or json_schema", "text.format.type")


def _tools(body: Asked) -> tuple[list[dict[str, Any]], str | dict[str, Any] | None]:
    """Give the tools that the model may use, and which of them it must."""
    tools = {_named(tool): _tool(tool) for tool in body.tools or ()}
    if len(tools) < len(body.tools or ()):
        raise invalid("two tools have the same name", "tools")
    choice = body.tool_choice
    if choice is None or isinstance(choice, str):
        if choice == "required" and not tools:
            raise invalid("there are no tools of which one could be required", "tool_choice")
        return list(tools.values()), choice
    match choice.get("type"):
        case "function" | "custom" as kind:
            return list(tools.values()), {"type": kind, kind: {"name": _chosen(choice, tools)[1]}}
        case "allowed_tools":
            # Only those are sent: not every service knows how to be told of tools that it may not use.
            allowed, mode = choice.get("tools"), choice.get("mode", "auto")
            if not isinstance(allowed, list) or not allowed or mode not in ("auto", "required"):
                raise invalid("allowed_tools takes a mode, auto or required, and tools", "tool_choice")
            wanted = {_chosen(one, tools) for one in allowed}
            return [tool for key, tool in tools.items() if key in wanted], mode
    raise unsupported("this kind of tool", "tool_choice")


def _chosen(choice: Any, tools: Mapping[tuple[str, str], Any]) -> tuple[str, str]:
    kind, name = (choice.get("type"), choice.get("name")) if isinstance(choice, dict) else (None, None)
    if not isinstance(kind, str) or not isinstance(name, str) or (kind, name) not in tools:
        raise invalid("this names none of the tools", "tool_choice")
    return kind, name


def _named(tool: Mapping[str, Any]) -> tuple[str, str]:
    kind, name = tool.get("type"), tool.get("name")
    if not isinstance(kind, str):
        raise invalid("a tool has a type", "tools")
    if kind not in ("function", "custom"):
        raise unsupported("tools that run at the provider; the application runs functions and custom tools", "tools")
    if not isinstance(name, str) or not 1 <= len(name) <= 128:
        raise invalid("a tool has a name of 1 to 128 characters", "tools")
    return kind, name


def _tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    _check_called_directly(tool)
    if tool["type"] == "function":
        if not isinstance(tool.get("parameters") or {}, dict):
            raise invalid("the parameters of a function are a JSON schema", "tools")
        wanted = {name: tool[name] for name in _FUNCTION if tool.get(name) is not None}
        return {"type": "function", "function": wanted}
    custom: dict[str, Any] = {name: tool[name] for name in ("name", "description") if tool.get(name) is not None}
    form = tool.get("format")
    if isinstance(form, dict) and form.get("type") == "grammar":
        custom["format"] = {"type": "grammar", "grammar": {name: form.get(name) for name in ("syntax", "definition")}}
    elif form is not None:
        custom["format"] = form
    return {"type": "custom", "custom": custom}


def _check_called_directly(tool: Mapping[str, Any]) -> None:
    """Raise `Refused` for a tool that the model is not simply to call, and be given what comes of it."""
    callers = tool.get("allowed_callers")
    if callers is not None and not (isinstance(callers, list) and "direct" in callers):
        raise unsupported("tools that programs call; allow the caller direct", "tools")
    for name, what in (
        ("async", "tools whose calls nobody waits for"),
        ("defer_loading", "tools that are loaded later"),
    ):
        if tool.get(name):
            raise unsupported(what, "tools")


def _shown(tool: Mapping[str, Any]) -> dict[str, Any]:
    """Give a tool as it is repeated: with all that a function has, as clients read it."""
    if tool.get("type") != "function":
        return dict(tool)
    return {**dict.fromkeys(_FUNCTION), "strict": None, **tool}
