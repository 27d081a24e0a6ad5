"""The fault injector: it finds where answers end, and every fault that it counts has happened."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import asyncpg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.servers import running_cluster, talk, until

from cloister.probe.framing import Frames, Mark, Postgres, Resp
from cloister.probe.proxy import Faults, Kind, Proxy, Reply, Schedule

# --- framing ----------------------------------------------------------------------------------------------------------


def _bulk(text: bytes) -> bytes:
    return b"$%d\r\n%s\r\n" % (len(text), text)


_LINES = st.binary(max_size=80).map(lambda text: text.replace(b"\r", b"").replace(b"\n", b""))
_SCALARS = st.one_of(
    st.builds(lambda kind, text: kind + text + b"\r\n", st.sampled_from([b"+", b"-", b",", b"("]), _LINES),
    st.integers().map(lambda number: b":%d\r\n" % number),
    st.sampled_from([b"$-1\r\n", b"*-1\r\n", b"_\r\n", b"#t\r\n", b"*0\r\n", b"%0\r\n", b"$0\r\n\r\n"]),
    st.binary(max_size=200).map(_bulk),
    st.binary(max_size=50).map(lambda text: b"=%d\r\n%s\r\n" % (len(text), text)),
    st.just(b"$9\r\n$1\r\n+OK\r\n\r\n"),  # what looks like the end of a value lies inside it
)


def _nested(children: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    many = st.lists(children, max_size=4)
    pairs = st.lists(st.tuples(children, children).map(b"".join), max_size=3)
    return st.one_of(
        many.map(lambda parts: b"*%d\r\n" % len(parts) + b"".join(parts)),
        many.map(lambda parts: b"~%d\r\n" % len(parts) + b"".join(parts)),
        pairs.map(lambda parts: b"%%%d\r\n" % len(parts) + b"".join(parts)),
        st.tuples(pairs, children).map(lambda given: b"|%d\r\n" % len(given[0]) + b"".join(given[0]) + given[1]),
    )


_VALUES = st.recursive(_SCALARS, _nested, max_leaves=12)
_PUSHES = st.lists(_VALUES, min_size=1, max_size=3).map(lambda parts: b">%d\r\n" % len(parts) + b"".join(parts))
_RESP = st.lists(
    st.one_of(_VALUES.map(lambda value: (value, "end")), _PUSHES.map(lambda value: (value, "aside"))), max_size=8
)
_MESSAGES = st.tuples(
    st.sampled_from([b"Z", b"D", b"C", b"T", b"1", b"2", b"E", b"N", b"G"]), st.binary(max_size=100)
).map(
    lambda given: (
        given[0] + (len(given[1]) + 4).to_bytes(4, "big") + given[1],
        {b"Z": "end", b"G": "now"}.get(given[0], "part"),
    )
)


def _found(frames: Frames, stream: bytes, cuts: list[int]) -> list[tuple[bytes, Mark]]:
    """Cut *stream* at *cuts*, and at what *frames* finds."""
    found: list[tuple[bytes, Mark]] = []
    held = b""
    places = sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in cuts)})
    for first, last in itertools.pairwise(places):
        chunk, at = stream[first:last], 0
        for end, mark in frames.ends(chunk):
            found.append((held + chunk[at:end], mark))
            held, at = b"", end
        held += chunk[at:]
    assert held == b""
    return found


@given(_RESP, st.lists(st.integers(min_value=0), max_size=30))
def test_resp_values_end_where_they_end(values: list[tuple[bytes, Mark]], cuts: list[int]) -> None:
    """However the stream is cut, each value comes out whole, and pushes are told from replies."""
    stream = b"".join(value for value, _ in values)
    assert _found(Resp(), stream, cuts) == values
    assert _found(Resp(), stream, list(range(len(stream)))) == values


@given(st.lists(_MESSAGES, max_size=12), st.lists(st.integers(min_value=0), max_size=30))
def test_postgres_messages_end_where_they_end(messages: list[tuple[bytes, Mark]], cuts: list[int]) -> None:
    """However the stream is cut, each message comes out whole, and it shows which end an answer."""
    stream = b"".join(message for message, _ in messages)
    assert _found(Postgres.answers(), stream, cuts) == messages
    assert _found(Postgres.answers(), stream, list(range(len(stream)))) == messages


@given(st.binary(max_size=200))
def test_anything_else_is_an_error(noise: bytes) -> None:
    """Bytes of another protocol are refused or waited for; nothing else is raised, and no end lies outside of them."""
    for frames in (Resp(), Postgres.answers()):
        with contextlib.suppress(ValueError):
            assert all(0 < end <= len(noise) for end, _ in frames.ends(noise))


@pytest.mark.parametrize(
    ("frames", "head"),
    [(Resp(), b"*2\r\n$1\r\nx\r\n$1073741824\r\n"), (Postgres.answers(), b"D" + (2**30).to_bytes(4, "big"))],
)
def test_framing_keeps_nothing(frames: Frames, head: bytes) -> None:
    """A value of a gigabyte costs no memory to find the end of."""
    chunk = b"\n" * 65_536
    frames.ends(head)
    tracemalloc.start()
    for _ in range(1_000):
        assert frames.ends(chunk) == []
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 100_000


# --- faults -----------------------------------------------------------------------------------------------------------


class Client:
    """A client that sends a word and is answered with it, unless something is between."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def ask(self, word: str) -> str:
        self.writer.write(b"*2\r\n$4\r\nECHO\r\n" + _bulk(word.encode()))
        return await self.answer()

    async def answer(self) -> str:
        """Read one answer: empty at the end of the connection, ``"silence"`` if none comes."""
        header = b""
        try:
            async with asyncio.timeout(0.3):
                header = await self.reader.readuntil(b"\n")
                return (await self.reader.readexactly(int(header[1:]) + 2))[:-2].decode()
        except TimeoutError:
            return "silence"
        except (ConnectionError, asyncio.IncompleteReadError):
            return "half" if header else ""


