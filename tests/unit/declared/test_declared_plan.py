"""Declared clusters: what becomes of each, beside what others have written, and beside those that are no good."""

from __future__ import annotations

import random
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
import yaml
from pki import Authority

from clustermesh.declared import keeping
from clustermesh.declared.conditions import SELDOM, SILENCE, Agents, Sight, is_due, look, status_of
from clustermesh.declared.keeping import Keeper, Task
from clustermesh.declared.peers import Declared
from clustermesh.declared.plan import SECRETS, Held, Plan, Refusal, plan
from clustermesh.errors import ClusterMeshError, Invalid, Refused
from clustermesh.joining import names
from clustermesh.joining.objects import Objects
from clustermesh.mirror.agent_files import AgentAccess
from clustermesh.standalone.users_file import with_declared, with_user
from clustermesh.store.client import EtcdClient, KeyValue, Listing
from clustermesh.store.tls import Tls
from clustermesh.wire import agent_report, keys, mirror_report
from clustermesh.wire.agent_report import AgentReport, SeenCluster
from clustermesh.wire.mirror_report import MirrorReport

NOTHING = {secret: Held() for secret in SECRETS}
MIRROR = AgentAccess(folder=names.MOUNT, endpoints=("https://clustermesh-apiserver.kube-system.svc:12379",))
OWN = "alpha"
NOW = datetime.now(UTC)


def declared(name: str, **spec: Any) -> Declared:
    return Declared(name, 1, {"addresses": ["192.0.2.7"]} | spec)


def planned(*peers: Declared, held: Mapping[str, Held] = NOTHING, **trust: Any) -> Plan:
    return plan(peers, trust, held, OWN, None, NOW)


def after(found: Plan, held: Mapping[str, Held]) -> dict[str, Held]:
    """What the API has then."""
    out = dict(held)
    for secret, data in found.steps(held):
        others = {key: value for key, value in out[secret].data.items() if key not in out[secret].ours}
        out[secret] = Held({**others, **data}, frozenset(data))
    return out


def test_an_entry_says_what_the_declaration_does_as_connect_would_write_it() -> None:
    one = declared(
        "beta", addresses=["b.example", "192.0.2.7", "fd00::7"], port=32379, allowPrefixes=["203.0.113.0/24"]
    )
    one = Declared("beta", 1, {**one.spec, "limits": {"nodes": 7, "listingBytes": 8}})
    found = planned(one)
    assert yaml.safe_load(found.wanted[names.PEERS]["beta"]) == {
        "endpoints": ["https://b.example:32379", "https://beta.mesh.cilium.io:32379"],
        "trusted-ca-file": "/var/lib/cilium/clustermesh/common-etcd-client-ca.crt",
        "cert-file": "/var/lib/cilium/clustermesh/common-etcd-client.crt",
        "key-file": "/var/lib/cilium/clustermesh/common-etcd-client.key",
        "cilium-host-aliases": {"beta.mesh.cilium.io": {"ips": ["192.0.2.7", "fd00::7"]}},
        "clustermesh-allow-prefixes": ["203.0.113.0/24"],
        "clustermesh-limits": {"nodes": 7, "listing-bytes": 8},
    }
    assert (found.wanted[names.COPIED], found.refused, found.admitted) == ({}, {}, {"beta"})


def test_with_a_mirror_agents_are_led_to_its_copies() -> None:
    found = plan([declared("beta")], {}, NOTHING, OWN, MIRROR, NOW)
    assert yaml.safe_load(found.wanted[names.PEERS]["beta"])["endpoints"] == list(MIRROR.endpoints)
    assert yaml.safe_load(found.wanted[names.COPIED]["beta"])["endpoints"] == ["https://beta.mesh.cilium.io:2379"]


