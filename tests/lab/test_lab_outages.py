"""What must survive what, on whole clusters: requests never fail while control planes, etcds and agents come and go.

alpha-control  alpha-1   beta-control  beta-1
     etcd, API server, agent of each: taken away and given back, one by one, under load
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from clustermesh.errors import ClusterMeshError, Refused
from clustermesh.standalone.context import load
from lab import machine, node_spec, promises
from lab.lab import Lab
from lab.waiting import until


@asynccontextmanager
async def no_request_fails(lab: Lab) -> AsyncIterator[None]:
    """Requests of alpha's client to the global service during the block, answered by both clusters at each address of
    it, none lost."""
    load = promises.web_load(lab)
    async with load.running():
        await until(lambda: len(load.traffic.everywhere) == 2, "answers from both clusters")
        yield
        await asyncio.sleep(0.5)
    assert load.traffic.failed == 0, load.traffic
    assert load.traffic.everywhere == {"alpha", "beta"}


@asynccontextmanager
async def without(lab: Lab, name: str, *services: str) -> AsyncIterator[None]:
    """The named services of a machine are stopped (SIGKILL) during the block."""
    home = lab.plan.home(name)
    kept = {service: node_spec.read_services(home)[service] for service in services}
    for service in services:
        machine.stop(home, service)
    await until(lambda: not any(_runs(lab, name, service) for service in services), f"{services} of {name} stopped")
    try:
        yield
    finally:
        for service, spec in kept.items():
            machine.keep(home, service, spec.argv)
        await until(lambda: all(_runs(lab, name, service) for service in services), f"{services} of {name} run")


def _runs(lab: Lab, name: str, service: str) -> bool:
    try:
        return bool(lab.service_pid(name, service))
    except ClusterMeshError:
        return False


async def cluster_state(lab: Lab, node: str, cluster: str) -> str:
    try:
        status = await lab.ask_agent(node, "status")
    except ClusterMeshError:
        return "no agent"
    return next((row["state"] for row in status["clusters"] if row["name"] == cluster), "unknown")


async def is_in_state(lab: Lab, node: str, cluster: str, state: str) -> bool:
    return await cluster_state(lab, node, cluster) == state


async def web_backends(lab: Lab, node: str) -> list[dict[str, Any]]:
    rows = await lab.ask_agent(node, "services")
    return next(row["backends"] for row in rows if row["service"] == "default/web" and row["protocol"] == "TCP")


async def test_a_peers_control_plane_that_dies_is_stale_and_nothing_is_lost(pair: Lab) -> None:
    async with no_request_fails(pair):
        async with without(pair, "beta-control", "etcd", "apiserver"):
            await until(lambda: is_in_state(pair, "alpha-1", "beta", "stale"), "beta is stale")
            assert len(await web_backends(pair, "alpha-1")) == 2
        await until(lambda: is_in_state(pair, "alpha-1", "beta", "fresh"), "beta is fresh")


async def test_an_agent_restarted_while_its_peer_is_unreachable_keeps_the_peers_backends(pair: Lab) -> None:
    before = await web_backends(pair, "alpha-1")
    await until(lambda: _keeps(pair, "alpha-1", "beta"), "what is known of beta is on disk")
    async with no_request_fails(pair):
        async with without(pair, "beta-control", "etcd", "apiserver"):
            await _kill_agent(pair)
            await until(lambda: _is_settled(pair, "alpha-1"), "the agent is ready without its peer")
            assert await cluster_state(pair, "alpha-1", "beta") == "stale"
            assert await web_backends(pair, "alpha-1") == before
        await until(lambda: is_in_state(pair, "alpha-1", "beta", "fresh"), "beta is fresh")


async def test_an_agent_restarted_without_its_own_control_plane_goes_on_with_the_last_state(pair: Lab) -> None:
    before = await web_backends(pair, "alpha-1")
    async with no_request_fails(pair):
        async with without(pair, "alpha-control", "etcd", "apiserver"):
            await _kill_agent(pair)
            await until(lambda: _is_settled(pair, "alpha-1"), "the agent is ready without its etcd")
            assert await web_backends(pair, "alpha-1") == before
        await until(lambda: is_in_state(pair, "alpha-1", "alpha", "fresh"), "alpha is fresh")


async def test_an_agent_that_knows_its_cluster_by_flags_goes_on_where_one_with_a_folder_was(pair: Lab) -> None:
    folder = pair.plan.context("alpha")
    certs = {"trusted-ca-file": "ca.crt", "cert-file": "local.crt", "key-file": "local.key"}
    config: dict[str, Any] = {key: str(folder / "certs" / name) for key, name in certs.items()}
    config["endpoints"] = [load(folder).endpoint]
    (folder / "etcd.config").write_text(yaml.safe_dump(config))
    agent = node_spec.read_services(pair.plan.home("alpha-1"))["agent"].argv[0]
    flags = ["--cluster-name=alpha", "--cluster-id=1", f"--kvstore-opt=etcd.config={folder}/etcd.config"]
    flags += [f"--clustermesh-config={folder}/peers", "--node=alpha-1"]
    async with no_request_fails(pair):
        before = await web_backends(pair, "alpha-1")
        async with without(pair, "alpha-1", "agent"):
            machine.keep(pair.plan.home("alpha-1"), "agent", [agent, *flags])
            await until(lambda: _is_settled(pair, "alpha-1"), "the agent is ready")
            await until(lambda: is_in_state(pair, "alpha-1", "alpha", "fresh"), "alpha is fresh")
            assert await web_backends(pair, "alpha-1") == before
            machine.stop(pair.plan.home("alpha-1"), "agent")
            await until(lambda: not _runs(pair, "alpha-1", "agent"), "it stopped")
        await until(lambda: _is_settled(pair, "alpha-1"), "the agent with the folder is ready")


async def test_an_etcd_that_comes_back_empty_is_filled_again_without_a_gap(pair: Lab) -> None:
    async with no_request_fails(pair):
        async with without(pair, "beta-control", "etcd"):
            await pair.run("beta-control", "sh", "-c", f"rm -rf {pair.plan.context('beta')}/etcd/*")
        await until(lambda: _etcd_has(pair, "beta"), "beta's API server has published again")
        await until(lambda: is_in_state(pair, "alpha-1", "beta", "fresh"), "beta is fresh")
        assert len(await web_backends(pair, "alpha-1")) == 2


async def test_a_corrupt_etcd_is_told_with_what_to_do_and_that_mends_it_without_a_gap(pair: Lab) -> None:
    """What docs/failures.md says to do is what is done here."""
    member = f"{pair.plan.context('beta')}/etcd/member"
    garble = f"for f in {member}/snap/db {member}/wal/*.wal; do head -c 65536 /dev/urandom > $f; done"
    async with no_request_fails(pair):
        async with without(pair, "beta-control", "etcd"):
            await pair.run("beta-control", "sh", "-c", garble)
        await until(lambda: _status_says(pair, "beta-1", "docs/failures.md"), "the status says what to do")
        await until(lambda: is_in_state(pair, "alpha-1", "beta", "stale"), "beta is stale")
        async with without(pair, "beta-control", "etcd"):
            await pair.run("beta-control", "mv", member, f"{member}.corrupt")
        await until(lambda: _etcd_has(pair, "beta"), "beta's API server has published again")
        await until(lambda: is_in_state(pair, "alpha-1", "beta", "fresh"), "beta is fresh")
        await until(lambda: is_in_state(pair, "beta-1", "beta", "fresh"), "beta is fresh at home")
    await until(lambda: _status_says(pair, "beta-1", "1/1 nodes ready"), "beta's agent reports again")


async def test_an_etcd_that_is_stopped_is_told_from_one_that_does_not_run(pair: Lab) -> None:
    pid = pair.service_pid("beta-control", "etcd")
    await pair.run("beta-control", "sh", "-c", f"kill -STOP $(cat /proc/{pid}/task/{pid}/children)")
    try:
        said = "takes connections and does not answer: it is stopped"
        await until(lambda: _status_says(pair, "beta-1", said), "the status says that it is stopped")
    finally:
        await pair.run("beta-control", "sh", "-c", f"kill -CONT $(cat /proc/{pid}/task/{pid}/children)")
    async with without(pair, "beta-control", "etcd"):
        said = "does `clustermesh etcd` run there?"
        await until(lambda: _status_says(pair, "beta-1", said), "the status says that it does not run")
    await until(lambda: is_in_state(pair, "alpha-1", "beta", "fresh"), "beta is fresh")


async def test_authority_is_replaced_and_no_request_fails(pair: Lab) -> None:
    """alpha's, of which beta holds what it signed: its etcd is started again, and beta's agent comes back to it."""
    alpha, beta = (str(pair.plan.context(name)) for name in ("alpha", "beta"))
    before = (Path(alpha) / "certs" / "ca.crt").read_bytes()
    argv = ("-P", "-m", "clustermesh.cli", "certs", "rotate", "--ca", "--settle", "8s")
    begun = set[str]()
    await until(lambda: _has_begun(pair, begun, 1), "etcd runs")
    async with no_request_fails(pair):
        process = await asyncio.create_subprocess_exec(
            sys.executable, *argv, "--context", alpha, "--destination-context", beta
        )
        await until(lambda: _has_begun(pair, begun, 2), "etcd trusts both")
        assert await process.wait() == 0
        await until(lambda: _has_begun(pair, begun, 3), "etcd trusts the new one alone")
        for node in ("alpha-1", "beta-1"):
            await until(lambda node=node: is_in_state(pair, node, "alpha", "fresh"), "alpha is fresh")
        await until(lambda: _etcd_has(pair, "alpha"), "its own nodes read it")
    assert (Path(alpha) / "certs" / "ca.crt").read_bytes() != before


async def _has_begun(lab: Lab, begun: set[str], times: int) -> bool:
    """Whether alpha's etcd was started as often as this while somebody looked; `begun` are its pids."""
    keeper = lab.service_pid("alpha-control", "etcd")
    begun.update((await lab.run("alpha-control", "cat", f"/proc/{keeper}/task/{keeper}/children")).split())
    return len(begun) >= times


