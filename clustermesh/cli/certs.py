"""`clustermesh certs`: the certificates in a cluster's folder, or in the Secrets of its Kubernetes API."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from certs.names import COMMON_NAME_RULE, Leaf, cluster_leaves, is_common_name, unique
from clustermesh.cli import FAILED, context_option, output_option
from clustermesh.cli.contexts import Which, cluster_options, is_folder
from clustermesh.cli.entries import as_json, fault_of, row
from clustermesh.cli.rotate import rotate, status
from clustermesh.cli.secrets import command as secrets
from clustermesh.cli.table import print_found, print_table
from clustermesh.cli.values import Host
from clustermesh.errors import Invalid
from clustermesh.standalone.context import CLUSTER_FILE, Context, load, locked

if TYPE_CHECKING:
    from certs.folder import Entry
    from certs.issue import Pair


@click.group()
def command() -> None:
    """Make, show, renew and issue certificates.

    \b
    DIR/certs holds, readable by its owner only:
      ca      the cluster's authority, "Cilium CA", 10 years
      server  what its etcd shows
      admin   the API server's to its own etcd
      local   the agents' to their own etcd
      remote  the cluster's to peers that share its authority
    Leaves live 1 year; renewal is due 30 days before.

    \b
    Examples:
      clustermesh certs show --context /srv/alpha
      clustermesh certs renew --context /srv/alpha
      clustermesh certs status --context alpha
      clustermesh certs rotate --ca --context alpha --destination-context beta
      clustermesh certs secrets --cluster-name alpha
    """


command.add_command(secrets, "secrets")
command.add_command(status)
command.add_command(rotate)


@command.command()
@context_option
@click.option("--san", type=Host(), multiple=True, help="A further name or address of the server; repeatable.")
@click.option("--ca-cert", type=click.Path(path_type=Path, exists=True), help="Bring an authority: its certificate.")
@click.option("--ca-key", type=click.Path(path_type=Path, exists=True), help="Bring an authority: its key.")
def init(context: Path, san: tuple[str, ...], ca_cert: Path | None, ca_key: Path | None) -> None:
    """Make what is missing or unfit; leave alone what is good.

    \b
    Examples:
      clustermesh certs init --context /srv/alpha --san etcd.alpha.example
      clustermesh certs init --context /srv/alpha --ca-cert cilium-ca.crt --ca-key cilium-ca.key
    """
    from certs.check import read_pair
    from certs.folder import initialise

    if (ca_cert is None) != (ca_key is None):
        raise click.UsageError("give --ca-cert and --ca-key together")
    cluster = load(context)
    brought = None
    if ca_cert is not None and ca_key is not None:
        brought = read_pair(ca_cert.read_bytes(), ca_key.read_bytes(), str(ca_cert.with_suffix("")))
    with locked(cluster):
        written = initialise(cluster.certs, _leaves(cluster, san), datetime.now(UTC), authority=brought)
    for name, reason in written.items():
        click.echo(f"made {name} ({reason})")
    if not written:
        click.echo("all certificates are good")


@command.command()
@context_option
@output_option
def show(context: Path, output: str) -> None:
    """Show every certificate, and what is wrong with it; exit code 1 if anything is unfit or expires soon.

    \b
    Examples:
      clustermesh certs show --context /srv/alpha
      clustermesh certs show -o json | jq '.[] | select(.renewalDue)'
    """
    from certs.folder import inspect

    cluster, now = load(context), datetime.now(UTC)
    if not os.access(cluster.certs, os.R_OK | os.X_OK):  # who may not look must not be told to make them anew
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(cluster.certs))
    entries = inspect(cluster.certs, now, _leaves(cluster))
    if output != "table":
        print_found([as_json(e, now) for e in entries], output)
    else:
        print_table(("NAME", "COMMON NAME", "STATE", "EXPIRES", "DAYS", "HOSTS"), [row(e, now) for e in entries])
    signs = not entries[0].problem
    faults = [(fault, _remedy(entry, cluster, signs)) for entry in entries if (fault := fault_of(entry))]
    for fault, remedy in faults:
        click.echo(f"{click.style('problem:', fg='red', bold=True)} {fault}: {remedy}", err=True)
    if faults:
        raise SystemExit(FAILED)


@command.command()
@context_option
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--all", "everything", is_flag=True, help="Every leaf.")
@click.option("--new-key", is_flag=True, help="With a fresh key too.")
@click.option("--san", type=Host(), multiple=True, help="Add a name or address to the server's; repeatable.")
def renew(context: Path, names: tuple[str, ...], everything: bool, new_key: bool, san: tuple[str, ...]) -> None:
    """Issue certificates again with the names they have; without NAME, those that are due or unfit.

    NAME is ca or one of `certs show`. Renewing ca keeps its key, so that everything it signed stays good. A running
    etcd takes new leaves by itself, and a new ca when it is restarted. What this cluster shows to its peers is theirs
    to sign: `clustermesh connect` again renews it.

    \b
    Examples:
      clustermesh certs renew --context /srv/alpha
      clustermesh certs renew server --san 192.0.2.7 --context /srv/alpha
    """
    from certs.folder import inspect, renew

    cluster, now = load(context), datetime.now(UTC)
    if san and "server" not in names and not everything:
        raise click.UsageError("--san is for the server: name it, `certs renew server --san HOST`")
    leaves = _leaves(cluster, san)
    with locked(cluster):
        entries = {e.name: e for e in inspect(cluster.certs, now, leaves)}
        chosen = _chosen(names, everything, entries)
        for name in chosen:
            pair = renew(cluster.certs, name, now, leaves.get(name), fresh_key=new_key)
            click.echo(f"renewed {name}, good until {pair.certificate.not_valid_after_utc:%F}")
    if not chosen:
        click.echo("nothing is due")


@command.command()
@cluster_options
@click.argument("common_name", metavar="CN")
@click.option("--out", "folder", type=click.Path(path_type=Path), required=True, metavar="DIR", help="Where to.")
@click.option("--name", help="What the files are called; CN if not given.")
@click.option("--server", is_flag=True, help="For a server; a client's otherwise.")
@click.option("--san", type=Host(), multiple=True, help="A name or address it answers to; repeatable.")
def issue(which: Which, common_name: str, folder: Path, name: str | None, server: bool, san: tuple[str, ...]) -> None:
    """Sign a certificate for CN, and put it, its key and ca.crt into a folder to be carried elsewhere.

    etcd takes a client's CN as its user: name it in users.yaml to let it in, or in a ClusterMeshPeer that admits it.

    \b
    Examples, for a peer whose folder is not on this machine, and for the Secret that a ClusterMeshPeer names:
      clustermesh certs issue remote-beta --out /tmp/for-beta --context /srv/alpha
      clustermesh certs issue remote-alpha --name tls --out beta-trust --context beta
      kubectl --context alpha -n kube-system create secret generic beta-trust --from-file=beta-trust
    """
    from certs.files import private_folder, write_atomically
    from certs.issue import issue as sign
    from certs.pair import write_pair

    now, name = datetime.now(UTC), name or common_name
    if not is_common_name(common_name):
        raise Invalid("CN", common_name, COMMON_NAME_RULE)
    if not _is_file_name(name):
        raise Invalid("name", name, "must be a file name of one line, at most 200 bytes; give one with --name")
    path = Path(which.context)
    is_there = is_folder(which.context) or (path / CLUSTER_FILE).exists()  # as its sisters take it
    authority, trusted = _folders_authority(path, now) if is_there else _signer(which)
    pair = sign(authority, Leaf(common_name, server=server, hosts=unique(san)), now)
    private_folder(folder)
    write_pair(folder, name, pair)
    write_atomically(folder / "ca.crt", trusted)
    click.echo(f"{folder / name}.crt, good until {pair.certificate.not_valid_after_utc:%F}")


def _folders_authority(path: Path, now: datetime) -> tuple[Pair, bytes]:
    """What signs, and what its etcd is known by."""
    from certs.folder import load_authority

    cluster = load(path)
    with locked(cluster):
        return load_authority(cluster.certs, now), cluster.ca.read_bytes()


def _signer(which: Which) -> tuple[Pair, bytes]:
    """The same of a cluster that a kubeconfig names."""
    from certs.check import read_pair
    from clustermesh.joining import names
    from clustermesh.joining.connect import open_api, read_site

    async def read() -> tuple[Pair, bytes]:
        async with open_api(which.kubeconfig, which.context, which.namespace) as objects:
            member = (await read_site(objects, which.context)).member
        return read_pair(member.signer.cert, member.signer.key, f"Secret {names.AUTHORITY}"), member.trusted

    return asyncio.run(read())


def _is_file_name(name: str) -> bool:
    """Of a pair beside ca.crt, with room for a suffix."""
    return "/" not in name and name[0] != "." and name != "ca" and name.isprintable() and len(name.encode()) <= 200


def _leaves(cluster: Context, san: tuple[str, ...] = ()) -> dict[str, Leaf]:
    return cluster_leaves(cluster.name, [cluster.address.host, *san])


def _chosen(names: tuple[str, ...], everything: bool, entries: Mapping[str, Entry]) -> list[str]:
    for name in names:
        if name not in entries:
            raise Invalid("certificate", name, f"must be one of {', '.join(entries)}")
    if everything:
        return list(dict.fromkeys([*names, *(name for name in entries if name != "ca")]))
    return list(names) or [e.name for e in entries.values() if e.due or e.problem]


def _remedy(entry: Entry, cluster: Context, signs: bool) -> str:
    """`signs` says that the authority is good."""
    if entry.name == "ca" and (entry.facts is None or not cluster.key("ca").exists()):
        return (
            f"put ca.crt and ca.key back from a copy; without one remove both from {cluster.certs}, then "
            f"`clustermesh certs init --context {cluster.path}`, `certs renew --all`, and connect every peer again"
        )
    if entry.name != "ca" and not signs:
        return f"put ca right first, then look again with `clustermesh certs show --context {cluster.path}`"
    return f"run `clustermesh certs renew {entry.name} --context {cluster.path}`"
