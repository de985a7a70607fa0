"""Reads what a Kubernetes cluster says of its mesh, from its ConfigMap, Secrets, Service, Deployment and Nodes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Final

from msgspec import Struct, field

from clustermesh.address import is_address, is_ipv4, parse, parse_prefix, to_int
from clustermesh.errors import Invalid, Refused
from clustermesh.joining import external, names
from clustermesh.joining.member import CertFiles, Entrance, Member, Version
from clustermesh.joining.objects import MANAGED_BY, ConfigMap, Meta, Objects, Secret
from clustermesh.model import MAX_CLUSTERS, Cluster, check_cluster_id, check_cluster_name
from clustermesh.standalone.pod_cidrs import PodCidr

_NODES: Final = 8
"""Nodes that are named where a node port leads to the etcd: any is enough, and a mesh has thousands."""
_IMAGES: Final = ("cilium", "clustermesh-apiserver", "operator")
"""How the names of Cilium's own images begin."""
_ENCRYPTION: Final = {"enable-wireguard": "WireGuard", "enable-ipsec": "IPsec"}


class _Ingress(Struct, frozen=True):
    ip: str = ""
    hostname: str = ""


class _Balancer(Struct, frozen=True):
    ingress: list[_Ingress] | None = None


class _ServiceStatus(Struct, frozen=True, rename="camel"):
    load_balancer: _Balancer = _Balancer()


class _Port(Struct, frozen=True, rename="camel"):
    name: str = ""
    port: int = 0
    node_port: int = 0


class _ServiceSpec(Struct, frozen=True, rename="camel"):
    type: str = "ClusterIP"
    cluster_ips: list[str] | None = field(default=None, name="clusterIPs")
    ports: list[_Port] | None = None
    external_traffic_policy: str = "Cluster"


class Service(Struct, frozen=True):
    """The Service of the API server, as far as it says where that is reached."""

    spec: _ServiceSpec = _ServiceSpec()
    status: _ServiceStatus = _ServiceStatus()


class _Address(Struct, frozen=True):
    type: str = ""
    address: str = ""


class _Ipam(Struct, frozen=True):
    pod_cidrs: list[str] | None = field(default=None, name="podCIDRs")


class _NodeSpec(Struct, frozen=True):
    pod_cidrs: list[str] | None = field(default=None, name="podCIDRs")
    unschedulable: bool = False
    ipam: _Ipam = _Ipam()


class _Condition(Struct, frozen=True):
    type: str = ""
    status: str = ""


class _NodeStatus(Struct, frozen=True):
    addresses: list[_Address] | None = None
    conditions: list[_Condition] | None = None


class Node(Struct, frozen=True):
    """A Node, or a CiliumNode, which has its pod CIDRs elsewhere."""

    metadata: Meta = Meta()
    spec: _NodeSpec = _NodeSpec()
    status: _NodeStatus = _NodeStatus()


class _Ready(Struct, frozen=True):
    ready: bool | None = None


class _Endpoint(Struct, frozen=True, rename="camel"):
    node_name: str = ""
    conditions: _Ready = _Ready()


class EndpointSlice(Struct, frozen=True):
    """On which nodes a Service's pods are."""

    endpoints: list[_Endpoint] | None = None


class _Container(Struct, frozen=True):
    name: str = ""
    image: str = ""


class _PodSpec(Struct, frozen=True):
    containers: list[_Container] = []


class _Template(Struct, frozen=True):
    spec: _PodSpec = _PodSpec()


class _DeploymentSpec(Struct, frozen=True):
    template: _Template = _Template()
    replicas: int = 1


class _DeploymentStatus(Struct, frozen=True, rename="camel"):
    ready_replicas: int = 0


class Deployment(Struct, frozen=True):
    """The Deployment of the API server."""

    metadata: Meta = Meta()
    spec: _DeploymentSpec = _DeploymentSpec()
    status: _DeploymentStatus = _DeploymentStatus()


