"""Who holds certificates: a cluster's Secrets in its Kubernetes API, or its folder."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar, Final, Protocol

from msgspec import Struct, field

from certs.check import read_pair
from certs.files import remove_durably, write_atomically
from certs.names import leaf_secret
from certs.pair import recover, write_pair
from certs.rotation import pairs_in
from clustermesh.errors import Refused
from clustermesh.joining import names
from clustermesh.joining.connect import Site, find_declared, find_readers
from clustermesh.joining.links import known_peers
from clustermesh.joining.objects import MANAGED_BY, MANAGER, Edit, Managed, Secret
from clustermesh.standalone.connect import file_errors
from clustermesh.standalone.connections import list_connections
from clustermesh.standalone.context import Context, locked

LEAVES: Final = tuple(map(leaf_secret, names.LEAVES))
_SHARED: Final = (names.PEERS, names.COPIED)
CERT_MANAGER: Final = "cert-manager.io/"
APPLIED: Final = "`kubectl apply`"
_DECLARERS: Final = {
    "Argo CD": "argocd.argoproj.io/",
    "Flux": "kustomize.toolkit.fluxcd.io/",
    "External Secrets": "reconcile.external-secrets.io/",
    "Sealed Secrets": "sealedsecrets.bitnami.com/",
    APPLIED: "kubectl.kubernetes.io/last-applied-configuration",
    "who deploys it (label app.kubernetes.io/instance, as Argo CD's)": "app.kubernetes.io/instance",
}
"""What the marks begin with of who writes an object again."""
STEPS: Final = (
    "in three steps, each in all clusters that share it and with the certificate job after it: ca.crt = old, new; then "
    'ca.crt = new, old and the new ca.key; then ca.crt = new (docs/gitops.md, "Another authority")'
)
"""How an authority is replaced by who keeps it."""
_APPLIERS: Final = ("argocd-controller", "kustomize-controller", "helm-controller", "kubectl-client-side-apply")
"""Managers that write an object again also where their operation is Update."""
_OURS: Final = re.compile(rf"{MANAGER}(-[0-9a-f]{{8}})?|{names.DECLARED_MANAGER}")
"""What this project's programs apply as: once, or what follows by itself."""


class Holder(Protocol):
    """The certificates of one cluster, in some places; the first one has its authority.

    Every method raises ClusterMeshError, CertsError.
    """

    @property
    def name(self) -> str: ...
    @property
    def places(self) -> tuple[str, ...]: ...
    @property
    def expected(self) -> Mapping[str, Sequence[str]]:
        """What must be in some places: nothing where its etcd, and so its authority, is another's to keep."""
        ...

    async def peers(self) -> frozenset[str]:
        """The clusters that it reads, and those that read it, by now."""
        ...

    async def read(self, place: str) -> dict[str, bytes]:
        """The files there; none where there is no such place."""
        ...

    async def change(self, place: str, edit: Edit) -> bool:
        """Make them what `edit` makes of them; False where that is what they are."""
        ...

    async def keeper(self, place: str) -> str:
        """Who else would undo a change, and what to do instead; "" where nobody would."""
        ...

    async def find_declared(self, peer: str) -> Refused | None:
        """Refused where a ClusterMeshPeer is what connects to `peer`."""
        ...


class InSecrets:
    """The Secrets of a cluster that has the chart; `trusts` are those that its ClusterMeshPeers name.

    What the API server writes of such a Secret into those of `_SHARED` is left alone there: it follows by itself.
    """

    def __init__(self, site: Site, trusts: Sequence[str] = ()) -> None:
        self._site, self._trusts = site, trusts
        made = site.member.etcd is None
        self.expected = {names.AUTHORITY: ("ca",), **dict.fromkeys(LEAVES, ("tls",))} if made else {}
        self.places = (names.AUTHORITY, *LEAVES, *trusts, *_SHARED)

    @property
    def name(self) -> str:
        return self._site.member.name

    async def peers(self) -> frozenset[str]:
        objects = self._site.objects
        entries = await objects.secret(names.COPIED if self._site.member.mirrored else names.PEERS)
        return await find_readers(objects) | known_peers(entries).keys()

    async def read(self, place: str) -> dict[str, bytes]:
        return await self._site.objects.secret(place)

    async def change(self, place: str, edit: Edit) -> bool:
        found = await self._site.objects.read("secrets", place, Secret) if place in _SHARED else None
        declared = found.applied_by(names.DECLARED_MANAGER) if found else frozenset[str]()

        def others(data: Mapping[str, bytes]) -> Mapping[str, bytes]:
            kept = {key: value for key, value in data.items() if key in declared}
            return {**edit({key: value for key, value in data.items() if key not in kept}), **kept}

        return await self._site.objects.change_secret(place, others)

    async def keeper(self, place: str) -> str:
        found = await self._site.objects.read("secrets", place, _Kept)
        if found is None:
            return ""
        if any(key.startswith(CERT_MANAGER) for key in found.metadata.annotations or {}):
            renew = f"`cmctl renew -n {self._site.member.namespace} {place}` has it issued anew"
            return f"cert-manager keeps Secret {place}: {renew}; another authority is its issuer's to change"
        by = _declarer(found.metadata)
        return f"{by} keeps Secret {place}{self._remedy(place, by)}" if by else ""

    def _remedy(self, place: str, by: str) -> str:
        if place in self._trusts:
            return (
                ", which a ClusterMeshPeer names: put what is to be shown and trusted there, or leave this cluster out"
            )
        if place == names.AUTHORITY:
            mark = _DECLARERS[APPLIED]
            once = f"; where nobody applies it again, `kubectl annotate secret {place} {mark}-` says so"
            return f" and would put the old authority back: replace it there, {STEPS}{once if by == APPLIED else ''}"
        if place in _SHARED and by == "Helm":
            return ": change clustermesh.config.clusters of the chart instead"
        return ": change it there, or let `clustermesh certs secrets` make it"

    async def find_declared(self, peer: str) -> Refused | None:
        return await find_declared(self._site.objects, self._site.member, peer)


