"""Where agents and the mirror of a cluster are led, once its Deployment is otherwise than it was. Pure.

With a mirror the Secret `cilium-clustermesh` leads agents to the copies in their own etcd, and `cilium-kvstoremesh` the
mirror to the peer; without one, agents are led to the peer. `connect` and `join` write them for what runs that day.
"""

from __future__ import annotations

from collections.abc import Mapping

from clustermesh.joining import names
from clustermesh.joining.links import agent_access, entries_of, known_peers
from clustermesh.joining.member import Member
from clustermesh.mesh.peer_files import PeerFile, encode_peer
from clustermesh.mirror.agent_files import AgentAccess, agent_file

Entries = tuple[dict[str, bytes], dict[str, bytes]]
"""What the Secrets of agents and of the mirror are to say of one peer."""


def misled(member: Member) -> dict[str, Entries]:
    """The peers that are not read the way that `member` is deployed now, each with what leads there. None of what Helm
    keeps: the chart writes that with its Deployment."""
    if {names.PEERS, names.COPIED} & {*member.helms}:
        return {}
    found, home = dict[str, Entries](), agent_access(member)
    told, copied = known_peers(member.peers), known_peers(member.copied)
    for name, peer in told.items():
        direct = not _is_home(peer, home)
        if member.mirrored and (name not in copied or peer.endpoints != home.endpoints):
            if real := copied.get(name) or (peer if direct else None):
                source = member.copied if name in copied else member.peers
                found[name] = {name: encode_peer(agent_file(real, home))}, _of(name, source)
        elif not member.mirrored and name in copied:
            found[name] = _of(name, member.peers if direct else member.copied), {}
    return found


def _is_home(peer: PeerFile, home: AgentAccess) -> bool:
    """Whether this leads to the own etcd, at the port that it has or at another."""
    return peer.endpoints == home.endpoints or (home.cert is not None and peer.cert == home.cert)


def _of(peer: str, data: Mapping[str, bytes]) -> dict[str, bytes]:
    return {key: data[key] for key in entries_of(peer) if key in data}
