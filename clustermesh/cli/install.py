"""`clustermesh install`, `upgrade` and `uninstall`: the chart, by Helm."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import click

from clustermesh.cli import printable
from clustermesh.cli.contexts import Which, cluster_options, is_folder
from clustermesh.errors import Invalid

if TYPE_CHECKING:
    from clustermesh.joining.deployment import Leavings, Plan
    from clustermesh.joining.differences import Change
    from clustermesh.joining.helm_program import Duty, Program
    from clustermesh.joining.leading import Entries
    from clustermesh.joining.objects import Objects
    from clustermesh.multicluster.leavings import Keeping

_COLOURS = {"+": "green", "-": "red", "~": "yellow"}


def _values(function: Any) -> Any:
    """What both take: given to the command as `flags`, for Helm."""
    for option in (
        click.option("--chart", default="", metavar="CHART", help="Folder, package or reference of the chart; ours."),
        click.option("--dry-run", is_flag=True, help="Only show what would change."),
        click.option("-f", "--values", multiple=True, metavar="FILE", help="Values in YAML; repeatable."),
        click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="One value; repeatable."),
    ):
        function = option(function)
    return function


@click.command()
@cluster_options
@_values
@click.option("--release", default="", metavar="NAME", help="What Helm calls it, where it is new; clustermesh.")
def install(
    which: Which, sets: tuple[str, ...], values: tuple[str, ...], dry_run: bool, chart: str, release: str
) -> None:
    """Put the chart into a cluster: API server, mirror, agents. Shows what changes, then has Helm do it.

    The same command again changes nothing. Where the chart is there already, the values that it has stay, and those
    given here come on top. It calls the helm in PATH where that is Helm 3, 3.14 or newer, else its own.

    \b
    Examples:
      clustermesh install --context alpha --set cluster.name=alpha --set cluster.id=1
      clustermesh install --context alpha -f values.yaml --dry-run
    """
    asyncio.run(_deploy(which, _flags(sets, values), chart, release, dry_run, fresh=True))


@click.command()
@cluster_options
@_values
def upgrade(which: Which, sets: tuple[str, ...], values: tuple[str, ...], dry_run: bool, chart: str) -> None:
    """Bring the chart in a cluster to this program's version, and to other values; those not given stay.

    \b
    Examples:
      clustermesh upgrade --context alpha --dry-run
      clustermesh upgrade --context alpha --set clustermesh.cacheTTL=10m
    """
    asyncio.run(_deploy(which, _flags(sets, values), chart, "", dry_run, fresh=False))


@click.command()
@cluster_options
@click.option("--dry-run", is_flag=True, help="Only show what would go.")
@click.option("--authority", is_flag=True, help="Also the Secret cilium-ca, if our job made it: nobody trusts us then.")
@click.option("--cleanup-nodes", is_flag=True, help="Also, by a pod on each node, what agents have left there.")
def uninstall(which: Which, dry_run: bool, authority: bool, cleanup_nodes: bool) -> None:
    """Take the chart out of a cluster that is connected to no other, with all that our programs made beside it.

    That is also, in every namespace, EndpointSlices of other clusters' backends, ServiceImports and their Services. The
    certificate authority stays unless --authority is given: what it signed elsewhere lives by it. What Helm or
    others keep under the same names is left alone. Nodes keep their network, unless --cleanup-nodes takes programs,
    tunnels, routes and the CNI plugin off each; pods that run keep their devices, nodes their keys.

    \b
    Examples:
      clustermesh uninstall --context alpha --dry-run
      clustermesh uninstall --context alpha --authority --cleanup-nodes
    """
    asyncio.run(_uninstall(which, dry_run, authority, cleanup_nodes))


def _flags(sets: Iterable[str], values: Iterable[str]) -> list[str]:
    return [*(f"--values={each}" for each in values), *(f"--set={each}" for each in sets)]


async def _deploy(which: Which, flags: list[str], chart: str, release: str, dry_run: bool, *, fresh: bool) -> None:
    from clustermesh.joining.connect import open_api

    check_context(which)
    async with open_api(which.kubeconfig, which.context, which.namespace) as objects:
        found = await deploy(objects, which, flags, chart, release=release, dry_run=dry_run, fresh=fresh)
    if not found.any:
        click.echo(f"nothing to do: release {found.name} in {which.shown} is as it is to be")
    else:
        click.echo(_summary(found, which, "would be" if dry_run else "is"))


async def deploy(
    objects: Objects,
    which: Which,
    flags: list[str],
    chart: str,
    *,
    release: str = "",
    dry_run: bool = False,
    fresh: bool = False,
) -> Plan:
    """Have the chart deployed with the values that `flags` of Helm's give, and show what that changes: it is done, but
    for `dry_run`. What API servers made in users' namespaces goes where none will keep it. Raises as `plan`."""
    from msgspec.structs import replace

    from clustermesh.joining.deployment import IMPORTS, SERVED, SLICES_OF_PEERS, define, find_misled, lead, plan
    from clustermesh.joining.helm import Helm, find_chart
    from clustermesh.joining.helm_program import Duty
    from clustermesh.joining.node_cleanup import NAME, discard
    from clustermesh.multicluster.leavings import Keeping

    if chart.startswith("-"):
        raise Invalid("--chart", chart, "must be a folder, a package or a reference, and not begin with -")
    program = await _find_helm(Duty.DEPLOY)
    helm = Helm(program, which.kubeconfig, which.context, which.namespace, chart or find_chart())
    found = await plan(objects, helm, flags, name=release, fresh=fresh)
    _show([*found.defined, *found.changes])
    _show_led(found.misled)
    if not dry_run:
        if await discard(objects):
            _line("-", "DaemonSet", NAME)
        await define(objects, found.definitions)
        if found.changes or found.given:
            await helm.deploy(found.name, flags)
        await lead(objects, await find_misled(objects, found.wanted))
    served, imports, slices = (found.wanted.value(key) is True for key in (SERVED, IMPORTS, SLICES_OF_PEERS))
    keeping = Keeping(served and imports, served and slices)
    left = await _take_leavings(objects, keeping, objects.namespace, dry_run)
    return replace(found, given=found.given or left)


