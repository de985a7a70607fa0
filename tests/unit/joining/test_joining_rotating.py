"""An authority replaced by several people at once, each of whom may stop anywhere: it stays one, and nobody is lost."""

from __future__ import annotations

import asyncio
import base64
import copy
import os
import random
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import count, permutations
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from certs.check import check_leaf, is_signed_by, read_certificates, read_pair
from certs.folder import initialise, load_authority, trusted
from certs.issue import Pair, create_authority, issue
from certs.names import cluster_leaves, server
from certs.pair import load_pair
from clustermesh.errors import Refused, Unavailable
from clustermesh.joining import names
from clustermesh.joining.connect import Site, Wanted, connect, disconnect, read_site
from clustermesh.joining.holders import LEAVES, InFolder, hold_secrets
from clustermesh.joining.invitations import Token
from clustermesh.joining.invitations import create as create_invitation
from clustermesh.joining.inviting import admit
from clustermesh.joining.links import Mode, known_peers
from clustermesh.joining.newcomer import _join
from clustermesh.joining.objects import Objects
from clustermesh.joining.offers import decode_ask, decode_offer, encode_ask, offer
from clustermesh.joining.rotating import rotate_authority
from clustermesh.kube.client import KubeClient, Request
from clustermesh.kube.faults import Conflict, NotServed
from clustermesh.standalone.connect import Mode as FolderMode
from clustermesh.standalone.connect import connect as connect_folders
from clustermesh.standalone.context import Context, create

BEGUN = datetime.now(UTC)
IDS = {"alpha": 1, "beta": 2, "gamma": 3, "aaa": 4}
REPLACED_MEANWHILE = "was replaced at the same time: the same command again looks anew"
CONNECTED = "its authority is being replaced: the same command again, once that has ended"
TO_END = "where `certs status` says that it is being replaced, that has to end"
REPLACED = "somebody else has replaced its authority: look with `certs status`"
Held = dict[str, dict[str, Any]]
Gate = Callable[[], Awaitable[None]]


class Interrupted(Exception):
    """^C."""


class Client:
    """One person's way to a Kubernetes API that holds `held`; `gate` is passed before each write."""

    def __init__(self, held: Held, gate: Gate) -> None:
        self._held, self._gate = held, gate

    async def get(self, path: str, what: str, params: Mapping[str, str]) -> bytes:
        await asyncio.sleep(0)
        if path not in self._held:
            raise NotServed(what)
        return msgspec.json.encode(self._held[path])

    async def send(self, request: Request) -> bytes:
        await self._gate()
        said = msgspec.json.decode(request.body or b"")
        kept = self._held.setdefault(request.path, {"metadata": {"resourceVersion": "0"}, "data": {}})
        version = kept["metadata"]["resourceVersion"]
        if version != said["metadata"].pop("resourceVersion", "0"):
            raise Conflict(request.what)
        kept["metadata"] |= {**said["metadata"], "resourceVersion": str(int(version) + 1)}
        data = {**kept["data"], **said["data"]}
        kept["data"] = {key: value for key, value in data.items() if value is not None}
        return b""


async def nothing() -> None:
    await asyncio.sleep(0)


