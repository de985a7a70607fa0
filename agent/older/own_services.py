"""What an older agent reads of its own cluster's services: only those that are written for agents alone.

This node's record says that its agent reads them where peers do, too. Taken back, the API server writes each of them
for agents again; until it has, an older agent would take them for gone.
"""

from __future__ import annotations

import asyncio
from typing import Final

from msgspec.structs import replace

from clustermesh.errors import Unavailable
from clustermesh.store.client import EtcdClient
from clustermesh.wire import keys
from clustermesh.wire.entries import decode_agent_record
from clustermesh.wire.local import encode_agent

PATIENCE: Final = 60.0  # seconds
_LOOK: Final = 0.1


async def ask_for(client: EtcdClient, cluster: str, node: str) -> None:
    """Take back what the record of `node` says, and wait until every service is written for agents. Unavailable."""
    key = keys.agent_key(node)
    held = await client.get(key)
    if held is None:
        return  # its agent never was part of the cluster
    record = decode_agent_record(key, held.value)
    if record.reads_shared:
        await client.put(key, encode_agent(replace(record, reads_shared=False)))
    try:
        async with asyncio.timeout(PATIENCE):
            while missing := await _missing(client, cluster):  # noqa: ASYNC110  other processes write them
                await asyncio.sleep(_LOOK)
    except TimeoutError as e:
        raise Unavailable(
            f"{missing} services are not written under {keys.LOCAL_SERVICES.decode()} for an older agent after "
            f"{PATIENCE:g} s: is the API server up, and {node} a Node of this cluster?"
        ) from e


async def _missing(client: EtcdClient, cluster: str) -> int:
    """How many services are only where peers read them."""
    shared = {keys.parse_service(kv.key)[1:] for kv in (await client.range(keys.state_prefix("services", cluster))).kvs}
    own = {keys.parse_local_service(kv.key) for kv in (await client.range(keys.LOCAL_SERVICES)).kvs}
    return len(shared - own)
