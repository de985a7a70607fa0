"""What the mesh promises, each promise one function: it does the thing on a standing lab and returns what came of it.

The demo shows them one after the other, the tests call them one by one. `held` is the verdict, the other fields are the
evidence. A function raises only where the lab itself is broken (Unavailable, Refused).
"""

from __future__ import annotations

import asyncio
import secrets
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from msgspec import Struct

from clustermesh.address import nth, parse_prefix, text
from clustermesh.errors import ClusterMeshError
from clustermesh.mesh.peers import DRAIN_SECONDS
from lab import bring_up, manifests
from lab.lab import Lab
from lab.plan import WEB_PORT
from lab.records import Traffic, between, percentile, summarize
from lab.streams import Capture, Counts, Load, run_for
from lab.waiting import until

MARKER: Final = f"cleartext-{secrets.token_hex(8)}"  # begins every request of this process, comes back in every answer
SELF_TEST: Final = f"selftest-{secrets.token_hex(8)}"
LEAST_RATE: Final = 200.0  # new connections a second, where a claim is about losing none
_SETTLE_SECONDS: Final = 0.5
_TOGGLES: Final = 30
_TOGGLE_SECONDS: Final = 0.1

Observe = Callable[[Load], None]


def ignore(_load: Load) -> None:
    """For callers that do not watch a load while it runs."""


class Answers(Struct, frozen=True, kw_only=True):
    """Who answered."""

    held: bool
    tcp: Traffic
    udp: Traffic


class Joined(Struct, frozen=True, kw_only=True):
    """`seconds` from the return of `clustermesh connect` to the first answer from every cluster."""

    held: bool
    before: Answers
    seconds: float


class Failover(Struct, frozen=True, kw_only=True):
    """`gone` while no pod of the own cluster served, `back` after they were Ready again; `traffic` is all of it."""

    held: bool
    traffic: Traffic
    gone: Traffic
    back: Traffic
    rate: float


class AgentRestart(Struct, frozen=True, kw_only=True):
    """`down` are the requests begun while no agent ran, `seconds` how long that was."""

    held: bool
    traffic: Traffic
    down: Traffic
    seconds: float
    rate: float


class Encrypted(Struct, frozen=True, kw_only=True):
    """`counts` of the underlay while `cross_cluster` requests were answered by another cluster."""

    held: bool
    counts: Counts
    cross_cluster: int


class Propagation(Struct, frozen=True, kw_only=True):
    """Milliseconds from a change of YAML in one cluster to the map write on a node of another."""

    held: bool
    samples: int
    p50: float | None
    p99: float | None


class Parted(Struct, frozen=True, kw_only=True):
    """`meanwhile` ran from before `disconnect` until the tunnels were gone; no node had a backend of another cluster
    `seconds` after it, and `after` was asked at the end."""

    held: bool
    meanwhile: Traffic
    after: Answers
    seconds: float


def web_load(lab: Lab, kinds: str = "tcp", here: str = "alpha") -> Load:
    """Requests to the global service `web`, by its cluster IPs in turn, from the client pod of a cluster."""
    return Load(lab, f"{here}/client", lab.plan.cluster(here).web_ips, WEB_PORT, marker=MARKER, kinds=kinds)


async def answers(lab: Lab, expected: set[str], observe: Observe = ignore, seconds: float = 1.0) -> Answers:
    """TCP and UDP from alpha's client are answered at each address by all of `expected`, by nobody else, and all of
    them."""
    tcp, udp = web_load(lab), web_load(lab, "udp-connected,udp-unconnected")
    observe(tcp)
    async with asyncio.TaskGroup() as group:
        of_tcp, of_udp = group.create_task(run_for(tcp, seconds)), group.create_task(run_for(udp, seconds))
    by = Answers(held=False, tcp=of_tcp.result(), udp=of_udp.result())
    held = all(not part.failed and part.everywhere == part.clusters == expected for part in (by.tcp, by.udp))
    return Answers(held=held, tcp=by.tcp, udp=by.udp)


async def only_own_backends(lab: Lab, observe: Observe = ignore) -> Answers:
    """A cluster that is connected to none is served by itself alone."""
    return await answers(lab, {"alpha"}, observe)


