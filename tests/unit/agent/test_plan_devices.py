"""Which devices lead outside, and what a pod may send from."""

from __future__ import annotations

import pytest

from agent.bpf.layouts import Number, PodSource, pack
from agent.plan.attached import AttachedPod
from agent.plan.devices import Ways, lead_outside, parse_devices, plan_source
from clustermesh.address import Address, parse
from clustermesh.errors import Invalid

NAMES = ("lo", "eth0", "eth1", "bond0", "bond1.100", "docker0", "cm-wg0", "lxc0123456789ab")
NODE4, NODE6, OTHER = parse("192.0.2.1"), parse("2001:db8::1"), parse("172.17.0.1")
WAYS = Ways(
    frozenset({"eth0"}),
    frozenset({("eth0", parse("10.9.9.9")), ("eth1", NODE4), ("bond0", NODE6), ("docker0", OTHER), ("lo", NODE4)}),
)


@pytest.mark.parametrize(
    ("ways", "own", "patterns", "outside"),
    [
        (WAYS, {NODE4, NODE6}, (), {"eth0", "eth1", "bond0"}),
        (WAYS, {NODE6}, (), {"eth0", "bond0"}),
        (WAYS, set(), (), {"eth0"}),
        (Ways(), {NODE4}, (), set()),
        (WAYS._replace(defaults=frozenset({"cm-wg0", "lo"})), set(), (), set()),
        (WAYS, {NODE4}, ("docker0",), {"docker0"}),
        (WAYS, {NODE4}, ("bond+", "eth1"), {"bond0", "bond1.100", "eth1"}),
        (WAYS, {NODE4}, ("bond",), set()),
        (WAYS, {NODE4}, ("+",), set(NAMES) - {"lo", "cm-wg0"}),
        (WAYS, {NODE4}, ("nosuch0",), set()),
    ],
)
def test_devices_that_lead_outside(ways: Ways, own: set[Address], patterns: tuple[str, ...], outside: set[str]) -> None:
    assert lead_outside(ways, own, patterns, NAMES, "cm-wg0") == outside


@pytest.mark.parametrize(
    ("text", "patterns"),
    [("", ()), ("eth0", ("eth0",)), ("eth0,bond+", ("eth0", "bond+")), ("a" * 15 + "+", ("a" * 15 + "+",))],
)
def test_devices_are_named_as_to_cilium(text: str, patterns: tuple[str, ...]) -> None:
    assert parse_devices(text) == patterns


@pytest.mark.parametrize("text", [",", "eth0,", "eth 0", "eth0, eth1", "a/b", "a" * 16, "a" * 16 + "+", "a\n", "+a+b/"])
def test_what_is_no_device_is_refused_with_the_rule(text: str) -> None:
    with pytest.raises(Invalid, match=r"devices: .* must be a device name of 1 to 15 characters"):
        parse_devices(text)


@pytest.mark.parametrize(
    ("addresses", "source"),
    [
        (("10.1.0.5", "fd10:1::5"), PodSource(parse("10.1.0.5"), parse("fd10:1::5"))),
        (("10.1.0.5",), PodSource(ipv4=parse("10.1.0.5"))),
        (("fd10:1::5",), PodSource(ipv6=parse("fd10:1::5"))),
        ((), PodSource()),
    ],
)
def test_a_pod_may_send_from_its_addresses(addresses: tuple[str, ...], source: PodSource) -> None:
    pod = AttachedPod(container_id="c", ifname="eth0", addresses=tuple(map(parse, addresses)))
    assert plan_source(7, pod) == (pack(Number(7)), pack(source))
