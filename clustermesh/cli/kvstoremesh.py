"""`clustermesh kvstoremesh`: peers, mirrored into the own etcd."""

from __future__ import annotations

from pathlib import Path

import click

from clustermesh.cli import context_option
from clustermesh.standalone.context import load


@click.command()
@context_option
@click.option(
    "--clustermesh-config",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="The connected clusters, one file each.  [default: CONTEXT/peers]",
)
@click.option(
    "--agents-config",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Where to keep the files for `clustermesh agent --clustermesh-config`.  [default: CONTEXT/cached-peers]",
)
@click.option(
    "--http",
    default="127.0.0.1:9881",
    show_default=True,
    metavar="HOST:PORT",
    help="Where to serve health and metrics.",
)
@click.option("--enable-heartbeat", is_flag=True, help="Beat in the own etcd, where no API server does.")
def command(
    context: Path, clustermesh_config: Path | None, agents_config: Path | None, http: str, enable_heartbeat: bool
) -> None:
    """Mirror every connected cluster into the own etcd, for the agents of this cluster to read there.

    Of several, one works and the others stand by. Agents read the mirror when they are given its folder.

    \b
    Example:
      clustermesh kvstoremesh --context /srv/alpha
      clustermesh agent --context /srv/alpha --clustermesh-config /srv/alpha/cached-peers
    """
    import asyncio
    import logging

    from clustermesh.apiserver.settings import of_folder
    from clustermesh.heap import one_heap
    from clustermesh.mirror.agent_files import AgentAccess
    from clustermesh.mirror.server import BEAT, Timing, run

    one_heap()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    cluster = load(context)
    access = AgentAccess(
        folder=agents_config or cluster.path / "cached-peers",
        endpoints=(cluster.endpoint,),
        ca=cluster.ca,
        cert=cluster.certificate("local"),
        key=cluster.key("local"),
    )
    timing = Timing(heartbeat=BEAT if enable_heartbeat else 0.0)
    asyncio.run(run(of_folder(cluster), clustermesh_config or cluster.peers, http, timing, access))
