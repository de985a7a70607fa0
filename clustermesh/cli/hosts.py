"""`clustermesh hosts`: a Service's name in a file as /etc/hosts, for agents on nodes without DNS of the cluster."""

from __future__ import annotations

from pathlib import Path

import click

from clustermesh.logs import FORMATS


@click.command()
@click.option("-n", "--namespace", default="kube-system", show_default=True, metavar="NAME", help="The Service's.")
@click.option("--service", default="clustermesh-apiserver", show_default=True, metavar="NAME", help="Its name.")
@click.option(
    "--file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    required=True,
    help="What is kept, in place.",
)
@click.option("--kubeconfig", default="", metavar="FILE", help="How to reach the API.")
@click.option("--kube-context", default="", metavar="NAME", help="The context in the kubeconfig.")
@click.option(
    "--log-format", type=click.Choice(FORMATS), default="text", show_default=True, help="How to log on stderr."
)
def command(namespace: str, service: str, file: Path, kubeconfig: str, kube_context: str, log_format: str) -> None:
    """Keep the addresses of a Service's pods in FILE, under SERVICE.NAMESPACE.svc.

    The chart runs it beside every agent: an agent makes the network in which there is DNS, and must find its etcd
    before that.

    \b
    Example:
      clustermesh hosts --service clustermesh-apiserver --file /etc/hosts
    """
    import asyncio
    import signal
    from contextlib import suppress

    from clustermesh import logs
    from clustermesh.kube.client import KubeClient
    from clustermesh.kube.config import find_access
    from clustermesh.kube.hosts import keep_hosts

    async def keep() -> None:
        task = asyncio.current_task()
        assert task is not None
        # What is a container's first process hears of no signal that it does not ask for.
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        async with KubeClient(find_access(kubeconfig, kube_context)) as client:
            await keep_hosts(client, namespace, service, file)

    logs.set_up(log_format, "hosts")
    with suppress(asyncio.CancelledError):
        asyncio.run(keep())
