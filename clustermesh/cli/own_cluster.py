"""What servers are told of their own cluster on the command line, as Cilium's take it, and where they answer."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from clustermesh.cli.looking import peers_option
from clustermesh.cli.values import PORT, Duration, Listener, named_by
from clustermesh.duration import parse_cache_ttl
from clustermesh.errors import Invalid
from clustermesh.logs import FORMATS
from clustermesh.model import MAX_CLUSTERS
from clustermesh.standalone.context import CHART_PEERS, Context, load

if TYPE_CHECKING:
    from clustermesh.mirror.agent_files import AgentAccess
    from clustermesh.own_cluster import Settings

_LOG: Final = logging.getLogger(__name__)

USERS: Final = Path("/var/lib/cilium/etcd-config/users.yaml")
"""Where it says who may read the own etcd."""
_OF_NO_MEANING: Final = frozenset({"--debug", "--controller-group-metrics"})
"""What Cilium's chart gives besides."""


name_option: Final = click.option("--cluster-name", metavar="NAME", help="The cluster, where no folder describes it.")
kvstore_option: Final = click.option(
    "--kvstore-opt",
    multiple=True,
    metavar="KEY=VALUE",
    help="etcd.config=FILE says where the own etcd is; repeatable.",
)
_OPTIONS: Final = (
    name_option,
    click.option("--cluster-id", type=int, metavar="ID", help="Its number."),
    click.option(
        "--max-connected-clusters", type=int, metavar="255|511", help="As in all of the mesh.  [default: 255]"
    ),
    kvstore_option,
    click.option("--health-port", type=PORT, metavar="PORT", help="As --http, on every address."),
    click.option(
        "--prometheus-serve-addr",
        type=Listener(),
        default="",
        metavar="[HOST]:PORT",
        help="Where to serve metrics, too.",
    ),
    click.option(
        "--log-format", type=click.Choice(FORMATS), default="text", show_default=True, help="How to log on stderr."
    ),
)


def own_cluster_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Those that every server has."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def take_others(command: click.Context, cluster_name: str | None) -> list[str]:
    """Flags that only another release of Cilium's has: a chart may give them, a person has mistyped."""
    if command.args and cluster_name is None:
        raise click.NoSuchOption(command.args[0], ctx=command)
    others = (each for each in command.args if each.partition("=")[0] not in _OF_NO_MEANING)
    return [f"{argument}: is no flag of this program, and ignored" for argument in others]


def settings_of(context: Path, flags: dict[str, Any]) -> Settings:
    """Of the cluster that the flags name, else of the folder `context`. Raises Invalid, also where a flag says
    otherwise than the folder.
    """
    from clustermesh.own_cluster import of_flags, of_folder

    if flags["cluster_name"] is None:
        cluster = load(context)
        _check_flags(cluster, flags)
        return of_folder(cluster)
    users, enabled = flags.get("cluster_users_config_path"), flags.get("cluster_users_enabled")
    users = None if enabled is False else users or (USERS if enabled else None)
    name, number, most = flags["cluster_name"], flags["cluster_id"] or 0, flags["max_connected_clusters"]
    called = {"cluster_name": "--cluster-name", "cluster_id": "--cluster-id"}
    with named_by(max_connected_clusters="--max-connected-clusters", **called):
        return of_flags(name, number, flags["kvstore_opt"], users, MAX_CLUSTERS if most is None else most)


def _check_flags(cluster: Context, flags: dict[str, Any]) -> None:
    told = {
        "cluster_id": cluster.id,
        "max_connected_clusters": cluster.max_clusters,
        "cluster_users_config_path": cluster.users_file,
        "cluster_users_enabled": True,
        "kvstore_opt": (),
    }
    for name, says in told.items():
        if (given := flags.get(name)) not in (None, says):
            rule = "must be left out" + (f", or be {says}" if says else "")
            where = f"{cluster.path} describes the cluster (--cluster-name is for one without a folder)"
            raise Invalid(f"--{name.replace('_', '-')}", given, f"{rule}: {where}")


def listen_at(http: str | None, flags: dict[str, Any], default: str) -> list[str]:
    """Everywhere that health and metrics are served."""
    port, metrics = flags["health_port"], flags["prometheus_serve_addr"]
    if http and port:
        raise Invalid("--health-port", port, "must not be given beside --http, which says the same")
    listen = [f":{port}" if port else http or default]
    if metrics:
        listen.append(metrics)
    return listen


def mirrored(context: Path, flags: dict[str, Any]) -> tuple[Path, AgentAccess | None]:
    """The connected clusters, and where agents find their copies: of a cluster that is a folder, below it."""
    from clustermesh.mirror.agent_files import AgentAccess

    peers, agents = flags["clustermesh_config"], flags["agents_config"]
    if peers is not None and not os.path.exists(peers):  # it may be mounted late
        _LOG.warning("--clustermesh-config %s: there is no such folder yet, so no cluster is copied", peers)
    if flags["cluster_name"] is not None:
        if agents is not None:
            raise Invalid("--agents-config", str(agents), "must be left out beside --cluster-name: a chart makes it")
        return peers or CHART_PEERS, None
    cluster = load(context)
    if agents is not None and agents.resolve() == (peers or cluster.peers).resolve():
        raise Invalid("--agents-config", str(agents), "must not be the folder of the connected clusters")
    access = AgentAccess(
        folder=agents or cluster.path / "cached-peers",
        endpoints=(cluster.endpoint,),
        ca=cluster.ca,
        cert=cluster.certificate("local"),
        key=cluster.key("local"),
    )
    return peers or cluster.peers, access


def go_switch(*declarations: str, **options: Any) -> Callable[[Any], Any]:
    """A click.option that is given as Go's programs take booleans: --name, --name=true, --name=false."""
    return click.option(*declarations, type=bool, is_flag=False, flag_value=True, **options)


_MIRRORED: Final = (
    peers_option,
    click.option(
        "--agents-config",
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="Where to keep the files for `clustermesh-agent --clustermesh-config`.  [default: CONTEXT/cached-peers]",
    ),
    click.option(
        "--clustermesh-cache-ttl",
        type=Duration(parse_cache_ttl),
        default="0s",
        show_default="0s: never",
        help="Withdraw a cluster's services once its etcd has not answered for so long.",
    ),
)


def mirrored_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Those of whoever mirrors."""
    for option in reversed(_MIRRORED):
        command = option(command)
    return command
