"""The CNI plugin against a fake agent: the specification's results and errors, and a DEL that is never lost."""

from __future__ import annotations

import io
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from agent.cni import plugin

V4 = {"ip": "10.1.0.2", "prefix_length": 32, "gateway": "10.1.0.1"}
V6 = {"ip": "fd00:10:1:1::2", "prefix_length": 128, "gateway": "fd00:10:1:1::1"}
RESULT = {**V4, "ips": [V4, V6], "mac": "02:00:00:00:00:01", "host_ifname": "lxc1"}
OLD_RESULT = {**V4, "mac": "02:00:00:00:00:01", "host_ifname": "lxc1"}
ENVIRONMENT = {
    "CNI_CONTAINERID": "c1",
    "CNI_NETNS": "/var/run/netns/c1",
    "CNI_IFNAME": "eth0",
    "CNI_PATH": "/opt/cni/bin",
    "CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0",
}
PARAMS = {
    "container_id": "c1",
    "netns": "/var/run/netns/c1",
    "ifname": "eth0",
    "pod_namespace": "shop",
    "pod_name": "web-0",
}


@contextmanager
def agent(path: Path, *answers: bytes) -> Iterator[list[Any]]:
    """An agent that gives each caller the next answer. Yields the requests."""
    seen: list[Any] = []
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen(8)

        def serve() -> None:
            for answer in answers:
                connection, _ = server.accept()
                with connection:
                    seen.append(json.loads(connection.makefile("rb").readline()))
                    connection.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield seen
        thread.join(60)
        assert not thread.is_alive(), "the plugin asked less often than expected"


def call(command: str, socket_path: Path, version: str = "1.0.0", **extra: Any) -> tuple[int, Any]:
    """Exit status and what the plugin prints, decoded."""
    config = {"cniVersion": version, "name": "clustermesh", "type": "clustermesh-cni", "socket": str(socket_path)}
    return call_raw(command, json.dumps(config | extra), ENVIRONMENT)


def call_raw(command: str, stdin: str, environment: dict[str, str]) -> tuple[int, Any]:
    out = io.StringIO()
    status = plugin.run(environment | {"CNI_COMMAND": command}, io.StringIO(stdin), out)
    return status, json.loads(out.getvalue()) if out.getvalue() else None


def answer(**fields: Any) -> bytes:
    return json.dumps(fields).encode() + b"\n"


@pytest.mark.parametrize("version", ["1.0.0", "1.1.0"])
def test_add_tells_the_runtime_what_the_agent_made(tmp_path: Path, version: str) -> None:
    with agent(tmp_path / "agent.sock", answer(result=RESULT)) as seen:
        status, result = call("ADD", tmp_path / "agent.sock", version)
    assert seen == [{"method": "cni_add", "params": PARAMS}]
    assert status == 0
    assert result == {
        "cniVersion": version,
        "interfaces": [
            {"name": "lxc1"},
            {"name": "eth0", "mac": "02:00:00:00:00:01", "sandbox": "/var/run/netns/c1"},
        ],
        "ips": [
            {"address": "10.1.0.2/32", "gateway": "10.1.0.1", "interface": 1},
            {"address": "fd00:10:1:1::2/128", "gateway": "fd00:10:1:1::1", "interface": 1},
        ],
        "routes": [{"dst": "0.0.0.0/0", "gw": "10.1.0.1"}, {"dst": "::/0", "gw": "fd00:10:1:1::1"}],
        "dns": {},
    }


def test_agent_of_before_ipv6_is_understood(tmp_path: Path) -> None:
    with agent(tmp_path / "agent.sock", answer(result=OLD_RESULT)):
        _, result = call("ADD", tmp_path / "agent.sock")
    assert [ip["address"] for ip in result["ips"]] == ["10.1.0.2/32"]
    assert result["routes"] == [{"dst": "0.0.0.0/0", "gw": "10.1.0.1"}]


def test_pod_of_one_family_has_one_address_and_one_route(tmp_path: Path) -> None:
    with agent(tmp_path / "agent.sock", answer(result=RESULT | V6 | {"ips": [V6]})):
        _, result = call("ADD", tmp_path / "agent.sock")
    assert [ip["address"] for ip in result["ips"]] == ["fd00:10:1:1::2/128"]
    assert result["routes"] == [{"dst": "::/0", "gw": "fd00:10:1:1::1"}]


@pytest.mark.parametrize("version", ["0.3.1", "0.4.0"])
def test_older_versions_name_the_address_family(tmp_path: Path, version: str) -> None:
    with agent(tmp_path / "agent.sock", answer(result=RESULT)):
        _, result = call("ADD", tmp_path / "agent.sock", version)
    assert result["cniVersion"] == version
    assert [ip["version"] for ip in result["ips"]] == ["4", "6"]


