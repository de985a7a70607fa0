"""CNI requests and the node they come to: nothing that its Node or its disk is like ends the agent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from fake_kernel import Bed

from agent.cni import methods as agent_pods
from agent.cni import veth
from agent.cni.endpoint import EndpointRequest
from agent.cni.local_pods import Endpoints
from agent.cni.methods import Pods
from agent.cni.plugin import _queue_deletion
from agent.options import Options
from agent.underlay import UnderlaySetup
from clustermesh.address import Address, parse, parse_prefix
from clustermesh.errors import ClusterMeshError, DecodeError, Unavailable
from clustermesh.model import NodeAddress


@pytest.fixture
def bed(monkeypatch: pytest.MonkeyPatch) -> Bed:
    async def none() -> set[str]:
        return set()

    monkeypatch.setattr(veth, "routed_addresses", none)
    monkeypatch.setattr(agent_pods, "_DRAIN_PERIOD", 0.01)
    return Bed()


@pytest.fixture
def options(tmp_path: Path) -> Options:
    return Options(context=tmp_path, node="n1", state_dir=tmp_path / "state", run_dir=tmp_path / "run")


@asynccontextmanager
async def running(pods: Pods) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(pods.run())
    try:
        yield task
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def is_taking(pods: Pods) -> None:
    async with asyncio.timeout(20):
        while True:
            try:
                pods._ready()
            except Unavailable:
                await asyncio.sleep(0.01)
            else:
                return


async def test_pods_are_refused_with_the_reason_until_the_node_is_set_up(bed: Bed, options: Options) -> None:
    pods = Pods(options, bed.domains.tunnels, bed.domains.devices, bed.domains.attached_pods)
    async with running(pods):
        await bed.step()
        with pytest.raises(Unavailable, match="Node n1 is not in cluster alpha"):
            await pods.add({"container_id": "c", "ifname": "eth0"})
        bed.add_node("alpha", 1)
        await bed.step()
        await is_taking(pods)
        with pytest.raises(DecodeError):
            await pods.add({"container_id": 5})


async def test_a_node_that_vanishes_as_soon_as_it_was_set_up_is_waited_for(bed: Bed, options: Options) -> None:
    pods = Pods(options, bed.domains.tunnels, bed.domains.devices, bed.domains.attached_pods)
    async with running(pods) as task:
        bed.add_node("alpha", 1)
        await bed.step()
        bed.sink.remove("alpha", "nodes", "n1", 0)
        bed.underlay.current = None
        await bed.step()
        for _ in range(5):
            await asyncio.sleep(0.01)
        assert not task.done()
        bed.add_node("alpha", 1)
        await bed.step()
        await is_taking(pods)


async def test_a_state_folder_that_cannot_be_used_is_a_problem_until_it_can(bed: Bed, options: Options) -> None:
    options.state_dir.write_text("a file where the folder should be")
    pods = Pods(options, bed.domains.tunnels, bed.domains.devices, bed.domains.attached_pods)
    async with running(pods):
        bed.add_node("alpha", 1)
        await bed.step()
        async with asyncio.timeout(20):
            while not pods.problems:
                await asyncio.sleep(0.01)
        with pytest.raises(Unavailable, match="Not a directory"):
            await pods.check({"container_id": "c", "ifname": "eth0"})
        options.state_dir.unlink()
        await is_taking(pods)
        async with asyncio.timeout(20):
            while pods.problems:
                await asyncio.sleep(0.01)


async def test_a_disk_that_takes_no_pod_is_told_before_one_comes(bed: Bed, options: Options) -> None:
    pods = Pods(options, bed.domains.tunnels, bed.domains.devices, bed.domains.attached_pods)
    (options.state_dir / "endpoints" / ".trial").mkdir(parents=True)  # no file can be written there, as on a full disk
    async with running(pods):
        bed.add_node("alpha", 1)
        await bed.step()
        await is_taking(pods)
        assert pods.unwritable.startswith(f"{options.state_dir}/endpoints: ")


async def test_a_deletion_that_waited_concerns_no_pod_that_is_added_after_it(
    bed: Bed, options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = list[str]()

    async def add(_endpoints: Endpoints, request: EndpointRequest) -> Any:
        done.append(f"add {request.container_id}")
        raise Unavailable("no more of it is wanted here")

    async def delete(_endpoints: Endpoints, request: EndpointRequest) -> None:
        await asyncio.sleep(0.01)
        done.append(f"delete {request.container_id}")

    monkeypatch.setattr(Endpoints, "add", add)
    monkeypatch.setattr(Endpoints, "delete", delete)
    monkeypatch.setattr(agent_pods, "_DRAIN_PERIOD", 3600)
    pods = Pods(options, bed.domains.tunnels, bed.domains.devices, bed.domains.attached_pods)
    async with running(pods):
        bed.add_node("alpha", 1)
        await bed.step()
        await is_taking(pods)
        names = ["a", "b"]
        for name in names:
            _queue_deletion({"socket": str(options.run_dir / "agent.sock")}, {"container_id": name, "ifname": "eth0"})
        request = {"ifname": "eth0", "netns": "/run/netns/x"}
        adding = [pods.add(request | {"container_id": name}) for name in names]
        assert all(isinstance(each, Unavailable) for each in await asyncio.gather(*adding, return_exceptions=True))
        await pods._tend()
    assert sorted(done[:2]) == ["delete a", "delete b"]
    assert done[2:] == ["add a", "add b"]


async def test_an_address_that_is_routed_here_and_in_no_file_is_a_problem_until_its_route_is_gone(
    bed: Bed, options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    routed = {parse("10.1.1.9")}

    async def addresses() -> set[Address]:
        return set(routed)

    monkeypatch.setattr(veth, "routed_addresses", addresses)
    pods = Pods(options, bed.domains.tunnels, bed.domains.devices, bed.domains.attached_pods)
    bed.add_node("alpha", 1)
    await bed.step()
    await pods._tend()
    assert pods.problems == {"10.1.1.9": "is routed to a pod of this node that no endpoint file tells of"}
    routed.clear()
    await pods._tend()
    assert pods.problems == {}


async def test_a_pod_cidr_that_changes_under_its_pods_is_a_problem(bed: Bed, options: Options) -> None:
    pods = Pods(options, bed.domains.tunnels, bed.domains.devices, bed.domains.attached_pods)
    async with running(pods):
        bed.add_node("alpha", 1)
        await bed.step()
        await is_taking(pods)
        assert pods.problems == {}
        bed.add_node("alpha", 1, pod_cidrs=(parse_prefix("10.1.77.0/24"),))
        await bed.step()
        assert "is 10.1.77.0/24 (gateway 10.1.77.1) now" in pods.problems["pod CIDR"]


@pytest.mark.parametrize(
    "changes",
    [
        {"pod_cidrs": ()},
        {"pod_cidrs": (), "addresses": (NodeAddress(type="CiliumInternalIP", ip=parse("10.1.1.1")),)},
        {"pod_cidrs": (parse_prefix("10.1.1.1/32"),)},
        {"pod_cidrs": (parse_prefix("10.1.1.0/30"),)},
    ],
)
async def test_a_node_without_room_for_pods_is_no_underlay(bed: Bed, changes: dict[str, object]) -> None:
    node = bed.add_node("alpha", 1, **changes)
    setup = UnderlaySetup(bed.datapath, bed.device, b"", 1)  # type: ignore[arg-type]
    with pytest.raises(ClusterMeshError, match="pod CIDR"):
        await setup.apply(node)
