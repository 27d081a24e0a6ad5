"""Find what is written in digits: cards, phones, social security numbers, IBANs, postcodes, IP addresses, birth dates.

One scan yields the runs of digits with what stands between them; each is then told by its length, its checksum, its
shape, and by the words before it, which assent ("call me at") or veto ("order number").
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from cloister.scrub.spans import Found

# What is asked of the characters before a match stands behind its first one: so the search skips what cannot begin one.
_RUN = re.compile(
    r"[+(\d](?<![\w$€£¥].)(?<!\w-.)(?<!\d\..)(?:(?<=\d)|[+(]{0,2}\d)(?:[ ()./-]{0,3}\d){2,39}+"
    r"(?:(?=[xX]\d)|(?![\w$€£%]))"
)
_EXTENSION = re.compile(r"\s?(?:x|ext\.?|extension|#)\s?\d{1,6}\b", re.IGNORECASE)
_SAID = re.compile(r"[ -]{0,2}\(?(?:office|fax|home|cell|mobile|work|tel|phone|voice)\b", re.IGNORECASE)
_WINDOW = 44  # characters before a number that may say what it is

_IP4 = re.compile(r"\d{1,3}(?:\.\d{1,3}){3}")
_SSN = re.compile(r"(?<!\d)\d{3}([- .])\d{2}\1\d{4}(?!\d)")
_CARD = re.compile(
    r"(?<!\d)(?:\d{4}([ .-]?)\d{4}\1\d{4}\1\d{4}(?:\1\d{3})?|\d{4}([ .-]?)\d{6}\2\d{4,5}|\d{12,19})(?!\d)"
)
_ISSUERS = re.compile(r"3[0-9]|4|5[0-9]|6[0-9]|2[2-7]|1800|2131")
_NANP = re.compile(
    r"(?<![\d.-])(?:\+?1[ .-]{0,2})?"
    r"(?:\(\d{3}\)[ .-]{0,2}\d{3}[ .-]\d{4}|\d{3}([ .-])\d{3}[ .-]\d{4}|\d{3}[/]\d{3}-\d{4})(?!\d)"
)
_DATE_LIKE = re.compile(r"(?:\d{1,2}[./-]\d{1,2}[./-](?:\d{4}|\d{2})|\d{4}[./-]\d{1,2}[./-]\d{1,2})(?![\d./-])")
_DECIMAL = re.compile(r"\d{1,3}\.\d+")
_AREA = re.compile(r"[2-9]\d\d[2-9]\d{6}")
_ABROAD = re.compile(r"(?:00|0|\(0)\d")

# Words before a number that say what it is; the nearest one counts.
_KINDS = {
    word: kind
    for kind, words in {
        "PHONE": (
            "phone phones telephone tel telf mobile mob cell cellphone call calling called calls dial ring text "
            "texting sms whatsapp fax landline hotline helpline reach reached reachable contact contacted "
            "answering pager voicemail telefon telefono teléfono handy téléphone móvil movil celular portable "
            "telefoon puhelin ph signal viber telegram callback telefonnummer handynummer mobil telefone fono tfn "
            "tlf telefonnr dialed ringing whats"
        ),
        "CREDIT_CARD": (
            "card cards credit debit visa mastercard amex discover diners maestro cc kreditkarte tarjeta carte"
        ),
        "US_SSN": "ssn ssns social socials security itin tin ssa",
        "ZIP": "zip zips zipcode postal postcode postcodes postleitzahl plz pincode zipcodes",
        "VETO": (
            "order orders invoice ticket tickets case tracking ref reference account accounts acct isbn issn sku "
            "upc ean serial version build part model item product batch lot docket bar claim policy record mrn "
            "license licence passport confirmation booking reservation pnr flight transaction txn receipt po imei "
            "id ids uuid commit chapter page code otp pin error port usd eur gbp total amount price balance "
            "routing member membership shipment parcel package rma bates patent vin iccid meter quote contract "
            "purchase timeout retries student employee badge inv emp case# report costs cost"
        ),
    }.items()
    for word in words.split()
}
_ZIP_WORDS = frozenset(word for word, kind in _KINDS.items() if kind == "ZIP")
_WEAK = frozenset("number numbers num line".split())
_WORDS = re.compile(r"[^\W\d_]+")
STATES = frozenset(
    "AL AK AZ AR CA CO CT DE FL GA HI ID IL IN IA KS KY LA ME MD MA MI MN MS MO MT NE NV NH NJ NM NY NC ND OH OK OR PA "
    "RI SC SD TN TX UT VT VA WA WV WI WY DC PR VI GU AA AE AP".split()
)
_COUNTED = re.compile(
    r"\s?(?:dollars|euros?|pounds|usd|eur|gbp|units|bytes|samples|km|miles|kg|ms|rows|people|users)\b", re.I
)

_VERSIONS = frozenset("version build release".split())
_IBAN = re.compile(r"\d\d(?<=[A-Za-z]{2}..)(?<![A-Za-z0-9]....)(?:[ -]?[A-Za-z0-9]){11,30}")
_IBAN_LENGTHS = dict(
    pair.split(":")
    for pair in (
        "AD:24 AE:23 AL:28 AT:20 AZ:28 BA:20 BE:16 BG:22 BH:22 BR:29 BY:28 CH:21 CR:22 CY:28 CZ:24 DE:22 DK:18 DO:28 "
        "EE:20 EG:29 ES:24 FI:18 FO:18 FR:27 GB:22 GE:22 GI:23 GL:18 GR:27 GT:28 HR:21 HU:28 IE:22 IL:23 IQ:23 IS:26 "
        "IT:27 JO:30 KW:30 KZ:20 LB:28 LC:32 LI:21 LT:20 LU:20 LV:21 MC:27 MD:24 ME:22 MK:19 MR:27 MT:31 MU:30 NL:18 "
        "NO:15 PK:24 PL:28 PS:29 PT:25 QA:29 RO:24 RS:22 SA:24 SE:24 SI:19 SK:24 SM:27 TN:24 TR:26 UA:29 VA:22 VG:24 "
        "XK:20"
    ).split()
)
_UK_POST = re.compile(r"[A-Z](?<![A-Za-z0-9].)[A-Z]?\d[A-Z\d]? \d[ABD-HJLNP-UW-Z]{2}(?![A-Za-z0-9])")
_PARTED = re.compile(r"\d{3} \d{2}|\d{2}-\d{3}|\d{4}-\d{3}|\d{5} \d{4}")
_LETTERED = re.compile(r"\d[A-Z]")
_CA_POST = re.compile(r"[ABCEGHJ-NPRSTVXY](?<![A-Za-z0-9].)\d[A-Z][ -]?\d[A-Z]\d(?![A-Za-z0-9])")

_MONTH = (
    r"(?:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?|"
    r"nov(?:ember)?|dec(?:ember)?|januar|februar|märz|mai|juni|juli|oktober|dezember|enero|febrero|marzo|abril|mayo|"
    r"junio|julio|agosto|septiembre|octubre|noviembre|diciembre|janvier|février|mars|avril|juin|juillet|août|septembre|"
    r"octobre|novembre|décembre)\.?"
)
_DATE = re.compile(
    rf"(?<![\w/-])(?:\d{{1,4}}[/.-]\d{{1,2}}[/.-]\d{{1,4}}|\d{{1,4}}-{_MONTH}-\d{{2,4}}"
    rf"|{_MONTH} \d{{1,2}}(?:st|nd|rd|th)?(?:,? ?'?\d{{4}}|,? '\d{{2}})?"
    rf"|\d{{1,2}}(?:st|nd|rd|th|\.)? (?:of |de )?{_MONTH}(?:,? (?:de |of )?\d{{4}})?"
    r"|\d{1,2} \d{1,2} \d{4}|(?:19|20)\d{6})(?!\w)",
    re.IGNORECASE,
)
_BORN = re.compile(
    r"(?:born|dob|d\.o\.b\.?|birth ?dates?|birthdays?|b-?day|date of birth|dates of birth|geboren|geburtsdatum|geb\.|"
    r"nacid[oa]|nacimiento|née? le|naissance|född|født|syntynyt|nato il|nata il|nascita)(?![a-z])"
)
# One of these is in every text in which _BORN finds something.
_BORN_WORDS = frozenset(
    "born dob d birth birthdate birthdates birthday birthdays bday b geboren geburtsdatum geb nacido nacida nacimiento "
    "né née naissance född født syntynyt nato nata nascita".split()
)
_REACH = 40
_COLUMNS = frozenset(",;|\t")
_IS = re.compile(r" (?:is|was|\(|=) ?(?:my|his|her|their|the)? ?(?:\w{1,12} )?$")


_DOUBLED = str.maketrans("0123456789", "0246813579")  # what the digits of twice a digit add up to


def luhn(digits: str) -> bool:
    """Tell whether the check digit of a card number is right. One number in ten has it by chance."""
    return (sum(map(int, digits[-1::-2])) + sum(map(int, digits[-2::-2].translate(_DOUBLED)))) % 10 == 0


def mod97(iban: str) -> bool:
    """Tell whether the check digits of an IBAN are right."""
    return int("".join(str(int(char, 36)) for char in iban[4:] + iban[:4])) % 97 == 1


def ssn_areas(digits: str) -> bool:
    """Tell whether a social security number, or a taxpayer's that looks like one, may have been issued."""
    return digits[:3] not in ("000", "666") and digits[3:5] != "00" and digits[5:] != "0000"


