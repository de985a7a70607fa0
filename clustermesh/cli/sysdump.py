"""`clustermesh sysdump`: one archive with what support needs of a cluster."""

from __future__ import annotations

import asyncio
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from clustermesh.cli import FAILED
from clustermesh.cli.contexts import Which, cluster_options, folder, is_folder
from clustermesh.cli.values import Duration
from clustermesh.errors import Invalid, printable

if TYPE_CHECKING:
    from clustermesh.sysdump.folder import FolderDump
    from clustermesh.sysdump.gather import Bounds
    from clustermesh.sysdump.kubernetes import Dump


@click.command()
@cluster_options
@click.option("--output-file", type=click.Path(path_type=Path), metavar="FILE", help="Where to.  [default: a new one]")
@click.option("--timeout", type=Duration(), default="2m", show_default=True, help="How long it may take in all.")
@click.option(
    "--most-mib", type=click.IntRange(1, 1024), default=64, show_default=True, help="How much is read, before packing."
)
@click.option("--socket", type=click.Path(path_type=Path), metavar="PATH", help="The agent's socket, with a folder.")
def command(which: Which, output_file: Path | None, timeout: float, most_mib: int, socket: Path | None) -> None:
    """Write one archive with what support needs: objects, status, certificates, logs, events, versions, values, tables.

    Secrets are taken out, by where they stand and by what they are; look before you send it on. Where the cluster's
    Secrets cannot be read, logs, texts and values are left out. What cannot be read is named in index.json; exit code 1
    only where nothing could be read.

    \b
    Examples:
      clustermesh sysdump --context alpha
      clustermesh sysdump --context /srv/alpha --output-file alpha.tar.gz
    """
    from importlib.metadata import version

    from clustermesh.sysdump.gather import Bounds, pack, write_private

    if output_file is not None and not output_file.absolute().parent.is_dir():
        raise Invalid("--output-file", str(output_file), "must be in a folder that is there")
    begun = datetime.now(UTC)
    bounds = Bounds(seconds=timeout, whole=most_mib << 20)
    dump = asyncio.run(_read(which, socket, bounds))
    found = dump.gathering.found
    index: dict[str, Any] = {
        "clustermesh": version("clustermesh"),
        "context": which.shown,
        "namespace": which.namespace,
        "begun": begun.isoformat(timespec="seconds"),
        "seconds": round((datetime.now(UTC) - begun).total_seconds(), 1),
    }
    named = re.sub(r"[^\w.-]+", "-", Path(which.context).name if is_folder(which.context) else which.context).strip("-")
    top = f"clustermesh-sysdump-{f'{named[:60]}-' if named else ''}{begun:%Y%m%dT%H%M%S%fZ}"
    at = output_file or Path(f"{top}.tar.gz")
    data = pack(found, dump.redactor, top, index)
    write_private(at, data)
    click.echo(f"{at}: {len(found.files)} files, {len(data) >> 10} KiB")
    for path, why in sorted(found.missing.items()):
        click.echo(f"  {path}: {printable(why)[:200]}", err=True)
    if not found.files:
        raise SystemExit(FAILED)


async def _read(which: Which, socket: Path | None, bounds: Bounds) -> Dump | FolderDump:
    if is_folder(which.context):
        from clustermesh.standalone.context import load
        from clustermesh.sysdump.folder import FolderDump

        machine = FolderDump(load(folder(which.context)), socket, bounds)
        await machine.read()
        return machine
    from clustermesh.joining.connect import open_api
    from clustermesh.sysdump.kubernetes import Dump

    async with open_api(which.kubeconfig, which.context, which.namespace) as objects:
        dump = Dump(objects, which.context, bounds)
        await dump.read()
        return dump