class World:
    """Clusters with the API objects of each."""

    def __init__(self, apis: dict[str, Held]) -> None:
        self.apis = apis

    def copy(self) -> World:
        return World(copy.deepcopy(self.apis))

    async def sites(self, order: Sequence[str], gate: Gate = nothing) -> list[Site]:
        clients = {name: cast(KubeClient, Client(self.apis[name], gate)) for name in order}
        return [await read_site(Objects(clients[name], names.NAMESPACE), name) for name in order]

    async def rotate(
        self, order: Sequence[str], gate: Gate = nothing, settle: float = 0, joining: Sequence[str] = ()
    ) -> None:
        holders = [await hold_secrets(site) for site in await self.sites(order, gate)]
        await rotate_authority(holders, timedelta(seconds=settle), lambda _: None, frozenset(joining))

    async def connect(
        self, first: str, second: str, gate: Gate = nothing, mode: Mode = Mode.BIDIRECTIONAL
    ) -> list[str]:
        """What is to be seen to."""
        source, destination = await self.sites((first, second), gate)
        return (await connect(source, [destination], Wanted(mode=mode), datetime.now(UTC))).warnings

    def secret(self, cluster: str, name: str) -> dict[str, bytes]:
        found = self.apis[cluster].get(at("secrets", name), {"data": {}})["data"]
        return {key: base64.b64decode(value) for key, value in found.items()}

    def authority(self, cluster: str) -> bytes:
        return self.secret(cluster, names.AUTHORITY)["ca.crt"]

    def check(self) -> None:
        """Each authority is whole and one, and whoever reads another lets in and is let in."""
        now = datetime.now(UTC)
        for cluster in self.apis:
            kept = self.secret(cluster, names.AUTHORITY)
            signer = read_pair(kept["ca.crt"], kept["ca.key"], cluster).certificate
            assert (kept.keys(), read_certificates(kept["ca.crt"], cluster)) == ({"ca.crt", "ca.key"}, (signer,))
            for leaf in LEAVES:
                found = self.secret(cluster, leaf)
                assert found["ca.crt"] == kept["ca.crt"], (cluster, leaf)
                assert is_signed_by(read_pair(found["tls.crt"], found["tls.key"], leaf).certificate, signer)
        for reader in self.apis:
            entries = self.secret(reader, names.PEERS)
            for owner, peer in known_peers(entries).items():
                if f"{names.credentials_of(owner)}.crt" in entries:
                    shown, key, trusted = (
                        entries[f"{names.credentials_of(owner)}{end}"] for end in (".crt", ".key", "-ca.crt")
                    )
                else:
                    own = self.secret(reader, names.REMOTE_CERT)
                    shown, key, trusted = own["tls.crt"], own["tls.key"], own["ca.crt"]
                theirs = self.secret(owner, names.SERVER_CERT)
                taken = read_certificates(theirs["ca.crt"], owner)
                where = f"{reader} reads {owner}"
                check_leaf(read_pair(shown, key, where).certificate, taken, now, where)
                known = read_certificates(trusted, where)
                check_leaf(read_certificates(theirs["tls.crt"], owner)[0], known, now, where)
                assert known == read_certificates(self.authority(owner), owner), where
                assert peer.name == owner


def at(plural: str, name: str) -> str:
    return f"/api/v1/namespaces/{names.NAMESPACE}/{plural}/{name}"


def installed(name: str, signer: Pair) -> Held:
    """What the chart and its job leave in the API of the cluster `name`."""
    found: Held = {}

    def keep(path: str, **fields: Any) -> None:
        meta = {"name": path.rpartition("/")[2], "resourceVersion": "1"}
        found[path] = {"metadata": meta, "data": {}, **fields}

    def keep_secret(secret: str, **data: bytes) -> None:
        keep(
            at("secrets", secret),
            data={key.replace("_", "."): base64.b64encode(value).decode() for key, value in data.items()},
        )

    said = {"cluster-name": name, "cluster-id": str(IDS[name]), "max-connected-clusters": "255"}
    keep(at("configmaps", names.CONFIG), data=said)
    keep_secret(names.AUTHORITY, ca_crt=signer.certificate_pem, ca_key=signer.key_pem)
    for secret, leaf in zip(LEAVES, cluster_leaves(name, []).values(), strict=True):
        pair = issue(signer, leaf, BEGUN)
        keep_secret(secret, ca_crt=signer.certificate_pem, tls_crt=pair.certificate_pem, tls_key=pair.key_pem)
    ingress = {"loadBalancer": {"ingress": [{"ip": f"192.0.2.{IDS[name]}"}]}}
    keep(
        at("services", names.API_SERVER),
        spec={"type": "LoadBalancer", "ports": [{"name": "etcd", "port": 2379}]},
        status=ingress,
    )
    containers = [{"name": each, "image": "registry.example/clustermesh:v0.1.0"} for each in ("etcd", "apiserver")]
    path = f"/apis/apps/v1/namespaces/{names.NAMESPACE}/deployments/{names.API_SERVER}"
    keep(path, spec={"template": {"spec": {"containers": containers}}})
    return found