async def joins(lab: Lab, observe: Observe = ignore) -> Joined:
    """Claim 1: alone before `clustermesh connect`, with backends everywhere after it."""
    before = await only_own_backends(lab, observe)
    await bring_up.connect_all(lab, lambda _: None)
    load = web_load(lab)
    observe(load)
    async with load.running():
        seconds = await until(lambda: load.traffic.everywhere == _everyone(lab), "answers from every cluster")
    return Joined(held=before.held and not load.traffic.failed, before=before, seconds=round(seconds, 2))


async def answered_by_all(lab: Lab, observe: Observe = ignore) -> Answers:
    """Claim 2: a pod in alpha calls `web` by its cluster IP, TCP and UDP, and every cluster answers."""
    return await answers(lab, _everyone(lab), observe, seconds=1.5)


async def fails_over(lab: Lab, observe: Observe = ignore) -> Failover:
    """Claim 3: alpha's pods go and come back under load, the others take over meanwhile, and no request fails."""
    web = lab.plan.cluster("alpha").pods_of("web")
    load = web_load(lab)
    observe(load)
    async with load.running():
        await until(lambda: load.traffic.everywhere == _everyone(lab), "answers from every cluster")
        await asyncio.sleep(_SETTLE_SECONDS)
        lab.delete_pods(web)
        await until(lambda: not any(lab.sandbox_of(pod).exists() for pod in web), "alpha's pods stopped")
        stopped = time.monotonic()
        await asyncio.sleep(2 * _SETTLE_SECONDS)
        await until(
            lambda: bool(between(load.records, stopped, time.monotonic())), "requests while alpha's pods are gone"
        )
        applied = time.monotonic()
        lab.apply_pods(web)
        await bring_up.wait_for_pods(lab, lambda _: None)
        ready = time.monotonic()
        await until(
            lambda: "alpha" in summarize(between(load.records, ready, time.monotonic())).everywhere, "alpha is back"
        )
        await asyncio.sleep(_SETTLE_SECONDS)
    gone = summarize(between(load.records, stopped, applied))
    back = summarize(between(load.records, ready, time.monotonic()))
    rate = _rate(load)
    others = _everyone(lab) - {"alpha"}
    held = not load.traffic.failed and gone.everywhere == gone.clusters == others and "alpha" in back.everywhere
    return Failover(held=held and rate >= LEAST_RATE, traffic=load.traffic, gone=gone, back=back, rate=rate)


async def survives_agent_kill(lab: Lab, observe: Observe = ignore) -> AgentRestart:
    """Claim 4: the agent of the client's node is killed with SIGKILL and started again, and no request fails."""
    name = lab.plan.cluster("alpha").pods_of("client")[0].node
    load = web_load(lab)
    observe(load)
    async with load.running():
        await until(lambda: load.traffic.everywhere == _everyone(lab), "answers from every cluster")
        killed, old = time.monotonic(), await lab.kill(name, "agent")
        why = f"the agent of {name} is ready again"
        await until(lambda: _is_ready(lab, name, old), why, why=lambda: f"It said: {lab.log(name, 'agent')}")
        ready = time.monotonic()
        await asyncio.sleep(2 * _SETTLE_SECONDS)
    down, rate = summarize(between(load.records, killed, ready)), _rate(load)
    held = not load.traffic.failed and down.everywhere == _everyone(lab) and rate >= LEAST_RATE
    return AgentRestart(held=held, traffic=load.traffic, down=down, seconds=round(ready - killed, 2), rate=rate)


async def _is_ready(lab: Lab, name: str, old: int) -> bool:
    """A new agent runs there and has told the kernel all it knows."""
    try:
        if lab.service_pid(name, "agent") == old:
            return False
        status = await lab.ask_agent(name, "status")
    except ClusterMeshError:
        return False
    return bool(status["ready"])