async def test_a_wireguard_device_that_hangs_is_red_wherever_one_asks(pair: Lab) -> None:
    each = "for p in /proc/[0-9]*; do read -r c <$p/comm && [ $c = wireguard-go ] && "
    signal_all = each + "kill -{} ${{p#/proc/}}; done; true"
    await pair.run("alpha-1", "sh", "-c", signal_all.format("STOP"))
    try:
        await until(lambda: _status_says(pair, "alpha-control", "does not answer since"), "status is red", seconds=90)
        with pytest.raises(Refused):
            await pair.run("alpha-1", "clustermesh", "node", "status")
        with pytest.raises(Refused):
            await pair.run("alpha-1", "clustermesh", "status")
    finally:
        await pair.run("alpha-1", "sh", "-c", signal_all.format("CONT"))
    await until(lambda: _reaches(pair, "beta"), "beta answers again")
    await until(lambda: _is_green(pair, "alpha-control"), "status is green again", seconds=90)


async def test_a_state_that_cannot_be_saved_is_red_and_nothing_is_lost(pair: Lab) -> None:
    """As on a full disk: where the last good states are kept there is no room for one more byte."""
    folder, files, before = "/var/lib/clustermesh/clusters", {"one-more.yaml": _SERVICE}, await _programmed(pair)
    await pair.run("alpha-1", "mount", "-t", "tmpfs", "-o", "size=4k,nr_inodes=2", "full", folder)
    await pair.run("alpha-1", "sh", "-c", f"head -c 4096 /dev/zero > {folder}/filler || true")
    try:
        async with no_request_fails(pair):
            pair.apply("alpha", files)
            await until(lambda: _status_says(pair, "alpha-control", "is not saved"), "status is red")
    finally:
        await pair.run("alpha-1", "umount", "-l", folder)
    await until(lambda: _is_green(pair, "alpha-control"), "status is green again")
    pair.delete("alpha", *files)
    await until(lambda: _has_programmed(pair, before), "the service is gone again")


