"""Clusters that join by invitation, through two real Kubernetes APIs; neither side has access to the other's."""

from __future__ import annotations

import asyncio
import json
import ssl
import threading
from base64 import b64encode
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from chart_bed import MISSING, Values, apply, define, merged, named, nested, rendered
from click.testing import CliRunner, Result
from cryptography import x509
from joined_bed import Cluster
from kube_bed import KubeBed, path_of
from msgspec.structs import replace
from pod_bed import Pod, missing
from ports import free_port
from processes import PATIENCE

from certs.check import read_certificates
from clustermesh.cli import main
from clustermesh.errors import ClusterMeshError, Refused, Unavailable
from clustermesh.joining import inviting as inviting_side
from clustermesh.joining import names
from clustermesh.joining.connect import Site, Wanted, begin_reading, connect, let_in, read_site
from clustermesh.joining.holders import InSecrets
from clustermesh.joining.invitations import Token, create, decode_token, is_revoked, read, revoke
from clustermesh.joining.inviting import Server, fingerprint
from clustermesh.joining.links import Mode
from clustermesh.joining.newcomer import join
from clustermesh.joining.offers import Offer, offer
from clustermesh.joining.rotating import rotate_authority
from clustermesh.kube.client import KubeClient, Request
from clustermesh.kube.faults import Forbidden
from clustermesh.standalone.connect import Outcome

SECRET = "cilium-clustermesh"
OTHERS = {"beta": 2, "gamma": 3, "delta": 4}
WRITTEN = (("configmaps", "clustermesh-remote-users"), ("secrets", SECRET))


@pytest.fixture
def alpha(bed: KubeBed, namespace: str) -> Cluster:
    made = Cluster(bed, namespace, "alpha", 1, free_port())
    made.install()
    return made


@pytest.fixture
def beta(other_bed: KubeBed, namespace: str) -> Cluster:
    made = Cluster(other_bed, namespace, "beta", 2, free_port())
    made.install()
    return made


@asynccontextmanager
async def answering(*clusters: Cluster) -> AsyncIterator[None]:
    """What looks like their etcds."""
    async with AsyncExitStack() as stack:
        for each in clusters:
            tls, pair = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), each.folder.path / "served.pem"
            held = each.data("secrets", names.SERVER_CERT)
            pair.write_bytes(held["tls.key"] + held["tls.crt"])
            tls.load_cert_chain(pair)
            server = await asyncio.start_server(lambda _, w: w.close(), "127.0.0.1", each.port, ssl=tls)
            await stack.enter_async_context(server)
        yield


class Told(KubeClient):
    """Notes each request that goes by another one."""

    def __init__(self, by: KubeClient, asked: list[Request]) -> None:
        self._by, self._asked = by, asked

    async def _whole(self, request: Request, fresh: bool) -> bytes:
        self._asked.append(request)
        return await self._by._whole(request, fresh)


@asynccontextmanager
async def inviting(cluster: Cluster, asked: list[Request] | None = None, metrics: str = "") -> AsyncIterator[str]:
    """`clustermesh invite serve`; where. What it asks the API is added to `asked`."""
    port = free_port()
    async with cluster.objects() as objects:
        if asked is not None:
            objects.client = Told(objects.client, asked)
        task = asyncio.create_task(Server(objects, f"127.0.0.1:{port}", metrics).run())
        try:
            async with asyncio.timeout(20):
                while not (task.done() or await answers(port)):
                    await asyncio.sleep(0.02)
            yield f"127.0.0.1:{port}"
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def invited(
    cluster: Cluster, address: str, uses: int = 1, to: str = "", ttl: float = 900, again: bool = False
) -> Token:
    now, made = datetime.now(UTC).timestamp(), list[str]()
    async with cluster.objects() as objects:

        def edit(data):  # type: ignore[no-untyped-def]
            changed, *made[:] = create(data, (), now=now, ttl=ttl, uses=uses, to=to, again=again)
            return changed

        await objects.change_secret(names.INVITATIONS, edit)
    shown = cluster.data("secrets", names.SERVER_CERT)
    pin = fingerprint(shown["tls.crt"], shown["ca.crt"])
    return Token(cluster=cluster.name, address=address, fingerprint=pin, id=made[0], secret=made[1])


async def joining(cluster: Cluster, token: Token) -> Outcome:
    async with cluster.objects() as objects:
        return await join(await read_site(objects, cluster.name), token, datetime.now(UTC))


def peers(cluster: Cluster) -> set[str]:
    try:
        return {name for name in cluster.data("secrets", SECRET) if "." not in name}
    except RuntimeError:  # there is no such Secret
        return set()


def events(cluster: Cluster) -> list[str]:
    """Ours: the API's own look after what is made here, too."""
    found = cluster.bed.ask("GET", f"/api/v1/namespaces/{cluster.namespace}/events")["items"]
    return sorted(each["reason"] for each in found if each.get("source", {}).get("component") == "clustermesh")