async def encrypted(lab: Lab, capture: Capture, observe: Observe = ignore) -> Encrypted:
    """Claim 5: the running `capture` sees no marker of the payload, but WireGuard; and it would see a marker."""
    load = web_load(lab, "all")
    observe(load)
    traffic = await run_for(load, 1.0)
    await send_in_clear(lab, SELF_TEST)
    await until(lambda: _sees_clear(lab, capture), "the capture sees clear markers")
    counts = capture.counts or Counts()
    cross = sum(count for cluster, count in traffic.answers.items() if cluster != "alpha")
    held = not counts.clear_on_wire and counts.wireguard_packets > cross > 0 and not counts.dropped
    return Encrypted(held=held, counts=counts, cross_cluster=cross)


def _sees_clear(lab: Lab, capture: Capture) -> bool:
    """Whether it saw a marker of each family of the underlay."""
    counts = capture.counts or Counts()
    of_family = {"ipv4": counts.self_test - counts.self_test_ipv6, "ipv6": counts.self_test_ipv6}
    return all(of_family[family] > 0 for family in lab.plan.families)


async def send_in_clear(lab: Lab, marker: str) -> None:
    """A few datagrams from a node of alpha to one of the last cluster, not from pods and so not through WireGuard."""
    script, there = str(Path(__file__).with_name("client.py")), ",".join(lab.plan.clusters[-1].nodes[-1].addresses)
    options = ["--kinds", "udp-connected", "--marker", marker, "--rate", "20", "--seconds", "0.2", "--wait", "0.1"]
    await lab.run(lab.plan.cluster("alpha").nodes[0].name, sys.executable, "-IS", script, there, "9", *options)


async def propagates(lab: Lab) -> Propagation:
    """How fast a change travels, from the agents' own measurements: YAML written in beta, of each family in turn, maps
    written in alpha."""
    nodes = [machine.name for machine in lab.plan.cluster("alpha").nodes]
    beta = lab.plan.cluster("beta")
    before = {name: len(await _samples(lab, name)) for name in nodes}
    cidrs = [parse_prefix(cidr) for cidr in beta.nodes[0].pod_cidrs]
    samples = list[float]()
    for turn in range(10 * _TOGGLES):  # a busy machine sees two changes as one
        again, which = divmod(turn, len(cidrs))
        lab.apply(beta.name, manifests.probe_slice([text(nth(cidrs[which], 200 + again % 2))]))
        await asyncio.sleep(_TOGGLE_SECONDS)
        if turn >= _TOGGLES:
            samples = [sample for name in nodes for sample in (await _samples(lab, name))[before[name] :]]
            if len(samples) >= _TOGGLES:
                break
    return Propagation(
        held=len(samples) >= _TOGGLES,
        samples=len(samples),
        p50=percentile(samples, 50),
        p99=percentile(samples, 99),
    )


async def _samples(lab: Lab, name: str) -> list[float]:
    status = await lab.ask_agent(name, "status")
    return [float(sample) for sample in status["propagation_ms"]]


async def parts(lab: Lab, observe: Observe = ignore) -> Parted:
    """Claim 6: after `clustermesh disconnect` a cluster is served by itself alone, and no request fails meanwhile."""
    load = web_load(lab)
    observe(load)
    async with load.running():
        await until(lambda: bool(load.traffic.requests), "an answer")
        await bring_up.connect_all(lab, lambda _: None, verb="disconnect")
        seconds = await until(lambda: _all_alone(lab), "every node has its own cluster's backends only")
        await asyncio.sleep(DRAIN_SECONDS + _SETTLE_SECONDS)
    after = await only_own_backends(lab, observe)
    held = after.held and not load.traffic.failed
    return Parted(held=held, meanwhile=load.traffic, after=after, seconds=round(seconds, 2))


async def _all_alone(lab: Lab) -> bool:
    for cluster in lab.plan.clusters:
        for node in cluster.nodes:
            services = await lab.ask_agent(node.name, "services")
            if any(backend["cluster"] != cluster.name for service in services for backend in service["backends"]):
                return False
    return True


def _everyone(lab: Lab) -> set[str]:
    return {cluster.name for cluster in lab.plan.clusters}


def _rate(load: Load) -> float:
    """Requests a second, as they were really begun."""
    begun = sorted(record.at for record in load.records)
    return round((len(begun) - 1) / (begun[-1] - begun[0]), 1) if len(begun) > 1 else 0.0
