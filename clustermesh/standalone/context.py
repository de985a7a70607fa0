"""A cluster described by a folder, without Kubernetes.

DIR/cluster.yaml   name, id, endpoint, maxConnectedClusters
DIR/manifests/     Kubernetes YAML: the API server's source
DIR/users.yaml     which peers may read this cluster (see `clustermesh.standalone.users_file`)
DIR/certs/         the cluster's authority and its leaves (see `certs`)
DIR/peers/         one file per connected cluster and its credentials (see `clustermesh.mesh.peer_files`)
DIR/etcd/          data of the local etcd
"""

from __future__ import annotations

import fcntl
import os
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from msgspec import Struct

from certs.files import private_folder, sweep, sync_folder, write_atomically
from clustermesh.errors import Invalid, Refused, Unavailable
from clustermesh.model import MAX_CLUSTERS, Cluster, check_cluster_id, check_cluster_name
from clustermesh.store import endpoint as etcd_endpoint
from clustermesh.store.endpoint import Endpoint
from clustermesh.yaml_file import dump_yaml, mapping, number, parse_yaml, read_bytes, shown, text

DEFAULT_FOLDER: Final = Path("/etc/clustermesh")
CHART_PEERS: Final = Path("/var/lib/cilium/clustermesh")
"""Where Cilium's chart puts the connected clusters, for who has no folder of its own."""
CLUSTER_FILE: Final = "cluster.yaml"
LOCK_PATIENCE: Final = 30.0
_READABLE: Final = 0o644  # no secret in it, and `status` runs as anyone
_NOWHERE: Final = frozenset({"0.0.0.0", "::"})
_HOST: Final = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9.]*[A-Za-z0-9])?|[0-9A-Fa-f:.]+")
_PORT: Final = re.compile(r":0*([0-9]*)/?$")
_KEYS: Final = ("name", "id", "endpoint", "maxConnectedClusters")


class Context(Struct, frozen=True, kw_only=True):
    """One cluster's folder, absolute and without symlinks.

    `endpoint` is where peers reach its etcd; `max_clusters` is 255 or 511.
    """

    path: Path
    name: str
    id: int
    endpoint: str
    max_clusters: int = MAX_CLUSTERS

    @property
    def cluster(self) -> Cluster:
        """The cluster as the rest of the project names it."""
        return Cluster(name=self.name, id=self.id, max_clusters=self.max_clusters)

    @property
    def address(self) -> Endpoint:
        """`endpoint`, taken apart."""
        return parse_address(self.endpoint)

    @property
    def manifests(self) -> Path:
        """Kubernetes YAML of this cluster."""
        return self.path / "manifests"

    @property
    def users_file(self) -> Path:
        """Cilium's clustermesh-remote-users: which peers may read."""
        return self.path / "users.yaml"

    @property
    def certs(self) -> Path:
        """The authority and the leaves; 0700."""
        return self.path / "certs"

    @property
    def peers(self) -> Path:
        """Cilium's clustermesh-config directory; 0700."""
        return self.path / "peers"

    @property
    def etcd(self) -> Path:
        """Data of the local etcd."""
        return self.path / "etcd"

    @property
    def ca(self) -> Path:
        """The certificates this cluster's own clients trust."""
        return self.certs / "ca.crt"

    def certificate(self, name: str) -> Path:
        """The certificate `name`: server, admin, local or remote."""
        return self.certs / f"{name}.crt"

    def key(self, name: str) -> Path:
        """The key of the certificate `name`."""
        return self.certs / f"{name}.key"


def load(path: Path) -> Context:
    """The cluster described at `path`. Raises Invalid when there is none or it breaks a rule, Unavailable."""
    file = path / CLUSTER_FILE
    if not file.exists():
        new = f"`clustermesh init {path} --name NAME --id NUMBER --endpoint https://HOST:2379` makes one"
        instead = "give the folder that it is in" if path.is_file() else f"give another folder, or {new}"
        raise Invalid("context", str(path), f"no cluster here (no {CLUSTER_FILE}); {instead}")
    document = mapping(parse_yaml(read_bytes(file), str(file)), str(file))
    for key in document:
        if key not in _KEYS:
            raise Invalid(f"{file}: {key}", shown(document[key]), f"unknown key; the keys are {', '.join(_KEYS)}")
    for key in _KEYS[:3]:
        if key not in document:
            raise Invalid(f"{file}: {key}", None, "must be given")
    try:
        return _checked(
            path,
            text(document["name"], "name"),
            number(document["id"], "id"),
            text(document["endpoint"], "endpoint"),
            number(document.get("maxConnectedClusters", MAX_CLUSTERS), "maxConnectedClusters"),
        )
    except Invalid as e:
        raise Invalid(f"{file}: {e.field}", e.value, e.rule) from e


