"""Certificates of connected clusters replaced while they work, in the Secrets or folders of all of them.

A leaf: etcd shows a new one at its next handshake, and clients read their files for each connection. An authority is
replaced as certs.rotation does it: both are trusted for a while. An etcd takes clients' certificates from the
authorities that it read when it started; `store.keeper` starts it again, and its clients come back.

A peer that nobody here has access to joins again, by an invitation, while both are trusted: then its Secrets and ours
have each other's new certificates, and the old authority is not forgotten before.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Mapping, Sequence, Set
from datetime import UTC, datetime, timedelta
from typing import Final

import msgspec
from cryptography import x509

from certs.check import read_pair
from certs.issue import Pair
from certs.rotation import JOINING, SINCE, begin, forget, is_held_in, reissued, rotation_of, take, trusts
from clustermesh.errors import Refused, Unavailable
from clustermesh.joining import names
from clustermesh.joining.holders import Holder
from clustermesh.joining.objects import Edit

Say = Callable[[str], None]
_LOOK: Final = 2.0
"""Seconds between two looks at who has joined again."""


async def rotate_leaves(holders: Sequence[Holder], now: datetime, say: Say) -> None:
    """Issue again what the authority of the first of `holders` signed, there and in the others. Raises
    ClusterMeshError, CertsError."""
    first = holders[0]
    data = await first.read(first.places[0])
    if not data.get("ca.key"):
        raise await _no_authority(first)
    if rotation_of(data) is not None:
        raise Refused(f"{first.name}: its authority is being replaced: end that with `certs rotate --ca`")
    signer = read_pair(data.get("ca.crt", b""), data["ca.key"], f"{first.name}: ca")

    def issue(data: Mapping[str, bytes]) -> dict[str, bytes]:
        return reissued(data, signer.certificate, Pair(signer.certificate, signer.key), now)

    await _check_kept(holders, lambda data: issue(data) != data)
    await _everywhere(holders, issue, say, "is issued anew")


async def rotate_authority(
    holders: Sequence[Holder], settle: timedelta, say: Say, joining: frozenset[str] = frozenset()
) -> None:
    """Replace the authority of the first of `holders`, whose peers the others are, or go on where that was interrupted.

    `settle` is how long it takes until every process has read what was written; peers in `joining` are waited for until
    each has joined again. Raises ClusterMeshError, CertsError.
    """
    first, now = holders[0], datetime.now(UTC)
    place = first.places[0]
    if not first.expected:
        raise Refused(
            f"{first.name}: its etcd is your own (etcd.enabled), and would not trust another authority of ours: "
            f"replace that one's, then the Secrets {names.AUTHORITY} and {names.ETCD_CERT}, and connect again"
        )
    if not (data := await first.read(place)).get("ca.key"):
        raise await _no_authority(first)
    rotation = begin(data, now)
    if rotation_of(data) is None:  # one that is under way has to be ended, whoever keeps what by now
        await _check_kept(holders, lambda data: trusts(data, rotation.old))
    await _check_peers(holders, rotation.old, {*joining, *_joining(data)})
    declared = {name: error for name in sorted(joining) if (error := await first.find_declared(name))}
    if declared:
        why = [Refused(f"{name} cannot join again: {error}") for name, error in declared.items()]
        raise ExceptionGroup("the authority cannot be replaced", why)
    before = {name: await _shown(first, name) for name in joining}
    if shared := ", ".join(sorted(name for name, shown in before.items() if not shown)):
        raise Refused(f"{first.name} has no certificates of its own for {shared}: name the context, or disconnect it")

    def start(data: Mapping[str, bytes]) -> dict[str, bytes]:
        awaited = {**before, **_joining(data)}
        return take(data, begin(data, now), now) | ({JOINING: msgspec.json.encode(awaited)} if awaited else {})

    await first.change(place, start)
    under_way = rotation_of(await first.read(place))
    if under_way is None:
        raise Unavailable(f"{first.name}: somebody else ended a rotation just now: look with `certs status`")
    await _everywhere(holders, lambda data: take(data, under_way, now), say, "has the new authority beside the old one")
    await _settle(first, settle, say)
    await _joined(first, say)
    # The first one last: until then it tells what is still to do.
    await _everywhere(
        [*holders[1:], first], lambda data: forget(data, under_way), say, "has the new authority alone", last=place
    )


async def _no_authority(holder: Holder) -> Refused:
    reasons = [await holder.keeper(place) for place in holder.places]
    return Refused(f"{holder.name}: {next(filter(None, reasons), 'no authority with its key is kept there')}")


async def _everywhere(holders: Sequence[Holder], edit: Edit, say: Say, done: str, last: str = "") -> None:
    for each in holders:
        for place in sorted(each.places, key=lambda place: place == last):
            if await each.change(place, lambda data: edit(data) if data else data):
                say(f"{each.name}: {place} {done}")


async def _settle(first: Holder, settle: timedelta, say: Say) -> None:
    """Wait until `settle` is over since everything was issued anew."""
    now, place = datetime.now(UTC), first.places[0]
    since = (await first.read(place)).get(SINCE, b"").decode(errors="replace")
    try:
        began = min(datetime.fromisoformat(since), now)
    except (ValueError, TypeError):
        began = now
        await first.change(place, lambda data: {**data, SINCE: now.isoformat().encode()})
    left = (began + settle - now).total_seconds()
    if left > 0:
        say(f"waiting {left:.0f} s until every process has read that; interrupted, the same command goes on")
        await asyncio.sleep(left)


def _joining(authority: Mapping[str, bytes]) -> dict[str, str]:
    """The peers that are to join again, each with what it was known by."""
    try:
        return msgspec.json.decode(authority.get(JOINING, b"{}"), type=dict[str, str])
    except msgspec.DecodeError:
        return {}


async def _shown(holder: Holder, peer: str) -> str:
    """The SHA-256 of what `holder` shows to `peer`; "" where it shows it nothing of its own."""
    for place in (names.COPIED, names.PEERS):
        if found := (await holder.read(place)).get(f"{names.credentials_of(peer)}.crt"):
            return hashlib.sha256(found).hexdigest()
    return ""


async def _joined(first: Holder, say: Say) -> None:
    """Wait until each has joined again, or is disconnected: both sides have new certificates then."""
    before, asked = _joining(await first.read(first.places[0])), False
    while waiting := [name for name, known in sorted(before.items()) if await _shown(first, name) == known]:
        if not asked:
            for name in waiting:
                say(
                    f"{name}: is waited for: one of both invites "
                    "(`clustermesh invite create --again --to NAME`), the other "
                    "one joins (`clustermesh join`); interrupted, the same command goes on"
                )
            asked = True
        await asyncio.sleep(_LOOK)


async def _check_peers(holders: Sequence[Holder], old: x509.Certificate, joining: Set[str]) -> None:
    """Refused where a cluster would be left behind that is neither among `holders` nor joins again."""
    given, faults = {each.name for each in holders}, list[Refused]()
    if strange := ", ".join(sorted(joining - holders[0].peers)):
        raise Refused(f"{holders[0].name} is not connected to {strange}")
    for each in holders:
        missing = ", ".join(sorted(each.peers - given - (joining if each is holders[0] else set())))
        if missing and is_held_in(await each.read(each.places[0]), old):
            faults.append(
                Refused(
                    f"{each.name} is connected to {missing}, which would lose it: name the contexts of all its peers "
                    "with --destination-context, those that you have no context of with --joining, and disconnect "
                    "those that are gone"
                )
            )
    if faults:
        raise ExceptionGroup("the authority cannot be replaced", faults)


async def _check_kept(holders: Sequence[Holder], changes: Callable[[Mapping[str, bytes]], bool]) -> None:
    """Refused where somebody else keeps what `changes`, and would undo that."""
    faults = [
        Refused(f"{each.name}: {reason}")
        for each in holders
        for place in each.places
        if changes(await each.read(place)) and (reason := await each.keeper(place))
    ]
    if faults:
        raise ExceptionGroup("certificates cannot be replaced", faults)
