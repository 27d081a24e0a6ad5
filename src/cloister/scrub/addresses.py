"""Find postal addresses: a number and a street, a box, a military post; and the flat, town, postcode, country."""

from __future__ import annotations

import re
from collections.abc import Iterator

from cloister.scrub.digits import STATES as _STATES
from cloister.scrub.lists import COUNTRY, TOWN, Lists
from cloister.scrub.spans import Found, Unsearchable

_SUFFIXES = frozenset(
    "street st avenue ave av road rd drive dr lane ln court ct boulevard blvd place pl square sq terrace ter way "
    "circle cir parkway pkwy highway hwy alley trail trl plaza crescent cres close row grove hill gardens mews "
    "crossing xing loop path pike turnpike expressway freeway route ridge view point bend creek cove meadows manor "
    "heights commons estates villas walk green park mall mount knoll glen hollow run springs station junction track "
    "rise vale quay wharf coves ways crossroad crossroads flat flats field fields ford forge fork fort garden harbor "
    "haven island isle islands key lake landing lodge mill mills mountain neck orchard oval parkways pass passage pine "
    "pines plain plains port prairie ranch rapid rest river road roads shoal shore shores spring spur stream summit "
    "throughway trace tunnel union unions valley viaduct village ville vista well wells camp canyon cape causeway "
    "center centers cliff cliffs club corner corners course courts dale dam divide drives extension falls ferry burg "
    "bridge branch brook brooks burgs bypass beach bluff bluffs bottom arcade annex underpass stravenue squares "
    "streets ridges chowk nagar marg".split()
)
_SUFFIXES |= {f"{word}s" for word in _SUFFIXES if len(word) > 3}
_SURE = frozenset(
    "street st avenue ave road rd drive dr lane ln court ct boulevard blvd place square terrace way circle parkway "
    "pkwy highway hwy crescent mews plaza sq trail alley allé rodovia".split()
)
_JOINED = (
    "straße", "strasse", "str", "weg", "gasse", "platz", "allee", "ufer", "damm", "ring", "gata", "gatan", "vägen",
    "vagen", "vej", "vegen", "veien", "gade", "gaten", "allé", "alle", "laan", "straat", "plein", "gracht", "kade",
    "dijk", "katu", "tie", "kuja", "polku", "utca", "utja", "braut", "stræti", "straeti", "vegur", "stígur", "götu",
    "götuna", "hof", "stieg", "steig", "gången", "gränd", "plads", "torget", "toft", "bakken", "tänav", "maantee",
    "parken", "centret", "dreef", "singel", "steeg", "pad", "boulevard", "bulevardi", "gjerdet", "grenda", "myra",
    "bråten", "røa", "lia", "åsen", "haugen", "bakke", "stien", "kaari", "raitti", "chaussee", "markt", "berg",
    "graben",
)  # fmt: skip
_LEADING = frozenset(
    "rue rua via calle avenida avda avenue av viale corso piazza piazzetta piazzale vicolo largo plaza paseo carrera "
    "camino carretera travessa praça praca alameda estrada quai boulevard bd cours chemin impasse allée allee ul ulica "
    "aleja plac pl ulitsa prospekt strada stradă calea bulevardul ctra ronda passeig carrer passeo jalan jl cesta trg "
    "náměstí sokak λεωφόρος leoforos postbox avinguda rotonda borgo contrada stretto incrocio canale rambla glorieta "
    "callejón callejon pasaje pasadizo urbanización urbanizacion privada prolongación cerrada circuito retorno andador "
    "eje vereda ladeira viela beco feira jardim conjunto quadra residencial condomínio fazenda loteamento recanto "
    "praia parque sítio núcleo setor colonia faubourg esplanade sentier villa place route al".split()
)
# Of those, the ones that are words of other kinds too: they need a capital, or words that say an address comes.
_LEADING_WEAK = frozenset(
    "via place route avenue al pl villa parque praia setor esplanade av plaza cours eje borgo canale".split()
)
_UNITS = frozenset(
    "apt apartment suite ste unit flat studio room rm floor bldg building appartement wohnung piso h.no house "
    "no".split()
)
_COMMON = frozenset(
    "a an and are as at be been but by can could did do does for from had has have he her his how i if in is it its me "
    "my no not of on or our please she so that their them then there they this to was we were what when where which "
    "who will with would you your days day weeks week hours hour minutes months years year people times items percent "
    "am pm more per other others each new dollars euros units users messages files lines degrees points pages version "
    "during since until after before about around over under than only just also between january february march april "
    "may june july august september october november december jan feb mar apr jun jul aug sep sept oct nov dec chapter "
    "section page step level table figure line order ticket invoice room flight act windows season episode zone rule "
    "phase stage part type class grade tier article volume number size option group team task item question answer "
    "appendix exhibit gate terminal channel lesson exercise formula note python".split()
) - {"new"}
# A word after which four digits are a year.
_DATED = frozenset(
    "in during since until by year before after early late mid circa january february march april may june july august "
    "september october november december jan feb mar apr jun jul aug sep sept oct nov dec © copyright".split()
)
_LINK = frozenset(
    "de la las los del da das do dos di della delle dei degli du des el van der den ten zur zum am im von bin y e d "
    "l".split()
)

