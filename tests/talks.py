"""What the tests of both chat formats share: a model that answers in either, and one that is asked over no SDK."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Iterator, MutableMapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import anthropic
from tests.fakes import Parrot
from tests.serving import Served, credentials

from cloister.providers.base import Request


class Talker(Parrot):
    """A parrot that streams an answer in the format that it has, too: a completion or a Message."""

    broken: Exception | None = None
    """Raised by a stream, before its end."""

    async def stream(self, request: Request) -> AsyncGenerator[Any, None]:
        async for said in super().stream(request):
            pieces = list(pieces_of(said)) if isinstance(said, dict) else [said]
            for piece in pieces:
                yield piece
                await asyncio.sleep(0)
        if self.broken is not None:
            raise self.broken


def completion(content: str | None = None, finish: str = "stop", **said: Any) -> dict[str, Any]:
    """A whole answer of the chat format."""
    message = {"role": "assistant", "content": content, **said}
    usage = {
        "prompt_tokens": 9,
        "completion_tokens": 5,
        "prompt_tokens_details": {"cached_tokens": 4},
        "completion_tokens_details": {"reasoning_tokens": 2},
    }
    choice = {"index": 0, "message": message, "finish_reason": finish}
    return {"object": "chat.completion", "model": "m-1", "choices": [choice], "usage": usage}


def call(name: str = "look", id: str = "call_1", **arguments: Any) -> dict[str, Any]:
    """A call of a tool."""
    return {"id": id, "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}


def message(*content: dict[str, Any], stop: str = "end_turn") -> dict[str, Any]:
    """A whole answer of Anthropic's."""
    usage = {"input_tokens": 5, "output_tokens": 5, "cache_read_input_tokens": 4}
    head = {"type": "message", "role": "assistant", "model": "m-1", "stop_reason": stop, "usage": usage}
    return {**head, "id": "msg_theirs", "content": list(content)}


def pieces_of(said: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Give the chunks, or the events, that say the same."""
    if "choices" not in said:
        yield {"type": "message_start", "message": {**said, "content": []}}
        for index, block in enumerate(said["content"]):
            yield {"type": "content_block_start", "index": index, "content_block": block}
            yield {"type": "content_block_stop", "index": index}
        yield {"type": "message_delta", "delta": {"stop_reason": said["stop_reason"]}, "usage": said["usage"]}
        yield {"type": "message_stop"}
        return
    (choice,) = said["choices"]
    head = {"object": "chat.completion.chunk", "model": said["model"]}
    for name, value in choice["message"].items():
        parts: list[Any] = [value]
        if name in ("content", "refusal", "reasoning_content") and value:
            parts = [value[at : at + 3] for at in range(0, len(value), 3)]
        if name == "tool_calls":
            parts = [[{"index": number, **one}] for number, one in enumerate(value)]
        for part in parts:
            yield {**head, "choices": [{"index": 0, "delta": {name: part}, "finish_reason": None}]}
    yield {**head, "choices": [{"index": 0, "delta": {}, "finish_reason": choice["finish_reason"]}]}
    yield {**head, "choices": [], "usage": said["usage"]}


def at(session: str) -> Any:
    """Give the header that names a session."""
    return {"cloister-session": session}


def claude(served: Served, user: str = "ana", tenant: str = "acme", **options: Any) -> anthropic.AsyncAnthropic:
    """Give Anthropic's client of a back end that speaks for *user*; it asks once."""
    return anthropic.AsyncAnthropic(
        base_url="http://cloister",
        auth_token=credentials(tenant),
        default_headers={"Cloister-User": quote(user)},
        http_client=served.http,
        **{"max_retries": 0, **options},
    )


@dataclass
class Wire:
    """One request, asked without any client in between: what is sent is kept, and it can be left."""

    served: Served
    path: str
    body: Any
    headers: dict[str, str] = field(default_factory=dict)
    status: int = 0
    sent: bytes = b""
    ended: bool = False
    breaks: bytes | None = None
    """At what of the answer the connection breaks."""

    def __post_init__(self) -> None:
        self.gone = asyncio.Event()
        self.wrote = asyncio.Event()
        self._given = False

    async def ask(self) -> None:
        """Ask, until the answer is there or nobody waits for it any more."""
        said = {
            "authorization": f"Bearer {credentials('acme')}",
            "cloister-user": "ana",
            "content-type": "application/json",
            **self.headers,
        }
        scope: MutableMapping[str, Any] = {
            "type": "http",
            "method": "POST",
            "scheme": "http",
            "path": self.path,
            "raw_path": self.path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [(name.encode(), value.encode()) for name, value in said.items()],
            "client": ("127.0.0.1", 1),
        }
        await self.served.app(scope, self._receive, self._send)

    async def _receive(self) -> MutableMapping[str, Any]:
        if not self._given:
            self._given = True
            return {"type": "http.request", "body": json.dumps(self.body).encode()}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, event: MutableMapping[str, Any]) -> None:
        if self.breaks is not None and self.breaks in event.get("body", b""):
            raise ConnectionResetError
        if event["type"] == "http.response.start":
            self.status = event["status"]
            return
        self.sent += event.get("body", b"")
        self.ended = not event.get("more_body", False)
        self.wrote.set()
        await asyncio.sleep(0)
