"""Why a backend of a service is used or not. Pure.

It is judged by the first of `_REASONS` that speaks against it; they stand in the order in which an agent would come to
them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from clustermesh.address import is_ipv4, parse
from clustermesh.why.facts import BackendFacts, ClusterFacts, Facts, FrontendFacts, ServiceCase, ServiceFacts
from clustermesh.why.findings import GLOBAL, Finding, Reason, explain_foreign, stale_note


class Case(NamedTuple):
    facts: Facts
    service: ServiceCase
    said: ServiceFacts
    local: ServiceFacts | None
    cluster: ClusterFacts

    @property
    def is_own(self) -> bool:
        return self.said.cluster == self.facts.own


def of_backend(one: Case, backend: BackendFacts) -> Finding:
    of = f"backend {backend.address} of {one.said.cluster}"
    for reason in _REASONS:
        if (found := reason(one, backend)) is not None:
            return Finding(of, False, *found)
    served = [each.at for each in one.service.frontends if _is_served(each, backend, one.said.cluster)]
    if not served:
        return Finding(of, False, "is at no frontend of the service", "see the lines of its frontends")
    return Finding(of, True, f"answers at {', '.join(served)}{stale_note(one.cluster)}")


def _is_served(frontend: FrontendFacts, backend: BackendFacts, cluster: str) -> bool:
    there = frontend.wanted if frontend.kernel is None else frontend.kernel
    lost = frontend.left_out or False
    return not lost and any(_host(each) == backend.address and each.endswith(f" {cluster}") for each in there)


def _host(place: str) -> str:
    return place.partition(" ")[0].rpartition(":")[0]


def _nowhere(one: Case, _backend: BackendFacts) -> Reason | None:
    if one.local is not None:
        return None
    return f"cluster {one.facts.own} has no Service {one.service.shown}", "make one there"


def _withheld(one: Case, _backend: BackendFacts) -> Reason | None:
    if not one.cluster.withheld:
        return None
    return (
        f"the services of {one.cluster.name} wait for the first WireGuard handshake with its nodes, 10 s at most",
        "see `clustermesh node encrypt status` if it stays so",
    )


def _not_global(one: Case, _backend: BackendFacts) -> Reason | None:
    if one.is_own or one.local is None or one.local.is_global:
        return None
    return f"Service {one.service.shown} of {one.facts.own} is not global", f'annotate it there with {GLOBAL}: "true"'


def _unshared(one: Case, _backend: BackendFacts) -> Reason | None:
    if one.is_own or one.said.shared:
        return None
    return f"{one.said.cluster} does not share it", 'have service.cilium.io/shared: "false" taken away there'


def _too_many(one: Case, _backend: BackendFacts) -> Reason | None:
    if "(limit)" not in one.said.refused:
        return None
    return f"the service of {one.said.cluster} {one.said.refused}", "raise clustermesh-limits in its peer file"


def _foreign(one: Case, backend: BackendFacts) -> Reason | None:
    """The address is not its cluster's to name."""
    if one.is_own:
        return None
    if backend.ours:
        return f"a service of {one.facts.own} is called at that address", "one of the two has to be elsewhere"
    if backend.standing is not None and backend.standing.cluster == one.said.cluster:
        return None
    return explain_foreign(one.said.cluster, backend.nodes, backend.standing)


def _portless(_one: Case, backend: BackendFacts) -> Reason | None:
    if not backend.ports or any(not port.startswith("0/") for port in backend.ports.values()):
        return None
    return "all of its ports are 0, where nobody answers", "correct the EndpointSlice"


def _affine(one: Case, backend: BackendFacts) -> Reason | None:
    local = one.local
    if local is None or local.affinity == "none" or not local.is_global:
        return None
    wanted = {_host(each) for frontend in one.service.frontends for each in frontend.wanted}
    if backend.address in wanted or not wanted:
        return None
    own = {each.address for each in local.backends}
    if local.affinity == "local" and not one.is_own and wanted & own:
        return f"its affinity is local, and {one.facts.own} has ready backends", "it is used once none of them is ready"
    if local.affinity == "remote" and one.is_own and wanted - own:
        return "its affinity is remote, and other clusters have ready backends", "it is used once none of them is ready"
    return None


def _unmatched(one: Case, backend: BackendFacts) -> Reason | None:
    """Frontends and backends meet by the names of ports, in one family."""
    if one.local is None or not one.local.frontends:
        return ("the service has no address to be called at (headless)", "") if one.local is not None else None
    family = is_ipv4(parse(backend.address))
    asked = {
        (name, port.partition("/")[2])
        for address, ports in one.local.frontends.items()
        if is_ipv4(parse(address)) is family
        for name, port in ports.items()
    }
    if not asked:
        kind = "IPv4" if family else "IPv6"
        return f"the service has no {kind} address", f"give it one (spec.ipFamilies), or {kind} to none of its Pods"
    offered = {(name, port.partition("/")[2]) for name, port in backend.ports.items()}
    if asked & offered:
        return None
    shown = (
        ", ".join(sorted(f"{name or 'nameless'}/{protocol}" for name, protocol in each)) for each in (offered, asked)
    )
    return "its ports are {}, and the service's are {}: ports meet by name".format(*shown), "give them the same names"


def _no_way(one: Case, backend: BackendFacts) -> Reason | None:
    node = backend.standing
    if node is None or not node.tunnel:
        return None
    why = f"there is no way to {node.shown}: it {node.tunnel}"
    return why, f"see `clustermesh node encrypt status`, and the agent of {node.name}"


def _unshaken(_one: Case, backend: BackendFacts) -> Reason | None:
    node = backend.standing
    if node is None or node.handshake is None or node.handshake:
        return None
    why = f"WireGuard has never shaken hands with {node.shown}"
    return why, "is UDP 51871 open between the nodes, and does an agent run there?"


_REASONS: Final[tuple[Callable[[Case, BackendFacts], Reason | None], ...]] = (
    _nowhere,
    _not_global,
    _unshared,
    _too_many,
    _foreign,
    _withheld,
    _portless,
    _unmatched,
    _affine,
    _no_way,
    _unshaken,
)
