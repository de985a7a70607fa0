"""WireGuard peers as a reconciled resource: public key (base64) -> Peer.

An allowed IP lives on exactly one peer: giving it to a second takes it from the first without a word. Every peer is
written whole, so peers whose wanted allowed IPs are disjoint end as wanted in whatever order they are written.
Where two in one batch want the same CIDR, the first keeps it and the second is refused whole. `drop_overlaps` is for
whoever makes the desired state, where the two may arrive in different batches.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Hashable, Mapping

from agent.wireguard.device import Device
from agent.wireguard.peer import REJECT_AFTER, Peer, PeerState, check_peer
from clustermesh.errors import ApplyError, Invalid, Refused


class WireGuardTarget:
    """The peers of one device. Implements clustermesh.reconcile.Target[str, Peer]."""

    def __init__(self, device: Device, clock: Callable[[], float] = time.time) -> None:
        self._device, self._clock = device, clock
        self._given: dict[str, Peer] = {}

    async def dump(self) -> dict[str, Peer]:
        """Every peer of the device. An endpoint that a live peer moved to by itself (roaming, NAT) is no difference."""
        now = self._clock()
        states = await self._device.peers()
        return {key: as_wanted(state, self._given.get(key), now) for key, state in states.items()}

    async def upsert(self, entries: Mapping[str, Peer]) -> None:
        """Write each peer whole. Raises ApplyError with those the device does not hold afterwards as wanted."""
        good, failed = sort_out(entries)
        if good:
            try:
                await self._device.set_peers(good)
            except Refused as e:
                failed |= await self._write_singly(good, e)
        self._given |= {key: peer for key, peer in good.items() if key not in failed}
        if failed:
            raise ApplyError(failed)

    async def delete(self, keys: Collection[str]) -> None:
        """Remove peers; an absent one is removed."""
        await self._device.remove_peers(keys)
        for key in keys:
            self._given.pop(key, None)

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
    endpoint, port = state.endpoint or ("", 0)
    alive = now - state.last_handshake <= REJECT_AFTER
    if given is not None and alive:
        endpoint, port = given.endpoint, given.port
    return Peer(endpoint=endpoint, port=port, allowed_ips=state.allowed_ips, keepalive=state.keepalive)


def sort_out(entries: Mapping[str, Peer]) -> tuple[dict[str, Peer], dict[Hashable, str]]:
    """Split a batch into peers that can be written together and those that cannot, each with a sentence."""
    owners: dict[str, str] = {}
    good: dict[str, Peer] = {}
    failed: dict[Hashable, str] = {}
    for key, peer in entries.items():
        try:
            check_peer(key, peer)
        except Invalid as e:
            failed[key] = str(e)
            continue
        taken = [cidr for cidr in peer.allowed_ips if cidr in owners]
        if taken:
            failed[key] = f"allowed IP {taken[0]} belongs to peer {owners[taken[0]]}"
            continue
        good[key] = peer
        owners |= dict.fromkeys(peer.allowed_ips, key)
    return good, failed


def drop_overlaps(peers: Mapping[str, Peer]) -> tuple[dict[str, Peer], dict[str, str]]:
    """`peers` with each allowed IP left only at the first that wants it, and a sentence for each peer that lost one.

    Without this, two peers that want the same CIDR would take it from each other for ever.
    """
    owners: dict[str, str] = {}
    kept: dict[str, Peer] = {}
    lost: dict[str, str] = {}
    for key, peer in peers.items():
        own = tuple(cidr for cidr in peer.allowed_ips if owners.setdefault(cidr, key) == key)
        if own != peer.allowed_ips:
            missing = sorted(set(peer.allowed_ips) - set(own))
            lost[key] = f"allowed IP {missing[0]} belongs to peer {owners[missing[0]]} already"
            peer = Peer(endpoint=peer.endpoint, port=peer.port, allowed_ips=own, keepalive=peer.keepalive)  # noqa: PLW2901
        kept[key] = peer
    return kept, lost
