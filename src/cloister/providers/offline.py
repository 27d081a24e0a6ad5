"""A model without a network, for demonstration and tests: it knows what it is told in the request, and nothing else.

Whatever it says of a person stood in the messages that it was handed. So an answer that names somebody else's order
proves that somebody else's order was sent.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from typing import Any

from cloister.errors import ProviderError
from cloister.providers.base import Request

MODEL = "cloister-offline-demo"

_UNTOLD = "Nobody has told me {}."
_HELP = (
    "I am cloister's offline model: I only know what I am told in this conversation. "
    "Tell me your name, where you live or an order number, and ask me for it later."
)

_SENTENCE = re.compile(r"[^.!?\n]*(?:[.!?](?=\S)[^.!?\n]*)*[.!?\n]?")
_MOST = 500  # characters of a sentence that are looked at: patterns with gaps take long over longer ones
_END = r"(?=,? please\b|\s*(?:[,;]?\s+(?:and|but)\s+(?:my|i|i'm|it|the|our|ship|call)\b|, (?:i|my)\b|[.!?;]*$))"
_VALUE = r"(?P<value>[\[\w#\"'(+@€$£].*?)" + _END
_NAME = r"(?P<value>[\[\w][^,;]*?)" + _END.replace("(?=", "(?=,|", 1)
_WHOSE = r"(?:my|our|the (?:user|customer)'s)"
_FACTS = [
    (re.compile(pattern, re.IGNORECASE), thing)
    for pattern, thing in (
        (rf"\b{_WHOSE} (?:first |full )?name(?:'s| is)(?: called)? {_NAME}", "name"),
        (rf"\b(?:call me|i am called|i'm called) {_NAME}", "name"),
        (rf"\b(?:i live|i'm living|i am living) (?:in|at|on) {_VALUE}", "address"),
        (rf"\b(?:ship|deliver|send)(?: (?:it|this|that|my order|everything))? to {_VALUE}", "address"),
        (rf"\b(?:remember|note)(?: that)?(?: the| this| my)? code(?: is|:)? {_VALUE}", "code"),
        (rf"\b(?:{_WHOSE}|the|this) (?P<thing>(?:[\w'-]+ ){{0,3}}?[\w'-]+)(?: is:?| are:?|:) {_VALUE}", ""),
    )
]
# These need what the others do not: a capital letter, a number.
_I_AM = re.compile(r"\b(?:I am|I'm|i am|i'm) (?P<value>[A-Z][\w-]+|\[[A-Z]+~\w+~\w+\])(?=[.!,;]|\s+and\b|\s*$)")
_ORDER = re.compile(r"\border(?: number| no\.?| id)?(?: is| was)?:? (?P<value>#?[A-Z]{0,4}-?\d{3,}\b)", re.IGNORECASE)

_QUESTIONS = [
    (re.compile(pattern, re.IGNORECASE), thing)
    for pattern, thing in (
        (r"\bwho am i\b|\b(?:what|know|remember|tell me|say|is)\b.*\bmy (?:first |full )?name\b", "name"),
        (r"\bwhere (?:do|am) i (?:live|living)\b|\bwhere\b.*\b(?:ship|deliver|send)\b|\bmy address\b", "address"),
        (
            r"\b(?:where|what|status|know|remember|tell me|which|how)\b.*\bmy order\b|\border (?:number|status)\b",
            "order",
        ),
        (
            r"\b(?:what(?:'s| is| was| are| were)?|know|remember|tell me|repeat|which)\b.*?"
            r"\b(?:my|our|the|this) (?P<thing>(?:[\w'-]+ ){0,3}?[\w'-]+)(?: again| please)?(?: is| was)?[?.!\s]*$",
            "",
        ),
        (r"\bwhat code\b|\bwhich code\b", "code"),
    )
]
_ALIKE = {
    "order number": "order",
    "order id": "order",
    "order status": "order",
    "first name": "name",
    "full name": "name",
    "home": "address",
    "place": "address",
    "shipping address": "address",
}
_SAID = {
    "name": "Your name is {}.",
    "address": "You told me this place: {}.",
    "order": "Your order number is {}.",
}


class Offline:
    """Answer from the messages of the request: names, orders, places, codes, and "my … is …".

    It can be told to misbehave, also later, by setting the attributes of the same names: *fail* raises
    `ProviderError`; *hang* waits until it is cancelled, ``hanging`` being set meanwhile; *cut* ends an answer after so
    many words, without its finish marker (together with the former two, those happen there); *leak* is said at the end
    of every answer. *watch* is called with each request.
    """

    name = "offline"
    model = MODEL

    def __init__(
        self,
        *,
        fail: bool = False,
        hang: bool = False,
        cut: int | None = None,
        leak: str | None = None,
        watch: Callable[[Request], None] | None = None,
    ) -> None:
        self.fail = fail
        self.hang = hang
        self.cut = cut
        self.leak = leak
        self.watch = watch
        self.hanging = asyncio.Event()

    async def complete(self, request: Request) -> dict[str, Any]:
        """Return a chat.completion; its usage is estimated, in words."""
        words = self._begin(request)
        await self._misbehave()
        said = "".join(words[: self.cut])
        finish = "stop" if self.cut is None else None
        choice = {"index": 0, "message": {"role": "assistant", "content": said}, "finish_reason": finish}
        return {**self._frame("chat.completion"), "choices": [choice], "usage": _usage(request, words)}

    async def stream(self, request: Request) -> AsyncGenerator[dict[str, Any], None]:
        """Yield chat.completion.chunks, one for each word, then the finish marker, then usage."""
        words = self._begin(request)
        if self.cut is None:
            await self._misbehave()
        yield self._chunk({"role": "assistant", "content": ""})
        for word in words[: self.cut]:
            await asyncio.sleep(0)  # others' streams go on meanwhile, as with a model
            yield self._chunk({"content": word})
        if self.cut is not None:
            await self._misbehave()
            return
        yield self._chunk({}, "stop")
        yield {**self._frame("chat.completion.chunk"), "choices": [], "usage": _usage(request, words)}

    async def close(self) -> None:
        """Do nothing: there is nothing to close."""

    def _begin(self, request: Request) -> list[str]:
        if self.watch is not None:
            self.watch(request)
        text = answer(request.messages)
        return re.findall(r"\S+\s*", f"{text} {self.leak}" if self.leak else text)

    async def _misbehave(self) -> None:
        if self.fail:
            raise ProviderError("the offline model fails, as it was told to")
        if self.hang:
            self.hanging.set()
            try:
                await asyncio.Event().wait()
            finally:
                self.hanging.clear()

    def _frame(self, kind: str) -> dict[str, Any]:
        return {"id": "offline", "object": kind, "created": 0, "model": self.model}

    def _chunk(self, delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return {**self._frame("chat.completion.chunk"), "choices": [choice]}


def answer(messages: Iterable[Mapping[str, Any]]) -> str:
    """Return what the offline model says to *messages* of the OpenAI chat format."""
    facts: dict[str, str] = {}
    told: dict[str, str] = {}
    last = ""
    for message in messages:
        if message.get("role") in ("user", "system", "developer", "tool"):
            text = _text(message.get("content"))
            told = _facts(text)
            facts.update(told)
            last = text if message.get("role") == "user" else last
    asked = dict.fromkeys(thing for sentence in _sentences(last) for thing in _asked(sentence))
    if asked:
        return " ".join(_say(thing, facts) for thing in asked)
    if last.rstrip().endswith("?"):
        return _UNTOLD.format("that")
    if "name" in told:
        return f"Nice to meet you, {told['name']}."
    return "I will remember that." if told else _HELP


def _say(thing: str, facts: Mapping[str, str]) -> str:
    if thing in facts:
        return _SAID.get(thing, "You told me: {}.").format(facts[thing])
    return _UNTOLD.format({"order": "your order number"}.get(thing, f"your {thing}") if thing in _SAID else "that")


def _facts(text: str) -> dict[str, str]:
    """Return what *text* tells, the last of each thing."""
    facts: dict[str, str] = {}
    for sentence in _sentences(text):
        if sentence.endswith("?"):
            continue
        for pattern, thing in _FACTS:
            for match in pattern.finditer(sentence):
                value = match["value"].strip(" \"'.,;")
                named = thing or _thing(match["thing"])
                if value and (thing or named not in facts):
                    facts[named] = value
        for pattern, thing in ((_I_AM, "name"), (_ORDER, "order")):
            for match in pattern.finditer(sentence):
                facts[thing] = match["value"]
    return facts


def _asked(sentence: str) -> list[str]:
    """Return the things that *sentence* asks for, as far as we know such questions."""
    if not sentence.endswith("?") and not re.match(r"(?:what|where|who|which|do|can|tell|repeat)\b", sentence, re.I):
        return []
    matches = [(match, thing) for pattern, thing in _QUESTIONS if (match := pattern.search(sentence))]
    known = [thing for _, thing in matches if thing]
    return known or [_thing(match["thing"]) for match, _ in matches]


def _thing(words: str) -> str:
    thing = " ".join(words.lower().split())
    return _ALIKE.get(thing, thing)


def _sentences(text: str) -> list[str]:
    text = text.replace("\u2019", "'")
    return [sentence for part in _SENTENCE.findall(text) if (sentence := " ".join(part[:_MOST].split()))]


def _text(content: object) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "\n".join(str(part["text"]) for part in parts if isinstance(part, Mapping) and "text" in part)


def _usage(request: Request, words: list[str]) -> dict[str, Any]:
    asked = sum(len(_text(message.get("content")).split()) for message in request.messages)
    return {
        "prompt_tokens": asked,
        "completion_tokens": len(words),
        "total_tokens": asked + len(words),
        "estimated": True,
    }
