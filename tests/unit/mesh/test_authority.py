"""Where another cluster's pods and nodes may be: the rules one by one, and against a twin that reads them out."""

from __future__ import annotations

from ipaddress import IPv4Network, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clustermesh.address import V4, Prefix, masked, nobodys, overlaps, parse, parse_prefix, prefix_text, single
from clustermesh.mesh.authority import Authority, Ground, Place, judge_address, judge_prefix
from clustermesh.mesh.refusals import Reason
from clustermesh.model import Cluster

BETA = Authority(name="beta")
ALLOWED = Authority(name="beta", allowed=(parse_prefix("203.0.113.0/24"), parse_prefix("10.0.0.0/8")))
GROUND = Ground(
    [
        Place(single(parse("10.200.0.1")), "the etcd of alpha", lifeline=True, cluster="alpha"),
        Place(single(parse("fd02::1")), "the etcd of beta", lifeline=True, cluster="beta"),
        Place(single(parse("10.200.0.2")), "the etcd of beta", lifeline=True, cluster="beta"),
        Place(single(parse("192.168.0.1")), "the gateway", lifeline=True),
        Place(parse_prefix("172.17.0.0/16"), "on docker0"),
        Place(single(parse("172.17.0.1")), "an address of this machine"),
        Place(single(parse("10.53.0.10")), "a resolver"),
        Place(parse_prefix("fd17::/64"), "on docker0"),
    ]
)


@pytest.mark.parametrize(
    ("authority", "prefix", "reason"),
    [
        (BETA, "10.2.0.0/24", None),
        (BETA, "10.16.0.0/12", None),
        (BETA, "100.64.1.0/24", None),
        (BETA, "172.31.0.0/16", None),
        (BETA, "192.168.7.0/24", None),
        (BETA, "fd00:2::/64", None),
        (BETA, "fd00:2::/40", None),
        (BETA, "8.8.8.0/24", Reason.NOT_ALLOWED),
        (BETA, "1.0.0.0/8", Reason.NOT_ALLOWED),
        (BETA, "2001:db8::/64", Reason.NOT_ALLOWED),
        (BETA, "172.0.0.0/8", Reason.NOT_ALLOWED),
        (BETA, "10.64.0.0/11", Reason.NOT_ALLOWED),
        (BETA, "fd00:200::/39", Reason.NOT_ALLOWED),
        (BETA, "203.0.113.0/25", Reason.NOT_ALLOWED),
        (BETA, "172.17.3.0/24", Reason.LOCAL),
        (BETA, "172.16.0.0/12", Reason.LOCAL),
        (BETA, "10.53.0.0/24", Reason.LOCAL),
        (BETA, "fd17::/96", Reason.LOCAL),
        (BETA, "192.168.0.0/24", Reason.CUTS_OFF),
        (BETA, "10.200.0.2/32", Reason.CUTS_OFF),
        (BETA, "fd02::/64", Reason.CUTS_OFF),
        (BETA, "169.254.169.254/32", Reason.RESERVED),
        (BETA, "127.1.0.0/16", Reason.RESERVED),
        (BETA, "0.0.0.0/0", Reason.RESERVED),
        (BETA, "fe80::/64", Reason.RESERVED),
        (BETA, "::/0", Reason.RESERVED),
        (BETA, "::1/128", Reason.RESERVED),
        (ALLOWED, "203.0.113.0/25", None),
        (ALLOWED, "203.0.112.0/23", Reason.NOT_ALLOWED),
        (ALLOWED, "10.64.0.0/11", None),
        (ALLOWED, "10.53.0.0/24", None),
        (ALLOWED, "10.200.0.0/24", Reason.CUTS_OFF),
        (None, "8.8.8.0/24", None),
        (None, "172.17.3.0/24", None),
        (None, "10.0.0.0/8", Reason.CUTS_OFF),
        (None, "192.168.0.0/24", Reason.CUTS_OFF),
        (None, "127.0.0.0/8", Reason.RESERVED),
        (None, "0.0.0.0/0", Reason.RESERVED),
        (None, "224.0.0.0/4", Reason.RESERVED),
    ],
)
def test_a_cluster_has_pods_only_where_it_may(authority: Authority | None, prefix: str, reason: Reason | None) -> None:
    refusal = judge_prefix(authority, parse_prefix(prefix), GROUND)
    assert (refusal and refusal.reason) == reason
    assert refusal is None or prefix in refusal.why


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("8.8.8.8", None),
        ("2001:db8::1", None),
        ("172.17.0.9", None),
        ("10.200.0.2", None),  # its own etcd: it may run on one of its nodes
        ("10.200.0.1", Reason.LOCAL),
        ("192.168.0.1", Reason.LOCAL),
        ("172.17.0.1", Reason.LOCAL),
        ("10.53.0.10", Reason.LOCAL),
        ("127.0.0.1", Reason.RESERVED),
        ("0.0.0.0", Reason.RESERVED),
        ("224.0.0.5", Reason.RESERVED),
        ("::1", Reason.RESERVED),
        ("fe80::1", Reason.RESERVED),
    ],
)
def test_a_peers_node_is_anywhere_but_where_others_are(address: str, reason: Reason | None) -> None:
    refusal = judge_address(BETA, parse(address), GROUND)
    assert (refusal and refusal.reason) == reason


