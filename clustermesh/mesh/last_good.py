"""The last good state of each cluster on this node's disk, so that a restart never starts from nothing.

One file per cluster, msgpack of the model structs, replaced atomically. A file that cannot be read is no state at all:
the cluster is then read anew and nothing is pruned before it is.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Set
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from certs.files import write_atomically
from clustermesh.mesh.view import View
from clustermesh.model import ClusterConfig, Port

_log = logging.getLogger(__name__)
_FORMAT = 3
_PIECE = 4096  # entries that are encoded in one go


class LastGood(Struct, frozen=True, kw_only=True):
    """What is kept: the cluster's configuration and its view. `format` changes when the model does."""

    format: int
    config: ClusterConfig
    view: View


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(LastGood)


def encode(config: ClusterConfig, view: View) -> bytes:
    """What `save` writes."""
    return b"".join(encode_in_pieces(config, view))


def encode_in_pieces(config: ClusterConfig, view: View) -> Iterator[bytes]:
    """The same, some entries at a time: as `view` is now, while it may change before the last of them."""
    return _pieces(config, {kind: getattr(view, kind).copy() for kind in View.__struct_fields__})


def _pieces(config: ClusterConfig, tables: Mapping[str, Mapping[Any, Any]]) -> Iterator[bytes]:
    """A LastGood, written out: tables of hundreds of thousands cannot be encoded without holding up everybody."""
    before = {"format": _FORMAT, "config": config}
    yield _map_head(len(before) + 1) + _entries(before) + _encoder.encode("view") + _map_head(len(tables))
    for kind, table in tables.items():
        yield _encoder.encode(kind) + _map_head(len(table))
        left = iter(table.items())
        while some := dict(islice(left, _PIECE)):
            yield _entries(some)


def _entries(table: Mapping[Any, Any]) -> bytes:
    """`table` in msgpack without what says that it is a map of so many."""
    return _encoder.encode(table)[len(_map_head(len(table))) :]


def _map_head(number: int) -> bytes:
    """What begins a map of so many entries in msgpack."""
    if number < 1 << 4:
        return bytes([0x80 | number])
    return b"\xde" + number.to_bytes(2) if number < 1 << 16 else b"\xdf" + number.to_bytes(4)


def save(folder: Path, cluster: str, encoded: bytes) -> None:
    """Write `folder`/`cluster`.state, readable by this user only. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_atomically(path_of(folder, cluster), encoded)


def load(folder: Path, cluster: str) -> LastGood | None:
    """What `save` wrote for `cluster`, or None where there is nothing usable."""
    path = path_of(folder, cluster)
    try:
        kept = _decoder.decode(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError, RecursionError, ValueError) as e:
        _log.warning("last good state %s cannot be read and is not used: %s", path, e)
        return None
    if kept.format != _FORMAT:
        return None
    _share_ports(kept.view)
    return kept


def holds(folder: Path, cluster: str, encoded: bytes) -> bool:
    """Whether these very bytes are there already: on a disk that cannot be written the state may be as it was."""
    try:
        return path_of(folder, cluster).read_bytes() == encoded
    except OSError:
        return False


def path_of(folder: Path, cluster: str) -> Path:
    return folder / f"{cluster}.state"


def is_lost(folder: Path, cluster: str) -> bool:
    """Whether something is kept of `cluster` that cannot be read: it was known, and nobody knows as what."""
    try:
        return path_of(folder, cluster).exists() and load(folder, cluster) is None
    except OSError:
        return True


def _share_ports(view: View) -> None:
    """Thousands of backends have the same few ports: equal ones are one object, as where they are read from etcd."""
    seen: dict[tuple[tuple[str, Port], ...], Mapping[str, Port]] = {}
    for service in [*view.services.values(), *(each.service for each in view.local_services.values())]:
        for places in (service.frontends, service.backends):
            for address, ports in places.items():
                places[address] = seen.setdefault(tuple(ports.items()), ports)  # type: ignore[index]  # just decoded


def forget_others(folder: Path, clusters: Set[str]) -> None:
    """Clusters that are not connected any more, disconnected while no agent ran, leave nothing behind either."""
    for path in folder.glob("*.state"):
        if path.stem not in clusters:
            forget(folder, path.stem)


def forget(folder: Path, cluster: str) -> None:
    """The cluster was disconnected: what was kept of it goes too. On a disk that cannot be written it stays."""
    path = path_of(folder, cluster)
    try:
        path.unlink(missing_ok=True)
    except OSError as e:
        _log.error("last good state %s cannot be removed: %s", path, e)
