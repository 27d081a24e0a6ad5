"""One turn, asked over HTTP: of which model, in which session, and what of the request goes along.

The routes of the three formats put what they are sent into a `Question`; asking it is the library's `Session`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Annotated, Any

import msgspec

from cloister.content import Content, Remember
from cloister.model import Reply
from cloister.sealing import fields
from cloister.server import ids
from cloister.server.errors import NOT_FOUND
from cloister.server.refusals import Refused, invalid
from cloister.server.routes import Call
from cloister.session import OnExpired, Session
from cloister.stream import ReplyStream
from cloister.user import User

SESSION = "cloister-session"
NEW = "new"
"""What the header says where a session is to be started with the first turn."""
RENEWED = "cloister-renewed"
KEY = "idempotency-key"
TRIES = "x-stainless-retry-count"
"""In which the SDKs of OpenAI and Anthropic say how often they have sent this request before."""
_LONGEST_KEY = 255

Model = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]


@dataclass(slots=True)
class Question:
    """Be what one request asks of a model, in the words of the chat format."""

    content: Content
    model: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    system: str | None = None
    remember: Remember | None = None
    """What the API wants to know of the answer later; stored with it, and never sent to a model."""
    kept: bool = True
    """What it comes to is stored."""
    reply: Reply[Session] | None = None
    """What it came to."""

    def arguments(self, call: Call, known: Mapping[str, Any], *, on_expired: OnExpired) -> dict[str, Any]:
        """Give the arguments of ``session.send`` and ``session.stream`` besides the content; `once` gives *known*."""
        return {
            **known,
            "model": named(call, self.model),
            "options": self.options,
            "system": self.system,
            "remember": self.remember,
            "on_expired": on_expired,
        }

    async def delivered(self) -> None:
        """Take note that the answer was written out in full: who asks the same now asks anew."""
        if self.reply is not None:
            await self.reply.session.delivered(self.reply)


def once(call: Call, *, kept: bool = True) -> dict[str, Any]:
    """Give by what a request is known again that comes twice: its key, or that an SDK says how often it has tried.

    Both hold for this credential and this call alone, besides owner and session.
    """
    key, tries = call.headers.get(KEY), call.headers.get(TRIES)
    if key is not None and not kept:
        raise invalid("nothing is stored of this request, so it cannot be known again: name a session", KEY)
    if key is not None and not 1 <= len(key) <= _LONGEST_KEY:
        raise invalid(f"an idempotency key has 1 to {_LONGEST_KEY} characters", KEY)
    if not kept or (key is None and tries is None):
        return {}
    scope = fields(call.caller.credential, call.route)
    again = tries is not None and tries.isdecimal() and tries.strip("0") != ""
    known = {"request": scope + call.raw, "retry": again}
    return known if key is None else {**known, "idempotency_key": sha256(scope + key.encode()).hexdigest()}


def named(call: Call, model: str | None) -> str | None:
    """Give the model that a request names, None for the provider's own; `Refused` unless it is on the list."""
    if model is None or not call.models:
        return model
    if model not in call.models:
        raise no_model()
    return model


def no_model() -> Refused:
    """Give the refusal of a model that is not on the list."""
    return Refused(
        404,
        "invalid_request_error",
        "model_not_found",
        "this server does not offer this model; see /v1/models",
        "model",
    )


def instructed(call: Call, text: str | None, param: str) -> str | None:
    """Give the instructions that a request carries; `Refused` where an end user may not give any."""
    if text is not None and call.caller.scope == "user" and "instructions" not in call.policy.end_users_may:
        raise Refused(403, "permission_error", "role_not_allowed", "end users give no instructions here", param)
    return text


async def session_for(call: Call, metadata: Mapping[str, str] | None = None) -> tuple[Session, bool]:
    """Give the session that the header names, or a new one with *metadata*, or one that keeps nothing.

    With it comes whether it keeps something, and so is to be named in the answer.
    """
    name = call.headers.get(SESSION)
    if name is None:
        return call.user.passing(), False
    if name == NEW:
        return await call.user.begin(metadata=metadata), True
    return await at(call.user, name), True


async def ask(call: Call, session: Session, question: Question) -> Reply[Session]:
    """Ask *question* in *session*; where that has timed out, in a new one."""
    return had(question, await session.send(question.content, **_arguments(call, question)))


def had(question: Question, reply: Reply[Session]) -> Reply[Session]:
    """Give the reply to *question*; `Refused` where the turn was taken before, and its answer deleted since."""
    if question.kept and not reply.items:
        raise Refused(404, "invalid_request_error", "not_found", NOT_FOUND)
    question.reply = reply
    return reply


def stream(call: Call, session: Session, question: Question) -> ReplyStream[Session]:
    """Ask the same, and read the reply while it is written."""
    return session.stream(question.content, **_arguments(call, question))


def _arguments(call: Call, question: Question) -> dict[str, Any]:
    return question.arguments(call, once(call, kept=question.kept), on_expired="renew")


async def at(user: User, name: str) -> Session:
    """Give the same for a turn, which finds out whether it is there."""
    return await user.at(name if name.startswith("ct_") else ids.session(name))


async def resumed(user: User, name: str) -> Session:
    """Give the session of that name: a conversation's id, or a token where the store gives those out."""
    return await user.resume(name if name.startswith("ct_") else ids.session(name))


def headers(reply: Reply[Session]) -> dict[str, str]:
    """Give the headers that say in which session the answer lies, and whether it is a new one."""
    return said(reply.session.id, reply.renewed)


def headers_of(call: Call, stream: ReplyStream[Session]) -> dict[str, str]:
    """Give the same while the answer is still being written; a token is known at its end, and told by `carried`."""
    there = said(stream.turn.session_id, stream.turn.renewed)
    return {name: value for name, value in there.items() if name != SESSION or not call.carried}


def carried(call: Call, reply: Reply[Session], where: Mapping[str, str]) -> dict[str, str]:
    """Give what the last event of a stream says of the session, where no header could: the token that it is now."""
    return {} if SESSION in where or not call.carried else {"cloister_session": reply.session.id}


def said(session_id: str, renewed: bool = False) -> dict[str, str]:
    """Give the headers of an answer that lies in a session."""
    name = session_id if session_id.startswith("ct_") else ids.conversation(session_id)
    return {SESSION: name, **({RENEWED: "true"} if renewed else {})}


def one_of(*given: tuple[str, object]) -> None:
    """Raise `Refused` where more than one of these parameters is there."""
    there = [name for name, value in given if value is not None]
    if len(there) > 1:
        raise invalid(f"{' and '.join(there)} are mutually exclusive; give one of them", there[1], "mutually_exclusive")
