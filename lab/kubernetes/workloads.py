"""Pods on real nodes: servers that say which cluster they are of, and a client that calls their Service."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec

from clustermesh import __version__
from clustermesh.errors import Unavailable
from lab.kubernetes.cluster import Cluster
from lab.kubernetes.control_plane import KUBE
from lab.kubernetes.ground import PATIENCE
from lab.records import Record, Traffic, summarize

PORT: Final = 8080
IMAGE: Final = f"docker.io/clustermesh/clustermesh:{__version__}"
_HERE: Final = Path(__file__).resolve().parents[1]
_SCRIPTS: Final = ("client.py", "web.py")
_UNTIL_STDIN_ENDS: Final = 'python3 -I "$@" & child=$!; read _; kill -TERM $child; wait $child'


def run_web(cluster: Cluster, namespace: str, replicas: int = 1, **service: Any) -> None:
    """A Deployment that says its cluster's name to whoever calls the Service `web`; `service` is more of its spec."""
    words = ["/scripts/web.py", f"--port={PORT}", f"--cluster={cluster.name}", "--pod=$(POD)"]
    probe = {"tcpSocket": {"port": PORT}, "periodSeconds": 1}
    of = {"fieldRef": {"fieldPath": "metadata.name"}}
    container = _container(*words) | {"readinessProbe": probe, "env": [{"name": "POD", "valueFrom": of}]}
    container["lifecycle"] = {"preStop": {"sleep": {"seconds": 3}}}  # until all who call have heard that it goes
    labels = {"app": "web"}
    spread: dict[str, Any] = {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "ScheduleAnyway",
    }
    spread["labelSelector"] = {"matchLabels": labels}
    template = {"metadata": {"labels": labels}, "spec": _pod(container) | {"topologySpreadConstraints": [spread]}}
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


class Load:
    """New connections to one address at a steady rate, from the pod `client` of a cluster, in a thread of its own."""

    def __init__(
        self, cluster: Cluster, namespace: str, host: str = "", rate: float = 100.0, wait: float = 15.0
    ) -> None:
        """To the Service `web`, where no `host` is given; one fails that has no answer after `wait` seconds."""
        self._cluster, self._namespace, self._rate, self._wait = cluster, namespace, rate, wait
        self._host = host or service_address(cluster, namespace)
        self._said = b""
        self.records: list[Record] = []

    @property
    def traffic(self) -> Traffic:
        return summarize(self.records)

    @contextmanager
    def running(self) -> Iterator[None]:
        """From the first answer on inside the block; it ends in order. Unavailable where it failed."""
        script = ["/scripts/client.py", self._host, str(PORT), f"--rate={self._rate}", "--seconds=600"]
        script.append(f"--wait={self._wait}")
        words = ["exec", "-i", f"--namespace={self._namespace}", "client", "--", "sh", "-c", _UNTIL_STDIN_ENDS, "sh"]
        argv = [str(KUBE), "kubectl", f"--kubeconfig={self._cluster.plane.kubeconfig}", *words, *script]
        child = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        reader = threading.Thread(target=self._read, args=(child,), daemon=True)
        reader.start()
        assert child.stdin is not None
        try:
            self._cluster.until(lambda: bool(self.records) or child.poll() is not None, "a first answer")
            yield
            child.stdin.close()
            reader.join(PATIENCE)
        finally:
            child.kill()
            child.wait()
            reader.join(PATIENCE)
            for stream in (child.stdin, child.stdout, child.stderr):
                assert stream is not None
                stream.close()
        if not self.records or self._said:
            raise Unavailable(f"the client of {self._cluster.name} failed: {self._said.decode(errors='replace')}")

    def _read(self, child: subprocess.Popen[bytes]) -> None:
        assert child.stdout is not None
        assert child.stderr is not None
        for line in child.stdout:
            self.records += parse(line)
        self._said = os.read(child.stderr.fileno(), 1 << 16).strip()


def parse(lines: bytes) -> list[Record]:
    """Of what client.py prints."""
    said = [msgspec.json.decode(line) for line in lines.splitlines()]
    return [record for each in said for record in msgspec.convert(each.get("records", ()), list[Record])]


def call(cluster: Cluster, namespace: str, host: str = "", requests: int = 40) -> Traffic:
    """What the client gets of `host`, or of the Service `web`."""
    load = Load(cluster, namespace, host)
    with load.running():
        cluster.until(lambda: len(load.records) >= requests, f"{requests} answers or errors")
    return load.traffic


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
    command["resources"] = {"requests": {"cpu": "50m"}}  # else whatever this machine does besides comes first
    return {"name": "python", "image": IMAGE, "imagePullPolicy": "Never", **command}


def _pod(container: dict[str, Any]) -> dict[str, Any]:
    volumes = [{"name": "scripts", "configMap": {"name": "scripts"}}]
    return {"containers": [container], "volumes": volumes, "terminationGracePeriodSeconds": 5}
