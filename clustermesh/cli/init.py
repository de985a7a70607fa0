"""`clustermesh init`: a new cluster's folder and its certificates."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import click

from clustermesh.cli.values import Host, named_by
from clustermesh.standalone.context import create, locked


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--name", required=True, help="The cluster's name: a-z, 0-9 and '-', at most 32.")
@click.option("--id", "cluster_id", type=int, required=True, help="The cluster's number, 1 to 255 (or 511).")
@click.option("--endpoint", required=True, metavar="URL", help="Where peers reach its etcd: https://HOST:PORT.")
@click.option("--max-connected-clusters", type=int, default=255, show_default=True, help="255 or 511, mesh-wide.")
@click.option("--san", type=Host(), multiple=True, help="A further name or address of the server; repeatable.")
def command(
    folder: Path, name: str, cluster_id: int, endpoint: str, max_connected_clusters: int, san: tuple[str, ...]
) -> None:
    """Describe a cluster in DIR and make its certificates.

    The same command again changes nothing, and repairs what an interrupted one left.

    \b
    Example:
      clustermesh init /srv/alpha --name alpha --id 1 --endpoint https://172.20.1.1:2379
    """
    from certs.folder import initialise
    from certs.names import cluster_leaves

    most = "--max-connected-clusters"
    with named_by(cluster_name="--name", cluster_id="--id", endpoint="--endpoint", maxConnectedClusters=most):
        context = create(folder, name, cluster_id, endpoint, max_connected_clusters)
    with locked(context):
        leaves = cluster_leaves(context.name, [context.address.host, *san])
        initialise(context.certs, leaves, datetime.now(UTC))
    click.echo(f"cluster {context.name} (id {context.id}) in {context.path}; peers reach it at {context.endpoint}")
