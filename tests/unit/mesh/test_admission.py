"""Which Nodes stand: what one Node can do to the agent, to others and to itself."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clustermesh.address import Prefix, contains, masked, nth, overlaps, parse, parse_prefix, single
from clustermesh.mesh.admission import Admission, Verdict
from clustermesh.mesh.authority import TOGETHER, Authority, Ground, Limits, Place
from clustermesh.mesh.claims import Holder
from clustermesh.mesh.holdings import Holdings, Wanted
from clustermesh.mesh.refusals import Reason
from clustermesh.model import Node, NodeAddress

KEY = "b" * 43 + "="
OWN, PEER, EVIL = Holder("own", "o1"), Holder("beta", "b1"), Holder("evil", "e1")


def node(cidrs: str, *ips: str, key: str = "") -> Node:
    return Node(
        cluster="",
        cluster_id=1,
        name="",
        addresses=tuple(NodeAddress(type="InternalIP", ip=parse(ip)) for ip in ips),
        pod_cidrs=tuple(map(parse_prefix, cidrs.split())),
        wireguard_public_key=key,
    )


def opened(together: Mapping[str, int] = TOGETHER) -> Admission:
    admission = Admission("own", together=together)
    admission.admit_peers()
    return admission


def prefixes(admission: Admission, holder: Holder) -> set[Prefix]:
    return set(admission.holdings.standing[holder].prefixes) if holder in admission.holdings.standing else set()


def reasons(verdicts: list[Verdict]) -> list[Reason | None]:
    return [verdict.refusal and verdict.refusal.reason for verdict in verdicts]


class TestSize:
    def test_a_peers_node_with_thousands_of_addresses_and_cidrs_is_refused_before_they_are_compared(self) -> None:
        first = parse("10.64.0.0")
        around = Prefix(first, 108)
        node = Node(
            cluster="evil",
            cluster_id=1,
            name="e1",
            addresses=tuple(NodeAddress(type="InternalIP", ip=nth(around, 2 * n)) for n in range(8_000)),
            pod_cidrs=tuple(single(nth(around, 2 * n + 1)) for n in range(8_000)),
        )
        admission = opened()
        assert reasons(admission.put(EVIL, node)) == [Reason.LIMIT]
        allowing = Authority(name="evil", limits=Limits(node_prefixes=16_000))
        assert reasons(admission.authorize(allowing)) == [None], "and with a limit that lets it in it costs its length"

    @given(st.lists(st.integers(0, 255), max_size=4), st.lists(st.tuples(st.integers(0, 255), st.integers(120, 128))))
    def test_a_node_inside_its_own_cidr_is_found_as_by_comparing_each_with_each(
        self, ends: list[int], blocks: list[tuple[int, int]]
    ) -> None:
        addresses = [parse(f"10.0.0.{end}") for end in ends]
        cidrs = [Prefix(masked(parse(f"10.0.0.{end}"), length), length) for end, length in blocks]
        wanted = Node(
            cluster="own",
            cluster_id=1,
            name="o1",
            addresses=tuple(NodeAddress(type="InternalIP", ip=ip) for ip in addresses),
            pod_cidrs=tuple(cidrs),
        )
        inside = any(contains(cidr, ip) for cidr in cidrs for ip in addresses)
        assert reasons(Admission("own").put(OWN, wanted)) == [Reason.CUTS_OFF if inside else None]

    @pytest.mark.parametrize("kind", ["prefixes", "addresses"])
    def test_a_cluster_has_so_many_pod_cidrs_and_addresses_and_another_node_once_there_is_room(self, kind: str) -> None:
        admission = opened()
        admission.authorize(Authority(name="beta", limits=Limits(**{kind: 3})))
        holders = [Holder("beta", f"b{n}") for n in range(4)]
        for n, holder in enumerate(holders):
            admission.put(holder, node(f"10.{n}.0.0/24", f"192.0.2.{n}"))
        assert admission.holdings.standing.keys() == {*holders[:3]}
        assert reasons(admission.put(EVIL, node("10.9.0.0/24", "192.0.2.9"))) == [None]
        admission.put(holders[0], None)
        assert admission.holdings.standing.keys() == {*holders[1:], EVIL}

    def test_all_peers_have_so_many_pod_cidrs_together_and_another_node_once_there_is_room(self) -> None:
        admission = opened({"prefixes": 2})
        admission.put(PEER, node("10.1.0.0/24", "192.0.2.1"))
        (verdict,) = admission.put(EVIL, node("10.2.0.0/24 10.3.0.0/24", "192.0.2.2"))
        assert verdict.refusal == (Reason.FULL, "is one too many: the pod CIDRs of all peers would be more than 2", 1)
        assert reasons(admission.put(PEER, node("10.4.0.0/24", "192.0.2.1"))) == [None]
        assert reasons(admission.put(OWN, node("10.5.0.0/24 10.6.0.0/24 10.7.0.0/24", "192.0.2.3"))) == [None]
        assert reasons(admission.put(PEER, None)) == [None, None]
        assert admission.holdings.standing.keys() == {OWN, EVIL}

    def test_a_cluster_at_its_limit_may_still_change_what_it_has(self) -> None:
        admission = opened()
        admission.authorize(Authority(name="beta", limits=Limits(prefixes=1)))
        admission.put(PEER, node("10.2.0.0/24", "192.0.2.2"))
        assert reasons(admission.put(PEER, node("10.3.0.0/24", "192.0.2.2", key="B"))) == [None]


class TestTheOwnClusterFirst:
    def test_no_peers_node_stands_before_the_own_cluster_is_known(self) -> None:
        admission = Admission("own")
        assert reasons(admission.put(EVIL, node("10.1.0.0/24", "192.0.2.9"))) == [Reason.WAITING]
        assert reasons(admission.put(PEER, node("10.2.0.0/24", "192.0.2.2"))) == [Reason.WAITING]
        assert reasons(admission.put(OWN, node("10.1.0.0/24", "192.0.2.1"))) == [None]
        admission.admit_peers()
        assert admission.holdings.standing.keys() == {OWN, PEER}
        assert admission.admit_peers() == []

    @pytest.mark.parametrize("cidr", ["192.168.7.0/24", "192.168.7.1/32"])
    def test_a_refused_own_node_is_still_where_it_is(self, cidr: str) -> None:
        admission = opened()
        admission.authorize(Authority(name="evil", allowed=(parse_prefix("192.168.0.0/16"),)))
        admission.put(PEER, node("10.1.0.0/16", "192.0.2.2"))
        assert reasons(admission.put(OWN, node("10.1.0.0/24", "192.168.7.1"))) == [Reason.TAKEN]
        assert reasons(admission.put(EVIL, node(cidr, "192.0.2.9"))) == [Reason.CUTS_OFF]
        assert reasons(admission.put(EVIL, node("10.9.0.0/24", "192.168.7.1"))) == [Reason.CUTS_OFF]
        admission.put(PEER, None)
        assert admission.holdings.standing.keys() == {OWN}, "now it stands, and has its address as before"
        admission.put(OWN, None)
        assert admission.holdings.standing.keys() == {EVIL}

    def test_a_refused_own_node_that_is_gone_is_nowhere(self) -> None:
        admission = opened()
        admission.put(PEER, node("10.1.0.0/16", "192.0.2.2"))
        admission.put(OWN, node("10.1.0.0/24", "192.168.7.1"))
        admission.put(EVIL, node("192.168.7.0/24", "192.0.2.9"))
        admission.put(OWN, None)
        assert admission.holdings.standing.keys() == {PEER, EVIL}

    def test_no_peers_node_is_at_the_cluster_ip_of_an_own_service(self) -> None:
        admission = opened()
        admission.holdings.serve(parse("10.97.0.1"), ("n", "s"))
        verdicts = admission.put(PEER, node("10.2.0.0/24", "10.97.0.1"))
        assert reasons(verdicts) == [Reason.LOCAL]
        assert verdicts[0].refusal is not None
        assert "the service n/s of this cluster" in verdicts[0].refusal.why
        admission.unserve(parse("10.97.0.1"), ("n", "s"))
        assert admission.holdings.standing.keys() == {PEER}

    @pytest.mark.parametrize("taken", ["10.2.0.0/24", "203.0.113.0/24"])
    def test_what_is_another_nodes_is_said_to_be_rather_than_to_be_allowed(self, taken: str) -> None:
        admission = opened()
        admission.stand_on(Ground([Place(single(parse("10.2.0.1")), "this machine's address on lo")]))
        admission.put(OWN, node(taken, "192.0.2.1"))
        (verdict,) = admission.put(PEER, node(taken, "192.0.2.2"))
        assert verdict.refusal is not None
        assert verdict.refusal.why == f"pod CIDR {taken} is {OWN}'s"
        admission.put(OWN, None)
        (verdict,) = admission.put(PEER, node(taken, "192.0.2.3"))
        assert verdict.refusal is not None
        assert f"--allow-prefix {taken}" in verdict.refusal.why


class TestWhoStands:
    def test_a_node_that_wants_something_bad_besides_keeps_what_it_has(self) -> None:
        admission = opened()
        good = parse_prefix("10.2.0.0/24")
        admission.put(PEER, node("10.2.0.0/24", "192.0.2.2"))
        assert reasons(admission.put(PEER, node("10.2.0.0/24 8.8.8.0/24", "192.0.2.2"))) == [Reason.NOT_ALLOWED]
        assert prefixes(admission, PEER) == {good}
        assert reasons(admission.put(EVIL, node("10.2.0.0/24", "192.0.2.9"))) == [Reason.TAKEN]
        assert reasons(admission.put(PEER, node("10.2.0.0/24", "192.0.2.2"))) == [None]
        assert prefixes(admission, PEER) == {good}

    def test_it_gets_what_it_wants_once_that_is_free(self) -> None:
        admission = opened()
        admission.put(EVIL, node("10.9.0.0/24", "192.0.2.9"))
        admission.put(PEER, node("10.2.0.0/24", "192.0.2.2"))
        admission.put(PEER, node("10.2.0.0/24 10.9.0.0/24", "192.0.2.2"))
        admission.put(EVIL, None)
        assert prefixes(admission, PEER) == {parse_prefix("10.2.0.0/24"), parse_prefix("10.9.0.0/24")}

    def test_what_it_has_is_not_judged_again_when_it_changes_something_else(self) -> None:
        admission = opened()
        admission.put(PEER, node("10.2.0.0/24", "192.0.2.2", key="A"))
        admission.stand_on(Ground([Place(single(parse("10.2.0.9")), "the gateway", lifeline=True)]))
        assert reasons(admission.put(PEER, node("10.2.0.0/24", "192.0.2.2", key="B"))) == [None]

    def test_what_the_operator_takes_back_is_gone_also_where_something_better_is_refused(self) -> None:
        admission = opened()
        admission.authorize(Authority(name="beta", allowed=(parse_prefix("203.0.113.0/24"),)))
        admission.put(PEER, node("203.0.113.0/24", "192.0.2.2"))
        admission.put(PEER, node("203.0.113.0/24 8.8.8.0/24", "192.0.2.2"))
        assert prefixes(admission, PEER) == {parse_prefix("203.0.113.0/24")}
        assert reasons(admission.authorize(Authority(name="beta"))) == [Reason.NOT_ALLOWED]
        assert admission.holdings.standing == {}


class TestTurns:
    """Thousands of a peer's nodes wait for one thing: what a change or a turn looks at has a limit."""

    most = 64  # one CIDR and the judgement itself are two
    here = Place(parse_prefix("10.0.0.0/9"), "the network on docker0")
    gateway = Place(single(parse("192.0.2.1")), "a gateway of this machine", lifeline=True)
    number = 1000

    def _crowd(self, admission: Admission) -> set[Holder]:
        holders = [Holder("beta", f"n{number}") for number in range(self.number)]
        for number, holder in enumerate(holders):
            admission.put(holder, node(f"10.{number // 250 + 1}.{number % 250}.0/24"))
        return set(holders)

    def _end(self, admission: Admission, verdicts: list[Verdict]) -> set[Holder]:
        """Go on to the end; who was decided on in all."""
        decided = {verdict.holder for verdict in verdicts}
        assert len(verdicts) <= self.most
        while admission.is_behind:
            turn = admission.go_on()
            assert len(turn) <= self.most
            decided |= {verdict.holder for verdict in turn}
        assert admission.go_on() == []
        return decided

    def test_a_place_that_moves_is_looked_at_in_turns_by_those_it_was_in_the_way_of(self) -> None:
        admission = opened()
        admission.stand_on(Ground([self.here, self.gateway]))
        crowd = self._crowd(admission)
        admission.put(PEER, node("10.200.0.0/24", "192.0.2.1"))
        assert not admission.holdings.standing
        verdicts = admission.stand_on(Ground([self.gateway]))
        assert 0 < len(admission.holdings.standing) < self.number, "who was not asked yet is what it was"
        assert self._end(admission, verdicts) == crowd == admission.holdings.standing.keys()

    def test_another_place_that_moves_asks_nobody(self) -> None:
        admission = opened()
        admission.stand_on(Ground([self.here, self.gateway]))
        self._crowd(admission)
        admission.put(PEER, node("8.8.8.0/24"))
        assert admission.stand_on(Ground([self.here])) == []
        assert not admission.is_behind

    def test_peers_are_admitted_in_turns(self) -> None:
        admission = Admission("own")
        crowd = self._crowd(admission)
        assert self._end(admission, admission.admit_peers()) == crowd == admission.holdings.standing.keys()

    def test_who_loses_its_authority_stands_until_its_turn(self) -> None:
        admission = opened()
        crowd = self._crowd(admission)
        verdicts = admission.authorize(Authority(name="beta", limits=Limits(prefixes=0)))
        assert 0 < len(admission.holdings.standing) < self.number
        admission.put(Holder("beta", "n999"), None)
        assert self._end(admission, verdicts) == crowd - {Holder("beta", "n999")}
        assert not admission.holdings.standing

    def test_a_clusters_nodes_go_in_turns_and_none_that_was_refused_stands(self) -> None:
        admission = opened()
        crowd = self._crowd(admission)
        late = Holder("beta", "a0")
        admission.put(late, node("10.1.0.0/24"))
        admission.put(EVIL, node("10.1.0.0/24"))
        verdicts = admission.drop("beta")
        assert 0 < len(admission.holdings.standing) < self.number
        assert self._end(admission, verdicts) == {*crowd, late, EVIL}
        assert admission.holdings.standing.keys() == {EVIL}, "though the other one was there before it"

    def test_a_node_that_comes_again_before_its_turn_to_go_stands(self) -> None:
        admission = opened()
        self._crowd(admission)
        again = Holder("beta", "n999")
        verdicts = admission.drop("beta")
        assert again in {verdict.holder for verdict in admission.put(again, node("10.200.0.0/24"))}
        admission.authorize(Authority(name="beta", allowed=(parse_prefix("10.0.0.0/8"),)))
        self._end(admission, verdicts)
        assert admission.holdings.standing.keys() == {again}
        assert prefixes(admission, again) == {parse_prefix("10.200.0.0/24")}

    def test_thousands_that_wait_for_an_own_nodes_address_are_asked_in_turns_and_own_nodes_at_once(self) -> None:
        admission = opened()
        admission.put(OWN, node("10.200.0.0/24", "10.9.9.9", key=KEY))
        crowd = {Holder("beta", f"n{number}") for number in range(self.number)}
        for holder in crowd:
            admission.put(holder, node("8.8.8.0/24", "10.9.9.9"))
        for number in range(3):
            admission.put(Holder("own", f"w{number}"), node("10.200.0.0/24", f"192.0.2.{number}"))
        verdicts = admission.put(OWN, None)
        assert admission.holdings.standing.keys() == {Holder("own", "w0")}
        admission.put(Holder("own", "w0"), None)
        assert admission.is_behind
        assert admission.holdings.standing.keys() == {Holder("own", "w1")}, "while others wait for their turn, too"
        assert self._end(admission, verdicts) > set()
        assert admission.holdings.standing.keys() == {Holder("own", "w1")}

    def test_refused_nodes_take_room_and_give_it_back(self) -> None:
        admission = opened()
        admission.authorize(Authority(name="beta", limits=Limits(prefixes=3)))
        verdicts = [admission.put(Holder("beta", f"n{n}"), node(f"8.8.{n}.0/24"))[0] for n in range(5)]
        assert reasons(verdicts) == [Reason.NOT_ALLOWED] * 3 + [Reason.LIMIT] * 2
        assert reasons(admission.put(Holder("beta", "n0"), None)) == [None, Reason.NOT_ALLOWED]
        assert reasons(admission.put(PEER, node("10.2.0.0/24"))) == [Reason.LIMIT]