def test_version_needs_no_agent() -> None:
    status, result = call_raw("VERSION", '{"cniVersion": "0.4.0"}', {})
    assert status == 0
    assert result == {"cniVersion": "0.4.0", "supportedVersions": ["0.3.1", "0.4.0", "1.0.0", "1.1.0"]}


def test_agent_error_becomes_the_runtimes_error(tmp_path: Path) -> None:
    refusal = answer(error={"message": "all 253 pod addresses are in use", "hint": "use a larger pod CIDR"})
    with agent(tmp_path / "agent.sock", refusal):
        status, error = call("ADD", tmp_path / "agent.sock")
    assert status == 1
    assert error == {
        "cniVersion": "1.0.0",
        "code": 100,
        "msg": "all 253 pod addresses are in use",
        "details": "use a larger pod CIDR",
    }


def test_add_without_an_agent_is_to_be_tried_again(tmp_path: Path) -> None:
    status, error = call("ADD", tmp_path / "agent.sock")
    assert (status, error["code"]) == (1, 11)
    assert str(tmp_path / "agent.sock") in error["msg"]


def test_agent_that_dies_before_it_answers_is_to_be_tried_again(tmp_path: Path) -> None:
    with agent(tmp_path / "agent.sock", b'{"result": {"ip"'):
        status, error = call("ADD", tmp_path / "agent.sock")
    assert (status, error["code"]) == (1, 11)


@pytest.mark.parametrize(
    "line",
    [b"\n", b"[]\n", b"{}\n", b"nonsense\n", b'{"result": 5}\n', b'{"result": {"ips": 5}}\n', b'{"error": "x"}\n'],
)
def test_nonsense_from_the_agent_is_a_decoding_failure(tmp_path: Path, line: bytes) -> None:
    with agent(tmp_path / "agent.sock", line):
        status, error = call("ADD", tmp_path / "agent.sock")
    assert (status, error["code"]) == (1, 6)


@pytest.mark.parametrize(
    ("stdin", "code"),
    [
        ("", 6),
        ("{", 6),
        ("[]", 6),
        ('{"cniVersion": "9.9.9", "name": "n"}', 1),
        ('{"name": "n"}', 1),
        ('{"cniVersion": "1.0.0"}', 7),
        ('{"cniVersion": "1.0.0", "name": "n", "socket": "relative"}', 7),
        ('{"cniVersion": "1.0.0", "name": "n", "socket": 5}', 7),
    ],
)
def test_bad_configuration_has_the_specifications_code(stdin: str, code: int) -> None:
    status, error = call_raw("ADD", stdin, ENVIRONMENT)
    assert (status, error["code"]) == (1, code)


@pytest.mark.parametrize(
    "environment",
    [
        {"CNI_CONTAINERID": ""},
        {"CNI_CONTAINERID": "../x"},
        {"CNI_CONTAINERID": "a" * 201},
        {"CNI_IFNAME": ""},
        {"CNI_IFNAME": "a" * 16},
        {"CNI_IFNAME": "a/b"},
        {"CNI_IFNAME": ".."},
        {"CNI_NETNS": ""},
    ],
)
def test_bad_environment_has_the_specifications_code(environment: dict[str, str]) -> None:
    status, error = call_raw("ADD", '{"cniVersion": "1.0.0", "name": "n"}', ENVIRONMENT | environment)
    assert (status, error["code"]) == (1, 4)


def test_unknown_command_is_a_bad_environment() -> None:
    status, error = call_raw("PLAY", '{"cniVersion": "1.0.0", "name": "n"}', ENVIRONMENT)
    assert (status, error["code"]) == (1, 4)


def test_check_compares_with_the_result_of_add(tmp_path: Path) -> None:
    before = {"ips": [{"address": "10.1.0.2/32"}, {"address": "fd00:10:1:1::2/128"}]}
    with agent(tmp_path / "agent.sock", answer(result=RESULT)) as seen:
        assert call("CHECK", tmp_path / "agent.sock", prevResult=before) == (0, None)
    assert seen[0]["method"] == "cni_check"


@pytest.mark.parametrize("other", [[V4 | {"ip": "10.1.0.9"}, V6], [V4, V6 | {"ip": "fd00:10:1:1::9"}]])
def test_check_finds_another_address_of_either_family(tmp_path: Path, other: list[Any]) -> None:
    before = {"ips": [{"address": "10.1.0.2/32"}, {"address": "fd00:10:1:1::2/128"}]}
    with agent(tmp_path / "agent.sock", answer(result=RESULT | {"ips": other})):
        status, error = call("CHECK", tmp_path / "agent.sock", prevResult=before)
    assert (status, error["code"]) == (1, 100)


