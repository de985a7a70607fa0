"""`clustermesh certs secrets`: a cluster's certificates, kept in Secrets of its Kubernetes API."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

import click

from clustermesh.cli.values import Host, named_by

if TYPE_CHECKING:
    from certs.secrets import Data


@click.command()
@click.option("--cluster-name", required=True, metavar="NAME", help="Whose certificates.")
@click.option(
    "-n", "--namespace", default="kube-system", show_default=True, metavar="NAME", help="Where the Secrets are."
)
@click.option("--san", type=Host(), multiple=True, help="A further name or address of the server; repeatable.")
@click.option("--kubeconfig", default="", metavar="FILE", help="How to reach the API.")
@click.option("--kube-context", default="", metavar="NAME", help="The context in the kubeconfig.")
def command(cluster_name: str, namespace: str, san: tuple[str, ...], kubeconfig: str, kube_context: str) -> None:
    """Keep the certificates of a Kubernetes cluster in its Secrets: make what is missing, renew what expires.

    What is good is left alone, and so is an authority that is there (Secret cilium-ca), even one that is unfit: then
    it is said what is wrong. The chart's job runs this, when installed and once a week.

    \b
    Example:
      clustermesh certs secrets --cluster-name alpha --namespace kube-system
    """
    import asyncio

    from clustermesh.model import check_cluster_name

    with named_by(cluster_name="--cluster-name"):
        check_cluster_name(cluster_name)
    for name, reason in asyncio.run(_keep(cluster_name, namespace, san, kubeconfig, kube_context)):
        click.echo(f"Secret {name} is written ({reason})")


async def _keep(
    cluster: str, namespace: str, san: tuple[str, ...], kubeconfig: str, context: str
) -> list[tuple[str, str]]:
    """What was written, and why; several of us at once write what one would."""
    from certs.names import AUTHORITY_SECRET, cluster_leaves, leaf_secret
    from certs.secrets import Kept, keep_authority, keep_leaf
    from clustermesh.joining.objects import Objects
    from clustermesh.kube.client import KubeClient
    from clustermesh.kube.config import find_access

    now, written = datetime.now(UTC), list[tuple[str, str]]()

    async def settle(name: str, keep: Callable[[Data], Kept], kind: str) -> Data:
        kept = list[Kept]()

        def edit(found: Data) -> Data:
            kept.append(keep(found))
            return kept[-1].data

        if await secrets.change_secret(name, edit, kind):
            written.append((name, kept[-1].reason))
        return kept[-1].data

    async with KubeClient(find_access(kubeconfig, context)) as client:
        secrets = Objects(client, namespace)
        authority = await settle(AUTHORITY_SECRET, partial(keep_authority, now=now), "Opaque")
        for name, leaf in cluster_leaves(cluster, san).items():
            keep = partial(keep_leaf, name, leaf, authority=authority, now=now)
            await settle(leaf_secret(name), keep, "kubernetes.io/tls")
    return written
