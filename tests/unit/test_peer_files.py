"""The peers folder: Cilium's rules for what counts as a cluster, and files of every kind of wrong."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from clustermesh.address import parse_prefix
from clustermesh.errors import Invalid, Unavailable
from clustermesh.mesh.authority import Limits
from clustermesh.mesh.peer_files import MARK, PeerFile, encode_peer, parse_peer, read_peers
from clustermesh.store.login import Login
from clustermesh.store.tls import Tls

# What Cilium's chart writes, with the paths of its container.
CILIUM = """endpoints:
- https://east.mesh.cilium.io:2379
trusted-ca-file: {d}/common-etcd-client-ca.crt
key-file: {d}/common-etcd-client.key
cert-file: {d}/common-etcd-client.crt
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for ending in ("-ca.crt", ".crt", ".key"):
        (tmp_path / f"common-etcd-client{ending}").write_bytes(f"PEM {ending}".encode())
    (tmp_path / "east").write_text(CILIUM.format(d=tmp_path))
    return tmp_path


def _only_problem(folder: Path) -> str:
    (problem,) = read_peers(folder, "own").problems
    return str(problem)


def test_what_cilium_writes_is_a_peer(folder: Path) -> None:
    peers, problems = read_peers(folder, "own")
    assert problems == []
    east = peers["east"]
    assert east.endpoints == ("https://east.mesh.cilium.io:2379",)
    assert (east.ca, east.cert, east.key) == tuple(
        folder / f"common-etcd-client{e}" for e in ("-ca.crt", ".crt", ".key")
    )


def test_prefixes_that_the_operator_allows_are_kept(folder: Path) -> None:
    named = (parse_prefix("203.0.113.0/24"), parse_prefix("2001:db8::/40"))
    peer = PeerFile(name="east", endpoints=("http://192.0.2.1:2379",), allowed=named)
    assert parse_peer("east", encode_peer(peer), folder) == peer
    assert "clustermesh-allow-prefixes:\n- 203.0.113.0/24\n- 2001:db8::/40\n" in encode_peer(peer).decode()


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("203.0.113.0/24", "clustermesh-allow-prefixes: '203.0.113.0/24': must be a list of prefixes"),
        ("[203.0.113.1/24]", "clustermesh-allow-prefixes[0]: '203.0.113.1/24': must be a network"),
        ("[10.0.0.0/8, all]", "clustermesh-allow-prefixes[1]: 'all': must be an IPv4 or IPv6 address"),
        ("[10]", "clustermesh-allow-prefixes[0]"),
    ],
)
def test_prefixes_that_are_none_are_said_by_place_and_rule(folder: Path, written: str, said: str) -> None:
    (folder / "east").write_text(CILIUM.format(d=folder) + f"clustermesh-allow-prefixes: {written}\n")
    assert said in _only_problem(folder)


def test_limits_that_the_operator_changed_are_kept_and_the_others_are_the_usual_ones(folder: Path) -> None:
    (folder / "east").write_text(CILIUM.format(d=folder) + "clustermesh-limits: {nodes: 7, value-bytes: 9}\n")
    limits = read_peers(folder, "own").peers["east"].limits
    assert (limits.keys["nodes"], limits.value_bytes) == (7, 9)
    assert (limits.keys["services"], limits.service_backends) == (Limits().keys["services"], Limits().service_backends)
    peer = PeerFile(name="east", endpoints=("http://192.0.2.1:2379",), limits=limits)
    assert parse_peer("east", encode_peer(peer), folder) == peer
    assert "clustermesh-limits:\n  nodes: 7\n  value-bytes: 9\n" in encode_peer(peer).decode()


@pytest.mark.parametrize("written", ["7", "{pods: 7}", "{nodes: 0}", "{nodes: -1}", "{nodes: many}", "{1: 1}"])
def test_a_limit_that_is_none_is_said(folder: Path, written: str) -> None:
    (folder / "east").write_text(CILIUM.format(d=folder) + f"clustermesh-limits: {written}\n")
    assert "clustermesh-limits" in _only_problem(folder)


