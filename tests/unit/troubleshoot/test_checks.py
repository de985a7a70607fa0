"""One row at a time: what it says of good facts, and what of bad ones it calls bad, with what to do."""

from typing import Any

import pytest
from msgspec.structs import replace

from clustermesh.mesh.peer_files import PeerFile
from clustermesh.model import ClusterConfig
from clustermesh.troubleshoot.checks import CHECKS, COUNTED, Row, check
from clustermesh.troubleshoot.facts import AgentFacts, CertificateFacts, EndpointFacts, EtcdFacts, Facts
from clustermesh.wire import cluster_config, keys
from clustermesh.wire.timestamp import format_time

NOW = 1_800_000_000.0
DAY = 86400.0
URL = "https://beta:2379"
SERVER = CertificateFacts("server", "beta-ca", NOW + 90 * DAY, ("beta", "127.0.0.1"))
ENDPOINT = EndpointFacts(url=URL, host="beta", addresses=("192.0.2.7",), shown=SERVER, ahead=0.3)
CONFIG = ClusterConfig(id=2, synced_canaries=True, max_connected_clusters=511)
COUNTS = {"nodes": 3, "services": 2, "identities": 5, "endpoints": 9}
ETCD = EtcdFacts(
    version="3.5.16",
    asked=7,
    config=cluster_config.encode(CONFIG),
    heartbeat=format_time(int(NOW) - 20).encode(),
    canaries=frozenset(keys.canary_key("beta", folder) for folder in COUNTED.values()),
    counts=COUNTS,
)
WELL = Facts(
    name="beta",
    now=NOW,
    file=PeerFile(name="beta", endpoints=(URL,), cluster_id=2),
    endpoints=(ENDPOINT,),
    own=CertificateFacts("remote-alpha", "beta-ca", NOW + 90 * DAY),
    trusted=("beta-ca",),
    etcd=ETCD,
    agent=AgentFacts("fresh", counts=COUNTS),
    cached=COUNTS,
)


def row(facts: Facts, name: str) -> Row:
    return next(each for each in check(facts) if each.check == name)


def endpoint(**changed: Any) -> Facts:
    return replace(WELL, endpoints=(replace(ENDPOINT, **changed),))


def etcd(**changed: Any) -> Facts:
    return replace(WELL, etcd=replace(ETCD, **changed))


def test_all_is_well_and_nothing_is_to_be_done() -> None:
    rows = check(WELL)
    assert [each.check for each in rows] == list(CHECKS)
    assert {each.state for each in rows} == {"ok"}
    assert not any(each.remedy for each in rows)


