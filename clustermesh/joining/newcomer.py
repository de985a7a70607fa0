"""The side that comes with a token: asks the inviting cluster, and does here what is to be done."""

from __future__ import annotations

import ssl
from datetime import datetime
from functools import partial
from typing import Any, Final

import aiohttp
import msgspec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from certs.check import read_certificates
from certs.errors import CertsError
from clustermesh.errors import ClusterMeshError, Refused, Unavailable
from clustermesh.joining import audit, names
from clustermesh.joining.checks import find_problems
from clustermesh.joining.connect import Site, begin_reading, check_unreplaced, find_declared, let_in
from clustermesh.joining.invitations import Token
from clustermesh.joining.links import is_named, known_peers
from clustermesh.joining.member import Member, mesh_name
from clustermesh.joining.offers import (
    MOST_BYTES,
    MOST_LETTERS,
    MOST_SENTENCES,
    decode_offer,
    encode_ask,
    join_again,
    offer,
    offered_link,
)
from clustermesh.joining.secret_sizes import MOST_ENTRY, Room
from clustermesh.standalone.connect import Outcome

_PATIENCE: Final = 90.0


async def join(site: Site, token: Token, now: datetime) -> Outcome:
    """Leaves a trace here, too, where who invites has its own. Raises ClusterMeshError, or an ExceptionGroup of every
    problem that the other side found."""
    trace = partial(audit.record, site.objects, about=names.PEERS)
    by = f"the invitation {token.id} of {token.cluster}, at {token.address}"
    try:
        outcome = await _join(site, token, now)
    except (ClusterMeshError, ExceptionGroup) as e:
        why = "; ".join(map(str, e.exceptions if isinstance(e, ExceptionGroup) else [e]))
        await trace("JoinRefused", f"{by}: {why}", warning=True)
        raise
    done = "; ".join([*outcome.done, *outcome.warnings]) or "nothing changed"
    await trace("MeshJoined", f"{by}: {done}")
    return outcome


async def _join(site: Site, token: Token, now: datetime) -> Outcome:
    if token.cluster == site.member.name:
        raise Refused(f"the token is of {token.cluster} itself: use it with the --context of the cluster that joins")
    if declared := await find_declared(site.objects, site.member, token.cluster):
        raise declared
    if full := _full(site.member, token.cluster):
        raise full
    ask = encode_ask(site.member, (token.id, token.secret), offer(site.member, token.cluster, now))
    said = decode_offer(await _asked(token, ask, _known(site.member, token)))
    if said.name != token.cluster:
        raise Refused(f"who answered is {said.name[:40]!r}, and the token is of {token.cluster}: ask for a new one")
    link = offered_link(site.member, said, now, keep=said.keep)
    if problems := find_problems([site.member, link.owner], [link], now):
        raise ExceptionGroup("cannot be connected", problems)
    outcome = Outcome([], [])
    await begin_reading(site.objects, link, now, outcome)  # by which it is known where this is interrupted
    await let_in(site, token.cluster, outcome)
    await check_unreplaced(site, join_again(site.member.name))
    return outcome


def _full(own: Member, cluster: str) -> Refused | None:
    """Refused where there is no room for as much as who invites may answer, who would have done its half by then."""
    room = Room(own.name, names.COPIED if own.mirrored else names.PEERS, own.entries)
    return room.take(cluster, {cluster: bytes(MOST_ENTRY)})


def _known(own: Member, token: Token) -> ssl.SSLContext | bool:
    """How a connection to who invites begins: where a cluster of that name is connected, it must be that; where that
    only reads this one, it is known by an authority that both have. Raises ClusterMeshError."""
    if (held := known_peers(own.entries).get(token.cluster)) is None:
        if not is_named(own, token.cluster):
            return False  # by the token alone
        trusted = own.trusted
    else:
        trusted = own.entries.get(held.ca.name, b"") if held.ca is not None else b""
    try:
        return ssl.create_default_context(cadata=trusted.decode("ascii", "replace"))
    except (ssl.SSLError, ValueError) as e:
        raise _impostor(token) from e


async def _asked(token: Token, ask: bytes, known: ssl.SSLContext | bool) -> bytes:
    """The answer. Nothing of the token is sent to whom its authority has not signed for, nor in the name of a cluster
    that is connected and `known`."""
    place, name = f"https://{token.address}/v1", mesh_name(token.cluster)
    refused = _impostor(token) if known else _stranger(token)
    try:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(_PATIENCE)) as session:
            async with session.get(
                f"{place}/authority", ssl=known, server_hostname=name, allow_redirects=False
            ) as answer:
                tls = _trusting(token, await _body(answer))
            refused = _stranger(token)
            async with session.post(
                f"{place}/join", data=ask, ssl=tls, server_hostname=name, allow_redirects=False
            ) as answer:
                data = await _body(answer)
                if answer.status == 200:
                    return data
    except aiohttp.ClientConnectorCertificateError as e:
        raise refused from e
    except (aiohttp.ClientError, TimeoutError, OSError) as e:
        raise Unavailable(
            f"{token.address}: {e or type(e).__name__}: does `clustermesh invite serve` run there?"
        ) from e
    kind: type[ClusterMeshError] = Unavailable if answer.status in (408, 429, 503) else Refused
    raise ExceptionGroup("refused", [kind(f"{token.cluster}: {sentence}") for sentence in _sentences(data)])


async def _body(answer: aiohttp.ClientResponse) -> bytes:
    data = b""
    while len(data) <= MOST_BYTES and (piece := await answer.content.readany()):
        data += piece
    return data


def _trusting(token: Token, said: bytes) -> ssl.SSLContext:
    """Who shows a certificate by the authority that the token names, for the cluster that it names. Anybody may have
    said it: it is known by its fingerprint. Raises Refused."""
    try:
        authority = read_certificates(said, "authority")[0]
    except CertsError as e:
        raise _stranger(token) from e
    if authority.fingerprint(SHA256()).hex() != token.fingerprint:
        raise _stranger(token)
    tls = ssl.create_default_context(cadata=authority.public_bytes(Encoding.PEM).decode())
    tls.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # it may be signed by one above it
    return tls


def _impostor(token: Token) -> Refused:
    return Refused(
        f"a cluster {token.cluster} is connected, and what answers at {token.address} is not known to be that "
        f"one: nothing was sent; `clustermesh disconnect --peer {token.cluster}` makes room for another one"
    )


def _stranger(token: Token) -> Refused:
    return Refused(
        f"what answers at {token.address} is not the cluster that invites, or its authority is a new one: "
        "nothing was sent; ask for a new invitation"
    )


def _sentences(data: bytes) -> list[str]:
    try:
        said: Any = msgspec.json.decode(data, type=dict[str, list[str]])["problems"]
    except (msgspec.DecodeError, KeyError, UnicodeDecodeError, RecursionError):
        said = []
    return [each[:MOST_LETTERS] for each in said[:MOST_SENTENCES]] or ["refused without a word"]
