"""Pod addresses, compared with a stupid twin: a queue of free addresses."""

from __future__ import annotations

from collections import deque
from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.cni.ipam import Ipam
from clustermesh.address import nth, parse, parse_prefix, text
from clustermesh.errors import Invalid, Refused


def pool(cidr: str, router: str = "") -> Ipam:
    return Ipam(parse_prefix(cidr), parse(router) if router else None)


class QueueOfFree:
    """Every host address but the router's, in a line: taken from the front, given back at the end."""

    def __init__(self, cidr: str, router: str) -> None:
        self.free = deque(str(host) for host in ip_network(cidr).hosts() if str(host) != router)

    def allocate(self) -> str | None:
        return self.free.popleft() if self.free else None

    def release(self, address: str) -> None:
        self.free.append(address)


CIDRS = st.sampled_from(["10.1.0.0/29", "10.1.0.16/28", "fd00:10:1:1::/125", "fd00::10/124"])


@given(CIDRS, st.integers(1, 6), st.lists(st.integers(-1, 12), max_size=60))
def test_each_address_has_one_owner_and_all_can_be_used(cidr: str, router: int, steps: list[int]) -> None:
    ipam, held = Ipam(parse_prefix(cidr), nth(parse_prefix(cidr), router)), []
    hosts = {str(host) for host in ip_network(cidr).hosts()} - {text(ipam.router)}
    for step in steps:
        if step < 0 or not held:
            if len(held) == len(hosts):
                with pytest.raises(Refused, match=f"all {len(hosts)} pod addresses of {cidr} are in use"):
                    ipam.allocate()
                continue
            address = ipam.allocate()
            assert text(address) in hosts
            assert address not in held
            held.append(address)
        else:
            ipam.release(held.pop(step % len(held)))
        assert ipam.used == len(held)


@given(CIDRS, st.integers(1, 6), st.lists(st.booleans(), max_size=40))
def test_addresses_freed_in_order_come_back_as_from_a_queue(cidr: str, router: int, steps: list[bool]) -> None:
    ipam, held = Ipam(parse_prefix(cidr), nth(parse_prefix(cidr), router)), deque[str]()
    twin = QueueOfFree(cidr, text(ipam.router))
    for take in steps:
        if take and len(held) < ipam.capacity:
            address = text(ipam.allocate())
            assert address == twin.allocate()
            held.append(address)
        elif held:
            address = held.popleft()
            ipam.release(parse(address))
            twin.release(address)


def test_freed_address_is_used_again_only_after_all_others() -> None:
    ipam = pool("10.1.0.0/24")
    first = ipam.allocate()
    ipam.release(first)
    others = [ipam.allocate() for _ in range(ipam.capacity - 1)]
    assert first not in others
    assert ipam.allocate() == first


@pytest.mark.parametrize(
    ("cidr", "router", "pods"),
    [
        ("10.1.0.0/29", "", ["10.1.0.2", "10.1.0.3", "10.1.0.4", "10.1.0.5", "10.1.0.6"]),
        ("10.1.0.0/29", "10.1.0.3", ["10.1.0.1", "10.1.0.2", "10.1.0.4", "10.1.0.5", "10.1.0.6"]),
        ("10.1.0.0/29", "172.16.0.9", [f"10.1.0.{n}" for n in range(1, 7)]),
        ("fd00::/125", "", [f"fd00::{n}" for n in range(2, 8)]),
        ("fd00::/125", "fd00::4", ["fd00::1", "fd00::2", "fd00::3", "fd00::5", "fd00::6", "fd00::7"]),
    ],
)
def test_router_network_and_broadcast_are_never_handed_out(cidr: str, router: str, pods: list[str]) -> None:
    """The router's address is what the Node says, which need not be the first of its pod CIDR."""
    ipam = pool(cidr, router)
    assert [text(ipam.allocate()) for _ in range(ipam.capacity)] == pods
    with pytest.raises(Refused):
        ipam.allocate()


def test_router_is_the_first_address_where_nobody_says_another() -> None:
    assert text(pool("10.1.0.0/24").router) == "10.1.0.1"
    assert text(pool("fd00:10:1:1::/64").router) == "fd00:10:1:1::1"


def test_pool_as_large_as_ipv6_makes_them_is_no_work() -> None:
    ipam = pool("fd00:10:1:1::/64")
    assert [text(ipam.allocate()) for _ in range(2)] == ["fd00:10:1:1::2", "fd00:10:1:1::3"]
    ipam.reserve(parse("fd00:10:1:1:ffff:ffff:ffff:ffff"))
    assert text(ipam.allocate()) == "fd00:10:1:1::4"
    assert ipam.capacity == 2**64 - 2


def test_restart_goes_on_after_what_is_in_use() -> None:
    ipam = pool("10.1.0.0/24")
    ipam.reserve(parse("10.1.0.9"))
    assert text(ipam.allocate()) == "10.1.0.10"
    with pytest.raises(Invalid, match="in use"):
        ipam.reserve(parse("10.1.0.9"))


@pytest.mark.parametrize("address", ["10.1.0.0", "10.1.0.7", "10.1.0.255", "10.2.0.2", "fd00::1", "::"])
def test_address_that_no_pod_can_have_is_invalid_to_reserve_and_nothing_to_release(address: str) -> None:
    ipam = pool("10.1.0.0/24", "10.1.0.7")
    with pytest.raises(Invalid):
        ipam.reserve(parse(address))
    ipam.release(parse(address))
    assert ipam.used == 0


@pytest.mark.parametrize("cidr", ["10.1.0.0/30", "10.1.0.1/32", "fd00::/126", "fd00::1/128"])
def test_pod_cidr_that_cannot_hold_pods_is_invalid(cidr: str) -> None:
    with pytest.raises(Invalid, match="or larger"):
        pool(cidr)
