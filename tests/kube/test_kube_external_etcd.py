"""The chart with an etcd of the operator's own, which asks for certificates and users:

API server 1 ──> etcd <── API server 2         what leads keeps declared peers and imports, whoever that is
                  ^─── beta, by `clustermesh connect` and a user that the operator adds
"""

from __future__ import annotations

import asyncio
import base64
import shutil
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from chart_bed import MISSING, apply, define, merged, named, rendered
from click.testing import CliRunner
from etcd_flags import QUICK
from joined_bed import Cluster
from kube_bed import KubeBed
from msgspec import Struct
from pod_bed import Pod, missing
from ports import free_port
from processes import PATIENCE, kill, until_page
from state_sink import StateSink
from test_kube_invitations import invited, inviting, joining

from certs.check import read_pair
from certs.issue import issue
from certs.names import Leaf
from certs.pair import write_pair
from clustermesh.apiserver.users import REMOTE_ROLE, roles
from clustermesh.cli import main
from clustermesh.errors import Refused
from clustermesh.joining import names
from clustermesh.joining.connect import Wanted, connect, disconnect
from clustermesh.joining.holders import hold_secrets
from clustermesh.joining.inviting import fingerprint
from clustermesh.joining.links import Mode
from clustermesh.joining.rotating import rotate_authority
from clustermesh.joining.status import read_status
from clustermesh.kube.rbac import cluster_role
from clustermesh.mesh.peer_files import read_peers
from clustermesh.mesh.reader import ClusterReader
from clustermesh.mesh.session import State
from clustermesh.mesh.shared_clients import client_of
from clustermesh.mesh.tables import peer_tables
from clustermesh.multicluster.documents import IMPORT_RULES, SLICE_RULES
from clustermesh.sources.served import RULES
from clustermesh.store import auth
from clustermesh.store.auth import Access, Grant
from clustermesh.store.client import EtcdClient
from clustermesh.store.local import LocalEtcd
from clustermesh.store.tls import Tls
from clustermesh.wire import agent_report, keys
from clustermesh.wire.agent_report import AgentReport, SeenCluster

pytestmark = pytest.mark.skipif(bool(MISSING or missing()), reason=MISSING or missing())
NOW = datetime.now(UTC)
IP = "127.0.0.2"


class Site(Struct):
    """alpha, with the chart and an etcd that an operator keeps, who is `root` there."""

    cluster: Cluster
    values: dict[str, Any]
    objects: list[dict[str, Any]]
    root: EtcdClient
    certificates: Path

    def pair(self, leaf: Leaf) -> Tls:
        ca = read_pair(self.cluster.folder.ca.read_bytes(), self.cluster.folder.key("ca").read_bytes(), "ca")
        write_pair(self.certificates, leaf.common_name, issue(ca, leaf, NOW))
        name = self.certificates / leaf.common_name
        return Tls(self.cluster.folder.ca, name.with_suffix(".crt"), name.with_suffix(".key"))


def values(port: int) -> dict[str, Any]:
    ports = {"port": free_port(), "kvstoremesh": {"port": free_port()}}
    return {
        "etcd": {"enabled": True, "endpoints": [f"https://127.0.0.1:{port}"]},
        "clustermesh": {"apiserver": {"replicas": 2, "metrics": ports}, "mcsapi": {"enabled": True}},
    }


@pytest.fixture
async def alpha(bed: KubeBed, namespace: str, tmp_path: Path) -> AsyncIterator[Site]:
    """As the documents have it done: etcd with TLS and users, the Secrets, the chart."""
    port = free_port()
    cluster = Cluster(bed, namespace, "alpha", 1, port)
    said = values(port)
    site = Site(cluster, said, rendered(said, namespace), None, tmp_path)  # type: ignore[arg-type]
    root, own = site.pair(Leaf("root")), site.pair(Leaf("mesh-alpha"))
    server = site.pair(Leaf("etcd", server=True, hosts=("127.0.0.1",)))
    etcd = LocalEtcd(tmp_path / "etcd", [f"https://127.0.0.1:{port}"], server, client_tls=root, flags=QUICK)
    await etcd.start()
    try:
        async with EtcdClient(etcd.endpoints, root) as site.root:
            prefixes = (b"cilium/", keys.OWN)
            await auth.ensure_role(
                site.root, "mesh", [Grant(prefix=each, access=Access.READWRITE) for each in prefixes]
            )
            await auth.ensure_role(site.root, REMOTE_ROLE, roles(cluster.folder.cluster)[REMOTE_ROLE])
            await auth.ensure_user(site.root, auth.ROOT, auth.ROOT)
            await auth.ensure_user(site.root, "mesh-alpha", "mesh")
            await auth.enable(site.root)
            cluster.make("Secret", "cilium-ca", data=cluster.cert("ca"))
            shown = {"-ca.crt": own.ca, ".crt": own.cert, ".key": own.key}
            data = {f"etcd-client{end}": base64.b64encode(path.read_bytes()).decode() for end, path in shown.items()}
            cluster.make("Secret", "cilium-etcd-secrets", data=data)
            apply(bed, site.objects)
            yield site
    finally:
        await etcd.stop()


