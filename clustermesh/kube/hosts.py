"""Where a Service's pods are, kept in a file as /etc/hosts for who has neither DNS nor anything that translates its
address: the agent of a node, which is what the rest of the node's network waits for."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Final, Never

import msgspec
from msgspec import Struct

from clustermesh.address import is_address
from clustermesh.errors import DecodeError, Unavailable
from clustermesh.kube.client import KubeClient
from clustermesh.kube.follow import Interrupted, follow
from clustermesh.kube.rbac import Rule
from clustermesh.kube.resource import Resource

RULES: Final = (Rule("discovery.k8s.io", "endpointslices"),)
"""What it takes, in the Service's namespace."""
_MODE: Final = 0o644
_LOG: Final = logging.getLogger(__name__)


class _Meta(Struct, frozen=True):
    name: str
    namespace: str = ""


class _Conditions(Struct, frozen=True):
    terminating: bool | None = None


class _Endpoint(Struct, frozen=True):
    addresses: list[str] = []
    conditions: _Conditions = _Conditions()


class _Slice(Struct, frozen=True):
    metadata: _Meta
    endpoints: list[_Endpoint] | None = None


def slices_of(namespace: str, service: str) -> Resource[str, tuple[str, ...]]:
    """The EndpointSlices of the Service, each with the addresses of those of its pods that are not on their way out."""
    return Resource(
        group="discovery.k8s.io",
        version="v1",
        plural="endpointslices",
        decode=_decode,
        key=lambda _namespace, name: name,
        labels=f"kubernetes.io/service-name={service}",
        namespace=namespace,
    )


def hosts_text(before: str, name: str, addresses: Iterable[str]) -> str:
    """`before`, with a line for each of `addresses` at which `name` is, and no other for it."""
    others = [line for line in before.splitlines() if name not in line.partition("#")[0].split()[1:]]
    return "".join(f"{line}\n" for line in [*others, *(f"{address}\t{name}" for address in addresses)])


async def keep_hosts(client: KubeClient, namespace: str, service: str, file: Path) -> Never:
    """Keep `file` as it is but for SERVICE.NAMESPACE.svc, which leads to the Service's pods.

    One that has none for a while stays where it was. Raises Unavailable where the file cannot be written.
    """
    name, said = f"{service}.{namespace}.svc", ""
    slices = dict[str, tuple[str, ...]]()
    async with aclosing(follow(client, slices_of(namespace, service))) as items:
        async for item in items:
            if isinstance(item, Interrupted):
                if said != (said := str(item.error)):
                    _LOG.warning("%s stays as it is: %s", name, said)
                continue
            said = ""
            _take(slices, item.changes)
            addresses = sorted({address for each in slices.values() for address in each})
            if addresses:
                _LOG.info("%s is at %s", name, ", ".join(addresses))
                _write(file, name, addresses)
    raise AssertionError("following never ends")


def _take(slices: dict[str, tuple[str, ...]], changes: Mapping[str, tuple[str, ...] | None]) -> None:
    for key, value in changes.items():
        if value is None:
            slices.pop(key, None)
        else:
            slices[key] = value


def _write(file: Path, name: str, addresses: Iterable[str]) -> None:
    """In place, and in one go: a file that is mounted into a container stays the one that it was when it was."""
    try:
        before = file.read_text()
        after = hosts_text(before, name, addresses)
        if after == before:
            return
        descriptor = os.open(file, os.O_WRONLY | os.O_CLOEXEC, _MODE)
        try:
            os.pwrite(descriptor, after.encode(), 0)
            os.ftruncate(descriptor, len(after.encode()))
        finally:
            os.close(descriptor)
    except (OSError, UnicodeDecodeError) as e:
        raise Unavailable(f"{file}: {getattr(e, 'strerror', None) or e}") from e


def _decode(raw: msgspec.Raw) -> tuple[str, tuple[str, ...]]:
    try:
        found = msgspec.json.decode(raw, type=_Slice)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise DecodeError("EndpointSlice", bytes(raw)[:80].decode(errors="replace"), str(e)) from e
    every = (address for each in found.endpoints or () if not each.conditions.terminating for address in each.addresses)
    return found.metadata.name, tuple(each for each in every if is_address(each))
