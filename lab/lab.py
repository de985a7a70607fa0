"""A standing lab: its machines and pods by name, running things in them, changing its manifests."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import yaml
from msgspec import Struct

from clustermesh.errors import Invalid, Refused, Unavailable
from lab import cgroups, machine, manifests, node_spec, state
from lab.manifests import NAMESPACE, Document
from lab.plan import LabPlan, PodPlan
from lab.processes import Process, lives
from lab.state import LabState

AGENT_SOCKET: Final = "/run/clustermesh/agent.sock"
_SOCKET_SECONDS: Final = 30.0
_MOST_ANSWER: Final = 64 << 20
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class PodStatus(Struct, frozen=True, kw_only=True):
    """A Pod as its document says: `address` is the first of `addresses`, "" before it is attached."""

    name: str
    namespace: str
    cluster: str
    node: str
    address: str
    addresses: tuple[str, ...]
    ready: bool


class ServiceStatus(Struct, frozen=True, kw_only=True):
    """A process kept running on a machine: `pid` inside it, 0 while down; `starts` counts, so 1 is never restarted."""

    name: str
    pid: int
    starts: int


class MachineStatus(Struct, frozen=True, kw_only=True):
    """One machine, "internet" included."""

    name: str
    lives: bool
    address: str
    addresses: tuple[str, ...]
    services: tuple[ServiceStatus, ...]


class LabStatus(Struct, frozen=True, kw_only=True):
    """The whole lab; `standing` once it is complete and all machines live."""

    standing: bool
    folder: str
    machines: tuple[MachineStatus, ...]
    pods: tuple[PodStatus, ...]


class Lab:
    """A lab that was brought up. Every method raises Invalid for a name it does not have."""

    def __init__(self, known: LabState) -> None:
        self.state = known
        self.plan: LabPlan = known.plan
        self._cgroup = cgroups.lab_cgroup(Path(known.plan.folder))

    @classmethod
    def open(cls, folder: Path) -> Lab:
        """The lab in `folder`. Refused where none stands there."""
        known = state.load(folder)
        if known is None:
            raise Refused("no lab is up: `clustermesh lab up` makes one")
        if not known.standing():
            raise Refused("the lab is incomplete (its maker or a machine was killed): run `clustermesh lab up` again")
        return cls(known)

    def process(self, name: str) -> Process:
        """The first process of a machine."""
        try:
            return self.state.processes[name]
        except KeyError:
            known = ", ".join(sorted(self.state.processes))
            raise Invalid("machine", name, f"must be one of {known}, or CLUSTER/POD") from None

    def environment(self, name: str) -> dict[str, str]:
        """Of processes on that machine."""
        mine = [planned.cluster for planned in self.plan.machines if planned.name == name]
        return machine.environment(self.plan.context(mine[0]) if mine else None)

    def command(self, where: str, argv: Sequence[str]) -> tuple[list[str], dict[str, str]]:
        """The host's command and environment to run `argv` on a machine ("alpha-1") or in a pod ("alpha/web-1")."""
        cluster, slash, name = where.partition("/")
        if not slash:
            return machine.enter(self.process(where), str(self._cgroup / where), argv), self.environment(where)
        pod = next((pod for pod in self.pods(cluster) if pod.name == name), None)
        if pod is None or not pod.addresses:
            raise Invalid("pod", where, f"is no running pod; see the pods of {cluster} in `clustermesh lab status`")
        entered = machine.enter(
            self.process(pod.node), str(self._cgroup / pod.node), argv, pod=f"{pod.namespace}_{name}"
        )
        return entered, self.environment(pod.node)

    async def run(self, where: str, *argv: str, seconds: float = 30.0) -> str:
        """What `argv` printed there. Refused where it fails, Unavailable after `seconds`."""
        command, environment = self.command(where, argv)
        return await machine.run(command, seconds=seconds, env=environment)

    def keep(self, name: str, service: str, argv: Sequence[str]) -> None:
        machine.keep(self.plan.home(name), service, argv)

    def service_pid(self, name: str, service: str) -> int:
        """Its pid inside the machine. Unavailable while it is down."""
        running = node_spec.read_running(self.plan.home(name)).get(service)
        if running is None or not running.pid:
            raise Unavailable(f"{service} of {name} does not run")
        return running.pid

    async def kill(self, name: str, service: str) -> int:
        """SIGKILL to a service, which its machine will start again; the pid it had."""
        pid = self.service_pid(name, service)
        await self.run(name, "sh", "-c", f"kill -KILL {pid}")  # a bare Debian has no kill but its shell's
        return pid

    async def ask_agent(self, name: str, method: str, **params: Any) -> Any:
        """One call of the agent's unix socket. Unavailable where nobody answers, Refused where it says no."""
        path = machine.inside(self.process(name), AGENT_SOCKET)
        try:
            async with asyncio.timeout(_SOCKET_SECONDS):
                reader, writer = await asyncio.open_unix_connection(str(path), limit=_MOST_ANSWER)
                try:
                    writer.write(json.dumps({"method": method, "params": params}).encode() + b"\n")
                    answer = json.loads(await reader.readline())
                finally:
                    writer.close()
        except (OSError, ValueError) as error:
            raise Unavailable(f"the agent of {name} does not answer: {error}") from error
        if "error" in answer:
            raise Refused(f"the agent of {name}: {answer['error'].get('message')}")
        return answer["result"]

    def pods(self, cluster: str) -> list[PodStatus]:
        """The Pods of a cluster that have a document now, by name."""
        self.plan.cluster(cluster)
        found = []
        for path in (self.plan.context(cluster) / "manifests").rglob("[!.]*.y*ml"):
            try:
                documents = list(yaml.load_all(path.read_bytes(), Loader=_Loader))
            except (FileNotFoundError, yaml.YAMLError):  # deleted meanwhile, or not for us to judge
                continue
            found += [_pod_status(cluster, pod) for pod in documents if isinstance(pod, dict) and _is_bound_pod(pod)]
        return sorted(found, key=lambda pod: pod.name)

    def apply(self, cluster: str, files: Mapping[str, Document]) -> None:
        """Write manifests of a cluster, as `kubectl apply` would."""
        manifests.write(self.plan.context(cluster) / "manifests", files)

    def delete(self, cluster: str, *files: str) -> None:
        manifests.remove(self.plan.context(cluster) / "manifests", *files)

    def apply_pods(self, pods: Sequence[PodPlan]) -> None:
        for pod in pods:
            self.apply(pod.cluster, {manifests.pod_file(pod.name): manifests.pod(pod)})

    def delete_pods(self, pods: Sequence[PodPlan]) -> None:
        for pod in pods:
            self.delete(pod.cluster, manifests.pod_file(pod.name))

    def sandbox_of(self, pod: PodPlan) -> Path:
        """The host's way to the pod's network namespace: it exists from before the pod starts until after it ended."""
        return machine.inside(self.process(pod.node), f"/run/netns/{NAMESPACE}_{pod.name}")

    def status(self) -> LabStatus:
        addresses = {planned.name: planned.addresses for planned in self.plan.machines}
        return LabStatus(
            standing=self.state.standing(),
            folder=self.plan.folder,
            machines=tuple(
                MachineStatus(
                    name=name,
                    lives=lives(process),
                    address=next(iter(addresses.get(name, ())), ""),
                    addresses=addresses.get(name, ()),
                    services=_services(self.plan.home(name)),
                )
                for name, process in self.state.processes.items()
            ),
            pods=tuple(pod for cluster in self.plan.clusters for pod in self.pods(cluster.name)),
        )

    def log(self, name: str, service: str, characters: int = 600) -> str:
        """The end of what a service printed."""
        try:
            return (self.plan.home(name) / "log" / f"{service}.log").read_text(errors="replace")[-characters:].strip()
        except FileNotFoundError:
            return ""


def _is_bound_pod(document: dict[str, Any]) -> bool:
    return document.get("kind") == "Pod" and bool((document.get("spec") or {}).get("nodeName"))


def _pod_status(cluster: str, document: Any) -> PodStatus:
    status = document.get("status") or {}
    ready = any(c["type"] == "Ready" and c["status"] == "True" for c in status.get("conditions", ()))
    return PodStatus(
        name=document["metadata"]["name"],
        namespace=document["metadata"].get("namespace", NAMESPACE),
        cluster=cluster,
        node=document["spec"]["nodeName"],
        address=status.get("podIP", ""),
        addresses=tuple(each["ip"] for each in status.get("podIPs", ())),
        ready=ready,
    )


def _services(home: Path) -> tuple[ServiceStatus, ...]:
    running = node_spec.read_running(home)
    return tuple(ServiceStatus(name=name, pid=one.pid, starts=one.starts) for name, one in sorted(running.items()))
