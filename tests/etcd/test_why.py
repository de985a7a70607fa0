"""`clustermesh why` with real API servers and etcds, without an agent: what one would do, and when each hop saw it.

alpha (asks): etcd, apiserver   ── remote-alpha reads ──>   beta: etcd, apiserver
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from apiserver_bed import Bed, manifests, pods
from click.testing import CliRunner, Result
from endless_etcd import endless_etcd
from ports import free_port

from clustermesh.cli import main
from clustermesh.model import ClusterConfig
from clustermesh.standalone.connect import Mode, connect
from clustermesh.wire import cluster_config, keys

NODE = """\
apiVersion: v1
kind: Node
metadata: {name: w1}
spec: {podCIDR: 10.2.0.0/24}
status: {addresses: [{type: InternalIP, address: 192.0.2.2}]}
"""


async def why(bed: Bed, *arguments: str) -> Result:
    command = ["why", "--context", str(bed.context.path), "--timeout", "10", *arguments]
    return await asyncio.to_thread(CliRunner().invoke, main, command)


async def told(bed: Bed, subject: str, used: bool) -> dict[str, Any]:
    result = await why(bed, subject, "-o", "json")
    assert result.exit_code == (0 if used else 1), result.output
    found: dict[str, Any] = json.loads(result.stdout)
    assert found["used"] is used
    return found


@pytest.fixture
async def alpha(tmp_path: Path) -> AsyncIterator[Bed]:
    """alpha, connected with beta; both have the global service shop/cart, beta's Pod b runs on its node."""
    async with Bed(tmp_path / "alpha") as alpha, Bed(tmp_path / "beta", "beta", 2) as beta:
        alpha.write("pods.yaml", pods("a"))
        alpha.write("cart.yaml", manifests("10.1.0.10"))
        beta.write("node.yaml", NODE)
        beta.write("cart.yaml", manifests("10.2.0.5", "10.3.0.5"))
        connect(alpha.context, beta.context, Mode.BIDIRECTIONAL, datetime.now(UTC))
        await alpha.etcd.start()
        await beta.etcd.start()
        async with alpha.child(), beta.child():
            await alpha.until_synced()
            await beta.until_synced()
            yield alpha


async def test_a_service_is_followed_from_its_source_to_every_etcd(alpha: Bed) -> None:
    found = await told(alpha, "shop/cart", used=True)
    seen = {(hop["hop"], hop["cluster"]): hop["seen"] for hop in found["hops"]}
    for cluster, etcd in (("alpha", "etcd"), ("beta", "peer")):
        assert 0 < seen["source", cluster]["at"] <= seen[etcd, cluster]["at"]
    used = {each["of"]: each for each in found["findings"]}
    assert used["backend 10.1.0.10 of alpha"]["used"]
    assert used["backend 10.2.0.5 of beta"]["used"]
    assert "no Node of beta has that address" in used["backend 10.3.0.5 of beta"]["why"]
    text = (await why(alpha, "shop/cart")).stdout
    assert "✅ Service shop/cart is used by an agent that began now" in text
    assert "cilium/state/services/v1/beta/shop/cart" in text


async def test_pods_identities_nodes_and_what_is_not_there(alpha: Bed) -> None:
    pod = await told(alpha, "10.1.0.10", used=True)
    assert pod["findings"][0]["of"] == "pod shop/a at 10.1.0.10 of alpha"
    number = pod["findings"][0]["why"].split()[2]
    hop = next(each for each in pod["hops"] if each["what"].endswith("/10.1.0.10"))
    assert hop["seen"]["after"] or hop["seen"]["by"], "between two heartbeats"
    for subject in (number, "app=a"):
        assert (await told(alpha, subject, used=True))["findings"][0]["of"] == f"identity {number}"
    assert (await told(alpha, "192.0.2.2", used=True))["findings"][0]["of"] == "Node w1 of beta at 192.0.2.2"
    await told(alpha, "10.9.9.9", used=False)
    await told(alpha, "shop/none", used=False)
    assert (await why(alpha, "cart@shop")).exit_code == 2


async def test_an_etcd_that_is_not_there_is_said_for_a_peer_and_an_error_for_the_own(alpha: Bed) -> None:
    file = alpha.context.peers / "beta"
    file.write_text(re.sub(r"127.0.0.1:\d+", f"127.0.0.1:{free_port()}", file.read_text()))
    found = await told(alpha, "shop/cart", used=True)
    assert any(each["of"] == "cluster beta" and "connecting" in each["why"] for each in found["findings"])
    assert any(hop["hop"] == "peer" and hop["error"] for hop in found["hops"])
    file.write_text("endpoints: 7\n")
    found = await told(alpha, "shop/cart", used=True)
    assert any(each["of"] == "cluster beta" and "endpoints: 7" in each["why"] for each in found["findings"])
    alpha.etcd.kill()
    assert (await why(alpha, "shop/cart", "--timeout", "1")).exit_code == 1


async def test_a_list_of_a_peer_is_read_up_to_its_limit_and_the_cluster_is_named(alpha: Bed) -> None:
    file = alpha.context.peers / "beta"
    file.write_text(file.read_text() + "clustermesh-limits: {listing-bytes: 100}\n")
    found = await told(alpha, "10.1.0.10", used=True)
    assert any(each["of"] == "cluster beta" and "more than 100 bytes" in each["why"] for each in found["findings"])


async def test_a_list_that_does_not_end_is_not_waited_for(alpha: Bed) -> None:
    config = cluster_config.encode(ClusterConfig(id=3, synced_canaries=True, max_connected_clusters=255))
    async with endless_etcd({keys.cluster_config_key("gamma"): config}) as url:
        (alpha.context.peers / "gamma").write_text(f"endpoints: [{url}]\n")
        found = json.loads((await why(alpha, "10.1.0.10", "--timeout", "0.3", "-o", "json")).stdout)
        told = next(each["why"] for each in found["findings"] if each["of"] == "cluster gamma")
        assert "has not sent all of what it has in 3 s" in told