_NUMBER = re.compile(
    r"\d(?<![\w.,$€£#+-].)(?<!\d[./-].)\d{0,5}[A-Za-z]?(?:[-/]\d{1,4}[A-Za-z]?)?(?: \d{1,5}[A-Za-z]?)?"
    r"(?![\w%:€]|[.,-]\d|/\w)"
)
_GAP_IN = re.compile(r",?[ \t]{1,2}|,?\n[>? ]{0,5}")
_WORD = re.compile(r"[^\W\d_][\w'.-]{0,40}|\d{1,3}(?:st|nd|rd|th)\b")
_UNIT = re.compile(
    r"(?:apt|apartment|appartamento|interno|piano|puerta|portal|depto|edif|suite|ste|unit|floor|fl|flat|room|rm|bldg|building|"
    r"appt|lot|p\.?\s?o\.?\s?box|box|wohnung|piso|bajo|planta|bus|lgh|lejl|daire|lok|m|studio)\.?\s?(?:#|no\.?|nr\.?|n\.?)?"
    r"\s?(?:\d{1,5}[a-z]?|[a-z]-?\d{1,4}|[a-z])\b|#\s?\d{1,5}[a-z]?\b|\d{1,3}(?:st|nd|rd|th) floor\b"
)
_UNIT_BEGINS = frozenset("aipdesufrblwmo#0123456789")
_GAP = re.compile(r"[ \t,;\n>|?]{1,12}|(?:\s[-–/]\s)|-(?=\d{6}\b)")
_STATE_ZIP = re.compile(r"([A-Za-z]{2}),?\s{1,3}\d{5}(?:-\d{4})?\b")
_CODE = re.compile(
    r"(?:[A-Z]{1,2}-)?\d{5,6}(?:-\d{3,4})?(?![\w-])|\d{2}-\d{3}\b|\d{3}\s\d{2}\b|\d{4}\s?[A-Z]{2}\b|\d{4}(?![\w-])"
    r"|[A-Z]{1,2}\d{1,2}[A-Z]? ?\d[A-Z]{2}\b|[A-Z]\d[A-Z] ?\d[A-Z]\d\b",
    re.IGNORECASE,
)
_YEAR = re.compile(r"(?:19|20)\d\d$")
_REGION = re.compile(r"\(?[A-Z]{2,4}\)?(?!\w)|/ ?[A-Z]{2}\b")
_TOWN = re.compile(r"[^\W\d_][^\W\d_'.-]{1,24}(?:['. -]{1,2}[^\W\d_]{2,24}){0,4}")
_MILITARY = re.compile(
    r"\b(?:(?:PSC|CMR|Unit)\s\d{1,5},?\s{1,2}Box\s\d{1,5}|(?:USNS|USNV|USCGC|USS)\s[^\W\d_]{2,30})[\s,>?]{1,8}"
    r"(?:APO|FPO|DPO)\s(?:A[AEP])\s\d{5}(?:-\d{4})?\b",
    re.IGNORECASE,
)
_BOX = re.compile(
    r"\b(?:\d{1,6}\s)?(?:p\.?\s?o\.?\s?box|postbox|postfach|apartado|boîte postale)\s(?:no\.?\s|#)?\d{1,6}\b",
    re.IGNORECASE,
)
_PATIENCE = 2_000  # each takes some fifty microseconds
_BOXES = ("postfach", "apartado", "boîte")
# What says that an address comes: by the last word before it, or, if that is one of _PERHAPS, by the words before that.
_TOLD = frozenset(
    "to at residence home anschrift adresse dirección direccion domicilio wohne adress osoite location address "
    "addresses".split()
)
_PERHAPS = frozenset("is are same with in on from following".split())
_SAID = re.compile(
    r"(?:liv(?:es?|ing)\s(?:in|on)|resid(?:e[sd]?|ing)\s(?:in|on)|pick(?:ed)?\sup\sfrom|here\sthey\sare|it\sis|it's\sin|"
    r"validate\sthe\sfollowing)$"
)
_ADDRESS = re.compile(r"address(?:es)?(?:\s\w{1,12}){0,5}$")


