"""What else a service's entry says of the choice: who may ask and is meant, who stays with whom, and Maglev's tables.

Seeds are fixed, so what comes out is the same each time.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from ipaddress import ip_address, ip_network

import pytest
from bpf_choice import CONTINUE, REJECT, TRANSLATED, VIP, VIP6, Chooser, assert_near, expected, group
from bpf_maps import delete, set_factors, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.bpf.layouts import (
    MAGLEV_PLACES,
    AffinityKey,
    AffinityValue,
    BackendValue,
    Number,
    pack,
    unpack,
    unpack_each,
)
from agent.domains.tables import open_map
from clustermesh.address import Address, Prefix, from_int, parse
from clustermesh.mesh.resolve import Backends, Frontend, Group, Kind, Scope, ServiceEntry, ServiceFlag
from clustermesh.model import Algorithm, BackendState, Protocol

pytestmark = pytest.mark.root

NOT_ALLOWED = 3
CLIENTS = [parse(f"192.0.2.{number}") for number in range(1, 21)]
SECOND = 10**9
some_examples = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


# -- who is meant, and who may ask ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "has_external", "inside", "outside"),
    [
        (Kind.CLUSTER_IP, False, "any", None),
        (Kind.CLUSTER_IP, True, "any", None),
        (Kind.NODE_PORT, False, "any", "any"),
        (Kind.NODE_PORT, True, "any", "external"),
        (Kind.LOAD_BALANCER, True, "any", "external"),
        (Kind.EXTERNAL_IP, False, "any", "any"),
        (Kind.HOST_PORT, False, "any", "any"),
    ],
)
async def test_those_outside_have_an_entry_of_their_own_where_there_is_one_and_no_cluster_ip(
    chooser: Chooser, kind: Kind, has_external: bool, inside: str, outside: str | None
) -> None:
    answers = {"any": group(1, 1), "external": group(2, 1)}
    entries = [
        ServiceEntry(
            Frontend(VIP, 80, Protocol.TCP), (answers["any"],), kind, ServiceFlag.EXTERNAL if has_external else 0
        )
    ]
    if has_external:
        frontend = Frontend(VIP, 80, Protocol.TCP, Scope.EXTERNAL)
        entries.append(ServiceEntry(frontend, (answers["external"],), kind, ServiceFlag.EXTERNAL))
    await chooser.serve_entries(VIP, *entries)

    def told(name: str | None) -> tuple[int, Address | None]:
        return (CONTINUE, None) if name is None else (TRANSLATED, answers[name].alike[0].addresses[0])

    for asked, name in ((False, inside), (True, outside)):
        verdict, address, _ = chooser.choose(1, outside=asked)
        assert (verdict, address if verdict == TRANSLATED else None) == told(name)


async def test_until_the_entry_of_those_outside_is_there_they_have_that_of_all(chooser: Chooser) -> None:
    await chooser.serve(group(1, 1), kind=Kind.NODE_PORT, flags=ServiceFlag.EXTERNAL)
    assert chooser.choose(1, outside=True)[0] == TRANSLATED


async def test_a_policy_that_leaves_those_outside_without_backends_refuses_them_alone(chooser: Chooser) -> None:
    frontend = Frontend(VIP, 80, Protocol.TCP)
    inside = ServiceEntry(frontend, (group(1, 1),), Kind.NODE_PORT, ServiceFlag.EXTERNAL)
    outside = ServiceEntry(Frontend(VIP, 80, Protocol.TCP, Scope.EXTERNAL), (), Kind.NODE_PORT, ServiceFlag.EXTERNAL)
    await chooser.serve_entries(VIP, inside, outside)
    assert chooser.choose(1, outside=True)[0] == REJECT
    assert chooser.choose(1)[0] == TRANSLATED


_V4 = st.integers(0, 32).flatmap(
    lambda bits: st.tuples(st.just(bits), st.integers(0, 3).map(lambda n: n << 30 | n << 7))
)
_V6 = st.tuples(st.integers(0, 128), st.integers(0, 3).map(lambda n: n << 126 | n << 60))


@some_examples
@given(ranges4=st.lists(_V4, max_size=4), ranges6=st.lists(_V6, max_size=4), other=st.lists(_V4, max_size=2))
async def test_who_may_ask_from_outside_is_in_a_range_of_this_service_and_family(
    chooser: Chooser, ranges4: list[tuple[int, int]], ranges6: list[tuple[int, int]], other: list[tuple[int, int]]
) -> None:
    """Bits beyond a prefix say nothing; a service with ranges of one family lets nobody in by the other."""
    networks = [ip_network((n, bits), strict=False) for bits, n in ranges4]
    networks6 = [ip_network((n.to_bytes(16, "big"), bits), strict=False) for bits, n in ranges6]
    prefixes = tuple(Prefix(parse(str(ip_address(n))), 96 + bits) for bits, n in ranges4)
    prefixes += tuple(Prefix(from_int(n), bits) for bits, n in ranges6)
    rules = {"kind": Kind.LOAD_BALANCER, "flags": ServiceFlag.SOURCE_RANGES}
    await chooser.serve(group(1, 1), source_ranges=tuple(dict.fromkeys(prefixes)), **rules)
    others = tuple(dict.fromkeys(Prefix(parse(str(ip_address(n))), 96 + bits) for bits, n in other))
    await chooser.serve(group(1, 1), vip=VIP6, source_ranges=others, **rules)
    for n in range(4):
        for address in (
            ip_address(n << 30 | n << 7),
            ip_address(n << 30 | 1),
            ip_address((n << 126 | n << 60).to_bytes(16, "big")),
        ):
            may = any(address in network for network in (networks if address.version == 4 else networks6))
            verdict, _, _ = chooser.choose(1, client=parse(str(address)), outside=True)
            assert verdict == (TRANSLATED if may else NOT_ALLOWED), address
            assert chooser.choose(1, client=parse(str(address)))[0] == TRANSLATED, "those inside are not asked"


# -- affinity ---------------------------------------------------------------------------------------------------------


async def used(chooser: Chooser, client: Address, seconds_ago: float) -> None:
    """Have the client's entry be this old."""
    for key, value in (await open_map(chooser.datapath, "lb_affinity").dump()).items():
        if unpack(AffinityKey, key).client == client:
            then = time.monotonic_ns() - int(seconds_ago * SECOND)
            await write(chooser.datapath, "lb_affinity", {key: unpack(AffinityValue, value)._replace(used_ns=then)})