BAD = {
    "file": (replace(WELL, problems=("endpoints: None: must be a list",)), "fail", "must be a list", "connect"),
    "no address": (endpoint(dns_error="beta has no address: unknown"), "fail", "no address", "cilium-host-aliases"),
    "closed": (endpoint(tcp_error=f"{URL}: Connection refused"), "fail", "refused", "start the peer's etcd"),
    "hanging": (endpoint(tcp_error=f"{URL}: no answer within 3 s"), "fail", "no answer", "firewall"),
    "wrong CA": (
        replace(endpoint(tls_error="unable to get local issuer certificate"), trusted=("other-ca",)),
        "fail",
        "signed by beta-ca",
        "trusts other-ca",
    ),
    "wrong CA of the same name": (
        endpoint(tls_error="unable to get local issuer certificate"),
        "fail",
        "signed by beta-ca",
        "another authority that is called beta-ca too",
    ),
    "expired there": (
        endpoint(tls_error="certificate has expired", shown=replace(SERVER, until=NOW - DAY)),
        "fail",
        "has expired",
        "renew the server certificate",
    ),
    "wrong name": (
        endpoint(tls_error="Hostname mismatch", shown=replace(SERVER, hosts=("gamma",))),
        "fail",
        "Hostname mismatch",
        "a certificate for beta, or dial one of: gamma",
    ),
    "ours unwanted": (
        endpoint(tls_error="etcd does not accept our certificate: bad certificate"),
        "fail",
        "our certificate",
        "must trust beta-ca",
    ),
    "our file": (endpoint(tls_error="certificate file x.crt: No such file"), "fail", "No such", "restore"),
    "no TLS": (endpoint(tls_error="handshake failed: wrong version number", shown=None), "fail", "wrong", "with TLS"),
    "silent": (endpoint(tls_error="no connection within 3 s", shown=None), "fail", "within 3 s", "kill -CONT"),
    "ends soon there": (endpoint(shown=replace(SERVER, until=NOW + DAY)), "warn", "ends soon", "renew"),
    "own expired": (
        replace(WELL, own=CertificateFacts("remote-alpha", "beta-ca", NOW - DAY)),
        "fail",
        "expired",
        "connect",
    ),
    "own ends soon": (
        replace(WELL, own=CertificateFacts("remote-alpha", "beta-ca", NOW + DAY)),
        "warn",
        "soon",
        "connect",
    ),
    "own unreadable": (replace(WELL, own=None, own_error="beta.crt: No such file"), "fail", "No such", "restore"),
    "etcd silent": (etcd(error="etcd at beta gave no answer in time"), "fail", "no answer", "majority"),
    "no leader": (etcd(leader=False), "fail", "no leader", "other members"),
    "alarm": (etcd(alarms=("NOSPACE",)), "warn", "NOSPACE", "docs/failures.md"),
    "unknown user": (etcd(refused=("x",) * 7), "fail", "remote-alpha may read nothing", "users.yaml"),
    "some rights": (etcd(refused=("cilium/state/ip/v1/default/",)), "fail", "cilium/state/ip", "role `remote`"),
    "no config": (etcd(config=None), "fail", "no cilium/cluster-config/beta", "another cluster"),
    "garbled config": (etcd(config=b"{"), "fail", "cannot be read", "release"),
    "another id": (
        etcd(config=cluster_config.encode(replace(CONFIG, id=3))),
        "fail",
        "its id is 3, and the file says 2",
        "connect",
    ),
    "no heartbeat": (etcd(heartbeat=None), "fail", "no heartbeat", "API server running"),
    "old heartbeat": (etcd(heartbeat=format_time(int(NOW) - 300).encode()), "fail", "300 s old", "API server running"),
    "odd heartbeat": (etcd(heartbeat=b"\xff"), "warn", "holds no time", "run"),
    "no canary": (
        etcd(canaries=ETCD.canaries - {keys.canary_key("beta", "ip")}),
        "fail",
        "not complete yet: endpoints",
        "readyz",
    ),
    "never canaries": (
        etcd(config=cluster_config.encode(replace(CONFIG, synced_canaries=False))),
        "warn",
        "does not say",
        "1.14",
    ),
    "clock": (endpoint(ahead=-61.0), "warn", "61 s behind", "chrony"),
    "mirror behind": (replace(WELL, cached={**COUNTS, "nodes": 1}), "warn", "1 of 3 nodes", "kvstoremesh"),
    "own etcd": (replace(WELL, cached_error="no connection"), "warn", "no connection", "clustermesh status"),
    "agent stale": (replace(WELL, agent=AgentFacts("stale", "gone")), "fail", "stale: gone", "node status"),
    "agent refuses": (replace(WELL, agent=AgentFacts("fresh", "", 4, COUNTS)), "warn", "4 entries", "node refused"),
    "agent behind": (
        replace(WELL, agent=AgentFacts("fresh", counts={**COUNTS, "services": 0})),
        "warn",
        "0 of 2 services",
        "node refused",
    ),
}


@pytest.mark.parametrize(("facts", "state", "says", "remedy"), BAD.values(), ids=BAD)
def test_what_is_wrong_is_said_with_what_to_do(facts: Facts, state: str, says: str, remedy: str) -> None:
    bad = [each for each in check(facts) if each.state != "ok"]
    assert bad[0].state == state
    assert says in bad[0].says
    assert remedy in bad[0].remedy


def test_every_row_that_is_not_well_says_what_to_do() -> None:
    assert all(each.remedy for facts, *_ in BAD.values() for each in check(facts) if each.state != "ok")


def test_one_of_two_endpoints_is_enough() -> None:
    broken = replace(ENDPOINT, url="https://gamma:2379", host="gamma", tcp_error="https://gamma:2379: refused")
    assert row(replace(WELL, endpoints=(broken, ENDPOINT)), "tcp").state == "warn"


def test_what_was_not_come_to_has_no_row() -> None:
    rows = check(replace(endpoint(dns_error="beta has no address"), etcd=None, agent=None, cached=None))
    assert [each.check for each in rows] == ["file", "dns", "certificate", "clock"]


def test_the_age_of_a_heartbeat_is_told_by_the_clock_that_wrote_it() -> None:
    facts = replace(endpoint(ahead=-300.0), etcd=replace(ETCD, heartbeat=format_time(int(NOW) - 310).encode()))
    assert row(facts, "heartbeat").state == "ok"


def test_a_mirror_s_etcd_has_the_canaries_of_its_copies() -> None:
    config = cluster_config.encode(replace(CONFIG, cached=True))
    canaries = frozenset(keys.canary_key("beta", folder, cached=True) for folder in COUNTED.values())
    assert row(etcd(config=config, canaries=canaries), "canaries").state == "ok"
    assert row(etcd(config=config), "canaries").state == "fail"
