"""Kubernetes objects for tests, as few fields as each needs; overrides are merged in, at any depth."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import yaml

from clustermesh.model import Cluster
from clustermesh.sources.decoding import decode_objects
from clustermesh.sources.objects import Object, Ref

ALPHA = Cluster(name="alpha", id=1)


def service(name: str, *, global_: bool = True, **spec: Any) -> dict[str, Any]:
    annotations = {"service.cilium.io/global": "true"} if global_ else {}
    spec = {"clusterIP": "10.96.0.10", "ports": [{"name": "http", "port": 80, "targetPort": 8080}], **spec}
    return {"apiVersion": "v1", "kind": "Service", "metadata": _metadata(name, annotations=annotations), "spec": spec}


def endpoint_slice(name: str, owner: str, addresses: list[str], **more: Any) -> dict[str, Any]:
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": _metadata(name, labels={"kubernetes.io/service-name": owner}),
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        "endpoints": [{"addresses": [address], "conditions": {"ready": True}} for address in addresses],
        **more,
    }


def service_export(name: str, **spec: Any) -> dict[str, Any]:
    metadata = _metadata(name)
    return {
        "apiVersion": "multicluster.x-k8s.io/v1beta1",
        "kind": "ServiceExport",
        "metadata": metadata,
        "spec": spec,
    }


def pod(name: str, ip: str, labels: Mapping[str, str], *, ready: bool = True, **spec: Any) -> dict[str, Any]:
    ports = [{"name": "web", "containerPort": 8080}]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": _metadata(name, labels=dict(labels)),
        "spec": {"nodeName": "n1", "containers": [{"name": "main", "ports": ports}], **spec},
        "status": {
            "podIP": ip,
            "phase": "Running",
            "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
        },
    }


def node(name: str, ip: str, *cidrs: str, **annotations: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "annotations": {k.replace("__", "/"): v for k, v in annotations.items()}},
        "spec": {"podCIDR": cidrs[0], "podCIDRs": list(cidrs)} if cidrs else {},
        "status": {"addresses": [{"type": "InternalIP", "address": ip}, {"type": "Hostname", "address": name}]},
    }


def namespace(name: str, *, global_: str | None = None, **labels: str) -> dict[str, Any]:
    annotations = {} if global_ is None else {"clustermesh.cilium.io/global": global_}
    metadata = {"name": name, "labels": labels, "annotations": annotations}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}


def cilium_node(name: str, ip: str, *cidrs: str, **spec: Any) -> dict[str, Any]:
    addresses = [{"type": "InternalIP", "ip": ip}]
    spec = {"addresses": addresses, "ipam": {"podCIDRs": list(cidrs)}, **spec}
    return {"apiVersion": "cilium.io/v2", "kind": "CiliumNode", "metadata": {"name": name}, "spec": spec}


def cilium_identity(number: int, namespace: str = "shop", cluster: str = "alpha", **labels: str) -> dict[str, Any]:
    own = {"io.cilium.k8s.policy.cluster": cluster, "io.kubernetes.pod.namespace": namespace}
    return {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumIdentity",
        "metadata": {"name": str(number)},
        "security-labels": {f"k8s:{key}": value for key, value in (labels | own).items()},
    }


def cilium_endpoint(name: str, identity: int, *ips: str, node: str = "192.0.2.1", key: int = 0) -> dict[str, Any]:
    status = {"identity": {"id": identity}, "networking": _networking(ips, node), "encryption": {"key": key}}
    return {"apiVersion": "cilium.io/v2", "kind": "CiliumEndpoint", "metadata": _metadata(name), "status": status}


def cilium_slice(name: str, namespace: str, *endpoints: tuple[str, int, str]) -> dict[str, Any]:
    """Of pods, each with its identity and its address."""
    return {
        "apiVersion": "cilium.io/v2alpha1",
        "kind": "CiliumEndpointSlice",
        "metadata": {"name": name},
        "namespace": namespace,
        "endpoints": [
            {"name": pod, "id": identity, "networking": _networking([ip], "192.0.2.1")}
            for pod, identity, ip in endpoints
        ],
    }


def _networking(ips: Iterable[str], node: str) -> dict[str, Any]:
    return {"addressing": [{"ipv6" if ":" in ip else "ipv4": ip} for ip in ips], "node": node}


def aged(manifest: dict[str, Any], created: str = "", deleted: str = "") -> dict[str, Any]:
    """With the times that the API gives an object."""
    times = {"creationTimestamp": created, "deletionTimestamp": deleted}
    metadata = {**manifest["metadata"], **{key: time for key, time in times.items() if time}}
    return {**manifest, "metadata": metadata}


def annotated(manifest: dict[str, Any], **annotations: str) -> dict[str, Any]:
    """With annotations under service.cilium.io/."""
    metadata = manifest["metadata"]
    more = {f"service.cilium.io/{key}": value for key, value in annotations.items()}
    return {**manifest, "metadata": {**metadata, "annotations": {**metadata.get("annotations", {}), **more}}}


def decode(*manifests: dict[str, Any]) -> dict[Ref, Object]:
    """The objects of manifests that must be without fault."""
    found = [each for manifest in manifests for each in decode_objects(manifest)]
    assert all(isinstance(each, tuple) for each in found), found
    return dict(found)  # type: ignore[arg-type]


def dump(*manifests: Any) -> str:
    """As one YAML file."""
    return yaml.safe_dump_all(manifests, sort_keys=False)


def _metadata(name: str, **more: Any) -> dict[str, Any]:
    space, _, bare = name.rpartition("/")
    return {"name": bare, "namespace": space or "shop", **more}
