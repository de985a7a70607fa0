"""Addresses against the standard library's, which is the stupid twin here."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clustermesh import address as a
from clustermesh.errors import Invalid

IPS = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6).filter(lambda ip: ip.ipv4_mapped is None))


def _networks(version: int) -> st.SearchStrategy[IPv4Network | IPv6Network]:
    lengths = st.integers(0, 32 if version == 4 else 128)
    return st.builds(
        lambda ip, n: ip_network((int(ip), n), strict=False) if version == 6 else _v4(ip, n),
        st.ip_addresses(v=version),
        lengths,
    ).filter(_is_ours)


def _v4(ip: IPv4Address, length: int) -> IPv4Network:
    return IPv4Network((int(ip), length), strict=False)


def _is_ours(network: IPv4Network | IPv6Network) -> bool:
    return network.version == 4 or network.network_address.ipv4_mapped is None


NETWORKS = st.one_of(_networks(4), _networks(6))


@given(IPS)
def test_an_address_is_spelled_as_the_standard_library_spells_it(ip: IPv4Address | IPv6Address) -> None:
    address = a.parse(str(ip))
    assert a.text(address) == str(ip)
    assert a.is_ipv4(address) == (ip.version == 4)
    assert a.from_int(a.to_int(address)) == address


@pytest.mark.parametrize("text", ["fd00:0::1", "FD00::1", "fd00:0:0:0:0:0:0:1"])
def test_two_spellings_are_one_address(text: str) -> None:
    assert a.parse(text) == a.parse("fd00::1")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "10.0.0",
        "10.0.0.01",
        "10.0.0.256",
        "1.2.3.4/32",
        "::ffff:10.0.0.1",
        "::ffff:a00:1",
        "fe80::1%eth0",
        "x",
        "1\0",
        "10.0.0.1 ",
        "[fd00::1]",
    ],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(Invalid):
        a.parse(text)


@pytest.mark.parametrize("text", ["::1.2.3.4", "::102:304"])
def test_the_end_of_an_address_is_never_dotted(text: str) -> None:
    assert a.text(a.parse(text)) == "::102:304" == str(ip_address(text))


@given(NETWORKS)
def test_a_prefix_is_spelled_as_the_standard_library_spells_it(network: IPv4Network | IPv6Network) -> None:
    prefix = a.parse_prefix(str(network))
    assert a.prefix_text(prefix) == str(network)
    assert a.family_length(prefix) == network.prefixlen


@given(NETWORKS, IPS)
def test_a_prefix_contains_what_the_network_contains(
    network: IPv4Network | IPv6Network, ip: IPv4Address | IPv6Address
) -> None:
    # ::/0 and its like hold IPv4 here, as one space of 128 bits does.
    inside = ip in network if ip.version == network.version else _as_six(ip) in _as_six_network(network)
    assert a.contains(a.parse_prefix(str(network)), a.parse(str(ip))) == inside


@given(NETWORKS, NETWORKS)
def test_prefixes_overlap_as_networks_of_one_space_do(
    one: IPv4Network | IPv6Network, other: IPv4Network | IPv6Network
) -> None:
    expected = _as_six_network(one).overlaps(_as_six_network(other))
    assert a.overlaps(a.parse_prefix(str(one)), a.parse_prefix(str(other))) == expected


def _as_six(ip: IPv4Address | IPv6Address) -> IPv6Address:
    return ip if isinstance(ip, IPv6Address) else IPv6Address(0xFFFF << 32 | int(ip))


def _as_six_network(network: IPv4Network | IPv6Network) -> IPv6Network:
    if isinstance(network, IPv6Network):
        return network
    return IPv6Network((0xFFFF << 32 | int(network.network_address), 96 + network.prefixlen))


@pytest.mark.parametrize(
    "text", ["10.0.0.0", "10.0.0.0/33", "10.0.0.1/24", "fd00::/129", "10.0.0.0/+8", "10.0.0.0/08", "10.0.0.0/", "/8"]
)
def test_what_is_no_prefix_is_refused(text: str) -> None:
    with pytest.raises(Invalid):
        a.parse_prefix(text)


def test_a_place_in_a_prefix_is_counted_from_its_first_address() -> None:
    assert a.text(a.nth(a.parse_prefix("10.1.0.0/24"), 255)) == "10.1.0.255"
    assert a.text(a.nth(a.parse_prefix("fd00::/64"), 1)) == "fd00::1"
    with pytest.raises(Invalid):
        a.nth(a.parse_prefix("10.1.0.0/24"), 256)


def test_a_prefix_of_one_address_holds_it_alone() -> None:
    one = a.parse("10.0.0.1")
    assert a.contains(a.single(one), one)
    assert not a.contains(a.single(one), a.parse("10.0.0.2"))