def test_only_files_that_contain_the_mark_count(folder: Path) -> None:
    (folder / "notes.txt").write_text("endpoint: https://x:1")
    (folder / "sub").mkdir()
    (folder / "sub" / "west").write_text(CILIUM)
    (folder / "..data").write_text(CILIUM)
    (folder / ".west.clustermesh-tmp").write_text(CILIUM)
    assert list(read_peers(folder, "own").peers) == ["east"]
    assert read_peers(folder, "own").problems == []


@pytest.mark.parametrize("written", ["", "\n", "trusted-ca-file: x\n", "endpoint"])
def test_a_file_that_is_called_like_a_cluster_and_says_nothing_is_a_problem(folder: Path, written: str) -> None:
    (folder / "east").write_text(written)
    found = read_peers(folder, "own")
    assert (found.peers, [problem.name for problem in found.problems]) == ({}, ["east"])
    assert "remove the file to disconnect the cluster" in _only_problem(folder)


def test_own_name_is_ignored_whatever_its_file_holds(folder: Path) -> None:
    (folder / "own").write_text("endpoints: [")
    assert read_peers(folder, "own").problems == []
    assert read_peers(folder, "east").peers == {}


def test_secret_volume_of_links_into_a_swapped_folder_is_followed(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    volume = tmp_path_factory.mktemp("volume")
    for version in ("v1", "v2"):
        (volume / version).mkdir()
        (volume / version / "east").write_text(CILIUM.format(d=folder) + f"# {version}\n")
    (volume / "..data").symlink_to("v1")
    (volume / "east").symlink_to("..data/east")
    before = read_peers(volume, "own").peers["east"]
    (volume / "..next").symlink_to("v2")
    os.replace(volume / "..next", volume / "..data")
    after = read_peers(volume, "own").peers["east"]
    assert before.digest != after.digest
    assert before.endpoints == after.endpoints


@pytest.mark.parametrize(
    "changed", ["east", "common-etcd-client-ca.crt", "common-etcd-client.crt", "common-etcd-client.key"]
)
def test_digest_changes_with_the_file_and_with_each_credential(folder: Path, changed: str) -> None:
    before = read_peers(folder, "own").peers["east"].digest
    assert read_peers(folder, "own").peers["east"].digest == before
    (folder / changed).write_bytes((folder / changed).read_bytes() + b"\n")
    assert read_peers(folder, "own").peers["east"].digest != before


def test_credentials_that_swap_contents_are_a_change(folder: Path) -> None:
    before = read_peers(folder, "own").peers["east"].digest
    crt, key = folder / "common-etcd-client.crt", folder / "common-etcd-client.key"
    old = crt.read_bytes()
    crt.write_bytes(key.read_bytes())
    key.write_bytes(old)
    assert read_peers(folder, "own").peers["east"].digest != before


def test_byte_that_moves_from_one_credential_to_the_next_is_a_change(folder: Path) -> None:
    crt, key = folder / "common-etcd-client.crt", folder / "common-etcd-client.key"
    crt.write_bytes(b"AB")
    key.write_bytes(b"C")
    before = read_peers(folder, "own").peers["east"].digest
    crt.write_bytes(b"A")
    key.write_bytes(b"BC")
    assert read_peers(folder, "own").peers["east"].digest != before


def test_which_credential_is_missing_makes_a_difference(folder: Path) -> None:
    crt, key = folder / "common-etcd-client.crt", folder / "common-etcd-client.key"
    crt.write_bytes(key.read_bytes())
    key.rename(folder / "away")
    before = read_peers(folder, "own").peers["east"].digest
    crt.rename(key)
    assert read_peers(folder, "own").peers["east"].digest != before


def test_missing_credential_is_a_problem_but_the_peer_is_not_gone(folder: Path) -> None:
    key = (folder / "common-etcd-client.key").read_bytes()
    whole = read_peers(folder, "own").peers["east"].digest
    (folder / "common-etcd-client.key").unlink()
    peers, problems = read_peers(folder, "own")
    assert peers["east"].digest != whole
    assert [p.name for p in problems] == ["east"]
    assert "common-etcd-client.key: No such file" in str(problems[0])
    (folder / "common-etcd-client.key").write_bytes(key)
    assert read_peers(folder, "own").peers["east"].digest == whole


def test_missing_folder_is_not_taken_for_no_peers(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="No such file"):
        read_peers(tmp_path / "gone", "own")


@pytest.mark.parametrize(
    "aliases",
    [
        "{east.mesh.cilium.io: {ips: [192.0.2.7, 'fd00::0:1']}}",
        "[{hostname: EAST.mesh.cilium.io, ips: [192.0.2.7, 'fd00::0:1']}]",
    ],
    ids=["mapping", "list"],
)
def test_both_shapes_of_host_aliases_say_the_same(folder: Path, aliases: str) -> None:
    with (folder / "east").open("a") as file:
        file.write(f"cilium-host-aliases: {aliases}\n")
    peers, problems = read_peers(folder, "own")
    assert problems == []
    assert peers["east"].host_aliases == {"east.mesh.cilium.io": ("192.0.2.7", "fd00::1")}


def test_unknown_keys_are_let_be_as_cilium_does(folder: Path) -> None:
    with (folder / "east").open("a") as file:
        file.write("auto-sync-interval: 1m\n")
    assert read_peers(folder, "own").problems == []


def test_relative_credential_is_beside_the_file(folder: Path) -> None:
    (folder / "east").write_text(CILIUM.format(d="."))
    assert read_peers(folder, "own").problems == []


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("endpoints:", "at least one URL"),
        ("endpoints: []", "at least one URL"),
        ("endpoints: https://x:1", "at least one URL"),
        ("endpoints: [1]", r"endpoints\[0\]"),
        ("endpoints: ['ftp://x']", "http"),
        ("endpoints: ['https://x:1']", "trusted-ca-file: None: must be given"),
        ("endpoints: ['https://x:1']\ntrusted-ca-file: a\ncert-file: b", "key-file: None: must be given"),
        ("endpoints: ['https://x:1']\ntrusted-ca-file: a\ncert-file: b\nkey-file: [c]", "key-file"),
        ("endpoints: [", "must be YAML"),
        ("- endpoints:", "must be a mapping"),
        ("endpoints: ['http://x:1']\ncilium-host-aliases: 3", "cilium-host-aliases"),
        ("endpoints: ['http://x:1']\ncilium-host-aliases: {x: {ips: [300.1.1.1]}}", "must be IP addresses"),
        ("endpoints: ['http://x:1']\ncilium-host-aliases: [{ips: [10.0.0.1]}]", "hostname"),
        ("endpoints: ['http://x:1']\nclustermesh-id: 0", "cluster id"),
        ("endpoints: ['http://x:1']\n---\nendpoints: []", "one YAML document"),
    ],
)
def test_wrong_file_is_a_problem_that_says_why(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "west").write_text(text)
    assert "west" not in read_peers(tmp_path, "own").peers
    with pytest.raises(AssertionError, match=says):
        raise AssertionError(_only_problem(tmp_path))