@pytest.fixture
def defined(bed: KubeBed) -> Iterator[None]:
    definitions = define(bed, "serviceexports", "serviceimports", "clustermeshpeers")
    yield
    for each in definitions:
        bed.delete(each)


@asynccontextmanager
async def api_server(site: Site, folder: Path) -> AsyncIterator[tuple[Any, int]]:
    """One replica, as its own command line starts it, and its port: those of two on one machine differ."""
    said = merged(site.values, values(site.cluster.port))
    objects = rendered(said, site.cluster.namespace)
    template = named(objects, "Deployment", "clustermesh-apiserver")["spec"]["template"]
    pod = Pod(site.cluster.bed, folder, site.cluster.namespace, template, IP)
    async with pod.run("apiserver") as process:
        yield process, said["clustermesh"]["apiserver"]["metrics"]["port"]


def keep(site: Site, name: str) -> None:
    """What has to be kept: a declared peer, and a service that is exported, both called `name`."""
    meta = {"name": name, "namespace": site.cluster.namespace}
    site.cluster.bed.create(
        {"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": {"ports": [{"port": 80}]}},
        {"apiVersion": "multicluster.x-k8s.io/v1alpha1", "kind": "ServiceExport", "metadata": meta},
        {
            "apiVersion": "clustermesh.io/v1alpha1",
            "kind": "ClusterMeshPeer",
            "metadata": meta,
            "spec": {"addresses": ["192.0.2.9"]},
        },
    )


async def until_kept(site: Site, name: str) -> None:
    bed, namespace = site.cluster.bed, site.cluster.namespace
    imports = f"/apis/multicluster.x-k8s.io/v1beta1/namespaces/{namespace}/serviceimports"
    async with asyncio.timeout(PATIENCE):
        while True:
            found = {each["metadata"]["name"]: each.get("status", {}) for each in bed.ask("GET", imports)["items"]}
            if found.get(name, {}).get("clusters") == [{"cluster": "alpha"}] and name in peers(site):
                return
            await asyncio.sleep(0.1)


def peers(site: Site) -> Mapping[str, bytes]:
    try:
        return site.cluster.data("secrets", "cilium-kvstoremesh")
    except RuntimeError:
        return {}


async def test_of_two_api_servers_the_second_keeps_peers_and_imports_when_the_first_is_killed(
    defined: None, alpha: Site, tmp_path: Path
) -> None:
    namespace = alpha.cluster.namespace
    role = cluster_role(namespace, (*RULES, *SLICE_RULES, *IMPORT_RULES))
    alpha.cluster.bed.allow(f"system:serviceaccount:{namespace}:clustermesh-apiserver", role)
    async with api_server(alpha, tmp_path / "first") as (first, _):
        keep(alpha, "beta")
        await until_kept(alpha, "beta")
        async with api_server(alpha, tmp_path / "second") as (_, port):
            await until_page(f"127.0.0.1:{port}", "/readyz", "ok")
            await kill(first)
            keep(alpha, "gamma")
            await until_kept(alpha, "gamma")
            assert b"mesh-alpha" not in peers(alpha)["beta"]
            agents = alpha.cluster.data("secrets", "cilium-clustermesh")["beta"].decode()
            assert f"https://127.0.0.1:{alpha.cluster.port}" in agents
            assert "/var/lib/cilium/etcd-secrets/etcd-client.key" in agents