async def test_a_token_is_all_that_a_newcomer_needs(alpha: Cluster, beta: Cluster) -> None:
    async with answering(alpha, beta), inviting(alpha) as address:
        token = await invited(alpha, address, to="beta")
        outcome = await joining(beta, token)
        assert len(outcome.done) == 2
        assert (peers(alpha), peers(beta)) == ({"beta"}, {"alpha"})
        for reader, owner in ((alpha, beta), (beta, alpha)):
            users = yaml.safe_load(owner.data("configmaps", "clustermesh-remote-users")["users.yaml"])["users"]
            assert users == [{"name": f"remote-{reader.name}", "role": "remote"}]
            tls = ssl.create_default_context(cadata=owner.folder.ca.read_text())
            files = reader.data("secrets", SECRET)
            assert files[f"{owner.name}.etcd-client-ca.crt"] == owner.folder.ca.read_bytes()
            pair = reader.folder.path / "shown.pem"
            pair.write_bytes(files[f"{owner.name}.etcd-client.key"] + files[f"{owner.name}.etcd-client.crt"])
            tls.load_cert_chain(pair)
        assert token.secret.encode() not in alpha.data("secrets", names.INVITATIONS)[token.id]
        await joining(beta, token)  # an answer that was lost
        assert events(alpha) == ["ClusterJoined"] * 2


async def test_the_same_token_again_changes_nothing_and_one_to_come_again_renews(alpha: Cluster, beta: Cluster) -> None:
    def written() -> list[object]:
        objects = [(each, *what) for each in (alpha, beta) for what in WRITTEN]
        return [each.data(kind, name) for each, kind, name in objects]

    async with answering(alpha, beta), inviting(alpha) as address:
        token = await invited(alpha, address)
        await joining(beta, token)
        before = written()
        assert (await joining(beta, token)).done == []
        assert written() == before
        await joining(beta, await invited(alpha, address, to="beta", again=True))
        users, secrets = [each != was for each, was in zip(written(), before, strict=True)][::2], written()[1::2]
        assert users == [False, False]
        assert all(each != was for each, was in zip(secrets, before[1::2], strict=True))
    with pytest.raises(Unavailable):
        await joining(beta, token)
    assert events(beta) == ["JoinRefused", *["MeshJoined"] * 3]
    found = beta.bed.ask("GET", f"/api/v1/namespaces/{beta.namespace}/events")["items"]
    said = [each["message"] for each in found if each["reason"] == "MeshJoined"]
    assert sum(token.id in each for each in said) == 2
    assert token.secret not in "".join(said)


async def test_of_many_at_once_exactly_as_many_join_as_there_are_uses(alpha: Cluster, other_bed: KubeBed) -> None:
    many = [Cluster(other_bed, f"{alpha.namespace}-{n}", f"c{n}", n, free_port()) for n in range(2, 8)]
    for each in many:
        each.install()
    async with answering(alpha, *many), inviting(alpha) as address:
        token = await invited(alpha, address, uses=2)
        found = await asyncio.gather(*(joining(each, token) for each in many), return_exceptions=True)
    assert sum(isinstance(each, Outcome) for each in found) == 2
    joined = {cluster.name for cluster, each in zip(many, found, strict=True) if isinstance(each, Outcome)}
    assert peers(alpha) == joined
    assert {each.name for each in many if peers(each)} == joined
    assert events(alpha) == ["ClusterJoined"] * 2 + ["JoinRefused"] * 4


async def test_a_token_that_is_no_good_lets_nobody_in(alpha: Cluster, beta: Cluster) -> None:
    async with answering(alpha, beta), inviting(alpha) as address:
        good = await invited(alpha, address)
        tokens = [
            replace(good, secret="guessed"),
            replace(good, id="00000000"),
            await invited(alpha, address, to="gamma"),
            await invited(alpha, address, ttl=0.0),
        ]
        for token in tokens:
            with pytest.raises(ExceptionGroup) as caught:
                await joining(beta, token)
            (error,) = caught.value.exceptions
            assert isinstance(error, Refused)
            assert "unknown, expired, used up, or another cluster's" in str(error)
    # Of who has not even a secret there is a line in the log.
    assert (peers(alpha), peers(beta), events(alpha)) == (set(), set(), ["JoinRefused"] * 2)


