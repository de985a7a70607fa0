"""Where alpha of the mesh bed says what it has: a folder of manifests, or a real Kubernetes API."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final, Protocol, Self

import yaml
from apiserver_bed import Bed
from kube_bed import KubeBed
from tcp_proxy import TcpProxy

from clustermesh.kube.rbac import cluster_role
from clustermesh.sources.served import RULES

ACCOUNT: Final = "mesh"
_SPACE: Final = "shop"
_GOOD: Final = 24 * 3600.0


class Source(Protocol):
    """Holds the documents of each name. `is_up` is False while nobody can change anything there."""

    is_up: bool

    def apply(self, name: str, text: str) -> None: ...
    def remove(self, name: str) -> None: ...
    def told(self) -> Mapping[str, str]:
        """What the API server's process is told of it."""
        ...


class Folder:
    """The manifests of a cluster's folder."""

    is_up = True

    def __init__(self, alpha: Bed) -> None:
        self._alpha = alpha

    def apply(self, name: str, text: str) -> None:
        self._alpha.write(f"{name}.yaml", text)

    def remove(self, name: str) -> None:
        (self._alpha.context.manifests / f"{name}.yaml").unlink()

    def told(self) -> Mapping[str, str]:
        return {}


class Api:
    """A Kubernetes API, which the API server reaches over `way`, by a token of a file. `async with` it."""

    def __init__(self, folder: Path) -> None:
        self.bed = KubeBed(folder)
        self.is_up = True
        self._token = folder / "token"
        self._held: dict[str, list[dict[str, Any]]] = {}
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        try:
            await self._begin()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def _begin(self) -> None:
        self._stack.callback(self.bed.__exit__)
        await self.bed.etcd.start()
        await self.bed.restart()
        self.way = await self._stack.enter_async_context(TcpProxy(self.bed.port))
        self.bed.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": _SPACE}})
        account = {"namespace": _SPACE, "name": ACCOUNT}
        self.bed.create({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": account})
        self.bed.allow(f"system:serviceaccount:{_SPACE}:{ACCOUNT}", cluster_role(ACCOUNT, RULES))
        self.issue(_GOOD)

    def issue(self, seconds: float = _GOOD) -> None:
        """Another token for the API server, good for so long from now; one that has expired where that is negative."""
        self._token.write_text(self.bed.token(_SPACE, ACCOUNT, seconds))

    def apply(self, name: str, text: str) -> None:
        wanted = [_without_address(each) for each in yaml.safe_load_all(text)]
        if name not in self._held:
            self.bed.create(*wanted)
        else:
            for each in wanted:
                self.bed.merge(each, each)
        self._held[name] = wanted

    def remove(self, name: str) -> None:
        for each in self._held.pop(name):
            self.bed.delete(each)

    def told(self) -> Mapping[str, str]:
        user = {"tokenFile": str(self._token)}
        server = f"https://127.0.0.1:{self.way.port}"
        return {"kubeconfig": str(self.bed.write_kubeconfig(ACCOUNT, server=server, user=user))}


def _without_address(manifest: dict[str, Any]) -> dict[str, Any]:
    """The API allots cluster IPs itself."""
    manifest.get("spec", {}).pop("clusterIP", None)
    return manifest