def _told(low: str, begin: int) -> bool:
    """Tell whether the words before *begin* say that an address comes."""
    window = low[max(0, begin - 60) : begin].rstrip(" \n\t:?=.\"'")
    last = _LAST.search(window)
    if last and last[0] in _TOLD:
        return True
    if last and last[0] in _PERHAPS and _SAID.search(window, max(0, len(window) - 24)):
        return True
    at = window.rfind("address")
    return at >= 0 and _ADDRESS.match(window, at) is not None


_LAST = re.compile(r"[^\W\d_]{1,12}$")


def addresses(text: str, low: str, lists: Lists) -> Iterator[Found]:
    """Find postal addresses: around every number, streets are looked for before and after it."""
    lower = text == low
    for pattern in (_MILITARY, _BOX) if "box" in low or "PO " in text or any(hint in low for hint in _BOXES) else ():
        for match in pattern.finditer(text):
            yield Found(
                match.start(),
                _tail(text, low, lower, match.end(), lists)[0],
                "STREET_ADDRESS",
                "a box or a military post",
            )
    at = fruitless = 0
    for match in _NUMBER.finditer(text):
        if match.start() < at or (match.start() and _dated(low, match)):
            continue
        stop, after = _after(text, match.end())
        begin, before = _before(text, match.start(), at, lists.ordinary if lower else None)
        found = None
        if before or after:
            found = _around(text, low, lower, match, (begin, before), (stop, after), lists)
            fruitless += found is None
            if fruitless > _PATIENCE:
                raise Unsearchable(f"more than {_PATIENCE:,} numbers that might be in addresses and are not")
        if found := found or _postcode(text, match, lists):
            at = found.end
            yield found


def _dated(low: str, number: re.Match[str]) -> bool:
    """Tell whether a number is a year: in 2008, since 1971."""
    if number[0].endswith("0s"):
        return True
    if number.end() - number.start() != 4 or number[0][:2] not in ("19", "20"):
        return False
    before = low[max(0, number.start() - 12) : number.start()].split()
    return bool(before) and before[-1] in _DATED


def _postcode(text: str, number: re.Match[str], lists: Lists) -> Found | None:
    """Decide whether a number is the postcode of a town before it: in Aalborg 9100."""
    start, end = number.span()
    if not (end - start == 5 or (end - start == 4 and number[0][:2] not in ("19", "20"))) or not number[0].isdigit():
        return None
    before = _IN_TOWN.search(text, max(0, start - 40), start)
    if before is None or not _NO_COUNT.match(text, end):
        return None
    towns = before[1].lower().split()
    known = any(TOWN <= lists.bits(town) & 7 < COUNTRY for town in towns)
    return Found(start, end, "ZIP", "digits after a town") if known else None


