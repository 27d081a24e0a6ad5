"""What becomes of a reply that carries somebody else's details: the settings of `AsyncCloister.open`."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from datetime import timedelta
from typing import Literal, get_args

from cloister.leaks.evidence import Thresholds
from cloister.leaks.words import Frequencies, packed

Block = Literal["canary", "strong", "any"]
Scope = Literal["tenant", "all"]
Hold = Literal["feature", "reply"]
OnBlock = Literal["reply", "raise"]
OnFailure = Literal["refuse", "alert"]

SAFE_TEXT = "I cannot show this reply: it may contain details of somebody else. Please ask in another way."


@dataclass(frozen=True, kw_only=True)
class LeakGuard:
    """Say when a reply is withheld, and what its receiver reads instead.

    *block* is ``strong`` to withhold what carries an identifier, or a name and a second fact, of one other owner and to
    alert on weaker evidence; ``any`` to withhold that too; ``canary`` to withhold nothing but what was planted in
    another session. *scope* is whose details count: those of other users of the tenant, or of ``all`` tenants. *hold*
    keeps back of a streamed reply what may be part of a detail, or the whole ``reply``. *safe_text* stands in the place
    of what is withheld; with *on_block* ``raise`` the turn is stored so and `ReplyBlocked` raised. *on_failure* says
    what happens where the check cannot run: no reply, or the reply and an ``alert``.

    After *most_blocks* withheld replies to one owner within *block_window* all of theirs are withheld until that time
    has passed, or somebody could find out by asking whose numbers are known. Each process counts for itself.

    *plant* puts a canary at the end of the system text of each session, or in one of its own. *words* are frequencies
    of another language's words, *thresholds* the evidence from which on to alert and block. Raises `ValueError`.
    """

    block: Block = "strong"
    scope: Scope = "tenant"
    hold: Hold = "feature"
    safe_text: str = SAFE_TEXT
    on_block: OnBlock = "reply"
    on_failure: OnFailure = "refuse"
    plant: bool = False
    most_blocks: int = 10
    block_window: timedelta = timedelta(hours=1)
    words: Frequencies | None = None
    thresholds: Thresholds = field(default_factory=Thresholds)

    def __post_init__(self) -> None:
        for name, kind in _CHOICES.items():
            if getattr(self, name) not in get_args(kind):
                raise ValueError(f"{name} is {' or '.join(map(repr, get_args(kind)))}")
        if not self.safe_text.strip():
            raise ValueError("safe_text is what is shown in the place of a reply, and not empty")
        if self.most_blocks < 1 or self.block_window <= timedelta(0):
            raise ValueError("most_blocks is at least 1, and block_window longer than nothing")

    def frequencies(self) -> Frequencies:
        """Give how common words are; the first call in a process reads the table that comes with cloister."""
        return self.words or packed()


_CHOICES = {"block": Block, "scope": Scope, "hold": Hold, "on_block": OnBlock, "on_failure": OnFailure}
PARTS = tuple(part.name for part in fields(LeakGuard) if part.name in (*_CHOICES, "safe_text", "plant"))
"""What can be set as text."""
