"""What agents have left on the nodes, taken off by pods: a DaemonSet made of the agents' own, until each has done it.

Nobody needs a shell on a node: the pods have the agents' image and privileges, and nothing else of theirs. Where it
does not come to its end, the DaemonSet stays for the next run to go by, held: without a pod, for one that came to a
node late would find new agents there.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import islice
from secrets import token_hex
from typing import Any, Final

from msgspec import Struct, field

from clustermesh import __version__
from clustermesh.errors import ClusterMeshError, Refused, Unavailable
from clustermesh.joining.member import Version
from clustermesh.joining.names import AGENTS
from clustermesh.joining.objects import MANAGED_BY, MANAGER, Named, Objects
from clustermesh.kube.faults import NotServed

NAME: Final = "clustermesh-cleanup"
_GROUP: Final = "apis/apps/v1"
_MOUNTED: Final = frozenset(("run", "state", "bpf", "cgroup", "netns", "tun", "wireguard", "tmp"))
_OF_POD: Final = ("imagePullSecrets", "nodeSelector", "affinity", "tolerations", "priorityClassName")
_HELD: Final = ("clustermesh.io/cleanup", "held")
"""A label that no node has."""
_RUN: Final = "clustermesh.io/run"
_ENDING: Final = "k8s-app in (clustermesh-agent,clustermesh-apiserver,clustermesh-wireguard)"
_POLL: Final = 1.0
_ENDING_SECONDS: Final = 60.0
_PATIENCE: Final = 300.0
_MOST_NAMED: Final = 10


class _Status(Struct, frozen=True):
    observed: int = field(name="observedGeneration", default=0)
    wanted: int = field(name="desiredNumberScheduled", default=0)
    updated: int = field(name="updatedNumberScheduled", default=0)
    ready: int = field(name="numberReady", default=0)

    @property
    def done(self) -> int:
        """Nodes whose pod is ready and this run's, at least: the controller looks at the same pod for both."""
        return max(0, self.ready + self.updated - self.wanted)


class _Meta(Struct, frozen=True):
    generation: int = 0


class _DaemonSet(Struct, frozen=True):
    metadata: _Meta
    status: _Status = _Status()


class _Event(Struct, frozen=True):
    reason: str = ""
    message: str = ""


class _State(Struct, frozen=True):
    waiting: _Event | None = None
    terminated: _Event | None = None


class _Container(Struct, frozen=True, rename="camel"):
    name: str
    ready: bool = False
    state: _State = _State()
    last_state: _State = _State()


class _PodSpec(Struct, frozen=True, rename="camel"):
    node_name: str = ""


class _PodStatus(Struct, frozen=True, rename="camel"):
    init_container_statuses: list[_Container] = []
    container_statuses: list[_Container] = []


class Pod(Struct, frozen=True):
    """One that cleans, as far as it tells how far it is."""

    spec: _PodSpec = _PodSpec()
    status: _PodStatus = _PodStatus()


async def find_cleanup(objects: Objects) -> dict[str, Any] | None:
    """The pods that clean, by what the agents' are, or those of an earlier try; None where there is neither. Raises
    Refused where the agents are of an older version, whose image cannot do it."""
    agents = await objects.read("daemonsets", AGENTS, dict, _GROUP)
    if agents is not None:
        _check_version(agents)
        return cleanup_of(agents)
    begun = await objects.read("daemonsets", NAME, dict, _GROUP)
    if begun is None:
        return None
    pod: dict[str, Any] = begun["spec"]["template"]["spec"]
    selector = {key: value for key, value in pod.pop("nodeSelector", {}).items() if key != _HELD[0]}
    return pod | ({"nodeSelector": selector} if selector else {})


def _check_version(agents: Mapping[str, Any]) -> None:
    """Of the chart, or of an image that is tagged with one."""
    image = next(each["image"] for each in agents["spec"]["template"]["spec"]["containers"] if each["name"] == "agent")
    tag = image.partition("@")[0].rpartition("/")[2].partition(":")[2]
    ours = Version("clustermesh", __version__).minor
    for said in ((agents["metadata"].get("labels") or {}).get("app.kubernetes.io/version", ""), tag):
        theirs = Version("clustermesh", said).minor
        if ours is not None and theirs is not None and theirs < ours:
            raise Refused(
                f"agents of version {said} need not have what this command, {__version__}, cleans nodes with: "
                "`clustermesh upgrade` first, then this again"
            )