@pytest.fixture(autouse=True)
def reached(monkeypatch: pytest.MonkeyPatch) -> None:
    async def probe(*_: object) -> None:
        return None

    for module in ("connect", "inviting"):
        monkeypatch.setattr(f"clustermesh.joining.{module}.probe", probe)


@pytest.fixture(scope="module")
def apart() -> World:
    """alpha and beta with one authority, gamma with another."""
    shared, other = create_authority(BEGUN), create_authority(BEGUN)
    return World(
        {"alpha": installed("alpha", shared), "beta": installed("beta", shared), "gamma": installed("gamma", other)}
    )


@pytest.fixture
async def world(apart: World, reached: None) -> World:
    made = apart.copy()
    for each in (("alpha", "beta"), ("alpha", "gamma"), ("gamma", "beta")):
        await made.connect(*each)
    made.check()
    return made


def stopping(after: int, stop: Gate) -> Gate:
    """`stop` in the place of the write that comes after so many."""
    writes = count()

    async def gate() -> None:
        await asyncio.sleep(0)
        if next(writes) == after:
            await stop()

    return gate


ORDERS = [("alpha", "beta", "gamma"), ("beta", "gamma", "alpha"), ("gamma", "beta", "alpha")]


async def interrupt() -> None:
    raise Interrupted


@pytest.mark.parametrize("order", ORDERS[:2])
async def test_wherever_one_is_interrupted_another_goes_on_from_the_other_side(
    world: World, order: tuple[str, ...]
) -> None:
    before = world.authority("alpha")
    for writes in count():
        tried = world.copy()
        try:
            await tried.rotate(order, stopping(writes, interrupt))
        except Interrupted:
            if writes % 5 == 1:  # that of another authority is another one
                await tried.rotate(("gamma", "alpha", "beta"))
            begun = [tried.authority(each) for each in ("alpha", "beta") if tried.authority(each) != before]
            await tried.rotate(order[::-1] if order[-1] != "gamma" else ("beta", "alpha", "gamma"))
            tried.check()
            assert all(tried.authority("alpha") in each for each in begun), "it is the one that was begun"
        else:
            break
        assert before != tried.authority("alpha") == tried.authority("beta")
    assert writes > 20


@pytest.mark.parametrize("second", ORDERS)
@pytest.mark.parametrize("first", ORDERS)
async def test_two_at_once_replace_it_by_one(world: World, first: tuple[str, ...], second: tuple[str, ...]) -> None:
    """The first one waits before each of its writes until the other one is done."""
    for writes in range(0, 60, 3):
        tried, waiting, go = world.copy(), asyncio.Event(), asyncio.Event()

        async def pause(waiting: asyncio.Event = waiting, go: asyncio.Event = go) -> None:
            waiting.set()
            await go.wait()

        slow = asyncio.create_task(tried.rotate(first, stopping(writes, pause)))
        stalled = asyncio.create_task(waiting.wait())
        await asyncio.wait({slow, stalled}, return_when=asyncio.FIRST_COMPLETED)
        stalled.cancel()
        if slow.done():
            break
        await tried.rotate(second)
        go.set()
        (said,) = await asyncio.gather(slow, return_exceptions=True)
        late = writes == 0 and (first[0] == "gamma") == (second[0] == "gamma")
        assert REPLACED in str(said) if late else said is None
        tried.check()
        assert tried.authority("alpha") == tried.authority("beta")


@pytest.mark.parametrize("seed", range(8))
async def test_three_at_once_replace_it_by_one(world: World, seed: int) -> None:
    chance = random.Random(seed)

    async def now_and_then() -> None:
        for _ in range(chance.randrange(12)):
            await asyncio.sleep(0)

    tasks = (world.rotate(each, now_and_then) for each in chance.sample([*permutations(world.apis)], 3))
    await asyncio.gather(*tasks)
    world.check()
    assert world.authority("alpha") == world.authority("beta")


async def test_who_goes_on_names_all_that_hold_it(world: World) -> None:
    with pytest.raises(Interrupted):
        await world.rotate(ORDERS[0], stopping(1, interrupt))
    before = world.copy()
    for order in (("alpha",), ("beta", "gamma"), ("alpha", "gamma")):
        with pytest.raises(ExceptionGroup) as caught:
            await world.rotate(order)
        assert "which would lose it: name the contexts of all its peers" in str(caught.value.exceptions[0])
        assert world.apis == before.apis


