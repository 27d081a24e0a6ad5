"""Who is asking, and for whom: what is believed, what is refused, and what goes on record of it."""

from __future__ import annotations

import hashlib
import hmac
import json
import pickle
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from hypothesis import example, given
from hypothesis import strategies as st
from tests.fakes import Clock
from tests.issuing import decoded, encoded, jwk, pem, private_key, raw, signature, token

from cloister import scope
from cloister.alarms import Alarms, consider
from cloister.audit import Entry
from cloister.client import AsyncCloister
from cloister.errors import CredentialInvalid
from cloister.model import Owner
from cloister.server import jose, jwt, record
from cloister.server.headers import Headers
from cloister.server.identity import Caller, Identities
from cloister.server.issuers import PUBLIC, SHARED, Issuer, SharedKey
from cloister.server.jwks import NoKeys
from cloister.server.record import Record
from cloister.server.refusals import Refused
from cloister.server.settings import Policy, ServerSettings
from cloister.stores.base import every_entry

ACME = Issuer(
    issuer="https://id.acme.example/",
    audience=("chat", "chat-beta"),
    algorithms=("RS256",),
    tenants=("acme", "acme-labs"),
    tenant_claim="org",
    jwks_url="https://id.acme.example/jwks",
)
GLOBEX = Issuer(
    issuer="https://globex.example",
    audience=("chat",),
    algorithms=("HS256", "HS512"),
    tenants=("globex",),
    key_variable="GLOBEX_KEY",
    key=SharedKey(private_key("HS256", "globex")),  # type: ignore[arg-type]
)
ANA = Owner("acme", "ana")
WRONG = "csk_" + "w" * 43
SERVICE = Caller("service", "acme", None, "key_1")
USER = Caller("user", "acme", "ana", "tok_1")


@dataclass(frozen=True)
class Given:
    """A key or token that was given out."""

    kind: str
    tenant: str | None
    user: str | None = None
    id: str = "key_1"


class Book:
    """Credentials in a dictionary, which says what was looked up."""

    def __init__(self) -> None:
        self.known: dict[str, Given] = {}
        self.asked: list[str] = []

    async def check(self, secret: str) -> Given:
        self.asked.append(secret)
        if secret not in self.known:
            raise CredentialInvalid
        return self.known[secret]


class Ring:
    """Keys of an issuer by name and algorithm, without fetching them."""

    def __init__(self, keys: Mapping[tuple[str, str], Any]) -> None:
        self.keys = dict(keys)
        self.asked: list[tuple[str, str]] = []
        self.down = False

    async def key(self, kid: str, algorithm: str) -> Any:
        self.asked.append((kid, algorithm))
        if self.down:
            raise NoKeys
        return self.keys.get((kid, algorithm))

    async def close(self) -> None: ...


class Gate:
    """Identities with two issuers, a book of keys, clocks that stand still, and the events that went on record."""

    def __init__(self, *, policies: Mapping[str, Policy] | None = None, issuers: tuple[Issuer, ...] = ()) -> None:
        self.clock = Clock()
        self.seconds = 0.0
        self.book = Book()
        self.events: list[tuple[str, Owner | None, dict[str, Any]]] = []
        self.ring = Ring({("one", "RS256"): jose.public_key(jwk(private_key("RS256")), "RS256")})
        settings = ServerSettings(issuers=issuers or (ACME, GLOBEX), policies=policies or {})
        self.record = Record(self._put, lambda: self.seconds)
        self.identities = Identities(
            settings,
            self.book,
            self.record,
            now=self.clock,
            ticks=lambda: self.seconds,
            keys=lambda _: self.ring,
        )

    async def _put(self, kind: str, owner: Owner | None = None, **detail: Any) -> None:
        self.events.append((kind, owner, detail | scope.source_of()))

    def move(self, seconds: float) -> None:
        self.seconds += seconds
        self.clock.move(seconds=seconds)

    async def caller(self, secret: str | bytes, source: str = "10.0.0.1") -> Caller:
        shown = secret if isinstance(secret, bytes) else secret.encode()
        return await self.identities.caller(
            Headers([(b"host", b"chat"), (b"authorization", b"Bearer " + shown)]), source
        )

    def claims(self, **different: object) -> dict[str, Any]:
        """Give the claims of a good token; a claim set to ... is left out."""
        now = self.clock.now.timestamp()
        said = {"iss": ACME.issuer, "aud": "chat", "sub": "ana", "org": "acme", "exp": now + 600, "iat": now}
        return {name: value for name, value in {**said, **different}.items() if value is not ...}


HEADER = {"alg": "RS256", "typ": "JWT", "kid": "one"}


def good(gate: Gate, header: object = HEADER, **claims: object) -> str:
    return token(header, gate.claims(**claims), private_key("RS256"), "RS256")


async def refusal(work: Awaitable[object]) -> Refused:
    with pytest.raises(Refused) as caught:
        await work
    return caught.value


def told(refused: Refused) -> tuple[Any, ...]:
    """Everything that goes out of a refusal."""
    return (refused.status, refused.type, refused.code, refused.message, refused.param, dict(refused.headers))


# --- tokens that are believed -----------------------------------------------------------------------------------------


async def test_a_good_token_names_its_user() -> None:
    """A token of an issuer's names tenant and user; nothing goes on record."""
    gate = Gate()
    caller = await gate.caller(good(gate))
    assert (caller.scope, caller.tenant, caller.user) == ("user", "acme", "ana")
    assert gate.events == []
    assert caller.credential.startswith("jwt_")
    assert caller.credential != (await gate.caller(good(gate, sub="ben"))).credential
    assert caller.credential != (await gate.caller(good(gate, org="acme-labs"))).credential


