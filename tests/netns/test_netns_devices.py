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
import select
import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import pytest
from netns_devices import DevicesBed, request
from netns_mesh import MeshNode
from netns_node import TIMEOUT, NetnsNode, join

from agent.bpf.bpffs import ensure_bpffs
from agent.bpf.hooks import PROGRAMS, Kind
from agent.bpf.layouts import PodSource, unpack_each
from agent.bpf.links import Outcome, pin_name
from agent.bpf.loader import Datapath
from agent.cni.endpoint import host_ifname
from agent.plan.devices import Ways
from clustermesh.address import parse

OF_PODS = [program.name for program in PROGRAMS if program.kind is Kind.POD]
OUTSIDE = [program.name for program in PROGRAMS if program.kind is Kind.OUTSIDE]


def pins_of(*devices: str) -> set[str]:
    return {pin_name(program, device) for device in devices for program in OF_PODS} | {
        pin_name(program, "eth0") for program in OUTSIDE
    }


@pytest.fixture
def bed(machine: None, tmp_path: Path) -> Iterator[DevicesBed]:
    bpffs = tmp_path / "bpf"
    ensure_bpffs(bpffs)
    with ExitStack() as closing:
        closing.callback(subprocess.run, ["umount", str(bpffs)], check=True, timeout=TIMEOUT)
        outside, node = NetnsNode(2), MeshNode(1, tmp_path / "node1")
        closing.callback(outside.close)
        closing.callback(node.close)
        join(node, outside)
        made = DevicesBed(node, bpffs / "clustermesh")
        closing.callback(Datapath.remove, made.pins)
        closing.callback(made.stop)
        yield made


def say(bed: DevicesBed, pod: str, source: str, destination: str) -> None:
    """A datagram with this source, whatever the pod's kernel thinks of that."""
    raw = bed.node.pod_socket(pod, socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    header = struct.pack("!BBHHHBBH", 0x45, 0, 0, 1, 0, 64, 253, 0)
    raw.sendto(header + socket.inet_aton(source) + socket.inet_aton(destination) + b"hello", (destination, 0))


def test_a_pod_sends_from_its_own_address_alone_from_its_first_packet_on(bed: DevicesBed) -> None:
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


def test_devices_come_and_go_and_leave_no_pin_and_no_entry(bed: DevicesBed) -> None:
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


def test_a_device_that_is_made_again_behind_the_agents_back_is_protected_again(bed: DevicesBed) -> None:
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


def test_what_is_taken_off_is_put_back(bed: DevicesBed) -> None:
    device = bed.add("a")
    bed.add("b")
    (bed.pins / "links" / pin_name("from_pod", device)).unlink()  # the last that held the link
    hearing = bed.node.pod_socket("b", socket.AF_INET, socket.SOCK_RAW, 253)
    while not select.select([hearing], [], [], 0.1)[0]:  # a busy kernel lets go of the link later
        say(bed, "a", "192.0.2.2", "10.1.0.3")
    bed.node.do(bed.domain.audit())
    bed.settle()
    assert bed.domain.programs.drift == 1
    say(bed, "a", "192.0.2.3", "10.1.0.3")
    say(bed, "a", "10.1.0.2", "10.1.0.3")
    heard = {"192.0.2.2"}
    while "10.1.0.2" not in heard:
        heard.add(hearing.recvfrom(100)[1][0])
    assert heard == {"192.0.2.2", "10.1.0.2"}


def test_an_agent_that_comes_again_adopts_and_changes_nothing(bed: DevicesBed) -> None:
    device = bed.add("a")
    before, shown = bed.pinned(), bed.datapath.devices.hooks
    assert {*shown} == before - pins_of(device) | pins_of(), "pods are many: theirs are not shown"
    bed.stop()
    bed.start()
    bed.settle()
    assert bed.pinned() == before
    assert bed.datapath.devices.hooks == {
        name: hook._replace(outcome=Outcome.ADOPTED) for name, hook in shown.items()
    }, "what was found is shown as what was attached"
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


def test_a_device_that_is_renamed_keeps_its_programs(bed: DevicesBed) -> None:
    before = {hook.name: hook.link_id for hook in bed.datapath.devices.hooks.values()}
    bed.node.run("ip link set eth0 down")
    bed.node.run("ip link set eth0 name ext0")

    async def follow() -> None:
        address = parse(bed.node.address)
        bed.domain.take_ways(Ways(addresses=frozenset({("ext0", address)})))
        await bed.domain.whole_step()

    bed.node.do(follow())
    bed.settle()
    assert bed.pinned() == {pin_name(program, "ext0") for program in OUTSIDE}
    assert {hook.name: hook.link_id for hook in bed.datapath.devices.hooks.values()} == before
    assert {(hook.target, hook.outcome) for hook in bed.datapath.devices.hooks.values()} == {("ext0", Outcome.ADOPTED)}
    bed.node.run("ip link set ext0 name eth0")  # another one may have the name by then, of a device that is gone
    hooks = bed.node.call(
        lambda: bed.datapath.devices.attach("eth0", [each for each in PROGRAMS if each.kind is Kind.OUTSIDE])
    )
    assert {hook.outcome for hook in hooks} == {Outcome.ADOPTED}


def test_a_device_that_vanishes_while_it_is_attached_to_ends_nothing(bed: DevicesBed) -> None:
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


def test_many_pods_at_once(bed: DevicesBed) -> None:
    count = 40

    async def work() -> None:
        await asyncio.gather(*(bed.endpoints.add(request(f"p{number}")) for number in range(count)))
        await bed.domain.whole_step()

    for number in range(count):
        bed.node.run(f"ip netns add p{number}")
    bed.node.do(work())
    bed.settle()
    assert bed.pinned() == pins_of(*(host_ifname(f"container-p{number}", "eth0") for number in range(count)))