NO_GOOD: list[tuple[str, dict[str, Any], str]] = [
    ("alpha", {}, "metadata.name: 'alpha': must be another cluster's name"),
    ("Beta", {}, "cluster name: 'Beta': must be 1 to 32"),
    ("beta", {"addresses": []}, "spec.addresses: []: must name at least one"),
    ("beta", {"addresses": "b.example"}, "spec.addresses: None: expected `array`, got `str`"),
    (
        "beta",
        {"addresses": ["ok.example", "https://b.example"]},
        "spec.addresses[1]: 'https://b.example': must be a host",
    ),
    ("beta", {"addresses": ["b.example:2379"]}, "spec.addresses[0]: 'b.example:2379': must be a host"),
    ("beta", {"addresses": ["user:secret@b.example"]}, "spec.addresses[0]"),
    ("beta", {"addresses": ["b.example/x"]}, "spec.addresses[0]"),
    ("beta", {"addresses": [""]}, "spec.addresses[0]"),
    ("beta", {"addresses": [7]}, "spec.addresses[0]: None: expected `str`"),
    ("beta", {"port": 0}, "spec.port: 0: must be 1 to 65535"),
    ("beta", {"port": 65536}, "spec.port: 65536"),
    ("beta", {"port": "2379"}, "spec.port: None: expected `int`"),
    ("beta", {"allowPrefixes": ["203.0.113.1/24"]}, "spec.allowPrefixes[0]: '203.0.113.1/24': must be a network"),
    ("beta", {"limits": {"nodez": 1}}, "spec.limits.nodez: 1: must be one or more of"),
    ("beta", {"limits": {"nodes": 0}}, "spec.limits.nodes: 0: must be one or more of"),
    ("beta", {"limits": {"nodes": True}}, "spec.limits"),
    ("beta", {"trust": {}}, "spec.trust"),
    ("beta", {"trust": {"secretName": "gone"}}, "spec.trust.secretName: gone: there is no such Secret"),
    ("beta", {"trust": {"secretName": "half"}}, "spec.trust.secretName: half: tls.crt: None: must be there"),
    ("beta", {"trust": {"secretName": "garbage"}}, "ca.crt: holds no readable PEM certificate"),
    ("beta", {"trust": {"secretName": "mixed"}}, "tls.key is not the key of tls.crt"),
    ("beta", {"trust": {"secretName": "expired"}}, "tls.crt: expired on"),
    ("beta", {"trust": {"secretName": "another"}}, "its common name is 'remote-gamma', it must be 'remote-alpha'"),
    ("beta", {"admit": "yes"}, "spec.admit"),
]


@pytest.fixture(scope="module")
def trust(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Mapping[str, bytes] | ClusterMeshError]:
    authority = Authority(tmp_path_factory.mktemp("pki"))
    one, other = authority.issue("remote-alpha"), authority.issue("remote-gamma")
    old, shared = authority.issue("remote-alpha", expired=True, as_name="old"), authority.issue("remote")
    users = authority.issue("mesh-reader")  # of an etcd of somebody's own
    ca = authority.ca.read_bytes()

    def shown(tls: Tls) -> dict[str, bytes]:
        assert tls.cert is not None
        assert tls.key is not None
        return {"ca.crt": ca, "tls.crt": tls.cert.read_bytes(), "tls.key": tls.key.read_bytes()}

    whole = shown(one)
    return {
        "good": whole,
        "legacy": shown(shared),
        "users": shown(users),
        "expired": shown(old),
        "another": shown(other),
        "gone": Refused("spec.trust.secretName: gone: there is no such Secret"),
        "half": {"ca.crt": ca},
        "garbage": dict.fromkeys(whole, b"garbage"),
        "mixed": {**whole, "tls.key": other.key.read_bytes()},
    }


@pytest.mark.parametrize(
    ("name", "spec", "says"), NO_GOOD, ids=[f"{n}-{s[:30]}" for n, (_, _, s) in enumerate(NO_GOOD)]
)
def test_what_is_no_good_is_said_by_field_value_and_rule_and_changes_nothing(
    name: str, spec: dict[str, Any], says: str, trust: dict[str, Any]
) -> None:
    good = plan([declared(name), declared("gamma")], trust, NOTHING, "omega", None, NOW)
    held = after(good, NOTHING)
    found = plan([declared(name, **spec), declared("gamma")], trust, held, OWN, None, NOW)
    assert found.refused.keys() == {name}
    assert says in found.refused[name].sentence
    assert found.steps(held) == []
    assert (name in found.admitted, name in found.kept, "gamma" in found.admitted) == (False, True, True)


@pytest.mark.parametrize("name", ["good", "legacy", "users"])
def test_its_own_trust_is_written_beside_the_entry(name: str, trust: dict[str, Any]) -> None:
    found = plan([declared("beta", trust={"secretName": name})], trust, NOTHING, OWN, None, NOW)
    written = found.wanted[names.PEERS]
    assert yaml.safe_load(written["beta"])["key-file"] == "/var/lib/cilium/clustermesh/beta.etcd-client.key"
    assert written["beta.etcd-client-ca.crt"] == trust[name]["ca.crt"]
    assert written["beta.etcd-client.crt"] == trust[name]["tls.crt"]
    assert written["beta.etcd-client.key"] == trust[name]["tls.key"]