def test_plain_http_takes_no_credentials(tmp_path: Path) -> None:
    (tmp_path / "west").write_text("endpoints: ['http://127.0.0.1:2379']")
    assert read_peers(tmp_path, "own").peers["west"].ca is None


def test_file_with_a_name_that_is_no_cluster_is_a_problem(tmp_path: Path) -> None:
    for name in ("East", "a.b", "x" * 33, "default", os.fsdecode(b"\xff")):
        (tmp_path / name).write_text("endpoints: ['http://x:1']")
    peers, problems = read_peers(tmp_path, "own")
    assert peers == {}
    assert len(problems) == 5
    assert all(str(p).isascii() for p in problems)


def test_pipe_socket_and_dead_link_are_problems_or_nothing_but_never_a_wait(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    (folder / "dead").symlink_to("nowhere")
    (folder / "loop").symlink_to("loop")
    (folder / "large").write_bytes(b"endpoints:" + b" " * 2_000_000)
    peers, problems = read_peers(folder, "own")
    assert list(peers) == ["east"]
    assert sorted(p.name for p in problems) == ["dead", "large", "loop", "pipe"]


PEERS = st.builds(
    PeerFile,
    name=st.just("west"),
    endpoints=st.lists(
        st.sampled_from(["https://a.example:1", "http://10.0.0.1:2379", "https://[fd00::1]:2"]), min_size=1
    ).map(tuple),
    ca=st.just(Path("/x/ca.crt")),
    cert=st.just(Path("/x/y: z.crt")),
    key=st.just(Path("/x/'k'.key")),
    host_aliases=st.dictionaries(st.sampled_from(["a.example", "yes"]), st.just(("10.0.0.1", "fd00::1"))),
    cluster_id=st.none() | st.integers(1, 511),
    context=st.none() | st.just(Path("/srv/[beta] #1")),
)


@given(PEERS)
def test_written_peer_is_read_as_it_was_and_counts_as_one(peer: PeerFile) -> None:
    data = encode_peer(peer)
    assert MARK in data
    assert parse_peer("west", data, Path("/elsewhere")) == peer


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.dates(),
    lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=5) | st.integers(), v, max_size=3),
    max_leaves=8,
)
KEYS = [
    "endpoints",
    "trusted-ca-file",
    "cert-file",
    "key-file",
    "cilium-host-aliases",
    "clustermesh-id",
    "clustermesh-context",
]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(garbage=st.binary(max_size=120))
@example(b"\n!!timestamp x")
@example(b" !!int ''")
@example(b"\n<<: 3")
@example(b"\n? [a]\n: b")
@example(b"\na: *a")
def test_garbage_is_a_problem_and_leaves_the_others_alone(folder: Path, garbage: bytes) -> None:
    (folder / "west").write_bytes(MARK + garbage)
    peers, problems = read_peers(folder, "own")
    assert "east" in peers
    assert {p.name for p in problems} | peers.keys() == {"east", "west"}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(
    document=st.fixed_dictionaries(
        {"endpoints": VALUES | st.just(["https://x:1"])}, optional=dict.fromkeys(KEYS[1:], VALUES)
    )
)
def test_right_keys_with_wrong_values_are_problems(folder: Path, document: dict[str, object]) -> None:
    (folder / "west").write_text(yaml.safe_dump(document))
    peers, problems = read_peers(folder, "own")
    assert "east" in peers
    assert {p.name for p in problems} | peers.keys() == {"east", "west"}


