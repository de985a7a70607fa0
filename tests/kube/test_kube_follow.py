"""Lists and watches of a real API server: whatever happens on the way, what was told equals what there is."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from kube_bed import PATIENCE, KubeBed, path_of
from kube_mirror import QUICK, Mirror, Name, labelled, mirrored
from tcp_proxy import TcpProxy

from clustermesh.kube.access import Access
from clustermesh.kube.brain import Brain
from clustermesh.kube.client import KubeClient
from clustermesh.kube.config import from_kubeconfig
from clustermesh.kube.decoding import decode_page
from clustermesh.kube.faults import Expired, NotServed, Unauthorized
from clustermesh.kube.follow import Interrupted
from clustermesh.kube.hearing import List, Page, Started
from clustermesh.kube.rbac import Rule, cluster_role
from clustermesh.store.client import EtcdClient

SERVICES = labelled("services")


def service(namespace: str, name: str, **labels: str) -> dict[str, Any]:
    metadata = {"name": name, "namespace": namespace, "labels": labels}
    spec = {"clusterIP": "None", "ports": [{"port": 80}]}
    return {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec}


def truth(bed: KubeBed) -> dict[tuple[str, str], dict[str, str]]:
    """What there is, asked in another way."""
    found = bed.ask("GET", "/api/v1/services")["items"]
    return {(m["namespace"], m["name"]): m.get("labels", {}) for m in (item["metadata"] for item in found)}


def at(mirror: Mirror, namespace: str) -> dict[str, dict[str, str]]:
    """What was told of one namespace."""
    return {name: labels for (where, name), labels in mirror.state.items() if where == namespace}


async def test_pages_then_changes(bed: KubeBed, namespace: str) -> None:
    bed.create(*(service(namespace, f"s{number}") for number in range(25)))
    async with mirrored(admin(bed), SERVICES, limit=10) as mirror:
        assert len(at(mirror, namespace)) == 25
        bed.create(service(namespace, "new", a="1"))
        bed.merge(service(namespace, "s3"), {"metadata": {"labels": {"b": "2"}}})
        bed.delete(service(namespace, "s4"))
        await mirror.until(lambda: "s4" not in at(mirror, namespace))
        assert at(mirror, namespace)["new"] == {"a": "1"}
        assert at(mirror, namespace)["s3"] == {"b": "2"}
        assert mirror.state == truth(bed)
        assert mirror.interruptions() == []


async def test_the_api_server_is_killed_and_comes_back(bed: KubeBed, namespace: str) -> None:
    bed.create(service(namespace, "a"), service(namespace, "b"))
    async with mirrored(admin(bed), SERVICES) as mirror:
        bed.kill()
        await mirror.until_told(Interrupted)
        await bed.restart()
        bed.delete(service(namespace, "a"))
        bed.create(service(namespace, "c"))
        await mirror.until(lambda: set(at(mirror, namespace)) == {"b", "c"})
        await mirror.until(lambda: mirror.state == truth(bed))  # the API may only now write the Service that is its own


async def test_the_api_server_comes_back_with_its_history_gone(bed: KubeBed, namespace: str) -> None:
    """Killed, and what it missed is compacted away below it: 410, a list, and the list tells what vanished."""
    bed.create(service(namespace, "a"), service(namespace, "b"))
    async with TcpProxy(bed.port) as proxy, mirrored(admin(bed, proxy), SERVICES) as mirror:
        await proxy.refuse()
        await mirror.until_told(Interrupted)
        bed.delete(service(namespace, "a"))
        bed.create(service(namespace, "c"))
        await compact(bed)
        await bed.restart()  # its watch cache remembers what etcd has forgotten
        lists = mirror.brain.view().lists
        proxy.heal()
        await mirror.until(lambda: set(at(mirror, namespace)) == {"b", "c"})
        assert mirror.brain.view().lists == lists + 1
        assert any("gone" in sentence for sentence in mirror.interruptions())
        assert mirror.state == truth(bed)


async def test_a_list_whose_history_goes_in_the_middle(bed: KubeBed, namespace: str) -> None:
    """The second page is asked for when the first one's revision is no more."""
    bed.create(*(service(namespace, f"s{number}") for number in range(9)))
    brain: Brain[Name, dict[str, str]] = Brain(limit=2)
    async with KubeClient(admin(bed), QUICK) as client:
        (first,) = brain.hear(Started(), 0.0)
        assert isinstance(first, List)
        (second,) = brain.hear(await ask(client, first), 0.0)
        assert isinstance(second, List)
        bed.delete(service(namespace, "s0"))
        await compact(bed)
        await bed.restart()
        with pytest.raises(Expired):
            await ask(client, second)
    async with mirrored(admin(bed), SERVICES, limit=2) as mirror:
        assert mirror.state == truth(bed)


async def test_a_stream_cut_again_and_again(bed: KubeBed, namespace: str) -> None:
    """Cut wherever the bytes are, while objects change: each change is told in the end."""
    async with TcpProxy(bed.port) as proxy, mirrored(admin(bed, proxy), SERVICES) as mirror:
        for number in range(40):
            bed.create(service(namespace, f"s{number}", padding="x" * 60))
            if number % 2:
                bed.delete(service(namespace, f"s{number - 1}"))
            await asyncio.sleep(0)
            if number % 5 == 4:
                await proxy.cut()
        await mirror.until(lambda: mirror.state == truth(bed))
        assert mirror.interruptions()
        assert mirror.brain.view().lists == 1, "a cut is no reason to list again"