@pytest.mark.parametrize("algorithm", PUBLIC)
async def test_every_algorithm_with_a_key_set(algorithm: str) -> None:
    """Every algorithm that can be configured is checked, by its own kind of key alone."""
    gate = Gate(issuers=(replace(ACME, algorithms=(algorithm,)),))
    header = {"alg": algorithm, "typ": "JWT", "kid": "one"}
    for other in PUBLIC:
        key = jose.public_key(jwk(private_key(other, "this issuer")), algorithm)
        fits = other[:2] == algorithm[:2] and (other == algorithm or other[:2] != "ES")
        assert (key is not None) == (fits or {other[:2], algorithm[:2]} == {"RS", "PS"})
        if key is None:
            continue
        gate.ring.keys["one", algorithm] = key
        signed = token(header, gate.claims(), private_key(other, "this issuer"), algorithm)
        assert (await gate.caller(signed)).user == "ana"
        forged = token(header, gate.claims(), private_key(other, "somebody else"), algorithm)
        assert (await refusal(gate.caller(forged))).status == 401


@pytest.mark.parametrize("algorithm", SHARED)
async def test_every_algorithm_with_a_shared_key(algorithm: str) -> None:
    """A shared key signs with the configured algorithms, and with no other key."""
    gate = Gate(issuers=(replace(GLOBEX, algorithms=(algorithm,)),))
    claims = gate.claims(iss=GLOBEX.issuer, org=...)
    signed = token({"alg": algorithm, "typ": "JWT"}, claims, GLOBEX.key, algorithm)
    assert (await gate.caller(signed)).tenant == "globex"
    forged = token({"alg": algorithm, "typ": "JWT"}, claims, b"x" * 64, algorithm)
    assert (await refusal(gate.caller(forged))).status == 401
    for other in set(SHARED) - {algorithm}:
        assert (
            await refusal(gate.caller(token({"alg": other, "typ": "JWT"}, claims, GLOBEX.key, other)))
        ).status == 401


async def test_a_shared_key_has_one_name() -> None:
    """A name in a token with a shared key must be the configured one."""
    named = replace(GLOBEX, kid="2026")
    for issuer, kid, taken in [
        (GLOBEX, "2026", False),
        (named, "2026", True),
        (named, "2025", False),
        (named, None, True),
    ]:
        gate = Gate(issuers=(issuer,))
        header = {"alg": "HS256", "typ": "JWT"} | ({} if kid is None else {"kid": kid})
        work = gate.caller(token(header, gate.claims(iss=GLOBEX.issuer), GLOBEX.key, "HS256"))
        if taken:
            assert (await work).tenant == "globex"
        else:
            assert (await refusal(work)).status == 401


@pytest.mark.parametrize(
    "different",
    [
        {"aud": ["other", "chat-beta"]},
        {"nbf": 0, "iat": ...},
        {"exp": 4_102_444_800.5},
        {"jti": "x", "scope": "openid", "nested": {"sub": "ben", "org": "acme-labs"}},
        {"sub": "Ana Ávila", "org": "acme-labs"},
    ],
)
async def test_what_else_good_tokens_say(different: dict[str, Any]) -> None:
    """Several audiences, times within bounds, other claims and names in any script are fine."""
    gate = Gate()
    caller = await gate.caller(good(gate, **different))
    assert caller.user == different.get("sub", "ana")


@pytest.mark.parametrize("kind", ["JWT", "jwt", "application/jwt", "at+jwt", "application/AT+JWT"])
async def test_types_in_any_spelling(kind: str) -> None:
    """The type of a token counts without case, and with or without its prefix."""
    gate = Gate()
    assert (await gate.caller(good(gate, HEADER | {"typ": kind, "x5t": "abc", "nonce": "n"}))).user == "ana"


async def test_leeway() -> None:
    """Clocks that differ by less than the leeway do no harm, and by more they do."""
    gate = Gate()
    now = gate.clock.now.timestamp()
    for name, sign in (("exp", -1), ("nbf", 1), ("iat", 1)):
        assert (await gate.caller(good(gate, **{name: now + sign * 29}))).user == "ana"
        assert (await refusal(gate.caller(good(gate, **{name: now + sign * 31})))).status == 401


# --- tokens that are not ----------------------------------------------------------------------------------------------


def _careless_key(header: Mapping[str, Any]) -> Any:
    """Give the key that a verifier takes which believes the header."""
    kid = header.get("kid")
    offered = any(name in header for name in ("jku", "jwk", "x5u", "x5c"))
    return private_key("RS256", "mallory" if offered or kid != "one" else "the issuer")