async def age(chooser: Chooser, client: Address) -> float:
    return (time.monotonic_ns() - await used_at(chooser, client)) / SECOND


async def used_at(chooser: Chooser, client: Address) -> int:
    (entry,) = [
        unpack(AffinityValue, value)
        for key, value in (await open_map(chooser.datapath, "lb_affinity").dump()).items()
        if unpack(AffinityKey, key).client == client
    ]
    return entry.used_ns


async def test_a_client_stays_with_its_backend_whatever_the_seed(chooser: Chooser) -> None:
    await chooser.serve(group(1, 40), group(2, 40), affinity_seconds=60)
    await chooser.serve(group(3, 40), vip=VIP6, affinity_seconds=60)
    chosen = {
        client: {chooser.choose(100 * n + seed, client=client)[1] for seed in range(20)}
        for n, client in enumerate(CLIENTS)
    }
    assert all(len(addresses) == 1 for addresses in chosen.values())
    assert len({address for addresses in chosen.values() for address in addresses}) > 5, "each has its own"
    assert {chooser.choose(seed, VIP6, CLIENTS[0])[1] for seed in range(20)} != chosen[CLIENTS[0]]
    await chooser.serve(group(1, 40), group(2, 40))
    assert len({chooser.choose(seed, client=CLIENTS[0])[1] for seed in range(20)}) > 5, "without affinity nobody stays"


@pytest.mark.parametrize("algorithm", Algorithm)
@pytest.mark.parametrize("factors", [{}, dict.fromkeys(range(1, 29), 0.0)], ids=["all", "few clusters"])
async def test_a_client_stays_however_many_clusters_and_backends_the_service_has(
    chooser: Chooser, algorithm: Algorithm, factors: dict[int, float]
) -> None:
    rules = {"affinity_seconds": 60, "algorithm": algorithm}
    await chooser.serve(*(group(cluster, 2) for cluster in range(1, 31)), **rules)
    await chooser.serve(group(30, 600), vip=VIP6, **rules)
    await set_factors(chooser.datapath, factors)
    for vip in (VIP, VIP6):
        for client in CLIENTS:
            assert len({chooser.choose(seed, vip, client)[1] for seed in range(5)}) == 1, (vip, client)


async def test_a_client_that_asks_no_more_for_as_long_is_free_and_one_that_does_has_longer(chooser: Chooser) -> None:
    await chooser.serve(group(1, 200), affinity_seconds=1000)
    client = CLIENTS[0]
    first = chooser.choose(1, client=client)
    for _ in range(3):
        await used(chooser, client, 900)
        assert chooser.choose(2, client=client) == first
        assert await age(chooser, client) < 500, "it has asked again"
    answers = set()
    for seed in range(10):
        await used(chooser, client, 1001)
        answers.add(chooser.choose(seed, client=client)[1])
    assert len(answers) > 5
    chooser.choose(3, client=client)
    await used(chooser, client, 0.2)
    chooser.choose(3, client=client)
    assert await age(chooser, client) >= 0.2, "not written each time"


