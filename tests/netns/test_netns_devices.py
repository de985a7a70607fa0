"""The devices domain on a real node: programs on the devices of pods and on those that lead outside, followed.

  node 1 (net + mount namespace)                                  outside
+------------------------------------------------------+       +-----------+
|   pod a            pod b              lo 10.1.0.1     |       |           |
|  10.1.0.2         10.1.0.3                       eth0 ========== eth0     |
|   eth0 ── lxc...   eth0 ── lxc...          192.0.2.1  |       | 192.0.2.2 |
+------------------------------------------------------+       +-----------+
"""

from __future__ import annotations

import asyncio
import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from netns_mesh import MTU, MeshNode
from netns_node import TIMEOUT, NetnsNode, join

from agent import netlink
from agent.bpf.bpffs import ensure_bpffs
from agent.bpf.hooks import PROGRAMS, Kind
from agent.bpf.layouts import PodSource, Reason, unpack_each
from agent.bpf.links import Outcome, pin_name
from agent.bpf.loader import Datapath
from agent.cni.endpoint import EndpointRequest, host_ifname
from agent.cni.ipam import Ipam
from agent.cni.local_pods import Endpoints
from agent.domains.devices import Devices
from agent.domains.tables import Targets, open_map
from agent.plan.attached import AttachedPods
from agent.plan.devices import Ways
from agent.targets.devices import DeviceTarget
from clustermesh.address import parse
from clustermesh.model import Node, NodeAddress

OF_PODS = [program.name for program in PROGRAMS if program.kind is Kind.POD]
OUTSIDE = [program.name for program in PROGRAMS if program.kind is Kind.OUTSIDE]


class Bed:
    """A node with the agent's parts for devices and pods."""

    def __init__(self, node: MeshNode, pins: Path) -> None:
        self.node, self.pins = node, pins
        node.do(netlink.prepare_node(node.routers))
        self.start()

    def start(self, *patterns: str) -> None:
        """An agent, which finds what the one before left."""
        self.datapath = self.node.call(lambda: Datapath.open(None, self.pins))
        names = {"config": "node_config", "sources": "pod_sources", "pods": "pod_devices"}
        targets = SimpleNamespace(
            devices=DeviceTarget(self.datapath.devices, self.datapath.maps["pod_sources"]),
            **{name: open_map(self.datapath, map_name) for name, map_name in names.items()},
        )
        self.attached = AttachedPods()
        pools = [Ipam(cidr, router) for cidr, router in zip(self.node.cidrs, self.node.routers, strict=True)]
        self.endpoints = Endpoints(self.node.state, pools, self.attached, mtu=MTU)
        self.domain = Devices(cast(Targets, targets), self.attached, "cm-wg0", patterns)

        async def begin() -> asyncio.Task[None]:
            running = asyncio.create_task(self.domain.run())
            self.domain.take_ways(Ways(addresses=frozenset({("eth0", parse("192.0.2.1"))})))
            address = NodeAddress(type="InternalIP", ip=parse("192.0.2.1"))
            self.domain.take_own(Node(cluster="a", cluster_id=1, name="n", addresses=(address,)))
            await self.endpoints.restore()
            self.domain.allow_pruning()
            await self.domain.whole_step()
            return running

        self._running = self.node.do(begin())

    def stop(self) -> None:
        async def end() -> None:
            self._running.cancel()
            await asyncio.wait([self._running])

        self.node.do(end())
        self.datapath.close()

    def add(self, pod: str) -> str:
        """The node's end of the pod's device."""
        self.node.run(f"ip netns add {pod}")

        async def work() -> str:
            record = await self.endpoints.add(request(pod))
            await self.domain.whole_step()
            return record.host_ifname

        return self.node.do(work())

    def settle(self) -> None:
        self.node.do(self.domain.whole_step())
        assert self.domain.settled, [tracker.problems for tracker in self.domain.trackers]

    def pinned(self) -> set[str]:
        return {pin.name for pin in (self.pins / "links").iterdir()}

    def dropped(self) -> int:
        return self.datapath.counters()[Reason.DROP_SOURCE]


def request(pod: str) -> EndpointRequest:
    return EndpointRequest(container_id=f"container-{pod}", ifname="eth0", netns=f"/run/netns/{pod}")


def pins_of(*devices: str) -> set[str]:
    return {pin_name(program, device) for device in devices for program in OF_PODS} | {
        pin_name(program, "eth0") for program in OUTSIDE
    }


@pytest.fixture
def bed(machine: None, tmp_path: Path) -> Iterator[Bed]:
    bpffs = tmp_path / "bpf"
    ensure_bpffs(bpffs)
    with ExitStack() as closing:
        closing.callback(subprocess.run, ["umount", str(bpffs)], check=True, timeout=TIMEOUT)
        outside, node = NetnsNode(2), MeshNode(1, tmp_path / "node1")
        closing.callback(outside.close)
        closing.callback(node.close)
        join(node, outside)
        made = Bed(node, bpffs / "clustermesh")
        closing.callback(Datapath.remove, made.pins)
        closing.callback(made.stop)
        yield made


