"""Key sets of issuers: where they are fetched, what is taken of them, how long they are used, what happens without."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from cryptography.hazmat.primitives import serialization
from tests.certificates import write_certificates
from tests.issuing import encoded, jwk, key_set, private_key, rsa_key, token

from cloister import doctor
from cloister.server import jose, jwks
from cloister.server.issuers import PUBLIC, Issuer
from cloister.server.jwks import AGAIN, FRESH, STALE, KeySet, NoKeys
from cloister.settings import Settings

ISSUER = Issuer(
    issuer="https://id.acme.example/",
    audience=("chat",),
    algorithms=("RS256",),
    tenants=("acme",),
    jwks_url="https://id.acme.example/jwks",
)
ONE, TWO = private_key("RS256", "one"), private_key("RS256", "two")


class Place:
    """What lies at an issuer's address: an answer, an error or something to wait for; and how often it was asked."""

    def __init__(self, *keys: dict[str, Any]) -> None:
        self.answer: bytes | Exception = key_set(*keys)
        self.gate: asyncio.Event | None = None
        self.asked = 0
        self.seconds = 0.0
        self.keys = KeySet(ISSUER, self.fetch, ticks=lambda: self.seconds)

    async def fetch(self) -> bytes:
        self.asked += 1
        if self.gate is not None:
            await self.gate.wait()
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    async def has(self, kid: str, whose: Any) -> bool:
        """Say whether a token that *whose* key signed is believed under this name."""
        key = await self.keys.key(kid, "RS256")
        signed = token({"alg": "RS256", "kid": kid}, {}, whose, "RS256").encode()
        return key is not None and jose.is_signed(signed, key, "RS256")


# --- how long a set is used -------------------------------------------------------------------------------------------


async def test_a_set_is_fetched_once_for_all() -> None:
    """A hundred who ask at once wait for one fetch, and who comes later for none."""
    place = Place(jwk(ONE))
    place.gate = asyncio.Event()
    asking = [asyncio.create_task(place.has("one", ONE)) for _ in range(100)]
    await asyncio.sleep(0)
    place.gate.set()
    assert all(await asyncio.gather(*asking))
    place.seconds = FRESH - 1
    assert await place.has("one", ONE)
    assert place.asked == 1


async def test_rotation() -> None:
    """A new key is taken as soon as a token names it, and an old one goes with the next set."""
    place = Place(jwk(ONE, "one"))
    assert await place.has("one", ONE)
    place.answer = key_set(jwk(ONE, "one"), jwk(TWO, "two"))
    place.seconds += AGAIN
    assert await place.has("two", TWO)
    assert not await place.has("two", ONE)
    place.answer = key_set(jwk(TWO, "two"))
    place.seconds += FRESH
    assert not await place.has("one", ONE)
    assert await place.has("two", TWO)


async def test_a_withdrawn_key_is_not_used_after_a_quiet_time() -> None:
    """A set that is no longer fresh is fetched anew before it is used, if its issuer answers."""
    place = Place(jwk(ONE))
    assert await place.has("one", ONE)
    place.answer = key_set()
    place.seconds = FRESH
    assert not await place.has("one", ONE)


async def test_unknown_names_are_no_flood_at_the_issuer() -> None:
    """However many unknown names are sent, the issuer is asked every thirty seconds at most."""
    place = Place(jwk(ONE))
    for number in range(600):
        place.seconds = number / 10
        assert not await place.has(f"unknown-{number}", ONE)
    assert 2 <= place.asked <= 3
    assert await place.has("one", ONE)


@pytest.mark.parametrize("failure", [OSError("refused"), TimeoutError(), b"<html>", b'{"keys": 1}'])
async def test_an_issuer_that_is_down(failure: Any) -> None:
    """A set is used for an hour where a newer one cannot be had, and then nobody gets in until there is one."""
    place = Place(jwk(ONE))
    assert await place.has("one", ONE)
    place.answer, working = failure, place.answer
    place.seconds = STALE - 1
    assert await place.has("one", ONE)
    assert not await place.has("two", TWO)
    place.seconds = STALE
    with pytest.raises(NoKeys):
        await place.has("one", ONE)
    place.answer = working
    with pytest.raises(NoKeys):  # it is not asked again so soon
        await place.has("one", ONE)
    place.seconds += AGAIN
    assert await place.has("one", ONE)


