"""One question to a model, with everything that goes along with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec

from cloister.content import Content, Remember

OnExpired = Literal["renew", "raise"]


class Question(msgspec.Struct, frozen=True):
    """Be what is said in one turn, and how it is to be asked; what each means stands with `Session.send`."""

    content: Content
    model: str | None = None
    options: Mapping[str, Any] | None = None
    idempotency_key: str | None = None
    documents: Sequence[str] = ()
    system: str | None = None
    remember: Remember | None = None
    truncate: bool = True
    after: str | None = None
    request: bytes | None = None
    retry: bool = False
    on_expired: OnExpired = "renew"

    def __repr__(self) -> str:  # conversation text stays out of logs and tracebacks
        return f"Question(model={self.model!r})"
