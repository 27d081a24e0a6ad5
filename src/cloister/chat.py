"""A conversation in the terminal.

The loop runs only while something is asked of cloister; the prompt itself waits without it. So Ctrl-C at the prompt is
an ordinary interrupt, and Ctrl-C during a reply cancels the turn as any other cancellation does.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from cloister import terminal
from cloister.errors import CloisterError, ConfigurationError, SessionExpired

if TYPE_CHECKING:
    from cloister.client import AsyncCloister
    from cloister.session import Session
    from cloister.settings import Settings
    from cloister.user import User

T = TypeVar("T")

_HELP = """\
/history  show what was said in this session
/new      start another session; this one is kept
/end      end this session, which destroys it, and start another
/help     show this
/exit     leave; the session is kept (so does Ctrl-D)
Ctrl-C    stop the reply
To say something that begins with a slash, begin it with two."""


def talk(
    settings: Settings, user: str, tenant: str | None, session_id: str | None, *, new: bool, system: str | None
) -> int:
    """Hold a conversation until its input ends; give the exit code: 1 if something failed that nobody saw."""
    with asyncio.Runner() as runner:
        stack = contextlib.AsyncExitStack()
        try:
            cloister = runner.run(stack.enter_async_context(settings.open()))
            chat = Chat(runner, cloister, door(cloister, user, tenant), system)
            chat.begin(session_id, new=new)
            return chat.run()
        finally:
            runner.run(stack.aclose())


def door(cloister: AsyncCloister, user: str, tenant: str | None) -> User:
    """Give the door to what belongs to *user*, or say what to do about ``--tenant``."""
    if tenant is not None and cloister.tenancy == "single":
        raise ConfigurationError(
            "this store has no tenants: leave --tenant out, or set CLOISTER_TENANCY=required for a new store"
        )
    if tenant is None and cloister.tenancy == "required":
        raise ConfigurationError("this store, or this set-up, has tenants: name the user's with --tenant")
    return cloister.user(user, tenant=tenant)


class Chat:
    """Be one conversation in the terminal: the user's current session, and what is asked of it."""

    def __init__(self, runner: asyncio.Runner, cloister: AsyncCloister, user: User, system: str | None) -> None:
        self._runner = runner
        self._cloister = cloister
        self._user = user
        self._system = system
        self._session: Session
        self._failed = False

    def begin(self, session_id: str | None, *, new: bool) -> None:
        """Go on in the session that is asked for, in the latest, or in a new one, and say which."""
        if session_id is not None:
            self._session = self._wait(self._user.resume(session_id))
            return self._note(f"Going on with this session of {self._user.owner}.")
        # What a ledger lists, it cannot open: the conversation is in a token, which nobody here has kept.
        latest = [] if new or self._cloister.carried else self._wait(self._user.sessions(limit=1))
        if not latest:
            return self._start()
        self._session = latest[0]
        count = self._session.item_count
        self._note(f"Going on with the latest session of {self._user.owner}, {count} items long; /new starts another.")

    def run(self) -> int:
        """Take line after line until there is no more."""
        interactive = sys.stdin.isatty()
        if interactive:
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401 - `input` then edits lines and recalls earlier ones
        while True:
            try:
                said = input("> " if interactive else "")
            except EOFError:
                break
            except KeyboardInterrupt:
                self._note("\nCtrl-D or /exit leaves.")
                continue
            if said.strip() == "/exit":
                break
            try:
                self._take(said)
            except (CloisterError, ValueError) as error:
                self._complain(error)
        if interactive:
            terminal.say()
        if self._cloister.carried:
            self._note(f"The conversation is in this token; go on with --session {self._session.id}")
        return int(self._failed and not interactive)

    def _take(self, said: str) -> None:
        commands = {"/history": self._history, "/new": self._start, "/end": self._end, "/help": self._help}
        word = said.strip()
        if word in commands:
            commands[word]()
        elif word.startswith("/") and not word.startswith("//"):
            self._note(f"There is no command {word.split()[0]}; /help lists them.")
        elif word:
            self._say(said[1:] if word.startswith("//") else said)

    def _say(self, text: str) -> None:
        before = self._session.item_count
        try:
            self._wait(self._reply(text))
        except KeyboardInterrupt:
            terminal.say()
            self._note(f"Stopped; {self._what_became_of_it(before)}.")

    async def _reply(self, text: str) -> None:
        async with self._session.stream(text, system=self._system) as stream:
            async for piece in stream:
                terminal.write(piece)
        terminal.write("\n")
        reply = stream.reply
        self._session = reply.session
        if reply.notice:
            self._note(reply.notice)

    def _what_became_of_it(self, before: int) -> str:
        """Say whether a stopped turn was stored: Ctrl-C may come while it is, and a commit is never cut short."""
        try:
            self._session = self._wait(self._user.resume(self._session.id))
        except SessionExpired:
            return "the session is over"
        return (
            "nothing of it was kept" if self._session.item_count == before else "but the reply was whole, and is kept"
        )

    def _start(self) -> None:
        self._session = self._wait(self._user.start(system=self._system))
        self._note(f"A new session of {self._user.owner}: {self._session.stable_id}")

    def _end(self) -> None:
        self._wait(self._session.end())
        self._note("Ended: what was said in it is gone.")
        self._start()

    def _history(self) -> None:
        after = None
        while page := self._wait(self._session.history(limit=1_000, after=after)):
            for item in page:
                terminal.say(f"{item.role}: {item.text}")
            after = page[-1].id

    def _help(self) -> None:
        self._note(_HELP)

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(work)

    def _note(self, text: str) -> None:
        terminal.say(text, "dim", stderr=True)

    def _complain(self, error: Exception) -> None:
        """Show what a user of an application would be shown, and beside it what its operator would want to know."""
        self._failed = True
        if isinstance(error, CloisterError):
            terminal.say(error.notice, "yellow", stderr=True)
        terminal.say(f"({terminal.line(error)})", "dim", stderr=True)
