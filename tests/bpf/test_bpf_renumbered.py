"""A program that read a service's head and was held up chooses when the service has another number, and what the old
one led to is gone."""

from __future__ import annotations

from typing import Any

import pytest
from bpf_choice import REJECT, TRANSLATED, VIP, Chooser, group

from agent.bpf.layouts import NO_ADDRESS, ServiceKey, ServiceValue, pack, unpack
from agent.bpf.syscalls import map_lookup
from clustermesh.address import Prefix, parse, to_int
from clustermesh.mesh.resolve import Kind, ServiceFlag
from clustermesh.model import Algorithm

pytestmark = pytest.mark.root

NOT_ALLOWED = 3
INSIDE_RANGE, OUTSIDE_RANGE = parse("192.0.2.7"), parse("198.51.100.7")
ASKED = {"kind": Kind.LOAD_BALANCER, "flags": ServiceFlag.SOURCE_RANGES}
RANGE = (Prefix(parse("192.0.2.0"), 96 + 24),)


def head_of(chooser: Chooser) -> bytes:
    head = map_lookup(chooser.datapath.maps["lb_services"], pack(ServiceKey(VIP, 80, 6)), 20)
    assert head is not None
    return head


def number_of(head: bytes) -> int:
    return unpack(ServiceValue, head).service_id


@pytest.mark.parametrize("before", [{}, {"algorithm": Algorithm.MAGLEV}, {"affinity_seconds": 60}])
@pytest.mark.parametrize("after", [{}, {"algorithm": Algorithm.MAGLEV}])
async def test_everybody_is_answered_by_who_is_there_now(
    chooser: Chooser, before: dict[str, Any], after: dict[str, Any]
) -> None:
    await chooser.serve(group(1, 3), group(2, 40), **before)
    head = head_of(chooser)
    for cluster in (3, 4, 5):  # how often does not matter: the number it has by now is what counts
        await chooser.serve(group(cluster, 20), group(1, 20), **after)
        assert number_of(head_of(chooser)) != number_of(head)
        found = {chooser.choose(seed, client=INSIDE_RANGE, head=head)[:2] for seed in range(100)}
        assert {verdict for verdict, _ in found} == {TRANSLATED}
        assert {to_int(address) >> 16 & 0xFFFF for _, address in found} <= {cluster, 1}


async def test_who_finds_nobody_under_the_number_the_service_has_is_refused_and_so_is_who_finds_no_service(
    chooser: Chooser,
) -> None:
    await chooser.serve(group(1, 3))
    head = head_of(chooser)
    await chooser.serve(group(2, 0))
    assert chooser.choose(1, head=head) == (REJECT, NO_ADDRESS, 0)
    await chooser.serve_entries(VIP)
    assert chooser.choose(1, head=head)[0] != TRANSLATED


@pytest.mark.parametrize(
    ("client", "rules", "verdict"),
    [
        (INSIDE_RANGE, ASKED | {"source_ranges": RANGE}, TRANSLATED),
        (OUTSIDE_RANGE, ASKED | {"source_ranges": RANGE}, NOT_ALLOWED),
        (OUTSIDE_RANGE, {"kind": Kind.LOAD_BALANCER}, TRANSLATED),
    ],
)
async def test_who_may_ask_is_asked_of_the_number_the_service_has(
    chooser: Chooser, client: Any, rules: dict[str, Any], verdict: int
) -> None:
    await chooser.serve(group(1, 3), group(2, 3), source_ranges=RANGE, **ASKED)
    head = head_of(chooser)
    await chooser.serve(group(2, 3), group(1, 3), **rules)
    assert number_of(head_of(chooser)) != number_of(head)
    assert {chooser.choose(seed, client=client, outside=True, head=head)[0] for seed in range(20)} == {verdict}
