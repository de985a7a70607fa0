"""Connecting clusters and taking them apart: what is refused before anything is touched, and what a kill leaves."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from certs.check import check_leaf, facts, read_certificates
from certs.folder import initialise, load_authority, trusted
from certs.issue import Pair
from certs.names import cluster_leaves
from certs.pair import load_pair
from clustermesh.address import parse_prefix
from clustermesh.errors import ClusterMeshError, Invalid, Refused, Unavailable
from clustermesh.mesh.peer_files import read_peers
from clustermesh.standalone import connect as connecting
from clustermesh.standalone.connect import Mode, connect, disconnect, find_destination, find_peer
from clustermesh.standalone.connections import list_connections
from clustermesh.standalone.context import Context, create, load
from clustermesh.standalone.users_file import read_users

NOW = datetime(2026, 6, 1, tzinfo=UTC)
BOTH, ONE = Mode.BIDIRECTIONAL, Mode.UNICAST
States = Callable[[Path, Callable[[], object]], Iterator[int]]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def _cluster(
    home: Path,
    name: str,
    cluster_id: int,
    *,
    cidr: str | None = None,
    limit: int = 255,
    authority: Pair | None = None,
) -> Context:
    context = create(home / name, name, cluster_id, f"https://172.20.{cluster_id}.1:2379", limit)
    initialise(context.certs, cluster_leaves(name, [context.address.host]), NOW, authority=authority)
    node = f"kind: Node\nmetadata: {{name: {name}-1}}\nspec: {{podCIDR: {cidr or f'10.{cluster_id}.0.0/16'}}}\n"
    (context.manifests / "nodes.yaml").write_text(node)
    return context


@pytest.fixture
def alpha(home: Path) -> Context:
    return _cluster(home, "alpha", 1)


@pytest.fixture
def beta(home: Path) -> Context:
    return _cluster(home, "beta", 2)


def _files(context: Context) -> dict[str, bytes]:
    return {str(p.relative_to(context.path)): p.read_bytes() for p in context.path.rglob("*") if p.is_file()}


def _inodes(context: Context) -> dict[str, int]:
    return {str(p): p.stat().st_ino for p in context.path.rglob("*")}


def _assert_reads(reader: Context, owner: Context, now: datetime = NOW) -> None:
    """All that "reader reads owner" takes is there, fits together, and would survive a handshake."""
    peers, problems = read_peers(reader.peers, reader.name)
    assert problems == []
    peer = peers[owner.name]
    assert peer.endpoints == (owner.endpoint,)
    assert peer.ca is not None
    assert peer.cert is not None
    assert read_certificates(peer.ca.read_bytes(), "ca") == trusted(owner.certs)
    shown = load_pair(reader.peers, f"{owner.name}.etcd-client").certificate
    check_leaf(shown, trusted(owner.certs), now, "shown")
    assert facts(shown).common_name == f"remote-{reader.name}"
    assert f"remote-{reader.name}" in [u.name for u in read_users(owner.users_file)]


def _assert_apart(one: Context, other: Context) -> None:
    for here, there in ((one, other), (other, one)):
        assert os.listdir(here.peers) == []
        assert f"remote-{there.name}" not in [u.name for u in read_users(here.users_file)]


def test_connected_both_ways_each_reads_the_other(alpha: Context, beta: Context) -> None:
    outcome = connect(alpha, beta, BOTH, NOW)
    _assert_reads(alpha, beta)
    _assert_reads(beta, alpha)
    assert outcome.warnings == []
    assert [(c.name, c.reads, c.read_by, c.problem) for c in list_connections(alpha, NOW)] == [("beta", True, True, "")]


def test_unicast_lets_only_the_source_read(alpha: Context, beta: Context) -> None:
    (warning,) = connect(alpha, beta, ONE, NOW).warnings
    assert warning.startswith("beta does not read alpha: ")
    _assert_reads(alpha, beta)
    assert read_peers(beta.peers, "beta").peers == {}
    assert read_users(alpha.users_file) == ()
    assert [(c.name, c.reads, c.read_by) for c in list_connections(beta, NOW)] == [("alpha", False, True)]


def test_private_keys_stay_private(alpha: Context, beta: Context) -> None:
    connect(alpha, beta, BOTH, NOW)
    assert {p.stat().st_mode & 0o777 for p in alpha.peers.iterdir()} == {0o600}
    assert alpha.peers.stat().st_mode & 0o777 == 0o700


def test_second_run_touches_no_file(alpha: Context, beta: Context) -> None:
    connect(alpha, beta, BOTH, NOW)
    before = _inodes(alpha) | _inodes(beta)
    assert connect(alpha, beta, BOTH, NOW).done == []
    assert connect(beta, alpha, BOTH, NOW).done == []
    assert _inodes(alpha) | _inodes(beta) == before


def test_killed_at_any_step_a_peer_is_never_without_credentials_and_a_second_run_completes(
    home: Path, alpha: Context, beta: Context, killed_at_every_step: States
) -> None:
    count = 0
    for _ in killed_at_every_step(home, lambda: connect(alpha, beta, BOTH, NOW)):
        for reader, owner in ((alpha, beta), (beta, alpha)):
            if read_peers(reader.peers, reader.name).peers:
                _assert_reads(reader, owner)
        connect(alpha, beta, BOTH, NOW)
        _assert_reads(alpha, beta)
        _assert_reads(beta, alpha)
        assert len(os.listdir(alpha.peers)) == len(os.listdir(beta.peers)) == 4
        count += 1
    assert count > 20


def test_killed_while_credentials_are_renewed_the_peer_keeps_working(
    home: Path, alpha: Context, beta: Context, killed_at_every_step: States
) -> None:
    connect(alpha, beta, BOTH, NOW)
    later = NOW + timedelta(days=340)
    for _ in killed_at_every_step(home, lambda: connect(alpha, beta, BOTH, later)):
        _assert_reads(alpha, beta, later)
        connect(alpha, beta, BOTH, later)
        assert load_pair(alpha.peers, "beta.etcd-client").certificate.not_valid_after_utc > later + timedelta(days=300)


def test_killed_while_taken_apart_a_second_run_completes(
    home: Path, alpha: Context, beta: Context, killed_at_every_step: States
) -> None:
    connect(alpha, beta, BOTH, NOW)
    for _ in killed_at_every_step(home, lambda: disconnect(alpha, "beta", beta, BOTH)):
        for reader, owner in ((alpha, beta), (beta, alpha)):
            if peer := read_peers(reader.peers, reader.name).peers.get(owner.name):
                assert peer.cert is not None
                assert peer.cert.exists(), "the file that makes a peer goes before its credentials"
        disconnect(alpha, "beta", beta, BOTH)
        _assert_apart(alpha, beta)


def test_killed_while_one_of_several_with_one_authority_is_taken_out_a_second_run_completes(
    home: Path, alpha: Context, killed_at_every_step: States
) -> None:
    shared = load_authority(alpha.certs, NOW)
    beta, gamma = (_cluster(home, name, i, authority=shared) for name, i in (("beta", 2), ("gamma", 3)))
    connect(alpha, beta, BOTH, NOW)
    connect(alpha, gamma, BOTH, NOW)
    for _ in killed_at_every_step(home, lambda: disconnect(alpha, "beta", beta, BOTH)):
        disconnect(alpha, *find_destination(alpha, beta.path), BOTH)
        assert os.listdir(beta.peers) == []
        assert read_users(beta.users_file) == ()
        _assert_reads(alpha, gamma)
        _assert_reads(gamma, alpha)
        assert list(read_peers(alpha.peers, "alpha").peers) == ["gamma"]


@pytest.mark.parametrize("broken", ["beta", "beta.etcd-client.crt", "beta.etcd-client.key", "beta.etcd-client-ca.crt"])
@pytest.mark.parametrize("how", ["garbage", "gone"])
def test_second_run_repairs_what_was_damaged(alpha: Context, beta: Context, broken: str, how: str) -> None:
    connect(alpha, beta, BOTH, NOW)
    if how == "gone":
        (alpha.peers / broken).unlink()
    else:
        (alpha.peers / broken).write_bytes(b"endpoints: [")
    connect(alpha, beta, BOTH, NOW)
    _assert_reads(alpha, beta)


def test_changed_authority_reaches_the_peer_by_a_second_run(alpha: Context, beta: Context) -> None:
    connect(alpha, beta, BOTH, NOW)
    for path in list(beta.certs.iterdir()):
        path.unlink()
    initialise(beta.certs, cluster_leaves("beta", [beta.address.host]), NOW)
    (connection,) = list_connections(alpha, NOW)
    assert connection.problem == "", "alpha cannot know yet"
    connect(alpha, beta, BOTH, NOW)
    _assert_reads(alpha, beta)
    _assert_reads(beta, alpha)


def _refused(home: Path, source: Context, destination: Context, mode: Mode = BOTH) -> ClusterMeshError:
    """The error; asserts that nothing was touched."""
    before = {str(p): p.stat().st_ino for p in home.rglob("*")}
    with pytest.raises(ClusterMeshError) as caught:
        connect(source, destination, mode, NOW)
    assert {str(p): p.stat().st_ino for p in home.rglob("*")} == before
    return caught.value


def test_cluster_is_not_connected_to_itself(home: Path, alpha: Context) -> None:
    assert "own folder" in str(_refused(home, alpha, alpha))


@pytest.mark.parametrize(
    ("other", "field", "value", "rule"),
    [
        (("alpha", 2, None, 255), "cluster name", "alpha", "names must differ"),
        (("beta", 1, None, 255), "cluster id", 1, "is the id of both alpha and beta"),
        (("beta", 2, None, 511), "maxConnectedClusters of beta", 511, "must be 255 as in alpha"),
        (
            ("beta", 2, "10.1.7.0/24", 255),
            "pod CIDR of node beta-1 in beta",
            "10.1.7.0/24",
            "overlaps 10.1.0.0/16 of node alpha-1 in alpha",
        ),
        (("beta", 2, "10.0.0.0/8", 255), "pod CIDR of node beta-1 in beta", "10.0.0.0/8", "must be apart"),
    ],
)
def test_clusters_that_cannot_be_in_one_mesh_are_refused_by_field_value_and_rule(
    home: Path, alpha: Context, other: tuple[str, int, str | None, int], field: str, value: object, rule: str
) -> None:
    name, cluster_id, cidr, limit = other
    error = _refused(home, alpha, _cluster(home / "other", name, cluster_id, cidr=cidr, limit=limit))
    assert isinstance(error, Invalid)
    assert (error.field, error.value) == (field, value)
    assert rule in error.rule


def test_two_clusters_at_one_endpoint_are_refused(home: Path, alpha: Context) -> None:
    error = _refused(home, alpha, replace(_cluster(home, "beta", 2), endpoint=alpha.endpoint))
    assert isinstance(error, Invalid)
    assert (error.field, error.value) == ("endpoint of beta", alpha.endpoint)
    assert "is that of alpha, too" in error.rule


@pytest.mark.parametrize("turned", [False, True])
def test_endpoint_of_a_third_cluster_is_refused_on_whichever_side_it_is(
    home: Path, alpha: Context, beta: Context, turned: bool
) -> None:
    connect(alpha, beta, BOTH, NOW)
    third = replace(_cluster(home, "gamma", 3), endpoint=beta.endpoint)
    error = _refused(home, *((third, alpha) if turned else (alpha, third)))
    assert "is that of beta, too, which is connected to alpha" in str(error)


@pytest.mark.parametrize("turned", [False, True])
def test_id_of_a_third_cluster_is_refused_on_whichever_side_it_is(
    home: Path, alpha: Context, beta: Context, turned: bool
) -> None:
    connect(alpha, beta, BOTH, NOW)
    third = _cluster(home, "gamma", 2, cidr="10.3.0.0/16")
    error = _refused(home, *((third, alpha) if turned else (alpha, third)))
    assert "is already the id of beta, which is connected to alpha" in str(error)


def test_id_of_a_third_cluster_is_known_even_when_its_folder_is_gone(home: Path, alpha: Context, beta: Context) -> None:
    connect(alpha, beta, BOTH, NOW)
    beta.path.rename(home / "moved")
    third = _cluster(home, "gamma", 2, cidr="10.3.0.0/16")
    assert "already the id of beta" in str(_refused(home, alpha, third))


@pytest.mark.parametrize(
    ("cidr", "rule"),
    [
        (
            "203.0.113.0/24",
            "is not in a private range: name it with `clustermesh connect --allow-prefix 203.0.113.0/24`",
        ),
        ("10.64.0.0/11", "is wider than a /12: name it with `clustermesh connect --allow-prefix 10.64.0.0/11`"),
        ("2001:db8::/64", "name it with `clustermesh connect --allow-prefix 2001:db8::/64`"),
        ("172.20.1.0/29", "holds 172.20.1.1, the etcd of alpha, which nobody could reach any more"),
        ("172.20.2.0/29", "holds 172.20.2.1, the etcd of beta"),
    ],
)
def test_pods_where_the_other_side_would_refuse_them_are_refused_with_the_flag_that_allows_them(
    home: Path, alpha: Context, cidr: str, rule: str
) -> None:
    beta = _cluster(home, "beta", 2, cidr=cidr)
    for error in (_refused(home, alpha, beta), _refused(home, beta, alpha)):
        assert isinstance(error, Invalid)
        assert (error.field, error.value) == ("pod CIDR of node beta-1 in beta", cidr)
        assert rule in error.rule


def test_what_was_allowed_is_noted_on_both_sides_and_stays_allowed(home: Path, alpha: Context) -> None:
    beta = _cluster(home, "beta", 2, cidr="203.0.113.0/24")
    named = parse_prefix("203.0.112.0/20")
    connect(alpha, beta, BOTH, NOW, [named])
    for reader, owner in ((alpha, "beta"), (beta, "alpha")):
        assert read_peers(reader.peers, reader.name).peers[owner].allowed == (named,)
    assert connect(alpha, beta, BOTH, NOW, [named]).done == []
    assert connect(alpha, beta, BOTH, NOW).done == []
    more = parse_prefix("2001:db8::/40")
    connect(alpha, beta, ONE, NOW, [more])
    assert read_peers(alpha.peers, "alpha").peers["beta"].allowed == (named, more)
    assert read_peers(beta.peers, "beta").peers["alpha"].allowed == (named,)


def test_pod_cidr_of_a_third_cluster_is_refused(home: Path, alpha: Context, beta: Context) -> None:
    connect(alpha, beta, BOTH, NOW)
    third = _cluster(home, "gamma", 3, cidr="10.2.7.0/24")
    assert "overlaps 10.2.0.0/16 of node beta-1 in beta, which is connected to alpha" in str(
        _refused(home, alpha, third)
    )
    assert "which is connected to alpha" in str(_refused(home, third, alpha))


def test_another_cluster_of_a_connected_name_is_refused_but_a_moved_one_is_the_same(
    home: Path, alpha: Context, beta: Context
) -> None:
    connect(alpha, beta, BOTH, NOW)
    impostor = _cluster(home / "elsewhere", "beta", 3)
    assert f"already connected to alpha from {beta.path}" in str(_refused(home, alpha, impostor))
    beta.path.rename(home / "moved")
    moved = replace(beta, path=home / "moved")
    connect(alpha, moved, BOTH, NOW)
    _assert_reads(alpha, moved)
    assert find_peer(alpha, "beta") == moved


def test_address_the_server_certificate_does_not_name_is_refused_with_the_repair(
    home: Path, alpha: Context, beta: Context
) -> None:
    error = _refused(home, alpha, replace(beta, endpoint="https://192.0.2.7:2379"))
    assert isinstance(error, Refused)
    assert "does not name 192.0.2.7" in str(error)
    assert f"clustermesh certs renew server --san 192.0.2.7 --context {beta.path}" in str(error)


@pytest.mark.parametrize("broken", ["ca.key", "ca.crt", "server.crt", "server.key"])
def test_broken_certificates_on_either_side_are_refused_before_anything_is_touched(
    home: Path, alpha: Context, beta: Context, broken: str
) -> None:
    (beta.certs / broken).write_bytes(b"\x00")
    assert str(beta.certs) in str(_refused(home, alpha, beta))
    assert str(beta.certs) in str(_refused(home, beta, alpha))


def test_expired_server_is_refused(home: Path, alpha: Context, beta: Context) -> None:
    with pytest.raises(Refused, match="expired on"):
        connect(alpha, beta, BOTH, NOW + timedelta(days=366))


def test_unreadable_neighbour_in_the_peers_folder_is_a_warning_only(alpha: Context, beta: Context) -> None:
    (alpha.peers / "gamma").write_text("endpoints: [")
    outcome = connect(alpha, beta, BOTH, NOW)
    assert [("gamma" in w) for w in outcome.warnings] == [True]
    assert read_peers(alpha.peers, "alpha").peers.keys() == {"beta"}


def test_file_system_that_is_full_is_one_clear_error(
    alpha: Context, beta: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, *_: object) -> None:
        raise OSError(28, "No space left on device", str(path))

    with monkeypatch.context() as patched:
        patched.setattr(connecting, "write_atomically", full)
        with pytest.raises(Unavailable, match="No space left on device"):
            connect(alpha, beta, BOTH, NOW)
    connect(alpha, beta, BOTH, NOW)
    _assert_reads(alpha, beta)


def test_taken_apart_nothing_is_left_and_again_is_fine(alpha: Context, beta: Context) -> None:
    connect(alpha, beta, BOTH, NOW)
    assert disconnect(alpha, "beta", beta, BOTH).warnings == []
    _assert_apart(alpha, beta)
    assert disconnect(alpha, "beta", beta, BOTH).done == []


def test_unicast_disconnect_leaves_the_way_back(alpha: Context, beta: Context) -> None:
    connect(alpha, beta, BOTH, NOW)
    disconnect(alpha, "beta", beta, ONE)
    assert os.listdir(alpha.peers) == []
    _assert_reads(beta, alpha)


def test_leaving_one_cluster_leaves_the_others_alone(home: Path, alpha: Context, beta: Context) -> None:
    gamma = _cluster(home, "gamma", 3)
    connect(alpha, beta, BOTH, NOW)
    connect(alpha, gamma, BOTH, NOW)
    disconnect(alpha, "beta", beta, BOTH)
    _assert_reads(alpha, gamma)
    _assert_reads(gamma, alpha)


def test_dead_cluster_is_left_by_name_or_by_where_it_was(home: Path, alpha: Context, beta: Context) -> None:
    connect(alpha, beta, BOTH, NOW)
    beta.path.rename(home / "gone")
    assert find_destination(alpha, home / "beta") == ("beta", None)
    assert find_peer(alpha, "beta") is None
    outcome = disconnect(alpha, "beta", None, BOTH)
    assert "nothing was changed in beta" in outcome.warnings[0]
    assert os.listdir(alpha.peers) == []
    assert read_users(alpha.users_file) == ()


def test_unknown_folder_names_the_connected_clusters(home: Path, alpha: Context, beta: Context) -> None:
    connect(alpha, beta, BOTH, NOW)
    with pytest.raises(Refused, match=r"--peer NAME \(connected: beta\)"):
        find_destination(alpha, home / "nowhere")


@pytest.mark.parametrize("changed", [{}, {"id": 7}, {"endpoint": "https://172.20.9.9:2379"}])
def test_a_cluster_that_has_another_name_by_now_is_not_left_by_half(
    alpha: Context, beta: Context, changed: dict[str, Any]
) -> None:
    connect(alpha, beta, BOTH, NOW)
    lines = {"name": "beta2", "id": 2, "endpoint": beta.endpoint} | changed
    (beta.path / "cluster.yaml").write_text("".join(f"{key}: {value}\n" for key, value in lines.items()))
    with pytest.raises(Refused) as refused:
        find_destination(alpha, beta.path)
    assert "alpha is connected to beta2 under its name of before, beta" in str(refused.value)
    assert f"`clustermesh disconnect --context {alpha.path} --peer beta`" in str(refused.value)
    disconnect(alpha, "beta", find_peer(alpha, "beta"), BOTH)
    name, renamed = find_destination(alpha, beta.path)
    disconnect(alpha, name, renamed, BOTH)
    _assert_apart(alpha, beta)


def test_a_cluster_where_another_one_was_is_not_taken_for_that_one(home: Path, alpha: Context, beta: Context) -> None:
    connect(alpha, beta, BOTH, NOW)
    beta.path.rename(home / "moved")
    _cluster(home, "gamma", 3).path.rename(beta.path)
    gamma = load(beta.path)
    connect(alpha, gamma, BOTH, NOW)
    for _ in range(2):
        disconnect(alpha, *find_destination(alpha, gamma.path), BOTH)
    assert list(read_peers(alpha.peers, "alpha").peers) == ["beta"]


@pytest.mark.parametrize("its_id", [2, 3])
def test_a_cluster_that_was_never_connected_is_no_other_one(
    home: Path, alpha: Context, beta: Context, its_id: int
) -> None:
    connect(alpha, beta, BOTH, NOW)
    gamma = _cluster(home, "gamma", its_id)
    assert find_destination(alpha, gamma.path) == ("gamma", gamma)


def test_broken_other_side_is_a_warning_and_the_own_side_is_done(alpha: Context, beta: Context) -> None:
    connect(alpha, beta, BOTH, NOW)
    beta.users_file.write_text("users: 3")
    outcome = disconnect(alpha, "beta", beta, BOTH)
    assert "must be a list" in outcome.warnings[0]
    assert os.listdir(alpha.peers) == []
    beta.users_file.write_text("users: [{name: remote-alpha, role: remote}]")
    assert disconnect(alpha, "beta", beta, BOTH).warnings == []
    _assert_apart(alpha, beta)


def test_connections_show_an_expired_and_a_foreign_credential(alpha: Context, beta: Context) -> None:
    connect(alpha, beta, BOTH, NOW)
    (connection,) = list_connections(alpha, NOW + timedelta(days=366))
    assert "expired on 2027-06-01" in connection.problem
    (alpha.peers / "beta.etcd-client-ca.crt").write_bytes(alpha.ca.read_bytes())
    (connection,) = list_connections(alpha, NOW)
    assert "another authority of the same name" in connection.problem
