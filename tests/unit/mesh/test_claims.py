"""Who an address belongs to, against a twin that compares networks one by one."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

from hypothesis import given
from hypothesis import strategies as st

from clustermesh.mesh.claims import Claims

networks = st.builds(
    lambda a, b, length: IPv4Network((f"10.{a}.{b}.0", length), strict=False),
    st.integers(0, 3),
    st.integers(0, 3),
    st.sampled_from([8, 16, 22, 24, 32]),
)
addresses = st.builds("10.{}.{}.{}".format, st.integers(0, 3), st.integers(0, 3), st.integers(0, 3))


@given(st.lists(st.tuples(st.sampled_from("abc"), networks), max_size=20), addresses, networks)
def test_claims_agree_with_comparing_every_network(
    asked: list[tuple[str, IPv4Network]], address: str, probe: IPv4Network
) -> None:
    claims, twin, held = Claims(), dict[IPv4Network, str](), list[tuple[str, str]]()
    for cluster, network in asked:
        clash = claims.conflict(cluster, str(network))
        overlapping = {(o, str(n)) for n, o in twin.items() if o != cluster and n.overlaps(network)}
        assert (clash in overlapping) if overlapping else (clash is None)
        if clash is None:
            claims.claim(cluster, str(network))
            twin[network] = cluster
            held.append((cluster, str(network)))
    owners = {owner for network, owner in twin.items() if IPv4Address(address) in network}
    assert claims.owner(address) == (owners.pop() if owners else None)
    for cluster, cidr in held:
        claims.withdraw(cluster, cidr)
    assert claims.owner(address) is None
    assert claims.conflict("z", str(probe)) is None


def test_withdrawing_what_another_cluster_holds_changes_nothing() -> None:
    claims = Claims()
    claims.claim("a", "10.0.0.0/24")
    claims.withdraw("b", "10.0.0.0/24")
    assert claims.owner("10.0.0.7") == "a"


def test_what_two_nodes_of_a_cluster_claim_stays_until_both_withdraw() -> None:
    claims = Claims()
    claims.claim("a", "10.0.0.0/24")
    claims.claim("a", "10.0.0.0/24")
    claims.withdraw("a", "10.0.0.0/24")
    assert claims.owner("10.0.0.7") == "a"
    claims.withdraw("a", "10.0.0.0/24")
    assert claims.owner("10.0.0.7") is None
