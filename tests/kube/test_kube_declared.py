"""ClusterMeshPeers in a real Kubernetes API: what is refused there, what is written for them, and what is left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from chart_bed import CHART, MISSING, decoded, define, named, nested, rendered
from joined_bed import Cluster
from kube_bed import KubeBed, path_of
from msgspec import Struct
from pki import Authority
from ports import free_port

from certs.check import is_signed_by, read_certificates, read_pair
from certs.issue import issue
from certs.names import remote
from clustermesh.declared.keeping import Task, keep_peers
from clustermesh.declared.peers import RULES
from clustermesh.errors import Refused
from clustermesh.joining.connect import Wanted, connect, disconnect
from clustermesh.joining.holders import hold_secrets
from clustermesh.joining.links import Mode
from clustermesh.joining.rotating import rotate_authority, rotate_leaves
from clustermesh.kube.config import from_kubeconfig
from clustermesh.standalone.connect import Outcome
from clustermesh.store.client import EtcdClient
from clustermesh.wire import agent_report, keys
from clustermesh.wire.agent_report import AgentReport, SeenCluster

pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)
CRD = yaml.safe_load((CHART / "crds" / "clustermeshpeers.yaml").read_text())
AT = "/apis/clustermesh.io/v1alpha1"
PERIOD = 0.2
APPLIED = "`kubectl apply`"


@pytest.fixture
def defined(bed: KubeBed) -> None:
    """The definition of ClusterMeshPeers is there."""
    define(bed, "clustermeshpeers")


def peer(namespace: str, name: str, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "clustermesh.io/v1alpha1",
        "kind": "ClusterMeshPeer",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"addresses": ["192.0.2.7"]} | spec,
    }


def apply(bed: KubeBed, manifest: dict[str, Any]) -> Any:
    """As Argo CD and Flux do."""
    path = f"{path_of(manifest)}/{manifest['metadata']['name']}?fieldManager=gitops&fieldValidation=Strict"
    return bed.ask("PATCH", path, manifest, "application/apply-patch+yaml")


WHOLE = {
    "addresses": ["b.example", "192.0.2.7", "fd00::7"],
    "port": 32379,
    "trust": {"secretName": "beta-trust"},
    "allowPrefixes": ["203.0.113.0/24", "2001:db8::/32"],
    "limits": dict.fromkeys(
        (
            *("nodes", "identities", "endpoints", "services", "listingBytes", "valueBytes", "serviceBackends"),
            *("backends", "copiedBytes", "exports", "nodePrefixes", "prefixes", "addresses"),
        ),
        7,
    ),
    "admit": False,
    "paused": True,
}
NO_GOOD: list[tuple[str, dict[str, Any], str]] = [
    ("Beta", {}, "metadata.name"),
    ("default", {}, "metadata.name: must be the other cluster's cluster.name"),
    ("b.eta", {}, "metadata.name: must be the other cluster's cluster.name"),
    ("b" * 33, {}, "metadata.name: must be the other cluster's cluster.name"),
    ("beta", {"addresses": []}, "spec.addresses"),
    (
        "beta",
        {"addresses": ["https://b.example"]},
        'spec.addresses[0]: Invalid value: "string": must be a host',
    ),
    ("beta", {"addresses": ["ok.example", "b.example:2379"]}, "spec.addresses[1]"),
    ("beta", {"addresses": ["b.example", "b.example"]}, ".spec.addresses: duplicate entries"),
    ("beta", {"port": 65536}, "spec.port"),
    ("beta", {"trust": {}}, "spec.trust.secretName: Required value"),
    ("beta", {"allowPrefixes": ["203.0.113.1/24"]}, "spec.allowPrefixes[0]"),
    ("beta", {"allowPrefixes": ["203.0.113.0"]}, "spec.allowPrefixes[0]"),
    ("beta", {"limits": {"nodes": 0}}, "spec.limits.nodes"),
    ("beta", {"limits": {"nodez": 1}}, ".spec.limits.nodez: field not declared"),
    ("beta", {"adress": ["b.example"]}, ".spec.adress: field not declared"),
]


async def test_the_api_refuses_what_cannot_be_by_the_name_of_its_field(
    defined: None, bed: KubeBed, namespace: str
) -> None:
    wrong = []
    for name, spec, says in NO_GOOD:
        with pytest.raises(RuntimeError) as caught:
            apply(bed, peer(namespace, name, **spec))
        if says not in (told := str(caught.value).replace("\\", "")):
            wrong.append((name, spec, told))
    assert wrong == []
    apply(bed, peer(namespace, "beta", **WHOLE))
    assert (
        WHOLE["limits"].keys()
        == CRD["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["limits"][
            "properties"
        ].keys()
    )


class Kept(Struct):
    """The etcd in which agents report, and what the API server is told to be wrong."""

    etcd: EtcdClient
    problems: Sequence[str] = ()

    def take(self, problems: Sequence[str]) -> None:
        self.problems = problems


@asynccontextmanager
async def kept(bed: KubeBed, namespace: str, *trusts: str) -> AsyncIterator[Kept]:
    """They are kept meanwhile, by somebody who may do what the chart allows."""
    objects = rendered(nested("clustermesh.declaredPeers.secrets", list(trusts)), namespace)
    user, role = f"peers-{namespace}", named(objects, "Role", "clustermesh-peers")
    binding = named(objects, "RoleBinding", "clustermesh-peers")
    binding["subjects"] = [{"kind": "User", "name": user, "apiGroup": "rbac.authorization.k8s.io"}]
    for each in (role, binding):
        apply(bed, each)
    access = from_kubeconfig(str(bed.write_kubeconfig(user, cert=user)))
    async with EtcdClient(bed.etcd.endpoints) as etcd:
        found = Kept(etcd)
        task = asyncio.create_task(keep_peers(Task(access, namespace, "alpha"), etcd, found.take, PERIOD))
        try:
            yield found
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def until(told: Callable[[], Any], expected: Any) -> None:
    try:
        async with asyncio.timeout(20):
            while told() != expected:
                await asyncio.sleep(0.05)
    except TimeoutError:
        assert told() == expected


class Looking:
    """What is in one namespace."""

    def __init__(self, bed: KubeBed, namespace: str) -> None:
        self.bed, self.namespace = bed, namespace

    def peer(self, name: str) -> Any:
        return self.bed.ask("GET", f"{AT}/namespaces/{self.namespace}/clustermeshpeers/{name}")

    def told(self, name: str) -> list[str]:
        """Its conditions in short."""
        found = {each["type"]: each for each in self.peer(name).get("status", {}).get("conditions", [])}
        return [
            f"{found[kind]['status']} {found[kind]['reason']}" for kind in ("Refused", "Connected", "Synced") if found
        ]

    def message(self, name: str) -> str:
        (found,) = [each for each in self.peer(name)["status"]["conditions"] if each["type"] == "Refused"]
        return str(found["message"])

    def entries(self) -> dict[str, bytes]:
        try:
            secret = self.bed.ask("GET", f"/api/v1/namespaces/{self.namespace}/secrets/cilium-clustermesh")
        except RuntimeError:
            return {}
        return decoded(secret)

    def users(self) -> list[str]:
        try:
            found = self.bed.ask("GET", f"/api/v1/namespaces/{self.namespace}/configmaps/clustermesh-remote-users")
        except RuntimeError:
            return []
        return [user["name"] for user in yaml.safe_load(found["data"]["users.yaml"])["users"]]


WAITS = ["False Accepted", "Unknown NotReported", "Unknown NotReported"]


def make_trust(bed: KubeBed, namespace: str, name: str, folder: Path) -> None:
    authority = Authority(folder)
    pair = authority.issue("remote-alpha")
    texts = {"ca.crt": authority.ca.read_text(), "tls.crt": pair.cert.read_text(), "tls.key": pair.key.read_text()}
    meta = {"name": name, "namespace": namespace}
    bed.create({"apiVersion": "v1", "kind": "Secret", "metadata": meta, "stringData": texts})


async def test_a_declared_cluster_is_connected_watched_paused_and_leaves_nothing(
    defined: None, bed: KubeBed, namespace: str, tmp_path: Path
) -> None:
    look = Looking(bed, namespace)
    make_trust(bed, namespace, "beta-trust", tmp_path)
    beta = peer(namespace, "beta", trust={"secretName": "beta-trust"})
    async with kept(bed, namespace, "beta-trust") as keeping:
        apply(bed, beta)
        await until(lambda: look.told("beta"), WAITS)
        assert sorted(look.entries()) == ["beta", *(f"beta.etcd-client{end}" for end in ("-ca.crt", ".crt", ".key"))]
        assert look.users() == ["remote-beta"]

        report = AgentReport(clusters=(SeenCluster("beta", "fresh", services=3),))
        for name in ("w1", "windows"):
            await keeping.etcd.put(keys.node_key("alpha", name), b"{}")
        await keeping.etcd.put(keys.status_key("w1"), agent_report.encode(report))
        await until(lambda: look.told("beta"), ["False Accepted", "True AllConnected", "True AllSynced"])
        assert look.peer("beta")["status"]["services"] == 3
        await keeping.etcd.put(keys.node_key("alpha", "w2"), b"{}")
        await keeping.etcd.put(keys.agent_key("w2"), b"{}")
        await until(lambda: look.told("beta"), WAITS)
        await keeping.etcd.delete(keys.node_key("alpha", "w2"))
        await until(lambda: look.told("beta"), ["False Accepted", "True AllConnected", "True AllSynced"])
        await keeping.etcd.delete(keys.status_key("w1"))
        await until(lambda: look.told("beta"), WAITS)

        # Who applies the same again finds nothing to change, and nobody writes without a reason.
        version = look.peer("beta")["metadata"]["resourceVersion"]
        assert apply(bed, beta)["metadata"]["resourceVersion"] == version
        for name in ("gamma", "delta"):
            apply(bed, peer(namespace, name))
            await until(lambda name=name: look.told(name), WAITS)  # type: ignore[misc]
        assert look.peer("beta")["metadata"]["resourceVersion"] == version

        apply(bed, peer(namespace, "beta", trust={"secretName": "beta-trust"}, paused=True))
        await until(lambda: look.told("beta"), ["False Accepted", "False Paused", "False Paused"])
        assert (sorted(look.entries()), look.users()) == (["delta", "gamma"], ["remote-gamma", "remote-delta"])
        apply(bed, peer(namespace, "beta", admit=False))
        await until(lambda: sorted(look.entries()), ["beta", "delta", "gamma"])
        assert "remote-beta" not in look.users()
        bed.delete(peer(namespace, "gamma"))
        await until(lambda: sorted(look.entries()), ["beta", "delta"])
        await until(look.users, ["remote-delta"])
    for name in ("beta", "delta"):  # while nobody keeps them
        bed.delete(peer(namespace, name))
    async with kept(bed, namespace):
        await until(lambda: (look.entries(), look.users()), ({}, []))


async def test_what_is_no_good_is_said_and_what_others_connected_stays(
    defined: None, bed: KubeBed, other_bed: KubeBed, namespace: str, tmp_path: Path
) -> None:
    look = Looking(bed, namespace)
    alpha = Cluster(bed, namespace, "alpha", 1, free_port())
    beta = Cluster(other_bed, namespace, "beta", 2, free_port())
    for each in (alpha, beta):
        each.install()
    make_trust(bed, namespace, "secret", tmp_path)
    async with alpha.site() as source, beta.site() as destination:
        await connect(source, [destination], Wanted(mode=Mode.BIDIRECTIONAL, unreached=True), datetime.now(UTC))
    connected = look.entries()
    async with kept(bed, namespace, "gone") as keeping:
        for each in (
            *(peer(namespace, "alpha"), peer(namespace, "beta"), peer(namespace, "gamma")),
            *(peer(namespace, name, trust={"secretName": name}) for name in ("gone", "secret")),
        ):
            apply(bed, each)
        refused = {
            "alpha": ("Invalid", "metadata.name: 'alpha': must be another cluster's name"),
            "beta": ("ConnectedOtherwise", "Secret cilium-clustermesh: beta: was written by somebody else"),
            "gone": ("Invalid", "spec.trust.secretName: gone: there is no such Secret"),
            "secret": ("Invalid", "name it in clustermesh.declaredPeers.secrets of the chart"),
        }
        for name, (reason, says) in refused.items():
            await until(lambda name=name: look.told(name), [f"True {reason}", "False Refused", "False Refused"])  # type: ignore[misc]
            assert says in look.message(name)
            told = f"ClusterMeshPeer {name}: {look.message(name)}"
            await until(lambda told=told: told in keeping.problems, True)  # type: ignore[misc]
        await until(lambda: look.told("gamma"), WAITS)
        assert look.entries().keys() == {*connected, "gamma"}
        assert connected.items() <= look.entries().items()
        assert look.users() == ["remote-beta", "remote-gamma"]

        # It is let go there, so it is the declaration's from now on.
        alpha.bed.merge(
            {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "cilium-clustermesh", "namespace": namespace}},
            {"data": dict.fromkeys(connected)},
        )
        await until(lambda: look.told("beta"), WAITS)
        assert yaml.safe_load(look.entries()["beta"])["endpoints"] == ["https://beta.mesh.cilium.io:2379"]
        await until(lambda: [each.split(":")[0].split()[1] for each in keeping.problems], ["alpha", "gone", "secret"])
        role = path_of(
            {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"namespace": namespace}}
        )
        bed.ask("DELETE", f"{role}/clustermesh-peers")
        await until(lambda: any(each.startswith("ClusterMeshPeers: ") for each in keeping.problems), True)


async def test_certificates_are_replaced_in_the_secret_that_a_declaration_names_and_follow_from_there(
    defined: None, bed: KubeBed, other_bed: KubeBed, namespace: str
) -> None:
    look = Looking(bed, namespace)
    alpha = Cluster(bed, namespace, "alpha", 1, free_port())
    beta = Cluster(other_bed, namespace, "beta", 2, free_port())
    for each in (alpha, beta):
        each.install()
    signer = read_pair(beta.folder.ca.read_bytes(), beta.folder.key("ca").read_bytes(), "ca")
    shown = issue(signer, remote("alpha"), datetime.now(UTC))
    texts = {"ca.crt": beta.folder.ca.read_bytes(), "tls.crt": shown.certificate_pem, "tls.key": shown.key_pem}
    alpha.make("Secret", "beta-trust", stringData={key: text.decode() for key, text in texts.items()})

    async def follows() -> None:
        def written() -> list[bytes]:
            entries = look.entries()
            return [entries.get(f"beta.etcd-client{end}", b"") for end in ("-ca.crt", ".crt", ".key")]

        await until(written, list(alpha.data("secrets", "beta-trust").values()))

    said = list[str]()
    async with kept(bed, namespace, "beta-trust"):
        apply(bed, peer(namespace, "beta", trust={"secretName": "beta-trust"}))
        await until(lambda: look.told("beta"), WAITS)
        await follows()
        async with beta.site() as first, alpha.site() as second:
            holders = [await hold_secrets(each) for each in (first, second)]
            await rotate_leaves(holders, datetime.now(UTC), said.append)
            assert alpha.data("secrets", "beta-trust")["tls.crt"] != texts["tls.crt"]
            await follows()
            await rotate_authority(holders, timedelta(seconds=1), said.append)
            await follows()
        (authority,) = read_certificates(beta.data("secrets", "cilium-ca")["ca.crt"], "ca")
        now = alpha.data("secrets", "beta-trust")
        assert read_certificates(now["ca.crt"], "trust") == (authority,)
        assert is_signed_by(read_certificates(now["tls.crt"], "trust")[0], authority)
        # Nor does somebody else's hand on them make it somebody else's.
        meta = {"name": "cilium-clustermesh", "namespace": namespace}
        secret: dict[str, Any] = {"apiVersion": "v1", "kind": "Secret", "metadata": meta}
        bed.merge(secret, {"data": {"beta.etcd-client.crt": None, "beta.etcd-client.key": "eA=="}})
        await follows()
        assert look.told("beta") == WAITS
        labels = bed.ask("GET", f"{path_of(secret)}/cilium-clustermesh")["metadata"]["labels"]
        assert labels == {"app.kubernetes.io/managed-by": "clustermesh"}  # so `clustermesh uninstall` takes it away
        bed.delete(peer(namespace, "beta"))
        await until(look.entries, {})
    assert "alpha: beta-trust is issued anew" in said
    trust = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "beta-trust", "namespace": namespace}}
    apply(bed, peer(namespace, "beta", trust={"secretName": "beta-trust"}))
    for mark, by in (
        ({"annotations": {"argocd.argoproj.io/tracking-id": "x"}}, "Argo CD"),
        ({"annotations": None, "labels": {"kustomize.toolkit.fluxcd.io/name": "x"}}, "Flux"),
        ({"labels": None, "ownerReferences": [owner("SealedSecret", "beta-trust")]}, "SealedSecret beta-trust"),
        # As `kubectl apply` leaves it without --server-side, and so Argo CD before its version 3.
        ({"ownerReferences": None, "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}"}}, APPLIED),
    ):
        bed.merge(trust, {"metadata": mark})
        async with beta.site() as first, alpha.site() as second:
            holders = [await hold_secrets(each) for each in (first, second)]
            with pytest.raises(ExceptionGroup) as caught:
                await rotate_leaves(holders, datetime.now(UTC), said.append)
        assert f"alpha: {by} keeps Secret beta-trust" in str(caught.value.exceptions[0])
    assert alpha.data("secrets", "beta-trust") == now


def owner(kind: str, name: str) -> dict[str, str]:
    return {"apiVersion": "v1", "kind": kind, "name": name, "uid": "0"}


async def test_what_is_declared_no_command_changes_and_what_a_command_asks_for_stays(
    defined: None, bed: KubeBed, other_bed: KubeBed, namespace: str
) -> None:
    look = Looking(bed, namespace)
    alpha = Cluster(bed, namespace, "alpha", 1, free_port())
    beta = Cluster(other_bed, namespace, "beta", 2, free_port())
    for each in (alpha, beta):
        each.install()
    says = "alpha is connected to beta by its ClusterMeshPeer beta: change it where it comes from, or `kubectl delete"

    async def connected(reader: Cluster, owner: Cluster, mode: Mode) -> Outcome:
        async with reader.site() as source, owner.site() as destination:
            return await connect(source, [destination], Wanted(mode=mode, unreached=True), datetime.now(UTC))

    async with kept(bed, namespace):
        apply(bed, peer(namespace, "beta"))
        await until(lambda: look.told("beta"), WAITS)
        before = look.entries()
        async with alpha.site() as source:
            with pytest.raises(Refused, match=says):
                await disconnect(source, "beta", None, Mode.BIDIRECTIONAL)
            holder = await hold_secrets(source)
            with pytest.raises(ExceptionGroup) as caught:
                await rotate_authority([holder], timedelta(0), print, frozenset({"beta"}))
            assert str(caught.value.exceptions[0]).startswith(f"beta cannot join again: {says}")
        with pytest.raises(ExceptionGroup) as caught:
            await connected(alpha, beta, Mode.BIDIRECTIONAL)
        assert str(caught.value.exceptions[0]).startswith(says)
        assert (look.entries(), look.users()) == (before, ["remote-beta"])
        assert "alpha lets beta in as the user remote-beta" in (await connected(beta, alpha, Mode.UNICAST)).done
        assert (await connected(beta, alpha, Mode.UNICAST)).done == []
        async with beta.site() as source, alpha.site() as destination:
            with pytest.raises(Refused, match=rf"{says}.*; done before: beta no longer reads alpha"):
                await disconnect(source, "alpha", destination, Mode.BIDIRECTIONAL)
        assert look.entries() == before
        await connected(beta, alpha, Mode.UNICAST)
        bed.delete(peer(namespace, "beta"))
        await until(look.entries, {})
        assert look.users() == ["remote-beta"]
    async with alpha.site() as source, beta.site() as destination:
        await disconnect(source, "beta", destination, Mode.BIDIRECTIONAL)
    assert look.users() == []


def test_the_chart_allows_what_it_takes_and_nothing_else() -> None:
    role = named(rendered(nested("clustermesh.declaredPeers.secrets", ["one"])), "Role", "clustermesh-peers")
    granted, by_name = set(), set()
    for rule in role["rules"]:
        for resource in rule["resources"]:
            granted |= {(rule["apiGroups"][0], resource, verb) for verb in rule["verbs"]}
            by_name |= {(resource, name, *rule["verbs"]) for name in rule.get("resourceNames", [""])}
    assert granted == {(rule.group, rule.resource, verb) for rule in RULES for verb in rule.verbs}
    assert {each for each in by_name if each[0] == "secrets"} == {
        ("secrets", "one", "get"),
        *(("secrets", name, "get", "patch", "create") for name in ("cilium-clustermesh", "cilium-kvstoremesh")),
    }
    off = rendered(nested("clustermesh.declaredPeers.enabled", False))
    assert "Role" not in {each["kind"] for each in off if each["metadata"]["name"] == "clustermesh-peers"}