async def both(*given: Awaitable[Any]) -> list[Any]:
    """Wait for both at the same time."""
    return list(await asyncio.gather(*given))


Connect = Callable[[], Any]


@contextlib.asynccontextmanager
async def echoing(faults: Any = None, **options: Any) -> AsyncIterator[tuple[Proxy, Connect]]:
    """A server that echoes, behind a proxy; and what connects to that."""
    writers = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                *_, size = [await reader.readuntil(b"\n") for _ in range(4)]
                writer.write(size + await reader.readexactly(int(size[1:]) + 2))
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    clients: list[Client] = []

    async def connect() -> Client:
        clients.append(Client(*await asyncio.open_connection(proxy.host, proxy.port)))
        return clients[-1]

    try:
        async with Proxy("127.0.0.1", port, "resp", faults, **options) as proxy:
            yield proxy, connect
    finally:
        server.close()
        for writer in (*writers, *(client.writer for client in clients)):
            writer.transport.abort()
        for _ in range(3):  # until those who read from them have seen it
            await asyncio.sleep(0)


async def test_passes_what_it_is_given() -> None:
    """Without faults everything passes, large answers too."""
    async with echoing(largest=1_000) as (proxy, connect):
        client = await connect()
        for word in ("ana", "", "x" * 1_000_000, "ben"):
            assert await client.ask(word) == word
        assert not proxy.injected


async def test_swap() -> None:
    """Two clients that wait at the same time get each other's answers, and their next ones right."""
    async with echoing(Schedule({0: "swap"}), patience=5) as (proxy, connect):
        ana, ben = await connect(), await connect()
        assert await both(ana.ask("ana"), ben.ask("ben")) == ["ben", "ana"]
        assert await both(ana.ask("ana"), ben.ask("ben")) == ["ana", "ben"]
        assert proxy.injected == {"swap": 1}


async def test_nobody_to_swap_with() -> None:
    """A lone client gets its own answer after a while, and no swap is counted."""
    async with echoing(Schedule({0: "swap"}), patience=0.01) as (proxy, connect):
        assert await (await connect()).ask("ana") == "ana"
        assert not proxy.injected


@pytest.mark.parametrize(
    ("kind", "answers"),
    [
        ("repeat", ["one", "two", "two", "three"]),
        ("stale", ["one", "one", "three", "silence"]),
        ("drop", ["one", "silence", "three", "silence"]),
        ("hang", ["one", "silence", "silence", "silence"]),
        ("delay", ["one", "two", "three", "silence"]),
        ("truncate", ["one", "half", "", ""]),
        ("cut", ["one", "", "", ""]),
    ],
)
async def test_each_fault_happens(kind: Kind, answers: list[str]) -> None:
    """What a client gets when the second of three answers is treated so."""
    async with echoing(Schedule({1: kind}), delay=0.01) as (proxy, connect):
        client = await connect()
        got = [await client.ask(word) for word in ("one", "two", "three")]
        assert [*got, await client.answer()] == answers
        assert proxy.injected == {kind: 1}


