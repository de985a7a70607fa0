"""WireGuard peers as a reconciled resource: public key (base64) -> Peer.

An allowed IP lives on exactly one peer: giving it to a second takes it from the first without a word. Every peer is
written whole, so peers whose wanted allowed IPs are disjoint end as wanted in whatever order they are written.
Where two in one batch want the same CIDR, the first keeps it and the second is refused whole. `drop_overlaps` is for
whoever makes the desired state, where the two may arrive in different batches.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Hashable, Mapping
from contextlib import suppress
from typing import Final

from msgspec.structs import replace

from agent.wireguard.device import Device
from agent.wireguard.peer import REJECT_AFTER, Peer, PeerState, check_peer
from clustermesh.address import Prefix, prefix_text
from clustermesh.errors import ApplyError, ClusterMeshError, Invalid, Refused

GREETING_DELAY: Final = 0.3  # seconds: longer than two nodes differ in hearing of each other


class WireGuardTarget:
    """The peers of one device. Implements clustermesh.reconcile.Target[str, Peer]; `greet_forever` runs beside it.

    Setting a keepalive starts a handshake. Two nodes hear of each other at about the same time, and when their
    handshakes cross, each spoils the other's and both wait 5 s or more for the next try. So of two new peers the one
    with the greater public key (`own_key` is this node's) is silent at first.
    """

    def __init__(self, device: Device, own_key: str = "", clock: Callable[[], float] = time.time) -> None:
        self._device, self._own_key, self._clock = device, own_key, clock
        self._given: dict[str, Peer] = {}
        self._silent: dict[str, float] = {}  # new peers without their keepalive yet, and when it is due
        self._met = asyncio.Event()

    async def dump(self) -> dict[str, Peer]:
        """Every peer of the device. An endpoint that a live peer moved to by itself (roaming, NAT) is no difference."""
        now = self._clock()
        found = {key: as_wanted(s, self._given.get(key), now) for key, s in (await self._device.peers()).items()}
        return {key: self._given[key] if self._is_as_given(key, peer) else peer for key, peer in found.items()}

    def _is_as_given(self, key: str, peer: Peer) -> bool:
        return self._is_silent(key) and replace(self._given[key], keepalive=peer.keepalive) == peer

    def _is_silent(self, key: str) -> bool:
        return self._silent.get(key, 0.0) > self._clock()

    async def greet(self) -> None:
        """Give the peers that have been silent for long enough their keepalive."""
        due = {key: self._given[key] for key in self._silent if not self._is_silent(key)}
        self._silent = {key: time for key, time in self._silent.items() if key not in due}
        if due:
            await self._device.set_keepalives({key: peer.keepalive for key, peer in due.items()})

    async def greet_forever(self) -> None:
        """Greet each new peer in its time. What fails here (the device is gone) is found by the next `dump`."""
        while True:
            await self._met.wait()
            self._met.clear()
            await asyncio.sleep(GREETING_DELAY)
            with suppress(ClusterMeshError):
                await self.greet()

    async def upsert(self, entries: Mapping[str, Peer]) -> None:
        """Write each peer whole. Raises ApplyError with those the device does not hold afterwards as wanted."""
        good, failed = sort_out(entries, self._own_key)
        silent = {key: replace(peer, keepalive=0) for key, peer in good.items() if self._waits_for(key)}
        if good:
            try:
                await self._device.set_peers(good | silent)
            except Refused as e:
                failed |= await self._write_singly(good | silent, e)
        self._given |= {key: peer for key, peer in good.items() if key not in failed}
        self._silent |= dict.fromkeys(silent.keys() - failed.keys(), self._clock() + GREETING_DELAY)
        if self._silent:
            self._met.set()
        if failed:
            raise ApplyError(failed)

    async def delete(self, keys: Collection[str]) -> None:
        """Remove peers; an absent one is removed."""
        await self._device.remove_peers(keys)
        for key in keys:
            self._given.pop(key, None)
            self._silent.pop(key, None)

    def _waits_for(self, key: str) -> bool:
        """Whether a peer is new, or was new a moment ago, and the other side is to shake hands first."""
        return self._own_key > key and (key not in self._given or self._is_silent(key))

    async def _write_singly(self, entries: Mapping[str, Peer], error: Refused) -> dict[Hashable, str]:
        """After a refusal some of a batch is applied: read what is there and write the rest one by one."""
        held = await self._device.peers()
        failed: dict[Hashable, str] = {}
        for key, peer in entries.items():
            state = held.get(key)
            if state is not None and as_wanted(state, None, self._clock()) == peer:
                continue
            try:
                await self._device.set_peers({key: peer})
            except Refused as e:
                failed[key] = f"{e} (first seen in a batch: {error})"
        return failed


def as_wanted(state: PeerState, given: Peer | None, now: float) -> Peer:
    """What a device reports, in the form peers are wanted in. `given` is what it was last told, `now` Unix time.

    While a session is alive, the endpoint learnt from the peer's own authenticated packets beats the one given: telling
    the device the old one again would cut the way back to a peer that moved or sits behind a NAT.
    """
    endpoint, port = state.endpoint or (None, 0)
    alive = now - state.last_handshake <= REJECT_AFTER
    if given is not None and alive:
        endpoint, port = given.endpoint, given.port
    return Peer(endpoint=endpoint, port=port, allowed_ips=state.allowed_ips, keepalive=state.keepalive)


def sort_out(entries: Mapping[str, Peer], own_key: str = "") -> tuple[dict[str, Peer], dict[Hashable, str]]:
    """Split a batch into peers that can be written together and those that cannot, each with a sentence.

    A device ignores a peer with its own key (`own_key`) without a word.
    """
    owners: dict[Prefix, str] = {}
    good: dict[str, Peer] = {}
    failed: dict[Hashable, str] = {}
    for key, peer in entries.items():
        try:
            check_peer(key, peer)
            if key == own_key:
                raise Invalid("WireGuard key", key, "is this node's own")
        except Invalid as e:
            failed[key] = str(e)
            continue
        taken = [cidr for cidr in peer.allowed_ips if cidr in owners]
        if taken:
            failed[key] = f"allowed IP {prefix_text(taken[0])} belongs to peer {owners[taken[0]]}"
            continue
        good[key] = peer
        owners |= dict.fromkeys(peer.allowed_ips, key)
    return good, failed


def drop_overlaps(peers: Mapping[str, Peer]) -> tuple[dict[str, Peer], dict[str, str]]:
    """`peers` with each allowed IP left only at the first that wants it, and a sentence for each peer that lost one.

    Without this, two peers that want the same CIDR would take it from each other for ever.
    """
    owners: dict[Prefix, str] = {}
    kept: dict[str, Peer] = {}
    lost: dict[str, str] = {}
    for key, peer in peers.items():
        own = tuple(cidr for cidr in peer.allowed_ips if owners.setdefault(cidr, key) == key)
        if own != peer.allowed_ips:
            missing = sorted(set(peer.allowed_ips) - set(own))
            lost[key] = f"allowed IP {prefix_text(missing[0])} belongs to peer {owners[missing[0]]} already"
        kept[key] = replace(peer, allowed_ips=own)
    return kept, lost
