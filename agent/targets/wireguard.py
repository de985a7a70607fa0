"""WireGuard peers of one device as a reconciled resource: (cluster, node, generation) -> Peer.

A device knows its peers by their public keys alone. So this target remembers who has which; a peer that nobody of this
process named (of the agent before this one) is a `stranger`, until `recognise` gives it its name.

Whose a public key or an allowed IP is, is decided before peers are planned. An allowed IP lives on exactly one peer of
a device: giving it to a second takes it from the first without a word. Every peer is written whole, so peers whose
wanted allowed IPs are disjoint end as wanted in whatever order they are written. Whoever is given an allowed IP that
another one gives up is written first: the device moves it, and at no time it is nobody's. Who gets more of them keeps
those it has meanwhile: a device that replaces them drops what arrives before the new ones are there.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Coroutine, Mapping
from contextlib import suppress
from typing import Any, Final

from msgspec.structs import replace

from agent.wireguard.device import Device
from agent.wireguard.peer import REJECT_AFTER, Peer, PeerKey, PeerState, stranger
from clustermesh.address import Prefix
from clustermesh.errors import ApplyError, ClusterMeshError, Invalid, Refused
from clustermesh.reconcile import Tracker

GREETING_DELAY: Final = 0.3  # seconds: longer than two nodes differ in hearing of each other


class WireGuardTarget:
    """The peers of one device. Implements clustermesh.reconcile.Target[PeerKey, Peer]; `greet_forever` runs beside it.

    Setting a keepalive starts a handshake. Two nodes hear of each other at about the same time, and when their
    handshakes cross, each spoils the other's and both wait 5 s or more for the next try. So of two new peers the one
    with the greater public key (`own_key` is this node's) is silent at first.

    `clock` is Unix time, in which devices report handshakes; `timer` goes on by itself, whatever is done to that.
    """

    def __init__(
        self,
        device: Device,
        own_key: str = "",
        clock: Callable[[], float] = time.time,
        timer: Callable[[], float] = time.monotonic,
    ) -> None:
        self._device, self._own_key, self._clock, self._timer = device, own_key, clock, timer
        self._owners: dict[str, PeerKey] = {}  # public key -> whose it is
        self._keys: dict[PeerKey, str] = {}  # and the public key that each has on the device
        self._given: dict[str, Peer] = {}  # by public key
        self._held: dict[str, tuple[Prefix, ...]] = {}  # allowed IPs by public key, as last read or written
        self._silent: dict[str, float] = {}  # new peers without their keepalive yet, and when it is due
        self._met = asyncio.Event()

    async def dump(self) -> dict[PeerKey, Peer]:
        """Every peer of the device. An endpoint that a live peer moved to by itself (roaming, NAT) is no difference."""
        # In a thread: thousands of peers must not hold up whatever else this agent does.
        states = await self._device.peers()
        self._held = {key: state.allowed_ips for key, state in states.items()}
        return await asyncio.to_thread(self._as_known, states, self._clock())

    def _as_known(self, states: Mapping[str, PeerState], now: float) -> dict[PeerKey, Peer]:
        found = {key: as_wanted(key, state, self._given.get(key), now) for key, state in states.items()}
        return {
            self._owner(key): self._given[key] if self._is_as_given(key, peer) else peer for key, peer in found.items()
        }

    def _owner(self, key: str) -> PeerKey:
        owner = self._owners.get(key)
        return owner if owner is not None and self._keys.get(owner) == key else stranger(key)

    def recognise(self, owner: PeerKey, key: str) -> None:
        """The stranger with this public key is `owner`."""
        self._owners[key] = owner
        self._keys.setdefault(owner, key)

    def _is_as_given(self, key: str, peer: Peer) -> bool:
        return self._is_silent(key) and replace(self._given[key], keepalive=peer.keepalive) == peer

    def _is_silent(self, key: str) -> bool:
        return self._silent.get(key, 0.0) > self._timer()

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

    async def upsert(self, entries: Mapping[PeerKey, Peer]) -> None:
        """Write each peer whole. Raises ApplyError with those the device does not hold afterwards as wanted."""
        peers = self._takers_first({peer.public_key: peer for peer in entries.values()})
        silent = {key: replace(peer, keepalive=0) for key, peer in peers.items() if self._waits_for(key)}
        refused: dict[str, str] = {}
        extended = self._take_extended(peers)
        try:
            await self._device.set_peers(peers | silent, extended)
        except (Refused, Invalid) as e:
            refused = await self._write_singly(peers | silent, e)
        written = {owner: peer for owner, peer in entries.items() if peer.public_key not in refused}
        self._silent |= dict.fromkeys(silent.keys() - refused.keys(), self._timer() + GREETING_DELAY)
        if self._silent:
            self._met.set()
        await self._forget(self._note(written))
        if refused:
            raise ApplyError({owner: refused[entries[owner].public_key] for owner in entries.keys() - written.keys()})

    def _takers_first(self, peers: Mapping[str, Peer]) -> dict[str, Peer]:
        given_up: set[Prefix] = set()
        for key, peer in peers.items():
            if (before := self._given.get(key)) is not None:
                given_up.update(set(before.allowed_ips).difference(peer.allowed_ips))
        takers = [key for key, peer in peers.items() if given_up and not given_up.isdisjoint(peer.allowed_ips)]
        return {key: peers[key] for key in takers} | dict(peers)

    def _take_extended(self, peers: Mapping[str, Peer]) -> set[str]:
        """Those that lose none of the allowed IPs they have, which are not known again before `peers` are written."""
        held = {key: set(self._held.pop(key)) for key in peers.keys() & self._held.keys()}
        return {key for key, networks in held.items() if networks <= set(peers[key].allowed_ips)}

    def _note(self, written: Mapping[PeerKey, Peer]) -> list[str]:
        """Remember who has which key; returns the keys they had before, and nobody has now."""
        before = {owner: self._keys.get(owner) for owner in written}
        for owner, peer in written.items():
            self._given[peer.public_key] = peer
            self._held[peer.public_key] = peer.allowed_ips
            self._owners[peer.public_key] = owner
            self._keys[owner] = peer.public_key
        return [key for owner, key in before.items() if key is not None and self._is_left(owner, key)]

    def _is_left(self, owner: PeerKey, key: str) -> bool:
        return self._keys.get(owner) != key and self._owners.get(key) == owner

    async def delete(self, keys: Collection[PeerKey]) -> None:
        """Remove peers; an absent one is removed. A public key that somebody else has by now stays."""
        mine = {owner: self._keys.get(owner, owner.node if owner == stranger(owner.node) else "") for owner in keys}
        await self._forget([key for owner, key in mine.items() if key and self._owners.get(key, owner) == owner])
        for owner in keys:
            self._keys.pop(owner, None)

    async def _forget(self, keys: Collection[str]) -> None:
        if keys:
            await self._device.remove_peers(keys)
        for key in keys:
            for memory in (self._given, self._held, self._silent, self._owners):
                memory.pop(key, None)

    def _waits_for(self, key: str) -> bool:
        """Whether a peer is new, or was new a moment ago, and the other side is to shake hands first."""
        return self._own_key > key and (key not in self._given or self._is_silent(key))

    async def _write_singly(self, peers: Mapping[str, Peer], error: ClusterMeshError) -> dict[str, str]:
        """After a refusal some of a batch is applied: read what is there and write the rest one by one."""
        held = await self._device.peers()
        failed: dict[str, str] = {}
        for key, peer in peers.items():
            state = held.get(key)
            if state is not None and as_wanted(key, state, None, self._clock()) == peer:
                continue
            try:
                await self._device.set_peers({key: peer})
            except (Refused, Invalid) as e:
                failed[key] = f"{e} (first seen in a batch: {error})"
        return failed


class PeerTracker(Tracker[PeerKey, Peer]):
    """The peers of one device. A stranger that turns out to be wanted is taken over, and not written again.

    One that is being removed, or perhaps was, cannot be taken over: whose it is, is written again.
    """

    def __init__(self, name: str, target: WireGuardTarget) -> None:
        super().__init__(name, target)
        self._peers = target
        self._under_way: Collection[PeerKey] = ()  # of strangers: those that are being removed

    def set(self, key: PeerKey, value: Peer) -> None:
        if (held := self._stands(stranger(value.public_key))) is not None:
            self._peers.recognise(key, value.public_key)
            self.observe(stranger(value.public_key), None)
            if key not in self.actual:
                self.observe(key, held)
        super().set(key, value)

    def _stands(self, key: PeerKey) -> Peer | None:
        return None if key in self._unsure or key in self._under_way else self.actual.get(key)

    async def _attempt(self, call: Coroutine[Any, Any, None], keys: Collection[PeerKey]) -> Mapping[PeerKey, str]:
        self._under_way = set(keys)
        try:
            return await super()._attempt(call, keys)
        finally:
            self._under_way = ()


def as_wanted(key: str, state: PeerState, given: Peer | None, now: float) -> Peer:
    """What a device reports, in the form peers are wanted in. `given` is what it was last told, `now` Unix time.

    While a session is alive, the endpoint learnt from the peer's own authenticated packets beats the one given: telling
    the device the old one again would cut the way back to a peer that moved or sits behind a NAT.
    """
    endpoint, port = state.endpoint or (None, 0)
    alive = now - state.last_handshake <= REJECT_AFTER
    if given is not None and alive:
        endpoint, port = given.endpoint, given.port
    return Peer(public_key=key, endpoint=endpoint, port=port, allowed_ips=state.allowed_ips, keepalive=state.keepalive)
