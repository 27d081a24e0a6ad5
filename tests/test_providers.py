"""Providers: the offline model, and HTTP against an upstream that behaves badly."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import gc
import json
import logging
import pickle
import subprocess
import sys
import traceback
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.upstreams import ANSWER, OK, WHOLE, Naps, Reply, Upstream, chunk, drop, endless, hang, http, refusal, stream

from cloister import wire
from cloister.errors import (
    ConfigurationError,
    OptionRefused,
    ProviderAuth,
    ProviderError,
    ProviderRateLimited,
    ProviderTimeout,
)
from cloister.model import Item, Usage
from cloister.providers import NAMES, connect
from cloister.providers.anthropic import Anthropic
from cloister.providers.base import Provider, Request
from cloister.providers.http import Key, Retries, Timeouts
from cloister.providers.offline import MODEL, Offline, answer
from cloister.providers.openai import PROFILES, OpenAICompatible
from cloister.providers.sse import Events

KEY = "sk-0123456789abcdefSECRET"
QUESTION = Request([{"role": "user", "content": "My name is Ana Lovelace, what is my name?"}])

# The offline model


def ask(*said: str, role: str = "user") -> str:
    return answer([*({"role": role, "content": text} for text in said[:-1]), {"role": "user", "content": said[-1]}])


@pytest.mark.parametrize(
    ("told", "asked", "said"),
    [
        ("My name is Ana.", "What is my name?", "Ana"),
        ("hi, my name's Ana, I live in Madrid", "what's my name", "Ana"),
        ("I'm Ana", "Who am I?", "Ana"),
        ("My name is Ana and my order number is #48291.", "What is my order number?", "#48291"),
        ("My name is Ana and my order number is #48291.", "What\u2019s my order status?", "#48291"),
        ("Order #48291 is late", "Where is my order?", "#48291"),
        ("I live in Madrid", "Where do I live?", "Madrid"),
        ("Please ship to 123 Maple St.", "Where will you ship it?", "123 Maple St"),
        ("The door code is 7431", "What is the door code?", "7431"),
        ("Remember the code ZEBRA-42.", "What is the code?", "ZEBRA-42"),
        ("My favourite colour is dark green.", "What is my favourite colour?", "dark green"),
        ("My email is ana@example.org.", "Do you know my email?", "ana@example.org"),
        ("my secret is: blue42", "what is my secret", "blue42"),
        ("My name is Ana. My order number is 48291.", "Tell me my name and my order number.", "Ana"),
    ],
)
def test_offline_remembers(told: str, asked: str, said: str) -> None:
    """The offline model says what it was told, by a user, a system text or a tool, and nothing if it was not told."""
    for role in ("user", "system", "tool"):
        assert said in ask(told, asked, role=role)
    assert ask(asked).startswith("Nobody has told me")
    assert said not in ask(told, asked, role="assistant")


def test_offline_latest_wins() -> None:
    """What was said last counts, and asking is not telling."""
    assert "Anna" in ask("My name is Ana.", "Sorry, my name is Anna.", "What is my name?")
    assert "Ana" in ask("My name is Ana.", "Is it true that my name is Ben?", "What is my name?")
    assert ask("What is the capital of France?") == "Nobody has told me that."


@given(st.text(st.sampled_from("my name is what order the code ?.#12") | st.characters(), max_size=2000))
def test_offline_takes_anything(text: str) -> None:
    """Any text gets some answer."""
    assert ask(text)


async def test_offline_streams() -> None:
    """A streamed answer comes word by word and reads as the whole one, with estimated usage and the model's name."""
    offline = Offline()
    whole = wire.read(await offline.complete(QUESTION))
    reader = wire.Reader()
    pieces = [piece async for chunk in offline.stream(QUESTION) for piece in reader.feed(chunk)]
    assert reader.finish() == whole
    assert len(pieces) == len(whole.text.split()) > 1
    assert whole.model == MODEL
    assert whole.usage is not None
    assert whole.usage.estimated


async def test_offline_fails() -> None:
    """Told to fail, it raises, at once or in the middle of a stream."""
    with pytest.raises(ProviderError):
        await Offline(fail=True).complete(QUESTION)
    chunks = []
    with pytest.raises(ProviderError):  # noqa: PT012
        async for chunk in Offline(fail=True, cut=2).stream(QUESTION):
            chunks.append(chunk)
    assert len(chunks) == 3


async def test_offline_is_cut() -> None:
    """Told to cut, it ends without a finish marker, which the reader takes for a failure."""
    reader = wire.Reader()
    async for piece in Offline(cut=2).stream(QUESTION):
        reader.feed(piece)
    with pytest.raises(ProviderError, match="finish marker"):
        reader.finish()
    whole = await Offline(cut=2).complete(QUESTION)
    with pytest.raises(ProviderError):
        wire.read(whole)


