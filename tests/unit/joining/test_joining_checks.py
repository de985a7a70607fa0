"""What keeps clusters apart, each said with what to do; and that all of it is said at once."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from msgspec.structs import replace

from certs.issue import Pair, create_authority, issue
from certs.names import Leaf, server
from certs.names import remote as remote_leaf
from clustermesh.address import parse_prefix
from clustermesh.errors import ClusterMeshError
from clustermesh.joining.checks import check_allowed, find_problems
from clustermesh.joining.links import Mode, credentials, entries, known_peers, link, pairs, replaced
from clustermesh.joining.member import CertFiles, Entrance, Member, Version
from clustermesh.joining.versions import apart, skews
from clustermesh.model import Cluster
from clustermesh.standalone.pod_cidrs import PodCidr

NOW = datetime(2026, 6, 1, tzinfo=UTC)
AUTHORITIES = {name: create_authority(NOW) for name in ("alpha", "beta", "gamma", "shared")}


def files(authority: Pair, pair: Pair) -> CertFiles:
    return CertFiles(authority.certificate_pem, pair.certificate_pem, pair.key_pem)


def member(name: str, number: int, authority: str = "", **changed: object) -> Member:
    """A cluster that is right."""
    signer = AUTHORITIES[authority or name]
    made = Member(
        context=f"ctx-{name}",
        cluster=Cluster(name=name, id=number),
        namespace="kube-system",
        version=Version("clustermesh", "0.1.0"),
        entrance=Entrance((f"192.0.2.{number}",), 2379),
        pod_cidrs=(PodCidr(parse_prefix(f"10.{number}.0.0/16"), name, "n1"),),
        signer=files(signer, signer),
        trusted=signer.certificate_pem,
        server=files(signer, issue(signer, server(), NOW)),
        remote=files(signer, issue(signer, remote_leaf(name), NOW)),
    )
    return replace(made, **changed)


ALPHA, BETA = member("alpha", 1), member("beta", 2)


def problems(first: Member, second: Member, *allowed: str) -> list[ClusterMeshError]:
    prefixes = [parse_prefix(each) for each in allowed]
    links = [
        link(*pair, pair[1].entrance or Entrance((), 0), prefixes)
        for pair in pairs(first, [second], Mode.BIDIRECTIONAL)
    ]
    return [*check_allowed(links, prefixes), *find_problems([first, second], links, NOW)]


def joined(reader: Member, owner: Member) -> Member:
    """`reader` once it reads `owner`."""
    assert owner.entrance is not None
    wanted = link(reader, owner, owner.entrance, ())
    agents, _ = entries(wanted, credentials(wanted, NOW))
    return replace(reader, peers=replaced(reader.peers, owner.name, agents))


def test_clusters_that_are_right_can_be_joined_and_again() -> None:
    assert problems(ALPHA, BETA) == []
    assert problems(joined(ALPHA, BETA), joined(BETA, ALPHA)) == []


def cidrs(*texts: str) -> dict[str, object]:
    return {"pod_cidrs": tuple(PodCidr(parse_prefix(text), "beta", "b1") for text in texts)}


GOOD = AUTHORITIES["beta"]


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"cluster": Cluster(name="alpha", id=2)}, ["cluster name: 'alpha'"]),
        ({"cluster": Cluster(name="beta", id=1)}, ["cluster id: 1: is the id of both"]),
        ({"cluster": Cluster(name="beta", id=2, max_clusters=511)}, ["maxConnectedClusters of beta: 511: must be 255"]),
        ({"encryption": "WireGuard"}, ["encryption of beta: 'WireGuard': must be none as in alpha"]),
        ({"entrance": ALPHA.entrance}, ["endpoint of beta"]),
        ({"version": Version("clustermesh", "v0.3.1")}, ["version of beta: 'v0.3.1': is more than one minor"]),
        ({"version": Version("clustermesh", "1.1.0")}, ["version of beta"]),
        ({"version": Version("clustermesh", "0.2.9")}, []),
        ({"version": Version("clustermesh", "latest")}, []),
        ({"version": Version("cilium", "1.18.4")}, []),
        ({"version": None}, []),
        (cidrs("10.1.4.0/24"), ["pod CIDR of node b1 in beta: '10.1.4.0/24': overlaps 10.1.0.0/16"]),
        (cidrs("10.0.0.0/12"), ["overlaps 10.1.0.0/16"]),
        (cidrs("203.0.113.0/24"), ["--allow-prefix 203.0.113.0/24"]),
        (cidrs("192.168.0.0/24", "203.0.113.0/24"), ["--allow-prefix 203.0.113.0/24"]),
        (cidrs("169.254.9.0/24"), ["169.254.0.0/16"]),
        (cidrs("192.0.2.0/24"), ["holds 192.0.2.1, the etcd of alpha"]),
        ({"signer": CertFiles(GOOD.certificate_pem, GOOD.certificate_pem)}, ["beta would not let alpha in"]),
        ({"signer": CertFiles()}, ["put ca.key into the Secret cilium-ca of context ctx-beta"]),
        (
            {"server": files(GOOD, issue(GOOD, Leaf("x", server=True, hosts=("elsewhere",)), NOW))},
            ["does not name beta.mesh.cilium.io"],
        ),
        ({"server": files(GOOD, issue(AUTHORITIES["gamma"], server(), NOW))}, ["alpha would not trust beta"]),
        ({"trusted": AUTHORITIES["gamma"].certificate_pem}, ["would not let alpha in", "would not trust beta"]),
        ({"server": CertFiles()}, []),
    ],
)
def test_what_is_wrong_is_named_with_what_to_do(changed: dict[str, object], says: list[str]) -> None:
    found = [str(problem) for problem in problems(ALPHA, replace(BETA, **changed))]
    assert len(found) == len(says), found
    for problem, part in zip(found, says, strict=True):
        assert part in problem


def test_everything_is_said_at_once() -> None:
    bad = replace(
        BETA,
        cluster=Cluster(name="beta", id=1, max_clusters=511),
        encryption="IPsec",
        version=Version("clustermesh", "0.9.0"),
        signer=CertFiles(),
        **cidrs("10.1.4.0/24", "203.0.113.0/24"),
    )
    assert len(problems(ALPHA, bad, "127.0.0.0/8")) == 8


@pytest.mark.parametrize(
    ("prefix", "says"),
    [
        ("203.0.113.0/24", []),
        ("0.0.0.0/0", ["holds every address"]),
        ("127.0.0.0/16", ["overlaps 127.0.0.0/8, where no cluster has pods"]),
        ("10.1.9.0/24", []),  # both read each other, and alpha's pods are there
    ],
)
def test_a_prefix_that_never_holds_anybodys_pods_is_not_allowed(prefix: str, says: list[str]) -> None:
    found = [str(problem) for problem in problems(ALPHA, BETA, prefix)]
    assert [part in problem for part, problem in zip(says, found, strict=True)] == [True] * len(says)


def test_the_readers_own_prefix_is_not_allowed_to_another() -> None:
    prefix = parse_prefix("10.1.9.0/24")
    links = [link(ALPHA, BETA, BETA.entrance or Entrance((), 0), [prefix])]
    (problem,) = check_allowed(links, [prefix])
    assert "'10.1.9.0/24': is alpha's own, and no other's" in str(problem)


def test_what_was_allowed_once_is_allowed_from_then_on() -> None:
    beta = replace(BETA, **cidrs("203.0.113.0/24"))
    assert problems(ALPHA, beta, "203.0.113.0/24") == []
    wanted = link(ALPHA, beta, Entrance(("192.0.2.2",), 2379), [parse_prefix("203.0.113.0/24")])
    before = replace(ALPHA, peers=entries(wanted, credentials(wanted, NOW))[0])
    assert problems(before, beta) == []


@pytest.mark.parametrize(
    ("changed", "part"),
    [
        ({"cluster": Cluster(name="gamma", id=2)}, "is already the id of beta, which is connected to alpha"),
        ({"entrance": BETA.entrance}, "is already that of beta, which is connected to alpha"),
    ],
)
def test_a_newcomer_is_not_taken_for_who_is_connected_already(changed: dict[str, object], part: str) -> None:
    found = problems(joined(ALPHA, BETA), replace(member("gamma", 3), **changed))
    assert [part in str(problem) for problem in found] == [True]
    assert "clustermesh disconnect --context ctx-alpha --peer beta" in str(found[0])


def test_credentials_last_until_they_are_due_and_then_are_issued_anew() -> None:
    assert BETA.entrance is not None
    alpha = joined(ALPHA, BETA)
    first = credentials(link(alpha, BETA, BETA.entrance, ()), NOW + timedelta(days=300))
    assert first == {name: alpha.peers[name] for name in first}
    later = credentials(link(alpha, BETA, BETA.entrance, ()), NOW + timedelta(days=340))
    assert later["beta.etcd-client.crt"] != first["beta.etcd-client.crt"]
    assert later["beta.etcd-client-ca.crt"] == first["beta.etcd-client-ca.crt"]


@pytest.mark.parametrize(("mirrored", "secret"), [(False, "cilium-clustermesh"), (True, "cilium-kvstoremesh")])
def test_what_a_secret_has_no_room_for_is_said_before_anything_is_written(mirrored: bool, secret: str) -> None:
    held = {**joined(ALPHA, member("gamma", 3)).peers, "gone.etcd-client-ca.crt": b"x" * 1_014_000}
    full = {"copied" if mirrored else "peers": held}
    alpha = replace(ALPHA, mirrored=mirrored, **full)
    (problem,) = problems(alpha, BETA)
    assert f"Secret {secret} of alpha has no room for beta: 101" in str(problem)
    for part in (
        " bytes: must be at most 1015808",
        "it has 1 connected clusters",
        "gone.etcd-client-ca.crt, 1014000 bytes",
        "disconnect those that are no longer used",
    ):
        assert part in str(problem)
    little = {key: {**value, "gone.etcd-client-ca.crt": b"x" * 1_000_000} for key, value in full.items()}
    assert problems(replace(alpha, **little), BETA) == []


def test_what_is_in_a_full_secret_already_may_stay_and_become_less() -> None:
    alpha = joined(ALPHA, BETA)
    alpha = replace(alpha, peers={**alpha.peers, "other": b"x" * (1 << 20)})
    assert problems(alpha, BETA) == []
    changed = {**alpha.peers, "other": b"x" * 1_030_000, "beta.etcd-client.crt": b"x"}  # what is renewed may be longer
    assert problems(replace(alpha, peers=changed), BETA) == []
    large = {**alpha.peers, "beta.etcd-client-ca.crt": alpha.peers["beta.etcd-client-ca.crt"] + b"# padding" * 10_000}
    assert problems(replace(alpha, peers=large), BETA) == []


def test_those_that_find_room_one_by_one_may_find_none_together() -> None:
    links = [link(ALPHA, each, each.entrance or Entrance((), 0), ()) for each in (BETA, member("gamma", 3))]
    added = sum(len(value) for value in entries(links[0], credentials(links[0], NOW))[0].values())
    alpha = replace(ALPHA, peers={"old": b"x" * ((1 << 20) - (32 << 10) - 2 * added + 100)})
    links = [replace(each, reader=alpha) for each in links]
    assert find_problems([alpha, links[0].owner], links[:1], NOW) == []
    (problem,) = find_problems([alpha, *(each.owner for each in links)], links, NOW)
    assert "has no room for gamma" in str(problem)


def test_of_many_prefixes_that_are_refused_the_first_are_named() -> None:
    many = [f"203.0.{n >> 4}.{(n & 15) << 4}/28" for n in range(3_000)]
    found = [str(problem) for problem in problems(ALPHA, replace(BETA, **cidrs(*many)))]
    assert len(found) == 11
    assert "2990 more pod CIDRs of beta would be refused by alpha" in found[-1]


def test_one_authority_for_both_takes_no_credentials_of_their_own() -> None:
    alpha, beta = member("alpha", 1, "shared"), member("beta", 2, "shared", signer=CertFiles())
    assert problems(alpha, beta) == []
    assert BETA.entrance is not None
    assert credentials(link(alpha, beta, BETA.entrance, ()), NOW) == {}


def test_an_entry_that_nobody_understands_is_no_cluster() -> None:
    alpha = replace(ALPHA, peers={"junk": b"endpoints: 7", "beta.etcd-client.key": b"x", "other": b"no mark"})
    assert known_peers(alpha.entries) == {}
    assert problems(alpha, BETA) == []


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        (Mode.UNICAST, {"ab", "ac"}),
        (Mode.BIDIRECTIONAL, {"ab", "ba", "ac", "ca"}),
        (Mode.MESH, {"ab", "ba", "ac", "ca", "bc", "cb"}),
    ],
)
def test_the_mode_says_who_reads_whom(mode: Mode, expected: set[str]) -> None:
    found = pairs(ALPHA, [BETA, member("gamma", 3)], mode)
    assert {reader.name[0].replace("g", "c") + owner.name[0].replace("g", "c") for reader, owner in found} == expected


def test_addresses_are_reached_by_the_clusters_name_in_the_mesh_and_names_as_they_are() -> None:
    both = Entrance(("192.0.2.7", "fd00::7", "etcd.example"), 32379)
    assert both.endpoints("beta") == ("https://etcd.example:32379", "https://beta.mesh.cilium.io:32379")
    assert both.aliases("beta") == {"beta.mesh.cilium.io": ("192.0.2.7", "fd00::7")}
    assert str(both) == "192.0.2.7:32379, [fd00::7]:32379, etcd.example:32379"


@pytest.mark.parametrize(
    ("client", "server", "says"),
    [
        ("0.1.0", "v0.2.9", ""),
        ("0.1.0", "v0.3.0", "upgrade this command"),
        ("0.3.0", "0.1.0", "upgrade deployment/x of alpha"),
        ("1.0.0", "0.9.0", "upgrade deployment/x of alpha"),
        ("0.1.0", "built-by-hand", ""),
    ],
)
def test_versions_too_far_apart_are_said_with_which_to_upgrade(client: str, server: str, says: str) -> None:
    told = list(
        skews(client, {"alpha": {"deployment/x": Version("clustermesh", server), "c": Version("cilium", "1.18.4")}})
    )
    assert len(told) == bool(says)
    assert says in "".join(told)


@pytest.mark.parametrize(
    ("client", "server", "ahead"),
    [
        ("0.1.0", "v0.3.7", 2),
        ("0.3.0", "0.1.0", -2),
        ("0.1.0", "0.1.9", 0),
        ("1.0.0", "0.9.0", None),
        ("0.1", "x", None),
    ],
)
def test_it_is_told_by_how_many_minor_versions_a_server_is_ahead(client: str, server: str, ahead: int | None) -> None:
    assert apart(Version("clustermesh", client), Version("clustermesh", server)) == ahead
    assert apart(Version("clustermesh", client), Version("cilium", server)) is None
