"""A real Kubernetes API as the source of a cluster: what is told of it, in both modes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest
from kube_bed import PATIENCE, KubeBed
from msgspec.structs import replace

from clustermesh.address import parse, parse_prefix
from clustermesh.kube import follow as kube_follow
from clustermesh.kube.config import from_kubeconfig
from clustermesh.kube.hearing import Received
from clustermesh.kube.rbac import cluster_role
from clustermesh.kube.resource import Resource
from clustermesh.model import BackendDetail, BackendState, Cluster, LocalService, ServiceType
from clustermesh.sources.kubernetes import KubernetesSource, Periods
from clustermesh.sources.served import RULES

ALPHA = Cluster(name="alpha", id=1)
GLOBAL = {"service.cilium.io/global": "true"}
CART = ("shop", "cart")


def namespace(name: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}


def service(name: str, **spec: Any) -> dict[str, Any]:
    space, _, bare = name.partition("/")
    metadata = {"namespace": space, "name": bare, "annotations": GLOBAL}
    spec = {"ports": [{"name": "http", "port": 80, "targetPort": 8080}], "selector": {"app": bare}, **spec}
    return {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec}


def node(name: str, ip: str) -> dict[str, Any]:
    status = {"addresses": [{"type": "InternalIP", "address": ip}]}
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}, "status": status}


def pod(name: str, ip: str, *, ready: bool = True, app: str = "cart") -> dict[str, Any]:
    space, _, bare = name.partition("/")
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"namespace": space, "name": bare, "labels": {"app": app}},
        "spec": {"nodeName": "n1", "containers": [{"name": "main", "image": "none"}]},
        "status": {
            "phase": "Running",
            "podIP": ip,
            "podIPs": [{"ip": ip}],
            "hostIP": "192.0.2.1",
            "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
        },
    }


def definition(
    plural: str, kind: str, *, version: str = "v2", namespaced: bool = False, group: str = "cilium.io"
) -> dict[str, Any]:
    """A CustomResourceDefinition that takes everything."""
    schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{group}"},
        "spec": {
            "group": group,
            "scope": "Namespaced" if namespaced else "Cluster",
            "names": {"plural": plural, "kind": kind, "singular": kind.lower(), "listKind": f"{kind}List"},
            "versions": [{"name": version, "served": True, "storage": True, "schema": schema}],
        },
    }


DEFINITIONS = (
    definition("ciliumnodes", "CiliumNode"),
    definition("ciliumidentities", "CiliumIdentity"),
    definition("ciliumendpoints", "CiliumEndpoint", namespaced=True),
    definition("ciliumendpointslices", "CiliumEndpointSlice", version="v2alpha1"),
)


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KubeBed]:
    """An API with the controllers that make EndpointSlices."""
    with KubeBed(tmp_path_factory.mktemp("native")) as bed:
        bed.start_controllers()
        bed.create(namespace("shop"), node("n1", "192.0.2.1"))
        yield bed


@pytest.fixture(scope="module")
def cilium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KubeBed]:
    """An API with Cilium's resources."""
    with KubeBed(tmp_path_factory.mktemp("cilium")) as bed:
        bed.create(*DEFINITIONS)
        bed.create(namespace("shop"), node("n1", "192.0.2.1"), pod("shop/cart-0", "10.1.0.5"))
        yield bed


