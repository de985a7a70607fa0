"""The plan as ordinary Kubernetes YAML: what a person would `kubectl apply`, and what kubelets and controllers report.

One file per object below a cluster's manifests folder. Values here are plain documents (dict), as yaml.safe_load gives.
"""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import yaml

from lab.plan import WEB_PORT, WEB_TARGET_PORT, ClusterPlan, NodePlan, PodPlan, family_of

Document = dict[str, Any]

NAMESPACE: Final = "default"
GLOBAL: Final = {"service.cilium.io/global": "true"}
_WEB: Final = Path(__file__).with_name("web.py")
_FAMILY_NAMES: Final = {"ipv4": "IPv4", "ipv6": "IPv6"}
_GRACE_SECONDS: Final = 1


def of_cluster(cluster: ClusterPlan) -> dict[str, Document]:
    """Everything of one cluster, as file name -> document."""
    files = {
        f"namespace-{NAMESPACE}.yaml": namespace(NAMESPACE),
        "service-web.yaml": web_service(cluster),
        "service-probe.yaml": probe_service(cluster),
    }
    files |= {f"node-{machine.name}.yaml": node(machine) for machine in cluster.nodes}
    return files | {pod_file(planned.name): pod(planned) for planned in cluster.pods}


def pod_file(name: str) -> str:
    return f"pod-{name}.yaml"


def namespace(name: str) -> Document:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}


def node(machine: NodePlan) -> Document:
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": machine.name, "labels": {"kubernetes.io/hostname": machine.name}},
        "spec": {"podCIDR": machine.pod_cidrs[0], "podCIDRs": list(machine.pod_cidrs)},
        "status": {
            "addresses": [
                *({"type": "InternalIP", "address": address} for address in machine.addresses),
                {"type": "Hostname", "address": machine.name},
            ],
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }


def web_service(cluster: ClusterPlan) -> Document:
    """The global service `web`: every cluster has it, each at a cluster IP of its own."""
    ports = [
        {"name": "tcp", "protocol": "TCP", "port": WEB_PORT, "targetPort": WEB_TARGET_PORT},
        {"name": "udp", "protocol": "UDP", "port": WEB_PORT, "targetPort": WEB_TARGET_PORT},
    ]
    return _service("web", cluster.web_ips, ports, {"app": "web"})


def probe_service(cluster: ClusterPlan) -> Document:
    """A global service without selector, whose EndpointSlices are toggled to measure how fast a change travels."""
    return _service("probe", cluster.probe_ips, [{"name": "tcp", "protocol": "TCP", "port": WEB_PORT}], None)


def _service(name: str, ips: Sequence[str], ports: Sequence[Document], selector: Mapping[str, str] | None) -> Document:
    spec: Document = {
        "type": "ClusterIP",
        "clusterIP": ips[0],
        "clusterIPs": list(ips),
        "ipFamilies": [_FAMILY_NAMES[family_of(ip)] for ip in ips],
        "ipFamilyPolicy": "SingleStack" if len(ips) == 1 else "RequireDualStack",
        "ports": list(ports),
    }
    if selector is not None:
        spec["selector"] = dict(selector)
    metadata = {"name": name, "namespace": NAMESPACE, "annotations": dict(GLOBAL)}
    return {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec}


def probe_slice(addresses: Sequence[str]) -> dict[str, Document]:
    """The endpoints of the `probe` service, of one family; nobody listens there. As file name -> document."""
    family = family_of(addresses[0])
    return {
        f"endpointslice-probe-{family}.yaml": {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": f"probe-{family}",
                "namespace": NAMESPACE,
                "labels": {"kubernetes.io/service-name": "probe"},
            },
            "addressType": _FAMILY_NAMES[family],
            "ports": [{"name": "tcp", "protocol": "TCP", "port": WEB_TARGET_PORT}],
            "endpoints": [{"addresses": [address], "conditions": {"ready": True}} for address in addresses],
        }
    }


def pod(planned: PodPlan) -> Document:
    """A Pod as a controller and a scheduler left it: bound to a node, without status; the kubelet adds that."""
    container = _web_container(planned) if planned.role == "web" else _client_container()
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": planned.name,
            "namespace": NAMESPACE,
            "uid": str(uuid.uuid4()),
            "labels": {"app": planned.role},
        },
        "spec": {
            "nodeName": planned.node,
            "serviceAccountName": "default",
            "restartPolicy": "Always",
            "terminationGracePeriodSeconds": _GRACE_SECONDS + 1,
            "containers": [container],
        },
    }


def _web_container(planned: PodPlan) -> Document:
    """Serves on until a second after the deletion: the time every mesh needs to send callers elsewhere."""
    listen = ["--port", str(WEB_TARGET_PORT), "--cluster", planned.cluster, "--pod", planned.name]
    return {
        "name": "web",
        "image": "localhost/clustermesh-lab",
        "command": [sys.executable, "-IS", str(_WEB), *listen],
        "ports": [{"name": "tcp", "containerPort": WEB_TARGET_PORT, "protocol": "TCP"}],
        "readinessProbe": {"tcpSocket": {"port": WEB_TARGET_PORT}, "periodSeconds": 1},
        "lifecycle": {"preStop": {"sleep": {"seconds": _GRACE_SECONDS}}},
    }


def _client_container() -> Document:
    return {"name": "client", "image": "localhost/clustermesh-lab", "command": ["sleep", "infinity"]}


def write(folder: Path, files: Mapping[str, Document]) -> None:
    """Each file at once or not at all: readers watch this folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, document in files.items():
        part = folder / f".{name}.part"
        part.write_text(yaml.safe_dump(document, sort_keys=False))
        os.replace(part, folder / name)


def remove(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).unlink(missing_ok=True)
