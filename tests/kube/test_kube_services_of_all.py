"""Services of all clusters in a real Kubernetes API: imports, the Services behind them, conditions, EndpointSlices.

What a mirror would copy of the cluster beta is put into an etcd; alpha's API has its real controllers.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from chart_bed import MISSING, define, named, rendered
from dns_bed import MISSING as NO_DNS
from dns_bed import dns
from kube_bed import KubeBed
from msgspec.structs import replace

from clustermesh.address import parse, text
from clustermesh.joining.objects import Objects
from clustermesh.kube.client import KubeClient
from clustermesh.kube.config import from_kubeconfig
from clustermesh.model import Cluster, ClusterConfig, ExportPort, Port, Protocol, Service, ServiceExport
from clustermesh.multicluster.documents import SERVICES, Write, derived_name
from clustermesh.multicluster.facts import service_key
from clustermesh.multicluster.imports import NOBODY, Facts, writes
from clustermesh.multicluster.keeping import Services, keep_services
from clustermesh.multicluster.leavings import Keeping, find_leavings, take_away
from clustermesh.sources.exports import usable
from clustermesh.sources.faults import Faults
from clustermesh.sources.kubernetes import KubernetesSource, Periods
from clustermesh.sources.objects import Ref
from clustermesh.store.client import EtcdClient
from clustermesh.wire import cluster_config, keys, service, service_export

pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)
ALPHA, BETA, GAMMA = (Cluster(name=name, id=number) for number, name in enumerate(("alpha", "beta", "gamma"), 1))
GLOBAL = {"service.cilium.io/global": "true"}
MCS = "/apis/multicluster.x-k8s.io/v1alpha1/namespaces"


@pytest.fixture(scope="module")
def alpha(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KubeBed]:
    """An API with the chart's definitions and the controllers that make EndpointSlices."""
    with KubeBed(tmp_path_factory.mktemp("alpha")) as bed:
        bed.start_controllers(
            "endpointslice-controller,endpointslice-mirroring-controller,namespace-controller,serviceaccount-controller"
        )
        define(bed, "serviceexports", "serviceimports")
        made = {"metadata": {"name": "n1"}, "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]}}
        bed.create({"apiVersion": "v1", "kind": "Node", **made})
        role = named(rendered({"clustermesh": {"mcsapi": {"enabled": True}}}), "ClusterRole", "clustermesh-apiserver")
        bed.allow("imports", {**role, "metadata": {"name": "imports"}})
        yield bed


class Mesh:
    """One namespace of alpha, and what is known of beta."""

    def __init__(self, bed: KubeBed, etcd: EtcdClient, folder: Path, namespace: str) -> None:
        self.bed, self.etcd, self.folder, self.namespace = bed, etcd, folder, namespace
        self.behind = derived_name(namespace, "cart")
        self.problems: Sequence[str] = ()

    def take(self, problems: Sequence[str]) -> None:
        """What the API server is told to be wrong."""
        self.problems = problems

    def make(self, kind: str, name: str, api: str = "v1", **parts: Any) -> dict[str, Any]:
        metadata = {"name": name, "namespace": self.namespace, **parts.pop("metadata", {})}
        made = {"apiVersion": api, "kind": kind, "metadata": metadata, **parts}
        self.bed.create(made)
        return made

    def export(self) -> dict[str, Any]:
        return self.make("ServiceExport", "cart", "multicluster.x-k8s.io/v1alpha1")

    def look(self, path: str) -> Any:
        try:
            return self.bed.ask("GET", path)
        except RuntimeError:
            return None

    def imported(self) -> Any:
        return self.look(f"{MCS}/{self.namespace}/serviceimports/cart")

    def derived(self) -> Any:
        return self.look(f"/api/v1/namespaces/{self.namespace}/services/{self.behind}")

    def conditions(self) -> list[str]:
        found = (self.look(f"{MCS}/{self.namespace}/serviceexports/cart") or {}).get("status", {}).get("conditions", [])
        return sorted(f"{each['type']} {each['reason']}" for each in found)

    def slices(self, service: str) -> list[Any]:
        path = f"/apis/discovery.k8s.io/v1/namespaces/{self.namespace}/endpointslices"
        items = self.bed.ask("GET", f"{path}?labelSelector=kubernetes.io/service-name={service}")["items"]
        return sorted(items, key=lambda each: str(each["metadata"]["labels"].get(OF, "")))

    def addresses(self, service: str) -> dict[str, list[str]]:
        """By the cluster that they are of."""
        found: dict[str, list[str]] = {}
        for each in self.slices(service):
            of = found.setdefault(each["metadata"]["labels"].get(OF, ""), [])
            of += [ip for one in each["endpoints"] or () for ip in one["addresses"]]
        return {of: sorted(ips) for of, ips in found.items() if ips}

    async def connect(self, *, known: bool = True, cluster: Cluster = BETA) -> None:
        (self.folder / cluster.name).write_text(f"endpoints: ['https://{cluster.name}.example:2379']\n")
        if known:
            config = ClusterConfig(id=cluster.id, synced_canaries=True, cached=True, service_exports_enabled=True)
            await self.etcd.put(keys.cluster_config_key(cluster.name), cluster_config.encode(config))
            for directory in ("services", "serviceexports"):
                await self.etcd.put(keys.canary_key(cluster.name, directory, True), b"now")

    async def beta_exports(self, **changed: Any) -> None:
        await self.exports("beta", **changed)

    async def exports(self, cluster: str, **changed: Any) -> None:
        usual = {"created": 1, "ports": (ExportPort(port=80, name="http"), ExportPort(port=81, name="more"))}
        export = ServiceExport(cluster=cluster, namespace=self.namespace, name="cart", **{**usual, **changed})
        await self.etcd.put(self._export_key(cluster), service_export.encode(export))

    async def beta_withdraws(self) -> None:
        await self.etcd.delete(self._export_key("beta"))

    def _export_key(self, cluster: str) -> bytes:
        return keys.cache_prefix("serviceexports", cluster) + f"{self.namespace}/cart".encode()

    async def beta_serves(self, name: str, *ips: str) -> None:
        await self.serves(BETA, name, *ips)

    async def serves(self, of: Cluster, name: str, *ips: str, port: str = "http", hostname: str = "web") -> None:
        backends = {parse(ip): {port: Port(port=8080, protocol=Protocol.TCP)} for ip in ips}
        hostnames = {parse(ip): f"{hostname}-{number}" for number, ip in enumerate(ips)}
        found = Service(
            cluster=of.name, cluster_id=of.id, namespace=self.namespace, name=name, backends=backends,
            hostnames=hostnames, shared=True, include_external=True,
        )  # fmt: skip
        await self.etcd.put(service_key(of.name, (self.namespace, name)), service.encode(found))

    async def until(self, told: Any, expected: Any) -> None:
        try:
            async with asyncio.timeout(20):
                while told() != expected:
                    await asyncio.sleep(0.05)
        except TimeoutError:
            assert told() == expected


OF = "multicluster.kubernetes.io/source-cluster"


@asynccontextmanager
async def kept(mesh: Mesh, *, imports: bool = True, user: str = "imports") -> AsyncIterator[KubernetesSource]:
    """By somebody who may do what the chart allows."""
    access = from_kubeconfig(str(mesh.bed.write_kubeconfig(f"{user}-{mesh.namespace}", cert=user)))
    source = KubernetesSource(access, ALPHA, periods=Periods(look=(0.1, 0.2)))

    async def hear() -> None:
        async with aclosing(source.updates()) as updates:
            async for _ in updates:
                pass

    keeping = keep_services(Services(access, ALPHA, source, mesh.folder, imports), mesh.etcd, mesh.take)
    tasks = [asyncio.create_task(hear()), asyncio.create_task(keeping)]
    try:
        yield source
    finally:
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(each, asyncio.CancelledError) for each in ended), ended