async def test_of_a_short_time_no_second_is_lost(chooser: Chooser) -> None:
    """It begins anew with each look, but for a sixteenth of it."""
    await chooser.serve(group(1, 200), affinity_seconds=4)
    client = CLIENTS[0]
    first = chooser.choose(1, client=client)
    await used(chooser, client, 0.3)
    before = await used_at(chooser, client)
    assert chooser.choose(2, client=client) == first
    assert await used_at(chooser, client) > before


@pytest.mark.parametrize("algorithm", Algorithm)
@some_examples
@given(data=st.data())
async def test_a_client_stays_as_long_as_the_service_has_its_backend(
    chooser: Chooser, algorithm: Algorithm, data: st.DataObject
) -> None:
    """Backends and clusters come and go before and behind it; each is also another service's, all the time."""
    everyone = {cluster: group(cluster, 12).alike[0].addresses for cluster in range(1, 21)}
    await chooser.serve(*(group(cluster, 12) for cluster in everyone), vip=VIP6)
    stays: dict[Address, Address] = {}
    wanted = st.dictionaries(
        st.sampled_from(sorted(everyone)), st.sets(st.integers(0, 11), min_size=1).map(sorted), min_size=1
    )
    for backends in data.draw(st.lists(wanted, min_size=2, max_size=5)):
        addresses = {cluster: tuple(everyone[cluster][n] for n in some) for cluster, some in sorted(backends.items())}
        groups = [Group(cluster, len(some), (Backends(some, 8080),)) for cluster, some in addresses.items()]
        await chooser.serve(*groups, affinity_seconds=60, algorithm=algorithm)
        has = {each for some in addresses.values() for each in some}
        for seed, client in enumerate(CLIENTS):
            verdict, address, _ = chooser.choose(seed * 7919, client=client)
            assert verdict == TRANSLATED
            assert address in has
            if stays.get(client) in has:
                assert address == stays[client]
            stays[client] = address
    assert len(chooser.trackers.services.desired) == 2


@pytest.mark.parametrize("algorithm", Algorithm)
@pytest.mark.parametrize(
    ("clusters", "backends", "gone"),
    [(10, 2, {1}), (29, 2, {1, 2, 3}), (4, 300, {2})],
)
async def test_a_client_stays_when_groups_before_its_own_go_and_come_again(
    chooser: Chooser, algorithm: Algorithm, clusters: int, backends: int, gone: set[int]
) -> None:
    """Each of the others has another number then."""
    rules = {"affinity_seconds": 60, "algorithm": algorithm}
    everyone = {cluster: group(cluster, backends) for cluster in range(1, clusters + 1)}
    staying = [each for cluster, each in everyone.items() if cluster not in gone]
    has = {address for each in staying for address in each.alike[0].addresses}
    clients = [parse(f"192.0.2.{n}") for n in range(1, 61)]
    await chooser.serve(*everyone.values(), **rules)
    first = {client: chooser.choose(17 * n, client=client)[1] for n, client in enumerate(clients)}
    for groups in (staying, everyone.values()):
        await chooser.serve(*groups, **rules)
        for n, client in enumerate(clients):
            if first[client] in has:
                assert chooser.choose(991 * n + 5, client=client)[1] == first[client]


async def test_a_client_leaves_a_backend_that_rests_and_a_cluster_that_is_out(chooser: Chooser) -> None:
    await chooser.serve(group(1, 5), group(2, 5), affinity_seconds=60)
    first = {client: chooser.choose(seed, client=client)[1] for seed, client in enumerate(CLIENTS)}
    await set_factors(chooser.datapath, {1: 0.001})
    assert {client: chooser.choose(99, client=client)[1] for client in CLIENTS} == first, "it is not out"
    await set_factors(chooser.datapath, {1: 0.0})
    second = {client: chooser.choose(99, client=client)[1] for client in CLIENTS}
    ours = group(1, 5).alike[0].addresses
    assert not {*second.values()} & {*ours}
    assert all(second[client] == first[client] for client in CLIENTS if first[client] not in ours)
    await set_factors(chooser.datapath, {})
    assert {client: chooser.choose(98, client=client)[1] for client in CLIENTS} == second
    for key, value in chooser.trackers.backends.desired.items():
        if (backend := unpack(BackendValue, value)).address == second[CLIENTS[0]]:
            await write(chooser.datapath, "lb_backends", {key: backend._replace(state=BackendState.TERMINATING)})
    assert chooser.choose(1, client=CLIENTS[0])[1] != second[CLIENTS[0]]


# -- states -----------------------------------------------------------------------------------------------------------


async def test_where_no_backend_is_active_those_that_terminate_are_given(chooser: Chooser) -> None:
    addresses = group(1, 3).alike[0].addresses
    await chooser.serve(Group(1, 3, (Backends(addresses, 8080, BackendState.TERMINATING),)))
    assert {chooser.choose(seed)[:2] for seed in range(100)} == {(TRANSLATED, address) for address in addresses}


