"""One etcd client for all clusters that are read at one place: behind kvstoremesh that is every cluster there is."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Hashable
from contextlib import asynccontextmanager

from clustermesh.mesh.file_marks import mark_of
from clustermesh.mesh.peer_files import PeerFile
from clustermesh.store.client import EtcdClient


def client_of(file: PeerFile, timeout: float = 5.0) -> EtcdClient:
    """A client of the etcd of `file`, which is dialled where its aliases say."""
    return EtcdClient(file.endpoints, file.tls, timeout=timeout, aliases=file.host_aliases, login=file.login)


class SharedClients:
    """`connect` makes a client; it lives as long as somebody uses it."""

    def __init__(self, connect: Callable[[PeerFile], EtcdClient]) -> None:
        self._connect = connect
        self._clients: dict[Hashable, EtcdClient] = {}
        self._users: dict[Hashable, int] = {}

    @asynccontextmanager
    async def client(self, file: PeerFile) -> AsyncIterator[EtcdClient]:
        """A client of the etcd of `file`. Renewed credentials make another one."""
        place = _place(file)
        if place not in self._clients:
            self._clients[place] = self._connect(file)
        client = self._clients[place]
        self._users[place] = self._users.get(place, 0) + 1
        try:
            yield client
        finally:
            self._users[place] -= 1
            if not self._users[place]:
                del self._clients[place], self._users[place]
                async with client:
                    pass  # leaving it closes it


def _place(file: PeerFile) -> Hashable:
    return (
        file.endpoints,
        file.login,
        tuple((path, mark_of(str(path))) for path in file.credentials),
        tuple(sorted(file.host_aliases.items())),
    )
