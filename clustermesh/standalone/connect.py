"""Connecting two clusters, and taking them apart: the order of the steps, and the files they write.

"A reads B" takes three things, written in this order:

    1. B/users.yaml                 names remote-A: B lets A in
    2. A/peers/B.etcd-client*       what A trusts and shows: B's authority, and a certificate for remote-A signed by it
    3. A/peers/B                    A begins to read B: the one file that makes B a peer, last

Taking apart goes the other way round. Each step is atomic and does nothing where its end is reached, so whatever
interrupts, the same command again goes on from there, and no reader ever sees a peer without its credentials.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path

from msgspec import Struct

from certs.check import check_leaf, check_server
from certs.errors import CertsError
from certs.files import private_folder, sync_folder, write_atomically
from certs.folder import leaf_fault, load_authority, trusted
from certs.issue import Pair, issue
from certs.names import remote
from certs.pair import certificate_file, key_file, load_pair, remove_pair, write_pair
from clustermesh.address import Prefix
from clustermesh.errors import ClusterMeshError, Refused, Unavailable
from clustermesh.mesh.authority import Limits
from clustermesh.mesh.peer_files import PeerFile, encode_peer, read_peers
from clustermesh.standalone.compatible import check_allowed, check_authority, check_newcomer, check_pair, known_clusters
from clustermesh.standalone.connections import list_connections
from clustermesh.standalone.context import Context, load, locked
from clustermesh.standalone.users_file import add_user, remote_user, remove_user


class Mode(StrEnum):
    """Who reads whom, named as in Cilium: unicast is only the source reading the destination."""

    UNICAST = "unicast"
    BIDIRECTIONAL = "bidirectional"


class Outcome(Struct, frozen=True):
    """What a command did, one sentence per change, and what it had to leave."""

    done: list[str]
    warnings: list[str]


class _Link(Struct, frozen=True):
    """`reader` is to read `owner`, whose pods may be in `allowed`, too."""

    reader: Context
    owner: Context
    allowed: tuple[Prefix, ...]
    limits: Limits


def connect(
    source: Context, destination: Context, mode: Mode, now: datetime, allowed: Sequence[Prefix] = ()
) -> Outcome:
    """Let `source` read `destination`, and the other way round if bidirectional; all is checked before any write.

    Each is reached at its `endpoint`. The other's pods may be in `allowed`, beside private ranges and what an earlier
    call named. Raises Invalid for clusters that cannot be in one mesh, Refused for certificates that would not work,
    Unavailable when writing fails.
    """
    with locked(source, destination):
        check_pair(source, destination)
        check_allowed(source, allowed, mode is Mode.BIDIRECTIONAL)
        wanted = [(source, destination)]
        if mode is Mode.BIDIRECTIONAL:
            wanted.append((destination, source))
        outcome, links = Outcome([], []), list[_Link]()
        for reader, owner in wanted:
            found = read_peers(reader.peers, reader.name)
            outcome.warnings.extend(f"{reader.peers}: {p}" for p in found.problems if p.name != owner.name)
            check_newcomer(reader, owner, known_clusters(found.peers))
            before = found.peers.get(owner.name) or PeerFile(name=owner.name, endpoints=())
            links.append(_Link(reader, owner, tuple(dict.fromkeys((*before.allowed, *allowed))), before.limits))
            check_authority(reader, owner, links[-1].allowed, found.peers)
        authorities = [_prepare(link, now) for link in links]
        for link, authority in zip(links, authorities, strict=True):
            with file_errors():
                _establish(link, authority, now, outcome.done)
        if mode is Mode.UNICAST and source.name not in read_peers(destination.peers, destination.name).peers:
            outcome.warnings.append(one_way((source.name, destination.name)))
        return outcome


def disconnect(source: Context, peer: str, destination: Context | None, mode: Mode) -> Outcome:
    """Take `source` and the cluster named `peer` apart, on the side of `source` first.

    With `destination` None, its folder being gone, only that side is done. What fails there is a warning, for it must
    not keep anyone from leaving a dead cluster. Raises Unavailable, Invalid for what fails on the side of `source`,
    Refused where nothing is left of a connection and no folder tells that the name is right.
    """
    outcome = Outcome([], [])
    both = mode is Mode.BIDIRECTIONAL
    with locked(source):
        with file_errors():
            _forget(source, peer, outcome.done)
        if both:
            _expel(source, peer, outcome.done)
    if destination is None:
        if not outcome.done:
            names = ", ".join(each.name for each in list_connections(source, datetime.now(UTC))) or "no cluster"
            raise Refused(f"{source.name} is not connected to {peer}; it is connected to: {names}")
        outcome.warnings.append(
            f"nothing was changed in {peer}: there, remove the user {remote_user(source.name)}"
            + (f" and disconnect {source.name}" if both else "")
        )
        return outcome
    try:
        with locked(destination):
            if both:
                with file_errors():
                    _forget(destination, source.name, outcome.done)
            _expel(destination, source.name, outcome.done)
    except ClusterMeshError as e:
        outcome.warnings.append(f"not all was undone in {peer}: {e}; run the same command again when that is repaired")
    return outcome


def find_destination(source: Context, folder: Path) -> tuple[str, Context | None]:
    """The cluster at `folder`, by name and, if it is still there, whole. Raises Refused when nothing tells its name, or
    it is connected under its name of before.
    """
    peers = read_peers(source.peers, source.name).peers
    try:
        destination = load(folder)
    except ClusterMeshError as e:
        for peer in peers.values():
            if peer.context == folder.resolve():
                return peer.name, None
        names = ", ".join(peers) or "none"
        raise Refused(f"{e}. To leave a cluster whose folder is gone, name it: --peer NAME (connected: {names})") from e
    if destination.name not in peers:
        _check_renamed(source, destination, peers)
    return destination.name, destination


def _check_renamed(source: Context, destination: Context, peers: Mapping[str, PeerFile]) -> None:
    """Raises Refused where `destination` is one of `peers`, by its name of before: only half of it would be left."""
    for name, peer in peers.items():
        # The folder alone may be another cluster's by now; no two that are connected have an id or endpoint in common.
        same = peer.cluster_id == destination.id or destination.endpoint in peer.endpoints
        if same and peer.context == destination.path:
            raise Refused(
                f"{source.name} is connected to {destination.name} under its name of before, {name}: run `clustermesh "
                f"disconnect --context {source.path} --peer {name}`, and then the same command again for what is left "
                f"in {destination.path}"
            )


def find_peer(source: Context, peer: str) -> Context | None:
    """The folder of the connected cluster `peer`, or None where it is not noted, gone, or another cluster's by now."""
    file = read_peers(source.peers, source.name).peers.get(peer)
    if file is None:
        return None
    return next((known.context for known in known_clusters({peer: file})), None)