async def read_member(objects: Objects, context: str) -> Member:
    """The cluster whose API is asked. Raises Refused where it has no mesh, Invalid for what breaks a rule there."""
    async with asyncio.TaskGroup() as group:
        config = group.create_task(objects.config(names.CONFIG))
        service = group.create_task(objects.read("services", names.API_SERVER, Service))
        deployment = group.create_task(objects.read("deployments", names.API_SERVER, Deployment, "apis/apps/v1"))
        authority = group.create_task(objects.secret(names.AUTHORITY))
        server = group.create_task(objects.secret(names.SERVER_CERT))
        remote = group.create_task(objects.secret(names.REMOTE_CERT))
        local = group.create_task(objects.secret(names.LOCAL_CERT))
        peers = group.create_task(objects.read("secrets", names.PEERS, Secret))
        copied = group.create_task(objects.read("secrets", names.COPIED, Secret))
        users = group.create_task(objects.read("configmaps", names.USERS, ConfigMap))
        nodes = group.create_task(objects.list("/api/v1/nodes", Node))
        cilium_nodes = group.create_task(objects.list("/apis/cilium.io/v2/ciliumnodes", Node))
    cluster = _cluster(config.result(), objects.namespace, context)
    found, exposed = deployment.result(), service.result()
    containers = set[str]() if found is None else {each.name for each in found.spec.template.spec.containers}
    deployed, own = bool(containers), names.ETCD in containers
    etcd = None if own else await external.read_etcd(objects, config.result(), cluster.name, deployed=deployed)
    entrance, hidden = find_entrance(exposed, nodes.result(), context) if etcd is None else external.find_entrance(etcd)
    shown_there = _cert_files(local.result(), "tls") if etcd is None else await external.read_shown(objects)
    held = {names.PEERS: peers.result(), names.COPIED: copied.result(), names.USERS: users.result()}
    signer, shown = _cert_files(authority.result(), "ca"), _cert_files(server.result(), "tls")
    listed = held[names.USERS]
    return Member(
        context=context,
        cluster=cluster,
        namespace=objects.namespace,
        encryption=next((kind for key, kind in _ENCRYPTION.items() if config.result().get(key) == "true"), "none"),
        version=None if found is None else find_version(found),
        entrance=entrance,
        hidden=hidden,
        service="" if exposed is None else exposed.spec.type,
        port=_port(exposed).port or 2379,
        etcd=etcd,
        replicas=0 if found is None else found.spec.replicas,
        ready=0 if found is None else found.status.ready_replicas,
        mirrored=names.MIRROR in containers,
        pod_cidrs=tuple(_pod_cidrs(cilium_nodes.result() or nodes.result(), cluster.name)),
        signer=signer,
        trusted=(shown.ca if etcd is None else shown_there.ca) or signer.ca,
        server=shown,
        remote=_cert_files(remote.result(), "tls"),
        local=shown_there,
        peers=(peers.result() or Secret()).data or {},
        copied=(copied.result() or Secret()).data or {},
        users=((listed.data or {}) if isinstance(listed, ConfigMap) else {}).get(names.USERS_KEY, "").encode(),
        helms=tuple(
            name for name, each in held.items() if each and (each.metadata.labels or {}).get(MANAGED_BY) == "Helm"
        ),
        nodes=frozenset(each.metadata.name for each in nodes.result()),
    )


def find_entrance(service: Service | None, nodes: Iterable[Node], context: str) -> tuple[Entrance | None, str]:
    """Where others reach the etcd behind `service`; else why they cannot, and what to do."""
    enable = f"`clustermesh enable{f' --context {context}' if context else ''}`"
    if service is None:
        return (
            None,
            f"it has no Service {names.API_SERVER}: run {enable}, or the chart with clustermesh.useAPIServer=true",
        )
    if (found := _reached(service, nodes)) is not None:
        return found, ""
    if service.spec.type == "LoadBalancer":
        return None, (
            f"its Service {names.API_SERVER} waits for a load balancer's address: see `kubectl describe service`; "
            f"where nothing gives any, {enable} with --service-type NodePort"
        )
    return (
        None,
        f"its Service {names.API_SERVER} of type {service.spec.type} has no address or port: say it with "
        "--source-endpoint or --destination-endpoint",
    )


async def find_inviting(objects: Objects) -> tuple[str, int]:
    """Where the chart answers newcomers. Raises Refused where it does not, or is not reached from outside."""
    service = await objects.read("services", names.INVITING, Service)
    if service is None:
        raise Refused(
            "--address: must say where `clustermesh invite serve` is reached, or the chart serves invitations: "
            "`clustermesh upgrade --set clustermesh.invitations.enabled=true`"
        )
    nodes, slices = await objects.list("/api/v1/nodes", Node), list[EndpointSlice]()
    if _is_local(service):
        path = f"/apis/discovery.k8s.io/v1/namespaces/{objects.namespace}/endpointslices"
        slices = await objects.list(path, EndpointSlice, f"kubernetes.io/service-name={names.INVITING}")
    return choose_inviting(service, nodes, slices)


def choose_inviting(service: Service, nodes: Iterable[Node], slices: Iterable[EndpointSlice]) -> tuple[str, int]:
    """The one address, and port, of a token: of node ports the first node's as `_ranked`, or that of its pod where no
    other node leads there. Raises Refused."""
    if service.spec.type != "NodePort":
        found = _reached(service, nodes)
    else:
        if _is_local(service):
            each_of = (each for part in slices for each in part.endpoints or ())
            there = {each.node_name for each in each_of if each.conditions.ready is not False}
            nodes = [each for each in nodes if each.metadata.name in there]
            if not nodes:
                raise Refused(
                    f"--address: no pod of the Deployment {names.INVITING} is ready, and its Service leads to no other "
                    "node than that one's (externalTrafficPolicy Local): see `kubectl describe pod`, or say it"
                )
        hosts, port = tuple(_ranked(nodes)), _port(service).node_port
        found = Entrance(hosts, port) if hosts and port else None
    if found is None:
        raise Refused(
            f"--address: Service {names.INVITING} has no address yet: see `kubectl describe service`, or say it"
        )
    return found.hosts[0], found.port


