"""Signatures of tokens, by joserfc, which is imported when used: one key, one algorithm, both chosen by us."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, TypeAlias

from cloister.errors import ConfigurationError

if TYPE_CHECKING:
    from joserfc.jwk import Key as Key
    from joserfc.jws import JWSRegistry
else:
    Key: TypeAlias = Any

_SMALLEST, _LARGEST = 2_048, 8_192  # bits of an RSA key
_CURVES = {"ES256": "P-256", "ES384": "P-384", "ES512": "P-521", "EdDSA": "Ed25519", "Ed25519": "Ed25519"}


def check_installed() -> None:
    """Raise `ConfigurationError` where joserfc is missing."""
    try:
        import joserfc  # noqa: F401
    except ImportError:
        raise ConfigurationError(
            "tokens of issuers need joserfc; install it with: pip install 'cloister[server]'"
        ) from None


def shared_key(key: bytes) -> Key:
    """Give *key* as one for HS256, HS384 and HS512."""
    from joserfc.jwk import OctKey

    return OctKey.import_key(key)


def public_key(said: Mapping[str, Any], algorithm: str) -> Key | None:
    """Give the public key that *said*, a JWK, is, if signatures with *algorithm* can be checked with it."""
    from joserfc.errors import JoseError
    from joserfc.jwk import ECKey, OKPKey, RSAKey

    kind, curve = said.get("kty"), said.get("crv")
    try:
        # What else it says is left behind: joserfc would heed some of it.
        if kind == "RSA" and algorithm[:2] in ("RS", "PS"):
            return _rsa(RSAKey, said["n"], said["e"])
        if kind == "EC" and algorithm[:2] == "ES" and curve == _CURVES[algorithm]:
            return ECKey.import_key({"kty": kind, "crv": curve, "x": said["x"], "y": said["y"]})
        if kind == "OKP" and algorithm[:2] == "Ed" and curve == _CURVES[algorithm]:
            return OKPKey.import_key({"kty": kind, "crv": curve, "x": said["x"]})
    except (KeyError, TypeError, ValueError, JoseError):
        return None
    return None


def _rsa(make: Any, modulus: object, exponent: object) -> Key | None:
    from joserfc.util import urlsafe_b64decode

    # Measured before it is read: a longer one than any allowed would take its time, a shorter one draws a warning.
    if not isinstance(modulus, str) or not isinstance(exponent, str) or len(modulus) > _LARGEST or len(exponent) > 8:
        return None
    size = int.from_bytes(urlsafe_b64decode(modulus.encode())).bit_length()
    if not _SMALLEST <= size <= _LARGEST:
        return None
    key: Key = make.import_key({"kty": "RSA", "n": modulus, "e": exponent})
    return key


def is_signed(token: bytes, key: Key, algorithm: str) -> bool:
    """Say whether *token*, whole and well formed, is signed by *key* with *algorithm*."""
    from joserfc import jws
    from joserfc.errors import JoseError

    try:
        registry = _registry(algorithm)
        return jws.validate_compact(jws.extract_compact(token, registry=registry), key, registry=registry)
    except (JoseError, ValueError, TypeError, RecursionError):
        return False


@cache
def _registry(algorithm: str) -> JWSRegistry:
    from joserfc.jws import JWSRegistry

    class Only(JWSRegistry):
        """Know one algorithm, and neither bound headers that were bounded before nor refuse unknown ones."""

        max_header_length = 2_048

        def get_alg(self, name: str) -> Any:
            # RFC 9864 has a new name for the same thing; issuers go on with the old one.
            return super().get_alg("Ed25519" if name == algorithm == "EdDSA" else name)

    allowed = ["Ed25519"] if algorithm == "EdDSA" else [algorithm]
    return Only(algorithms=allowed, strict_check_header=False)
