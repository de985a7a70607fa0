"""Certificates of connected clusters replaced while they work, in the Secrets or folders of all of them.

A leaf: etcd shows a new one at its next handshake, and clients read their files for each connection. An authority is
replaced as certs.rotation does it: both are trusted for a while. An etcd takes clients' certificates from the
authorities that it read when it started; `store.keeper` starts it again, and its clients come back.

Clusters that have one authority replace it together, whichever is named first: it begins in the first of them by name,
so that of two at once one begins and the other goes on with the same, as it does where one was interrupted.

A peer that nobody here has access to joins again, by an invitation, while both are trusted: then its Secrets and ours
have each other's new certificates, and the old authority is not forgotten before.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Final

import msgspec

from certs.check import read_pair
from certs.errors import CertsError
from certs.issue import Pair
from certs.rotation import (
    JOINING,
    SINCE,
    Rotation,
    begin,
    forget,
    reissued,
    rotation_of,
    take,
    takes_part,
    trusts,
)
from clustermesh.errors import Refused, Unavailable
from clustermesh.joining import names
from clustermesh.joining.holders import Holder
from clustermesh.joining.objects import Edit

Say = Callable[[str], None]
_LOOK: Final = 2.0
"""Seconds between two looks at who has joined again."""
_BOTH: Final = "has the new authority beside the old one"


async def rotate_leaves(holders: Sequence[Holder], now: datetime, say: Say) -> None:
    """Issue again what the authority of the first of `holders` signed, there and in the others. Raises
    ClusterMeshError, CertsError."""
    first, kept = holders[0], [await each.read(each.places[0]) for each in holders]
    data = kept[0]
    if not data.get("ca.key"):
        raise await _no_authority(first)
    if _under_way(holders, kept) is not None:
        raise Refused(f"{first.name}: its authority is being replaced: end that with `certs rotate --ca`")
    signer = read_pair(data.get("ca.crt", b""), data["ca.key"], f"{first.name}: ca")

    def issue(data: Mapping[str, bytes]) -> dict[str, bytes]:
        return reissued(data, signer.certificate, Pair(signer.certificate, signer.key), now)

    await _check_kept(holders, lambda data: issue(data) != data)
    await _everywhere(holders, issue, say, "is issued anew")


async def rotate_authority(
    holders: Sequence[Holder], settle: timedelta, say: Say, joining: frozenset[str] = frozenset()
) -> None:
    """Replace the authority of the first of `holders`, whose peers the others are, or go on where that was interrupted,
    whoever of them tells of it.

    `settle` is how long it takes until every process has read what was written; peers in `joining` are waited for until
    each has joined again. Raises ClusterMeshError, CertsError.
    """
    first, now = holders[0], datetime.now(UTC)
    _check_etcd(first)
    kept = [await each.read(each.places[0]) for each in holders]
    if not kept[0].get("ca.key"):
        raise await _no_authority(first)
    under_way = _under_way(holders, kept)
    with _named(first):
        rotation = under_way or begin(kept[0], now)
    sharing = list[Holder]()
    for each, data in zip(holders, kept, strict=True):
        with _named(each):
            take(data, rotation, now)  # refuses before anything is written
        if takes_part(data, rotation):
            _check_etcd(each)
            sharing.append(each)
    sharing.sort(key=lambda each: each.name)
    if under_way is None:  # one that is under way has to be ended, whoever keeps what by now
        await _check_kept(holders, lambda data: trusts(data, rotation.old))
    awaited = await _awaited(sharing, joining)
    await _check_peers(holders, sharing, joining)

    for each in sharing:
        rotation = await _begin(each, rotation, awaited[each.name], say, leads=each is sharing[0])

    async def spread() -> bool:
        """Also to what was written meanwhile by who had read before: after this, everybody reads the new authority."""
        now = datetime.now(UTC)
        changed = await _everywhere(holders, lambda data: take(data, rotation, now), say, _BOTH)
        await _check_peers(holders, sharing, joining)
        return changed

    anew = await spread()
    while True:
        await _settle(sharing[0], settle, say, anew=anew)
        await _joined(sharing, say)
        if not (anew := await spread()):
            break
    # The authorities last, and of these the one that leads: until then they tell what is still to do.
    ordered = [*(each for each in holders if each is not sharing[0]), sharing[0]]
    for _ in range(2):  # once more for what was written meanwhile by who had read before
        await _everywhere(ordered, lambda data: forget(data, rotation), say, "has the new authority alone", last=True)


def _under_way(holders: Sequence[Holder], kept: Sequence[Mapping[str, bytes]]) -> Rotation | None:
    """What replaces the authority of the first of `holders`, as any of them tells by what it has `kept`."""
    found = list[Rotation]()
    for each, data in zip(holders, kept, strict=True):
        with _named(each):
            if (told := rotation_of(data)) and takes_part(kept[0], told):
                found.append(told)
    return found[0] if found else None


async def _begin(holder: Holder, rotation: Rotation, awaited: Mapping[str, str], say: Say, *, leads: bool) -> Rotation:
    """The authority of `holder` is the new one; where it `leads`, that of who has begun there in between."""
    chosen, now = rotation, datetime.now(UTC)

    def edit(data: Mapping[str, bytes]) -> dict[str, bytes]:
        nonlocal chosen
        other = rotation_of(data)
        chosen = other if leads and other and other.old == rotation.old else rotation
        out = take(data, chosen, now)
        if not takes_part(out, chosen):
            raise Unavailable(f"{holder.name}: somebody else has replaced its authority: look with `certs status`")
        if rotation_of(out) is not None and (joining := {**awaited, **_joining(data)}):
            out[JOINING] = msgspec.json.encode(joining)
        return out

    place = holder.places[0]
    with _named(holder):
        if await holder.change(place, edit):
            say(f"{holder.name}: {place} {_BOTH}")
    return chosen


def _check_etcd(holder: Holder) -> None:
    if not holder.expected:
        raise Refused(
            f"{holder.name}: its etcd is your own (etcd.enabled), and would not trust another authority of ours: "
            f"replace that one's, then the Secrets {names.AUTHORITY} and {names.ETCD_CERT}, and connect again"
        )


@contextmanager
def _named(holder: Holder) -> Iterator[None]:
    """What is wrong with certificates names the cluster."""
    try:
        yield
    except CertsError as e:
        raise Refused(f"{holder.name}: {e}") from e


async def _no_authority(holder: Holder) -> Refused:
    reasons = [await holder.keeper(place) for place in holder.places]
    return Refused(f"{holder.name}: {next(filter(None, reasons), 'no authority with its key is kept there')}")


async def _everywhere(holders: Sequence[Holder], edit: Edit, say: Say, done: str, *, last: bool = False) -> bool:
    """Whether anything was changed; the authority is `last` in each."""
    changed = False
    for each in holders:
        for place in (*each.places[1:], each.places[0]) if last else each.places:
            with _named(each):
                if await each.change(place, lambda data: edit(data) if data else data):
                    say(f"{each.name}: {place} {done}")
                    changed = True
    return changed


async def _settle(leader: Holder, settle: timedelta, say: Say, *, anew: bool) -> None:
    """Wait until `settle` is over since everything was issued anew, as it was just now or before."""
    now, place = datetime.now(UTC), leader.places[0]

    def begin(data: Mapping[str, bytes]) -> Mapping[str, bytes]:
        if rotation_of(data) is None or not (anew or _since(data) is None):  # ended meanwhile, or begun before
            return data
        return {**data, SINCE: now.isoformat().encode()}

    await leader.change(place, begin)
    while since := _since(await leader.read(place)):
        if (left := (min(since, now) + settle - datetime.now(UTC)).total_seconds()) <= 0:
            break
        say(f"waiting {left:.0f} s until every process has read that; interrupted, the same command goes on")
        await asyncio.sleep(left)


def _since(authority: Mapping[str, bytes]) -> datetime | None:
    try:
        found = datetime.fromisoformat(authority.get(SINCE, b"").decode(errors="replace"))
    except ValueError:
        return None
    return found if found.tzinfo else None


def _joining(authority: Mapping[str, bytes]) -> dict[str, str]:
    """The peers that are to join again, each with what it was known by; none where nothing is being replaced."""
    try:
        return msgspec.json.decode(authority.get(JOINING, b"{}"), type=dict[str, str]) if rotation_of(authority) else {}
    except msgspec.DecodeError:
        return {}


async def _awaited(sharing: Sequence[Holder], joining: frozenset[str]) -> dict[str, dict[str, str]]:
    """What each of `sharing` shows by now to those of its peers that are to join again."""
    peers = {each.name: await each.peers() & joining for each in sharing}
    if strange := ", ".join(sorted(joining.difference(*peers.values()))):
        raise Refused(f"{strange}: is not connected to {' or '.join(peers)}")
    found, faults = dict[str, dict[str, str]](), list[Refused]()
    for each in sharing:
        found[each.name] = {name: await _shown(each, name) for name in sorted(peers[each.name])}
        for name, shown in found[each.name].items():
            if error := await each.find_declared(name):
                faults.append(Refused(f"{name} cannot join again: {error}"))
            elif not shown:
                why = f"{each.name} has no certificates of its own for {name}: name the context, or disconnect it"
                faults.append(Refused(why))
    if faults:
        raise ExceptionGroup("the authority cannot be replaced", faults)
    return found


async def _shown(holder: Holder, peer: str) -> str:
    """The SHA-256 of what `holder` shows to `peer`; "" where it shows it nothing of its own."""
    for place in (names.COPIED, names.PEERS):
        if found := (await holder.read(place)).get(f"{names.credentials_of(peer)}.crt"):
            return hashlib.sha256(found).hexdigest()
    return ""


async def _joined(sharing: Sequence[Holder], say: Say) -> None:
    """Wait until each has joined again, or is disconnected: both sides have new certificates then."""
    for each in sharing:
        before, asked = _joining(await each.read(each.places[0])), False
        while waiting := [name for name, known in sorted(before.items()) if await _shown(each, name) == known]:
            if not asked:
                for name in waiting:
                    say(
                        f"{name}: is waited for: one of both invites "
                        "(`clustermesh invite create --again --to NAME`), the other "
                        "one joins (`clustermesh join`); interrupted, the same command goes on"
                    )
                asked = True
            await asyncio.sleep(_LOOK)


async def _check_peers(holders: Sequence[Holder], sharing: Sequence[Holder], joining: Set[str]) -> None:
    """Refused where a cluster would be left behind that is neither among `holders` nor joins again."""
    given, faults = {each.name for each in holders} | joining, list[Refused]()
    for each in sharing:
        joins = _joining(await each.read(each.places[0])).keys()
        if missing := ", ".join(sorted(await each.peers() - given - joins)):
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
