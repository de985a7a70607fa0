"""The CNI plugin `clustermesh-cni`: what a container runtime runs to attach one pod, or to detach it.

It only translates: the runtime's environment and JSON (https://www.cni.dev/docs/spec/) into one question to the agent,
and the agent's answer back. Standard library only, because it is started for every pod: imports are most of its run
time. While the agent is down a DEL is written to a folder that the agent empties at its start, since a runtime gives up
on DEL sooner than on ADD, and the address would stay taken.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import struct
import sys
from collections.abc import Mapping
from typing import Any, Final, TextIO

SUPPORTED: Final = ("0.3.1", "0.4.0", "1.0.0", "1.1.0")
SOCKET: Final = "/run/clustermesh/agent.sock"
QUEUE: Final = "deleted-endpoints"  # beside the socket
_TIMEOUT: Final = 60  # seconds: less than a kubelet waits

# Error codes of the CNI specification; from 100 on they are the plugin's own.
INCOMPATIBLE_VERSION, BAD_ENVIRONMENT, IO_FAILURE, DECODE_FAILURE, INVALID_CONFIG = 1, 4, 5, 6, 7
TRY_AGAIN: Final = 11
NOT_AVAILABLE: Final = 50
AGENT_REFUSED: Final = 100

_VALID: Final = "cni.dev/valid-attachments"
_CONTAINER_ID: Final = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.\-]*")
_MAX_CONTAINER_ID: Final = 200  # it becomes part of a file name


class CniError(Exception):
    """What the runtime is told, with a code of the specification."""

    def __init__(self, code: int, message: str, details: str = "") -> None:
        super().__init__(message)
        self.code, self.message, self.details = code, message, details


class AgentDown(CniError):
    """There is no agent, or it ended before it answered."""

    def __init__(self, message: str, details: str = "") -> None:
        super().__init__(TRY_AGAIN, message, details)


def main() -> None:
    """Entry point of the console script."""
    sys.exit(run(os.environ, sys.stdin, sys.stdout))


def run(environment: Mapping[str, str], stdin: TextIO, stdout: TextIO) -> int:
    """One call of the plugin; returns its exit status."""
    version = SUPPORTED[-1]
    try:
        config = _read_config(stdin)
        version = str(config.get("cniVersion", "0.1.0"))
        result = _dispatch(environment.get("CNI_COMMAND", ""), config, environment)
    except CniError as e:
        shown = version if version in SUPPORTED else SUPPORTED[-1]
        error = {"cniVersion": shown, "code": e.code, "msg": e.message}
        json.dump(error | ({"details": e.details} if e.details else {}), stdout)
        return 1
    if result is not None:
        json.dump(result, stdout)
    return 0


def _read_config(stdin: TextIO) -> dict[str, Any]:
    try:
        config = json.load(stdin)
    except ValueError as e:
        raise CniError(DECODE_FAILURE, "the network configuration on stdin is not JSON", str(e)) from e
    if not isinstance(config, dict):
        raise CniError(DECODE_FAILURE, "the network configuration on stdin is not a JSON object")
    return config


def _dispatch(command: str, config: dict[str, Any], environment: Mapping[str, str]) -> dict[str, Any] | None:
    if command == "VERSION":
        return {"cniVersion": str(config.get("cniVersion", SUPPORTED[-1])), "supportedVersions": list(SUPPORTED)}
    commands = {"ADD": _add, "DEL": _delete, "CHECK": _check}
    of_the_node = {"STATUS": _status, "GC": _collect_garbage}
    if command not in commands.keys() | of_the_node.keys():
        known = "ADD, DEL, CHECK, GC, STATUS and VERSION"
        raise CniError(BAD_ENVIRONMENT, f"CNI_COMMAND is {command!r}; known are {known}")
    _check_config(config)
    if command in of_the_node:
        return of_the_node[command](config)
    return commands[command](config, _params(environment, netns_required=command != "DEL"))


def _check_config(config: dict[str, Any]) -> None:
    if config.get("cniVersion") not in SUPPORTED:
        known = ", ".join(SUPPORTED)
        raise CniError(INCOMPATIBLE_VERSION, f"cniVersion {config.get('cniVersion')!r} is unknown; known are {known}")
    if not isinstance(config.get("name"), str) or not config["name"]:
        raise CniError(INVALID_CONFIG, "the network configuration has no name")
    if not isinstance(config.get("socket", SOCKET), str) or not config.get("socket", SOCKET).startswith("/"):
        raise CniError(INVALID_CONFIG, "`socket` of the network configuration must be an absolute path")


def _params(environment: Mapping[str, str], *, netns_required: bool) -> dict[str, str]:
    """The parameters of the agent's cni_add, cni_del and cni_check."""
    container_id, ifname = environment.get("CNI_CONTAINERID", ""), environment.get("CNI_IFNAME", "")
    netns = environment.get("CNI_NETNS", "")
    if not _CONTAINER_ID.fullmatch(container_id) or len(container_id) > _MAX_CONTAINER_ID:
        raise CniError(BAD_ENVIRONMENT, f"CNI_CONTAINERID is {container_id!r}, which is no container id")
    if not 0 < len(ifname) < 16 or ifname in (".", "..") or re.search(r"[\s/:]", ifname):
        raise CniError(BAD_ENVIRONMENT, f"CNI_IFNAME is {ifname!r}, which is no interface name")
    if netns_required and not netns:
        raise CniError(BAD_ENVIRONMENT, "CNI_NETNS is not set")
    arguments = dict(part.partition("=")[::2] for part in environment.get("CNI_ARGS", "").split(";"))
    return {
        "container_id": container_id,
        "netns": netns,
        "ifname": ifname,
        "pod_namespace": arguments.get("K8S_POD_NAMESPACE", ""),
        "pod_name": arguments.get("K8S_POD_NAME", ""),
    }