def numbers(text: str, words: list[str]) -> list[Found]:
    """Find cards, phones, social security numbers, postcodes and IPv4 addresses."""
    found: list[Found] = []
    least = 5 if _ZIP_WORDS.isdisjoint(words) else 3
    for run in _RUN.finditer(text):
        value = run[0]
        count = len(value) if value.isdigit() else sum(map(str.isdigit, value))
        if count >= least:
            found += _classify(text, run.start(), value, count)
    return found


def _classify(text: str, start: int, value: str, count: int) -> Iterator[Found]:
    end = start + len(value)
    if text[start - 1 : start] == "," and count < 6 and text[start - 2 : start - 1].isdigit():
        return  # the thousands of an amount
    if value.count(".") == 3 and _IP4.fullmatch(value) and all(int(part) < 256 for part in value.split(".")):
        if _kind(text, start)[1] not in _VERSIONS and not value.startswith("0"):
            yield Found(start, end, "IP", "four numbers below 256")
        return
    kind, word, near = _kind(text, start)
    if count < 6 or count == 9:
        if hit := _postcode(text, start, end, value, count, kind):
            yield hit
            return
        if count < 6:
            return
    if 9 <= count < 12:
        for match in _SSN.finditer(value):
            bare = match.group().replace(match.group(1), "")
            if kind == "US_SSN" or (
                ssn_areas(bare) and not (kind == "VETO" and near) and (match.group(1) == "-" or count == 9)
            ):
                yield Found(
                    start + match.start(), start + match.end(), "US_SSN", "the shape of a social security number"
                )
                return
        if text[start - 1 : start] in _COLUMNS and "ssn" in text[:400].lower():
            kind = "US_SSN"  # the head of a table says so
        if count == 9 and kind == "US_SSN" and value.isdigit():
            yield Found(start, end, "US_SSN", "nine digits after words for a social security number")
            return
    if count >= 12:
        cards = [(match, why) for match in _CARD.finditer(value) if (why := _card(match.group(), kind))]
        for match, why in cards:
            yield Found(start + match.start(), start + match.end(), "CREDIT_CARD", why)
        if cards:
            return
    yield from _phone(text, start, value, count, kind, word)


