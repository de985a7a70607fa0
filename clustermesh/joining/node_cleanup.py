"""What agents have left on the nodes, taken off by pods: a DaemonSet made of the agents' own, until each has done it.

Nobody needs a shell on a node: the pods have the agents' image and privileges, and nothing else of theirs.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from msgspec import Struct, field

from clustermesh.errors import Refused, Unavailable
from clustermesh.joining.objects import MANAGED_BY, MANAGER, Objects
from clustermesh.kube.faults import NotServed

AGENTS: Final = "clustermesh-agent"
NAME: Final = "clustermesh-cleanup"
_GROUP: Final = "apis/apps/v1"
_MOUNTED: Final = frozenset(("run", "state", "bpf", "cgroup", "netns", "tun", "wireguard", "tmp"))
_OF_POD: Final = ("imagePullSecrets", "nodeSelector", "affinity", "tolerations", "priorityClassName")
_POLL: Final = 1.0
_PATIENCE: Final = 300.0


class _Status(Struct, frozen=True):
    observed: int = field(name="observedGeneration", default=0)
    wanted: int = field(name="desiredNumberScheduled", default=0)
    ready: int = field(name="numberReady", default=0)


class _Meta(Struct, frozen=True):
    generation: int = 0


class _DaemonSet(Struct, frozen=True):
    metadata: _Meta
    status: _Status = _Status()


async def find_cleanup(objects: Objects) -> dict[str, Any] | None:
    """The DaemonSet to apply, by what the agents' is, or that of an earlier try; None where there is neither."""
    agents = await objects.read("daemonsets", AGENTS, dict, _GROUP)
    if agents is not None:
        return cleanup_of(agents)
    begun = await objects.read("daemonsets", NAME, dict, _GROUP)
    return None if begun is None else _document(begun["spec"]["template"]["spec"])


def cleanup_of(agents: Mapping[str, Any]) -> dict[str, Any]:
    """Its pods are ready once nothing of an agent is left on their node."""
    pod = agents["spec"]["template"]["spec"]
    containers = {each["name"]: each for each in (*pod.get("initContainers", ()), *pod["containers"])}
    agent, plugin = containers["agent"], containers.get("cni-install")
    common = {key: agent[key] for key in ("image", "imagePullPolicy") if key in agent}
    writable = 'mount -o remount,bind,rw /proc/sys 2>/dev/null; exec clustermesh "$@"'
    cleanup = {
        "name": "cleanup",
        **common,
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
    last = [{**plugin, "args": [*plugin["args"], "--remove"]}] if plugin is not None else []
    mounted = {mount["name"] for each in (cleanup, *last) for mount in each["volumeMounts"]}
    return _document(
        {
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
    )


def _document(pod: Mapping[str, Any]) -> dict[str, Any]:
    labels = {"k8s-app": NAME}
    return {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": NAME, "labels": {**labels, MANAGED_BY: MANAGER}},
        "spec": {"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": pod}},
    }


async def clean_nodes(
    objects: Objects, cleanup: Mapping[str, Any], say: Callable[[str], None], patience: float = _PATIENCE
) -> int:
    """On how many nodes it is done; the DaemonSet `cleanup` is gone then. Raises ClusterMeshError: Refused where there
    are agents, Unavailable where a node takes longer than `patience` seconds, and then the DaemonSet stays."""
    if await objects.read("daemonsets", AGENTS, _DaemonSet, _GROUP) is not None:
        raise Refused(f"DaemonSet {AGENTS} is there, which is no release's: `kubectl delete` it, and this again")
    await objects.apply("daemonsets", cleanup, MANAGER, _GROUP, force=True)
    deadline = time.monotonic() + patience
    while True:
        found = await objects.read("daemonsets", NAME, _DaemonSet, _GROUP)
        status = _Status() if found is None else found.status
        if found is not None and 0 < found.metadata.generation <= status.observed and status.ready >= status.wanted:
            break
        done = f"{status.ready} of {status.wanted} nodes are cleaned"
        if time.monotonic() > deadline:
            logs = f"kubectl logs -n {objects.namespace} -l k8s-app={NAME} -c cleanup"
            raise Unavailable(f"{done}: `{logs}` says why the others are not; the same command again goes on")
        say(done)
        await asyncio.sleep(_POLL)
    try:
        path = f"/{_GROUP}/namespaces/{objects.namespace}/daemonsets/{NAME}"
        await objects.send("DELETE", path, f"delete daemonsets/{NAME}", {"propagationPolicy": "Background"})
    except NotServed:
        pass
    return status.wanted
