"""What identifiers, amounts, dates and addresses look like, and which words stand beside them."""

from __future__ import annotations

import re

WORD = re.compile(r"(?:[^\W_]|(?<=[^\W_])['’](?=[^\W\d_])){1,200}")
APOSTROPHE = re.compile(r"'(?:(?![^\W\d_])|(?<![^\W_]'))")
"""One that is not within a word."""
ENDS = re.compile(r"[\n\r!?;:]|\.\s")
SENTENCE = re.compile(r"[\n\r!?]|\.\s")
WITHIN = re.compile(r"""[ \t\-_*'"“”‘’`()‐-–/\u200b-\u200d\u00a0]{0,5}""")
WITHIN_NUMBER = re.compile(r"[ \-./#()+_‐-–\u00a0\u200b-\u200d]{0,3}")
DATE = re.compile(
    r"(?<!\d)(?<!\w[-./])(?:\d{4}[-./]\d{1,2}[-./]\d{1,2}"
    r"|(?:0?[1-9]|[12]\d|3[01])[-./](?:0?[1-9]|[12]\d|3[01])[-./](?:\d{4}|\d{2}))(?![-./]?\d)"
    r"|(?<![\d:])\d{1,2}:\d{2}(?::\d{2})?(?!\d)"
)
PRICED_BEFORE = re.compile(r"(?:[$€£¥]|\b(?:usd|eur|gbp|chf|cad|aud)) ?\Z", re.IGNORECASE)
FIGURE = re.compile(
    r"(?<![\d.,'])(\d(?:[\d.,']{0,13}\d)?)"
    r"( ?(?=[€£¥dbuegpcfDBUEGPCF])(?:[€£¥]|(?i:dollars?|bucks|usd|euros?|eur|gbp|pounds?|chf|francs?|pesos?)\b))?"
)
"""A number, and the currency behind it."""
OFFICE = re.compile(
    r"(?:support|info|help|helpdesk|contact|sales|service|customer\w*|care|billing|no-?reply|office|hello|team|admin|"
    r"webmaster|orders?|returns?|privacy|press|jobs|your\.?\w*|name|user|username|email|example|kontakt|kundenservice|"
    r"contacto|ayuda|soporte|atencion\w*|aide|serviceclient)@",
    re.IGNORECASE,
)
"""Mailboxes that are no person's."""
PUBLIC = re.compile(r"1?8(?:00|33|44|55|66|77|88)\d{7}|0?800\d{6,8}")
"""Numbers that may be called free of charge."""
MADE_UP = re.compile(r"(\d)\1+")
SPELLING = re.compile(r"[ \[\](){}<>]{1,3}")
EMAIL = re.compile(r"(?<!\w)(?<!\w[.+-])\w[\w.+-]{0,63}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,8}")
ENCODED = re.compile(r"[A-Za-z0-9+/_-]{6,400}={0,2}")
MEASURE = re.compile(
    r"\d{1,4}(?:st|nd|rd|th|am|pm|AM|PM|h|hr|hrs|min|mins|s|sec|ms|x|k|m|km|cm|mm|mi|ft|in|kg|g|mg|ml|l|lb|lbs|oz|"
    r"[KMGT][Bb]|[gmk]b|k?Hz|[MG]Hz|hz|k?[WV]|kWh|w|v|p|px|ers?|eme|ste|te|e|d|y|yr|yrs|c|f)|\d{1,2}[A-Z]"
)

DIGITS = {
    word: str(value)
    for words in (
        "zero one two three four five six seven eight nine",
        "null eins zwei drei vier funf sechs sieben acht neun",
        "cero uno dos tres cuatro cinco seis siete ocho nueve",
        "zero un deux trois quatre cinq six sept huit neuf",
    )
    for value, word in enumerate(words.split())
} | {"oh": "0"}
TENS = {
    word: str(10 * n) for n, word in enumerate("ten twenty thirty forty fifty sixty seventy eighty ninety".split(), 1)
}
SPELLED = frozenset(DIGITS) | frozenset(TENS) | frozenset("abcdefghijklmnopqrstuvwxyz0123456789")
AT = frozenset(["at", "arroba", "arobase"])
DOT = frozenset(["dot", "punkt", "punto", "point"])
CODE_CUES = frozenset(
    """codename code password passphrase passcode secret keyword pin nickname codeword kennwort passwort codewort
    geheimwort clave contrasena motdepasse""".split()
)
"""Words that announce one that is telling."""
NAME_CUES = frozenset("name named called namens heisst heisse nombre llamo llama nom appelle".split())
"""Words that announce a name, of which one word alone says little."""
CUES = CODE_CUES | NAME_CUES
WAYS = frozenset(
    """street st avenue ave road rd lane ln drive dr court ct boulevard blvd terrace way place square circle highway
    route trail parkway crescent close alley row walk mews strasse str weg platz gasse allee calle avenida
    rue""".split()
)
COUNTED = frozenset(
    """room suite apt apartment unit terminal gate question page chapter step version platform line floor section option
    part table figure volume channel seat day week level phase number no flight zimmer seite schritt page etape paso
    january february march april may june july august september october november december
    januar februar marz mai juni juli oktober dezember enero febrero marzo abril mayo junio julio agosto septiembre
    octubre noviembre diciembre janvier fevrier mars avril juin juillet aout septembre octobre decembre""".split()
)
