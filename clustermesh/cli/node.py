"""`clustermesh node ...`: what the agent of this node knows, and what its kernel holds."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from clustermesh.agent_socket import DEFAULT_SOCKET, ask, listen
from clustermesh.cli import FAILED, context_option, output_option, printable
from clustermesh.cli.table import print_found, print_table

_socket = click.option(
    "--socket",
    type=click.Path(path_type=Path, readable=False),
    envvar="CLUSTERMESH_SOCKET",
    default=DEFAULT_SOCKET,
    show_default=True,
    metavar="PATH",
    help="The agent's socket (also: CLUSTERMESH_SOCKET).",
)


@click.group()
def command() -> None:
    """Ask the agent of this node.

    \b
    Examples:
      clustermesh node status
      clustermesh node service list -o json
      clustermesh node map diff
    """


_COUNTS = ("nodes", "services", "endpoints", "identities", "refused")
_GROUPS = {
    name: command.group(name, help=f"{text}\n\n\b\nExample:\n  clustermesh node {name} {only}")(lambda: None)
    for name, only, text in (
        ("service", "list", "Services and the backends behind them."),
        ("bpf", "lb list", "The maps that programs look into."),
        ("backend", "list", "The backend map."),
        ("ipcache", "list", "Who is behind each address."),
        ("encrypt", "status", "The tunnels to other nodes."),
        ("map", "diff", "The kernel's tables."),
    )
}


for _words, _text in (
    ("bpf lb", "Services, slot by slot."),
    ("bpf affinity", "Clients that stay with a backend."),
    ("bpf ipcache", "Who is behind each address."),
    ("bpf ct", "Connections that packet programs translate."),
):
    _help = f"{_text}\n\n\b\nExample:\n  clustermesh node {_words} list"
    _GROUPS[_words] = _GROUPS["bpf"].group(_words.split()[1], help=_help)(lambda: None)


@command.command("status")
@_socket
@output_option
@click.pass_context
def status(ctx: click.Context, socket: Path, output: str) -> None:
    """Show every cluster this node reads, every kernel table, and what is wrong. Exits with 1 when something is.

    \b
    Example:
      clustermesh node status
    """
    found = ask(socket, "status")
    if output != "table":
        print_found(found, output)
    else:
        _print_status(found)
    if not found["ready"] or found["problems"] or any(c["state"] != "fresh" for c in found["clusters"]):
        ctx.exit(FAILED)


def _print_status(found: dict[str, Any]) -> None:
    ready = click.style("ready", fg="green") if found["ready"] else click.style("not ready", fg="red")
    click.echo(f"Node {found['cluster']['name']}/{found['node']}: {ready} (clustermesh {found['version']})")
    encryption, datapath = found["encryption"], found["datapath"]
    click.echo(
        f"Encryption: {encryption['provider']} WireGuard on {encryption['device']} ({encryption['why']}), "
        f"{encryption['peers']} peers, strict mode by {encryption['strict'] or 'nothing yet'}"
    )
    hooks = sorted({f"{hook['mechanism']} ({hook['outcome']})" for hook in datapath["hooks"]})
    click.echo(f"Datapath: loaded by {datapath['loader']}, attached by {', '.join(hooks) or 'nothing yet'}")
    native = [each["name"] for each in found["features"] if each["state"] == "native"]
    click.echo(f"Kernel features: native: {', '.join(native) or 'none'}")
    for each in found["features"]:
        if each["state"] != "native":
            click.secho(printable(f"  {each['state']}: {each['name']}: {each['says']} ({each['why']})"), fg="yellow")
    click.echo()
    head = ("CLUSTER", "ID", "STATE", "SINCE", *map(str.upper, _COUNTS), "LAST ERROR")
    print_table(head, map(_cluster_row, found["clusters"]))
    click.echo()
    keys = ("name", "desired", "actual", "pending", "failed", "drift")
    rows = [[target[key] for key in keys] for target in found["targets"]]
    print_table(("TABLE", *map(str.upper, keys[1:])), rows)
    click.echo()
    rows = [[each["name"], each["entries"], each["capacity"], _part(each)] for each in found["maps"]]
    print_table(("MAP", "ENTRIES", "CAPACITY", "FULL"), rows)
    click.echo()
    print_table(("COUNTED", "TIMES"), [(name, n) for name, n in found["counters"].items() if n])
    for problem in found["problems"]:
        click.secho(f"❌ {printable(problem)}", fg="red")


def _part(fill: dict[str, Any]) -> str:
    return f"{100 * fill['entries'] / fill['capacity']:.1f} %"


def _cluster_row(cluster: dict[str, Any]) -> list[object]:
    name = f"{cluster['name']} (own)" if cluster["own"] else cluster["name"]
    counts = (cluster[key] for key in _COUNTS)
    return [name, cluster["id"] or "?", cluster["state"], _ago(cluster["since"]), *counts, cluster["error"]]


def _service_rows(row: dict[str, Any]) -> list[Sequence[object]]:
    """One for each backend, as Cilium's users know it; those that get no new connections are last."""
    protocol = row["protocol"]
    backends = [
        f"{number} => {_place(each | {'protocol': protocol})} ({each['state']}{rests}) {each['cluster']}"
        for which, rests in (("backends", ""), ("resting", ", not given"))
        for number, each in enumerate(row[which], start=1)
    ]
    scope = "/e" if row["scope"] == "external" else ""
    first = row["id"], f"{_place(row)}{scope}", row["type"], row["service"]
    return [(*first, (backends or ["none"])[0]), *((" ",) * len(first) + (each,) for each in backends[1:])]