async def test_offline_hangs() -> None:
    """Told to hang, it waits until it is cancelled, and one can see that it does."""
    offline = Offline(hang=True)
    task = asyncio.create_task(offline.complete(QUESTION))
    await asyncio.wait_for(offline.hanging.wait(), 5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not offline.hanging.is_set()


async def test_offline_leaks() -> None:
    """Told to leak, it says the given text; each request can be watched."""
    seen: list[Request] = []
    offline = Offline(leak="Ben's order is #99817", watch=seen.append)
    assert wire.read(await offline.complete(QUESTION)).text.endswith("Ben's order is #99817")
    assert seen == [QUESTION]


# Connecting by name, keys, addresses


def test_connect() -> None:
    """Each name gives its provider, with its key from the environment; a provider and None stay what they are."""
    keys = {"HOLYSHEEP_API_KEY": "hs_1a2b3c", "OPENAI_API_KEY": KEY, "DEEPSEEK_API_KEY": KEY}
    keys["ANTHROPIC_API_KEY"] = "sk-ant-1a2b3c"
    for name in NAMES:
        provider = connect(name, environ=keys)
        assert provider is not None
        assert provider.name == name
        assert provider.model
        assert connect(provider) is provider
    assert connect(None) is None
    with pytest.raises(ConfigurationError, match="offline, holysheep, openai, deepseek, vllm, ollama, anthropic"):
        connect("gemini", environ=keys)


def test_profiles() -> None:
    """Each profile says when its default model was chosen, and HolySheep's is what its page says."""
    assert all(datetime.fromisoformat(profile.as_of) for profile in PROFILES.values())
    sheep = PROFILES["holysheep"]
    assert (sheep.base_url, sheep.model) == ("https://api.holysheep.ai/v1", "deepseek-chat")
    assert (sheep.variable, sheep.prefix) == ("HOLYSHEEP_API_KEY", "hs_")


def test_import_is_lazy() -> None:
    """The HTTP client is imported with the first HTTP provider, not before."""
    code = (
        "import sys; import cloister.providers as p, cloister.providers.openai, cloister.providers.anthropic\n"
        "p.connect('offline'); assert 'aiohttp' not in sys.modules\n"
        "p.connect('ollama'); assert 'aiohttp' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


BAD_KEYS = [
    "",
    "YOUR_API_KEY",
    "YOUR_HOLYSHEEP_API_KEY",
    "your-key-here",
    "<key>",
    "sk-<your key>",
    "sk-xxx",
    "sk-xxxxxxxxxxxxxxxx",
    "sk-...",
    "sk-changeme",
    "changeme",
    "sk-",
    "sk-abc def",
    " sk-abcdef",
    "sk-abcdef\n",
    "sk-abc\r\nx-evil: 1",
    "sk-äbc",
    "sk-abc\x00",
    "hs_abcdef",
    "sk-ant-abcdef",
    "0123456789abcdef",
]


@pytest.mark.parametrize("bad", BAD_KEYS)
def test_bad_key(bad: str) -> None:
    """A missing, placeholder or malformed key is refused with variable, form and remedy, and is never shown."""
    with pytest.raises(ConfigurationError) as caught:
        connect("openai", environ={"OPENAI_API_KEY": bad})
    text = str(caught.value)
    assert "OPENAI_API_KEY" in text
    assert "begins with sk-" in text
    assert "check_key=False" in text
    assert len(bad) < 4 or bad.strip() not in text.replace("begins with sk-", "")
    frames = "".join(
        line
        for frame in traceback.TracebackException.from_exception(caught.value, capture_locals=True).stack
        if "providers" in frame.filename and "test_" not in frame.filename
        for line in (frame.locals or {}).values()
    )
    assert len(bad) < 4 or bad.strip() not in frames


def test_key_check_can_be_overridden() -> None:
    """An unusual key passes if asked to; one that would break the header does not."""
    OpenAICompatible("openai", api_key="my-gateway-key", check_key=False)
    OpenAICompatible(base_url="https://llm.example/v1", model="m", api_key="my-gateway-key")
    OpenAICompatible(base_url="https://llm.example/v1", model="m")
    Anthropic(check_key=False)
    for provider in (OpenAICompatible, Anthropic):
        with pytest.raises(ConfigurationError):
            provider(api_key="sk-a\r\nx-evil: 1", check_key=False, base_url="https://llm.example", model="m")
    with pytest.raises(ConfigurationError, match="ANTHROPIC_API_KEY"):
        Anthropic(api_key=KEY)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "llm.example",
        "ftp://llm.example",
        "https://",
        "https://u:p@llm.example",
        "https://llm.example?a=1",
        "http://[x",
    ],
)
def test_bad_address(url: str) -> None:
    """An address that is none, or that would carry a secret, is refused."""
    with pytest.raises(ConfigurationError, match="base_url"):
        OpenAICompatible(base_url=url, model="m")


