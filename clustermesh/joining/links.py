"""Who is to read whom, and what that takes: pure, from what was read of the clusters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from itertools import permutations

from msgspec import Struct
from msgspec.structs import replace

from certs.check import check_leaf, check_time, check_use, facts, read_certificates, read_pair, renewal_due
from certs.errors import CertsError
from certs.issue import issue
from certs.names import Leaf
from certs.names import remote as remote_leaf
from clustermesh.address import Prefix
from clustermesh.errors import ClusterMeshError
from clustermesh.joining import names
from clustermesh.joining.member import Entrance, Member
from clustermesh.mesh.authority import Limits
from clustermesh.mesh.peer_files import MARK, PeerFile, encode_peer, parse_peer
from clustermesh.mirror.agent_files import AgentAccess, agent_file
from clustermesh.standalone.users_file import readers_in

_AUTHORITY, _CERT, _KEY = "-ca.crt", ".crt", ".key"


class Mode(StrEnum):
    """Who reads whom, named as in Cilium. The source reads each destination, and these the source, and each other."""

    UNICAST = "unicast"
    BIDIRECTIONAL = "bidirectional"
    MESH = "mesh"


class Link(Struct, frozen=True):
    """`reader` is to read `owner` at `entrance`, whose pods may be in `allowed`, too."""

    reader: Member
    owner: Member
    entrance: Entrance
    allowed: tuple[Prefix, ...] = ()
    limits: Limits = Limits()


def pairs(source: Member, destinations: Sequence[Member], mode: Mode) -> list[tuple[Member, Member]]:
    """Reader and owner, for every link that `mode` wants."""
    if mode is Mode.MESH:
        return list(permutations((source, *destinations), 2))
    there = [(source, each) for each in destinations]
    return there if mode is Mode.UNICAST else [pair for each in there for pair in (each, each[::-1])]


def link(reader: Member, owner: Member, entrance: Entrance, allowed: Iterable[Prefix]) -> Link:
    """With what an earlier connection of the two allowed, and an operator may have changed."""
    before = known_peers(reader.entries).get(owner.name) or PeerFile(name=owner.name, endpoints=())
    return Link(reader, owner, entrance, tuple(dict.fromkeys((*before.allowed, *allowed))), before.limits)


def known_peers(entries: Mapping[str, bytes]) -> dict[str, PeerFile]:
    """The clusters that such a Secret names, without those whose entry cannot be understood."""
    return {name: peer for name, data in entries.items() if (peer := _parsed(name, data)) is not None}


def unreadable_peers(reader: Member) -> dict[str, ClusterMeshError]:
    """What is wrong with the entries that cannot be understood, which are no clusters for anyone."""
    return {
        name: error
        for name, data in reader.entries.items()
        if MARK in data and (error := _fault(name, data)) is not None
    }


def _parsed(name: str, data: bytes) -> PeerFile | None:
    return parse_peer(name, data, names.MOUNT) if MARK in data and _fault(name, data) is None else None


def _fault(name: str, data: bytes) -> ClusterMeshError | None:
    try:
        parse_peer(name, data, names.MOUNT)
    except ClusterMeshError as e:
        return e
    return None


def is_named(member: Member, cluster: str) -> bool:
    """Whether `member` lets `cluster` in, or has anything to read it by, understood or not. Raises Invalid."""
    readers = readers_in(member.users, names.USERS)
    return cluster in readers or cluster in member.peers or cluster in member.copied


def credentials(link: Link, now: datetime) -> dict[str, bytes]:
    """What the reader is to have for this owner alone: nothing where the two trust each other's authority, else what
    it has, if that is good for a while, or what the owner's authority signs now. Raises CertsError.
    """
    reader, owner = link.reader, link.owner
    if _is_common(reader, owner, now):
        return {}
    name, leaf = names.credentials_of(owner.name), remote_leaf(reader.name)
    cert, key = (reader.entries.get(name + end, b"") for end in (_CERT, _KEY))
    if not has_credentials(link, now):
        pair = issue(read_pair(owner.signer.cert, owner.signer.key, f"Secret {names.AUTHORITY}"), leaf, now)
        check_leaf(pair.certificate, read_certificates(owner.trusted, names.SERVER_CERT), now, leaf.common_name)
        cert, key = pair.certificate_pem, pair.key_pem
    return {name + _AUTHORITY: owner.trusted, name + _CERT: cert, name + _KEY: key}


def _is_common(reader: Member, owner: Member, now: datetime) -> bool:
    """Whether what the reader shows to everybody is taken by this owner, and the owner's by the reader."""
    try:
        owners = read_certificates(owner.trusted, owner.name)
        check_leaf(read_certificates(reader.remote.cert, reader.name)[0], owners, now, reader.name)
        readers = read_certificates(reader.remote.ca, reader.name)
        check_leaf(read_certificates(owner.server.cert, owner.name)[0], readers, now, owner.name)
    except CertsError:
        return False
    return True


