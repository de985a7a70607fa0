"""What the agent tells its own cluster of itself while it lives: its status, through etcd and in its log."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from agent.reporter import NUMBER, Reporter
from clustermesh.errors import ClusterMeshError
from clustermesh.store.backoff import Backoff
from clustermesh.store.client import EtcdClient
from clustermesh.wire import keys
from clustermesh.wire.agent_report import AgentReport

_log = logging.getLogger(__name__)
_STATUS_TTL = 60  # seconds, of few nodes
_RENEWALS_PER_SECOND = 100  # of all nodes together; each costs etcd no write
_STATUS_PERIOD = 1.0
_LOG_PERIOD = 5.0


def boot_id() -> str:
    """This machine's boot id, "" where there is none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


class ProblemLog:
    """Logs each problem once as it comes, and that it went. Numbers in it may change."""

    def __init__(self) -> None:
        self._known: dict[str, str] = {}

    def note(self, problems: Iterable[str]) -> None:
        found = {NUMBER.sub("#", problem): problem for problem in problems if problem}
        for problem in found.keys() - self._known.keys():
            _log.warning("%s", found[problem])
        if gone := len(self._known.keys() - found.keys()):
            _log.info("%d problems are solved, %d left", gone, len(found))
        self._known = found


async def keep_logged(problems: Callable[[], Iterable[str]]) -> None:
    """Never returns."""
    log = ProblemLog()
    while True:
        await asyncio.sleep(_LOG_PERIOD)
        log.note(problems())


async def keep_reported(client: EtcdClient, node: str, status: Callable[[], tuple[AgentReport, int]]) -> None:
    """Keep this node's report in etcd, on a lease that ends with the agent. Never returns.

    `status` gives it, and the number of nodes of the cluster.
    """
    reporter, backoff = Reporter(random.random), Backoff(first=1.0)
    while True:
        began = time.monotonic()
        try:
            await _report(client, keys.status_key(node), reporter, status)
        except ClusterMeshError as e:
            _log.debug("status report: %s", e)
        await asyncio.sleep(backoff.next(time.monotonic() - began))


async def _report(
    client: EtcdClient, key: bytes, reporter: Reporter, status: Callable[[], tuple[AgentReport, int]]
) -> None:
    """Until etcd fails. Begins with the lease of the report that is there, so that a restart is no write."""
    lease, ttl, renewed = await _adopt(client, key, reporter), _STATUS_TTL, time.monotonic()
    while True:
        said, nodes = status()
        value = reporter.hear(said, time.monotonic(), nodes)
        if value is not None:
            wanted = max(_STATUS_TTL, 4 * nodes // _RENEWALS_PER_SECOND)
            if not lease or wanted > ttl:  # it must outlive the time between two renewals
                lease, ttl = await client.grant(wanted), wanted
            await client.put(key, value, lease)
            reporter.wrote(said, value)
        if lease and time.monotonic() - renewed > ttl / 4:
            renewed = time.monotonic()
            if not await _renewed(client, lease):
                reporter.found(b"")
                lease = 0
        await asyncio.sleep(_STATUS_PERIOD)


async def _adopt(client: EtcdClient, key: bytes, reporter: Reporter) -> int:
    """The lease of this node's report in etcd, 0 where there is none that lives."""
    held = await client.get(key)
    if held is None or not held.lease or not await _renewed(client, held.lease):
        reporter.found(b"")
        return 0
    if not reporter.remembers(held.value):
        reporter.found(held.value)
    return held.lease


async def _renewed(client: EtcdClient, lease: int) -> bool:
    return bool((await client.keep_alive([lease])).get(lease))
