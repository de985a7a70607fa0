"""Who an address belongs to, against a twin that compares prefixes one by one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from clustermesh.address import Address, Prefix, contains, masked, overlaps, parse, parse_prefix
from clustermesh.mesh.claims import Claim, Claims, Holder

A, B, C = (Holder("a", "n1"), Holder("a", "n2"), Holder("b", "n1"))

# Few bits vary, so that most prefixes have something to do with each other; both families, and what holds all of IPv4.
addresses = st.one_of(
    st.builds(lambda a, b, c: parse(f"10.{a}.{b}.{c}"), *[st.integers(0, 2)] * 3),
    st.builds(lambda a, b: parse(f"fd0{a}::{b}"), *[st.integers(0, 2)] * 2),
)
prefixes = st.builds(
    lambda address, length: Prefix(masked(address, length), length),
    addresses,
    st.sampled_from([0, 7, 16, 64, 80, 96, 104, 112, 118, 120, 127, 128]),
)


@given(st.lists(st.tuples(st.sampled_from([A, B, C]), prefixes), max_size=20), st.lists(addresses), prefixes)
def test_claims_agree_with_comparing_every_prefix(
    asked: list[tuple[Holder, Prefix]], probes: list[Address], probe: Prefix
) -> None:
    claims, twin = Claims(), set[Claim]()
    for holder, prefix in asked:
        clash = claims.conflict(holder, prefix)
        overlapping = {claim for claim in twin if claim.holder != holder and overlaps(claim.prefix, prefix)}
        assert (clash in overlapping) if overlapping else (clash is None)
        if clash is None:
            claims.claim(holder, prefix)
            twin.add(Claim(holder, prefix))
    for address in probes:
        owners = {claim.holder for claim in twin if contains(claim.prefix, address)}
        assert claims.owner(address) == (owners.pop() if owners else None)
    assert set(claims.inside(probe)) == {
        claim for claim in twin if overlaps(claim.prefix, probe) and claim.prefix.length >= probe.length
    }
    around = {claim for claim in twin if overlaps(claim.prefix, probe) and claim.prefix.length <= probe.length}
    assert (claims.around(probe) in around) if around else (claims.around(probe) is None)
    for claim in twin:
        claims.withdraw(claim.holder, claim.prefix)
    assert list(claims.inside(Prefix(parse("::"), 0))) == []
    assert claims.conflict(Holder("z", "z"), probe) is None


def test_withdrawing_what_another_holds_changes_nothing() -> None:
    claims = Claims()
    claims.claim(A, parse_prefix("10.0.0.0/24"))
    claims.withdraw(B, parse_prefix("10.0.0.0/24"))
    assert claims.owner(parse("10.0.0.7")) == A


def test_what_an_ipv6_prefix_holds_of_ipv4_is_a_conflict_too() -> None:
    claims = Claims()
    claims.claim(A, parse_prefix("10.0.0.0/24"))
    assert claims.conflict(B, Prefix(parse("::"), 0)) == Claim(A, parse_prefix("10.0.0.0/24"))