def has_credentials(link: Link, now: datetime) -> bool:
    """Whether what the reader has for this owner alone is good for a while."""
    owner, leaf = link.owner, remote_leaf(link.reader.name)
    name = names.credentials_of(owner.name)
    cert, key = (link.reader.entries.get(name + end, b"") for end in (_CERT, _KEY))
    try:
        found = read_pair(cert, key, leaf.common_name).certificate
        check_use(found, leaf, leaf.common_name)
        check_leaf(found, read_certificates(owner.trusted, owner.name), now, leaf.common_name)
        signer = read_certificates(owner.signer.cert, owner.name)[0]
        check_time(signer, now, owner.name)
    except CertsError:
        return False
    # What ends with its authority cannot be given more time by issuing it again.
    return not (found.not_valid_after_utc < signer.not_valid_after_utc and renewal_due(found, now))


def check_server(link: Link, now: datetime) -> None:
    """CertsError unless the owner's etcd shows what the reader takes for its own: where its Secret is known."""
    server, hosts = link.owner.server, [url_host(url) for url in link.entrance.endpoints(link.owner.name)]
    if not server.cert or link.entrance.as_is:
        return
    where = f"Secret {names.SERVER_CERT}"
    found = read_certificates(server.cert, where)[0]
    check_leaf(found, read_certificates(link.owner.trusted, where), now, where)
    check_use(found, Leaf(facts(found, where).common_name, server=True, hosts=tuple(hosts)), where)


def url_host(url: str) -> str:
    """The host in a URL of `Entrance.endpoints`."""
    return url.removeprefix("https://").rpartition(":")[0]


def entries(link: Link, shown: Mapping[str, bytes]) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """What the reader's Secrets are to say of the owner, who is shown `shown`: its agents' and its mirror's."""
    peer = PeerFile(
        name=link.owner.name,
        endpoints=link.entrance.endpoints(link.owner.name),
        host_aliases=link.entrance.aliases(link.owner.name),
        cluster_id=link.owner.cluster.id,
        allowed=link.allowed,
        limits=link.limits,
    )
    return secrets_of(peer, shown, agent_access(link.reader) if link.reader.mirrored else None)


def secrets_of(
    peer: PeerFile, shown: Mapping[str, bytes], agents: AgentAccess | None
) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """What the Secrets of a cluster's agents and of its mirror say of `peer`, who is shown `shown`, or what everybody
    is; `agents` is how agents reach the mirror's copies, None where there is no mirror."""
    name = names.credentials_of(peer.name) if shown else names.COMMON
    ca, cert, key = (names.MOUNT / (name + end) for end in (_AUTHORITY, _CERT, _KEY))
    peer = replace(peer, ca=ca, cert=cert, key=key)
    whole = {peer.name: encode_peer(peer), **shown}
    return (whole, {}) if agents is None else ({peer.name: encode_peer(agent_file(peer, agents))}, whole)


def agent_access(reader: Member) -> AgentAccess:
    """How agents reach the mirror's copies in their own cluster."""
    if (own := reader.etcd) is not None:
        return AgentAccess(folder=names.MOUNT, endpoints=own.endpoints, ca=own.ca, cert=own.cert, key=own.key)
    return AgentAccess(
        folder=names.MOUNT,
        endpoints=(f"https://{names.API_SERVER}.{reader.namespace}.svc:{reader.port}",),
        ca=names.MOUNT / (names.LOCAL + _AUTHORITY),
        cert=names.MOUNT / (names.LOCAL + _CERT),
        key=names.MOUNT / (names.LOCAL + _KEY),
    )


def replaced(data: Mapping[str, bytes], peer: str, files: Mapping[str, bytes]) -> dict[str, bytes]:
    """`data` of a Secret, with `files` in the place of all that it has of `peer`."""
    return {key: value for key, value in data.items() if key not in entries_of(peer)} | dict(files)


def entries_of(peer: str) -> Iterator[str]:
    """What such a Secret may hold of `peer`."""
    yield peer
    yield from (names.credentials_of(peer) + end for end in (_AUTHORITY, _CERT, _KEY))
