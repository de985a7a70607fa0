"""The clusters that a cluster reads and is read by, as its own folder tells; what `clustermesh peers` prints."""

from __future__ import annotations

from datetime import datetime

from msgspec import Struct

from certs.check import check_leaf, facts, read_certificates
from certs.errors import CertsError
from clustermesh.errors import ClusterMeshError
from clustermesh.mesh.peer_files import PeerFile, PeersFolder, read_peers
from clustermesh.standalone.context import Context
from clustermesh.standalone.users_file import read_users, remote_user
from clustermesh.yaml_file import read_bytes


class Connection(Struct, frozen=True, kw_only=True):
    """`reads` says that this cluster reads the other, `read_by` the reverse; `problem` is "" while all is well."""

    name: str
    reads: bool
    read_by: bool
    cluster_id: int | None = None
    endpoints: tuple[str, ...] = ()
    expires: datetime | None = None
    problem: str = ""


def list_connections(context: Context, now: datetime) -> list[Connection]:
    """Every connection of `context`, by name. Raises Invalid, Unavailable where its files are unusable."""
    folder = read_peers(context.peers, context.name)
    prefix = remote_user("")
    readers = {u.name.removeprefix(prefix) for u in read_users(context.users_file) if u.name.startswith(prefix)}
    names = readers | folder.peers.keys() | {p.name for p in folder.problems}
    return [_connection(name, folder, name in readers, now) for name in sorted(names)]


def _connection(name: str, folder: PeersFolder, read_by: bool, now: datetime) -> Connection:
    problem = "; ".join(str(p.error) for p in folder.problems if p.name == name)
    peer = folder.peers.get(name)
    if peer is None:
        return Connection(name=name, reads=False, read_by=read_by, problem=problem)
    expires, fault = _credentials(peer, now)
    return Connection(
        name=name,
        reads=True,
        read_by=read_by,
        cluster_id=peer.cluster_id,
        endpoints=peer.endpoints,
        expires=expires,
        problem=problem or fault,
    )


def _credentials(peer: PeerFile, now: datetime) -> tuple[datetime | None, str]:
    """When the certificate shown to `peer` ends, and why it would not be taken."""
    if peer.cert is None:
        return None, ""
    expires = None
    try:
        certificate = read_certificates(read_bytes(peer.cert), str(peer.cert))[0]
        expires = facts(certificate, str(peer.cert)).not_after
        # Where each cluster has its own authority, the peer's signed what is shown to the peer. With a shared one, too.
        if peer.ca is not None:
            check_leaf(certificate, read_certificates(read_bytes(peer.ca), str(peer.ca)), now, str(peer.cert))
    except (CertsError, ClusterMeshError) as e:
        return expires, str(e)
    return expires, ""
