"""An issuer of tokens (JWT), and whoever would like to be one: keys, key sets, tokens made by hand."""

from __future__ import annotations

import base64
import functools
import hashlib
import hmac
import json
from typing import Any

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | bytes

_HASHES: dict[str, type[hashes.SHA256 | hashes.SHA384 | hashes.SHA512]] = {
    "256": hashes.SHA256,
    "384": hashes.SHA384,
    "512": hashes.SHA512,
}
_CURVES: dict[str, tuple[type[ec.EllipticCurve], str, int]] = {
    "ES256": (ec.SECP256R1, "P-256", 32),
    "ES384": (ec.SECP384R1, "P-384", 48),
    "ES512": (ec.SECP521R1, "P-521", 66),
}


@functools.cache
def private_key(algorithm: str, whose: str = "the issuer") -> PrivateKey:
    """Give the key with which *whose* tokens are signed, always the same one."""
    if algorithm in _CURVES:
        return ec.generate_private_key(_CURVES[algorithm][0]())
    if algorithm.startswith("Ed"):
        return ed25519.Ed25519PrivateKey.generate()
    if algorithm.startswith("HS"):
        return hashlib.sha512(whose.encode()).digest()
    return rsa_key(2048, whose)


@functools.cache
def rsa_key(bits: int, whose: str = "the issuer") -> rsa.RSAPrivateKey:
    """Give an RSA key of so many *bits*, always the same one."""
    return rsa.generate_private_key(65537, bits)


def encoded(data: bytes | object) -> str:
    """Encode bytes, or what JSON can say, as base64url without padding."""
    raw = data if isinstance(data, bytes) else json.dumps(data).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def raw(part: str) -> bytes:
    """Decode a part of a token."""
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))


def decoded(part: str) -> Any:
    """Decode a part of a token that is JSON."""
    return json.loads(raw(part))


def signature(key: PrivateKey, algorithm: str, data: bytes) -> bytes:
    """Sign *data*."""
    if isinstance(key, bytes):
        return hmac.digest(key, data, f"sha{algorithm[2:]}")
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return key.sign(data)
    kind = _HASHES[algorithm[2:]]()
    if isinstance(key, ec.EllipticCurvePrivateKey):
        size = _CURVES[algorithm][2]
        r, s = decode_dss_signature(key.sign(data, ec.ECDSA(kind)))
        return r.to_bytes(size) + s.to_bytes(size)
    if algorithm.startswith("PS"):
        return key.sign(data, padding.PSS(padding.MGF1(kind), kind.digest_size), kind)
    return key.sign(data, padding.PKCS1v15(), kind)


def token(header: object, claims: object, key: PrivateKey | None, algorithm: str) -> str:
    """Make a token that says so in its header and claims, which are objects or their bytes, and sign it with *key*."""
    signed = f"{encoded(header)}.{encoded(claims)}"
    return f"{signed}.{'' if key is None else encoded(signature(key, algorithm, signed.encode()))}"


def jwk(key: PrivateKey, kid: object = "one", **more: object) -> dict[str, Any]:
    """Give the public half of *key* as an entry of a key set."""
    assert not isinstance(key, bytes)
    public = key.public_key()
    said: dict[str, Any]
    if isinstance(public, rsa.RSAPublicKey):
        numbers = public.public_numbers()
        n, e = (number.to_bytes((number.bit_length() + 7) // 8) for number in (numbers.n, numbers.e))
        said = {"kty": "RSA", "n": encoded(n), "e": encoded(e)}
    elif isinstance(public, ec.EllipticCurvePublicKey):
        point = public.public_numbers()
        curve, size = next(each[1:] for each in _CURVES.values() if isinstance(public.curve, each[0]))
        said = {"kty": "EC", "crv": curve, "x": encoded(point.x.to_bytes(size)), "y": encoded(point.y.to_bytes(size))}
    else:
        said = {"kty": "OKP", "crv": "Ed25519", "x": encoded(public.public_bytes_raw())}
    return {name: value for name, value in {**said, "kid": kid, **more}.items() if value is not None}


def pem(key: PrivateKey) -> bytes:
    """Give the public half of *key* as everybody can have it."""
    assert not isinstance(key, bytes)
    kind = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_key().public_bytes(serialization.Encoding.PEM, kind)


def key_set(*keys: dict[str, Any]) -> bytes:
    """Give what lies at an issuer's address."""
    return json.dumps({"keys": keys}).encode()