async def test_a_node_that_overlaps_anothers_is_red_on_both_sides_and_the_first_one_stays(pair: Lab) -> None:
    node = {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": "greedy"},
        "spec": {"podCIDR": "10.2.1.0/24"},
        "status": {"addresses": [{"type": "InternalIP", "address": "172.20.1.77"}]},
    }
    async with no_request_fails(pair):
        pair.apply("alpha", {"greedy.yaml": node})
        try:
            for where in ("alpha-1", "beta-1"):
                await until(lambda w=where: _status_says(pair, w, "nodes/greedy"), f"{where} says it")
                await until(lambda w=where: _is_red(pair, w), f"{where} is red")
                await until(lambda w=where: _refuses_greedy(pair, w), f"{where} refuses the node")
        finally:
            pair.delete("alpha", "greedy.yaml")
        for where in ("alpha-1", "beta-1"):
            await until(lambda w=where: _is_green(pair, w), f"{where} is green again")


async def _holds_all(lab: Lab) -> bool:
    return await lab.ask_agent("alpha-1", "map_diff") == []


async def _refuses_greedy(lab: Lab, where: str) -> bool:
    listed = await lab.run(where, "clustermesh", "node", "refused")
    return "nodes/greedy" in listed and "10.2.1.0/24" in listed