def test_key_in_clear() -> None:
    """A key travels unencrypted only on this machine, or if asked to."""
    with pytest.raises(ConfigurationError, match="allow_http"):
        OpenAICompatible(base_url="http://llm.example/v1", model="m", api_key=KEY)
    for url in ("http://localhost/v1", "http://127.0.0.1:1/v1", "http://[::1]/v1"):
        OpenAICompatible(base_url=url, model="m", api_key=KEY)
    OpenAICompatible(base_url="http://llm.example/v1", model="m", api_key=KEY, allow_http=True)
    OpenAICompatible(base_url="http://llm.example/v1", model="m")


def test_unknown_profile() -> None:
    """An unknown profile's error lists the known ones, and without one an address and a model are needed."""
    with pytest.raises(ConfigurationError, match="holysheep"):
        OpenAICompatible("gemini")
    with pytest.raises(ConfigurationError, match="base_url and model"):
        OpenAICompatible(model="m")


def test_key_hides() -> None:
    """The key is in no repr and no pickle, of the provider or of itself."""
    for provider in (OpenAICompatible("openai", api_key=KEY), Anthropic(api_key=KEY.replace("sk-", "sk-ant-"))):
        assert "SECRET" not in repr(provider)
        assert "SECRET" not in repr(vars(provider))
        for copier in (pickle.dumps, copy.deepcopy):
            with pytest.raises(TypeError, match="pickled"):
                copier(provider)
    assert "SECRET" not in repr([Key(KEY)])
    with pytest.raises(TypeError):
        pickle.dumps(Key(KEY))


# Server-sent events

STREAM = (
    b'\xef\xbb\xbfevent: x\r\ndata: {"a":1}\r\n\r\n: comment\n\ndata:two\ndata: lines\n\nid: 7\n\rdata: \xc3\xa4\r\r'
)


@given(st.lists(st.integers(3, len(STREAM))))
def test_events_any_cut(at: list[int]) -> None:
    """A body reads the same, wherever its bytes are cut, with any of the three line ends."""
    events, cuts = Events(), sorted(at)
    found = [
        event
        for i, j in zip([0, *cuts], [*cuts, len(STREAM)], strict=True)
        for event in (events.feed(STREAM[i:j]) if j > i else [])
    ]
    assert [*found, *events.feed(b"\n")] == [b'{"a":1}', b"two\nlines", b"\xc3\xa4"]


@pytest.mark.parametrize("piece", [b"data: 12345", b"data: 1\n", b": 12345", b"data: 1\n\n"])
def test_events_are_bounded(piece: bytes) -> None:
    """Neither a line, an event nor a body without end is kept."""
    events = Events(max_event=100, max_total=1000)
    with pytest.raises(ProviderError, match="longer than"):  # noqa: PT012
        for _ in range(200):
            events.feed(piece)


# An upstream


Connect = Callable[..., OpenAICompatible]


@pytest.fixture
async def provider(upstream: Upstream, naps: Naps) -> AsyncIterator[Connect]:
    """Make providers that speak to the upstream, with short timeouts, and close them."""
    async with contextlib.AsyncExitStack() as stack:

        def make(profile: str | None = None, **options: Any) -> OpenAICompatible:
            usual = {"base_url": upstream.url, "api_key": KEY, "model": "m", "sleep": naps}
            made = OpenAICompatible(profile, **{**usual, **options})
            stack.push_async_callback(made.close)
            return made

        yield make


async def drink(provider: Provider, request: Request = QUESTION) -> wire.Answer:
    reader = wire.Reader(max_chars=10_000)
    chunks = provider.stream(request)
    try:
        async for chunk in chunks:
            reader.feed(chunk)
    finally:
        await chunks.aclose()  # type: ignore[attr-defined]
    return reader.finish()


async def call(provider: Provider, streamed: bool) -> wire.Answer:
    return await drink(provider) if streamed else wire.read(await provider.complete(QUESTION))


both_ways = pytest.mark.parametrize("streamed", [False, True])


@both_ways
async def test_answers(upstream: Upstream, provider: Connect, streamed: bool) -> None:
    """A call sends the key, the messages and known options, and reads the answer, whole or streamed."""
    upstream.replies = [stream(*WHOLE) if streamed else OK]
    assert (await call(provider(), streamed)).text == "Hello"
    first, headers, body = upstream.requests[0]
    assert first == "POST /chat/completions HTTP/1.1"
    assert headers["authorization"] == f"Bearer {KEY}"
    assert "cookie" not in headers
    expected: dict[str, Any] = {"model": "m", "messages": QUESTION.messages}
    if streamed:
        expected |= {"stream": True, "stream_options": {"include_usage": True}}
    assert body == expected


