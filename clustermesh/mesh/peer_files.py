"""The peers folder: Cilium's clustermesh-config directory, one file per connected cluster.

    endpoints:                                      the peer's etcd
    - https://beta.mesh.cilium.io:2379
    trusted-ca-file: /etc/clustermesh/peers/beta.etcd-client-ca.crt
    key-file: /etc/clustermesh/peers/beta.etcd-client.key
    cert-file: /etc/clustermesh/peers/beta.etcd-client.crt
    cilium-host-aliases: {beta.mesh.cilium.io: {ips: [192.0.2.7]}}
    username: remote-alpha                          where etcd knows us by these; the certificate may be left out then
    password: secret

Cilium's rules (pkg/clustermesh/common/config.go): a file counts as a cluster iff its bytes contain "endpoints:"; the
file's name is the cluster's; the own name is ignored; SHA-256 decides what changed. Here one that is called like a
cluster and is none is a problem, and no cluster that was disconnected: it may be half written. The digest also covers
the credential files, so that renewed ones count as a change. Keys that Cilium does not know are ignored by it, so what
this project remembers of a peer stands in the same file: clustermesh-id, clustermesh-context, in
clustermesh-allow-prefixes where its pods may be beside the private ranges, and in clustermesh-limits how much it may
make this cluster remember, where that differs from the usual (nodes, identities, endpoints, services, listing-bytes,
value-bytes, service-backends, node-prefixes, and of all services, nodes or a mirror's copies together backends,
prefixes, copied-bytes, exports).
"""

from __future__ import annotations

import hashlib
import ipaddress
import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, NamedTuple

from msgspec import Struct
from msgspec.structs import asdict, replace

from clustermesh.address import Prefix, parse_prefix, prefix_text
from clustermesh.errors import ClusterMeshError, Invalid, Unavailable
from clustermesh.mesh.authority import Limits
from clustermesh.model import check_cluster_id, check_cluster_name
from clustermesh.store import endpoint as etcd_endpoint
from clustermesh.store.login import Login
from clustermesh.store.tls import Tls
from clustermesh.yaml_file import dump_yaml, mapping, number, parse_yaml, read_bytes, shown, text

MARK: Final = b"endpoints:"
_CREDENTIALS: Final = ("trusted-ca-file", "cert-file", "key-file")
_USER, _PASSWORD = "username", "password"
_ALIASES: Final = "cilium-host-aliases"
_ID: Final = "clustermesh-id"
_CONTEXT: Final = "clustermesh-context"
_ALLOWED: Final = "clustermesh-allow-prefixes"
_LIMITS: Final = "clustermesh-limits"


class PeerFile(Struct, frozen=True, kw_only=True):
    """One connected cluster: where its etcd is, and what to show there.

    `ca` is None only where every endpoint is http://, `cert` and `key` only there or with a `login`. `host_aliases`
    maps a host name to its addresses. `digest` changes when the file or one of the credentials does. `cluster_id` and
    `context` are what `connect` noted, `allowed` are prefixes that the operator named for its pods, `limits` what an
    operator may have changed.
    """

    name: str
    endpoints: tuple[str, ...]
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    login: Login | None = None
    digest: str = ""
    host_aliases: Mapping[str, tuple[str, ...]] = {}
    cluster_id: int | None = None
    context: Path | None = None
    allowed: tuple[Prefix, ...] = ()
    limits: Limits = Limits()

    @property
    def tls(self) -> Tls | None:
        """What is shown to the peer's etcd, and asked of it."""
        return None if self.ca is None else Tls(self.ca, self.cert, self.key)

    @property
    def credentials(self) -> tuple[Path, ...]:
        """The files beside this one that count."""
        return tuple(path for path in (self.ca, self.cert, self.key) if path is not None)


class PeerProblem(NamedTuple):
    """Why something is wrong with the file of the cluster `name`, or with the whole folder where that is "".

    A cluster with a problem was NOT removed.
    """

    name: str
    error: ClusterMeshError

    def __str__(self) -> str:
        return f"{self.name!r}: {self.error}" if self.name else str(self.error)