def believe(signed: str, now: float, skip: str = "") -> str:
    """Give the user of *signed*, written down without our code; it makes every check but the one to *skip*."""

    def check(name: str, fine: object) -> None:
        if name != skip and not fine:
            raise ValueError(name)

    header, claims = (decoded(part) for part in signed.split(".")[:2])
    body, _, mark = signed.rpartition(".")
    algorithm = header.get("alg")
    check("algorithm", algorithm == "RS256")
    check("header", not {"jku", "jwk", "x5u", "x5c", "crit", "b64", "cty"} & header.keys())
    check("type", str(header.get("typ")).lower() in ("jwt", "at+jwt"))
    check("key", header.get("kid") == "one")
    if not (skip == "signature" or str(algorithm).lower() == "none"):
        key = _careless_key(header)
        if algorithm == "HS256":
            fine = hmac.compare_digest(mark, encoded(signature(pem(private_key("RS256")), "HS256", body.encode())))
            check("signature", fine)
        else:
            assert isinstance(key, rsa.RSAPrivateKey)
            kind = hashes.SHA512() if algorithm == "RS512" else hashes.SHA256()
            try:
                key.public_key().verify(raw(mark), body.encode(), padding.PKCS1v15(), kind)
            except InvalidSignature:
                raise ValueError("signature") from None
    check("issuer", claims.get("iss") == ACME.issuer)
    said = claims.get("aud")
    check("audience", {str(one) for one in (said if isinstance(said, list) else [said])} & set(ACME.audience))
    end = claims.get("exp")
    check("expired", type(end) in (int, float) and now < end < 1 << 53)
    for name in ("nbf", "iat"):
        check("early", type(claims.get(name, 0)) in (int, float) and claims.get(name, 0) <= now)
    check("tenant", claims.get("org") in ("acme", "acme-labs"))
    user = claims.get("sub")
    check("user", isinstance(user, str) and _is_a_name(user))
    return str(user)


def _is_a_name(name: str) -> bool:
    try:
        Owner("acme", name)
    except ValueError:
        return False
    return True


def _attacks() -> Iterator[tuple[str, str, Callable[[Gate], str]]]:
    """Give each attack: what is wrong with the token, its name, and how to make it."""
    mallory = private_key("RS256", "mallory")

    def header(why: str, *different: dict[str, Any], key: Any = None, algorithm: str = "RS256") -> Iterator[Any]:
        for each in different:
            said = {name: value for name, value in (HEADER | each).items() if value is not ...}
            yield (
                why,
                f"{why} {'jwk' if 'jwk' in each else each}"[:60],
                lambda gate, said=said: token(
                    said, gate.claims(), private_key("RS256") if key is None else key, algorithm
                ),
            )

    def claims(why: str, **different: object) -> tuple[str, str, Callable[[Gate], str]]:
        return why, f"{why} {different}"[:60], lambda gate: good(gate, **different)

    for name in ("none", "None", "NONE", "nOnE"):
        yield from header("algorithm", {"alg": name})
        yield (
            "algorithm",
            f"unsigned {name}",
            lambda gate, name=name: token(  # type: ignore[misc]
                HEADER | {"alg": name}, gate.claims(), None, ""
            ),
        )
    yield from header("algorithm", {"alg": "HS256"}, key=pem(private_key("RS256")), algorithm="HS256")
    yield from header("algorithm", {"alg": "RS512"}, algorithm="RS512")
    public = jwk(mallory, "one")
    for offer in (
        {"jku": "https://mallory.example/jwks"},
        {"x5u": "https://mallory.example/cert"},
        {"jwk": public},
        {"x5c": ["MIIB"]},
    ):
        yield from header("header", offer, key=mallory)
    yield from header("header", {"crit": ["exp"]}, {"crit": []}, {"crit": ["b64"], "b64": False}, {"cty": "JWT"})
    yield from header(
        "key",
        {"kid": "../../../../dev/null"},
        {"kid": "/proc/self/environ"},
        {"kid": "x' UNION SELECT 'key"},
        {"kid": "one\x00"},
        {"kid": "ONE"},
        {"kid": "https://mallory.example/one"},
        {"kid": ["one"]},
        {"kid": ""},
        {"kid": "k" * 300},
        {"kid": ...},
        key=mallory,
    )
    yield from header("signature", {}, key=mallory)
    yield from header("type", {"typ": "JOSE"}, {"typ": "logout+jwt"}, {"typ": "dpop+jwt"}, {"typ": 1}, {"typ": ...})
    for issuer in ("https://id.acme.example", "https://id.acme.example/x", "HTTPS://ID.ACME.EXAMPLE/", GLOBEX.issuer):
        yield claims("issuer", iss=issuer)
    odd: object
    for odd in (..., None, "", [ACME.issuer], {"iss": ACME.issuer}):
        yield claims("issuer", iss=odd)
    for odd in (..., None, "", [], "Chat", "chat ", "cha", ["other"], [["chat"]], {"chat": 1}, 1):
        yield claims("audience", aud=odd)
    for odd in (..., None, 0, 1_700_000_000, "4102444800", True, -1, 1e300, [4102444800]):
        yield claims("expired", exp=odd)
    for name in ("nbf", "iat"):
        for late in (4_102_444_800, "0", None, True, [0]):
            yield claims("early", **{name: late})
    for odd in (..., None, "", "globex", "ACME", "acme ", ["acme"], 1):
        yield claims("tenant", org=odd)
    for odd in (
        *(..., None, "", 42, ["ana"], True, "ana\x00", "\ud800", "ana\u200b", " ana", "ana ", "a" * 257),
        *("ana\n", "\u202eana", "a\u0301na", "\u2800", "\ue000"),
    ):
        yield claims("user", sub=odd)


ATTACKS = list(_attacks())