def test_who_has_a_password_may_leave_the_certificate_out(tmp_path: Path) -> None:
    login = Login("remote-alpha", "secret")
    peer = PeerFile(name="east", endpoints=("https://192.0.2.1:2379",), ca=tmp_path / "ca.crt", login=login)
    assert parse_peer("east", encode_peer(peer), tmp_path) == peer
    assert peer.tls == Tls(tmp_path / "ca.crt")
    assert "secret" not in repr(peer)


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("username: a", "password: None: must be a text, given with the other of username, password"),
        ("password: pass", "username: None: must be a text"),
        ("username: a\npassword: 12345", "password: 'hidden': must be a text"),
        ("username: ''\npassword: pass", "username: '': must be a text"),
        ("username: a\npassword: pass\ncert-file: c", "trusted-ca-file: None: must be given"),
    ],
)
def test_a_login_that_is_none_is_said_without_the_password(written: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(Invalid) as refused:
        parse_peer("east", f"endpoints: ['https://192.0.2.1:2379']\n{written}\n".encode(), tmp_path)
    assert said in str(refused.value)
    assert "12345" not in str(refused.value)


def test_a_file_that_cannot_even_be_looked_at_is_a_problem_of_that_file_alone(folder: Path) -> None:
    (folder / "west").symlink_to("x" * 300)  # as on a file system that answers with an error, whoever asks
    peers, problems = read_peers(folder, "own")
    assert list(peers) == ["east"]
    assert [problem.name for problem in problems] == ["west"]


def test_a_file_whose_name_is_no_utf8_is_a_problem_that_can_be_written(folder: Path) -> None:
    Path(os.fsdecode(os.fsencode(folder) + b"/we\xffst")).symlink_to("x" * 300)
    assert "we\\udcffst" in _only_problem(folder).encode().decode()


@pytest.mark.parametrize(
    "written",
    [
        "[https://u:SECRET@127.0.0.1:1]",
        "[https://u:pa/SECRET@127.0.0.1:1]",
        "https://u:SECRET@127.0.0.1:1",
        "{a: https://u:SECRET@127.0.0.1:1}",
    ],
)
def test_a_password_in_an_endpoint_is_not_told(folder: Path, written: str) -> None:
    (folder / "east").write_text(f"endpoints: {written}\n")
    said = _only_problem(folder)
    assert "endpoint" in said
    assert "SECRET" not in said