@asynccontextmanager
async def followed(
    bed: KubeBed, user: str = "admin", **periods: tuple[float, float]
) -> AsyncIterator[tuple[KubernetesSource, Any]]:
    """A source that is followed, and `until(holds)`, which waits for it."""
    access = from_kubeconfig(str(bed.write_kubeconfig(user, cert=user)))
    source = KubernetesSource(access, ALPHA, periods=Periods(**periods))
    heard = asyncio.Event()

    async def follow() -> None:
        async with aclosing(source.updates()) as updates:
            async for _ in updates:
                heard.set()

    async def until(holds: Callable[[KubernetesSource], object]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not holds(source):
                heard.clear()
                await heard.wait()

    task = asyncio.create_task(follow())
    try:
        await until(lambda found: found.doubted <= {"service_exports"})  # for which nothing waits
        yield source, until
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def backends(source: KubernetesSource, name: tuple[str, str] = CART) -> set[bytes]:
    found = source.snapshot.services.get(name)
    return set(found.service.backends) if found else set()


async def test_native_mode_takes_backends_from_slices_and_labels_from_pods(native: KubeBed) -> None:
    native.create(service("shop/cart"), pod("shop/cart-0", "10.1.0.5"), pod("shop/cart-1", "10.1.0.6", ready=False))
    async with followed(native) as (source, until):
        assert source.about == "Kubernetes API, native mode"
        await until(lambda found: backends(found) == {parse("10.1.0.5")})
        assert source.snapshot.endpoints[parse("10.1.0.6")].labels == {"app": "cart"}
        assert source.snapshot.nodes["n1"].underlay == parse("192.0.2.1")
        native.merge(pod("shop/cart-1", ""), {"metadata": {"labels": {"app": "other"}}})
        await until(lambda found: found.snapshot.endpoints[parse("10.1.0.6")].labels == {"app": "other"})
        native.delete(pod("shop/cart-0", ""))
        await until(lambda found: not backends(found) and parse("10.1.0.5") not in found.snapshot.endpoints)
        assert source.problems() == []


async def test_what_a_service_says_of_its_callers_and_of_its_backends_is_read_as_the_api_writes_it(
    native: KubeBed,
) -> None:
    where = "/api/v1/namespaces/shop"
    said = {
        "type": "LoadBalancer",
        "externalTrafficPolicy": "Local",
        "sessionAffinity": "ClientIP",
        "trafficDistribution": "PreferClose",
        "loadBalancerSourceRanges": ["198.51.100.7/24"],
        "externalIPs": ["192.0.2.77"],
    }
    pods = [pod("shop/front-0", "10.1.0.7", app="front"), pod("shop/front-1", "10.1.0.8", app="front")]
    pods[0]["spec"]["containers"][0]["ports"] = [{"containerPort": 8080, "hostPort": 8081}]
    pods[1]["metadata"]["annotations"] = {"clustermesh.io/backend-weight": "7"}
    native.merge(node("n1", ""), {"metadata": {"labels": {"topology.kubernetes.io/zone": "z1"}}})
    native.create(*pods, service("shop/front", **said))
    ingress = {"status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.78", "ipMode": "VIP"}]}}}
    native.ask("PATCH", f"{where}/services/front/status", ingress, "application/merge-patch+json")
    first, second = parse("10.1.0.7"), parse("10.1.0.8")

    def front(found: KubernetesSource) -> LocalService:
        return found.snapshot.services["shop", "front"]

    async with followed(native) as (source, until):
        plain = BackendDetail(node="n1", for_zones=("z1",))
        await until(lambda found: front(found).details == {first: plain, second: replace(plain, weight=7)})
        await until(lambda found: front(found).outside.load_balancer_ips == (parse("192.0.2.78"),))
        local = front(source)
        assert (local.type, local.affinity_seconds) == (ServiceType.LOAD_BALANCER, 10_800)
        assert local.outside.external_ips == (parse("192.0.2.77"),)
        assert local.outside.source_ranges == (parse_prefix("198.51.100.0/24"),)
        assert local.outside.local_only
        assert 30_000 <= local.outside.health_check_port <= 32_767
        assert 30_000 <= local.outside.node_ports["http"].port <= 32_767
        host = source.snapshot.services["shop", "front-0.host-ports"].host_ports
        assert host is not None
        assert (host.node, [port.port for port in host.ports.values()]) == ("n1", [8081])
        native.ask("DELETE", f"{where}/pods/front-1?gracePeriodSeconds=600")
        await until(lambda found: front(found).details[second].state is BackendState.TERMINATING)
        down = {"status": {"conditions": [{"type": "Ready", "status": "False"}]}}
        native.ask("PATCH", f"{where}/pods/front-1/status", down, "application/strategic-merge-patch+json")
        await until(lambda found: second in front(found).draining)
        assert backends(source, ("shop", "front")) == {first}
        native.delete(pods[1])
        await until(lambda found: not front(found).draining)
        native.delete(pods[0])
        await until(lambda found: ("shop", "front-0.host-ports") not in found.snapshot.services)
        assert source.problems() == []
    native.delete(service("shop/front"))


async def test_the_cluster_role_made_of_the_one_list_is_enough(native: KubeBed) -> None:
    native.allow("publisher", cluster_role("publisher", RULES))
    async with followed(native, "publisher") as (source, _):
        assert source.problems() == []


