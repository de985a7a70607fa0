"""Certificates of a connected cluster replaced while it is read: the chart's programs, and a kubelet's part played.

`certs rotate` ──> Secrets of alpha and beta ──> files of their pods ──> beta's etcd  <── alpha's mirror
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from chart_bed import MISSING, apply, decoded, named, rendered
from joined_bed import Cluster as Joined
from joined_bed import ensure_namespace
from kube_bed import KubeBed
from pod_bed import Pod, missing
from ports import free_port
from processes import PATIENCE, child, page, until_page

from certs.check import is_signed_by, read_certificates, read_pair
from certs.folder import initialise
from certs.names import cluster_leaves
from certs.pair import load_pair, write_pair
from clustermesh.errors import ClusterMeshError
from clustermesh.joining.connect import Wanted, connect
from clustermesh.joining.holders import hold_secrets
from clustermesh.joining.rotating import rotate_authority
from clustermesh.kube.rbac import cluster_role
from clustermesh.sources.served import RULES
from clustermesh.store.client import EtcdClient
from clustermesh.store.tls import Tls

pytestmark = pytest.mark.skipif(bool(MISSING or missing()), reason=MISSING or missing())

IPS = {"alpha": "127.0.0.2", "beta": "127.0.0.3"}
AT_MOST = 5.0
"""Seconds that a reader may be without its connection."""


class Cluster:
    """One that the chart is installed in, all of its programs to run at an address of its own."""

    def __init__(self, bed: KubeBed, namespace: str, name: str, folder: Path) -> None:
        self.bed, self.namespace, self.name, self.folder = bed, namespace, name, folder
        self.port, self.mirror = free_port(), free_port()
        ports = {"port": free_port(), "kvstoremesh": {"port": self.mirror}, "etcd": {"port": free_port()}}
        api = {"metrics": ports, "etcd": {"port": self.port}, "service": {"nodePort": 0}}
        said = {"cluster": {"name": name, "id": len(name)}, "clustermesh": {"apiserver": api}}
        ensure_namespace(bed, namespace)
        self.objects = rendered(said, namespace)
        apply(bed, self.objects)
        bed.allow(f"system:serviceaccount:{namespace}:clustermesh-apiserver", cluster_role(namespace, RULES))

    async def certified(self) -> int:
        (job,) = [each for each in self.objects if each["kind"] == "Job"]
        template = job["spec"]["template"]
        async with Pod(self.bed, self.folder / "job", self.namespace, template, IPS[self.name]).run(
            "certificates"
        ) as p:
            return await p.wait()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        template = named(self.objects, "Deployment", "clustermesh-apiserver")["spec"]["template"]
        pod = Pod(self.bed, self.folder / "pod", self.namespace, template, IPS[self.name])
        async with pod.run("etcd-init") as init:
            assert await init.wait() == 0
        async with AsyncExitStack() as stack:
            for container in template["spec"]["containers"]:
                await stack.enter_async_context(pod.run(container["name"]))
            kubelet = asyncio.create_task(_bring_secrets(pod, template))
            try:
                yield
            finally:
                kubelet.cancel()
                await asyncio.gather(kubelet, return_exceptions=True)

    def secret(self, name: str) -> dict[str, bytes]:
        return decoded(self.bed.ask("GET", f"/api/v1/namespaces/{self.namespace}/secrets/{name}"))

    def tls(self, name: str, shown: Mapping[str, bytes]) -> Tls:
        """What `shown` of a Secret shows to this etcd, whose certificate is trusted as it is now."""
        files = {"ca": self.secret("cilium-ca")["ca.crt"], "crt": shown["tls.crt"], "key": shown["tls.key"]}
        paths = [self.folder / f"{name}.{end}" for end in files]
        for path, data in zip(paths, files.values(), strict=True):
            path.write_bytes(data)
        return Tls(*paths)

    async def refusal(self, tls: Tls) -> str | None:
        """Why its etcd lets nobody in who shows that; None where it does."""
        url, at = f"https://{self.name}.mesh.cilium.io:{self.port}", {f"{self.name}.mesh.cilium.io": [IPS[self.name]]}
        async with EtcdClient([url], tls, aliases=at) as client:
            while True:
                try:
                    await client.status()
                    return None
                except ClusterMeshError as e:
                    if "certificate" in str(e) or "unknown ca" in str(e):
                        return str(e)
                    await asyncio.sleep(0.1)  # it is just being started again

    async def reads(self, other: str) -> bool:
        """Whether the mirror follows `other` at this moment."""
        ready = f'cilium_kvstoremesh_remote_cluster_readiness_status{{target_cluster="{other}"}} 1.0'
        return ready in (await page(f"127.0.0.1:{self.mirror}", "/metrics"))[1]


async def _bring_secrets(pod: Pod, template: dict[str, Any]) -> None:
    while True:
        for volume in template["spec"]["volumes"]:
            if "secret" in volume or volume["name"] == "clustermesh":
                await asyncio.to_thread(pod.refresh, volume["name"])
        await asyncio.sleep(1.0)


async def longest_without(reader: Cluster, owner: str) -> float:
    """Seconds, until cancelled; what was found is the task's own."""
    loop, longest, last = asyncio.get_running_loop(), 0.0, asyncio.get_running_loop().time()
    try:
        while True:
            if await reader.reads(owner):
                last = loop.time()
            longest = max(longest, loop.time() - last)
            await asyncio.sleep(0.1)
    except asyncio.CancelledError:
        return longest


