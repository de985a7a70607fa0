"""Clusters that a mirror reads: what their API servers, or their own mirrors, have written."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Final

from apiserver_bed import Bed
from msgspec import Struct

from clustermesh.address import nth, parse, parse_prefix
from clustermesh.model import ClusterConfig, Endpoint, Identity, Label, Node, NodeAddress, Port, Protocol, Service
from clustermesh.store.client import EtcdClient, Put
from clustermesh.store.tls import Tls
from clustermesh.wire import cluster_config, endpoint, identity, keys, node, service
from clustermesh.wire.numbering import cluster_shift
from tests.bench.controlplane._programs import PATIENCE, Process, check_running

_MIRRORED: Final = ("nodes", "services", "identities", "ip")
_TCP80: Final = {"http": Port(protocol=Protocol.TCP, port=80)}
_TCP8080: Final = {"http": Port(protocol=Protocol.TCP, port=8080)}


class Shape(Struct, frozen=True, kw_only=True):
    """How much one cluster has. `cached`: as a mirror keeps it, so that one etcd holds many."""

    nodes: int = 100
    identities: int = 0
    endpoints: int = 0
    services: int = 0
    cached: bool = False
    most: int = 255


def named(number: int) -> str:
    return f"c{number}"


def entries(number: int, shape: Shape) -> Iterator[Put]:
    """Everything of cluster `number` (2 to 255), its canaries last."""
    name = named(number)
    config = ClusterConfig(id=number, synced_canaries=True, cached=shape.cached, max_connected_clusters=shape.most)
    yield Put(keys.cluster_config_key(name), cluster_config.encode(config))
    for parts in (_nodes, _identities, _endpoints, _services):
        for key, value in parts(number, shape):
            yield Put(keys.cache_key(key, name) if shape.cached else key, value)
    for directory in _MIRRORED:
        yield Put(keys.canary_key(name, directory, shape.cached), b"now")


def _host(number: int, which: int) -> str:
    return f"172.{16 + which // 250}.{number}.{which % 250 + 1}"


def _pod(number: int, shape: Shape, which: int) -> str:
    return f"10.{number}.{which % shape.nodes}.{which // shape.nodes % 250 + 2}"


def _nodes(number: int, shape: Shape) -> Iterator[tuple[bytes, bytes]]:
    for which in range(shape.nodes):
        name = f"node-{which}"
        made = Node(
            cluster=named(number),
            cluster_id=number,
            name=name,
            addresses=(NodeAddress(type="InternalIP", ip=parse(_host(number, which))),),
            pod_cidrs=(parse_prefix(f"10.{number}.{which}.0/24"),),
            labels={"kubernetes.io/hostname": name},
        )
        yield keys.node_key(named(number), name), node.encode(made)


def _identities(number: int, shape: Shape) -> Iterator[tuple[bytes, bytes]]:
    for which in range(shape.identities):
        about = {
            "app": f"app-{which}",
            "io.cilium.k8s.policy.cluster": named(number),
            "io.cilium.k8s.policy.serviceaccount": "default",
            "io.kubernetes.pod.namespace": "shop",
        }
        labels = tuple(Label(source="k8s", key=key, value=value) for key, value in about.items())
        made = Identity(id=_identity(number, shape, which), labels=labels)
        yield keys.identity_key(made.id), identity.encode(made)


def _identity(number: int, shape: Shape, which: int) -> int:
    return (number << cluster_shift(shape.most)) + 256 + which


def _endpoints(number: int, shape: Shape) -> Iterator[tuple[bytes, bytes]]:
    for which in range(shape.endpoints):
        made = Endpoint(
            ip=parse(_pod(number, shape, which)),
            identity=_identity(number, shape, which % max(1, shape.identities)),
            host_ip=parse(_host(number, which % shape.nodes)),
            namespace="shop",
            pod_name=f"pod-{which}",
        )
        yield keys.endpoint_key(made.ip), endpoint.encode(made)


def _services(number: int, shape: Shape) -> Iterator[tuple[bytes, bytes]]:
    for which in range(shape.services):
        backends = (parse(_pod(number, shape, which * 4 + each)) for each in range(4))
        made = Service(
            cluster=named(number),
            cluster_id=number,
            namespace="shop",
            name=f"app-{which}",
            frontends={nth(parse_prefix("10.96.0.0/12"), which + 1): _TCP80},
            backends=dict.fromkeys(backends, _TCP8080),
            labels={"app": f"app-{which}"},
            selector={"app": f"app-{which}"},
        )
        yield keys.service_key(named(number), "shop", made.name), service.encode(made)


async def fill(client: EtcdClient, numbers: Sequence[int], shape: Shape) -> None:
    for number in numbers:
        await client.transact(entries(number, shape))
    await client.put(keys.HEARTBEAT, b"now")


async def own_cluster(bed: Bed) -> None:
    """What the API server of a cluster without nodes has written into its etcd."""
    name, config = bed.context.name, ClusterConfig(id=bed.context.id, synced_canaries=True)
    canaries = [Put(keys.canary_key(name, directory), b"now") for directory in _MIRRORED]
    await bed.client.transact([Put(keys.cluster_config_key(name), cluster_config.encode(config)), *canaries])


def connect(bed: Bed, name: str, endpoint: str, tls: Tls | None = None) -> None:
    """The peer file of cluster `name`."""
    files = f"trusted-ca-file: {tls.ca}\ncert-file: {tls.cert}\nkey-file: {tls.key}\n" if tls else ""
    bed.context.peers.mkdir(exist_ok=True)
    (bed.context.peers / name).write_text(f"endpoints: [{endpoint}]\n{files}")


async def until_mirrored(process: Process, bed: Bed, names: Sequence[str]) -> None:
    """Until all of the clusters is in the cache: a mirror writes a canary after what it stands for."""
    wanted = {keys.canary_key(name, directory, cached=True) for name in names for directory in _MIRRORED}
    async with asyncio.timeout(PATIENCE):
        while not wanted <= {kv.key for kv in (await bed.client.range(keys.SYNCED)).kvs}:
            check_running(process, bed)
            await asyncio.sleep(0.02 if len(wanted) < 100 else 0.25)