async def test_what_may_not_be_listed_is_said_and_nothing_is_told(native: KubeBed) -> None:
    native.allow("half", cluster_role("half", [rule for rule in RULES if rule.resource != "pods"]))
    source = KubernetesSource(from_kubeconfig(str(native.write_kubeconfig("half", cert="half"))), ALPHA)
    async with aclosing(source.updates()) as updates:
        first = asyncio.create_task(anext(updates))
        async with asyncio.timeout(PATIENCE):
            while not source.problems():
                await asyncio.sleep(0.02)
        assert "may not list pods" in source.problems()[0].sentence
        assert source.doubted
        assert not first.done()
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)


async def test_a_killed_api_server_changes_nothing_and_what_came_meanwhile_is_told(native: KubeBed) -> None:
    async with followed(native) as (source, until):
        before = len(source.snapshot.nodes)
        native.kill()
        async with asyncio.timeout(PATIENCE):
            while not source.problems():
                await asyncio.sleep(0.02)
        assert len(source.snapshot.nodes) == before
        native.start()
        native.create(node("n2", "192.0.2.2"))
        await until(lambda found: "n2" in found.snapshot.nodes)
        await until(lambda found: found.problems() == [])


async def test_what_a_watch_has_kept_from_us_is_found_and_counted(
    native: KubeBed, monkeypatch: pytest.MonkeyPatch
) -> None:
    native.create(node("n7", "192.0.2.7"), node("n8", "192.0.2.8"))
    whole = kube_follow.decode_events

    def lossy(resource: Resource[Any, Any], lines: Iterable[bytes]) -> Iterator[Any]:
        """Of n7, n8 and n9 no watch tells; what each line moves it to, it does."""
        for line in lines:
            for event in whole(resource, [line]):
                yield Received([], event.version) if b'"name":"n' in line[:200] else event

    monkeypatch.setattr(kube_follow, "decode_events", lossy)
    async with followed(native, audit=(0.5, 1.0)) as (source, until):
        assert not any(source.drift.values())
        native.merge(node("n7", ""), {"metadata": {"labels": {"zone": "z1"}}})
        native.delete(node("n8", ""))
        native.create(node("n9", "192.0.2.9"))
        await until(lambda found: {"n7", "n8", "n9"} & found.snapshot.nodes.keys() == {"n7", "n9"})
        await until(lambda found: found.snapshot.nodes["n7"].labels["zone"] == "z1")
        assert source.drift["Node"] >= 3  # a Node made with an address is written twice
        assert source.problems() == []


EXPORTS = definition(
    "serviceexports", "ServiceExport", version="v1alpha1", namespaced=True, group="multicluster.x-k8s.io"
)


DEFINED = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"


async def test_exports_are_told_for_as_long_as_the_api_serves_them(native: KubeBed) -> None:
    native.create(service("shop/till"))
    export = {"apiVersion": "multicluster.x-k8s.io/v1alpha1", "kind": "ServiceExport", "metadata": {"name": "till"}}
    async with followed(native, look=(0.1, 0.2)) as (source, until):
        async with asyncio.timeout(PATIENCE):
            while source.exports is None:  # nobody has looked yet
                await asyncio.sleep(0.02)
        assert source.exports is False
        native.ask("POST", DEFINED, EXPORTS)
        await until(lambda found: found.exports)
        assert source.snapshot.exports == {}
        native.ask("POST", "/apis/multicluster.x-k8s.io/v1alpha1/namespaces/shop/serviceexports", export)
        await until(lambda found: ("shop", "till") in found.snapshot.exports)
        assert source.snapshot.exports["shop", "till"].ip_families == ("IPv4",)
        async with followed(native) as (other, and_until):  # they were served when it began
            await and_until(lambda found: found.exports and found.snapshot.exports)
            assert other.problems() == []
        native.ask("DELETE", f"{DEFINED}/serviceexports.multicluster.x-k8s.io")
        await until(lambda found: found.exports is False)
        assert source.snapshot.exports == {}
        assert source.problems() == []
        assert not source.doubted