async def test_who_shares_it_unconnected_is_told_of_another_one_that_was_begun_beside_his(apart: World) -> None:
    world, waiting, go = apart.copy(), asyncio.Event(), asyncio.Event()
    world.apis["aaa"] = copy.deepcopy(world.apis["alpha"])
    world.apis["aaa"][at("configmaps", names.CONFIG)]["data"] |= {"cluster-name": "aaa", "cluster-id": "4"}
    await world.connect("alpha", "beta")

    async def pause() -> None:
        waiting.set()
        await go.wait()

    slow = asyncio.create_task(world.rotate(("alpha", "beta", "aaa"), stopping(1, pause)))
    await waiting.wait()
    with pytest.raises(Interrupted):
        await world.rotate(("beta", "alpha"), stopping(3, interrupt))
    go.set()
    for again in (slow, world.rotate(("aaa", "beta", "alpha"))):
        with pytest.raises(
            Refused, match=r"^(alpha|beta): its authority is being replaced by another one already: end that"
        ):
            await again
    await world.rotate(("alpha", "beta"))
    await world.rotate(("aaa", "beta", "alpha"))
    world.check()
    assert world.authority("aaa") != world.authority("alpha") == world.authority("beta")


async def test_who_joins_again_is_waited_for_whoever_goes_on(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    both, key = ("beta", "alpha"), "gamma.etcd-client.crt"
    with pytest.raises(Refused, match=r"^delta: is not connected to alpha or beta$"):
        await world.rotate(both, joining=("gamma", "delta"))
    with pytest.raises(Interrupted):
        await world.rotate(both, stopping(2, interrupt), joining=("gamma",))
    monkeypatch.setattr("clustermesh.joining.rotating._LOOK", 0.01)
    for reader in ("alpha", "beta"):
        waits = asyncio.create_task(world.rotate(both[::-1]))
        await asyncio.sleep(0.3)
        assert not waits.done()
        waits.cancel()
        await asyncio.gather(waits, return_exceptions=True)
        data = world.apis[reader][at("secrets", names.PEERS)]["data"]
        data[key] = base64.b64encode(
            base64.b64decode(data[key]) + b"\n"
        ).decode()  # as who joins again leaves another one
    await world.rotate(both[::-1])
    assert world.authority("alpha") == world.authority("beta")


PAIRS = [("alpha", "beta"), ("gamma", "alpha"), ("alpha", "gamma")]


async def connected(world: World, pair: tuple[str, str], mode: Mode, gate: Gate = nothing) -> str:
    """What is said of an authority that is replaced meanwhile."""
    try:
        warnings = await world.connect(*pair, gate, mode)
        return next((CONNECTED for each in warnings if CONNECTED in each), "")
    except Unavailable as e:
        assert REPLACED_MEANWHILE in str(e)  # noqa: PT017
        return REPLACED_MEANWHILE
    except ExceptionGroup as e:
        assert TO_END in str(e.exceptions)  # noqa: PT017
        return TO_END


async def rotated(world: World, order: Sequence[str], gate: Gate = nothing) -> bool:
    """Whether it is; else it is said that the other one is connected by now."""
    try:
        await world.rotate(order, gate)
    except ExceptionGroup as e:
        assert "which would lose it" in str(e.exceptions[0])  # noqa: PT017
        return False
    return True


@pytest.mark.parametrize("mode", [Mode.UNICAST, Mode.BIDIRECTIONAL])
@pytest.mark.parametrize("named", [1, 2])
@pytest.mark.parametrize("pair", PAIRS)
async def test_who_is_connected_while_an_authority_is_replaced_is_not_lost(
    apart: World, pair: tuple[str, str], named: int, mode: Mode
) -> None:
    """Either one waits before one of its writes, for each of them, until the other one is done or refused."""
    for slow in ("connect", "rotate"):
        for writes in count():
            world, waiting, go = apart.copy(), asyncio.Event(), asyncio.Event()

            async def pause(waiting: asyncio.Event = waiting, go: asyncio.Event = go) -> None:
                waiting.set()
                await go.wait()

            work = {
                "connect": lambda gate, world=world: connected(world, pair, mode, gate),
                "rotate": lambda gate, world=world: rotated(world, pair[:named], gate),
            }
            first = asyncio.create_task(work[slow](stopping(writes, pause)))
            stalled = asyncio.create_task(waiting.wait())
            await asyncio.wait({first, stalled}, return_when=asyncio.FIRST_COMPLETED)
            stalled.cancel()
            done = {each: await work[each](nothing) for each in work if each != slow and waiting.is_set()}
            go.set()
            done[slow] = await first
            if "rotate" in done and not done["rotate"]:
                await world.rotate(pair)
            if done.get("connect") and (named, slow, done["connect"]) != (2, "rotate", CONNECTED):
                await world.connect(*pair, mode=mode)
            world.check()
            if not waiting.is_set():
                break


async def invited(world: World) -> bytes:
    """How gamma asks alpha, by an invitation of its own."""
    now, path = datetime.now(UTC), at("secrets", names.INVITATIONS)
    data, number, secret = create_invitation({}, [], now=now.timestamp(), ttl=60, uses=1, to="")
    encoded = {key: base64.b64encode(value).decode() for key, value in data.items()}
    world.apis["alpha"][path] = {"metadata": {"resourceVersion": "1"}, "data": encoded}
    (newcomer,) = await world.sites(["gamma"])
    return encode_ask(newcomer.member, (number, secret), offer(newcomer.member, "alpha", now))


async def admitted(world: World, gate: Gate = nothing, ask: bytes = b"") -> bytes:
    """gamma comes to alpha, as alpha's side sees it."""
    (site,) = await world.sites(["alpha"], gate)
    return (await admit(site.objects, *decode_ask(ask or await invited(world)), datetime.now(UTC)))[0]


@pytest.mark.parametrize("pair", PAIRS)
async def test_who_is_connected_by_what_he_read_before_is_seen_before_the_old_one_is_forgotten(
    apart: World, pair: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    world, waiting, go = apart.copy(), asyncio.Event(), asyncio.Event()

    async def pause() -> None:
        waiting.set()
        await go.wait()

    slow = asyncio.create_task(connected(world, pair, Mode.BIDIRECTIONAL, stopping(0, pause)))
    await waiting.wait()

    async def settled(*_: object, anew: bool) -> None:
        seen.append(anew)
        go.set()
        await slow

    seen = list[bool]()
    monkeypatch.setattr("clustermesh.joining.rotating._settle", settled)
    await world.rotate(pair)
    assert slow.result() == REPLACED_MEANWHILE
    assert seen[:2] == ([True, True] if "gamma" in pair else [True]), "what is written late has to be read, too"
    world.check()


@pytest.mark.parametrize("mode", [Mode.UNICAST, Mode.BIDIRECTIONAL])
@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("slow", ["connect", "disconnect"])
async def test_two_that_are_connected_and_disconnected_at_once_are_one_of_both_or_it_is_said(
    apart: World, slow: str, before: bool, mode: Mode
) -> None:
    async def parted(world: World, gate: Gate) -> str:
        source, destination = await world.sites(PAIRS[1], gate)
        return str((await disconnect(source, "alpha", destination, mode)).warnings)

    async def joined(world: World, gate: Gate) -> str:
        try:
            return str(await world.connect(*PAIRS[1], gate, mode))
        except Unavailable as e:
            return str(e)

    mixed = 0
    for writes in range(5):
        world, said = apart.copy(), list[str]()
        if before:
            await world.connect(*PAIRS[1])
        work = {"connect": joined, "disconnect": parted}
        (other,) = work.keys() - {slow}

        async def meanwhile(world: World = world, said: list[str] = said, other: str = other) -> None:
            said.append(await work[other](world, nothing))  # noqa: B023

        said.append(await work[slow](world, stopping(writes, meanwhile)))
        for reader, owner in (PAIRS[1], PAIRS[1][::-1]):
            users = str(world.apis[owner].get(at("configmaps", names.USERS)))
            if (owner in world.secret(reader, names.PEERS)) != (f"remote-{reader}" in users):
                mixed += 1
                assert "connected at the same time: the same command again looks anew" in said[-1]
    assert mixed or before == (slow == "connect")


@pytest.mark.parametrize("writes", range(4))
async def test_who_is_invited_while_an_authority_is_replaced_has_no_certificate_by_the_old_one(
    apart: World, writes: int
) -> None:
    world, done = apart.copy(), list[bool]()

    async def replace() -> None:
        done.append(await rotated(world, ["alpha"]))

    try:
        answer = decode_offer(await admitted(world, stopping(writes, replace)))
    except Unavailable as e:
        again = "join by a new invitation: `clustermesh invite create --again --to gamma`"
        assert str(e) == f"the authority of alpha was replaced at the same time: {again}"  # noqa: PT017
        assert not done or done == [True]
        assert world.secret("alpha", names.PEERS) == {}
        assert "gamma" not in str(world.apis["alpha"].get(at("configmaps", names.USERS)))
        answer = decode_offer(await admitted(world))
    else:
        assert done in ([], [False])
    (signer,) = read_certificates(world.authority("alpha"), "alpha")
    assert is_signed_by(read_certificates(answer.shown["alpha.etcd-client.crt"].encode(), "shown")[0], signer)
    assert world.secret("alpha", names.PEERS)
    world.check()


async def test_who_is_invited_while_the_api_hangs_uses_the_same_token_again(
    apart: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it has by then stays: a hiccup is no replaced authority."""
    world = apart.copy()
    ask = await invited(world)

    async def hangs(*_: object) -> bool:
        raise Unavailable("429")

    with monkeypatch.context() as broken:
        broken.setattr("clustermesh.joining.inviting.check_unreplaced", hangs)
        with pytest.raises(Unavailable, match="429"):
            await admitted(world, ask=ask)
    assert world.secret("alpha", names.PEERS)
    await admitted(world, ask=ask)
    world.check()


async def test_who_joins_while_its_own_authority_is_replaced_is_told_to_join_again(
    apart: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, again = apart.copy(), "`clustermesh invite create --again --to gamma`"

    async def asked(*_: object) -> bytes:
        answer = await admitted(world)
        await world.rotate(["gamma"])
        return answer

    monkeypatch.setattr("clustermesh.joining.newcomer._asked", asked)
    (site,) = await world.sites(["gamma"])
    token = Token(cluster="alpha", address="192.0.2.1:9443", fingerprint="ab" * 32, id="0123abcd", secret="s" * 43)
    with pytest.raises(Unavailable, match=f"^the authority of gamma was replaced .*: {again}$"):
        await _join(site, token, datetime.now(UTC))


def test_a_folder_in_which_one_was_killed_is_gone_on_with_from_another(
    tmp_path: Path,
    killed_at_every_step: Callable[[Path, Callable[[], object]], Iterator[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    top, shared = tmp_path / "top", create_authority(BEGUN)
    folders = [create(top / name, name, IDS[name], f"https://192.0.2.{IDS[name]}:2379") for name in ("alpha", "beta")]
    for each in folders:
        initialise(each.certs, {"server": server([each.address.host])}, BEGUN, authority=shared)
    connect_folders(*folders, FolderMode.BIDIRECTIONAL, BEGUN)

    def rotate(*order: Context) -> None:
        asyncio.run(rotate_authority([InFolder(each) for each in order], timedelta(0), lambda _: None))

    before, states = trusted(folders[0].certs), 0
    steps = killed_at_every_step(top, lambda: rotate(*folders))
    monkeypatch.setattr(os, "fsync", lambda _: None)
    for _ in steps:
        rotate(*folders[::-1])
        (signer,) = trusted(folders[0].certs)
        assert (signer,) != before
        for each, other in (folders, folders[::-1]):
            assert load_authority(each.certs, BEGUN).certificate == signer
            assert is_signed_by(load_pair(each.certs, "server").certificate, signer)
            held = each.peers / f"{other.name}.etcd-client-ca.crt"
            assert read_certificates(held.read_bytes(), held.name) == (signer,)
            assert is_signed_by(load_pair(each.peers, f"{other.name}.etcd-client").certificate, signer)
        states += not list(top.rglob("rotation-*"))
    assert states > 30
