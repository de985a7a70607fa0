"""Clusters joined and taken apart in real Kubernetes APIs: what is written, what is not, and who gets through by it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml
from chart_bed import named, rendered
from click.testing import CliRunner
from etcd_flags import QUICK
from joined_bed import Cluster
from kube_bed import KubeBed
from ports import free_port
from state_sink import StateSink

from certs.check import check_leaf, read_certificates, read_pair
from clustermesh.address import parse_prefix
from clustermesh.cli import main
from clustermesh.errors import ClusterMeshError, Refused
from clustermesh.joining.connect import Site, Wanted, connect, disconnect, read_site
from clustermesh.joining.connections import list_connections
from clustermesh.joining.holders import hold_secrets
from clustermesh.joining.links import Mode
from clustermesh.joining.status import read_status
from clustermesh.kube.rbac import Rule, cluster_role
from clustermesh.mesh.peer_files import read_peers
from clustermesh.mesh.reader import ClusterReader
from clustermesh.mesh.session import State
from clustermesh.mesh.shared_clients import client_of
from clustermesh.mesh.tables import peer_tables
from clustermesh.standalone.connect import Outcome
from clustermesh.store.local import LocalEtcd
from clustermesh.store.tls import Tls

STATUS = ["access_information", "agents", "cluster", "clusters", "connectivity", "deployment", "encryption", "errors"]
STATUS += ["etcd", "kvstoremesh", "nodes", "ok", "service", "version"]
NEVER_SEEN = {"configured": 0, "connected": 0}
NOW = datetime.now(UTC)
AFAR = Wanted(unreached=True)  # no etcd runs


@pytest.fixture
def alpha(bed: KubeBed, namespace: str) -> Cluster:
    return Cluster(bed, namespace, "alpha", 1, free_port())


@pytest.fixture
def beta(other_bed: KubeBed, namespace: str) -> Cluster:
    return Cluster(other_bed, namespace, "beta", 2, free_port())


@asynccontextmanager
async def sites(*clusters: Cluster) -> AsyncIterator[list[Site]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(each.site()) for each in clusters]


async def join(first: Cluster, *others: Cluster, wanted: Wanted = AFAR, now: datetime = NOW) -> Outcome:
    async with sites(first, *others) as (source, *destinations):
        return await connect(source, destinations, wanted, now)


async def test_two_clusters_are_joined_once_and_the_second_time_nothing_is_written(
    alpha: Cluster, beta: Cluster
) -> None:
    for each in (alpha, beta):
        each.install()
    assert len((await join(alpha, beta)).done) == 4
    for reader, owner in ((alpha, beta), (beta, alpha)):
        secret = reader.data("secrets", "cilium-clustermesh")
        assert sorted(secret) == [owner.name, *(f"{owner.name}.etcd-client{e}" for e in ("-ca.crt", ".crt", ".key"))]
        entry = yaml.safe_load(secret[owner.name])
        assert entry["endpoints"] == [f"https://{owner.name}.mesh.cilium.io:{owner.port}"]
        assert entry["cert-file"] == f"/var/lib/cilium/clustermesh/{owner.name}.etcd-client.crt"
        users = yaml.safe_load(owner.data("configmaps", "clustermesh-remote-users")["users.yaml"])
        assert users == {"users": [{"name": f"remote-{reader.name}", "role": "remote"}]}
    before = alpha.versions(), beta.versions()
    assert (await join(alpha, beta)).done == []
    assert (await join(beta, alpha)).done == []
    assert (alpha.versions(), beta.versions()) == before


async def test_what_expires_soon_is_issued_again_and_nothing_else_is_touched(alpha: Cluster, beta: Cluster) -> None:
    for each in (alpha, beta):
        each.install()
    await join(alpha, beta)
    before, users = alpha.data("secrets", "cilium-clustermesh"), beta.versions()["configmaps/clustermesh-remote-users"]
    assert (
        len((await join(alpha, beta, wanted=Wanted(mode=Mode.UNICAST, unreached=True), now=NOW + timedelta(345))).done)
        == 1
    )
    after = alpha.data("secrets", "cilium-clustermesh")
    changed = {key for key in after if after[key] != before[key]}
    assert changed == {"beta.etcd-client.crt", "beta.etcd-client.key"}
    assert beta.versions()["configmaps/clustermesh-remote-users"] == users


async def test_with_a_mirror_agents_are_led_to_the_copies_in_their_own_etcd(alpha: Cluster, beta: Cluster) -> None:
    alpha.install(mirrored=True)
    beta.install()
    await join(alpha, beta)
    agents, mirror = (alpha.data("secrets", f"cilium-{name}") for name in ("clustermesh", "kvstoremesh"))
    assert list(agents) == ["beta"]
    told = yaml.safe_load(agents["beta"])
    assert told["endpoints"] == [f"https://clustermesh-apiserver.{alpha.namespace}.svc:{alpha.port}"]
    assert told["key-file"] == "/var/lib/cilium/clustermesh/local-etcd-client.key"
    assert yaml.safe_load(mirror["beta"])["endpoints"] == [f"https://beta.mesh.cilium.io:{beta.port}"]
    assert len(mirror) == 4
    before = alpha.versions()
    assert (await join(alpha, beta)).done == []
    assert alpha.versions() == before
    async with sites(alpha, beta) as (source, destination):
        await disconnect(source, "beta", destination, Mode.BIDIRECTIONAL)
    assert [alpha.data("secrets", f"cilium-{name}") for name in ("clustermesh", "kvstoremesh")] == [{}, {}]


async def test_clusters_of_one_authority_show_what_they_show_to_everybody(alpha: Cluster, beta: Cluster) -> None:
    for name in ("ca.crt", "ca.key"):
        (beta.folder.certs / name).write_bytes((alpha.folder.certs / name).read_bytes())
    from certs.folder import initialise
    from certs.names import cluster_leaves

    initialise(beta.folder.certs, cluster_leaves("beta", ["127.0.0.1"]), NOW)
    for each in (alpha, beta):
        each.install()
    await join(alpha, beta)
    secret = alpha.data("secrets", "cilium-clustermesh")
    assert list(secret) == ["beta"]
    assert yaml.safe_load(secret["beta"])["cert-file"] == "/var/lib/cilium/clustermesh/common-etcd-client.crt"


async def test_disconnect_leaves_nothing_and_a_second_run_changes_nothing(alpha: Cluster, beta: Cluster) -> None:
    for each in (alpha, beta):
        each.install()
    await join(alpha, beta)
    async with sites(alpha, beta) as (source, destination):
        assert len((await disconnect(source, "beta", destination, Mode.BIDIRECTIONAL)).done) == 4
    for each in (alpha, beta):
        assert each.data("secrets", "cilium-clustermesh") == {}
        assert yaml.safe_load(each.data("configmaps", "clustermesh-remote-users")["users.yaml"]) == {"users": []}
    before = alpha.versions(), beta.versions()
    async with sites(alpha, beta) as (source, destination):
        assert (await disconnect(source, "beta", destination, Mode.BIDIRECTIONAL)).done == []
    assert (alpha.versions(), beta.versions()) == before


async def test_a_dead_cluster_is_left_by_name(alpha: Cluster, beta: Cluster) -> None:
    for each in (alpha, beta):
        each.install()
    await join(alpha, beta)
    async with sites(alpha) as (source,):
        outcome = await disconnect(source, "beta", None, Mode.BIDIRECTIONAL)
        assert "nothing was changed in beta" in outcome.warnings[0]
        with pytest.raises(Refused, match="not connected to gamma"):
            await disconnect(source, "gamma", None, Mode.BIDIRECTIONAL)


async def test_what_was_done_is_said_where_the_other_half_fails(alpha: Cluster, beta: Cluster) -> None:
    for each in (alpha, beta):
        each.install()
    await join(alpha, beta)
    users = {"apiVersion": "v1", "kind": "ConfigMap"}
    meta = {"metadata": {"name": "clustermesh-remote-users", "namespace": alpha.namespace}}
    async with sites(alpha) as (source,):
        alpha.bed.merge(users | meta, {"data": {"users.yaml": "[]"}})
        with pytest.raises(Refused, match=r"done before: alpha no longer reads beta .* goes on from there"):
            await disconnect(source, "beta", None, Mode.BIDIRECTIONAL)
    assert alpha.data("secrets", "cilium-clustermesh") == {}


async def test_an_interrupted_connect_is_completed_by_the_same_command(alpha: Cluster, beta: Cluster) -> None:
    for each in (alpha, beta):
        each.install()
    await join(alpha, beta)
    whole = alpha.data("secrets", "cilium-clustermesh"), beta.data("secrets", "cilium-clustermesh")
    alpha.bed.ask("DELETE", f"/api/v1/namespaces/{alpha.namespace}/secrets/cilium-clustermesh")
    beta.bed.ask("DELETE", f"/api/v1/namespaces/{beta.namespace}/configmaps/clustermesh-remote-users")
    assert len((await join(alpha, beta)).done) == 2
    assert alpha.data("secrets", "cilium-clustermesh").keys() == whole[0].keys()
    assert beta.data("secrets", "cilium-clustermesh") == whole[1]
    assert b"remote-alpha" in beta.data("configmaps", "clustermesh-remote-users")["users.yaml"]


async def test_a_cluster_with_an_etcd_that_is_not_the_charts_reads_others_and_says_how_it_is(
    alpha: Cluster, beta: Cluster, bed: KubeBed
) -> None:
    endpoints = list(bed.etcd.endpoints)
    told = rendered({"etcd": {"enabled": True, "ssl": False, "endpoints": endpoints}})
    alpha.install(mirrored=True, etcd_config=named(told, "ConfigMap", "cilium-config")["data"]["etcd-config"])
    beta.install()
    at = f"/api/v1/namespaces/{alpha.namespace}"
    certs = [f"secrets/clustermesh-apiserver-{name}-cert" for name in ("server", "remote", "local")]
    for path in ("services/clustermesh-apiserver", "secrets/cilium-ca", *certs):
        bed.ask("DELETE", f"{at}/{path}")
    with pytest.raises(ExceptionGroup) as caught:
        await join(alpha, beta)
    assert "alpha is not reached from outside: its etcd is told by http://" in str(caught.value.exceptions[0])
    done = (await join(alpha, beta, wanted=Wanted(mode=Mode.UNICAST, unreached=True))).done
    assert [each.partition(" (")[0] for each in done] == [
        "beta lets alpha in as the user remote-alpha",
        f"alpha reads beta at 127.0.0.1:{beta.port}",
        "alpha reads the copies of beta in its own etcd",
    ]
    assert yaml.safe_load(alpha.data("secrets", "cilium-clustermesh")["beta"])["endpoints"] == endpoints
    async with alpha.site() as site:
        status = await read_status(site)
        assert (await hold_secrets(site)).expected == {}
    assert status["access_information"] == endpoints
    assert not any(each in str(status["errors"]) for each in ("says nothing of the nodes", "Service", "Secret"))


async def test_who_connects_at_the_same_time_loses_no_entry_of_the_other(alpha: Cluster, bed: KubeBed) -> None:
    others = [Cluster(bed, f"{alpha.namespace}-{number}", f"c{number}", number, free_port()) for number in range(2, 10)]
    for each in (alpha, *others):
        each.install()
    await asyncio.gather(*(join(alpha, each) for each in others))
    secret = alpha.data("secrets", "cilium-clustermesh")
    assert {name for name in secret if "." not in name} == {each.name for each in others}
    users = yaml.safe_load(alpha.data("configmaps", "clustermesh-remote-users")["users.yaml"])["users"]
    assert sorted(user["name"] for user in users) == [f"remote-{each.name}" for each in others]
    async with alpha.objects() as objects:
        connections = list_connections((await read_site(objects, "alpha")).member, NOW)
    assert [(each.name, each.reads, each.read_by, each.problem) for each in connections] == [
        (each.name, True, True, "") for each in others
    ]


async def test_every_pair_of_a_mesh_is_joined(alpha: Cluster, beta: Cluster, bed: KubeBed) -> None:
    gamma = Cluster(bed, f"{alpha.namespace}-gamma", "gamma", 3, free_port())
    for each in (alpha, beta, gamma):
        each.install()
    await join(alpha, beta, gamma, wanted=Wanted(mode=Mode.MESH, unreached=True))
    for each in (alpha, beta, gamma):
        known = {name for name in each.data("secrets", "cilium-clustermesh") if "." not in name}
        assert known == {"alpha", "beta", "gamma"} - {each.name}


async def test_all_that_is_wrong_is_said_at_once_and_nothing_is_written(alpha: Cluster, beta: Cluster) -> None:
    alpha.install(enable_wireguard="true")
    beta.install(cluster_id="1", max_connected_clusters="511")
    before = alpha.versions(), beta.versions()
    with pytest.raises(ExceptionGroup) as caught:
        await join(alpha, beta, wanted=Wanted(allowed=(parse_prefix("0.0.0.0/0"),)))
    said = "\n".join(map(str, caught.value.exceptions))
    for part in ("cluster id", "maxConnectedClusters of beta", "encryption of beta", "holds every address"):
        assert part in said
    assert said.count("is not reached from here") == 2  # nothing listens there
    assert all(isinstance(error, ClusterMeshError) for error in caught.value.exceptions)
    assert (alpha.versions(), beta.versions()) == before


async def test_from_connect_to_a_reader_that_hears_the_other_cluster(
    alpha: Cluster, beta: Cluster, tmp_path: Path
) -> None:
    for each in (alpha, beta):
        each.install()
    place = beta.folder
    tls = Tls(place.ca, place.certificate("server"), place.key("server"))
    etcd = LocalEtcd(place.etcd, [place.endpoint], tls, flags=QUICK)
    await etcd.start()
    argv = (sys.executable, "-m", "clustermesh.cli", "apiserver", "--context", str(place.path), "--http", "")
    with (tmp_path / "apiserver.log").open("wb") as log:
        server = await asyncio.create_subprocess_exec(*argv, stdout=log, stderr=log)
    try:
        wanted = Wanted(mode=Mode.UNICAST)  # beta's etcd is looked for, and its certificate checked
        await join(alpha, beta, wanted=wanted)
        place.users_file.write_bytes(beta.data("configmaps", "clustermesh-remote-users")["users.yaml"])
        found = read_peers(alpha.mount(tmp_path / "mounted"), "alpha")
        assert not found.problems
        reader = ClusterReader(
            "beta", StateSink(), lambda: client_of(found.peers["beta"], 2.0), peer_tables, lambda *_: None
        )
        task = asyncio.create_task(reader.run())
        async with asyncio.timeout(60):
            while reader.session.state is not State.FRESH:
                await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        async with beta.site() as site:
            status = await read_status(site)
        assert status["access_information"] == [f"127.0.0.1:{beta.port}"]
        error, no_node = status["errors"]  # its etcd was read; there is no controller that would make the pods
        assert no_node == "no node is known: does its API server see any?"
        assert "0 of 1 replicas of Deployment clustermesh-apiserver are ready" in error
    finally:
        server.kill()
        await server.wait()
        etcd.kill()


def test_the_commands_do_it_by_contexts_of_a_kubeconfig(alpha: Cluster, beta: Cluster, tmp_path: Path) -> None:
    for each in (alpha, beta):
        each.install()
    paths = ":".join(str(one) for one in kubeconfigs(tmp_path, alpha, beta))
    common = ("--kubeconfig", paths, "-n", alpha.namespace, "--context", "one")
    pair = (*common, "--destination-context", "two")
    result = CliRunner().invoke(main, ["connect", *pair])
    assert result.exit_code == 1
    assert result.output.count("is not reached from here") == 2
    result = CliRunner().invoke(main, ["connect", *pair, "--allow-unreachable"])
    assert (result.exit_code, result.output.count("reads")) == (0, 2), result.output
    result = CliRunner().invoke(
        main, ["certs", "issue", "remote-gamma", "--name", "tls", "--out", str(tmp_path / "trust"), *common]
    )
    assert result.exit_code == 0, result.output
    issued = read_pair(*((tmp_path / "trust" / f"tls.{end}").read_bytes() for end in ("crt", "key")), "tls").certificate
    authority = (tmp_path / "trust" / "ca.crt").read_bytes()
    check_leaf(issued, read_certificates(authority, "ca"), NOW, "tls")
    assert authority == alpha.data("secrets", "clustermesh-apiserver-server-cert")["ca.crt"]
    result = CliRunner().invoke(main, ["peers", *common, "-o", "yaml"])
    (row,) = yaml.safe_load(result.output)
    assert (row["name"], row["reads"], row["readBy"], row["problem"]) == ("beta", True, True, "")
    result = CliRunner().invoke(main, ["status", *common, "-o", "json"])
    found = json.loads(result.output)
    assert (result.exit_code, found["connectivity"]["clusters"]) == (1, {"beta": NEVER_SEEN})
    assert (sorted(found), found["agents"]) == (STATUS, "clustermesh"), "scripts read them"
    of = {"app": "cilium"}
    template = {"metadata": {"labels": of}, "spec": {"containers": [{"name": "x", "image": "x"}]}}
    alpha.make("DaemonSet", "cilium", "apps/v1", spec={"selector": {"matchLabels": of}, "template": template})
    result = CliRunner().invoke(main, ["status", *common])
    assert "Connected are beta; how Cilium's agents see them" in result.output
    assert sorted(found["connectivity"]) == ["clusters", "connected", "global_services", "not_ready", "total"]
    assert sorted(row) == ["credentialsExpire", "endpoints", "id", "name", "problem", "readBy", "reads"]
    for number in ("v0.1.0", "v0.0.9"):
        labels = {"app.kubernetes.io/part-of": "clustermesh", "k8s-app": "clustermesh-apiserver"}
        labels["app.kubernetes.io/version"] = number
        spec = {"containers": [{"name": "x", "image": "x"}], "automountServiceAccountToken": False}
        account = {"metadata": {"name": "default", "namespace": alpha.namespace}, "apiVersion": "v1"}
        with contextlib.suppress(RuntimeError):
            alpha.bed.create({"kind": "ServiceAccount", **account})
        alpha.make("Pod", f"pod-{number.replace('.', '-')}", labels=labels, spec=spec)
    result = CliRunner().invoke(main, ["version", *common, "-o", "json"])
    name = "deployment/clustermesh-apiserver"
    assert json.loads(result.output) | {"client": "", "helm": "", "skew": []} == {
        "client": "",
        "helm": "",
        "servers": {name: "v0.1.0"},
        "minorsAhead": {name: 0},
        "pods": {name: {"v0.1.0": 1, "v0.0.9": 1}},
        "skew": [],
    }
    result = CliRunner().invoke(main, ["disconnect", *pair])
    assert (result.exit_code, alpha.data("secrets", "cilium-clustermesh")) == (0, {}), result.output


def test_what_fails_in_between_names_the_cluster_and_says_what_was_done(
    alpha: Cluster, beta: Cluster, tmp_path: Path
) -> None:
    for each in (alpha, beta):
        each.install()
    alpha.bed.allow("looker", cluster_role("looker", [Rule("*", "*", ("get", "list"))]))
    paths = ":".join(str(one) for one in kubeconfigs(tmp_path, alpha, beta, cert="looker"))
    words = ("--kubeconfig", paths, "-n", alpha.namespace, "--context", "one", "--destination-context", "two")
    result = CliRunner().invoke(main, ["connect", *words, "--allow-unreachable"])
    assert result.exit_code == 1, result.output
    assert "error: context one (cluster alpha): may not " in result.output
    assert "; done before: beta lets alpha in as the user remote-alpha; the same command goes on" in result.output


def test_a_cluster_is_taken_for_dead_where_nobody_answers_and_not_where_it_says_no(
    alpha: Cluster, beta: Cluster, tmp_path: Path
) -> None:
    for each in (alpha, beta):
        each.install()
    asyncio.run(join(alpha, beta))
    before = alpha.versions()
    names = ("beta", "one")
    for cert, verbs in (("stranger", []), ("looker", ["get", "list"])):
        if verbs:
            beta.bed.allow(cert, cluster_role(cert, [Rule("*", "*", tuple(verbs))]))
        paths = ":".join(str(one) for one in kubeconfigs(tmp_path, beta, alpha, cert=cert, names=names))
        words = ("--kubeconfig", paths, "-n", alpha.namespace, "--context", "one", "--destination-context", "beta")
        result = CliRunner().invoke(main, ["disconnect", *words])
        assert result.exit_code == 1, result.output
        assert "forbidden" in result.output or "may not" in result.output
        if not verbs:
            assert "name it: --peer NAME" in result.output
            assert alpha.versions() == before
    assert "done before: alpha no longer reads beta" in result.output
    asyncio.run(join(alpha, beta))
    beta_dead = tmp_path / "beta.kubeconfig"
    beta_dead.write_text(re.sub(r"server: .*", "server: https://127.0.0.1:1", beta_dead.read_text()))
    result = CliRunner().invoke(main, ["disconnect", *words])
    assert result.exit_code == 0, result.output
    assert "warning: context beta: " in result.output
    assert "nothing was changed in beta" in result.output


def kubeconfigs(
    folder: Path, *clusters: Cluster, cert: str = "admin", names: Sequence[str] = ("one", "two")
) -> Iterator[Path]:
    """One file with a context for each, called by `names`: the first is of who has the certificate `cert`."""
    for number, each in zip(names, clusters, strict=False):
        document = yaml.safe_load(each.bed.write_kubeconfig(number, cert=cert).read_text())
        cert = "admin"
        document["clusters"][0]["name"] = document["contexts"][0]["context"]["cluster"] = number
        path = folder / f"{number}.kubeconfig"
        path.write_text(yaml.safe_dump(document))
        yield path