def cleanup_of(agents: Mapping[str, Any]) -> dict[str, Any]:
    """What a pod is that is ready once nothing of an agent is left on its node."""
    pod = agents["spec"]["template"]["spec"]
    containers = {each["name"]: each for each in (*pod.get("initContainers", ()), *pod["containers"])}
    agent, plugin = containers["agent"], containers.get("cni-install")
    common = {key: agent[key] for key in ("image", "imagePullPolicy") if key in agent}
    telling = {"terminationMessagePolicy": "FallbackToLogsOnError"}
    writable = 'mount -o remount,bind,rw /proc/sys 2>/dev/null; exec clustermesh "$@"'
    cleanup = {
        "name": "cleanup",
        **common,
        **telling,
        "command": ["sh", "-c", writable, "cleanup"],
        "args": ["node", "cleanup", "--force"],
        "securityContext": agent["securityContext"],
        "volumeMounts": [each for each in agent["volumeMounts"] if each["name"] in _MOUNTED],
    }
    nobody = {
        "runAsUser": 65534,
        "runAsNonRoot": True,
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    last = [{**plugin, **telling, "args": [*plugin["args"], "--remove"]}] if plugin is not None else []
    mounted = {mount["name"] for each in (cleanup, *last) for mount in each["volumeMounts"]}
    return {
        "hostNetwork": True,
        "dnsPolicy": "Default",
        "enableServiceLinks": False,
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": 0,
        **{key: pod[key] for key in _OF_POD if key in pod},
        "initContainers": [cleanup, *last],  # beside an agent the first fails, and the network stays
        "containers": [
            {"name": "done", **common, "command": ["sleep", "infinity"], "securityContext": nobody},
        ],
        "volumes": [each for each in pod["volumes"] if each["name"] in mounted],
    }


async def hold(objects: Objects, pod: Mapping[str, Any]) -> None:
    """Have it kept, and run on no node. Raises ClusterMeshError."""
    selector = dict([*pod.get("nodeSelector", {}).items(), _HELD])
    await _apply(objects, {"spec": {**pod, "nodeSelector": selector}})


async def _apply(objects: Objects, template: Mapping[str, Any]) -> None:
    labels = {"k8s-app": NAME}
    metadata = {"labels": labels, **template.get("metadata", {})}
    document = {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": NAME, "labels": {**labels, MANAGED_BY: MANAGER}},
        "spec": {
            "selector": {"matchLabels": labels},
            "updateStrategy": {
                "type": "RollingUpdate",
                "rollingUpdate": {"maxUnavailable": "100%"},
            },  # all nodes at once
            "template": {**template, "metadata": metadata},
        },
    }
    await objects.apply("daemonsets", document, MANAGER, _GROUP, force=True)


async def clean_nodes(
    objects: Objects, pod: Mapping[str, Any], say: Callable[[str], None], patience: float = _PATIENCE
) -> int:
    """On how many nodes such a pod has done it; the DaemonSet is gone then. Else it is held, to be gone on from.

    Raises ClusterMeshError: Refused where there are agents, Unavailable where a node takes longer than `patience`
    seconds."""
    if await objects.read("daemonsets", AGENTS, _DaemonSet, _GROUP) is not None:
        raise Refused(
            f"DaemonSet {AGENTS} is there, which is no release's: have it deleted by what made it, or `kubectl delete "
            f"daemonset -n {objects.namespace} {AGENTS}`, then this again, which goes by DaemonSet {NAME}"
        )
    try:
        await _until_ended(objects, say)
        await _apply(objects, {"metadata": {"annotations": {_RUN: token_hex(4)}}, "spec": pod})
        nodes = await _until_done(objects, say, patience)
        await discard(objects)
    except BaseException:
        with suppress(ClusterMeshError):
            await hold(objects, pod)
        raise
    return nodes


async def _until_ended(objects: Objects, say: Callable[[str], None]) -> None:
    """Pods of the chart have ended, or are on a node that is away: the end of a pod needs its network's plugin."""
    deadline = time.monotonic() + _ENDING_SECONDS
    while left := len(await objects.list(_pods(objects), Named, _ENDING)):
        if time.monotonic() > deadline:
            return
        say(f"{left} pods of the chart are ending")
        await asyncio.sleep(_POLL)


async def _until_done(objects: Objects, say: Callable[[str], None], patience: float) -> int:
    deadline = time.monotonic() + patience
    while True:
        found = await objects.read("daemonsets", NAME, _DaemonSet, _GROUP)
        known = found is not None and 0 < found.metadata.generation <= found.status.observed
        status = found.status if found is not None and known else _Status()
        if known and status.done >= status.wanted:
            return status.wanted
        done = f"{status.done} of {status.wanted} nodes are cleaned"
        if time.monotonic() > deadline:
            lacking = list(find_lacking(await objects.list(_pods(objects), Pod, f"k8s-app={NAME}")))
            more = [f"and {len(lacking) - _MOST_NAMED} more"] if len(lacking) > _MOST_NAMED else []
            told = "; ".join([done, *islice(lacking, _MOST_NAMED), *more])
            raise Unavailable(f"{told}: the same command again goes on")
        say(done)
        await asyncio.sleep(_POLL)


def find_lacking(pods: Iterable[Pod]) -> Iterator[str]:
    """Of each that is not done: its node, the container that it is at, and what that said last."""
    for pod in sorted(pods, key=lambda each: each.spec.node_name):
        containers = [*pod.status.init_container_statuses, *pod.status.container_statuses]
        at = next((each for each in containers if not each.ready), None)
        if at is not None:
            events = (at.state.terminated, at.last_state.terminated, at.state.waiting)
            said = [each.message.strip() or each.reason for each in events if each is not None]
            last = next((each.splitlines()[-1] for each in said if each), "")
            yield f"{pod.spec.node_name}: {at.name}: {last or 'runs'}"
        elif not containers:
            yield f"{pod.spec.node_name or 'a pod that no node has'}: nothing has begun"


async def discard(objects: Objects) -> bool:
    """Delete the DaemonSet; False where there was none. Raises ClusterMeshError."""
    path = f"/{_GROUP}/namespaces/{objects.namespace}/daemonsets/{NAME}"
    try:
        await objects.send("DELETE", path, f"delete daemonsets/{NAME}", {"propagationPolicy": "Background"})
    except NotServed:
        return False
    return True


def _pods(objects: Objects) -> str:
    return f"/api/v1/namespaces/{objects.namespace}/pods"