@pytest.fixture
async def mesh(alpha: KubeBed, tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Mesh]:
    name = request.node.name.replace("_", "-").removeprefix("test-")[:50].strip("-")
    alpha.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    async with EtcdClient(alpha.etcd.endpoints) as etcd:
        yield Mesh(alpha, etcd, tmp_path, name)
        for prefix in (keys.CACHE, keys.CLUSTER_CONFIGS, keys.SYNCED):
            for kv in (await etcd.range(prefix)).kvs:
                await etcd.delete(kv.key)


def serve(mesh: Mesh, name: str = "cart", **spec: Any) -> None:
    """A Service of alpha with one ready pod."""
    ports = [{"name": "http", "port": 80, "targetPort": 8080}, {"name": "more", "port": 82, "targetPort": 8082}]
    mesh.make("Service", name, spec={"selector": {"app": name}, "ports": ports, **spec})
    pod = {"nodeName": "n1", "containers": [{"name": "main", "image": "none"}]}
    ready = {"type": "Ready", "status": "True"}
    status = {"phase": "Running", "podIP": "10.1.0.5", "podIPs": [{"ip": "10.1.0.5"}], "conditions": [ready]}
    mesh.make("Pod", f"{name}-0", metadata={"labels": {"app": name}}, spec=pod, status=status)


