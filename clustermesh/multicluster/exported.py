"""The EndpointSlices of a Service without a selector that this cluster exports, once more for the Service behind the
import, through which all clusters call it: no selector could find its backends. Pure.

They are this cluster's own backends, so they do not carry the label of backends elsewhere. A port by which this cluster
means something else than the import is left out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Set

from clustermesh.multicluster.documents import (
    EXPORTED,
    MANAGED_BY,
    SERVICE_NAME,
    SERVICES,
    SLICES,
    SOURCE_CLUSTER,
    Document,
    Name,
    Write,
    owned_by,
    settle,
    short,
)
from clustermesh.sources.index import SERVICE_NAME as OF_SERVICE
from clustermesh.sources.objects import Conditions, EndpointSlice, SliceEndpoint

_TYPES = ("IPv4", "IPv6")


def exported_writes(wanted: Mapping[Name, Document], held: Mapping[Name, Document]) -> list[Write]:
    """What makes of the slices that are `held` those that are `wanted`: new ones first."""
    made = [write for name, each in wanted.items() for write in settle(SLICES, name, held.get(name), each)]
    return made + [Write("DELETE", SLICES, name) for name in held.keys() - wanted.keys()]


def exported_slices(
    cluster: str, name: Name, derived: Document, slices: Mapping[str, EndpointSlice], ports: Set[str]
) -> dict[Name, Document]:
    """Of the `slices` of the Service `name` those that `derived`, the Service behind its import, is to have, with the
    `ports` of these names."""
    meta = derived["metadata"]
    by = owned_by(SERVICES, meta["name"], meta.get("uid", ""))
    labels = {OF_SERVICE: meta["name"], SERVICE_NAME: name[1], SOURCE_CLUSTER: cluster, MANAGED_BY: EXPORTED}
    found = dict[Name, Document]()
    for of, each in slices.items():
        shared = [port for port in each.ports if (port.name or "") in ports]
        if each.address_type not in _TYPES or (each.ports and not shared):
            continue
        found[name[0], f"{meta['name']}-{short(hashlib.sha256(of.encode()).digest())}"] = {
            "metadata": {"labels": labels, "ownerReferences": by},
            "addressType": each.address_type,
            "endpoints": [_endpoint(one) for one in each.endpoints],
            "ports": [
                {"name": port.name or "", "protocol": port.protocol or "TCP", "port": port.port} for port in shared
            ],
        }
    return found


def _endpoint(found: SliceEndpoint) -> Document:
    named = {"hostname": found.hostname, "nodeName": found.node_name, "zone": found.zone}
    said = {key: value for key, value in named.items() if value}
    return {"addresses": list(found.addresses), "conditions": _conditions(found.conditions), **said}


def _conditions(found: Conditions) -> Document:
    named = {"ready": found.ready, "serving": found.serving, "terminating": found.terminating}
    return {key: value for key, value in named.items() if value is not None}
