"""What a person should look at, one sentence each that ends with what to do: shown by status and by etcd alike."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice

from agent.cni.methods import Pods
from agent.domains.domains import Domains
from clustermesh.address import text
from clustermesh.mesh.peers import Peers
from clustermesh.mesh.refusals import Reason, Refusals
from clustermesh.mesh.resolve import Frontend
from clustermesh.mesh.state import MeshState

_SHOWN = 20  # problems of one kind
_NAMED = 3  # refused entries of one reason
_MAP_DIFF = "it is tried again by itself; what is missing is in `clustermesh node map diff`"


def own(domains: Domains, pods: Pods, unsavable: Mapping[str, str]) -> list[str]:
    """Those of this node alone; `unsavable` says why the last good state of a cluster is not on disk."""
    error, device = domains.tunnels.error, domains.node.device
    found = [f"node set-up: {error}; mend that, it is tried again"] if error else []
    if (since := device.silent_since) is not None:
        found.append(_silence(device.name, since))
    for why, clusters in _by_reason(unsavable).items():
        found.append(
            f"the last good state of {_few(clusters)} is not saved: {why}; make room there, or an agent that starts "
            "without etcd begins with an old one"
        )
    for name, problem in islice(pods.problems.items(), _SHOWN):
        found.append(f"pods: {name}: {problem}; delete the pod, and it is made anew")
    return found


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + ", …" * (len(names) > _NAMED)


def _by_reason(why: Mapping[str, str]) -> dict[str, list[str]]:
    reasons: dict[str, list[str]] = defaultdict(list)
    for name, reason in sorted(why.items()):
        reasons[reason].append(name)
    return reasons


def shared(domains: Domains, peers: Peers, state: MeshState) -> list[str]:
    """Those that every node of the cluster may have at the same moment."""
    found = [f"peers folder: {problem}; correct it, or disconnect that cluster" for problem in peers.problems]
    for cluster in state.views:
        found += _refused(cluster, state.refusals(cluster), cluster == state.own)
    for why, nodes in _by_reason(domains.network.planner.problems).items():
        found.append(f"Node {_few(nodes)} {why}; see `clustermesh node encrypt status`")
    for tracker in domains.trackers:
        if tracker.failed:
            found.append(f"{tracker.name}: {len(tracker.failed)} entries not applied: {tracker.error}; {_MAP_DIFF}")
        elif tracker.error:
            found.append(f"{tracker.name}: {tracker.error}; {_MAP_DIFF}")
    found += [
        f"{problem}; it is planned again by itself, please report it" for problem in islice(domains.problems(), _SHOWN)
    ]
    left_out = islice(domains.services.left_out.items(), _SHOWN)
    found += [f"Service {'/'.join(name)} is left out: {why}" for name, why in left_out]
    return found + [_conflict(*each) for each in islice(domains.services.planner.conflicts().items(), _SHOWN)]


def _refused(cluster: str, refusals: Refusals, is_own: bool) -> Iterator[str]:
    """One sentence for each reason, with the first names and the first sentence."""
    by_reason = refusals.first(_NAMED)
    where = "correct them" if is_own else f"have them corrected in {cluster}"
    for reason, named in sorted(by_reason.items()):
        count = refusals.counts[reason]
        names = _few([*named, *[""] * (count - len(named))])
        remedy = "they are used once it is" if reason is Reason.WAITING else where
        entries = f"{count} entries of {cluster} are" if count > 1 else f"1 entry of {cluster} is"
        yield (
            f"{entries} refused and not used ({reason}): {names}: {next(iter(named.values()))}; {remedy}, "
            "all are in `clustermesh node refused`"
        )


def _conflict(frontend: Frontend, names: list[tuple[str, str]]) -> str:
    claimants = ", ".join("/".join(name) for name in names[:_SHOWN])
    return (
        f"{text(frontend.address)}:{frontend.port}/{frontend.protocol} is claimed by {claimants}; the first is served: "
        "give the others another address"
    )


def _silence(device: str, since: float) -> str:
    clock = time.strftime("%H:%M:%S", time.gmtime(since))
    return (
        f"WireGuard device {device} does not answer since {clock} UTC: look whether its wireguard-go is stopped "
        "(`ps -o stat,args -C wireguard-go`); killed, it is started again"
    )