async def test_what_two_clusters_export_is_one_service_until_neither_does(mesh: Mesh) -> None:
    await mesh.connect()
    async with kept(mesh):
        export = mesh.export()
        await mesh.until(mesh.conditions, ["Ready Pending", "Valid NoService"])
        assert mesh.imported() is None
        serve(mesh)
        good = ["Conflict NoConflicts", "Ready Ready", "Valid Valid"]
        await mesh.until(mesh.conditions, good)
        await mesh.until(lambda: mesh.addresses(mesh.behind), {"alpha": ["10.1.0.5"]})
        (address,) = mesh.derived()["spec"]["clusterIPs"]
        await mesh.until(lambda: mesh.imported()["spec"].get("ips"), [address])
        assert mesh.imported()["status"]["clusters"] == [{"cluster": "alpha"}]

        # beta's is older, so its word holds; what alpha means by "more" is not in it
        await mesh.beta_exports(session_affinity="ClientIP", session_affinity_timeout=60)
        reasons = "PortConflict,SessionAffinityConflict,SessionAffinityConfigConflict"
        await mesh.until(mesh.conditions, [f"Conflict {reasons}", "Ready Ready", "Valid Valid"])
        assert mesh.imported()["status"]["clusters"] == [{"cluster": "beta"}, {"cluster": "alpha"}]
        spec = mesh.imported()["spec"]
        assert (spec["type"], spec["sessionAffinity"], spec["ips"]) == ("ClusterSetIP", "ClientIP", [address])
        assert [(port["name"], port["port"]) for port in spec["ports"]] == [("http", 80), ("more", 81)]
        await mesh.until(lambda: mesh.derived()["spec"].get("sessionAffinity"), "ClientIP")
        await mesh.until(
            lambda: [[port["port"] for port in each["ports"]] for each in mesh.slices(mesh.behind)], [[8080]]
        )
        assert mesh.derived()["metadata"]["annotations"]["service.cilium.io/global"] == "true"

        mesh.bed.delete(export)
        await mesh.until(lambda: mesh.addresses(mesh.behind), {})
        await mesh.until(lambda: mesh.imported()["status"]["clusters"], [{"cluster": "beta"}])
        assert mesh.derived()["spec"]["clusterIPs"] == [address]
        await mesh.beta_withdraws()
        await mesh.until(lambda: (mesh.imported(), mesh.derived()), (None, None))


async def test_a_headless_export_is_one_slice_for_each_cluster_under_the_labels_that_dns_looks_for(mesh: Mesh) -> None:
    await mesh.connect()
    async with kept(mesh):
        serve(mesh, clusterIP="None")
        mesh.export()
        await mesh.beta_exports(type="Headless", ports=(ExportPort(port=80, name="http"),))
        await mesh.beta_serves(mesh.behind, "10.2.0.5", "fd00:2::5", "10.2.0.6")
        both = {"alpha": ["10.1.0.5"], "beta": ["10.2.0.5", "10.2.0.6", "fd00:2::5"]}
        await mesh.until(lambda: mesh.addresses(mesh.behind), both)
        for each in mesh.slices(mesh.behind):
            assert each["metadata"]["labels"]["multicluster.kubernetes.io/service-name"] == "cart"
        assert mesh.imported()["spec"]["type"] == "Headless"
        hostnames = {
            one.get("hostname") for each in mesh.slices(mesh.behind) for one in each["endpoints"] if "beta" in str(each)
        }
        assert hostnames == {"web-0", "web-1", "web-2"}
        await mesh.beta_serves(mesh.behind, "10.2.0.7")
        await mesh.until(lambda: mesh.addresses(mesh.behind), {"alpha": ["10.1.0.5"], "beta": ["10.2.0.7"]})
        (mesh.folder / "beta").unlink()
        await mesh.until(lambda: mesh.addresses(mesh.behind), {"alpha": ["10.1.0.5"]})