async def test_nothing_is_said_to_a_stranger(alpha: Cluster, beta: Cluster) -> None:
    """Who has no certificate by the authority that the token names, whatever it tells of that."""
    said, told = list[bytes](), [b"rubbish", beta.folder.ca.read_bytes(), alpha.folder.ca.read_bytes()]
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(beta.folder.certificate("server"), beta.folder.key("server"))

    async def hear(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        said.append(await reader.read(1000))
        body = told[len(said) - 1]
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        writer.close()

    port = free_port()
    async with await asyncio.start_server(hear, "127.0.0.1", port, ssl=tls):
        token = await invited(alpha, f"127.0.0.1:{port}")
        for _ in told:
            with pytest.raises(Refused, match="nothing was sent"):
                await joining(beta, token)
    assert [each.split()[:2] for each in said if each] == [[b"GET", b"/v1/authority"]] * 3


async def test_who_invites_and_is_not_there_is_said(alpha: Cluster, beta: Cluster) -> None:
    with pytest.raises(Unavailable, match="invite serve"):
        await joining(beta, await invited(alpha, f"127.0.0.1:{free_port()}"))


async def test_who_says_half_of_it_keeps_nobody_else_waiting(alpha: Cluster, beta: Cluster) -> None:
    async with answering(alpha, beta), inviting(alpha) as address:
        silent = [await half_an_ask(address) for _ in range(8)]
        async with asyncio.timeout(30):
            await joining(beta, await invited(alpha, address))
        silent[0][1].close()
        for reader, _ in silent[1:]:
            assert b" 408 " in await reader.readline()


async def test_so_many_are_heard_at_once_and_who_holds_most_places_makes_room(
    alpha: Cluster, beta: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inviting_side, "_READING", 600.0)
    async with answering(alpha, beta), inviting(alpha) as address:
        silent = [await half_an_ask(address, f"127.0.1.{n % 8}") for n in range(40)]
        await joining(beta, await invited(alpha, address))
        assert [(await reader.readline()).split()[1] for reader, _ in silent[:9]] == [b"429"] * 9
        for _, writer in silent:
            writer.close()


async def test_who_is_sent_away_leaves_a_line_of_the_log(
    alpha: Cluster, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(inviting_side, "_REREAD", 0.2)
    monkeypatch.setattr(inviting_side, "_READING", 0.1)
    told = free_port()
    async with inviting(alpha, metrics=f"127.0.0.1:{told}") as address:
        asked = [await half_an_ask(address) for _ in range(14)]
        asked.append(await half_an_ask(address, path="/elsewhere"))
        answers = {(await reader.readline()).split()[1].decode() for reader, _ in asked}
        assert answers == {"404", "408", "429"}
        async with asyncio.timeout(20):
            while not all(f"{each} to 127.0.0.1" in caplog.text for each in answers):
                await asyncio.sleep(0.05)
        async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{told}/metrics") as answer:
            lines = [line.split() for line in (await answer.text()).splitlines() if "answers_total{" in line]
        counted = {name.split('"')[1]: float(number) for name, number in lines}
        assert sum(counted.values()) == 15
        assert {status for status, number in counted.items() if number} == answers
    assert events(alpha) == []  # who has no invitation writes nothing into the API


async def half_an_ask(
    address: str, source: str = "127.0.0.1", path: str = "/v1/join"
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, port = address.split(":")
    tls = ssl._create_unverified_context()
    reader, writer = await asyncio.open_connection(host, int(port), ssl=tls, local_addr=(source, 0))
    writer.write(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{{".encode())
    await writer.drain()
    return reader, writer


async def test_who_joins_while_its_invitation_is_revoked_is_not_connected(
    alpha: Cluster, beta: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def let_in_late(site: Site, reader: str, outcome: Outcome) -> None:
        await site.objects.change_secret(names.INVITATIONS, lambda data: revoke(data, token.id)[0])
        await let_in(site, reader, outcome)

    monkeypatch.setattr("clustermesh.joining.inviting.let_in", let_in_late)
    async with answering(alpha, beta), inviting(alpha) as address:
        token = await invited(alpha, address)
        with pytest.raises(ExceptionGroup) as caught:
            await joining(beta, token)
    assert "the invitation was revoked" in str(caught.value.exceptions[0])
    assert (peers(alpha), peers(beta)) == (set(), set())
    assert not yaml.safe_load(alpha.data("configmaps", "clustermesh-remote-users")["users.yaml"])["users"]


def saying(**changed: Callable[[Offer], object]) -> Callable[..., Offer]:
    """`offer`, by somebody who says something else."""

    def said(*given: object) -> Offer:
        honest = offer(*given)  # type: ignore[arg-type]
        return replace(honest, **{field: change(honest) for field, change in changed.items()})

    return said


def users(cluster: Cluster) -> list[str]:
    try:
        held = cluster.data("configmaps", "clustermesh-remote-users").get("users.yaml", b"{}")
    except RuntimeError:  # there is no such ConfigMap
        return []
    return [each["name"] for each in (yaml.safe_load(held) or {}).get("users", [])]


async def test_what_a_newcomer_brings_leaves_room_for_others(
    alpha: Cluster, beta: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    await says_much("newcomer", alpha, beta, monkeypatch)


async def test_what_who_invites_answers_leaves_room_for_others(
    alpha: Cluster, beta: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    await says_much("inviting", alpha, beta, monkeypatch)


async def says_much(liar: str, alpha: Cluster, beta: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    def much(lines: int) -> None:
        said = saying(trusted=lambda said: said.trusted + "# padding\n" * lines)
        monkeypatch.setattr(f"clustermesh.joining.{liar}.offer", said)

    reader, owner = (alpha, beta) if liar == "newcomer" else (beta, alpha)
    async with answering(alpha, beta), inviting(alpha) as address:
        token = await invited(alpha, address)
        much(70_000)  # 700 kB: one more such, and nobody else finds room
        with pytest.raises((ExceptionGroup, ClusterMeshError)) as caught:
            await joining(beta, token)
        error = caught.value.exceptions[0] if isinstance(caught.value, ExceptionGroup) else caught.value
        assert "trusted: 700" in str(error)
        assert "bytes: must be at most 65536" in str(error)
        assert peers(reader) == set()
        much(3_000)
        await joining(beta, token)
    assert reader.data("secrets", SECRET)[f"{owner.name}.etcd-client-ca.crt"] == owner.folder.ca.read_bytes()


async def test_where_a_secret_is_full_it_is_said_before_anything_is_written(alpha: Cluster, beta: Cluster) -> None:
    def fill(cluster: Cluster, size: int) -> None:
        data = {"gone.etcd-client-ca.crt": b64encode(b"x" * size).decode()}
        secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": SECRET}, "data": data}
        path = f"/api/v1/namespaces/{cluster.namespace}/secrets/{SECRET}?fieldManager=somebody&force=true"
        cluster.bed.ask("PATCH", path, secret, "application/apply-patch+yaml")

    full = f"Secret {SECRET} of alpha has no room for beta"
    async with answering(alpha, beta), inviting(alpha) as address:
        token = await invited(alpha, address)
        fill(alpha, 1_015_000)
        with pytest.raises(ExceptionGroup) as caught:
            await joining(beta, token)
        assert full in str(caught.value.exceptions[0])
        invitation = read(alpha.data("secrets", names.INVITATIONS)[token.id])
        assert invitation is not None
        assert (invitation.left, peers(alpha), users(alpha)) == (1, set(), [])
        async with alpha.site() as source, beta.site() as destination:
            with pytest.raises(ExceptionGroup) as caught:
                await connect(source, [destination], Wanted(), datetime.now(UTC))
        assert full in str(caught.value.exceptions[0])
        assert (peers(beta), users(alpha), users(beta)) == (set(), [], [])
        fill(alpha, 10)
        fill(beta, 1_010_000)  # alpha would have done its half by the time that is found out
        with pytest.raises(Refused, match=f"Secret {SECRET} of beta has no room for alpha"):
            await joining(beta, token)
        assert (peers(alpha), users(alpha)) == (set(), [])
        fill(beta, 990_000)
        await joining(beta, token)
        fill(beta, 1_010_000)
        assert (await joining(beta, token)).done == []  # it is there
    assert (peers(alpha), peers(beta)) == ({"beta"}, {"alpha"})


async def test_who_is_told_that_it_could_not_be_connected_has_not_been_let_in(
    alpha: Cluster, beta: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def may_not(*_: object, **__: object) -> None:
        raise Forbidden("may not patch secrets/cilium-clustermesh")

    async with answering(alpha, beta), inviting(alpha) as address:
        token = await invited(alpha, address)
        with monkeypatch.context() as failing:
            failing.setattr("clustermesh.joining.inviting.begin_reading", may_not)
            with pytest.raises(ExceptionGroup) as caught:
                await joining(beta, token)
        assert "may not patch" in str(caught.value.exceptions[0])
        assert users(alpha) == []
        await joining(beta, token)
    assert (peers(alpha), users(alpha)) == ({"beta"}, ["remote-beta"])


async def test_nobody_waits_while_a_question_is_looked_at_and_a_refusal_is_short_enough_to_be_read(
    alpha: Cluster, beta: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Semaphore(0), threading.Semaphore(0)

    def held(name: str) -> None:
        true = getattr(inviting_side, name)

        def waits(*given: object, **named: object) -> object:
            begun.release()
            assert go_on.acquire(timeout=PATIENCE)
            return true(*given, **named)

        monkeypatch.setattr(inviting_side, name, waits)

    steps = ("decode_ask", "offered_link", "find_problems")
    for each in steps:
        held(each)
    many = [(f"n{n}", f"203.{n >> 8}.{n & 255}.0/24") for n in range(10_240)]
    monkeypatch.setattr("clustermesh.joining.newcomer.offer", saying(pod_cidrs=lambda _: many))
    async with answering(alpha, beta), inviting(alpha) as address:
        asking = asyncio.create_task(joining(beta, await invited(alpha, address)))
        async with aiohttp.ClientSession() as session:
            for _ in steps:
                assert await asyncio.to_thread(begun.acquire, timeout=PATIENCE)
                async with session.get(f"https://{address}/v1/authority", ssl=False) as answer:
                    assert answer.status == 200
                go_on.release()
        with pytest.raises(ExceptionGroup) as caught:
            await asking
    said = [str(each) for each in caught.value.exceptions]
    assert len(said) == 11
    assert "pod CIDR of node n0 in beta: '203.0.0.0/24': would be refused by alpha" in said[0]
    assert said[-1].endswith("10230 more pod CIDRs of beta would be refused by alpha")


async def test_an_invitation_is_not_used_up_for_a_cluster_that_a_clustermeshpeer_connects(
    alpha: Cluster, beta: Cluster
) -> None:
    define(alpha.bed, "clustermeshpeers")
    declared = {
        "apiVersion": "clustermesh.io/v1alpha1",
        "kind": "ClusterMeshPeer",
        "metadata": {"name": "beta", "namespace": alpha.namespace},
        "spec": {"addresses": ["192.0.2.7"]},
    }
    async with answering(alpha, beta), inviting(alpha) as address:
        await joining(beta, await invited(alpha, address))
        # The API server takes it over.
        meta = {"name": SECRET, "namespace": alpha.namespace}
        entries = {key: b64encode(value).decode() for key, value in alpha.data("secrets", SECRET).items()}
        secret = {"apiVersion": "v1", "kind": "Secret", "metadata": meta, "data": entries}
        by = f"?fieldManager={names.DECLARED_MANAGER}&force=true"
        alpha.bed.ask("PATCH", f"{path_of(secret)}/{SECRET}{by}", secret, "application/apply-patch+yaml")
        alpha.bed.create(declared)
        token = await invited(alpha, address, again=True)
        with pytest.raises(ExceptionGroup) as caught:
            await joining(beta, token)
        assert [
            "alpha is connected to beta by its ClusterMeshPeer beta" in str(each) for each in caught.value.exceptions
        ]
        unused = read(alpha.data("secrets", names.INVITATIONS)[token.id])
        assert unused is not None
        assert not unused.joined
        alpha.bed.delete(declared)
        await joining(beta, token)


async def test_of_two_that_join_under_one_name_at_once_one_is_connected_and_the_other_is_told(
    alpha: Cluster, beta: Cluster, bed: KubeBed, monkeypatch: pytest.MonkeyPatch
) -> None:
    false = Cluster(bed, f"{alpha.namespace}-false", "beta", 2, free_port())
    false.install()
    both, looked = asyncio.Barrier(2), 0

    async def begin_together(*given: Any, **named: Any) -> None:
        nonlocal looked
        looked += 1
        if looked <= 2:
            await both.wait()
        await begin_reading(*given, **named)

    monkeypatch.setattr("clustermesh.joining.inviting.begin_reading", begin_together)
    async with answering(alpha, beta, false), inviting(alpha) as address:
        tokens = [(each, await invited(alpha, address)) for each in (beta, false)]
        found = await asyncio.gather(*(joining(*each) for each in tokens), return_exceptions=True)
        (first,) = [each for each, said in zip(tokens, found, strict=True) if isinstance(said, Outcome)]
        (error,) = [each for each in found if isinstance(each, ExceptionGroup)]
        (last,) = [each for each in tokens if each is not first]
        assert "changed at the same time" in str(error.exceptions[0])
        with pytest.raises(ExceptionGroup, match="refused") as caught:
            await joining(*last)
        assert "alpha knows beta by another authority" in str(caught.value.exceptions[0])
        await joining(*first)
    assert (peers(first[0]), peers(last[0])) == ({"alpha"}, set())
    assert alpha.data("secrets", SECRET)["beta.etcd-client-ca.crt"] == first[0].folder.ca.read_bytes()


async def test_nobody_takes_the_place_of_a_cluster_that_is_connected(
    alpha: Cluster, beta: Cluster, bed: KubeBed
) -> None:
    false = Cluster(bed, f"{alpha.namespace}-false", "beta", 2, free_port())
    false.install()
    async with answering(alpha, beta, false), inviting(alpha) as address:
        await joining(beta, await invited(alpha, address))
        before = alpha.data("secrets", SECRET)
        with pytest.raises(ExceptionGroup) as caught:
            await joining(false, await invited(alpha, address))
    assert "is connected to a cluster beta already" in str(caught.value.exceptions[0])
    assert alpha.data("secrets", SECRET) == before
    assert peers(false) == set()


async def test_nobody_takes_a_name_that_is_held_one_way(alpha: Cluster, beta: Cluster, other_bed: KubeBed) -> None:
    """Of one that reads this cluster, one that is declared, and one whose entry is broken."""
    many = [Cluster(other_bed, f"{alpha.namespace}-{name}", name, n, free_port()) for name, n in OTHERS.items()]
    for each in many:
        each.install()
    define(alpha.bed, "clustermeshpeers")
    spec, meta = {"addresses": ["192.0.2.7"], "paused": True}, {"name": "gamma", "namespace": alpha.namespace}
    declared = {"apiVersion": "clustermesh.io/v1alpha1", "kind": "ClusterMeshPeer", "metadata": meta, "spec": spec}
    alpha.bed.create(declared)
    alpha.make("Secret", SECRET, data={"delta": b64encode(b"endpoints: [nowhere]").decode()})
    async with answering(alpha, beta, *many), inviting(alpha) as address:
        async with alpha.site() as owner, beta.site() as reader:
            await connect(reader, [owner], Wanted(mode=Mode.UNICAST), datetime.now(UTC))
        before, token = held(alpha), await invited(alpha, address)
        for each in many:
            with pytest.raises(ExceptionGroup) as caught:
                await joining(each, token)
            assert f"alpha has a cluster {each.name} already" in str(caught.value.exceptions[0])
            assert (held(alpha), peers(each)) == (before, set())
        unused = read(alpha.data("secrets", names.INVITATIONS)[token.id])
        assert unused is not None
        assert not unused.joined
        for each in many:  # who invites says that it is this one
            await joining(each, await invited(alpha, address, to=each.name))
    assert peers(alpha) == OTHERS.keys()


async def test_who_joins_lets_nobody_in_under_the_name_of_a_cluster_that_reads_it(
    alpha: Cluster, beta: Cluster, bed: KubeBed
) -> None:
    false = Cluster(bed, f"{alpha.namespace}-false", "alpha", 1, free_port())
    false.install()
    async with answering(alpha, beta, false), inviting(false) as address:
        async with alpha.site() as reader, beta.site() as owner:
            await connect(reader, [owner], Wanted(mode=Mode.UNICAST), datetime.now(UTC))
        before = held(beta)
        with pytest.raises(Refused, match=r"a cluster alpha is connected, and what answers .* is not known to be that"):
            await joining(beta, await invited(false, address))
    assert (held(beta), peers(false)) == (before, set())


async def test_a_newcomer_that_is_interrupted_goes_on_with_the_same_token(
    alpha: Cluster, beta: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def may_not(*_: object) -> None:
        raise Forbidden("may not")

    async with answering(alpha, beta), inviting(alpha) as address:
        token = await invited(alpha, address)
        for step in ("let_in", "begin_reading"):
            with monkeypatch.context() as failing:
                failing.setattr(f"clustermesh.joining.newcomer.{step}", may_not)
                with pytest.raises(Forbidden):
                    await joining(beta, token)
        await joining(beta, token)
    assert (peers(alpha), peers(beta)) == ({"beta"}, {"alpha"})
    assert b"remote-alpha" in beta.data("configmaps", "clustermesh-remote-users")["users.yaml"]


def held(cluster: Cluster) -> list[dict[str, bytes]]:
    """What it reads, and who reads it."""
    found = list[dict[str, bytes]]()
    for kind, name in WRITTEN:
        try:
            found.append(cluster.data(kind, name))
        except RuntimeError:  # there is none
            found.append({})
    return found


async def test_nobody_invites_in_the_name_of_a_cluster_that_is_connected(
    alpha: Cluster, beta: Cluster, bed: KubeBed
) -> None:
    false = Cluster(bed, f"{alpha.namespace}-false", "alpha", 1, free_port())
    false.install()
    async with answering(alpha, beta, false):
        async with inviting(alpha) as address:
            await joining(beta, await invited(alpha, address))
        before = beta.data("secrets", SECRET)
        async with inviting(false) as address:
            with pytest.raises(
                Refused, match=r"a cluster alpha is connected, and what answers .* is not known to be that"
            ):
                await joining(beta, await invited(false, address))
        async with inviting(alpha) as address:  # who sends on what the true one says of itself
            token = replace(await invited(false, address), address=address)
            with pytest.raises(Refused, match="nothing was sent"):
                await joining(beta, token)
    assert (beta.data("secrets", SECRET), peers(false)) == (before, set())


async def test_an_authority_is_replaced_once_who_joined_by_invitation_has_joined_again(
    alpha: Cluster, beta: Cluster, bed: KubeBed
) -> None:
    said = list[str]()

    async def rotate(*joining: str) -> None:
        async with alpha.site() as site:
            await rotate_authority([InSecrets(site)], timedelta(0), said.append, frozenset(joining))

    def trusted(cluster: Cluster, secret: str, key: str) -> tuple[x509.Certificate, ...]:
        return read_certificates(cluster.data("secrets", secret)[key], key)

    false = Cluster(bed, f"{alpha.namespace}-false", "beta", 2, free_port())
    false.install()
    async with answering(alpha, beta, false):
        async with inviting(alpha) as address:
            await joining(beta, await invited(alpha, address))
        (old,) = trusted(beta, SECRET, "alpha.etcd-client-ca.crt")
        with pytest.raises(ExceptionGroup) as caught:
            await rotate()
        assert "beta, which would lose it" in str(caught.value.exceptions[0])
        with pytest.raises(Refused, match="gamma: is not connected to alpha"):
            await rotate("gamma")
        rotating = asyncio.create_task(rotate("beta"))
        async with asyncio.timeout(20):
            while not any(each.startswith("beta: is waited for") for each in said):
                await asyncio.sleep(0.05)
        rotating.cancel()  # it is interrupted, and goes on without being told again who joins
        await asyncio.gather(rotating, return_exceptions=True)
        rotating = asyncio.create_task(rotate())
        async with inviting(alpha) as address:
            with pytest.raises(ExceptionGroup) as caught:
                await joining(false, await invited(alpha, address, to="beta", again=True))
            assert "alpha knows beta by another authority" in str(caught.value.exceptions[0])
            assert old in trusted(alpha, names.SERVER_CERT, "ca.crt")  # who shows the old one is let in until then
            assert not rotating.done()
            await joining(beta, await invited(alpha, address, to="beta", again=True))
        await asyncio.wait_for(rotating, 20)
    (new,) = trusted(beta, SECRET, "alpha.etcd-client-ca.crt")
    assert (new,) == trusted(alpha, names.SERVER_CERT, "ca.crt") == trusted(alpha, names.AUTHORITY, "ca.crt")
    trusted(beta, SECRET, "alpha.etcd-client.crt")[0].verify_directly_issued_by(new)
    assert new != old
    assert alpha.data("secrets", names.AUTHORITY).keys() == {"ca.crt", "ca.key"}


async def test_who_replaces_its_authority_may_be_the_one_that_joins_again(alpha: Cluster, beta: Cluster) -> None:
    async def rotate() -> None:
        async with alpha.site() as site:
            await rotate_authority([InSecrets(site)], timedelta(0), said.append, frozenset({"beta"}))

    said, key = list[str](), "alpha.etcd-client-ca.crt"
    async with answering(beta), inviting(beta) as address:
        async with answering(alpha):
            await joining(alpha, await invited(beta, address))
        before = beta.data("secrets", SECRET)[key]
        rotating = asyncio.create_task(rotate())
        async with asyncio.timeout(20):
            while not any(each.startswith("beta: is waited for") for each in said):
                await asyncio.sleep(0.05)
        async with answering(alpha):
            await joining(alpha, await invited(beta, address, to="alpha", again=True))
        await asyncio.wait_for(rotating, 20)
    new = alpha.data("secrets", names.AUTHORITY)["ca.crt"]
    assert (beta.data("secrets", SECRET)[key], new == before) == (new, False)


async def test_all_that_is_wrong_is_told_to_the_newcomer_and_its_invitation_is_not_used_up(
    alpha: Cluster, other_bed: KubeBed, namespace: str
) -> None:
    bad = Cluster(other_bed, namespace, "beta", 1, free_port())
    bad.install(enable_wireguard="true")
    async with answering(alpha), inviting(alpha) as address:
        token = await invited(alpha, address)
        with pytest.raises(ExceptionGroup) as caught:
            await joining(bad, token)
        said = "\n".join(map(str, caught.value.exceptions))
        for part in ("cluster id", "encryption of beta", "is not reached from here"):
            assert part in said
        assert all(isinstance(each, ClusterMeshError) for each in caught.value.exceptions)
        good = Cluster(other_bed, f"{namespace}-good", "beta", 2, free_port())
        good.install()
        async with answering(good):
            await joining(good, token)
    assert peers(alpha) == {"beta"}


async def test_invitations_are_created_listed_and_revoked_by_commands(alpha: Cluster, beta: Cluster) -> None:
    config = str(alpha.bed.write_kubeconfig("alpha", cert="admin"))
    flags = ("--kubeconfig", config, "-n", alpha.namespace, "--context", "alpha")

    async def run(*words: str) -> str:
        result = await asyncio.to_thread(CliRunner().invoke, main, [*words, *flags])  # it has a loop of its own
        assert result.exit_code == 0, result.output
        return result.output

    async with answering(alpha, beta), inviting(alpha) as address:
        token = decode_token((await run("invite", "create", "--address", address, "--to", "beta")).strip())
        with pytest.raises(AssertionError, match="is not connected to beta"):
            await run("invite", "create", "--address", address, "--to", "beta", "--again")
        await joining(beta, token)
        again = decode_token((await run("invite", "create", "--address", address, "--to", "beta", "--again")).strip())
        shown = beta.data("secrets", SECRET)["alpha.etcd-client.crt"]
        await joining(beta, again)
        assert beta.data("secrets", SECRET)["alpha.etcd-client.crt"] != shown
    row, _ = sorted(json.loads(await run("invite", "list", "-o", "json")), key=lambda row: row["id"] != token.id)
    assert (row["state"], row["joined"], row["to"]) == ("used up", ["beta"], "beta")
    said = await run("invite", "revoke", row["id"])
    assert "alpha no longer reads beta" in said
    assert "alpha no longer lets beta in" in said
    await run("invite", "revoke", again.id)
    assert (peers(alpha), (await run("invite", "list")).strip()) == (set(), "no invitations")
    assert events(alpha) == [what for what in ("ClusterJoined", "InvitationCreated", "InvitationRevoked") for _ in "12"]


async def test_revoking_cuts_no_connection_that_was_made_since(alpha: Cluster, beta: Cluster) -> None:
    config = str(alpha.bed.write_kubeconfig("alpha", cert="admin"))
    flags = ("--kubeconfig", config, "-n", alpha.namespace, "--context", "alpha")

    async def run(*words: str) -> str:
        result = await asyncio.to_thread(CliRunner().invoke, main, [*words, *flags])
        assert result.exit_code == 0, result.output
        return result.output

    async with answering(alpha, beta), inviting(alpha) as address:
        token = await invited(alpha, address)
        await joining(beta, token)
        await run("disconnect", "--peer", "beta")
        with pytest.raises(ExceptionGroup) as caught:
            await joining(beta, token)
        assert "unknown, expired, used up" in str(caught.value.exceptions[0])
        async with alpha.site() as source, beta.site() as destination:
            await connect(source, [destination], Wanted(), datetime.now(UTC))
    before = held(alpha)
    (row,) = json.loads(await run("invite", "list", "-o", "json"))
    assert (row["state"], row["joined"], row["usesLeft"]) == ("used up", ["beta"], 0)
    await run("invite", "revoke", token.id)
    assert held(alpha) == before
    assert peers(alpha) == {"beta"}
    assert "no invitations" in await run("invite", "list")


async def test_an_invitation_stays_until_all_who_joined_by_it_are_disconnected(
    alpha: Cluster, beta: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def may_not(*_: object) -> Outcome:
        raise Forbidden("may not patch secrets/cilium-clustermesh")

    config = str(alpha.bed.write_kubeconfig("alpha", cert="admin"))
    flags = ("--kubeconfig", config, "-n", alpha.namespace, "--context", "alpha")
    async with answering(alpha, beta), inviting(alpha) as address:
        token = await invited(alpha, address)
        await joining(beta, token)
        with monkeypatch.context() as failing:
            failing.setattr("clustermesh.joining.connect.disconnect", may_not)
            result = await asyncio.to_thread(CliRunner().invoke, main, ["invite", "revoke", token.id, *flags])
        assert result.exit_code == 1
        assert "may not patch" in result.output
        assert "is revoked" not in result.output
        assert is_revoked(held := alpha.data("secrets", names.INVITATIONS), token.id)
        assert token.id in held
        result = await asyncio.to_thread(CliRunner().invoke, main, ["invite", "revoke", token.id, *flags])
    assert (result.exit_code, peers(alpha)) == (0, set()), result.output
    found = alpha.bed.ask("GET", f"/api/v1/namespaces/{alpha.namespace}/events")["items"]
    assert {each["message"] for each in found if each["reason"] == "InvitationRevoked"} == {
        f"{token.id}; disconnected: nobody; not disconnected: beta",
        f"{token.id}; disconnected: beta",
    }


@pytest.mark.skipif(bool(MISSING or missing()), reason=MISSING or missing())
async def test_the_chart_answers_newcomers_by_no_more_than_it_allows_its_pod(
    alpha: Cluster, beta: Cluster, tmp_path: Path
) -> None:
    port, bed, flags = free_port(), alpha.bed, ["-n", alpha.namespace, "--context", "alpha", "--kubeconfig"]
    flags.append(str(bed.write_kubeconfig("alpha", cert="admin")))

    async def create() -> Result:
        return await asyncio.to_thread(CliRunner().invoke, main, ["invite", "create", "--to", "beta", *flags])

    assert "clustermesh.invitations.enabled=true" in (await create()).output
    service = {"type": "LoadBalancer", "nodePort": 0}
    metrics = {"port": free_port()}
    values = nested("clustermesh.invitations", {"enabled": True, "port": port, "service": service, "metrics": metrics})
    objects = [each for each in rendered(values, alpha.namespace) if each["metadata"]["name"] == names.INVITING]
    apply(bed, objects)
    template = named(objects, "Deployment", names.INVITING)["spec"]["template"]
    async with (
        answering(alpha, beta),
        Pod(bed, tmp_path / "pod", alpha.namespace, template, "127.0.0.1").run("invitations"),
    ):
        async with asyncio.timeout(PATIENCE):
            while not await answers(port):
                await asyncio.sleep(0.05)
        assert "has no address yet" in (await create()).output
        path = f"/api/v1/namespaces/{alpha.namespace}/services/{names.INVITING}/status"
        given = {"status": {"loadBalancer": {"ingress": [{"ip": "127.0.0.1"}]}}}
        bed.ask("PATCH", path, given, "application/merge-patch+json")
        await joining(beta, token := decode_token((await create()).output.strip()))
    assert token.address == f"127.0.0.1:{port}"
    assert (peers(alpha), peers(beta)) == ({"beta"}, {"alpha"})
    assert events(alpha) == ["ClusterJoined", "InvitationCreated"]


@pytest.mark.skipif(bool(MISSING), reason=MISSING)
async def test_the_chart_allows_what_answering_takes_and_nothing_else(
    bed: KubeBed, namespace: str, beta: Cluster, other_bed: KubeBed
) -> None:
    alpha = Cluster(bed, namespace, "alpha", 1, free_port())
    alpha.install(mirrored=True)
    gamma = Cluster(other_bed, f"{namespace}-gamma", "gamma", 3, free_port())
    gamma.install()
    asked = list[Request]()
    async with answering(alpha, beta, gamma), inviting(alpha, asked) as address:
        token = await invited(alpha, address, uses=2)
        for each in (beta, gamma):
            await joining(each, token)
    wanted, values = set().union(*map(taken, asked)), nested("clustermesh.invitations.enabled", True)
    assert granted(values) == wanted
    # One that the operator has is found by these.
    more = {("", "secrets", names.ETCD_CERT, "get"), ("", "configmaps", names.API_SERVER, "get")}
    assert granted(merged(values, nested("etcd", {"enabled": True, "endpoints": ["https://192.0.2.1:2379"]}))) == (
        wanted | more
    )


def taken(request: Request) -> set[tuple[str, str, str, str]]:
    """API group, resource, name ("" for all) and verb: what is needed to ask that."""
    _, first, *rest = request.path.split("/")
    group, rest = ("", rest[1:]) if first == "api" else (rest[0], rest[2:])
    resource, *name = rest[2:] if rest[0] == "namespaces" and len(rest) > 2 else rest
    verbs = {"GET": ["get" if name else "list"], "POST": ["create"], "PATCH": ["patch"]}[request.method]
    verbs += ["create"] if "apply" in request.kind else []
    return {(group, resource, "".join(name), verb) for verb in verbs}


def granted(values: Values) -> set[tuple[str, str, str, str]]:
    roles = [each for each in rendered(values) if each["kind"] in ("Role", "ClusterRole")]
    return {
        (group, resource, name, verb)
        for each in roles
        if each["metadata"]["name"] == names.INVITING
        for rule in each["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for name in rule.get("resourceNames", [""])
        for verb in rule["verbs"]
    }


async def answers(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


def test_a_token_may_come_by_stdin_and_a_broken_one_is_not_shown(beta: Cluster, tmp_path: Path) -> None:
    config = str(beta.bed.write_kubeconfig("beta", cert="admin"))
    flags = ("--kubeconfig", config, "-n", beta.namespace, "--context", "beta")
    result = CliRunner().invoke(main, ["join", *flags, "-"], input="cmj1.abcdef\n")
    assert (result.exit_code, "abcdef" in result.output) == (2, False), result.output