async def test_never_reached() -> None:
    """Without any set nobody gets in, and the issuer is not asked for each of them."""
    place = Place()
    place.answer = OSError("refused")
    for _ in range(100):
        with pytest.raises(NoKeys):
            await place.keys.key("one", "RS256")
    assert place.asked == 1


async def test_nobody_waits_for_an_issuer_that_is_down() -> None:
    """While a new set is waited for in vain, who can do with the one before does."""
    place = Place(jwk(ONE))
    await place.has("one", ONE)
    place.answer, place.seconds = OSError("refused"), FRESH
    assert await place.has("one", ONE)
    place.gate, place.seconds = asyncio.Event(), FRESH + AGAIN
    assert await place.has("one", ONE)
    await asyncio.sleep(0)
    assert place.asked == 3
    await place.keys.close()


async def test_whoever_goes_away_takes_nothing_along() -> None:
    """A caller that is cancelled does not cancel the fetch that others wait for."""
    place = Place(jwk(ONE))
    place.gate = asyncio.Event()
    first, second = asyncio.create_task(place.has("one", ONE)), asyncio.create_task(place.has("one", ONE))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.sleep(0)
    place.gate.set()
    assert await second
    assert place.asked == 1


async def test_a_slow_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """An issuer that does not answer is waited for so long, and no longer."""
    monkeypatch.setattr(jwks, "PATIENCE", 0.01)
    place = Place(jwk(ONE))
    place.gate = asyncio.Event()
    with pytest.raises(NoKeys):
        await place.has("one", ONE)


# --- what is taken of a set -------------------------------------------------------------------------------------------


def _private(whose: Any) -> dict[str, Any]:
    return jwk(whose, d=encoded(b"\1" * 256))


@pytest.mark.parametrize(
    "unfit",
    [
        jwk(ONE, use="enc"),
        jwk(ONE, alg="RS512"),
        jwk(ONE, alg="HS256"),
        jwk(ONE, key_ops=["encrypt"]),
        jwk(ONE, key_ops="verify"),
        jwk(ONE, kty="EC"),
        jwk(ONE, kid=None),
        jwk(ONE, kid=1),
        jwk(ONE, kid=["one"]),
        jwk(ONE, kid=""),
        jwk(ONE, kid="k" * 257),
        jwk(ONE, n=None),
        jwk(ONE, n="not base64!"),
        jwk(ONE, n="A" * 200_000),
        jwk(ONE, e="Ag"),
        jwk(ONE, e="A" * 100),
        jwk(ONE, n=7),
        jwk(rsa_key(1024)),
        _private(ONE),
        jwk(private_key("ES256")),
        jwk(private_key("EdDSA")),
        {"kty": "oct", "k": encoded(b"k" * 32), "kid": "one"},
        {"kty": "oct", "k": encoded(b"k" * 32), "kid": "one", "alg": "RS256"},
        {"kid": "one"},
        {},
    ],
    ids=lambda said: str({name: str(value)[:12] for name, value in said.items() if name not in ("n", "x", "y")}),
)
def test_keys_that_are_left_out(unfit: dict[str, Any]) -> None:
    """What is not a public key that signs with a configured algorithm is left out, and harms no other key."""
    kids = {kid for kid, _ in jwks.parse(key_set(unfit, jwk(TWO, "two")), ("RS256",))}
    assert kids == {"two"}


@pytest.mark.parametrize("algorithm", PUBLIC)
def test_keys_that_are_taken(algorithm: str) -> None:
    """A key is there for each configured algorithm that it is fit for, and for no other."""
    said = key_set(jwk(private_key(algorithm), "one", use="sig", alg=algorithm, key_ops=["verify"], x5c=["MII"]))
    assert set(jwks.parse(said, PUBLIC)) == {("one", algorithm)}
    assert jwks.parse(said, tuple(set(PUBLIC) - {algorithm})) == {}


