"""The checks, in the order in which one thing needs the other: each makes of the facts one row, or None where what it
looks at was not come to. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Final, NamedTuple

from certs.names import covers
from clustermesh.errors import Invalid
from clustermesh.model import ClusterConfig
from clustermesh.troubleshoot.facts import CertificateFacts, EndpointFacts, Facts
from clustermesh.wire import cluster_config, keys
from clustermesh.wire.timestamp import parse_time

OK, WARN, FAIL = "ok", "warn", "fail"
COUNTED: Final[Mapping[str, str]] = {
    "nodes": "nodes",
    "services": "services",
    "identities": "identities",
    "endpoints": "ip",
}
"""The kinds whose keys are counted on both sides, each with its folder in etcd."""
_SILENCE: Final = 75  # seconds; an API server beats every 60
_CLOCKS: Final = 5.0  # seconds that two clocks may be apart; HTTP tells whole ones
_SOON: Final = 30 * 86400.0


class Row(NamedTuple):
    """What one check says; `remedy` is "" where there is nothing to do."""

    check: str
    state: str
    says: str
    remedy: str = ""


Verdict = tuple[str, str, str]
Check = Callable[[Facts], Verdict | None]


def check(facts: Facts) -> list[Row]:
    """Every row that can be told."""
    return [Row(name, *verdict) for name, look in CHECKS.items() if (verdict := look(facts)) is not None]


def _file(facts: Facts) -> Verdict | None:
    if facts.problems:
        return FAIL, "; ".join(facts.problems), "correct the file in the peers folder, or `clustermesh connect` again"
    return OK, "the file is understood", ""


def _dns(facts: Facts) -> Verdict | None:
    return _of_endpoints(
        facts.endpoints,
        lambda each: each.dns_error,
        lambda each: f"{each.host} is {', '.join(each.addresses)}",
        "correct the host under `endpoints` of the peer's file, make it known to DNS, or name its address under "
        "`cilium-host-aliases` there",
    )


def _tcp(facts: Facts) -> Verdict | None:
    def remedy(failed: EndpointFacts) -> str:
        if "refused" in failed.tcp_error.lower():
            return "nothing listens there: start the peer's etcd, or correct the port under `endpoints`"
        return "nothing comes back: is that machine up, and do a firewall and the routes let this port through?"

    def good(each: EndpointFacts) -> str:
        return f"{each.url} takes connections" + (f", but not all of it: {each.dead}" if each.dead else "")

    reached = [each for each in facts.endpoints if not each.dns_error]
    return _of_endpoints(reached, lambda each: each.tcp_error, good, remedy)


def _tls(facts: Facts) -> Verdict | None:
    def good(each: EndpointFacts) -> str:
        return f"{each.url} shows {_shown(each.shown)}" if each.shown else f"{each.url} is not encrypted"

    reached = [each for each in facts.endpoints if not each.dns_error and not each.tcp_error]
    verdict = _of_endpoints(reached, _tls_error, good, lambda each: _tls_remedy(each, facts))
    ends = [each.shown.until for each in reached if each.shown]
    if verdict and verdict[0] == OK and ends and min(ends) - facts.now < _SOON:
        renew = "renew the server certificate of the peer's etcd: `clustermesh certs renew --all` there"
        return WARN, f"{verdict[1]}, which ends soon", renew
    return verdict


def _tls_error(each: EndpointFacts) -> str:
    if not each.tls_error or each.shown is None:
        return each.tls_error
    return f"{each.tls_error}; it shows {_shown(each.shown)}"


def _tls_remedy(each: EndpointFacts, facts: Facts) -> str:
    if "our certificate" in each.tls_error:
        return (
            f"the peer's etcd must trust {facts.own.issuer if facts.own else 'who signed ours'}, and ours must be "
            "valid: `clustermesh connect` again, or have the peer issue one (`clustermesh certs issue`)"
        )
    if "certificate file" in each.tls_error:
        return "restore that file, or `clustermesh connect` again"
    if "no connection within" in each.tls_error:
        return "it takes connections and says nothing: is etcd stopped (`kill -CONT`), or does its disk hang?"
    if each.shown is None:
        return "does etcd listen there with TLS, and not something else?"
    return _remedy_of_theirs(each, each.shown, facts)


def _remedy_of_theirs(each: EndpointFacts, shown: CertificateFacts, facts: Facts) -> str:
    if shown.until <= facts.now:
        return "renew the server certificate of the peer's etcd: `clustermesh certs renew --all` there"
    if not covers(shown.hosts, each.host):
        return f"give the peer's etcd a certificate for {each.host}, or dial one of: {', '.join(shown.hosts)}"
    trusted = ", ".join(facts.trusted) or "nobody"
    if shown.issuer in facts.trusted:  # most authorities are called the same
        trusted = f"another authority that is called {shown.issuer} too"
    return (
        f"{shown.issuer} signed it, and the file trusts {trusted}: take the peer's "
        "present CA as `trusted-ca-file`, with `clustermesh connect` or by hand"
    )


def _certificate(facts: Facts) -> Verdict | None:
    if facts.own_error:
        return FAIL, facts.own_error, "restore the file, or `clustermesh connect` again"
    if facts.own is None:
        return None
    says, remedy = f"ours is {_shown(facts.own)}", "`clustermesh connect` again renews it"
    if facts.own.until <= facts.now:
        return FAIL, f"{says}: it has expired", remedy
    soon = facts.own.until - facts.now < _SOON
    return (WARN, f"{says}, which is soon", remedy) if soon else (OK, says, "")


def _etcd(facts: Facts) -> Verdict | None:
    etcd = facts.etcd
    if etcd is None:
        return None
    if etcd.error:
        return FAIL, etcd.error, "is the peer's etcd stopped or without a majority? see what it printed last"
    if not etcd.leader:
        return FAIL, f"etcd {etcd.version} has no leader", "start the other members of the peer's etcd"
    if etcd.alarms:
        return WARN, f"etcd has raised {', '.join(etcd.alarms)}", "see docs/failures.md, corrupt etcd"
    return OK, f"etcd {etcd.version} answers", ""


def _rights(facts: Facts) -> Verdict | None:
    etcd = facts.etcd
    if etcd is None or etcd.error:
        return None
    user = facts.own.name if facts.own else "nobody"
    if not etcd.refused:
        return OK, f"the user {user} reads all that a peer reads", ""
    if len(etcd.refused) == etcd.asked:
        add = f"add {user} to users.yaml of the peer (`clustermesh connect` does), and let its API server run"
        return FAIL, f"the user {user} may read nothing there: unknown, or without a role", add
    grant = "give the peer's role `remote` these keys: its API server does when it starts"
    return FAIL, f"the user {user} may not read {', '.join(etcd.refused)}", grant


def _config(facts: Facts) -> Verdict | None:
    if facts.etcd is None or facts.etcd.error:
        return None
    key = keys.cluster_config_key(facts.name)
    if key.decode() in facts.etcd.refused:
        return None
    if facts.etcd.config is None:
        remedy = "start the peer's API server; does it have that name, or is this the etcd of another cluster?"
        return FAIL, f"there is no {key.decode()}", remedy
    try:
        config = cluster_config.decode(facts.etcd.config)
    except Invalid as e:
        return FAIL, f"its configuration cannot be read: {e}", "run a release there that writes what this one reads"
    known = facts.file and facts.file.cluster_id
    if known and known != config.id:
        remedy = "`clustermesh connect` again if that is meant; else it is the etcd of another cluster"
        return FAIL, f"it says that its id is {config.id}, and the file says {known}", remedy
    return OK, f"cluster id {config.id}, up to {config.max_connected_clusters or 255} clusters", ""


def _heartbeat(facts: Facts) -> Verdict | None:
    etcd = facts.etcd
    if etcd is None or etcd.error or keys.HEARTBEAT.decode() in etcd.refused:
        return None
    remedy = "is the peer's API server running, and does it reach its etcd?"
    if etcd.heartbeat is None:
        return FAIL, "there is no heartbeat", remedy
    try:
        beat = parse_time(etcd.heartbeat.decode())
    except (Invalid, UnicodeDecodeError):
        return WARN, "the heartbeat holds no time", "run Cilium or this project as the peer's API server"
    age = max(0, round(facts.now + (_ahead(facts) or 0.0)) - beat)
    return (FAIL, f"the last heartbeat is {age} s old", remedy) if age > _SILENCE else (OK, f"{age} s old", "")


def _canaries(facts: Facts) -> Verdict | None:
    config = parsed_config(facts)
    if config is None or facts.etcd is None or keys.canary_prefix(facts.name).decode() in facts.etcd.refused:
        return None
    if not config.synced_canaries:
        return WARN, "it does not say when its lists are complete", "run a release of Cilium from 1.14 on there"
    missing = [
        kind
        for kind, folder in COUNTED.items()
        if keys.canary_key(facts.name, folder, config.cached) not in facts.etcd.canaries
    ]
    if missing:
        who = "`clustermesh kvstoremesh`" if config.cached else "the peer's API server"
        remedy = f"{who} has not written them all yet: wait, then see what its /readyz says"
        return FAIL, f"not complete yet: {', '.join(missing)}", remedy
    return OK, "all lists are complete", ""


def _clock(facts: Facts) -> Verdict | None:
    ahead = _ahead(facts)
    if ahead is None:
        return None
    if abs(ahead) <= _CLOCKS:
        return OK, "the clocks agree", ""
    which = "ahead of" if ahead > 0 else "behind"
    return WARN, f"its clock is {abs(ahead):.0f} s {which} ours", "let both machines keep time, with chrony or ntpd"


def _mirror(facts: Facts) -> Verdict | None:
    if facts.cached_error:
        return WARN, f"the own etcd cannot be read: {facts.cached_error}", "see `clustermesh status`"
    if facts.behind:
        remedy = "what was copied is kept; `clustermesh troubleshoot --cluster-name` in its container goes its way"
        return FAIL, f"the mirror has it as {facts.behind}", remedy
    if facts.cached is None or not _counted(facts):
        return None
    return _compared(
        "the mirror", _counted(facts), facts.cached, "see /readyz and the log of `clustermesh kvstoremesh`"
    )


def _agent(facts: Facts) -> Verdict | None:
    agent = facts.agent
    if agent is None:
        return None
    if agent.state != "fresh":
        said = f"the agent has it as {agent.state}{f': {agent.error}' if agent.error else ''}"
        return FAIL, said, "see the lines above; else `clustermesh node status`"
    if agent.refused:
        return WARN, f"the agent refuses {agent.refused} entries", "`clustermesh node refused` says which, and why"
    return _compared("the agent", _counted(facts) or agent.counts, agent.counts, "see `clustermesh node refused`")


def _keys(facts: Facts) -> Verdict | None:
    if not _counted(facts):
        return None
    return OK, _told(_counted(facts)), ""


CHECKS: Final[Mapping[str, Check]] = {
    "file": _file,
    "dns": _dns,
    "tcp": _tcp,
    "tls": _tls,
    "certificate": _certificate,
    "etcd": _etcd,
    "rights": _rights,
    "config": _config,
    "heartbeat": _heartbeat,
    "canaries": _canaries,
    "clock": _clock,
    "keys": _keys,
    "mirror": _mirror,
    "agent": _agent,
}


def parsed_config(facts: Facts) -> ClusterConfig | None:
    """What the peer says first, where it can be read."""
    try:
        return cluster_config.decode(facts.etcd.config) if facts.etcd and facts.etcd.config is not None else None
    except Invalid:
        return None


def _of_endpoints(
    endpoints: Iterable[EndpointFacts],
    error: Callable[[EndpointFacts], str],
    good: Callable[[EndpointFacts], str],
    remedy: str | Callable[[EndpointFacts], str],
) -> Verdict | None:
    """All of them well; or the errors, which are no failure while one endpoint works."""
    every = list(endpoints)
    if not every:
        return None
    failed = [each for each in every if error(each)]
    if not failed:
        return OK, "; ".join(map(good, every)), ""
    todo = remedy if isinstance(remedy, str) else remedy(failed[0])
    return WARN if len(failed) < len(every) else FAIL, "; ".join(map(error, failed)), todo


def _shown(of: CertificateFacts) -> str:
    return f"{of.name or 'a nameless certificate'}, signed by {of.issuer or '?'}, until {_day(of.until)}"


def _day(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%F}"


def _ahead(facts: Facts) -> float | None:
    return next((each.ahead for each in facts.endpoints if each.ahead is not None), None)


def _counted(facts: Facts) -> Mapping[str, int]:
    return facts.etcd.counts if facts.etcd and not facts.etcd.error else {}


def _compared(who: str, there: Mapping[str, int], here: Mapping[str, int], remedy: str) -> Verdict:
    apart = [f"{here.get(kind, 0)} of {there[kind]} {kind}" for kind in there if here.get(kind, 0) != there[kind]]
    if apart:
        return WARN, f"{who} holds {', '.join(apart)}", f"look again in some seconds; if it stays, {remedy}"
    return OK, f"{who} holds {_told(there)}", ""


def _told(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in counts.items())
