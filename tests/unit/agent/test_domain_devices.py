"""The devices domain over dictionaries: who comes and goes, by which name and index."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from fake_kernel import FakeTable

from agent.bpf.hooks import PROGRAMS, Accelerated, Attached, Kind
from agent.bpf.layouts import NodeConfig, Number, PodDevice, PodSource, pack, unpack
from agent.domains import devices
from agent.domains.devices import Devices, LentPorts
from agent.domains.tables import Targets
from agent.plan.attached import AttachedPod, AttachedPods
from agent.plan.devices import Ways
from agent.reserved_ports import ReservedPorts
from clustermesh.address import parse
from clustermesh.model import Node, NodeAddress

POD, OTHER = "lxc0123456789ab", "lxcba9876543210"
OF_PODS = tuple(each.name for each in PROGRAMS if each.kind is Kind.POD)
NODE = Node(cluster="a", cluster_id=1, name="n", addresses=(NodeAddress(type="InternalIP", ip=parse("192.0.2.1")),))


class Bed:
    """`links` is the machine's: index by name."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.folder, self.setting = folder, folder / "ip_local_reserved_ports"
        self.setting.write_text("8080\n")
        self.ephemeral = (32768, 60999)
        self.links = {"lo": 1, "eth0": 2, POD: 7, OTHER: 8}
        self.journal: list[str] = []
        names = ("config", "sources", "pods", "programs", "frames")
        self.config, self.sources, self.at, self.programs, self.frames = (
            FakeTable(name, self.journal) for name in names
        )
        self.address = b"\x02\x00\x00\x00\x00\x01"
        self.pods = AttachedPods()
        monkeypatch.setattr(devices, "_index_of", lambda name: self.links.get(name, 0))
        monkeypatch.setattr(devices, "_has_frames", lambda _name: True)
        monkeypatch.setattr(devices, "ethernet_of", lambda _name: self.address)
        monkeypatch.setattr(devices, "_ephemeral_ports", lambda: self.ephemeral)
        self.names = [(index, name) for name, index in self.links.items()]
        monkeypatch.setattr(devices.socket, "if_nameindex", lambda: self.names)
        self.restart()

    def restart(self, *patterns: str, accelerates: bool = False, lent: tuple[int, int] | None = None) -> None:
        self.pods.on_change.clear()
        targets = SimpleNamespace(
            config=self.config, sources=self.sources, pods=self.at, devices=self.programs, frames=self.frames
        )
        ports = LentPorts(lent, ReservedPorts(self.folder, self.setting))
        self.domain = Devices(cast(Targets, targets), self.pods, ports, "cm-wg0", patterns, accelerates=accelerates)

    def attach(self, device: str, *addresses: str, container: str = "c") -> None:
        found = tuple(map(parse, addresses))
        self.pods.attached(AttachedPod(container_id=container, ifname="eth0", addresses=found, device=device))

    async def settle(self) -> None:
        await self.domain.step()
        while not self.domain.idle.is_set():
            await self.domain.step()

    def held(self) -> tuple[dict[Any, Any], dict[Any, Any]]:
        return self.sources.held, self.programs.held


@pytest.fixture
def bed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Bed:
    return Bed(monkeypatch, tmp_path)


async def test_a_pod_is_known_before_its_programs_run_and_until_they_do_not(bed: Bed) -> None:
    bed.attach(POD, "10.1.0.5")
    await bed.settle()
    assert bed.held() == (
        {pack(Number(7)): pack(PodSource(parse("10.1.0.5")))},
        {POD: Attached(7, OF_PODS)},
    )
    bed.pods.detached("c", "eth0")
    await bed.settle()
    assert bed.held() == ({}, {})
    assert bed.journal == ["sources +1", "pods +1", "programs +1", "programs -1", "pods -1", "sources -1"]


async def test_a_device_made_again_under_its_name_has_its_programs_and_leaves_no_entry(bed: Bed) -> None:
    bed.attach(POD, "10.1.0.5")
    await bed.settle()
    bed.links[POD] = 9
    bed.attach(POD, "10.1.0.6")
    await bed.settle()
    assert bed.held() == (
        {pack(Number(9)): pack(PodSource(parse("10.1.0.6")))},
        {POD: Attached(9, OF_PODS)},
    )


async def test_a_device_that_is_gone_has_nothing_and_comes_back(bed: Bed) -> None:
    bed.attach(POD, "10.1.0.5")
    index = bed.links.pop(POD)
    await bed.settle()
    assert bed.held() == ({}, {})
    bed.links[POD] = index
    await bed.domain.audit()
    await bed.settle()
    assert bed.programs.held == {POD: Attached(7, OF_PODS)}


