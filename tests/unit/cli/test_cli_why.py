"""`clustermesh why`: what it asks, what it prints, and how it exits, with an agent's socket and without."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner, Result
from fake_agent import agent

from clustermesh.cli import main

FRONTEND = {"at": "10.96.0.1:80/TCP", "wanted": ["10.1.0.5:80 alpha"], "kernel": ["10.1.0.5:80 alpha"]}
SERVICE = {"namespace": "demo", "name": "web", "said": [{"cluster": "alpha"}], "frontends": [FRONTEND]}
HOP = {"hop": "agent", "cluster": "alpha", "what": "demo/web", "seen": {"at": 1763751600.25}}
FACTS = {"own": "alpha", "node": "n1", "services": [SERVICE], "hops": [HOP]}


def why(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["why", *map(str, arguments)])


def test_an_agent_alone_is_enough(tmp_path: Path) -> None:
    status = {"context": str(tmp_path / "nowhere")}
    with agent(tmp_path / "agent.sock", {"why": FACTS, "status": status}) as path:
        result = why("demo/web", "--socket", path)
        told = json.loads(why("demo/web", "--socket", path, "-o", "json").stdout)
    assert result.exit_code == 0, result.output
    assert "✅ Service demo/web is used on node n1" in result.stdout
    assert "2025-11-21 19:00:00.250" in result.stdout
    assert "✅ frontend 10.96.0.1:80/TCP: 1 backends answer" in result.stdout
    assert (told["used"], told["hops"][0]["hop"]) == (True, "agent")


def test_what_is_not_used_exits_with_1_and_says_what_to_do(tmp_path: Path) -> None:
    facts = {"own": "alpha", "node": "n1", "services": [{"namespace": "demo", "name": "web"}]}
    status = {"context": str(tmp_path / "nowhere")}
    with agent(tmp_path / "agent.sock", {"why": facts, "status": status}) as path:
        result = why("demo/web", "--socket", path)
    assert result.exit_code == 1
    assert "❌ Service demo/web: no cluster has it" in result.stdout
    assert "is the name right? NAMESPACE/NAME" in result.stdout


def test_what_is_no_subject_and_no_folder_are_wrong_usage(tmp_path: Path) -> None:
    assert why("web@demo").exit_code == 2
    result = why("demo/web", "--context", tmp_path)
    assert result.exit_code == 2
    assert "no cluster here" in result.stderr


def test_an_agent_of_another_release_is_said_to_be_one(tmp_path: Path) -> None:
    with agent(tmp_path / "agent.sock", {"why": {"own": 7}}) as path:
        result = why("demo/web", "--socket", path)
    assert result.exit_code == 1
    assert "run the same release everywhere" in result.stderr
