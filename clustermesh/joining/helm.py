"""The chart's release in a Kubernetes cluster: found as Helm keeps it, and changed by Helm itself.

Helm keeps each revision in a Secret sh.helm.release.v1.NAME.vREVISION: JSON, compressed, in base64.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import os
import shlex
import shutil
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct

from clustermesh.errors import Invalid, Refused, Unavailable
from clustermesh.joining.objects import Objects, Secret
from clustermesh.yaml_file import parse_documents

CHART: Final = "clustermesh"
_MOST_BYTES: Final = 64 << 20
"""Of a release, unpacked: Secrets hold 1 MiB, and its charts are text."""
_PATIENCE: Final = 600.0
_WORDS: Final = 2000


class _Metadata(Struct, frozen=True):
    name: str = ""
    version: str = ""


class _Chart(Struct, frozen=True):
    metadata: _Metadata = _Metadata()
    values: dict[str, Any] | None = None


class Release(Struct, frozen=True):
    """A release as it was deployed last, or would be: `config` are the values that somebody gave, `manifest` the
    objects, in YAML."""

    name: str = ""
    chart: _Chart = _Chart()
    config: dict[str, Any] | None = None
    manifest: str = ""
    version: int = 0

    def value(self, key: str) -> Any:
        """What it was deployed with at `key`, as "cluster.name"; None where nobody says."""
        for values in (self.config, self.chart.values):
            found: Any = values
            for part in key.split("."):
                found = found.get(part) if isinstance(found, dict) else None
            if found is not None:
                return found
        return None


async def list_releases(objects: Objects) -> list[Release]:
    """Every release that is deployed in the namespace."""
    path = f"/api/v1/namespaces/{objects.namespace}/secrets"
    kept = await objects.list(path, Secret, "owner=helm,status=deployed")
    return [decode_release((each.data or {}).get("release", b""), each.metadata.name) for each in kept]


async def look_release(objects: Objects) -> Release | None:
    """The release of this project's chart in the namespace, None where there is none."""
    return next((each for each in await list_releases(objects) if each.chart.metadata.name == CHART), None)


async def find_release(objects: Objects) -> Release:
    """The release of this project's chart in the namespace. Raises Refused where there is none, or Cilium's."""
    releases = await list_releases(objects)
    for each in releases:
        if each.chart.metadata.name == CHART:
            return each
    if any(each.chart.metadata.name == "cilium" for each in releases):
        raise Refused(
            f"namespace {objects.namespace} has Cilium's chart, which this command does not change: `cilium "
            "clustermesh enable`, or helm upgrade with clustermesh.useAPIServer=true"
        )
    raise Refused(
        f"namespace {objects.namespace} has no release of the chart {CHART}: `clustermesh install -n "
        f"{objects.namespace} --set cluster.name=NAME --set cluster.id=NUMBER`, or give its namespace with -n"
    )


def decode_release(data: bytes, where: str) -> Release:
    """What Helm's Secret `where` holds. Raises Invalid."""
    try:
        packed = base64.b64decode(data, validate=True)
        unpacking = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
        text = unpacking.decompress(packed, _MOST_BYTES)
        if unpacking.unconsumed_tail:
            raise Invalid(where, f"more than {_MOST_BYTES} bytes", "must be smaller")
        return msgspec.json.decode(text, type=Release)
    except (binascii.Error, zlib.error, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise Invalid(where, data[:40], f"must be a release as Helm 3 keeps it: {e}") from e


class Helm(Struct, frozen=True):
    """How to call it for one cluster; `chart` is a folder, a package or a reference."""

    kubeconfig: str
    context: str
    namespace: str
    chart: str

    async def upgrade(self, release: Release, values: Mapping[str, Any]) -> bool:
        """Deploy the release with `values`, by key, beside those it has; False where it has them already.

        Raises Refused with Helm's words, Unavailable.
        """
        if all(release.value(key) == value for key, value in values.items()):
            return False
        sets = [part for key, value in values.items() for part in ("--set-json", f"{key}={json.dumps(value)}")]
        await self._call(["upgrade", release.name, self.chart, "--reset-then-reuse-values", *sets])
        return True

    async def render(self, name: str, values: Sequence[str]) -> Release:
        """The release `name` as it would be with `values`, flags of Helm's, beside those it has. Raises as above."""
        said = await self._call([*self._deploying(name, values), "--dry-run=server", "--output=json"])
        try:
            return msgspec.json.decode(said, type=Release)
        except (msgspec.DecodeError, UnicodeDecodeError) as e:
            raise Invalid("helm", said[:80], f"must print a release: {e}") from e

    async def definitions(self) -> list[Mapping[str, Any]]:
        """Those of kinds that the chart comes with: Helm makes them with the first release, and leaves them so."""
        found = parse_documents(await self._call(["show", "crds", self.chart]), "definitions of the chart")
        return [each for each in found if isinstance(each, Mapping)]

    async def deploy(self, name: str, values: Sequence[str]) -> None:
        """Install or upgrade it so."""
        await self._call(self._deploying(name, values))

    async def uninstall(self, name: str) -> None:
        await self._call(["uninstall", name])

    def _deploying(self, name: str, values: Sequence[str]) -> list[str]:
        return ["upgrade", name, self.chart, "--install", "--reset-then-reuse-values", *values]

    async def _call(self, argv: list[str]) -> bytes:
        """What it prints. Only Helm can render a chart: its templates are Go's."""
        argv = [*argv, "--namespace", self.namespace, *(["--kube-context", self.context] if self.context else [])]
        program = shutil.which("helm")
        if program is None:
            raise Refused(f"no helm in PATH: install it (https://helm.sh), or run elsewhere: helm {shlex.join(argv)}")
        return await _run([program, *argv], {"KUBECONFIG": self.kubeconfig} if self.kubeconfig else {})


def find_chart() -> str:
    """The chart that this program came with: beside it in a wheel, in its own folder of the checkout. Raises
    Refused where there is none."""
    places = (Path(__file__).with_name("chart"), Path(__file__).parents[2] / "charts" / CHART)
    for folder in places:
        if (folder / "Chart.yaml").exists():
            return str(folder)
    raise Refused(f"the chart is not at {' or '.join(map(str, places))}: say where it is with --chart")


async def _run(argv: list[str], environment: Mapping[str, str]) -> bytes:
    process = await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **environment},
    )
    try:
        async with asyncio.timeout(_PATIENCE):
            said, words = await process.communicate()
    except TimeoutError as e:
        raise Unavailable(f"helm has not ended after {_PATIENCE:g} s") from e
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise Refused(f"helm: {words.decode(errors='replace').strip()[-_WORDS:]}")
    return said