def _is_local(service: Service) -> bool:
    return service.spec.type == "NodePort" and service.spec.external_traffic_policy == "Local"


def _reached(service: Service, nodes: Iterable[Node]) -> Entrance | None:
    port, hosts = _port(service), tuple(_hosts(service, nodes))
    number = port.node_port if service.spec.type == "NodePort" else port.port
    return Entrance(hosts, number) if hosts and number else None


def _port(service: Service | None) -> _Port:
    """That of etcd, or the only one."""
    ports = (service.spec.ports if service else None) or []
    return next((each for each in ports if each.name == "etcd"), ports[0] if ports else _Port())


def find_version(deployment: Deployment) -> Version:
    """By its labels, or else by its image's tag. In Cilium's chart only the tag of an image of Cilium's tells: what is
    in its place, as ours may be (docs/migrate.md), counts its own versions."""
    labels = deployment.metadata.labels or {}
    image = next((each.image for each in deployment.spec.template.spec.containers), "")
    name, _, tag = image.partition("@")[0].rpartition("/")[2].partition(":")
    product = labels.get("app.kubernetes.io/part-of", "cilium")
    told = tag if product != "cilium" or name.startswith(_IMAGES) else ""
    return Version(product, labels.get("app.kubernetes.io/version") or told)


def _cluster(config: Mapping[str, str], namespace: str, context: str) -> Cluster:
    where = f"ConfigMap {namespace}/{names.CONFIG} of {context or 'the current context'}"
    if "cluster-name" not in config:
        raise Refused(
            f"{where} names no cluster: install the chart there with cluster.name and cluster.id, or give the "
            "namespace that it is in with -n"
        )
    most = _number(config.get("max-connected-clusters", str(MAX_CLUSTERS)), f"{where}: max-connected-clusters")
    if most not in (255, 511):
        raise Invalid(f"{where}: max-connected-clusters", most, "must be 255 or 511")
    try:
        name = check_cluster_name(config["cluster-name"])
        number = check_cluster_id(_number(config.get("cluster-id", "0"), "cluster-id"), most)
    except Invalid as e:
        raise Invalid(f"{where}: {e.field}", e.value, f"{e.rule}: set cluster.name and cluster.id of the chart") from e
    return Cluster(name=name, id=number, max_clusters=most)


def _number(text: str, field: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise Invalid(field, text, "must be a whole number")
    return int(text)


def _hosts(service: Service, nodes: Iterable[Node]) -> Iterator[str]:
    if service.spec.type == "LoadBalancer":
        yield from (
            each.ip or each.hostname for each in service.status.load_balancer.ingress or () if each.ip or each.hostname
        )
    elif service.spec.type == "NodePort":
        yield from sorted(_ranked(nodes)[:_NODES], key=_number_of)  # so that the same nodes are the same list
    else:
        yield from (address for address in service.spec.cluster_ips or () if address != "None")


def _ranked(nodes: Iterable[Node]) -> list[str]:
    """Their addresses: of those first that are ready, then of those that are not being emptied."""
    found = [
        (not _is_ready(node), node.spec.unschedulable, *_number_of(at), at) for node in nodes if (at := _internal(node))
    ]
    return [at for *_, at in sorted(found)]


def _is_ready(node: Node) -> bool:
    return any((each.type, each.status) == ("Ready", "True") for each in node.status.conditions or ())


def _number_of(address: str) -> tuple[bool, int]:
    number = parse(address)
    return not is_ipv4(number), to_int(number)


def _internal(node: Node) -> str:
    found = (each.address for each in node.status.addresses or () if each.type == "InternalIP")
    return next(filter(is_address, found), "")


def _pod_cidrs(nodes: Iterable[Node], cluster: str) -> Iterator[PodCidr]:
    for node in nodes:
        for text in (*(node.spec.ipam.pod_cidrs or ()), *(node.spec.pod_cidrs or ())):
            with suppress(Invalid):  # nor does the API server publish it
                yield PodCidr(parse_prefix(text), cluster, node.metadata.name)


def _cert_files(data: Mapping[str, bytes], name: str) -> CertFiles:
    return CertFiles(*(data.get(key, b"") for key in ("ca.crt", f"{name}.crt", f"{name}.key")))
