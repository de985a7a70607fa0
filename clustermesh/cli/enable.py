"""`clustermesh enable`, `disable` and `config`: the chart's values, by Helm."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from clustermesh.cli.contexts import Which, cluster_options
from clustermesh.cli.install import check_context, deploy
from clustermesh.cli.table import print_found
from clustermesh.errors import Invalid, Refused

if TYPE_CHECKING:
    from clustermesh.joining.helm import Kept

_chart = click.option("--chart", default="", metavar="CHART", help="Folder, package or reference of the chart.")


@click.command()
@cluster_options
@click.option(
    "--service-type",
    type=click.Choice(["LoadBalancer", "NodePort", "ClusterIP"]),
    help="How other clusters reach this one's etcd; as it is, where it is not given.",
)
@_chart
def enable(which: Which, service_type: str | None, chart: str) -> None:
    """Let the API server of a cluster that has the chart run and be reached, so that others can be connected to it.

    The same command again changes nothing. It calls Helm, as `clustermesh install` does.

    \b
    Examples:
      clustermesh enable --context alpha --service-type LoadBalancer
      clustermesh enable --context alpha
    """
    changed = asyncio.run(_upgrade(which, partial(_opening, service_type), chart))
    click.echo(f"{which.shown} {'is open to other clusters' if changed else 'is open to other clusters already'}")
    if service_type == "NodePort":
        warning = click.style("warning:", fg="yellow", bold=True)
        click.echo(f"{warning} nodes come and go, and with them the addresses that other clusters were told", err=True)


@click.command()
@cluster_options
@_chart
def disable(which: Which, chart: str) -> None:
    """Close a cluster that is connected to no other: nobody outside reaches its etcd any more.

    With an etcd of its own choice (etcd.enabled of the chart) the API server ends. Else its Service becomes a
    ClusterIP: the cluster's own agents live by that etcd.

    \b
    Example:
      clustermesh disable --context alpha
    """
    changed = asyncio.run(_upgrade(which, _closing, chart))
    click.echo(f"{which.shown} is {'closed to other clusters' if changed else 'closed to other clusters already'}")


@click.group()
def config() -> None:
    """Show and change the chart's values.

    \b
    Examples:
      clustermesh config view --context alpha
      clustermesh config set clustermesh.cacheTTL 10m --context alpha
    """


@config.command()
@cluster_options
@click.option(
    "-o", "--output", type=click.Choice(["yaml", "json"]), default="yaml", show_default=True, help="How to print."
)
def view(which: Which, output: str) -> None:
    """Show what the cluster says of itself, and the values that its release was given, but for secrets.

    \b
    Example:
      clustermesh config view --context alpha -o json
    """
    print_found(asyncio.run(_view(which)), output)


@config.command(name="set")
@cluster_options
@click.argument("key")
@click.argument("value")
@_chart
def set_value(which: Which, key: str, value: str, chart: str) -> None:
    """Deploy the chart again with VALUE (JSON, or text) at KEY, beside the values that it has.

    \b
    Examples:
      clustermesh config set clustermesh.cacheTTL 10m --context alpha
      clustermesh config set clustermesh.apiserver.service.annotations '{"a": "b"}' --context alpha
    """
    if not all(key.split(".")):
        raise Invalid("key", key, "must be names with dots between, as clustermesh.apiserver.replicas")
    changed = asyncio.run(_upgrade(which, lambda _release: {key: _parsed(value)}, chart))
    click.echo(f"{key} is {value}{'' if changed else ' already'}")


def _parsed(value: str) -> Any:
    import msgspec

    try:
        return msgspec.json.decode(value.encode())
    except msgspec.DecodeError:
        return value


def _opening(service_type: str | None, release: Kept) -> dict[str, Any]:
    from clustermesh.joining.deployment import SERVED, TYPE

    if service_type:
        return {SERVED: True, TYPE: service_type}
    if not release.base.value("etcd.enabled") and release.base.value(TYPE) == "ClusterIP":
        raise Refused(
            "the API server's Service is a ClusterIP, as `clustermesh disable` leaves it: say how others reach it, by "
            "`--service-type LoadBalancer` or NodePort, or ClusterIP where they have a way to such addresses"
        )
    return {SERVED: True}


def _closing(release: Kept) -> dict[str, Any]:
    from clustermesh.joining.deployment import SERVED, TYPE

    return {SERVED: False} if release.base.value("etcd.enabled") else {TYPE: "ClusterIP"}


async def _upgrade(which: Which, choose: Callable[[Kept], dict[str, Any]], chart: str) -> bool:
    """Deploy with what is chosen, by what is there. Whether anything is otherwise now."""
    from clustermesh.joining.connect import open_api
    from clustermesh.joining.helm import find_release

    check_context(which)
    async with open_api(which.kubeconfig, which.context, which.namespace) as objects:
        release = await find_release(objects)
        changed = {key: value for key, value in choose(release).items() if release.base.value(key) != value}
        if release.whole and not changed:
            return False
        flags = [f"--set-json={key}={json.dumps(value)}" for key, value in changed.items()]
        return (await deploy(objects, which, flags, chart)).any


async def _view(which: Which) -> dict[str, Any]:
    from clustermesh.joining import names
    from clustermesh.joining.connect import open_api
    from clustermesh.joining.helm import find_release
    from clustermesh.sysdump.redact import Redactor

    check_context(which)
    async with open_api(which.kubeconfig, which.context, which.namespace) as objects:
        said = await objects.config(names.CONFIG)
        try:
            values = (await find_release(objects)).base.config or {}
        except Refused:  # Cilium's chart, or none
            if not said:
                raise
            values = {}
    return {"config": said, "values": Redactor().take_values(values)}
