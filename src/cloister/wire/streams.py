"""Read an answer as it arrives: pieces of text, or the chunks of one of the three formats.

Each format puts its chunks together into the message that the same call would have given whole, and `answers` reads
that. So a streamed answer and a whole one cannot be understood differently.
"""

from __future__ import annotations

from typing import Any, Protocol

from cloister.errors import ProviderError
from cloister.wire.answers import (
    Answer,
    anthropic_message,
    arguments,
    completion,
    mapping,
    mend,
    objects,
    plain,
    refuse_error,
    response,
    string,
    whole,
)

Pieces = list[tuple[str, str]]

_ANTHROPIC = {
    "message_start",
    "content_block_start",
    "content_block_delta",
    "content_block_stop",
    "message_delta",
    "message_stop",
    "ping",
}
# What adds to an answer: in which channel, and for Anthropic in which field of its block. A signature is on none.
_RESPONSES_DELTAS = {
    "response.output_text.delta": "text",
    "response.refusal.delta": "refusal",
    "response.reasoning_text.delta": "reasoning",
    "response.reasoning_summary_text.delta": "reasoning",
    "response.function_call_arguments.delta": "tool",
    "response.custom_tool_call_input.delta": "tool",
}
_ANTHROPIC_DELTAS = {
    "text_delta": ("text", "text"),
    "thinking_delta": ("thinking", "reasoning"),
    "input_json_delta": ("partial_json", "tool"),
    "signature_delta": ("signature", ""),
}
# What the SDKs' stream helpers say again in their own words, beside the chunks themselves.
_ECHOES = ("content.", "refusal.", "tool_calls.", "logprobs.")


class Reader:
    """Read a streamed answer.

    ``feed`` each chunk, then ``finish``. *max_chars* bounds what is kept, over all channels; a chunk without text
    counts as one. Exceeding it is a `ProviderError`, as is everything that `read` refuses.
    """

    def __init__(self, *, max_chars: int = 4 << 20) -> None:
        self._format: _Format | None = None
        self._left = max_chars
        self._max = max_chars

    def feed(self, chunk: object) -> Pieces:
        """Take a chunk and return the ``(channel, text)`` that it adds, in order.

        *chunk* is text, or a chat.completion.chunk, Responses event or Anthropic event as a dict or an SDK's object.
        The channels are ``text``, ``reasoning``, ``refusal`` and ``tool`` (arguments of tool calls). A half of a
        surrogate pair waits for its other half.
        """
        pieces = self._as(_Text).feed(chunk) if isinstance(chunk, str) else self._object(chunk)
        self._left -= sum(len(text) for _, text in pieces) or 1
        if self._left < 0:
            raise ProviderError(f"the stream is longer than {self._max} characters; it was cut off and nothing is kept")
        return [piece for piece in pieces if piece[0]]

    def finish(self) -> Answer:
        """Return the answer, or raise `ProviderError` if its format's finish marker was missing.

        The end of the iterator is one only for text.
        """
        if self._format is None:
            raise ProviderError("the stream is empty")
        return self._format.finish()

    def _object(self, chunk: object) -> Pieces:
        kind = getattr(chunk, "type", None)
        if kind == "chunk":
            return self._object(getattr(chunk, "chunk", None))
        if isinstance(kind, str) and kind.startswith(_ECHOES):
            return []
        event = plain(chunk)
        refuse_error(event)
        kind = event.get("type")
        if "choices" in event:
            return self._as(_Chat).feed(event)
        if isinstance(kind, str) and kind.startswith("response."):
            return self._as(_Responses).feed(event)
        # Anthropic may add events at any time, and its SDK's helper does ("text", "input_json").
        if kind in _ANTHROPIC or (isinstance(kind, str) and isinstance(self._format, _Anthropic)):
            return self._as(_Anthropic).feed(event)
        raise ProviderError("a chunk of the stream is of no known format")

    def _as(self, format: type[_Format]) -> _Format:
        if self._format is None:
            self._format = format()
        elif not isinstance(self._format, format):
            raise ProviderError("the stream mixes chunks of different formats")
        return self._format


class _Format(Protocol):
    def feed(self, chunk: Any) -> Pieces: ...

    def finish(self) -> Answer: ...


class _Buffer:
    """Gather the pieces of one text, of which a surrogate pair may be cut in two."""

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._half = ""

    def add(self, piece: str) -> str:
        piece = self._half + piece
        self._half = piece[-1:] if "\ud800" <= piece[-1:] <= "\udbff" else ""
        return self._keep(piece[: len(piece) - len(self._half)])

    def close(self) -> str:
        half, self._half = self._half, ""
        return self._keep(half)

    def _keep(self, piece: str) -> str:
        piece = mend(piece)
        self._pieces.append(piece)
        return piece

    @property
    def text(self) -> str:
        return "".join(self._pieces)


