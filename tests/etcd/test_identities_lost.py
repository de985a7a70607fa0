"""Identities keep their numbers where etcd and the API server are lost together: the agents remember."""

from __future__ import annotations

import asyncio
from contextlib import nullcontext
from itertools import count
from pathlib import Path

import pytest
from apiserver_bed import PATIENCE, Bed, pods

from agent.identities import Unusual
from agent.plan.attached import AttachedPods
from agent.propagation import Propagation
from agent.registration import Registration
from agent.state import AgentState
from clustermesh.address import Address
from clustermesh.apiserver.server import Timing
from clustermesh.mesh.reader import ClusterReader
from clustermesh.mesh.tables import own_tables
from clustermesh.model import AgentRecord, Cluster, Label
from clustermesh.wire import endpoint, keys
from clustermesh.wire.numbering import usual_number

ALPHA = Cluster(name="alpha", id=1)
KEY = "aGVsbG9oZWxsb2hlbGxvaGVsbG9oZWxsb2hlbGxvMTI="


def usual(name: str) -> int:
    """The number of a pod of `pods`."""
    named = {
        "app": name,
        "io.cilium.k8s.policy.cluster": "alpha",
        "io.cilium.k8s.policy.serviceaccount": "default",
        "io.kubernetes.pod.namespace": "shop",
    }
    return usual_number(tuple(Label(source="k8s", key=key, value=named[key]) for key in sorted(named)), ALPHA)


def colliding(pairs: int) -> list[tuple[str, str]]:
    """Names of pods that want one number, two by two."""
    seen, found = dict[int, str](), list[tuple[str, str]]()
    for name in (f"pod-{number}" for number in count()):
        if (other := seen.setdefault(usual(name), name)) != name:
            found.append((other, name))
            if len(found) == pairs:
                return found
    raise AssertionError


PAIRS = colliding(4)
FIRST, LATER = [sorted(pair)[1] for pair in PAIRS], [sorted(pair)[0] for pair in PAIRS]
"""Those that come first would come later if they all came at once."""


def numbers(found: dict[bytes, bytes]) -> dict[Address, int]:
    prefix = keys.state_prefix("ip", "alpha")
    return {each.ip: each.identity for key in found if key.startswith(prefix) for each in [endpoint.decode(found[key])]}


class Agent:
    """What of the agent of n1 has to do with it."""

    def __init__(self, bed: Bed) -> None:
        self._bed, self.state = bed, AgentState("alpha", Propagation())
        self.unusual = Unusual(self.state, ALPHA, "n1", AttachedPods())
        record = AgentRecord(node="n1", wireguard_public_key=KEY, reads_shared=True)
        self.registration = Registration(record)

    async def run(self) -> None:
        prepared = asyncio.Event()
        prepared.set()
        async with self._bed.client_as("local") as client, asyncio.TaskGroup() as tasks:
            reader = ClusterReader("alpha", self.state, lambda: nullcontext(client), own_tables, lambda _n, _c: None)
            tasks.create_task(reader.run())
            tasks.create_task(self.registration.keep(client, prepared, lambda: 1))

    def remember(self) -> None:
        """As a restarted agent would: all pods at its node were there before."""
        self.unusual = Unusual(self.state, ALPHA, "n1", AttachedPods())
        self.registration.remember(self.unusual())


@pytest.mark.parametrize("remembers", [True, False])
async def test_no_pod_changes_its_identity_where_etcd_and_api_server_are_lost_together(
    tmp_path: Path, remembers: bool
) -> None:
    bed, timing = Bed(tmp_path), Timing(records=1000.0)
    bed.write("pods.yaml", pods(*FIRST, *(f"other-{number}" for number in range(50))))
    async with bed:
        await bed.etcd.start()
        agent = Agent(bed)
        running = asyncio.create_task(agent.run())
        try:
            async with bed.running(timing):
                await bed.until(lambda found: keys.canary_key("alpha", "ip") in found)
                bed.write("pods.yaml", pods(*FIRST, *(f"other-{number}" for number in range(50)), *LATER))
                before = await _until_known(agent, bed, 54 + len(LATER))
                if remembers:
                    agent.remember()
                    assert len(agent.unusual()) >= len(PAIRS)
                    await bed.until(lambda found: b'"labels"' in found[keys.agent_key("n1")].value)
            await bed.etcd.stop()
            bed.etcd = bed.make_etcd("empty")
            await bed.etcd.start()
            async with bed.running(timing):
                await bed.until(lambda found: keys.canary_key("alpha", "ip") in found)
                after = numbers(await bed.data())
        finally:
            running.cancel()
    changed = {ip for ip in before if before[ip] != after.get(ip)}
    assert len(changed) == (0 if remembers else 2 * len(PAIRS)), "all others follow from their labels"


async def _until_known(agent: Agent, bed: Bed, number: int) -> dict[Address, int]:
    """Its tables are told of one by one: the node of the pods, and what their numbers stand for, are known, too."""
    view = agent.state.views["alpha"]

    def known() -> bool:
        held = {each.identity for each in view.endpoints.values()}
        return len(view.endpoints) >= number and "n1" in view.nodes and held <= view.identities.keys()

    async with asyncio.timeout(PATIENCE):
        while not known():
            await asyncio.sleep(0.02)
    return numbers(await bed.data())
