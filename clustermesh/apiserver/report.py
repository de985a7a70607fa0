"""What API server and mirror say of themselves in etcd, for `clustermesh status`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from clustermesh.errors import ClusterMeshError
from clustermesh.store.client import EtcdClient

_LOG = logging.getLogger(__name__)
_PERIOD: Final = 2.0  # seconds between looks


async def keep_reported(
    client: EtcdClient,
    key: bytes,
    report: Callable[[], bytes],
    lease_for: Callable[[bytes], Awaitable[int]] | None = None,
) -> None:
    """Keep `report()` in etcd, whoever changes or empties it. Never returns."""
    while True:
        value = report()
        try:
            held = await client.get(key)
            if held is None or held.value != value:
                await client.put(key, value, 0 if lease_for is None else await lease_for(key))
        except ClusterMeshError as e:
            _LOG.debug("report: %s", e)
        await asyncio.sleep(_PERIOD)
