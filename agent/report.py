"""What the agent tells its own cluster through etcd: its WireGuard key, for ever, and its status, while it lives."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import msgspec

from clustermesh.errors import ClusterMeshError
from clustermesh.model import AgentRecord
from clustermesh.store.client import EtcdClient
from clustermesh.store.follow import Interrupted, follow
from clustermesh.wire import keys, local

_log = logging.getLogger(__name__)
_STATUS_TTL = 60  # seconds
_STATUS_PERIOD = 1.0
_RETRY = 2.0


def boot_id() -> str:
    """This machine's boot id, "" where there is none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


async def keep_registered(client: EtcdClient, record: AgentRecord) -> None:
    """Keep `record` under this node's key, whoever changes or deletes it. Never returns.

    The key has no lease: the tunnels of a node whose agent is down still work, and its peers must not forget its key.
    """
    key, value = keys.agent_key(record.node), local.encode_agent(record)
    while True:
        try:
            async with aclosing(follow(client, key)) as items:
                async for item in items:
                    if isinstance(item, Interrupted):
                        continue
                    held = await client.get(key)
                    if held is None or held.value != value:
                        await client.put(key, value)
        except ClusterMeshError as e:
            _log.warning("this node's WireGuard key is not in etcd: %s", e)
        await asyncio.sleep(_RETRY)


async def keep_reported(client: EtcdClient, node: str, status: Callable[[], dict[str, Any]]) -> None:
    """Keep this node's status in etcd, written when it changed, on a lease that ends with the agent. Never returns."""
    while True:
        try:
            await _report(client, keys.status_key(node), status)
        except ClusterMeshError as e:
            _log.debug("status report: %s", e)
        await asyncio.sleep(_RETRY)


async def _report(client: EtcdClient, key: bytes, status: Callable[[], dict[str, Any]]) -> None:
    lease, written, age = await client.grant(_STATUS_TTL), b"", 0.0
    while True:
        current = msgspec.json.encode(status())
        if current != written:
            await client.put(key, current, lease)
            written = current
        if age > _STATUS_TTL / 4:
            await client.keep_alive([lease])
            age = 0.0
        await asyncio.sleep(_STATUS_PERIOD)
        age += _STATUS_PERIOD
