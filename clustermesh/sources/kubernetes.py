"""The Kubernetes API as a source that is followed: the shell around `clustermesh.kube` and `translate`.

Two modes, chosen once, as `mode` says or by what the API has. Native: identities are allotted by us, from Pods and
Namespaces. Cilium: CiliumNodes, CiliumIdentities and CiliumEndpoints (or slices of these, where there are any) are
published as they are. Services, EndpointSlices and Namespaces are followed in both. Cilium's resources without any
CiliumNode choose neither: they outlive Cilium, whose empty lists would take all away that is published, and they come
before its first agent, beside which nobody else may allot identities. ServiceExports of the MCS API are followed in
both, for as long as the API serves them: their definition may come and go, and nothing waits for them.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Iterator, Mapping, Set
from contextlib import aclosing, contextmanager
from typing import Any, Final

from msgspec import Raw, Struct

from clustermesh.errors import ClusterMeshError, Unavailable
from clustermesh.kube.access import Access
from clustermesh.kube.brain import Brain
from clustermesh.kube.client import READS, KubeClient
from clustermesh.kube.faults import NotServed
from clustermesh.kube.follow import Interrupted, Listed, compare, follow
from clustermesh.kube.resource import Resource
from clustermesh.logs import about
from clustermesh.model import Cluster
from clustermesh.pace import Load
from clustermesh.sources import served
from clustermesh.sources.decoding import decode_json, ref_of
from clustermesh.sources.lean import decode_pod, decode_service, decode_slice
from clustermesh.sources.objects import KINDS, Kind, Namespace, Object, Ref
from clustermesh.sources.served import Wanted
from clustermesh.sources.snapshot import Change, Snapshot
from clustermesh.sources.source import EVERYTHING
from clustermesh.sources.table import Problem
from clustermesh.sources.translate import EXPORT, Translator
from clustermesh.store.backoff import Backoff
from clustermesh.wire.api_server_report import TRIED_AGAIN
from clustermesh.wire.kinds import (
    ENDPOINT_SLICES,
    ENDPOINTS,
    IDENTITIES,
    LOCAL_SERVICES,
    NODES,
    SERVICE_EXPORTS,
    SERVICES,
)

_OF_SERVICES: Final = frozenset({SERVICES, LOCAL_SERVICES, SERVICE_EXPORTS, ENDPOINT_SLICES})
_OF_PODS: Final = frozenset({ENDPOINTS, IDENTITIES})
_SPEAKS_FOR: Final[Mapping[str, Set[str]]] = {
    "Service": _OF_SERVICES,
    "EndpointSlice": _OF_SERVICES,
    "ServiceExport": {SERVICE_EXPORTS},
    "Node": {NODES, ENDPOINTS},
    "Pod": _OF_PODS,
    "CiliumNode": {NODES},
    "CiliumIdentity": {IDENTITIES},
    "CiliumEndpoint": {ENDPOINTS},
    "CiliumEndpointSlice": {ENDPOINTS},
}
_FIELDS: Final = {"Pod": "spec.nodeName!=,status.phase!=Succeeded,status.phase!=Failed"}
_LABELS: Final = {
    "Service": "!service.kubernetes.io/service-proxy-name",  # somebody else's to proxy
    "EndpointSlice": "endpointslice.kubernetes.io/managed-by!=endpointslice-mesh-controller.cilium.io",  # not of here
}
_AT_ONCE: Final = 250
"""Objects of each kind that are translated before others have their turn: some 10 ms."""
_LEAN: Final[Mapping[str, Callable[[Raw], tuple[Ref, Object]]]] = {
    "Pod": decode_pod,
    "Service": decode_service,
    "EndpointSlice": decode_slice,
}
_LOG: Final = logging.getLogger(__name__)


class Periods(Struct, frozen=True, kw_only=True):
    """Seconds, at random between two: in which every kind is compared with a list, one after the other, and between two
    looks at whether ServiceExports are served."""

    audit: tuple[float, float] = (300.0, 600.0)
    look: tuple[float, float] = (5.0, 10.0)


_USUAL: Final = Periods()
_AS_IT_IS: Final = Wanted()


class KubernetesSource:
    """The objects of one cluster's API. Iterate `updates` once, and read the rest between two of them. Namespaces are
    `in_mesh` or not where they do not say. `reads` bounds what the API is asked for.
    """

    def __init__(
        self,
        access: Access,
        cluster: Cluster,
        *,
        in_mesh: bool = True,
        wanted: Wanted = _AS_IT_IS,
        reads: Load = READS,
        periods: Periods = _USUAL,
    ) -> None:
        self._access, self._wanted, self._reads, self._periods = access, wanted, reads, periods
        self._offered: Mapping[str, str] = {}
        self._brains: dict[str, Brain[Ref, Object]] = {}
        self._translator = Translator(cluster, self, selects=False, in_mesh=in_mesh)
        self._changed: dict[Ref, int] = {}
        self._wake = asyncio.Event()
        self._errors: dict[str, str] = {}
        self._drift: dict[str, int] = {}  # as far as it was said
        self._listener: Callable[[Iterable[Ref]], None] = lambda _refs: None

    @property
    def about(self) -> str:
        if not self._offered:
            return "Kubernetes API, mode not known yet"
        chosen = "" if self._wanted.mode == "auto" else " as --mode says"
        return f"Kubernetes API, {'native' if 'Pod' in self._offered else 'cilium'} mode{chosen}"

    @property
    def has_agents(self) -> bool:
        return "Pod" in self._offered

    @property
    def snapshot(self) -> Snapshot:
        return self._translator.snapshot

    @property
    def doubted(self) -> Set[str]:
        """What an object may speak for that cannot be read, or a kind that was never listed."""
        unread = [kind for kind, brain in self._brains.items() if brain.view().refused or not brain.complete]
        return EVERYTHING if not self._brains else frozenset[str]().union(*map(_speaks_for, unread))

    @property
    def exports(self) -> bool | None:
        if (brain := self._brains.get(EXPORT)) is None:
            return False if self._brains else None
        return True if brain.complete else None

    def get(self, ref: Ref) -> Object | None:
        """The object as it is known now."""
        brain = self._brains.get(ref.kind)
        return None if brain is None else brain.known.get(ref)

    def refs(self, kind: str) -> Iterable[Ref]:
        """Every object of `kind` that is known now."""
        brain = self._brains.get(kind)
        return () if brain is None else tuple(brain.known)

    @property
    def listed(self) -> bool:
        """Whether all of it was, but for exports."""
        return bool(self._brains) and all(b.complete for name, b in self._brains.items() if name != EXPORT)

    @contextmanager
    def telling(self, listener: Callable[[Iterable[Ref]], None]) -> Iterator[None]:
        """Meanwhile `listener` is told which objects came, went or changed, before they are translated."""
        before, self._listener = self._listener, listener
        try:
            yield
        finally:
            self._listener = before

    def takes_part(self, namespace: str) -> bool:
        """Whether there is such a namespace, and it is in the mesh."""
        found = self.get(Ref("Namespace", "", namespace))
        return isinstance(found, Namespace) and self._translator.takes_part(found)

    @property
    def drift(self) -> Mapping[str, int]:
        return {kind: brain.drift for kind, brain in self._brains.items()}

    def problems(self) -> list[Problem]:
        """Everything at the API that is not acted on, and why the API is not heard."""
        place = "Kubernetes API"
        found = [Problem(place, 0, sentence) for sentence in dict.fromkeys(self._errors.values())]
        for brain in self._brains.values():
            found += [Problem(place, 0, f"{ref}: {sentence}") for ref, sentence in brain.refused.items()]
        return found + [Problem(place, 0, f"{ref}: {sentence}") for ref, sentence in self._translator.faults()]

    async def updates(self) -> AsyncGenerator[Change, None]:
        """Everything there is once all of it is listed, then each change. Close it (aclosing) to end all requests."""
        async with KubeClient(self._access, load=self._reads) as client:
            self._offered = await self._choose(client)
            _LOG.info("source: %s", self.about)
            self._brains = {name: Brain() for name in self._offered}
            work = [self._follow(client, *each) for each in self._offered.items() if each[0] != EXPORT]
            work += [self._audit(client)] + ([self._follow_exports(client)] if self._wanted.mcs else [])
            tasks = [asyncio.create_task(self._ended(each)) for each in work]
            try:
                while True:
                    await self._wake.wait()
                    self._wake.clear()
                    for task in tasks:
                        if task.done():
                            task.result()  # none ends but by a fault of ours
                    if self.listed:
                        for change in self._translator.portions(self._take_changed(), _AT_ONCE):
                            yield change
                            await asyncio.sleep(0)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _ended(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        finally:
            self._wake.set()

    async def _follow(self, client: KubeClient, name: str, version: str) -> None:
        async with aclosing(follow(client, _resource(KINDS[name], version), self._brains[name])) as items:
            async for item in items:
                self._take(name, item)
                if name == EXPORT and isinstance(item, Interrupted) and isinstance(item.error, NotServed):
                    return

    async def _follow_exports(self, client: KubeClient) -> None:
        """What is not served at two looks is gone."""
        while True:
            if version := self._offered.get(EXPORT):
                await self._follow(client, EXPORT, version)
            await asyncio.sleep(random.uniform(*self._periods.look))
            try:
                self._offer_exports(await served.exports(client))
            except ClusterMeshError as e:
                _LOG.debug("whether ServiceExports are served is not known now: %s", e)

    def _offer_exports(self, version: str) -> None:
        others = {name: other for name, other in self._offered.items() if name != EXPORT}
        if version:
            self._offered = {**others, EXPORT: version}
            self._brains.setdefault(EXPORT, Brain())
        elif (brain := self._brains.pop(EXPORT, None)) is not None:
            _LOG.info("ServiceExports are not served any more: none is left of %d", len(brain.known))
            self._offered = others
            self._errors.pop(EXPORT, None)
            self._changed.update(dict.fromkeys(brain.known, time.time_ns()))
            self._wake.set()

    async def _audit(self, client: KubeClient) -> None:
        """In case a watch keeps something from us."""
        while True:
            for name, version in list(self._offered.items()):
                await asyncio.sleep(random.uniform(*self._periods.audit) / len(self._offered))
                if (brain := self._brains.get(name)) is None:
                    continue
                async with aclosing(compare(client, _resource(KINDS[name], version), brain)) as items:
                    async for item in items:
                        if name in self._brains:
                            self._take(name, item)

    def _take(self, kind: str, item: Any) -> None:
        if isinstance(item, Interrupted):
            if kind not in self._errors:
                _LOG.warning("%s; what is known stays", item.error)
            self._errors[kind] = _sentence(item.error)
        else:
            self._errors.pop(kind, None)
            self._note_drift(kind)
            if isinstance(item, Listed):
                _LOG.info("%s: %d objects listed", kind, len(self._brains[kind].known), extra=about(kind=kind))
            self._changed.update(dict.fromkeys(item.changes, time.time_ns()))
            self._listener(item.changes)
        self._wake.set()

    def _note_drift(self, kind: str) -> None:
        if more := self._brains[kind].drift - self._drift.get(kind, 0):
            _LOG.warning("%s: %d objects were not as the watch had told", kind, more, extra=about(kind=kind))
            self._drift[kind] = self._brains[kind].drift

    def _take_changed(self) -> dict[Ref, int]:
        changed, self._changed = self._changed, {}
        return changed

    async def _choose(self, client: KubeClient) -> Mapping[str, str]:
        """The kinds to follow, each with its version, once the API says what it serves."""
        backoff = Backoff(last=5.0)
        while True:
            try:
                found = await served.offered(client, self._wanted)
                if self._wanted.mcs and (version := await served.exports(client)):
                    found[EXPORT] = version
                self._errors.pop("", None)
                return found
            except ClusterMeshError as e:
                if _sentence(e) != self._errors.get(""):
                    _LOG.warning("%s", e)
                self._errors[""] = _sentence(e)
            await asyncio.sleep(backoff.next())


def _sentence(error: ClusterMeshError) -> str:
    return f"{error}; {TRIED_AGAIN}" if isinstance(error, Unavailable) else str(error)


def _resource(kind: Kind, version: str) -> Resource[Ref, Object]:
    namespaced = kind.namespaced
    return Resource(
        group=kind.group,
        version=version,
        plural=kind.plural,
        decode=_LEAN.get(kind.name) or _decoder(kind),
        key=lambda namespace, name: Ref(kind.name, namespace if namespaced else "", name),
        fields=_FIELDS.get(kind.name, ""),
        labels=_LABELS.get(kind.name, ""),
    )


def _decoder(kind: Kind) -> Callable[[Raw], tuple[Ref, Object]]:
    def decode(data: Raw) -> tuple[Ref, Object]:
        found = decode_json(kind, data)
        return ref_of(kind, found), found

    return decode


def _speaks_for(kind: str) -> Set[str]:
    return _SPEAKS_FOR.get(kind, EVERYTHING)
