"""What was found about a subject: by an agent of its own node, and in etcds. Data, as it goes over the agent's socket.

Addresses are spelled; times are Unix seconds. A sentence is "" where there is nothing to say.
"""

from __future__ import annotations

from msgspec import Struct


class Seen(Struct, frozen=True):
    """When something was seen: at a moment; or no more is known than that it was `after` one, or `by` another."""

    at: float | None = None
    after: float | None = None
    by: float | None = None


class Hop(Struct, frozen=True, kw_only=True):
    """A place that the subject was looked for at. `hop` is source, etcd, peer, cache, agent or kernel; `cluster` is
    whose word it is. What is not there has `present` False; what could not be looked at has an `error`."""

    hop: str
    cluster: str
    what: str
    says: str = ""
    present: bool = True
    seen: Seen = Seen()
    error: str = ""


class ClusterFacts(Struct, frozen=True, kw_only=True):
    """A cluster as it is read. `withheld`: its services wait for the first handshake with its nodes."""

    name: str
    own: bool = False
    state: str = ""
    since: float = 0.0
    error: str = ""
    withheld: bool = False


class NodeFacts(Struct, frozen=True, kw_only=True):
    """A Node, as what is on it depends on it: why it is `refused`, why there is no `tunnel` to it. `handshake` is when
    WireGuard last shook hands with it: 0 for never, None where nobody asked, or it is in no tunnel."""

    cluster: str
    name: str
    refused: str = ""
    tunnel: str = ""
    handshake: float | None = None

    @property
    def shown(self) -> str:
        return f"Node {self.name} of {self.cluster}"


class BackendFacts(Struct, frozen=True, kw_only=True):
    """`ports` by name, as 8080/TCP; `nodes` are those that have the address, or want it; `standing` is the one that
    does have it; `ours`: a service of this cluster is called there."""

    address: str
    ports: dict[str, str] = {}
    nodes: tuple[NodeFacts, ...] = ()
    standing: NodeFacts | None = None
    ours: bool = False


class ServiceFacts(Struct, frozen=True, kw_only=True):
    """A service as one cluster has it. `refused` is what is said of the whole, or of some of its backends."""

    cluster: str
    is_global: bool = True
    shared: bool = True
    affinity: str = "none"
    frontends: dict[str, dict[str, str]] = {}
    backends: tuple[BackendFacts, ...] = ()
    refused: str = ""


class FrontendFacts(Struct, frozen=True, kw_only=True):
    """One place where a service is called, as 10.96.0.1:80/TCP. `wanted` are the backends that it is to have,
    `kernel` those that it has, None where no agent was asked; each as "10.2.0.5:8080 beta".

    `rivals` are other services that claim it, the one that has it first; `left_out` is why this node cannot serve it.
    """

    at: str
    wanted: tuple[str, ...] = ()
    kernel: tuple[str, ...] | None = None
    rivals: tuple[str, ...] = ()
    left_out: str = ""
    error: str = ""


class ServiceCase(Struct, frozen=True, kw_only=True):
    """A service, over all clusters: the own one's first."""

    namespace: str
    name: str
    said: tuple[ServiceFacts, ...] = ()
    frontends: tuple[FrontendFacts, ...] = ()
    garbled: dict[str, str] = {}  # by cluster
    dropped: dict[str, str] = {}  # by cluster
    problem: str = ""  # planning it failed

    @property
    def shown(self) -> str:
        return f"{self.namespace}/{self.name}"


class EndpointFacts(Struct, frozen=True, kw_only=True):
    """Who one cluster says is at an address."""

    cluster: str
    identity: int
    labels: tuple[str, ...] = ()
    pod: str = ""
    refused: str = ""
    nodes: tuple[NodeFacts, ...] = ()
    standing: NodeFacts | None = None


class EntryFacts(Struct, frozen=True, kw_only=True):
    """What the ipcache has for an address, by itself or by the CIDR around it."""

    prefix: str
    identity: int
    node: str = ""
    encrypted: bool = False


class AddressCase(Struct, frozen=True, kw_only=True):
    """An address. `at` are Nodes whose own it is, `around` those in whose pod CIDRs it lies; `kernel` is the ipcache's
    entry; `lifeline` what this machine has to reach there; `attached` the pod that CNI gave it to on this node."""

    address: str
    endpoints: tuple[EndpointFacts, ...] = ()
    at: tuple[NodeFacts, ...] = ()
    around: tuple[NodeFacts, ...] = ()
    services: tuple[ServiceCase, ...] = ()
    kernel: EntryFacts | None = None
    asked_kernel: bool = False
    lifeline: str = ""
    attached: str = ""
    garbled: dict[str, str] = {}
    dropped: dict[str, str] = {}


class IdentityFacts(Struct, frozen=True, kw_only=True):
    """One identity. `clusters` say so; `addresses` are the first of those that have it, of `endpoints` in all, and
    `kernel` those of them that the ipcache gives it to, None where no agent was asked."""

    number: int
    labels: tuple[str, ...] = ()
    clusters: tuple[str, ...] = ()
    owner: str = ""
    reserved: bool = False
    endpoints: int = 0
    addresses: tuple[str, ...] = ()
    kernel: tuple[str, ...] | None = None
    refused: str = ""


class Facts(Struct, frozen=True, kw_only=True):
    """All about one subject. `node` is whose agent told, "" where an agent that began now was stood in for.

    `waiting` is why that agent is not ready yet.
    """

    own: str
    node: str = ""
    waiting: str = ""
    clusters: tuple[ClusterFacts, ...] = ()
    hops: tuple[Hop, ...] = ()
    services: tuple[ServiceCase, ...] = ()
    address: AddressCase | None = None
    identities: tuple[IdentityFacts, ...] = ()
