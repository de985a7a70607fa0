"""Keeps ServiceImports and EndpointSlices of backends elsewhere, for as long as it runs: the shell around `imports` and
`slices`.

A name is looked at anew when anything that it is decided by changes, every name when a cluster comes, goes or becomes
known. Where definitions of the MCS API are not installed, they are looked for again and again. What cannot be read or
written is a problem of the API server.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Coroutine, Iterable, Mapping
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct

from clustermesh import model
from clustermesh.apiserver.problems import Say
from clustermesh.errors import ClusterMeshError, DecodeError
from clustermesh.joining.objects import MANAGER
from clustermesh.kube.access import Access
from clustermesh.kube.brain import Brain
from clustermesh.kube.client import KubeClient, Request
from clustermesh.kube.faults import NotServed
from clustermesh.kube.follow import Interrupted, follow
from clustermesh.kube.hearing import Listed
from clustermesh.mesh.peer_files import read_peers
from clustermesh.model import Cluster
from clustermesh.model import Service as RemoteService
from clustermesh.multicluster import documents
from clustermesh.multicluster.documents import (
    EXPORTED,
    MANAGED_BY,
    MESH,
    SERVICE_NAME,
    Document,
    Name,
    Place,
    Write,
    labels_of,
)
from clustermesh.multicluster.facts import PLACES, SERVICES_PLACE, Copies, View, service_key
from clustermesh.multicluster.imports import Facts, writes
from clustermesh.multicluster.slices import SliceFacts, slice_writes, wants_slices
from clustermesh.multicluster.turns import Turns
from clustermesh.pace import Load
from clustermesh.retries import Retries
from clustermesh.sources import served
from clustermesh.sources.exports import translate_export, usable
from clustermesh.sources.faults import Faults
from clustermesh.sources.index import SERVICE_NAME as OF_SERVICE
from clustermesh.sources.kubernetes import KubernetesSource
from clustermesh.sources.objects import EndpointSlice, Ref, Service, ServiceExport
from clustermesh.store import follow as etcd
from clustermesh.store.client import EtcdClient
from clustermesh.store.follower import Follower
from clustermesh.wire import RESOURCES
from clustermesh.wire.kinds import SERVICES

_GATHERING: Final = 0.1
"""Seconds in which changes come together."""
_BATCH: Final = 50
"""Names that are settled before there is a look at what has changed meanwhile."""
_LOOKS: Final = 5
"""How often it is looked at what follows from what was just written of a name, before others have their turn."""
_AGAIN: Final = 10
"""Those beside them that have failed before: they keep nobody else waiting."""
_LOOK: Final = 2.0
"""Seconds between two looks at who is connected, and until what failed is tried again first."""
_SERVED: Final = 10.0
_TOLD: Final = 3
"""Problems of one name that are told."""
_REQUESTS: Final = Load(at_once=4, per_second=50)
_LOG: Final = logging.getLogger(__name__)
Made = dict[tuple[str, Name], Document]
"""Objects by their kind's plural and their name."""


class Services(Struct, frozen=True):
    """Whose Kubernetes API it is; `peers` is the folder of connected clusters. Without `imports` it keeps slices."""

    access: Access
    cluster: Cluster
    source: KubernetesSource
    peers: Path
    imports: bool = True


async def keep_services(task: Services, own: EtcdClient, say: Say) -> None:
    """For ever, and not at all beside Cilium, whose operator does it; `own` is the own cluster's etcd, where a mirror
    copies what others say, and `say` is told what is wrong. Raises nothing of ClusterMeshError."""
    heard = asyncio.Event()
    with task.source.telling(lambda _refs: heard.set()):
        while not task.source.listed:
            await heard.wait()
            heard.clear()
    if not task.source.has_agents:
        _LOG.warning(
            "ServiceImports and EndpointSlices of other clusters are left to Cilium's operator: it is in charge"
        )
        return
    async with KubeClient(task.access, load=_REQUESTS) as client:
        keeper = Keeper(task, client, own, say, await _version(client, say) if task.imports else "")
        with task.source.telling(keeper.hear_source):
            async with asyncio.TaskGroup() as tasks:
                for each in keeper.tasks():
                    tasks.create_task(each)


async def _version(client: KubeClient, say: Say) -> str:
    """In which the API serves the kinds of the MCS API, once it does."""
    while True:
        with suppress(ClusterMeshError):
            if version := await served.exports(client):
                say([])
                return version
            say(["ServiceExports are not served: waiting for their definitions, which the chart has in crds/"])
        await asyncio.sleep(_SERVED)