async def command(folder: Path, *words: str) -> int:
    argv = [sys.executable, "-m", "clustermesh.cli", *words]
    async with child("env", f"KUBECONFIG={folder}/one:{folder}/two", *argv) as process:
        return await process.wait()


def kubeconfig(path: Path, bed: KubeBed, name: str) -> None:
    document = yaml.safe_load(bed.write_kubeconfig(name, cert="admin").read_text())
    document["clusters"][0]["name"] = document["contexts"][0]["context"]["cluster"] = name
    path.write_text(yaml.safe_dump(document))


@pytest.fixture
def pair(bed: KubeBed, other_bed: KubeBed, namespace: str, tmp_path: Path) -> tuple[Cluster, Cluster]:
    for number, each in (("one", bed), ("two", other_bed)):
        kubeconfig(tmp_path / number, each, number)
    return Cluster(bed, namespace, "alpha", tmp_path / "alpha"), Cluster(
        other_bed, namespace, "beta", tmp_path / "beta"
    )


async def test_leaves_and_authority_are_replaced_under_a_reader_that_is_never_gone_for_long(
    pair: tuple[Cluster, Cluster], namespace: str, tmp_path: Path
) -> None:
    alpha, beta = pair
    both = ("-n", namespace, "--context", "two", "--destination-context", "one")
    assert [await each.certified() for each in pair] == [0, 0]
    at = [
        word for name, side in (("beta", "source"), ("alpha", "destination")) for word in (f"--{side}-endpoint", name)
    ]
    ends = {"alpha": f"{IPS['alpha']}:{alpha.port}", "beta": f"{IPS['beta']}:{beta.port}"}
    assert await command(tmp_path, "connect", *both, "--allow-unreachable", *(ends.get(word, word) for word in at)) == 0
    async with alpha.running(), beta.running():
        for reader, owner in ((alpha, "beta"), (beta, "alpha")):
            ready = f'readiness_status{{target_cluster="{owner}"}} 1.0'
            await until_page(f"127.0.0.1:{reader.mirror}", "/metrics", ready)
        before = [each.secret(name) for each in pair for name in ("cilium-ca", "clustermesh-apiserver-server-cert")]
        before.append(beta.secret("clustermesh-apiserver-local-cert"))
        watching = [asyncio.create_task(longest_without(*each)) for each in ((alpha, "beta"), (beta, "alpha"))]
        assert await command(tmp_path, "certs", "rotate", *both) == 0
        assert before[2] == beta.secret("cilium-ca")
        assert before[3]["tls.key"] != beta.secret("clustermesh-apiserver-server-cert")["tls.key"]
        assert await command(tmp_path, "certs", "rotate", "--ca", "--settle", "4s", *both) == 0
        old = beta.tls("before", before[-1])
        async with asyncio.timeout(PATIENCE):
            while await beta.refusal(old) is None:
                await asyncio.sleep(0.1)
            assert await beta.refusal(beta.tls("now", beta.secret("clustermesh-apiserver-local-cert"))) is None
            while not all([await alpha.reads("beta"), await beta.reads("alpha")]):
                await asyncio.sleep(0.1)
        for task in watching:
            task.cancel()
        gone = await asyncio.gather(*watching)
        assert max(gone) < AT_MOST, gone
    assert before[0] == alpha.secret("cilium-ca")
    (authority,) = read_certificates(beta.secret("cilium-ca")["ca.crt"], "ca")
    assert authority != read_certificates(before[2]["ca.crt"], "ca")[0]
    assert beta.secret("cilium-ca").keys() == before[2].keys()
    for held in (beta.secret("clustermesh-apiserver-admin-cert")["ca.crt"], beta.secret("cilium-ca")["ca.crt"]):
        assert read_certificates(held, "ca") == (authority,)
    shown = alpha.secret("cilium-kvstoremesh")
    assert read_certificates(shown["beta.etcd-client-ca.crt"], "beta") == (authority,)
    read_certificates(shown["beta.etcd-client.crt"], "beta")[0].verify_directly_issued_by(authority)
    assert await command(tmp_path, "certs", "status", "-n", namespace, "--context", "two") == 0