def create(path: Path, name: str, cluster_id: int, endpoint: str, max_clusters: int = MAX_CLUSTERS) -> Context:
    """Make the folder of a new cluster; the same again changes nothing. Certificates are made by `certs.folder`.

    Raises Invalid for a bad value, Refused when another cluster is described there, Unavailable when writing fails.
    """
    context = _checked(path, name, cluster_id, endpoint, max_clusters)
    _check_place(path)
    if (path / CLUSTER_FILE).exists() and (there := load(path)) != context:
        raise Refused(
            f"{path}: describes the cluster {there.name!r} already (id {there.id}, {there.endpoint}, "
            f"maxConnectedClusters {there.max_clusters}); "
            f"change {CLUSTER_FILE} by hand, or take another folder"
        )
    try:
        context.manifests.mkdir(parents=True, exist_ok=True)
        private_folder(context.certs)
        private_folder(context.peers)
        if not context.users_file.exists():
            write_atomically(context.users_file, dump_yaml({"users": []}), _READABLE)
        if not (path / CLUSTER_FILE).exists():  # last: a folder with this file is a whole one
            write_atomically(path / CLUSTER_FILE, _encode(context), _READABLE)
        sync_folder(context.path.parent)
    except OSError as e:
        raise Unavailable(f"{e.filename or path}: {e.strerror}") from e
    return context


@contextmanager
def locked(*contexts: Context) -> Iterator[None]:
    """Hold these folders alone, so that two commands at once do not undo each other; waits for another at most 30 s.

    Raises Unavailable when a folder cannot be opened or stays taken.
    """
    with ExitStack() as stack:
        # In one order everywhere, so that two commands with the same folders never wait for each other.
        for path in sorted({context.path for context in contexts}):
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                stack.callback(os.close, descriptor)
                _lock(descriptor, path)
                for folder in (path, path / "peers"):
                    sweep(folder)
            except OSError as e:
                raise Unavailable(f"{path}: {e.strerror}") from e
        yield


def parse_address(value: str, field: str = "endpoint") -> Endpoint:
    """Where peers reach an etcd: https, always; scheme and port (2379) may be left out. Raises Invalid."""
    rule = "must be https://HOST:PORT, for peers are told apart by their certificates"
    if (number := _PORT.search(value)) and not (len(number[1]) <= 5 and 0 < int(number[1] or "0") <= 65535):
        rule = "must have a port from 1 to 65535"
    try:
        parsed = etcd_endpoint.parse(value if "://" in value else f"https://{value}")
    except Invalid as e:
        raise Invalid(field, etcd_endpoint.without_login(value), rule) from e
    if not parsed.secure or not _HOST.fullmatch(parsed.host):
        raise Invalid(field, etcd_endpoint.without_login(value), rule)
    if parsed.host in _NOWHERE:
        raise Invalid(field, value, "must be an address where others reach it; this one is where to listen")
    return parsed


def _lock(descriptor: int, path: Path) -> None:
    deadline = time.monotonic() + LOCK_PATIENCE
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise Unavailable(
                    f"{path}: another clustermesh command is at work here; try again when it is done"
                ) from None
            time.sleep(0.02)


def _checked(path: Path, name: str, cluster_id: int, endpoint: str, max_clusters: int) -> Context:
    if max_clusters not in (255, 511):
        raise Invalid("maxConnectedClusters", max_clusters, "must be 255 or 511, the same in every cluster of a mesh")
    return Context(
        path=path.resolve(),
        name=check_cluster_name(name),
        id=check_cluster_id(cluster_id, max_clusters),
        endpoint=str(parse_address(endpoint)),
        max_clusters=max_clusters,
    )


def _check_place(path: Path) -> None:
    nearest = next(each for each in (path, *path.absolute().parents) if os.path.lexists(each))
    if not os.path.isdir(nearest):  # where one may not look, Path.is_dir raises
        raise Invalid("DIR", str(path), f"must be a folder, or a new one: {nearest} is none; give another DIR")


def _encode(context: Context) -> bytes:
    values = (context.name, context.id, context.endpoint, context.max_clusters)
    return dump_yaml(dict(zip(_KEYS, values, strict=True)))