async def test_an_index_that_another_pods_device_has_by_now_stays_its(bed: Bed) -> None:
    bed.attach(POD, "10.1.0.5")
    await bed.settle()
    bed.links |= {POD: 8, OTHER: 7}
    bed.attach(OTHER, "10.1.0.6", container="d")
    bed.attach(POD, "10.1.0.5")
    await bed.settle()
    assert bed.sources.held == {
        pack(Number(8)): pack(PodSource(parse("10.1.0.5"))),
        pack(Number(7)): pack(PodSource(parse("10.1.0.6"))),
    }
    assert bed.at.held == {parse("10.1.0.5"): pack(PodDevice(8)), parse("10.1.0.6"): pack(PodDevice(7))}


async def test_an_address_that_another_pod_has_by_now_leads_to_that_one(bed: Bed) -> None:
    bed.attach(POD, "10.1.0.5")
    await bed.settle()
    bed.attach(OTHER, "10.1.0.5", container="d")
    await bed.settle()
    bed.pods.detached("c", "eth0")
    await bed.settle()
    assert bed.at.held == {parse("10.1.0.5"): pack(PodDevice(8))}


async def test_what_an_agent_before_knew_of_the_node_holds_until_the_node_is_known(bed: Bed) -> None:
    bed.config.held[pack(Number(0))] = b"before"
    await bed.domain.adopt()
    await bed.settle()
    assert bed.config.held == {pack(Number(0)): b"before"}
    bed.domain.take_own(NODE)
    await bed.settle()
    known = unpack(NodeConfig, bed.config.held[pack(Number(0))])
    assert (known.node4, known.tunnel_device) == (parse("192.0.2.1"), 0)
    bed.links["cm-wg0"] = 5
    await bed.domain.audit()
    await bed.settle()
    assert unpack(NodeConfig, bed.config.held[pack(Number(0))]).tunnel_device == 5
    bed.domain.take_own(None)
    await bed.settle()
    assert unpack(NodeConfig, bed.config.held[pack(Number(0))]).node4 == parse("192.0.2.1")


async def test_one_pod_that_does_not_fit_is_its_own_problem(bed: Bed) -> None:
    bed.programs.refuse.add(POD)
    bed.attach(POD, "10.1.0.5")
    bed.attach(OTHER, "10.1.0.6", container="d")
    await bed.settle()
    assert bed.programs.held == {OTHER: Attached(8, OF_PODS)}
    assert bed.domain.programs.problems.keys() == {POD}


async def test_what_is_found_stays_until_the_pods_of_before_are_known(bed: Bed) -> None:
    bed.attach(POD, "10.1.0.5")
    await bed.settle()
    before = [dict(each) for each in bed.held()]
    bed.pods.detached("c", "eth0")  # another agent, which does not know of it yet
    bed.restart()
    await bed.domain.adopt()
    await bed.settle()
    assert [*bed.held()] == before
    bed.attach(POD, "10.1.0.5")
    bed.domain.allow_pruning()
    await bed.settle()
    assert [*bed.held()] == before
    bed.pods.detached("c", "eth0")
    await bed.settle()
    assert bed.held() == ({}, {})


