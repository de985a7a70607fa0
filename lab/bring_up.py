"""Making a lab: first the whole picture on disk, then all machines at once, then the wires, then the processes.

Order matters little beyond that: every process waits for what it needs, as it must in production.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from certs.folder import initialise
from certs.names import cluster_leaves
from clustermesh.errors import Refused, Unavailable
from clustermesh.standalone import context
from lab import cgroups, internet, machine, manifests, own_folder, preconditions, state, teardown
from lab.lab import Lab
from lab.node_spec import NodeSpec
from lab.plan import INTERNET, ClusterPlan, LabPlan, NodePlan, family_of
from lab.processes import Process, identify
from lab.state import LabState
from lab.waiting import until

READY_SECONDS: Final = 120.0
_POLL_SECONDS: Final = 0.05
_CRASHES: Final = 5  # a service started this often within bring-up will not get better

Report = Callable[[str], None]


async def up(plan: LabPlan, report: Report, *, connected: bool = True, bound: bool = False) -> Lab:
    """The lab of `plan`, all its Pods Ready and behind their services. One that stands already is taken as it is;
    leftovers are removed first.

    `bound` ties it to this process: it ends when this process does. Refused where this machine cannot do it, or a
    lab of another size stands; Unavailable where it does not get ready in READY_SECONDS.
    """
    own_folder.check(Path(plan.folder))
    known = state.load(Path(plan.folder))
    if known is not None and known.standing() and known.owner is None and not bound:
        if known.plan != plan:
            raise Refused("a lab of another size is up: `clustermesh lab down` first")
        report("the lab is up already")
        return Lab(known)
    preconditions.check(plan.families)
    check_free(Path(plan.folder))
    _remove_leftovers(Path(plan.folder), report)
    begun = LabState(plan=plan, owner=identify(os.getpid()), host=teardown.host_network())
    own_folder.take(Path(plan.folder))
    state.save(begun)
    try:
        return await _make(begun, report, connected=connected, bound=bound)
    except asyncio.CancelledError:  # ^C; what failed stays, for its logs, until the next `up` or `down`
        report("interrupted: removing what was made")
        teardown.down(Path(plan.folder))
        raise


def check_free(folder: Path) -> None:
    """Refused where a whole lab stands in `folder`, or what is no lab's; what is left of one is no hindrance."""
    own_folder.check(folder)
    known = state.load(folder)
    if known is not None and known.standing():
        raise Refused("a lab is up already: `clustermesh lab down` first")


def _remove_leftovers(folder: Path, report: Report) -> None:
    if not own_folder.is_lab(folder) and not cgroups.lab_cgroup(folder).exists():
        return
    report("removing what an interrupted lab left behind")
    if left := teardown.down(folder):
        raise Refused(f"an earlier lab cannot be removed: {left[0]} (and {len(left) - 1} more)")


async def _make(known: LabState, report: Report, *, connected: bool, bound: bool) -> Lab:
    plan = known.plan
    report(f"making {len(plan.machines)} machines for {len(plan.clusters)} clusters")
    os.mkdir(cgroups.lab_cgroup(Path(plan.folder)))
    for cluster in plan.clusters:
        _describe(plan, cluster)
    known.processes = await _start_machines(plan, _lifeline() if bound else None)
    known.namespaces = [name for process in known.processes.values() for name in machine.namespaces(process)]
    state.save(known)
    await internet.wire(plan, known.processes)
    lab = Lab(known)
    for cluster in plan.clusters:
        _start_services(lab, cluster)
    await wait_for_pods(lab, report)
    if connected:
        await connect_all(lab, report)
        report("waiting until every node knows every cluster")
        await until(lambda: _all_know_all(lab), "every node knows every cluster", READY_SECONDS)
    await until(lambda: all_lead_to_web(lab, connected=connected), "every node leads to every web pod", READY_SECONDS)
    known.complete, known.owner = True, known.owner if bound else None
    state.save(known)
    return lab