class PeersFolder(NamedTuple):
    """What the folder says: the clusters by name, and what is wrong.

    A file that cannot be understood is only among `problems`; one whose credentials cannot be read is in both.
    """

    peers: dict[str, PeerFile]
    problems: list[PeerProblem]


def read_peers(directory: Path, own_name: str) -> PeersFolder:
    """Every connected cluster in `directory`. Never raises for a file in it, whatever it holds.

    Raises Unavailable when the folder itself cannot be read, which must not be taken for "no peers".
    """
    try:
        names = sorted(os.listdir(directory))
    except OSError as e:
        raise Unavailable(f"{directory}: {e.strerror}") from e
    found = PeersFolder({}, [])
    for name in names:
        # Dot files are those of a Secret volume's swap, and of writers that were killed.
        if name != own_name and not name.startswith(".") and not os.path.isdir(directory / name):
            _read_one(directory, name, found)
    return found


def _read_one(directory: Path, name: str, found: PeersFolder) -> None:
    try:
        data = read_bytes(directory / name)
        if MARK not in data:
            _check_means_no_cluster(name)
            return
        peer = parse_peer(name, data, directory)
        digest, unreadable = _digest(data, peer)
    except ClusterMeshError as e:
        found.problems.append(PeerProblem(name, e))
        return
    found.problems.extend(PeerProblem(name, error) for error in unreadable)
    found.peers[name] = replace(peer, digest=digest)


def _check_means_no_cluster(name: str) -> None:
    """Raises Invalid for what is called like a cluster: that it is empty means nothing, somebody may be writing it."""
    try:
        check_cluster_name(name)
    except Invalid:
        return  # credentials, whose names have dots, and whatever else is there
    raise Invalid("endpoints", None, "must be there: remove the file to disconnect the cluster")


@lru_cache(1024)  # the folder is read every second, and hardly ever changes
def parse_peer(name: str, data: bytes, directory: Path) -> PeerFile:
    """The peer that the file `name` with the bytes `data` describes, without digest. Raises Invalid.

    A relative credential path is taken from `directory`.
    """
    check_cluster_name(name)
    document = mapping(parse_yaml(data, name), name)
    endpoints = _endpoints(document.get("endpoints"))
    login = _login(document.get(_USER), document.get(_PASSWORD))
    given = {key: document.get(key) for key in _CREDENTIALS}
    secure = any(endpoint.startswith("https:") for endpoint in endpoints)
    paths = dict[str, Path]()
    if secure or any(given.values()):
        shown_none = login is not None and not any(list(given.values())[1:])
        wanted = _CREDENTIALS[:1] if shown_none else _CREDENTIALS
        paths = {key: _path(directory, given[key], key) for key in wanted}
    cluster_id, context = document.get(_ID), document.get(_CONTEXT)
    return PeerFile(
        name=name,
        endpoints=endpoints,
        ca=paths.get("trusted-ca-file"),
        cert=paths.get("cert-file"),
        key=paths.get("key-file"),
        login=login,
        host_aliases=_aliases(document.get(_ALIASES)),
        cluster_id=None if cluster_id is None else check_cluster_id(number(cluster_id, _ID), 511),
        context=None if context is None else Path(text(context, _CONTEXT)),
        allowed=_prefixes(document.get(_ALLOWED)),
        limits=read_limits(document.get(_LIMITS)),
    )


def encode_peer(peer: PeerFile) -> bytes:
    """The file of `peer`, as Cilium reads it."""
    document: dict[str, Any] = {"endpoints": list(peer.endpoints)}
    for key, path in (("trusted-ca-file", peer.ca), ("key-file", peer.key), ("cert-file", peer.cert)):
        if path is not None:
            document[key] = str(path)
    if peer.login is not None:
        document |= {_USER: peer.login.name, _PASSWORD: peer.login.password}
    if peer.host_aliases:
        document[_ALIASES] = {host: {"ips": list(ips)} for host, ips in peer.host_aliases.items()}
    if peer.cluster_id is not None:
        document[_ID] = peer.cluster_id
    if peer.context is not None:
        document[_CONTEXT] = str(peer.context)
    if peer.allowed:
        document[_ALLOWED] = [prefix_text(prefix) for prefix in peer.allowed]
    if changed := {
        name: most for name, most in spell_limits(peer.limits).items() if most != spell_limits(Limits())[name]
    }:
        document[_LIMITS] = changed
    return dump_yaml(document)


