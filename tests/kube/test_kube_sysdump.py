"""`clustermesh sysdump` of what a real Kubernetes API has, with a kubelet that the test plays: the API server asks it
for logs, and has programs run there.
"""

from __future__ import annotations

import base64
import gzip
import json
import ssl
import sys
import tarfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import yaml
from aiohttp import web
from joined_bed import Cluster
from kube_bed import KubeBed
from ports import free_port
from processes import child

from clustermesh.kube.rbac import Rule, cluster_role

SECRETS = {
    "password": b"correct horse battery staple",
    "binary": bytes(range(7, 71)),
    "several": b"user: admin-of-all\npassword: tr0ub4dor-and-3\n",
    "key": b"-----BEGIN PRIVATE KEY-----\nMIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0w\n-----END PRIVATE KEY-----\n",
}
VARIABLE, VALUE = b"swordfish-in-a-variable", b"swordfish-in-the-values"


class Kubelet:
    """Logs that say every secret, and programs that do; of the container `mute` nothing."""

    def __init__(self, bed: KubeBed, name: str) -> None:
        self.bed, self.name, self.port = bed, name, free_port()
        self.words = b"\n".join((*SECRETS.values(), *map(base64.b64encode, SECRETS.values()), VARIABLE, VALUE))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        app = web.Application()
        app.router.add_get("/containerLogs/{namespace}/{pod}/{container}", self._log)
        app.router.add_route("*", "/exec/{namespace}/{pod}/{container}", self._exec)
        runner = web.AppRunner(app)
        await runner.setup()
        shown = self.bed.authority.issue(f"kubelet-{self.name}", "127.0.0.1")
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(shown.cert, shown.key)
        await web.TCPSite(runner, "127.0.0.1", self.port, ssl_context=tls).start()
        node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": self.name}}
        status = {
            "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": self.port}},
        }
        self.bed.create({**node, "status": status})
        try:
            yield
        finally:
            self.bed.delete(node)
            await runner.cleanup()

    async def _log(self, request: web.Request) -> web.StreamResponse:
        if request.match_info["container"] == "mute":
            return web.Response(status=500, text=f"the disk is gone, {SECRETS['password'].decode()}")
        return web.Response(body=b"a log of " + request.match_info["container"].encode() + b"\n" + self.words)

    async def _exec(self, request: web.Request) -> web.StreamResponse:
        if "*/*" not in request.headers["Accept"]:
            return web.Response(status=406)  # as a real one
        channel = web.WebSocketResponse(protocols=("v4.channel.k8s.io",))
        await channel.prepare(request)
        words = request.query.getall("command")
        await channel.send_bytes(b"\1" + json.dumps({"asked": words}).encode() + self.words[:40])
        await channel.send_bytes(b"\3" + b'{"status":"Success"}')
        await channel.close()
        return channel


def fill(alpha: Cluster, node: str) -> None:
    """Beside what the chart makes: secrets in all places where they are found."""
    for name, value in SECRETS.items():
        alpha.make("Secret", f"some-{name}", data={"it": base64.b64encode(value).decode()})
    release = {
        "name": "clustermesh",
        "version": 3,
        "config": {"cluster": {"name": "alpha"}, "etcd": {"password": VALUE.decode()}},
        "chart": {"metadata": {"name": "clustermesh", "version": "0.1.0"}},
    }
    packed = base64.b64encode(gzip.compress(json.dumps(release).encode()))
    alpha.make(
        "Secret",
        "sh.helm.release.v1.clustermesh.v3",
        labels={"owner": "helm", "status": "deployed"},
        data={"release": base64.b64encode(packed).decode()},
    )
    alpha.make("ConfigMap", "noise", data={"text": f"{SECRETS['password'].decode()} and {VARIABLE.decode()}"})
    image = {"image": "registry.example/x", "env": [{"name": "ETCD_PASSWORD", "value": VARIABLE.decode()}]}
    labels = {"app.kubernetes.io/part-of": "clustermesh"}
    spec: dict[str, Any] = {"nodeName": node, "containers": [{"name": "agent", **image}, {"name": "mute", **image}]}
    apart = {**spec, "automountServiceAccountToken": False}
    alpha.make("Pod", "agent-1", labels=labels, spec=apart)
    ports = {"ports": [{"containerPort": 8080}]}  # without a name
    alpha.make("Pod", "nameless", labels=labels, spec=apart | {"containers": [{"name": "server", **image, **ports}]})
    alpha.make("Pod", "strange", spec=apart)


async def dumped(folder: Path, alpha: Cluster, *flags: str, cert: str = "admin") -> dict[str, bytes]:
    """The files of the archive, by their path in it."""
    document = yaml.safe_load(alpha.bed.write_kubeconfig("one", cert=cert).read_text())
    (folder / "config").write_text(yaml.safe_dump(document))
    words = ("sysdump", "--kubeconfig", folder / "config", "-n", alpha.namespace, "--context", "one", *flags)
    async with child(sys.executable, "-m", "clustermesh.cli", *words, "--output-file", folder / "a.tgz") as process:
        assert await process.wait() == 0
    with tarfile.open(folder / "a.tgz") as archive:
        found = {each.name.partition("/")[2]: archive.extractfile(each) for each in archive}
        return {name: file.read() for name, file in found.items() if file}


