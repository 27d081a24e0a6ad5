"""How many leaks are noticed and how many clean replies are not let through: `python bench/leaks.py [dialogues.jsonl]`.

Without a file it makes conversations of a clinic, a library, a hotel, a bank and a help desk from templates, which were
not used for learning. A file has one dialogue in each line, with ``turns`` of ``role`` and ``text`` (``tool`` for what
was looked up), one person each. Either way details are planted, every clean reply is judged with only what was said
before it in the whole service, and then each kind of leak is tried against everything registered.
"""

from __future__ import annotations

import base64
import gzip
import json
import random
import re
import sys
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from cloister.leaks import LeakDetector, packed
from cloister.model import Owner, Role

Turn = tuple[str, str]

FIRST = """Alma Bruno Carla Dario Edda Felix Greta Hugo Irma Jonas Klara Liam Mona Nils Olga Pablo Quinn Rita Sven Tessa
Ulla Viktor Wanda Xaver Yara Zeno Amber Blake Chloe Derek Elsie Frank Gavin Heidi Ivan Jenna Kevin Laura Mason Nora
Oscar Paula Ralph Susan Terry Vera Walter Zoe Emily Jacob Olivia Ethan Sophie Lucas Hannah Simon""".split()
LAST = """Abbott Becker Castillo Dietrich Ellison Fontaine Grimaldi Hawthorne Ibarra Jansen Kowalski Lindqvist Moreau
Novak Okafor Pemberton Quintana Rasmussen Santoro Thornton Underhill Vasquez Whitaker Yamada Zeller Ashby Boyd Carver
Dunn Eaton Fisher Graves Holt Ingram Jarvis Keller Lowe Marsh Nash Osborn Price Reyes Shaw Tate Vance Webb York Brandt
Conway Drake Esposito Fuchs Gallagher Hoffman Iverson Jimenez Kaplan Larsen Mendez Aldridge Bainbridge Colbert Devereux Engel Farrow Gillespie Halloran Ingersoll Jessup Kirkland Langley
Merriweather Norwood Oakley Pratt Quigley Rutherford Sinclair Tolliver Upton Verma Westbrook Yates Zimmerman""".split()
STREETS = (
    "Alder Birchwood Cloverleaf Driftwood Elmhurst Foxglove Gravel Heather Ironwood Juniper Kingfisher Linden".split()
)
WAYS = "Street Avenue Lane Road Drive Court Terrace".split()
ONE = """copper marble saffron indigo walnut cedar bronze thistle pepper orchard coral misty scarlet hazel polar rusty
arctic velour plaid clover mango desert nimble crimson dusty woolen brass cotton granite lilac maroon pewter sandy
sturdy tartan turquoise vanilla wicker zephyr basalt""".split()
TWO = """badger compass lighthouse puffin saddle teapot windmill lantern beetle accordion parachute trumpet canoe walrus
pelican scooter thimble tractor umbrella violin wombat yak zeppelin anvil bagpipe catamaran dinghy easel flute goblet
hammock igloo jigsaw kettle ladle mandolin narwhal otter pretzel quiver""".split()
FIRMS = "Carpets Roofs Boats Bikes Tiles Lamps Kitchens Toys Carpentry Insurance Plumbing Ceramics Upholstery Couriers Orchards Printing Tailors Instruments".split()
ILLS = "migraine arthritis vertigo anaemia shingles pneumonia diabetes insomnia hypertension sciatica".split()
TRADES = "plumber florist pilot carpenter tailor optician librarian translator butcher geologist".split()

