"""An API server or a mirror of the mesh bed, in a process of its own: `python mesh_child.py apiserver|mirror JSON`."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from clustermesh.apiserver import server
from clustermesh.kube.config import from_kubeconfig
from clustermesh.mirror import server as mirror
from clustermesh.model import Cluster
from clustermesh.own_cluster import Settings, of_folder
from clustermesh.sources.folder import FolderSource
from clustermesh.sources.kubernetes import KubernetesSource
from clustermesh.sources.source import Source
from clustermesh.standalone.context import load

BEAT = 0.5
"""Seconds between two beats: what went while nobody heard of it goes with a beat."""
SETTLE = 2.0
"""Seconds after which readers believe a writer that came back: nobody here takes longer to write what it has."""

LEASE = 300
"""Seconds of a mirror's leases: what died with one of them goes once its canary's, a third as long, was renewed."""


async def _publish(
    folder: str, http: str, timing: dict[str, Any], endpoints: Sequence[str] = (), kubeconfig: str = ""
) -> None:
    context = load(Path(folder))
    settings = of_folder(context)
    if endpoints:
        settings = replace(settings, endpoints=tuple(endpoints))

    source: Source = FolderSource(context.manifests, context.cluster)
    if kubeconfig:
        source = KubernetesSource(from_kubeconfig(kubeconfig), context.cluster)
    await server.run(settings, source, [http], server.Timing(**timing))


async def _mirror(folder: str, http: str, endpoints: list[str]) -> None:
    settings = Settings(cluster=Cluster(name="beta", id=2), endpoints=tuple(endpoints))
    await mirror.run(
        settings, Path(folder), [http], mirror.Timing(lease_ttl=LEASE, own=0.0, wait=0.5, heartbeat=BEAT, settle=SETTLE)
    )


def _main(role: str, told: dict[str, Any]) -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    asyncio.run({"apiserver": _publish, "mirror": _mirror}[role](**told))


if __name__ == "__main__":
    _main(sys.argv[1], json.loads(sys.argv[2]))
