"""Pods in a folder of Kubernetes YAML: which are bound to this node, and reporting their status into the same files.

The folder stands for the API server: a Pod exists while its document does. A status is written by exchanging two files
atomically, so that a Pod deleted at the same moment never comes back.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import yaml
from msgspec import Struct, field

from lab import syscalls

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_Dumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


class _Metadata(Struct):
    name: str
    namespace: str = "default"
    uid: str = ""


class _TcpSocket(Struct):
    port: int


class Probe(Struct, rename="camel"):
    """`tcp_socket` is the only kind of probe known here."""

    tcp_socket: _TcpSocket | None = None
    period_seconds: float = 10


class _Sleep(Struct):
    seconds: float


class _Handler(Struct):
    sleep: _Sleep | None = None


class _Lifecycle(Struct, rename="camel"):
    pre_stop: _Handler | None = None


class EnvVar(Struct):
    name: str
    value: str = ""


class Container(Struct, rename="camel"):
    """The fields the lab's kubelet acts on; images are not run, the command is, over the node's file system."""

    name: str
    command: list[str] = []
    args: list[str] = []
    env: list[EnvVar] = []
    readiness_probe: Probe | None = None
    lifecycle: _Lifecycle | None = None


class _Spec(Struct, rename="camel"):
    containers: list[Container]
    node_name: str = ""
    termination_grace_period_seconds: float = 30


class Pod(Struct):
    """One Pod document."""

    metadata: _Metadata
    spec: _Spec
    kind: str = "Pod"
    status: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str]:
        return self.metadata.namespace, self.metadata.name

    @property
    def pre_stop_seconds(self) -> float:
        """How long the longest preStop sleep of its containers is."""
        hooks = [container.lifecycle.pre_stop for container in self.spec.containers if container.lifecycle]
        return max((hook.sleep.seconds for hook in hooks if hook and hook.sleep), default=0.0)


def _documents(path: Path) -> list[Any]:
    """The documents of one file; none where it is gone or cannot be read as YAML (the API server says so, not we)."""
    try:
        return list(yaml.load_all(path.read_bytes(), Loader=_Loader))
    except (FileNotFoundError, yaml.YAMLError):
        return []


def _pods(documents: list[Any]) -> Iterator[tuple[int, Pod]]:
    for index, document in enumerate(documents):
        if isinstance(document, dict) and document.get("kind") == "Pod":
            try:
                yield index, msgspec.convert(document, Pod)
            except msgspec.ValidationError as error:
                print(f"a Pod is not understood: {error}", flush=True)


class PodFolder:
    """The Pods below `folder` bound to `node`. Files that did not change are not parsed again."""

    def __init__(self, folder: Path, node: str) -> None:
        self._folder, self._node = folder, node
        self._seen: dict[Path, tuple[tuple[int, int, int], list[Pod]]] = {}

    def read(self) -> dict[tuple[str, str], tuple[Path, Pod]]:
        """By namespace and name: the file a Pod is in, and the Pod. As before while there is no folder."""
        if (seen := self._look()) is not None:
            self._seen = seen
        return {
            pod.key: (path, pod)
            for path, (_, pods) in self._seen.items()
            for pod in pods
            if pod.spec.node_name == self._node
        }

    def _look(self) -> dict[Path, tuple[tuple[int, int, int], list[Pod]]] | None:
        """None where there was no folder to look into, also where it went meanwhile: it says nothing of the Pods."""
        seen: dict[Path, tuple[tuple[int, int, int], list[Pod]]] = {}
        for path in self._folder.rglob("*"):
            if path.suffix not in {".yaml", ".yml", ".json"} or path.name.startswith("."):
                continue
            try:
                stat = path.stat()
            except FileNotFoundError:
                continue
            version = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
            known = self._seen.get(path)
            if known is None or known[0] != version:
                known = version, [pod for _, pod in _pods(_documents(path))]
            seen[path] = known
        return seen if self._folder.is_dir() else None


def report(path: Path, key: tuple[str, str], uid: str, status: dict[str, Any]) -> bool:
    """Write `status` into the Pod's document in `path`. False where that Pod is not there (any more)."""
    try:
        before = path.stat().st_ino
    except FileNotFoundError:
        return False
    documents = _documents(path)
    mine = [index for index, pod in _pods(documents) if pod.key == key and pod.metadata.uid == uid]
    if not mine:
        return False
    documents[mine[0]]["status"] = status
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_text(yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False))
    try:
        syscalls.exchange(str(part), str(path))
        if part.stat().st_ino != before:
            syscalls.exchange(
                str(part), str(path)
            )  # someone else wrote meanwhile: theirs counts, we report again later
            return False
    except FileNotFoundError:
        return False
    finally:
        part.unlink(missing_ok=True)
    return True


def status(
    addresses: Sequence[str], hosts: Sequence[str], *, ready: bool, containers: list[Container]
) -> dict[str, Any]:
    """A Pod's status as a kubelet reports it, its own and its node's addresses with the primary one first; it has no
    `addresses` before it is attached."""
    flag = "True" if ready else "False"
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    conditions = [{"type": kind, "status": flag, "lastTransitionTime": now} for kind in ("ContainersReady", "Ready")]
    reported: dict[str, Any] = {"phase": "Running" if addresses else "Pending", "conditions": conditions}
    if addresses:
        reported |= {"hostIP": hosts[0], "hostIPs": [{"ip": host} for host in hosts]}
        reported |= {"podIP": addresses[0], "podIPs": [{"ip": address} for address in addresses]}
    reported["containerStatuses"] = [{"name": container.name, "ready": ready} for container in containers]
    return reported
