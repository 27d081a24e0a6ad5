"""Hundreds of people at once, over workers that are killed: at the end every session is read back and compared.

Each client knows what it asked, and what it was told. Afterwards each turn that was acknowledged is there once, in
order; one that was given up is there once or not at all; and nowhere is a word of anybody else's.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import random
import re
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import httpx2
import pytest
from tests.processes import Running, running

SECONDS = float(os.environ.get("CLOISTER_TEST_SOAK_SECONDS", "300"))
USERS = 200
SESSIONS = 3
KILLS = max(2, round(SECONDS / 15))
PAUSE = 1.0
"""How long a user thinks, at most, in seconds: who never does keeps two cores busy with nothing but their own turns."""
MOST_MEMORY = 256
"""MiB that a worker may come to hold."""
PATIENCE = 120
UNRATED = {
    f"CLOISTER_SERVER_{name}": "off"
    for name in ("REQUESTS_PER_MINUTE_USER", "REQUESTS_PER_MINUTE_TENANT", "TURNS_AT_ONCE_USER", "TURNS_AT_ONCE_TENANT")
}
_WORD = re.compile("Zq[a-z]{6}")

State = Literal["told", "unknown"]


@dataclass
class Chat:
    """Be a session as its user knows it: what was asked in it, and what became of that."""

    way: Literal["chat", "responses"]
    id: str | None = None
    turns: list[tuple[str, State, str]] = field(default_factory=list)
    how: dict[str, str] = field(default_factory=dict)
    """How each was asked, and what happened on the way: for whoever reads what went wrong."""


class Gone(Exception):
    """Be a request that its client gave up."""


@dataclass
class Person:
    """Be one user and their client, which tries again as the SDKs do."""

    word: str
    http: httpx2.AsyncClient
    key: str
    chance: random.Random
    chats: list[Chat] = field(default_factory=list)
    seen: Counter[str] = field(default_factory=Counter)
    heard: list[str] = field(default_factory=list)
    way: str = ""

    @property
    def headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.key}", "cloister-user": quote(f"user {self.word}")}

    async def live(self, until: float) -> None:
        """Talk until the time is up, in one session after the other."""
        while time.monotonic() < until:
            if len(self.chats) < SESSIONS:
                self.chats.append(Chat(self.chance.choice(("chat", "responses"))))
            await self.turn(self.chance.choice(self.chats))
            await asyncio.sleep(self.chance.uniform(0, PAUSE))

    async def turn(self, chat: Chat) -> None:
        """Ask once more in *chat*, and note what is known of it."""
        if chat.way == "responses" and chat.id is None:
            made = await self.tried("POST", "/v1/conversations", {}, {})
            chat.id = made.json()["id"]
        number = len(chat.turns)
        # The same first words, tried again without a key, might be a retry of what began another of these chats.
        first = f"My name is {self.word}, and this is chat {sum(bool(each.turns) for each in self.chats)}."
        question = f"Turn {number} of {self.word}. What is my name?" if number else first
        # Whoever began a session and went away knows of none to go on in.
        leaves = chat.id is not None and self.chance.random() < 0.05
        streamed = leaves or self.chance.random() < 0.5
        keyed = self.chance.random() < 0.3
        headers = {"idempotency-key": f"{self.word} {id(chat)} {number}"} if keyed else {}
        chat.turns.append((question, "unknown", ""))
        self.way = f"{'streamed' if streamed else 'whole'}{' keyed' * keyed}{' leaves' * leaves}"
        try:
            text, where = await self.asked(chat, question, headers, streamed, leaves)
        except Gone:
            self.seen["left"] += 1
            if not keyed:
                return
            text, where = await self.asked(chat, question, headers, streamed, leaves=False)
        chat.id, chat.how[question] = where, self.way
        chat.turns[-1] = (question, "told", text)
        self.seen["told"] += 1

    async def asked(
        self, chat: Chat, question: str, headers: Mapping[str, str], streamed: bool, leaves: bool
    ) -> tuple[str, str]:
        """Ask until there is an answer; give it, and the session in which it lies. Raises `Gone`."""
        if chat.way == "chat":
            body: dict[str, Any] = {"messages": [{"role": "user", "content": question}], "model": "any"}
            path, headers = "/v1/chat/completions", {**headers, "cloister-session": chat.id or "new"}
        else:
            body, path = {"input": question, "conversation": chat.id}, "/v1/responses"
        if not streamed:
            answer = await self.tried("POST", path, body, headers)
            return _text(answer.json()), answer.headers["cloister-session"]
        return await self.streamed(path, {**body, "stream": True}, headers, leaves)

    async def tried(
        self, method: str, path: str, body: Any, headers: Mapping[str, str], params: Mapping[str, str] | None = None
    ) -> httpx2.Response:
        """Ask, and again where a worker died or a session is busy."""
        async for tries in self.attempts():
            sent = {**self.headers, **headers, "x-stainless-retry-count": str(tries)}
            with self.unless_broken():
                answer = await self.http.request(method, path, json=body, headers=sent, params=params)
                if self.final(answer):
                    self.heard.append(answer.text)
                    return answer
        raise AssertionError("it never came back")

    async def streamed(self, path: str, body: Any, headers: Mapping[str, str], leaves: bool) -> tuple[str, str]:
        async for tries in self.attempts():
            sent = {**self.headers, **headers, "x-stainless-retry-count": str(tries)}
            with self.unless_broken():
                async with self.http.stream("POST", path, json=body, headers=sent) as answer:
                    if answer.status_code != 200:
                        await answer.aread()
                        self.final(answer)
                        continue
                    said = ""
                    async for part in answer.aiter_text():
                        said += part
                        if leaves:
                            raise Gone
                self.heard.append(said)
                text = _streamed(said)
                if text is not None:
                    return text, answer.headers["cloister-session"]
                self.seen[_failure(said)] += 1
                self.way += f", {_failure(said)}"
        raise AssertionError("it never came back")

    @contextlib.contextmanager
    def unless_broken(self) -> Iterator[None]:
        """Take note of a connection that broke off."""
        try:
            yield
        except httpx2.TransportError as error:
            self.way += f", {type(error).__name__}"

    async def attempts(self) -> AsyncIterator[int]:
        """Count attempts, with pauses between them as an SDK makes them, for a bounded time."""
        until, tries = time.monotonic() + PATIENCE, 0
        while time.monotonic() < until:
            yield tries
            tries += 1
            self.seen["again"] += 1
            await asyncio.sleep(min(0.05 * 2**tries, 2) * self.chance.uniform(0.75, 1))

    def final(self, answer: httpx2.Response) -> bool:
        """Say whether an SDK would take this for an answer; fail where it is one that nobody should be given."""
        self.seen[str(answer.status_code)] += 1
        self.way += f", {answer.status_code}"
        if answer.status_code in (409, 429, 503):
            return False
        assert answer.status_code == 200, answer.text
        return True

    # --- at the end -------------------------------------------------------------------------------------------------

    async def problems(self, everybody: set[str]) -> list[str]:
        """Read all back, and name everything that is not as this client knows it."""
        found = [f"crossed in an answer: {word}" for said in self.heard for word in _others(said, self.word, everybody)]
        for chat in self.chats:
            if chat.id is not None:
                stored = await self.read(chat.id)
                for problem in compare(chat.turns, stored):
                    found.append(f"{chat.way}: {problem} ({chat.how.get(problem.partition(': ')[2])})")
                found += [f"crossed: {word}" for word in _others(str(stored), self.word, everybody)]
        return found

    async def read(self, conversation: str) -> list[tuple[str, str]]:
        """Read a whole session through the API."""
        stored: list[tuple[str, str]] = []
        params = {"order": "asc", "limit": "100"}
        for _ in range(100):
            answer = await self.tried("GET", f"/v1/conversations/{conversation}/items", None, {}, params)
            page = answer.json()
            for entry in page["data"]:
                stored.append((entry["role"], "".join(part["text"] for part in entry["content"])))
            if not page["has_more"]:
                return stored
            params["after"] = page["last_id"]
        raise AssertionError("a session without end")


def compare(turns: list[tuple[str, State, str]], stored: list[tuple[str, str]]) -> list[str]:
    """Name what is lost, doubled, made up, in another order, or answered otherwise than its user was told."""
    questions = [text for role, text in stored if role == "user"]
    answers = dict(zip(questions, (text for role, text in stored if role == "assistant"), strict=False))
    roles = [role for role, _ in stored]
    found = [] if roles == ["user", "assistant"] * (len(roles) // 2) else ["half a turn"]
    found += [f"doubled: {text}" for text, count in Counter(questions).items() if count > 1]
    asked = [question for question, _, _ in turns]
    found += [f"made up: {text}" for text in questions if text not in asked]
    if questions != [text for text in asked if text in questions]:
        found.append("in another order")
    for question, state, told in turns:
        if state == "told" and question not in questions:
            found.append(f"lost: {question}")
        elif state == "told" and answers.get(question) != told:
            found.append(f"told {told!r}, stored {answers.get(question)!r}")
    return found


def _others(said: str, own: str, everybody: set[str]) -> set[str]:
    return (set(_WORD.findall(said)) & everybody) - {own}


def _text(answer: Any) -> str:
    if answer["object"] == "chat.completion":
        return str(answer["choices"][0]["message"]["content"])
    return "".join(part["text"] for item in answer["output"] for part in item.get("content", ()))


def _streamed(said: str) -> str | None:
    """Give the text of a stream that came to its end; None of one that did not."""
    events = [line.removeprefix("data: ") for line in said.splitlines() if line.startswith("data: ")]
    if events[-1:] == ["[DONE]"]:
        chunks = [json.loads(event) for event in events[:-1]]
        return "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk.get("choices", ()))
    with contextlib.suppress(ValueError, IndexError):
        last = json.loads(events[-1])
        if last.get("type") == "response.completed":
            return _text(last["response"])
    return None


def _failure(said: str) -> str:
    """Give why a stream did not come to its end, if it says so."""
    found = re.search(r'"code":"(\w+)"', said)
    return found[1] if found else "broken"


# --- the server -------------------------------------------------------------------------------------------------------


class Workers:
    """Be the workers of a server: killed now and then, and watched for what they hold."""

    def __init__(self, server: Running) -> None:
        self.server = server
        self.most = 0
        self.killed = 0
        self._log = threading.Thread(target=self._drain)
        self._log.start()

    def _drain(self) -> None:
        # A server whose log nobody reads stops when the pipe is full.
        assert self.server.process.stderr is not None
        while part := os.read(self.server.process.stderr.fileno(), 65_536):
            self.server.log += part.decode(errors="replace")

    def pids(self) -> list[int]:
        path = f"/proc/{self.server.process.pid}/task/{self.server.process.pid}/children"
        return [int(pid) for pid in Path(path).read_text().split()]

    async def fail(self, until: float, chance: random.Random) -> None:
        """Kill a worker at moments that nobody foresees, so many times."""
        span = (until - time.monotonic()) / KILLS
        for _ in range(KILLS):
            await asyncio.sleep(span * chance.uniform(0.6, 1))
            if pids := self.pids():
                os.kill(chance.choice(pids), signal.SIGKILL)
                self.killed += 1

    async def weigh(self, until: float) -> None:
        while time.monotonic() < until:
            for pid in self.pids():
                self.most = max(self.most, held(pid))
            await asyncio.sleep(0.5)

    def stop(self) -> int:
        self.server.process.send_signal(signal.SIGTERM)
        code = self.server.process.wait(60)
        self._log.join(10)
        return code


def held(pid: int) -> int:
    """Give how many MiB a process holds; none of one that is no more."""
    with contextlib.suppress(OSError):
        found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
        return int(found[1]) // 1024 if found else 0
    return 0


def command(*words: str, **environ: str) -> str:
    """Run a command of cloister's, and give what it says."""
    done = subprocess.run(
        [sys.executable, "-m", "cloister", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, **environ},
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.soak
@pytest.mark.parametrize("url", ["postgres", "redis"], indirect=True)
async def test_nothing_is_lost_doubled_or_crossed(url: str, tmp_path: Path) -> None:
    """Two hundred people talk while workers are killed; afterwards all is there that each was told, once and alone."""
    environ = {**UNRATED, "CLOISTER_KEYS": "first:" + base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()}
    command("tenants", "add", "acme", "--store", url, **environ)
    key = command("tenants", "keys", "new", "acme", "--store", url, **environ).split()[-1]
    chance = random.Random(7)
    words = {"Zq" + "".join(chance.choices("abcdefghijklmnopqrstuvwxyz", k=6)) for _ in range(USERS)}
    with running(tmp_path, "--store", url, "--provider", "offline", "--workers", "2", environ=environ) as server:
        workers = Workers(server)
        limits = httpx2.Limits(max_connections=USERS, max_keepalive_connections=USERS)
        async with httpx2.AsyncClient(base_url=server.url, limits=limits, timeout=60) as http:
            people = [Person(word, http, key, random.Random(word)) for word in sorted(words)]
            until = time.monotonic() + SECONDS
            async with asyncio.TaskGroup() as group:
                group.create_task(workers.fail(until, chance))
                group.create_task(workers.weigh(until))
                for person in people:
                    group.create_task(person.live(until))
            found = [each for some in await asyncio.gather(*(one.problems(words) for one in people)) for each in some]
        assert workers.stop() == 0
        seen = sum((person.seen for person in people), Counter[str]())
        print(f"{url.partition(':')[0]}: {dict(seen)}, {workers.killed} killed, {workers.most} MiB at most")
        assert found == []
        assert seen["told"] > USERS
        assert min(seen["left"], seen["again"]) > 0, "nobody ever went away, or tried again"
        assert server.log.count("a worker ended, with signal 9; another is started") == workers.killed > 1
        assert "Traceback" not in server.log
        assert workers.most < MOST_MEMORY
    assert "the audit log is whole" in command("audit", "verify", "--store", url, **environ)


def test_the_comparison_finds_what_is_wrong() -> None:
    """A turn that is lost, there twice, made up, moved, halved or answered otherwise is named; one given up is not."""
    told: list[tuple[str, State, str]] = [("a", "told", "1"), ("b", "unknown", ""), ("c", "told", "3")]
    right = [("user", "a"), ("assistant", "1"), ("user", "c"), ("assistant", "3")]
    assert compare(told, right) == []
    assert compare(told, [*right[:2], ("user", "b"), ("assistant", "2"), *right[2:]]) == []
    assert compare(told, right[:2]) == ["lost: c"]
    assert compare(told, [*right, *right[2:]]) == ["doubled: c", "in another order"]
    assert compare(told, [*right, ("user", "d"), ("assistant", "4")]) == ["made up: d", "in another order"]
    assert compare(told, [*right[2:], *right[:2]]) == ["in another order"]
    assert compare(told, right[:3]) == ["half a turn", "told '3', stored None"]
    assert compare(told, [*right[:3], ("assistant", "4")]) == ["told '3', stored '4'"]
    assert _others("Zqaaaaaa and Zqbbbbbb", "Zqaaaaaa", {"Zqaaaaaa", "Zqbbbbbb"}) == {"Zqbbbbbb"}
