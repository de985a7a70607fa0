"""cilium/state/identities/v1/id/<id>: the labels of an identity, as text (Cilium: pkg/identity/key/global_identity.go).

`k8s:app=cart;k8s:io.cilium.k8s.policy.cluster=west;`: sorted by key alone, each label closed by ";", nothing escaped.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Final

from clustermesh.errors import DecodeError, Invalid
from clustermesh.model import Identity, Label
from clustermesh.wire.decoding import decodes

CLUSTER_LABEL: Final = "io.cilium.k8s.policy.cluster"
NAMESPACE_LABEL: Final = "io.kubernetes.pod.namespace"
SERVICE_ACCOUNT_LABEL: Final = "io.cilium.k8s.policy.serviceaccount"
NAMESPACE_LABELS_PREFIX: Final = "io.cilium.k8s.namespace.labels."
KUBERNETES: Final = "k8s"
_UNSPECIFIED: Final = "unspec"  # the source of a label that names none


def encode(identity: Identity) -> bytes:
    """The labels of `identity` (its number is in the key).

    Invalid where there is none, a key stands twice, or a part holds what separates parts.
    """
    if not identity.labels:
        raise Invalid("labels", identity.id, "must be at least one")
    labels = sorted(identity.labels, key=lambda label: label.key)
    for label, following in pairwise(labels):
        if label.key == following.key:
            raise Invalid("label", label.key, "must not stand twice")
    text = "".join(_write_label(label) for label in labels)
    try:
        return text.encode()
    except UnicodeEncodeError as e:
        raise Invalid("labels", text, "must be valid Unicode") from e


@decodes("identity")
def decode(data: bytes, identity: int) -> Identity:
    """The labels of the identity with the number `identity`, in any order; raises DecodeError.

    Of two labels with one key the last one holds, as in Cilium.
    """
    labels = {label.key: label for label in map(_read_label, data.decode().split(";")) if label is not None}
    if not labels:
        raise DecodeError("labels", data[:120], "must be at least one")
    return Identity(id=identity, labels=tuple(labels[key] for key in sorted(labels)))


def cluster_of(identity: Identity) -> str | None:
    """The cluster that the labels name, or None."""
    for label in identity.labels:
        if label.key == CLUSTER_LABEL and label.source == KUBERNETES:
            return label.value
    return None


def _write_label(label: Label) -> str:
    if not label.key or "=" in label.key or not label.source or set(":=") & set(label.source):
        raise Invalid("label", f"{label.source}:{label.key}", "must have a source and a key, without ':' and '='")
    text = f"{label.source}:{label.key}={label.value}"
    if ";" in text:
        raise Invalid("label", text, "must not contain ';'")
    return text + ";"


def _read_label(text: str) -> Label | None:
    """None for the nothing between two ";"."""
    if not text:
        return None
    source, colon, rest = text.partition(":")
    if not colon:
        source, rest = _UNSPECIFIED, text
    key, _, value = rest.partition("=")
    if not key or not source or "=" in source:
        raise DecodeError("label", text, "must look like source:key=value")
    return Label(source=source, key=key, value=value)
