"""Rule: a detail is one however it is written. What a text says to whoever looks at it, or takes it apart a little.

`disguised` undoes what changes how a text is written and not what is read: characters that nobody sees, look-alikes of
other alphabets, HTML, escapes, marks in the middle of a word, letters one by one. `wrapped` decodes what is written in
another code. Both are looked at beside the text as it is written, so that nothing can hide behind them.
"""

from __future__ import annotations

import base64
import binascii
import html
import itertools
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from cloister.leaks.features import features
from cloister.leaks.spoken import Feature, Letters
from cloister.leaks.words import Frequencies

MOST_ROUNDS = 3
"""How often one disguise is looked for behind another."""
LONGEST = 400
"""How long a word in disguise, or in another code, is at most."""
LEAST_SPELLED = 4
"""How many single characters in a row are taken for a word."""


_Change = tuple[int, int, str]
"""From where to where, and what comes in its place."""


class Reading(NamedTuple):
    """Be what a text reads like, and for each character where it stands in the text as it is written."""

    text: str
    starts: Sequence[int]
    ends: Sequence[int]


# --- characters -------------------------------------------------------------------------------------------------------

_UNSEEN = (
    "\u00ad\u0300-\u036f\u0483-\u0489\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u1ab0-\u1aff\u1dc0-\u1dff"
    "\u200b-\u200f\u202a-\u202e\u2060-\u206f\u20d0-\u20ff\u2800\u3164\ufe00-\ufe0f\ufe20-\ufe2f\ufeff\uffa0"
    "\ufff9-\ufffd\U000e0000-\U000e0fff"
)
# Compatible forms of letters, digits and signs: small, raised, circled, squared, mathematical, wide.
_ALIKE = (
    "\u00a0\u00aa\u00b2\u00b3\u00b7\u00b9\u00ba\u0660-\u0669\u06f0-\u06f9\u0966-\u096f\u1d00-\u1dbf\u2000-\u200a"
    "\u2010-\u2015\u2022\u2024\u2027\u202f\u205f\u2070-\u209f\u2100-\u214f\u2212\u2219\u2460-\u24ff\u2776-\u2793\u3000\u3002"
    "\ua731\ua7af\ufe50-\ufe6b\uff01-\uff9f\U0001d400-\U0001d7ff\U0001f100-\U0001f1ff\u0262\u026a\u0274\u0280\u028f"
    "\u0299\u029c\u029f"
)
_SMALL = dict(zip("ᴀʙᴄᴅᴇꜰɢʜɪᴊᴋʟᴍɴᴏᴘʀꜱᴛᴜᴠᴡʏᴢꞯ", "abcdefghijklmnoprstuvwyzq", strict=True))
_SIGNS = dict(zip("。·․‧•∙‐‑‒–—―−", "......-------", strict=True))
# Letters of other alphabets that look like Latin ones, in words that have both, or digits.
_TWINS = dict(
    zip(
        "асеорхуіѕјһԁԛԝѵгАВСЕНКМОРТХІЅЈԚԜУӏ" + "αονιρτυκχΑΒΕΖΗΙΚΜΝΟΡΤΥΧ" + "օոսցհզ",
        "aceopxyisjhdqwvrABCEHKMOPTXISJQWYl" + "aoviptukxABEZHIKMNOPTYX" + "onughq",
        strict=True,
    )
)
_TWIN = re.compile(f"[{''.join(_TWINS)}]")
_MIXED = re.compile(rf"(?=\S*[A-Za-z0-9])(?=\S*[{''.join(_TWINS)}])\S{{1,{LONGEST}}}")


@cache
def _plain(character: str) -> str:
    """Give what *character*, of a compatible form, reads like; a digit of another script as itself."""
    if "\U0001f1e6" <= character <= "\U0001f1ff":
        return chr(ord(character) - 0x1F1E6 + ord("a"))
    if character in _SMALL or character in _SIGNS:
        return _SMALL.get(character) or _SIGNS[character]
    digit = unicodedata.digit(character, None)
    if digit is not None:
        return str(digit)
    read = unicodedata.normalize("NFKC", character)
    return read[1] if len(read) == 3 and read[0] == "(" else read


# --- escapes and markup -----------------------------------------------------------------------------------------------