async def _is_red(lab: Lab, where: str) -> bool:
    return not await _is_green(lab, where)


async def _is_green(lab: Lab, where: str) -> bool:
    try:
        await lab.run(where, "clustermesh", "status")
    except ClusterMeshError:
        return False
    return True


async def test_wireguard_killed_comes_back_and_the_next_requests_reach_the_other_cluster(pair: Lab) -> None:
    await _signal_wireguard(pair, "KILL")
    await until(lambda: _reaches(pair, "beta"), "beta answers through a new tunnel")
    await until(lambda: _holds_all(pair), "alpha-1 holds what it should")


async def test_a_service_is_programmed_while_wireguard_is_stopped(pair: Lab) -> None:
    before = await _programmed(pair)
    await _signal_wireguard(pair, "STOP")
    try:
        pair.apply("alpha", {"one-more.yaml": _SERVICE})
        await until(lambda: _has_programmed(pair, before + 1), "the service is in alpha-1's map")
        await until(lambda: _says(pair, "does not answer"), "status says what hangs")
    finally:
        await _signal_wireguard(pair, "CONT")
        pair.delete("alpha", "one-more.yaml")
    await until(lambda: _has_programmed(pair, before), "the service is gone again")
    problems: list[str] = []
    await until(lambda: _says_nothing(pair, problems), "the device answers again", why=lambda: "; ".join(problems))
    await until(lambda: _holds_all(pair), "alpha-1 holds what it should")


async def test_a_broken_document_is_named_and_the_rest_goes_on(pair: Lab) -> None:
    manifests = pair.plan.context("beta") / "manifests"
    (manifests / "broken.yaml").write_text("kind: Service\nmetadata: {name: [\n")
    try:
        async with no_request_fails(pair):
            await until(lambda: _problem_is_shown(pair), "the API server names the broken file")
    finally:
        (manifests / "broken.yaml").unlink()


