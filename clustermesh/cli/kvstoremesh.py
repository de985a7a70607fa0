"""`clustermesh kvstoremesh`: peers, mirrored into the own etcd.

It also takes the flags of Cilium's kvstoremesh, so that it can stand in its place.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from clustermesh.cli import context_option
from clustermesh.cli.own_cluster import (
    go_switch,
    listen_at,
    mirrored,
    mirrored_options,
    own_cluster_options,
    settings_of,
    take_others,
)
from clustermesh.cli.values import Duration, Listener
from clustermesh.duration import parse_ttl


@click.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
@click.pass_context
@context_option
@mirrored_options
@click.option(
    "--http",
    type=Listener(),
    metavar="HOST:PORT",
    help="Where to serve health and metrics. [default: 127.0.0.1:9881]",
)
@go_switch(
    "--enable-heartbeat",
    default=False,
    help="Beat in the own etcd, where no API server does.",
)
@own_cluster_options
@click.option(
    "--global-ready-timeout",
    type=Duration(),
    default="10m",
    show_default=True,
    help="How long /readyz waits for what connected clusters have to be copied.",
)
@click.option(
    "--per-cluster-ready-timeout",
    type=Duration(),
    default="15s",
    show_default=True,
    help="How long it waits for one that does not answer.",
)
@click.option(
    "--kvstore-lease-ttl",
    type=Duration(parse_ttl),
    default="15m",
    show_default=True,
    help="How long copies outlive us.",
)
def command(command: click.Context, context: Path, http: str | None, enable_heartbeat: bool, **flags: Any) -> None:
    """Mirror every connected cluster into the own etcd, for the agents of this cluster to read there.

    Of several, one works and the others stand by. Agents read the mirror when they are given its folder.

    \b
    Examples:
      clustermesh kvstoremesh --context /srv/alpha
      clustermesh-agent --context /srv/alpha --clustermesh-config /srv/alpha/cached-peers
      clustermesh kvstoremesh --cluster-name alpha --cluster-id 1 --kvstore-opt etcd.config=/etc/etcd-config.yaml
    """
    import asyncio
    import logging

    from clustermesh import logs
    from clustermesh.heap import one_heap
    from clustermesh.mirror.server import BEAT, Timing, run

    others = take_others(command, flags["cluster_name"])
    one_heap()
    logs.set_up(flags["log_format"], "kvstoremesh")
    for warning in others:
        logging.warning("%s", warning)
    listen = listen_at(http, flags, "127.0.0.1:9881")
    peers, access = mirrored(context, flags)
    timing = Timing(
        heartbeat=BEAT if enable_heartbeat else 0.0,
        lease_ttl=int(flags["kvstore_lease_ttl"]),
        ready=flags["global_ready_timeout"],
        answered=flags["per_cluster_ready_timeout"],
        cache_ttl=flags["clustermesh_cache_ttl"],
    )
    asyncio.run(run(settings_of(context, flags), peers, listen, timing, access))
