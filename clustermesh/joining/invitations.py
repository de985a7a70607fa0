"""Invitations into a cluster's mesh: what stands in its Secret, and in a token. Pure; time is an argument.

A token is all that a newcomer needs: where the inviting cluster answers, the fingerprint of the certificate that it
shows there, and a secret of 32 random bytes. The Secret has the secret's SHA-256 alone, which is as good as any slower
hash for what nobody can guess. An invitation is used up by the one write that takes it: two at once are told apart by
the Secret's resourceVersion. Who was let in may come again while it lasts, as after an answer that was lost.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import replace

from clustermesh.errors import DecodeError, Refused
from clustermesh.standalone.context import parse_address

MOST: Final = 100
"""Invitations of one cluster."""
_PREFIX: Final = "cmj1."
_MOST_TOKEN: Final = 2000
_ID: Final = re.compile(r"[0-9a-f]{8}")
_NO: Final = "the invitation is unknown, expired, used up, or another cluster's: ask for a new one"
_Hex = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$")]


class Token(Struct, frozen=True, rename={"cluster": "n", "address": "a", "fingerprint": "f", "id": "i", "secret": "s"}):
    """What is handed to the newcomer. `cluster` is who invites, `fingerprint` the SHA-256 of what it shows."""

    cluster: str
    address: str
    fingerprint: _Hex
    id: str
    secret: str


class Invitation(Struct, frozen=True, kw_only=True):
    """One that was created. Times are Unix seconds; `to` is the only cluster that may use it, "" for any; `joined` are
    those that did, with the SHA-256 of the authority that each showed. `again` lets in a cluster that is connected:
    both have new certificates then."""

    hash: _Hex
    created: float
    expires: float
    uses: int
    to: str = ""
    joined: dict[str, str] = {}
    again: bool = False

    @property
    def left(self) -> int:
        return max(0, self.uses - len(self.joined))

    def is_open(self, now: float) -> bool:
        """Whether a cluster that was not let in yet may use it."""
        return now < self.expires and self.left > 0


def encode_token(token: Token) -> str:
    return _PREFIX + base64.urlsafe_b64encode(msgspec.json.encode(token)).decode().rstrip("=")


def decode_token(text: str) -> Token:
    """Raises DecodeError, which does not show the token."""
    try:
        if not text.startswith(_PREFIX) or len(text) > _MOST_TOKEN:
            raise ValueError(f"it begins with {_PREFIX}")
        data = text.removeprefix(_PREFIX)
        found = msgspec.json.decode(base64.b64decode(data + "=" * (-len(data) % 4), b"-_", validate=True), type=Token)
        parse_address(found.address)
        return found
    except (ValueError, binascii.Error, msgspec.DecodeError, DecodeError) as e:
        raise DecodeError("token", "hidden", "must be one that `clustermesh invite create` printed, whole") from e


def create(
    data: Mapping[str, bytes], *, now: float, ttl: float, uses: int, to: str, again: bool = False
) -> tuple[dict[str, bytes], str, str]:
    """`data` of the Secret with one more, without those that are over and let nobody in; its id and its secret."""
    kept = {
        key: value for key, value in data.items() if (each := read(value)) is None or each.is_open(now) or each.joined
    }
    if len(kept) >= MOST:
        raise Refused(f"{MOST} invitations stand already: `clustermesh invite list`, and revoke what is not needed")
    made, secret = secrets.token_hex(4), secrets.token_urlsafe(32)
    invitation = Invitation(hash=_hash(secret), created=now, expires=now + ttl, uses=uses, to=to, again=again)
    return {**kept, made: msgspec.json.encode(invitation)}, made, secret


def read(value: bytes) -> Invitation | None:
    """None for what is no invitation."""
    try:
        return msgspec.json.decode(value, type=Invitation)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def take(
    data: Mapping[str, bytes], token: tuple[str, str], cluster: str, authority: bytes, now: float
) -> dict[str, bytes]:
    """`data` once `cluster` with `authority` has used the invitation whose id and secret are `token`.

    Raises Refused, always in the same words: whoever guesses learns nothing.
    """
    number, secret = token
    found = read(data.get(number, b"")) if _ID.fullmatch(number) else None
    if found is None or not hmac.compare_digest(found.hash, _hash(secret)):
        raise Refused(_NO)
    if now >= found.expires or found.to not in ("", cluster):
        raise Refused(_NO)
    shown = hashlib.sha256(authority).hexdigest()
    if cluster in found.joined:
        if found.joined[cluster] != shown:
            raise Refused(_NO)
        return dict(data)
    if not found.left:
        raise Refused(_NO)
    return {**data, number: msgspec.json.encode(replace(found, joined={**found.joined, cluster: shown}))}


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode(errors="replace")).hexdigest()