def test_no_shared_key_comes_from_a_set() -> None:
    """Even if a set's issuer were configured with one, no shared algorithm finds a key in it."""
    said = key_set(
        {"kty": "oct", "k": encoded(b"k" * 32), "kid": "one"}, jwk(ONE, "two", alg="HS256"), jwk(ONE, "three")
    )
    assert jwks.parse(said, ("HS256", "none")) == {}


def test_two_keys_of_one_name() -> None:
    """Of two keys with one name neither is used for what both are fit for; nothing is tried out."""
    said = key_set(jwk(ONE, "one"), jwk(TWO, "one"), jwk(private_key("ES256"), "one"), jwk(TWO, "two"))
    assert set(jwks.parse(said, ("RS256", "ES256"))) == {("one", "ES256"), ("two", "RS256")}
    said = key_set(jwk(ONE, "one"), jwk(TWO, "one"), jwk(ONE, "one"))
    assert jwks.parse(said, ("RS256",)) == {}


def test_a_point_beside_the_curve() -> None:
    """A point that does not lie on its curve is no key."""
    said = jwk(private_key("ES256"))
    assert jwks.parse(key_set(said), ("ES256",))
    assert not jwks.parse(key_set(said | {"y": said["x"]}), ("ES256",))


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"<html>",
        b"null",
        b"[]",
        b"{}",
        b'{"keys": null}',
        b'{"keys": {}}',
        b'{"keys": [1]}',
        b'{"keys": ["one"]}',
        b"\xff\xfe",
        b"[" * 100_000,
        json.dumps(jwk(ONE)).encode(),
        key_set(*[jwk(ONE, f"k{number}") for number in range(101)]),
    ],
    ids=lambda answer: str(answer[:12]),
)
async def test_what_is_no_key_set(answer: bytes) -> None:
    """Anything but a set of at most a hundred keys leaves the one before in use, and is none by itself."""
    place = Place(jwk(ONE))
    assert await place.has("one", ONE)
    place.answer, place.seconds = answer, FRESH
    assert await place.has("one", ONE)
    empty = Place()
    empty.answer = answer
    with pytest.raises(NoKeys):
        await empty.has("one", ONE)


# --- how it is fetched ------------------------------------------------------------------------------------------------

