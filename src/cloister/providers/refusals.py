"""What a provider's refusal may say on: its code, and its text without the prompt and the key."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from cloister.providers.http import Key

_NO_MODEL = re.compile(
    r"model\b.{0,120}\b(not found|not exist|unknown|invalid|not supported|unsupported)|^model: ", re.IGNORECASE
)


def said(error: Mapping[str, Any], body: Mapping[str, Any], key: Key | None) -> str:
    """Return code and text of an error, bounded, and without words of the prompt or anything like a key."""
    prompt = _words(body)
    parts = [shown(error.get("code") or error.get("type")), error.get("message")]
    texts = [_masked(part, key, prompt) for part in parts if isinstance(part, str) and part != "unknown"]
    return "".join(f", {text}" for text in texts if text)


def retry_after(value: str | None) -> float | None:
    """Read a Retry-After header, in seconds or as a date, into seconds from now."""
    if value is None:
        return None
    if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", value.strip()):
        return float(value)
    try:
        moment = parsedate_to_datetime(value)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())


def names_model(error: Mapping[str, Any]) -> bool:
    message = error.get("message")
    return error.get("code") == "model_not_found" or (isinstance(message, str) and bool(_NO_MODEL.search(message)))


def shown(name: object) -> str:
    """Return a name of somebody else's if it is one, and otherwise ``unknown``."""
    return name if isinstance(name, str) and re.fullmatch(r"[A-Za-z0-9][\w.:/@+-]{0,79}", name, re.A) else "unknown"


# What may stand in an error even if it stands in the prompt too: words of requests, not of people.
_PLAIN = re.compile(
    r"the|and|for|not|you|are|this|that|with|does|exist|have|has|was|were|been|can|cannot|must|only|than|more|less|from|"
    r"models?|invalid|requests?|messages?|content|role|field|parameters?|values?|types?|supported|unsupported|required|"
    r"missing|unknown|error|server|tokens?|limit|maximum|minimum|length|context|user|system|assistant|tools?|options?|"
    r"input|output|please|check|instead|use|given|at|is|in|of|to|or|be|it"
)


def _words(value: object) -> set[str]:
    """Return the words of a request's messages, wherever in them they stand."""
    if isinstance(value, str):
        return set(re.findall(r"\w+", value.lower()))
    if isinstance(value, Mapping):
        value = [value[name] for name in ("messages", "system") if name in value] or [*value.values()]
    return set().union(*(_words(entry) for entry in value)) if isinstance(value, (list, tuple)) else set()


def _masked(message: str, key: Key | None, prompt: set[str]) -> str:
    """Return at most 200 characters of *message*, without what looks like a key and what stands in the prompt."""
    text = message[:2000]
    if key:
        text = text.replace(str(key), "…")
    text = re.sub(r"\b(sk|hs)[-_]\S+", "…", text)

    def mask(match: re.Match[str]) -> str:
        word = match[0].lower()
        return match[0] if word.isascii() and (_PLAIN.fullmatch(word) or word not in prompt) else "…"

    text = re.sub(r"\w+", mask, text)
    text = "".join(character if character.isprintable() else " " for character in text)
    text = re.sub(r"(…\W*)+…", "…", text)
    return text[:200].strip()