@pytest.mark.parametrize(
    ("why", "make"), [(why, make) for why, _, make in ATTACKS], ids=[name for _, name, _ in ATTACKS]
)
async def test_no_attack_gets_in(why: str, make: Callable[[Gate], str]) -> None:
    """No forged, misdirected or nameless token is believed; whoever leaves out one check believes it."""
    gate = Gate()
    forged, now = make(gate), gate.clock.now.timestamp()
    # Nothing else is wrong with it: else it might be another check than this one that refuses it.
    assert believe(forged, now, skip=why) == str(decoded(forged.split(".")[1]).get("sub"))
    with pytest.raises(ValueError, match=f"^{why}$"):
        believe(forged, now)
    assert (await refusal(gate.caller(forged))).status == 401
    assert [kind for kind, _, _ in gate.events] == ["authentication.failed"]
    if why in ("algorithm", "header", "type", "issuer"):
        assert gate.ring.asked == []


@pytest.mark.parametrize(
    ("careless", "instead", "let_in"),
    [
        ("_check_header", lambda header, _: header["alg"], {"type"}),
        ("_check_claims", lambda claims, *_: 1e12, {"audience", "expired", "early"}),
        ("_subject", lambda *_: jwt.Subject(ANA, "jwt_1"), {"tenant", "user"}),
    ],
)
async def test_every_check_is_needed(
    monkeypatch: pytest.MonkeyPatch, careless: str, instead: Callable[..., Any], let_in: set[str]
) -> None:
    """Without one of our own checks, the attacks that it is there for get in."""
    monkeypatch.setattr(jwt, careless, instead)
    for why, name, make in ATTACKS:
        gate = Gate()
        forged = make(gate)
        if why in let_in and name != "type {'typ': 1}":  # which the library refuses too
            assert (await gate.caller(forged)).user == "ana", name


