"""Which labels make an identity: Cilium's default filter and the labels it adds of its own. Pure.

Rules (Cilium: "Limiting Identity-Relevant Labels"): a pod's labels count, except those that Kubernetes and its
controllers hang on each pod, which would give every pod an identity of its own. Labels that only Cilium may set are
never taken from a pod: with them a pod could pass for one of another namespace or cluster. All labels of its namespace
count, but for those of beta.kubernetes.io.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from clustermesh.model import Label
from clustermesh.sources.pods import PodEndpoint
from clustermesh.wire.identity import (
    CLUSTER_LABEL,
    KUBERNETES,
    NAMESPACE_LABEL,
    NAMESPACE_LABELS_PREFIX,
    SERVICE_ACCOUNT_LABEL,
)

_IGNORED: Final = (
    "io.kubernetes",
    "io.cilium.k8s",
    "kubernetes.io",
    "k8s.io",
    "statefulset.kubernetes.io/pod-name",
    "apps.kubernetes.io/pod-index",
    "batch.kubernetes.io/job-completion-index",
    "batch.kubernetes.io/controller-uid",
    "controller-uid",
    "pod-template-generation",
    "pod-template-hash",
    "controller-revision-hash",
    "annotation",
    "etcd_node",
)
_BETA: Final = "beta.kubernetes.io"


def is_relevant(key: str) -> bool:
    """True for a pod label that counts for the pod's identity."""
    return not key.startswith(_IGNORED) and _BETA not in key


def identity_labels(cluster: str, endpoint: PodEndpoint) -> tuple[Label, ...]:
    """The labels of the endpoint's identity, sorted by key."""
    labels = {key: value for key, value in endpoint.labels.items() if is_relevant(key)}
    of_namespace = {key: value for key, value in endpoint.namespace_labels.items() if _BETA not in key}
    labels |= {NAMESPACE_LABELS_PREFIX + key: value for key, value in of_namespace.items()}
    labels[NAMESPACE_LABEL] = endpoint.namespace
    labels[CLUSTER_LABEL] = cluster
    labels[SERVICE_ACCOUNT_LABEL] = endpoint.service_account
    return _sorted(labels)


def _sorted(labels: Mapping[str, str]) -> tuple[Label, ...]:
    return tuple(Label(source=KUBERNETES, key=key, value=labels[key]) for key in sorted(labels))
