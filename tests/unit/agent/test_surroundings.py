"""What a machine lives by: what is made of what the kernel and the files say."""

from __future__ import annotations

import asyncio
import socket

import pytest

from agent import surroundings
from agent.surroundings import Gateway, Network, Surroundings
from clustermesh.address import parse, parse_prefix, single
from clustermesh.errors import Unavailable
from clustermesh.mesh.authority import Ground, Place
from clustermesh.mesh.peer_files import PeerFile

ROUTES = """Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0
eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0
*\t0001020A\t00000000\t0201\t0\t0\t4096\t00FFFFFF\t0\t0\t0
eth1\t0000140A\t0100140A\t0003\t0\t0\t0\t0000FFFF\t0\t0\t0
"""
ROUTES6 = f"""fd{"0" * 30} 40 {"0" * 32} 00 {"0" * 32} 00000100 00000001 00000000 00000001     eth0
{"0" * 32} 00 {"0" * 32} 00 fd{"0" * 29}1 00000400 00000002 00000000 00000003     eth0
"""


def test_gateways_are_the_next_hops_of_both_families() -> None:
    assert surroundings.parse_gateways(ROUTES, ROUTES6) == [
        Gateway(parse("192.0.2.1"), "eth0"),
        Gateway(parse("10.20.0.1"), "eth1"),
        Gateway(parse("fd00::1"), "eth0"),
    ]
    assert surroundings.parse_gateways("Iface", "") == []


def test_networks_are_no_peers_and_the_way_out_is_nobodys_to_cover() -> None:
    networks = [
        Network("eth0", parse("192.0.2.7"), 120),
        Network("docker0", parse("172.17.0.1"), 112),
        Network("lo", parse("10.1.1.1"), 128),
        Network("eth0", parse("fe80::1"), 64),
    ]
    gateways = [Gateway(parse("192.0.2.1"), "eth0"), Gateway(parse("fe80::9"), "eth0")]
    assert set(surroundings.local_places(networks, gateways)) == {
        Place(single(parse("192.0.2.1")), "a gateway of this machine", lifeline=True),
        Place(single(parse("192.0.2.7")), "this machine's address on eth0", lifeline=True, ports=()),
        Place(parse_prefix("192.0.2.0/24"), "the network on eth0"),
        Place(single(parse("172.17.0.1")), "this machine's address on docker0", ports=()),
        Place(parse_prefix("172.17.0.0/16"), "the network on docker0"),
        Place(single(parse("10.1.1.1")), "this machine's address on lo", ports=()),
    }


def test_resolvers_are_read_as_resolv_conf_is() -> None:
    text = (
        "# nameserver 9.9.9.9\nnameserver 10.96.0.10\nsearch example.com\nnameserver fe80::1%eth0\nnameserver\noptions"
    )
    assert {place.prefix for place in surroundings.resolver_places(text)} == {
        single(parse("10.96.0.10")),
        single(parse("fe80::1")),
    }


def test_the_api_server_is_where_the_environment_says() -> None:
    (place,) = surroundings.api_server_places({"KUBERNETES_SERVICE_HOST": "10.96.0.1"})
    assert place == Place(single(parse("10.96.0.1")), "the Kubernetes API server")
    assert surroundings.api_server_places({}) == []


def peers() -> dict[str, PeerFile]:
    return {
        "beta": PeerFile(name="beta", endpoints=("https://192.0.2.5:2379", "https://[fd00::5]:2379")),
        "gamma": PeerFile(
            name="gamma", endpoints=("https://gamma.test:2379",), host_aliases={"gamma.test": ("192.0.2.6",)}
        ),
    }


async def test_the_etcds_of_all_clusters_are_lifelines() -> None:
    ground = await Surroundings("alpha", ["https://192.0.2.4:2379"], peers, "cm-wg0").read()
    etcds = {(place.cluster, place.prefix) for place in ground.places if place.cluster}
    assert etcds == {
        ("alpha", single(parse("192.0.2.4"))),
        ("beta", single(parse("192.0.2.5"))),
        ("beta", single(parse("fd00::5"))),
        ("gamma", single(parse("192.0.2.6"))),
    }
    assert ground.cut_off_by(parse_prefix("192.0.2.4/31")) is not None


