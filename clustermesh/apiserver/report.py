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
_PERIOD: Final = 2.0  # seconds between two writes, at least


async def keep_reported(client: EtcdClient, problems: Callable[[], Sequence[str]]) -> None:
    """Keep `problems()` in etcd, written when they changed. Never returns."""
    written = b""
    while True:
        value = api_server_report.encode(problems())
        if value != written:
            try:
                await client.put(keys.API_SERVER, value)
                written = value
            except ClusterMeshError as e:
                _LOG.debug("report: %s", e)
                written = b""
        await asyncio.sleep(_PERIOD)