async def test_a_cluster_with_a_taken_id_or_overlapping_pods_is_refused_before_anything_is_touched(
    pair: Lab, tmp_path: Path
) -> None:
    twin = tmp_path / "twin"
    for name, number, cidr, sentence in (
        ("twin", 1, "10.77.1.0/24", "id"),
        ("overlap", 7, "10.1.1.0/24", "10.1.1.0/24"),
    ):
        folder = twin / name
        await _host(pair, "init", str(folder), "--name", name, "--id", str(number), "--endpoint", "https://127.0.0.1:9")
        (folder / "manifests" / "node.yaml").write_text(
            f"apiVersion: v1\nkind: Node\nmetadata: {{name: n1}}\nspec: {{podCIDR: {cidr}}}\n"
        )
        with pytest.raises(Refused, match=sentence):
            await _host(
                pair, "connect", "--context", str(pair.plan.context("alpha")), "--destination-context", str(folder)
            )
        assert not (pair.plan.context("alpha") / "peers" / name).exists()


_SERVICE: dict[str, Any] = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": "one-more", "namespace": "default"},
    "spec": {"clusterIP": "10.111.0.77", "ports": [{"name": "http", "port": 80, "protocol": "TCP"}]},
}


async def _signal_wireguard(lab: Lab, name: str) -> None:
    each = f"read -r c <$p/comm && [ $c = wireguard-go ] && kill -{name} ${{p#/proc/}}"
    await lab.run("alpha-1", "sh", "-c", f"for p in /proc/[0-9]*; do {each}; done; true")


async def _programmed(lab: Lab) -> int:
    status = await lab.ask_agent("alpha-1", "status")
    return int(next(target["actual"] for target in status["targets"] if target["name"] == "services"))


async def _has_programmed(lab: Lab, services: int) -> bool:
    return await _programmed(lab) == services


async def _says(lab: Lab, sentence: str) -> bool:
    return any(sentence in problem for problem in (await lab.ask_agent("alpha-1", "status"))["problems"])


async def _says_nothing(lab: Lab, said: list[str]) -> bool:
    said[:] = (await lab.ask_agent("alpha-1", "status"))["problems"]
    return said == []


async def _host(lab: Lab, *arguments: str) -> str:
    return await machine.run([str(machine.bin_folder() / "clustermesh"), *arguments], env=machine.environment())


async def _kill_agent(lab: Lab) -> None:
    old = await lab.kill("alpha-1", "agent")
    await until(lambda: _runs(lab, "alpha-1", "agent") and lab.service_pid("alpha-1", "agent") != old, "a new agent")


async def _keeps(lab: Lab, node: str, cluster: str) -> bool:
    return f"{cluster}.state" in (await lab.run(node, "ls", "/var/lib/clustermesh/clusters")).split()


async def _is_settled(lab: Lab, node: str) -> bool:
    try:
        status = await lab.ask_agent(node, "status")
    except ClusterMeshError:
        return False
    return bool(status["ready"]) and not any(target["pending"] for target in status["targets"])


async def _etcd_has(lab: Lab, cluster: str) -> bool:
    return "API server has published" in await _status(lab, f"{cluster}-1")


async def _status(lab: Lab, where: str) -> str:
    """What `clustermesh status` prints there, whatever is wrong."""
    return await lab.run(where, "sh", "-c", "clustermesh status 2>&1 || true")


async def _status_says(lab: Lab, where: str, sentence: str) -> bool:
    return sentence in await _status(lab, where)


async def _reaches(lab: Lab, cluster: str) -> bool:
    answers = await promises.answers(lab, {"alpha", "beta"}, seconds=0.5)
    return cluster in answers.tcp.clusters and not answers.tcp.failed


async def _problem_is_shown(lab: Lab) -> bool:
    program = "import urllib.request as r; print(r.urlopen('http://127.0.0.1:9880/readyz').read().decode())"
    try:
        return "broken.yaml" in await lab.run("beta-control", "python3", "-c", program)
    except ClusterMeshError:  # 503: not ready again yet after an earlier test
        return False
