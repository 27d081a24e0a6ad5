"""What a session begins with that comes to be with its first turn; or passes, and is never stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from cloister.guard import remembered
from cloister.masks import masked
from cloister.model import Item
from cloister.opened import Opened
from cloister.scrub.masking import Mask
from cloister.services import Services
from cloister.stores.base import Fingerprint


@dataclass(frozen=True, slots=True)
class Seed:
    """Be what a session is to begin with; one that is ``passing`` begins anew with every turn."""

    system: Item | None = None
    title: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    items: tuple[Item, ...] = ()
    passing: bool = False

    def sow(self, said: Sequence[Item]) -> tuple[Seed, list[Item]]:
        """Give the same with what of the first messages is history already, and what is new.

        New is what came after the last answer; it must find room in the window, of what is older only the newest does.
        A system message at the very beginning takes the place of the system text where there is none. Where nothing is
        stored, and so nobody reads it again, all that stand there join it.
        """
        after = max([at for at, item in enumerate(said) if item.role == "assistant"], default=-1) + 1
        if after == len(said):
            after -= 1  # the beginning of the answer, which the model is to go on with
        items, new, system = [*self.items, *said[:after]], list(said[after:]), self.system
        first = items or new
        while first and _is_text(first[0]) and (system is None or self.passing) and len(items) + len(new) > 1:
            text = first.pop(0).text
            system = Item("system", text if system is None else f"{system.text}\n\n{text}")
            first = items or new
        return replace(self, items=tuple(items), system=system), new

    async def plant(
        self, cloister: Services, opened: Opened, mask: Mask, model: str | None
    ) -> tuple[list[Item], list[Fingerprint]]:
        """Put into a session that was just *opened* what it begins with; give what tools said, and what to remember.

        Raises `ReplyBlocked` for what a model said with another session's canary in it.
        """
        opened.head = mask.describe(opened.head)
        opened.brought = await masked(cloister, mask, opened.owner, self.items, model)
        prints = await remembered(cloister.watch, opened, self.items)
        return [item for item in self.items if item.role == "tool"], prints


def _is_text(item: Item) -> bool:
    return item.role == "system" and isinstance(item.content, str) and not item.extra
