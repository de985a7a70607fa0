"""What the Secrets of connected clusters are to hold for those that are declared. Pure.

Which entries are ours the API itself remembers (server-side apply, `names.DECLARED_MANAGER`): what `connect`, a chart
or a person wrote stays theirs, also where a ClusterMeshPeer of the same name says otherwise. The certificates beside an
entry belong to who has the entry: where others change those of ours, they are written again. A declaration that is
not acted on changes nothing of what it, or an earlier one, has brought about.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Final

from msgspec import Struct

from clustermesh.declared.peers import Declared, credentials_in, peer_of, spec_of
from clustermesh.errors import ClusterMeshError
from clustermesh.joining import names
from clustermesh.joining.links import entries_of, secrets_of
from clustermesh.joining.secret_sizes import Room
from clustermesh.mirror.agent_files import AgentAccess

SECRETS: Final = (names.COPIED, names.PEERS)


class Held(Struct, frozen=True):
    """What a Secret holds in its `version`, which of its keys are `ours`, and who it is said to be managed by."""

    data: Mapping[str, bytes] = {}
    ours: frozenset[str] = frozenset()
    version: str = ""
    managed_by: str = ""

    @property
    def own(self) -> dict[str, bytes]:
        return {key: self.data[key] for key in self.ours if key in self.data}

    def takes(self, data: Mapping[str, bytes]) -> bool:
        """Whether writing `data` takes keys from somebody else, who has changed what belongs to an entry of ours."""
        return any(key in self.data and key not in self.ours for key in data)


class Refusal(Struct, frozen=True):
    """Why a declaration is not acted on: a word for programs, and a sentence."""

    reason: str
    sentence: str


class Plan(Struct, frozen=True):
    """What each Secret is to hold of ours, what is refused, and the clusters that may read this one; of those in `kept`
    that stays as it is."""

    wanted: Mapping[str, dict[str, bytes]]
    refused: Mapping[str, Refusal]
    admitted: frozenset[str]
    kept: frozenset[str]

    def steps(self, held: Mapping[str, Held]) -> list[tuple[str, dict[str, bytes]]]:
        """The writes to make, in this order: agents forget a cluster before a mirror does, or it would look to them as
        one that takes its services away; a mirror copies before agents look for the copies."""
        now, agents = {secret: held[secret].own for secret in SECRETS}, self.wanted[names.PEERS]
        staying = {key: agents[key] for key in now[names.PEERS] if key in agents}
        first = [(names.PEERS, staying)] if self.wanted[names.COPIED] != now[names.COPIED] else []
        steps = []
        for secret, data in (*first, *self.wanted.items()):
            if data != now[secret]:
                steps.append((secret, data))
                now[secret] = data
        return steps


def plan(
    peers: Iterable[Declared],
    trust: Mapping[str, Mapping[str, bytes] | ClusterMeshError],
    held: Mapping[str, Held],
    own: str,
    agents: AgentAccess | None,
    now: datetime,
) -> Plan:
    """For the cluster `own`. `trust` has each Secret that a peer names, or why it cannot be read; `agents` is how
    agents reach a mirror's copies, None without one."""
    wanted: dict[str, dict[str, bytes]] = {secret: {} for secret in SECRETS}
    refused, admitted, kept = dict[str, Refusal](), set[str](), set[str]()
    rooms = {secret: Room(own, secret, held[secret].data) for secret in SECRETS}
    for each in sorted((peer for peer in peers if not peer.paused), key=lambda peer: peer.name):
        try:
            found = _entries(each, trust, own, agents, now)
            admit = spec_of(each).admit
        except ClusterMeshError as e:
            refused[each.name] = Refusal("Invalid", str(e))
        if taken := _taken(each.name, held):
            refused[each.name] = Refusal("ConnectedOtherwise", taken)
        if each.name not in refused and (
            full := next(filter(None, (rooms[secret].take(each.name, files) for secret, files in found.items())), None)
        ):
            refused[each.name] = Refusal("NoRoom", str(full))
        if each.name in refused:
            kept.add(each.name)
            found, admit = {secret: _of(each.name, held[secret].own) for secret in SECRETS}, False
        for secret, files in found.items():
            wanted[secret].update(files)
        if admit:
            admitted.add(each.name)
    return Plan(wanted, refused, frozenset(admitted), frozenset(kept))


def _entries(
    declared: Declared,
    trust: Mapping[str, Mapping[str, bytes] | ClusterMeshError],
    own: str,
    agents: AgentAccess | None,
    now: datetime,
) -> dict[str, dict[str, bytes]]:
    peer = peer_of(declared, own)
    shown: dict[str, bytes] = {}
    if declared.trust:
        secret = trust[declared.trust]
        if isinstance(secret, ClusterMeshError):
            raise secret.with_traceback(None)  # it may be raised again and again
        shown = credentials_in(declared, secret, own, now)
    of_agents, of_mirror = secrets_of(peer, shown, agents)
    return {names.PEERS: of_agents, names.COPIED: of_mirror}


def _of(peer: str, data: Mapping[str, bytes]) -> dict[str, bytes]:
    return {key: data[key] for key in entries_of(peer) if key in data}


def _taken(peer: str, held: Mapping[str, Held]) -> str:
    """Who else has entries of that name, as a sentence; "" for nobody."""
    for secret in SECRETS:
        if peer in held[secret].ours:
            continue
        for key in entries_of(peer):
            if key in held[secret].data and key not in held[secret].ours:
                return (
                    f"Secret {secret}: {key}: was written by somebody else, as `clustermesh connect` or the chart's "
                    "clustermesh.config does: disconnect the cluster there, or delete this ClusterMeshPeer"
                )
    return ""