def test_what_is_free_goes_to_the_first_who_waits_and_the_others_are_not_even_asked() -> None:
    admission = opened()
    holders = [Holder("beta", f"n{number}") for number in range(1000)]
    for number, holder in enumerate(holders):
        admission.put(holder, node(f"10.{number // 250 + 1}.{number % 250}.0/24", key=KEY))
    decided = 0
    for holder in holders:
        assert holder in admission.holdings.standing
        decided += len(admission.put(holder, None))
    assert decided == 2 * len(holders) - 1
    assert not admission.holdings.standing


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3), st.booleans()), max_size=30))
def test_nobody_waits_for_what_is_free(moves: list[tuple[int, int, bool]]) -> None:
    admission, wanted = opened(), dict[Holder, Node]()
    for number, prefix, comes in moves:
        holder = Holder("beta" if number % 2 else "gamma", f"n{number}")
        found = node(f"10.1.{prefix}.0/{24 - prefix % 2}") if comes and prefix % 2 == 0 else node(f"10.1.{prefix}.0/24")
        wanted.pop(holder, None)
        admission.put(holder, found if comes else None)
        if comes:
            wanted[holder] = found
    for holder in wanted.keys() - admission.holdings.standing.keys():
        taken = [each for other in admission.holdings.standing for each in prefixes(admission, other)]
        assert any(overlaps(each, wanted[holder].pod_cidrs[0]) for each in taken)