def _lb_rows(row: dict[str, Any]) -> list[Sequence[object]]:
    those = [row["frontend"], *row["backends"]]
    return [(f"{row['service']} ({slot})", each) for slot, each in enumerate(those)]


def _place(row: dict[str, Any]) -> str:
    address = f"[{row['address']}]" if ":" in row["address"] else row["address"]
    return f"{address}:{row['port']}/{row['protocol']}"


def _list(words: str, method: str, head: str, row: Callable[[dict[str, Any]], Sequence[Any]], text: str) -> None:
    """Register `clustermesh node WORDS`: one table of what `method` answers. `row` gives one row, or a list of some."""

    @output_option
    @_socket
    def lister(socket: Path, output: str) -> None:
        found = ask(socket, method)
        if output != "table":
            print_found(found, output)
        else:
            rows = (made if isinstance(made, list) else [made] for made in map(row, found))
            print_table(head.split(","), [each for some in rows for each in some])

    *group, name = words.split()
    where = _GROUPS[" ".join(group)] if group else command
    where.command(name, help=f"{text}\n\n\b\nExample:\n  clustermesh node {words}")(lister)


_list(
    "service list",
    "services",
    "ID,FRONTEND,SERVICE TYPE,SERVICE,BACKEND",
    _service_rows,
    "List every frontend with its backends, their states and the clusters they are in.",
)
_list(
    "bpf lb list",
    "bpf_lb",
    "SERVICE ADDRESS,BACKEND ADDRESS (SERVICE ID) (SLOT)",
    _lb_rows,
    "List the load-balancing maps: each frontend (slot 0), then its backends.",
)
_list(
    "bpf affinity list",
    "bpf_affinity",
    "CLIENT,SERVICE ID,SERVICE,BACKEND ID,BACKEND,USED",
    lambda row: (
        row["client"],
        row["service_id"],
        row["service"],
        row["backend_id"],
        row["backend"],
        f"{row['used_seconds_ago']}s ago",
    ),
    "List which client stays with which backend. A client of this node is its network namespace.",
)
_list(
    "bpf ipcache list",
    "ipcache",
    "IP PREFIX/ADDRESS,IDENTITY",
    lambda row: (
        row["prefix"],
        f"identity={row['identity']} encryptkey={255 * row['encrypted']} "
        f"tunnelendpoint={row['node'] or '0.0.0.0'} flags=<none>",
    ),
    "List the ipcache as `cilium-dbg bpf ipcache list` does. With labels: `clustermesh node ipcache list`.",
)
_list(
    "backend list",
    "backends",
    "ID,BACKEND,CLUSTER,FRONTENDS",
    lambda row: (row["id"], _place(row), row["cluster"], row["frontends"]),
    "List the backends by their number in the kernel.",
)
_list(
    "ipcache list",
    "ipcache",
    "PREFIX,IDENTITY,NODE,ENCRYPTED,LABELS",
    lambda row: (row["prefix"], row["identity"], row["node"], row["encrypted"], ";".join(row["labels"])),
    "List who is behind each address and CIDR.",
)
_list(
    "refused",
    "refused",
    "CLUSTER,ENTRY,REASON,WHY",
    lambda row: (row["cluster"], row["entry"], row["reason"], row["why"]),
    "List what is not used of what each cluster says, with the reason.",
)
_list(
    "limits",
    "limits",
    "CLUSTER,LIMIT,USED,MOST",
    lambda row: (row["cluster"], row["limit"], row["used"], row["most"]),
    "List how much each peer may make this node remember, and how much of it is used.",
)


