"""The last scene of ``cloister demo``: Ana and Ben through a running server, with OpenAI's own client.

The server is a process of its own, as an operator starts it; the client is the ``openai`` package as it is installed.
Verdicts rest on what was answered and on what the server's store holds.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import importlib.util
import os
import re
import secrets
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from cloister.client import AsyncCloister
from cloister.errors import CloisterError

if TYPE_CHECKING:
    from openai import AsyncOpenAI

ANA_SAYS = "My name is Ana Lopez and my order number is 48213."
ANA_ASKS = "What is my name?"
BEN_ASKS = "What is my name, and what is my order number?"
NOT_KEPT = "My locker code is 5150."
_TENANT = "bookshop"
_NEEDED = ("starlette", "uvicorn", "uvloop", "httptools", "joserfc", "openai")
_PATIENCE = 60.0
_SERVES = re.compile(rb"cloister serves (http://\S+)")

Happened = Callable[[str], None]
Verdict = Callable[[str, bool], None]


@dataclass
class Talk:
    """Be what the two were answered."""

    ana: str
    ben: str
    stateless: str
    hers: list[str]
    """How Ben was refused Ana's ids."""
    nobodys: list[str]
    """How he was refused ids of nobody's."""


async def play(folder: Path, happened: Happened, verdict: Verdict) -> None:
    """Play the scene with a store in *folder*; say what is missing where something is."""
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing or os.name != "posix":
        where = (
            f"needs {', '.join(missing)}: pip install 'cloister[server]' openai" if missing else "needs a POSIX system"
        )
        happened(f"not played: it {where}")
        return
    store = f"sqlite:///{quote(str(folder))}/server.db"
    async with AsyncCloister.open(store, tenancy="required") as cloister:
        await cloister.credentials.add_tenant(_TENANT)
        key = (await cloister.credentials.new_key(_TENANT)).secret
    async with _serving(store, folder) as url:
        happened(f"cloister serve answers at {url}, for the tenant {_TENANT}")
        talk = await _talk(url, key)
    happened(f"Ana, in a conversation that she began as responses, now as a streamed chat: {ANA_ASKS} → {talk.ana}")
    happened(f"Ben, with the same key and his own name: {BEN_ASKS} → {talk.ben}")
    happened(f"Ben tries Ana's conversation and response: {talk.hers[0]}")
    happened(f"a chat completion without a session: {talk.stateless}")
    hers = all(word not in talk.ben for word in ("Ana", "Lopez", "48213"))
    verdict("each is answered from what that one said, and from nothing else", "Ana Lopez" in talk.ana and hers)
    refused = all(one.startswith("404 not_found") for one in talk.hers)
    verdict("Ana's ids are refused to Ben as ids of nobody's are, byte for byte", refused and talk.hers == talk.nobodys)
    said, recorded = await _held(store)
    verdict(
        "the store holds each one's words for that one alone, and nothing of the chat without a session",
        said == {"ana": [[ANA_SAYS, ANA_ASKS]], "ben": [[BEN_ASKS]]} and "5150" in talk.stateless,
    )
    happened(f"on record: {len(recorded)} times access.foreign")
    verdict("every attempt is on record, and whose it was", recorded == [("ben", "ana")] * len(talk.hers))


@contextlib.asynccontextmanager
async def _serving(store: str, folder: Path) -> AsyncIterator[str]:
    """Run a server over *store* inside the block, which is given its URL."""
    # In a folder without cloister.toml, and without the settings of whoever plays: this store alone is served.
    environ = {name: value for name, value in os.environ.items() if not name.startswith("CLOISTER_")}
    command = ("-m", "cloister", "serve", "--port", "0", "--provider", "offline", "--store", store)
    process = await asyncio.create_subprocess_exec(
        sys.executable, *command, cwd=folder, env=environ, stderr=asyncio.subprocess.PIPE
    )
    assert process.stderr is not None
    try:
        await asyncio.to_thread(importlib.import_module, "openai")  # takes as long as the server to start: meanwhile
        said = b""
        async with asyncio.timeout(_PATIENCE):
            while (found := _SERVES.search(said)) is None:
                line = await process.stderr.readline()
                if not line:
                    raise CloisterError(f"the server did not start: {said.decode(errors='replace').strip()}")
                said += line
        yield found[1].decode()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            await asyncio.wait_for(process.communicate(), _PATIENCE)
        except TimeoutError:
            process.kill()
            await process.communicate()