def _around(
    text: str,
    low: str,
    lower: bool,
    number: re.Match[str],
    left: tuple[int, float],
    right: tuple[int, float],
    lists: Lists,
) -> Found | None:
    """Decide whether a number is one of a house, from what `_before` and `_after` say, and from what follows."""
    start, end = number.span()
    (begin, before), (stop, after) = left, right
    if after >= 3 or after > before:
        if before < 3 and not (before and begin < start and text[begin:start].strip(" ,.\n").lower() in _UNITS):
            begin = start
        if match := _HOUSE_AFTER.match(text, stop):
            stop = match.end()
    else:
        stop = end
    score = before if before > after else after
    if score < 1.5 and not _FURTHER.search(low, stop, stop + 60) and not _told(low, begin):
        return None
    tail, sure = _tail(text, low, lower, stop, lists)
    score += sure
    if 0.5 <= score < 3.0 and _told(low, begin):
        score += 2.5
    return Found(begin, tail, "STREET_ADDRESS", "a number with a street or a town") if score >= 3.0 else None


_IN_TOWN = re.compile(r" (?:in|at|from|near|to) ((?:[^\W\d_a-z][^\W\d_]{0,24} ){1,4})$")
_NO_COUNT = re.compile(r"[.,;:!?)\n]|$| (?:in|and|on|to|for|or|with|is|at|by|where|which|who|since)\b")
_HOUSE_AFTER = re.compile(r",? \d{1,5}[A-Za-z]?\b\.?(?! ?[%:])")


def _before(text: str, start: int, floor: int, ordinary: frozenset[str] | None) -> tuple[int, float]:
    """Look for a street that ends before the number at *start*: where it begins, and how sure it is.

    Where there are no capitals at all to tell a street by, *ordinary* are the words that are none.
    """
    low = max(floor, start - 56)
    window = text[low:start]
    body = window.rstrip(" ")
    if not body or ((len(window) - len(body) > 2 or window == body) and body[-1] != "\n"):
        return start, 0.0
    body = body.rstrip(",\n ")
    if not body or not (body[-1].isalpha() or body[-1] in ".'-") or window.count("\n", len(body)) > 1:
        return start, 0.0
    words = []  # of the line, the last one first
    for word in reversed(_BEFORE_WORD.findall(body)[-5:]):
        if word in _BREAKS:
            break
        words.append(word)
    if not words or not body.endswith(words[0]):
        return start, 0.0
    last = words[0].lower()
    at = low + len(body)
    if last.strip(".") in _UNITS:
        return at - len(last), 1.0
    sure, begin = 0.0, start
    position = at
    for index, word in enumerate(words):
        position = text.rfind(word, low, position)
        bare = word.strip(".,").lower()
        if word.endswith(",") or (bare in _COMMON and bare not in _LINK):
            break
        if index == 0 and len(bare) > 5 and bare.endswith(_JOINED):
            sure, begin = 3.0, position
        elif bare in _LEADING and (index or bare in ("postbox",)):
            if word[0].isupper() or bare not in _LEADING_WEAK:
                return position, 3.0
            sure = max(sure, 1.5)
            begin = position
            break
        elif index == 0 and bare in _SURE and len(words) > 1:
            sure, begin = 2.0, position
        elif word[0].isupper() and not word.endswith("."):
            sure, begin = max(sure, 1.0), position
        elif ordinary is not None and index < 3 and bare not in ordinary and bare not in _COMMON:
            sure, begin = max(sure, 0.5), position
        elif bare not in _LINK:
            break
    return begin, sure


_BREAKS = frozenset('\n:;?!()>"|')
_BEFORE_WORD = re.compile(r"[^\W\d_][\w'.-]{0,40},?|[\n:;?!()>\"|]")


def _after(text: str, end: int) -> tuple[int, float]:
    """Look for a street that begins after the number that ends at *end*: where it ends, and how sure it is."""
    gap = _GAP_IN.match(text, end)
    if not gap:
        return end, 0.0
    at = gap.end()
    stop, sure = end, 0.0
    capital = text[at : at + 1].isupper()
    leading = False
    for index in range(6):
        match = _WORD.match(text, at)
        if not match:
            break
        raw = match[0]
        word = raw.strip(".'-").lower()
        if word in _COMMON:
            break
        if index == 0 and (word in _UNITS or (len(word) < 2)):
            break
        upper = raw[0].isupper()
        size = match.end() - (raw[-1] in ".-'")
        if index < 2 and word in _LEADING and (word not in _LEADING_WEAK or upper or text[end] == ","):
            leading = True
        if (index and word in _SURE) or (len(word) > 6 and word.endswith(_JOINED)):
            stop, sure = size, 3.0
        elif index and word in _SUFFIXES:
            stop, sure = size, max(sure, 3.0 if upper and capital else 1.5)
        elif leading:
            if index > 3 and word not in _LINK:
                break
            stop, sure = size, 3.0 if index else 1.0
        elif sure < 1.5 and index < 4 and (upper or (not capital and index < 3)):
            stop, sure = size, max(sure, 1.0 if capital else 0.4)
        elif word not in _LINK and sure >= 3:
            break
        at = match.end()
        if at < len(text) and text[at] == " ":
            at += 1
        else:
            break
    return stop, sure