async def test_exports_that_may_not_be_read_are_said_and_hold_up_nothing(native: KubeBed) -> None:
    native.ask("POST", DEFINED, EXPORTS)
    native.allow("no-exports", cluster_role("no-exports", [r for r in RULES if r.resource != "serviceexports"]))
    async with followed(native, "no-exports", look=(0.1, 0.2)) as (source, until):
        await until(lambda found: found.problems() or found.exports is False)
        while source.exports is False:  # it is not served yet
            await asyncio.sleep(0.05)
        await until(lambda found: found.problems())
        assert "may not list serviceexports" in source.problems()[0].sentence
        assert source.exports is None
        assert source.doubted == {"service_exports"}
    native.ask("DELETE", f"{DEFINED}/serviceexports.multicluster.x-k8s.io")
    async with asyncio.timeout(PATIENCE):
        while _serves_exports(native):  # for a while yet
            await asyncio.sleep(0.05)


def _serves_exports(bed: KubeBed) -> bool:
    return any(group["name"] == "multicluster.x-k8s.io" for group in bed.ask("GET", "/apis")["groups"])


async def test_where_cilium_is_its_own_resources_are_published(cilium: KubeBed) -> None:
    await until_served(cilium)
    a_cilium_node(cilium)
    async with followed(cilium) as (source, until):
        assert source.about == "Kubernetes API, cilium mode"
        assert (set(source.snapshot.nodes), source.snapshot.endpoints) == ({"n1"}, {})
        at = "/apis/cilium.io/v2/namespaces/shop/ciliumendpoints"
        cilium.ask("POST", at, endpoint("cart-0", "10.1.0.5"))
        await until(lambda found: parse("10.1.0.5") in found.snapshot.endpoints)


async def test_where_there_are_slices_of_endpoints_they_are_published(cilium: KubeBed) -> None:
    await until_served(cilium)
    a_cilium_node(cilium)
    cilium.ask("POST", "/apis/cilium.io/v2alpha1/ciliumendpointslices", endpoint_slice("ces-1", "10.1.0.6"))
    async with followed(cilium) as (source, _):
        assert set(source.snapshot.endpoints) == {parse("10.1.0.6")}
    cilium.ask("DELETE", "/apis/cilium.io/v2alpha1/ciliumendpointslices/ces-1")


def a_cilium_node(bed: KubeBed) -> None:
    """Cilium is there."""
    at = "/apis/cilium.io/v2/ciliumnodes"
    if not bed.ask("GET", at)["items"]:
        spec = {"addresses": [{"type": "InternalIP", "ip": "192.0.2.1"}]}
        kind = {"apiVersion": "cilium.io/v2", "kind": "CiliumNode", "metadata": {"name": "n1"}}
        bed.ask("POST", at, {**kind, "spec": spec})


async def until_served(bed: KubeBed) -> None:
    async with asyncio.timeout(PATIENCE):
        for version, count in (("v2", 3), ("v2alpha1", 1)):
            while True:
                try:
                    if len(bed.ask("GET", f"/apis/cilium.io/{version}")["resources"]) == count:
                        break
                except RuntimeError:  # not yet
                    pass
                await asyncio.sleep(0.05)


def endpoint(name: str, ip: str) -> dict[str, Any]:
    status = {"identity": {"id": 65999}, "networking": {"addressing": [{"ipv4": ip}], "node": "192.0.2.1"}}
    return {"apiVersion": "cilium.io/v2", "kind": "CiliumEndpoint", "metadata": {"name": name}, "status": status}


def endpoint_slice(name: str, ip: str) -> dict[str, Any]:
    found = {"name": "cart-0", "id": 65999, "networking": {"addressing": [{"ipv4": ip}], "node": "192.0.2.1"}}
    kind = {"apiVersion": "cilium.io/v2alpha1", "kind": "CiliumEndpointSlice", "metadata": {"name": name}}
    return {**kind, "namespace": "shop", "endpoints": [found]}


async def test_slices_of_other_clusters_are_nobodys_backends(native: KubeBed) -> None:
    labels = {
        "kubernetes.io/service-name": "far",
        "endpointslice.kubernetes.io/managed-by": "endpointslice-mesh-controller.cilium.io",
    }
    foreign = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"namespace": "shop", "name": "far-beta", "labels": labels},
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        "endpoints": [{"addresses": ["10.2.0.9"], "conditions": {"ready": True}}],
    }
    native.create(service("shop/far"), foreign, pod("shop/far-0", "10.1.0.77", app="far"))
    async with followed(native) as (source, until):
        await until(lambda found: parse("10.1.0.77") in backends(found, ("shop", "far")))
        assert backends(source, ("shop", "far")) == {parse("10.1.0.77")}