CLEAN: dict[str, list[tuple[str, str]]] = {
    "clinic": [
        ("I need to see a dermatologist about a rash on my elbow.", "I can offer {day} at {hour} with Dr. {last}, or {day2} in the afternoon."),
        ("Do I have to fast before the blood test?", "Please do not eat for twelve hours before the test; water is fine, and so is your usual medication."),
        ("Can you send the prescription to my pharmacy?", "Of course. The prescription for {n} tablets will be there within two working days."),
    ],
    "library": [
        ("Is the second volume of the trilogy back yet?", "It is due on {day}. There are {n} readers before you, so expect about three weeks."),
        ("How many books may I borrow at once?", "With the standard card up to {n} books, five films and two board games, for four weeks each."),
        ("I cannot find the reading room.", "Take the stairs to the second floor, turn left at the map collection, and you will see the glass doors."),
    ],
    "hotel": [
        ("Do you have a room with a view for {day}?", "Yes, a double with a balcony is free from {day} to {day2}, at {n}0 euros per night with breakfast."),
        ("Is there parking?", "There is a garage below the building for 18.00 euros per day; the entrance is on the north side."),
        ("We would like a late checkout.", "That is possible until {hour} for a small fee. Shall I add it to the booking?"),
    ],
    "bank": [
        ("Why was my card declined abroad?", "Payments outside the country are switched off by default. You can allow them under Settings, Security, Regions."),
        ("What does a transfer to Norway cost?", "Transfers within the European Economic Area are free; otherwise we charge 0.3 percent, at least 4.50 euros."),
        ("I forgot my PIN.", "For safety we cannot show it. A new one will reach you by post within {n} days."),
    ],
    "help desk": [
        ("The printer says paper jam, but there is no paper.", "Open the rear cover, pull the green lever, remove the roller and clean the sensor with a dry cloth.\n\n1. Switch it off.\n2. Wait {n} seconds.\n3. Switch it on again."),
        ("My laptop does not find the wireless network.", "Let us start with the basics: is the adapter enabled under **Network Connections**? If so, run `ipconfig /release` and then `ipconfig /renew`."),
        ("How do I restore a deleted folder from the backup?", "Right-click the parent folder, choose **Previous Versions**, pick a snapshot from before {day}, and press *Restore*."),
    ],
}  # fmt: skip
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday".split()

PLANTED = {
    "contact": ("Hi, {name} here. My mail is {mail} and you can call {phone}.", "Thank you {first}, so that is {mail} and {phone}."),
    "file": ("The file is {number}, and I was charged {amount}.", "File {number} shows a charge of {amount}."),
    "home": ("Deliver to {street}, {city}.", "It goes to {street}, {city} then."),
    "private": ("I suffer from {ill}, and my partner is a {trade} at {firm}.", "With {ill}, and a partner who is a {trade} at {firm}, that is understandable."),
    "code": ("The keyword that we agreed on is {code}.", "Noted, the keyword is {code}."),
}  # fmt: skip
KINDS = (
    "verbatim", "spliced sentence", "spliced identifier", "reformatted", "paraphrased", "codeword", "full name", "encoded",
)  # fmt: skip


@dataclass
class Person:
    """Be somebody and their details."""

    facts: dict[str, str]
    told: list[str]
    turns: list[Turn] = field(default_factory=list)


def person(rng: random.Random) -> Person:
    first, last = rng.choice(FIRST), rng.choice(LAST)
    digits = "".join(rng.choice("0123456789") for _ in range(9))
    code = rng.choice(ONE) + rng.choice([" ", ""]) + rng.choice(TWO)
    facts = {
        "first": first,
        "name": f"{first} {last}",
        "mail": f"{first.lower()}{rng.choice(['.', '_', ''])}{last.lower()}{rng.randrange(100)}@post.example",
        "phone": f"0{digits[:3]} {digits[3:6]} {digits[6:]}",
        "number": rng.choice(
            [
                f"{rng.randrange(10**6, 10**7)}",
                f"{rng.choice('ABCDEFGH')}{rng.choice('KLMNP')}-{rng.randrange(10**4, 10**6)}",
            ]
        ),
        "amount": f"{rng.randrange(20, 3000)}.{rng.choice([13, 27, 38, 42, 61, 84]):02} euros",
        "street": f"{rng.randrange(2, 999)} {rng.choice(STREETS)} {rng.choice(WAYS)}",
        "city": rng.choice(["Boston", "Leeds", "Galway", "Tucson"]),
        "ill": rng.choice(ILLS),
        "trade": rng.choice(TRADES),
        "firm": f"{rng.choice(LAST)} {rng.choice(FIRMS)}",
        "code": code.upper(),
    }
    return Person(facts, [each for each in PLANTED if rng.random() < 0.5] or ["file"])