Answering = Callable[[asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def serving(answering: Answering, tls: ssl.SSLContext | None = None) -> AsyncIterator[tuple[str, list[bytes]]]:
    """Serve what *answering* writes, on a free port of this machine; give its address and the requests it got."""
    requests: list[bytes] = []
    serving = set[asyncio.Task[Any]]()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        serving.add(task)
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                requests.append(await reader.readuntil(b"\r\n\r\n"))
                await answering(writer)
                await writer.drain()
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    port = server.sockets[0].getsockname()[1]
    try:
        yield f"http{'s' if tls else ''}://127.0.0.1:{port}/jwks", requests
    finally:
        server.close()
        for task in serving:  # whoever asked may be gone before the answer is
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)
        await server.wait_closed()


def saying(body: bytes, status: str = "200 OK", *headers: str) -> Answering:
    async def answer(writer: asyncio.StreamWriter) -> None:
        head = "\r\n".join((f"HTTP/1.1 {status}", f"content-length: {len(body)}", *headers))
        writer.write(f"{head}\r\n\r\n".encode() + body)

    return answer


async def endless(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
    for _ in range(64):
        writer.write(b" " * (64 << 10))
        await writer.drain()


async def silent(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n{")
    await writer.drain()
    await writer.wait_closed()  # by the other side


async def cut(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 5000\r\n\r\n" + key_set(jwk(ONE)))


async def noise(writer: asyncio.StreamWriter) -> None:
    writer.write(b"\x15\x03\x01\x00\x02\x02\x50" * 10)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certificates")
    write_certificates(folder)
    return folder


def server_tls(folder: Path) -> ssl.SSLContext:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(folder / "server.crt", folder / "server.key")
    return tls


async def test_over_tls(certificates: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The set comes over TLS from the configured address, without cookies, credentials or a proxy."""
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    good = ssl.create_default_context(cafile=certificates / "ca.pem")
    async with serving(saying(key_set(jwk(ONE))), server_tls(certificates)) as (url, requests):
        keys = KeySet(replace(ISSUER, jwks_url=url), lambda: jwks.get(url, good))
        assert await keys.key("one", "RS256") is not None
    (request,) = requests
    assert request.startswith(b"GET /jwks HTTP/1.1\r\n")
    assert not any(name in request.lower() for name in (b"cookie", b"authorization", b"proxy"))


@pytest.mark.parametrize("authority", ["other.pem", None])
async def test_tls_is_verified(certificates: Path, authority: str | None) -> None:
    """A server whose certificate nobody vouches for gives no keys, whoever has it by name."""
    async with serving(saying(key_set(jwk(ONE))), server_tls(certificates)) as (url, requests):
        tls = None if authority is None else ssl.create_default_context(cafile=certificates / authority)
        keys = KeySet(replace(ISSUER, jwks_url=url), None if tls is None else lambda: jwks.get(url, tls))
        with pytest.raises(NoKeys):
            await keys.key("one", "RS256")
        assert requests == []
        elsewhere = url.replace("127.0.0.1", "localhost")  # for which the certificate is not
        good = ssl.create_default_context(cafile=certificates / "ca.pem")
        with pytest.raises(NoKeys):
            await KeySet(ISSUER, lambda: jwks.get(elsewhere, good)).key("one", "RS256")


@pytest.mark.parametrize(
    "answering",
    [
        saying(key_set(jwk(ONE)), "201 Created"),
        saying(key_set(jwk(ONE)), "401 Unauthorized"),
        saying(key_set(jwk(ONE)), "503 Service Unavailable"),
        saying(key_set(jwk(ONE)), "200 OK", "content-encoding: gzip"),
        saying(key_set(jwk(ONE)) + b" " * jwks.MOST_BYTES),
        saying(b"<html>sign in</html>", "200 OK", "content-type: text/html"),
        endless,
        cut,
        noise,
    ],
    ids=["created", "unauthorized", "down", "packed", "huge", "page", "endless", "cut", "noise"],
)
async def test_answers_that_give_no_keys(answering: Answering) -> None:
    """An answer that is another, longer or shorter than a key set gives no keys, and no other error."""
    async with serving(answering) as (url, requests):
        keys = KeySet(replace(ISSUER, jwks_url=url, insecure=True))
        with pytest.raises(NoKeys):
            await keys.key("one", "RS256")
    assert len(requests) == 1


@pytest.mark.parametrize("status", ["301 Moved Permanently", "302 Found", "307 Temporary Redirect", "308 Permanent"])
async def test_redirects_are_not_followed(status: str) -> None:
    """Keys come from the configured address, and not from where that leads."""
    async with serving(saying(key_set(jwk(ONE)))) as (elsewhere, reached):
        async with serving(saying(b"", status, f"location: {elsewhere}")) as (url, asked):
            with pytest.raises(NoKeys):
                await KeySet(replace(ISSUER, jwks_url=url, insecure=True)).key("one", "RS256")
            assert (len(asked), reached) == (1, [])
            async with aiohttp.ClientSession() as careless, careless.get(url) as answer:
                assert jwks.parse(await answer.read(), ("RS256",))
        assert await KeySet(replace(ISSUER, jwks_url=elsewhere, insecure=True)).key("one", "RS256") is not None


async def test_a_slow_issuer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that does not end in time is no answer."""
    monkeypatch.setattr(jwks, "PATIENCE", 0.05)
    async with serving(silent) as (url, _):
        with pytest.raises(NoKeys):
            await KeySet(replace(ISSUER, jwks_url=url, insecure=True)).key("one", "RS256")


async def test_nobody_there() -> None:
    """An address at which nobody listens gives no keys."""
    async with serving(silent) as (url, _):
        pass
    with pytest.raises(NoKeys):
        await KeySet(replace(ISSUER, jwks_url=url, insecure=True)).key("one", "RS256")


async def test_names_of_keys_lead_nowhere() -> None:
    """A name that is a path, an address or a query asks for the set at the one address, and finds nothing."""
    async with serving(saying(key_set(jwk(ONE)))) as (url, requests):
        for kid in ("../../etc/passwd", "http://127.0.0.1:9/x", "' OR 1=1 --", "one/../one", "*", "%6fne"):
            keys = KeySet(replace(ISSUER, jwks_url=url, insecure=True))
            assert await keys.key(kid, "RS256") is None
    assert {request.partition(b"\r\n")[0] for request in requests} == {b"GET /jwks HTTP/1.1"}


# --- what the doctor says of them -------------------------------------------------------------------------------------


async def found(folder: Path, *tables: str, **environ: str) -> list[tuple[str, str]]:
    """Look at a server with these issuers; give what was found: in what state it is, and what is said of it."""
    file = folder / "cloister.toml"
    usual = 'audience = ["chat"]\ntenants = ["acme"]'
    said = [f'[[server.issuers]]\nissuer = "login{number}"\n{usual}\n{table}' for number, table in enumerate(tables)]
    file.write_text("\n".join(said))
    settings = Settings.read(environ=environ, file=file)
    return [(finding.state, finding.said) for finding in await doctor.believed(settings)]


async def test_the_doctor_asks_issuers(tmp_path: Path) -> None:
    """It says for whom each is believed and how, and what it lacks: an address that answers, or a key that fits."""
    assert await found(tmp_path) == []
    async with serving(silent) as (away, _):
        pass
    async with serving(saying(key_set(jwk(ONE), jwk(TWO, "two")))) as (url, requests):
        at = f'jwks_url = "{url}"\ninsecure = true\n'
        findings = await found(
            tmp_path,
            at + 'algorithms = ["RS256"]',
            at + 'algorithms = ["ES256", "RS256"]',
            at + 'algorithms = ["ES256"]',
            f'jwks_url = "{away}"\ninsecure = true\nalgorithms = ["RS256"]',
            'key_variable = "LOGIN_KEY"\nalgorithms = ["HS256"]',
            LOGIN_KEY="r4nd0mly-ch0sen-and-long-enough-to-sign",
        )
    assert len(requests) == 3
    assert findings[0] == ("ok", f"login0 for acme: RS256, for the audience chat; 2 key(s) at {url}")
    states = [state for state, _ in findings]
    assert states == ["ok", "off", "ok", "note", "off", "ok", "missing", "off", "missing", "note"]
    assert "no named key for ES256" in findings[3][1]
    assert f"no key set at {away}" in findings[8][1]
    assert "shared key in LOGIN_KEY" in findings[9][1]
    assert "r4nd0mly" not in str(findings)


async def test_the_doctor_reports_what_could_not_be_served(tmp_path: Path) -> None:
    """Issuers with which the server would not start are what it says, and nobody is asked for keys."""
    for table in ('algorithms = ["RS256"]', 'key_variable = "LOGIN_KEY"\nalgorithms = ["HS256"]'):
        ((state, _),) = await found(tmp_path, table)
        assert state == "missing"


def test_a_public_key_is_no_shared_one() -> None:
    """No key of a set checks a token with a shared algorithm, whatever its bytes are used as."""
    public = jose.public_key(jwk(ONE), "RS256")
    assert public is not None
    assert not isinstance(ONE, bytes)
    forms = [(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)]
    forms += [(serialization.Encoding.DER, serialization.PublicFormat.PKCS1)]
    for encoding, form in forms:
        forged = token({"alg": "HS256"}, {}, ONE.public_key().public_bytes(encoding, form), "HS256").encode()
        assert not jose.is_signed(forged, public, "HS256")
        assert not jose.is_signed(forged, public, "RS256")