async def hold_secrets(site: Site) -> InSecrets:
    """With the Secrets that its ClusterMeshPeers name. Raises ClusterMeshError."""
    found = await site.objects.list(names.declared_path(site.objects.namespace), _Declared)
    return InSecrets(site, sorted({each.spec.trust.name for each in found if each.spec.trust is not None}))


class InFolder:
    """The folder of a cluster without Kubernetes."""

    places = ("certs", "peers")
    expected: ClassVar = {"certs": ("ca", *names.LEAVES)}

    def __init__(self, context: Context) -> None:
        self._context = context

    @property
    def name(self) -> str:
        return self._context.name

    async def peers(self) -> frozenset[str]:
        return frozenset(each.name for each in list_connections(self._context, datetime.now(UTC)))

    async def read(self, place: str) -> dict[str, bytes]:
        folder = self._context.path / place
        with file_errors():
            if any(folder.glob("*.next")):
                with locked(self._context):
                    _finish(folder)
            return _files(folder)

    async def change(self, place: str, edit: Edit) -> bool:
        folder = self._context.path / place
        with file_errors(), locked(self._context):
            _finish(folder)
            before = _files(folder)
            after = edit(before)
            _write(folder, before, after)
        return after != before

    async def keeper(self, place: str) -> str:
        return ""

    async def find_declared(self, peer: str) -> Refused | None:
        return None


def _files(folder: Path) -> dict[str, bytes]:
    paths = folder.iterdir() if folder.is_dir() else ()
    return {path.name: path.read_bytes() for path in sorted(paths) if path.is_file() and path.name[0] != "."}


def _finish(folder: Path) -> None:
    """The pairs whose writer was killed are whole."""
    for path in folder.glob("*.next"):
        recover(folder, Path(path.stem).stem)


def _write(folder: Path, before: Mapping[str, bytes], after: Mapping[str, bytes]) -> None:
    """What is trusted first, then pairs as one, then the rest: a reader in between is let in and lets in."""
    changed = {name for name, data in after.items() if before.get(name) != data}
    pairs = [(cert, key) for cert, key in (("ca.crt", "ca.key"), *pairs_in(after)) if {cert, key} & changed]
    for name in sorted(changed - {each for pair in pairs for each in pair}):
        write_atomically(folder / name, after[name])
    for cert, key in pairs:
        stem = cert.removesuffix(".crt")
        write_pair(folder, stem, read_pair(after[cert], after[key], str(folder / stem)))
    for name in sorted(before.keys() - after.keys(), reverse=True):  # what certs.rotation needs goes last
        remove_durably(folder / name)


def _declarer(meta: _KeptMeta) -> str:
    """Who else has the Secret from somewhere, and would write that again; "" for nobody. Our own programs follow."""
    for owner in meta.owner_references or ():
        return f"{owner.kind} {owner.name}"
    marks = {**(meta.labels or {}), **(meta.annotations or {})}
    if marks.get(MANAGED_BY) == "Helm":
        return "Helm"
    for who, prefix in _DECLARERS.items():
        if any(key.startswith(prefix) for key in marks):
            return who
    applied = (
        each.manager
        for each in meta.managed_fields or ()
        if "f:data" in each.fields
        and (each.manager in _APPLIERS or (each.operation == "Apply" and not _OURS.fullmatch(each.manager)))
    )
    return next(applied, "")


class _Owner(Struct, frozen=True):
    kind: str = ""
    name: str = ""


class _KeptMeta(Struct, frozen=True, rename="camel"):
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None
    owner_references: list[_Owner] | None = None
    managed_fields: list[Managed] | None = None


class _Kept(Struct, frozen=True):
    metadata: _KeptMeta = _KeptMeta()


class _Trust(Struct, frozen=True):
    name: str = field(default="", name="secretName")


class _Spec(Struct, frozen=True):
    trust: _Trust | None = None


class _Declared(Struct, frozen=True):
    """A ClusterMeshPeer, as far as it names a Secret."""

    spec: _Spec = _Spec()