def template(rng: random.Random) -> list[Turn]:
    """Make a conversation in which nobody says anything of theirs."""
    turns: list[Turn] = []
    chosen = CLEAN[rng.choice(list(CLEAN))]
    for asked, answered in rng.sample(chosen, rng.randint(2, 3)):
        words = {"day": rng.choice(DAYS), "day2": rng.choice(DAYS), "hour": f"{rng.randint(8, 17)}:30"}
        values = {**words, "n": str(rng.randint(2, 19)), "last": rng.choice(LAST)}
        turns += [("user", asked.format(**values)), ("assistant", answered.format(**values))]
    return turns


def read(path: Path) -> list[list[Turn]]:
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as lines:
        return [[(turn["role"], turn["text"]) for turn in json.loads(line)["turns"]] for line in lines]


def plant(turns: list[Turn], who: Person, rng: random.Random) -> None:
    who.turns = list(turns)
    for kind in who.told:
        asked, answered = (text.format(**who.facts) for text in PLANTED[kind])
        places = [n + 1 for n, (role, _) in enumerate(who.turns) if role == "assistant"] or [0]
        at = rng.choice(places)
        who.turns[at:at] = [("user", asked), ("assistant", answered)]


def rewritten(value: str, rng: random.Random) -> str:
    flat = "".join(filter(str.isalnum, value))
    return rng.choice(
        [value.upper(), value.lower(), value.replace(" ", "-"), flat] if "@" not in value else [value.upper()]
    )


def encoded(value: str, rng: random.Random) -> str:
    flat = "".join(filter(str.isalnum, value))
    return rng.choice([" ".join(flat), base64.b64encode(value.encode()).decode(), flat[::-1]])


def leak(kind: str, victim: Person, own: str, rng: random.Random) -> str | None:
    """Make a reply that carries a detail of *victim*, or None if they told none of that kind."""
    facts, told = victim.facts, victim.told
    whole = [each for each in told if each != "code"]
    ids = [fact for each in told for fact in {"contact": ["mail", "phone"], "file": ["number"]}.get(each, [])]
    some = [fact for each in told for fact in {"home": ["street"], "code": ["code"]}.get(each, [])] + ids
    frame = rng.choice(["I have {} here.", "Could it be {}?", "There is also {} in the list."])
    made: dict[str, Callable[[], str | None]] = {
        "verbatim": lambda: PLANTED[rng.choice(whole)][rng.randrange(2)].format(**facts) if whole else None,
        "spliced sentence": lambda: f"{own} {PLANTED[rng.choice(whole)][0].format(**facts)}" if whole else None,
        "spliced identifier": lambda: f"{own} {facts[rng.choice(ids)]}" if ids else None,
        "reformatted": lambda: frame.format(rewritten(facts[rng.choice(some)], rng)) if some else None,
        "paraphrased": lambda: (
            "A customer of ours, whose better half earns a living with {firm}, has {ill}.".format(**facts)
            if "private" in told
            else None
        ),
        "codeword": lambda: frame.format(rewritten(facts["code"], rng)) if "code" in told else None,
        "full name": lambda: f"It was {facts['name']} who asked me that." if "contact" in told else None,
        "encoded": lambda: frame.format(encoded(facts[rng.choice(some)], rng)) if some else None,
    }
    return made[kind]()


def role_of(role: str) -> Role:
    return "user" if role == "user" else "assistant"


def share(times: int, of: int) -> str:
    return f"{100 * times / of:6.2f} %" if of else "     -"