async def test_connections_are_kept(upstream: Upstream, provider: Connect) -> None:
    """Calls after each other share a connection, streamed ones too."""
    one = provider()
    upstream.replies = [OK, stream(*WHOLE), OK]
    for streamed in (False, True, False):
        await call(one, streamed)
    assert upstream.connections == 1


async def test_bodies_are_allowlisted(upstream: Upstream, provider: Connect) -> None:
    """Options of the chat format are sent, pseudonyms where known, ``store: false`` to OpenAI; others are refused."""
    upstream.replies = [OK]
    options = {"temperature": 0.5, "safety_identifier": "p", "cache_salt": "s", "max_tokens": None, "n": 1}
    for profile in ("openai", "vllm", "deepseek"):
        await provider(profile).complete(Request(QUESTION.messages, "other", options))
    sent = [body for _, _, body in upstream.requests]
    usual = {"model": "other", "messages": QUESTION.messages, "temperature": 0.5}
    assert sent == [
        {**usual, "safety_identifier": "p", "store": False},
        {**usual, "cache_salt": "s"},
        usual,
    ]
    for name, value in (("store", True), ("n", 2), ("stream", False), ("conversation", "c"), ("messages", [])):
        with pytest.raises(OptionRefused) as caught:
            await provider("openai").complete(Request(QUESTION.messages, options={name: value}))
        assert caught.value.option == name
    assert len(upstream.requests) == 3


# Faults


@both_ways
@pytest.mark.parametrize(
    "fault",
    [refusal(f"{status} X") for status in (408, 409, 429, 500, 502, 503, 529)]
    + [drop, stream(end=b"", close=True), stream(b": wait\n\n", end=b"", close=True)],
)
async def test_retries(upstream: Upstream, provider: Connect, naps: Naps, fault: Reply, streamed: bool) -> None:
    """What may pass is tried again, after a while of random and growing length, and then answers."""
    upstream.replies = [fault, fault, stream(*WHOLE) if streamed else OK]
    assert (await call(provider(), streamed)).text == "Hello"
    assert len(upstream.requests) == 3
    assert 0 <= naps.taken[0] <= 0.5
    assert 0 <= naps.taken[1] <= 1


@both_ways
async def test_retries_end(upstream: Upstream, provider: Connect, streamed: bool) -> None:
    """Attempts are bounded."""
    upstream.replies = [refusal("500 X", code="server_error")]
    with pytest.raises(ProviderError, match=r"127\.0\.0\.1 failed \(500, server_error\)"):
        await call(provider(retries=Retries(attempts=4)), streamed)
    assert len(upstream.requests) == 4


@both_ways
@pytest.mark.parametrize("status", [400, 402, 404, 413, 422])
async def test_not_retried(upstream: Upstream, provider: Connect, status: int, streamed: bool) -> None:
    """What will not pass is not tried again."""
    upstream.replies = [refusal(f"{status} X", code="nope")]
    with pytest.raises(ProviderError, match=rf"{status}, nope"):
        await call(provider(), streamed)
    assert len(upstream.requests) == 1


@both_ways
async def test_retry_after(upstream: Upstream, provider: Connect, naps: Naps, streamed: bool) -> None:
    """The provider's own wish, in seconds or as a date, says how long to wait."""
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    late = [refusal("429 X", "retry-after: 7"), refusal("503 X", f"Retry-After: {date}")]
    upstream.replies = [*late, stream(*WHOLE) if streamed else OK]
    await call(provider(), streamed)
    assert naps.taken[0] == 7
    assert 25 < naps.taken[1] <= 30


async def test_retry_after_too_long(upstream: Upstream, provider: Connect, naps: Naps) -> None:
    """Nobody waits for longer than the cap or the time that is left; the error says how long it would be."""
    upstream.replies = [refusal("429 X", "retry-after: 3600")]
    with pytest.raises(ProviderRateLimited) as caught:
        await provider().complete(QUESTION)
    assert caught.value.retry_after == 3600
    upstream.replies = [refusal("429 X", "retry-after: 7")]
    with pytest.raises(ProviderRateLimited):
        await provider(timeout=timedelta(seconds=5)).complete(QUESTION)
    assert naps.taken == []


@both_ways
@pytest.mark.parametrize(
    ("replies", "unasked"),
    [
        ([refusal("429 X")], True),
        ([refusal("401 X")], True),
        ([refusal("500 X")], False),
        ([refusal("400 X")], False),  # some charge for what their filter refused
        ([drop, refusal("429 X")], False),
        ([drop, drop, refusal("401 X")], False),
    ],
)
async def test_it_says_whether_a_model_was_asked(
    upstream: Upstream, provider: Connect, replies: list[Reply], unasked: bool, streamed: bool
) -> None:
    """Only what failed before the model had the question, at each attempt, is known to have cost nothing."""
    upstream.replies = list(replies)
    with pytest.raises(ProviderError) as caught:
        await call(provider(retries=Retries(attempts=max(2, len(replies)))), streamed)
    assert caught.value.unasked is unasked
    assert not ProviderError("another").unasked