def _tail(text: str, low: str, lower: bool, end: int, lists: Lists) -> tuple[int, float]:
    """Give where an address ends whose street ends at *end*, and how sure the parts make it that follow."""
    sure = 0.0
    at = end
    for _ in range(8):
        gap = _GAP.match(text, at)
        if not gap:
            break
        after = gap.end()
        # Few of these begin with the letter that stands here; _TOWN alone may with any.
        first = low[after : after + 1]
        if not first.isalnum() and first not in _OPENERS:
            break
        if first in _UNIT_BEGINS and (match := _UNIT.match(low, after)):
            at = end = match.end()
            sure += 1.5
            continue
        if (match := _STATE_ZIP.match(text, after)) and match.group(1).upper() in _STATES:
            at = end = match.end()
            sure += 3.0
            continue
        if (match := _CODE.match(text, after)) and not (_YEAR.match(match.group()) and sure < 1.5):
            known = match.group().isdigit() and len(match.group()) == 4
            town = (gap2 := _GAP.match(text, match.end())) and _TOWN.match(text, gap2.end())
            if known and not (town and (town.group()[0].isupper() or lower)) and sure < 1.0:
                break
            at = end = match.end()
            sure += 2.0 if town and (town.group()[0].isupper() or lower) else 1.5
            if region := _REGION.match(text, at + 1):
                at = end = region.end()
            continue
        if not (match := _TOWN.match(text, after)):
            if sure and (region := _REGION.match(text, after)):
                at = end = region.end()
                continue
            break
        if (stop := _town(text, gap.group(), match, lists, lower, sure)) is None:
            break
        at, strength, certain = stop
        if certain:
            end = at
            sure += strength
    return end, sure


def _town(
    text: str, gap: str, match: re.Match[str], lists: Lists, lower: bool, sure: float
) -> tuple[int, float, bool] | None:
    """Decide whether words are a town or a country: where they end, how sure it is, and is it for certain."""
    words = match.group().split(" ")
    if words[0].lower() in _COMMON or not (words[0][0].isupper() or lower):
        return None
    for size in range(len(words), 0, -1):
        name = " ".join(words[:size])
        place = lists.bits(name.lower()) & 7
        if COUNTRY >= place >= TOWN or (place and " " in name):
            stop = match.start() + len(name)
            return stop, 1.0 if place == COUNTRY else 0.5, True
    capital = 0
    for word in words:
        if not (word[0].isupper() or lower or word in _LINK):
            break
        capital += len(word) + 1
    stop = match.start() + capital - 1
    follow = _GAP.match(text, stop)
    if follow is None:
        # The town of a postcode before it, or the last line of an address.
        return (stop, 0.0, True) if sure >= 1.5 and len(words) < 4 else None
    region = _REGION.match(text, follow.end())
    state = _STATE_ZIP.match(text, follow.end())
    if (state and state.group(1).upper() in _STATES) or _CODE.match(text, follow.end()) or region:
        return stop, 0.0, bool(region)
    if sure >= 1.5 and ("\n" in gap or _CODE_BEFORE.search(text, max(0, match.start() - 12), match.start())):
        return stop, 0.0, True
    return (stop, 0.0, False) if "\n" in gap or "," in gap else None


_FURTHER = re.compile(r"[\d#]| (?:apt|suite|unit|flat)\b")  # without any of it no part that follows says enough
_OPENERS = ("#", "(", "/")
_CODE_BEFORE = re.compile(r"[\dA-Z]{2,6}[ ,\n]{1,3}$")
