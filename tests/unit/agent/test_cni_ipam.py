"""Pod addresses, compared with a stupid twin: a queue of free addresses."""

from __future__ import annotations

from collections import deque
from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.cni.ipam import Ipam
from clustermesh.errors import Invalid, Refused


class QueueOfFree:
    """Every host address but the first, in a line: taken from the front, given back at the end."""

    def __init__(self, cidr: str) -> None:
        self.free = deque(str(host) for host in list(ip_network(cidr).hosts())[1:])

    def allocate(self) -> str | None:
        return self.free.popleft() if self.free else None

    def release(self, address: str) -> None:
        self.free.append(address)


@given(st.sampled_from(["10.1.0.0/29", "10.1.0.16/28"]), st.lists(st.integers(-1, 12), max_size=60))
def test_each_address_has_one_owner_and_all_can_be_used(cidr: str, steps: list[int]) -> None:
    ipam, held = Ipam(cidr), []
    hosts = {str(host) for host in ip_network(cidr).hosts()} - {ipam.router}
    for step in steps:
        if step < 0 or not held:
            if len(held) == len(hosts):
                with pytest.raises(Refused, match=f"all {len(hosts)} pod addresses of {cidr} are in use"):
                    ipam.allocate()
                continue
            address = ipam.allocate()
            assert address in hosts - set(held)
            held.append(address)
        else:
            ipam.release(held.pop(step % len(held)))
        assert ipam.used == len(held)


@given(st.lists(st.booleans(), max_size=40))
def test_addresses_freed_in_order_come_back_as_from_a_queue(steps: list[bool]) -> None:
    cidr = "10.1.0.0/28"
    ipam, twin, held = Ipam(cidr), QueueOfFree(cidr), deque[str]()
    for take in steps:
        if take and len(held) < ipam.capacity:
            address = ipam.allocate()
            assert address == twin.allocate()
            held.append(address)
        elif held:
            address = held.popleft()
            ipam.release(address)
            twin.release(address)


def test_freed_address_is_used_again_only_after_all_others() -> None:
    ipam = Ipam("10.1.0.0/24")
    first = ipam.allocate()
    ipam.release(first)
    others = [ipam.allocate() for _ in range(ipam.capacity - 1)]
    assert first not in others
    assert ipam.allocate() == first


def test_router_network_and_broadcast_are_never_handed_out() -> None:
    ipam = Ipam("10.1.0.0/29")
    assert ipam.router == "10.1.0.1"
    assert [ipam.allocate() for _ in range(ipam.capacity)] == [f"10.1.0.{n}" for n in range(2, 7)]


def test_restart_goes_on_after_what_is_in_use() -> None:
    ipam = Ipam("10.1.0.0/24")
    ipam.reserve("10.1.0.9")
    assert ipam.allocate() == "10.1.0.10"
    with pytest.raises(Invalid, match="in use"):
        ipam.reserve("10.1.0.9")


@pytest.mark.parametrize("address", ["10.1.0.0", "10.1.0.1", "10.1.0.255", "10.2.0.2", "fd00::1", "", "x"])
def test_address_that_no_pod_can_have_is_invalid_to_reserve_and_nothing_to_release(address: str) -> None:
    ipam = Ipam("10.1.0.0/24")
    with pytest.raises(Invalid):
        ipam.reserve(address)
    ipam.release(address)
    assert ipam.used == 0


@pytest.mark.parametrize("cidr", ["10.1.0.0/30", "10.1.0.1/24", "fd00::/64", "10.1.0.0", "nonsense", ""])
def test_pod_cidr_that_cannot_hold_pods_is_invalid(cidr: str) -> None:
    with pytest.raises(Invalid):
        Ipam(cidr)
