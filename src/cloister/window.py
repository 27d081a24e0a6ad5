"""Fit a conversation into a token budget.

Tokens are counted exactly for OpenAI's vocabularies where ``cloister[tokens]`` is installed, and otherwise by
`Estimate`, which errs upwards. An item is counted once, when it is committed, and `fit` adds up the stored counts.

A turn is a user item and everything up to the next one. Turns leave the window whole, oldest first, so a tool call
never parts from its result.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from itertools import filterfalse
from typing import Any, Protocol, TypeVar

import msgspec

from cloister.errors import BudgetExceeded
from cloister.model import API, REMEMBERED, Item
from cloister.vocabulary import CHARACTERS, LOWER, WORDS

_T = TypeVar("_T")

MESSAGE_TOKENS = 5
"""What a message costs beside its text. ChatML and Llama 3 take 5 with the role, OpenAI 4."""

PRIMING_TOKENS = 3
"""What the beginning of the reply costs, once in a window."""

IMAGE_TOKENS = 2_500
"""What an image counts as, whatever its size: gpt-4.1-mini's dearest (2,489), above gpt-4o's and most of Claude's."""

TOOLS_TOKENS = 350
"""What a model is told about tools in general: Anthropic's published figure (346), the highest one known."""

_FREE = 2_048
"""How much may be remembered of an answer before it takes room in the window, in bytes."""

UNKNOWN_CONTEXT_TOKENS = 8_192
"""The window of a model that is not in the table: one that every model of today has."""


class Counter(Protocol):
    """Counts the tokens of a text. Equal names mean equal counts."""

    @property
    def name(self) -> str: ...

    def count(self, text: str) -> int: ...


# --- the estimate ---

# Much as byte-pair tokenizers cut text before they look at their vocabulary: a word takes the one character before it
# along, and a run of spaces leaves its last one to what follows. Every repeat is possessive, so time is linear.
_PIECE = re.compile(
    r"[\t -/:-@\[-`{-~]?+[A-Za-z]++"
    r"| ?+[!-/:-@\[-`{-~]++"
    r"|[0-9]++"
    r"|’[a-z]{1,2}+(?![A-Za-z])"
    r"|[^\x00-\x7f]++"
    r"| (?: (?= ))*+(?= )|\n++|\t++|[\x00-\x20\x7f]"
)
_STRETCH = 64

_KNOWN = frozenset(
    [f" {form}" for word in WORDS.split() for form in (word, word.capitalize())]
    + [f" {word}" for word in LOWER.split()]
    + [f"{mark}{ending}" for mark in "'’" for ending in ("s", "t", "re", "ve", "ll", "m", "d")]
)
_BARE = frozenset((WORDS + LOWER).split())
_PLAIN = frozenset([piece[1:] for piece in _KNOWN if piece[0] == " "] + [",", "."])
_ENGLISH_SHARE = 0.4

# Letters and pairs that natural words seldom have, and vocabularies seldom join.
_ODD = re.compile(
    r"[jqxz]|b[cdfghkmpvw]|c[bdfgmpvw]|d[bcfhkmpvw]|f[bcdghkmpvw]|g[bcdfkmpvw]|[hkvw][bcdfgkmpvw]|m[cdfghkvw]"
    r"|p[bcdfgkmvw]|[^aeiouy]{4}"
)
# How longer English words end; words of other languages, names and made-up ones do so less often.
_ENDINGS = tuple(
    "s ed ing ly er or ion ment ble ity al ive ous ance ence ant ent ate ize ise ify ful ism ist th ght ck"  # noqa: SIM905
    " ry ty cy gy dy ture ld ic".split()
)
_CAMEL = re.compile(r"[A-Za-z]?+[a-z]{2,}+(?:[A-Z][a-z]{2,}+)*+")

# Indentation, and characters with which people draw lines.
_RULED = " \n\t!#%*+-./:;<=>_~"

