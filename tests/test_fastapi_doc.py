"""docs/fastapi.md keeps its word: both files run against the real SDK, and the change between them is small."""

from __future__ import annotations

import difflib
import functools
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from fastapi.testclient import TestClient

from cloister.providers.offline import answer

PAGE = Path(__file__).parent.parent / "docs" / "fastapi.md"
ANA, BEN = {"x-user": "ana"}, {"x-user": "ben"}


def _file(name: str) -> str:
    found = re.search(rf"^```python {re.escape(name)}\n(.*?)^```$", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert found, f"{PAGE.name} has no block {name}"
    return found[1]


class Model:
    """The other end of the SDK's connection: the offline model behind OpenAI's streaming API."""

    def __init__(self) -> None:
        self.asked: list[list[dict[str, Any]]] = []
        self.cut = False

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        asked = json.loads(request.content)
        self.asked.append(asked["messages"])
        words = re.findall(r"\S+\s*", answer(asked["messages"]))
        chunks = [_chunk({"content": word}) for word in words] + [_chunk({}, "stop")]
        sent = [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks] + ["data: [DONE]\n\n"]
        body = "".join(sent[:2] if self.cut else sent)
        return httpx2.Response(200, headers={"content-type": "text/event-stream"}, content=body.encode())


def _chunk(delta: Mapping[str, str], finish: str | None = None) -> dict[str, Any]:
    choice = {"index": 0, "delta": dict(delta), "finish_reason": finish}
    return {"id": "c", "object": "chat.completion.chunk", "created": 0, "model": "gpt-4.1", "choices": [choice]}


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture
def serve(model: Model, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[str], TestClient]]:
    """Give what runs a file of the page in a folder of its own, its SDK talking to `model`."""
    monkeypatch.chdir(tmp_path)
    client = functools.partial(
        openai.AsyncOpenAI,
        api_key="sk-for-a-test",
        http_client=openai.DefaultAsyncHttpxClient(transport=httpx2.MockTransport(model)),
    )
    monkeypatch.setattr(openai, "AsyncOpenAI", client)
    running: list[TestClient] = []

    def run(source: str) -> TestClient:
        names: dict[str, Any] = {"__name__": "page"}
        exec(compile(source, str(PAGE), "exec", dont_inherit=True), names)
        running.append(TestClient(names["app"]).__enter__())
        return running[-1]

    yield run
    for one in running:
        one.__exit__(None, None, None)


def _start(client: TestClient, who: dict[str, str]) -> str:
    return str(client.post("/chats", headers=who).json()["id"])


def _ask(client: TestClient, who: dict[str, str], chat: str, text: str) -> str:
    """Ask, and give the text that the events carry."""
    reply = client.post(f"/chats/{chat}", headers=who, json={"text": text})
    assert reply.status_code == 200, reply.text
    events = re.findall(r"^data: (.*)$", reply.text, re.MULTILINE)
    assert events.pop() == "[DONE]"
    return "".join(json.loads(event) for event in events)


def test_change_is_small() -> None:
    """From the file before to the one after, at most 12 lines are written and at most 12 go, as the page says."""
    diff = list(difflib.ndiff(_file("before.py").splitlines(), _file("after.py").splitlines()))
    written = sum(line.startswith("+ ") for line in diff)
    gone = sum(line.startswith("- ") for line in diff)
    assert (written, gone) == (8, 12)


def test_before_leaks(serve: Callable[[str], TestClient], model: Model) -> None:
    """The file before hands ana's words to whoever has the id, which is why the page was written."""
    client = serve(_file("before.py"))
    chat = _start(client, ANA)
    _ask(client, ANA, chat, "My name is Ana.")
    assert _ask(client, BEN, chat, "What is my name?") == "Your name is Ana."


def test_after_answers(serve: Callable[[str], TestClient], model: Model) -> None:
    """Ana is remembered over two requests, streamed."""
    client = serve(_file("after.py"))
    chat = _start(client, ANA)
    _ask(client, ANA, chat, "My name is Ana.")
    assert _ask(client, ANA, chat, "What is my name?") == "Your name is Ana."


def test_after_refuses(serve: Callable[[str], TestClient], model: Model) -> None:
    """Ana's chat is, for ben, byte for byte the 404 of one that does not exist, and no model is asked."""
    client = serve(_file("after.py"))
    chat = _start(client, ANA)
    _ask(client, ANA, chat, "My name is Ana.")
    asked = len(model.asked)
    foreign, absent, malformed = (
        client.post(f"/chats/{one}", headers=BEN, json={"text": "What is my name?"})
        for one in (chat, "cs_" + "a" * 43, "42")
    )
    assert (foreign.status_code, foreign.content) == (404, b'{"detail":"no such chat"}')
    assert absent.content == malformed.content == foreign.content
    assert len(model.asked) == asked


@pytest.mark.parametrize("name", ["before.py", "after.py"])
def test_cut_off(serve: Callable[[str], TestClient], model: Model, name: str) -> None:
    """A stream that is cut off is sent along by the file before, and leaves nothing in the one after."""
    client = serve(_with_events() if name == "after.py" else _file(name))
    chat = _start(client, ANA)
    model.cut = True
    broken = client.post(f"/chats/{chat}", headers=ANA, json={"text": "My name is Ana."})
    model.cut = False
    _ask(client, ANA, chat, "What is my name?")
    roles = [message["role"] for message in model.asked[-1]]
    if name == "before.py":
        assert roles == ["user", "assistant", "user"]
    else:
        assert roles == ["user"]
        assert broken.text.endswith(
            'event: error\ndata: "The assistant is not available right now. Please try again."\n\n'
        )


def _with_events() -> str:
    """Give the file after, with the page's last block in the place of its `events`."""
    source, count = re.subn(
        r"    async def events\(\):\n.*?\n\n(?=    return )",
        lambda _: _file("events.py") + "\n",
        _file("after.py"),
        flags=re.DOTALL,
    )
    assert count == 1
    return source.replace("import AsyncCloister\n", "import AsyncCloister, CloisterError\n")