_INLINE = "a|abbr|b|bdi|big|code|del|em|font|i|ins|kbd|mark|q|s|samp|small|span|strike|strong|sub|sup|tt|u|var|wbr"
_SIGN = re.compile(rf"[&%\\<*~`{{}}$\[+U{_UNSEEN}{_ALIKE}]")
_DISGUISE = re.compile(
    rf"""(?P<unseen>[{_UNSEEN}]+)
    |(?P<alike>[{_ALIKE}])
    |(?P<entity>&(?:\#\d{{1,7}}|\#[xX][0-9a-fA-F]{{1,6}}|[A-Za-z]{{2,24}});?)
    |(?P<percent>(?:%[0-9a-fA-F]{{2}})+)
    |(?P<code>\\u\{{[0-9a-fA-F]{{1,6}}\}}|\\u[0-9a-fA-F]{{4}}|\\U[0-9a-fA-F]{{8}}|\\x[0-9a-fA-F]{{2}}|\\[0-7]{{3}}
        |\\[0-9a-fA-F]{{2,6}}\ |U\+[0-9a-fA-F]{{4,6}}(?:[ ,]{{1,2}}(?=U\+))?)
    |(?P<style>\\(?:text(?:bf|it|tt|rm|sf)?|math(?:bf|it|tt|rm|sf)|mbox|operatorname)(?![A-Za-z])|\\[,;:!>\ ])
    |(?P<escaped>\\(?P<sign>[-_.@+*`~\#\[\](){{}}]))
    |(?P<tag><!--[^<>]{{0,200}}-->|</?(?:{_INLINE})(?:\s[^<>]{{0,200}})?/?>|<[bB][rR]\s*/?>)
    |(?P<mark>(?<=[\w.@-])(?:\*{{1,8}}|~~|`{{1,3}}|\[\]\([^()\s]{{0,100}}\)|[{{}}$]+)(?=[-.@]?[^\W_]))
    |(?P<plus>(?<=[^\W_])\+(?=[^\W_]))""",
    re.VERBOSE,
)
# Each begins with what is rare, so that it costs little where there is nothing.
_JOINTS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"""["'](?<=[\w.@-]["'])\s?\+\s?["'](?=[\w.@-])"""), ""),
    (re.compile(r"-(?<=[^\W_]-)\r?\n[>\s]{0,5}(?=[^\W_])"), "-"),
    (re.compile(r"[-_](?<=[^\W_][-_])at[-_](?=[^\W_])"), "@"),
    (re.compile(r"[-_](?<=[^\W_][-_])dot[-_](?=[^\W_])"), "."),
    (re.compile(r" (?<=[^\W_] )\. (?=[^\W_])"), "."),
)
_HOST = re.compile(r"(\s{0,3})[\w-]{1,64} ?\. ?\w")
_NAMED = re.compile(r"\b([A-Za-z]) (?:as in|wie in|comme|como) [^\W\d_]{2,12}")


def _means(found: re.Match[str]) -> str:
    """Give what a disguise stands for."""
    kind, said = found.lastgroup, found[0]
    match kind:
        case "alike":
            return _plain(said)
        case "entity":
            return html.unescape(said)
        case "percent":
            try:
                return unquote_to_bytes(said).decode()
            except UnicodeDecodeError:
                return said
        case "code":
            if said[1].isdigit() and not said.endswith(" "):
                return chr(int(said[1:], 8))
            return _character(int(said.strip(" ,\\uUx+{}"), 16)) or said
        case "escaped":
            return found["sign"]
        case "plus":
            return " "
        case "style":
            return " " if said[1] == " " else ""
        case _:
            return ""


def _character(code: int) -> str:
    return chr(code) if 0 < code < 0x110000 and not 0xD800 <= code < 0xE000 else ""


# --- letters one by one -----------------------------------------------------------------------------------------------

