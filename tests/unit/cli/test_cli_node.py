"""`clustermesh node ...` against a socket that answers as the agent does."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from clustermesh import agent_socket
from clustermesh.agent_socket import ask
from clustermesh.cli import main
from clustermesh.errors import Refused, Unavailable

Answers = dict[str, Any]


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Callable[[Answers | bytes], Path]]:
    """Call with results by method, or with the bytes to answer everything with; gives the socket."""
    listener = socket.socket(socket.AF_UNIX)
    path, said = tmp_path / "agent.sock", dict[str, Any]()

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                request = json.loads(connection.makefile().readline())
                answers = said["answers"]
                if isinstance(answers, bytes):
                    connection.sendall(answers)
                    continue
                answer = {"result": answers[request["method"]]} if request["method"] in answers else said["error"]
                connection.sendall(json.dumps(answer).encode() + b"\n")

    def start(answers: Answers | bytes) -> Path:
        said["answers"] = answers
        said["error"] = {"error": {"message": "this node cannot", "hint": "try again in a moment"}}
        return path

    listener.bind(str(path))
    listener.listen()
    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield start
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(60)


def node(path: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["node", *arguments, "--socket", str(path)])


def status(**changes: Any) -> dict[str, Any]:
    cluster = {
        "name": "alpha",
        "id": 1,
        "own": True,
        "state": "fresh",
        "since": time.time() - 7200,
        "error": "",
        "behind": {},
        "nodes": 2,
        "services": 3,
        "endpoints": 4,
        "identities": 5,
        "refused": 0,
    }
    target = {"name": "backends", "desired": 7, "actual": 6, "pending": 1, "failed": 0, "drift": 0, "error": ""}
    encryption = {"provider": "kernel", "device": "cm-wg0", "why": "it has it", "peers": 1, "strict": "tcx"}
    return {
        "node": "n1",
        "version": "1",
        "ready": True,
        "problems": [],
        "cluster": {"name": "alpha", "id": 1},
        "clusters": [cluster, cluster | {"name": "beta", "own": False} | changes.pop("beta", {})],
        "targets": [target],
        "maps": [{"name": "lb_backends", "entries": 7, "capacity": 200}],
        "features": [
            {"name": "maps", "state": "native", "says": "they work", "why": ""},
            {"name": "tcx", "state": "degraded", "says": "devices take no links", "why": "use Linux 6.6 or later"},
        ],
        "counters": {"connect": 3, "reply": 0},
        "encryption": encryption,
        "datapath": {
            "loader": "libbpf",
            "hooks": [{"mechanism": "cgroup link", "outcome": "adopted"}],
        },
    } | changes


def test_status_shows_clusters_and_tables(agent: Callable[..., Path]) -> None:
    result = node(agent({"status": status()}), "status")
    assert result.exit_code == 0, result.output
    assert "Node alpha/n1: ready" in result.stdout
    assert "loaded by libbpf, attached by cgroup link (adopted)" in result.stdout
    assert (
        "Kernel features: native: maps\n  degraded: tcx: devices take no links (use Linux 6.6 or later)"
        in result.stdout
    )
    assert "alpha (own)" in result.stdout
    assert "2h ago" in result.stdout
    assert "backends  7        6       1" in result.stdout
    assert "lb_backends  7        200       3.5 %" in result.stdout
    assert "connect  3\n" in result.stdout
    assert "reply" not in result.stdout


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"ready": False}, "not ready"),
        ({"problems": ["backends: the map is full"]}, "the map is full"),
        ({"beta": {"state": "stale", "error": "connection refused"}}, "connection refused"),
        ({"beta": {"state": "syncing", "id": None, "error": "nodes: waiting for its canary"}}, "its canary"),
    ],
)
def test_status_exits_with_1_and_the_reason_when_something_is_wrong(
    agent: Callable[..., Path], changes: dict[str, Any], sentence: str
) -> None:
    path = agent({"status": status(**changes)})
    for output in ("table", "json"):
        result = node(path, "status", "-o", output)
        assert result.exit_code == 1
        assert sentence in result.stdout or output == "json"
    assert json.loads(result.stdout)["node"] == "n1"


def test_what_a_peer_says_is_no_command_to_the_terminal(agent: Callable[..., Path]) -> None:
    shown = node(agent({"status": status(beta={"state": "stale", "error": "\x1b[2J\x07"})}), "status").stdout
    assert "\x1b" not in shown
    assert r"\x1b[2J\x07" in shown


LISTS: list[tuple[tuple[str, ...], str, list[dict[str, Any]], str]] = [
    (
        ("service", "list"),
        "services",
        [
            {
                "id": 1,
                "service": "n/web",
                "address": "10.96.0.1",
                "port": 80,
                "protocol": "TCP",
                "type": "ClusterIP",
                "scope": "any",
                "backends": [{"address": "10.2.0.5", "port": 8080, "cluster": "beta", "state": "active"}],
                "resting": [{"address": "10.1.0.5", "port": 8080, "cluster": "alpha", "state": "terminating"}],
            },
            {
                "id": 12,
                "service": "n/db",
                "address": "fd00::1",
                "port": 1,
                "protocol": "UDP",
                "type": "NodePort",
                "scope": "external",
                "backends": [],
                "resting": [],
            },
        ],
        "1   10.96.0.1:80/TCP   ClusterIP     n/web    1 => 10.2.0.5:8080/TCP (active) beta\n"
        f"{'':46}1 => 10.1.0.5:8080/TCP (terminating, not given) alpha\n"
        "12  [fd00::1]:1/UDP/e  NodePort      n/db     none",
    ),
    (
        ("bpf", "lb", "list"),
        "bpf_lb",
        [
            {
                "service": "10.96.0.1:80/TCP",
                "frontend": "0.0.0.0:0 (1) (0) [ClusterIP, non-routable]",
                "backends": ["10.2.0.5:8080/TCP (1) (1)"],
            }
        ],
        "10.96.0.1:80/TCP (0)  0.0.0.0:0 (1) (0) [ClusterIP, non-routable]\n"
        "10.96.0.1:80/TCP (1)  10.2.0.5:8080/TCP (1) (1)",
    ),
    (
        ("bpf", "affinity", "list"),
        "bpf_affinity",
        [
            {
                "client": "netns:7",
                "service_id": 1,
                "service": "10.96.0.1:80/TCP",
                "backend_id": 3,
                "backend": "",
                "used_seconds_ago": 4,
            }
        ],
        "netns:7  1           10.96.0.1:80/TCP  3           -        4s ago",
    ),
    (
        ("backend", "list"),
        "backends",
        [{"id": 3, "address": "10.2.0.5", "port": 80, "protocol": "TCP", "cluster": "beta", "frontends": 2}],
        "3   10.2.0.5:80/TCP  beta     2",
    ),
    (
        ("ipcache", "list"),
        "ipcache",
        [
            {"prefix": "10.2.0.5/32", "identity": 9, "node": "", "encrypted": False, "labels": ["k8s:a=b", "k8s:c=d"]},
            {"prefix": "10.2.0.0/24", "identity": 2, "node": "192.0.2.2", "encrypted": True, "labels": []},
        ],
        "10.2.0.5/32  9         -          no         k8s:a=b;k8s:c=d\n10.2.0.0/24  2         192.0.2.2  yes",
    ),
    (
        ("bpf", "ipcache", "list"),
        "ipcache",
        [
            {"prefix": "10.2.0.5/32", "identity": 9, "node": "", "encrypted": False, "labels": ["k8s:a=b"]},
            {"prefix": "10.2.0.0/24", "identity": 2, "node": "192.0.2.2", "encrypted": True, "labels": []},
        ],
        "10.2.0.5/32        identity=9 encryptkey=0 tunnelendpoint=0.0.0.0 flags=<none>\n"
        "10.2.0.0/24        identity=2 encryptkey=255 tunnelendpoint=192.0.2.2 flags=<none>",
    ),
]


@pytest.mark.parametrize(("words", "method", "rows", "text"), LISTS)
def test_lists_are_tables_or_the_answer_itself(
    agent: Callable[..., Path], words: tuple[str, ...], method: str, rows: list[dict[str, Any]], text: str
) -> None:
    path = agent({method: rows})
    assert text in node(path, *words).stdout
    assert json.loads(node(path, *words, "-o", "json").stdout) == rows
    assert node(agent({method: []}), *words).exit_code == 0


def test_encrypt_status_shows_tunnels_and_the_nodes_without_one(agent: Callable[..., Path]) -> None:
    tunnel = {
        "node": "beta/n2",
        "public_key": "KEY",
        "endpoint": "192.0.2.2:51871",
        "allowed_ips": ["10.2.2.0/24"],
        "last_handshake": 0.0,
        "received": 1,
        "sent": 2,
    }
    found = {
        "device": "cm-wg0",
        "provider": "kernel",
        "why": "it has it",
        "mtu": 1420,
        "interface": "eth0",
        "public_key": "OWN",
        "strict": "",
        "tunnels": [tunnel, tunnel | {"node": "", "last_handshake": time.time() - 5}],
        "without_tunnel": {"beta/n3": "has no WireGuard key yet"},
    }
    path = agent({"encrypt": found})
    result = node(path, "encrypt", "status")
    assert result.exit_code == 0
    for text in ("strict mode by nothing yet", "beta/n2  192.0.2.2:51871", "never", "s ago", "KEY", "beta/n3: has no"):
        assert text in result.stdout
    assert json.loads(node(path, "encrypt", "status", "-o", "json").stdout) == found


def test_map_diff_is_silent_when_there_is_none_and_exits_with_1_when_there_is(agent: Callable[..., Path]) -> None:
    result = node(agent({"map_diff": []}), "map", "diff")
    assert (result.exit_code, result.output) == (0, "")
    row = {"target": "backends", "key": "3", "desired": "10.2.0.5", "kernel": ""}
    path = agent({"map_diff": [row]})
    result = node(path, "map", "diff")
    assert result.exit_code == 1
    assert "backends  3    10.2.0.5  absent" in result.stdout
    result = node(path, "map", "diff", "-o", "json")
    assert (result.exit_code, json.loads(result.stdout)) == (1, [row])


def test_without_an_agent_one_line_says_what_to_do(tmp_path: Path) -> None:
    result = node(tmp_path / "none.sock", "status")
    assert result.exit_code == 1
    assert "start `clustermesh-agent`, or give --socket" in result.stderr
    assert result.stdout == ""


@pytest.fixture
def stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], Path]]:
    """Call with how many may wait for an answer; gives the socket of an agent that gives none."""
    monkeypatch.setattr(agent_socket, "_TIMEOUT", 0.05)
    with ExitStack() as closing:

        def start(backlog: int) -> Path:
            path = tmp_path / "agent.sock"
            lock = closing.enter_context((tmp_path / "agent.lock").open("w"))
            fcntl.flock(lock, fcntl.LOCK_EX)
            if backlog >= 0:
                listener = closing.enter_context(socket.socket(socket.AF_UNIX))
                listener.bind(str(path))
                listener.listen(backlog)
            return path

        yield start


@pytest.mark.parametrize(
    ("backlog", "why"), [(8, "timed out"), (0, "Resource temporarily unavailable"), (-1, "No such file or directory")]
)
def test_an_agent_that_hangs_is_named(stopped: Callable[[int], Path], backlog: int, why: str) -> None:
    path = stopped(backlog)
    with ExitStack() as closing:
        for _ in range(backlog == 0):
            closing.enter_context(socket.socket(socket.AF_UNIX)).connect(str(path))
        for words in (("status",), ("monitor",)):
            result = node(path, *words)
            said = (
                f"the agent (pid {os.getpid()}) runs but does not answer on {path} ({why}): look at its log, or restart"
            )
            assert (result.exit_code, result.stdout) == (1, "")
            assert said in result.stderr


def test_the_lock_of_an_agent_that_is_gone_holds_nobody_up(stopped: Callable[[int], Path]) -> None:
    path = stopped(-1)
    lock = path.parent / "agent.lock"
    lock.rename(path.parent / "another.lock")
    lock.touch()
    assert "start `clustermesh-agent`" in node(path, "status").stderr


def test_the_agents_own_error_is_shown_with_its_hint(agent: Callable[..., Path]) -> None:
    result = node(agent({}), "status")
    assert result.exit_code == 1
    assert "this node cannot (try again in a moment)" in result.stderr


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"", Unavailable),
        (b'{"result": {"half": ', Unavailable),
        (b"HTTP/1.1 400 Bad Request\n", Refused),
        (b"[]\n", Refused),
        (b"{}\n", Refused),
        (b'{"error": "x"}\n', Refused),
    ],
)
def test_what_is_no_answer_is_an_error_and_no_traceback(
    agent: Callable[..., Path], answer: bytes, error: type[Exception]
) -> None:
    with pytest.raises(error):
        ask(agent(answer), "status")


def test_the_socket_comes_from_the_environment_too(agent: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLUSTERMESH_SOCKET", str(agent({"services": []})))
    assert CliRunner().invoke(main, ["node", "service", "list"]).exit_code == 0


@pytest.mark.parametrize("words", [(), ("status",), ("service", "list"), ("encrypt", "status"), ("map", "diff")])
def test_help_needs_no_agent(words: tuple[str, ...]) -> None:
    assert CliRunner().invoke(main, ["node", *words, "--help"]).exit_code == 0