async def test_who_begins_before_the_copies_are_there_takes_nothing_away(mesh: Mesh) -> None:
    await mesh.connect()
    await mesh.beta_exports()
    mesh.make("Service", "web", metadata={"annotations": GLOBAL}, spec={"clusterIP": "None", "ports": [{"port": 80}]})
    await mesh.beta_serves("web", "10.2.0.9")
    async with kept(mesh):
        await mesh.until(lambda: mesh.addresses("web"), {"beta": ["10.2.0.9"]})
        await mesh.until(lambda: bool(mesh.imported() and mesh.imported()["spec"].get("ips")), True)
    before = [mesh.imported(), mesh.derived(), mesh.slices("web")]
    for prefix in (keys.CACHE, keys.CLUSTER_CONFIGS, keys.SYNCED):  # the pod was made anew, and its etcd with it
        for kv in (await mesh.etcd.range(prefix)).kvs:
            await mesh.etcd.delete(kv.key)
    async with kept(mesh):
        serve(mesh, "other")  # something of alpha's own is done meanwhile
        mesh.make("ServiceExport", "other", "multicluster.x-k8s.io/v1alpha1")
        await mesh.until(lambda: bool(mesh.look(f"{MCS}/{mesh.namespace}/serviceimports/other")), True)
        assert [mesh.imported(), mesh.derived(), mesh.slices("web")] == before
        await mesh.connect()  # and beta exports it no more
        await mesh.until(lambda: (mesh.imported(), mesh.derived(), mesh.addresses("web")), (None, None, {}))


async def test_a_global_service_has_slices_where_it_asks_for_them_and_other_implementations_keep_theirs(
    mesh: Mesh,
) -> None:
    await mesh.connect()
    await mesh.beta_serves("web", *(f"10.2.{n}.{m}" for n in range(3) for m in range(1, 51)))
    theirs = mesh.make(
        "ServiceImport", "cart", "multicluster.x-k8s.io/v1alpha1", spec={"type": "ClusterSetIP", "ports": [{"port": 1}]}
    )
    async with kept(mesh):
        mesh.make("Service", "web", metadata={"annotations": GLOBAL}, spec={"ports": [{"port": 80}]})
        serve(mesh)
        mesh.export()
        await mesh.until(mesh.conditions, ["Conflict NoConflicts", "Ready Failed", "Valid Valid"])
        assert mesh.imported()["spec"] == {**theirs["spec"], "ports": [{"port": 1, "protocol": "TCP"}]}
        assert (mesh.derived(), mesh.slices("web")) == (None, [])
        web = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": mesh.namespace}}
        asks = {"service.cilium.io/global-sync-endpoint-slices": "true"}
        mesh.bed.merge(web, {"metadata": {"annotations": asks}})
        await mesh.until(lambda: sorted(len(each["endpoints"]) for each in mesh.slices("web")), [50, 100])
        mesh.bed.merge(web, {"metadata": {"annotations": {"service.cilium.io/global": "false"}}})
        await mesh.until(lambda: mesh.slices("web"), [])