def say(bed: Bed, pod: str, source: str, destination: str) -> None:
    """A datagram with this source, whatever the pod's kernel thinks of that."""
    raw = bed.node.pod_socket(pod, socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    header = struct.pack("!BBHHHBBH", 0x45, 0, 0, 1, 0, 64, 253, 0)
    raw.sendto(header + socket.inet_aton(source) + socket.inet_aton(destination) + b"hello", (destination, 0))


def test_a_pod_sends_from_its_own_address_alone_from_its_first_packet_on(bed: Bed) -> None:
    for pod in ("a", "b"):
        bed.add(pod)
    hearing = bed.node.pod_socket("b", socket.AF_INET, socket.SOCK_RAW, 253)
    for source in ("10.1.0.3", "192.0.2.2", "10.1.0.1", "10.1.0.2"):
        say(bed, "a", source, "10.1.0.3")
    assert hearing.recvfrom(100)[1][0] == "10.1.0.2", "the others were dropped before"
    assert bed.dropped() == 3
    hearing.setblocking(False)
    with pytest.raises(BlockingIOError):
        hearing.recv(100)


def test_devices_come_and_go_and_leave_no_pin_and_no_entry(bed: Bed) -> None:
    a, b = bed.add("a"), bed.add("b")
    assert bed.pinned() == pins_of(a, b)
    bed.node.do(bed.endpoints.delete(request("a")))
    bed.settle()
    assert bed.pinned() == pins_of(b)
    found = bed.node.do(cast(Any, bed.domain.sources.tracker.target).dump())
    assert [unpack_each(PodSource, value)[0].ipv4 for value in found.values()] == [parse("10.1.0.3")]
    bed.node.do(bed.endpoints.delete(request("b")))
    bed.settle()
    assert bed.pinned() == pins_of()


def test_a_device_that_is_made_again_behind_the_agents_back_is_protected_again(bed: Bed) -> None:
    device = bed.add("a")
    bed.node.run(f"ip link del {device}")
    bed.node.run(f"ip link add {device} type veth peer name eth9")
    index = bed.node.call(lambda: socket.if_nametoindex(device))

    async def until_attached() -> None:
        while bed.domain.programs.actual.get(device, (0,))[0] != index:
            await asyncio.sleep(0.005)

    bed.node.do(until_attached())
    bed.settle()
    assert bed.pinned() == pins_of(device)


def test_what_is_taken_off_is_put_back(bed: Bed) -> None:
    device = bed.add("a")
    bed.add("b")
    (bed.pins / "links" / pin_name("from_pod", device)).unlink()  # the last that held the link
    hearing = bed.node.pod_socket("b", socket.AF_INET, socket.SOCK_RAW, 253)
    say(bed, "a", "192.0.2.2", "10.1.0.3")
    assert hearing.recvfrom(100)[1][0] == "192.0.2.2"
    bed.node.do(bed.domain.audit())
    bed.settle()
    assert bed.domain.programs.drift == 1
    say(bed, "a", "192.0.2.2", "10.1.0.3")
    say(bed, "a", "10.1.0.2", "10.1.0.3")
    assert hearing.recvfrom(100)[1][0] == "10.1.0.2"


def test_an_agent_that_comes_again_adopts_and_changes_nothing(bed: Bed) -> None:
    device = bed.add("a")
    before = bed.pinned()
    bed.stop()
    bed.start()
    bed.settle()
    assert bed.pinned() == before
    hooks = bed.node.call(
        lambda: bed.datapath.devices.attach(device, [each for each in PROGRAMS if each.kind is Kind.POD])
    )
    assert {hook.outcome for hook in hooks} == {Outcome.ADOPTED}
    bed.stop()
    bed.node.run(f"ip link del {device}")  # and the pod's namespace with it, as in a reboot
    bed.node.run("ip netns del a")
    bed.start()
    bed.settle()
    assert bed.pinned() == pins_of()


def test_a_device_that_vanishes_while_it_is_attached_to_ends_nothing(bed: Bed) -> None:
    target = bed.domain.programs.target
    device = bed.add("a")
    wanted = bed.domain.programs.actual[device]
    bed.domain.programs.set("lxcgone", wanted._replace(ifindex=12345))
    bed.domain.wake()
    bed.node.do(bed.domain.whole_step())
    assert bed.domain.programs.problems.keys() == {"lxcgone"}
    bed.domain.programs.remove("lxcgone")
    bed.settle()
    assert bed.node.do(cast(Any, target).dump()).keys() - {"eth0"} == {device}


def test_many_pods_at_once(bed: Bed) -> None:
    count = 40

    async def work() -> None:
        await asyncio.gather(*(bed.endpoints.add(request(f"p{number}")) for number in range(count)))
        await bed.domain.whole_step()

    for number in range(count):
        bed.node.run(f"ip netns add p{number}")
    bed.node.do(work())
    bed.settle()
    assert bed.pinned() == pins_of(*(host_ifname(f"container-p{number}", "eth0") for number in range(count)))