async def test_a_signature_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the check of signatures, whoever signs gets in."""
    monkeypatch.setattr(jose, "is_signed", lambda *_: True)
    gate = Gate()
    assert (await gate.caller(token(HEADER, gate.claims(), private_key("RS256", "mallory"), "RS256"))).user == "ana"


async def test_the_independent_verifier_agrees_about_good_ones() -> None:
    """What is attacked above is believed where nothing is wrong with it, by both."""
    gate = Gate()
    assert believe(good(gate), gate.clock.now.timestamp()) == (await gate.caller(good(gate))).user == "ana"


async def test_no_changed_token_is_believed() -> None:
    """No character of a good token may be another, missing, or more; spaces and padding make another token too."""
    gate = Gate()
    signed = good(gate)
    changed = [
        f"{signed[:place]}{new}{signed[place + 1 :]}"
        for place in range(len(signed))
        for new in "A_"
        if new != signed[place]
    ]
    changed += [signed[:place] for place in range(len(signed))] + [signed[place:] for place in range(1, len(signed))]
    changed += [
        f"{signed}=",
        f"{signed}==",
        f"{signed}.",
        f".{signed}",
        f"{signed}\n",
        f" {signed}",
        f"{signed} ",
        f"{signed}A",
    ]
    for one in changed:
        assert (await refusal(gate.caller(one))).status in (400, 401), one
    assert (await gate.caller(signed)).user == "ana"


@pytest.mark.parametrize(
    "claims",
    [
        b"",
        b"null",
        b"[]",
        b'"ana"',
        b"{",
        b"\xff\xfe",
        b"[" * 3_000,
        b'{"sub":"ben","sub":"ana"}',
        b'{"iss":"https://id.acme.example/","exp":NaN}',
        b'{"iss":"https://id.acme.example/","exp":1' + b"0" * 5_000 + b"}",
    ],
    ids=lambda claims: str(claims[:20]),
)
async def test_claims_of_another_shape(claims: bytes) -> None:
    """What is signed and no object in which everything is said once is refused, and breaks nothing."""
    gate = Gate()
    assert (await refusal(gate.caller(token(HEADER, claims, private_key("RS256"), "RS256")))).status == 401
    assert (await refusal(gate.caller(token(claims, gate.claims(), private_key("RS256"), "RS256")))).status == 401


@pytest.mark.parametrize("moment", ["1e400", "-1e400", "-1", "1" + "0" * 400, f"{1 << 53}"])
@pytest.mark.parametrize("name", ["exp", "nbf", "iat"])
async def test_no_moment(name: str, moment: str) -> None:
    """A time that no clock ever shows, even where a number has no room for it, is refused as any other wrong claim."""
    gate = Gate()
    claims = json.dumps({**gate.claims(), name: "moment"}).replace('"moment"', moment).encode()
    assert (await refusal(gate.caller(token(HEADER, claims, private_key("RS256"), "RS256")))).status == 401


async def test_something_said_twice() -> None:
    """A claim or header that stands there twice, of which another reader takes the other, is refused."""
    gate = Gate()
    for twice in ("sub", "org", "exp", "aud"):
        said = json.dumps(gate.claims())
        both = f'{{"{twice}": {json.dumps(gate.claims()[twice])}, {said[1:]}'.encode()
        assert json.loads(both) == gate.claims()
        assert (await refusal(gate.caller(token(HEADER, both, private_key("RS256"), "RS256")))).status == 401
    both = b'{"kid": "two", ' + json.dumps(HEADER).encode()[1:]
    assert (await refusal(gate.caller(token(both, gate.claims(), private_key("RS256"), "RS256")))).status == 401


async def test_tokens_in_tokens() -> None:
    """An encrypted token, one in another, and the form with braces are refused."""
    gate = Gate()
    signed = good(gate)
    nested = token(HEADER | {"cty": "JWT"}, signed.encode(), private_key("RS256"), "RS256")
    encrypted = ".".join([encoded({"alg": "RSA-OAEP", "enc": "A256GCM"}), "a" * 40, "b" * 16, "c" * 60, "d" * 22])
    parts = signed.split(".")
    braces = json.dumps({"payload": parts[1], "protected": parts[0], "signature": parts[2]})
    for one in (nested, encrypted, braces, f"{signed}~", f"Bearer {signed}"):
        assert (await refusal(gate.caller(one))).status == 401


async def test_an_oversized_token_is_refused_before_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is longer than any token is a 413, and neither decoded nor looked up; up to that it is read."""
    gate = Gate()
    longest = good(gate, filler="x" * 4_000)
    while len(longest) > jwt.LONGEST or len(longest) < jwt.LONGEST - 3:
        filler = decoded(longest.split(".")[1])["filler"]
        longest = good(gate, filler=filler + "x" * ((jwt.LONGEST - len(longest)) * 3 // 4))
    assert (await gate.caller(longest)).user == "ana"
    monkeypatch.setattr(jwt, "_object", None)
    for oversized in (b"a.b." + b"c" * jwt.LONGEST, b"csk_" + b"c" * jwt.LONGEST, b"x" * 10_000_000):
        assert (await refusal(gate.caller(oversized))).status == 413
    assert gate.book.asked == []


@given(st.binary(max_size=200) | st.text(max_size=80).map(str.encode))
@example(b"..")
@example(b"csk_")
@example(b"cst_" + b"\xff" * 43)
async def test_nothing_odd_gets_in_or_breaks_anything(secret: bytes) -> None:
    """Whatever bytes are shown, the answer is a refusal and never another error."""
    gate = Gate()
    assert (await refusal(gate.caller(secret))).status in (400, 401)


async def test_every_failure_looks_the_same() -> None:
    """Whatever is wrong with a credential, the answer is the same to the letter; the log tells what it was."""
    gate = Gate()
    gate.book.known["csk_" + "k" * 43] = Given("key", "acme")
    attempts = [make(gate) for _, _, make in ATTACKS] + [
        "csk_" + "x" * 43,
        "cst_" + "x" * 43,
        "x",
        "",
        "csk_x",
        "a.b.c",
    ]
    answers = [told(await refusal(gate.caller(one, f"10.0.0.{number}"))) for number, one in enumerate(attempts)]
    for headers in ([(b"authorization", b"Basic eDp5")], [(b"host", b"chat")]):
        answers.append(told(await refusal(gate.identities.caller(Headers(headers), "10.0.0.1"))))
    assert all(answer == answers[0] for answer in answers)
    assert (answers[0][0], answers[0][5]) == (401, {"www-authenticate": "Bearer"})
    assert len({detail["reason"] for _, _, detail in gate.events}) > 5


# --- keys and tokens that were given out ------------------------------------------------------------------------------

KEY, SESSION, OPERATOR = ("csk_" + "k" * 43, "cst_" + "s" * 43, "cso_" + "o" * 43)


def opened() -> Gate:
    gate = Gate(policies={"acme-labs": Policy(body_user=True)})
    gate.book.known = {
        KEY: Given("key", "acme"),
        SESSION: Given("token", "acme", "ana", "tok_1"),
        OPERATOR: Given("operator", None, None, "op_1"),
    }
    return gate


async def test_what_was_given_out_is_known() -> None:
    """A server key speaks for a tenant, a session token for its user, an operator's key for nobody."""
    gate = opened()
    assert await gate.caller(KEY) == SERVICE
    assert await gate.caller(SESSION) == USER
    assert await gate.caller(OPERATOR) == Caller("operator", None, None, "op_1")


async def test_either_header() -> None:
    """The key may come in either header, and in both if it is the same."""
    gate = opened()
    bearer, key = (b"authorization", b"bEARER " + KEY.encode()), (b"x-api-key", KEY.encode())
    for headers in ([bearer], [key], [bearer, key]):
        assert await gate.identities.caller(Headers(headers)) == SERVICE


@pytest.mark.parametrize(
    "headers",
    [
        [(b"authorization", b"Bearer a"), (b"authorization", b"Bearer a")],
        [(b"x-api-key", KEY.encode()), (b"x-api-key", KEY.encode())],
        [(b"authorization", b"Bearer " + KEY.encode()), (b"x-api-key", SESSION.encode())],
        [(b"authorization", b"Bearer " + KEY.encode()), (b"x-api-key", b"")],
        [(b"authorization", b"Bearer " + KEY.encode()), (b"x_api_key", SESSION.encode())],
        [(b"authorization", b"Bearer " + KEY.encode()), (b"authorization", b"Basic eDp5")],
    ],
)
async def test_two_credentials(headers: list[tuple[bytes, bytes]]) -> None:
    """Two credentials, of which a proxy may have looked at the other one, are a 400 and on record."""
    gate = opened()
    assert (await refusal(gate.identities.caller(Headers(headers), "10.0.0.1"))).status == 400
    assert gate.events == [("authentication.failed", None, {"reason": "twice", "source": "10.0.0.1"})]
    assert gate.book.asked == []


@pytest.mark.parametrize(
    "shown", [KEY.lower().replace("k", "K"), KEY[:-1], KEY + "k", KEY.upper(), KEY + "=", "csk_", "sk_x"]
)
async def test_what_was_not_given_out(shown: str) -> None:
    """Whatever is not to the letter what was given out is refused."""
    assert (await refusal(opened().caller(shown))).status == 401


@pytest.mark.parametrize(
    ("secret", "known"),
    [
        (SESSION, Given("key", "acme")),
        (KEY, Given("token", "acme", "ana")),
        (KEY, Given("operator", None)),
        (OPERATOR, Given("key", "acme")),
        (KEY, Given("key", None)),
        (KEY, Given("key", "acme", "ana")),
        (SESSION, Given("token", "acme")),
        (SESSION, Given("token", None, "ana")),
        (OPERATOR, Given("operator", "acme")),
        (SESSION, Given("admin", "acme", "ana")),
    ],
)
async def test_a_credential_is_of_its_own_kind(secret: str, known: Given) -> None:
    """What the store says of a credential must be what its form says: no token is ever a key."""
    gate = Gate()
    gate.book.known[secret] = known
    assert (await refusal(gate.caller(secret))).status == 401


async def test_replay_after_revocation() -> None:
    """A session token or an operator's key is refused at once when it is revoked, a server key within two seconds."""
    gate = opened()
    for secret in (KEY, SESSION, OPERATOR):
        await gate.caller(secret)
    gate.book.known.clear()
    for secret in (SESSION, OPERATOR):
        assert (await refusal(gate.caller(secret))).status == 401
    gate.move(1.9)
    assert await gate.caller(KEY) == SERVICE
    gate.move(0.2)
    assert (await refusal(gate.caller(KEY))).status == 401


async def test_a_server_key_is_looked_up_every_two_seconds() -> None:
    """Requests in quick succession ask the store once; being used does not make a key live longer."""
    gate = opened()
    for _ in range(50):
        await gate.caller(KEY)
        gate.move(0.1)
    assert 3 <= len(gate.book.asked) <= 4
    for number in range(3_000):
        gate.book.known[secret := f"csk_{number:043}"] = Given("key", "acme")
        await gate.caller(secret)
    assert len(gate.identities._kept.found) <= 1_000
    assert not any("k" * 43 in repr(digest) for digest in gate.identities._kept.found)


async def test_a_good_token_is_believed_again_for_a_while() -> None:
    """A token that was read is not read again for half a minute, and never after its end, whichever comes first."""
    gate = Gate()
    long, short = good(gate), good(gate, exp=gate.clock.now.timestamp() + 10)
    for _ in range(5):
        await gate.caller(long)
        await gate.caller(short)
    assert len(gate.ring.asked) == 2
    gate.ring.keys.clear()
    gate.move(29)
    assert (await gate.caller(long)).user == "ana"
    gate.move(2)
    assert (await refusal(gate.caller(long))).status == 401
    gate = Gate()
    short = good(gate, exp=gate.clock.now.timestamp() + 10)
    await gate.caller(short)
    gate.clock.move(seconds=39)  # with its leeway, it ends at 40
    assert (await gate.caller(short)).user == "ana"
    gate.clock.move(seconds=1)
    assert (await refusal(gate.caller(short))).status == 401


async def test_what_is_remembered_is_bounded() -> None:
    """Thousands of tokens do not fill the memory, and no token lies there."""
    gate = Gate(issuers=(GLOBEX,))
    claims = gate.claims(iss=GLOBEX.issuer)
    for number in range(5_000):
        await gate.caller(token({"alg": "HS256", "typ": "JWT"}, claims | {"jti": number}, GLOBEX.key, "HS256"))
    assert len(gate.identities._tokens._good) <= 4_096
    assert all(len(digest) == hashlib.sha256().digest_size for digest in gate.identities._tokens._good)


async def test_without_keys_nobody_gets_in() -> None:
    """Where an issuer's keys cannot be had, its tokens are a 503 to be tried again, and others go on."""
    gate = opened()
    gate.ring.down = True
    refused = await refusal(gate.caller(good(gate)))
    assert (refused.status, dict(refused.headers)) == (503, {"retry-after": "30"})
    assert await gate.caller(KEY) == SERVICE


# --- for whom ---------------------------------------------------------------------------------------------------------


def user(*names: bytes, beside: Sequence[tuple[bytes, bytes]] = ()) -> Headers:
    return Headers([(b"host", b"chat"), *((b"cloister-user", name) for name in names), *beside])


async def test_a_service_names_its_user() -> None:
    """A service's requests are for the user that it names, of its own tenant."""
    assert await opened().identities.owner(SERVICE, user(b"ana")) == ANA
    assert await opened().identities.owner(SERVICE, user(b"ana"), "a constant", None) == ANA


async def test_an_end_user_is_whom_the_token_names() -> None:
    """An end user need not be named, and may be."""
    gate = opened()
    for headers, named in [(user(), ()), (user(b"ana"), ()), (user(), ("ana", None)), (user(b"ana"), (None, "ana"))]:
        assert await gate.identities.owner(USER, headers, *named) == ANA
    assert gate.events == []


@pytest.mark.parametrize(
    ("caller", "headers", "named", "reason"),
    [
        (USER, user(b"ben"), (), "user"),
        (USER, user(b"Ana"), (), "user"),
        (USER, user(), ("ben",), "user"),
        (USER, user(b"ana"), (None, "ben"), "user"),
        (USER, user(b"ana", b"ana"), (), "twice"),
        (SERVICE, user(b"ana", b"ben"), (), "twice"),
        (SERVICE, user(b"ana", b"ana"), (), "twice"),
        (SERVICE, user(b"ana", beside=[(b"cloister_user", b"ana")]), (), "underscore"),
        (SERVICE, user(beside=[(b"cloister_user", b"ana")]), (), "underscore"),
        (SERVICE, user(b"ana", beside=[(b"cloister_session", b"conv_1")]), (), "underscore"),
        (USER, user(beside=[(b"cloister_user", b"ana")]), (), "underscore"),
        (SERVICE, user(b"ana", beside=[(b"cloister-session", b"a"), (b"cloister-session", b"a")]), (), "twice"),
        (replace(SERVICE, tenant="acme-labs"), user(b"ana"), ("ben",), "body"),
        (replace(SERVICE, tenant="acme-labs"), user(), ("ana", "ben"), "body"),
    ],
)
async def test_a_contradiction_is_refused_and_an_alert(
    caller: Caller, headers: Headers, named: tuple[str | None, ...], reason: str
) -> None:
    """Whoever names two users, or one that the credential does not speak for, gets a 400; somebody is woken."""
    gate = opened()
    with scope.source("POST /v1/responses 10.0.0.1"):
        refused = await refusal(gate.identities.owner(caller, headers, *named))
    assert (refused.status, refused.code) == (400, "contradicting_user")
    ((kind, owner, detail),) = gate.events
    assert (kind, detail["reason"]) == ("identity.contradicted", reason)
    assert owner == (ANA if caller.scope == "user" else None)
    assert detail.get("credential") == (None if caller.scope == "user" else "key_1")
    assert detail["source"].startswith("POST /v1")
    assert "ben" not in str(told(refused))


async def test_a_service_must_name_somebody() -> None:
    """Nobody is ever the user by default: not without a header, and not by a constant in the body."""
    for named in ((), (None,), ("everybody",)):
        refused = await refusal(opened().identities.owner(SERVICE, user(), *named))
        assert (refused.status, refused.code, refused.param) == (400, "missing_user", "Cloister-User")


async def test_a_body_names_the_user_where_the_tenant_wants_it() -> None:
    """With the tenant's policy, the fields of the body name the user, alone or beside the header."""
    gate, labs = opened(), replace(SERVICE, tenant="acme-labs")
    for headers, named in [
        (user(), ("ana", None)),
        (user(), ("ana", "ana")),
        (user(b"ana"), ("ana",)),
        (user(b"ana"), ()),
    ]:
        assert await gate.identities.owner(labs, headers, *named) == Owner("acme-labs", "ana")


async def test_an_operator_speaks_for_nobody() -> None:
    """An operator's key opens no user's conversations, whomever it names."""
    gate = opened()
    assert (await refusal(gate.identities.owner(await gate.caller(OPERATOR), user(b"ana")))).status == 403


@given(st.text(min_size=1, max_size=20).filter(_is_a_name))
@example("100%")
@example("%61na")
@example("ana@example.com")
@example("Ana Ávila")
@example("ａｎａ")
async def test_every_name_can_be_sent(name: str) -> None:
    """Every name comes through percent-encoding as it is, and no other owner's comes out."""
    gate = opened()
    for safe in ("", "/", "@:/ !'()*"):
        assert await gate.identities.owner(SERVICE, user(quote(name, safe=safe).encode())) == Owner("acme", name)


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"%",
        b"100%",
        b"%6",
        b"%zz",
        b"%61na",  # of a service that forgot to encode: it is not ana
        b"an%2Da",
        b"an\xc3\xa9",
        b"an\xe9",
        b"%C3",
        b"%ED%A0%80",
        b"ana%00",
        b"ana%0A",
        b"ana\x00",
        b"ana%E2%80%8B",
        b"a%CC%81na",
        b"ana%20",
        b"%20ana",
        b"ana\tben",
        b"a" * 257,
        b"%C3%A9" * 2_000,
        b"%2561na%00",
    ],
)
async def test_a_name_that_is_none(value: bytes) -> None:
    """What is invisible, damaged, too long or of two readings names nobody: refused, never repaired."""
    refused = await refusal(opened().identities.owner(SERVICE, user(value)))
    assert (refused.status, refused.code) == (400, "invalid_user")


