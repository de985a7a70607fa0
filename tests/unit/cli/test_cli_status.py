"""`clustermesh status` over what the cluster's etcd is said to hold."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from clustermesh import overview
from clustermesh.cli import main
from clustermesh.cli import status as command
from clustermesh.errors import Refused, Unavailable
from clustermesh.wire.agent_report import AgentReport, SeenCluster

Seen = list[Any]


def summary(state: str = "fresh", error: str = "", nodes: int = 1) -> dict[str, Any]:
    beta = SeenCluster("beta", state, 2, 0.0, error, 1, 1, 1, 1, 2, 50)
    seen = AgentReport("0.1.0", "", (), (beta, SeenCluster("alpha", "fresh", 1)))
    names = {f"n{number}" for number in range(1, nodes + 1)}
    return overview.summarise("alpha", 1, names, dict.fromkeys(names, seen), ["beta"], overview.ControlPlane())


@pytest.fixture
def context(tmp_path: Path) -> Path:
    folder = tmp_path / "alpha"
    arguments = ["init", str(folder), "--name", "alpha", "--id", "1", "--endpoint", "https://172.20.1.1:2379"]
    assert CliRunner().invoke(main, arguments).exit_code == 0
    return folder


@pytest.fixture
def etcd(monkeypatch: pytest.MonkeyPatch) -> Callable[[Seen], None]:
    """Call with what is read one after the other; the last one stays. Exceptions are raised."""
    monkeypatch.setattr(command, "_POLL", 0.0)

    def say(answers: Seen) -> None:
        each: Iterator[Any] = iter([*answers[:-1], *[answers[-1]] * 100_000])

        async def read(*_: Any) -> Any:
            answer = next(each)
            if isinstance(answer, Exception):
                raise answer
            return answer

        monkeypatch.setattr(overview, "read", read)

    return say


def status(context: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["status", "--context", str(context), *arguments])


def test_a_good_mesh_is_shown_and_exits_with_0(context: Path, etcd: Callable[[Seen], None]) -> None:
    etcd([summary()])
    result = status(context)
    assert result.exit_code == 0
    assert "1/1 nodes ready" in result.stdout
    assert "beta: 1/1 configured, 1/1 fresh" in result.stdout
    assert "n1: fresh since 1970-01-01T00:00:00Z, 1 nodes" in result.stdout
    assert "2 refused" in result.stdout
    assert "     propagation of its last change, over 1 nodes: median 0.05 s, worst 0.05 s on n1" in result.stdout
    assert json.loads(status(context, "-o", "json").stdout)["ok"]


def test_whatever_is_wrong_is_listed_and_exits_with_1(context: Path, etcd: Callable[[Seen], None]) -> None:
    etcd([summary("stale", "it is gone \x1b[2J")])
    result = status(context)
    assert result.exit_code == 1
    assert r"last error: it is gone \x1b[2J" in result.stdout
    assert "❌ 1 errors:" in result.stdout
    assert "node n1: cluster beta is stale" in result.stdout
    result = status(context, "-o", "json")
    assert (result.exit_code, json.loads(result.stdout)["ok"]) == (1, False)


def test_of_many_nodes_those_that_are_wrong_are_shown_and_json_has_all(
    context: Path, etcd: Callable[[Seen], None]
) -> None:
    etcd([summary(nodes=500)])
    shown = status(context).stdout
    assert "500 more nodes, 500 of them fresh" in shown
    assert len(shown.splitlines()) < 10
    etcd([summary("stale", nodes=500)])
    assert len(status(context).stdout.splitlines()) < 30
    assert len(json.loads(status(context, "-o", "json").stdout)["clusters"]["beta"]["nodes"]) == 500


def test_a_peer_file_that_cannot_be_used_is_an_error_too(context: Path, etcd: Callable[[Seen], None]) -> None:
    etcd([summary()])
    (context / "peers" / "gamma").write_text("endpoints: [")
    result = status(context)
    assert result.exit_code == 1
    assert "peers folder: 'gamma'" in result.stdout


def test_waiting_ends_when_all_is_well(context: Path, etcd: Callable[[Seen], None]) -> None:
    etcd([Unavailable("etcd does not answer"), summary("syncing"), summary()])
    result = status(context, "--wait", "-o", "json")
    assert (result.exit_code, json.loads(result.stdout)["ok"]) == (0, True)


def test_waiting_too_long_shows_what_is_wrong(context: Path, etcd: Callable[[Seen], None]) -> None:
    etcd([summary("stale", "refused")])
    result = status(context, "--wait", "--wait-duration", "0")
    assert result.exit_code == 1
    assert "cluster beta is stale: refused" in result.stdout
    etcd([Unavailable("etcd does not answer")])
    result = status(context, "--wait", "--wait-duration", "0")
    assert result.exit_code == 1
    assert "etcd does not answer" in result.stderr


def test_what_waiting_does_not_mend_is_said_at_once(context: Path, etcd: Callable[[Seen], None]) -> None:
    etcd([Refused("etcd does not accept our certificate")])
    result = status(context, "--wait", "--wait-duration", "600")
    assert result.exit_code == 1
    assert "does not accept our certificate" in result.stderr


def test_a_folder_that_is_no_cluster_is_one_line(tmp_path: Path) -> None:
    result = status(tmp_path / "nowhere")
    assert result.exit_code in (1, 2)
    assert len(result.stderr.strip().splitlines()) == 1


def test_where_no_node_is_known_nothing_is_called_good(context: Path, etcd: Callable[[Seen], None]) -> None:
    etcd([summary(nodes=0)])
    told = status(context).stdout
    assert "⚠️  0/0 nodes ready" in told
    assert "⚠️  beta: 0/0 configured, 0/0 fresh" in told


def test_verbose_shows_the_limits_of_each_cluster_and_the_mode_of_the_api_server(
    context: Path, etcd: Callable[[Seen], None]
) -> None:
    (context / "peers" / "beta").write_text("endpoints: [http://127.0.0.1:1]\nclustermesh-limits: {nodes: 7}\n")
    found = summary() | {"source": "Kubernetes API, native mode", "copied": {"beta": 3 << 20}}
    etcd([found])
    result = status(context, "--verbose")
    assert "(Kubernetes API, native mode)" in result.stdout
    assert "limits, used by the fullest node: 1/7 nodes, " in result.stdout
    assert f"limit of the mirror, used: {3 << 20}/{512 << 20} copied-bytes" in result.stdout
    assert "more limits: listing-bytes " in result.stdout
    etcd([found])
    assert "1/7 nodes" not in status(context).stdout
    etcd([found])
    told = json.loads(status(context, "-o", "json").stdout)
    assert told["clusters"]["beta"]["limits"]["nodes"] == {"used": 1, "most": 7}


def test_waiting_has_an_end_also_where_nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "_LEAST", 0.05)
    monkeypatch.setattr(command, "_POLL", 0.05)

    async def hangs() -> dict[str, Any]:
        await asyncio.Event().wait()
        raise AssertionError

    with pytest.raises(Unavailable, match="alpha: no answer within"):
        command._wait_until_ok("alpha", hangs, 0.1)
