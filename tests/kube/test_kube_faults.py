"""Kubernetes API, API server, etcd: whatever becomes of the first, the last holds the truth; nothing goes wrongly."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from apiserver_bed import Bed
from kube_bed import KubeBed
from tcp_proxy import TcpProxy
from test_kube_apiserver import published
from test_kube_follow import compact, expire, until_refused
from test_kube_source import namespace, node, pod, service

from clustermesh.address import parse
from clustermesh.kube.rbac import cluster_role
from clustermesh.sources.served import RULES
from clustermesh.wire import keys
from clustermesh.wire import service as wire_service


@pytest.fixture
def space(bed: KubeBed, request: pytest.FixtureRequest) -> str:
    """The name of a namespace that is to be made."""
    with suppress(RuntimeError):  # there is one node for all
        bed.create(node("n1", "192.0.2.1"))
    return "faults-" + str(request.node.name).replace("_", "-").removeprefix("test-")[:40].strip("-")


class Shop:
    """A namespace of the API with services, the Pod of each, and what is true of them."""

    def __init__(self, api: KubeBed, space: str) -> None:
        self.api, self.space = api, space
        self.pods: dict[str, str] = {}
        self.gone: set[bytes] = set()
        api.create(namespace(space))

    def open(self, name: str, ip: str) -> None:
        self.api.create(service(f"{self.space}/{name}"), slice_of(self.space, name, ip), self._pod(name, ip))
        self.pods[name] = ip

    def close(self, name: str) -> None:
        ip = self.pods.pop(name)
        for manifest in (service(f"{self.space}/{name}"), slice_of(self.space, name, ip), self._pod(name, ip)):
            self.api.delete(manifest)
        self.gone |= {keys.service_key("alpha", self.space, name), keys.endpoint_key(parse(ip))}
        self.gone.add(keys.local_service_key(self.space, name))

    def _pod(self, name: str, ip: str) -> dict[str, Any]:
        return pod(f"{self.space}/{name}", ip, app=name)

    async def until_true(self, bed: Bed) -> None:
        """What etcd holds of the namespace is what is true."""
        place = keys.STATE + b"services/v1/alpha/" + self.space.encode() + b"/"
        wanted = {name: {parse(ip)} for name, ip in self.pods.items()}
        ends = {keys.endpoint_key(parse(ip)) for ip in self.pods.values()}

        def holds(found: dict[bytes, Any]) -> bool:
            held = [wire_service.decode(kv.value) for key, kv in found.items() if key.startswith(place)]
            pods = {key for key in found if key.startswith(keys.STATE + b"ip/")}
            return {each.name: set(each.backends) for each in held} == wanted and pods == ends

        await bed.until(holds)


def slice_of(space: str, name: str, ip: str) -> dict[str, Any]:
    labels = {"kubernetes.io/service-name": name}
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"namespace": space, "name": f"{name}-1", "labels": labels},
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080}],
        "endpoints": [{"addresses": [ip], "conditions": {"ready": True}}],
    }


@asynccontextmanager
async def shop(tmp_path: Path, api: KubeBed, config: Path, space: str) -> AsyncIterator[tuple[Bed, Shop]]:
    """Published; at the end nothing has gone that did not go in the API."""
    made = Shop(api, space)
    made.open("always", "10.1.0.5")
    made.open("first", "10.1.0.6")
    try:
        async with Bed(tmp_path / "alpha") as bed:
            await bed.etcd.start()
            async with published(bed, api, **{"k8s-kubeconfig-path": str(config)}):
                await made.until_true(bed)
                async with bed.deletions() as gone:
                    yield bed, made
                    await made.until_true(bed)
                assert {key for key in gone if key.startswith(b"cilium/") and key not in made.gone} == set()
    finally:
        for name in list(made.pods):
            made.close(name)


def through(api: KubeBed, proxy: TcpProxy, config: Path) -> Path:
    config.write_text(config.read_text().replace(str(api.port), str(proxy.port)))
    return config


async def test_the_api_server_is_killed_and_comes_back(tmp_path: Path, bed: KubeBed, space: str) -> None:
    async with shop(tmp_path, bed, bed.write_kubeconfig("admin", cert="admin"), space) as (_, made):
        bed.kill()
        await asyncio.sleep(1)
        await bed.restart()
        made.close("first")
        made.open("second", "10.1.0.7")


async def test_the_history_is_gone_when_it_comes_back(tmp_path: Path, bed: KubeBed, space: str) -> None:
    async with TcpProxy(bed.port) as proxy:
        config = through(bed, proxy, bed.write_kubeconfig("proxied", cert="admin"))
        async with shop(tmp_path, bed, config, space) as (_, made):
            await proxy.refuse()
            made.close("first")
            made.open("second", "10.1.0.7")
            await compact(bed)
            await bed.restart()
            proxy.heal()


async def test_a_token_expires_and_is_renewed(tmp_path: Path, bed: KubeBed, space: str) -> None:
    """Meanwhile what is published stays, however much there is to tell."""
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "mesh", "namespace": "default"}}
    bed.create(account)
    bed.allow("system:serviceaccount:default:mesh", cluster_role(space, RULES))
    token = tmp_path / "token"
    token.write_text(bed.token("default", "mesh", 600))
    async with TcpProxy(bed.port) as proxy:
        config = through(bed, proxy, bed.write_kubeconfig("mesh", user={"tokenFile": str(token)}))
        async with shop(tmp_path, bed, config, space) as (mesh, made):
            expire(bed, account)
            await until_refused(bed, f"Bearer {token.read_text()}")
            await proxy.cut()
            made.close("first")
            made.open("second", "10.1.0.7")
            await asyncio.sleep(2)
            assert keys.service_key("alpha", space, "first") in await mesh.all()
            token.write_text(bed.token("default", "mesh", 600))