def read_limits(value: object, field: str = _LIMITS) -> Limits:
    """Those that are named; the others are the usual ones. Raises Invalid, which says where in `field`."""
    named, usual = {} if value is None else mapping(value, field), spell_limits(Limits())
    for name, most in named.items():
        if name not in usual or number(most, f"{field}.{shown(name)}") < 1:
            raise Invalid(f"{field}.{shown(name)}", shown(most), f"must be one or more of {', '.join(usual)}")
    kept = usual | named
    rest = {name.replace("-", "_"): kept[name] for name in kept.keys() - Limits().keys.keys()}
    return Limits(keys={kind: kept[kind] for kind in Limits().keys}, **rest)


def spell_limits(limits: Limits) -> dict[str, Any]:
    """As the file has them."""
    fields = asdict(limits)
    return {**fields.pop("keys"), **{name.replace("_", "-"): most for name, most in fields.items()}}


def _prefixes(value: object) -> tuple[Prefix, ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise Invalid(_ALLOWED, shown(value), "must be a list of prefixes, like 203.0.113.0/24")
    return tuple(parse_prefix(text(item, f"{_ALLOWED}[{i}]"), f"{_ALLOWED}[{i}]") for i, item in enumerate(value))


def _endpoints(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        said = etcd_endpoint.without_login(value) if isinstance(value, str) else value
        raise Invalid(
            "endpoints", "a mapping" if isinstance(value, dict) else said, "must be a list of at least one URL"
        )
    return tuple(str(etcd_endpoint.parse(text(item, f"endpoints[{i}]"))) for i, item in enumerate(value))


def _login(user: object, password: object) -> Login | None:
    if user is None and password is None:
        return None
    for key, value in ((_USER, user), (_PASSWORD, password)):
        if not isinstance(value, str) or not value:
            raise Invalid(
                key, "hidden" if value else value, "must be a text, given with the other of username, password"
            )
    return Login(str(user), str(password))


def _path(directory: Path, value: object, key: str) -> Path:
    if value is None:
        raise Invalid(
            key, None, "must be given: an https:// endpoint takes a CA, a certificate and a key, or a CA and a username"
        )
    path = text(value, key)
    if not path or "\0" in path:
        raise Invalid(key, path, "must be the path of a file")
    return directory / path


def _aliases(value: object) -> dict[str, tuple[str, ...]]:
    """Both shapes seen: a mapping {host: {ips: [...]}} (chart) and a list of {hostname, ips} (Cilium 1.20)."""
    if value is None:
        return {}
    if isinstance(value, dict):
        entries = [(host, mapping(entry, f"{_ALIASES}.{shown(host)}").get("ips")) for host, entry in value.items()]
    elif isinstance(value, list):
        listed = [mapping(entry, f"{_ALIASES}[{i}]") for i, entry in enumerate(value)]
        entries = [(entry.get("hostname"), entry.get("ips")) for entry in listed]
    else:
        raise Invalid(_ALIASES, shown(value), "must be a mapping by host name, or a list of {hostname, ips}")
    return {text(host, f"{_ALIASES} hostname").lower(): _ips(ips, f"{_ALIASES}.{host}") for host, ips in entries}


def _ips(value: object, field: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        raise Invalid(f"{field}.ips", shown(value), "must be a list of at least one address")
    try:
        return tuple(str(ipaddress.ip_address(text(item, f"{field}.ips"))) for item in value)
    except ValueError as e:
        raise Invalid(f"{field}.ips", shown(value), "must be IP addresses") from e


def _digest(data: bytes, peer: PeerFile) -> tuple[str, list[ClusterMeshError]]:
    whole, unreadable = hashlib.sha256(hashlib.sha256(data).digest()), list[ClusterMeshError]()
    for path in peer.credentials:
        try:
            whole.update(hashlib.sha256(read_bytes(path)).digest())
        except ClusterMeshError as e:
            whole.update(b"absent")
            unreadable.append(e)
    return whole.hexdigest(), unreadable
