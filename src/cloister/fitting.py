"""What of one turn is sent to a model: the system text, the newest turns that its window holds, and what is new."""

from __future__ import annotations

from collections.abc import Sequence

from cloister import window
from cloister.errors import BudgetExceeded, OptionRefused
from cloister.guard import Check
from cloister.masks import noticed, said_before
from cloister.model import Item
from cloister.opened import Opened
from cloister.question import Question
from cloister.scrub.masking import Mask
from cloister.services import Services


class Fitting:
    """Fit what was said in an *opened* session to the window of a model. It is done once, until there is more."""

    def __init__(
        self,
        cloister: Services,
        opened: Opened,
        question: Question,
        said: Sequence[Item],
        mask: Mask,
        check: Check,
        system: Item | None,
        budget: int,
        beside: int,
    ) -> None:
        self._cloister, self._opened, self._mask, self._check = cloister, opened, mask, check
        self._model = question.model
        self._counter = cloister.counter(question.model)
        self._beside = beside
        self._budget = budget
        self.system = system or opened.system
        self.new = list(said)
        """What this turn adds to the session, as it is stored; without the answer."""
        self._fitted: list[Item] | None = None

    def add(self, item: Item) -> None:
        """Take in what comes between question and reply."""
        self.new.append(item)
        self._fitted = None

    def tokens(self) -> int:
        """Give how many tokens are sent, by cloister's own count."""
        return sum([item.tokens for item in self.items()]) + self._beside

    def check_whole(self) -> None:
        """Raise `BudgetExceeded` if the window leaves out anything of what was said."""
        opened, heads = self._opened, [self.system] if self.system else []
        tokens = sum(item.tokens for item in [*heads, *said_before(opened), *self.new]) + self._beside
        missing = 0 if opened.fresh else opened.head.count - len(opened.items)
        if missing or tokens + window.PRIMING_TOKENS > self._budget:
            raise BudgetExceeded(
                f"the conversation does not fit the model's window of {self._budget} tokens as a whole; "
                "let its oldest turns be left out, or begin another",
                too_long=True,
            )

    def check_sent(self) -> None:
        """Raise `OptionRefused` if nothing of what is new is sent: results of no call, or calls without a result.

        Where nothing is new, this is about what was said before and not answered.
        """
        new = self.new or window.unanswered(said_before(self._opened))
        if not new:
            raise OptionRefused(
                "there is nothing to answer in what the window holds; pass text, or messages", "messages"
            )
        if any(item.content or not item.tool_calls for item in new if item.role != "tool" and not item.unsent):
            return
        results = {item.tool_call_id for item in new if item.role == "tool"}
        if not any(item.role == "tool" and item.tool_call_id in results for item in self.items()):
            raise OptionRefused(
                "nothing of this is sent: the result of a tool needs its call before it, and a call its result",
                "messages",
            )

    def items(self) -> list[Item]:
        """Give the items that are sent, as the model gets them."""
        if self._fitted is None:
            history = [self._sent(item) for item in said_before(self._opened)]
            new = [self._sent(item) for item in self.new]
            system = None if self.system is None else self._sent(self.system)
            counter = self._counter
            heads = [system] if system else []
            if self._mask.note([*history, *new, *heads]):
                system = noticed(system, counter)
            system = self._check.planted(system, counter)
            whole = self._opened.unborn
            self._fitted = window.fit(
                history, new, self._budget, system=system, reserve=self._beside, whole=whole, counter=counter
            )
            # What the window drops does not come back. A call that lost its result is left out of its item there, so
            # items are known by their values.
            there = {id(item.values) for item in self._fitted if item.values}
            self._mask.note([*heads, *[item for item in (*history, *new) if id(item.values) in there]])
        return self._fitted

    def _sent(self, item: Item) -> Item:
        """Give a stored *item* as the model gets it, with its cost."""
        sent = self._mask.sent(item)
        # What was only put back was counted so when it was stored.
        return sent if sent is item or sent.values is None else self._cloister.counted(sent, self._model)