async def test_names_that_look_alike_are_others() -> None:
    """Case, width and accents make another user; nothing is folded."""
    names = ["ana", "Ana", "ａｎａ", "anа", "aná", "ana.", "ana ben"]
    owners = {await opened().identities.owner(SERVICE, user(quote(name).encode())) for name in names}
    assert len(owners) == len(names)


# --- on record --------------------------------------------------------------------------------------------------------


async def test_a_flood_does_not_fill_the_log() -> None:
    """Of a flood from one address there are twenty entries and then one a minute, which say how many there were."""
    gate = Gate()
    for _ in range(600):
        await refusal(gate.caller(WRONG))
        gate.move(0.5)
    await gate.identities.close()
    assert 24 <= len(gate.events) <= 27
    assert sum(detail.get("count", 1) for _, _, detail in gate.events) == 600
    assert all(detail["source"] == "10.0.0.1" for _, _, detail in gate.events)


async def test_a_flood_from_everywhere_does_not_fill_the_log() -> None:
    """A flood from many addresses is bounded too, in the log and in memory; none is forgotten for another's sake."""
    gate = Gate()
    for number in range(5_000):
        await refusal(gate.caller(WRONG, f"10.1.{number // 250}.{number % 250}"))
    assert len(gate.events) == record.AT_ONCE
    assert len(gate.record._kinds["authentication.failed"].counts) <= 2_001
    gate.move(record.WINDOW)
    for _ in range(record.SINGLE):
        await refusal(gate.caller(WRONG, "10.2.0.0"))
    late = gate.events[record.AT_ONCE :]
    assert [detail["source"] for _, _, detail in late] == ["10.2.0.0"] * record.SINGLE
    await gate.identities.close()
    assert sum(detail.get("count", 1) for _, _, detail in gate.events) == 5_000 + record.SINGLE


