"""Processes that are killed at each step they take: at the first in one, at the second in the next, until one lives.

A step is a statement to SQLite, or a request to a server: there once before it is sent and once right after, when the
server has it and nobody is there for its answer. Where entries are delivered, it is what makes a file's content last:
once before, once after. Each is a fresh fork of one prepared process: no interpreter has to
start. Run as a program: where the store is, the folder for keys and ids, and what the processes do.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

from tests.fakes import House, Parrot, opened
from tests.test_budgets import PRICES

from cloister import Budget, Keyring, SessionNotFound
from cloister.providers.base import Request
from cloister.sinks import LineFile
from cloister.user import User

ROOT = Path(__file__).parent.parent
MOST_STEPS = 80
BUDGET = Budget(user_daily="9", tenant_daily="900", reply_tokens=50)
"""Of those who ``spend``."""
RESERVED = Decimal("0.05")
"""What a turn of theirs reserves for its reply alone."""

_left: int | None = None  # steps, once they count


def killed(url: str, folder: Path, action: str) -> dict[int, str]:
    """Give the id of the session of each process that did *action* and was killed at it; the last one lived.

    *url* may hold ``{number}``, for a store of its own for each. They are to be opened with `keys`.
    """
    Keyring.create_file(folder / "keys")
    done = subprocess.run(
        [sys.executable, "-m", "tests.killing", url, str(folder), action],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    count = int(done.stdout)
    assert count >= 3, "whatever it did took no step"
    return {number: (folder / f"{number}.id").read_text() for number in range(1, count + 1)}


def keys(folder: Path) -> Keyring:
    """Give the keys of the stores of `killed`."""
    return Keyring.from_file(folder / "keys")


def user_of(house: House, number: int) -> User:
    """Give whom the process of that *number* acted for."""
    return house.cloister.user(f"ana {number}")


def _step(_: object = None) -> None:
    """Take a step, or die if none is left."""
    global _left
    if _left is not None:
        _left -= 1
        if _left <= 0:
            os.kill(os.getpid(), signal.SIGKILL)


class _Socket(socket.socket):
    def send(self, data: Any, *flags: Any) -> int:
        if self.family != socket.AF_INET:  # a loop's own
            return super().send(data, *flags)
        _step()
        sent = super().send(data, *flags)
        _step()
        return sent


_connect = sqlite3.connect


def _connected(*arguments: Any, **options: Any) -> sqlite3.Connection:
    connection: sqlite3.Connection = _connect(*arguments, **options)
    connection.set_trace_callback(_step)
    return connection


class _Asked(Parrot):
    """Say in a file which questions a model was asked; that is a step too."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self._file = file

    async def complete(self, request: Request) -> Any:
        with self._file.open("a") as file:
            file.write(f"{request.messages[-1]['content']}\n")
        _step()
        return await super().complete(request)


async def _act(url: str, folder: Path, action: str, number: int) -> None:
    global _left
    options: dict[str, Any] = {}
    if action == "ship":
        options = {"sinks": [LineFile(folder / f"{number}.jsonl")]}
    elif action == "spend":
        options = {"provider": _Asked(folder / f"{number}.asked"), "budget": BUDGET, "prices": PRICES}
    async with opened(url.replace("{number}", str(number)), keyring=keys(folder), **options) as house:
        user = user_of(house, number)
        session = await user.start(system="Be kind.")
        await session.send("before")
        (folder / f"{number}.id").write_text(session.id)
        _left = number
        match action:
            case "send" | "spend":
                await session.send("question", idempotency_key="k")
            case "renew":
                house.clock.move(hours=1)
                await session.send("question")
            case "end":
                await session.end()
            case "erase":
                await user.erase()
            case "ship":
                for text in ("one", "two"):
                    await session.send(text)
                    with contextlib.suppress(SessionNotFound):
                        await house.ben.resume(session.id)
                    await house.cloister.vault.settle()
                    await _shipped(house, folder / f"{number}.jsonl")
        _left = None


async def _shipped(house: House, file: Path) -> None:
    """Wait until everything that is on record is in *file*."""
    last = (await house.entries())[-1]
    said = f'"number":{last.number},'
    assert house.cloister.shipper is not None
    house.cloister.shipper.kick()
    for _ in range(2_000):
        if said in _text(file):
            return
        await asyncio.sleep(0.001)
    raise AssertionError("nothing is delivered")


def _text(file: Path) -> str:
    return file.read_text() if file.exists() else ""


def _stepping(function: Callable[..., Any]) -> Callable[..., Any]:
    def stepping(*args: Any, **options: Any) -> Any:
        _step()
        result = function(*args, **options)
        _step()
        return result

    return stepping


def _main(url: str, folder: Path, action: str) -> int:
    """Print the number of the process that lived."""
    if not url.startswith("sqlite"):  # before the forks, or each would import them
        for name in ("asyncpg", "redis.asyncio.connection", "cloister.stores.postgres", "cloister.stores.redis"):
            importlib.import_module(name)
    if action == "ship":
        os.fsync, os.replace = _stepping(os.fsync), _stepping(os.replace)
    else:
        socket.socket = _Socket  # type: ignore[misc]
        sqlite3.connect = _connected  # type: ignore[assignment]
    for number in range(1, MOST_STEPS):
        child = os.fork()
        if not child:
            asyncio.run(_act(url, folder, action, number))
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status != -signal.SIGKILL:
            print(number)
            return status
    return 1


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1], Path(sys.argv[2]), sys.argv[3]))
