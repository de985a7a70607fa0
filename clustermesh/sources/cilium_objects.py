"""Cilium's own resources, with the fields that its API server publishes (Cilium: pkg/k8s/apis/cilium.io)."""

from __future__ import annotations

from msgspec import Struct, field

from clustermesh.sources.metadata import Metadata


class CiliumAddress(Struct, frozen=True, gc=False):
    type: str = ""
    ip: str = ""


class AddressPair(Struct, frozen=True, gc=False):
    """One address of each family, "" for none."""

    ipv4: str = ""
    ipv6: str = ""


class Encryption(Struct, frozen=True, gc=False):
    key: int = 0


class Ipam(Struct, frozen=True, gc=False):
    pod_cidrs: list[str] = field(default_factory=list, name="podCIDRs")


class CiliumNodeSpec(Struct, frozen=True, gc=False):
    addresses: list[CiliumAddress] = []
    encryption: Encryption = Encryption()
    health: AddressPair = AddressPair()
    ingress: AddressPair = AddressPair()
    ipam: Ipam = Ipam()
    boot_id: str = field(default="", name="bootid")


class CiliumNode(Struct, frozen=True, gc=False):
    metadata: Metadata
    spec: CiliumNodeSpec = CiliumNodeSpec()


class CiliumIdentity(Struct, frozen=True, gc=False):
    """Its name is the number; a label is spelled "source:key"."""

    metadata: Metadata
    security_labels: dict[str, str] = field(default_factory=dict, name="security-labels")


class Networking(Struct, frozen=True, gc=False):
    addressing: list[AddressPair] = []
    node: str = ""


class EndpointIdentity(Struct, frozen=True, gc=False):
    id: int = 0


class CiliumEndpointStatus(Struct, frozen=True, gc=False):
    identity: EndpointIdentity | None = None
    networking: Networking | None = None
    encryption: Encryption = Encryption()


class CiliumEndpoint(Struct, frozen=True, gc=False):
    metadata: Metadata
    status: CiliumEndpointStatus = CiliumEndpointStatus()


class CoreEndpoint(Struct, frozen=True, gc=False):
    """One CiliumEndpoint of many, in a slice."""

    name: str = ""
    id: int = 0
    networking: Networking | None = None
    encryption: Encryption = Encryption()


class CiliumEndpointSlice(Struct, frozen=True, gc=False):
    """Endpoints of one namespace; not a namespaced object itself."""

    metadata: Metadata
    namespace: str = ""
    endpoints: list[CoreEndpoint] = []
