"""The clusters that a Kubernetes cluster reads and is read by, as its Secrets tell; what `clustermesh peers` prints."""

from __future__ import annotations

from datetime import datetime

from certs.check import check_leaf, facts, read_certificates
from certs.errors import CertsError
from clustermesh.joining import names
from clustermesh.joining.links import known_peers, unreadable_peers
from clustermesh.joining.member import Member
from clustermesh.mesh.peer_files import PeerFile
from clustermesh.standalone.connections import Connection
from clustermesh.standalone.users_file import readers_in


def list_connections(member: Member, now: datetime) -> list[Connection]:
    """Every connection of `member`, by name. Raises Invalid where its list of users cannot be understood."""
    peers, faults = known_peers(member.entries), unreadable_peers(member)
    readers = readers_in(member.users, names.USERS)
    return [
        _connection(member, name, peers.get(name), name in readers, str(faults.get(name, "")), now)
        for name in sorted(readers | peers.keys() | faults.keys())
    ]


def _connection(
    member: Member, name: str, peer: PeerFile | None, read_by: bool, problem: str, now: datetime
) -> Connection:
    if peer is None:
        return Connection(name=name, reads=False, read_by=read_by, problem=problem)
    expires, fault = _credentials(member, peer, now)
    return Connection(
        name=name,
        reads=True,
        read_by=read_by,
        cluster_id=peer.cluster_id,
        endpoints=peer.endpoints,
        expires=expires,
        problem=fault,
    )


def _credentials(member: Member, peer: PeerFile, now: datetime) -> tuple[datetime | None, str]:
    """When the certificate shown to `peer` ends, and why it would not be taken."""
    own = names.credentials_of(peer.name)
    if peer.cert is None:
        return None, ""
    is_own = peer.cert == names.MOUNT / f"{own}.crt"
    cert = member.entries.get(f"{own}.crt", b"") if is_own else member.remote.cert
    authority = member.entries.get(f"{own}-ca.crt", b"") if is_own else member.remote.ca
    where, expires = f"{own}.crt" if is_own else f"Secret {names.REMOTE_CERT}", None
    try:
        certificate = read_certificates(cert, where)[0]
        expires = facts(certificate, where).not_after
        check_leaf(certificate, read_certificates(authority, where), now, where)
    except CertsError as e:
        return expires, str(e)
    return expires, ""