async def test_what_the_api_does_not_take_of_one_cluster_keeps_back_nothing_of_the_others(mesh: Mesh) -> None:
    await mesh.connect()
    await mesh.connect(cluster=GAMMA)
    odd = {"labels": {"team": "a b"}, "annotations": {"a b": "x", "service.cilium.io/shared": "false"}}
    http = ExportPort(port=80, name="http")
    await mesh.exports("gamma", created=0, ports=(ExportPort(port=1, name="Bad Name!"), http), **odd)
    await mesh.serves(GAMMA, "web", "10.3.0.1", port="Bad Name!")
    await mesh.serves(GAMMA, "web2", "10.3.0.2", hostname="Bad_Host ")
    async with kept(mesh):
        for name in ("web", "web2"):
            await mesh.beta_serves(name, "10.2.0.9")
            mesh.make(
                "Service", name, metadata={"annotations": GLOBAL}, spec={"clusterIP": "None", "ports": [{"port": 80}]}
            )
        serve(mesh)
        export = mesh.export()
        await mesh.until(mesh.conditions, ["Conflict PortConflict,AnnotationsConflict", "Ready Ready", "Valid Valid"])
        assert [each["cluster"] for each in mesh.imported()["status"]["clusters"]] == ["gamma", "alpha"]
        assert mesh.derived()["metadata"]["annotations"] == GLOBAL
        for name in ("web", "web2"):
            await mesh.until(lambda name=name: mesh.addresses(name), {"beta": ["10.2.0.9"]})
            await mesh.beta_serves(name, "10.2.0.10")
            await mesh.until(lambda name=name: mesh.addresses(name), {"beta": ["10.2.0.10"]})
            await mesh.etcd.delete(service_key("beta", (mesh.namespace, name)))
            await mesh.until(lambda name=name: mesh.addresses(name), {})
        assert f"{mesh.namespace}/cart: cluster gamma: ports.name: 'Bad Name!'" in str(mesh.problems)
        assert f"{mesh.namespace}/web: " in str(mesh.problems)
        mesh.bed.delete(export)
        await mesh.until(lambda: mesh.derived()["spec"]["selector"], NOBODY)


async def test_a_service_of_somebody_elses_in_the_place_of_ours_keeps_back_nothing_else(mesh: Mesh) -> None:
    await mesh.connect()
    mesh.make("Service", mesh.behind, spec={"ports": [{"port": 1}]})
    async with kept(mesh):
        serve(mesh)
        export = mesh.export()
        await mesh.until(mesh.conditions, ["Conflict NoConflicts", "Ready Pending", "Valid Valid"])
        await mesh.until(lambda: "already exists" in str(mesh.problems), True)
        mesh.bed.delete(export)
        await mesh.until(mesh.imported, None)
    assert mesh.derived()["spec"]["ports"][0]["port"] == 1


async def test_what_is_made_of_any_exports_the_api_takes(mesh: Mesh) -> None:
    draw = random.Random(16)
    nasty = ["", "a", "A", "http", "x" * 63, "y" * 64, "a b", "-a", "a.b/c", "A.b/c", "a/b/c", "é", "\x00", "a_b"]
    taken, left_out, ref = 0, Faults(), Ref("ServiceExport", mesh.namespace, "cart")
    for _ in range(60):
        made = [_any_export(draw, nasty, cluster) for cluster in ("beta", "gamma")]
        exports = [each for one in made if (each := usable(ref, one, left_out)) is not None]
        asked = Facts(cluster="alpha", name=(mesh.namespace, "cart"), version="v1alpha1", in_mesh=True, exports=exports)
        for write in _imported_and_served(asked):
            mesh.bed.ask("POST", f"{write.path}?dryRun=All", write.body)
            taken += 1
    assert taken > 90
    assert len(left_out) > 90


def _any_export(draw: random.Random, nasty: list[str], cluster: str) -> ServiceExport:
    return ServiceExport(
        cluster=cluster,
        namespace="shop",
        name="cart",
        created=draw.randint(1, 2),
        type=draw.choice(["ClusterSetIP", "Headless"]),
        ports=tuple(
            ExportPort(
                port=draw.choice([0, 1, 80, 65535]),
                protocol=draw.choice(list(Protocol)),
                name=draw.choice(nasty[:6]),
                app_protocol=draw.choice([*nasty[:3], "a b", "kubernetes.io/h2c"]),
            )
            for _ in range(draw.randint(0, 3))
        ),
        session_affinity=draw.choice(["None", "ClientIP"]),
        session_affinity_timeout=draw.choice([None, -1, 0, 1, 86400, 86401]),
        ip_families=draw.choice([(), ("IPv4",), ("IPv9",)]),
        internal_traffic_policy=draw.choice(["", "Local"]),
        traffic_distribution=draw.choice(["", "PreferClose"]),
        annotations={draw.choice(nasty): draw.choice(nasty) for _ in range(draw.randint(0, 2))},
        labels={draw.choice(nasty): draw.choice(nasty) for _ in range(draw.randint(0, 2))},
    )


def _imported_and_served(facts: Facts) -> Iterator[Write]:
    """The first writes of both."""
    for first in writes(facts, 0):
        yield first
        assert first.body is not None
        held = {**first.body, "metadata": {**first.body["metadata"], "uid": "0"}}
        yield from (each for each in writes(replace(facts, held=held), 0) if each.place == SERVICES)