_ALPHABET = {
    word: word[0]
    for word in """alfa alpha bravo charlie delta echo foxtrot golf hotel india juliett juliet kilo lima mike november
    oscar papa quebec romeo sierra tango uniform victor whiskey xray yankee zulu""".split()
} | {word: str(value) for value, word in enumerate("zero one two three four five six seven eight nine".split())}
_ONE = rf"(?:(?:{'|'.join(_ALPHABET)}|[xX]-[rR]ay|[^\W_])(?![^\W_]))"
_BETWEEN = r"(?:[^\w\r\n]|_){0,12}(?:\r?\n[>\s]{0,8}(?:\d{1,2}[.)]\s+)?(?:[^\w\r\n]|_){0,4}){0,2}"
_SPELLED = re.compile(rf"(?<![^\W_])(?:{_ONE}(?!\Z){_BETWEEN}){{3,{LONGEST}}}{_ONE}", re.IGNORECASE)
_LETTER = re.compile(rf"(?<![^\W_]){_ONE}", re.IGNORECASE)
_LISTED = re.compile(r"^[>\s]{0,8}\d{1,2}[.)]\s", re.MULTILINE)
_KEPT = frozenset(".@-_+")
_NUMBER = re.compile(r"\d+")


_BLANK = Letters({code: chr(code) if chr(code).isalnum() else " " for code in range(128)})


_SINGLE = dict.fromkeys((*_ALPHABET, *string.ascii_lowercase, *string.digits), 1)


def _letters(text: str) -> bool:
    """Say whether there may be something written letter by letter, quickly."""
    if text.isascii():
        single = bytes(map(_SINGLE.get, text.lower().translate(_BLANK).split(), itertools.repeat(0)))
    else:
        single = bytes([len(word) == 1 or word.lower() in _ALPHABET for word in text.translate(_BLANK).split()])
    return b"\1\1\1\1" in single


def _spelled(text: str) -> list[_Change]:
    """Find what is written letter by letter: from where to where, and the word."""
    found: list[_Change] = []
    if not _letters(text):
        return found
    for run in _SPELLED.finditer(text):
        numbered = {at for item in _LISTED.finditer(text, run.start(), run.end()) for at in range(*item.span())}
        letters = [one for one in _LETTER.finditer(text, run.start(), run.end()) if one.start() not in numbered]
        gaps = [_NUMBER.sub("", text[one.end() : two.start()]) for one, two in itertools.pairwise(letters)]
        if len(letters) < LEAST_SPELLED:
            continue
        usual = Counter(gaps).most_common(1)[0][0]
        # "a  Q  X  7  7": whoever spells does not change the separator.
        while len(letters) > LEAST_SPELLED and gaps[0] != usual and not _KEPT & ({*gaps[0]} - {*usual}):
            letters, gaps = letters[1:], gaps[1:]
        while len(letters) > LEAST_SPELLED and gaps[-1] != usual and not _KEPT & ({*gaps[-1]} - {*usual}):
            letters, gaps = letters[:-1], gaps[:-1]
        said = ""
        for letter, gap in zip(letters, [*gaps, ""], strict=True):
            read = letter[0].casefold()
            said += _ALPHABET.get(read, "x" if "-" in read else letter[0])
            said += "".join(sign for sign in gap if sign in _KEPT and sign not in usual)
        found.append((letters[0].start(), letters[-1].end(), said))
    return found


# --- readings ---------------------------------------------------------------------------------------------------------


def disguised(text: str, without: Iterable[tuple[int, int]] = ()) -> Reading | None:
    """Give what *text* reads like where that is not as it is written; None where it is.

    *without* says from where to where there is something that is not read at all.
    """
    hidden: list[_Change] = [(start, end, "") for start, end in without]
    reading = _changed(None, text, hidden) if hidden else None
    done = False
    for undo in (*[_undone] * MOST_ROUNDS, _joined, _latin, _spelled):
        if undo is _undone and done:
            continue
        changes = undo(text if reading is None else reading.text)
        if changes:
            reading = _changed(reading, text, changes)
        elif undo is _undone:
            done = True
    return reading


def _undone(text: str) -> list[_Change]:
    """Find characters, escapes and marks that do not stand for themselves."""
    changes: list[_Change] = []
    behind = 0
    for sign in _SIGN.finditer(text):
        found = _DISGUISE.match(text, sign.start()) if sign.start() >= behind else None
        if found and (said := _means(found)) != found[0]:
            behind = found.end()
            changes.append((found.start(), behind, said))
    return changes