def _kind(text: str, start: int) -> tuple[str, str, bool]:
    """Tell what the words before a number say that it is: the nearest that says anything, it, and is it very near."""
    words = _WORDS.findall(text[max(0, start - _WINDOW) : start].lower())
    weak = ""
    for at in range(len(words) - 1, -1, -1):
        word = words[at]
        if word in _KINDS:
            if word == "code" and at and _KINDS.get(words[at - 1]) == "ZIP":
                continue
            return _KINDS[word], word, len(words) - at < 3 and "\n" not in text[start - 8 : start]
        if not weak and word in _WEAK:
            weak = word
    return "", weak, False


def _card(shaped: str, kind: str) -> str | None:
    card = shaped if shaped.isdigit() else "".join(filter(str.isdigit, shaped))
    right = luhn(card)
    if kind == "CREDIT_CARD":
        return "a card number, by the words before it" if right or len(card) >= 13 else None
    likely = right and kind != "VETO" and len(card) >= 14 and _ISSUERS.match(card)
    return "the prefix and check digit of a card" if likely else None


def _phone(text: str, start: int, value: str, count: int, kind: str, word: str) -> Iterator[Found]:
    end = start + len(value)
    if value.count("(") > value.count(")"):
        if not value.startswith("("):
            return
        start, value = start + 1, value[1:]
    abroad = value.startswith("+") and 8 <= count <= 15 and value[1:3].strip("( 0")
    if _SAID.match(text, end):
        kind = "PHONE"
    if kind == "VETO" and not (abroad and any(map(str.isdigit, text[max(0, start - 12) : start]))):
        # A word that denies speaks of the number that follows it, not of the next one.
        if not any(map(str.isdigit, text[max(0, start - _WINDOW) : start].rpartition(word)[2])):
            return
        kind = ""
    why = None
    if _COUNTED.match(text, end):
        return
    if abroad:
        why = "+ and a country code"
    elif match := _NANP.search(value):
        if len(value) - len(match.group()) < 6:
            start, end = start + match.start(), start + match.end()
            why = "the shape of a North American number"
    elif _DATE_LIKE.match(value) or _DECIMAL.fullmatch(value):
        return
    elif _ABROAD.match(value) and 9 <= count <= 15 and not value.isdigit() and "  " not in value:
        why = "a leading 0 and groups"
    elif value.startswith("(") and 7 <= count <= 12 and "  " not in value:
        why = "an area code in brackets"
    elif (
        count == 10
        and value.isdigit()
        and _AREA.match(value)
        and text[end : end + 1] != ";"
        and text[start - 2 : start] != "= "
    ):
        why = "ten digits that may be a North American number"
    elif (kind == "PHONE" and 6 <= count <= 15) or (
        word and not kind and 6 < count <= 15 and (count >= 9 or not value.isdigit())
    ):
        why = "digits after words for a phone"
    if why:
        extension = _EXTENSION.match(text, end)
        yield Found(start, extension.end() if extension else end, "PHONE", why)


