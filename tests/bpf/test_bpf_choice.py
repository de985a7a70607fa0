"""Whom a service's choice falls on, by running it over seeds: shares, clusters that are out, and updates under way.

The seeds are fixed, so what comes out is the same each time; the shares are those of a service with as many seeds.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path

import pytest
from bpf_choice import (
    CONTINUE,
    REJECT,
    TRANSLATED,
    VIP6,
    Chooser,
    assert_near,
    expected,
    group,
    opened_chooser,
)
from bpf_maps import set_factors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.bpf.layouts import NO_ADDRESS, Reason
from agent.bpf.loader import Datapath
from agent.targets.maps import MapTarget
from clustermesh.address import parse, to_int
from clustermesh.errors import Unavailable
from clustermesh.mesh.resolve import Backends, Group

pytestmark = pytest.mark.root


async def test_what_is_no_service_goes_on_and_one_without_backends_is_refused(chooser: Chooser) -> None:
    assert chooser.choose(1) == (CONTINUE, NO_ADDRESS, 0)
    await chooser.serve()
    assert chooser.choose(1) == (REJECT, NO_ADDRESS, 0)


@pytest.mark.parametrize("full", ["lb_slots", "lb_groups", "lb_backends", "lb_services"])
async def test_what_finds_no_room_in_a_full_map_takes_no_choice_from_what_has_it(
    bpf_object: Path, pin_dir: Path, choose_object: Path, full: str
) -> None:
    takes = {"lb_slots": 2, "lb_groups": 1, "lb_backends": 10, "lb_services": 1}[full]
    small = closing(Datapath.open(bpf_object, pin_dir, {full: takes}))
    with small as datapath, opened_chooser(datapath, choose_object) as chooser:
        await chooser.serve(group(1, 5), group(2, 5))
        newcomers = [group(number, 40) for number in range(3, 12)]
        with suppress(Unavailable):  # of lb_services it needs no more
            await chooser.serve(group(1, 5), group(2, 5), *newcomers)
        with pytest.raises(Unavailable, match=full):
            await chooser.serve(*newcomers, vip=VIP6)
        await chooser.reconciler.flush()
        assert chooser.reconciler.settled
        assert chooser.shares().keys() >= {1, 2}
        with suppress(Unavailable):  # where what goes has to make room first
            await chooser.serve(group(1, 3), group(4, 4))
        await chooser.reconciler.flush()
        assert set(chooser.shares()) <= {1, 4}
        await chooser.serve(group(1, 3), group(4, 4))
        assert_near(chooser.shares(), {1: 3 / 7, 4: 4 / 7})


@pytest.mark.parametrize("may_delete", [False, True])
async def test_a_change_that_a_full_map_has_no_room_for_takes_no_choice_from_what_it_kept(
    bpf_object: Path, pin_dir: Path, choose_object: Path, may_delete: bool
) -> None:
    small = closing(Datapath.open(bpf_object, pin_dir, {"lb_backends": 10}))
    with small as datapath, opened_chooser(datapath, choose_object) as chooser:
        chooser.reconciler.may_delete = may_delete
        await chooser.serve(group(1, 10))
        with pytest.raises(Unavailable, match="lb_backends"):
            await chooser.serve(group(1, 4), group(2, 6))
        await chooser.reconciler.flush()
        assert chooser.shares() == {1: 1.0}
        assert not any(each.problems for each in chooser.trackers)
        chooser.reconciler.may_delete = True
        await chooser.reconciler.flush()
        await chooser.serve(group(1, 4), group(2, 6))
        assert_near(chooser.shares(), {1: 0.4, 2: 0.6})


async def test_both_families_are_chosen_from_in_one_map(chooser: Chooser) -> None:
    await chooser.serve(group(1, 1))
    await chooser.serve(Group(2, 1, (Backends((parse("fd02::5"),), 8080),)), vip=VIP6)
    assert chooser.choose(7) == (TRANSLATED, parse("0.1.0.0"), 8080)
    assert chooser.choose(7, VIP6) == (TRANSLATED, parse("fd02::5"), 8080)


async def test_one_seed_stays_with_its_backend(chooser: Chooser) -> None:
    await chooser.serve(group(1, 30), group(2, 20))
    for seed in range(100):
        assert len({chooser.choose(seed) for _ in range(3)}) == 1


async def test_every_backend_of_a_service_has_an_equal_part(chooser: Chooser) -> None:
    await chooser.serve(group(1, 17), group(2, 3))
    seeds = 8000
    reached = Counter(chooser.choose(seed)[1] for seed in range(seeds))
    assert len(reached) == 20
    assert min(reached.values()) > seeds / 20 - 5 * (seeds / 20) ** 0.5
    assert max(reached.values()) < seeds / 20 + 5 * (seeds / 20) ** 0.5


@pytest.mark.parametrize(
    "factors",
    [{}, {1: 0.0}, {1: 0.0, 2: 0.0}, {1: 0.5}, {1: 0.1, 2: 0.2, 3: 0.3}, {3: 0.0, 1: 0.001}, {2: 0.999}],
    ids=str,
)
async def test_clusters_have_the_shares_their_weights_and_factors_give_them(
    chooser: Chooser, factors: dict[int, float]
) -> None:
    weights = {1: 6, 2: 3, 3: 1}
    await chooser.serve(*(group(cluster, weight) for cluster, weight in weights.items()))
    await set_factors(chooser.datapath, factors)
    assert_near(chooser.shares(), expected(weights, factors))


async def test_weights_need_not_be_the_numbers_of_backends(chooser: Chooser) -> None:
    await chooser.serve(group(1, 1, weight=70), group(2, 50, weight=20), group(3, 2, weight=10))
    assert_near(chooser.shares(), {1: 0.7, 2: 0.2, 3: 0.1})


async def test_a_service_of_every_cluster_there_can_be(chooser: Chooser) -> None:
    groups = [group(cluster, 1 + cluster % 3) for cluster in range(1, 512)]
    weights = {each.cluster_id: each.weight for each in groups}
    await chooser.serve(*groups)
    assert len(chooser.shares()) > 500
    await set_factors(chooser.datapath, {cluster: 0.0 for cluster in range(1, 512) if cluster not in (3, 300, 511)})
    left = {cluster: weights[cluster] for cluster in (3, 300, 511)}
    assert_near(chooser.shares(), expected(left, {}))
    await set_factors(chooser.datapath, {cluster: 0.0 if cluster % 2 else 0.25 for cluster in range(1, 512)})
    found = chooser.shares()
    assert all(cluster % 2 == 0 for cluster in found)
    low, high = (sum(share for cluster, share in found.items() if (cluster < 256) is part) for part in (True, False))
    assert abs(low - high) < 0.06


async def test_clusters_that_are_all_out_leave_nobody(chooser: Chooser) -> None:
    await chooser.serve(group(1, 3), group(2, 3))
    await set_factors(chooser.datapath, {1: 0.0, 2: 0.0})
    assert {chooser.choose(seed)[0] for seed in range(200)} == {REJECT}
    await set_factors(chooser.datapath, {1: 0.0, 2: 0.0001})
    assert {chooser.choose(seed)[0] for seed in range(200)} == {TRANSLATED}


async def test_a_cluster_that_is_reduced_moves_only_what_it_loses(chooser: Chooser) -> None:
    """Datagrams of a socket stay where they are unless their cluster gives them up."""
    await chooser.serve(group(1, 5), group(2, 5))
    before = {seed: chooser.choose(seed)[1] for seed in range(500)}
    await set_factors(chooser.datapath, {1: 0.5})
    after = {seed: chooser.choose(seed)[1] for seed in range(500)}
    moved = {seed for seed in before if before[seed] != after[seed]}
    assert 50 < len(moved) < 250
    assert all(to_int(before[seed]) >> 16 & 0xFFFF == 1 for seed in moved)


small = st.dictionaries(st.integers(1, 9), st.integers(1, 20), max_size=9)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(small, min_size=2, max_size=5))
async def test_no_lookup_meets_a_gap_while_the_kernels_maps_change(
    chooser: Chooser, steps: Sequence[Mapping[int, int]]
) -> None:
    """The maps are written entry by entry, and between any two of them everybody is answered who was before."""
    for target in (tracker.target for tracker in chooser.trackers):
        assert isinstance(target, MapTarget)
        target.chunk = 1
    await chooser.serve()
    known: Mapping[int, int] = {}
    for weights in (*steps, {}):
        wrong: list[object] = []
        looking = asyncio.create_task(_look(chooser, known, weights, wrong))
        await chooser.serve(*(group(cluster, count) for cluster, count in sorted(weights.items())))
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)
        assert wrong == []
        known = weights
    assert chooser.datapath.counters()[Reason.PICK_RETRIED] == 0, "no slot led nowhere, even for a moment"


async def _look(chooser: Chooser, before: Mapping[int, int], after: Mapping[int, int], wrong: list[object]) -> None:
    seed = 0
    while True:
        verdict, address, _ = chooser.choose(seed * 7919)
        if verdict != TRANSLATED and before and after:
            wrong.append(verdict)
        if verdict == TRANSLATED and to_int(address) >> 16 & 0xFFFF not in {*before, *after}:
            wrong.append(address)
        seed += 1
        await asyncio.sleep(0)