_ONE = re.compile(f"[{CHARACTERS}]")
# Ranges outside ASCII in which no character takes more than two tokens.
_TWO = re.compile(
    "[\u0900-\u0aff\u0b80-\u0d7f\u0e00-\u0e7f\u2000-\u20bf\u2100-\u21bf\u2500-\u265f\u2700-\u27bf\u3000-\u30ff"
    "\u4e00-\u507f\u5140-\u547f\u5dc0-\u607f\u6200-\u63ff\u6500-\u687f\u6b00-\u6f3f\u7900-\u7bff\u8b40-\u8dff"
    "\u9480-\u977f]"
)


def _word(word: str, english: bool) -> float:
    """Bound the tokens of ASCII letters."""
    lower = word.lower()
    if lower in _BARE:
        return 2
    length = len(word)
    odd = len(_ODD.findall(lower))
    if word == lower or word[1:].islower():
        natural = english and odd < 2
        bound = 1 + length / (14 if lower.endswith(_ENDINGS) else 3.3) if natural else 0.8 + length / 2
        bound += (0.7 if natural else 0.9) * odd + (0 if word == lower else 0.4)
    elif word.isupper():
        bound = (2 * length + 2) / 3 + odd
    elif _CAMEL.fullmatch(word):
        bound = 0.8 + length / 2 + sum(map(str.isupper, word)) + odd
    else:  # base64, passwords
        return length
    return min(length, bound)


def _piece(piece: str, english: bool) -> float:
    """Bound the tokens of a piece that is not a known word."""
    length = len(piece)
    last = piece[-1]
    if not piece.isascii():
        rest = _ONE.sub("", piece)
        rare = _TWO.sub("", rest)
        one, two = length - len(rest), len(rest) - len(rare)
        # Rarely, bytes of neighbours are joined first, and what remains of both costs one token more.
        return one + 2 * two + len(rare.encode("utf-8", "surrogatepass")) + (one + 21) // 24
    if last.isalpha():
        if piece[0] == " ":
            return _word(piece[1:], english)
        # Vocabularies know words with the space before them, and fewer without.
        return _word(piece, False) if piece[0].isalpha() else _word(piece[1:], False) + 1
    if length > 4 and last in _RULED and piece.count(last) == length:
        return 2 + length // 6
    return length - (length > 1 and piece[0] == " " != last)