def _postcode(text: str, start: int, end: int, value: str, count: int, kind: str) -> Found | None:
    if not (value.isdigit() or (count == 9 and len(value) == 10 and value[5] == "-")):
        if kind == "ZIP" and _PARTED.fullmatch(value):
            return Found(start, end, "ZIP", "digits after words for a postcode")
        return None
    if kind == "ZIP":
        return Found(start, end, "ZIP", "digits after words for a postcode")
    shaped = count == 5 or (count == 9 and "-" in value)
    before = text[max(0, start - 4) : start]
    if shaped and before[-1:] == " " and before[-3:-1] in STATES and not before[:-3].isalnum():
        return Found(start, end, "ZIP", "digits after the letters of a state")
    return None


def postcodes(text: str) -> Iterator[Found]:
    """Find postcodes with letters in them."""
    for pattern in (_UK_POST, _CA_POST) if _LETTERED.search(text) else ():
        for match in pattern.finditer(text):
            yield Found(match.start(), match.end(), "ZIP", "the shape of a postcode")


def ibans(text: str) -> Iterator[Found]:
    """Find international bank account numbers."""
    for match in _IBAN.finditer(text):
        start = match.start() - 2
        country = text[start : start + 2].upper()
        if country not in _IBAN_LENGTHS:
            continue
        size, taken, end = int(_IBAN_LENGTHS[country]), [], start
        for char in text[start : match.end()]:
            end += 1
            if char.isalnum():
                taken.append(char.upper())
                if len(taken) == size:
                    break
        whole = "".join(filter(str.isalnum, text[start : match.end()])).upper()
        if len(taken) < size or (end < len(text) and text[end].isalnum()):
            # Not as long as the country's are: one that is made up, or mistyped, is somebody's all the same.
            taken, end = list(whole), match.end()
        before = text[max(0, start - _WINDOW) : start].lower()
        if mod97("".join(taken)) or "iban" in before or "account" in before:
            yield Found(start, end, "IBAN", "a country's length and check digits")


def birth_dates(text: str, low: str, words: list[str]) -> Iterator[Found]:
    """Find dates that are said to be of a birth."""
    for word in _BORN.finditer(low) if not _BORN_WORDS.isdisjoint(words) else ():
        if low[word.start() - 1 : word.start()].isalnum():
            continue  # newborn
        if date := _DATE.search(text, word.end(), word.end() + _REACH):
            yield Found(date.start(), date.end(), "DATE_OF_BIRTH", "a date after a word for birth")
        elif text[word.end() : word.end() + 1] in _COLUMNS or text[word.start() - 1 : word.start()] in _COLUMNS:
            line = text.find("\n", word.end(), word.end() + 400)
            if line > 0:  # the head of a table: the dates below are of births
                for date in _DATE.finditer(text, line):
                    yield Found(date.start(), date.end(), "DATE_OF_BIRTH", "a date in a table with a column for birth")
                return
        elif says := _IS.search(text, max(0, word.start() - 24), word.start()):
            for date in _DATE.finditer(text, max(0, says.start() - 24), says.start()):
                if date.end() == says.start():
                    yield Found(date.start(), date.end(), "DATE_OF_BIRTH", "a date before a word for birth")
