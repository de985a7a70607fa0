"""What `node service list`, `node bpf lb list` and `node bpf affinity list` are told, over maps in memory."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from fake_kernel import NODE, VIP, Bed

from agent.bpf.layouts import AffinityKey, AffinityValue, Number, ServiceValue, pack, unpack
from agent.lb_listing import LbListing
from clustermesh.address import Address, parse
from clustermesh.model import Algorithm, BackendDetail, BackendState, LocalService, Outside, Port, Protocol, Service

HERE, LEAVING, LB = parse("10.1.1.5"), parse("10.1.1.6"), parse("198.51.100.1")


class Affinity:
    """The map that programs write."""

    def __init__(self) -> None:
        self.held: dict[bytes, bytes] = {}

    def read(self) -> Iterator[dict[bytes, bytes]]:
        yield self.held
        yield {}


@pytest.fixture
async def bed() -> Bed:
    bed = Bed()
    bed.add_node("alpha", 1)
    port, target = ({"": Port(protocol=Protocol.TCP, port=number)} for number in (80, 8080))
    service = Service(
        cluster="alpha",
        cluster_id=1,
        namespace="n",
        name="web",
        frontends={VIP: port},
        backends=dict.fromkeys((HERE, LEAVING), target),
    )
    details = {HERE: BackendDetail(node=NODE), LEAVING: BackendDetail(state=BackendState.TERMINATING)}
    local = LocalService(
        service=service,
        outside=Outside(load_balancer_ips=(LB,), local_only=True, source_ranges=()),
        details=details,
        algorithm=Algorithm.MAGLEV,
        affinity_seconds=60,
    )
    bed.say("alpha", "local_services", ("n", "web"), local)
    await bed.step()
    return bed


def listing(bed: Bed, affinity: Affinity | None = None) -> LbListing:
    return LbListing(bed.domains.services, lambda: affinity or Affinity(), lambda: lambda number: f"c{number}")  # type: ignore[arg-type, return-value]


def told(rows: Any) -> list[dict[str, Any]]:
    return [row for row in rows if row is not None]


async def test_services_are_listed_with_their_kind_and_every_backend_with_its_state(bed: Bed) -> None:
    rows = told(listing(bed).services())
    assert [(each["type"], each["scope"]) for each in rows] == [
        ("ClusterIP", "any"),
        ("LoadBalancer", "any"),
        ("LoadBalancer", "external"),
    ]
    assert len({each["id"] for each in rows}) == 3
    for row in rows:
        assert (row["service"], row["affinity_seconds"], row["algorithm"]) == ("n/web", 60, "maglev")
        given = {"address": "10.1.1.5", "port": 8080, "cluster": "c1", "state": "active", "weight": 1}
        assert row["backends"] == [given]
        assert row["resting"] == [given | {"address": "10.1.1.6", "state": "terminating", "weight": 0}]
    assert [each["flags"] for each in rows[1:]] == [
        ["check source-range", "two-scopes"],
        ["check source-range", "Local"],
    ]


async def test_the_maps_are_listed_slot_by_slot(bed: Bed) -> None:
    rows = told(listing(bed).bpf_lb())
    assert [each["service"] for each in rows] == ["10.96.0.1:80/TCP", "198.51.100.1:80/TCP", "198.51.100.1:80/TCP/e"]
    numbers = [bed.domains.services.planner.number(key) for key in sorted(bed.tables["services"].held)]  # type: ignore[type-var]
    assert [each["backends"] for each in rows] == [[f"10.1.1.5:8080/TCP ({number}) (1)"] for number in numbers]
    said = "non-routable, maglev, sessionAffinity 60 s"
    assert rows[0]["frontend"] == f"0.0.0.0:0 ({numbers[0]}) (0) [ClusterIP, {said}]"


async def test_clients_are_listed_with_the_backend_they_stay_with(bed: Bed) -> None:
    affinity, tables = Affinity(), bed.domains.services.tables
    (number,) = (each for each, value in tables.backends.actual.items() if value.startswith(HERE))
    service = unpack(ServiceValue, tables.services.actual[min(tables.services.actual)]).service_id
    netns = Address((7).to_bytes(8, "little") + b"\xff" * 4 + bytes(4))
    now = time.monotonic_ns()
    for client, of, backend in ((parse("10.9.0.1"), service, unpack(Number, number).number), (netns, 999, 888)):
        affinity.held[pack(AffinityKey(client, of))] = pack(AffinityValue(now - 5 * 10**9, backend))
    first, second = told(listing(bed, affinity).bpf_affinity())
    assert (first["client"], first["service"], first["backend"]) == (
        "10.9.0.1",
        "10.96.0.1:80/TCP",
        "10.1.1.5:8080/TCP",
    )
    assert 5 <= first["used_seconds_ago"] < 60
    assert (second["client"], second["service"], second["backend"]) == ("netns:7", "", "")
