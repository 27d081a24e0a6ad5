"""What the calls of one turn have taken: time, and tokens, as providers tell or as far as it was heard."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from datetime import timedelta

import msgspec

from cloister import wire
from cloister.audit import Detail
from cloister.bills import Bill
from cloister.errors import ProviderError
from cloister.model import Item, Usage, Used
from cloister.services import Services

_COUNTS = {"input_tokens": 0, "output_tokens": 0}


class Calls:
    """Count the calls of one turn of *model*, each of which was *sent* so many tokens."""

    def __init__(self, cloister: Services, bill: Bill, model: str | None, sent: Callable[[], int]) -> None:
        self._cloister = cloister
        self._bill = bill
        self._model = model
        self._sent = sent
        self._heard: list[str] = []
        self.spent = Usage()
        self.provider: str | None = None
        """Who was asked, where it is a provider of cloister's own."""
        self._asked_at = time.perf_counter()
        self._first_at: float | None = None
        self._answered_at: float | None = None

    # --- when ---------------------------------------------------------------------------------------------------------

    def ask(self, provider: str | None = None) -> None:
        """Take the time at which a model is asked."""
        self._asked_at = time.perf_counter()
        self.provider = provider or self.provider

    def answered(self, failed: str | None = None) -> None:
        """Take the time at which the model's answer had come, or had not."""
        self._answered_at = now = time.perf_counter()
        telemetry = self._cloister.vault.telemetry
        if telemetry is not None and self.provider is not None:
            telemetry.waited("provider", now - self._asked_at, self.provider, failed)
            if self._first_at is not None:
                telemetry.waited("first token", self._first_at - self._asked_at, self.provider, None)

    def failed(self, reason: str) -> None:
        """Take the time at which it is known that no answer comes, unless there was one."""
        if self._answered_at is None:
            self.answered(reason)

    @property
    def latency(self) -> timedelta:
        assert self._answered_at is not None
        return timedelta(seconds=self._answered_at - self._asked_at)

    @property
    def time_to_first_token(self) -> timedelta | None:
        return None if self._first_at is None else timedelta(seconds=self._first_at - self._asked_at)

    # --- how much -----------------------------------------------------------------------------------------------------

    def hear(self, texts: Sequence[str]) -> None:
        """Take note of what was read of an answer that may break off."""
        self._heard += texts
        if texts and self._first_at is None:
            self._first_at = time.perf_counter()

    def heard(self) -> Item:
        """Give what was read of the answer, once."""
        item = Item("assistant", "".join(self._heard))
        self._heard.clear()
        return item

    def told(self, usage: Usage | None, heard: int) -> Usage:
        """Give what a call took as a provider told, and cloister's own count where it did not, or in half."""
        told = usage or Usage()
        if told.input_tokens and told.output_tokens:
            return told
        read, wrote = told.input_tokens or self._sent(), told.output_tokens or heard
        return msgspec.structs.replace(told, input_tokens=read, output_tokens=wrote, estimated=True)

    def spend(self, usage: Usage, model: str | None) -> None:
        """Count a call that *model* has answered."""
        self.spent += usage
        self._bill.spend(usage, model)

    def spend_unread(self, answer: object) -> None:
        """Count a call whose answer cannot be taken, as far as that says what it took."""
        told = Usage()
        with contextlib.suppress(ProviderError):
            told = wire.spent(answer)
        if told.total_tokens:
            self.spend(told, None)
        else:
            self._bill.give_up(unasked=False)

    def break_off(self) -> None:
        """Count the call of a stream that was left, or broke off."""
        if self._heard:
            self.guess(self._cloister.counted(self.heard(), self._model))

    def guess(self, heard: Item) -> Usage:
        """Count a call that came to no whole answer, for which nobody tells more than what was sent and *heard*."""
        guessed = Usage(self._sent(), heard.tokens, estimated=True)
        self.spent += guessed
        self._bill.break_off(guessed)
        return guessed

    @property
    def used(self) -> Used:
        return Used(self.spent, self._bill.nanos)

    def detail(self, model: str | None) -> dict[str, Detail]:
        """Give what was spent, as details of the turn's entry; *model* is the one that answered."""
        spent = {name: value for name, value in msgspec.structs.asdict(self.spent).items() if value}
        wanted = self._model or (self._cloister.model if self.provider else None)
        named = {"provider": self.provider, "model": wire.model_name(model) or wire.model_name(wanted)}
        return {**{name: value for name, value in named.items() if value}, **_COUNTS, **spent, **self._bill.detail()}