def _describe(plan: LabPlan, cluster: ClusterPlan) -> None:
    """The cluster's folder as `clustermesh init` makes it, its manifests, and what its kubelets call for pods."""
    made = context.create(plan.context(cluster.name), cluster.name, cluster.id, cluster.endpoint)
    initialise(made.certs, cluster_leaves(made.name, [made.address.host]), datetime.now(UTC))
    made.etcd.mkdir(mode=0o700, exist_ok=True)
    manifests.write(made.manifests, manifests.of_cluster(cluster))
    netconf = {"cniVersion": "1.0.0", "name": "clustermesh", "type": "clustermesh-cni"}
    for planned in cluster.nodes:
        home = plan.home(planned.name)
        home.mkdir(parents=True, exist_ok=True)
        (home / "10-clustermesh.conf").write_text(json.dumps(netconf))


def _lifeline() -> int:
    """The reading end of a pipe nobody writes to; its other end closes with this process and with nothing else."""
    reading, _ = os.pipe()
    return reading


async def _start_machines(plan: LabPlan, lifeline: int | None) -> dict[str, Process]:
    specs = {planned.name: _spec(plan, planned) for planned in plan.machines}
    specs[INTERNET] = _spec(plan, NodePlan(name=INTERNET, cluster=""))
    async with asyncio.TaskGroup() as group:
        tasks = {
            name: group.create_task(machine.start(plan.home(name), spec, lifeline)) for name, spec in specs.items()
        }
    return {name: task.result() for name, task in tasks.items()}


def _spec(plan: LabPlan, planned: NodePlan) -> NodeSpec:
    """A machine sees its own folder and its own cluster's, nobody else's; etcd's data stays in memory."""
    cgroup2 = cgroups.cgroup2_root()
    home = str(plan.home(planned.name))
    folder = plan.context(planned.cluster) if planned.cluster else None
    return NodeSpec(
        name=planned.name,
        folder=plan.folder,
        cgroup=str(cgroups.lab_cgroup(Path(plan.folder)) / planned.name),
        cgroup2=str(cgroup2),
        binds=[home] if folder is None else [home, str(folder)],
        private=[f"{folder}/etcd"] if folder is not None and not planned.pod_cidrs else [],
        environment=machine.environment(folder),
    )


def _start_services(lab: Lab, cluster: ClusterPlan) -> None:
    folder = str(lab.plan.context(cluster.name))
    clustermesh, agent = (str(machine.bin_folder() / name) for name in ("clustermesh", "clustermesh-agent"))
    lab.keep(cluster.control.name, "etcd", [clustermesh, "etcd", "--context", folder])
    lab.keep(cluster.control.name, "apiserver", [clustermesh, "apiserver", "--context", folder])
    for planned in cluster.nodes:
        lab.keep(planned.name, "agent", [agent, "--context", folder, "--node", planned.name])
        lab.keep(planned.name, "kubelet", _kubelet(lab.plan, planned))


def _kubelet(plan: LabPlan, planned: NodePlan) -> list[str]:
    options: Mapping[str, object] = {
        "--node": planned.name,
        "--host-ips": ",".join(planned.addresses),
        "--manifests": plan.context(planned.cluster) / "manifests",
        "--cni-conf": plan.home(planned.name) / "10-clustermesh.conf",
        "--cni-bin": machine.bin_folder(),
        "--cgroup2": cgroups.cgroup2_root(),
    }
    python = str(machine.bin_folder() / "python")
    return [python, "-m", "lab.kubelet", *(str(word) for pair in options.items() for word in pair)]