async def test_the_ways_out_are_followed(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = Attached(2, ("from_outside",))
    monkeypatch.setattr(devices, "plan_device", lambda index, kind: wanted if kind is Kind.OUTSIDE and index else None)
    bed.domain.take_ways(Ways(addresses=frozenset({("eth0", parse("192.0.2.1"))})))
    await bed.settle()
    assert not bed.programs.held
    bed.domain.take_own(NODE)
    await bed.settle()
    assert bed.programs.held == {"eth0": wanted}
    bed.domain.take_own(None)
    await bed.settle()
    assert bed.programs.held == {"eth0": wanted}, "its Node is made anew, perhaps"
    bed.domain.take_ways(Ways())
    await bed.settle()
    assert not bed.programs.held
    bed.domain.take_ways(Ways(frozenset({"eth0"})))
    await bed.settle()
    assert bed.programs.held == {"eth0": wanted}
    bed.restart("lxc+")
    bed.domain.look_again()
    await bed.settle()
    assert bed.programs.held.keys() == {"eth0", POD, OTHER}


async def test_a_device_that_is_renamed_has_its_programs_until_the_ways_say_its_name(bed: Bed) -> None:
    bed.domain.take_own(NODE)
    bed.domain.take_ways(Ways(frozenset({"eth0"})))
    await bed.settle()
    had = bed.programs.held["eth0"]
    bed.links["ext0"] = bed.links.pop("eth0")
    bed.names[:] = [(index, name) for name, index in bed.links.items()]
    await bed.domain.audit()
    await bed.settle()
    assert bed.programs.held == {"eth0": had}
    bed.domain.take_ways(Ways(frozenset({"ext0"})))
    await bed.settle()
    assert bed.programs.held == {"ext0": had}
    bed.links.clear()
    bed.names.clear()
    await bed.domain.audit()
    await bed.settle()
    assert not bed.programs.held, "gone"


async def test_a_device_that_leads_outside_and_was_made_anew_is_told_of_once(bed: Bed) -> None:
    told = list[int]()
    bed.domain.on_outside = lambda: told.append(bed.links["eth0"])
    bed.domain.take_own(NODE)
    bed.domain.take_ways(Ways(frozenset({"eth0"})))
    await bed.settle()
    await bed.domain.audit()
    await bed.settle()
    assert told == [2]
    bed.links["eth0"] = 9
    await bed.domain.audit()
    await bed.settle()
    assert told == [2, 9]


async def test_frames_are_translated_only_on_devices_that_lead_outside_and_only_where_that_is_asked_for(
    bed: Bed,
) -> None:
    bed.attach(POD, "10.1.0.5")
    bed.restart("eth+", POD)
    await bed.settle()
    assert bed.frames.held == {}
    bed.restart("eth+", POD, accelerates=True)
    bed.domain.look_again()
    await bed.settle()
    assert bed.frames.held == {"eth0": Accelerated(2, bed.address)}
    assert bed.programs.held["eth0"] == Attached(2, ("from_outside", "to_outside"))


async def test_a_device_made_again_or_with_another_address_is_known_by_that(bed: Bed) -> None:
    bed.restart("eth0", accelerates=True)
    bed.domain.look_again()
    await bed.settle()
    bed.links["eth0"], bed.address = 9, bytes(6)
    await bed.domain.audit()
    await bed.settle()
    assert bed.frames.held == {"eth0": Accelerated(9, bytes(6))}
    del bed.links["eth0"]
    await bed.domain.audit()
    await bed.settle()
    assert bed.frames.held == {}


async def test_where_it_is_not_asked_for_any_more_what_is_there_goes(bed: Bed) -> None:
    bed.frames.held["eth0"] = Accelerated(0)
    bed.restart("eth0")
    await bed.domain.adopt()
    bed.domain.look_again()
    await bed.settle()
    bed.domain.allow_pruning()
    await bed.settle()
    assert bed.frames.held == {}


def _lent(bed: Bed) -> tuple[int, int]:
    config = unpack(NodeConfig, bed.config.held[pack(Number(0))])
    return config.port_first, config.port_last


async def test_lent_ports_that_sockets_would_be_given_are_reserved_while_they_would(bed: Bed) -> None:
    bed.links["cm-wg0"] = 5
    for ephemeral, reserved in (((1024, 65000), "8080,61440-65535\n"), ((32768, 60999), "8080\n")):
        bed.ephemeral = ephemeral
        bed.restart()
        bed.domain.take_own(NODE)
        await bed.settle()
        assert bed.setting.read_text() == reserved


@pytest.mark.parametrize(
    ("lent", "said"),
    [
        (None, "read .*ip_local_reserved_ports: Is a directory"),
        ((2000, 60000), "bpf-lb-snat-ports: '2000-60000': must leave half"),
    ],
)
async def test_where_ports_cannot_be_reserved_the_tunnel_has_its_programs_and_the_node_its_addresses(
    bed: Bed, lent: tuple[int, int] | None, said: str
) -> None:
    bed.links["cm-wg0"], bed.ephemeral = 5, (1024, 65535)
    bed.setting.unlink()
    bed.setting.mkdir()
    bed.restart(lent=lent)
    bed.domain.take_own(NODE)
    await bed.settle()
    assert bed.programs.held["cm-wg0"].programs == tuple(each.name for each in PROGRAMS if each.kind is Kind.TUNNEL)
    assert _lent(bed) == (lent or (61440, 65535))
    (problem,) = bed.domain.problems.values()
    assert re.match(said, problem.sentence)


async def test_an_agent_that_begins_says_who_else_has_the_ports_it_was_given(
    bed: Bed, caplog: pytest.LogCaptureFixture
) -> None:
    bed.restart(lent=(32700, 33100))
    running = asyncio.create_task(bed.domain.run())
    async with asyncio.timeout(10):
        while len(caplog.messages) < 2:
            await asyncio.sleep(0.001)
    running.cancel()
    assert [each[: each.index(" of them")] for each in caplog.messages] == [
        "--bpf-lb-snat-ports 32700-33100: 32700 to 32767",
        "--bpf-lb-snat-ports 32700-33100: 32768 to 33100",
    ]