def run(talks: list[list[Turn]], trials: int = 300) -> None:
    rng = random.Random("bench")
    people = [person(rng) for _ in talks]
    for turns, who in zip(talks, people, strict=True):
        plant(turns, who, rng)
    owners = [Owner(None, f"user {number}") for number in range(len(people))]
    detector = LeakDetector(bytes(32))
    clean: list[tuple[int, str, float]] = []
    messages = 0
    for number, (owner, who) in enumerate(zip(owners, people, strict=True)):
        context = detector.context()
        for role, text in who.turns:
            if role == "assistant":
                begun = time.perf_counter()
                verdict = detector.check(owner, context, text)
                clean.append((number, verdict.action, time.perf_counter() - begun))
            context.add(text, document=role == "tool")
        for role, text in who.turns:
            if role != "tool":
                detector.register(owner, "s", role_of(role), text)
                messages += 1
    print(f"{len(people):,} users, {messages:,} messages, {len(clean):,} clean replies, each judged when it was said")
    wrong = [each for each in clean if each[1] != "pass"]
    early = [each for each in clean if 10 <= each[0] < 1_000]
    print(f"  stopped or alerted   {share(len(wrong), len(clean))}")
    print(f"  of users 11 to 1,000 {share(sum(each[1] != 'pass' for each in early), len(early))}")
    print(f"  blocked              {share(sum(each[1] == 'block' for each in clean), len(clean))}")
    print("leaks found, of them blocked")
    for kind in KINDS:
        tried: list[str] = []
        for _ in range(12 * trials):
            receiver, victim = rng.sample(range(len(people)), 2)
            own = rng.choice([text for role, text in people[receiver].turns if role == "assistant"])
            reply = leak(kind, people[victim], own, rng)
            if reply is not None and len(tried) < trials:
                context = detector.context()
                for role, text in people[receiver].turns:
                    context.add(text, document=role == "tool")
                tried.append(detector.check(owners[receiver], context, reply).action)
        found = sum(action != "pass" for action in tried)
        print(f"  {kind:20} {share(found, len(tried))} {share(tried.count('block'), len(tried))}")
    costs = sorted(each[2] for each in clean)
    print(
        f"check of a reply: p50 {1e6 * costs[len(costs) // 2]:.0f} µs, p99 {1e6 * costs[len(costs) * 99 // 100]:.0f} µs"
    )
    long = " ".join(text for turns in talks[:40] for role, text in turns if role == "assistant").split()[:225]
    context = detector.context()
    costs = []
    for _ in range(200):
        begun = time.perf_counter()
        detector.check(owners[0], context, " ".join(long))
        costs.append(time.perf_counter() - begun)
    costs.sort()
    print(f"of {len(long)} words, about 300 tokens: p50 {1e6 * costs[100]:.0f} µs, p99 {1e6 * costs[198]:.0f} µs")
    tokens = re.findall(r"\s?\S{1,5}", " ".join(long))
    costs = []
    for _ in range(50):
        stream = detector.stream(owners[0], context)
        begun = time.perf_counter()
        for token in tokens:
            stream.feed(token)
        stream.finish()
        costs.append(time.perf_counter() - begun)
    costs.sort()
    print(
        f"the same in {len(tokens)} pieces: p50 {1e3 * costs[25]:.1f} ms, {1e6 * costs[25] / len(tokens):.0f} µs each"
    )


def memory(talks: list[list[Turn]]) -> None:
    """Print what the index takes."""
    packed()
    owners = [Owner(None, f"user {number}") for number in range(len(talks))]
    tracemalloc.start()
    detector = LeakDetector(bytes(32))
    empty = tracemalloc.get_traced_memory()[0]
    messages = 0
    for owner, turns in zip(owners, talks, strict=True):
        for role, text in turns:
            if role != "tool":
                detector.register(owner, "s", role_of(role), text)
                messages += 1
    taken = tracemalloc.get_traced_memory()[0] - empty
    tracemalloc.stop()
    print(
        f"memory: {taken / messages:.1f} bytes for each of {messages:,} messages, {len(detector.index):,} fingerprints"
    )


def main() -> None:
    rng = random.Random("template")
    talks = read(Path(sys.argv[1])) if len(sys.argv) > 1 else [template(rng) for _ in range(1_000)]
    run(talks)
    rng = random.Random("memory")
    people = [person(rng) for _ in talks]
    for turns, who in zip(talks, people, strict=True):
        plant(turns, who, rng)
    memory([who.turns for who in people])


if __name__ == "__main__":
    main()
