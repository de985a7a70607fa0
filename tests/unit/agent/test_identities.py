"""What a node remembers of its pods' identities: the numbers that nobody could work out from their labels."""

from __future__ import annotations

from agent.identities import Unusual
from agent.plan.attached import AttachedPod, AttachedPods
from clustermesh.address import parse
from clustermesh.mesh.state import MeshState
from clustermesh.model import Cluster, Endpoint, Identity, Label, Node, NodeAddress
from clustermesh.wire.numbering import usual_number

ALPHA = Cluster(name="alpha", id=1)
HOST = parse("192.0.2.1")


def labels(app: str) -> tuple[Label, ...]:
    return (Label(source="k8s", key="app", value=app),)


def say(state: MeshState, ip: str, app: str, number: int, host: str = "192.0.2.1") -> None:
    state.put("alpha", "identities", number, Identity(id=number, labels=labels(app)))
    state.put("alpha", "endpoints", parse(ip), Endpoint(ip=parse(ip), identity=number, host_ip=parse(host)))


def test_only_unusual_numbers_of_pods_that_are_or_were_here_are_remembered() -> None:
    state, attached = MeshState("alpha"), AttachedPods()
    addresses = (NodeAddress(type="InternalIP", ip=HOST),)
    state.put("alpha", "nodes", "n1", Node(cluster="alpha", cluster_id=1, name="n1", addresses=addresses))
    usual = usual_number(labels("usual"), ALPHA)
    say(state, "10.1.0.5", "usual", usual)
    say(state, "10.1.0.6", "restored", 65540)
    say(state, "10.1.1.7", "elsewhere", 65541, host="192.0.2.2")
    unusual = Unusual(state, ALPHA, "n1", attached)
    assert [each.id for each in unusual()] == [65540]
    say(state, "10.1.0.8", "comes", 65542)
    assert [each.id for each in unusual()] == [65540]
    attached.attached(AttachedPod(container_id="c", ifname="eth0", addresses=(parse("10.1.0.8"), parse("10.1.0.5"))))
    assert unusual() == (Identity(id=65540, labels=labels("restored")), Identity(id=65542, labels=labels("comes")))
    state.remove("alpha", "endpoints", parse("10.1.0.6"))
    assert [each.id for each in unusual()] == [65542]
