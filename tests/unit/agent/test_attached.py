"""The pods of this node, as CNI tells of them."""

from __future__ import annotations

from agent.plan.attached import AttachedPod, AttachedPods
from clustermesh.address import parse

ONE, TWO, SIX = parse("10.1.1.2"), parse("10.1.1.3"), parse("fd00::2")


def pod(container: str, *addresses: bytes, ifname: str = "eth0") -> AttachedPod:
    return AttachedPod(container_id=container, ifname=ifname, addresses=tuple(addresses), namespace="n", name=container)  # type: ignore[arg-type]


def test_a_pod_is_known_at_each_of_its_addresses_until_it_is_detached() -> None:
    pods = AttachedPods()
    pods.attached(pod("a", ONE, SIX))
    assert pods.at(ONE) is pods.at(SIX)
    assert pods.take() == {ONE, SIX}
    pods.detached("a", "eth0")
    assert pods.at(ONE) is None
    assert pods.take() == {ONE, SIX}
    pods.detached("a", "eth0")
    assert pods.take() == set()


def test_an_interface_that_is_attached_again_has_only_its_new_addresses() -> None:
    pods = AttachedPods()
    pods.attached(pod("a", ONE))
    pods.attached(pod("a", TWO))
    assert (pods.at(ONE), pods.at(TWO)) == (None, pod("a", TWO))
    assert pods.take() == {ONE, TWO}


def test_an_address_that_another_pod_has_by_now_stays_known() -> None:
    pods = AttachedPods()
    pods.attached(pod("a", ONE))
    pods.attached(pod("b", ONE))
    pods.detached("a", "eth0")
    assert pods.at(ONE) == pod("b", ONE)


def test_whoever_plans_is_told() -> None:
    told: list[int] = []
    pods = AttachedPods(lambda: told.append(1))
    pods.attached(pod("a", ONE))
    pods.detached("a", "eth0")
    assert len(told) == 2