def test_status_is_the_agents_word_on_whether_pods_can_be_attached(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    with agent(path, answer(result={})) as seen:
        assert call("STATUS", path, "1.1.0") == (0, None)
    assert seen == [{"method": "cni_status", "params": {}}]
    path.unlink()
    with agent(path, answer(error={"message": "the agent is starting"})):
        status, error = call("STATUS", path, "1.1.0")
    assert (status, error["code"], error["msg"]) == (1, 50, "the agent is starting")
    path.unlink()
    assert call("STATUS", path, "1.1.0")[1]["code"] == 50
    assert call("STATUS", path, "1.0.0")[1]["code"] == 1


def test_garbage_is_what_the_runtime_does_not_name(tmp_path: Path) -> None:
    valid = {"cni.dev/valid-attachments": [{"containerID": "c1", "ifname": "eth0"}]}
    with agent(tmp_path / "agent.sock", answer(result={})) as seen:
        assert call("GC", tmp_path / "agent.sock", "1.1.0", **valid) == (0, None)
    assert seen == [{"method": "cni_gc", "params": {"valid": [{"container_id": "c1", "ifname": "eth0"}]}}]


@pytest.mark.parametrize("named", [{}, {"cni.dev/valid-attachments": None}, {"cni.dev/valid-attachments": [{}]}])
def test_garbage_collection_without_the_runtimes_list_is_invalid(tmp_path: Path, named: dict[str, Any]) -> None:
    assert call("GC", tmp_path / "agent.sock", "1.1.0", **named)[1]["code"] == 7
    assert call("GC", tmp_path / "agent.sock", "1.0.0", **{"cni.dev/valid-attachments": []})[1]["code"] == 1


def test_check_without_the_result_of_add_is_invalid(tmp_path: Path) -> None:
    assert call("CHECK", tmp_path / "agent.sock")[1]["code"] == 7
    assert call("CHECK", tmp_path / "agent.sock", "0.3.1", prevResult={})[1]["code"] == 1


def test_del_says_nothing_and_needs_no_namespace(tmp_path: Path) -> None:
    config = json.dumps({"cniVersion": "1.0.0", "name": "n", "socket": str(tmp_path / "agent.sock")})
    with agent(tmp_path / "agent.sock", answer(result=None)) as seen:
        assert call_raw("DEL", config, ENVIRONMENT | {"CNI_NETNS": ""}) == (0, None)
    assert seen == [{"method": "cni_del", "params": PARAMS | {"netns": ""}}]


def test_del_without_an_agent_is_left_in_the_queue_and_succeeds(tmp_path: Path) -> None:
    for _ in range(2):  # runtimes repeat DEL
        assert call("DEL", tmp_path / "agent.sock") == (0, None)
    (entry,) = (tmp_path / "deleted-endpoints").iterdir()
    assert json.loads(entry.read_text()) == PARAMS


def test_del_during_the_agents_start_reaches_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The agent began to listen, and emptied the queue, between the plugin's first try and its entry."""
    path = tmp_path / "agent.sock"
    queue_deletion = plugin._queue_deletion
    started = []

    def queue_as_the_agent_starts(*args: Any) -> str:
        started.append(agent(path, answer(result=None)))
        started.append(started[0].__enter__())
        return queue_deletion(*args)

    monkeypatch.setattr(plugin, "_queue_deletion", queue_as_the_agent_starts)
    assert call("DEL", path) == (0, None)
    started[0].__exit__(None, None, None)
    assert started[1] == [{"method": "cni_del", "params": PARAMS}]
    assert list((tmp_path / "deleted-endpoints").iterdir()) == []


def test_del_that_can_be_left_nowhere_fails(tmp_path: Path) -> None:
    (tmp_path / "deleted-endpoints").write_text("in the way")
    status, error = call("DEL", tmp_path / "agent.sock")
    assert (status, error["code"]) == (1, 5)


def test_plugin_imports_nothing_that_would_slow_every_pod_down() -> None:
    program = "import sys, agent.cni.plugin; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    slow = {"asyncio", "clustermesh", "cryptography", "hashlib", "logging", "msgspec", "pyroute2", "subprocess"}
    assert not slow & set(found.stdout.split())


def test_plugin_as_a_program_answers_on_stdout() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "agent.cni.plugin"],
        input="{",
        capture_output=True,
        text=True,
        env=ENVIRONMENT | {"CNI_COMMAND": "ADD"},
        timeout=60,
        check=False,
    )
    assert (done.returncode, json.loads(done.stdout)["code"]) == (1, 6)
