"""Every kind of service with real traffic: from a pod whose sockets are not ours, through a socket of ours, and from
outside.

  node 1 (net + mount namespace)                                        the other node
+------------------------------------------------------------+       +--------------------+
|  client 10.1.0.2   s1 10.1.0.3   s2 10.1.0.4    10.1.0.1    |       | far 10.2.0.2       |
|       |                |             |                 eth0 ========== eth0 192.0.2.2   |
|     lxc...           lxc...        lxc...         192.0.2.1 |       | 198.51.100.7: a    |
|                                                             |       |   client of no node|
|                                               1300 bytes ============== narrow 10.3.0.2  |
+------------------------------------------------------------+       +--------------------+
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from threading import get_native_id

import pytest
from bcc_bed import compiled
from ethtool import SUM_WHAT_IS_SENT, switch
from msgspec.structs import replace
from netns_devices import DevicesBed
from netns_large import Lengths, allow, talk
from netns_mesh import MeshNode
from netns_node import TIMEOUT, NetnsNode, join
from netns_services import HERE, Answer, ServicesBed, in_cgroup

from agent import netlink
from agent.bpf import probe
from agent.bpf.bpffs import cgroup2_root, ensure_bpffs
from agent.bpf.layouts import ConfigFlag, Reason
from agent.bpf.links import Mechanism
from agent.bpf.loader import Datapath, constants
from clustermesh.address import parse, parse_prefix
from clustermesh.model import (
    BackendDetail,
    HostPorts,
    LocalService,
    Outside,
    Port,
    Protocol,
    Service,
    ServiceType,
)

TCP, UDP = socket.SOCK_STREAM, socket.SOCK_DGRAM
PORT, NODE_PORT, HOST_PORT = 80, 30080, 8888
LISTENING = 8080
CALLED = {  # by kind: where it is called, of each family
    "ClusterIP": (("10.96.0.1", "fd96::1"), PORT),
    "NodePort": (("192.0.2.1", "2001:db8::1"), NODE_PORT),
    "LoadBalancer": (("203.0.113.5", "2001:db8:5::5"), PORT),
    "externalIP": (("203.0.113.9", "2001:db8:9::9"), PORT),
    "hostPort": (("192.0.2.1", "2001:db8::1"), HOST_PORT),
}
BACKENDS = {  # the name of each, where it runs and its addresses
    "s1": ("s1", ("10.1.0.3", "fd00:10:1::3")),
    "s2": ("s2", ("10.1.0.4", "fd00:10:1::4")),
    "far": ("outside", ("10.2.0.2", "fd00:10:2::2")),
    "narrow": ("outside", ("10.3.0.2", "fd00:10:3::2")),
}
CLIENT = ("10.1.0.2", "fd00:10:1::2")
WORLD = ("198.51.100.7", "2001:db8:7::7")
STRANGER = ("198.51.100.77", "2001:db8:77::7")
LOCAL, ALL = {"s1", "s2"}, {"s1", "s2", "far"}
CGROUP = f"clustermesh-test-services-{os.getpid()}"
MTU_DISCOVER, PMTUDISC_DONT = ((socket.IPPROTO_IP, 10), (socket.IPPROTO_IPV6, 23)), 0
kinds = pytest.mark.parametrize("kind", [TCP, UDP], ids=["TCP", "UDP"])
families = pytest.mark.parametrize("family", [0, 1], ids=["IPv4", "IPv6"])


def ports(number: int) -> dict[str, Port]:
    return {"t": Port(protocol=Protocol.TCP, port=number), "u": Port(protocol=Protocol.UDP, port=number)}


def service(
    name: str, backends: set[str], *, local_only: bool = False, affinity_seconds: int = 0, target: int = LISTENING
) -> LocalService:
    """At all addresses but a host's."""
    addresses = [(each, address) for each in sorted(backends) for address in BACKENDS[each][1]]
    return LocalService(
        service=Service(
            cluster="a",
            cluster_id=1,
            namespace="default",
            name=name,
            frontends={parse(each): ports(PORT) for each in CALLED["ClusterIP"][0]},
            backends={parse(address): ports(target) for _, address in addresses},
        ),
        type=ServiceType.LOAD_BALANCER,
        outside=Outside(
            node_ports=ports(NODE_PORT),
            external_ips=tuple(map(parse, CALLED["externalIP"][0])),
            load_balancer_ips=tuple(map(parse, CALLED["LoadBalancer"][0])),
            local_only=local_only,
        ),
        local_only=local_only,
        affinity_seconds=affinity_seconds,
        details={parse(address): BackendDetail(node=HERE if each in LOCAL else "far") for each, address in addresses},
    )


