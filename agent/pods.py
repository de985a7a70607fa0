"""CNI requests from the plugin, answered as soon as this node knows its pod CIDR."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import msgspec

from agent.cni.endpoints import EndpointRequest, Endpoints
from agent.engine import Engine
from agent.options import Options
from clustermesh.errors import DecodeError, Unavailable

_log = logging.getLogger(__name__)
DELETIONS = "deleted-endpoints"  # the folder below run-dir where the plugin leaves what it could not tell an agent
_DRAIN_PERIOD = 5.0


class Pods:
    """The socket's cni_add, cni_del and cni_check."""

    def __init__(self, options: Options, engine: Engine) -> None:
        self._options, self._engine = options, engine
        self._endpoints: Endpoints | None = None

    @property
    def count(self) -> int:
        return 0 if self._endpoints is None else len(self._endpoints.records)

    @property
    def problems(self) -> dict[str, str]:
        return {} if self._endpoints is None else self._endpoints.problems

    async def run(self) -> None:
        """Take over the pods of the agent before this one, then carry out deletions that were left. Never returns."""
        await self._engine.prepared.wait()
        own, underlay = self._engine.plan.own, self._engine.underlay.current
        assert own is not None
        assert own.ipv4_alloc_cidr is not None  # what `prepared` means
        assert underlay is not None
        endpoints = Endpoints(self._options.state_dir, own.ipv4_alloc_cidr, mtu=underlay.mtu)
        await endpoints.restore()
        self._endpoints = endpoints
        while True:
            done = await endpoints.drain(self._options.run_dir / DELETIONS)
            if done:
                _log.info("%d pods deleted while no agent listened", done)
            await asyncio.sleep(_DRAIN_PERIOD)

    async def add(self, params: dict[str, Any]) -> dict[str, Any]:
        return (await self._ready().add(_request(params))).result()

    async def delete(self, params: dict[str, Any]) -> dict[str, Any]:
        await self._ready().delete(_request(params))
        return {}

    async def check(self, params: dict[str, Any]) -> dict[str, Any]:
        return (await self._ready().check(_request(params))).result()

    def _ready(self) -> Endpoints:
        if self._endpoints is None:
            why = self._engine.underlay_error or "the agent is starting"
            raise Unavailable(f"this node cannot attach pods yet: {why}")
        return self._endpoints


def _request(params: dict[str, Any]) -> EndpointRequest:
    try:
        return msgspec.convert(params, EndpointRequest)
    except msgspec.ValidationError as e:
        raise DecodeError("params", params, str(e)) from e