def _joined(text: str) -> list[_Change]:
    """Find words that are taken apart at a hyphen and a line's end, or as strings of a program, or named in words."""
    changes: list[_Change] = []
    for joint, means in _JOINTS if "+" in text or "-" in text or "_" in text or " . " in text else ():
        changes += [(one.start(), one.end(), means) for one in joint.finditer(text)]
    for at in [at for at, sign in enumerate(text) if sign == "@"] if "@" in text else ():
        before, behind = text[max(0, at - 4) : at], _HOST.match(text, at + 1)
        spaces = len(before) - len(before.rstrip())
        if behind and (spaces or behind[1]) and before.rstrip()[-1:].isalnum():
            changes.append((at - spaces, behind.end(1), "@"))
    if " as in " in text or " wie in " in text or " com" in text:
        changes += [(one.start(), one.end(), one[1]) for one in _NAMED.finditer(text)]
    changes.sort()
    return [one for one, before in zip(changes, [(0, 0, ""), *changes], strict=False) if one[0] >= before[1]]


def _latin(text: str) -> list[_Change]:
    """Find letters of other alphabets in words that are Latin for the rest."""
    if text.isascii() or _TWIN.search(text) is None:
        return []
    return [
        (at, at + 1, _TWINS[text[at]])
        for mixed in _MIXED.finditer(text)
        for at in range(mixed.start(), mixed.end())
        if text[at] in _TWINS
    ]


def _changed(before: Reading | None, text: str, changes: Sequence[_Change]) -> Reading:
    """Give *text*, of the reading *before*, with *changes*, which are in order and do not overlap."""
    was, starts, ends = before or Reading(text, range(len(text)), range(1, len(text) + 1))
    pieces: list[str] = []
    begins: list[int] = []
    stops: list[int] = []
    at = 0
    for start, end, said in [*changes, (len(was), len(was), "")]:
        pieces += was[at:start], said
        begins += starts[at:start]
        stops += ends[at:start]
        if said:
            begins += [starts[start]] * len(said)
            stops += [ends[end - 1]] * len(said)
        at = end
    return Reading("".join(pieces), begins, stops)


# --- other codes ------------------------------------------------------------------------------------------------------

_HEX = r"(?:0[xX])?[0-9a-fA-F]{2}"
_WRAPPED = re.compile(
    rf"""(?<![\w+/=])(?:
    (?P<codes>\d{{2,3}}(?:[ ,;]{{1,2}}\d{{2,3}}){{4,120}}+(?![ ,]{{1,2}}[0-9a-fA-F]{{2}}\b))
    |(?P<hex>{_HEX}(?:[ ,:]{{0,2}}{_HEX}){{4,180}})
    |(?P<bits>(?:[01]{{8}}){{5,60}}|[01]{{7,8}}(?:[ ,][01]{{7,8}}){{4,60}})
    |(?P<base32>[A-Z2-7]{{12,{LONGEST}}}={{0,6}})
    |(?P<base64>(?=[\w+/-]{{0,{LONGEST}}}?(?:[a-z][A-Z]|\d[A-Za-z]|[A-Z]{{2}}[a-z]))
        [A-Za-z0-9+/_-]{{4,{LONGEST}}}(?:\r?\n[A-Za-z0-9+/_-]{{2,90}}){{0,8}}={{0,2}})
    |(?P<turned>(?=[\w.+-]{{0,80}}?[\d@])[\w.@+-]{{6,80}})
    )(?![\w+/=])""",
    re.VERBOSE,
)
_LINES = re.compile(r"(?<![\w.@-])([\w.@-]{1,80})(?<!\.)\r?\n[>|\s]{0,5}([\w.@-]{1,80})")
_BITS = re.compile(r"[01]{8}|[01]{7}")
_PAIR = re.compile(r"(?:0[xX])?([0-9a-fA-F]{2})")
_DECODERS: dict[str, Callable[[str], bytes]] = {
    "hex": lambda said: bytes(int(pair, 16) for pair in _PAIR.findall(said)),
    "codes": lambda said: bytes(min(int(code), 255) for code in re.findall(r"\d+", said)),
    "bits": lambda said: bytes(int(bits, 2) for bits in _BITS.findall(said)),
    "base32": lambda said: base64.b32decode(said.rstrip("=") + "=" * (-len(said.rstrip("=")) % 8)),
    "base64": lambda said: _base64("".join(said.split())),
}
# What one of them has: letters beside digits, capitals in a word, several numbers in a row.
# Each begins with one kind of character, which is what makes a search fast.
_CAPITALS = re.compile(r"[A-Z](?:(?<=[a-z].)|[A-Z][a-z]|[A-Z]{11})")
_FIGURES = re.compile(
    r"[0-9](?:(?<=[A-Za-z].)|(?<=[A-Za-z][-_.].)|[-_.]?[A-Za-z]|[0-9]{9}"
    r"|[0-9]{1,7}[ ,;:]{1,2}(?:[0-9]{2,8}[ ,;:]{1,2}){3})"
)