def host_port() -> LocalService:
    """Of the pod s1."""
    found = Service(
        cluster="a",
        cluster_id=1,
        namespace="default",
        name="pod-s1",
        backends={parse(address): ports(LISTENING) for address in BACKENDS["s1"][1]},
    )
    return LocalService(service=found, host_ports=HostPorts(node=HERE, ports=ports(HOST_PORT)))


BEDS = {
    "libbpf, links, past the stack": ("libbpf", Mechanism.TCX, ConfigFlag.REDIRECT),
    "libbpf, links, by the stack": ("libbpf", Mechanism.TCX, ConfigFlag(0)),
    "libbpf, filters, past the stack": ("libbpf", Mechanism.CLSACT, ConfigFlag.REDIRECT),
    "libbpf, filters, by the stack": ("libbpf", Mechanism.CLSACT, ConfigFlag(0)),
    "BCC, links, past the stack": ("bcc", Mechanism.TCX, ConfigFlag.REDIRECT),
}


@pytest.fixture(scope="module", params=BEDS.values(), ids=BEDS)
def bed(
    machine: None, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[ServicesBed]:
    loader, mechanism, flags = request.param
    folder = tmp_path_factory.mktemp("services")
    bpffs, pins, root = folder / "bpf", folder / "bpf" / "clustermesh", cgroup2_root()
    if root is None:
        pytest.skip("cgroup2 is missing")
    ensure_bpffs(bpffs)
    with ExitStack() as closing:
        closing.callback(subprocess.run, ["umount", str(bpffs)], check=True, timeout=TIMEOUT)
        (root / CGROUP).mkdir(exist_ok=True)
        closing.callback((root / CGROUP).rmdir)
        outside, node = NetnsNode(2), MeshNode(1, folder / "node1")
        closing.callback(outside.close)
        closing.callback(node.close)
        join(node, outside)
        for address in (*BACKENDS["far"][1], *WORLD, *STRANGER):
            outside.run(f"ip addr add {address} dev lo")
        node.run(f"ip link add narrow mtu 1300 type veth peer name narrow mtu 1300 netns {outside.call(get_native_id)}")
        node.run("ip link set narrow up")
        outside.run("ip link set narrow up")
        for address in BACKENDS["narrow"][1]:
            outside.run(f"ip addr add {address} dev narrow" + (" nodad" if ":" in address else ""))
            node.run(f"ip route add {address} dev narrow")
        closing.callback(Datapath.remove, pins)
        patched = closing.enter_context(pytest.MonkeyPatch.context())
        patched.setattr(probe, "has_tcx", lambda: mechanism is Mechanism.TCX)
        cache = compiled(folder / "bcc", node.call(constants)) if loader == "bcc" else None
        devices = DevicesBed(node, pins, flags, cache)
        closing.callback(devices.stop)
        devices.datapath.attach_sockets(root / CGROUP)
        for pod in ("client", "s1", "s2"):
            devices.add(pod)
        made = ServicesBed(devices, outside)
        closing.callback(made.close)
        for name, (where, addresses) in BACKENDS.items():
            made.listen(name, where, addresses, LISTENING)
        made.servers.start()
        for name in ("far", "narrow"):
            for address in BACKENDS[name][1]:
                made.wait_for("client", (address, LISTENING))
        yield made


def at(called: str, family: int) -> tuple[str, int]:
    addresses, port = CALLED[called]
    return addresses[family], port


def heard(
    bed: ServicesBed, where: str, called: str, kind: int, family: int, expected: set[str], source: str = ""
) -> set[Answer]:
    """What a client hears until each of those expected has answered once, or a hundred calls."""
    ask, found = bed.asks(where, at(called, family), kind, source), set[Answer]()
    for _ in range(100):
        found.add(ask())
        if {each.server for each in found} >= expected:
            break
    return found


@kinds
@families
@pytest.mark.parametrize("called", CALLED)
@pytest.mark.parametrize("policy", ["Cluster", "Local"])
def test_a_pod_whose_sockets_are_not_ours_reaches_every_backend_that_its_service_gives_to_pods(
    bed: ServicesBed, called: str, policy: str, family: int, kind: int
) -> None:
    served = (service("web", ALL, local_only=policy == "Local"), host_port())
    bed.serve(*served)
    expected = {"s1"} if called == "hostPort" else LOCAL if (called, policy) == ("ClusterIP", "Local") else ALL
    found = heard(bed, "client", called, kind, family, expected)
    assert found == {Answer(each, CLIENT[family]) for each in expected}, "each sees the pod itself"
    bed.withdraw(*served)


@kinds
@families
@pytest.mark.parametrize("called", CALLED)
def test_a_socket_of_ours_reaches_every_backend(bed: ServicesBed, called: str, family: int, kind: int) -> None:
    served = (service("web", ALL), host_port())
    bed.serve(*served)
    expected = {"s1"} if called == "hostPort" else ALL
    of = (socket.AF_INET, socket.AF_INET6)[family]
    clients = in_cgroup(CGROUP, lambda: [bed.socket_in("client", of, kind) for _ in range(40)])
    found = {bed.ask(client, at(called, family)) for client in clients}
    assert found == {Answer(each, CLIENT[family]) for each in expected}
    bed.withdraw(*served)


@kinds
@families
def test_a_pod_that_is_its_own_backend_sees_the_node(bed: ServicesBed, family: int, kind: int) -> None:
    served = service("web", {"s1"})
    bed.serve(served)
    assert bed.asks("s1", at("ClusterIP", family), kind)() == Answer(
        "s1", (bed.node.address, bed.node.address6)[family]
    )
    bed.withdraw(served)


def port_of(pod: str, vips: tuple[str, str], port: int) -> LocalService:
    """A cluster IP for one port of a pod."""
    addresses = CLIENT if pod == "client" else BACKENDS[pod][1]
    found = Service(
        cluster="a",
        cluster_id=1,
        namespace="default",
        name=f"of-{pod}",
        frontends={parse(each): ports(PORT) for each in vips},
        backends={parse(address): ports(port) for address in addresses},
    )
    return LocalService(service=found)


@families
def test_two_that_call_each_other_by_services_hear_who_calls(bed: ServicesBed, family: int) -> None:
    """Each one's calls have the ends of answers to the other one's."""
    vips = {"s1": ("10.96.0.11", "fd96::11"), "client": ("10.96.0.12", "fd96::12")}
    own = {"s1": (BACKENDS["s1"][1][family], 7001), "client": (CLIENT[family], 7002)}
    served = [port_of(pod, vips[pod], own[pod][1]) for pod in own]
    bed.serve(*served)
    sockets = {pod: bed.socket_in(pod, (socket.AF_INET, socket.AF_INET6)[family], UDP) for pod in own}
    for pod, each in sockets.items():
        each.bind(own[pod])
    for caller, called in (("s1", "client"), ("client", "s1"), ("s1", "client"), ("client", "s1")):
        sockets[caller].sendto(b"?", (vips[called][family], PORT))
        assert sockets[called].recvfrom(9)[1][:2] == own[caller]
    for each in sockets.values():
        each.close()
    bed.withdraw(*served)


@kinds
@families
@pytest.mark.parametrize("called", ["ClusterIP", "NodePort", "LoadBalancer", "externalIP"])
def test_a_service_without_backends_refuses_a_pod_at_once(
    bed: ServicesBed, called: str, family: int, kind: int
) -> None:
    served = service("web", set())
    bed.serve(served)
    with pytest.raises(ConnectionRefusedError):
        bed.asks("client", at(called, family), kind)()
    bed.withdraw(served)


@kinds
@families
def test_a_client_stays_with_its_backend(bed: ServicesBed, family: int, kind: int) -> None:
    served = service("web", ALL, affinity_seconds=60)
    bed.serve(served)
    ask = bed.asks("client", at("ClusterIP", family), kind)
    assert len({ask() for _ in range(20)}) == 1
    bed.withdraw(served)
    bed.serve(service("web", ALL))
    assert len(heard(bed, "client", "ClusterIP", kind, family, ALL)) == 3
    bed.withdraw(served)


@families
def test_backends_that_services_share_are_not_taken_for_one_another_by_a_port_used_again(
    bed: ServicesBed, family: int
) -> None:
    served = service("web", {"s1"})
    bed.serve(served)
    of = (socket.AF_INET, socket.AF_INET6)[family]
    for called in ("ClusterIP", "LoadBalancer", "externalIP", "NodePort", "ClusterIP") * 4:
        client = bed.socket_in("client", of, TCP)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        client.bind((CLIENT[family], 45000))
        assert bed.ask(client, at(called, family)) == Answer("s1", CLIENT[family])
    bed.withdraw(served)


@kinds
@families
@pytest.mark.parametrize("called", sorted(CALLED.keys() - {"ClusterIP"}))
@pytest.mark.parametrize("policy", ["Cluster", "Local"])
def test_a_client_outside_reaches_every_backend_that_its_service_gives_to_those(
    bed: ServicesBed, called: str, policy: str, family: int, kind: int
) -> None:
    served = (service("web", ALL, local_only=policy == "Local"), host_port())
    bed.serve(*served)
    expected = {"s1"} if called == "hostPort" else LOCAL if policy == "Local" else ALL
    found = heard(bed, "outside", called, kind, family, expected, WORLD[family])
    assert {each.server for each in found} == expected
    seen = {each.server: each.client for each in found}
    nodes = (bed.node.address, bed.node.address6)[family]
    assert seen == {each: nodes if each == "far" else WORLD[family] for each in expected}, "where replies find back"
    bed.withdraw(*served)


@pytest.fixture(scope="module")
def world(bed: ServicesBed) -> int:
    """Somebody answers outside at this port, at addresses that are no part of the mesh."""
    bed.listen("world", "outside", WORLD, 7000)
    return 7000


@pytest.mark.skipif(shutil.which("nft") is None, reason="nft is missing: apt-get install nftables")
@kinds
@families
def test_what_pods_send_out_of_the_mesh_may_be_masqueraded_and_nothing_else_is(
    bed: ServicesBed, world: int, family: int, kind: int, tmp_path: Path
) -> None:
    """By the rules that docs/nodes.md has."""
    page = (Path(__file__).parents[2] / "docs" / "nodes.md").read_text()
    (rules := tmp_path / "rules.nft").write_text(page.partition("<<'EOF'\n")[2].partition("    EOF\n")[0])
    to, far = (WORLD[family], world), (BACKENDS["far"][1][family], LISTENING)
    asks = {to_whom: bed.asks("client", to_whom, kind) for to_whom in (to, far)}
    assert [asks[each]().client for each in (to, far)] == [CLIENT[family]] * 2
    served = service("web", ALL)
    bed.serve(served)
    bed.node.run(f"nft -f {rules}")
    try:
        nodes = (bed.node.address, bed.node.address6)[family]
        assert asks[to]() == Answer("world", nodes)
        assert asks[far]() == Answer("far", CLIENT[family])
        found = heard(bed, "client", "ClusterIP", kind, family, ALL)
        assert found == {Answer(each, CLIENT[family]) for each in ALL}
        for called in ("NodePort", "LoadBalancer"):
            seen = {
                each.server: each.client for each in heard(bed, "outside", called, kind, family, ALL, WORLD[family])
            }
            assert seen == {each: nodes if each == "far" else WORLD[family] for each in ALL}
    finally:
        bed.node.run("nft delete table inet pods_outside")
        bed.withdraw(served)


@families
def test_a_cluster_ip_is_nothing_to_those_outside(bed: ServicesBed, family: int) -> None:
    served = service("web", {"s1"})
    bed.serve(served)
    before = bed.translated()
    client = bed.socket_in("outside", (socket.AF_INET, socket.AF_INET6)[family], UDP)
    client.sendto(b"?", at("ClusterIP", family))
    assert bed.asks("outside", at("NodePort", family), UDP)().server == "s1"
    assert bed.translated() == before + 1, "of the two the second"
    bed.withdraw(served)


@kinds
@families
@pytest.mark.parametrize("called", ["NodePort", "LoadBalancer", "externalIP"])
@pytest.mark.parametrize("policy", ["Cluster", "Local"])
def test_a_service_without_backends_refuses_those_outside_at_once(
    bed: ServicesBed, called: str, policy: str, family: int, kind: int
) -> None:
    """Of traffic policy Local, where another node has one."""
    served = service("web", set() if policy == "Cluster" else {"far"}, local_only=policy == "Local")
    bed.serve(served)
    with pytest.raises(ConnectionRefusedError):
        bed.asks("outside", at(called, family), kind)()
    bed.withdraw(served)


@pytest.fixture
def sums_made_here(bed: ServicesBed) -> Iterator[None]:
    """The devices complete no checksums of what they send: the kernel does so before."""
    devices = [name for _, name in bed.node.call(socket.if_nameindex) if name.startswith(("eth0", "lxc"))]
    for on in (False, True):
        for device in devices:
            bed.node.call(lambda device=device, on=on: switch(device, SUM_WHAT_IS_SENT, on))
        if not on:
            yield


@kinds
@families
@pytest.mark.parametrize(("where", "called"), [("client", "ClusterIP"), ("outside", "NodePort")])
def test_who_is_refused_is_told_by_a_device_that_completes_no_checksum(
    bed: ServicesBed, sums_made_here: None, where: str, called: str, family: int, kind: int
) -> None:
    """The answer is made of a packet whose own checksum nobody had completed yet."""
    served = service("web", set())
    bed.serve(served)
    with pytest.raises(ConnectionRefusedError):
        bed.asks(where, at(called, family), kind)()
    bed.withdraw(served)


@kinds
@families
def test_only_who_is_in_the_source_ranges_reaches_a_load_balancer(bed: ServicesBed, family: int, kind: int) -> None:
    web = service("web", {"s1"})
    ranges = tuple(map(parse_prefix, ("198.51.100.0/29", "2001:db8:7::/48")))
    served = replace(web, outside=replace(web.outside, source_ranges=ranges))
    bed.serve(served)
    for source, reaches in ((WORLD[family], True), (STRANGER[family], False)):
        for called in ("LoadBalancer", "externalIP"):
            if reaches or called == "externalIP":
                answer = bed.asks("outside", at(called, family), kind, source)()
                assert answer == Answer("s1", source)
            else:
                assert bed.is_silent("outside", at(called, family), kind, source, at("externalIP", family))
    bed.withdraw(served)


@kinds
@families
def test_a_client_outside_stays_with_its_backend(bed: ServicesBed, family: int, kind: int) -> None:
    served = service("web", ALL, affinity_seconds=60)
    bed.serve(served)
    for source in (WORLD[family], STRANGER[family]):
        ask = bed.asks("outside", at("NodePort", family), kind, source)
        assert len({ask() for _ in range(15)}) == 1
    bed.withdraw(served)


@pytest.mark.timeout(30, func_only=True)
@families
def test_the_size_that_a_way_takes_is_told_by_a_device_that_completes_no_checksum(
    bed: ServicesBed, sums_made_here: None, family: int
) -> None:
    test_what_the_way_to_the_backend_is_too_narrow_for_arrives_when_it_is_sent_again(bed, family, 1400)


@pytest.mark.timeout(30)
@families
@pytest.mark.parametrize("size", [5, 1200, 1400, 3000])
def test_what_the_way_to_the_backend_is_too_narrow_for_arrives_when_it_is_sent_again(
    bed: ServicesBed, family: int, size: int
) -> None:
    """Also from a client that lets others cut what it sends: 3000 bytes come as fragments of 1500."""
    served = service("web", {"narrow"})
    bed.serve(served)
    before = bed.devices.datapath.counters()[Reason.DROP_TOO_LARGE]
    bed.outside.run(f"ip {('-4', '-6')[family]} route flush cache")
    with bed.socket_in("outside", (socket.AF_INET, socket.AF_INET6)[family], UDP) as client:
        client.setsockopt(*MTU_DISCOVER[family], PMTUDISC_DONT)
        client.bind((WORLD[family], 0))
        client.connect(at("NodePort", family))
        client.send(bytes(size))
        if size > 1200:
            while bed.devices.datapath.counters()[Reason.DROP_TOO_LARGE] == before:
                time.sleep(0.01)
            client.send(bytes(size))
        assert client.recv(100).decode().split()[0] == "narrow"
    assert (bed.devices.datapath.counters()[Reason.DROP_TOO_LARGE] > before) == (size > 1200)
    bed.withdraw(served)


@pytest.fixture(scope="module")
def lengths(bed: ServicesBed) -> Iterator[Lengths]:
    """All devices take packets of more than 64 KiB from now on, for the tests after these, too."""
    for pod in ("client", "s1", "s2"):
        bed.node.call(lambda pod=pod: netlink.in_netns(Path("/run/netns", pod), lambda: allow("eth0")))
    bed.outside.call(lambda: allow("eth0"))
    for _, device in bed.node.call(socket.if_nameindex):
        if device.startswith(("eth0", "lxc")):
            bed.node.call(lambda device=device: allow(device))
    with closing(Lengths(bed.node)) as made:
        yield made


@families
@pytest.mark.parametrize(
    ("where", "called", "backend"),
    [("client", "ClusterIP", "s2"), ("client", "ClusterIP", "far"), ("outside", "NodePort", "s1"),
     ("outside", "NodePort", "far")],
)  # fmt: skip
def test_packets_of_more_than_64_kib_are_translated(
    bed: ServicesBed, lengths: Lengths, where: str, called: str, backend: str, family: int
) -> None:
    served = service("web", {backend}, target=9100)
    bed.serve(served)
    before = bed.devices.datapath.counters()
    of, (there, addresses) = (socket.AF_INET, socket.AF_INET6)[family], BACKENDS[backend]
    client, server = bed.socket_in(where, of, TCP), bed.socket_in(there, of, TCP)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind((addresses[family], 9100))
    server.listen()
    if where == "outside":
        client.bind((WORLD[family], 0))
    lengths.largest()
    talk(client, at(called, family), server)
    assert lengths.largest() > 1 << 16, "no such packet came"
    after = bed.devices.datapath.counters()
    assert {reason for reason in Reason if "DROP" in reason.name and after[reason] > before[reason]} == set()
    bed.withdraw(served)
