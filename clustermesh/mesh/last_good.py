"""The last good state of each cluster on this node's disk, so that a restart never starts from nothing.

One file per cluster, msgpack of the model structs, replaced atomically. A file that cannot be read is no state at all:
the cluster is then read anew and nothing is pruned before it is.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Set
from pathlib import Path

import msgspec
from msgspec import Struct

from certs.files import write_atomically
from clustermesh.mesh.view import View
from clustermesh.model import ClusterConfig, Port

_log = logging.getLogger(__name__)
_FORMAT = 3


class LastGood(Struct, frozen=True, kw_only=True):
    """What is kept: the cluster's configuration and its view. `format` changes when the model does."""

    format: int
    config: ClusterConfig
    view: View


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(LastGood)


def encode(config: ClusterConfig, view: View) -> bytes:
    """What `save` writes: taken at one moment, while `view` may change later."""
    return _encoder.encode(LastGood(format=_FORMAT, config=config, view=view))


def save(folder: Path, cluster: str, encoded: bytes) -> None:
    """Write `folder`/`cluster`.state, readable by this user only. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_atomically(folder / f"{cluster}.state", encoded)


def load(folder: Path, cluster: str) -> LastGood | None:
    """What `save` wrote for `cluster`, or None where there is nothing usable."""
    path = folder / f"{cluster}.state"
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


def is_lost(folder: Path, cluster: str) -> bool:
    """Whether something is kept of `cluster` that cannot be read: it was known, and nobody knows as what."""
    try:
        return (folder / f"{cluster}.state").exists() and load(folder, cluster) is None
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
    path = folder / f"{cluster}.state"
    try:
        path.unlink(missing_ok=True)
    except OSError as e:
        _log.error("last good state %s cannot be removed: %s", path, e)
