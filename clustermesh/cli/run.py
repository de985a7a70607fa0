"""The processes of a cluster: `clustermesh etcd`, `apiserver` and `agent`. Each runs in the foreground."""

from __future__ import annotations

import ipaddress
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

import click

from clustermesh.cli import context_option
from clustermesh.errors import Refused


@click.command()
@context_option
@click.option("--listen", multiple=True, metavar="URL", help="Where to listen instead; repeatable.")
@click.argument("flags", nargs=-1, metavar="[-- ETCD-FLAG...]")
def etcd(context: Path, listen: tuple[str, ...], flags: tuple[str, ...]) -> None:
    """Run the cluster's etcd: on its endpoint's address and on the loopback, for clients with its certificates.

    It is started again, over the same data, where the authorities in ca.crt become others. Flags after -- are handed to
    it and win over ours.

    \b
    Example:
      clustermesh etcd --context /srv/alpha
    """
    import shutil

    from certs.check import check_leaf
    from certs.folder import trusted
    from certs.pair import load_pair
    from clustermesh.standalone.context import load
    from clustermesh.store.keeper import kept
    from clustermesh.store.local import command
    from clustermesh.store.tls import Tls

    cluster = load(context)
    # etcd's own words for a bad certificate come without the file's name.
    server = load_pair(cluster.certs, "server").certificate
    check_leaf(server, trusted(cluster.certs), datetime.now(UTC), str(cluster.certificate("server")))
    binary = shutil.which("etcd")
    if binary is None:
        raise Refused("there is no etcd program: install etcd 3.4 or newer (Debian: apt-get install etcd-server)")
    cluster.etcd.mkdir(mode=0o700, exist_ok=True)
    tls = Tls(cluster.ca, cluster.certificate("server"), cluster.key("server"))
    urls = list(listen) or _listen_urls(cluster.address.host, cluster.address.port)
    _become(kept(cluster.ca, command(cluster.etcd, urls, tls, binary=binary, flags=flags)))


@click.command(context_settings={"ignore_unknown_options": True}, add_help_option=False)
@click.argument("flags", nargs=-1, type=click.UNPROCESSED)
def charts_etcd(flags: tuple[str, ...]) -> None:
    """Run etcd with these flags; it is started again where the authorities in its --trusted-ca-file become others.

    \b
    Example:
      clustermesh-apiserver etcd --trusted-ca-file=/var/lib/etcd-secrets/ca.crt --client-cert-auth
    """
    from clustermesh.store.keeper import kept

    option = "--trusted-ca-file="
    trusted = next((flag.removeprefix(option) for flag in flags if flag.startswith(option)), None)
    if trusted is None:
        raise click.UsageError(f"{option}FILE must be given")
    _become(kept(Path(trusted), ["etcd", *flags]))


@click.command(
    add_help_option=False, context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False}
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def agent(arguments: tuple[str, ...]) -> None:
    """Run the agent of this node; `clustermesh agent --help` is its own."""
    # -P: a folder named "agent" where this is called must not stand in for ours.
    _become([sys.executable, "-P", "-m", "agent", *arguments])


def _listen_urls(host: str, port: int) -> list[str]:
    """etcd binds to addresses only: with a name as endpoint it listens everywhere."""
    try:
        wanted = ipaddress.ip_address(host)
    except ValueError:
        return [f"https://0.0.0.0:{port}"]
    host = f"[{wanted}]" if wanted.version == 6 else str(wanted)
    return list(dict.fromkeys([f"https://{host}:{port}", f"https://127.0.0.1:{port}"]))


def _become(argv: list[str]) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(argv[0], argv)
