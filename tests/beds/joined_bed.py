"""Clusters to join: what the chart leaves in a Kubernetes API, and certificates as its job makes them."""

from __future__ import annotations

import base64
import contextlib
import tempfile
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kube_bed import KubeBed

from certs.folder import initialise
from certs.names import cluster_leaves
from clustermesh.joining.connect import Site, read_site
from clustermesh.joining.objects import Objects
from clustermesh.kube.access import Access, Grant, tls_context
from clustermesh.kube.client import KubeClient
from clustermesh.standalone.context import Context, create


class Cluster:
    """The cluster `name` in `namespace` of a Kubernetes API; what its etcd would show is in a folder."""

    def __init__(self, bed: KubeBed, namespace: str, name: str, number: int, port: int) -> None:
        self.bed, self.namespace, self.port = bed, namespace, port
        folder = Path(tempfile.mkdtemp(dir=bed.folder, prefix=f"{name}-"))
        self.folder: Context = create(folder, name, number, f"https://127.0.0.1:{port}")
        initialise(self.folder.certs, cluster_leaves(name, ["127.0.0.1"]), datetime.now(UTC))

    @property
    def name(self) -> str:
        return self.folder.name

    def install(self, *, mirrored: bool = False, **config: str) -> None:
        """What the chart makes, as far as other clusters have to know it. `config` changes cilium-config; with an
        etcd_config the etcd is the operator's own."""
        ensure_namespace(self.bed, self.namespace)
        said = {"cluster-name": self.name, "cluster-id": str(self.folder.id), "max-connected-clusters": "255"}
        said |= {key.replace("_", "-"): value for key, value in config.items()}
        self.make("ConfigMap", "cilium-config", data=said)
        for secret, name in (
            ("cilium-ca", "ca"),
            *((f"clustermesh-apiserver-{e}-cert", e) for e in ("server", "remote", "local")),
        ):
            self.make("Secret", secret, data=self.cert(name))
        own = [] if "etcd_config" in config else ["etcd"]
        kept = [*own, "apiserver", *(["kvstoremesh"] if mirrored else [])]
        containers = [{"name": each, "image": "registry.example/clustermesh:v0.1.0"} for each in kept]
        template = {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": containers}}
        self.make(
            "Deployment",
            "clustermesh-apiserver",
            "apps/v1",
            labels={"app.kubernetes.io/part-of": "clustermesh"},
            spec={"selector": {"matchLabels": {"a": "b"}}, "template": template},
        )
        self.make(
            "Service",
            "clustermesh-apiserver",
            spec={"type": "LoadBalancer", "allocateLoadBalancerNodePorts": False, "ports": [{"port": self.port}]},
            status={"loadBalancer": {"ingress": [{"ip": "127.0.0.1", "ipMode": "Proxy"}]}},
        )

    def cert(self, name: str) -> dict[str, str]:
        """A Secret's data, of the pair `name`."""
        files = {"ca.crt": self.folder.ca.read_bytes()}
        if name == "ca":
            files["ca.key"] = self.folder.key("ca").read_bytes()
        else:
            files |= {
                "tls.crt": self.folder.certificate(name).read_bytes(),
                "tls.key": self.folder.key(name).read_bytes(),
            }
        return {key: base64.b64encode(value).decode() for key, value in files.items()}

    def make(
        self, kind: str, name: str, version: str = "v1", labels: dict[str, str] | None = None, **fields: Any
    ) -> None:
        metadata = {"name": name, "namespace": self.namespace, "labels": labels or {}}
        self.bed.create({"apiVersion": version, "kind": kind, "metadata": metadata, **fields})

    def data(self, plural: str, name: str) -> dict[str, bytes]:
        """What a Secret or ConfigMap holds by now."""
        found = self.bed.ask("GET", f"/api/v1/namespaces/{self.namespace}/{plural}/{name}").get("data") or {}
        return {key: base64.b64decode(value) if plural == "secrets" else value.encode() for key, value in found.items()}

    def versions(self) -> dict[str, str]:
        """resourceVersion by kind and name, of all that commands may write."""
        return {
            f"{plural}/{item['metadata']['name']}": item["metadata"]["resourceVersion"]
            for plural in ("secrets", "configmaps")
            for item in self.bed.ask("GET", f"/api/v1/namespaces/{self.namespace}/{plural}")["items"]
        }

    def mount(self, folder: Path) -> Path:
        """What the kubelet makes of the Secret in a pod, with the certificates that the chart adds; the paths in it
        are those of `folder`."""
        folder.mkdir(exist_ok=True)
        for name, value in self.data("secrets", "cilium-clustermesh").items():
            (folder / name).write_bytes(value.replace(b"/var/lib/cilium/clustermesh", str(folder).encode()))
        for prefix, name in (("common", "remote"),):
            for end, path in (
                ("-ca.crt", self.folder.ca),
                (".crt", self.folder.certificate(name)),
                (".key", self.folder.key(name)),
            ):
                (folder / f"{prefix}-etcd-client{end}").write_bytes(path.read_bytes())
        return folder

    @contextlib.asynccontextmanager
    async def site(self) -> AsyncIterator[Site]:
        """The cluster as the commands see it now."""
        async with self.objects() as objects:
            yield await read_site(objects, self.name)

    @contextlib.asynccontextmanager
    async def objects(self) -> AsyncIterator[Objects]:
        admin = self.bed.admin
        ca, cert, key = (path.read_text() for path in (self.bed.authority.ca, admin.cert, admin.key))

        async def read() -> Grant:
            return Grant(server=self.bed.url, tls=tls_context(ca, cert, key))

        async with KubeClient(Access(read)) as client:
            yield Objects(client, self.namespace)


def ensure_namespace(bed: KubeBed, name: str) -> None:
    with contextlib.suppress(RuntimeError):  # it is there
        bed.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