@both_ways
@pytest.mark.parametrize("status", [401, 403])
async def test_auth(upstream: Upstream, provider: Connect, status: int, streamed: bool) -> None:
    """A key that is not accepted is its own error, which names the variable and repeats nothing."""
    upstream.replies = [refusal(f"{status} X", message=f"Incorrect API key provided: {KEY}")]
    with pytest.raises(ProviderAuth, match="OPENAI_API_KEY") as caught:
        await call(provider("openai"), streamed)
    assert "SECRET" not in str(caught.value)


@both_ways
async def test_unknown_model(upstream: Upstream, provider: Connect, streamed: bool) -> None:
    """The error for an unknown model lists what there is."""
    missing = refusal("404 X", code="model_not_found", message="The model `m` does not exist")
    upstream.replies = [missing, http("200 OK", b'{"data": [{"id": "b"}, {"id": "a"}, {"id": "<script>"}, 7]}')]
    with pytest.raises(ProviderError, match=r"does not know the model m \(404\); it offers a, b$"):
        await call(provider(), streamed)
    assert upstream.requests[1][0] == "GET /models HTTP/1.1"
    for broken in (drop, http("200 OK", b"[]"), refusal("500 X")):
        upstream.replies = [missing, broken]
        with pytest.raises(ProviderError, match=r"does not know the model m \(404\)$"):
            await call(provider(), streamed)


@pytest.mark.parametrize("content", ["Ana \ud83d", object(), float("nan")])
async def test_unsendable(upstream: Upstream, provider: Connect, content: object) -> None:
    """A request that cannot be sent is refused without showing what is in it."""
    with pytest.raises(ConfigurationError) as caught:
        await provider().complete(Request([{"role": "user", "content": content}]))
    assert caught.value.__context__ is None
    assert "Ana" not in str(caught.value)


async def test_redirects_are_not_followed(upstream: Upstream, provider: Connect) -> None:
    """A redirect, which would carry key and conversation elsewhere, is an error."""
    upstream.replies = [http("307 X", b"", f"location: {upstream.url}/elsewhere")]
    with pytest.raises(ProviderError, match="redirects"):
        await provider().complete(QUESTION)
    assert len(upstream.requests) == 1


TORN = http("200 OK", b'{"choices": [')
SHORT = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 500\r\n\r\n{}"


async def short(writer: asyncio.StreamWriter) -> None:
    writer.write(SHORT)
    await writer.drain()
    writer.close()


async def no_http(writer: asyncio.StreamWriter) -> None:
    writer.write(b"220 smtp ready\r\n\r\n")
    await writer.drain()
    writer.close()


@pytest.mark.parametrize(
    "fault",
    [
        TORN,
        short,
        no_http,
        http("200 OK", b"[]"),
        http("200 OK", b"\xff"),
        http("200 OK", b"[" * 100_000),
        http("200 OK", b""),
        http("200 OK", json.dumps(ANSWER).encode(), "content-encoding: gzip"),
    ],
)
async def test_broken_answers(upstream: Upstream, provider: Connect, fault: Reply) -> None:
    """A whole answer that is torn, short, compressed or no JSON object is an error."""
    upstream.replies = [fault]
    with pytest.raises(ProviderError):
        await provider().complete(QUESTION)


@pytest.mark.parametrize(
    "fault",
    [
        OK,
        stream(),
        stream(*WHOLE[:2]),
        stream(*WHOLE[:2], WHOLE[3]),
        stream(*WHOLE[:2], end=b"", close=True),
        stream(*WHOLE[:3], end=b"", close=True),
        stream(*WHOLE[:2], end=b"zz\r\n"),
        stream(WHOLE[0], b"data: {torn\n\n", *WHOLE[1:]),
        stream(WHOLE[0], b"data: 7\n\n", *WHOLE[1:]),
        stream(WHOLE[0], b"data: {}\n\n", *WHOLE[1:]),
        stream(WHOLE[0], b"data: \xff\n\n", *WHOLE[1:]),
        stream(WHOLE[0], b'data: {"error": {"message": "Ana", "code": "server_error"}}\n\n'),
        stream(WHOLE[0], b"data: " + b"x" * (2 << 20) + b"\n\n"),
        endless(b"data: " + b"x" * 1000),
        endless(WHOLE[0] * 100),
    ],
)
async def test_broken_streams(upstream: Upstream, provider: Connect, fault: Reply) -> None:
    """A stream that is cut off, malformed, endless or none is an error, never a short answer."""
    upstream.replies = [fault]
    with pytest.raises(ProviderError):
        await drink(provider())


