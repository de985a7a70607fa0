"""Pod, its Namespace, its Node -> who is behind an address. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress

from msgspec import Struct

from clustermesh.address import Address
from clustermesh.errors import Invalid
from clustermesh.sources.faults import Faults
from clustermesh.sources.objects import Namespace, Pod, Ref
from clustermesh.sources.rules import check_dns_subdomain, parse_ip


class PodEndpoint(Struct, frozen=True, gc=False, kw_only=True):
    """One address of a pod. Its identity is a number for `labels`, those of its namespace and its service account."""

    ip: Address
    namespace: str
    pod_name: str
    service_account: str
    node: str
    host_ip: Address | None
    labels: Mapping[str, str]
    namespace_labels: Mapping[str, str]


def translate_pod(
    ref: Ref, pod: Pod, namespace: Namespace | None, host_ip: Address | None, faults: Faults
) -> Iterator[PodEndpoint]:
    """The pod's addresses; none for a pod on the host's network, or that has ended.

    `host_ip` is None where the pod's node is not known; the pod's own status is asked then.
    """
    spec, status = pod.spec, pod.status
    if spec.host_network or has_ended(pod):
        return
    if not faults.check(ref, check_dns_subdomain, "spec.serviceAccountName", spec.service_account_name):
        return
    texts = [p.ip for p in status.pod_ips] or [status.pod_ip]
    for ip in [faults.check(ref, parse_ip, "status.podIP", text) for text in texts if text]:
        if ip:
            yield PodEndpoint(
                ip=ip,
                namespace=ref.namespace,
                pod_name=ref.name,
                service_account=spec.service_account_name,
                node=spec.node_name,
                host_ip=host_ip or _host_ip(ref, pod, faults),
                labels=pod.metadata.labels,
                namespace_labels=namespace.metadata.labels if namespace else {},
            )


def has_ended(pod: Pod) -> bool:
    """Nothing of it runs, or will."""
    return pod.status.phase in ("Succeeded", "Failed")


def pod_ips(pod: Pod) -> Iterator[Address]:
    """Those that are addresses; of the others the pod's own translation says so."""
    for text in [p.ip for p in pod.status.pod_ips] or [pod.status.pod_ip]:
        with suppress(Invalid):
            yield parse_ip("", text)


def _host_ip(ref: Ref, pod: Pod, faults: Faults) -> Address | None:
    if not pod.status.host_ip:
        rule = "must be a Node with an InternalIP: nobody can say where the pod runs"
        faults.note(ref, Invalid("spec.nodeName", pod.spec.node_name, rule))
        return None
    return faults.check(ref, parse_ip, "status.hostIP", pod.status.host_ip)
