"""`clustermesh-apiserver`: this project under the name, and with the commands, of the program in Cilium's chart.

A container of that chart runs it as `clustermesh-apiserver clustermesh --cluster-name=...`, the one beside it as
`clustermesh-apiserver kvstoremesh ...`, the one before them as `clustermesh-apiserver etcdinit ...`; all take Cilium's
flags as they are. Our own chart runs its etcd as `clustermesh-apiserver etcd ...`, too.
"""

from __future__ import annotations

from typing import Final

import click

from clustermesh.cli import CommandLine, Commands

_COMMANDS: Final[Commands] = {
    "etcdinit": ("clustermesh.cli.etcdinit", "command", "Make the data of an etcd that knows the cluster's users."),
    "etcd": ("clustermesh.cli.run", "charts_etcd", "Run etcd, and again where it is to trust other authorities."),
    "clustermesh": ("clustermesh.cli.apiserver", "apiserver", "Publish the cluster: `clustermesh apiserver`."),
    "kvstoremesh": ("clustermesh.cli.kvstoremesh", "command", "Mirror its peers: `clustermesh kvstoremesh`."),
    "troubleshoot": ("clustermesh.cli.troubleshoot", "command", "Find out why a connected cluster is not seen."),
}


class _Chart(CommandLine):
    table = _COMMANDS


@click.group(cls=_Chart, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="clustermesh")
def main() -> None:
    """What Cilium's chart starts, in its words.

    \b
    Examples:
      clustermesh-apiserver etcdinit --cluster-name=alpha --etcd-data-dir=/var/run/etcd
      clustermesh-apiserver clustermesh --cluster-name=alpha --cluster-id=1 --health-port=9880 \\
        --kvstore-opt=etcd.config=/var/lib/cilium/etcd-config.yaml
      clustermesh-apiserver kvstoremesh --cluster-name=alpha --cluster-id=1 --health-port=9881 \\
        --kvstore-opt=etcd.config=/var/lib/cilium/etcd-config.yaml --clustermesh-config=/var/lib/cilium/clustermesh

    Exit codes: 0 done, 1 failed, 2 wrong usage or input, 130 interrupted.
    """
