"""The collector over the kernel's own map: what is over goes, both directions at once, and nothing else does."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import Any

import pytest
from bpf_maps import write

from agent.bpf.layouts import CtDirect, CtEntry, CtFlag, CtKey, pack
from agent.bpf.loader import Datapath
from agent.conntrack.collector import Collector, next_interval
from agent.conntrack.entries import pair_of
from agent.conntrack.listing import rows
from agent.domains.tables import open_map
from clustermesh.address import from_int, parse

pytestmark = pytest.mark.root

NOW = 1000  # in ticks
TICK = 1 << 30
ALIVE, OVER = NOW + 5, NOW - 5
CLIENT, VIP, POD = parse("10.1.1.5"), parse("10.96.0.10"), parse("10.2.2.6")
CLIENT6, VIP6, POD6 = parse("fd01::5"), parse("fd96::10"), parse("fd02::6")


class Table:
    """Entries of ct, in the kernel and as they are known to be."""

    def __init__(self, datapath: Datapath) -> None:
        self._datapath = datapath
        self.entries: dict[CtKey, CtEntry] = {}

    def add(self, key: CtKey, entry: CtEntry) -> None:
        self.entries[key] = entry

    def connection(self, port: int, forward: int, back: int, flags: int = 0, ends: Any = (CLIENT, VIP, POD)) -> None:
        client, vip, pod = ends
        self.add(CtKey(client, vip, port, 80, 6), CtEntry(client, pod, port, 8080, 3, 7, forward, flags=flags))
        self.add(
            CtKey(pod, client, 8080, port, 6), CtEntry(vip, client, 80, port, 3, 7, back, flags=flags | CtFlag.REPLY)
        )

    def write(self) -> None:
        asyncio.run(write(self._datapath, "ct", self.entries))

    def held(self) -> set[bytes]:
        return set(asyncio.run(open_map(self._datapath, "ct").dump()))


@pytest.fixture
def table(datapath: Datapath) -> Table:
    return Table(datapath)


@pytest.fixture
def collector(datapath: Datapath) -> Collector:
    return Collector(datapath.maps["ct"], lambda: NOW * TICK)


def test_a_connection_goes_when_both_of_its_directions_are_over(table: Table, collector: Collector) -> None:
    for port, (forward, back) in enumerate([(ALIVE, ALIVE), (ALIVE, OVER), (OVER, ALIVE), (OVER, OVER)], 1000):
        table.connection(port, forward, back)
        table.connection(port, forward, back, ends=(CLIENT6, VIP6, POD6))
    table.write()
    found = collector.collect()
    assert found.collected == 4
    gone = {key for key in table.entries if 1003 in key}
    assert table.held() == {pack(key) for key in table.entries.keys() - gone}
    assert found.met == {(family, "TCP", status): 4 for family in ("ipv4", "ipv6") for status in ("opening", "expired")}


def test_what_has_no_pair_goes_by_itself(table: Table, collector: Collector) -> None:
    table.add(CtKey(CLIENT, VIP, 3, 80, 17), CtEntry(CLIENT, POD, 3, 80, expires=OVER))
    table.add(CtKey(CLIENT, VIP, 4, 80, 17), CtEntry(CLIENT, POD, 4, 80, expires=ALIVE))
    table.write()
    assert collector.collect().collected == 1
    assert table.held() == {pack(key) for key in table.entries if key.source_port == 4}


def test_what_goes_to_no_service_goes_by_itself(datapath: Datapath) -> None:
    keys = [CtKey(CLIENT, POD, port, 80, 17) for port in range(3000)]
    entries = {key: CtDirect(ALIVE if key.source_port % 3 else OVER, flags=CtFlag.ESTABLISHED) for key in keys}
    asyncio.run(write(datapath, "ct_direct", entries))
    found = Collector(datapath.maps["ct_direct"], lambda: NOW * TICK).collect()
    assert found.collected == 1000
    assert found.met == {("ipv4", "UDP", "established"): 2000, ("ipv4", "UDP", "expired"): 1000}
    held = asyncio.run(open_map(datapath, "ct_direct").dump())
    assert set(held) == {pack(key) for key in keys if key.source_port % 3}


def test_thousands_are_collected_as_if_each_were_looked_at_alone(table: Table, collector: Collector) -> None:
    rng = random.Random(7)
    for number in range(3000):
        times = [rng.choice((OVER, OVER, ALIVE)) for _ in range(2)]
        flags = rng.choice((0, CtFlag.ESTABLISHED, CtFlag.FIN | CtFlag.FIN_OTHER, CtFlag.RESET))
        ends = (
            (from_int((0xFFFF << 32) + number), VIP, POD) if number % 2 else (from_int(number + (1 << 120)), VIP6, POD6)
        )
        table.connection(1 + number, *times, flags=flags, ends=ends)
    for key in rng.sample([*table.entries], 500):  # which the kernel took out for want of room
        del table.entries[key]
    table.write()
    packed = {pack(key): (pack(entry), entry.expires) for key, entry in table.entries.items()}
    stays = set()
    for key, (value, expires) in packed.items():
        pair = packed.get(pair_of(key, value) or b"")
        if expires == ALIVE or (pair is not None and pair[1] == ALIVE):
            stays.add(key)
    found = collector.collect()
    assert table.held() == stays
    assert found.collected == len(packed) - len(stays)
    assert found.met.total() == len(packed)
    assert {status for _, _, status in found.met} == {"opening", "established", "closing", "expired"}
    assert collector.collect().collected == 0


def test_connections_are_listed_with_what_becomes_of_their_packets(table: Table, datapath: Datapath) -> None:
    table.connection(1000, ALIVE, ALIVE, CtFlag.ESTABLISHED)
    table.write()
    found = {row["direction"]: row for row in rows(datapath.maps["ct"], lambda: NOW * TICK)}
    assert found["OUT"] == {
        "protocol": "TCP",
        "direction": "OUT",
        "source": "10.1.1.5:1000",
        "destination": "10.96.0.10:80",
        "new_source": "10.1.1.5:1000",
        "new_destination": "10.2.2.6:8080",
        "status": "established",
        "expires": 5,
        "packets": 0,
        "bytes": 0,
        "flags": ["established"],
        "service_id": 3,
        "backend_id": 7,
    }
    assert found["IN"]["new_source"] == "10.96.0.10:80"


def test_the_interval_follows_what_was_taken_out() -> None:
    assert next_interval(60, 0.5) == 30
    assert next_interval(12, 1.0) == 10
    assert next_interval(60, 0.05) == 60
    assert next_interval(60, 0.0) == 90
    assert next_interval(500, 0.0) == 600
    assert Counter(next_interval(each, 0.2) < each for each in range(20, 600)) == {True: 580}