async def test_no_secret_is_in_the_archive_and_what_support_needs_is(
    bed: KubeBed, namespace: str, tmp_path: Path
) -> None:
    alpha, kubelet = Cluster(bed, namespace, "alpha", 1, free_port()), Kubelet(bed, f"kubelet-{free_port()}")
    alpha.install()
    async with kubelet.running():
        bed.create(
            {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": namespace}}
        )
        fill(alpha, kubelet.name)
        files = await dumped(tmp_path, alpha)
    certificates = [
        alpha.data("secrets", f"clustermesh-apiserver-{leaf}-cert")["tls.key"] for leaf in ("server", "local")
    ]
    for name, data in files.items():
        for secret in (*SECRETS.values(), VARIABLE, VALUE, *certificates, alpha.data("secrets", "cilium-ca")["ca.key"]):
            assert secret not in data, name
            assert secret.strip() not in data, name
            assert base64.b64encode(secret) not in data, name
        assert b"MIGHAgEAMBMGByqGSM49" not in data, name
        assert b"tr0ub4dor" not in data, name
    assert {
        "status.json",
        "versions.json",
        "values.json",
        "certificates.json",
        "objects/deployments.json",
        "objects/events.json",
        "logs/agent-1/agent.log",
        f"nodes/{kubelet.name}/status.json",
        f"nodes/{kubelet.name}/bpf-lb-list.json",
    } <= files.keys()
    assert {"logs/nameless/server.log", "objects/clustermeshpeers.json"} <= files.keys()
    assert "logs/strange/agent.log" not in files, "it is of others"
    assert b"a log of agent" in files["logs/agent-1/agent.log"]
    assert b'["clustermesh","node","status","-o","json"]' in files[f"nodes/{kubelet.name}/status.json"].replace(
        b" ", b""
    )
    secrets = {each["metadata"]["name"]: each["data"] for each in json.loads(files["objects/secrets.json"])}
    assert secrets["some-binary"] == {"it": "REDACTED: 64 bytes"}
    (values,) = json.loads(files["values.json"])
    assert values["values"] == {"cluster": {"name": "alpha"}, "etcd": {"password": "REDACTED"}}
    index = json.loads(files["index.json"])
    assert "the disk is gone" in index["missing"]["logs/agent-1/mute.log"]


async def test_of_a_cluster_that_is_half_dead_there_is_the_other_half(
    bed: KubeBed, namespace: str, tmp_path: Path
) -> None:
    """No kubelet answers, its etcd does not, one Secret is no certificate, and there is no room for everything."""
    alpha = Cluster(bed, namespace, "alpha", 1, free_port())
    alpha.install()
    bed.create({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": namespace}})
    fill(alpha, "nobody")
    broken = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "cilium-ca", "namespace": namespace}}
    bed.merge(broken, {"data": {"ca.crt": "bm9uZQ=="}})
    files = await dumped(tmp_path, alpha, "--timeout", "30s", "--most-mib", "1")
    index = json.loads(files["index.json"])
    assert {"logs/agent-1/agent.log", "nodes/nobody/status.json"} <= index["missing"].keys()
    assert {"objects/pods.json", "objects/secrets.json", "certificates.json"} <= files.keys()
    assert sum(map(len, files.values())) < 2 << 20
    assert index["seconds"] < 40


async def test_of_more_pods_than_there_is_room_for_ours_are_there_and_the_file_is_whole(
    bed: KubeBed, namespace: str, tmp_path: Path
) -> None:
    alpha = Cluster(bed, namespace, "alpha", 1, free_port())
    alpha.install()
    bed.create({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": namespace}})
    spec = {"nodeName": "nobody", "automountServiceAccountToken": False}
    for number in range(12):
        image = {"name": "a", "image": "x", "args": ["y" * 200_000]}
        alpha.make("Pod", f"a-large-one-{number}", spec={**spec, "containers": [image]})
    fill(alpha, "nobody")
    files = await dumped(tmp_path, alpha, "--timeout", "60s")
    index = json.loads(files["index.json"])
    assert index["missing"]["objects/pods.json"].endswith(" are here, the others have no room")
    names = [each["metadata"]["name"] for each in json.loads(files["objects/pods.json"])]
    assert (names[:2], len(names) < 15) == (["agent-1", "nameless"], True)
    assert "logs/agent-1/agent.log" in index["missing"], "it is asked for"


async def test_who_may_not_read_secrets_gets_an_archive_without_texts(
    bed: KubeBed, namespace: str, tmp_path: Path
) -> None:
    alpha = Cluster(bed, namespace, "alpha", 1, free_port())
    alpha.install()
    bed.create({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": namespace}})
    fill(alpha, "nobody")
    rules = [Rule("", each, ("list",)) for each in ("pods", "configmaps", "services")]
    bed.allow("half-blind", cluster_role("half-blind", rules))
    files = await dumped(tmp_path, alpha, "--timeout", "60s", cert="half-blind")
    assert {"objects/pods.json", "objects/configmaps.json", "objects/services.json"} <= files.keys()
    assert not any(name.startswith(("logs/", "nodes/")) for name in files)
    for name, data in files.items():
        for secret in (SECRETS["password"], VARIABLE):
            assert secret not in data, name
    missing = json.loads(files["index.json"])["missing"]
    assert missing["values.json"] == "Secrets could not be read"
    assert "may not list" in missing["objects/secrets.json"] or "may not get" in missing["objects/secrets.json"]
