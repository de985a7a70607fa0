"""What is followed at a Kubernetes API, and what may be believed of it; the API is a dict of answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any, cast

import pytest

from clustermesh.errors import Unavailable
from clustermesh.kube.access import Access, Grant
from clustermesh.kube.brain import Brain
from clustermesh.kube.client import KubeClient
from clustermesh.kube.config import from_kubeconfig
from clustermesh.kube.decoding import decode_page
from clustermesh.kube.faults import NotServed
from clustermesh.kube.hearing import Started
from clustermesh.kube.rbac import Rule
from clustermesh.model import Cluster
from clustermesh.sources.kubernetes import KubernetesSource, _resource
from clustermesh.sources.objects import KINDS, Object, Ref
from clustermesh.sources.served import CILIUM, CILIUM_SLICES, NATIVE, RULES, Wanted
from clustermesh.sources.served import offered as _offered
from clustermesh.sources.source import EVERYTHING
from clustermesh.wire.kinds import ENDPOINTS, IDENTITIES, NODES

ALPHA = Cluster(name="alpha", id=1)
NODES_PATH = "/apis/cilium.io/v2/ciliumnodes"
SERVED = {"/apis/cilium.io/v2": {"resources": [{"name": f"cilium{n}"} for n in ("nodes", "identities", "endpoints")]}}


class Api:
    """All that it does not have it does not serve."""

    def __init__(self, answers: Mapping[str, Any]) -> None:
        self.answers = answers

    async def get(self, path: str, what: str, _params: Mapping[str, str]) -> bytes:
        if path not in self.answers:
            raise NotServed(what)
        return json.dumps(self.answers[path]).encode()


async def offered(mode: str, slices: bool | None = None, **lists: list[Any]) -> tuple[str, ...]:
    """The kinds that are followed where Cilium's resources are served, with `lists` of these."""
    answers = {**SERVED, NODES_PATH: {"items": []}} | {
        f"/apis/cilium.io/v2/{k}": {"items": v} for k, v in lists.items()
    }
    if "ciliumendpointslices" in lists:
        answers["/apis/cilium.io/v2alpha1"] = {"resources": [{"name": "ciliumendpointslices"}]}
        answers["/apis/cilium.io/v2alpha1/ciliumendpointslices"] = {"items": lists["ciliumendpointslices"]}
    return tuple(await _offered(cast(KubeClient, Api(answers)), Wanted(mode=mode, slices=slices)))


async def test_the_mode_is_ciliums_where_there_is_a_cilium_node() -> None:
    assert await offered("auto", ciliumnodes=[{}]) == CILIUM
    assert tuple(await _offered(cast(KubeClient, Api({})), Wanted())) == NATIVE


async def test_ciliums_resources_without_cilium_choose_neither_mode_and_a_flag_does() -> None:
    with pytest.raises(Unavailable, match=r"no node is a CiliumNode.*--mode native"):
        await offered("auto")
    assert await offered("native") == NATIVE
    assert await offered("cilium") == CILIUM


async def test_slices_are_followed_where_there_is_one_or_as_a_flag_says() -> None:
    """A cluster has none before its first pod, and some for a while after they were switched off."""
    assert await offered("cilium", ciliumendpointslices=[]) == CILIUM
    assert await offered("cilium", ciliumendpointslices=[{}]) == CILIUM_SLICES
    assert await offered("cilium", slices=True, ciliumendpointslices=[]) == CILIUM_SLICES
    assert await offered("cilium", slices=False, ciliumendpointslices=[{}]) == CILIUM
    with pytest.raises(Unavailable, match="--enable-cilium-endpoint-slice"):
        await offered("cilium", slices=True)


def test_the_role_holds_what_is_followed_and_nothing_else() -> None:
    cilium = ("ciliumnodes", "ciliumidentities", "ciliumendpoints", "ciliumendpointslices")
    assert set(RULES) == {
        *(Rule("", plural) for plural in ("namespaces", "nodes", "pods", "services")),
        Rule("discovery.k8s.io", "endpointslices"),
        Rule("multicluster.x-k8s.io", "serviceexports"),
        *(Rule("cilium.io", plural) for plural in cilium),
    }
    assert {rule.verbs for rule in RULES} == {("list", "watch")}


def listed(kind: str, *items: Any) -> Brain[Ref, Object]:
    brain: Brain[Ref, Object] = Brain()
    brain.hear(Started(), 0.0)
    body = json.dumps({"metadata": {"resourceVersion": "5"}, "items": items}).encode()
    brain.hear(decode_page(_resource(KINDS[kind], KINDS[kind].versions[0]), body), 0.0)
    assert brain.complete
    return brain


@pytest.mark.parametrize(
    ("kind", "doubted"), [("CiliumNode", {NODES}), ("Pod", {ENDPOINTS, IDENTITIES}), ("Namespace", EVERYTHING)]
)
def test_an_object_that_cannot_be_read_puts_in_doubt_what_it_may_speak_for(
    tmp_path: Path, kind: str, doubted: set[str]
) -> None:
    source = KubernetesSource(from_kubeconfig(str(tmp_path / "none")), ALPHA)
    assert source.doubted == EVERYTHING
    source._brains = {"Service": listed("Service"), kind: listed(kind)}
    assert not source.doubted
    for bad in ({"metadata": {"name": "n1", "labels": 7}}, {"metadata": 7}):
        source._brains[kind] = listed(kind, bad)
        assert source.doubted == doubted


class Quiet:
    """An API without objects, over HTTP: its watches tell nothing. While it is `busy` it takes none."""

    def __init__(self) -> None:
        self.busy, self._writers = False, set[asyncio.StreamWriter]()

    def turn(self, *, busy: bool) -> None:
        self.busy = busy
        for writer in self._writers:
            writer.transport.abort()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        with suppress(OSError, asyncio.IncompleteReadError):
            request = await reader.readuntil(b"\r\n\r\n")
            head, body = b"404 No\r\n", b"{}"
            if b"watch=1" in request and self.busy:
                head, body = b"429 Wait\r\nRetry-After: 1\r\n", b'{"message": "storage is (re)initializing"}'
            elif b"watch=1" in request:
                head = body = b""
            elif b"limit=" in request:
                head, body = b"200 OK\r\n", b'{"metadata": {"resourceVersion": "5"}, "items": []}'
            if head:
                writer.write(
                    b"HTTP/1.1 " + head + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body
                )
            else:
                writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
                await reader.read()
        self._writers.discard(writer)
        writer.close()


async def test_what_is_asked_for_again_says_so_and_is_no_problem_once_it_is_answered() -> None:
    """Although nothing has changed: no event tells it."""
    api = Quiet()
    async with await asyncio.start_server(api.answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]

        async def grant() -> Grant:
            return Grant(server=f"http://127.0.0.1:{port}")

        source = KubernetesSource(Access(grant), ALPHA, wanted=Wanted(mode="native", mcs=False))
        async with asyncio.timeout(60), aclosing(source.updates()) as updates:
            await anext(updates)
            api.turn(busy=True)
            while sum("initializing" in str(each) for each in source.problems()) < len(NATIVE):
                await anext(updates)
            assert all(
                str(each).endswith("(re)initializing; it is tried again by itself") for each in source.problems()
            )
            api.turn(busy=False)
            while source.problems():
                await anext(updates)
