"""A node with the agent's parts for pods and devices: CNI's side, the devices domain, programs and maps."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import cast

from netns_mesh import MTU, MeshNode

from agent import netlink
from agent.bpf.layouts import ConfigFlag, Reason, XdpMode
from agent.bpf.loader import Datapath
from agent.cni.endpoint import EndpointRequest
from agent.cni.ipam import Ipam
from agent.cni.local_pods import Endpoints
from agent.domains.devices import Devices, LentPorts
from agent.domains.tables import Targets, open_map
from agent.plan.attached import AttachedPods
from agent.plan.devices import Ways
from agent.reserved_ports import ReservedPorts
from agent.targets.devices import DeviceTarget
from agent.targets.frames import FrameTarget
from clustermesh.address import parse
from clustermesh.model import Node, NodeAddress


def request(pod: str) -> EndpointRequest:
    return EndpointRequest(container_id=f"container-{pod}", ifname="eth0", netns=f"/run/netns/{pod}")


class DevicesBed:
    """`node` must have eth0 with its addresses. Call `stop` when done; what is pinned stays."""

    def __init__(
        self, node: MeshNode, pins: Path, flags: ConfigFlag = ConfigFlag.REDIRECT, bcc_cache: Path | None = None
    ) -> None:
        self.node, self.pins, self._flags, self._bcc_cache = node, pins, flags, bcc_cache
        node.do(netlink.prepare_node(node.routers))
        self.start()

    def start(self, *patterns: str, xdp: Sequence[XdpMode] = ()) -> None:
        """An agent, which finds what the one before left."""
        self.datapath = self.node.call(lambda: Datapath.open(None, self.pins, bcc_cache=self._bcc_cache))
        names = {"config": "node_config", "sources": "pod_sources", "pods": "pod_devices"}
        targets = SimpleNamespace(
            devices=DeviceTarget(self.datapath.devices, self.datapath.maps["pod_sources"]),
            frames=FrameTarget(self.datapath.frames, xdp),
            **{name: open_map(self.datapath, map_name) for name, map_name in names.items()},
        )
        self.attached = AttachedPods()
        pools = [Ipam(cidr, router) for cidr, router in zip(self.node.cidrs, self.node.routers, strict=True)]
        self.endpoints = Endpoints(self.node.state, pools, self.attached, mtu=MTU)
        self.domain = Devices(
            cast(Targets, targets),
            self.attached,
            LentPorts(None, ReservedPorts(self.node.state)),
            "cm-wg0",
            patterns,
            self._flags,
            accelerates=bool(xdp),
        )
        own = [parse(each) for each in (self.node.address, self.node.address6)]

        async def begin() -> asyncio.Task[None]:
            running = asyncio.create_task(self.domain.run())
            self.domain.take_ways(Ways(addresses=frozenset(("eth0", each) for each in own)))
            addresses = tuple(NodeAddress(type="InternalIP", ip=each) for each in own)
            self.domain.take_own(
                Node(cluster="a", cluster_id=1, name="n", addresses=addresses, pod_cidrs=self.node.cidrs)
            )
            await self.endpoints.restore()
            self.domain.allow_pruning()
            await self.domain.whole_step()
            return running

        self._running = self.node.do(begin())

    def stop(self) -> None:
        async def end() -> None:
            self._running.cancel()
            await asyncio.wait([self._running])

        self.node.do(end())
        self.datapath.close()

    def add(self, pod: str) -> str:
        """The node's end of the pod's device."""
        self.node.run(f"ip netns add {pod}")

        async def work() -> str:
            record = await self.endpoints.add(request(pod))
            await self.domain.whole_step()
            return record.host_ifname

        return self.node.do(work())

    def settle(self) -> None:
        self.node.do(self.domain.whole_step())
        assert self.domain.settled, [tracker.problems for tracker in self.domain.trackers]

    def pinned(self) -> set[str]:
        return {pin.name for pin in (self.pins / "links").iterdir()}

    def dropped(self) -> int:
        return self.datapath.counters()[Reason.DROP_SOURCE]
