"""`clustermesh why`: where a service, an address or an identity came from, and why it is used or not."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from clustermesh.cli import FAILED, context_option, output_option, printable
from clustermesh.cli.looking import ask_agent, find_cluster, peers_option, socket_option, timeout_option
from clustermesh.cli.table import print_found, print_table
from clustermesh.errors import ClusterMeshError, Refused

if TYPE_CHECKING:
    from clustermesh.standalone.context import Context
    from clustermesh.why.explain import Answer
    from clustermesh.why.facts import Facts, Seen
    from clustermesh.why.subject import Subject


@click.command()
@click.argument("subject")
@context_option
@peers_option
@socket_option
@timeout_option("How long an etcd may take to answer.")
@output_option
@click.pass_context
def command(
    ctx: click.Context,
    subject: str,
    context: Path,
    clustermesh_config: Path | None,
    socket: Path | None,
    timeout: float,
    output: str,
) -> None:
    """Tell where SUBJECT came from, when each hop saw it, and why it is used or not.

    SUBJECT is a service (NAMESPACE/NAME), an address (of a pod, a backend, a node, a frontend), the number of an
    identity, or its labels. The agent of this node is asked, its kernel included, and the etcds that the folder gives
    access to. Without an agent the etcds tell what one would do. Exits with 0 when it is used, 1 when it is not, or
    nobody knows it, 2 for wrong usage.

    \b
    Examples:
      clustermesh why demo/web
      clustermesh why 10.2.0.5 --context /srv/alpha
      clustermesh why 131074
      clustermesh why app=web,k8s:io.kubernetes.pod.namespace=demo -o json
    """
    from clustermesh.why.explain import explain
    from clustermesh.why.subject import parse_subject

    wanted = parse_subject(subject)
    facts = _ask_agent(socket, subject)
    status = None if facts is None else ask_agent(socket, "status")
    cluster = find_cluster(context, status, needed=facts is None)
    facts = asyncio.run(_look(wanted, facts, cluster, clustermesh_config, timeout))
    answer = explain(wanted, facts)
    if output != "table":
        print_found(_plain(answer), output)
    else:
        _print(answer)
    if not answer.used:
        ctx.exit(FAILED)


def _ask_agent(path: Path | None, subject: str) -> Facts | None:
    """What it knows; None where none was asked for and none is there, or may be asked."""
    import msgspec

    from clustermesh.why.facts import Facts

    told = ask_agent(path, "why", {"subject": subject})
    try:
        return None if told is None else msgspec.convert(told, Facts)
    except msgspec.ValidationError as e:
        raise Refused(f"the agent is of another release: {e}; run the same release everywhere") from e


async def _look(
    subject: Subject, facts: Facts | None, cluster: Context | None, directory: Path | None, patience: float
) -> Facts:
    from msgspec.structs import replace

    from clustermesh.mesh.peer_files import read_peers
    from clustermesh.why.etcd import Etcds

    if cluster is None:
        assert facts is not None
        return facts
    try:
        etcds = Etcds(cluster, read_peers(directory or cluster.peers, cluster.name), patience)
        facts = facts or await etcds.stand_in(subject)
        return replace(facts, hops=await etcds.hops(facts))
    except (ClusterMeshError, OSError):
        if facts is None or not facts.node:
            raise
        return facts


def _plain(answer: Answer) -> dict[str, Any]:
    import msgspec

    return {
        "subject": answer.subject,
        "used": answer.used,
        "says": answer.says,
        "hops": msgspec.to_builtins(answer.hops),
        "findings": [each._asdict() for each in answer.findings],
    }


def _print(answer: Answer) -> None:
    mark = "✅" if answer.used else "❌"
    click.secho(f"{mark} {printable(answer.says)}", bold=True)
    if answer.hops:
        click.echo()
        rows = [
            (hop.hop, hop.cluster, _moment(hop.seen), hop.what, hop.error or (hop.says if hop.present else "not there"))
            for hop in answer.hops
        ]
        print_table(("HOP", "CLUSTER", "SEEN (UTC)", "WHAT", "SAYS"), rows)
        click.echo()
    for finding in answer.findings:
        click.secho(f"{'✅' if finding.used else '❌'} {printable(finding.of)}: {printable(finding.why)}")
        if finding.remedy:
            click.echo(f"     {printable(finding.remedy)}")


def _moment(seen: Seen) -> str:
    if seen.at is not None:
        return f"{datetime.fromtimestamp(seen.at, UTC):%Y-%m-%d %H:%M:%S.%f}"[:-3]
    word, moment = ("after", seen.after) if seen.after is not None else ("by", seen.by)
    return "" if moment is None else f"{word} {datetime.fromtimestamp(moment, UTC):%Y-%m-%d %H:%M:%S}"