def test_what_is_not_allowed_says_how_to_allow_it() -> None:
    refusal = judge_prefix(BETA, parse_prefix("203.0.113.0/25"), GROUND)
    assert refusal is not None
    assert "clustermesh connect --allow-prefix 203.0.113.0/25" in refusal.why


def test_identities_are_numbered_by_our_maximum_of_clusters() -> None:
    assert Authority.of(Cluster(name="beta", id=2, max_clusters=255)).identities == range(131072, 196608)
    assert Authority.of(Cluster(name="beta", id=2, max_clusters=511)).identities == range(65536, 98304)


_PRIVATE = [IPv4Network(each) for each in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10")]


@given(st.integers(0, 2**32 - 1), st.integers(0, 32))
def test_ipv4_prefixes_agree_with_the_rules_read_out(number: int, length: int) -> None:
    network = IPv4Network((number, length), strict=False)
    allowed = judge_prefix(BETA, parse_prefix(str(network)), Ground()) is None
    assert allowed == (length >= 12 and any(network.subnet_of(private) for private in _PRIVATE))


@given(st.integers(0, 2**128 - 1), st.integers(0, 128))
def test_no_ipv6_prefix_outside_the_private_range_is_anybodys_by_default(number: int, length: int) -> None:
    network = ip_network((number, length), strict=False)
    address = ip_address(number)
    if network.version == 6 and not (address.packed.startswith(b"\0" * 10 + b"\xff\xff")):
        prefix = Prefix(masked(parse(str(address)), length), length)
        allowed = judge_prefix(BETA, prefix, Ground()) is None
        assert allowed == (length >= 40 and address in ip_network("fc00::/7")), prefix_text(prefix)


@given(st.lists(st.integers(0, 255), max_size=6), st.integers(0, 255), st.integers(96, 128))
def test_a_route_is_left_out_exactly_where_it_holds_a_lifeline(ends: list[int], probe: int, length: int) -> None:
    lifelines = [single(parse(f"10.0.0.{end}")) for end in ends]
    ground = Ground(Place(each, "the gateway", lifeline=True) for each in lifelines)
    prefix = Prefix(masked(parse(f"10.0.0.{probe}"), length), length)
    assert (ground.cut_off_by(prefix) is not None) == any(overlaps(prefix, each) for each in lifelines)


@given(st.integers(0, 96))
def test_every_prefix_around_all_of_ipv4_is_nobodys(length: int) -> None:
    around = Prefix(masked(V4.address, length), length)
    assert nobodys(around)