def _coded(text: str) -> bool:
    """Say whether something in *text* may be written in another code, quickly."""
    return "@" in text or _CAPITALS.search(text) is not None or _FIGURES.search(text) is not None


def wrapped(text: str) -> Iterator[_Change]:
    """Find what is written in another code, or backwards: from where to where, and what it says."""
    if not _coded(text):
        return
    if "\n" in text:
        for found in _LINES.finditer(text):
            if _coded(found[1] + found[2]):
                yield found.start(), found.end(), found[1] + found[2]
    for found in _WRAPPED.finditer(text):
        for name in _ORDER[found.lastgroup or ""]:
            for start, end in _passages(found) if name == "base64" else [found.span()]:
                said = _decoded(name, text[start:end])
                if said is not None:
                    yield start, end, said
                    again = _decoded("base64", said) if name == "base64" and said.isascii() else None
                    if again is not None:
                        yield start, end, again
                    break


def _passages(found: re.Match[str]) -> Iterator[tuple[int, int]]:
    """Give rows of whole lines, the longest first: other words may stand alone in the lines before and after."""
    lines = [line.span() for line in re.finditer(r"\S[^\r\n]*", found[0])][:9]
    rows = sorted(itertools.combinations_with_replacement(range(len(lines)), 2), key=lambda row: row[0] - row[1])
    for first, last in rows:
        yield found.start() + lines[first][0], found.start() + lines[last][1]


# What looks like one code may be another one.
_ORDER = {
    "hex": ("hex", "codes", "bits", "base64", "turned"),
    "codes": ("codes", "hex", "bits"),
    "bits": ("bits",),
    "base32": ("base32", "base64", "turned"),
    "base64": ("base64", "turned"),
    "turned": ("turned",),
}


def _decoded(name: str, said: str) -> str | None:
    if name == "turned":
        # Numbers that are turned round are among the features of what is written.
        lettered = said.isascii() and any(map(str.isalpha, said)) and sum(map(str.isalnum, said)) >= 6
        return said[::-1] if lettered else None
    if name == "base64" and (
        len(said) < 6 or said.isdecimal() or (said.isalpha() and (said.islower() or said.istitle()))
    ):
        return None
    if name == "codes" and not re.fullmatch(r"\d{2,3}(?:[ ,;]{1,2}\d{2,3})+", said):
        return None
    try:
        raw = _DECODERS[name](said)
        read = raw.decode("utf-16-le" if raw[1::2].count(0) * 3 > len(raw) else "utf-8")
    except (binascii.Error, ValueError):
        return None
    return read if len(read) >= 4 and " ".join(read.split()).isprintable() else None


def _base64(said: str) -> bytes:
    raw = said.rstrip("=").replace("-", "+").replace("_", "/")
    return base64.b64decode(raw + "=" * (-len(raw) % 4), validate=True)


# --- while a text arrives ---------------------------------------------------------------------------------------------

_HALF = re.compile(
    r"[&%\\<*~`$\[\]{}U](?:(?<=&)[#\w]{0,25}|(?<=%)[0-9a-fA-F]?|(?<=\\)[\w{}]{0,9} ?|(?<=<)[^<>]{0,240}"
    r"|(?<=[*~`$\[\]{}])[*~`$\[\]{}]{0,7}|(?<=U)\+?[0-9a-fA-F]{0,6})\Z"
)
_WIDE = re.compile(
    r"(?<![\w.+-])(?:[\w.+-]{1,64}\s{0,3}@\s{1,3}|[\w.+-]{1,64}\s{1,3}[.@]\s{0,3}){0,8}[\w.+-]{0,64}\s{0,3}[.@]?\s{0,3}\Z"
)
_LINE = re.compile(r"\S{1,80}(?:\r|\r?\n[>|\s]{0,5}\S{0,80})\Z")
_LINES_OPEN = re.compile(r"(?<![\w+/=])(?:[A-Za-z0-9+/_-]{4,90}\r?\n){1,9}[A-Za-z0-9+/_=-]{0,90}\r?\Z")
_CHAIN = re.compile(r"(?:\\[0-9a-fA-F]{2,6} |U\+[0-9a-fA-F]{4,6}[ ,]{0,2})+\S{0,9}\Z")
_NAMING = re.compile(
    r"(?<![^\W_])(?:[^\W_](?: (?:as in|wie in|comme|como) [^\W\d_]{2,12})?[\W_]{1,6})*"
    r"(?:[^\W_](?: [a-z]{0,5}){0,2}(?: [^\W\d_]{0,12})?)?\Z"
)
_TOKEN = re.compile(rf"\S{{1,{LONGEST}}}\Z")
_PIECE = re.compile(rf"(?:{_ONE}|\d{{1,3}}|(?:0[xX])?[0-9a-fA-F]{{0,2}}|[01]{{0,8}})", re.IGNORECASE)
NEAR = 48
_WORDS = re.compile(r"[^\W_]+")


