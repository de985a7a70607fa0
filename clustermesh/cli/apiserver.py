"""`clustermesh apiserver`: publishes a cluster that is a folder, or one that a Kubernetes API knows.

It also takes the flags of Cilium's clustermesh-apiserver, so that it can stand in its place.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from clustermesh.cli import context_option
from clustermesh.errors import Invalid
from clustermesh.standalone.context import load

if TYPE_CHECKING:
    from clustermesh.apiserver.settings import Settings


def _show_role(command: click.Context, _option: click.Parameter, wanted: bool) -> None:
    if not wanted or command.resilient_parsing:
        return
    from clustermesh.kube.rbac import cluster_role
    from clustermesh.sources.kubernetes import RULES
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
@click.option("--http", metavar="HOST:PORT", help="Where to serve health and metrics. [default: 127.0.0.1:9880]")
@click.option("--kubeconfig", "--k8s-kubeconfig-path", default="", metavar="FILE", help="How to reach the API.")
@click.option("--kube-context", default="", metavar="NAME", help="The context in the kubeconfig.")
@click.option("--cluster-name", metavar="NAME", help="The cluster, where no folder describes it.")
@click.option("--cluster-id", type=int, default=0, metavar="ID", help="Its number.")
@click.option("--max-connected-clusters", type=int, default=255, metavar="255|511", help="As in all of the mesh.")
@click.option(
    "--kvstore-opt", multiple=True, metavar="KEY=VALUE", help="etcd.config=FILE says where the own etcd is; repeatable."
)
@click.option("--cluster-users-config-path", type=click.Path(path_type=Path), metavar="FILE", help="users.yaml.")
@click.option(
    "--clustermesh-default-global-namespace",
    "in_mesh",
    type=bool,
    default=True,
    is_flag=False,
    flag_value=True,
    show_default=True,
    help="Whether a namespace of the API without the annotation clustermesh.cilium.io/global is in the mesh.",
)
@click.option(
    "--show-role",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_role,
    help="Print the ClusterRole that --source kubernetes needs, and end.",
)
@click.option("--health-port", type=int, metavar="PORT", help="As --http, on every address.")
@click.option("--prometheus-serve-addr", default="", metavar="[HOST]:PORT", help="Where to serve metrics, too.")
def apiserver(command: click.Context, context: Path, source: str | None, http: str | None, **flags: Any) -> None:
    """Publish the cluster's services, nodes, identities and endpoints into its own etcd, for its peers to read.

    \b
    Examples:
      clustermesh apiserver --context /srv/alpha --http 127.0.0.1:9880
      clustermesh apiserver --context /srv/alpha --source kubernetes --kubeconfig ~/.kube/config
      clustermesh apiserver --cluster-name alpha --cluster-id 1 --kvstore-opt etcd.config=/etc/etcd-config.yaml
    """
    import asyncio
    import logging

    from clustermesh.heap import one_heap

    if command.args and flags["cluster_name"] is None:
        raise click.NoSuchOption(command.args[0], ctx=command)
    one_heap()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    if source == "folder" or (source is None and flags["cluster_name"] is None):
        from clustermesh.apiserver import run_folder

        asyncio.run(run_folder(load(context), http or "127.0.0.1:9880"))
        return
    for argument in command.args:  # a chart for another release must not keep the cluster from being published
        logging.warning("%s: is no flag of this program, and ignored", argument)
    asyncio.run(_publish_kubernetes(context, http, flags))


async def _publish_kubernetes(context: Path, http: str | None, flags: dict[str, Any]) -> None:
    """Credentials are another process's to read, and perhaps to ask for: that is under way while the rest is loaded."""
    import asyncio

    from clustermesh.kube.config import find_access

    access = find_access(flags["kubeconfig"], flags["kube_context"])
    asking = asyncio.create_task(access.prefetch())
    await asyncio.to_thread(importlib.import_module, "clustermesh.sources.kubernetes")
    from clustermesh.apiserver import run
    from clustermesh.sources.kubernetes import KubernetesSource

    settings, listen = _settings(context, flags), _listen(http, flags["health_port"], flags["prometheus_serve_addr"])
    await run(settings, lambda: KubernetesSource(access, settings.cluster, in_mesh=flags["in_mesh"]), listen)
    await asking


def _settings(context: Path, flags: dict[str, Any]) -> Settings:
    from clustermesh.apiserver.settings import of_flags, of_folder

    if flags["cluster_name"] is None:
        return of_folder(load(context))
    users, most = flags["cluster_users_config_path"], flags["max_connected_clusters"]
    return of_flags(flags["cluster_name"], flags["cluster_id"], flags["kvstore_opt"], users, most)


def _listen(http: str | None, health_port: int | None, metrics: str) -> list[str]:
    """Everywhere that health and metrics are served."""
    if http and health_port:
        raise Invalid("--health-port", health_port, "must not be given beside --http, which says the same")
    listen = [f"0.0.0.0:{health_port}" if health_port else http or "127.0.0.1:9880"]
    if metrics:
        listen.append(f"0.0.0.0{metrics}" if metrics.startswith(":") else metrics)
    return listen
