"""What the chart starts, started: the rendered command lines with files, accounts and capabilities of their pods.

certificates job ──> Secrets ──> etcd-init, etcd, API server, mirror   <── a cluster of clustermesh.config reads
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from chart_bed import MISSING, apply, decoded, define, merged, named, rendered
from kube_bed import KubeBed
from pod_bed import Pod, missing
from ports import free_port
from processes import PATIENCE, page, until_page

from certs.check import read_certificates
from certs.issue import issue
from certs.names import remote
from certs.pair import write_pair
from certs.secrets import authority_of
from clustermesh.errors import ClusterMeshError
from clustermesh.kube.rbac import cluster_role
from clustermesh.mesh.peer_files import read_peers
from clustermesh.multicluster.documents import IMPORT_RULES, SLICE_RULES
from clustermesh.sources.served import RULES
from clustermesh.store.client import EtcdClient
from clustermesh.store.tls import Tls
from clustermesh.wire import keys

pytestmark = pytest.mark.skipif(bool(MISSING or missing()), reason=MISSING or missing())

IP = "127.0.0.2"


def values(**api: Any) -> dict[str, Any]:
    """With ports that nobody has."""
    ports = {"port": free_port(), "kvstoremesh": {"port": free_port()}, "etcd": {"port": free_port()}}
    config = {"enabled": True, "clusters": [{"name": "beta", "port": free_port(), "ips": ["127.0.0.1"]}]}
    api = merged({"metrics": ports, "etcd": {"port": free_port()}, "service": {"nodePort": 0}}, api)
    return {"clustermesh": {"config": config, "apiserver": api}}


def installed(bed: KubeBed, namespace: str, said: dict[str, Any]) -> list[dict[str, Any]]:
    objects = rendered(said, namespace)
    apply(bed, objects)
    return objects


async def certified(bed: KubeBed, folder: Path, namespace: str, objects: list[dict[str, Any]]) -> int:
    """How the certificates' job ends."""
    (job,) = [each for each in objects if each["kind"] == "Job"]
    async with Pod(bed, folder, namespace, job["spec"]["template"], IP).run("certificates") as process:
        return await process.wait()


def secrets(bed: KubeBed, namespace: str) -> dict[str, Any]:
    return {
        each["metadata"]["name"]: each
        for each in bed.ask("GET", f"/api/v1/namespaces/{namespace}/secrets")["items"]
        if each["type"] != "kubernetes.io/service-account-token"
    }


@asynccontextmanager
async def running(bed: KubeBed, folder: Path, namespace: str, said: dict[str, Any], ip: str = IP) -> AsyncIterator[Pod]:
    """Everything in the API server's pod."""
    objects = installed(bed, namespace, said)
    assert await certified(bed, folder / "job", namespace, objects) == 0
    template = named(objects, "Deployment", "clustermesh-apiserver")["spec"]["template"]
    pod = Pod(bed, folder / "pod", namespace, template, ip)
    async with pod.run("etcd-init") as init:
        assert await init.wait() == 0
    async with AsyncExitStack() as stack:
        for container in template["spec"]["containers"]:
            await stack.enter_async_context(pod.run(container["name"]))
        yield pod


def beta(bed: KubeBed, namespace: str, folder: Path) -> Tls:
    """What the cluster beta shows to the etcd of this one."""
    authority = decoded(secrets(bed, namespace)["cilium-ca"])
    (folder / "ca.crt").write_bytes(authority["ca.crt"])
    write_pair(folder, "beta", issue(authority_of(authority), remote("beta"), datetime.now(UTC)))
    return Tls(folder / "ca.crt", folder / "beta.crt", folder / "beta.key")


async def until_read(said: dict[str, Any], tls: Tls) -> bytes:
    """The cluster's config, as beta reads it."""
    at, port = "alpha.mesh.cilium.io", said["clustermesh"]["apiserver"]["etcd"]["port"]
    async with EtcdClient([f"https://{at}:{port}"], tls, aliases={at: [IP]}) as client, asyncio.timeout(PATIENCE):
        while (found := await _config(client)) is None:
            await asyncio.sleep(0.1)
    value: bytes = found.value
    return value


