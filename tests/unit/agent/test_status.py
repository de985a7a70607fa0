"""What the agent says of itself: ready only when it is, every fault named, and no bigger than etcd takes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_kernel import Bed, make_node
from fake_wireguard import numbered_key
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from agent import listing
from agent.api import answer
from agent.bpf.probe import Feature
from agent.listing import in_order
from agent.metrics import StatusCollector
from agent.status import Status
from clustermesh.address import parse
from clustermesh.errors import Unavailable
from clustermesh.mesh.authority import Authority, Limits
from clustermesh.mesh.session import Session, State
from clustermesh.model import Endpoint, Identity, Label, Stamp
from clustermesh.why.explain import explain
from clustermesh.why.subject import parse_subject
from clustermesh.wire import agent_report


@pytest.fixture
def bed() -> Bed:
    return Bed()


def status(
    bed: Bed,
    pod_problems: dict[str, str] | None = None,
    unsavable: dict[str, str] | None = None,
    rival: str = "",
    unwritable: str = "",
) -> Status:
    verbs = dict.fromkeys(("add", "delete", "check", "status", "collect_garbage"))
    pods = SimpleNamespace(problems=pod_problems or {}, unwritable=unwritable, **verbs)
    bed.state.unsavable = unsavable or {}
    made = Status(bed.options, bed.state, bed.domains, bed.own, bed.peers, pods)  # type: ignore[arg-type]
    made.rival = lambda: rival
    return made


def problems(
    bed: Bed, pod_problems: dict[str, str] | None = None, unsavable: dict[str, str] | None = None
) -> list[str]:
    return list(map(str, status(bed, pod_problems, unsavable).problems()))


def told(rows: Iterable[dict[str, Any] | None]) -> list[dict[str, Any]]:
    return [row for row in rows if row is not None]


async def test_the_folder_of_the_cluster_is_told_for_those_who_ask_only_the_agent(bed: Bed) -> None:
    assert status(bed).summary()["context"] == "/nowhere"


async def test_ready_once_the_kernel_holds_the_whole_state(bed: Bed) -> None:
    bed.add_node("alpha", 1)
    assert not status(bed).summary()["ready"]
    assert status(bed).not_ready() == "waiting for the first whole state"
    await bed.step()
    assert status(bed).summary()["ready"]
    assert status(bed).not_ready() == ""
    assert problems(bed) == []


async def test_not_ready_says_what_is_waited_for(bed: Bed) -> None:
    bed.own.brain.session = Session(error="etcd at https://192.0.2.1:2379: connection refused")
    assert "connection refused" in status(bed).not_ready()
    bed.own.brain.session = Session(state=State.FRESH)
    bed.add_node("alpha", 1)
    bed.peers.synced_once, bed.peers.problems = False, ["/etc/clustermesh/peers: Permission denied"]
    await bed.step()
    assert "Permission denied" in status(bed).not_ready()


async def test_a_node_without_its_device_is_not_ready_whatever_it_was_before(bed: Bed) -> None:
    bed.add_node("alpha", 1)
    await bed.step()
    bed.underlay.fault = Unavailable("wireguard-go is not there")
    bed.domains.tunnels.look_after()
    await bed.domains.tunnels.step()
    assert status(bed).not_ready() == "wireguard-go is not there"
    assert not status(bed).summary()["ready"]
    assert problems(bed) == ["node set-up: wireguard-go is not there; mend that, it is tried again"]


async def test_a_node_nobody_knows_is_not_ready_even_where_there_is_nothing_to_do(bed: Bed) -> None:
    await bed.step()
    assert status(bed).not_ready() == "Node n1 is not in cluster alpha: make it one, or name another with --node"


async def test_every_kind_of_problem_is_one_sentence(bed: Bed) -> None:
    bed.add_node("alpha", 1)
    bed.tables["backends"].full = 0
    bed.add_web("10.1.1.5")
    local = bed.state.views["alpha"].local_services[("n", "web")]
    bed.say("alpha", "local_services", ("n", "web2"), local)
    bed.peers.problems = ["'gamma': endpoints: must be a list"]
    await bed.step()
    found = problems(bed, {"abc.json": "endpoint file: truncated"})
    assert [sentence.split(":")[0] for sentence in found] == ["pods", "peers folder", "backends", "10.96.0.1"]
    assert found[2].startswith("backends: 1 entries not applied: backends does not take it; ")
    assert "n/web, n/web2" in found[3]


async def test_the_tables_say_who_is_behind_what(bed: Bed) -> None:
    bed.connect("beta")
    bed.add_node("alpha", 1)
    bed.add_node("beta", 2)
    bed.add_web("10.1.1.5")
    bed.add_remote_web("beta", "10.2.2.6")
    bed.say("beta", "identities", 131073, Identity(id=131073, labels=(Label(source="k8s", key="app", value="db"),)))
    bed.say(
        "beta",
        "endpoints",
        parse("10.2.2.6"),
        Endpoint(ip=parse("10.2.2.6"), identity=131073, host_ip=parse("192.0.2.2"), key=255),
    )
    await bed.step()
    (service,) = told(status(bed).lb_listing.services())
    assert service["service"] == "n/web"
    assert [(b["address"], b["cluster"]) for b in service["backends"]] == [("10.1.1.5", "alpha"), ("10.2.2.6", "beta")]
    assert [(b["address"], b["frontends"]) for b in told(status(bed).listing.backends())] == [
        ("10.1.1.5", 1),
        ("10.2.2.6", 1),
    ]
    entry = next(row for row in told(status(bed).listing.ipcache()) if row["prefix"] == "10.2.2.6/32")
    assert (entry["labels"], entry["node"], entry["encrypted"]) == (["k8s:app=db"], "192.0.2.2", True)


async def test_a_table_that_changes_while_it_is_told_is_told_to_its_end(bed: Bed) -> None:
    bed.connect("beta")
    bed.add_node("alpha", 1)
    bed.add_node("beta", 2)
    bed.add_web("10.1.1.5", "10.1.1.6")
    addresses = [f"10.2.2.{number}" for number in range(1, 9)]
    for each in addresses:
        bed.say("beta", "endpoints", parse(each), Endpoint(ip=parse(each), identity=131073, host_ip=parse("192.0.2.2")))
    bed.state.refuse("beta", "nodes/x", "bad")
    await bed.step()
    here, lb = status(bed).listing, status(bed).lb_listing
    tellings = [here.ipcache(), here.backends(), lb.services(), lb.bpf_lb(), here.refused()]
    begun = [next(rows) for rows in tellings]
    bed.add_web("10.1.1.7")
    bed.say(
        "beta",
        "endpoints",
        parse("10.2.2.9"),
        Endpoint(ip=parse("10.2.2.9"), identity=131073, host_ip=parse("192.0.2.2")),
    )
    bed.state.remove("beta", "endpoints", parse("10.2.2.5"))
    bed.state.refuse("beta", "nodes/y", "bad")
    await bed.step()
    rest = [told(rows) for rows in tellings]
    hosts = [row["prefix"] for row in told([begun[0], *rest[0]]) if row["prefix"].endswith("/32")]
    assert set(hosts) >= {f"{each}/32" for each in addresses if each != "10.2.2.5"}
    assert hosts == sorted(hosts)
    assert [row["prefix"] for row in told(here.ipcache()) if "10.2.2.9" in row["prefix"]] == ["10.2.2.9/32"]


@given(st.lists(st.binary(max_size=3)), st.integers(1, 5))
def test_rows_are_in_order_and_sorted_in_parts(keys: list[bytes], run: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(listing, "_RUN", run)
        told = list(in_order(keys))
    assert [each for each in told if each is not None] == sorted(keys)
    assert told.count(None) == -(-len(keys) // run)


async def test_entries_that_are_long_in_being_written_are_a_problem(bed: Bed) -> None:
    bed.add_node("alpha", 1)
    bed.connect("beta")
    await bed.step()
    assert problems(bed) == []
    taken = bed.tables["routes"].upsert
    begun, let_go = asyncio.Event(), asyncio.Event()

    async def slow(entries: Mapping[Any, Any]) -> None:
        begun.set()
        await let_go.wait()
        await taken(entries)

    bed.tables["routes"].upsert = slow  # type: ignore[method-assign]
    bed.add_node("beta", 2)
    bed.domains.wake()
    writing = asyncio.create_task(bed.domains.network.step())
    await begun.wait()
    assert problems(bed) == [], "it has only begun"
    pending = bed.domains.network.routes.pending_size
    assert bed.domains.network.stepping_since is not None
    bed.domains.network.stepping_since -= 100.0
    (said,) = [each for each in problems(bed) if "being written" in each]
    assert said.startswith(f"routes: being written: {pending} entries are still to go since 1")
    let_go.set()
    await writing
    await bed.step()
    assert problems(bed) == []


async def test_what_finds_no_room_is_not_to_be_reported_and_a_bug_is(bed: Bed) -> None:
    bed.add_node("alpha", 1)
    bed.add_web("10.1.1.5")
    plan, fault = bed.domains.services.plan, Unavailable("it needs 1 more; fewer services make room")

    def fail(_item: tuple[str, str]) -> None:
        raise fault

    bed.domains.services.plan = fail  # type: ignore[method-assign]
    await bed.step()
    assert problems(bed) == [f"services: n/web: {fault}; it is planned again by itself"]
    fault = ZeroDivisionError("x")  # type: ignore[assignment]
    bed.add_web("10.1.1.6")
    await bed.step()
    (said,) = problems(bed)
    assert said.endswith("; it is planned again by itself, please report it")
    bed.domains.services.plan = plan  # type: ignore[method-assign]
    bed.add_web("10.1.1.7")
    await bed.step()
    assert problems(bed) == []


async def test_the_tunnels_are_named_by_their_nodes(bed: Bed) -> None:
    bed.add_node("alpha", 1)
    bed.add_node("beta", 2)
    bed.add_node("beta", 3, wireguard_public_key="")
    await bed.step()
    found = await status(bed).encrypt()
    assert [(t["node"], t["public_key"]) for t in found["tunnels"]] == [("beta/n2", numbered_key(2))]
    assert list(found["without_tunnel"]) == ["beta/n3"]


async def test_the_map_diff_reads_the_kernel_itself(bed: Bed) -> None:
    bed.add_node("alpha", 1)
    bed.add_web("10.1.1.5")
    await bed.step()
    assert await status(bed).map_diff() == []
    bed.tables["ipcache"].held[parse("10.9.9.9")] = "foreign"
    bed.tables["backends"].held.clear()
    assert [(row["target"], row["kernel"]) for row in await status(bed).map_diff()] == [
        ("ipcache", "foreign"),
        ("backends", ""),
    ]


async def test_the_summary_of_a_large_and_hostile_mesh_is_small_enough_for_etcd(bed: Bed) -> None:
    bed.add_node("alpha", 1)
    for number in range(10_000):
        bed.say(
            "beta",
            "nodes",
            f"n{number}",
            make_node("beta", 2, name=f"n{number}", pod_cidrs=(), addresses=(), wireguard_public_key=""),
        )
    bed.connect("beta")
    for number in range(2000):
        bed.state.refuse("beta", f"{number} " + "x" * 215, "y" * 1000)
    web = (bed.add_web(), bed.state.views["alpha"].local_services[("n", "web")])[1]
    for number in range(5000):
        bed.say("alpha", "local_services", ("n", f"web{number}"), web)
    await bed.step()
    summary, (said, nodes) = status(bed).summary(), status(bed).report()
    assert len(agent_report.encode(said)) < 5000
    assert nodes == 1
    beta = next(cluster for cluster in summary["clusters"] if cluster["name"] == "beta")
    assert beta["refused"] == 2000
    assert summary["encryption"]["nodes_without_tunnel"] == 10_000


async def test_metrics_are_the_status(bed: Bed) -> None:
    bed.connect("beta")
    bed.add_node("alpha", 1)
    await bed.step()
    samples = {
        (s.name, tuple(s.labels.values())): s.value for m in StatusCollector(status(bed)).collect() for s in m.samples
    }
    assert samples["clustermesh_agent_ready", ()] == 1
    assert samples["cilium_clustermesh_remote_clusters", ()] == 1
    assert samples["cilium_clustermesh_remote_cluster_readiness_status", ("beta",)] == 1
    bed.peers.readers["beta"].brain.session = Session(state=State.STALE)
    samples = {
        (s.name, tuple(s.labels.values())): s.value for m in StatusCollector(status(bed)).collect() for s in m.samples
    }
    assert samples["cilium_clustermesh_remote_cluster_readiness_status", ("beta",)] == 0


async def test_refused_entries_are_counted_by_cluster_and_reason(bed: Bed) -> None:
    bed.connect("beta")
    bed.add_node("alpha", 1)
    bed.state.refuse("beta", "cilium/state/x", "is no key of Cilium's")
    await bed.step()
    samples = {
        tuple(s.labels.values()): s.value
        for m in StatusCollector(status(bed)).collect()
        for s in m.samples
        if s.name == "clustermesh_refused_entries"
    }
    assert samples == {("alpha", ""): 0, ("beta", "garbled"): 1}


async def test_what_the_kernel_lacks_is_said_with_what_to_do(bed: Bed) -> None:
    features = (
        Feature("tcx", False, False, "devices take no links", "use Linux 6.6 or later"),
        Feature("bpf", True, True, "bpf(2) loads programs", ""),
    )
    bed.domains.node = bed.node._replace(features=features)
    first, second, *rest = await status(bed).features()
    assert first == {
        "name": "tcx",
        "state": "degraded",
        "says": "devices take no links",
        "why": "use Linux 6.6 or later",
    }
    assert second == {"name": "bpf", "state": "native", "says": "bpf(2) loads programs", "why": ""}
    assert all(each["says"] and bool(each["why"]) == (each["state"] != "native") for each in rest)


async def test_a_wireguard_device_that_does_not_answer_is_a_problem_until_it_does(bed: Bed) -> None:
    bed.device.silent_since = 1700000000.0
    (problem,) = problems(bed)
    assert "does not answer since 22:13:20 UTC" in problem
    bed.device.silent_since = None
    assert problems(bed) == []


async def test_what_is_refused_is_told_by_reason_with_the_first_names_and_listed_whole(bed: Bed) -> None:
    bed.add_node("alpha", 1)
    bed.connect("beta")
    for number in range(170):
        bed.state.refuse("beta", f"cilium/state/x{number}", "is no key of Cilium's")
    await bed.step()
    (problem,) = problems(bed)
    assert problem.startswith("170 entries of beta are refused and not used (garbled): cilium/state/x0, ")
    assert "is no key of Cilium's; have them corrected in beta" in problem
    assert len(told(status(bed).listing.refused())) == 170
    row = {"cluster": "beta", "entry": "cilium/state/x0", "reason": "garbled", "why": "is no key of Cilium's"}
    assert told(status(bed).listing.refused())[0] == row


async def test_another_agent_of_this_nodes_name_is_a_problem_with_what_to_do(bed: Bed) -> None:
    rival = "another agent says that it is Node n1"
    (problem,) = status(bed, rival=rival).problems()
    assert str(problem) == f"{rival}; stop one of them, or give it the --node that it is"
    assert not problem.shared


async def test_a_disk_that_takes_no_logs_and_no_pods_is_a_problem(bed: Bed) -> None:
    bed.device.unlogged = "/var/lib/clustermesh/wireguard-go.log: Read-only file system"
    log, pods = status(bed, unwritable="/var/lib/clustermesh/endpoints: Read-only file system").problems()
    assert str(log).startswith("the wireguard-go of fake0 has no log: /var/lib/clustermesh/wireguard-go.log: Read-only")
    assert str(pods).startswith("no pod can start or end on this node: /var/lib/clustermesh/endpoints: Read-only")
    assert "make it writable" in str(pods)


async def test_a_table_that_is_full_is_told_with_how_many_had_no_room_apart_from_what_else_is_refused(bed: Bed) -> None:
    bed.add_node("alpha", 1)
    bed.connect("beta")
    bed.state.authorize(Authority(name="beta", limits=Limits(keys={"identities": 2})))
    for number in range(44):
        bed.state.put("beta", "identities", 131072 + number, Identity(id=131072 + number, labels=()))
    bed.state.refuse("beta", "cilium/state/x", "is no key of Cilium's")
    await bed.step()
    full, garbled = problems(bed)
    assert full.startswith("beta has more than 2 identities, which is the limit: 42 identities are not used (limit); ")
    assert garbled.startswith("1 entry of beta is refused and not used (garbled): cilium/state/x: ")
    assert bed.state.refusals("beta").counts == {"garbled": 1, "limit": 42}
    for number in range(2):
        bed.state.remove("beta", "identities", 131072 + 2 + number)
    assert bed.state.refusals("beta").counts["limit"] == 40


async def test_a_state_that_cannot_be_saved_is_a_problem(bed: Bed) -> None:
    full = "[Errno 28] No space left on device: '/var/lib/clustermesh/last-good'"
    (problem,) = problems(bed, unsavable={"beta": full, "alpha": full})
    assert problem.startswith("the last good state of alpha, beta is not saved: [Errno 28] No space left on device")
    assert "make room there" in problem


async def test_what_was_kept_and_cannot_be_read_is_a_problem(bed: Bed) -> None:
    bed.peers.lost_files = [Path("/s/clusters/beta.state")]
    (problem,) = problems(bed)
    assert problem.startswith("what was kept of cluster beta cannot be read, or is older than the kernel's tables: /s")


async def test_a_node_that_no_tunnel_leads_to_is_a_problem(bed: Bed) -> None:
    bed.add_node("alpha", 1)
    bed.add_node("beta", 3, wireguard_public_key="")
    await bed.step()
    (problem,) = problems(bed)
    assert problem.startswith("Node beta/n3 has no WireGuard key")
    assert "clustermesh node encrypt status" in problem


async def test_why_a_backend_is_in_the_kernel_and_when_each_hop_saw_it(bed: Bed) -> None:
    bed.connect("beta")
    bed.add_node("alpha", 1)
    bed.add_node("beta", 2)
    bed.add_web("10.1.1.5")
    local = bed.state.views["alpha"].local_services["n", "web"]
    bed.say("alpha", "local_services", ("n", "web"), local, 5)
    bed.add_remote_web("beta", "10.2.2.6", revision=7)
    bed.propagation.stamped(("beta", ("n", "web")), 7, Stamp(observed=1_000_000_000, published=2_000_000_000))
    await bed.step()
    facts = await status(bed).why("n/web")
    assert facts.services[0].frontends[0].kernel == ("10.1.1.5:80 alpha", "10.2.2.6:80 beta")
    told = explain(parse_subject("n/web"), facts)
    assert told.used
    seen = {(hop.hop, hop.cluster): hop.seen.at for hop in told.hops}
    assert seen["source", "beta"] == 1.0
    assert 1.0 < (seen["agent", "beta"] or 0) <= (seen["kernel", "alpha"] or 0)


async def test_why_a_node_without_a_key_keeps_its_backends_from_being_reached(bed: Bed) -> None:
    bed.connect("beta")
    bed.add_node("alpha", 1)
    bed.add_node("beta", 2, wireguard_public_key="")
    bed.add_web()
    bed.add_remote_web("beta", "10.2.2.6")
    await bed.step()
    told = explain(parse_subject("10.2.2.6"), await status(bed).why("10.2.2.6"))
    assert not told.used
    assert any("has no WireGuard key yet" in each.why for each in told.findings)


async def test_why_is_answered_on_the_socket_and_refuses_what_is_no_subject(bed: Bed) -> None:
    bed.add_node("alpha", 1)
    await bed.step()
    methods = status(bed).methods()
    reply = await answer(b'{"method": "why", "params": {"subject": "10.1.1.5"}}', methods)
    assert reply["result"].address.around[0].name == "n1"
    refused = await answer(b'{"method": "why", "params": {"subject": "web"}}', methods)
    assert "did you mean default/web?" in refused["error"]["message"]


async def test_readiness_says_all_that_it_waits_for_and_what_is_wrong(bed: Bed) -> None:
    bed.connect("beta", State.CONNECTING)
    bed.peers.readers["beta"].brain.session = Session(error="connection refused")
    bed.add_node("alpha", 1)
    bed.peers.problems = ["gamma: no file"]
    ready, text = status(bed).readiness()
    assert not ready
    assert "waiting: the first whole state\n" in text
    assert "waiting: cluster beta is connecting: connection refused\n" in text
    assert "problem: peers folder: gamma: no file" in text
    bed.peers.problems = []
    bed.connect("beta")
    await bed.step()
    assert status(bed).readiness() == (True, "ok")


async def test_no_moment_is_told_for_the_kernel_where_one_of_the_clusters_came_with_a_list(bed: Bed) -> None:
    bed.connect("beta")
    bed.add_node("alpha", 1)
    bed.add_node("beta", 2)
    bed.add_web("10.1.1.5")
    local = bed.state.views["alpha"].local_services["n", "web"]
    bed.say("alpha", "local_services", ("n", "web"), local, 5)
    await bed.step()
    (kernel,) = [hop for hop in (await status(bed).why("n/web")).hops if hop.hop == "kernel"]
    assert kernel.seen.at
    bed.add_remote_web("beta", "10.2.2.6")
    await bed.step()
    (kernel,) = [hop for hop in (await status(bed).why("n/web")).hops if hop.hop == "kernel"]
    assert kernel.says == "10.1.1.5:80 alpha, 10.2.2.6:80 beta"
    assert kernel.seen.at is None


async def test_of_many_services_that_cannot_be_planned_the_first_are_named_and_all_are_counted(bed: Bed) -> None:
    bed.add_node("alpha", 1)
    bed.add_web("10.1.1.5")
    await bed.step()
    local = bed.state.views["alpha"].local_services[("n", "web")]
    for number in range(21):
        service = replace(local.service, name=f"bad{number:02}", frontends={parse("10.96.0.2"): None})
        bed.say("alpha", "local_services", ("n", f"bad{number:02}"), replace(local, service=service))
        await bed.step()
        said = problems(bed)
        assert len(said) == min(number + 1, 20) + (number == 20)
    assert said[0] == "21 items could not be planned, of which the first 20 are named"