@_GROUPS["bpf ct"].command("list")
@output_option
@_socket
def bpf_ct_list(socket: Path, output: str) -> None:
    """List the connections that packet programs translate, each direction by itself, as `cilium-dbg bpf ct list` does.

    \b
    Example:
      clustermesh node bpf ct list
    """
    found = ask(socket, "conntrack")
    if output != "table":
        print_found(found, output)
        return
    for row in found:
        click.echo(_connection(row))


def _connection(row: dict[str, Any]) -> str:
    ends = f"{row['protocol']} {row['direction']} {row['source']} -> {row['destination']}"
    counts = f"expires={row['expires']} Packets={row['packets']} Bytes={row['bytes']}"
    flags = f"Flags=[ {' '.join(row['flags'])} ] {row['status']}"
    new = f"RevNAT={row['service_id']} BackendID={row['backend_id']} as {row['new_source']} -> {row['new_destination']}"
    return f"{ends} {counts} {flags} {new}"


@command.command("monitor")
@_socket
@click.option(
    "--type",
    "types",
    multiple=True,
    type=click.Choice(["drop", "trace", "lb"]),
    help="Only these: what was refused or dropped, connections opened, addresses translated (default: all).",
)
@output_option
def monitor(socket: Path, types: Sequence[str], output: str) -> None:
    """Show what the programs in this node's kernel do, as it happens. With -o json, one object a line. Ctrl-C ends it.

    The kernel tells it only while somebody listens. What comes too fast is lost, and the count of that is shown.

    \b
    Examples:
      clustermesh node monitor
      clustermesh node monitor --type drop -o json
    """
    from clustermesh.cli.monitor import Form, line_of

    try:
        told = listen(socket, "monitor", {"types": list(types)}, lambda said: click.echo(printable(said), err=True))
        form, lost = Form(next(told)), 0
        for some in told:
            for row in form.rows(some["events"], time.time_ns() - time.monotonic_ns()):
                _print_event(row, output, line_of)
            if some["lost"] > lost:
                click.echo(f"lost {some['lost'] - lost} events, {some['lost']} in all", err=True)
                lost = some["lost"]
    except KeyboardInterrupt:
        pass  # that is how it ends


def _print_event(row: dict[str, Any], output: str, line_of: Callable[[Any], str]) -> None:
    if output == "yaml":
        click.echo("---")
        print_found(row, output)
    else:
        click.echo(json.dumps(row) if output == "json" else line_of(row))