async def test_an_import_of_a_family_that_this_cluster_lacks_says_so_and_has_no_address(mesh: Mesh) -> None:
    await mesh.connect()

    def ready() -> list[str]:
        status = (mesh.imported() or {}).get("status", {})
        return [f"{each['type']} {each['status']} {each['reason']}" for each in status.get("conditions", ())]

    async with kept(mesh):
        for families, reason in (
            (("IPv6",), "Ready False IPFamilyNotSupported"),
            (("IPv4", "IPv6"), "Ready True Ready"),
        ):
            await mesh.beta_exports(ip_families=families)
            await mesh.until(ready, [reason])
            addresses = mesh.derived()["spec"]["clusterIPs"] if "True" in reason else None
            await mesh.until(lambda told=addresses: mesh.imported()["spec"].get("ips") == told, True)
        assert mesh.imported()["spec"]["ipFamilies"] == ["IPv4"]
        await mesh.beta_withdraws()
        await mesh.until(lambda: (mesh.imported(), mesh.derived()), (None, None))


async def test_what_nobody_keeps_any_more_is_taken_away_and_what_others_keep_stays(mesh: Mesh) -> None:
    await mesh.connect()
    await mesh.beta_exports()
    for name in ("web", mesh.behind):
        await mesh.beta_serves(name, "10.2.0.9")
    web = {"annotations": GLOBAL}
    mesh.make("Service", "web", metadata=web, spec={"clusterIP": "None", "ports": [{"port": 80}]})
    theirs = mesh.make(
        "ServiceImport", "other", "multicluster.x-k8s.io/v1alpha1", spec={"type": "ClusterSetIP", "ports": []}
    )
    async with kept(mesh):
        await mesh.until(lambda: mesh.addresses("web"), {"beta": ["10.2.0.9"]})
        await mesh.until(lambda: bool(mesh.derived()), True)
    (owner,) = mesh.slices("web")[0]["metadata"]["ownerReferences"]
    at = f"/api/v1/namespaces/{mesh.namespace}/services/web"
    assert owner["uid"] == mesh.look(at)["metadata"]["uid"]
    access = from_kubeconfig(str(mesh.bed.write_kubeconfig("leavings", cert="admin")))
    async with KubeClient(access) as client:
        objects = Objects(client, "kube-system")
        labels = {"app.kubernetes.io/part-of": "clustermesh", "k8s-app": "clustermesh-apiserver"}
        template = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "apiserver", "image": "none"}]}}
        spec = {"selector": {"matchLabels": labels}, "template": template}
        server = mesh.make("Deployment", "server", "apps/v1", metadata={"labels": labels}, spec=spec)
        assert await find_leavings(objects, Keeping(), "kube-system") == [], "another namespace has API servers"
        mesh.bed.delete(server)
        for keeping, expected in (
            (Keeping(imports=True), []),
            (Keeping(slices=True), ["ServiceImport", "Service"]),
            (Keeping(), ["EndpointSlice"]),
        ):
            found = await find_leavings(objects, keeping, "kube-system")
            here = [write for write in found if write.name[0] == mesh.namespace]
            assert [write.place.kind for write in here] == expected
            for write in (*here, *here):  # gone already is success
                await take_away(objects, write)
    assert (mesh.imported(), mesh.derived(), mesh.slices("web")) == (None, None, [])
    assert mesh.look(f"{MCS}/{mesh.namespace}/serviceimports/{theirs['metadata']['name']}")


