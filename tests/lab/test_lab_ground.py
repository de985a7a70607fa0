"""No Node's pod CIDR cuts anybody off, on whole clusters and under load: from an etcd, another node or this one.

alpha-control 172.20.1.1 etcd   alpha-1 172.20.1.11      beta-control 172.20.2.1 etcd   beta-1 172.20.2.11
                     all on one link, 172.20.0.0/16
"""

from __future__ import annotations

import asyncio

import pytest
from test_lab_outages import cluster_state, no_request_fails, web_backends

from clustermesh.errors import ClusterMeshError
from lab.lab import Lab
from lab.waiting import until


async def complaint(lab: Lab, cluster: str) -> str:
    """What `clustermesh status` says where it ends with an error, "" where all is well."""
    try:
        await lab.run(f"{cluster}-1", "clustermesh", "status")
    except ClusterMeshError as e:
        return str(e)
    return ""


@pytest.mark.parametrize(
    ("cluster", "cidr", "red"),
    [
        ("alpha", "172.20.0.0/16", {"alpha"}),  # the whole underlay: its own API server leaves it out
        ("alpha", "172.20.1.0/29", {"alpha", "beta"}),  # its own etcd, which beta reads, too
        ("beta", "172.20.1.0/29", {"alpha", "beta"}),  # another cluster's etcd
        ("beta", "fd00:172:20:1::/64", {"alpha", "beta"}),  # and its nodes, over IPv6
        ("alpha", "10.2.1.0/25", {"alpha", "beta"}),  # half of the pods of another cluster's node
    ],
)
async def test_a_node_that_would_take_what_others_live_by_is_refused_and_nothing_is_lost(
    pair: Lab, cluster: str, cidr: str, red: set[str]
) -> None:
    stray = pair.plan.context(cluster) / "manifests" / "stray.yaml"
    manifest = f"apiVersion: v1\nkind: Node\nmetadata: {{name: stray}}\nspec: {{podCIDR: {cidr}}}\n"
    for each in red:
        await until(lambda each=each: _is_well(pair, each), f"{each} is well")
    async with no_request_fails(pair):
        try:
            stray.write_text(manifest)
            for each in red:
                await until(lambda each=each: _complains(pair, each, cidr), f"{each} complains of {cidr}")
            await asyncio.sleep(3)  # as long as an agent's route would take to cut its etcd off
            for node in ("alpha-1", "beta-1"):
                assert [await cluster_state(pair, node, each) for each in ("alpha", "beta")] == ["fresh", "fresh"]
                assert len(await web_backends(pair, node)) == 2
        finally:
            stray.unlink()
        for each in red:
            await until(lambda each=each: _is_well(pair, each), f"{each} is well again")


async def test_a_peers_backends_where_nobody_of_it_is_are_not_used(pair: Lab) -> None:
    """An EndpointSlice written by hand beside a backend that is there: the reader's own service and etcd, the world."""
    foreign = [pair.plan.cluster("alpha").web_ips[0], "172.20.1.1", "8.8.8.8"]
    stray = pair.plan.context("beta") / "manifests" / "stray.yaml"
    async with no_request_fails(pair):
        rows = await web_backends(pair, "alpha-1")
        addresses = [*foreign, *(row["address"] for row in rows if row["cluster"] == "beta")]
        endpoints = ", ".join(f"{{addresses: [{address}]}}" for address in addresses)
        stray.write_text(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\n"
            "metadata: {name: web-stray, namespace: default, labels: {kubernetes.io/service-name: web}}\n"
            "ports: [{name: tcp, port: 8080, protocol: TCP}]\n"
            f"endpoints: [{endpoints}]\n"
        )
        try:
            await until(lambda: _refuses(pair, "8.8.8.8"), "alpha-1 refuses the backends")
            assert len(await web_backends(pair, "alpha-1")) == 2
        finally:
            stray.unlink()


@pytest.mark.parametrize(
    ("address", "port", "protocol"),
    [("172.20.1.1", 2379, "TCP"), ("127.0.0.1", 2379, "TCP"), ("172.20.2.11", 51871, "UDP")],
)
async def test_a_service_at_an_address_that_this_node_lives_by_is_left_out_and_told(
    pair: Lab, address: str, port: int, protocol: str
) -> None:
    """The own etcd, this machine itself, the node of a peer: nobody answers for the service."""
    stray = pair.plan.context("alpha") / "manifests" / "stray.yaml"
    await until(lambda: _is_well(pair, "alpha"), "alpha is well")
    async with no_request_fails(pair):
        try:
            stray.write_text(
                "apiVersion: v1\nkind: Service\nmetadata: {name: stray, namespace: default}\n"
                f"spec: {{clusterIP: {address}, ports: [{{port: {port}, protocol: {protocol}}}]}}\n"
            )
            await until(lambda: _complains(pair, "alpha", "stray"), "alpha complains of it")
            await pair.kill("alpha-1", "agent")  # the next one has to connect
            await until(lambda: _is_fresh(pair, "alpha-1", "alpha"), "the next agent reads its etcd")
            await until(lambda: _complains(pair, "alpha", "stray"), "the next agent complains, too")
        finally:
            stray.unlink()
        await until(lambda: _is_well(pair, "alpha"), "alpha is well again")


async def _is_fresh(lab: Lab, node: str, cluster: str) -> bool:
    return await cluster_state(lab, node, cluster) == "fresh"


async def _is_well(lab: Lab, cluster: str) -> bool:
    return not await complaint(lab, cluster)


async def _complains(lab: Lab, cluster: str, about: str) -> bool:
    return about in await complaint(lab, cluster)


async def _refuses(lab: Lab, what: str) -> bool:
    status = await lab.ask_agent("alpha-1", "status")
    beta = next(row for row in status["clusters"] if row["name"] == "beta")
    return any(what in why for why in beta["refused_entries"].values())
