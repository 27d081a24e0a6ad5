"""One of several processes that take turns in shared sessions: ``python -m tests.talker``; see `test_histories`.

What it saw goes to a file line by line, so that it is there even if the process is killed.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import msgspec
from tests.fakes import House, opened
from tests.histories import Note, ask, read

from cloister import Keyring
from cloister.errors import SessionBusy, SessionConflict, StoreUnavailable


async def work(house: House, note: Note, folder: Path, name: str, mine: range, given: list[tuple[str, str]]) -> None:
    sessions = [await house.cloister.user(user).resume(session_id) for user, session_id in given]
    for number in mine:
        if (folder / "stop").exists():
            return
        session = sessions[number % len(sessions)]
        try:
            if number % 5 == 0:
                await read(note, session)
            await ask(note, session, f"{name} {number:05}")
        except (StoreUnavailable, SessionBusy, SessionConflict):
            await asyncio.sleep(0.05)  # there is a server that has to come back


async def main(url: str, place: str, name: str, turns: str, workers: str, *ids: str) -> None:
    folder = Path(place)
    given = [(user, session_id) for user, _, session_id in (one.partition("=") for one in ids)]
    with (folder / f"{name}.log").open("wb", buffering=0) as log:
        async with opened(url, keyring=Keyring.from_file(folder / "keys")) as house:

            def note(event: object) -> None:
                log.write(msgspec.json.encode(event) + b"\n")

            ranges = [range(worker, int(turns), int(workers)) for worker in range(int(workers))]
            await asyncio.gather(*(work(house, note, folder, name, mine, given) for mine in ranges))


asyncio.run(main(*sys.argv[1:]))
