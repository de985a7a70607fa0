"""What the API server says of itself in etcd, for `clustermesh status`: what it does not act on, and why."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Final

from clustermesh.errors import ClusterMeshError
from clustermesh.store.client import EtcdClient
from clustermesh.wire import api_server_report, keys

_LOG = logging.getLogger(__name__)
_PERIOD: Final = 2.0  # seconds between looks


async def keep_reported(client: EtcdClient, problems: Callable[[], Sequence[str]]) -> None:
    """Keep `problems()` in etcd, whoever changes or empties it; no key where there are none. Never returns."""
    while True:
        found = problems()
        try:
            await _keep(client, api_server_report.encode(found) if found else None)
        except ClusterMeshError as e:
            _LOG.debug("report: %s", e)
        await asyncio.sleep(_PERIOD)


async def _keep(client: EtcdClient, value: bytes | None) -> None:
    held = await client.get(keys.API_SERVER)
    if value is None and held is not None:
        await client.delete(keys.API_SERVER)
    elif value is not None and (held is None or held.value != value):
        await client.put(keys.API_SERVER, value)