@pytest.mark.parametrize(
    ("address", "what"),
    [("172.20.1.1", "the etcd of own"), ("172.20.1.11", "node o1"), ("127.0.0.1", "no cluster's"), ("10.97.0.1", "")],
)
def test_what_this_machine_lives_by_is_no_services_to_take(address: str, what: str) -> None:
    admission = opened()
    admission.put(OWN, node("10.1.0.0/24", "172.20.1.11"))
    mine = Place(single(parse("172.20.1.1")), "the etcd of own", lifeline=True, cluster="own")
    theirs = Place(single(parse("10.97.0.1")), "the etcd of evil", lifeline=True, cluster="evil")
    admission.stand_on(Ground([mine, theirs]))
    said = admission.holdings.lives_at(parse(address))
    assert what in said
    assert bool(said) == bool(what)


_prefixes = st.sampled_from(["10.1.0.0/16", "10.1.1.0/24", "10.1.1.7/32", "10.2.0.0/24", "203.0.113.0/24"])
_places = st.sampled_from(["10.1.1.7", "10.1.2.7", "192.0.2.1", "192.0.2.2", "203.0.113.9"])
_holders = st.builds(Holder, st.sampled_from(["own", "beta", "gamma"]), st.sampled_from(["n1", "n2", "n3"]))
_some_node = st.builds(
    lambda cidrs, ips, key: node(" ".join(cidrs), *ips, key=key),
    st.lists(_prefixes, max_size=3),
    st.lists(_places, max_size=2),
    st.sampled_from(["", "A", "B"]),
)
_moves = st.one_of(
    st.tuples(st.just("put"), _holders, st.none() | _some_node),
    st.tuples(st.just("allow"), _holders, st.lists(_prefixes, max_size=2)),
    st.tuples(st.just("drop"), _holders, st.none()),
    st.tuples(st.just("ground"), st.none(), st.lists(_places, max_size=2)),
    st.tuples(st.sampled_from(["serve", "unserve"]), st.none(), _places),
    st.tuples(st.just("restoring"), st.none(), st.booleans()),
)


