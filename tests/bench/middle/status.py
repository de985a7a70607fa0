"""`clustermesh status` of a cluster of 5,000 nodes that is connected to 50 others, and with its etcd frozen.

The whole command as a person starts it, Python's start included; the etcd is real, the agents are what they wrote.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from certs.folder import initialise
from certs.names import cluster_leaves
from clustermesh.model import ClusterConfig, Node
from clustermesh.standalone import context as contexts
from clustermesh.standalone.context import Context
from clustermesh.store.client import EtcdClient, Put
from clustermesh.store.local import LocalEtcd
from clustermesh.store.tls import Tls
from clustermesh.wire import agent_report, cluster_config, keys, node
from clustermesh.wire.agent_report import AgentReport, SeenCluster

_NODES, _CLUSTERS, _RUNS = 5000, 50, 5
_STALE = 40  # nodes that have lost a cluster


def status() -> dict[str, list[float]]:
    """Seconds of each run: table, JSON, and while etcd is stopped."""
    with TemporaryDirectory() as folder:
        context = _describe(Path(folder) / "alpha")
        tls = Tls(context.ca, context.certificate("server"), context.key("server"))
        etcd = LocalEtcd(context.etcd, [context.endpoint], tls, client_tls=_client(context))
        asyncio.run(_fill(etcd, context))
        try:
            return {
                "status_5000_s": [_seconds(context, "❌") for _ in range(_RUNS)],
                "status_json_5000_s": [_seconds(context, '"ok": false', "-o", "json") for _ in range(_RUNS)],
                "status_frozen_s": _frozen(etcd, context),
            }
        finally:
            etcd.kill()


FIGURES = {"status": status}


def _describe(folder: Path) -> Context:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    made = contexts.create(folder, "alpha", 1, f"https://127.0.0.1:{port}")
    initialise(made.certs, cluster_leaves(made.name, [made.address.host]), datetime.now(UTC))
    made.peers.mkdir(exist_ok=True)
    for name in _peers():
        (made.peers / name).write_text(f"endpoints: [http://{name}.example:2379]\n")
    return made


def _client(context: Context) -> Tls:
    return Tls(context.ca, context.certificate("local"), context.key("local"))


def _peers() -> list[str]:
    return [f"cluster-{number}" for number in range(1, _CLUSTERS)]


async def _fill(etcd: LocalEtcd, context: Context) -> None:
    await etcd.start()
    async with EtcdClient([context.endpoint], _client(context)) as client:
        await client.transact(_keys())


def _keys() -> Iterator[Put]:
    yield Put(keys.cluster_config_key("alpha"), cluster_config.encode(ClusterConfig(id=1)))
    yield Put(keys.HEARTBEAT, b"now")
    for number in range(_NODES):
        name = f"node-{number}"
        yield Put(keys.node_key("alpha", name), node.encode(Node(cluster="alpha", cluster_id=1, name=name)))
        yield Put(keys.status_key(name), agent_report.encode(_report(lost=number < _STALE)))


def _report(*, lost: bool) -> AgentReport:
    seen = [SeenCluster(name, "fresh", 1, 1.7e9, "", 100, 40, 2000, 300) for name in ["alpha", *_peers()]]
    if lost:
        seen[1] = SeenCluster(seen[1].name, "stale", 2, 1.7e9, "no answer", 100, 40, 2000, 300)
    return AgentReport("0.1.0", "", (), tuple(seen))


def _seconds(context: Context, expected: str, *options: str) -> float:
    """Of one run, which must say `expected`."""
    began = time.monotonic()
    command = [sys.executable, "-m", "clustermesh.cli", "status", "--context", str(context.path), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    took = time.monotonic() - began
    if expected not in done.stdout + done.stderr:
        raise RuntimeError(f"status said {(done.stdout + done.stderr)[-500:]}")
    return took


def _frozen(etcd: LocalEtcd, context: Context) -> list[float]:
    with _stopped(etcd):
        return [_seconds(context, "does not answer: it is stopped") for _ in range(_RUNS)]


@contextmanager
def _stopped(etcd: LocalEtcd) -> Iterator[None]:
    assert etcd.pid is not None
    os.kill(etcd.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(etcd.pid, signal.SIGCONT)
