"""Which devices lead outside, and what a pod may send from."""

from __future__ import annotations

import pytest

from agent.bpf.layouts import NO_ADDRESS, ConfigFlag, Number, PodDevice, PodSource, pack
from agent.options import parse as parse_options
from agent.plan.attached import AttachedPod
from agent.plan.devices import (
    Ways,
    are_to_be_reserved,
    choose_ports,
    find_overlaps,
    lead_outside,
    parse_devices,
    parse_ports,
    plan_config,
    plan_pod,
    plan_source,
)
from clustermesh.address import Address, parse, parse_prefix
from clustermesh.errors import Invalid
from clustermesh.model import Node, NodeAddress

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


@pytest.mark.parametrize(
    "text",
    [",", "eth0,", "eth 0", "eth0, eth1", "a/b", "a" * 16, "a" * 16 + "+", "a\n", "+a+b/", "a:1", "..", "\udcff"],
)
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
    assert plan_source(7, pod) == {pack(Number(7)): pack(source)}
    assert plan_pod(7, pod) == {parse(each): pack(PodDevice(7)) for each in addresses}


def own(*addresses: tuple[str, str], cidrs: tuple[str, ...] = ()) -> Node:
    return Node(
        cluster="a",
        cluster_id=1,
        name="n",
        addresses=tuple(NodeAddress(type=kind, ip=parse(ip)) for kind, ip in addresses),
        pod_cidrs=tuple(map(parse_prefix, cidrs)),
    )


@pytest.mark.parametrize(
    ("node", "ends"),
    [
        (own(), ("", "", "", "")),
        (own(("InternalIP", "192.0.2.1")), ("192.0.2.1", "", "", "")),
        (own(("ExternalIP", "192.0.2.9"), ("InternalIP", "192.0.2.1")), ("192.0.2.1", "", "", "")),
        (
            own(("ExternalIP", "192.0.2.9"), ("InternalIP", "2001:db8::1"), cidrs=("10.1.0.0/24", "fd10:1::/64")),
            ("192.0.2.9", "2001:db8::1", "10.1.0.1", "fd10:1::1"),
        ),
        (own(("CiliumInternalIP", "10.1.0.7"), cidrs=("10.1.0.0/24",)), ("", "", "10.1.0.7", "")),
    ],
)
def test_a_node_is_seen_by_its_addresses_and_behind_the_tunnel_by_its_routers(
    node: Node, ends: tuple[str, ...]
) -> None:
    config = plan_config(node, 5, (61000, 65535), ConfigFlag.REDIRECT)
    assert config[:4] == tuple(parse(each) if each else NO_ADDRESS for each in ends)
    assert config[4:] == (5, 61000, 65535, 0, ConfigFlag.REDIRECT)


@pytest.mark.parametrize(
    ("ephemeral", "lent"),
    [
        ((32768, 60999), (10000, 29999)),
        ((20000, 60999), (10000, 19999)),
        ((12000, 60999), (61000, 65535)),
        ((5000, 61439), (61440, 65535)),
        ((14096, 60999), (61000, 65535)),
        ((14096, 61440), (10000, 14095)),
        ((14095, 61440), (61440, 65535)),
        ((1024, 65000), (61440, 65535)),
        ((1, 65535), (61440, 65535)),
        ((1024, 29000), (32768, 65535)),
    ],
)
def test_ports_that_are_lent_are_none_that_the_kernel_gives_to_sockets_unless_those_are_few(
    ephemeral: tuple[int, int], lent: tuple[int, int]
) -> None:
    assert choose_ports(ephemeral) == lent
    assert are_to_be_reserved(lent, ephemeral) == (ephemeral[1] >= lent[0] > ephemeral[0])


@pytest.mark.parametrize(
    "text", ["", "10000", "9-9000", "10000-10254", "20000-10000", "60000-65536", "1024-29999-", "a-b"]
)
def test_a_range_of_ports_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(Invalid, match="FIRST-LAST, 256 ports at least, from 1024 to 65535"):
        parse_ports(text)
    with pytest.raises(SystemExit):
        parse_options(["--bpf-lb-snat-ports", text])
    assert parse_options(["--bpf-lb-snat-ports", "1024-1279"]).bpf_lb_snat_ports == (1024, 1279)


@pytest.mark.parametrize(("lent", "reserved"), [((1024, 32767), False), ((20000, 40000), True), ((50000, 65535), True)])
def test_what_is_lent_of_those_of_sockets_is_reserved_and_no_more_than_half_is(
    lent: tuple[int, int], reserved: bool
) -> None:
    assert are_to_be_reserved(lent, (32768, 60999)) == reserved
    with pytest.raises(
        Invalid, match=r"bpf-lb-snat-ports.*must leave half of net\.ipv4\.ip_local_port_range, 32768 to 60999"
    ):
        are_to_be_reserved((30000, 50000), (32768, 60999))


@pytest.mark.parametrize(
    ("lent", "said"),
    [
        ((10000, 29999), []),
        ((10000, 30000), ["30000 to 30000 of them are Kubernetes' usual node ports"]),
        ((32767, 33100), ["32767 to 32767 of them are Kubernetes'", "32768 to 33100 of them are in net.ipv4"]),
        ((20000, 65535), ["30000 to 32767 of them are Kubernetes'", "32768 to 60999 of them are in net.ipv4"]),
        ((61000, 65535), []),
    ],
)
def test_who_else_has_ports_that_are_given_is_said(lent: tuple[int, int], said: list[str]) -> None:
    found = list(find_overlaps(lent, (32768, 60999)))
    assert len(found) == len(said)
    assert all(each.startswith(start) for each, start in zip(found, said, strict=True)), found