def credential_name(peer: str) -> str:
    """What the files with the credentials for `peer` are called, without ending: Cilium's per-cluster form."""
    return f"{peer}.etcd-client"


def one_way(names: tuple[str, str]) -> str:
    """What comes of a reader and an owner that does not read it."""
    reader, owner = names
    return (
        f"{owner} does not read {reader}: its nodes make no way to the pods of {reader}, whose calls of {owner}'s "
        "backends nobody answers; without `--mode unicast` they are connected both ways"
    )


def _prepare(link: _Link, now: datetime) -> Pair:
    """Checks that the reader will get through to the owner: the handshake, before it is made. The owner's authority."""
    reader, owner = link.reader, link.owner
    try:
        authority = load_authority(owner.certs, now)
    except CertsError as e:
        raise Refused(f"{owner.name} cannot sign a certificate for {reader.name}: {e}") from e
    try:
        server = load_pair(owner.certs, "server").certificate
        check_leaf(server, trusted(owner.certs), now, str(certificate_file(owner.certs, "server")))
        check_server(server, owner.address.host, str(certificate_file(owner.certs, "server")))
    except CertsError as e:
        repair = f"clustermesh certs renew server --san {owner.address.host} --context {owner.path}"
        raise Refused(
            f"{reader.name} would not trust {owner.name} at {owner.endpoint}: {e}; repair it with `{repair}`"
        ) from e
    return authority


def _establish(link: _Link, authority: Pair, now: datetime, done: list[str]) -> None:
    reader, owner = link.reader, link.owner
    if add_user(owner.users_file, remote_user(reader.name)):
        done.append(f"{owner.name} lets {reader.name} in as the user {remote_user(reader.name)}")
    private_folder(reader.peers)
    name = credential_name(owner.name)
    if _write_changed(_authority_file(reader, owner.name), owner.ca.read_bytes()):
        done.append(f"{reader.name} trusts the authority of {owner.name}")
    fault = leaf_fault(reader.peers, name, remote(reader.name), authority, now)
    if fault:
        write_pair(reader.peers, name, issue(authority, remote(reader.name), now))
        done.append(f"{reader.name} has a new certificate for {owner.name} ({fault})")
    peer = PeerFile(
        name=owner.name,
        endpoints=(owner.endpoint,),
        ca=_authority_file(reader, owner.name),
        cert=certificate_file(reader.peers, name),
        key=key_file(reader.peers, name),
        cluster_id=owner.id,
        context=owner.path,
        allowed=link.allowed,
        limits=link.limits,
    )
    if _write_changed(reader.peers / owner.name, encode_peer(peer)):
        done.append(f"{reader.name} reads {owner.name} at {owner.endpoint}")


def _forget(reader: Context, peer: str, done: list[str]) -> None:
    """`reader` no longer reads `peer`: first the file that makes it a peer, then the credentials."""
    if not reader.peers.exists():
        return
    file = reader.peers / peer
    if file.exists():
        file.unlink()
        sync_folder(reader.peers)
        done.append(f"{reader.name} no longer reads {peer}")
    name = credential_name(peer)
    if list(reader.peers.glob(f"{name}[-.]*")):
        _authority_file(reader, peer).unlink(missing_ok=True)
        remove_pair(reader.peers, name)
        done.append(f"{reader.name} has removed its credentials for {peer}")


def _expel(owner: Context, peer: str, done: list[str]) -> None:
    if remove_user(owner.users_file, remote_user(peer)):
        done.append(f"{owner.name} no longer lets {peer} in")


def _authority_file(reader: Context, peer: str) -> Path:
    return certificate_file(reader.peers, f"{credential_name(peer)}-ca")


def _write_changed(path: Path, data: bytes) -> bool:
    # A file that is right already is not touched: its readers would take a new one for a change, and reconnect.
    if path.is_file() and path.read_bytes() == data:
        return False
    write_atomically(path, data)
    return True


@contextmanager
def file_errors() -> Iterator[None]:
    """What the disk refuses is Unavailable, with the file."""
    try:
        yield
    except OSError as e:
        raise Unavailable(f"{e.filename or 'file'}: {e.strerror}") from e
