"""`clustermesh apiserver`: publishes a cluster that is a folder, or one that a Kubernetes API knows.

It also takes the flags of Cilium's clustermesh-apiserver, so that it can stand in its place.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from clustermesh.cli import context_option
from clustermesh.cli.own_cluster import (
    USERS,
    go_switch,
    listen_at,
    mirrored,
    mirrored_options,
    own_cluster_options,
    settings_of,
    take_others,
)
from clustermesh.cli.values import AT_ONCE, RATE, Listener
from clustermesh.errors import Invalid
from clustermesh.standalone.context import load

if TYPE_CHECKING:
    from clustermesh.apiserver.server import Duty, Timing
    from clustermesh.kube.access import Access
    from clustermesh.mirror.agent_files import AgentAccess
    from clustermesh.model import Cluster
    from clustermesh.sources.kubernetes import KubernetesSource
    from clustermesh.sources.source import Source


_OF_PEERS: Final = {"service_imports": "--service-imports", "slices_of_peers": "--clustermesh-enable-endpoint-sync"}


def _show_role(command: click.Context, _option: click.Parameter, wanted: bool) -> None:
    if not wanted or command.resilient_parsing:
        return
    from clustermesh.kube.rbac import cluster_role
    from clustermesh.sources.served import RULES
    from clustermesh.yaml_file import dump_yaml

    click.echo(dump_yaml(cluster_role("clustermesh-apiserver", RULES)).decode(), nl=False)
    command.exit()


@click.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
@click.pass_context
@context_option
@click.option(
    "--source",
    type=click.Choice(["folder", "kubernetes"]),
    help="Where the objects come from: the folder's manifests, or the Kubernetes API. "
    "[default: kubernetes with --cluster-name, else folder]",
)
@click.option(
    "--http",
    type=Listener(),
    metavar="HOST:PORT",
    help="Where to serve health and metrics. [default: 127.0.0.1:9880]",
)
@click.option("--kubeconfig", "--k8s-kubeconfig-path", default="", metavar="FILE", help="How to reach the API.")
@click.option("--kube-context", default="", metavar="NAME", help="The context in the kubeconfig.")
@click.option(
    "--mode",
    type=click.Choice(["auto", "native", "cilium"]),
    default="auto",
    show_default=True,
    help="Whose the API's nodes are: Cilium's, which allots identities there, or ours. auto: by whether there is a "
    "CiliumNode.",
)
@own_cluster_options
@click.option("--cluster-users-config-path", type=click.Path(path_type=Path), metavar="FILE", help="users.yaml.")
@go_switch(
    "--cluster-users-enabled",
    help=f"Whether to look after etcd's users.  [default: where there is a users.yaml; {USERS} if none is named]",
)
@go_switch(
    "--enable-cilium-endpoint-slice",
    "slices",
    help="Whether Cilium's agents write CiliumEndpointSlices.  [default: where there is one]",
)
@go_switch(
    "--clustermesh-default-global-namespace",
    "in_mesh",
    default=True,
    show_default=True,
    help="Whether a namespace of the API without the annotation clustermesh.cilium.io/global is in the mesh.",
)
@go_switch(
    "--clustermesh-enable-mcs-api",
    "mcs",
    default=True,
    show_default=True,
    help="Publish ServiceExports where the API serves them.",
)
@go_switch(
    "--service-imports",
    default=False,
    show_default=True,
    help="Make what connected clusters export callable here, by ServiceImports and the Services behind them, and keep "
    "the conditions of ServiceExports. Implies --clustermesh-enable-endpoint-sync. Beside Cilium its operator does it.",
)
@go_switch(
    "--clustermesh-enable-endpoint-sync",
    "slices_of_peers",
    default=False,
    show_default=True,
    help="Write EndpointSlices of other clusters' backends for global services that ask for it or are headless. Takes "
    "--clustermesh-config and a mirror.",
)
@click.option(
    "--declared-peers",
    metavar="NAMESPACE",
    help="Connect with the clusters that ClusterMeshPeers of this namespace declare, by its Secrets cilium-clustermesh "
    "and cilium-kvstoremesh.",
)
@click.option(
    "--agents-etcd",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="How agents reach the copies that the mirror makes of declared clusters, as an etcd's configuration; without "
    "it they read these clusters themselves.",
)
@click.option(
    "--show-role",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_role,
    help="Print the ClusterRole that --source kubernetes needs, and end.",
)
@click.option("--etcd-max-inflight", type=AT_ONCE, default=4, show_default=True, help="Transactions etcd has at once.")
@click.option("--etcd-qps", type=RATE, default=5000.0, show_default=True, help="Transactions a second.")
@click.option(
    "--k8s-client-max-inflight",
    type=AT_ONCE,
    default=16,
    show_default=True,
    help="Requests the API has at once, but for watches.",
)
@click.option("--k8s-client-qps", type=RATE, default=500.0, show_default=True, help="Requests a second.")
@click.option(
    "--mirror", is_flag=True, help="Mirror the connected clusters as well, instead of `clustermesh kvstoremesh`."
)
@mirrored_options
@click.option(
    "--mirror-http",
    type=Listener(),
    metavar="HOST:PORT",
    help="Where to serve the mirror's. [default: 127.0.0.1:9881]",
)
def apiserver(command: click.Context, context: Path, source: str | None, http: str | None, **flags: Any) -> None:
    """Publish the cluster's services, nodes, identities and endpoints into its own etcd, for its peers to read.

    \b
    Examples:
      clustermesh apiserver --context /srv/alpha --http 127.0.0.1:9880
      clustermesh apiserver --context /srv/alpha --source kubernetes --kubeconfig ~/.kube/config
      clustermesh apiserver --context /srv/alpha --mirror
      clustermesh apiserver --cluster-name alpha --cluster-id 1 --kvstore-opt etcd.config=/etc/etcd-config.yaml
    """
    import asyncio
    import logging

    from clustermesh import logs
    from clustermesh.heap import one_heap

    others = take_others(command, flags["cluster_name"])
    _check_declared(source, flags)
    one_heap()
    logs.set_up(flags["log_format"], "apiserver")
    for warning in others:  # a chart for another release must not keep the cluster from being published
        logging.warning("%s", warning)
    if source == "folder" or (source is None and flags["cluster_name"] is None):
        asyncio.run(_publish_folder(context, http, flags))
    else:
        asyncio.run(_publish_kubernetes(context, http, flags))


def _check_declared(source: str | None, flags: dict[str, Any]) -> None:
    folder = source == "folder" or (source is None and flags["cluster_name"] is None)
    if flags["declared_peers"] is not None and (folder or flags["mirror"]):
        rule = "must be left out for a cluster that is a folder, and beside --mirror: a chart's pod has both apart"
        raise Invalid("--declared-peers", flags["declared_peers"], rule)
    if flags["agents_etcd"] is not None and flags["declared_peers"] is None:
        raise Invalid("--agents-etcd", str(flags["agents_etcd"]), "must stand beside --declared-peers")
    for name, flag in _OF_PEERS.items():
        if flags[name] and (folder or flags["clustermesh_config"] is None):
            rule = "takes --source kubernetes and --clustermesh-config, the folder of connected clusters"
            raise Invalid(flag, "true", rule)


async def _publish_folder(context: Path, http: str | None, flags: dict[str, Any]) -> None:
    from clustermesh.sources.folder import FolderSource

    cluster = load(context)
    await _serve(FolderSource(cluster.manifests, cluster.cluster), context, http, flags)


async def _serve(
    source: Source, context: Path, http: str | None, flags: dict[str, Any], duties: Sequence[Duty] = ()
) -> None:
    settings, listen = settings_of(context, flags), listen_at(http, flags, "127.0.0.1:9880")
    if flags["mirror"]:
        from clustermesh.mirror import server as mirrors
        from clustermesh.mirror.together import Mirrored, run_both

        mirroring = mirrors.Timing(cache_ttl=flags["clustermesh_cache_ttl"])
        peers, access = mirrored(context, flags)
        at = [flags["mirror_http"] or "127.0.0.1:9881"]
        await run_both(settings, source, listen, Mirrored(peers, at, access), _timing(flags), mirroring)
    else:
        from clustermesh.apiserver import run

        await run(settings, source, listen, _timing(flags), duties)


def _timing(flags: dict[str, Any]) -> Timing:
    from clustermesh.apiserver.server import Timing
    from clustermesh.pace import Load

    return Timing(writes=Load(at_once=flags["etcd_max_inflight"], per_second=flags["etcd_qps"]))


async def _publish_kubernetes(context: Path, http: str | None, flags: dict[str, Any]) -> None:
    """Credentials are another process's to read, and perhaps to ask for: that is under way while the rest is loaded."""
    import asyncio

    from clustermesh.kube.config import find_access

    access = find_access(flags["kubeconfig"], flags["kube_context"])
    asking = asyncio.create_task(access.prefetch())
    await asyncio.to_thread(importlib.import_module, "clustermesh.sources.kubernetes")
    from clustermesh.pace import Load
    from clustermesh.sources.kubernetes import KubernetesSource
    from clustermesh.sources.served import Wanted

    cluster, in_mesh = settings_of(context, flags).cluster, flags["in_mesh"]
    reads = Load(at_once=flags["k8s_client_max_inflight"], per_second=flags["k8s_client_qps"])
    wanted = Wanted(**{name: flags[name] for name in ("mode", "mcs", "slices")})
    kubernetes = KubernetesSource(access, cluster, in_mesh=in_mesh, wanted=wanted, reads=reads)
    await _serve(kubernetes, context, http, flags, list(_duties(access, cluster, kubernetes, flags)))
    await asking


def _duties(access: Access, own: Cluster, source: KubernetesSource, flags: dict[str, Any]) -> Iterator[Duty]:
    """What is asked for besides publishing."""
    if flags["declared_peers"] is not None:
        from clustermesh.declared.keeping import Task, keep_peers

        task = Task(access, flags["declared_peers"], own.name, _agents(own.name, flags["agents_etcd"]))
        yield lambda etcd, say: keep_peers(task, etcd, say)
    if any(flags[name] for name in _OF_PEERS):
        from clustermesh.multicluster.keeping import Services, keep_services

        services = Services(access, own, source, flags["clustermesh_config"], flags["service_imports"])
        yield lambda etcd, say: keep_services(services, etcd, say)


def _agents(own: str, file: Path | None) -> AgentAccess | None:
    if file is None:
        return None
    from clustermesh.mesh.peer_files import parse_peer
    from clustermesh.mirror.agent_files import AgentAccess
    from clustermesh.yaml_file import read_bytes

    found = parse_peer(own, read_bytes(file), file.parent)
    return AgentAccess(folder=file.parent, endpoints=found.endpoints, ca=found.ca, cert=found.cert, key=found.key)