async def _take_leavings(objects: Objects, keeping: Keeping, judged: str, dry_run: bool) -> bool:
    """Whether there are any, as `find_leavings` has it."""
    from clustermesh.multicluster.leavings import find_leavings, take_away

    found = await find_leavings(objects, keeping, judged)
    for write in found:
        _line("-", write.place.kind, "/".join(write.name))
        if not dry_run:
            await take_away(objects, write)
    return bool(found)


async def _find_helm(duty: Duty) -> Program:
    """It is said where another comes first, and is none."""
    from clustermesh.joining.helm_program import find_program

    program = await find_program(duty)
    if program.path and program.passed:
        warning = click.style("warning:", fg="yellow", bold=True)
        told = f"{'; '.join(program.passed)}: {program.path} is called, which is {program.version}"
        click.echo(f"{warning} {printable(told)}", err=True)
    return program


async def _uninstall(which: Which, dry_run: bool, authority: bool, cleanup_nodes: bool) -> None:
    from clustermesh.joining import names
    from clustermesh.joining.connect import open_api
    from clustermesh.joining.deployment import check_alone, find_leavings, remove
    from clustermesh.joining.differences import find_changes
    from clustermesh.joining.helm import Helm, look_release
    from clustermesh.joining.helm_program import Duty
    from clustermesh.joining.names import AGENTS
    from clustermesh.joining.node_cleanup import NAME, find_cleanup, hold
    from clustermesh.joining.objects import MANAGED_BY, Secret
    from clustermesh.multicluster.leavings import Keeping

    check_context(which)
    async with open_api(which.kubeconfig, which.context, which.namespace) as objects:
        release = await look_release(objects)
        told = await objects.read("secrets", names.PEERS, Secret)
        if told is None or (told.metadata.labels or {}).get(MANAGED_BY) != "Helm":
            await check_alone(objects, "uninstall")
        cleanup = await find_cleanup(objects) if cleanup_nodes else None
        if cleanup and not dry_run:
            await hold(objects, cleanup)  # before what it is made of goes
        if release is not None:
            _show(await find_changes(objects, release.last.manifest, ""))
            if not dry_run:
                program = await _find_helm(Duty.UNINSTALL)
                helm = Helm(program, which.kubeconfig, which.context, which.namespace, "")
                await helm.uninstall(release.last.name)
        left = await find_leavings(objects)
        going = [*left.made, *([("secrets", names.AUTHORITY)] if left.authority and authority else [])]
        for plural, name in going:
            _line("-", {"secrets": "Secret", "configmaps": "ConfigMap"}[plural], name)
            if not dry_run:
                await remove(objects, plural, name)
        # Without a release of Helm's here, API servers in this namespace are somebody's, too.
        abroad = await _take_leavings(objects, Keeping(), which.namespace if release else "", dry_run)
        if cleanup:
            await _clean_nodes(objects, cleanup, dry_run)
    if cleanup_nodes and not cleanup:
        click.echo(
            f"no node is looked at: namespace {which.namespace} has neither DaemonSet {AGENTS} nor {NAME}; for nodes "
            "that an uninstall left as they were: `clustermesh install` with the values that it had, then this again"
        )
    any_there = release is not None or bool(going) or abroad or bool(cleanup)
    _farewell(which, left, any_there, dry_run, authority, told=cleanup_nodes)


