"""The folder that agents are given where there is a cache: every connected cluster, at the own etcd.

It is Cilium's: the files of `cilium-clustermesh` beside those of `cilium-kvstoremesh`. A file's name is its cluster's,
and what this project remembers of a peer (its id, where its pods may be, its limits) is in both.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from certs.files import private_folder, write_atomically
from clustermesh.mesh.peer_files import MARK, PeerFile, encode_peer

_LOG: Final = logging.getLogger(__name__)


class AgentAccess(Struct, frozen=True, kw_only=True):
    """Where agents find the own etcd, and what they show there; `folder` is kept as it should be."""

    folder: Path
    endpoints: tuple[str, ...]
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None


def agent_file(peer: PeerFile, access: AgentAccess) -> PeerFile:
    """`peer` as agents are to read it."""
    return replace(
        peer,
        endpoints=access.endpoints,
        ca=access.ca,
        cert=access.cert,
        key=access.key,
        login=None,
        host_aliases={},
        digest="",
    )


def keep_agent_files(peers: Iterable[PeerFile], access: AgentAccess) -> None:
    """Make the folder name exactly `peers`. What cannot be written is said, and stays as it was."""
    wanted = {peer.name: encode_peer(agent_file(peer, access)) for peer in peers}
    try:
        private_folder(access.folder)
        for name in sorted(set(os.listdir(access.folder)) - wanted.keys()):
            path = access.folder / name
            if path.is_file() and MARK in path.read_bytes():  # all else is somebody else's
                path.unlink()
        for name, data in wanted.items():
            path = access.folder / name
            if not path.exists() or path.read_bytes() != data:
                write_atomically(path, data)
    except OSError as e:
        _LOG.error("agents' files in %s: %s", access.folder, e)