async def test_another_cluster_is_connected_and_reads_it_once_the_operator_has_added_its_user(
    defined: None, alpha: Site, other_bed: KubeBed, namespace: str, tmp_path: Path
) -> None:
    beta = Cluster(other_bed, namespace, "beta", 2, free_port())
    beta.install(enable_wireguard="true")
    place = beta.folder
    served = Tls(place.ca, place.certificate("server"), place.key("server"))
    etcd = LocalEtcd(place.etcd, [place.endpoint], served, client_tls=served, flags=QUICK)
    await etcd.start()
    try:
        async with alpha.cluster.site() as source, beta.site() as destination:
            outcome = await connect(source, [destination], Wanted(), NOW)
            assert len(outcome.done) == 5, outcome.done  # of alpha, which has a mirror, three
            assert any("etcdctl user add remote-beta --no-password" in each for each in outcome.warnings)
        async with alpha.cluster.site() as source, beta.site() as destination:
            assert (await connect(source, [destination], Wanted(), NOW)).done == []
        found = read_peers(beta.mount(tmp_path / "mounted"), "beta")
        assert found.peers["alpha"].endpoints == (f"https://127.0.0.1:{alpha.cluster.port}",)
        await auth.ensure_user(alpha.root, "remote-beta", REMOTE_ROLE)
        async with api_server(alpha, tmp_path / "pod"):
            reader = ClusterReader(
                "alpha", StateSink(), lambda: client_of(found.peers["alpha"], 2.0), peer_tables, lambda *_: None
            )
            task = asyncio.create_task(reader.run())
            try:
                async with asyncio.timeout(PATIENCE):
                    while reader.session.state is not State.FRESH:
                        await asyncio.sleep(0.05)
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
            told = alpha.cluster.data("secrets", "cilium-clustermesh")["beta"].decode()
            assert f"https://127.0.0.1:{alpha.cluster.port}" in told
            assert "/var/lib/cilium/etcd-secrets/etcd-client.crt" in told
            await until_well(alpha)
        async with alpha.cluster.site() as source, beta.site() as destination:
            undone = await disconnect(source, "beta", destination, Mode.BIDIRECTIONAL)
        assert any("etcdctl user delete remote-beta" in each for each in undone.warnings)
        config = str(alpha.cluster.bed.write_kubeconfig("alpha", cert="admin"))
        words = ["certs", "secrets", "--cluster-name", "alpha", "--namespace", namespace, "--kubeconfig", config]
        made = await asyncio.to_thread(CliRunner().invoke, main, words)
        assert (made.exit_code, names.SERVER_CERT in made.output) == (0, True), made.output
        async with inviting(alpha.cluster) as address:  # once newcomers can know it
            await joining(beta, await invited(alpha.cluster, address, to="beta"))
        joined = read_peers(beta.mount(tmp_path / "joined"), "beta").peers["alpha"]
        assert joined.endpoints == (f"https://127.0.0.1:{alpha.cluster.port}",)
        async with client_of(joined, 2.0) as client:
            assert (await client.status()).version
    finally:
        await etcd.stop()
        shutil.rmtree(place.etcd, ignore_errors=True)


async def until_well(site: Site) -> None:
    """Where pods and agents are there, as no kubelet and no agent here can be."""
    deployment = named(site.objects, "Deployment", "clustermesh-apiserver")
    path = f"/apis/apps/v1/namespaces/{site.cluster.namespace}/deployments/clustermesh-apiserver/status"
    ready = {"status": {"replicas": 2, "readyReplicas": 2, "availableReplicas": 2}}
    assert deployment["spec"]["replicas"] == 2
    site.cluster.bed.ask("PATCH", path, ready, "application/merge-patch+json")
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}, "spec": {"podCIDR": "10.1.1.0/24"}}
    site.cluster.bed.create(node | {"status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]}})
    report = AgentReport("0.1.0", "", (), (SeenCluster("alpha", "fresh", 1), SeenCluster("beta", "fresh", 2)))
    await site.root.put(keys.STATUSES + b"n1", agent_report.encode(report))
    last = monotonic() + PATIENCE
    while True:
        async with site.cluster.site() as found:
            status = await read_status(found)
        if status["ok"]:
            break
        assert monotonic() < last, status
        await asyncio.sleep(0.2)
    site.cluster.bed.delete(node)
    assert status["access_information"] == [f"https://127.0.0.1:{site.cluster.port}"]
    assert status["etcd"] == {"external": True}


async def test_what_is_missing_beside_such_an_etcd_is_said(alpha: Site, namespace: str) -> None:
    async with alpha.cluster.site() as site:
        said = (await read_status(site))["errors"]
        assert any("0 of 2 replicas" in each for each in said)
        with pytest.raises(Refused, match="`clustermesh certs secrets`, or use `clustermesh connect`"):
            fingerprint(site.member.server.cert, site.member.trusted)
        assert site.member.etcd is not None
        with pytest.raises(Refused, match="its etcd is your own"):
            await rotate_authority([await hold_secrets(site)], timedelta(0), print)
    told = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "cilium-config", "namespace": namespace}}
    alpha.cluster.bed.merge(told, {"data": {"etcd-config": None}})  # Cilium's, where the agents are
    async with alpha.cluster.site() as site_beside_cilium:
        assert site_beside_cilium.member.etcd == site.member.etcd
    secret = {"apiVersion": "v1", "kind": "Secret"}
    meta = {"name": "cilium-etcd-secrets", "namespace": namespace}
    alpha.cluster.bed.delete({**secret, "metadata": meta})
    async with alpha.cluster.site() as site:
        said = (await read_status(site))["errors"]
    assert any("no Secret cilium-etcd-secrets with etcd-client-ca.crt" in each for each in said)