@_GROUPS["encrypt"].command("status")
@_socket
@output_option
def encrypt_status(socket: Path, output: str) -> None:
    """Show the WireGuard device, its tunnels, and the nodes without one.

    \b
    Example:
      clustermesh node encrypt status
    """
    found = ask(socket, "encrypt")
    if output != "table":
        print_found(found, output)
        return
    click.echo(
        f"Device {found['device']}: {found['provider']} ({found['why']}), MTU {found['mtu']} over {found['interface']}"
    )
    click.echo(f"Public key {found['public_key']}, strict mode by {found['strict'] or 'nothing yet'}")
    rows = [
        [
            tunnel["node"] or tunnel["public_key"],
            tunnel["endpoint"],
            tunnel["allowed_ips"],
            _ago(tunnel["last_handshake"]) if tunnel["last_handshake"] else "never",
            tunnel["received"],
            tunnel["sent"],
        ]
        for tunnel in found["tunnels"]
    ]
    print_table(("NODE", "ENDPOINT", "POD CIDRS", "LAST HANDSHAKE", "RECEIVED", "SENT"), rows)
    for node, why in sorted(found["without_tunnel"].items()):
        click.secho(f"⚠️  {printable(f'{node}: {why}')}", fg="yellow")


@_GROUPS["map"].command("diff")
@_socket
@output_option
@click.pass_context
def map_diff(ctx: click.Context, socket: Path, output: str) -> None:
    """Compare what is wanted with what the kernel holds now. Prints nothing and exits with 0 when they are the same.

    \b
    Example:
      clustermesh node map diff
    """
    rows = ask(socket, "map_diff")
    if output != "table":
        print_found(rows, output)
    elif rows:
        keys = ("target", "key", "desired", "kernel")
        print_table([key.upper() for key in keys], [[row[key] or "absent" for key in keys] for row in rows])
    if rows:
        ctx.exit(FAILED)


def _of_agent(command: Callable[..., None]) -> Callable[..., None]:
    """What the agent of this node was told: options of the same names."""
    path = click.Path(path_type=Path)
    for name, kind, usual, text in reversed(
        (
            ("--bpffs", path, "/sys/fs/bpf", None),
            ("--state-dir", path, "/var/lib/clustermesh", None),
            ("--run-dir", path, "/run/clustermesh", None),
            ("--device", str, "cm-wg0", "The WireGuard device."),
        )
    ):
        metavar = "DIR" if kind is path else None
        command = click.option(name, type=kind, default=usual, show_default=True, metavar=metavar, help=text)(command)
    return command


def _become(module: str, options: Mapping[str, object], *flags: str) -> None:
    given = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    os.execv(sys.executable, [sys.executable, "-P", "-m", module, *given, *flags])


@command.command("prepare-downgrade")
@context_option
@click.option("--node", default=socket.gethostname, help="This node's name in its cluster (default: the host name).")
@_of_agent
def prepare_downgrade(context: Path, node: str, **where: str) -> None:
    """Fill the maps of the layout before this one, write down what is known as it was done then, and have the API
    server write the own services where it was done then, for an older agent to be started next. This one must be
    stopped.

    \b
    Example:
      systemctl stop clustermesh-agent && clustermesh node prepare-downgrade
    """
    _become("agent.older.downgrade", {"context": context, "node": node} | where)


@command.command("cleanup")
@click.option("--force", "-f", is_flag=True, help="Ask nothing.")
@click.option(
    "--all-state", is_flag=True, help="Also the node's key, what was kept of clusters, and the pods' devices."
)
@_of_agent
def cleanup(force: bool, all_state: bool, **where: str) -> None:
    """Take everything of an agent off this node: programs, maps, tunnels, routes. The agent must be stopped.

    \b
    Examples:
      systemctl disable --now clustermesh-agent && clustermesh node cleanup
      clustermesh node cleanup --force --all-state
    """
    if not force:
        click.confirm("This node leaves the mesh: services and tunnels end here. Go on?", abort=True)
    _become("agent.cleanup", where, *(["--all-state"] if all_state else []))


def _ago(moment: float) -> str:
    seconds = max(0, int(time.time() - moment))
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{seconds // size}{unit} ago"
    return f"{seconds}s ago"