def test_what_finds_no_room_keeps_nobody_else_out(trust: dict[str, Any]) -> None:
    large = {**trust["good"], "ca.crt": trust["good"]["ca.crt"] * (600_000 // len(trust["good"]["ca.crt"]))}
    peers = [declared(name, trust={"secretName": "large"}) for name in ("beta", "gamma")]
    peers.append(declared("omega", trust={"secretName": "good"}))
    found = planned(*peers, **trust, large=large)
    assert {name: each.reason for name, each in found.refused.items()} == {"gamma": "NoRoom"}
    assert "Secret cilium-clustermesh of alpha has no room for gamma: 120" in found.refused["gamma"].sentence
    assert {"beta", "omega"} == {key for key in found.wanted[names.PEERS] if "." not in key}
    assert sum(map(len, found.wanted[names.PEERS].values())) < 1 << 20
    held = after(found, NOTHING)
    again = planned(*peers, held=held, **trust, large=large)  # who is there stays there
    assert (again.wanted, [*again.refused]) == (found.wanted, ["gamma"])
    held[names.PEERS] = Held({**held[names.PEERS].data, "filled": b"x" * 400_000}, held[names.PEERS].ours)
    assert list(planned(*peers, held=held, **trust, large=large).refused) == ["gamma"]


@pytest.mark.parametrize("key", ["beta", "beta.etcd-client.crt"])
def test_what_somebody_else_has_written_stays_theirs(key: str) -> None:
    held = {**NOTHING, names.PEERS: Held({key: b"endpoints:", "other": b"x"})}
    found = planned(declared("beta"), declared("gamma"), held=held)
    assert found.refused["beta"].reason == "ConnectedOtherwise"
    assert found.wanted[names.PEERS].keys() == {"gamma"}
    assert after(found, held)[names.PEERS].data.keys() == {key, "other", "gamma"}


def edited(held: Mapping[str, Held], secret: str, *keys: str) -> dict[str, Held]:
    """As after `kubectl edit` of those keys."""
    before = held[secret]
    data = {**before.data, **dict.fromkeys(keys, b"edited")}
    return {**held, secret: Held(data, before.ours - {*keys})}


@pytest.mark.parametrize("agents", [MIRROR, None], ids=["mirrored", "not mirrored"])
def test_certificates_that_others_changed_beside_an_entry_are_written_again(
    agents: AgentAccess | None, trust: dict[str, Any]
) -> None:
    peers = [declared("beta", trust={"secretName": "good"}), declared("gamma")]
    first = plan(peers, trust, NOTHING, OWN, agents, NOW)
    secret = names.COPIED if agents else names.PEERS
    held = edited(after(first, NOTHING), secret, "beta.etcd-client.crt", "beta.etcd-client.key")
    found = plan(peers, trust, held, OWN, agents, NOW)
    assert found.refused == {}
    assert (found.wanted, found.admitted) == (first.wanted, {"beta", "gamma"})
    assert [held[name].takes(data) for name, data in found.steps(held) if name == secret] == [True]
    assert after(found, held) == after(first, NOTHING)
    assert not any(after(first, NOTHING)[name].takes(data) for name, data in found.wanted.items())


@pytest.mark.parametrize("agents", [MIRROR, None], ids=["mirrored", "not mirrored"])
def test_an_entry_that_somebody_took_keeps_what_is_ours_of_it(
    agents: AgentAccess | None, trust: dict[str, Any]
) -> None:
    peers = [declared("beta", trust={"secretName": "good"})]
    held = edited(after(plan(peers, trust, NOTHING, OWN, agents, NOW), NOTHING), names.PEERS, "beta")
    found = plan(peers, trust, held, OWN, agents, NOW)
    assert found.refused["beta"].reason == "ConnectedOtherwise"
    assert found.steps(held) == []
    assert (found.admitted, found.kept) == (frozenset(), {"beta"})


@pytest.mark.parametrize("agents", [MIRROR, None], ids=["mirrored", "not mirrored"])
def test_whatever_is_declared_one_after_the_other_ends_as_if_it_had_been_at_once(agents: AgentAccess | None) -> None:
    """Nothing of others is touched, and agents never look for copies that nobody is told to make."""
    dice = random.Random(9)
    foreign = {"other": b"theirs", "eps.etcd-client.key": b"theirs"}
    nothing = held = {secret: Held(dict(foreign)) for secret in SECRETS}
    for _ in range(200):
        peers = [
            declared(name, port=dice.choice([2379, 2380]), paused=dice.random() < 0.2)
            for name in ("beta", "gamma", "delta", "eps")
            if dice.random() < 0.6
        ]
        found = plan(peers, {}, held, OWN, agents, NOW)
        assert len(found.steps(held)) <= (3 if agents else 1)
        for secret, data in found.steps(held):
            held = held | {secret: Held({**foreign, **data}, frozenset(data))}
            assert not agents or held[names.PEERS].ours <= held[names.COPIED].ours
        assert {secret: held[secret].own for secret in SECRETS} == plan(peers, {}, nothing, OWN, agents, NOW).wanted
        assert plan(peers, {}, held, OWN, agents, NOW).steps(held) == []


def test_users_that_a_person_named_are_never_touched() -> None:
    path = Path("users.yaml")
    theirs = {"name": "remote-beta", "role": "remote"}
    document: dict[str, Any] = {"users": [theirs], "else": 1}
    both = with_declared(document, path, {"remote-beta", "remote-gamma"}, set())
    assert [user["name"] for user in both["users"]] == ["remote-beta", "remote-gamma"]
    assert with_declared(both, path, {"remote-gamma"}, set()) is both
    assert with_declared(both, path, set(), {"remote-gamma"}) is both
    assert with_declared(both, path, set(), set()) == document
    assert with_declared({}, path, set(), set()) == {}
    with pytest.raises(Invalid, match=r"users\[0\].name"):
        with_declared({"users": [{"role": "remote"}]}, path, set(), set())


def test_a_user_that_a_command_names_too_stays_when_the_declaration_goes() -> None:
    path = Path("users.yaml")
    marked = with_declared({}, path, {"remote-beta", "remote-gamma"}, set())
    named = with_user(marked, path, "remote-beta")
    assert with_user(named, path, "remote-beta") is named
    assert with_declared(named, path, {"remote-beta", "remote-gamma"}, set()) is named
    assert with_declared(named, path, set(), set()) == {"users": [{"name": "remote-beta", "role": "remote"}]}


def conditions(status: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    return {each["type"]: (each["status"], each["reason"]) for each in status["conditions"]}


def sight(*states: str, **counts: Any) -> Sight:
    sights: dict[str, Sight] = {}
    for state in states:
        look(sights, AgentReport(clusters=(SeenCluster("beta", state, **counts), SeenCluster("gamma", "fresh"))))
    return sights["beta"]


@pytest.mark.parametrize(
    ("one", "refusal", "seen", "expected"),
    [
        (declared("beta"), None, None, ["False Accepted", "Unknown NotReported", "Unknown NotReported"]),
        (declared("beta"), None, sight("fresh"), ["False Accepted", "True AllConnected", "True AllSynced"]),
        (
            declared("beta"),
            None,
            sight("fresh", "syncing"),
            ["False Accepted", "True AllConnected", "False NotSynced"],
        ),
        (
            declared("beta"),
            None,
            sight("fresh", "stale", refused=3),
            ["True EntriesRefused", "False NotConnected", "False NotSynced"],
        ),
        (declared("beta", paused=True), None, sight("fresh"), ["False Accepted", "False Paused", "False Paused"]),
        (declared("beta"), Refusal("Invalid", "x"), None, ["True Invalid", "False Refused", "False Refused"]),
        (
            declared("beta"),
            Refusal("Invalid", "x"),
            sight("fresh"),
            ["True Invalid", "True AllConnected", "True AllSynced"],
        ),
    ],
)
def test_a_status_says_what_became_of_it(
    one: Declared, refusal: Refusal | None, seen: Sight | None, expected: list[str]
) -> None:
    nodes = 0 if seen is None else seen.nodes
    found = conditions(status_of(one, refusal, seen, Agents(nodes), 0.0))
    assert [" ".join(found[kind]) for kind in ("Refused", "Connected", "Synced")] == expected


@pytest.mark.parametrize(
    ("seen", "nodes", "lost", "expected", "says"),
    [
        (sight("fresh", "fresh"), 2, "", "True AllConnected", "2 of 2 nodes"),
        (sight("fresh", "fresh"), 3, "", "Unknown NotReported", "2 of 3 nodes; 1 of them do not report of it"),
        (
            sight("fresh", "stale", error="refused"),
            3,
            "",
            "False NotConnected",
            "1 of 3 nodes; refused; 1 of them do not",
        ),
        (sight("fresh", "stale"), 2, "", "False NotConnected", "1 of 2 nodes"),
        (sight("fresh"), 2, "w2", "False NotConnected", "1 of 2 nodes; no agent has reported on w2 for 5 minutes: see"),
        (sight("fresh"), 3, "w2", "False NotConnected", "1 of 3 nodes; no agent has reported on w2 for 5 minutes: see"),
        (sight("fresh"), 6, "a b c d e", "False NotConnected", "1 of 6 nodes; no agent has reported on a, b, c and 2"),
        (None, 2, "w1 w2", "False NotConnected", "0 of 2 nodes; no agent has reported on w1, w2 for"),
        (None, 2, "w2", "Unknown NotReported", "no agent has reported of it yet"),
        (None, 0, "", "Unknown NotReported", "no agent reports here yet, and Cilium"),
    ],
)
def test_of_a_node_that_is_silent_nobody_knows_and_false_is_what_an_agent_says_or_has_long_not(
    seen: Sight | None, nodes: int, lost: str, expected: str, says: str
) -> None:
    status = status_of(declared("beta"), None, seen, Agents(nodes, tuple(lost.split())), 0.0)
    assert " ".join(conditions(status)["Connected"]) == expected
    (message,) = [each["message"] for each in status["conditions"] if each["type"] == "Connected"]
    assert message.startswith(says)


def test_a_cluster_that_the_mirror_has_lost_is_not_connected_though_agents_see_its_copies() -> None:
    agents = Agents(2, (), {"beta": "stale: permission denied", "gamma": "connecting"})
    found = conditions(status_of(declared("beta"), None, sight("fresh", "fresh"), agents, 0.0))
    assert [" ".join(found[kind]) for kind in ("Connected", "Synced")] == ["False NotConnected", "False NotSynced"]


class FakeEtcd:
    def __init__(self, **kvs: bytes) -> None:
        self.kvs = [KeyValue(key=key.encode(), value=value) for key, value in sorted(kvs.items())]

    async def range(self, prefix: bytes) -> Listing:
        return Listing(1, [kv for kv in self.kvs if kv.key.startswith(prefix)])

    async def keys(self, prefix: bytes) -> list[bytes]:
        return [kv.key for kv in self.kvs if kv.key.startswith(prefix)]

    async def get(self, key: bytes) -> KeyValue | None:
        return next((kv for kv in self.kvs if kv.key == key), None)


REPORT = agent_report.encode(AgentReport(clusters=(SeenCluster("beta", "fresh", id=2),)))


@pytest.mark.parametrize(
    ("nodes", "agents", "reports", "expected"),
    [
        ("w1 w2", "w1 w2", "w1 w2", (2, 2)),
        ("w1 w2 windows", "w1 w2", "w1 w2", (2, 2)),  # where there never was an agent none is waited for
        ("w1 w2", "w1 w2 gone", "w1 gone", (1, 2)),  # what one says whose Node is gone hides nobody's silence
        ("w1 w2", "", "w1 w2", (2, 2)),  # their records were lost
        ("", "w1", "w1", (0, 0)),
        ("w1 a/b", "w1 a/b", "w1 a/b", (1, 1)),  # somebody's stray keys
    ],
)
async def test_agents_are_counted_by_the_names_of_nodes(
    nodes: str, agents: str, reports: str, expected: tuple[int, int]
) -> None:
    held = {f"cilium/state/nodes/v1/{OWN}/{name}": b"" for name in nodes.split()}
    held |= {f"{keys.AGENTS.decode()}{name}": b"" for name in agents.split()}
    held |= {f"{keys.STATUSES.decode()}{name}": REPORT for name in reports.split()}
    nobody = cast(Any, None)
    held[keys.MIRROR.decode()] = mirror_report.encode(MirrorReport({}, {"beta": "stale"}))
    keeper = Keeper(Task(nobody, "kube-system", OWN), FakePods(), cast(EtcdClient, FakeEtcd(**held)), print)
    sights, found = await keeper._look()
    assert (sights["beta"].nodes if sights else 0, found) == (expected[0], Agents(expected[1], (), {"beta": "stale"}))


class FakePods(Objects):
    """Those of the agents, on these nodes; None where the API refuses to tell."""

    def __init__(self, nodes: str | None = "") -> None:
        self.namespace, self.nodes, self.asked = "kube-system", nodes, 0

    async def list(self, _path: str, kind: type[Any], selector: str = "") -> list[Any]:
        assert selector == "k8s-app=clustermesh-agent"
        self.asked += 1
        if self.nodes is None:
            raise Refused("no pods for you")
        return [msgspec.convert({"spec": {"nodeName": node}}, kind) for node in self.nodes.split()]


@pytest.mark.parametrize(
    ("pods", "expected"),
    [("w1 w2", 2), ("w1", 1), ("w1 w3", 1), ("", 2), (None, 2)],
)
async def test_a_node_whose_agent_is_silent_is_waited_for_while_its_pod_is_there_and_lost_in_the_end(
    pods: str | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = {f"cilium/state/nodes/v1/{OWN}/{name}": b"" for name in ("w1", "w2")}
    held |= {f"{keys.AGENTS.decode()}{name}": b"" for name in ("w1", "w2")}
    held |= {f"{keys.STATUSES.decode()}w1": REPORT}
    clock = [1000.0]
    monkeypatch.setattr(keeping, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    objects = FakePods(pods)
    keeper = Keeper(Task(cast(Any, None), "kube-system", OWN), objects, cast(EtcdClient, FakeEtcd(**held)), print)
    for later in (0.0, SELDOM / 2, SILENCE - 1):
        clock[0] = 1000.0 + later
        assert (await keeper._look())[1] == Agents(expected)
    assert objects.asked == 2
    clock[0] = 1000.0 + SILENCE
    assert (await keeper._look())[1] == Agents(expected, ("w2",) * (expected == 2))
    keeper._etcd = cast(EtcdClient, FakeEtcd(**held, **{f"{keys.STATUSES.decode()}w2": REPORT}))
    assert (await keeper._look())[1] == Agents(2)


def test_a_condition_that_stays_keeps_its_time_and_counts_alone_are_written_seldom() -> None:
    first = status_of(declared("beta"), None, sight("fresh"), Agents(1), 1000.0)
    assert is_due({}, first, 0.0)
    same = status_of(Declared("beta", 1, {}, first), None, sight("fresh"), Agents(1), 2000.0)
    assert same == first
    assert not is_due(first, same, 1e9)
    more = status_of(Declared("beta", 1, {}, first), None, sight("fresh", services=5), Agents(1), 3000.0)
    assert more["conditions"] == first["conditions"]
    assert (is_due(first, more, SELDOM - 1), is_due(first, more, SELDOM)) == (False, True)
    gone = status_of(Declared("beta", 1, {}, first), None, sight("stale", error="refused"), Agents(1), 4000.0)
    times = {each["type"]: each["lastTransitionTime"] for each in gone["conditions"]}
    assert times["Refused"] == "1970-01-01T00:16:40Z"
    assert times["Connected"] == times["Synced"] == "1970-01-01T01:06:40Z"
    assert is_due(first, gone, 0.0)
    assert is_due(first, status_of(Declared("beta", 2, {}, first), None, sight("fresh"), Agents(1), 0.0), 0.0)


@pytest.mark.parametrize(
    "garbage",
    [
        {"conditions": 7},
        {"conditions": [{"type": 7}]},
        {"conditions": [{"type": "Refused", "status": "False", "lastTransitionTime": "soon"}]},
    ],
)
def test_a_status_that_somebody_else_wrote_is_written_anew(garbage: dict[str, Any]) -> None:
    found = status_of(
        Declared("beta", 1, {}, garbage), None, None, Agents(1), datetime(2026, 1, 1, tzinfo=UTC).timestamp()
    )
    assert {each["lastTransitionTime"] for each in found["conditions"]} == {"2026-01-01T00:00:00Z"}
    assert is_due(garbage, found, 0.0)


class FakeSecrets(Objects):
    """Remembers which were asked for."""

    def __init__(self) -> None:
        self.asked = list[str]()

    async def read(self, plural: str, name: str, kind: type[Any], root: str = "api/v1") -> Any:
        self.asked.append(name)
        return kind(data={"ca.crt": b"x"})


async def test_of_many_secrets_those_are_read_first_that_were_longest_not() -> None:
    secrets, nobody = FakeSecrets(), cast(Any, None)
    keeper = Keeper(Task(nobody, "kube-system", OWN), secrets, nobody, print)
    names = {f"s{number:03}" for number in range(250)}
    for read in (100, 200, 250):
        found = await keeper._trusted(names)
        assert sum(not isinstance(each, ClusterMeshError) for each in found.values()) == read
    assert sorted(secrets.asked[:250]) == sorted(names), "each once before any is read again"
    secrets.asked.clear()
    assert len(await keeper._trusted({"s001", "new"})) == 2
    assert secrets.asked == ["new", "s001"]
