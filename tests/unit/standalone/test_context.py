"""The folder that describes a cluster: what is accepted, what is refused, and how it says so."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clustermesh.errors import ClusterMeshError, Invalid, Refused, Unavailable
from clustermesh.standalone import context as contexts
from clustermesh.standalone.context import Context, create, load, locked, parse_address

GOOD = {"name": "alpha", "id": "1", "endpoint": "https://172.20.1.1:2379", "maxConnectedClusters": "255"}


# Each list holds the one before nine times: small to parse, gigabytes to print.
ALIAS_BOMB = (
    b"name: [&a [x]" + b"".join(b", &%c [%s]" % (c, b",".join([b"*%c" % (c - 1)] * 9)) for c in b"bcdefghijk") + b"]"
)
ALIAS_BOMB += b"\nid: 1\nendpoint: x"


def _write(folder: Path, **changed: str | None) -> Path:
    folder.mkdir(exist_ok=True)
    lines = [f"{key}: {value}" for key, value in (GOOD | changed).items() if value is not None]
    (folder / "cluster.yaml").write_text("\n".join(lines))
    return folder


def test_created_folder_loads_as_what_it_was_created_for(tmp_path: Path) -> None:
    created = create(tmp_path / "a", "alpha", 1, "https://172.20.1.1:2379")
    assert load(tmp_path / "a") == created
    assert (created.name, created.id, created.max_clusters) == ("alpha", 1, 255)
    assert (created.address.host, created.address.port) == ("172.20.1.1", 2379)
    assert created.certificate("server") == tmp_path / "a/certs/server.crt"
    assert (tmp_path / "a/cluster.yaml").read_text() == (
        "name: alpha\nid: 1\nendpoint: https://172.20.1.1:2379\nmaxConnectedClusters: 255\n"
    )


def test_folders_with_secrets_are_their_owners_only(tmp_path: Path) -> None:
    created = create(tmp_path / "a", "alpha", 1, "172.20.1.1")
    assert created.certs.stat().st_mode & 0o777 == 0o700
    assert created.peers.stat().st_mode & 0o777 == 0o700


def test_second_creation_changes_nothing_and_another_cluster_is_refused(tmp_path: Path) -> None:
    create(tmp_path, "alpha", 1, "172.20.1.1")
    (tmp_path / "users.yaml").write_text("users: [{name: remote-beta, role: remote}]")
    create(tmp_path, "alpha", 1, "https://172.20.1.1:2379")
    assert "remote-beta" in (tmp_path / "users.yaml").read_text()
    with pytest.raises(Refused, match="describes the cluster 'alpha' already"):
        create(tmp_path, "beta", 2, "172.20.1.1")
    assert load(tmp_path).name == "alpha"


@pytest.mark.parametrize("below", ["", "new", "new/newer"])
def test_where_a_file_is_in_the_way_of_a_folder_that_is_said(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Invalid) as refused:
        create(tmp_path / "file" / below, "alpha", 1, "127.0.0.1")
    assert refused.value.value == str(tmp_path / "file" / below)
    assert refused.value.rule == f"must be a folder, or a new one: {tmp_path / 'file'} is none; give another DIR"


def test_killed_creation_is_no_cluster_or_a_whole_one(
    tmp_path: Path, killed_at_every_step: Callable[[Path, Callable[[], object]], Iterator[int]]
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    for _ in killed_at_every_step(home, lambda: create(home / "a", "alpha", 1, "172.20.1.1")):
        if (home / "a/cluster.yaml").exists():
            found = load(home / "a")
            assert all(p.exists() for p in (found.manifests, found.certs, found.peers, found.users_file))
        assert create(home / "a", "alpha", 1, "172.20.1.1") == load(home / "a")


def test_relative_path_and_link_are_the_same_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create(tmp_path / "a", "alpha", 1, "172.20.1.1")
    (tmp_path / "link").symlink_to("a")
    monkeypatch.chdir(tmp_path)
    assert load(Path("a")) == load(tmp_path / "link") == load(tmp_path / "a")


@pytest.mark.parametrize(
    ("changed", "field", "rule"),
    [
        ({"name": "Alpha"}, "cluster name", "must be 1 to 32"),
        ({"name": "default"}, "cluster name", "not be 'default'"),
        ({"name": "no"}, "name", "put it in quotes"),
        ({"name": "2026-01-01"}, "name", "put it in quotes"),
        ({"name": None}, "name", "must be given"),
        ({"id": "0"}, "cluster id", "from 1 to 255"),
        ({"id": "256"}, "cluster id", "from 1 to 255"),
        ({"id": "512", "maxConnectedClusters": "511"}, "cluster id", "from 1 to 511"),
        ({"id": "'1'"}, "id", "whole number"),
        ({"id": "true"}, "id", "whole number"),
        ({"id": "1.0"}, "id", "whole number"),
        ({"maxConnectedClusters": "300"}, "maxConnectedClusters", "255 or 511"),
        ({"maxConnectedCluster": "255"}, "maxConnectedCluster", "unknown key"),
        ({"endpoint": "http://172.20.1.1:2379"}, "endpoint", "https"),
        ({"endpoint": "https://user@host:1"}, "endpoint", "HOST:PORT"),
        ({"endpoint": "https://host/path"}, "endpoint", "HOST:PORT"),
        ({"endpoint": "https://host:0"}, "endpoint", "must have a port from 1 to 65535"),
        ({"endpoint": "https://host:99999"}, "endpoint", "must have a port from 1 to 65535"),
        ({"endpoint": "https://[fd00::1]:65536/"}, "endpoint", "must have a port from 1 to 65535"),
        ({"endpoint": "https://host:" + "9" * 5000}, "endpoint", "must have a port from 1 to 65535"),
        ({"endpoint": "http://host:99"}, "endpoint", "must be https://HOST:PORT"),
        ({"endpoint": "https://ho st:1"}, "endpoint", "HOST:PORT"),
        ({"endpoint": "https://-x:1"}, "endpoint", "HOST:PORT"),
        ({"endpoint": "[a, b]"}, "endpoint", "must be text"),
        ({"id": "1\nid: 2"}, "cluster.yaml", "must be YAML"),
    ],
)
def test_broken_value_is_named_with_file_field_and_rule(
    tmp_path: Path, changed: dict[str, str | None], field: str, rule: str
) -> None:
    with pytest.raises(Invalid) as caught:
        load(_write(tmp_path / "a", **changed))
    assert str(tmp_path / "a/cluster.yaml") in caught.value.field
    assert caught.value.field.endswith(field)
    assert rule in caught.value.rule


@pytest.mark.parametrize(
    ("given_as", "host", "port"),
    [("172.20.1.1", "172.20.1.1", 2379), ("etcd.example:7", "etcd.example", 7), ("https://[fd00::1]:9", "fd00::1", 9)],
)
def test_scheme_and_port_may_be_left_out(given_as: str, host: str, port: int) -> None:
    address = parse_address(given_as)
    assert (address.host, address.port) == (host, port)
    assert parse_address(str(address)) == address


def test_absent_cluster_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match=r"no cluster here .* `clustermesh init"):
        load(tmp_path / "none")


def test_pipe_in_the_place_of_the_file_does_not_hold_the_reader(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "cluster.yaml")
    with pytest.raises(Invalid, match="must be a regular file"):
        load(tmp_path)


@pytest.mark.parametrize(
    "bomb",
    [
        b"[" * 100_000,
        b"- " * 100_000,
        ALIAS_BOMB,
        b"name: " + b"x" * 2_000_000,
        b"\xff\xfe\x00",
        b"id: " + b"9" * 5000,
    ],
    ids=["flow nesting", "block nesting", "alias bomb", "too long", "not text", "huge number"],
)
def test_hostile_file_is_refused_without_harm(tmp_path: Path, bomb: bytes) -> None:
    # In a process of its own: what libyaml does with deep nesting ends the process.
    (tmp_path / "cluster.yaml").write_bytes(bomb)
    program = (
        "import sys, pathlib, resource; resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))\n"
        "from clustermesh.standalone.context import load, Invalid\n"
        f"try: load(pathlib.Path({str(tmp_path)!r}))\n"
        "except Invalid as e: sys.exit(0 if len(str(e)) < 2000 else 3)"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=60, check=False).returncode == 0


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=300) | st.text(alphabet="name: id\n-[]{}&*!'\"#|>?0,\t", max_size=80).map(str.encode))
def test_garbage_raises_only_what_the_command_line_can_say(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "cluster.yaml").write_bytes(data)
    with pytest.raises(ClusterMeshError):
        load(tmp_path)


def _context(path: Path, name: str, cluster_id: int) -> Context:
    return create(path / name, name, cluster_id, "127.0.0.1")


def test_folder_in_use_is_waited_for_and_then_given_up_with_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alpha, beta = _context(tmp_path, "alpha", 1), _context(tmp_path, "beta", 2)
    monkeypatch.setattr(contexts, "LOCK_PATIENCE", 0.05)
    with locked(alpha), pytest.raises(Unavailable, match="another clustermesh command"), locked(beta, alpha):
        pass
    with locked(beta, alpha, alpha):
        pass