async def wait_for_pods(lab: Lab, report: Report, seconds: float = READY_SECONDS) -> None:
    """Until every planned Pod is Ready. Unavailable after `seconds`, or as soon as a service keeps crashing."""
    end, said = time.monotonic() + seconds, ""
    while True:
        wanted = {(pod.cluster, pod.name) for pod in lab.plan.pods}
        ready = {
            (pod.cluster, pod.name) for cluster in lab.plan.clusters for pod in lab.pods(cluster.name) if pod.ready
        }
        if wanted <= ready:
            return
        if said != (said := f"{len(wanted & ready)} of {len(wanted)} pods ready"):
            report(said)
        _raise_for_crashes(lab)
        if time.monotonic() > end:
            cluster, name = min(wanted - ready)
            why = f"{_last_words(lab, cluster)}; all logs are in {lab.plan.folder}/nodes"
            raise Unavailable(f"{cluster}/{name} is not Ready after {seconds:.0f} s; {why}")
        await asyncio.sleep(_POLL_SECONDS)


def _raise_for_crashes(lab: Lab) -> None:
    for found in lab.status().machines:
        for service in found.services:
            if service.starts >= _CRASHES:
                said = lab.log(found.name, service.name)
                raise Unavailable(
                    f"{service.name} of {found.name} ended {service.starts - 1} times; all logs are in "
                    f"{lab.plan.folder}/nodes; it said: {said}"
                )


def _last_words(lab: Lab, cluster: str) -> str:
    """Why, as far as the logs of that cluster know."""
    planned = lab.plan.cluster(cluster)
    services = [(planned.control.name, "etcd"), (planned.control.name, "apiserver")]
    services += [(node.name, service) for node in planned.nodes for service in ("agent", "kubelet")]
    words = [f"{service} of {name} said: {said}" for name, service in services if (said := lab.log(name, service, 300))]
    return "; ".join(words) or "no process said anything"


async def _all_know_all(lab: Lab) -> bool:
    """Whether every agent has the whole state of every cluster."""
    for cluster in lab.plan.clusters:
        for node in cluster.nodes:
            known = (await lab.ask_agent(node.name, "status"))["clusters"]
            if sum(one["state"] == "fresh" for one in known) < len(lab.plan.clusters):
                return False
    return True


async def all_lead_to_web(lab: Lab, *, connected: bool) -> bool:
    """Whether the kernel of every node has all web pods of its cluster, or of all that are `connected`, behind `web`. A
    Pod that is Ready is there later than its document says so: it goes by the API server, etcd and the agent."""
    web = {name: _web_addresses(lab, name) for name in (cluster.name for cluster in lab.plan.clusters)}
    for cluster in lab.plan.clusters:
        wanted = set[str]().union(*web.values()) if connected else web[cluster.name]
        for node in cluster.nodes:
            rows = await lab.ask_agent(node.name, "services")
            for ip in cluster.web_ips:
                of_ip = [row for row in rows if row["address"] == ip]
                there = [{backend["address"] for backend in row["backends"]} for row in of_ip]
                family = {address for address in wanted if family_of(address) == family_of(ip)}
                if not there or not all(family <= each for each in there):
                    return False
            if any(target["pending"] for target in (await lab.ask_agent(node.name, "status"))["targets"]):
                return False
    return True


def _web_addresses(lab: Lab, cluster: str) -> set[str]:
    names = {pod.name for pod in lab.plan.cluster(cluster).pods_of("web")}
    return {address for pod in lab.pods(cluster) if pod.name in names for address in pod.addresses}


async def connect_all(lab: Lab, report: Report, verb: str = "connect") -> None:
    """Join every two clusters, as a person would, with `clustermesh connect`; or take them apart with "disconnect"."""
    names = [cluster.name for cluster in lab.plan.clusters]
    pairs = [(one, other) for index, one in enumerate(names) for other in names[index + 1 :]]
    for done, (one, other) in enumerate(pairs):
        report(f"{verb} {one} and {other} ({done + 1} of {len(pairs)})")
        await connect(lab, one, other, verb)


async def connect(lab: Lab, one: str, other: str, verb: str = "connect") -> None:
    """`clustermesh connect` (or "disconnect") two clusters."""
    folders = ["--context", str(lab.plan.context(one)), "--destination-context", str(lab.plan.context(other))]
    await machine.run([str(machine.bin_folder() / "clustermesh"), verb, *folders])