def _do(admission: Admission, verb: str, holder: Holder, value: Any) -> None:
    match verb:
        case "put":
            admission.put(holder, value)
        case "allow":
            allowed = tuple(map(parse_prefix, value))
            admission.authorize(Authority(name=holder.cluster, allowed=allowed))
        case "drop" if holder.cluster != admission.holdings.own:
            admission.drop(holder.cluster)
        case "ground":
            admission.stand_on(Ground(Place(single(parse(ip)), "a gateway", lifeline=True) for ip in value))
        case "serve":
            admission.holdings.serve(parse(value), ("n", "s"))
        case "unserve":
            admission.unserve(parse(value), ("n", "s"))
        case "restoring":
            admission.holdings.restoring = value
        case "turn":
            admission.go_on()


@given(st.lists(_moves, max_size=40))
def test_in_turns_of_one_node_each_it_ends_as_in_one_go(script: list[Any]) -> None:
    at_once, slow = Admission("own", turn=10**6), Admission("own", turn=1)
    for admission in (at_once, slow):
        admission.admit_peers()
        for move in script:
            _do(admission, *move)
            while admission.is_behind:
                admission.go_on()
    assert slow.holdings.standing == at_once.holdings.standing


@given(st.lists(st.one_of(_moves, _moves, st.just(("turn", None, None))), max_size=40))
def test_whatever_happens_a_key_an_address_and_a_prefix_are_one_nodes(script: list[Any]) -> None:
    """Of one cluster's nodes, too: whoever makes peers and routes of those that stand need not look for others."""
    admission = Admission("own", turn=1)
    admission.admit_peers()
    for move in script:
        _do(admission, *move)
        for (one, had), (other, has) in combinations(admission.holdings.standing.items(), 2):
            assert not had.key or had.key != has.key, (one, other)
            assert not any(overlaps(a, b) for a in had.claims for b in has.claims), (one, other)
        for holder, had in admission.holdings.standing.items():
            assert all(admission.holdings.claims.owner(prefix.address) == holder for prefix in had.claims)
            assert len(set(had.claims)) == len(had.claims)


def test_a_node_that_cannot_be_decided_on_is_refused_and_the_others_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    judge = Holdings.object

    def judge_unless_poison(self: Holdings, holder: Holder, wanted: Wanted, kept: Wanted) -> Any:
        if holder.node == "poison" and self.own_is_known:
            raise ZeroDivisionError("a bug of ours")
        return judge(self, holder, wanted, kept)

    monkeypatch.setattr(Holdings, "object", judge_unless_poison)
    admission = Admission("own")
    for number, name in enumerate(("b1", "poison", "b2")):
        assert reasons(admission.put(Holder("beta", name), node(f"10.{number}.0.0/24"))) == [Reason.WAITING]
    assert reasons(admission.admit_peers()) == [None, Reason.GARBLED, None]
    assert not admission.is_behind
    assert {holder.node for holder in admission.holdings.standing} == {"b1", "b2"}
    admission.authorize(Authority(name="beta", id=2))
    assert {holder.node for holder in admission.holdings.standing} == {"b1", "b2"}
    assert reasons(admission.put(Holder("beta", "poison"), None)) == [None]
