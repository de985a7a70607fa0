"""Clusters that have the chart, joined by commands: what is written is what the chart's pods find mounted."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from chart_bed import MISSING, apply, named, rendered
from joined_bed import Cluster, ensure_namespace
from kube_bed import KubeBed
from pod_bed import Pod
from ports import free_port

from clustermesh.joining.connect import Wanted, connect
from clustermesh.mesh.peer_files import parse_peer
from clustermesh.standalone.users_file import read_users

pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING or "")
MOUNT = Path("/var/lib/cilium/clustermesh")
NODE = {
    "apiVersion": "v1",
    "kind": "Node",
    "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]},
}


def have_chart(cluster: Cluster) -> list[dict[str, Any]]:
    """What Helm makes of the chart, and what its certificates' job leaves; its objects."""
    ensure_namespace(cluster.bed, cluster.namespace)
    values = {
        "cluster": {"name": cluster.name, "id": cluster.folder.id},
        "clustermesh": {"apiserver": {"service": {"nodePort": 0}}},
    }
    objects = rendered(values, cluster.namespace)
    apply(cluster.bed, objects)
    cluster.make("Secret", "cilium-ca", data=cluster.cert("ca"))
    for name in ("server", "remote", "local", "admin"):
        cluster.make("Secret", f"clustermesh-apiserver-{name}-cert", data=cluster.cert(name))
    return objects


async def test_what_is_written_is_what_the_charts_pods_find_mounted(
    bed: KubeBed, other_bed: KubeBed, namespace: str, tmp_path: Path
) -> None:
    alpha = Cluster(bed, namespace, "alpha", 1, free_port())
    beta = Cluster(other_bed, namespace, "beta", 2, free_port())
    objects = [have_chart(each) for each in (alpha, beta)]
    nodes = [{**NODE, "metadata": {"name": f"{each.name}-{namespace}"[:60].strip("-")}} for each in (alpha, beta)]
    nodes[1] = nodes[1] | {"status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.2"}]}}
    for each, node in zip((alpha, beta), nodes, strict=True):
        each.bed.create(node)
    try:
        async with alpha.site() as source, beta.site() as destination:
            assert source.member.mirrored
            assert source.member.encryption == "WireGuard"
            assert (source.member.version and source.member.version.product) == "clustermesh"
            await connect(source, [destination], Wanted(unreached=True), datetime.now(UTC))
    finally:
        for each, node in zip((alpha, beta), nodes, strict=True):
            each.bed.delete(node)
    service = bed.ask("GET", f"/api/v1/namespaces/{namespace}/services/clustermesh-apiserver")["spec"]["ports"][0]
    far = other_bed.ask("GET", f"/api/v1/namespaces/{namespace}/services/clustermesh-apiserver")["spec"]["ports"][0]
    expected = {
        "DaemonSet": f"https://clustermesh-apiserver.{namespace}.svc:{service['port']}",
        "Deployment": f"https://beta.mesh.cilium.io:{far['nodePort']}",
    }
    for kind, endpoint in expected.items():
        (found,) = [each for each in objects[0] if each["kind"] == kind and reads_peers(each)]
        pod = Pod(
            bed,
            tmp_path / kind,
            namespace,
            named(objects[0], kind, found["metadata"]["name"])["spec"]["template"],
            "127.0.0.2",
        )
        mounted = pod.path("clustermesh")
        peer = parse_peer("beta", (mounted / "beta").read_bytes(), MOUNT)
        assert peer.endpoints == (endpoint,)
        for path in peer.credentials:
            assert (mounted / path.relative_to(MOUNT)).read_bytes().startswith(b"-----BEGIN")
        if kind == "Deployment":
            volumes = [each["name"] for each in found["spec"]["template"]["spec"]["volumes"]]
            (users,) = [pod.path(each) / "users.yaml" for each in volumes if (pod.path(each) / "users.yaml").exists()]
            assert [user.name for user in read_users(users)] == ["remote-beta"]


def reads_peers(workload: dict[str, Any]) -> bool:
    return any(each["name"] == "clustermesh" for each in workload["spec"]["template"]["spec"].get("volumes", ()))