class _Buffers(dict[Any, tuple[str, _Buffer]]):
    """Gather texts side by side, each under a key and on a channel."""

    def add(self, key: Any, channel: str, piece: str) -> Pieces:
        said = self.setdefault(key, (channel, _Buffer()))[1].add(piece)
        return [(channel, said)] if said else []

    def close(self) -> Pieces:
        return [(channel, half) for channel, buffer in self.values() if (half := buffer.close())]

    def text(self, key: Any) -> str:
        return self[key][1].text if key in self else ""

    def channel(self, name: str) -> str:
        return "".join(buffer.text for channel, buffer in self.values() if channel == name)


def _cut() -> ProviderError:
    return ProviderError("the stream ended without its finish marker: the answer was cut off")


def _late() -> ProviderError:
    return ProviderError("the stream goes on after its finish marker")


class _Text:
    """Read pieces of text; the end of the iterator is the finish marker."""

    def __init__(self) -> None:
        self._buffers = _Buffers()

    def feed(self, chunk: str) -> Pieces:
        return self._buffers.add(None, "text", chunk)

    def finish(self) -> Answer:
        self._buffers.close()
        return whole(Answer(self._buffers.text(None), finish_reason="stop"))


class _Chat:
    """Read chat.completion.chunks; the finish marker is the finish_reason of choice 0."""

    def __init__(self) -> None:
        self._buffers = _Buffers()
        self._calls: dict[int, dict[str, str]] = {}
        self._finish: str | None = None
        self._message: dict[str, Any] = {}
        self._annotations: list[Any] = []

    def feed(self, chunk: dict[str, Any]) -> Pieces:
        for name in ("model", "usage"):
            if chunk.get(name):
                self._message[name] = chunk[name]
        pieces: Pieces = []
        choices = objects(chunk["choices"])
        if len(choices) > 1 or (choices and choices[0].get("index", 0) != 0):
            raise ProviderError("the stream has several choices; ask for exactly one (n=1)")
        for choice in choices:
            if "delta" not in choice:
                raise ProviderError("a chunk of the stream is malformed: its choice has no delta")
            said = self._delta(mapping(choice["delta"]))
            if said and self._finish:
                raise _late()
            pieces += said
            reason = choice.get("finish_reason")
            if reason:
                self._finish = string(reason)
                pieces += self._buffers.close()
        return pieces

    def _delta(self, delta: Any) -> Pieces:
        if delta.get("function_call") or delta.get("audio"):
            raise ProviderError(
                "the stream holds a function_call or audio, which cloister does not carry; ask with tools"
            )
        self._annotations += delta.get("annotations") or []
        reasoning = string(delta.get("reasoning_content") or delta.get("reasoning"))
        pieces = self._buffers.add("reasoning", "reasoning", reasoning)
        pieces += self._buffers.add("text", "text", string(delta.get("content")))
        pieces += self._buffers.add("refusal", "refusal", string(delta.get("refusal")))
        for part in objects(delta.get("tool_calls") or []):
            index = self._index(part)
            call = self._calls.setdefault(index, {})
            function = mapping(part.get("function"))
            # Some servers repeat id and name in every chunk.
            for name, value in (("id", part.get("id")), ("name", function.get("name"))):
                if value and name not in call:
                    call[name] = string(value)
            pieces += self._buffers.add(index, "tool", string(function.get("arguments")))
        return pieces

    def _index(self, part: Any) -> int:
        index = part.get("index")
        if isinstance(index, int):
            return index
        # Some servers leave the index out, and send each call whole or with its id in front.
        return len(self._calls) if part.get("id") else max(len(self._calls) - 1, 0)

    def finish(self) -> Answer:
        if self._finish is None:
            raise _cut()
        calls = [
            {
                "id": call.get("id"),
                "type": "function",
                "function": {"name": call.get("name"), "arguments": self._buffers.text(index)},
            }
            for index, call in sorted(self._calls.items())
        ]
        said = {
            "content": self._buffers.text("text"),
            "reasoning_content": self._buffers.text("reasoning"),
            "refusal": self._buffers.text("refusal"),
            "annotations": self._annotations,
            "tool_calls": calls,
        }
        return completion({**self._message, "choices": [{"message": said, "finish_reason": self._finish}]})