async def test_not_retried_after_text(upstream: Upstream, provider: Connect, naps: Naps) -> None:
    """Once anything was handed out, nothing is tried again: it would be said twice."""
    upstream.replies = [stream(WHOLE[0], end=b"", close=True), stream(*WHOLE)]
    chunks = provider().stream(QUESTION)
    await anext(chunks)
    with pytest.raises(ProviderError):
        await anext(chunks)
    assert len(upstream.requests) == 1
    assert naps.taken == []


SHORTLY = timedelta(milliseconds=100)


@pytest.mark.parametrize("fault", [hang, stream(end=b""), stream(*WHOLE[:2], end=b"")])
async def test_idle(upstream: Upstream, provider: Connect, fault: Reply) -> None:
    """A stream that falls silent, before or after its first words, is given up."""
    upstream.replies = [fault]
    with pytest.raises(ProviderTimeout):
        await drink(provider(timeout=Timeouts(idle=SHORTLY)))
    assert len(upstream.requests) == 1


@pytest.mark.parametrize("fault", [hang, endless(b": still thinking\n\n")])
@both_ways
async def test_total(upstream: Upstream, provider: Connect, fault: Reply, streamed: bool) -> None:
    """A call that goes on for too long is given up, even if something arrives all the time."""
    upstream.replies = [hang if not streamed else fault]
    with pytest.raises(ProviderTimeout):
        await call(provider(timeout=SHORTLY), streamed)


async def test_nobody_there(upstream: Upstream, provider: Connect, naps: Naps) -> None:
    """Where nobody listens, the error says so, after the bounded attempts."""
    with pytest.raises(ProviderError, match="cannot be reached"):
        await provider(base_url="http://127.0.0.1:1").complete(QUESTION)
    assert len(naps.taken) == 2


# Connections


@both_ways
async def test_cancelled_connection(upstream: Upstream, provider: Connect, streamed: bool) -> None:
    """A cancelled call closes its connection; its answer cannot arrive at the next caller."""
    one = provider()
    upstream.replies = [hang, OK]
    task = asyncio.create_task(call(one, streamed))
    await upstream.asked.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.wait_for(upstream.gone.wait(), 5)
    assert wire.read(await one.complete(QUESTION)).text == "Hello"
    assert upstream.connections == 2


async def test_abandoned_stream(upstream: Upstream, provider: Connect) -> None:
    """Closing a stream early cancels the call upstream and closes its connection."""
    one = provider()
    upstream.replies = [stream(*WHOLE[:2], end=b""), OK]
    chunks = one.stream(QUESTION)
    await anext(chunks)
    await chunks.aclose()
    await asyncio.wait_for(upstream.gone.wait(), 5)
    await one.complete(QUESTION)
    assert upstream.connections == 2


EVIL = json.dumps({"choices": [{"index": 0, "message": {"content": "Ben's"}, "finish_reason": "stop"}]}).encode()


@pytest.mark.parametrize("late", [False, True])
async def test_unread_bytes(upstream: Upstream, provider: Connect, late: bool) -> None:
    """A second answer on a connection, sent at once or later, is never taken for the next call's."""
    sent = asyncio.Event()

    async def twice(writer: asyncio.StreamWriter) -> None:
        await OK(writer)
        if late:
            await writer.drain()
            await one_is_done.wait()
        await http("200 OK", EVIL)(writer)
        await writer.drain()
        sent.set()

    one_is_done = asyncio.Event()
    one = provider()
    upstream.replies = [twice, OK]
    assert wire.read(await one.complete(QUESTION)).text == "Hello"
    one_is_done.set()
    await sent.wait()
    assert wire.read(await one.complete(QUESTION)).text == "Hello"
    assert upstream.connections == 2


async def test_cookies_are_not_kept(upstream: Upstream, provider: Connect) -> None:
    """What one call is given in a cookie does not travel with the next, which may be somebody else's."""
    one = provider()
    upstream.replies = [http("200 OK", json.dumps(ANSWER).encode(), "set-cookie: who=ana")]
    await one.complete(QUESTION)
    await one.complete(QUESTION)
    assert "cookie" not in upstream.requests[1][1]


