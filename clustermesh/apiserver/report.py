"""What the API server says of itself in etcd, for `clustermesh status`: its source, and what it does not act on."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from clustermesh.errors import ClusterMeshError
from clustermesh.store.client import EtcdClient
from clustermesh.wire import api_server_report, keys
from clustermesh.wire.api_server_report import ApiServerReport

_LOG = logging.getLogger(__name__)
_PERIOD: Final = 2.0  # seconds between looks


async def keep_reported(client: EtcdClient, report: Callable[[], ApiServerReport]) -> None:
    """Keep `report()` in etcd, whoever changes or empties it. Never returns."""
    while True:
        value = api_server_report.encode(report())
        try:
            held = await client.get(keys.API_SERVER)
            if held is None or held.value != value:
                await client.put(keys.API_SERVER, value)
        except ClusterMeshError as e:
            _LOG.debug("report: %s", e)
        await asyncio.sleep(_PERIOD)