async def _clean_nodes(objects: Objects, cleanup: dict[str, Any], dry_run: bool) -> None:
    from clustermesh.cli.progress import shown_progress
    from clustermesh.joining.node_cleanup import clean_nodes

    if dry_run:
        click.echo("on each node, by a pod: programs, tunnels, routes and the CNI plugin would go")
    else:
        with shown_progress() as say:
            nodes = await clean_nodes(objects, cleanup, say)
        click.echo(f"programs, tunnels, routes and the CNI plugin are off {nodes} nodes")


def _farewell(which: Which, left: Leavings, any_there: bool, dry_run: bool, authority: bool, *, told: bool) -> None:
    if not any_there:
        click.echo(f"nothing to do: the chart is not in {which.shown}, namespace {which.namespace}")
    elif dry_run:
        click.echo("nothing was changed (--dry-run)")
    else:
        click.echo(f"the chart is no longer in {which.shown}")
        if not told:
            click.echo(
                "on nodes that had an agent, programs, tunnels and the CNI plugin stay: on each `clustermesh node "
                "cleanup` and `clustermesh-cni-install --remove`, or install again, and uninstall --cleanup-nodes"
            )
    if left.authority and not authority:
        click.echo(f"Secret cilium-ca stays in namespace {which.namespace}: --authority removes it")


def _summary(found: Plan, which: Which, verb: str) -> str:
    done = "installed" if found.release is None else "upgraded"
    return f"release {found.name} {verb} {done} in {which.shown}, namespace {which.namespace}"


def _show(changes: Iterable[Change]) -> None:
    for change in changes:
        _line(change.sign, change.kind, change.name)
        for field in change.fields:
            click.echo(f"    {printable(field)}")


def _show_led(peers: Mapping[str, Entries]) -> None:
    from clustermesh.joining.names import PEERS

    if peers:
        _line("~", "Secret", PEERS)
    for name, (_, mirror) in peers.items():
        click.echo(f"    agents read {printable(f'the copies of {name} in their own etcd' if mirror else name)}")


def _line(sign: str, kind: str, name: str) -> None:
    click.echo(f"{click.style(sign, fg=_COLOURS[sign], bold=True)} {kind} {printable(name)}")


def check_context(which: Which) -> None:
    """Refused where it is a folder."""
    if is_folder(which.context):
        raise Invalid("context", which.context, "is a folder, which has no chart; give a context of a kubeconfig")