async def test_a_connected_cluster_reads_what_the_rendered_command_lines_publish(
    bed: KubeBed, namespace: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    said = merged(values(), {"clustermesh": {"mcsapi": {"enabled": True}}})
    ports = said["clustermesh"]["apiserver"]["metrics"]
    async with running(bed, tmp_path, namespace, said):
        await until_page(f"{IP}:{ports['etcd']['port']}", "/health", "true")
        assert b'"id":1' in await until_read(said, beta(bed, namespace, tmp_path))
        for port in (ports["port"], ports["kvstoremesh"]["port"]):
            await until_page(f"127.0.0.1:{port}", "/livez", "ok")
        assert "source: Kubernetes API, native mode" in (await page(f"127.0.0.1:{ports['port']}", "/readyz"))[1]
    assert "is no flag of this program" not in capfd.readouterr().err


async def test_before_the_first_cluster_is_connected_nothing_is_wrong_and_who_is_named_then_gets_in(
    bed: KubeBed, namespace: str, tmp_path: Path
) -> None:
    said = merged(values(), {"clustermesh": {"config": {"enabled": False, "clusters": []}}})
    port = said["clustermesh"]["apiserver"]["metrics"]["port"]
    async with running(bed, tmp_path, namespace, said) as pod:
        assert await until_page(f"127.0.0.1:{port}", "/readyz", "ok") == "ok\nsource: Kubernetes API, native mode\n"
        users = {"users.yaml": "users: [{name: remote-beta, role: remote}]"}
        meta = {"name": "clustermesh-remote-users", "namespace": namespace}
        bed.create({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": users})
        pod.refresh("users")
        assert b'"id":1' in await until_read(said, beta(bed, namespace, tmp_path))


async def _config(client: EtcdClient) -> Any:
    try:
        return await client.get(keys.cluster_config_key("alpha"))
    except ClusterMeshError:
        return None


async def test_several_jobs_at_once_make_one_set_of_certificates_and_a_later_one_changes_nothing(
    bed: KubeBed, namespace: str, tmp_path: Path
) -> None:
    objects = installed(bed, namespace, values())
    jobs = [certified(bed, tmp_path / str(number), namespace, objects) for number in range(3)]
    assert await asyncio.gather(*jobs) == [0, 0, 0]
    made = secrets(bed, namespace)
    for name in ("server", "admin", "local", "remote"):
        data = decoded(made[f"clustermesh-apiserver-{name}-cert"])
        assert data["ca.crt"] == decoded(made["cilium-ca"])["ca.crt"]
        (leaf,) = read_certificates(data["tls.crt"], name)
        leaf.verify_directly_issued_by(authority_of(decoded(made["cilium-ca"])).certificate)
    assert await certified(bed, tmp_path / "later", namespace, objects) == 0
    assert secrets(bed, namespace) == made


async def test_a_job_makes_anew_what_is_unfit_and_leaves_an_authority_alone(
    bed: KubeBed, namespace: str, tmp_path: Path
) -> None:
    objects = installed(bed, namespace, values())
    await certified(bed, tmp_path / "first", namespace, objects)
    made = secrets(bed, namespace)
    broken = made["clustermesh-apiserver-admin-cert"]
    bed.merge(
        {"apiVersion": "v1", "kind": "Secret", **broken},
        {"data": {"tls.key": "bm9uZQ=="}, "metadata": {"labels": {"mine": "1"}}},
    )
    assert await certified(bed, tmp_path / "second", namespace, objects) == 0
    now = secrets(bed, namespace)
    changed = {name for name in made if now[name] != made[name]}
    assert changed == {broken["metadata"]["name"]}
    assert now[broken["metadata"]["name"]]["metadata"]["labels"]["mine"] == "1"
    bed.merge({"apiVersion": "v1", "kind": "Secret", **made["cilium-ca"]}, {"data": {"ca.key": "bm9uZQ=="}})
    before = secrets(bed, namespace)
    assert await certified(bed, tmp_path / "third", namespace, objects) == 1
    assert secrets(bed, namespace) == before


def declared(name: str, number: int, own: int, other: str, at: str, port: int) -> dict[str, Any]:
    """The cluster `name`, whose etcd listens on `own`, connected with `other`."""
    peers = {"enabled": True, "clusters": [{"name": other, "port": port, "ips": [at]}]}
    api = {"etcd": {"port": own}}
    return merged(values(**api), {"cluster": {"name": name, "id": number}, "clustermesh": {"config": peers}})


async def test_two_clusters_that_are_declared_copy_what_the_other_one_publishes(
    bed: KubeBed, namespace: str, tmp_path: Path
) -> None:
    """With one authority, put into both before the charts are installed."""
    other, ports = f"{namespace[:40]}-beta", (free_port(), free_port())
    bed.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": other}})
    alpha = declared("alpha", 1, ports[0], "beta", "127.0.0.3", ports[1])
    beta = declared("beta", 2, ports[1], "alpha", IP, ports[0])
    alpha = merged(alpha, {"clustermesh": {"mcsapi": {"enabled": True}}})
    role = cluster_role(namespace, (*RULES, *SLICE_RULES, *IMPORT_RULES))
    bed.allow(f"system:serviceaccount:{namespace}:clustermesh-apiserver", role)
    async with exports(bed, namespace), running(bed, tmp_path / "alpha", namespace, alpha):
        ca = secrets(bed, namespace)["cilium-ca"]
        meta = {"name": "cilium-ca", "namespace": other}
        bed.create({"apiVersion": "v1", "kind": "Secret", "metadata": meta, "data": ca["data"]})
        async with running(bed, tmp_path / "beta", other, beta, "127.0.0.3"):
            for said, peer in ((alpha, "beta"), (beta, "alpha")):
                mirror = said["clustermesh"]["apiserver"]["metrics"]["kvstoremesh"]["port"]
                ready = f'cilium_kvstoremesh_remote_cluster_readiness_status{{target_cluster="{peer}"}} 1.0'
                await until_page(f"127.0.0.1:{mirror}", "/metrics", ready)
            template = named(rendered(alpha, namespace), "DaemonSet", "clustermesh-agent")["spec"]["template"]
            agent = Pod(bed, tmp_path / "agent", namespace, template, IP)
            found = read_peers(agent.path("clustermesh"), "alpha")
            (file,) = found.peers.values()
            assert file.endpoints == (f"https://clustermesh-apiserver.{namespace}.svc:{ports[0]}",)
            local = decoded(secrets(bed, namespace)["clustermesh-apiserver-local-cert"])
            assert (agent.path("clustermesh") / "local-etcd-client.crt").read_bytes() == local["tls.crt"]
            tls = Tls(*(agent.path("clustermesh") / Path(each).name for each in (file.ca, file.cert, file.key) if each))
            at = f"clustermesh-apiserver.{namespace}.svc"
            async with EtcdClient(file.endpoints, tls, aliases={at: [IP]}) as client:
                copied = await client.get(keys.cluster_config_key("beta"))
            assert copied is not None
            assert b'"cached":true' in copied.value
            await until_imported(bed, namespace, ["alpha", "beta"])


@asynccontextmanager
async def exports(bed: KubeBed, namespace: str) -> AsyncIterator[None]:
    """A Service is exported by whoever publishes what this API has."""
    definitions = define(bed, "serviceexports", "serviceimports")
    meta = {"name": "cart", "namespace": namespace}
    bed.create(
        {"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": {"ports": [{"port": 80}]}},
        {"apiVersion": "multicluster.x-k8s.io/v1alpha1", "kind": "ServiceExport", "metadata": meta},
    )
    try:
        yield
    finally:
        for each in definitions:
            bed.delete(each)


async def until_imported(bed: KubeBed, namespace: str, clusters: list[str]) -> None:
    path = f"/apis/multicluster.x-k8s.io/v1beta1/namespaces/{namespace}/serviceimports"
    async with asyncio.timeout(PATIENCE):
        while True:
            found = [each.get("status", {}).get("clusters", []) for each in bed.ask("GET", path)["items"]]
            if found == [[{"cluster": each} for each in clusters]]:
                return
            await asyncio.sleep(0.1)


def pods_at(namespace: str, *addresses: str) -> dict[str, Any]:
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": "clustermesh-apiserver-1",
            "namespace": namespace,
            "labels": {"kubernetes.io/service-name": "clustermesh-apiserver"},
        },
        "addressType": "IPv4",
        "endpoints": [{"addresses": [each]} for each in addresses],
        "ports": [{"name": "etcd", "port": 12379}],
    }


async def test_beside_an_agent_the_etcd_is_found_wherever_it_goes(bed: KubeBed, namespace: str, tmp_path: Path) -> None:
    objects = installed(bed, namespace, values())
    await certified(bed, tmp_path / "job", namespace, objects)
    template = named(objects, "DaemonSet", "clustermesh-agent")["spec"]["template"]
    pod = Pod(bed, tmp_path / "agent", namespace, template, IP)
    async with pod.run("hosts-init") as init:
        assert await init.wait() == 0
    hosts, own = pod.path("hosts") / "hosts", Path("/etc/hosts").read_text()
    assert hosts.read_text() == own
    inode, name = hosts.stat().st_ino, f"clustermesh-apiserver.{namespace}.svc"
    said = pods_at(namespace, "192.0.2.1")
    async with pod.run("hosts") as process:
        bed.create(said)
        for addresses in (["192.0.2.1"], ["192.0.2.2", "192.0.2.9"], ["192.0.2.3"]):
            bed.merge(said, pods_at(namespace, *addresses))
            wanted = [f"{each}\t{name}" for each in addresses]
            async with asyncio.timeout(PATIENCE):
                while [line for line in hosts.read_text().splitlines() if name in line] != wanted:
                    await asyncio.sleep(0.05)
        bed.merge(said, pods_at(namespace))
        process.terminate()
        assert await process.wait() == 0, "a signal alone does not end a container's first process"
    assert hosts.read_text().startswith(own)
    assert hosts.stat().st_ino == inode, "it is mounted into another container"


async def test_the_plugin_is_put_where_the_runtime_looks(bed: KubeBed, namespace: str, tmp_path: Path) -> None:
    objects = installed(bed, namespace, values())
    await certified(bed, tmp_path / "job", namespace, objects)
    template = named(objects, "DaemonSet", "clustermesh-agent")["spec"]["template"]
    pod = Pod(bed, tmp_path / "agent", namespace, template, IP)
    async with pod.run("cni-install") as process:
        assert await process.wait() == 0
    assert (pod.path("cni-bin") / "clustermesh-cni").stat().st_mode & 0o777 == 0o755
    assert (pod.path("cni-conf") / "05-clustermesh.conflist").exists()
