"""Pods with ports of their node: what stands for each."""

from __future__ import annotations

from typing import Any

import kube
import pytest

from clustermesh.address import parse
from clustermesh.model import HostPorts, LocalService, Port, Protocol
from clustermesh.sources.objects import Ref
from clustermesh.sources.snapshot import Snapshot
from clustermesh.sources.translate import Translator, translate
from clustermesh.wire import local

TCP, UDP = Protocol.TCP, Protocol.UDP
WEB = {"containerPort": 8080, "hostPort": 80}


def pod(*ports: dict[str, Any], **spec: Any) -> dict[str, Any]:
    return kube.pod("web-0", "10.1.0.5", {}, containers=[{}, {"ports": [{"containerPort": 1}, *ports]}], **spec)


def told(manifest: dict[str, Any]) -> tuple[Snapshot, list[str]]:
    snapshot, faults = translate(kube.ALPHA, kube.decode(kube.node("n1", "192.0.2.1"), manifest))
    return snapshot, [fault.sentence for fault in faults]


def one(manifest: dict[str, Any]) -> LocalService:
    snapshot, faults = told(manifest)
    assert faults == []
    return snapshot.services["shop", "web-0.host-ports"]


def test_each_port_leads_from_the_node_to_the_container() -> None:
    found = one(pod(WEB, {"containerPort": 53, "hostPort": 53, "protocol": "UDP", "hostIP": "192.0.2.1"}))
    assert found.host_ports == HostPorts(
        node="n1",
        ports={"80/TCP": Port(protocol=TCP, port=80), "53/UDP@192.0.2.1": Port(protocol=UDP, port=53)},
        addresses={"53/UDP@192.0.2.1": parse("192.0.2.1")},
    )
    ports = {"80/TCP": Port(protocol=TCP, port=8080), "53/UDP@192.0.2.1": Port(protocol=UDP, port=53)}
    assert (found.service.frontends, found.service.backends) == ({}, {parse("10.1.0.5"): ports})
    assert (local.shared(found), local.is_told(found)) == (None, False)
    assert local.decode_service(local.encode_service(found)) == found


@pytest.mark.parametrize("host_ip", ["", "0.0.0.0", "::"])
def test_any_address_is_all_of_them(host_ip: str) -> None:
    found = one(pod({**WEB, "hostIP": host_ip})).host_ports
    assert found is not None
    assert found.addresses == {}


def test_both_families_of_a_pod_are_reached() -> None:
    manifest = pod(WEB)
    manifest["status"]["podIPs"] = [{"ip": "10.1.0.5"}, {"ip": "fd00::5"}]
    assert set(one(manifest).service.backends) == {parse("10.1.0.5"), parse("fd00::5")}


@pytest.mark.parametrize(
    "manifest",
    [
        pod(),
        pod(WEB, hostNetwork=True),
        pod(WEB, nodeName=""),
        {**pod(WEB), "status": {"podIP": "10.1.0.5", "phase": "Succeeded"}},
        {**pod(WEB), "status": {"phase": "Pending"}},
    ],
)
def test_others_have_none(manifest: dict[str, Any]) -> None:
    assert told(manifest)[0].services == {}


def test_a_pod_that_is_not_ready_is_reached_all_the_same() -> None:
    manifest = pod(WEB)
    manifest["status"]["conditions"] = []
    assert one(manifest).host_ports is not None


@pytest.mark.parametrize(
    ("port", "fault"),
    [
        ({"hostPort": 65536}, "spec.containers[1].ports[1].hostPort: 65536"),
        ({"hostPort": -1}, "spec.containers[1].ports[1].hostPort: -1"),
        ({"containerPort": 0}, "spec.containers[1].ports[1].containerPort: 0"),
        ({"protocol": "tcp"}, "spec.containers[1].ports[1].protocol: 'tcp'"),
        ({"hostIP": "127.0.0.1"}, "spec.containers[1].ports[1].hostIP: '127.0.0.1'"),
    ],
)
def test_a_bad_port_is_left_out_with_a_fault(port: dict[str, Any], fault: str) -> None:
    snapshot, (sentence,) = told(pod({**WEB, **port}, {"containerPort": 2, "hostPort": 82}))
    found = snapshot.services["shop", "web-0.host-ports"].host_ports
    assert found is not None
    assert (set(found.ports), ": ".join(sentence.split(": ")[:2])) == ({"82/TCP"}, fault)


def test_it_comes_and_goes_with_its_pod() -> None:
    objects = kube.decode(kube.node("n1", "192.0.2.1"), pod(WEB))
    translator, ref = Translator(kube.ALPHA, objects, selects=False), Ref("Pod", "shop", "web-0")
    name = ("shop", "web-0.host-ports")
    assert translator.apply(dict.fromkeys(objects, 3)).services == {name: 3}
    objects |= kube.decode(pod())
    assert translator.apply({ref: 4}).services == {name: 4}
    assert translator.snapshot.services == {}
    objects |= kube.decode(pod({**WEB, "hostPort": 70000}))
    translator.apply({ref: 5})
    assert len(list(translator.faults())) == 1
    del objects[ref]
    translator.apply({ref: 6})
    assert (translator.snapshot.services, list(translator.faults())) == ({}, [])