@pytest.mark.parametrize("state", [each for each in BackendState if each is not BackendState.ACTIVE])
async def test_who_stands_in_a_slot_is_given_though_it_rests_until_those_in_its_place_are_written(
    chooser: Chooser, state: BackendState
) -> None:
    """The state of a backend is written before the slots of others; a slot without it is given to nobody else."""
    await chooser.serve(group(1, 3), group(2, 3))
    await set_factors(chooser.datapath, {1: 0.0})
    for key, value in chooser.trackers.backends.desired.items():
        backend = unpack(BackendValue, value)
        await write(chooser.datapath, "lb_backends", {key: backend._replace(state=state)})
    found = {chooser.choose(seed)[:2] for seed in range(100)}
    assert found <= {(TRANSLATED, address) for address in group(2, 3).alike[0].addresses}


# -- Maglev -----------------------------------------------------------------------------------------------------------


def place_of(seed: int) -> int:
    """As lb_draw() and lb_mix() have it."""
    most = 0xFFFFFFFF
    number = seed + 0x9E3779B9 & most
    number = (number ^ number >> 16) * 0x85EBCA6B & most
    number = (number ^ number >> 13) * 0xC2B2AE35 & most
    return (number ^ number >> 16) * MAGLEV_PLACES >> 32


def table_of(chooser: Chooser) -> list[Address]:
    (table,) = chooser.trackers.maglev.desired.values()
    at = {key: unpack(BackendValue, value).address for key, value in chooser.trackers.backends.desired.items()}
    return [at[pack(each)] for each in unpack_each(Number, table)]


def chosen(chooser: Chooser, seeds: Sequence[int]) -> dict[int, Address]:
    answers = {seed: chooser.choose(seed) for seed in seeds}
    assert {verdict for verdict, _, _ in answers.values()} == {TRANSLATED}
    return {seed: address for seed, (_, address, _) in answers.items()}


SEEDS = [seed * 0x9E3779B1 & 0xFFFFFFFF for seed in range(600)]


async def test_a_table_gives_each_seed_the_backend_of_its_place(chooser: Chooser) -> None:
    await chooser.serve(group(1, 7), group(2, 4), algorithm=Algorithm.MAGLEV)
    table = table_of(chooser)
    assert chosen(chooser, SEEDS) == {seed: table[place_of(seed)] for seed in SEEDS}


@pytest.mark.parametrize("factors", [{}, {1: 0.5}, {1: 0.0}, {1: 0.2, 2: 0.7}], ids=str)
async def test_clusters_have_their_shares_of_a_table_too(chooser: Chooser, factors: Mapping[int, float]) -> None:
    weights = {1: 6, 2: 3, 3: 11}
    await chooser.serve(*(group(cluster, n) for cluster, n in weights.items()), algorithm=Algorithm.MAGLEV)
    await set_factors(chooser.datapath, factors)
    assert_near(chooser.shares(), expected(weights, factors), 1021)


async def test_what_is_out_moves_nobody_else(chooser: Chooser) -> None:
    await chooser.serve(group(1, 4), group(2, 8), algorithm=Algorithm.MAGLEV)
    before = chosen(chooser, SEEDS)
    await set_factors(chooser.datapath, {1: 0.0})
    after = chosen(chooser, SEEDS)
    out = {*group(1, 4).alike[0].addresses}
    assert not out & {*after.values()}
    assert all(after[seed] == before[seed] for seed in SEEDS if before[seed] not in out)
    await set_factors(chooser.datapath, {1: 0.0, 2: 0.0})
    assert chooser.choose(1)[0] == REJECT


async def test_a_backend_that_goes_moves_few_of_the_others_clients(chooser: Chooser) -> None:
    await chooser.serve(group(1, 12), algorithm=Algorithm.MAGLEV)
    before = chosen(chooser, SEEDS)
    addresses = group(1, 12).alike[0].addresses
    await chooser.serve(Group(1, 11, (Backends(addresses[:5] + addresses[6:], 8080),)), algorithm=Algorithm.MAGLEV)
    after = chosen(chooser, SEEDS)
    assert addresses[5] not in after.values()
    moved = [seed for seed in SEEDS if before[seed] not in (addresses[5], after[seed])]
    assert len(moved) < len(SEEDS) / 10


async def test_a_service_whose_table_is_not_there_is_chosen_for_all_the_same(chooser: Chooser) -> None:
    await chooser.serve(group(1, 3), algorithm=Algorithm.MAGLEV)
    await delete(chooser.datapath, "lb_maglev", chooser.trackers.maglev.desired)
    assert set(chosen(chooser, SEEDS).values()) == {*group(1, 3).alike[0].addresses}
