"""The side that comes with a token: asks the inviting cluster, and does here what is to be done."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

import aiohttp
import msgspec

from clustermesh.errors import ClusterMeshError, Refused, Unavailable
from clustermesh.joining.checks import find_problems
from clustermesh.joining.connect import Site, begin_reading, let_in
from clustermesh.joining.invitations import Token
from clustermesh.joining.offers import MOST_BYTES, Ask, decode_offer, offer, taken
from clustermesh.standalone.connect import Outcome

_PATIENCE: Final = 90.0
_WORDS: Final = 20


async def join(site: Site, token: Token, now: datetime) -> Outcome:
    """Raises ClusterMeshError, or an ExceptionGroup of every problem that the other side found."""
    ask = Ask(id=token.id, secret=token.secret, offer=offer(site.member, token.cluster, now))
    said = decode_offer(await _post(token, msgspec.json.encode(ask)))
    if said.name != token.cluster:
        raise Refused(f"who answered is {said.name[:40]!r}, and the token is of {token.cluster}: ask for a new one")
    link = taken(site.member, said)
    if problems := find_problems([site.member, link.owner], [link], now):
        raise ExceptionGroup("cannot be connected", problems)
    outcome = Outcome([], [])
    await let_in(site, token.cluster, outcome)
    await begin_reading(site.objects, link, now, outcome)
    return outcome


async def _post(token: Token, body: bytes) -> bytes:
    """The connection ends before a word is said where what is shown is not what the token says."""
    pin, timeout = aiohttp.Fingerprint(bytes.fromhex(token.fingerprint)), aiohttp.ClientTimeout(_PATIENCE)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.post(f"https://{token.address}/v1/join", data=body, ssl=pin, allow_redirects=False) as answer,
        ):
            data = b""
            while len(data) <= MOST_BYTES and (piece := await answer.content.readany()):
                data += piece
            if answer.status == 200:
                return data
    except aiohttp.ServerFingerprintMismatch as e:
        raise Refused(
            f"what answers at {token.address} is not the cluster that invites, or its certificate is a new one: "
            "nothing was sent; ask for a new invitation"
        ) from e
    except (aiohttp.ClientError, TimeoutError, OSError) as e:
        raise Unavailable(
            f"{token.address}: {e or type(e).__name__}: does `clustermesh invite serve` run there?"
        ) from e
    kind: type[ClusterMeshError] = Unavailable if answer.status in (429, 503) else Refused
    raise ExceptionGroup("refused", [kind(f"{token.cluster}: {sentence}") for sentence in _sentences(data)])


def _sentences(data: bytes) -> list[str]:
    try:
        said: Any = msgspec.json.decode(data, type=dict[str, list[str]])["problems"]
    except (msgspec.DecodeError, KeyError, UnicodeDecodeError, RecursionError):
        said = []
    return said[:_WORDS] or ["refused without a word"]
