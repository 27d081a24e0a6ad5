"""Measure what destinations add to a turn: a webhook that is fine, one that fails, one that hangs, against none.

Run it with ``python -m bench.sinks [TURNS]``. Each side opens a SQLite store of its own with the same webhook at
severity *info*, which is given every entry, and takes TURNS turns (1,000 unless given); after every fiftieth somebody
asks for a session that is not theirs. The receiver is another process. *turn* is how long a turn took by the clock,
*processor* what this process spent in all, delivery included, for each turn. Sides take turns, in another order each
round; a figure is a median, a ratio the median of the rounds' ratios. *delivered* is what the receiver had at the end.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import multiprocessing
import statistics
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from pathlib import Path

from bench.raw import QUESTION, REPLY

from cloister import AsyncCloister, Limits, SessionNotFound, shipping
from cloister.sinks import Webhook

ROUNDS, BREACH = 12, 50
SIDES = ("none", "fine", "failing", "hanging")


class Handler(BaseHTTPRequestHandler):
    """Answer as the path says, and count entries."""

    server: Server
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.path == "/hanging":
            time.sleep(3_600)
        if self.path == "/count":
            self.answer(200, b"%d" % self.server.entries)
            return
        if self.path == "/fine":
            self.server.entries += body.count(b'"writer":') - body.count(b'{"alarm"')
        self.answer(500 if self.path == "/failing" else 200)

    def answer(self, status: int, body: bytes = b"") -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    entries = 0


def serve(ready: Connection) -> None:
    server = Server(("127.0.0.1", 0), Handler)
    ready.send(server.server_address[1])
    server.serve_forever()


async def round_of(side: str, port: int, folder: Path, turns: int) -> tuple[float, float, int]:
    """Give the median time of a turn, the processor time for each, and how many entries were put on record."""
    sinks = [] if side == "none" else [Webhook(f"http://127.0.0.1:{port}/{side}", "x" * 32, "info")]
    began, took = time.process_time(), []
    async with AsyncCloister.open(
        f"sqlite:///{folder}/{side}.{time.monotonic_ns()}.db", limits=Limits.keep(), sinks=sinks
    ) as cloister:
        session = await cloister.user("ana").start()
        for number in range(turns):
            before = time.perf_counter()
            async with session.turn(QUESTION) as turn:
                await turn.finish(REPLY)
            took.append(time.perf_counter() - before)
            if number % BREACH == 0:
                try:
                    await cloister.user(f"user {number}").resume(session.id)
                except SessionNotFound:
                    pass
                else:
                    raise AssertionError("a session was opened by somebody else")
        await cloister.vault.settle()
        spent = time.process_time() - began
        entries = sum(count for count, _ in cloister.store.heads().values())
    if side == "fine":
        spent = time.process_time() - began  # what was left to deliver counts, what waits for nobody does not
    return statistics.median(took), spent / turns, entries


def delivered(port: int) -> int:
    """Ask the receiver how many entries it was given."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/count", data=b"x") as response:
        return int(response.read())


async def main(arguments: Sequence[str]) -> None:
    turns = int(arguments[0]) if arguments else 1_000
    logging.getLogger("cloister").setLevel(logging.ERROR)
    shipping.CLOSING = 1.0  # else each round of the hanging side ends with five seconds of waiting
    ready, there = multiprocessing.Pipe()
    receiver = multiprocessing.get_context("spawn").Process(target=serve, args=(there,), daemon=True)
    receiver.start()
    port = int(ready.recv())
    found: dict[str, list[tuple[float, float]]] = {side: [] for side in SIDES}
    expected = 0
    with tempfile.TemporaryDirectory() as folder:
        await round_of("none", port, Path(folder), turns // 4)
        for number in range(ROUNDS):
            for side in SIDES[number % 4 :] + SIDES[: number % 4]:
                gc.collect()
                took, spent, entries = await round_of(side, port, Path(folder), turns)
                found[side].append((took, spent))
                expected += entries if side == "fine" else 0
        print(f"{'webhook':>10} {'turn ms':>9} {'ratio':>6} {'processor ms':>13} {'ratio':>6}")
        for side in SIDES:
            columns = []
            for which in (0, 1):
                ratios = [each[which] / base[which] for each, base in zip(found[side], found["none"], strict=True)]
                columns += [statistics.median(each[which] for each in found[side]) * 1e3, statistics.median(ratios)]
            print(f"{side:>10} {columns[0]:9.3f} {columns[1]:6.2f} {columns[2]:13.3f} {columns[3]:6.2f}")
        print(f"delivered {delivered(port)} of {expected} entries that were put on record")
    receiver.terminate()
    receiver.join()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