def _add(config: dict[str, Any], params: dict[str, str]) -> dict[str, Any]:
    return _as_result(_ask(config, "cni_add", params), config["cniVersion"], params)


def _as_result(found: dict[str, Any], version: str, params: dict[str, str]) -> dict[str, Any]:
    """The agent's answer as the specification's Success result; interface 1 is the pod's."""
    try:
        given = found.get("ips") or [found]  # an agent of before IPv6 gives one address
        result = {
            "cniVersion": version,
            "interfaces": [
                {"name": found["host_ifname"]},
                {"name": params["ifname"], "mac": found["mac"], "sandbox": params["netns"]},
            ],
            "ips": [_as_ip(one, version) for one in given],
            "routes": [{"dst": "::/0" if ":" in one["ip"] else "0.0.0.0/0", "gw": one["gateway"]} for one in given],
            "dns": {},
        }
    except (KeyError, TypeError) as e:
        raise CniError(DECODE_FAILURE, "the agent's answer is not what its protocol says", repr(found)) from e
    return result


def _as_ip(found: dict[str, Any], version: str) -> dict[str, Any]:
    address = {"address": f"{found['ip']}/{found['prefix_length']}", "gateway": found["gateway"], "interface": 1}
    return address if version.startswith("1.") else {"version": "6" if ":" in found["ip"] else "4"} | address


def _check(config: dict[str, Any], params: dict[str, str]) -> None:
    if config["cniVersion"] == "0.3.1":
        raise CniError(INCOMPATIBLE_VERSION, "CHECK exists from cniVersion 0.4.0 on")
    previous = config.get("prevResult")
    if not isinstance(previous, dict):
        raise CniError(INVALID_CONFIG, "CHECK needs the prevResult of ADD")
    now = _as_result(_ask(config, "cni_check", params), config["cniVersion"], params)
    before = {ip.get("address") for ip in previous.get("ips") or () if isinstance(ip, dict)}
    if unsaid := sorted({ip["address"] for ip in now["ips"]} - before):
        raise CniError(AGENT_REFUSED, f"the pod has {unsaid[0]}, which prevResult does not say")