async def test_a_connection_that_carries_nothing_any_more(bed: KubeBed, namespace: str) -> None:
    """As behind a NAT that forgot it: nobody says goodbye, and only asking tells."""
    async with TcpProxy(bed.port) as proxy, mirrored(admin(bed, proxy), SERVICES) as mirror:
        proxy.strand()
        bed.create(service(namespace, "a"))
        await mirror.until(lambda: "a" in at(mirror, namespace))
        assert mirror.interruptions()
        assert mirror.state == truth(bed)


async def test_an_api_server_that_stands_still(bed: KubeBed, namespace: str) -> None:
    async with mirrored(admin(bed), SERVICES) as mirror:
        bed.freeze()
        try:
            await mirror.until_told(Interrupted)
        finally:
            bed.thaw()
        bed.create(service(namespace, "a"))
        await mirror.until(lambda: "a" in at(mirror, namespace))
        assert mirror.state == truth(bed)


async def test_a_token_that_expires_is_read_again(bed: KubeBed, namespace: str, tmp_path: Path) -> None:
    """The file has held a newer one for long when the old one is no longer taken: nobody notices."""
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "mesh", "namespace": namespace}}
    bed.create(account)
    bed.allow(f"system:serviceaccount:{namespace}:mesh", cluster_role(namespace, [Rule("", "services")]))
    token = tmp_path / "token"
    token.write_text(bed.token(namespace, "mesh", 600))
    path = bed.write_kubeconfig(namespace, user={"tokenFile": str(token)})
    async with TcpProxy(bed.port) as proxy:
        path.write_text(path.read_text().replace(str(bed.port), str(proxy.port)))
        access = from_kubeconfig(str(path))
        async with mirrored(access, SERVICES) as mirror:
            old = (await access.grant()).header
            expire(bed, account)
            await until_refused(bed, old)
            token.write_text(bed.token(namespace, "mesh", 600))
            await proxy.cut()
            bed.create(service(namespace, "a"))
            await mirror.until(lambda: "a" in at(mirror, namespace))
            assert not any("credentials" in sentence for sentence in mirror.interruptions())
            assert mirror.state == truth(bed)


async def test_a_token_that_nobody_renews_is_an_interruption(bed: KubeBed, namespace: str, tmp_path: Path) -> None:
    path = bed.write_kubeconfig(namespace, user={"token": "nobody's"})
    mirror = Mirror(SERVICES, 500)
    async with KubeClient(from_kubeconfig(str(path)), QUICK) as client, asyncio.TaskGroup() as group:
        task = group.create_task(mirror.run(client))
        item = await mirror.until_told(Interrupted)
        assert isinstance(item.error, Unauthorized)
        task.cancel()


async def test_a_kind_that_is_not_there(bed: KubeBed) -> None:
    mirror = Mirror(labelled("ciliumnodes", "cilium.io", "v2"), 500)
    async with KubeClient(admin(bed), QUICK) as client, asyncio.TaskGroup() as group:
        task = group.create_task(mirror.run(client))
        item = await mirror.until_told(Interrupted)
        assert isinstance(item.error, NotServed)
        assert "ciliumnodes.cilium.io" in mirror.brain.view().problem
        task.cancel()


async def test_what_a_field_selector_leaves_out_is_gone(bed: KubeBed, namespace: str) -> None:
    """A pod that has ended leaves a list of those that have not, as if it were deleted."""
    pods = labelled("pods", fields="status.phase!=Succeeded,status.phase!=Failed")
    made = pod(namespace, "job")
    bed.create(made)
    async with mirrored(admin(bed), pods) as mirror:
        assert "job" in at(mirror, namespace)
        bed.ask("PUT", f"{path_of(made)}/job/status", {**made, "status": {"phase": "Succeeded"}})
        await mirror.until(lambda: "job" not in at(mirror, namespace))


def admin(bed: KubeBed, proxy: TcpProxy | None = None) -> Access:
    server = f"https://127.0.0.1:{proxy.port}" if proxy else ""
    return from_kubeconfig(str(bed.write_kubeconfig("admin", cert="admin", server=server)))


def pod(namespace: str, name: str) -> dict[str, Any]:
    metadata = {"name": name, "namespace": namespace}
    spec = {"containers": [{"name": "main", "image": "none"}]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec, "status": {"phase": "Running"}}


async def ask(client: KubeClient, request: List) -> Page[Name, dict[str, str]]:
    params = {"limit": str(request.limit), **({"continue": request.next} if request.next else {})}
    return decode_page(SERVICES, await client.get(SERVICES.path, "list services", params))


async def compact(bed: KubeBed) -> None:
    """etcd below the API forgets all that was."""
    async with EtcdClient(bed.etcd.endpoints) as client:
        await client.compact((await client.range(b"nothing")).revision)


def expire(bed: KubeBed, account: Mapping[str, Any]) -> None:
    """What the server says of a token that has expired, it says of one whose account is another's now: 401. It is known
    when, however long whoever has the token takes to start."""
    bed.delete(account)
    bed.create(account)


async def until_refused(bed: KubeBed, header: str) -> None:
    """The API server remembers for some seconds that a token was good."""
    async with aiohttp.ClientSession() as session, asyncio.timeout(PATIENCE):
        while True:
            headers = {"Authorization": header}
            async with session.get(f"{bed.url}{SERVICES.path}", headers=headers, ssl=bed.tls) as answer:
                if answer.status == 401:
                    return
            await asyncio.sleep(0.2)
