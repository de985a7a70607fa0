"""What a server or agent has to be told of its own cluster, wherever that is written down: a folder, or flags."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

from msgspec import Struct

from clustermesh.errors import Invalid
from clustermesh.mesh.ownership import Ownership
from clustermesh.mesh.peer_files import parse_peer
from clustermesh.model import MAX_CLUSTERS, Cluster, check_cluster_id, check_cluster_name
from clustermesh.standalone.context import Context
from clustermesh.store.client import EtcdClient
from clustermesh.store.login import Login
from clustermesh.store.tls import Tls
from clustermesh.wire.numbering import cluster_shift
from clustermesh.yaml_file import read_bytes

ETCD_CONFIG: Final = "etcd.config"
_TUNING: Final = frozenset({"etcd.qps", "etcd.bootstrapQps", "etcd.maxInflight", "etcd.limit"})
"""What Cilium's own client is slowed down by; ours is bound by etcd alone."""


class Settings(Struct, frozen=True, kw_only=True):
    """The cluster, and its own etcd.

    `users_file` says which peers may read. Where there is none, or who we are says a `login` or nobody, the etcd is
    somebody else's to look after: its roles and users are left alone.
    """

    cluster: Cluster
    endpoints: tuple[str, ...]
    tls: Tls | None = None
    login: Login | None = None
    users_file: Path | None = None

    @property
    def manages_users(self) -> bool:
        return self.tls is not None and self.login is None and self.users_file is not None

    def client(self, timeout: float = 5.0) -> EtcdClient:
        """A client of the own etcd."""
        return EtcdClient(self.endpoints, self.tls, timeout=timeout, login=self.login)

    def ownership(self, client: EtcdClient) -> Ownership:
        """Whose the own etcd is, as `client` finds it."""
        return Ownership(client, self.cluster, ", ".join(self.endpoints))


def of_folder(context: Context, leaf: str = "admin") -> Settings:
    """Those of a cluster that is a folder, for who shows its certificate `leaf`."""
    return Settings(
        cluster=context.cluster,
        endpoints=(context.endpoint,),
        tls=Tls(context.ca, context.certificate(leaf), context.key(leaf)),
        users_file=context.users_file,
    )


def of_flags(
    name: str, cluster_id: int, options: Iterable[str], users_file: Path | None = None, most: int = MAX_CLUSTERS
) -> Settings:
    """Those that Cilium's clustermesh-apiserver takes as flags; `options` are its --kvstore-opt, each "key=value".

    etcd.config names a file of etcd's client: endpoints, trusted-ca-file, cert-file, key-file, username, password.
    Raises Invalid, and Unavailable where that file cannot be read.
    """
    cluster_shift(most)
    cluster = Cluster(name=check_cluster_name(name), id=check_cluster_id(cluster_id, most), max_clusters=most)
    config = _etcd_config(options)
    try:
        etcd = parse_peer(name, read_bytes(config), config.parent)
    except Invalid as e:
        raise Invalid(f"{config}: {e.field}", e.value, e.rule) from e
    return Settings(cluster=cluster, endpoints=etcd.endpoints, tls=etcd.tls, login=etcd.login, users_file=users_file)


def _etcd_config(options: Iterable[str]) -> Path:
    given = dict[str, str]()
    for option in options:
        for part in option.split(","):
            key, _, value = part.partition("=")
            if key != ETCD_CONFIG and key not in _TUNING:
                raise Invalid("--kvstore-opt", part, f"must be one of {', '.join(sorted({ETCD_CONFIG, *_TUNING}))}")
            given[key] = value
    if not given.get(ETCD_CONFIG):
        raise Invalid("--kvstore-opt", None, f"must have {ETCD_CONFIG}=FILE, where the own etcd is")
    return Path(given[ETCD_CONFIG])
