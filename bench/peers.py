"""What a turn costs beside what others offer: sessions of openai-agents, savers of LangGraph, histories of LangChain.

    python -m venv PEERS
    PEERS/bin/pip install . "openai-agents[sqlalchemy,redis,encrypt]" asyncpg aiosqlite redis hiredis uvloop \\
        langgraph langgraph-checkpoint-sqlite langgraph-checkpoint-postgres "psycopg[binary]" \\
        langchain-community langchain-postgres
    PEERS/bin/python -m bench.peers sqlite FOLDER
    PEERS/bin/python -m bench.peers postgresql://owner@host:port/postgres
    PEERS/bin/python -m bench.peers redis host:port

Peers come from their published packages, with default settings but for `limit=40` where it says so; which of them are
not installed is said. None of them asks whose a session is, and only EncryptedSession seals. A turn reads the newest 40
messages (all of them, where a peer's default is that) and adds a question and a reply, in one call where there is one.
Sides run in turn, A B A B …; a figure is a median, a ratio the median of the rounds' ratios. On PostgreSQL ours is
behind row-level security.
"""

from __future__ import annotations

import contextlib
import importlib
import secrets
import statistics
import sys
import tempfile
import uuid
import warnings
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import uvloop
from bench.raw import QUESTION, REPLY, TAIL, history, timed
from bench.turns import Ours

LENGTHS = (100, 10_000)
ROUNDS = 5


class Agents:
    """A session of openai-agents; *make* gives it for an id."""

    def __init__(self, make: Any, limit: int | None) -> None:
        self.make = make
        self.limit = limit

    async def start(self, count: int) -> Any:
        session = self.make(secrets.token_hex(16))
        await session.add_items(history(count))
        return session

    async def turn(self, session: Any) -> None:
        await session.get_items(limit=self.limit)
        await session.add_items(history(2))


class LangGraph:
    """A graph of one node, which answers, with a checkpointer."""

    def __init__(self, saver: Any) -> None:
        graph = importlib.import_module("langgraph.graph")

        async def answer(state: Any) -> dict[str, list[tuple[str, str]]]:
            return {"messages": [("ai", REPLY)]}

        built = graph.StateGraph(graph.MessagesState)
        built.add_node("answer", answer)
        built.add_edge(graph.START, "answer")
        self.graph = built.compile(checkpointer=saver)

    async def start(self, count: int) -> Any:
        session = {"configurable": {"thread_id": secrets.token_hex(16)}}
        roles = {"user": "user", "assistant": "ai"}
        messages = [(roles[message["role"]], message["content"]) for message in history(count)]
        await self.graph.aupdate_state(session, {"messages": messages}, as_node="answer")
        return session

    async def turn(self, session: Any) -> None:
        await self.graph.ainvoke({"messages": [("user", QUESTION)]}, session)


class LangChain:
    """A chat history of LangChain; *make* gives it for an id."""

    def __init__(self, make: Any) -> None:
        self.make = make
        messages = importlib.import_module("langchain_core.messages")
        self.roles = {"user": messages.HumanMessage, "assistant": messages.AIMessage}

    def messages(self, count: int) -> list[Any]:
        return [self.roles[message["role"]](message["content"]) for message in history(count)]

    async def start(self, count: int) -> Any:
        session = self.make(str(uuid.uuid4()))
        await session.aadd_messages(self.messages(count))
        return session

    async def turn(self, session: Any) -> None:
        await session.aget_messages()
        await session.aadd_messages(self.messages(2))


@contextlib.contextmanager
def _if_installed(name: str) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        print(f"left out: {name} ({error})")


def _agents(make: Any, sides: dict[str, Any]) -> None:
    """Add the sessions that *make* gives, as they are, bounded, and sealed by the peer's own wrapper."""
    memory = importlib.import_module("agents.extensions.memory")

    def sealed(session_id: str) -> Any:
        return memory.EncryptedSession(session_id, make(session_id), encryption_key="a key of the benchmark's")

    sides["agents, limit=40"] = Agents(make, TAIL)
    sides["agents, all"] = Agents(make, None)
    sides["EncryptedSession"] = Agents(sealed, None)


