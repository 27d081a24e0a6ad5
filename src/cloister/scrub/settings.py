"""What becomes of personal data: the settings of `AsyncCloister.open`."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Literal, get_args

from cloister.scrub.placeholders import LABELS
from cloister.scrub.spans import UNSEARCHED

if TYPE_CHECKING:
    from cloister.scrub.find import Detector, Finder

Action = Literal["placeholder", "redact", "allow"]
Where = Literal["model", "store", "off"]


@dataclass(frozen=True, kw_only=True)
class Scrub:
    """Say for each type of personal data what stands in its place, and before whom.

    ``placeholder`` comes back to the owner; ``redact`` leaves ``[EMAIL]`` for good; ``allow`` leaves the data. Links
    and network addresses are allowed unless set, or nobody could have a link looked at. *where* is ``model``: neither
    model nor store see the data; ``store``: the model does; ``off``: both do. Arguments of tool calls get it back only
    for the tools named in *restore_tools*. *detectors* find more, whose types are *others*; a text of more than *limit*
    characters is not searched but replaced as a whole. Raises `ValueError` for what is none of these.
    """

    person: Action = "placeholder"
    email: Action = "placeholder"
    phone: Action = "placeholder"
    credit_card: Action = "placeholder"
    us_ssn: Action = "placeholder"
    zip: Action = "placeholder"
    iban: Action = "placeholder"
    date_of_birth: Action = "placeholder"
    street_address: Action = "placeholder"
    ip: Action = "allow"
    url: Action = "allow"
    others: Action = "placeholder"
    where: Where = "model"
    restore_tools: Collection[str] = ()
    detectors: Collection[Detector] = ()
    limit: int = 200_000
    person_label: str = "PERSON"

    def __post_init__(self) -> None:
        for setting in fields(self):
            if setting.type == "Action" and getattr(self, setting.name) not in get_args(Action):
                raise ValueError(f"{setting.name} is 'placeholder', 'redact' or 'allow'")
        if self.where not in get_args(Where):
            raise ValueError("where is 'model', 'store' or 'off'")
        if isinstance(self.restore_tools, str):
            raise ValueError("restore_tools is a collection of names of tools, such as {'send_mail'}")
        object.__setattr__(self, "restore_tools", frozenset(self.restore_tools))
        if self.limit < 1:
            raise ValueError("limit must be at least 1 character")

    @classmethod
    def seed(cls) -> Scrub:
        """Give plain redaction: ``[NAME]``, ``[EMAIL]``, ``[PHONE]``, ``[CARD]``, ``[SSN]``, ``[ZIP]``, no more."""
        return cls(
            person="redact",
            email="redact",
            phone="redact",
            credit_card="redact",
            us_ssn="redact",
            zip="redact",
            iban="allow",
            date_of_birth="allow",
            street_address="allow",
            others="allow",
            person_label="NAME",
        )

    def action(self, kind: str) -> Action:
        """Give what becomes of data of type *kind*."""
        if kind == UNSEARCHED:
            return "placeholder"
        action: Action = getattr(self, kind.lower()) if kind in LABELS else self.others
        return action

    def label(self, kind: str) -> str:
        """Give what redaction leaves of data of type *kind*."""
        return f"[{self.person_label if kind == 'PERSON' else LABELS.get(kind, kind)}]"

    @cached_property
    def finder(self) -> Finder:
        """Give the search; the first one in a process takes some time."""
        from cloister.scrub.find import Finder

        return Finder(*self.detectors, limit=self.limit)
