"""Certificates and a key that somebody else has sent, written anew: nothing that stood beside them goes on, and of each
no more than a few. Looking at them costs little, whatever they are."""

from __future__ import annotations

from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from certs.check import read_certificates
from certs.errors import CertsError

_MOST_TEXT: Final = 64 << 10
"""Bytes of a file of certificates with what tools write beside them."""
_MOST_CERTIFICATES: Final = 8
_MOST_KEY: Final = 1 << 10
"""Bytes of a key's file. To look at one of RSA takes up to a second, and none of these is so short."""


def plain_certificates(data: bytes, name: str) -> bytes:
    """The certificates of the PEM file `data` and nothing else. Raises CertsError."""
    if len(data) > _MOST_TEXT:
        raise CertsError(f"{name}: {len(data)} bytes: must be at most {_MOST_TEXT}")
    found = read_certificates(data, name)
    if len(found) > _MOST_CERTIFICATES:
        raise CertsError(f"{name}: {len(found)} certificates: must be at most {_MOST_CERTIFICATES}")
    return b"".join(each.public_bytes(Encoding.PEM) for each in found)


def plain_key(data: bytes, name: str) -> bytes:
    """The key of the PEM file `data`, ECDSA or Ed25519, as PKCS #8 and nothing else. Raises CertsError."""
    rule = "an unencrypted ECDSA or Ed25519 key in PEM"
    if len(data) > _MOST_KEY:
        raise CertsError(f"{name}: {len(data)} bytes: must be at most {_MOST_KEY}, {rule}")
    try:
        found = load_pem_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as e:
        raise CertsError(f"{name}: holds no readable key: must be {rule}") from e
    if not isinstance(found, ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey):
        raise CertsError(f"{name}: {type(found).__name__}: must be {rule}")
    return found.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