async def test_backends_that_somebody_named_are_exported_as_those_that_a_selector_finds(mesh: Mesh) -> None:
    """In EndpointSlices, and in Endpoints, of which the API's own controller makes some."""
    await mesh.connect()
    port = {"name": "http", "port": 80}
    mesh.make("Service", "cart", spec={"ports": [port]})
    by_hand = mesh.make(
        "EndpointSlice", "by-hand", "discovery.k8s.io/v1", metadata={"labels": {"kubernetes.io/service-name": "cart"}},
        addressType="IPv4", endpoints=[{"addresses": ["192.0.2.7"]}], ports=[{"name": "http", "port": 8080}],
    )  # fmt: skip
    async with kept(mesh) as source:
        mesh.export()
        ready = ["Conflict NoConflicts", "Ready Ready", "Valid Valid"]
        await mesh.until(lambda: (mesh.addresses(mesh.behind), mesh.conditions()), ({"alpha": ["192.0.2.7"]}, ready))
        mesh.bed.merge(by_hand, {"endpoints": [{"addresses": ["192.0.2.8"]}]})
        await mesh.until(lambda: mesh.addresses(mesh.behind), {"alpha": ["192.0.2.8"]})
        behind = (mesh.namespace, mesh.behind)  # what is published of it
        await mesh.until(lambda: list(map(text, source.snapshot.services[behind].service.backends)), ["192.0.2.8"])
        assert source.snapshot.services[behind].is_global
        subsets = [{"addresses": [{"ip": "192.0.2.9"}], "ports": [{"name": "http", "port": 8080}]}]
        endpoints = {"apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": "cart"}, "subsets": subsets}
        mesh.bed.ask("POST", f"/api/v1/namespaces/{mesh.namespace}/endpoints", endpoints)
        await mesh.until(lambda: mesh.addresses(mesh.behind), {"alpha": ["192.0.2.8", "192.0.2.9"]})
    mesh.bed.delete(by_hand)
    async with kept(mesh):  # which begins anew
        await mesh.until(lambda: mesh.addresses(mesh.behind), {"alpha": ["192.0.2.9"]})
        mesh.bed.ask("DELETE", f"{MCS}/{mesh.namespace}/serviceexports/cart")
        await mesh.until(lambda: (mesh.imported(), mesh.derived(), mesh.addresses(mesh.behind)), (None, None, {}))


async def test_what_may_not_be_written_is_a_problem_until_it_may(mesh: Mesh, alpha: KubeBed) -> None:
    role = named(rendered({"clustermesh": {"mcsapi": {"enabled": True}}}), "ClusterRole", "clustermesh-apiserver")
    reads = [{**rule, "verbs": [v for v in rule["verbs"] if v in ("get", "list", "watch")]} for rule in role["rules"]]
    role = {**role, "rules": [rule for rule in reads if rule["verbs"]], "metadata": {"name": "looks"}}
    alpha.allow("looks", role)
    await mesh.connect()
    async with kept(mesh, user="looks"):
        serve(mesh)
        mesh.export()
        await mesh.until(lambda: [each.split(":")[0] for each in mesh.problems], [f"{mesh.namespace}/cart"])
        assert "forbidden" in mesh.problems[0]
        alpha.allow(
            "looks",
            {
                **named(
                    rendered({"clustermesh": {"mcsapi": {"enabled": True}}}), "ClusterRole", "clustermesh-apiserver"
                ),
                "metadata": {"name": "writes"},
            },
        )
        await mesh.until(lambda: list(mesh.problems), [])
    assert mesh.imported() is not None


@pytest.mark.skipif(bool(NO_DNS), reason=NO_DNS)
async def test_a_real_dns_server_answers_for_what_is_imported(mesh: Mesh) -> None:
    await mesh.connect()
    name = f"cart.{mesh.namespace}.svc.clusterset.local"
    with dns(mesh.bed, mesh.folder.parent) as server:
        async with kept(mesh):
            serve(mesh)
            mesh.export()
            await mesh.until(lambda: bool(mesh.imported() and mesh.imported()["spec"].get("ips")), True)
            await mesh.until(lambda: server.ask(name), mesh.imported()["spec"]["ips"])

            await mesh.beta_exports(created=1, type="Headless", ports=(ExportPort(port=80, name="http"),))
            await mesh.beta_serves(mesh.behind, "10.2.0.5", "fd00:2::5")
            await mesh.until(lambda: server.ask(name), ["10.1.0.5", "10.2.0.5"])
            await mesh.until(lambda: server.ask(name, "AAAA"), ["fd00:2::5"])
            assert server.ask(f"web-0.beta.{name}") == ["10.2.0.5"]
            assert server.ask(f"web-1.beta.{name}", "AAAA") == ["fd00:2::5"]
            await mesh.beta_withdraws()
            await mesh.until(lambda: bool(mesh.imported()["spec"].get("ips")), True)
            await mesh.until(lambda: server.ask(name), mesh.imported()["spec"]["ips"])
