"""What an API server does not act on stands in etcd, for whoever asks for the status."""

from __future__ import annotations

import asyncio

from clustermesh.apiserver import report
from clustermesh.store.client import EtcdClient
from clustermesh.wire import api_server_report, keys


async def test_what_the_api_server_does_not_act_on_is_in_etcd_until_it_is_mended(client: EtcdClient) -> None:
    problems = ["users.yaml: a: must be b"]
    task = asyncio.create_task(report.keep_reported(client, lambda: problems))
    try:
        for wanted in (["users.yaml: a: must be b"], []):
            problems = wanted
            async with asyncio.timeout(20):
                while (held := await client.get(keys.API_SERVER)) is None or api_server_report.decode(
                    held.value
                ) != wanted:
                    await asyncio.sleep(0.05)
    finally:
        task.cancel()
