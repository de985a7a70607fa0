"""The lab's YAML: complete, in order for the API server's own sources, and written whole or not at all."""

from __future__ import annotations

from contextlib import aclosing
from pathlib import Path

import yaml

from clustermesh.address import text
from clustermesh.model import Cluster
from clustermesh.sources.folder import FolderSource
from lab import manifests, pod_files
from lab.plan import make_plan

PLAN = make_plan()
ALPHA = PLAN.cluster("alpha")


def test_every_object_of_a_cluster_has_its_file() -> None:
    files = manifests.of_cluster(ALPHA)
    assert sorted(files) == [
        "namespace-default.yaml",
        "node-alpha-1.yaml",
        "node-alpha-2.yaml",
        "pod-client.yaml",
        "pod-web-1.yaml",
        "pod-web-2.yaml",
        "service-probe.yaml",
        "service-web.yaml",
    ]
    assert {document["kind"] for document in files.values()} == {"Namespace", "Node", "Pod", "Service"}


def test_web_is_a_global_service_over_tcp_and_udp_selecting_the_web_pods() -> None:
    service, pod = manifests.web_service(ALPHA), manifests.pod(ALPHA.pods_of("web")[0])
    assert service["metadata"]["annotations"] == {"service.cilium.io/global": "true"}
    assert {port["protocol"] for port in service["spec"]["ports"]} == {"TCP", "UDP"}
    assert service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
    assert (
        not service["spec"]["selector"].items()
        <= manifests.pod(ALPHA.pods_of("client")[0])["metadata"]["labels"].items()
    )


def test_a_node_and_a_service_have_all_their_families_the_primary_one_first() -> None:
    node, service = manifests.node(ALPHA.nodes[0]), manifests.web_service(ALPHA)
    assert node["spec"] == {"podCIDR": "10.1.1.0/24", "podCIDRs": ["10.1.1.0/24", "fd00:10:1:1::/64"]}
    internal = [each["address"] for each in node["status"]["addresses"] if each["type"] == "InternalIP"]
    assert internal == ["172.20.1.11", "fd00:172:20:1::11"]
    assert service["spec"]["clusterIPs"] == ["10.97.0.10", "fd00:10:97::10"]
    assert service["spec"]["ipFamilies"] == ["IPv4", "IPv6"]


def test_a_pod_comes_without_status_bound_to_its_node_and_never_twice_the_same() -> None:
    planned = ALPHA.pods_of("web")[1]
    one, other = manifests.pod(planned), manifests.pod(planned)
    assert "status" not in one
    assert one["spec"]["nodeName"] == "alpha-2"
    assert one["metadata"]["uid"] != other["metadata"]["uid"]


def test_writing_replaces_whole_files_and_leaves_no_part(tmp_path: Path) -> None:
    manifests.write(tmp_path, {"a.yaml": {"kind": "Namespace", "metadata": {"name": "one"}}})
    manifests.write(tmp_path, {"a.yaml": {"kind": "Namespace", "metadata": {"name": "two"}}})
    assert [path.name for path in tmp_path.iterdir()] == ["a.yaml"]
    assert yaml.safe_load((tmp_path / "a.yaml").read_text())["metadata"]["name"] == "two"
    manifests.remove(tmp_path, "a.yaml", "absent.yaml")
    assert list(tmp_path.iterdir()) == []


async def test_the_sources_take_all_of_it_without_a_complaint(tmp_path: Path) -> None:
    files = manifests.of_cluster(ALPHA)
    for address in ("10.1.1.200", "fd00:10:1:1::200"):
        files |= manifests.probe_slice([address])
    for number, name in enumerate(("web-1", "web-2", "client")):
        containers: list[pod_files.Container] = []
        addresses = [f"10.1.1.{number + 2}", f"fd00:10:1:1::{number + 2}"]
        status = pod_files.status(addresses, ALPHA.nodes[0].addresses, ready=True, containers=containers)
        files[manifests.pod_file(name)]["status"] = status
    manifests.write(tmp_path, files)
    source = FolderSource(tmp_path, Cluster(name="alpha", id=1))
    async with aclosing(source.updates()) as updates:
        await anext(updates)
    assert source.problems() == []
    services = source.snapshot.services
    assert {name: (one.is_global, sorted(map(text, one.service.backends))) for name, one in services.items()} == {
        ("default", "web"): (True, ["10.1.1.2", "10.1.1.3", "fd00:10:1:1::2", "fd00:10:1:1::3"]),
        ("default", "probe"): (True, ["10.1.1.200", "fd00:10:1:1::200"]),
    }
    assert sorted(source.snapshot.nodes) == ["alpha-1", "alpha-2"]
    assert len(source.snapshot.endpoints) == 6