def test_what_counts_as_one_source() -> None:
    """An address counts by itself, of version 6 its network, and in either spelling of version 4."""
    assert record.group("10.0.0.1") == record.group("::ffff:10.0.0.1") == "10.0.0.1"
    assert record.group("2001:db8::1") == record.group("2001:db8::ffff:1%eth0") == "2001:db8::/64"
    assert record.group("2001:db8:0:1::1") != record.group("2001:db8::1")
    assert record.group("unix") == "unix"


async def test_a_flood_hides_nothing_else() -> None:
    """While anybody at all floods the door, what a known user tries is on record as ever."""
    gate = opened()
    for number in range(3_000):
        await refusal(gate.caller(WRONG, f"10.1.{number // 250}.{number % 250}"))
    with scope.source("10.0.0.1"):
        await refusal(gate.identities.owner(USER, user(b"ben")))
    assert gate.events[-1] == ("identity.contradicted", ANA, {"reason": "user", "source": "10.0.0.1"})


async def test_contradictions_of_one_user_do_not_hide_anothers() -> None:
    """Entries are bounded for each credential by itself."""
    gate = opened()
    for _ in range(100):
        await refusal(gate.identities.owner(USER, user(b"ben")))
    await refusal(gate.identities.owner(replace(USER, user="ben", credential="tok_2"), user(b"ana")))
    assert [owner for _, owner, _ in gate.events] == [ANA] * record.SINGLE + [Owner("acme", "ben")]


