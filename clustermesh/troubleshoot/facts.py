"""What was found out about one peer. Whatever could not be asked is None, or has its error beside it."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from clustermesh.mesh.peer_files import PeerFile


class CertificateFacts(Struct, frozen=True):
    """A certificate's common name, that of who signed it, when it ends (Unix seconds), and the hosts it is for."""

    name: str
    issuer: str
    until: float
    hosts: tuple[str, ...] = ()


class EndpointFacts(Struct, frozen=True, kw_only=True):
    """One etcd address of a peer. An error is "" where that step went well, or was not come to.

    `addresses` are those that are dialled, `answering` those of them that work, and `dead` says what is wrong with the
    others; `ahead` is how far the other side's clock is ahead of ours, in seconds.
    """

    url: str
    host: str
    addresses: tuple[str, ...] = ()
    answering: tuple[str, ...] = ()
    dead: str = ""
    dns_error: str = ""
    tcp_error: str = ""
    tls_error: str = ""
    shown: CertificateFacts | None = None
    ahead: float | None = None


class EtcdFacts(Struct, frozen=True, kw_only=True):
    """What the peer's etcd said. `refused` are the keys and prefixes that the user may not read, out of `asked`."""

    error: str = ""
    version: str = ""
    leader: bool = True
    alarms: tuple[str, ...] = ()
    asked: int = 0
    refused: tuple[str, ...] = ()
    config: bytes | None = None
    heartbeat: bytes | None = None
    canaries: frozenset[bytes] = frozenset()
    counts: Mapping[str, int] = {}


class AgentFacts(Struct, frozen=True):
    """The peer as the agent of this node sees it."""

    state: str
    error: str = ""
    refused: int = 0
    counts: Mapping[str, int] = {}


class Facts(Struct, frozen=True, kw_only=True):
    """All about the peer `name` at `now` (Unix seconds). `file` is None where its file cannot be understood.

    `own` is the certificate that is shown to it, `trusted` are the names of the authorities that its own must come
    from; `cached` is what a mirror keeps of it in the own etcd, `behind` in which state that has it, "" where it is
    followed.
    """

    name: str
    now: float
    file: PeerFile | None = None
    problems: tuple[str, ...] = ()
    endpoints: tuple[EndpointFacts, ...] = ()
    own: CertificateFacts | None = None
    own_error: str = ""
    trusted: tuple[str, ...] = ()
    etcd: EtcdFacts | None = None
    agent: AgentFacts | None = None
    cached: Mapping[str, int] | None = None
    cached_error: str = ""
    behind: str = ""
