"""What a person should look at, as rows: status, metrics and the report in etcd render this one list."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import NamedTuple

from agent.cni.methods import Pods
from agent.domains.domains import Domains
from clustermesh.address import text
from clustermesh.mesh.peers import Peers
from clustermesh.mesh.refusals import Reason, Refusals
from clustermesh.mesh.state import MeshState

_SHOWN = 20  # problems of one kind
_LONG = 10.0  # seconds that a step takes at most where all is well
_NAMED = 3  # things with one and the same problem
_MAKE_ROOM = "have some clusters say less, or disconnect one: `clustermesh node limits` tells who has how much"
_MAP_DIFF = "it is tried again by itself; what is missing is in `clustermesh node map diff`"


class Problem(NamedTuple):
    """`remedy` is what to do, "" for nothing; `shared` is what every node may have at the same moment."""

    domain: str
    what: str
    remedy: str
    shared: bool = True

    def __str__(self) -> str:
        return f"{self.what}; {self.remedy}" if self.remedy else self.what


def find(
    domains: Domains, pods: Pods, unsavable: Mapping[str, str], peers: Peers, state: MeshState, rival: str = ""
) -> Iterator[Problem]:
    """All of them; `unsavable` says why the last good state of a cluster is not on disk, `rival` who else claims to be
    this node.
    """
    if rival:
        yield Problem("node", rival, "stop one of them, or give it the --node that it is", shared=False)
    for what, remedy in _of_the_node(domains, pods, unsavable, peers):
        yield Problem("node", what, remedy, shared=False)
    for name, problem in islice(pods.problems.items(), _SHOWN):
        yield Problem("pods", f"pods: {name}: {problem}", "delete the pod, and it is made anew", shared=False)
    for each in peers.problems:
        yield Problem("peers", f"peers folder: {each}", "correct it, or disconnect that cluster")
    for cluster in state.views:
        for what, remedy in _refused(cluster, state.refusals(cluster), cluster == state.own):
            yield Problem("refused", what, remedy)
    for why, nodes in _by_reason(domains.network.planner.problems).items():
        yield Problem("network", f"Node {_few(nodes)} {why}", "see `clustermesh node encrypt status`")
    for tracker in domains.trackers:
        if tracker.error:
            count = f"{len(tracker.failed)} entries not applied: " if tracker.failed else ""
            yield Problem(tracker.name, f"{tracker.name}: {count}{tracker.error}", _MAP_DIFF)
    yield from _being_written(domains)
    yield from _unplanned(domains)
    for service, why in islice(domains.services.left_out.items(), _SHOWN):
        yield Problem("services", f"Service {'/'.join(service)} is left out: {why}", "")
    for service, why in islice(domains.services.unanswered.items(), _SHOWN):
        yield Problem("services", f"Service {'/'.join(service)}: {why}", "give it another healthCheckNodePort")
    for frontend, names in islice(domains.services.planner.conflicts().items(), _SHOWN):
        where = f"{text(frontend.address)}:{frontend.port}/{frontend.protocol}"
        claimants = ", ".join("/".join(name) for name in names[:_SHOWN])
        yield Problem(
            "services", f"{where} is claimed by {claimants}", "the first is served: give the others another address"
        )


def _unplanned(domains: Domains) -> Iterator[Problem]:
    """What could not be planned, whatever finds no room in the maps too: the first by their names, and how many."""
    if (count := sum(len(each.problems) for each in domains.all)) > _SHOWN:
        yield Problem("planning", f"{count} items could not be planned, of which the first {_SHOWN} are named", "")
    for problem, is_bug in islice(domains.problems(), _SHOWN):
        yield Problem("planning", problem, "it is planned again by itself" + (", please report it" if is_bug else ""))


def _being_written(domains: Domains) -> Iterator[Problem]:
    """What a step that takes long has not got to yet: what failed is told of its table."""
    for domain in domains.all:
        if (seconds := domain.stepping_for) > _LONG:
            for tracker in domain.trackers:
                if waiting := tracker.pending_size - len(tracker.problems):
                    what = f"{tracker.name}: being written: {waiting} entries are still to go since {seconds:.0f} s"
                    yield Problem(tracker.name, what, "wait: what is there already goes on")


def _of_the_node(domains: Domains, pods: Pods, unsavable: Mapping[str, str], peers: Peers) -> Iterator[tuple[str, str]]:
    if domains.tunnels.error:
        yield f"node set-up: {domains.tunnels.error}", "mend that, it is tried again"
    if domains.pinned.error:
        yield domains.pinned.error, "mend that, and do not stop the agent before: programs and maps would go with it"
    device = domains.node.device
    if device.silent_since is not None:
        clock = time.strftime("%H:%M:%S", time.gmtime(device.silent_since))
        stopped = "look whether its wireguard-go is stopped (`ps -o stat,args -C wireguard-go`)"
        yield (
            f"WireGuard device {device.name} does not answer since {clock} UTC",
            f"{stopped}; killed, it is started again",
        )
    if device.unlogged:
        yield f"the wireguard-go of {device.name} has no log: {device.unlogged}", "make it writable, or make room there"
    if pods.unwritable:
        yield f"no pod can start or end on this node: {pods.unwritable}", "make it writable, or make room there"
    for path in peers.lost_files:
        said = f"what was kept of cluster {path.stem} cannot be read, or is older than the kernel's tables: {path}"
        yield said, "it is written anew once that cluster was read"
    for why, clusters in _by_reason(unsavable).items():
        old = "or an agent that starts without etcd begins with an old one"
        yield f"the last good state of {_few(clusters)} is not saved: {why}", f"make room there, {old}"


def _refused(cluster: str, refusals: Refusals, is_own: bool) -> Iterable[tuple[str, str]]:
    """One for each table that is full, and for each reason, with the first names and the first sentence."""
    full = refusals.of("tables")
    for refusal in full.values():
        remedy = "raise clustermesh-limits in its peer file, or have it say less"
        if refusal.reason is Reason.FULL:
            remedy = _MAKE_ROOM
        yield f"{cluster} {refusal.why} ({refusal.reason})", remedy
    for reason, found in sorted(refusals.first(_NAMED + len(full)).items()):
        named = {name: why for name, why in found.items() if not name.startswith("tables/")}
        count = refusals.counts[reason] - sum(each.entries for each in full.values() if each.reason is reason)
        if not named:
            continue
        names = _few([*named, *[""] * (count - len(named))])
        entries = f"{count} entries of {cluster} are" if count > 1 else f"1 entry of {cluster} is"
        remedy = "correct them" if is_own else f"have them corrected in {cluster}"
        if reason is Reason.WAITING:
            remedy = "they are used once it is"
        if reason is Reason.FULL:
            remedy = _MAKE_ROOM
        yield (
            f"{entries} refused and not used ({reason}): {names}: {next(iter(named.values()))}",
            f"{remedy}, all are in `clustermesh node refused`",
        )


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + ", …" * (len(names) > _NAMED)


def _by_reason(why: Mapping[str, str]) -> dict[str, list[str]]:
    reasons: dict[str, list[str]] = defaultdict(list)
    for name, reason in sorted(why.items()):
        reasons[reason].append(name)
    return reasons