async def test_what_cannot_be_read_is_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    around = Surroundings("alpha", ["https://192.0.2.4:2379"], peers, "cm-wg0")
    before = await around.read()

    def fail(*_args: object, **_kwargs: object) -> None:
        raise Unavailable("netlink is away")

    monkeypatch.setattr(surroundings.netlink, "connect", fail)
    monkeypatch.setattr(around, "_peers", fail)
    assert (await around.read()).places == before.places


async def test_one_cluster_that_cannot_be_looked_up_moves_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def look_up(host: str) -> list[object]:
        raise UnicodeError(host)

    monkeypatch.setattr(surroundings, "_look_up", look_up)
    files = peers() | {"bad": PeerFile(name="bad", endpoints=("https://bad.test:2379",))}
    ground = await Surroundings("alpha", ["https://192.0.2.4:2379"], lambda: files, "cm-wg0").read()
    assert {place.cluster for place in ground.places} >= {"alpha", "beta", "gamma"}


async def test_files_that_cannot_be_read_at_first_leave_the_own_etcd(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> dict[str, PeerFile]:
        raise ValueError("whatever")

    ground = await Surroundings("alpha", ["https://192.0.2.4:2379"], fail, "cm-wg0").read()
    assert {place.cluster for place in ground.places} >= {"alpha"}


async def test_a_cluster_that_comes_is_told_of_at_once_and_what_stays_is_not_told_again() -> None:
    files = peers()
    around = Surroundings("alpha", ["https://192.0.2.4:2379"], lambda: dict(files), "cm-wg0")
    told, new = list[Ground](), asyncio.Event()

    def stand_on(ground: Ground) -> None:
        told.append(ground)
        new.set()

    watching = asyncio.create_task(around.keep(stand_on, await around.read()))
    try:
        del files["gamma"]
        around.look_again()
        async with asyncio.timeout(60):
            await new.wait()
    finally:
        watching.cancel()
    assert {place.cluster for place in told[0].places} == {"", "alpha", "beta"}
    assert len(told) == 1


async def test_a_route_that_moves_asks_for_no_name_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """This agent's own routes are heard, too, and each of hundreds of clusters has a name."""
    asked, gateways, told = list[str](), list[Gateway](), asyncio.Queue[Ground]()

    def look_up(host: str) -> list[object]:
        asked.append(host)
        return [(0, 0, 0, "", ("192.0.2.9", 0))]

    kernel, heard = socket.socketpair()
    heard.setblocking(False)
    for name, value in {
        "_look_up": look_up,
        "_read_routes": lambda: (gateways, frozenset({"eth0"})),
        "_listen": lambda: heard,
        "_PAUSE": 0,
    }.items():
        monkeypatch.setattr(surroundings, name, value)
    file = PeerFile(name="beta", endpoints=("https://etcd.beta.test:2379",))
    around = Surroundings("alpha", ["https://etcd.alpha.test:2379"], lambda: {"beta": file}, "cm-wg0")
    watching = asyncio.create_task(around.keep(told.put_nowait, await around.read()))
    try:
        everyone = ["etcd.alpha.test", "etcd.beta.test"]
        assert sorted(asked) == everyone
        for number in range(3):
            gateways.append(Gateway(parse(f"192.0.2.{number}"), "eth9"))
            kernel.send(b"a route")
            ground = await told.get()
            assert ground.is_at(parse(f"192.0.2.{number}"))
            assert {place.cluster for place in ground.is_at(parse("192.0.2.9"))} == {"alpha", "beta"}
        assert sorted(asked) == everyone
        gateways.clear()
        around.look_again()
        await told.get()
        assert sorted(asked) == sorted(everyone * 2)
    finally:
        watching.cancel()
        kernel.close()
