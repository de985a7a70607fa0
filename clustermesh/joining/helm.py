"""The chart's release in a Kubernetes cluster: found as Helm keeps it, and changed by Helm itself.

Helm keeps each revision in a Secret sh.helm.release.v1.NAME.vREVISION: JSON, compressed, in base64.
"""

from __future__ import annotations

import base64
import binascii
import logging
import shlex
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct

from clustermesh.errors import Invalid, Refused
from clustermesh.joining.helm_program import Program, run
from clustermesh.joining.objects import Objects, Secret
from clustermesh.yaml_file import parse_documents

_LOG: Final = logging.getLogger(__name__)
CHART: Final = "clustermesh"
_MOST_BYTES: Final = 64 << 20
"""Of a release, unpacked: Secrets hold 1 MiB, and its charts are text."""
_DEFINITION: Final = "CustomResourceDefinition"
_ENDLESS: Final = ("pending-install", "pending-upgrade", "pending-rollback", "uninstalling")


class _Metadata(Struct, frozen=True):
    name: str = ""
    version: str = ""


class _Chart(Struct, frozen=True):
    metadata: _Metadata = _Metadata()
    values: dict[str, Any] | None = None


class _Info(Struct, frozen=True):
    status: str = ""
    last_deployed: str = ""


class Release(Struct, frozen=True):
    """A revision of a release, or what one would be: `config` are the values that somebody gave, `manifest` the
    objects, in YAML."""

    name: str = ""
    info: _Info = _Info()
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


class Kept(Struct, frozen=True):
    """A release in a cluster: its `last` revision, whatever became of it, and the one that Helm goes on from: what was
    deployed last or, where nothing ever was, the same."""

    last: Release
    base: Release

    @property
    def chart(self) -> str:
        return self.last.chart.metadata.name

    @property
    def whole(self) -> bool:
        """Whether the last revision is what is deployed."""
        return self.last.info.status == "deployed"


async def list_releases(objects: Objects) -> list[Kept]:
    """Every release in the namespace, also one that failed or that nobody ended. What cannot be understood is not one
    of ours: Helm refuses where it is."""
    path = f"/api/v1/namespaces/{objects.namespace}/secrets"
    revisions = list[Release]()
    for each in await objects.list(path, Secret, "owner=helm,status notin (superseded)"):
        try:
            revisions.append(decode_release((each.data or {}).get("release", b""), each.metadata.name))
        except Invalid as e:
            _LOG.warning("a Secret with Helm's labels is passed over: %s", e)
    return list(keep(revisions))


def keep(revisions: Iterable[Release]) -> Iterator[Kept]:
    """The releases that `revisions` are of. What Helm keeps of one that is uninstalled is none."""
    by_name = dict[str, list[Release]]()
    for each in sorted(revisions, key=lambda each: each.version):
        by_name.setdefault(each.name, []).append(each)
    for all_of_it in by_name.values():
        if all_of_it[-1].info.status != "uninstalled":
            deployed = [each for each in all_of_it if each.info.status == "deployed"]
            yield Kept(all_of_it[-1], (deployed or all_of_it)[-1])


def check_settled(kept: Kept, helm: Helm) -> None:
    """Refused where `helm` changes nothing of a release: another one is at it, or did not come to its end."""
    last = kept.last
    name, status = last.name, last.info.status
    if status not in _ENDLESS:
        return
    back = kept.base is not last and status != "uninstalling"
    remedy = f"`{helm.show(['rollback', name])}`" if back else "`clustermesh uninstall`"
    raise Refused(
        f"release {name} is {status} since {last.info.last_deployed}, revision {last.version}: another Helm is at work "
        f"on it, or one was cut off; where none is any more: {remedy}, and then this again"
    )


async def look_release(objects: Objects) -> Kept | None:
    """The release of this project's chart in the namespace, None where there is none."""
    return next((each for each in await list_releases(objects) if each.chart == CHART), None)


async def find_release(objects: Objects) -> Kept:
    """The release of this project's chart in the namespace. Raises Refused where there is none, or Cilium's."""
    releases = await list_releases(objects)
    for each in releases:
        if each.chart == CHART:
            return each
    if any(each.chart == "cilium" for each in releases):
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

    program: Program
    kubeconfig: str
    context: str
    namespace: str
    chart: str

    async def render(self, name: str, values: Sequence[str]) -> Release:
        """The release `name` as it would be with `values`, flags of Helm's, beside those it has. Raises as above."""
        said = await self._call(self._deploying(name, values), "--dry-run=server", "--output=json")
        try:
            release = msgspec.json.decode(said, type=Release)
        except (msgspec.DecodeError, UnicodeDecodeError) as e:
            raise Refused(f"helm: must print a release, and prints {said[:80]!r}: {e}") from e
        if not release.manifest:
            raise Refused(f"helm: must print a release with its objects, and prints {said[:80]!r}")
        return release

    async def definitions(self) -> list[Mapping[str, Any]]:
        """Those of kinds that the chart comes with: Helm makes them with the first release, and leaves them so."""
        found = parse_documents(await self._call(["show", "crds", self.chart]), "definitions of the chart")
        return [each for each in found if isinstance(each, Mapping) and each.get("kind") == _DEFINITION]

    async def deploy(self, name: str, values: Sequence[str]) -> None:
        """Install or upgrade it so."""
        await self._call(self._deploying(name, values))

    async def uninstall(self, name: str) -> None:
        await self._call(["uninstall", name])

    def _deploying(self, name: str, values: Sequence[str]) -> list[str]:
        return ["upgrade", name, self.chart, "--install", "--reset-then-reuse-values", *values]

    def show(self, argv: Sequence[str]) -> str:
        """What somebody types who has it done by this Helm."""
        config = f"KUBECONFIG={shlex.quote(self.kubeconfig)} " if self.kubeconfig else ""
        return config + shlex.join([self.program.path or "helm", *argv, *self._place])

    async def _call(self, argv: list[str], *dry: str) -> bytes:
        """What it prints. Only Helm can render a chart: its templates are Go's."""
        if not self.program.path:
            raise Refused(f"{self.program.missing}; or run elsewhere: {shlex.join(['helm', *argv, *self._place])}")
        environment = {"KUBECONFIG": self.kubeconfig} if self.kubeconfig else {}
        return await run([self.program.path, *argv, *self._place, *dry], environment)

    @property
    def _place(self) -> list[str]:
        return ["--namespace", self.namespace, *(["--kube-context", self.context] if self.context else [])]


def find_chart() -> str:
    """The chart that this program came with: beside it in a wheel, in its own folder of the checkout. Raises
    Refused where there is none."""
    places = (Path(__file__).with_name("chart"), Path(__file__).parents[2] / "charts" / CHART)
    for folder in places:
        if (folder / "Chart.yaml").exists():
            return str(folder)
    raise Refused(f"the chart is not at {' or '.join(map(str, places))}: say where it is with --chart")
