"""What servers are told of their own cluster, in the words of Cilium's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest

from clustermesh.cli.own_cluster import USERS, listen_at, mirrored, settings_of, take_others
from clustermesh.errors import Invalid
from clustermesh.standalone.context import CHART_PEERS, create


def test_health_is_served_where_any_of_the_flags_says() -> None:
    def flags(port: int | None = None, metrics: str = "") -> dict[str, Any]:
        return {"health_port": port, "prometheus_serve_addr": metrics}

    assert listen_at(None, flags(), "127.0.0.1:9881") == ["127.0.0.1:9881"]
    assert listen_at("[::1]:1", flags(), "127.0.0.1:9881") == ["[::1]:1"]
    assert listen_at(None, flags(9881, ":9964"), "127.0.0.1:9881") == [":9881", ":9964"]
    assert listen_at(None, flags(9881, "127.0.0.1:9964"), "")[1] == "127.0.0.1:9964"
    with pytest.raises(Invalid, match="--health-port"):
        listen_at("127.0.0.1:1", flags(9881), "")


def test_the_agents_files_of_a_cluster_without_a_folder_are_made_by_others() -> None:
    flags = {"cluster_name": "alpha", "clustermesh_config": None, "agents_config": None}
    assert mirrored(Path("none"), flags) == (CHART_PEERS, None)
    with pytest.raises(Invalid, match="--agents-config"):
        mirrored(Path("none"), {**flags, "agents_config": Path("agents")})


@pytest.mark.parametrize(
    ("enabled", "named", "users"),
    [
        (None, None, None),
        (None, Path("u.yaml"), Path("u.yaml")),
        (True, None, USERS),
        (True, Path("u.yaml"), Path("u.yaml")),
        (False, Path("u.yaml"), None),
    ],
)
def test_etcds_users_are_looked_after_where_the_flags_say_so(
    tmp_path: Path, enabled: bool | None, named: Path | None, users: Path | None
) -> None:
    (tmp_path / "etcd.yaml").write_text("endpoints: [http://127.0.0.1:1]\n")
    flags = {"cluster_name": "alpha", "cluster_id": 1, "max_connected_clusters": 255}
    flags |= {"kvstore_opt": [f"etcd.config={tmp_path / 'etcd.yaml'}"]}
    flags |= {"cluster_users_enabled": enabled, "cluster_users_config_path": named}
    assert settings_of(Path("none"), flags).users_file == users


@pytest.mark.parametrize(
    ("name", "number", "most", "flag"),
    [
        ("Alpha", 1, 255, "--cluster-name: 'Alpha'"),
        ("alpha", 0, 255, "--cluster-id: 0"),
        ("alpha", 256, 255, "--cluster-id: 256"),
        ("alpha", 1, 7, "--max-connected-clusters: 7"),
    ],
)
def test_what_is_wrong_with_a_flags_value_is_said_with_the_flag(name: str, number: int, most: int, flag: str) -> None:
    flags = {"cluster_name": name, "cluster_id": number, "max_connected_clusters": most, "kvstore_opt": []}
    with pytest.raises(Invalid, match=flag):
        settings_of(Path("none"), flags)


_NOT_GIVEN: dict[str, Any] = {
    "cluster_name": None,
    "cluster_id": None,
    "max_connected_clusters": None,
    "kvstore_opt": (),
}


def test_flags_that_say_what_the_folder_says_are_taken(tmp_path: Path) -> None:
    alpha = create(tmp_path / "alpha", "alpha", 1, "127.0.0.1")
    said = {"cluster_id": 1, "max_connected_clusters": 255, "cluster_users_config_path": alpha.users_file}
    for flags in (_NOT_GIVEN, _NOT_GIVEN | said, _NOT_GIVEN | {"cluster_users_enabled": True}):
        assert settings_of(alpha.path, flags).cluster == alpha.cluster


@pytest.mark.parametrize(
    ("name", "given", "rule"),
    [
        ("cluster_id", 999, "must be left out, or be 1"),
        ("cluster_id", 0, "must be left out, or be 1"),
        ("max_connected_clusters", 511, "must be left out, or be 255"),
        ("cluster_users_config_path", Path("other.yaml"), "alpha/users.yaml"),
        ("cluster_users_enabled", False, "must be left out, or be True"),
        ("kvstore_opt", ("etcd.config=/x",), "must be left out"),
    ],
)
def test_a_flag_that_says_otherwise_than_the_folder_is_refused(
    tmp_path: Path, name: str, given: object, rule: str
) -> None:
    create(tmp_path / "alpha", "alpha", 1, "127.0.0.1")
    with pytest.raises(Invalid) as refused:
        settings_of(tmp_path / "alpha", _NOT_GIVEN | {name: given})
    assert refused.value.field == f"--{name.replace('_', '-')}"
    assert rule in refused.value.rule


def test_a_folder_of_connected_clusters_that_is_not_there_is_said_and_waited_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    alpha, absent = create(tmp_path / "alpha", "alpha", 1, "127.0.0.1"), tmp_path / "absent"
    flags = _NOT_GIVEN | {"clustermesh_config": None, "agents_config": None}
    assert mirrored(alpha.path, flags)[0] == alpha.peers
    assert caplog.messages == []
    assert mirrored(alpha.path, flags | {"clustermesh_config": absent})[0] == absent
    assert caplog.messages == [f"--clustermesh-config {absent}: there is no such folder yet, so no cluster is copied"]


def test_what_ciliums_chart_gives_besides_is_taken_without_a_word() -> None:
    command = click.Context(click.Command("apiserver"))
    command.args = ["--debug", "--controller-group-metrics=all", "--of-another-release=1"]
    assert take_others(command, "alpha") == ["--of-another-release=1: is no flag of this program, and ignored"]
    with pytest.raises(click.NoSuchOption):
        take_others(command, None)
