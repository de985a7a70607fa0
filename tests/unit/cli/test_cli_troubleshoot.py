"""`clustermesh troubleshoot`: which folder it takes, what it prints, and how it exits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from fake_agent import agent
from ports import free_port

from clustermesh.cli import main


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of connected clusters as Cilium has it: at beta nobody listens, gamma's file is none."""
    peers = tmp_path / "peers"
    peers.mkdir()
    (peers / "beta").write_text(f"endpoints: [http://127.0.0.1:{free_port()}]\n")
    (peers / "gamma").write_text("endpoints: 7\n")
    return peers


def troubleshoot(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["troubleshoot", *map(str, arguments)])


def test_a_folder_alone_is_enough_and_what_fails_exits_with_1(folder: Path) -> None:
    result = troubleshoot("--clustermesh-config", folder)
    assert result.exit_code == 1
    assert "❌ tcp: http://127.0.0.1" in result.stdout
    assert "nothing listens there" in result.stdout
    assert "❌ file: endpoints: 7" in result.stdout
    assert "\x1b" not in result.stdout


def test_one_peer_as_json(folder: Path) -> None:
    told = json.loads(troubleshoot("gamma", "--clustermesh-config", folder, "-o", "json").stdout)
    assert list(told) == ["gamma"]
    assert told["gamma"][0]["check"] == "file"
    assert told["gamma"][0]["state"] == "fail"
    assert "connect" in told["gamma"][0]["remedy"]


def test_nobody_connected_is_well(tmp_path: Path) -> None:
    alpha = tmp_path / "alpha"
    CliRunner().invoke(main, ["init", str(alpha), "--name", "alpha", "--id", "1", "--endpoint", "https://127.0.0.1:1"])
    result = troubleshoot("--context", alpha)
    assert result.exit_code == 0
    assert "no connected clusters" in result.stdout


def test_a_folder_that_was_named_and_names_no_cluster_is_hardly_the_right_one(tmp_path: Path) -> None:
    (tmp_path / "beta.crt").write_text("PEM")
    result = troubleshoot("--clustermesh-config", tmp_path)
    assert result.exit_code == 1
    assert str(tmp_path) in result.stderr
    assert "no file" in result.stderr


def test_a_peer_that_is_not_connected_is_wrong_usage(folder: Path) -> None:
    result = troubleshoot("delta", "--clustermesh-config", folder)
    assert result.exit_code == 2
    assert "connected are: beta, gamma" in result.stderr


def test_without_any_folder_one_is_asked_for(tmp_path: Path) -> None:
    result = troubleshoot("--context", tmp_path)
    assert result.exit_code == 2
    assert "no cluster here" in result.stderr


def test_what_the_agent_sees_is_a_row(folder: Path, tmp_path: Path) -> None:
    seen = {"name": "beta", "state": "stale", "error": "gone", "refused": 0}
    seen |= dict.fromkeys(("nodes", "services", "identities", "endpoints"), 1)
    with agent(tmp_path / "agent.sock", {"status": {"clusters": [seen]}}) as path:
        result = troubleshoot("beta", "--clustermesh-config", folder, "--socket", path)
    assert result.exit_code == 1
    assert "❌ agent: the agent has it as stale: gone" in result.stdout


def test_the_agent_alone_tells_the_folder(tmp_path: Path) -> None:
    alpha = tmp_path / "alpha"
    url = f"https://127.0.0.1:{free_port()}"
    made = CliRunner().invoke(main, ["init", str(alpha), "--name", "alpha", "--id", "1", "--endpoint", url])
    assert made.exit_code == 0
    (alpha / "peers" / "beta").write_text(f"endpoints: [http://127.0.0.1:{free_port()}]\n")
    with agent(tmp_path / "agent.sock", {"status": {"clusters": [], "context": str(alpha)}}) as path:
        result = troubleshoot("--socket", path, "--timeout", 0.5)
    assert result.exit_code == 1
    assert "❌ tcp" in result.stdout
    assert "⚠️  mirror: the own etcd cannot be read" in result.stdout


def test_flags_say_where_the_own_etcd_is_as_ciliums_chart_gives_them(folder: Path, tmp_path: Path) -> None:
    config = tmp_path / "etcd-config.yaml"
    config.write_text(f"endpoints: [http://127.0.0.1:{free_port()}]\n")
    flags = ("--cluster-name", "alpha", "--kvstore-opt", f"etcd.config={config}")
    result = troubleshoot(*flags, "--clustermesh-config", folder, "--timeout", 0.5)
    assert "⚠️  mirror: the own etcd cannot be read" in result.stdout
    for half in (flags[:2], flags[2:]):
        assert troubleshoot(*half, "--clustermesh-config", folder).exit_code == 2


def test_an_agent_of_the_chart_tells_where_to_look(folder: Path, tmp_path: Path) -> None:
    config = tmp_path / "etcd-config.yaml"
    config.write_text(f"endpoints: [http://127.0.0.1:{free_port()}]\n")
    told = {"clusters": [], "context": None, "cluster": {"name": "alpha", "id": 1}}
    told |= {"kvstore_opt": [f"etcd.config={config}"], "clustermesh_config": str(folder)}
    with agent(tmp_path / "agent.sock", {"status": told}) as path:
        result = troubleshoot("beta", "--socket", path, "--timeout", 0.5)
        assert troubleshoot("--socket", path, "--context", tmp_path).exit_code == 2
    assert (result.exit_code, "❌ tcp" in result.stdout) == (1, True), result.output
    assert "⚠️  mirror: the own etcd cannot be read" in result.stdout


def test_an_agent_that_was_named_and_is_not_there_is_an_error(folder: Path, tmp_path: Path) -> None:
    result = troubleshoot("--clustermesh-config", folder, "--socket", tmp_path / "none.sock")
    assert result.exit_code == 1
    assert "no agent answers" in result.stderr