def _delete(config: dict[str, Any], params: dict[str, str]) -> None:
    try:
        _ask(config, "cni_del", params)
    except AgentDown:
        queued = _queue_deletion(config, params)
        try:
            # An agent that began to listen after the first try may have emptied the folder before it had this entry.
            _ask(config, "cni_del", params)
        except AgentDown:
            return
        with contextlib.suppress(FileNotFoundError):
            os.unlink(queued)


def _status(config: dict[str, Any]) -> None:
    """Whether an ADD would work now."""
    _check_has(config, "STATUS")
    try:
        _ask(config, "cni_status", {})
    except CniError as e:
        raise CniError(NOT_AVAILABLE, e.message, e.details) from e


def _collect_garbage(config: dict[str, Any]) -> None:
    """Detach every pod that the runtime does not name. A list that is not there is no empty list."""
    _check_has(config, "GC")
    try:
        named = [{"container_id": one["containerID"], "ifname": one["ifname"]} for one in config[_VALID]]
    except (KeyError, TypeError) as e:
        raise CniError(INVALID_CONFIG, f"GC needs {_VALID}, a list of containerID and ifname") from e
    _ask(config, "cni_gc", {"valid": named})


def _check_has(config: dict[str, Any], command: str) -> None:
    if config["cniVersion"] in ("0.3.1", "0.4.0", "1.0.0"):
        raise CniError(INCOMPATIBLE_VERSION, f"{command} exists from cniVersion 1.1.0 on")


def _queue_deletion(config: dict[str, Any], params: dict[str, str]) -> str:
    """Leave word for the agent's next start; returns the file."""
    import hashlib
    from pathlib import Path

    from certs.files import write_atomically

    folder = Path(config.get("socket", SOCKET)).parent / QUEUE
    name = hashlib.sha256(f"{params['container_id']}:{params['ifname']}".encode()).hexdigest()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomically(folder / f"{name}.json", json.dumps(params).encode())
    except OSError as e:
        raise CniError(IO_FAILURE, "the agent is down and the deletion cannot be queued", str(e)) from e
    return str(folder / f"{name}.json")


def _ask(config: dict[str, Any], method: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """One request to the agent: a JSON object in a line each way."""
    path = config.get("socket", SOCKET)
    line = _exchange(path, json.dumps({"method": method, "params": params}).encode() + b"\n")
    try:
        answer = json.loads(line)
        if "error" in answer:
            error = answer["error"]
            code = error.get("code", AGENT_REFUSED)
            raise CniError(code if isinstance(code, int) else AGENT_REFUSED, error["message"], error.get("hint") or "")
        result = answer["result"]
        if not isinstance(result, dict | None):
            raise TypeError("the result is no object")
        return result or {}
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise CniError(DECODE_FAILURE, "the agent's answer is not what its protocol says", repr(line[:200])) from e


def _exchange(path: str, request: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        # Not settimeout(): that would make connect() fail at once while the agent's backlog is full.
        for option in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO):
            connection.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", _TIMEOUT, 0))
        try:
            connection.connect(path)
            connection.sendall(request)
            line = _read_line(connection)
        except (FileNotFoundError, ConnectionError) as e:
            raise AgentDown(f"the agent does not listen on {path}", str(e)) from e
        except OSError as e:
            raise CniError(TRY_AGAIN, "the agent did not answer in time", str(e)) from e
    if not line.endswith(b"\n"):
        raise AgentDown("the agent ended before it answered")
    return line


def _read_line(connection: socket.socket) -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        chunk = connection.recv(1 << 16)
        if not chunk:
            break
        line += chunk
    return line


if __name__ == "__main__":
    main()
