"""CNI requests from the plugin, answered as soon as this node knows its pod CIDRs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import msgspec
from msgspec import Struct

from agent.cni.endpoint import EndpointRequest
from agent.cni.ipam import Ipam
from agent.cni.local_pods import Endpoints
from agent.cni.plugin import QUEUE
from agent.domains.devices import Devices
from agent.domains.tunnels import Tunnels
from agent.options import Options
from agent.plan.attached import AttachedPods
from agent.plan.nodes import PodPool, pod_pools
from clustermesh.address import prefix_text, text
from clustermesh.errors import ClusterMeshError, DecodeError, Unavailable

_log = logging.getLogger(__name__)
_DRAIN_PERIOD = 5.0
_CHECKED = 1.0  # seconds, at most, that an ADD waits for the source check


class _Valid(Struct):
    """Parameters of cni_gc: the pods that the runtime still knows."""

    valid: list[EndpointRequest]


class Pods:
    """The socket's cni_add, cni_del, cni_check, cni_status and cni_gc."""

    def __init__(self, options: Options, tunnels: Tunnels, devices: Devices, attached: AttachedPods) -> None:
        self._options, self._tunnels, self._devices, self._attached = options, tunnels, devices, attached
        self._endpoints: Endpoints | None = None
        self._pools: tuple[PodPool, ...] = ()
        self._error = ""
        self._draining = asyncio.Lock()  # or one that goes over the folder would delete what another has let be added

    @property
    def problems(self) -> dict[str, str]:
        """What a person should look at: by file, or by what it is about."""
        found = {} if self._endpoints is None else dict(self._endpoints.problems)
        for ip in () if self._endpoints is None else sorted(self._endpoints.ownerless):
            found[text(ip)] = "is routed to a pod of this node that no endpoint file tells of"
        if self._error:
            found["set-up"] = self._error
        own = self._tunnels.own
        if self._pools and own is not None and (now := pod_pools(own)) != self._pools:
            found["pod CIDR"] = (
                f"is {_shown(now)} now, and pods here still get addresses of {_shown(self._pools)}: "
                "restart the agent once they may move"
            )
        return found

    @property
    def unwritable(self) -> str:
        """Why the pods of this node cannot be written down, "" where they can."""
        return "" if self._endpoints is None else self._endpoints.unwritable

    async def run(self) -> None:
        """Take over the pods of the agent before this one, then carry out deletions that were left. Never returns."""
        await self._tunnels.prepared.wait()
        while True:
            try:
                await self._tend()
                self._error = ""
            except (ClusterMeshError, OSError) as e:
                if str(e) != self._error:
                    _log.error("pods: %s", e)
                self._error = str(e)
            await asyncio.sleep(_DRAIN_PERIOD)

    async def _tend(self) -> None:
        if self._endpoints is None:
            self._endpoints = await self._take_over()
        if self._endpoints is not None:
            await self._endpoints.look_at_disk()
            await self._endpoints.release_ownerless()
            await self._drain(self._endpoints)

    async def _drain(self, endpoints: Endpoints) -> None:
        async with self._draining:
            if done := await endpoints.drain(self._options.run_dir / QUEUE):
                _log.info("%d pods deleted while no agent listened", done)

    async def _take_over(self) -> Endpoints | None:
        """The pods there are; None while the Node is gone again, or its device being made again."""
        own, underlay = self._tunnels.own, self._tunnels.underlay.current
        if own is None or underlay is None or not (pools := pod_pools(own)):
            return None
        ipams = [Ipam(pool.cidr, pool.router) for pool in pools]
        endpoints = Endpoints(self._options.state_dir, ipams, self._attached, mtu=underlay.mtu)
        await endpoints.restore()
        self._pools = pools
        return endpoints

    async def add(self, params: dict[str, Any]) -> dict[str, Any]:
        """Answered when the pod's packets are looked at, which is before any process of it is started; an agent that
        cannot do so within a second says so in its status, and keeps no pod from running. What was deleted before, by
        the same name perhaps, is gone first."""
        endpoints, request = self._ready(), _request(params)
        await self._drain(endpoints)
        added = await endpoints.add(request)
        with suppress(TimeoutError):
            async with asyncio.timeout(_CHECKED):
                await self._devices.whole_step()
        return added.result()

    async def delete(self, params: dict[str, Any]) -> dict[str, Any]:
        await self._ready().delete(_request(params))
        return {}

    async def check(self, params: dict[str, Any]) -> dict[str, Any]:
        return (await self._ready().check(_request(params))).result()

    async def status(self, _params: dict[str, Any]) -> dict[str, Any]:
        """Nothing where pods can be attached; raises Unavailable with the reason where they cannot."""
        self._ready()
        return {}

    async def collect_garbage(self, params: dict[str, Any]) -> dict[str, Any]:
        try:
            valid = msgspec.convert(params, _Valid).valid
        except msgspec.ValidationError as e:
            raise DecodeError("params", params, str(e)) from e
        await self._ready().keep_only({(one.container_id, one.ifname) for one in valid})
        return {}

    def _ready(self) -> Endpoints:
        if self._endpoints is None:
            why = self._tunnels.error or self._error or "the agent is starting"
            raise Unavailable(f"this node cannot attach pods yet: {why}")
        return self._endpoints


def _shown(pools: Sequence[PodPool]) -> str:
    cidrs = (f"{prefix_text(pool.cidr)} (gateway {text(pool.router)})" for pool in pools)
    return " and ".join(cidrs) or "none"


def _request(params: dict[str, Any]) -> EndpointRequest:
    try:
        return msgspec.convert(params, EndpointRequest)
    except msgspec.ValidationError as e:
        raise DecodeError("params", params, str(e)) from e
