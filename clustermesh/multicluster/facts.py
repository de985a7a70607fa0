"""What is known of connected clusters from their copies in the own etcd, as the mirror writes them. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Set
from contextlib import suppress
from typing import Final

from msgspec import Struct

from clustermesh.errors import ClusterMeshError, DecodeError
from clustermesh.model import Cluster, ServiceExport
from clustermesh.multicluster.documents import Name
from clustermesh.store.follow import Changed, Listed, Put
from clustermesh.wire import RESOURCES, cluster_config, keys
from clustermesh.wire.kinds import SERVICE_EXPORTS

EXPORTS_PLACE: Final = keys.CACHE + b"serviceexports/v1/"
SERVICES_PLACE: Final = keys.CACHE + b"services/v1/"
PLACES: Final = (keys.CLUSTER_CONFIGS, keys.SYNCED, EXPORTS_PLACE, SERVICES_PLACE)


class View(Struct, frozen=True):
    """Who is `connected`; whose exports and whose services are known not to be all there."""

    connected: frozenset[Cluster] = frozenset()
    unheard_exports: frozenset[str] = frozenset()
    unheard_services: frozenset[str] = frozenset()


class Copies:
    """`take` what is told of PLACES; of services their names only are kept."""

    def __init__(self, own: str) -> None:
        self._own = own
        self._configs = dict[str, Cluster]()
        self._canaries = set[tuple[str, str]]()
        self._exports = dict[Name, dict[str, bytes]]()

    def take(self, place: bytes, item: Listed | Changed) -> Iterator[Name]:
        """The names that it is about; those of all where it is about clusters are for the reader to look after."""
        for event in item.events:
            key, value = (event.kv.key, event.kv.value) if isinstance(event, Put) else (event.key, None)
            with suppress(DecodeError):  # nobody's who is connected
                yield from self._note(place, key, value)

    def _note(self, place: bytes, key: bytes, value: bytes | None) -> Iterator[Name]:
        if place == keys.CLUSTER_CONFIGS:
            name = keys.parse_cluster_config(key)
            self._configs.pop(name, None)
            if value is not None:
                self._configs[name] = Cluster(name=name, id=cluster_config.decode(value).id)
        elif place == keys.SYNCED:
            canary = keys.parse_canary(key)
            said = canary.cluster, canary.directory
            if canary.cached:
                (self._canaries.discard if value is None else self._canaries.add)(said)
        elif place == EXPORTS_PLACE:
            found = keys.parse_service_export(key)
            self._put_export((found.namespace, found.name), found.cluster, value)
            yield found.namespace, found.name
        else:
            found = keys.parse_service(key)
            yield found.namespace, found.name

    def _put_export(self, name: Name, cluster: str, value: bytes | None) -> None:
        of_name = self._exports.setdefault(name, {})
        of_name.pop(cluster, None)
        if value is not None:
            of_name[cluster] = value
        if not of_name:
            del self._exports[name]

    @property
    def names(self) -> Set[Name]:
        """Those that any cluster exports."""
        return self._exports.keys()

    def view(self, connected: Iterable[str]) -> View:
        """`connected` says the folder that says so, where these copies may not have come yet, or be left over."""
        names = [name for name in connected if name != self._own]
        return View(
            frozenset(self._configs[name] for name in names if name in self._configs),
            frozenset(name for name in names if not self._is_heard(name, "serviceexports")),
            frozenset(name for name in names if not self._is_heard(name, "services")),
        )

    def _is_heard(self, cluster: str, directory: str) -> bool:
        return cluster in self._configs and (cluster, directory) in self._canaries

    def exports(self, name: Name, view: View) -> list[ServiceExport]:
        """What connected clusters export under `name`; what cannot be read the mirror has said."""
        found, values = list[ServiceExport](), self._exports.get(name, {})
        for cluster in view.connected:
            if (value := values.get(cluster.name)) is not None:
                key = keys.cache_prefix("serviceexports", cluster.name) + "/".join(name).encode()
                with suppress(ClusterMeshError):
                    found.append(RESOURCES[SERVICE_EXPORTS].decode(key, value, cluster))
        return found


def service_key(cluster: str, name: Name) -> bytes:
    """Where the copy of a Service is."""
    return keys.cache_prefix("services", cluster) + "/".join(name).encode()
