"""Find names of people.

A capitalised word is weighed: how much likelier is it as a name than as a word of any text (`cloister.scrub.lists`)?
Its neighbours, what stands before it and what follows, add to that or take from it. Text without capitals is searched
for first names that stand out, and for what follows words like "my name is".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import NamedTuple

from cloister.scrub.lists import COUNTRY, OTHER, TOWN, Lists
from cloister.scrub.spans import Found

_UPPER = "".join(char for char in map(chr, (*range(0x41, 0x530), *range(0x1E00, 0x2000))) if char.isupper())
# What is asked of the character before stands behind the first one: so the search skips what cannot begin a match.
_CAPITAL = re.compile(rf"[{_UPPER}](?<![\w@#/\\].)[^\W\d_]*+(?:['-][^\W\d_]++){{0,3}}+(?![\d_@])")
_CAPITAL_ASCII = re.compile(r"[A-Z](?<![\w@#/\\].)[A-Za-z]*+(?:['-][A-Za-z]++){0,3}+(?![\d_@])")
_CAMEL = re.compile(
    rf"(?!Mc|Mac|De|Di|Da|Du|La|Le|Van|Von|Fitz|San|St|Al|El|Ben|O')[^\W\d_]*?[^\W\d_{_UPPER}][{_UPPER}]|[{_UPPER}]{{2,}}[^\W\d_{_UPPER}]"
)
_UNLIKE = re.compile(
    r"(?:ings?|tions?|ness|ments?|wares?|[ai]bles?|isms?|i[sz]ed|i[sz]ers?|ology|graphy|classe?s?)$|^[b-df-hj-np-tv-xz]+$"
)
_LOWER_ALONE = re.compile(r"[^\W\d_](?<![\w@.#/'-].)[^\W\d_]{2,}(?:-[^\W\d_]{2,24})?(?![\w@/=]|\.\w|-\w)")

# What may stand between two parts of one name.
_JOINTS = frozenset([" ", "  ", ". ", ".", ' "', '" ']) | {
    f" {joint} "
    for joint in (
        "van,van der,van den,van de,de,de la,de los,de las,del,della,di,da,do,dos,das,du,des,la,le,von,von der,von und "
        "zu,zu,ter,ten,bin,bint,ibn,ben,al,el,y,af,av,op de,in 't,van 't,st."
    ).split(",")
}
_TITLES = frozenset(
    "mr mrs ms miss mx dr prof professor sir madam madame mme monsieur herr frau señor señora sr sra don doña hon "
    "judge justice officer sergeant sgt captain capt lieutenant lt colonel col general gen president senator sen "
    "governor gov representative rep congressman councillor chancellor minister queen prince princess lord lady rabbi "
    "imam pastor father brother sister aunt auntie uncle grandma grandpa nurse coach chef detective inspector dame rev "
    "reverend shri smt fru hr herrn".split()
)
_SHORT_TITLES = frozenset("mr mrs ms mx dr prof sgt capt lt col gen sen gov rep rev hon sr sra st".split())
# A word after which a name is no person's.
_ORGANISED = frozenset(
    "inc llc ltd corp corporation company co gmbh ag sa plc llp group holdings partners associates bank university "
    "college school institute hospital clinic foundation trust church museum library hotel restaurant cafe bar street "
    "avenue ave road rd drive lane blvd boulevard square park bridge river lake mountain mount county city state "
    "island islands beach valley airport station center centre building tower stadium theatre theater systems "
    "solutions technologies technology tech software labs lab industries enterprises services consulting logistics "
    "pharma pharmaceuticals medical health healthcare insurance airlines motors energy media press news times post "
    "journal magazine records music band orchestra team club fc cup award prize week month year act law court "
    "department ministry agency bureau committee commission council association society union league championship "
    "series show festival conference project program programme model method theorem equation syndrome disease scale "
    "index font protocol algorithm distribution sales support desk office division unit district region province "
    "castle cathedral abbey hall palace plaza mall store stores shop market brewery winery farm farms foods kitchen "
    "code script studio server dynamics microsystems electronics capital ventures securities investments realty "
    "properties homes construction engineering design designs & states kingdom republic coast ocean sea bay hills "
    "springs heights".split()
)
_WORKS = frozenset("novel novels version biography interview album painting symphony film movie memoir".split())

# The word before a name (or the two words) that says that one comes: for certain, or perhaps.
_FIRM = frozenset(
    "name is,name's,my name,surname is,surname,maiden name,last name,first name,full name,name ist,llamo,nombre es,"
    "m'appelle,chiamo,jag heter,jeg heter,jeg hedder,naam is,nome é,heiße,names are,partner's name,"
    "nickname is".split(",")
)
_CERTAIN = frozenset(
    (
        "name,named,name's,names,dear,hi,hello,hey,regards,sincerely,attn,call me,called,i'm,this is,i am,im,i m,kid,"
        "son,daughter,wife,husband,brother,sister,cousin,friend,colleague,boyfriend,girlfriend,neighbor,neighbour,"
        "uncle,aunt,boss,fiancé,fiancée,fiance,fiancee,patient,suis,ich bin,says,asked,told,it's,cheers,roommate,"
        "nephew,niece,grandson,granddaughter,stepson,husband's,wife's,partner,sincerely yours,signed,thanks,hola,"
        "hallo,bonjour,ciao,hej"
    ).split(",")
)
_PERHAPS = frozenset(
    "with cc client customer employee candidate applicant tenant guest passenger holder owner member student manager "
    "plaintiff defendant witness beneficiary spouse child baby mom mother dad father assistant agent rep nurse doctor "
    "therapist supervisor coworker author by for said met saw ask tell see contact meet than and or v vs user user: "
    "including met knows know love miss invite invited email emailed texted text phoned when because if while but poor "
    "best yours thank thx ty bitte liebe lieber querida querido cher chère soy asked behalf".split()
)
_PLACED = frozenset(
    "in at near to from of visit visiting around across via city town outside downtown north south east west into "
    "through toward towards leaving reach reaching".split()
)
_STOP = frozenset("the a an this that these those no new old each every another some any".split())
_PERSONAL = frozenset(
    "said says told asked wrote replied answered lives lived shouted whispered laughed smiled thinks thought married "
    "speaking works worked loves resigned emailed texted phoned went born".split()
)
_SPOKE = frozenset(
    "called was is has had will would and did does can "
    "could should joined left went came wants wanted needs needed likes here spent began gave "
    "won't isn't hasn't".split()
)
_NEVER = frozenset(
    "oh hi hey ok no yes so he she it we you they in on at of or but am is are was be as if by to go us me contact "
    "user please thanks dear sincerely regards hello can has had not the this that what when where why how who name "
    "phone email address hola hallo bonjour regarding subject re iban bic swift vat fax tel".split()
)
_NOT_ALONE = frozenset("do my an best will may english french long man see mind day little good short young".split())

# What introduces a name: words by themselves, and several together.
_INTRO_WORDS = frozenset(
    "names dear hi hello hey thanks regards sincerely cheers mr mrs ms dr prof miss im soy".split()
)
_INTRO_PHRASES = (
    "name is", "my name's", "name:", "call me", "i am", "i'm", "it's", "this is", "me llamo", "mi nombre es",
    "ich heiße", "ich heisse", "mein name ist", "ich bin", "je m'appelle", "jag heter", "jeg heter", "jeg hedder",
    "mi chiamo", "mijn naam is",
)  # fmt: skip
_FIRM_INTROS = frozenset(
    "my name is,my name's,my names,names,name is,name:,call me,i am called,me llamo,mi nombre es,ich heiße,ich heisse,"
    "mein name ist,je m'appelle,jag heter,jeg heter,jeg hedder,mi chiamo,mijn naam is,mr,mrs,ms,dr,prof".split(",")
)
_INTRO = re.compile(
    rf"({'|'.join(sorted({*_FIRM_INTROS, *_INTRO_WORDS, *_INTRO_PHRASES}, reverse=True))})"  # the longest first
    r"[.,:]? ([^\W\d_][^\W\d_'-]{1,24})"
)
_NOT_NAMES = frozenset(
    "not the a an on in at of for and or but it is was my your his her our their this that there here what who how why "
    "when where which no yes so very too just only also please sorry all any same good fine ok okay great sure new old "
    "back from with about going looking trying calling writing having getting interested happy sad tired sick glad "
    "afraid still now again under unknown listed wrong spelled misspelled required missing correct incorrect changed "
    "different we you they he she i im id me us am are be been being do did does done has had have will would can "
    "could should may given used set defined bound found returned passed taken followed based added made elif def str "
    "int len dict might must shall one two if as by up out off over then than to too more most much many some such "
    "own".split()
)
_NEXT = re.compile(r" (?:(?:van|von|de|der|la|del|di|da|bin|al) ){0,2}([^\W\d_][^\W\d_'-]{2,24})(?![\w@])")

_SINGLE, _SEVERAL = 2.6, 2.6
_LEAST = -1.3  # of a word that is part of a name
_TIES = frozenset("-/_@.(")
_SENTENCE_ENDS = ("", ".", "!", "?")
_BEGINNERS = frozenset(("", *".!?:\n>|-"))
_LINE_ENDS = ("", "\n")
_RUN = 12  # words; a longer run of capitals is cut

_BEFORE = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)?")
_AFTER = re.compile(r"(?:'s)?[ ,]{0,2}([^\W\d_]{1,20}(?:'t)?)")


class _Weight(NamedTuple):
    """How much a word looks like a name, as natural logarithms: as a first name, as a surname, as either."""

    first: float
    best: float
    opening: float  # as the first word of a name
    middle: float
    closing: float
    place: int = 0
    named: bool = False  # is it in a list of names?


class _Word(NamedTuple):
    """A capitalised word, and where it is."""

    start: int
    end: int
    low: str
    shape: int
    weight: _Weight


_USUAL, _CAPITALS, _INITIAL = 0, 1, 2  # Ana, ANA, A: shapes of a word
_ANY_INITIAL = _Weight(0.5, 0.5, 0.5, 0.5, 0.5)
_MADE = _Weight(-2.0, -2.0, -2.0, -1.0, -2.0)  # in no list, and made as English words are, or as abbreviations
_PROGRAM = _Weight(-5.0, -5.0, -5.0, -1.0, -5.0)


@lru_cache(maxsize=1 << 16)  # keyed by what the lists say: of what people write nothing is kept
def _weight(bits: int, capitals: bool) -> _Weight:
    """Weigh a word of which the lists say *bits*."""
    common, place = bits >> 3 & 7, bits & 7
    if not bits >> 6:
        # In no list of names: an ordinary word, a place, or, if in no list at all, perhaps a name that is rare.
        low = -6.0 if place >= COUNTRY else -1.5 if place else -3.0 - common / 2 if common > 1 else -1.5 * common
        weight = -2.0 if capitals and not common else (low or 0.3)
        return _Weight(weight, weight, weight, max(weight, -1.0), weight, place)
    first, last = ((bits >> 11) - 16) / 2, ((bits >> 6 & 31) - 16) / 2
    less = 4.0 if place == OTHER else 3.0 if place == COUNTRY else 0.75 if place >= TOWN else 0.0
    as_first = (first if bits >> 11 else min(last, 0.0) - 1.0) - less
    as_last = (last if bits >> 6 & 31 else min(first, 1.0) - 1.0) - less
    best = max(as_first, as_last)
    opening, closing = max(as_first, as_last - 1.0), max(as_last, as_first - 1.0)
    return _Weight(as_first, best, opening, min(max(best, -1.0), 2.0), closing, place, named=True)


def _weigh(word: str, low: str, lists: Lists) -> tuple[int, _Weight]:
    """Give the shape and the weight of a capitalised word."""
    if len(word) == 1:
        return _INITIAL, _ANY_INITIAL
    bits = lists.bits(low)
    if not bits and ("-" in word or "'" in word):
        parts = re.split("['-]", low)
        bits = lists.bits(parts[0]) or lists.bits(parts[-1])
    if word[1:].islower():
        return _USUAL, _weight(bits, False) if bits or not _UNLIKE.search(low) else _MADE
    if word.isupper():
        return _CAPITALS, _weight(bits, True)
    return _USUAL, _PROGRAM if _CAMEL.match(word) else _weight(bits, False)


class _Search:
    """One text that is searched for names."""

    def __init__(self, text: str, low: str, lists: Lists) -> None:
        self.text, self.low, self.lists = text, low, lists
        self.found: list[Found] = []
        self.parts: set[str] = set()  # words of names found, in lower case

    def capitalised(self) -> None:
        """Find names within runs of capitalised words."""
        text, low, lists = self.text, self.low, self.lists
        ordinary = lists.ordinary
        seen: dict[str, tuple[int, _Weight]] = {}  # of this text alone
        run: list[_Word] = []
        at = -99
        for match in (_CAPITAL_ASCII if text.isascii() else _CAPITAL).finditer(text):
            start, end = match.span()
            if run and (start - at > 12 or text[at:start] not in _JOINTS or len(run) >= _RUN):
                self._cut(run)
                run = []
            at = end
            small = low[start:end]
            if small.endswith("'s"):
                end -= 2
                small = small[:-2]
            if not run and small in ordinary and small not in _TITLES:
                continue  # the word that a sentence begins with, most often
            word = text[start:end]
            if (weighed := seen.get(word)) is None:
                weighed = seen[word] = _weigh(word, small, lists)
            shape, weight = weighed
            run.append(_Word(start, end, small, shape, weight))
        if run:
            self._cut(run)

    def _cut(self, run: list[_Word]) -> None:
        """Cut a run of capitalised words into what may be names."""
        if len(run) == 1:
            if run[0].weight.best > _LEAST and run[0].low not in _NEVER:
                self._judge(run, -1, None)
            return
        part: list[_Word] = []
        title = -1
        for index, word in enumerate(run):
            low, best = word.low, word.weight.best
            if low in _TITLES and (index + 1 < len(run)) and (low in _SHORT_TITLES or not part):
                if part:
                    self._judge(part, title, word)
                part, title = [], word.start
                continue
            fits = (best > _LEAST and low not in _NEVER) or (title >= 0 and not part and best > -4)
            if not fits and part and best > -3.2 and part[0].weight.first > 2.5:
                fits = low not in _ORGANISED  # after a sure first name nearly anything is a surname
            if fits:
                part.append(word)
                continue
            if part:
                self._judge(part, title, word)
            part, title = [], -1
        if part:
            self._judge(part, title, None)

    def _judge(self, part: list[_Word], title: int, after: _Word | None) -> None:
        """Decide whether neighbouring words that may be names are one."""
        while part and part[-1].shape == _INITIAL:
            part = part[:-1]
        while len(part) > 1 and part[0].weight.best < 0 and part[0].shape != _INITIAL and title < 0:
            part = part[1:]
        if not part:
            return
        start, end = part[0].start, part[-1].end
        if title >= 0:
            self._keep(part, title, "a title before it")
            return
        first, last = part[0].weight, part[-1].weight
        alone = len(part) == 1
        if alone and (first.best < -2.7 or part[0].low in _NOT_ALONE):
            return
        if not alone and part[-1].low in _ORGANISED and last.closing < 2:
            return
        if after is not None and after.low in _ORGANISED and after.start - end == 1:
            return
        following = match[1] if (match := _AFTER.match(self.low, end)) else ""
        if following in _ORGANISED and self.text[end] == " ":
            return
        if first.place and last.place and self._is_place(start, end):
            return
        score = self._context(part, following)
        if not alone:
            score += first.opening + last.closing
            for word in part[1:-1]:
                score += word.weight.middle
            if part[0].shape == _CAPITALS and not part[-1].shape:
                score -= 2.0
            if score >= _SEVERAL:
                self._keep(part, start, "words that are names together")
            return
        score += first.opening
        if after is not None and after.start - end == 1:
            score -= 3.0  # "Mark Down", "Grace Period"
        if following in _PERSONAL:
            score += 2.5
        elif following in _SPOKE:
            score += 1.0
        if self.text[end : end + 1] in _TIES and self.text[end + 1 : end + 2].isalnum():
            score -= 3.0
        if end - start < 3:
            score -= 1.5  # two letters say little
        if part[0].shape:
            score -= 1.5 if end - start > 3 else 3.0
        if score >= _SINGLE:
            self._keep(part, start, "a first name or surname")

    def _context(self, part: list[_Word], following: str) -> float:
        """Give how much likelier a name is by what stands before it."""
        start, first = part[0].start, part[0].weight
        begins = self._begins(start)
        lead = _BEFORE.findall(self.low, max(0, start - 28), start)
        one = lead[-1] if lead else ""
        two = f"{lead[-2]} {one}" if len(lead) > 1 else ""
        alone = len(part) == 1
        score = 0.0
        if one and not (begins and self.text[max(0, start - 9) : start].rstrip()[-1:] in _SENTENCE_ENDS):
            if two in _FIRM or one in _FIRM:
                score += 5.0
            elif one in _CERTAIN or two in _CERTAIN:
                score += 3.2 if alone else 2.5
            elif one in _PERHAPS:
                score += 1.5 if alone else 1.0
            elif one in _STOP and self.text[start - 1] == " ":
                score -= 4.0 if not alone else 2.5 if following not in _WORKS else -1.0
            if one in _PLACED:
                if (place := max(word.weight.place for word in part)) >= TOWN:
                    score -= 1.5 if place == TOWN else 3.0
                elif not first.named:
                    score -= 1.5
        if not begins and first.best > -1.0:
            score += 1.0  # a capital within a sentence is no accident
        end = part[-1].end
        if begins and not alone and self.text[end : end + 1] in _LINE_ENDS:
            score += 1.0  # a line of its own
        return score

    def _keep(self, part: list[_Word], start: int, why: str) -> None:
        self.found.append(Found(start, part[-1].end, "PERSON", why))
        for word in part:
            if word.weight.best > 0.2 and len(word.low) > 2:
                self.parts.add(word.low)

    def _is_place(self, start: int, end: int) -> bool:
        """Tell whether words are a place together: Porto Alegre."""
        whole = self.low[start:end]
        at = self.text.rfind(" ", max(0, start - 24), max(0, start - 1)) + 1
        return any(self.lists.bits(name) & 7 for name in (whole, self.low[at:end]) if " " in name)

    def _begins(self, start: int) -> bool:
        """Tell whether a sentence begins at *start*."""
        if not start:
            return True
        before = self.text[start - 1]
        if before == " " or before in "\"'(*":
            before = self.text[max(0, start - 3) : start].rstrip(" \"'(*")[-1:]
        return before in _BEGINNERS

    def repeated(self) -> None:
        """Find the parts of names again that were found: who is Ana Silva once is Silva later."""
        text, low = self.text, self.low
        seen = {hit.start for hit in self.found}
        for part in self.parts:
            if low.count(part) - text.count(part) < 2:  # with a capital, once only
                continue
            for start in _places(part, low):
                match = None if start in seen else _CAPITAL.match(text, start)
                if match and low[start : match.end()].removesuffix("'s") == part:
                    self.found.append(Found(start, start + len(part), "PERSON", "part of a name found before"))

    def uncapitalised(self, words: list[str]) -> None:
        """Find names without capitals."""
        text, low, chat = self.text, self.low, self.lists.chat
        for match in self._alone(chat.intersection(words)):
            self.found.append(self._with_surname(match.start(), match.end(), "a first name, without a capital"))
        if text == low:
            self._all_lower(words)
        intros = [phrase for phrase in _INTRO_PHRASES if phrase in low]
        intros += _INTRO_WORDS.intersection(words)
        for at in sorted([at for intro in intros for at in _places(intro, low)]):
            before = low[at - 1] if at else " "
            introduced = None if before.isalnum() or before == "_" else _INTRO.match(low, at)
            if introduced is None:
                continue
            intro, first = introduced.groups()
            start = introduced.start(2)
            if first in _NOT_NAMES or not text[start].islower():
                continue
            bits = self.lists.bits(first)
            likely = (max(bits >> 11, bits >> 6 & 31) - 16) / 2 if bits >> 6 else -9.0
            common = bits >> 3 & 7
            if likely >= 1.0 or (intro in _FIRM_INTROS and (not common or (likely > -3.5 and len(first) > 2))):
                self.found.append(self._with_surname(start, introduced.end(2), "a word after an introduction"))

    def _all_lower(self, words: list[str]) -> None:
        """Find rarer first names in a text that has no capitals at all."""
        text, least = self.text, {}
        for word in set(words).difference(self.lists.ordinary, self.lists.chat, _NOT_NAMES):
            bits = self.lists.bits(word)
            common = bits >> 3 & 7
            # Whatever stands around them, words that are less likely than this are no names here.
            if bits >> 11 >= 14 and common <= 3 and bits & 7 < TOWN:
                least[word] = ((bits >> 11) - 16) / 2 - (2.5 if common < 2 else 4.0)
        for match in self._alone(least):
            score = least[match[0]]
            following = after.group(1) if (after := _AFTER.match(text, match.end())) else ""
            lead = _BEFORE.findall(text[max(0, match.start() - 16) : match.start()])
            if following in _PERSONAL:
                score += 1.5
            if lead and lead[-1] in _CERTAIN:
                score += 2.0
            if score >= 0.0:
                self.found.append(
                    self._with_surname(match.start(), match.end(), "a first name, in a text without capitals")
                )

    def _alone(self, words: Iterable[str]) -> list[re.Match[str]]:
        """Find *words* where they stand alone, without capitals."""
        found = []
        for word in words:
            for at in _places(word, self.text):
                if (match := _LOWER_ALONE.match(self.text, at)) and match[0] == word:
                    found.append(match)
        return sorted(found, key=re.Match.start)

    def _with_surname(self, start: int, end: int, why: str) -> Found:
        """Take the surname too that follows a first name."""
        if match := _NEXT.match(self.text, end):
            bits = self.lists.bits(match.group(1).lower())
            last = ((bits >> 6 & 31) - 16) / 2 if bits >> 6 & 31 else -9.0
            if last >= 1.5 or (last >= -0.5 and (bits >> 3 & 7) < 4) or not bits:
                end = match.end()
        return Found(start, end, "PERSON", why)


def _places(part: str, text: str) -> Iterator[int]:
    """Give where *part* is in *text*."""
    at = text.find(part)
    while at >= 0:
        yield at
        at = text.find(part, at + len(part))


def names(text: str, low: str, words: list[str], lists: Lists) -> list[Found]:
    """Find names of people in *text*; *low* is the same in lower case, *words* are its words."""
    search = _Search(text, low, lists)
    search.capitalised()
    if search.found:
        search.repeated()
    search.uncapitalised(words)
    return search.found
