"""Pods that clean nodes, as a controller manager that is not here says how far they are."""

from __future__ import annotations

import pytest
from kube_bed import KubeBed

from clustermesh.errors import Unavailable
from clustermesh.joining import node_cleanup
from clustermesh.joining.connect import open_api

HELD = {"clustermesh.io/cleanup": "held"}
MERGE = "application/merge-patch+json"


POD = {"containers": [{"name": "done", "image": "localhost.local/none:1"}]}


async def test_a_node_is_cleaned_once_this_runs_pod_is_ready(
    bed: KubeBed, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_cleanup, "_POLL", 0.01)
    at = f"/apis/apps/v1/namespaces/{namespace}/daemonsets/clustermesh-cleanup"
    states = iter([(1, 2, 2), (0, 0, 2), (0, 2, 0), (0, 2, 1), (0, 1, 2), (0, 2, 2)])
    said = list[str]()

    def go_on(sentence: str) -> None:
        said.append(sentence)
        behind, updated, ready = next(states)
        counts = {"desiredNumberScheduled": 2, "currentNumberScheduled": 2, "numberMisscheduled": 0}
        counts |= {"observedGeneration": bed.ask("GET", at)["metadata"]["generation"] - behind}
        counts |= {"updatedNumberScheduled": updated, "numberReady": ready}
        bed.ask("PATCH", f"{at}/status", {"status": counts}, MERGE)

    async with open_api(str(bed.write_kubeconfig("alpha", cert="admin")), "alpha", namespace) as objects:
        await node_cleanup.hold(objects, POD)
        assert await node_cleanup.clean_nodes(objects, POD, go_on) == 2
        assert not await node_cleanup.discard(objects), "it is gone"
    expected = ("0 of 0", "0 of 0", "0 of 2", "0 of 2", "1 of 2", "1 of 2")
    assert tuple(each.partition(" nodes")[0] for each in said) == expected


async def test_where_nodes_take_too_long_no_pod_stays_and_what_they_were_is_kept(bed: KubeBed, namespace: str) -> None:
    at = f"/apis/apps/v1/namespaces/{namespace}/daemonsets/clustermesh-cleanup"
    async with open_api(str(bed.write_kubeconfig("alpha", cert="admin")), "alpha", namespace) as objects:
        with pytest.raises(Unavailable, match="the same command again goes on"):
            await node_cleanup.clean_nodes(objects, POD, lambda _: None, patience=-1.0)
        assert bed.ask("GET", at)["spec"]["template"]["spec"]["nodeSelector"] == HELD
        found = await node_cleanup.find_cleanup(objects)
        assert found is not None
        assert "nodeSelector" not in found
        assert await node_cleanup.discard(objects)
