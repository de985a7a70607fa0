"""Snapshot + identities + agents' records -> what etcd should hold. Pure; time is an argument (Unix nanoseconds).

Entries belong to kinds (wire/kinds.py). `Publisher` answers for what changed only; asked for
everything, it gives everything, and a test holds the two equal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, TypeVar

from msgspec.structs import replace

from clustermesh.address import Address
from clustermesh.apiserver.identities import Allocator, Labels
from clustermesh.apiserver.labels import identity_labels
from clustermesh.errors import Invalid, Refused
from clustermesh.model import AgentRecord, Cluster, Endpoint, LocalService, Node
from clustermesh.sources.nodes import ENCRYPTED, WIREGUARD_KEY
from clustermesh.sources.pods import PodEndpoint
from clustermesh.sources.snapshot import Change, Name, Snapshot
from clustermesh.wire import endpoint as wire_endpoint
from clustermesh.wire import identity as wire_identity
from clustermesh.wire import keys, local
from clustermesh.wire import node as wire_node
from clustermesh.wire import service as wire_service
from clustermesh.wire import service_export as wire_export
from clustermesh.wire.kinds import ENDPOINTS, IDENTITIES, LOCAL_SERVICES, NODES, SERVICE_EXPORTS, SERVICES

T = TypeVar("T")

MAX_VALUE: Final = 900_000
"""Bytes. etcd takes requests of 1.5 MiB, and a service travels with its stamp."""

_KNOWN_LABELS: Final = 4096

Entries = dict[bytes, bytes | None]
"""Values by key; None where there is to be nothing."""


class Updates(dict[str, Entries]):
    """Entries by kind; `observed` says of services that are written anew when the cause was seen."""

    def __init__(self) -> None:
        super().__init__()
        self.observed: dict[bytes, int] = {}

    def add(self, kind: str, key: bytes, value: bytes | None) -> None:
        self.setdefault(kind, {})[key] = value


class Publisher:
    """Turns what a cluster has into keys and values, remembering what it needs to do so for changes only.

    `inherited` answers whether a key is from before this process and not written by it yet: such a service does not
    lose all its backends until `believe` is called, because the manifest that has them may be one that cannot be read
    just now. `last_good` answers what is to be at a key so far: what cannot be written now does not take away what was
    there. Without own agents `of_agents` is False, and nothing is published for them alone. With them a service has a
    key of its own for them where Cilium's does not say all, or a Node's agent has said that it reads no other.
    """

    def __init__(
        self,
        cluster: Cluster,
        allocator: Allocator,
        inherited: Callable[[bytes], bool] = lambda _key: False,
        last_good: Callable[[bytes], bytes | None] = lambda _key: None,
    ) -> None:
        self.problems: dict[bytes, str] = {}
        self.of_agents = True
        self._cluster, self._allocator, self._inherited = cluster, allocator, inherited
        self._last_good = last_good
        self._doubted: dict[Name, int] = {}
        self._records: dict[str, AgentRecord] = {}
        self._adopted: dict[str, AgentRecord] = {}
        self._unsaid: set[str] = set()  # nodes whose record is not in etcd any more
        self._older: set[str] = set()  # nodes whose agent reads no services but those that are for agents alone
        self._serves_older = False
        self._encrypted: dict[str, bool] = {}
        self._labels: dict[Address, Labels] = {}
        self._on_node: dict[str, set[Address]] = {}
        self._node_of: dict[Address, str] = {}
        self._unnumbered: set[Address] = set()
        self._known_labels: dict[tuple[int, int, str, str], tuple[object, Labels]] = {}  # with what has the ids

    def apply(self, snapshot: Snapshot, change: Change, now: int) -> Updates:
        """What etcd should hold for the entries of `snapshot` that `change` names."""
        updates = Updates()
        services = change.services
        if self._serves_older == snapshot.nodes.keys().isdisjoint(self._older):
            self._serves_older = not self._serves_older
            services = {**dict.fromkeys(snapshot.services, now), **services}
        self._put_identities(snapshot, sorted(change.identities), updates)
        self._put_exports(snapshot, sorted(change.exports), updates)
        ips = dict.fromkeys(sorted(change.endpoints))
        ips |= dict.fromkeys(self._put_nodes(snapshot, sorted(change.nodes), updates))
        self._put_endpoints(snapshot, ips, updates, now)
        for name, observed in services.items():
            service = snapshot.services.get(name)
            self._doubted.pop(name, None)
            if service and not service.service.backends and self._is_inherited(name):
                self._doubted[name] = observed
            else:
                self._put_service(name, service, observed, updates)
        return updates

    def _is_inherited(self, name: Name) -> bool:
        return any(map(self._inherited, (keys.local_service_key(*name), keys.service_key(self._cluster.name, *name))))

    def believe(self, snapshot: Snapshot) -> Updates:
        """The source is known in whole: services without backends have none."""
        updates = Updates()
        for name, observed in self._doubted.items():
            self._put_service(name, snapshot.services.get(name), observed, updates)
        self._doubted.clear()
        return updates

    def take_record(self, snapshot: Snapshot, node: str, record: AgentRecord | None, now: int) -> Updates:
        """Take in what the agent of `node` says of it now; None where it says nothing any more.

        Records have no lease: one that is missing was lost with an etcd that was emptied, and a node without its key is
        a node without tunnels. So a node keeps its record until it says another or is gone itself.
        """
        known = node in snapshot.nodes  # a record alone says nothing of whether there is such a node
        if record is None:
            self._unsaid.add(node)
            self._forget_records({node} - snapshot.nodes.keys())
            return Updates()
        self._records[node] = record
        (self._older.discard if record.reads_shared else self._older.add)(node)
        self._unsaid.discard(node)
        return self.apply(snapshot, Change(nodes=frozenset([node])), now) if known else Updates()

    def adopt(self, record: AgentRecord) -> None:
        """Take over what was published of a node before, for as long as nobody says anything else of it."""
        self._adopted[record.node] = record

    def encrypts(self, node: str) -> bool:
        """Whether `node` is published with a WireGuard key."""
        return self._encrypted.get(node, False)

    def recall(self, snapshot: Snapshot, now: int) -> Updates:
        """Number everything as it was before etcd was lost, as far as agents have said by now. No agent is believed but
        of labels of pods on its own node."""
        told = dict[Labels, int]()
        for node in sorted(self._records.keys() & snapshot.nodes.keys()):
            if remembered := self._records[node].identities:
                used = {self._labels.get(ip) for ip in self._on_node.get(node, ())}
                told |= {each.labels: each.id for each in remembered if each.labels in used and each.labels not in told}
        before, updates = self._allocator.renumber(told), Updates()
        for number in before.values():
            updates.add(IDENTITIES, keys.identity_key(number), None)
        for identity in self._allocator if before else ():
            if identity.labels in before:
                self._add(updates, IDENTITIES, keys.identity_key(identity.id), wire_identity.encode, identity)
        changed = [ip for ip, labels in self._labels.items() if labels in before] if before else []
        self._put_endpoints(snapshot, changed, updates, now)
        return updates

    def tick(self, snapshot: Snapshot, now: int) -> Updates:
        """Give up identities that have been out of use for long enough, to whoever got none so far."""
        updates = Updates()
        for number in self._allocator.expire(now):
            updates.add(IDENTITIES, keys.identity_key(number), None)
        if updates:
            self._put_endpoints(snapshot, sorted(self._unnumbered), updates, now)
        return updates

    def _put_nodes(self, snapshot: Snapshot, names: Sequence[str], updates: Updates) -> list[Address]:
        """The addresses on nodes that begin or cease to encrypt."""
        flipped = set()
        self._forget_records(set(names) - snapshot.nodes.keys())
        for name in names:
            node = self._merge_record(snapshot.nodes.get(name))
            self._add(updates, NODES, keys.node_key(self._cluster.name, name), wire_node.encode, node)
            encrypted = node is not None and bool(node.wireguard_public_key)
            if encrypted != self._encrypted.get(name, False):
                flipped.add(name)
            self._encrypted[name] = encrypted
        return sorted(ip for name in flipped for ip in self._on_node.get(name, ()))

    def _put_identities(self, snapshot: Snapshot, numbers: Sequence[int], updates: Updates) -> None:
        """Those that are allotted elsewhere."""
        for number in numbers:
            key = keys.identity_key(number)
            self._add(updates, IDENTITIES, key, wire_identity.encode, snapshot.identities.get(number))

    def _put_exports(self, snapshot: Snapshot, names: Sequence[Name], updates: Updates) -> None:
        for name in names:
            key = keys.service_export_key(self._cluster.name, *name)
            self._add(updates, SERVICE_EXPORTS, key, wire_export.encode, snapshot.exports.get(name))

    def _forget_records(self, gone: set[str]) -> None:
        for name in gone & self._adopted.keys():
            del self._adopted[name]
        for name in gone & self._unsaid:
            self._unsaid.discard(name)
            self._older.discard(name)
            self._records.pop(name, None)

    def _merge_record(self, node: Node | None) -> Node | None:
        if node is None or not self.of_agents:
            return node
        record = self._records.get(node.name)
        if record is None and not node.wireguard_public_key:
            record = self._adopted.get(node.name)
        if record is None:
            return node
        return replace(
            node,
            wireguard_public_key=record.wireguard_public_key,
            encryption_key=ENCRYPTED,
            annotations={**(node.annotations or {}), WIREGUARD_KEY: record.wireguard_public_key},
            boot_id=record.boot_id or node.boot_id,
        )

    def _put_endpoints(self, snapshot: Snapshot, ips: Iterable[Address], updates: Updates, now: int) -> None:
        for ip in ips:
            found = snapshot.endpoints.get(ip)
            pod = found if isinstance(found, PodEndpoint) else None
            self._place(ip, pod.node if pod else None)
            number = self._renumber(ip, pod, updates, now)
            endpoint = found if isinstance(found, Endpoint) else None
            if pod is not None and number is not None:
                endpoint = self._endpoint(pod, number)
            self._add(updates, ENDPOINTS, keys.endpoint_key(ip), wire_endpoint.encode, endpoint)
            if pod is not None and number is None:
                self.problems[keys.endpoint_key(ip)] = f"{pod.namespace}/{pod.pod_name}: it gets no identity"

    def _place(self, ip: Address, node: str | None) -> None:
        """`ip` is on `node` now."""
        before = self._node_of.get(ip)
        if before == node:
            return
        if before is not None:
            self._on_node[before].discard(ip)
            if not self._on_node[before]:
                del self._on_node[before]
            del self._node_of[ip]
        if node is not None:
            self._node_of[ip] = node
            self._on_node.setdefault(node, set()).add(ip)

    def _renumber(self, ip: Address, endpoint: PodEndpoint | None, updates: Updates, now: int) -> int | None:
        """The identity number of `endpoint` at `ip`; the new one is taken before the old one is given back."""
        before, number = self._labels.pop(ip, None), None
        self._unnumbered.discard(ip)
        if endpoint is not None:
            try:
                identity = self._allocator.acquire(self._identity_labels(endpoint))
            except Refused:
                self._unnumbered.add(ip)
            else:
                number, self._labels[ip] = identity.id, identity.labels
                if self._allocator.uses(identity.labels) == 1:  # for the others it is published already
                    self._add(updates, IDENTITIES, keys.identity_key(number), wire_identity.encode, identity)
        if before is not None:
            self._allocator.release(before, now)
        return number

    def _identity_labels(self, endpoint: PodEndpoint) -> Labels:
        """Pods of one kind share their labels, as objects, where the source has seen to that."""
        shared = endpoint.labels, endpoint.namespace_labels
        name = (id(shared[0]), id(shared[1]), endpoint.namespace, endpoint.service_account)
        if name not in self._known_labels:
            if len(self._known_labels) >= _KNOWN_LABELS:
                self._known_labels.clear()
            self._known_labels[name] = (shared, identity_labels(self._cluster.name, endpoint))
        return self._known_labels[name][1]

    def _endpoint(self, found: PodEndpoint, number: int) -> Endpoint:
        """Without service account and named ports, which Cilium's own API server leaves out too."""
        return Endpoint(
            ip=found.ip,
            identity=number,
            host_ip=found.host_ip,
            key=ENCRYPTED if self._encrypted.get(found.node) else 0,
            namespace=found.namespace,
            pod_name=found.pod_name,
        )

    def _put_service(self, name: Name, service: LocalService | None, observed: int, updates: Updates) -> None:
        key = keys.service_key(self._cluster.name, *name)
        before = self._last_good(key)
        told = None if service is None else local.shared(service)
        value = self._add(updates, SERVICES, key, wire_service.encode, told)
        if value is not None and value != before:
            updates.observed[key] = observed
        if self.of_agents:
            suffices = service is not None and local.is_told(service) and key not in self.problems
            more = None if suffices and not self._serves_older else service
            self._add(updates, LOCAL_SERVICES, keys.local_service_key(*name), local.encode_service, more)

    def _add(
        self, updates: Updates, kind: str, key: bytes, encode: Callable[[T], bytes], entry: T | None
    ) -> bytes | None:
        """Put `entry` at `key`, or nothing where there is none; one that no reader would take changes nothing there."""
        value = None
        self.problems.pop(key, None)
        try:
            value = None if entry is None else _checked(encode(entry))
        except Invalid as e:
            value = self._last_good(key)
            self.problems[key] = str(e) if value is None else f"{e}; kept as it was"
        updates.add(kind, key, value)
        return value


def _checked(value: bytes) -> bytes:
    if len(value) > MAX_VALUE:
        raise Invalid(
            "value", f"{len(value)} bytes", f"must be at most {MAX_VALUE} bytes, as much as etcd takes at once"
        )
    return value


def publish(
    cluster: Cluster, snapshot: Snapshot, allocator: Allocator, records: Mapping[str, AgentRecord], now: int
) -> Updates:
    """All of `snapshot` at once, as for an empty etcd."""
    publisher = Publisher(cluster, allocator)
    everything = Change(
        services=dict.fromkeys(snapshot.services, 0),
        nodes=frozenset(snapshot.nodes),
        endpoints=frozenset(snapshot.endpoints),
        identities=frozenset(snapshot.identities),
        exports=frozenset(snapshot.exports),
    )
    updates = publisher.apply(snapshot, everything, now)
    for node, record in records.items():
        for kind, entries in publisher.take_record(snapshot, node, record, now).items():
            updates.setdefault(kind, {}).update(entries)
    return updates