def begun(text: str, tail: int) -> int:
    """Say from where in *text* on, and not before *tail*, something may be read another way with what comes next."""
    at = size = len(text)
    half = _HALF.search(text, max(tail, size - 250))
    token = _TOKEN.search(text, tail, half.start() if half else size)
    if half:
        at = half.start()
    if token and (half or not token[0].isalnum()):
        at = token.start()
    near = text[tail:]
    patterns = [_LINE, _LINES_OPEN] if "\n" in near or "\r" in near else []
    if "@" in near or " ." in near:
        patterns.append(_WIDE)
    if "\\" in near or "U+" in near:
        patterns.append(_CHAIN)
    if " as " in near or " wie " in near or " com" in near:
        patterns.append(_NAMING)
    found = [pattern.search(text, tail) for pattern in patterns]
    return min(at, _row(text, tail), *[one.start() for one in found if one])


def _row(text: str, tail: int) -> int:
    """Say where the row of letters, or of pairs of digits, begins with which *text* ends."""
    begins = len(text)
    for near in (max(tail, len(text) - NEAR), tail):  # hardly ever is it longer
        at = begins = len(text)
        last = True
        for word in reversed(list(_WORDS.finditer(text, near))):
            if word.start() == near > tail:  # it may have begun before
                break
            piece = _PIECE.fullmatch(word[0])
            if at - word.end() > 24 or not (piece or (last and len(word[0]) <= 8)):
                return begins
            at = word.start()
            # The last word may be the beginning of one; alone it is held back anyway.
            begins = at if piece or not last else begins
            last = False
    return begins


# --- what it all comes to ---------------------------------------------------------------------------------------------


class Looked(NamedTuple):
    """Be what a text says beside what is written: what it reads like, and what is in it in other codes, and where."""

    reading: Reading | None
    passages: list[_Change]

    @classmethod
    def at(cls, text: str, without: Sequence[tuple[int, int]] = ()) -> Looked:
        """Look at *text*; *without* says where there is something that is not read at all."""
        reading = disguised(text, without)
        passages = []
        for start, end, said in wrapped(text if reading is None else reading.text):
            inside = disguised(said)
            begins, behind = (start, end) if reading is None else (reading.starts[start], reading.ends[end - 1])
            passages.append((begins, behind, said if inside is None else inside.text))
        return cls(reading, passages)


def beyond(looked: Looked, words: Frequencies) -> list[Feature]:
    """Find what could be a detail in a text beside its `features`: where it says something else than it seems to."""
    reading, passages = looked
    found = [] if reading is None else _placed(features(reading.text, words, claims=False), reading)
    for start, end, said in passages:
        found += [one._replace(start=start, end=end) for one in features(said, words, claims=False)]
    return found


def claimed(text: str, words: Frequencies) -> list[Feature]:
    """Find the features of *text* as it is written and as it reads, for whoever says it."""
    reading = disguised(text)
    found = features(text, words)
    return found if reading is None else [*found, *_placed(features(reading.text, words), reading)]


def plain(text: str) -> str:
    """Give *text* as it reads."""
    reading = disguised(text)
    return text if reading is None else reading.text


def _placed(found: Iterable[Feature], reading: Reading) -> list[Feature]:
    starts, ends = reading.starts, reading.ends
    return [one._replace(start=starts[one.start], end=ends[one.end - 1]) for one in found]