async def test_rate_and_seed() -> None:
    """The rate is kept, and the same seed chooses the same faults."""

    async def run(seed: int) -> list[str]:
        async with echoing(Faults(0.1, ["stale"], seed)) as (proxy, connect):
            client = await connect()
            answers = [await client.ask(str(number)) for number in range(300)]
            assert 10 <= proxy.injected["stale"] <= 60
            assert proxy.injected["stale"] == sum(answer != str(number) for number, answer in enumerate(answers))
            return answers

    assert await run(1) == await run(1) != await run(2)


async def test_faults_for_what_is_asked() -> None:
    """A fault can be chosen by the request, and taken back while it runs."""

    def only_ben(reply: Reply) -> Kind | None:
        return "stale" if b"ben" in reply.request and reply.data else None

    async with echoing(only_ben) as (proxy, connect):
        client = await connect()
        assert [await client.ask(word) for word in ("ana", "ben", "eve")] == ["ana", "ana", "eve"]
        proxy.faults = None
        assert await client.ask("ben") == "ben"
        proxy.sever()
        assert await client.ask("ana") == ""


async def test_no_server() -> None:
    """Where nobody listens the client is told by the end of its connection."""
    async with Proxy("127.0.0.1", 1, "resp") as proxy:
        client = Client(*await asyncio.open_connection(proxy.host, proxy.port))
        assert await client.answer() == ""
        client.writer.close()


@pytest.mark.parametrize("length", [0, 7, 10_001, 1 << 31])
async def test_no_start_up_is_longer_than_the_servers_own(postgres: str, length: int) -> None:
    """Whoever announces a start-up that PostgreSQL would not take is cut off, before any of it is kept."""
    host, _, port = postgres.rpartition("@")[2].rpartition(":")
    async with Proxy(host, int(port), "postgres") as proxy:
        reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
        writer.write(length.to_bytes(4, "big"))
        assert await asyncio.wait_for(reader.read(), 5) == b""
        assert proxy.injected == {"unframed": 1}
        writer.close()


async def test_postgres_answers_are_crossed(postgres: str) -> None:
    """Two clients of PostgreSQL get each other's rows; start-up, copies and errors pass."""
    host, _, port = postgres.rpartition("@")[2].rpartition(":")
    async with Proxy(host, int(port), "postgres", patience=5) as proxy:
        dsn = postgres.replace(f"{host}:{port}", f"127.0.0.1:{proxy.port}") + "/postgres"
        ana, ben = await asyncpg.connect(dsn), await asyncpg.connect(dsn)
        whose = "SELECT $1::text"
        for client in (ana, ben):
            assert await client.fetchval(whose, "me") == "me"
            await client.execute("CREATE TEMP TABLE copied (x text)")
            assert await client.copy_records_to_table("copied", records=[("x" * 1_000,)] * 1_000) == "COPY 1000"
            assert len(await client.fetch("SELECT * FROM copied")) == 1_000
            with pytest.raises(asyncpg.UndefinedTableError):
                await client.fetch("SELECT * FROM nowhere")
        proxy.faults = Schedule({proxy.replies: "swap"})
        assert await both(ana.fetchval(whose, "ana"), ben.fetchval(whose, "ben")) == ["ben", "ana"]
        assert await both(ana.fetchval(whose, "ana"), ben.fetchval(whose, "ben")) == ["ana", "ben"]
        assert proxy.injected == {"swap": 1}
        for client in (ana, ben):
            client.terminate()


async def test_in_front_of_a_cluster() -> None:
    """Every node has its proxy, clients are sent to the proxies, and replicas follow through them."""
    with running_cluster() as cluster:
        async with contextlib.AsyncExitStack() as stack:
            ports = {}
            for node in cluster.nodes:
                proxy = await stack.enter_async_context(Proxy("127.0.0.1", node.port, "resp"))
                ports[node.port] = proxy.port
            await asyncio.to_thread(cluster.announce, ports)
            slot = int(talk(cluster.nodes[0].port, "CLUSTER", "KEYSLOT", "ana")[1:])
            holder = cluster.primary_of(slot)
            other = next(node for node in cluster.nodes if node is not holder)
            assert talk(other.port, "GET", "ana") == f"-MOVED {slot} 127.0.0.1:{ports[holder.port]}\r\n"
            await asyncio.to_thread(talk, ports[holder.port], "SET", "ana", "7")
            waited = lambda: talk(holder.port, "WAIT", "1", "100") == ":1\r\n"  # noqa: E731
            await asyncio.to_thread(until, waited, "the replica")
