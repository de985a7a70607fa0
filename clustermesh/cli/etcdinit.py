"""`clustermesh-apiserver etcdinit`: the data of an etcd with users, as an init container of Cilium's chart makes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from clustermesh.cli.own_cluster import take_others
from clustermesh.cli.values import Duration, named_by


@click.command(
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "auto_envvar_prefix": "CILIUM"}
)
@click.pass_context
@click.option("--cluster-name", required=True, metavar="NAME", show_envvar=True, help="The cluster whose users get in.")
@click.option(
    "--etcd-data-dir",
    type=click.Path(path_type=Path),
    default="/var/run/etcd",
    show_default=True,
    metavar="DIR",
    help="Which folder; an etcd's data in it are deleted.",
)
@click.option(
    "--etcd-cluster-name",
    default="clustermesh-apiserver",
    show_default=True,
    metavar="NAME",
    help="The --name that etcd is started with afterwards.",
)
@click.option(
    "--etcd-initial-cluster-token",
    default="clustermesh-apiserver",
    show_default=True,
    metavar="TOKEN",
    help="Another one makes another etcd of it, which its clients notice.",
)
@click.option("--timeout", type=Duration(), default="2m", show_default=True, help="How long etcd may take to begin.")
@click.option("--debug", is_flag=True, hidden=True)
def command(command: click.Context, /, cluster_name: str, etcd_data_dir: Path, timeout: float, **flags: Any) -> None:
    """Make the data folder of an etcd that lets in the users of a cluster and nobody else.

    Every option may be given by the environment, too, as CILIUM_CLUSTER_NAME.

    \b
    Example:
      clustermesh-apiserver etcdinit --cluster-name=alpha --etcd-data-dir=/var/run/etcd
    """
    import asyncio
    import logging

    from clustermesh import logs
    from clustermesh.apiserver.etcdinit import make_data
    from clustermesh.model import Cluster, check_cluster_name

    logs.set_up("text", "etcdinit")
    for warning in take_others(command, cluster_name):
        logging.warning("%s", warning)
    with named_by(cluster_name="--cluster-name"):
        cluster = Cluster(name=check_cluster_name(cluster_name), id=1)  # users and roles are the same for every id
    name, token = flags["etcd_cluster_name"], flags["etcd_initial_cluster_token"]
    asyncio.run(make_data(etcd_data_dir, cluster, name, token, timeout))
