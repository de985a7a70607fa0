"""Every annotation that is read, and every one that is written, of the names that the code has for them."""

from __future__ import annotations

from typing import Final, NamedTuple

from clustermesh.joining.holders import CERT_MANAGER
from clustermesh.multicluster.documents import DERIVED
from clustermesh.sources.details import STATE, WEIGHT
from clustermesh.sources.nodes import CILIUM_HOST, HEALTH_IPV4, HEALTH_IPV6, WIREGUARD_KEY, WIREGUARD_KEY_ALIAS
from clustermesh.sources.outside import ALGORITHM
from clustermesh.sources.services import AFFINITY, GLOBAL, SHARED, SYNC_SLICES
from clustermesh.sources.translate import NAMESPACE_GLOBAL
from tools.reference import code, table

_SAYS_YES: Final = "`true`; all else is no"


class Annotation(NamedTuple):
    """`names` are the annotation's own and its aliases; `wrong` is what holds where its value breaks the rule."""

    names: tuple[str, ...]
    on: str
    values: str
    says: str
    wrong: str = ""


ALL: Final = (
    Annotation(
        GLOBAL, "Service", _SAYS_YES, "shared with, and served by, every connected cluster that has a Service of "
        "this name in this namespace",
    ),
    Annotation(
        SHARED, "Service", _SAYS_YES, "of a global service: whether others may use the backends of this "
        "cluster; they may where it is not said",
    ),
    Annotation(AFFINITY, "Service", "`local`, `remote`, `none`", "whose backends come first", "`none`"),
    Annotation(
        (SYNC_SLICES,), "Service", _SAYS_YES, "of a global service: whether backends elsewhere stand in "
        "EndpointSlices of this cluster; a headless one has them unless this says no",
    ),
    Annotation(
        (ALGORITHM,), "Service", "`random`, `maglev`", "maglev: every node gives one connection from outside, "
        "to one and the same address, the same backend, and few move when one goes", "`random`",
    ),
    Annotation(
        (WEIGHT,), "Pod: `30`; Service: `10.1.0.5=30, 10.1.0.6=0`", "0 to 65535", "its part of new connections beside "
        "others; 100 where it is not said. 0 is maintenance", "100",
    ),
    Annotation(
        (STATE,), "Pod; Service, by address", "`active`, `maintenance`, `quarantined`",
        "the latter two: no new connections, those there are go on", "`active`",
    ),
    Annotation(
        (NAMESPACE_GLOBAL,), "Namespace", _SAYS_YES, "whether it is in the mesh; where it is not said, "
        "`clustermesh.defaultGlobalNamespace` of the chart does",
    ),
    Annotation(
        (WIREGUARD_KEY, WIREGUARD_KEY_ALIAS), "Node, CiliumNode", "a public key in base64", "the node's WireGuard key: "
        "Cilium's agents write it; ours say theirs in etcd", "the node's traffic is not encrypted by it",
    ),
    Annotation(
        (CILIUM_HOST,), "Node", "an address", "the router's address, which no pod is given; the first one of the pod "
        "CIDR where it is not said", "as where it is not said",
    ),
    Annotation((HEALTH_IPV4, HEALTH_IPV6), "Node", "an address", "where Cilium's health checks go", "none"),
    Annotation(
        (DERIVED,), "ServiceImport", "a Service's name", "written: the Service behind the import. An import without it "
        "is another implementation's and is left alone",
    ),
    Annotation(
        (f"{CERT_MANAGER}*",), "Secret", "any", "of certificates: cert-manager keeps it, so `certs rotate` leaves it "
        "alone",
    ),
)  # fmt: skip


def section() -> str:
    rows = [(", ".join(map(code, each.names)), each.on, each.values, each.says, each.wrong) for each in ALL]
    head = ("annotation", "on", "values", "what it does", "where it is wrong")
    return f"""## Annotations

A value that breaks its rule is a problem (`/readyz`, `clustermesh status`, the log) that names object, annotation and
rule; what then counts stands in the last column. What a Service says of an address counts more than what the Pod says
that has it.

{table(head, rows)}"""
