"""Which endpoints and backends of a peer are used: those where it holds the address. Pure; the state keeps what is
decided, and asks again where an address changed hands."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from msgspec.structs import replace

from clustermesh.address import Address, text
from clustermesh.mesh.admission import Admission
from clustermesh.mesh.refusals import Reason, Refusal
from clustermesh.model import Endpoint, Port, Service
from clustermesh.wire.numbering import REMOTE_NODE

_SHOWN: Final = 5
_FOREIGN: Final = Refusal(Reason.NOT_HELD, "is no address of a node of its cluster, nor in a pod CIDR of one")
_NO_POD: Final = Refusal(
    Reason.NOT_HELD, "is the address of a node: only the node itself, or what shares its network, can be there"
)


def judge_endpoint(admission: Admission, cluster: str, address: Address, endpoint: Endpoint) -> Refusal | None:
    """Why what `cluster` says is at `address` is not used. The own cluster's may be anywhere but at a peer's."""
    holder = admission.claims.owner(address)
    if cluster == admission.own:
        taken = holder is not None and holder.cluster != cluster
        return Refusal(Reason.TAKEN, f"is at an address of {holder}") if taken else None
    if holder is None or holder.cluster != cluster:
        return _FOREIGN
    if endpoint.identity == REMOTE_NODE:
        return None
    if endpoint.host_ip != address and address in admission.standing[holder].addresses:
        return _NO_POD
    allotted = admission.authority(cluster).identities
    if endpoint.identity in allotted:
        return None
    why = f"identity {endpoint.identity} is not from {allotted[0]} to {allotted[-1]}, the range of {cluster}"
    return Refusal(Reason.IDENTITY, why)


def trim(admission: Admission, cluster: str, service: Service) -> tuple[Service, Refusal | None]:
    """`service` of a peer without the backends that are not its to name, itself where there are none; and why."""
    backends, limit = service.backends, admission.authority(cluster).limits.service_backends
    if len(backends) > limit:
        why = f"has {len(backends)} backends, and the limit is {limit}"
        return replace(service, backends={}), Refusal(Reason.LIMIT, why)
    owner = admission.claims.owner
    foreign = {address for address in backends if (holder := owner(address)) is None or holder.cluster != cluster}
    foreign |= backends.keys() & admission.served
    kept = {address: ports for address, ports in backends.items() if address not in foreign} if foreign else backends
    reachable = _without_port_zero(kept)
    if foreign:
        shown = ", ".join(text(address) for address in sorted(foreign)[:_SHOWN])
        why = f"{len(foreign)} of its backends are at no address of its cluster: {shown}"
        return replace(service, backends=reachable), Refusal(Reason.NOT_HELD, why)
    if reachable is backends:
        return service, None
    return replace(service, backends=reachable), Refusal(Reason.PORT, "some of its backends are at port 0")


def _without_port_zero(backends: Mapping[Address, Mapping[str, Port]]) -> Mapping[Address, Mapping[str, Port]]:
    """`backends` itself where there is none."""
    if all(port.port for ports in backends.values() for port in ports.values()):
        return backends
    return {address: {name: port for name, port in ports.items() if port.port} for address, ports in backends.items()}
