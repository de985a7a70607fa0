"""What a downgrade leaves the agent of layout v1, which found nothing changed that it had to write anew."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest
from fake_wireguard import FakeDevice
from msgspec.structs import replace

from agent import api
from agent.older import downgrade, last_good_v1
from agent.older.downgrade import keep_ipv4_only
from agent.wireguard.peer import Peer, sort_allowed_ips
from clustermesh.address import parse, parse_prefix
from clustermesh.mesh import last_good
from clustermesh.mesh.view import View
from clustermesh.model import (
    Affinity,
    ClusterConfig,
    Endpoint,
    LocalService,
    Node,
    NodeAddress,
    Port,
    Protocol,
    Service,
)

_PORTS = {"": Port(protocol=Protocol.UDP, port=53)}
_SERVICE = Service(
    cluster="beta",
    cluster_id=2,
    namespace="n",
    name="s",
    frontends={parse("10.97.0.10"): _PORTS, parse("fd00::97"): _PORTS},
    backends={parse("10.2.0.1"): _PORTS},
)
_NODE = Node(
    cluster="beta",
    cluster_id=2,
    name="b1",
    addresses=(NodeAddress(type="InternalIP", ip=parse("172.20.0.1")),),
    pod_cidrs=tuple(map(parse_prefix, ("10.2.0.0/24", "10.2.4.0/24", "fd00::/64"))),
    health_ips=(parse("fd00::2"),),
    wireguard_public_key="key",
)
_CIDR = parse_prefix("10.3.0.0/24")
_VIEW = View(
    nodes={"b1": _NODE},
    services={("n", "s"): _SERVICE},
    local_services={("n", "s"): LocalService(service=_SERVICE, is_global=True)},
    endpoints={
        parse("10.2.0.1"): Endpoint(ip=parse("10.2.0.1"), identity=7),
        _CIDR: Endpoint(ip=_CIDR.address, prefix_length=_CIDR.length, identity=2, host_ip=parse("172.20.0.1")),
    },
)


def test_what_the_older_agent_kept_is_taken_over_and_nothing_else_is_touched(tmp_path: Path) -> None:
    config = ClusterConfig(id=2, synced_canaries=True)
    last_good.save(tmp_path, "beta", last_good_v1.encode(config, _VIEW))
    last_good.save(tmp_path, "gamma", last_good.encode(ClusterConfig(id=3), _VIEW))
    last_good.save(tmp_path, "delta", b"garbage")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert last_good_v1.take_over(tmp_path) == ["beta"]
    found = last_good.load(tmp_path, "beta")
    assert found is not None
    assert (found.config, found.view) == (config, _VIEW)
    assert all((tmp_path / name).read_bytes() == before[name] for name in ("gamma.state", "delta.state"))
    assert last_good_v1.take_over(tmp_path) == []
    assert last_good_v1.take_over(tmp_path / "nowhere") == []


def test_an_entry_that_is_none_costs_the_older_agents_state_nothing_else() -> None:
    state = msgspec.msgpack.decode(last_good_v1.encode(ClusterConfig(id=2), View(nodes={"b1": _NODE})))
    bad = dict(state["view"]["nodes"]["b1"])
    state["view"]["nodes"]["b2"] = bad | {"ipv4_alloc_cidr": "nowhere"}
    state["view"]["nodes"]["b3"] = bad | {"encryption_key": "many"}
    state["view"]["endpoints"] = {"nowhere": {"ip": "nowhere"}}
    found = last_good_v1.decode(msgspec.msgpack.encode(state))
    assert found == (ClusterConfig(id=2), View(nodes={"b1": _NODE}))


Tables = dict[str, msgspec.Raw]


def rewritten(folder: Path, table: str, keys: type = str) -> Any:
    """A table of the state as it is on disk after the downgrade was prepared."""
    last_good.save(folder, "beta", last_good.encode(ClusterConfig(id=2), _VIEW))
    assert last_good_v1.rewrite(folder, "alpha") == ["beta"]
    kept = msgspec.msgpack.decode((folder / "beta.state").read_bytes(), type=Tables)
    assert msgspec.msgpack.decode(kept["format"]) == last_good_v1.FORMAT
    return msgspec.msgpack.decode(msgspec.msgpack.decode(kept["view"], type=Tables)[table], type=dict[keys, Any])  # type: ignore[valid-type]


def test_a_nodes_prefixes_are_written_by_family(tmp_path: Path) -> None:
    node = rewritten(tmp_path, "nodes")["b1"]
    assert node["addresses"] == [{"type": "InternalIP", "ip": "172.20.0.1"}]
    assert (node["ipv4_alloc_cidr"], node["ipv6_alloc_cidr"]) == ("10.2.0.0/24", "fd00::/64")
    assert node["ipv4_secondary_alloc_cidrs"] == ["10.2.4.0/24"]
    assert (node["ipv4_health_ip"], node["ipv6_health_ip"]) == ("", "fd00::2")
    assert not {"pod_cidrs", "health_ips", "ingress_ips"} & node.keys()


def test_services_and_endpoints_are_written_by_the_text_of_their_addresses(tmp_path: Path) -> None:
    service = rewritten(tmp_path, "services", tuple[str, str])["n", "s"]
    assert set(service["frontends"]) == {"10.97.0.10", "fd00::97"}
    assert service["backends"] == {"10.2.0.1": {"": {"protocol": "UDP", "port": 53}}}
    assert rewritten(tmp_path, "local_services", tuple[str, str])["n", "s"]["service"] == service
    endpoints = rewritten(tmp_path, "endpoints")
    assert (endpoints["10.2.0.1"]["ip"], endpoints["10.2.0.1"]["host_ip"]) == ("10.2.0.1", "")
    assert endpoints["10.3.0.0/24"]["prefix_length"] == 24


def test_own_services_are_all_among_those_for_agents_alone(tmp_path: Path) -> None:
    private = LocalService(service=replace(_SERVICE, name="private"), affinity=Affinity.LOCAL)
    unshared = replace(_SERVICE, name="unshared", shared=False)
    told = {("n", "s"): _SERVICE, ("n", "private"): _SERVICE, ("n", "unshared"): unshared}
    view = View(services=told, local_services={("n", "private"): private})
    last_good.save(tmp_path, "beta", last_good.encode(ClusterConfig(id=2), view))
    assert last_good_v1.rewrite(tmp_path, "beta") == ["beta"]
    found = last_good_v1.decode((tmp_path / "beta.state").read_bytes())
    assert found is not None
    assert found[1].services == {}
    assert found[1].local_services == {
        ("n", "s"): LocalService(service=_SERVICE, is_global=True),
        ("n", "private"): private,
    }


def test_a_state_that_cannot_be_read_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "beta.state").write_bytes(b"garbage")
    assert last_good_v1.rewrite(tmp_path, "beta") == []
    assert (tmp_path / "beta.state").read_bytes() == b"garbage"


def test_it_is_refused_while_an_agent_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = ["--context", "--bpffs", "--state-dir", "--run-dir"]
    with api.alone(tmp_path, tmp_path), pytest.raises(SystemExit) as ended:
        downgrade.main([each for option in folders for each in (option, str(tmp_path))])
    assert ended.value.code == 1
    assert "agent.lock: stop it first" in capsys.readouterr().err


def test_peers_lose_their_ipv6_networks_and_nobody_is_written_twice() -> None:
    key = "mMn4Hwj4+PCqFgAUFOpy+xa3QVOKuyF3/2rnAuw+4i0="
    cidrs = sort_allowed_ips(map(parse_prefix, ("10.2.0.0/24", "fd00::/64")))
    device = FakeDevice()

    async def narrowed() -> None:
        await device.set_peers({key: Peer(public_key=key, endpoint=None, port=0, allowed_ips=cidrs)})
        await keep_ipv4_only(device)
        await keep_ipv4_only(device)

    asyncio.run(narrowed())
    assert {held: state.allowed_ips for held, state in device.states.items()} == {key: (parse_prefix("10.2.0.0/24"),)}
    assert [key in write for write in device.writes] == [True, False]