class _Responses:
    """Read Responses events; the finish marker is response.completed or response.incomplete.

    It carries the whole response, which must say what was streamed, and nothing else: what was checked is what is kept.
    """

    def __init__(self) -> None:
        self._buffers = _Buffers()
        self._items: dict[int, Any] = {}
        self._answer: Answer | None = None

    def feed(self, event: dict[str, Any]) -> Pieces:
        kind = event["type"]
        if kind in _RESPONSES_DELTAS:
            if self._answer is not None:
                raise _late()
            channel = _RESPONSES_DELTAS[kind]
            key = (channel, event.get("output_index") if channel == "tool" else None)
            return self._buffers.add(key, channel, string(event.get("delta")))
        if kind == "response.output_item.done":
            self._items[int(event.get("output_index") or 0)] = mapping(event.get("item"))
        elif kind in ("response.completed", "response.incomplete"):
            if self._answer is not None:
                raise _late()
            return self._end(dict(mapping(event.get("response"))))
        elif kind in ("response.failed", "response.cancelled"):
            refuse_error(mapping(event.get("response")))
            raise ProviderError("the model reported that it failed")
        return []

    def _end(self, final: dict[str, Any]) -> Pieces:
        refuse_error(final)
        final["output"] = final.get("output") or [item for _, item in sorted(self._items.items())]
        answer = response(final)
        said = answer.channels
        pieces = self._buffers.close()
        for channel in ("text", "refusal"):
            pieces += self._rest(channel, said[channel], self._buffers.channel(channel))
        sent = [self._buffers.text(key) for key in sorted(key for key in self._buffers if key[0] == "tool")]
        if len(sent) > len(answer.tool_calls):
            raise self._contradiction()
        for number, call in enumerate(answer.tool_calls):
            pieces += self._rest("tool", arguments(call), sent[number] if number < len(sent) else "")
        # Reasoning is streamed in an order of its own; if it was not the same, all of it is shown once more.
        if said["reasoning"] and said["reasoning"] != self._buffers.channel("reasoning"):
            pieces.append(("reasoning", said["reasoning"]))
        self._answer = answer
        return pieces

    def _rest(self, channel: str, said: str, sent: str) -> Pieces:
        if not said.startswith(sent):
            raise self._contradiction()
        return [(channel, said[len(sent) :])] if len(said) > len(sent) else []

    @staticmethod
    def _contradiction() -> ProviderError:
        return ProviderError("the end of the stream contradicts what was streamed")

    def finish(self) -> Answer:
        if self._answer is None:
            raise _cut()
        return self._answer


class _Anthropic:
    """Read Anthropic events; the finish marker is message_stop, after a message_delta with a stop_reason."""

    def __init__(self) -> None:
        self._buffers = _Buffers()
        self._blocks: dict[object, dict[str, Any]] = {}
        self._message: dict[str, Any] = {}
        self._usage: dict[str, Any] = {}
        self._stopped = False

    def feed(self, event: dict[str, Any]) -> Pieces:
        kind = event["type"]
        if self._stopped and kind.startswith("content_block"):
            raise _late()
        if kind == "message_start":
            self._message = dict(mapping(event.get("message")))
            self._count(self._message.get("usage"))
        elif kind == "content_block_start":
            return self._start(event.get("index"), dict(mapping(event.get("content_block"))))
        elif kind == "content_block_delta":
            return self._delta(event.get("index"), mapping(event.get("delta")))
        elif kind == "message_delta":
            delta = mapping(event.get("delta"))
            self._message.update({name: value for name, value in delta.items() if value is not None})
            self._count(event.get("usage"))
        elif kind == "message_stop":
            self._stopped = True
            return self._buffers.close()
        return []

    def _count(self, usage: object) -> None:
        self._usage.update({name: value for name, value in mapping(usage).items() if value is not None})

    def _start(self, index: object, block: dict[str, Any]) -> Pieces:
        if index in self._blocks:
            raise ProviderError("the stream is malformed: it starts a block twice")
        self._blocks[index] = block
        pieces: Pieces = []
        for field, channel in (("text", "text"), ("thinking", "reasoning"), ("signature", "")):
            if block.get(field):
                pieces += self._buffers.add((index, field), channel, string(block[field]))
        return pieces

    def _delta(self, index: object, delta: Any) -> Pieces:
        if index not in self._blocks:
            raise ProviderError("the stream is malformed: it goes on with a block that it did not start")
        if delta.get("type") not in _ANTHROPIC_DELTAS:
            return []
        field, channel = _ANTHROPIC_DELTAS[delta["type"]]
        return self._buffers.add((index, field), channel, string(delta.get(field)))

    def finish(self) -> Answer:
        if not self._stopped:
            raise _cut()
        content = []
        for index, block in self._blocks.items():
            block = dict(block)
            for field in ("text", "thinking", "signature"):
                if (index, field) in self._buffers:
                    block[field] = self._buffers.text((index, field))
            if (index, "partial_json") in self._buffers:
                block["input"] = self._buffers.text((index, "partial_json"))
            content.append(block)
        return anthropic_message({**self._message, "content": content, "usage": self._usage})