async def test_proxies_are_not_followed(upstream: Upstream, provider: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy in the environment is not sent key and conversation."""
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    upstream.replies = [OK]
    await provider().complete(QUESTION)


# Secrets


async def _cancelled(provider: Provider, upstream: Upstream) -> None:
    task = asyncio.create_task(call(provider, False))
    await upstream.asked.wait()
    task.cancel()
    await task


@both_ways
@pytest.mark.parametrize(
    "fault",
    [
        drop,
        short,
        no_http,
        TORN,
        stream(*WHOLE[:2], end=b"zz\r\n"),
        refusal("400 X", message=f"bad key {KEY} and {KEY[:12]}***, Ana LOVELACE said no"),
        refusal("401 X", message=KEY),
        refusal("429 X", message=KEY),
        refusal("500 X", message=KEY, code=KEY),
        http("307 X", b"", "location: http://127.0.0.1:1/"),
        stream(WHOLE[0], b'data: {"error": {"message": "for Ana Lovelace and ' + KEY.encode() + b'"}}\n\n'),
    ],
)
async def test_key_is_not_shown(
    upstream: Upstream, provider: Connect, fault: Reply, streamed: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """No error, cause, context, log or traceback with locals shows the key; no error text shows the prompt."""
    caplog.set_level(logging.DEBUG)
    upstream.replies = [fault]
    with pytest.raises(ProviderError) as caught:
        await call(provider(), streamed)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    shown = "".join(traceback.TracebackException.from_exception(caught.value, capture_locals=True).format())
    assert "complete(" in shown or "stream" in shown
    assert "SECRET" not in shown + caplog.text
    assert "sk-012345" not in str(caught.value)
    assert "lovelace" not in str(caught.value).lower()
    assert "Ana" not in str(caught.value)
    assert len(str(caught.value)) < 400


async def test_cancellation_does_not_show_the_key(upstream: Upstream, provider: Connect) -> None:
    """The traceback of a cancelled call, which passed through the HTTP client, does not show the key either."""
    upstream.replies = [hang]
    with pytest.raises(asyncio.CancelledError) as caught:
        await _cancelled(provider(), upstream)
    shown = "".join(traceback.TracebackException.from_exception(caught.value, capture_locals=True).format())
    assert "SECRET" not in shown


async def test_nothing_is_left_open(upstream: Upstream, provider: Connect) -> None:
    """After close, no connection and no warning is left."""
    one = provider()
    upstream.replies = [OK]
    await one.complete(QUESTION)
    await one.close()
    await one.close()
    await asyncio.wait_for(upstream.gone.wait(), 5)
    gc.collect()


# Anthropic


def claude(upstream: Upstream, naps: Naps) -> Anthropic:
    return Anthropic(api_key="sk-ant-0123", base_url=upstream.url, model="m", sleep=naps)


def event(**fields: Any) -> bytes:
    return f"event: {fields['type']}\ndata: {json.dumps(fields)}\n\n".encode()


MESSAGE = {"type": "message", "role": "assistant", "model": "m", "stop_reason": "end_turn"}
CLAUDE = [
    event(type="message_start", message={**MESSAGE, "content": [], "stop_reason": None, "usage": {"input_tokens": 3}}),
    event(type="ping"),
    event(type="content_block_start", index=0, content_block={"type": "text", "text": ""}),
    event(type="content_block_delta", index=0, delta={"type": "text_delta", "text": "Hello"}),
    event(type="content_block_stop", index=0),
    event(type="message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 1}),
    event(type="message_stop"),
]


@both_ways
async def test_claude(upstream: Upstream, naps: Naps, streamed: bool) -> None:
    """Anthropic is asked in its own words and headers, and its answer is read."""
    whole = {
        **MESSAGE,
        "content": [{"type": "text", "text": "Hello"}],
        "usage": {"input_tokens": 3, "output_tokens": 1},
    }
    upstream.replies = [stream(*CLAUDE) if streamed else http("200 OK", json.dumps(whole).encode())]
    one = claude(upstream, naps)
    answer = await call(one, streamed)
    await one.close()
    assert (answer.text, answer.usage) == ("Hello", Usage(3, 1))
    first, headers, body = upstream.requests[0]
    assert first == "POST /v1/messages HTTP/1.1"
    assert headers["x-api-key"] == "sk-ant-0123"
    assert headers["anthropic-version"] == "2023-06-01"
    assert body["messages"] == [{"role": "user", "content": "My name is Ana Lovelace, what is my name?"}]
    assert body["max_tokens"] == 4096
    assert body.get("stream", False) == streamed


async def test_claude_options(upstream: Upstream, naps: Naps) -> None:
    """Options of the chat format are translated; what has no counterpart is refused."""
    tool = {"name": "f", "description": "d", "parameters": {"type": "object"}}
    options = {
        "max_tokens": 7,
        "temperature": 0.5,
        "stop": "END",
        "tools": [{"type": "function", "function": tool}],
        "tool_choice": "required",
        "parallel_tool_calls": False,
        "safety_identifier": "p",
        "cache_salt": "s",
    }
    upstream.replies = [http("200 OK", json.dumps(MESSAGE).encode())]
    one = claude(upstream, naps)
    await one.complete(Request(QUESTION.messages, options=options))
    for bad in ({"seed": 1}, {"response_format": {"type": "json_object"}}, {"n": 2}, {"tool_choice": "sometimes"}):
        with pytest.raises(OptionRefused) as caught:
            await one.complete(Request(QUESTION.messages, options=bad))
        assert caught.value.option in bad
    with pytest.raises(OptionRefused, match="input_audio"):
        await one.complete(Request([{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]))
    await one.close()
    assert {name: value for name, value in upstream.requests[0][2].items() if name != "messages"} == {
        "model": "m",
        "max_tokens": 7,
        "temperature": 0.5,
        "stop_sequences": ["END"],
        "tools": [{"name": "f", "description": "d", "input_schema": {"type": "object"}}],
        "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
        "metadata": {"user_id": "p"},
    }


@pytest.mark.parametrize(
    "fault",
    [
        stream(*CLAUDE[:-1]),
        stream(*CLAUDE[:4], end=b"", close=True),
        stream(*CLAUDE[:4], event(type="error", error={"type": "overloaded_error", "message": "Ana"})),
        refusal("404 X", type="not_found_error", message="model: m"),
    ],
)
async def test_claude_faults(upstream: Upstream, naps: Naps, fault: Reply) -> None:
    """A stream without its end, an error in it, and an unknown model are errors."""
    upstream.replies = [fault]
    one = claude(upstream, naps)
    with pytest.raises(ProviderError) as caught:
        await drink(one)
    await one.close()
    assert "Ana" not in str(caught.value)


async def test_loops_and_forks_get_connections_of_their_own(upstream: Upstream, provider: Connect) -> None:
    """A connection serves only the event loop and the process that opened it: a forked child opens another."""
    one = provider()
    upstream.replies = [OK]
    await one.complete(QUESTION)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.getpid", lambda: -1)  # as a forked child sees it
        await one.complete(QUESTION)
        await one.close()
    assert upstream.connections == 2


async def test_pool_is_not_shared_with_another_answer_in_parallel(upstream: Upstream, provider: Connect) -> None:
    """Many calls at once, whole and streamed, each get their own answer."""
    asked = 40

    async def echo(writer: asyncio.StreamWriter) -> None:
        text = upstream.requests[-1][2]["messages"][0]["content"]
        streamed = upstream.requests[-1][2].get("stream")
        whole = {"choices": [{"index": 0, "message": {"content": text}, "finish_reason": "stop"}]}
        reply = stream(chunk(text), *WHOLE[2:]) if streamed else http("200 OK", json.dumps(whole).encode())
        await reply(writer)

    upstream.replies = [echo]
    one = provider()

    async def ask_one(number: int) -> None:
        request = Request([{"role": "user", "content": f"question {number}"}])
        answer = await drink(one, request) if number % 2 else wire.read(await one.complete(request))
        assert answer.text == f"question {number}"

    await asyncio.gather(*(ask_one(number) for number in range(asked)))
    await asyncio.gather(*(ask_one(number) for number in range(asked)))
    assert upstream.connections <= asked


@pytest.mark.parametrize("make", [OpenAICompatible, Anthropic])
def test_timeout_in_seconds(make: Any) -> None:
    """A timeout may be seconds; what is no length of time is refused."""
    more = {"api_key": KEY, "model": "m", "base_url": "https://127.0.0.1/v1"}
    for good in (30, 0.5, timedelta(seconds=30), Timeouts()):
        make(**more, timeout=good)
    for bad in (True, "30", None, 0, -1, float("nan"), float("inf")):
        with pytest.raises(ConfigurationError, match="timeout must be"):
            make(**more, timeout=bad)


def test_objects_that_are_no_providers() -> None:
    """A class, and an object that lacks a part, are refused with what is missing."""
    wrong: Any = Offline
    with pytest.raises(ConfigurationError, match="Offline is a class"):
        connect(wrong)
    wrong = object()
    with pytest.raises(ConfigurationError, match="lacks name, model, complete, stream, close"):
        connect(wrong)


async def test_what_anthropic_signed_goes_to_nobody_else(upstream: Upstream, provider: Connect) -> None:
    """Thoughts and failures of tools that messages carry go back to Anthropic, and to no other service."""
    thought = {"type": "thinking", "thinking": "Figs.", "signature": "c2ln"}
    use = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    strange = {"type": "document", "source": {"type": "file", "file_id": "file_1"}}
    items = [
        Item("user", "Look."),
        Item(
            "assistant", "Well.", tool_calls=[use], extra={"thinking_blocks": [thought, strange, {"type": "thinking"}]}
        ),
        Item("tool", "broken", tool_call_id="call_1", extra={"is_error": True}),
    ]
    request = Request(wire.chat(items, carrying=True))
    upstream.replies = [OK, http("200 OK", json.dumps(MESSAGE).encode())]
    await provider("openai").complete(request)
    one = claude(upstream, Naps())
    await one.complete(request)
    await one.close()
    plain, signed = (body["messages"] for _, _, body in upstream.requests)
    assert plain == wire.chat(items)
    assert "thinking" not in str(plain)
    assert [block["type"] for block in signed[1]["content"]] == ["thinking", "text", "tool_use"]
    assert signed[1]["content"][0] == thought
    assert signed[2]["content"][0]["is_error"] is True