async def test_in_the_audit_log_and_an_alarm() -> None:
    """In a real log the entries say from where and why, without the secret, and twenty of them are an alarm."""
    async with AsyncCloister.open("memory://", tenancy="required") as cloister:
        gate = Gate()
        identities = Identities(ServerSettings(), gate.book, Record(record.into(cloister)))
        with scope.source("POST /v1/responses 10.0.0.1 req_1"):
            for _ in range(30):
                shown = Headers([(b"x-api-key", b"csk_" + b"s3cret" * 7 + b"x")])
                await refusal(identities.caller(shown, "10.0.0.1"))
            await refusal(identities.owner(USER, user(b"ben")))
        await identities.close()
        entries = [entry async for entry in every_entry(cloister.store)]
    failed = [entry for entry in entries if entry.event == "authentication.failed"]
    assert len(failed) == record.SINGLE + 1
    assert json.loads(failed[-1].detail) == {"count": 10, "source": "10.0.0.1"}
    assert json.loads(failed[0].detail) == {"reason": "unknown", "source": "10.0.0.1"}
    assert "s3cret" not in str(entries)
    for logins in (1, 20, 30):  # more than there are entries, since one of them stands for many
        assert raised(entries, Alarms(logins=logins)) >= {"login.attempts", "identity.contradicted"}
    assert "login.attempts" not in raised(entries, Alarms(logins=31))


def raised(entries: list[Entry], alarms: Alarms) -> set[str]:
    known: dict[str, Any] = {}
    return {alarm.rule for entry in entries if (alarm := consider(alarms, known, entry, entry.at))}


async def test_what_cannot_go_on_record_is_an_error() -> None:
    """Where the log cannot be written, a refusal is no quiet one."""
    gate = Gate()

    async def broken(*_: object, **__: object) -> None:
        raise OSError("disk full")

    gate.record._put = broken
    with pytest.raises(OSError, match="disk full"):
        await gate.caller(WRONG)


def test_a_shared_key_does_not_show_itself() -> None:
    """Neither a repr nor a pickle nor the settings' text carries a shared key."""
    shown = repr(GLOBEX) + str(GLOBEX.key) + repr([GLOBEX.key]) + str(ServerSettings(issuers=(GLOBEX,)).said())
    assert GLOBEX.key is not None
    assert repr(bytes(GLOBEX.key))[2:12] not in shown
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(GLOBEX)


async def test_with_real_credentials() -> None:
    """Keys and tokens that a store gave out are known here until they are revoked, and only as what they are."""
    async with AsyncCloister.open("memory://", tenancy="required") as cloister:
        credentials = cloister.credentials
        await credentials.add_tenant("acme")
        key, operator = await credentials.new_key("acme"), await credentials.new_operator_key()
        issued = await credentials.new_token(ANA)
        identities = Identities(ServerSettings(), credentials, Record(record.into(cloister)))

        async def shown(secret: str) -> Caller:
            return await identities.caller(Headers([(b"authorization", b"Bearer " + secret.encode())]), "10.0.0.1")

        assert await shown(key.secret) == Caller("service", "acme", None, key.credential.id)
        assert await shown(issued.secret) == Caller("user", "acme", "ana", issued.credential.id)
        assert await shown(operator.secret) == Caller("operator", None, None, operator.credential.id)
        await credentials.revoke_token("acme", issued.credential.id)
        assert (await refusal(shown(issued.secret))).status == 401
        assert (await refusal(shown("cst_" + key.secret[4:]))).status == 401
        await identities.close()
