"""What is known of one Kubernetes cluster that is to be joined with others. Values only; `reading` finds them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec import Struct

from clustermesh.address import is_address
from clustermesh.joining.names import MESH_DOMAIN
from clustermesh.mesh.peer_files import PeerFile
from clustermesh.model import Cluster
from clustermesh.standalone.pod_cidrs import PodCidr


class Entrance(Struct, frozen=True):
    """Where other clusters reach a cluster's etcd: host names or addresses, all at one port.

    `as_is` says that its certificate is good for all of them; else for names only, and for that of the cluster.
    """

    hosts: tuple[str, ...]
    port: int
    as_is: bool = False

    def endpoints(self, cluster: str) -> tuple[str, ...]:
        """As URLs. Addresses are not in the certificate of an API server's etcd, the cluster's name below the mesh's
        domain is."""
        shown, last = dict.fromkeys(self.name(host, cluster) for host in self.hosts), mesh_name(cluster)
        names = sorted(shown, key=lambda name: name == last)
        return tuple(
            f"https://[{name}]:{self.port}" if ":" in name else f"https://{name}:{self.port}" for name in names
        )

    def name(self, host: str, cluster: str) -> str:
        """What must be in the certificate that `host` shows."""
        return mesh_name(cluster) if is_address(host) and not self.as_is else host

    def aliases(self, cluster: str) -> dict[str, tuple[str, ...]]:
        """Which addresses the mesh name stands for."""
        addresses = () if self.as_is else tuple(host for host in self.hosts if is_address(host))
        return {mesh_name(cluster): addresses} if addresses else {}

    def __str__(self) -> str:
        return ", ".join(f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}" for host in self.hosts)


class Version(Struct, frozen=True):
    """What runs there: `product` is "clustermesh" or "cilium"."""

    product: str
    number: str

    @property
    def minor(self) -> tuple[int, int] | None:
        """None where it is no version, as of an image that somebody built."""
        parts = self.number.removeprefix("v").split(".")
        return (int(parts[0]), int(parts[1])) if len(parts) > 1 and all(p.isdecimal() for p in parts[:2]) else None


class CertFiles(Struct, frozen=True):
    """One Secret of certificates; what it lacks is empty."""

    ca: bytes = b""
    cert: bytes = b""
    key: bytes = b""


class Member(Struct, frozen=True, kw_only=True):
    """One cluster. `context` is as the user named it; `hidden` is why it has no `entrance`.

    `service` is the type of the API server's Service, "" where there is none, and `port` what it serves inside the
    cluster; `ready` of its `replicas` are ready. `peers` and `copied` are the Secrets of those names, `users` the file
    that names who may read; `helms` are those of the three that Helm keeps. `signer` may sign; `trusted` is what its
    etcd takes clients' certificates from. `etcd` is its etcd where the chart has not made it: `local` is that one's.
    `nodes` are the names of its Nodes.
    """

    context: str
    cluster: Cluster
    namespace: str
    encryption: str = "none"
    version: Version | None = None
    entrance: Entrance | None = None
    hidden: str = ""
    service: str = ""
    port: int = 2379
    etcd: PeerFile | None = None
    replicas: int = 0
    ready: int = 0
    mirrored: bool = False
    pod_cidrs: Sequence[PodCidr] = ()
    signer: CertFiles = CertFiles()
    trusted: bytes = b""
    server: CertFiles = CertFiles()
    remote: CertFiles = CertFiles()
    local: CertFiles = CertFiles()
    peers: Mapping[str, bytes] = {}
    copied: Mapping[str, bytes] = {}
    users: bytes = b""
    helms: tuple[str, ...] = ()
    nodes: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        return self.cluster.name

    @property
    def entries(self) -> Mapping[str, bytes]:
        """The Secret that says where peers really are."""
        return self.copied if self.mirrored else self.peers


def mesh_name(cluster: str) -> str:
    """What a cluster's etcd answers to wherever it is."""
    return f"{cluster}.{MESH_DOMAIN}"