class Keeper:
    """What its tasks share. `version` is that of the MCS API, "" to leave it alone."""

    def __init__(self, task: Services, client: KubeClient, own: EtcdClient, say: Say, version: str) -> None:
        self._task, self._client, self._etcd, self._say, self._version = task, client, own, say, version
        self._copies, self._view = Copies(task.cluster.name), View()
        self._unlisted = set(PLACES)
        self._slices = Brain[Name, Document]()
        self._exports, self._imports, self._derived = (Brain[Name, Document]() for _ in range(3))
        self._of_service = dict[Name, set[Name]]()  # slices
        self._owners = dict[tuple[str, Name], Name]()  # of slices and derived Services
        self._local, self._local_of = dict[Name, set[Ref]](), dict[Ref, Name]()  # slices of the source, by Services
        for ref in task.source.refs("EndpointSlice") if version else ():
            self._note_slice(ref)
        self._turns, self._news = Turns(), asyncio.Event()
        self._exported, self._wrote = dict[Ref, ServiceExport](), dict[tuple[str, Name], deque[str]]()
        self._unheard, self._odd, self._failed = dict[str, str](), dict[Name, list[str]](), Retries[Name](_LOOK)

    def tasks(self) -> list[Coroutine[Any, Any, None]]:
        brains = [(documents.SLICES, f"{MANAGED_BY} in ({MESH},{EXPORTED})", self._slices)]
        if self._version:
            brains += [
                (documents.exports_at(self._version), "", self._exports),
                (documents.imports_at(self._version), "", self._imports),
                (documents.SERVICES, SERVICE_NAME, self._derived),
            ]
        follows = [self._follow(*each) for each in brains]
        return [*follows, *(self._follow_etcd(place) for place in PLACES), self._look(), self._run(bool(self._version))]

    # -- what is heard -------------------------------------------------------------------------------------------------

    def _touch(self, names: Iterable[Name], *, ours: bool = False) -> None:
        self._turns.touch(names, ours=ours)
        self._news.set()

    def hear_source(self, refs: Iterable[Ref]) -> None:
        """Objects of the source came, went or changed."""
        for ref in refs:
            if ref.kind in ("Service", "ServiceExport"):
                self._touch([(ref.namespace, ref.name)], ours=not self._is_news(ref))
            elif ref.kind == "EndpointSlice":
                self._touch(name for name in self._note_slice(ref) if self._is_by_hand(name))
            elif ref.kind == "Namespace":
                self._touch(name for name in self._all() if name[0] == ref.name)

    def _is_news(self, ref: Ref) -> bool:
        """Of Services and ServiceExports: not what we made, or have said of one."""
        found = self._task.source.get(ref)
        if ref.kind == "Service":
            return not isinstance(found, Service) or SERVICE_NAME not in found.metadata.labels
        before = self._exported.pop(ref, None)
        if isinstance(found, ServiceExport):
            self._exported[ref] = found
        return found != before

    def _note_slice(self, ref: Ref) -> set[Name]:
        """The Services that it was and is of."""
        found, before = self._task.source.get(ref), self._local_of.pop(ref, None)
        if before is not None:
            self._local[before].discard(ref)
            if not self._local[before]:
                del self._local[before]
        if not isinstance(found, EndpointSlice):
            return set() if before is None else {before}
        now = self._local_of[ref] = ref.namespace, found.metadata.labels.get(OF_SERVICE, "")
        self._local.setdefault(now, set()).add(ref)
        return {now} if before is None else {before, now}

    async def _follow(self, place: Place, labels: str, brain: Brain[Name, Document]) -> None:
        async with aclosing(follow(self._client, documents.followed(place, labels), brain)) as items:
            async for item in items:
                if isinstance(item, Interrupted):
                    self._unheard[place.plural] = str(item.error)
                    self._tell_problems()
                    continue
                if self._unheard.pop(place.plural, None) is not None:
                    self._tell_problems()
                for name, held in item.changes.items():
                    concerned, wrote = self._concerns(place, name, held), self._wrote.get((place.plural, name), ())
                    if isinstance(item, Listed) or held is None or _version_of(held) not in wrote:
                        self._touch(concerned)
                    if held is None:
                        self._wrote.pop((place.plural, name), None)
                self._news.set()  # an empty list may be the last that was waited for

    def _concerns(self, place: Place, name: Name, held: Document | None) -> Iterable[Name]:
        """The names that an object of ours is decided under, and was."""
        if place not in (documents.SLICES, documents.SERVICES):
            return [name]
        labels = labels_of(held)
        of_here = place == documents.SERVICES or labels.get(MANAGED_BY) == EXPORTED
        before, now = self._owners.pop((place.plural, name), None), labels.get(SERVICE_NAME if of_here else OF_SERVICE)
        if before is not None and place == documents.SLICES:
            self._of_service[before].discard(name)
        owners = [] if before is None else [before]
        if now is not None:
            owner = self._owners[place.plural, name] = name[0], now
            owners.append(owner)
            if place == documents.SLICES:
                self._of_service.setdefault(owner, set()).add(name)
        return owners

    async def _follow_etcd(self, place: bytes) -> None:
        follower = Follower(etcd.Nothing()) if place == SERVICES_PLACE else Follower()
        async with aclosing(etcd.follow(self._etcd, place, follower=follower)) as items:
            async for item in items:
                if isinstance(item, etcd.Interrupted):
                    continue
                if isinstance(item, etcd.Listed) and not item.more:
                    self._unlisted.discard(place)
                self._touch(self._copies.take(place, item))

    async def _look(self) -> None:
        """At who is connected."""
        while True:
            try:
                found = await asyncio.to_thread(read_peers, self._task.peers, self._task.cluster.name)
                view = self._copies.view({*found.peers, *(each.name for each in found.problems)})
                if view != self._view:
                    self._view = view
                    self._touch(self._all())
            except ClusterMeshError as e:
                _LOG.debug("who is connected is not known now: %s", e)
            if self._is_due():
                self._news.set()
            await asyncio.sleep(_LOOK)

    def _is_due(self) -> bool:
        due = self._failed.next_due
        return due is not None and due <= time.monotonic()

    def _all(self) -> set[Name]:
        wanting = {name for name, local in self._task.source.snapshot.services.items() if local.is_global}
        known = (self._exports.known, self._imports.known, self._owners.values(), self._copies.names)
        return wanting.union(*known)

    # -- what is done --------------------------------------------------------------------------------------------------

    async def _run(self, imports: bool) -> None:
        brains = [self._slices, *([self._exports, self._imports, self._derived] if imports else [])]
        while True:
            if not self._turns and not self._is_due():
                await self._news.wait()
            await asyncio.sleep(_GATHERING)
            self._news.clear()
            if self._unlisted or not all(brain.complete for brain in brains):
                await self._news.wait()
                continue
            due = self._failed.take_due(time.monotonic(), _AGAIN)
            batch = dict.fromkeys([*due, *self._turns.take(_BATCH)])
            async with asyncio.TaskGroup() as tasks:  # the client has its pace
                for name in batch:
                    tasks.create_task(self._settle(name))
            self._tell_problems()

    def _tell_problems(self) -> None:
        found = [f"{plural} stay as they are: {error}" for plural, error in sorted(self._unheard.items())]
        for name in sorted(self._odd.keys() | self._failed.problems.keys()):
            failed = self._failed.problems.get(name)
            told = [*([failed.sentence] if failed else []), *self._odd.get(name, ())]
            more = f"; and {len(told) - _TOLD} more" if len(told) > _TOLD else ""
            found.append(f"{'/'.join(name)}: {'; '.join(told[:_TOLD])}{more}")
        self._say(found)

    async def _settle(self, name: Name) -> None:
        """What goes wrong is told, and tried again later and later. A write that fails keeps no other one back: what
        is wrong may be one cluster's alone."""
        odd, failed = list[str](), list[str]()
        try:
            if self._version:
                await self._make(name, odd, failed)
            await self._do(slice_writes(await self._slice_facts(name)), failed)
        except ClusterMeshError as e:
            failed.append(str(e))
        except Exception as e:  # what nobody thought of is that name's problem
            _LOG.exception("%s cannot be settled", "/".join(name))
            failed.append(f"internal error, see the log: {e!r}")
        self._odd.pop(name, None)
        if odd:
            self._odd[name] = odd
        if failed:
            self._failed.fail(name, "; ".join(failed[:_TOLD]), time.monotonic())
        else:
            self._failed.forget(name)

    async def _make(self, name: Name, odd: list[str], failed: list[str]) -> None:
        """What follows from a write, as an import's address from the Service behind it, is done at once; what is said
        of it all, in statuses, at the end."""
        made, steps, before = Made(), list[Write](), list[Write]()
        for _ in range(_LOOKS):
            odd.clear()
            steps = writes(self._facts(name, odd, made), time.time())
            due = [each for each in steps if not each.part and not failed]
            if not due or due == before:  # done, or the API took it, and has it otherwise
                break
            before, made = due, made | await self._do(due, failed)
            if any(each.method == "DELETE" for each in due):
                break
        await self._do([each for each in steps if each.part], failed)

    async def _do(self, steps: Iterable[Write], failed: list[str]) -> Made:
        """What the API has of it then."""
        made = Made()
        for write in steps:
            try:
                if (held := await self._write(write)) is not None:
                    made[write.place.plural, write.name] = held
            except ClusterMeshError as e:
                failed.append(str(e))
        return made

    def _facts(self, name: Name, odd: list[str], made: Made) -> Facts:
        """`odd` is told what is left out of other clusters' exports; of the own ones the source tells. What was `made`
        just now is not heard of yet."""
        found, derived = self._service(name), (name[0], documents.derived_name(*name))
        slices = {each: held for (plural, each), held in made.items() if plural == documents.SLICES.plural}
        export = self._task.source.get(ref := Ref("ServiceExport", *name))
        held = self._exports.known.get(name)
        own, faults, exports = None, Faults(), list[model.ServiceExport]()
        if isinstance(export, ServiceExport) and held and found:
            own = translate_export(self._task.cluster, ref, export, found, faults)
        for each in self._copies.exports(name, self._view):
            left_out = Faults()
            if (clean := usable(ref, each, left_out)) is not None:
                exports.append(clean)
            odd += [f"cluster {each.cluster}: {fault.sentence}: left out" for fault in left_out[:_TOLD]]
        return Facts(
            cluster=self._task.cluster.name,
            name=name,
            version=self._version,
            in_mesh=self._task.source.takes_part(name[0]),
            exports=exports,
            own=own,
            faults=[fault.sentence for fault in faults],
            service=found,
            slices=self._local_slices(name) if self._is_by_hand(name) else {},
            unheard=self._view.unheard_exports,
            export=held,
            held=made.get(("serviceimports", name), self._imports.known.get(name)),
            derived=made.get((documents.SERVICES.plural, derived), self._derived.known.get(derived)),
            made={**self._held_slices(name, EXPORTED), **slices},
        )

    def _is_by_hand(self, name: Name) -> bool:
        """Whether its backends are exported, and no selector finds them."""
        found = self._service(name)
        return name in self._exports.known and found is not None and not found.spec.selector

    def _local_slices(self, name: Name) -> dict[str, EndpointSlice]:
        found = {ref.name: self._task.source.get(ref) for ref in sorted(self._local.get(name, ()))}
        return {of: each for of, each in found.items() if isinstance(each, EndpointSlice)}

    async def _slice_facts(self, name: Name) -> SliceFacts:
        found, remotes, unheard = self._service(name), dict[str, RemoteService](), {*self._view.unheard_services}
        if wants_slices(found):
            for cluster in self._view.connected:
                try:
                    remote = await self._remote(cluster, name)
                except DecodeError:  # the mirror says so
                    unheard.add(cluster.name)
                    continue
                if remote is not None:
                    remotes[cluster.name] = remote
        return SliceFacts(
            name=name,
            service=found,
            in_mesh=self._task.source.takes_part(name[0]),
            remotes=remotes,
            unheard=unheard,
            held=self._held_slices(name, MESH),
        )

    def _held_slices(self, name: Name, by: str) -> Mapping[Name, Document]:
        known = {each: self._slices.known.get(each) for each in self._of_service.get(name, ())}
        return {each: held for each, held in known.items() if held and labels_of(held).get(MANAGED_BY) == by}

    def _service(self, name: Name) -> Service | None:
        found = self._task.source.get(Ref("Service", *name))
        return found if isinstance(found, Service) else None

    async def _remote(self, cluster: Cluster, name: Name) -> RemoteService | None:
        key = service_key(cluster.name, name)
        if (kv := await self._etcd.get(key)) is None:
            return None
        found: RemoteService = RESOURCES[SERVICES].decode(key, kv.value, cluster)
        return found if found.shared else None

    async def _write(self, write: Write) -> Document | None:
        """The object as it is then; None where it is gone."""
        what = f"{write.method.lower()} {write.place.plural}{write.part} {'/'.join(write.name)}"
        kind = "application/merge-patch+json" if write.method == "PATCH" else "application/json"
        body = None if write.body is None else msgspec.json.encode(write.body)
        request = Request(
            path=write.path,
            what=what,
            params={"fieldManager": MANAGER},
            method=write.method,
            body=body,
            kind=kind,
        )
        try:
            answer = await self._client.send(request)
        except NotServed:
            if write.method == "POST":
                raise
            return None  # gone meanwhile: the watch says so
        if write.method == "DELETE":
            return None
        held = documents.decode(answer)[1]
        self._wrote.setdefault((write.place.plural, write.name), deque(maxlen=_LOOKS)).append(_version_of(held))
        return held


def _version_of(held: Document) -> str:
    return str(held["metadata"].get("resourceVersion", ""))