def _client(url: str, key: str, user: str) -> AsyncOpenAI:
    """Make the client of an application that asks for *user*."""
    from openai import AsyncOpenAI, DefaultAsyncHttpxClient

    # Without the environment's proxies, which do not reach this machine's own ports.
    http = DefaultAsyncHttpxClient(trust_env=False)
    return AsyncOpenAI(base_url=f"{url}/v1", api_key=key, default_headers={"Cloister-User": user}, http_client=http)


async def _talk(url: str, key: str) -> Talk:
    async with _client(url, key, "ana") as ana, _client(url, key, "ben") as ben:
        hers = (await ana.conversations.create()).id
        told = await ana.responses.create(conversation=hers, input=ANA_SAYS)
        stream = await ana.chat.completions.create(
            model="offline",
            messages=[{"role": "user", "content": ANA_ASKS}],
            stream=True,
            extra_headers={"Cloister-Session": hers},
        )
        streamed = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
        his = (await ben.conversations.create()).id
        answered = await ben.responses.create(conversation=his, input=BEN_ASKS)
        chat = await ben.chat.completions.create(
            model="offline",
            messages=[
                {"role": "user", "content": NOT_KEPT},
                {"role": "assistant", "content": "I will remember it."},
                {"role": "user", "content": "What is my locker code?"},
            ],
        )
        return Talk(
            ana=streamed,
            ben=answered.output_text,
            stateless=chat.choices[0].message.content or "",
            hers=await _tried(ben, hers, told.id),
            nobodys=await _tried(ben, *_nobodys(told.id)),
        )


def _nobodys(response: str) -> tuple[str, str]:
    """Make up ids of a conversation and a response, of the shape that *response* has."""
    made_up = secrets.token_urlsafe(32)
    _, position, item = response.rsplit("_", 2)
    return f"conv_{made_up}", f"resp_{made_up}_{position}_{item}"


async def _tried(client: AsyncOpenAI, conversation: str, response: str) -> list[str]:
    """Give how each way of reaching a conversation and a response was answered."""
    question: Any = [{"role": "user", "content": BEN_ASKS}]
    in_session = {"Cloister-Session": conversation}
    attempts: list[Awaitable[Any]] = [
        client.conversations.retrieve(conversation),
        client.conversations.items.list(conversation),
        client.responses.create(conversation=conversation, input=BEN_ASKS),
        client.responses.retrieve(response),
        client.responses.create(previous_response_id=response, input=BEN_ASKS),
        client.chat.completions.create(model="offline", messages=question, extra_headers=in_session),
    ]
    return [await _answer(attempt) for attempt in attempts]


async def _answer(attempt: Awaitable[Any]) -> str:
    """Give status, code and body of a refusal."""
    from openai import APIStatusError

    try:
        await attempt
    except APIStatusError as error:
        return f"{error.status_code} {error.code}: {error.response.text}"
    return "answered"


async def _held(store: str) -> tuple[dict[str, list[list[str]]], list[tuple[str | None, str | None]]]:
    """Give what each of the two has said in each session that *store* holds, and who reached for whose on record."""
    said: dict[str, list[list[str]]] = {}
    async with AsyncCloister.open(store, tenancy="required") as cloister:
        for name in ("ana", "ben"):
            sessions = await cloister.user(name, tenant=_TENANT).sessions()
            histories = [await session.history() for session in sessions]
            said[name] = [[item.text for item in history if item.role == "user"] for history in histories]
        owners = {audit_id: owner.user for audit_id, owner in (await cloister.store.audit_owners()).items()}
        entries = (await cloister.store.audit_tail(200)).entries
    foreign = [entry for entry in entries if entry.event == "access.foreign"]
    return said, [(owners.get(entry.owner), owners.get(entry.other)) for entry in foreign]
