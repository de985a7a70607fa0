"""The node's WireGuard key: X25519, one file of 32 raw bytes that survives restarts.

A node that comes back with another key is unreachable until every other node has learnt it, so a key is never
overwritten, not even a broken one; an empty file, as a crash may leave one, holds none.
"""

from __future__ import annotations

import base64
import ctypes
import logging
import os
from pathlib import Path
from typing import Final

from certs.files import write_atomically
from clustermesh.errors import Invalid, Refused

KEY_BYTES: Final = 32
_OPENSSL: Final = "libcrypto.so.3"
_X25519: Final = 1034  # EVP_PKEY_X25519, openssl/obj_mac.h

_log = logging.getLogger(__name__)


def clamp(key: bytes) -> bytes:
    """32 bytes as a Curve25519 scalar (RFC 7748, section 5): the form in which devices report a private key."""
    if len(key) != KEY_BYTES:
        raise Invalid("WireGuard key", f"{len(key)} bytes", f"must be {KEY_BYTES} bytes")
    return bytes([key[0] & 248]) + key[1:31] + bytes([(key[31] & 127) | 64])


def generate() -> bytes:
    """A new private key, 32 bytes."""
    return clamp(os.urandom(KEY_BYTES))


def public_key(private_key: bytes) -> str:
    """Base64 of the 32 byte public key, as peers and etcd name it."""
    clamped = clamp(private_key)
    raw = derive_by_openssl(clamped) or derive_by_cryptography(clamped)
    return base64.b64encode(raw).decode()


def derive_by_openssl(private_key: bytes) -> bytes | None:
    """The public key by the OpenSSL that Python's own TLS has loaded; None where there is no such library.

    The agent needs this once: another library for it would cost a tenth of a second, and 6 MB for ever.
    """
    try:
        openssl = ctypes.CDLL(_OPENSSL)
    except OSError:
        return None
    openssl.EVP_PKEY_new_raw_private_key.restype = ctypes.c_void_p
    pair = ctypes.c_void_p(openssl.EVP_PKEY_new_raw_private_key(_X25519, None, private_key, ctypes.c_size_t(KEY_BYTES)))
    raw, length = ctypes.create_string_buffer(KEY_BYTES), ctypes.c_size_t(KEY_BYTES)
    try:
        done = pair.value and openssl.EVP_PKEY_get_raw_public_key(pair, raw, ctypes.byref(length)) == 1
    finally:
        openssl.EVP_PKEY_free(pair)
    return raw.raw if done else None


def derive_by_cryptography(private_key: bytes) -> bytes:
    """The same by the library that the certificates are made with."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    return X25519PrivateKey.from_private_bytes(private_key).public_key().public_bytes_raw()


def decode_public_key(text: str) -> bytes:
    """The 32 bytes of a base64 key. Raises Invalid; also for the zero key, which no honest node has."""
    try:
        raw = base64.b64decode(text, validate=True)
    except ValueError as e:
        raise Invalid("WireGuard key", text, "must be base64") from e
    if len(raw) != KEY_BYTES or not any(raw) or base64.b64encode(raw).decode() != text:
        raise Invalid("WireGuard key", text, f"must be base64 of {KEY_BYTES} bytes that are not all zero")
    return raw


def load_or_create(path: Path) -> bytes:
    """The private key in `path`, made at the first call: file 0600 in a folder 0700.

    Raises Refused when the file is there but holds no key, or cannot be read or written.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _restrict(path.parent, 0o700)
        if empty := path.exists() and path.stat().st_size == 0:
            _log.warning("private key %s is empty: this node gets a new key", path)
        if empty or not path.exists():
            write_atomically(path, generate(), 0o600)
        _restrict(path, 0o600)
        key = path.read_bytes()
    except OSError as e:
        raise Refused(
            f"private key {path}: {e.strerror or e}; mend that, or give another folder with --state-dir"
        ) from e
    if len(key) != KEY_BYTES:
        raise Refused(f"private key {path} holds {len(key)} bytes, not {KEY_BYTES}: restore it, or remove it")
    return clamp(key)


def _restrict(path: Path, mode: int) -> None:
    """What has `mode` is left alone: a disk that has become read-only keeps no agent from starting."""
    if path.stat().st_mode & 0o7777 != mode:
        path.chmod(mode)