async def test_what_somebody_else_keeps_is_left_alone_and_it_is_said_what_to_do(
    bed: KubeBed, namespace: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    kubeconfig(tmp_path / "one", bed, "one")
    alpha = Cluster(bed, namespace, "alpha", tmp_path / "alpha")
    assert await alpha.certified() == 0
    one = ("-n", namespace, "--context", "one")
    name, ca = "clustermesh-apiserver-server-cert", "cilium-ca"
    before = {each: alpha.secret(each) for each in (name, ca)}
    sealed = {"apiVersion": "bitnami.com/v1alpha1", "kind": "SealedSecret", "name": ca, "uid": "x"}
    for place, mark, flags, said in (
        (name, {"annotations": {"cert-manager.io/certificate-name": "x"}}, (), f"`cmctl renew -n {namespace} {name}`"),
        (name, {"labels": {"app.kubernetes.io/managed-by": "Helm"}}, ("--ca",), "Helm keeps"),
        (ca, {"labels": {"argocd.argoproj.io/instance": "x"}}, ("--ca",), "Argo CD keeps Secret cilium-ca"),
        (ca, {"ownerReferences": [sealed]}, ("--ca",), "SealedSecret cilium-ca keeps Secret cilium-ca"),
    ):
        secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": place, "namespace": namespace}}
        bed.merge(secret, {"metadata": mark})
        assert await command(tmp_path, "certs", "rotate", *flags, *one) == 1
        assert said in capfd.readouterr().err
        assert {each: alpha.secret(each) for each in before} == before
        if place == ca:  # it signs, whoever keeps it
            assert await command(tmp_path, "certs", "rotate", *one) == 0
            assert alpha.secret(ca) == before[ca]
            assert alpha.secret(name) != before[name]
            before[name] = alpha.secret(name)
        bed.merge(secret, {"metadata": dict.fromkeys(mark)})
    assert await command(tmp_path, "certs", "rotate", "--ca", "--settle", "0s", *one) == 0
    assert alpha.secret(name)["ca.crt"] == alpha.secret(ca)["ca.crt"] != before[name]["ca.crt"]


async def test_two_people_who_replace_one_authority_at_once_replace_it_by_one(
    bed: KubeBed, other_bed: KubeBed, namespace: str
) -> None:
    alpha, beta = Joined(bed, namespace, "alpha", 1, 2379), Joined(other_bed, namespace, "beta", 2, 2380)
    write_pair(beta.folder.certs, "ca", load_pair(alpha.folder.certs, "ca"))
    initialise(beta.folder.certs, cluster_leaves("beta", ["127.0.0.1"]), datetime.now(UTC))
    for each in (alpha, beta):
        each.install()
    before = alpha.data("secrets", "cilium-ca")

    async def rotate(*order: Joined) -> str:
        async with order[0].site() as first, order[1].site() as second:
            try:
                await rotate_authority([await hold_secrets(each) for each in (first, second)], timedelta(0), print)
            except ClusterMeshError as e:
                return str(e)
        return ""

    async with alpha.site() as source, beta.site() as destination:
        await connect(source, [destination], Wanted(unreached=True), datetime.now(UTC))
    for found in await asyncio.gather(rotate(alpha, beta), rotate(beta, alpha)):
        assert not found or "somebody else has replaced its authority" in found
    kept = alpha.data("secrets", "cilium-ca")
    assert kept == beta.data("secrets", "cilium-ca") != before
    signer = read_pair(kept["ca.crt"], kept["ca.key"], "ca")
    assert (signer.chain, kept.keys()) == ((), {"ca.crt", "ca.key"})
    for each in (alpha, beta):
        for leaf in ("server", "remote", "local"):
            shown = each.data("secrets", f"clustermesh-apiserver-{leaf}-cert")
            assert shown["ca.crt"] == kept["ca.crt"]
            assert is_signed_by(read_pair(shown["tls.crt"], shown["tls.key"], leaf).certificate, signer.certificate)
