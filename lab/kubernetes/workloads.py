"""Pods on real nodes: servers that say which cluster they are of, and a client that calls their Service."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import msgspec

from clustermesh import __version__
from lab.kubernetes.cluster import Cluster
from lab.records import Record, Traffic, summarize

PORT: Final = 8080
IMAGE: Final = f"docker.io/clustermesh/clustermesh:{__version__}"
_HERE: Final = Path(__file__).resolve().parents[1]
_SCRIPTS: Final = ("client.py", "web.py")


def run_web(cluster: Cluster, namespace: str, replicas: int = 1, **service: Any) -> None:
    """A Deployment that says its cluster's name to whoever calls the Service `web`; `service` is more of its spec."""
    words = ["/scripts/web.py", f"--port={PORT}", f"--cluster={cluster.name}", "--pod=$(POD)"]
    probe = {"tcpSocket": {"port": PORT}, "periodSeconds": 1}
    of = {"fieldRef": {"fieldPath": "metadata.name"}}
    container = _container(*words) | {"readinessProbe": probe, "env": [{"name": "POD", "valueFrom": of}]}
    labels = {"app": "web"}
    template = {"metadata": {"labels": labels}, "spec": _pod(container)}
    cluster.apply(
        *_ground(namespace),
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "web", "namespace": namespace},
            "spec": {"replicas": replicas, "selector": {"matchLabels": labels}, "template": template},
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "web", "namespace": namespace},
            "spec": {"selector": labels, "ports": [{"port": PORT}], **service},
        },
    )


def run_client(cluster: Cluster, namespace: str) -> None:
    """The pod `client`, which waits to be told whom to call."""
    metadata = {"name": "client", "namespace": namespace, "labels": {"app": "client"}}
    pod = _pod(_container("-c", "import time; time.sleep(86400)"))
    cluster.apply(*_ground(namespace), {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": pod})


def service_address(cluster: Cluster, namespace: str, name: str = "web") -> str:
    return str(cluster.plane.get(f"/api/v1/namespaces/{namespace}/services/{name}")["spec"]["clusterIP"])


def call(cluster: Cluster, namespace: str, host: str = "", seconds: float = 1.0, rate: float = 40.0) -> Traffic:
    """What the client gets of `host`, or of the Service `web`: new connections for so long."""
    said = cluster.kubectl(*calling(namespace, host or service_address(cluster, namespace), seconds, rate))
    return summarize(records(said))


def calling(namespace: str, host: str, seconds: float, rate: float) -> list[str]:
    """The words of kubectl for it."""
    options = [f"--seconds={seconds}", f"--rate={rate}", "--wait=5"]
    script = ["python3", "-I", "/scripts/client.py", host, str(PORT), *options]
    return ["exec", f"--namespace={namespace}", "client", "--", *script]


def records(said: str) -> list[Record]:
    """Of what the client printed."""
    lines = [msgspec.json.decode(line, type=dict[str, Any]) for line in said.splitlines()]
    return [msgspec.convert(each, Record) for line in lines for each in line.get("records", ())]


def _ground(namespace: str) -> list[dict[str, Any]]:
    """The namespace and the scripts in it."""
    scripts = {name: (_HERE / name).read_text() for name in _SCRIPTS}
    metadata = {"name": "scripts", "namespace": namespace}
    return [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}},
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": scripts},
    ]


def _container(*words: str) -> dict[str, Any]:
    mount = {"name": "scripts", "mountPath": "/scripts"}
    command = {"command": ["python3", "-I", *words], "volumeMounts": [mount]}
    return {"name": "python", "image": IMAGE, "imagePullPolicy": "Never", **command}


def _pod(container: dict[str, Any]) -> dict[str, Any]:
    volumes = [{"name": "scripts", "configMap": {"name": "scripts"}}]
    return {"containers": [container], "volumes": volumes, "terminationGracePeriodSeconds": 1}
