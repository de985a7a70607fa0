"""A Kubernetes cluster's objects, as large as a busy API server writes them, and where its etcd keeps them."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any, Final

from clustermesh.address import from_int, parse, text, to_int
from clustermesh.sources.nodes import WIREGUARD_KEY

_NAMESPACES: Final = 50
_PODS: Final = to_int(parse("10.128.0.0"))
_VIPS: Final = to_int(parse("10.97.0.0"))
_HOSTS: Final = to_int(parse("172.16.0.0"))
_PER_NODE: Final = 4096  # addresses
_MADE: Final = "2026-01-01T00:00:00Z"
_READY: Final = {"ready": True, "serving": True, "terminating": False}

Object = dict[str, Any]


class Objects:
    """`services` global ones, each with `backends` endpoints on `nodes` nodes, the first `pods` of those Pods."""

    def __init__(self, services: int, *, nodes: int = 100, backends: int = 4, pods: int = 0) -> None:
        self.services, self.nodes, self.backends, self.pods = services, nodes, backends, pods

    def all(self) -> Iterator[tuple[str, Object]]:
        """Each with its key."""
        for number in range(_NAMESPACES):
            yield f"namespaces/team-{number}", _namespace(number)
        for number in range(self.nodes):
            yield f"minions/node-{number}", _node(number)
        for number in range(self.services):
            vip = text(from_int(_VIPS + number))
            yield f"services/specs/{_team(number)}/app-{number}", _service(number, vip)
            yield f"ipaddresses/{vip}", _ip_address(number, vip)
            yield self.slice_key(number), self.slice(number)
        for number in range(self.pods):
            made = self._pod(number)
            yield f"pods/{made['metadata']['namespace']}/{made['metadata']['name']}", made

    def slice_key(self, number: int) -> str:
        return f"endpointslices/{_team(number)}/app-{number}-abcde"

    def slice(self, number: int, *more: str) -> Object:
        """That of service `number`, with `more` addresses."""
        own = range(number * self.backends, (number + 1) * self.backends)
        labels = {"kubernetes.io/service-name": f"app-{number}"}
        return {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": _metadata("1", number, f"app-{number}-abcde", namespace=_team(number), labels=labels),
            "addressType": "IPv4",
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
            "endpoints": [
                *(self._endpoint(self.address(pod), f"node-{pod % self.nodes}") for pod in own),
                *(self._endpoint(address, "node-0") for address in more),
            ],
        }

    def address(self, pod: int) -> str:
        """Of the pod, on the node that its number falls on."""
        return text(from_int(_PODS + pod % self.nodes * _PER_NODE + 1 + pod // self.nodes))

    def spare(self, number: int) -> str:
        """An address of one of the nodes that no pod has: another one for each of the first 100,000 numbers."""
        return text(from_int(_PODS + (number % self.nodes + 1) * _PER_NODE - 1 - number // self.nodes % 1000))

    def _endpoint(self, address: str, node: str) -> Object:
        return {"addresses": [address], "conditions": _READY, "nodeName": node, "zone": "a"}

    def _pod(self, number: int) -> Object:
        app, node = number // self.backends, number % self.nodes
        name, address, host = f"app-{app}-{number:010x}", self.address(number), _host(node)
        labels = {"app": f"app-{app}", "app.kubernetes.io/part-of": _team(app), "pod-template-hash": f"{app:010x}"}
        owner = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": f"app-{app}", "uid": _uid("6", app)}
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": _metadata(
                "2",
                number,
                name,
                namespace=_team(app),
                labels=labels,
                annotations={"checksum/config": "a" * 64},
                ownerReferences=[{**owner, "controller": True, "blockOwnerDeletion": True}],
                managedFields=[_managed("kube-controller-manager"), _managed("kubelet")],
            ),
            "spec": _pod_spec(app, f"node-{node}"),
            "status": _pod_status(address, host),
        }


def service_name(number: int) -> tuple[str, str]:
    """The namespace and the name."""
    return _team(number), f"app-{number}"


def _team(number: int) -> str:
    return f"team-{number % _NAMESPACES}"


def _uid(kind: str, number: int) -> str:
    return f"{kind}0000000-0000-4000-8000-{number:012d}"


def _metadata(kind: str, number: int, name: str, **more: Any) -> Object:
    return {"name": name, "uid": _uid(kind, number), "creationTimestamp": _MADE, **more}


def _host(node: int) -> str:
    return text(from_int(_HOSTS + 1 + node))


def _namespace(number: int) -> Object:
    labels = {"kubernetes.io/metadata.name": _team(number)}
    metadata = _metadata("3", number, _team(number), labels=labels)
    rest = {"spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"}}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata, **rest}


def _node(number: int) -> Object:
    """With a WireGuard key, as a Cilium agent annotates it: nobody has to be waited for."""
    name, cidr = f"node-{number}", f"{text(from_int(_PODS + number * _PER_NODE))}/20"
    key = base64.b64encode(number.to_bytes(32, "big")).decode() if number else base64.b64encode(b"k" * 32).decode()
    labels = {"kubernetes.io/hostname": name, "topology.kubernetes.io/zone": "a"}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": _metadata("4", number, name, labels=labels, annotations={WIREGUARD_KEY: key}),
        "spec": {"podCIDR": cidr, "podCIDRs": [cidr]},
        "status": {"addresses": [{"type": "InternalIP", "address": _host(number)}]},
    }


def _service(number: int, vip: str) -> Object:
    about = {"labels": {"app": f"app-{number}"}, "annotations": {"service.cilium.io/global": "true"}}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata("5", number, f"app-{number}", namespace=_team(number), **about),
        "spec": {
            "type": "ClusterIP",
            "clusterIP": vip,
            "clusterIPs": [vip],
            "ipFamilies": ["IPv4"],
            "ipFamilyPolicy": "SingleStack",
            "ports": [{"name": "http", "port": 80, "targetPort": 8080, "protocol": "TCP"}],
            "selector": {"app": f"app-{number}"},
            "sessionAffinity": "None",
            "internalTrafficPolicy": "Cluster",
        },
        "status": {"loadBalancer": {}},
    }


def _ip_address(number: int, vip: str) -> Object:
    """That the cluster IP is taken: without it the API server ends at its start."""
    labels = {"ipaddress.kubernetes.io/ip-family": "IPv4", "ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io"}
    parent = {"group": "", "resource": "services", "namespace": _team(number), "name": f"app-{number}"}
    metadata = _metadata("7", number, vip, labels=labels)
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "IPAddress",
        "metadata": metadata,
        "spec": {"parentRef": parent},
    }


def _managed(who: str) -> Object:
    names = ("image", "imagePullPolicy", "name", "ports", "resources", "env", "terminationMessagePath")
    fields: Object = {"f:spec": {"f:containers": {'k:{"name":"main"}': {f"f:{name}": {} for name in names}}}}
    about = {"operation": "Update", "apiVersion": "v1", "time": _MADE, "fieldsType": "FieldsV1"}
    return {"manager": who, **about, "fieldsV1": fields}


def _pod_spec(app: int, node: str) -> Object:
    container = {
        "name": "main",
        "image": f"registry.example.com/{_team(app)}/app-{app}:v1.2.3",
        "ports": [{"name": "http", "containerPort": 8080, "protocol": "TCP"}],
        "env": [{"name": f"VAR_{number}", "value": "some value"} for number in range(6)],
        "resources": {"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "100m", "memory": "128Mi"}},
        "terminationMessagePath": "/dev/termination-log",
        "terminationMessagePolicy": "File",
        "imagePullPolicy": "IfNotPresent",
    }
    return {
        "containers": [container],
        "restartPolicy": "Always",
        "terminationGracePeriodSeconds": 30,
        "dnsPolicy": "ClusterFirst",
        "serviceAccountName": "default",
        "nodeName": node,
        "securityContext": {},
        "schedulerName": "default-scheduler",
        "tolerations": [
            {"key": f"node.kubernetes.io/{key}", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}
            for key in ("not-ready", "unreachable")
        ],
    }


def _pod_status(address: str, host: str) -> Object:
    conditions = ("PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled")
    return {
        "phase": "Running",
        "conditions": [{"type": each, "status": "True", "lastTransitionTime": _MADE} for each in conditions],
        "hostIP": host,
        "podIP": address,
        "podIPs": [{"ip": address}],
        "startTime": _MADE,
        "qosClass": "Burstable",
    }