@contextlib.asynccontextmanager
async def on_sqlite(place: str) -> AsyncIterator[dict[str, Any]]:
    with tempfile.TemporaryDirectory(dir=place) as name:
        folder = Path(name)
        sides: dict[str, Any] = {"ours": Ours(folder / "ours.db")}
        async with contextlib.AsyncExitStack() as stack:
            with _if_installed("openai-agents"):
                agents = importlib.import_module("agents")
                _agents(lambda session_id: agents.SQLiteSession(session_id, folder / "agents.db"), sides)
            with _if_installed("LangChain"):
                histories = importlib.import_module("langchain_community.chat_message_histories")
                engine = importlib.import_module("sqlalchemy.ext.asyncio").create_async_engine(
                    f"sqlite+aiosqlite:///{folder / 'chain.db'}"
                )
                stack.push_async_callback(engine.dispose)
                sides["LangChain"] = LangChain(
                    lambda session_id: histories.SQLChatMessageHistory(session_id, connection=engine)
                )
            with _if_installed("LangGraph"):
                saver = importlib.import_module("langgraph.checkpoint.sqlite.aio").AsyncSqliteSaver
                opened = await stack.enter_async_context(saver.from_conn_string(str(folder / "graph.db")))
                sides["LangGraph"] = LangGraph(opened)
            yield sides


@contextlib.asynccontextmanager
async def on_postgres(url: str) -> AsyncIterator[dict[str, Any]]:
    turns = importlib.import_module("bench.postgres_turns")
    async with turns.fresh_database(url) as (owner, app), contextlib.AsyncExitStack() as stack:
        sides: dict[str, Any] = {"ours": Ours(app)}
        await owner.execute("GRANT ALL ON SCHEMA public TO cloister_app")
        with _if_installed("openai-agents"):
            memory = importlib.import_module("agents.extensions.memory")
            engine = importlib.import_module("sqlalchemy.ext.asyncio").create_async_engine(
                app.replace("postgresql://", "postgresql+asyncpg://")
            )
            stack.push_async_callback(engine.dispose)
            _agents(lambda session_id: memory.SQLAlchemySession(session_id, engine=engine, create_tables=True), sides)
        with _if_installed("LangChain"):
            chain = importlib.import_module("langchain_postgres").PostgresChatMessageHistory
            connection = await importlib.import_module("psycopg").AsyncConnection.connect(app)
            stack.push_async_callback(connection.close)
            await chain.acreate_tables(connection, "histories")
            sides["LangChain"] = LangChain(
                lambda session_id: chain("histories", session_id, async_connection=connection)
            )
        with _if_installed("LangGraph"):
            saver = importlib.import_module("langgraph.checkpoint.postgres.aio").AsyncPostgresSaver
            opened = await stack.enter_async_context(saver.from_conn_string(app))
            await opened.setup()
            sides["LangGraph"] = LangGraph(opened)
        yield sides


@contextlib.asynccontextmanager
async def on_redis(address: str) -> AsyncIterator[dict[str, Any]]:
    redis = importlib.import_module("redis.asyncio")
    prefix = f"bench-{secrets.token_hex(4)}:"
    sides: dict[str, Any] = {"ours": Ours(f"redis://{address}/0?prefix={prefix}")}
    client = redis.from_url(f"redis://{address}/0")
    try:
        with _if_installed("openai-agents"):
            memory = importlib.import_module("agents.extensions.memory")
            _agents(
                lambda session_id: memory.RedisSession(session_id, redis_client=client, key_prefix=prefix + "peer"),
                sides,
            )
        with _if_installed("LangChain"):
            histories = importlib.import_module("langchain_community.chat_message_histories")
            sides["LangChain"] = LangChain(
                lambda session_id: histories.RedisChatMessageHistory(
                    session_id, url=f"redis://{address}/0", key_prefix=prefix + "chain:"
                )
            )
        yield sides
    finally:
        async for key in client.scan_iter(match=f"{prefix}*", count=1_000):
            await client.delete(key)
        await client.aclose()


async def main() -> None:
    where = sys.argv[1]
    warnings.simplefilter("ignore", DeprecationWarning)  # of the peers'
    if where.startswith("postgresql://"):
        opening = on_postgres(where)
    else:
        opening = on_sqlite(sys.argv[2]) if where == "sqlite" else on_redis(sys.argv[2])
    async with opening as sides:
        ours = sides["ours"]
        await ours.open()
        print(f"{'ms per turn':>20}" + "".join(f"{name:>20}" for name in sides))
        for length in LENGTHS:
            sessions = {name: await side.start(length) for name, side in sides.items()}
            found: dict[str, list[float]] = {name: [] for name in sides}
            for name, side in sides.items():
                await timed(side.turn, sessions[name], 2)
            for _ in range(ROUNDS):
                for name, side in sides.items():
                    slow = length > 1_000 and name != "ours" and "limit" not in name
                    found[name].append(await timed(side.turn, sessions[name], 1 if slow else 12))
            print(f"{length:>20,}" + "".join(f"{statistics.median(times) * 1e3:20.2f}" for times in found.values()))
            ratios = [
                statistics.median(b / a for a, b in zip(found["ours"], found[name], strict=True)) for name in sides
            ]
            print(f"{'times ours':>20}" + "".join(f"{ratio:20.1f}" for ratio in ratios))
        await ours.close()


if __name__ == "__main__":
    uvloop.run(main())
