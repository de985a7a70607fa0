"""A Pod with host ports -> what its node has at them. Pure.

It is told as a service of its own, by a name that no Service can have: only the pod's node acts on it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from clustermesh.address import Address
from clustermesh.errors import Invalid
from clustermesh.model import Cluster, HostPorts, LocalService, Port, Service
from clustermesh.sources.faults import Faults
from clustermesh.sources.objects import ContainerPort, Pod, Ref
from clustermesh.sources.pods import has_ended, pod_ips
from clustermesh.sources.rules import check_port, parse_ip, parse_protocol

KIND: Final = "HostPorts"
_SUFFIX: Final = ".host-ports"
_ANY: Final = ("", "0.0.0.0", "::")


def host_ports_ref(pod: Ref) -> Ref:
    """What names the service that stands for a pod."""
    return Ref(KIND, pod.namespace, pod.name + _SUFFIX)


def pod_ref(host_ports: Ref) -> Ref:
    """The inverse."""
    return Ref("Pod", host_ports.namespace, host_ports.name.removesuffix(_SUFFIX))


def has_host_ports(pod: Pod) -> bool:
    """Whether any port of the node leads to it; one on the host's network has its ports there anyway."""
    if not pod.spec.containers or pod.spec.host_network:
        return False
    return any(port.host_port for container in pod.spec.containers for port in container.ports)


def translate_host_ports(cluster: Cluster, ref: Ref, pod: Pod, faults: Faults) -> LocalService | None:
    """None for a pod that has ended, or is nowhere yet."""
    ips = list(pod_ips(pod))
    if pod.spec.host_network or has_ended(pod) or not (ips and pod.spec.node_name):
        return None
    here: dict[str, Port] = {}
    there: dict[str, Port] = {}
    addresses: dict[str, Address] = {}
    for field, port in _ports(pod):
        try:
            protocol, address = parse_protocol(f"{field}.protocol", port.protocol), _address(field, port.host_ip)
            name = f"{check_port(f'{field}.hostPort', port.host_port)}/{protocol}@{port.host_ip}".rstrip("@")
            target = check_port(f"{field}.containerPort", port.container_port)
        except Invalid as e:
            faults.note(ref, e)
            continue
        here[name] = Port(protocol=protocol, port=port.host_port)
        there[name] = Port(protocol=protocol, port=target)
        if address is not None:
            addresses[name] = address
    if not here:
        return None
    return LocalService(
        service=Service(
            cluster=cluster.name,
            cluster_id=cluster.id,
            namespace=ref.namespace,
            name=host_ports_ref(ref).name,
            backends=dict.fromkeys(ips, there),
            include_external=False,
            shared=False,
        ),
        host_ports=HostPorts(node=pod.spec.node_name, ports=here, addresses=addresses),
    )


def _ports(pod: Pod) -> Iterator[tuple[str, ContainerPort]]:
    """Those that the node has too, each with where it stands."""
    for number, container in enumerate(pod.spec.containers):
        for index, port in enumerate(container.ports):
            if port.host_port:
                yield f"spec.containers[{number}].ports[{index}]", port


def _address(field: str, text: str) -> Address | None:
    """None for all of the node's."""
    return None if text in _ANY else parse_ip(f"{field}.hostIP", text)
