"""Invitations into a cluster's mesh: what stands in its Secret, and in a token. Pure; time is an argument.

A token is all that a newcomer needs: where the inviting cluster answers, the fingerprint of the authority that signed
what it shows there, and a secret of 32 random bytes. The Secret has the secret's SHA-256 alone, which is as good as any
slower hash for what nobody can guess. An invitation is used up by the one write that takes it: two at once are told
apart by the Secret's resourceVersion. Who was let in may come again while it lasts, as after an answer that was lost:
it has the key that it had then.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import secrets
from collections.abc import Collection, Mapping
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import replace

from clustermesh.errors import ClusterMeshError, DecodeError, Refused
from clustermesh.model import check_cluster_name
from clustermesh.standalone.context import parse_address

MOST: Final = 100
"""Open invitations of one cluster."""
_JOINING: Final = 60.0
"""Seconds after its end in which one that was used may still be looked for."""
_PREFIX: Final = "cmj1."
_MOST_TOKEN: Final = 2000
_ID: Final = re.compile(r"[0-9a-f]{8}")
_NO: Final = "the invitation is unknown, expired, used up, or another cluster's: ask for a new one"
_Hex = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$")]


class Token(Struct, frozen=True, rename={"cluster": "n", "address": "a", "fingerprint": "f", "id": "i", "secret": "s"}):
    """What is handed to the newcomer. `cluster` is who invites, `fingerprint` the SHA-256 of its authority."""

    cluster: str
    address: str
    fingerprint: _Hex
    id: str
    secret: str


class Invitation(Struct, frozen=True, kw_only=True):
    """One that was created. Times are Unix seconds; `to` is the only cluster that may use it, "" for any; `joined` are
    those that did, with the SHA-256 of the public key that each has proved to have, "" where it was disconnected since.
    `again` lets in a cluster that is connected: both have new certificates then. One that is `revoked` lets nobody in,
    and goes once those who joined are disconnected."""

    hash: _Hex
    created: float
    expires: float
    uses: int
    to: str = ""
    joined: dict[str, str] = {}
    again: bool = False
    revoked: bool = False

    @property
    def left(self) -> int:
        return max(0, self.uses - len(self.joined))

    @property
    def connected(self) -> frozenset[str]:
        """Those who joined by it, and were not disconnected since."""
        return frozenset(name for name, key in self.joined.items() if key)

    def is_open(self, now: float) -> bool:
        """Whether a cluster that was not let in yet may use it."""
        return now < self.expires and self.left > 0 and not self.revoked


def encode_token(token: Token) -> str:
    return _PREFIX + base64.urlsafe_b64encode(msgspec.json.encode(token)).decode().rstrip("=")


def decode_token(text: str) -> Token:
    """White space, as a terminal puts into what is copied from it, is passed over. Raises DecodeError, which does not
    show the token."""
    text = "".join(text.split())
    try:
        if not text.startswith(_PREFIX) or len(text) > _MOST_TOKEN:
            raise ValueError(f"it begins with {_PREFIX}")
        data = text.removeprefix(_PREFIX)
        found = msgspec.json.decode(base64.b64decode(data + "=" * (-len(data) % 4), b"-_", validate=True), type=Token)
        parse_address(found.address)
        check_cluster_name(found.cluster)
        return found
    except (ValueError, binascii.Error, msgspec.DecodeError, ClusterMeshError) as e:
        raise DecodeError("token", "hidden", "must be one that `clustermesh invite create` printed, whole") from e


class Uninvited(Refused):
    """There is no such invitation, or the secret is not its own."""


def create(
    data: Mapping[str, bytes],
    connected: Collection[str],
    *,
    now: float,
    ttl: float,
    uses: int,
    to: str,
    again: bool = False,
) -> tuple[dict[str, bytes], str, str]:
    """`data` of the Secret with one more, without those that have expired and that none of the `connected` clusters
    joined by; its id and its secret. One that is used up stays until then: who has used it may not be connected yet.
    Raises Refused."""
    found = {key: read(value) for key, value in data.items()}
    kept = {
        key: data[key]
        for key, each in found.items()
        if each is None or now < each.expires + _JOINING or not each.connected.isdisjoint(connected)
    }
    if sum(each is not None and each.is_open(now) for each in found.values()) >= MOST:
        raise Refused(f"{MOST} invitations are open already: `clustermesh invite list`, and revoke what is not needed")
    made, secret = secrets.token_hex(4), secrets.token_urlsafe(32)
    invitation = Invitation(hash=_hash(secret), created=now, expires=now + ttl, uses=uses, to=to, again=again)
    return {**kept, made: msgspec.json.encode(invitation)}, made, secret


def read(value: bytes) -> Invitation | None:
    """None for what is no invitation."""
    try:
        return msgspec.json.decode(value, type=Invitation)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def use_up(data: Mapping[str, bytes], token: tuple[str, str], cluster: str, key: bytes, now: float) -> dict[str, bytes]:
    """`data` once `cluster`, which has proved to have the key of the public `key`, has used the invitation whose id and
    secret are `token`.

    Raises Refused, always in the same words: whoever guesses learns nothing. Uninvited: who asks has not the secret.
    """
    number, secret = token
    found = read(data.get(number, b"")) if _ID.fullmatch(number) else None
    if found is None or not hmac.compare_digest(found.hash, _hash(secret)):
        raise Uninvited(_NO)
    if now >= found.expires or found.revoked or found.to not in ("", cluster):
        raise Refused(_NO)
    proved = hashlib.sha256(key).hexdigest()
    if cluster in found.joined:
        if found.joined[cluster] != proved:
            raise Refused(_NO)
        return dict(data)
    if not found.left:
        raise Refused(_NO)
    return {**data, number: msgspec.json.encode(replace(found, joined={**found.joined, cluster: proved}))}


def disconnected(data: Mapping[str, bytes], cluster: str) -> dict[str, bytes]:
    """`data` once `cluster` was disconnected: a connection of that name is of none of these any more, and none lets it
    in again."""
    return {
        key: value
        if (each := read(value)) is None or cluster not in each.connected
        else msgspec.json.encode(replace(each, joined={**each.joined, cluster: ""}))
        for key, value in data.items()
    }


def revoke(data: Mapping[str, bytes], number: str) -> tuple[dict[str, bytes], Invitation]:
    """`data` with the invitation revoked, and what that is then. Raises Refused where there is none."""
    found = read(data.get(number, b""))
    if found is None:
        raise Refused(f"there is no invitation {number[:40]!r}: `clustermesh invite list`")
    revoked = replace(found, revoked=True)
    return {**data, number: msgspec.json.encode(revoked)}, revoked


def is_revoked(data: Mapping[str, bytes], number: str) -> bool:
    found = read(data.get(number, b""))
    return found is None or found.revoked


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode(errors="replace")).hexdigest()
