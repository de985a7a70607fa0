"""Events: told while somebody listens and not otherwise, whole, in order, to everybody who listens; losses counted."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing, closing
from typing import Any

import pytest
from bpf_maps import write
from bpf_node import Node
from bpf_packets import frame, ipv4, ipv4_frame, ipv6_frame
from bpf_run import program_test_run

from agent.bpf.layouts import (
    EventsWanted,
    EventType,
    IpcacheValue,
    Number,
    Reason,
    ServiceKey,
    ServiceValue,
)
from agent.bpf.loader import Datapath
from agent.bpf.ring import Ring
from agent.bpf.syscalls import map_lookup
from agent.monitor import Monitor
from clustermesh.address import parse
from clustermesh.cli.monitor import Form
from clustermesh.errors import Invalid

pytestmark = pytest.mark.root

SIZE = 176
ONE, OTHER = "10.1.0.5", "10.2.0.7"
PODS = (ONE, OTHER, "fd10:1::5", "fd10:2::7")
DROPPED = ipv4_frame(ONE, OTHER)
ALL = (1 << len(EventType)) - 1


@pytest.fixture
def pods(datapath: Datapath) -> Datapath:
    """Two pods of each family, between which strict mode drops everything."""
    asyncio.run(write(datapath, "ipcache", {parse(ip): IpcacheValue(131072) for ip in PODS}))
    return datapath


def ask(datapath: Datapath, seconds: float = 60, types: int = ALL) -> None:
    value = EventsWanted(time.monotonic_ns() + int(seconds * 1e9), types)
    asyncio.run(write(datapath, "events_wanted", {Number(0): value}))


def ring(datapath: Datapath) -> Ring:
    return Ring(datapath.maps["events"], datapath.sizes["events"], SIZE)


def drop(datapath: Datapath, packet: bytes = DROPPED, times: int = 1) -> None:
    for _ in range(times):
        program_test_run(datapath.program_fd("strict_egress"), packet)


class Listener:
    """The rows of one who listens, made as the command line makes them."""

    def __init__(self, lines: AsyncGenerator[bytes, None]) -> None:
        self._lines, self.lost = lines, 0

    async def begin(self) -> None:
        self._form = Form(json.loads(await anext(self._lines))["result"])

    async def rows(self, count: int) -> list[dict[str, Any]]:
        """The next ones, at least so many, or what came until two beats were empty."""
        found, empty = list[dict[str, Any]](), 0
        while len(found) < count and empty < 2:
            said = json.loads(await anext(self._lines))
            self.lost = said["lost"]
            found += self._form.rows(said["events"], 0)
            empty += not said["events"]
        return found


def test_while_nobody_listens_nothing_is_written(pods: Datapath) -> None:
    with ring(pods) as reader:
        drop(pods, times=3)
        assert reader.take(10) == []
        ask(pods, types=1 << EventType.LB)
        drop(pods, times=3)
        assert reader.take(10) == [], "somebody listens to something else"
        ask(pods)
        drop(pods)
        assert len(reader.take(10)) == 1
    assert pods.counters()[Reason.DROP_CLEAR_EGRESS] == 7
    assert pods.counters()[Reason.EVENT_LOST] == 0


def test_who_was_killed_listens_no_more(pods: Datapath) -> None:
    ask(pods, seconds=-1)
    with ring(pods) as reader:
        drop(pods)
        assert reader.take(10) == []
    left = map_lookup(pods.maps["events_wanted"], bytes(4), 16)
    assert left is not None
    assert not any(left[8:]), "the program need not look at the clock again"


def test_what_there_is_no_room_for_is_counted_and_the_rest_is_whole(pods: Datapath) -> None:
    room = pods.sizes["events"] // (SIZE + 8)
    ask(pods)
    with ring(pods) as reader:
        for sent in (room + 100, room + 7):  # the second time the ring is written over its end
            before = pods.counters()[Reason.EVENT_LOST]
            drop(pods, times=sent)
            got = [event for _ in range(100) for event in reader.take(97)]
            lost = pods.counters()[Reason.EVENT_LOST] - before
            assert len(got) + lost == sent
            assert lost >= sent - room
            times = [event[:8] for event in got]
            assert sorted(times, key=lambda each: int.from_bytes(each, "little")) == times
            assert {event[103] for event in got} == {EventType.DROP}


def called(packet: bytes) -> bytes:
    """With ports 4711 and 80 where its payload of 32 bytes begins."""
    return packet[:-32] + struct.pack("!HH", 4711, 80) + packet[-28:]


HEADS = {
    "a whole head": (called(ipv4_frame(ONE, OTHER)), "UDP", 4711),
    "a short packet": (called(ipv4_frame(ONE, OTHER))[: 14 + 28], "UDP", 4711),
    "no more than its header": (called(ipv4_frame(ONE, OTHER))[: 14 + 20], "UDP", 0),
    "options": (called(frame(0x0800, ipv4(ONE, OTHER, options=b"\x94\x04\x00\x00"))), "UDP", 4711),
    "a later fragment": (called(frame(0x0800, ipv4(ONE, OTHER, fragment=0x00B9))), "UDP", 0),
    "TCP": (called(ipv4_frame(ONE, OTHER, 6)), "TCP", 4711),
    "ICMP": (called(ipv4_frame(ONE, OTHER, 1)), "ICMP", 0),
    "IPv6": (called(ipv6_frame("fd10:1::5", "fd10:2::7", 17)), "UDP", 4711),
}


async def test_a_drop_is_told_with_its_packet_to_everybody_who_listens(pods: Datapath) -> None:
    monitor = Monitor(pods)
    async with aclosing(monitor.listen({})) as all_lines, aclosing(monitor.listen({"types": ["drop"]})) as drops:
        listeners = [Listener(all_lines), Listener(drops)]
        for each in listeners:
            await each.begin()
        for packet, _, _ in HEADS.values():
            drop(pods, packet)
        for each in listeners:
            rows = await each.rows(len(HEADS))
            assert len(rows) == len(HEADS)
            for row, (name, (_, protocol, port)) in zip(rows, HEADS.items(), strict=True):
                source, destination = ("fd10:1::5", "fd10:2::7") if name == "IPv6" else (ONE, OTHER)
                assert (row["source"]["address"], row["destination"]["address"]) == (source, destination), name
                assert (row["protocol"], row["source"]["port"]) == (protocol, port), name
                assert (row["type"], row["reason"]) == ("drop", "drop_clear_egress")
                assert (row["new_source"], row["new_destination"]) == (None, None)
            assert each.lost == 0
    assert map_lookup(pods.maps["events_wanted"], bytes(4), 16)[8:12] == bytes(4), "and then nobody listens"  # type: ignore[index]


async def test_each_hears_only_what_it_asked_for(pods: Datapath) -> None:
    monitor = Monitor(pods)
    async with aclosing(monitor.listen({"types": ["lb", "trace"]})) as some, aclosing(monitor.listen({})) as all_lines:
        deaf, other = Listener(some), Listener(all_lines)
        await deaf.begin()
        await other.begin()
        drop(pods, times=5)
        assert len(await other.rows(5)) == 5
        assert await deaf.rows(1) == []
        await all_lines.aclose()
        drop(pods, times=5)
        assert await deaf.rows(1) == []
    with pytest.raises(Invalid, match="drop, lb, trace"):
        monitor.listen({"types": ["policy"]})


@pytest.mark.both_loaders
async def test_sockets_tell_what_they_meant_and_where_they_went(datapath: Datapath, cgroup: Any, node: Node) -> None:
    datapath.attach_sockets(cgroup)
    server = node.echo(socket.SOCK_STREAM)
    nobody = ServiceKey(parse("10.96.0.9"), 80, 6)
    await write(datapath, "lb_services", {nobody: ServiceValue(9)})
    monitor = Monitor(datapath)
    async with aclosing(monitor.listen({})) as lines:
        listener = Listener(lines)
        await listener.begin()
        with pytest.raises(ConnectionRefusedError):
            node.socket(socket.AF_INET, socket.SOCK_STREAM).connect(("10.96.0.9", 80))
        with closing(node.socket(socket.AF_INET, socket.SOCK_STREAM)) as client:
            client.connect(server.address)
            cookie = int.from_bytes(client.getsockopt(socket.SOL_SOCKET, 57, 8), "little")
        refused, direct = await listener.rows(2)
    assert (refused["type"], refused["reason"], refused["protocol"]) == ("drop", "drop_no_backend", "TCP")
    assert refused["destination"] == {"address": "10.96.0.9", "port": 80}
    assert (direct["type"], direct["reason"], direct["cookie"]) == ("trace", "connect_direct", cookie)
    assert direct["destination"] == {"address": "127.0.0.1", "port": server.port}
    assert time.monotonic() - direct["time"] < 60