class Estimate:
    """Counts by kinds of characters, more tokens than the vocabularies of OpenAI, DeepSeek, Mistral and Qwen take.

    English prose comes out at 1.2 to 1.5 times the exact count, other text higher: German at 2, Chinese at 1.7, Russian
    at 3.5. A word is taken for an English one, and costs less, only in a stretch of which enough words are known.
    """

    name = "estimate-1"

    def count(self, text: str) -> int:
        """Give an upper bound, in tokens. The time is linear in the text."""
        if "  " in text:
            return -int(-_pieces(text, 0) // 1)
        # Prose is mostly known words behind single spaces: only the others are looked at closely.
        words = text.replace(", ", " , ").replace(". ", " . ").split(" ")
        total = 1.0  # the first word has no space before it
        for start in range(0, len(words), _STRETCH):
            stretch = words[start : start + _STRETCH]
            rest = list(filterfalse(_PLAIN.__contains__, stretch))
            plain = len(stretch) - len(rest)
            total += plain + (_pieces(" " + " ".join(rest), plain) if rest else 0)
        return -int(-total // 1)


def _pieces(text: str, plain: int) -> float:
    """Bound the tokens of *text*, which stands among *plain* known words."""
    pieces = _PIECE.findall(text)
    if len(pieces) > _STRETCH:
        plain = 0
    total = 0.0
    for start in range(0, len(pieces), _STRETCH):
        stretch = pieces[start : start + _STRETCH]
        rest = [piece for piece in stretch if piece not in _KNOWN]
        known = len(stretch) - len(rest)
        strange = sum([piece[-1].isalpha() for piece in rest])
        english = plain + known > 2 and plain + known >= _ENGLISH_SHARE * (plain + known + strange)
        total += known + sum([_piece(piece, english) for piece in rest]) + (english and strange > 0)
    return total


# --- the exact count ---


class Exact:
    """Counts with one of OpenAI's vocabularies: ``o200k_base`` or ``cl100k_base``.

    What looks like a special token in a text is counted as text, as the API does. ImportError without the extra.
    Loading a vocabulary takes about a second and 120 MiB, once in a process.
    """

    def __init__(self, name: str) -> None:
        # The package's own wrapper counts by making the list of tokens, in 1.4 to 2 times the time, and refuses a
        # million characters. Only its compiled part counts alone.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # its own, about how it opens its files
            from bpe_openai import _bindings  # type: ignore[import-untyped]  # it has no types

        self.name = name
        self._count = _bindings.tokenizer_for_encoding(name).count
        self._count("a")  # loads the vocabulary now, and not in somebody's turn

    def count(self, text: str) -> int:
        """Give the number of tokens."""
        try:
            return int(self._count(text))
        except UnicodeEncodeError:  # a lone surrogate, which is sent as U+FFFD
            return int(self._count(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")))


_exact = cache(Exact)
_ESTIMATE = Estimate()

# The longest matching beginning of a model's name decides. From OpenAI's tiktoken, model.py, as of 2025-10.
_ENCODINGS = {
    "gpt-3.5": "cl100k_base",
    "gpt-35": "cl100k_base",
    "gpt-4": "cl100k_base",
    "gpt-4.": "o200k_base",
    "gpt-4o": "o200k_base",
    "chatgpt-4o": "o200k_base",
    "gpt-5": "o200k_base",
    "gpt-oss": "o200k_base",
    "o1": "o200k_base",
    "o3": "o200k_base",
    "o4": "o200k_base",
}

# What a model reads, in tokens, beside what is left for its reply. Longest matching beginning. As published in 2025 by
# platform.openai.com/docs/models (gpt-5: 400,000 of which 272,000 input), docs.anthropic.com, api-docs.deepseek.com,
# ai.google.dev and the model cards of Llama, Qwen and Mistral. Where versions differ, the smallest one; larger windows
# are set with context_tokens.
_CONTEXTS = {
    "gpt-3.5": 16_385,
    "gpt-35": 16_385,
    "gpt-4": 8_192,
    "gpt-4-32k": 32_768,
    "gpt-4-turbo": 128_000,
    "gpt-4-1106": 128_000,
    "gpt-4-0125": 128_000,
    "gpt-4.1": 1_047_576,
    "gpt-4.5": 128_000,
    "gpt-4o": 128_000,
    "chatgpt-4o": 128_000,
    "gpt-5": 272_000,
    "gpt-5-chat": 128_000,
    "gpt-5.1-chat": 128_000,
    "gpt-5.2-chat": 128_000,
    "gpt-oss": 131_072,
    "o1": 200_000,
    "o1-mini": 128_000,
    "o1-preview": 128_000,
    "o3": 200_000,
    "o4": 200_000,
    "claude-": 200_000,
    "claude-2.0": 100_000,
    "claude-instant": 100_000,
    "deepseek": 65_536,
    "deepseek-chat": 128_000,
    "deepseek-reasoner": 128_000,
    "gemini-1.5": 1_048_576,
    "gemini-2": 1_048_576,
    "llama3": 8_192,
    "llama-3": 8_192,
    "llama3.1": 131_072,
    "llama-3.1": 131_072,
    "llama3.2": 131_072,
    "llama-3.2": 131_072,
    "llama3.3": 131_072,
    "llama-3.3": 131_072,
    "mistral-large": 131_072,
    "qwen2": 32_768,
    "qwen3": 32_768,
    "qwen-": 32_768,
}


def _lookup(table: Mapping[str, _T], model: str | None) -> _T | None:
    """Find the longest beginning of a model's name, without the provider before and the owner of a fine-tune after."""
    name = (model or "").lower().rpartition("/")[2].removeprefix("ft:")
    found = [prefix for prefix in table if name.startswith(prefix)]
    return table[max(found, key=len)] if found else None


def family(model: str) -> str | None:
    """Name the kind of model that *model* is, out of a short list; None for one that is not known."""
    name = model.lower().rpartition("/")[2].removeprefix("ft:")
    return max([prefix for prefix in _CONTEXTS if name.startswith(prefix)], key=len, default=None)


def vocabulary(model: str | None) -> str | None:
    """Name OpenAI's vocabulary for a model; None for a model of anybody else's."""
    return _lookup(_ENCODINGS, model)


@lru_cache(maxsize=64)
def counter_for(model: str | None) -> Counter:
    """Choose the counter for a model: exact for OpenAI's if ``cloister[tokens]`` is installed, else the estimate."""
    encoding = vocabulary(model)
    if encoding is None:
        return _ESTIMATE
    try:
        return _exact(encoding)
    except ImportError:
        return _ESTIMATE


@lru_cache(maxsize=64)
def context_tokens(model: str | None) -> int:
    """Give how many tokens may be sent to a model: its context less room for the reply; 8,192 if it is not known."""
    context = _lookup(_CONTEXTS, model)
    if context is None:
        return UNKNOWN_CONTEXT_TOKENS
    return context - max(context // 8, min(context // 4, 4_096))


# --- what an item costs ---


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _part_tokens(part: dict[str, Any], counter: Counter) -> int:
    kind = str(part.get("type", ""))
    if "image" in kind:
        return IMAGE_TOKENS
    if kind == "input_audio":  # 10 to 32 tokens a second, and a second takes a thousand characters at the very least
        return len(_json(part)) // 30 + 1
    if isinstance(text := part.get("text"), str) and len(part) <= 2:
        return counter.count(text)
    return counter.count(_json(part))


def item_tokens(item: Item, counter: Counter) -> int:
    """Count what an item costs in a window: content, calls, whatever else is sent, and the template around it.

    An image counts as `IMAGE_TOKENS`; parts of unknown kinds, files among them, as their JSON text.
    """
    total = MESSAGE_TOKENS
    if isinstance(item.content, str):
        total += counter.count(item.content)
    elif item.content:
        total += sum(_part_tokens(part, counter) for part in item.content)
    if item.tool_calls:
        total += sum(counter.count(_json(call)) + 4 for call in item.tool_calls)
    if item.tool_call_id:
        total += counter.count(item.tool_call_id) + 1
    if item.extra:
        beside = {name: value for name, value in item.extra.items() if name not in (API, REMEMBERED)}
        if beside:
            total += counter.count(_json(beside)) + 1
        # No model is sent these, but every turn reads them.
        if API in item.extra:
            total += min(len(_json(item.extra[API])) // 4, IMAGE_TOKENS) + 1
        if REMEMBERED in item.extra:
            total += max(0, len(_json(item.extra[REMEMBERED])) - _FREE) // 4
    return total


def tools_tokens(tools: Sequence[dict[str, Any]], counter: Counter) -> int:
    """Count what tool definitions cost, as JSON, which is longer than what models are shown."""
    return TOOLS_TOKENS + sum(counter.count(_json(tool)) + 10 for tool in tools) if tools else 0


def options_size(options: Mapping[str, Any]) -> int:
    """Give how many characters there are of what `options_tokens` counts."""
    form = options.get("response_format")
    return len(_json([*(options.get("tools") or ()), *([form] if isinstance(form, Mapping) else ())]))


def options_tokens(options: Mapping[str, Any], counter: Counter) -> int:
    """Count what goes along with the messages of a call: tools, and the form that the reply is to have."""
    form = options.get("response_format")
    tools = tools_tokens(options.get("tools") or (), counter)
    return tools + (counter.count(_json(form)) if isinstance(form, Mapping) else 0)


# --- the window ---


def _is_call(item: Item) -> bool:
    return item.role == "assistant" and bool(item.tool_calls)


def _pair(items: list[Item]) -> list[Item]:
    """Leave out calls without a result and results without a call: either makes a provider refuse the whole window."""
    paired: list[Item] = []
    position = 0
    while position < len(items):
        item = items[position]
        position += 1
        if item.role == "tool":
            continue  # those that belong to a call are taken below, with it
        if not _is_call(item):
            paired.append(item)
            continue
        asked = [item]  # calls of one answer, each in an item of its own
        while position < len(items) and _is_call(items[position]) and not items[position].content:
            asked.append(items[position])
            position += 1
        results: dict[str, Item] = {}
        while position < len(items) and items[position].role == "tool":
            results.setdefault(items[position].tool_call_id or "", items[position])
            position += 1
        wanted: set[str] = set()
        for item in asked:
            calls = [call for call in item.tool_calls or () if call.get("id") in results]
            if len(calls) < len(item.tool_calls or ()):
                item = msgspec.structs.replace(item, tool_calls=calls or None)
            if calls or item.content:
                paired.append(item)
            wanted |= {call["id"] for call in calls}
        paired += [result for call_id, result in results.items() if call_id in wanted]
    return paired


def unanswered(history: Sequence[Item]) -> list[Item]:
    """Give what was said in *history* since its last answer, if a user or a tool said some of it."""
    last = max([at for at, item in enumerate(history) if item.role == "assistant"], default=-1)
    said = list(history[last + 1 :])
    return said if any(item.role in ("user", "tool") for item in said) else []


def _start(history: Sequence[Item], costs: list[int], room: int, continued: bool) -> int:
    """Find where the oldest turn that fits begins; the newest one counts as fitting if *continued*."""
    start = len(history)
    for index in range(len(history) - 1, -1, -1):
        room -= costs[index]
        if history[index].role == "user":
            if room < 0 and not continued:
                break
            start = index
            continued = False
        elif room < 0 and not continued:
            break
    return 0 if continued else start


def fit(
    history: Sequence[Item],
    new: Sequence[Item],
    budget: int,
    *,
    system: Item | None = None,
    reserve: int = 0,
    whole: bool = False,
    counter: Counter,
) -> list[Item]:
    """Choose what is sent: *system*, as many of the newest turns of *history* as fit, and *new*, oldest first.

    *budget* and *reserve* (tool definitions, notes) are in tokens. Items of *history* before its first user item are
    the end of a turn that was cut off, unless it is the *whole* one, and left out, but for system items right before
    that. Where *new* begins with tool results, it continues the last turn, which therefore stays, as it does where
    *new* is empty and that turn `unanswered`. Calls and results that have lost each other are left out, and what no
    model is ever sent.

    Raises `BudgetExceeded`, with the number of tokens that are too many, if even the newest turn does not fit.
    """
    name = counter.name
    history = [item for item in history if not item.unsent]
    new = [item for item in new if not item.unsent]

    def cost(item: Item) -> int:
        # An estimate is valid for every model; another vocabulary's exact count is not.
        if item.counter and (item.counter in (name, "bytes") or item.counter.startswith("estimate-")):
            return item.tokens
        return item_tokens(item, counter)

    room = budget - reserve - PRIMING_TOKENS - sum([cost(item) for item in new]) - (cost(system) if system else 0)
    continued = new[0].role in ("tool", "assistant") if new else bool(unanswered(history))
    costs = [item.tokens if item.counter == name else cost(item) for item in history]  # nearly all: without a call
    start = _start(history, costs, room, continued)
    room -= sum(costs[start:])
    if whole and room >= sum(costs[:start]) and not any(item.role == "user" for item in history[:start]):
        start = 0
    while start and history[start - 1].role == "system" and costs[start - 1] <= room:  # it goes with what follows
        start -= 1
        room -= costs[start]
    if room < 0:
        raise BudgetExceeded(
            f"the system text and the newest turn are {-room} tokens too long for a window of {budget}; "
            "shorten them, or set context_tokens if the model takes more",
            too_long=True,
        )
    items = [*history[start:], *new]
    if [item for item in items if item.tool_calls or item.role == "tool"]:
        items = _pair(items)
    return [system, *items] if system else items
