"""The cluster that this node is of, and where its connected clusters are, as the agent was told."""

from __future__ import annotations

from pathlib import Path

from agent.options import Options
from clustermesh.own_cluster import Settings, of_flags, of_folder
from clustermesh.standalone.context import CHART_PEERS, load


def own_cluster(options: Options) -> tuple[Settings, Path]:
    """Raises Invalid, and Unavailable where a file cannot be read."""
    if options.cluster_name is None:
        context = load(options.context)
        return of_folder(context, "local"), options.clustermesh_config or context.peers
    most = options.max_connected_clusters
    settings = of_flags(options.cluster_name, options.cluster_id, options.kvstore_opt, most=most)
    return settings, options.clustermesh_config or CHART_PEERS
