"""Find e-mail addresses, web addresses and IP addresses of the sixth version."""

from __future__ import annotations

import re
from collections.abc import Iterator

from cloister.scrub.spans import Found

# Of a local part, backwards from the @: a text of many @ costs 64 characters for each of them and no more.
_LOCAL = re.compile(r"[\w.!#$%&'*+/=?^`{|}~-]{1,64}")
_DOMAIN = re.compile(
    r"(?:[^\W_][\w-]{0,62}\.){1,8}(?:xn--[\w-]{2,59}|[^\W\d_]{2,24})(?![\w-])|\[\d{1,3}(?:\.\d{1,3}){3}\]"
)
_AT = re.compile(r"\s?[\[({<]\s?at\s?[\])}>]\s?|\sat\s(?=[\w-]{1,63}\sdot\s)")
_CLOSED = re.compile(r"at\s?[\])}>]")
_SPELLED = re.compile(
    r"(?:[\w-]{1,63}(?:\.|\s?[\[({<]\s?dot\s?[\])}>]\s?|\sdot\s)){1,4}(?:com|org|net|edu|gov|info|io|[a-z]{2})\b",
    re.IGNORECASE,
)
_NAME = re.compile(r"[\w.+-]{1,64}")
_PLAIN = re.compile(r"\w[\w.+-]*")
_URL = re.compile(r"(?:(?<![A-Za-z])[a-z][a-z0-9+.-]{1,9}://|(?<![\w@.-])www\.)[^\s<>\"`{}|\\^]{2,2048}", re.IGNORECASE)
# The name of a site, from its last dot on; its labels are looked for backwards.
_SITE = re.compile(
    r"\.(?:com|org|net|edu|gov|info|biz|dev|app|eu|de|uk|fr|es|nl|ch)(?![.-]{0,2}[\w@(])(?:/[^\s<>\"`{}|\\^]{0,2048})?"
)
_LABELS = re.compile(r"(?:[A-Za-z0-9-]{0,62}[A-Za-z0-9])(?:\.[A-Za-z0-9-]{0,62}[A-Za-z0-9]){0,3}(?![\w@./-])")
_GROUP = re.compile(r":[0-9A-Fa-f]{0,4}:")
_IP6 = re.compile(r"(?<![\w:.])(?:[0-9A-Fa-f]{0,4}:){2,7}(?:\d{1,3}(?:\.\d{1,3}){3}|[0-9A-Fa-f]{0,4})(?![\w:])")


def emails(text: str, low: str) -> Iterator[Found]:
    """Find e-mail addresses, also those that are spelled out: ana [at] example [dot] com."""
    at = text.find("@")
    while at >= 0:
        if (domain := _DOMAIN.match(text, at + 1)) and (local := _LOCAL.match(text[max(0, at - 64) : at][::-1])):
            start = at - local.end()
            start += _opening(text[start:at])
            if start < at:
                yield Found(start, domain.end(), "EMAIL", "a name, @ and a domain")
        at = text.find("@", at + 1)
    for sign in _AT.finditer(low) if " dot " in low or _CLOSED.search(low) else ():
        local = _NAME.match(text[max(0, sign.start() - 64) : sign.start()][::-1])
        if local and (domain := _SPELLED.match(text, sign.end())):
            yield Found(sign.start() - local.end(), domain.end(), "EMAIL", "an e-mail address that is spelled out")


def _opening(local: str) -> int:
    """Tell how many characters before a local part are punctuation, or the name of a parameter."""
    if _PLAIN.fullmatch(local):
        return 0
    cut = max(local.rfind(mark) for mark in "=/?&'`|{}*#$!")
    return cut + 1 + len(local[cut + 1 :]) - len(local[cut + 1 :].lstrip(".-%"))


def urls(text: str, low: str) -> Iterator[Found]:
    """Find web addresses."""
    for match in _URL.finditer(text) if "://" in text or "www." in low else ():
        end = match.start() + len(match.group().rstrip(".,;:!?'*_~"))
        while (
            text[end - 1] in ")]" and text.count("([".__getitem__(")]".index(text[end - 1])), match.start(), end) == 0
        ):
            end -= 1
        if end - match.start() > 6:
            yield Found(match.start(), end, "URL", "a scheme or www, and an address")
    for match in _SITE.finditer(text) if "." in text else ():
        end = match.start() + len(match.group().rstrip(".,;:!?'*"))
        if labels := _LABELS.match(text[max(0, match.start() - 255) : match.start()][::-1]):
            yield Found(match.start() - labels.end(), end, "URL", "the name of a site")


def ip6(text: str) -> Iterator[Found]:
    """Find IP addresses of the sixth version."""
    for match in _IP6.finditer(text) if _GROUP.search(text) else ():
        value = match.group()
        halves = value.split("::")
        groups = [group for half in halves for group in half.split(":") if group]
        size = len(groups) + ("." in value)
        whole = len(halves) == 1 and size == 8 and not value.startswith(":") and not value.endswith(":")
        short = len(halves) == 2 and 0 < size < 8 and any(map(str.isdigit, value))
        if whole or (short and (len(value) > 6 or value == "::1")):
            yield Found(match.start(), match.end(), "IP", "groups of an IPv6 address")
