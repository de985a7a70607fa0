"""Whatever stands in the folder: nothing is raised, and whatever is published is something a reader takes."""

from __future__ import annotations

from typing import Any

import kube
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from clustermesh.apiserver.identities import Allocator
from clustermesh.apiserver.publish import publish
from clustermesh.model import Cluster
from clustermesh.sources.table import ObjectTable, read_manifest
from clustermesh.sources.translate import translate
from clustermesh.wire import decode_entry, keys, local

ALPHA = Cluster(name="alpha", id=1)
GOOD = [
    kube.service("cart", selector={"app": "cart"}, ports=[{"name": "http", "port": 80, "targetPort": "web"}]),
    kube.service("db", clusterIP="None"),
    kube.endpoint_slice("db-1", "db", ["10.1.0.5", "fd00::1"]),
    kube.pod("cart-0", "10.1.0.7", {"app": "cart"}),
    kube.node("n1", "192.0.2.1", "10.1.0.0/24", "fd00:1::/64"),
    kube.namespace("shop", global_="true", team="red"),
]
_TEXTS = st.sampled_from(
    [
        "",
        "x",
        "A",
        "a/b",
        "..",
        "a;b=c",
        "ü",
        "\n",
        "\u2028<>&",
        "x" * 300,
        "10.1.0.9",
        "::1",
        "::ffff:1.2.3.4",
        "10.0.0.0/8",
        "10.1.0.1/24",
        "0.0.0.0/0",
        "::/0",
        "None",
        "TCP",
        "udp",
        "ANY",
        "web",
        "true",
        "false",
        "null",
        "n1",
        "shop",
        "cart",
        "io.kubernetes.pod.namespace",
        "kubernetes.io/service-name",
        "service.cilium.io/global",
    ]
)
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 70000) | st.floats() | _TEXTS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(_TEXTS, inner, max_size=2),
    max_leaves=4,
)


def _places(value: object, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a tree, the root aside."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, item in inner for place in [(*path, key), *_places(item, (*path, key))]]


@st.composite
def _spoilt(draw: st.DrawFn) -> str:
    """The good manifests with something else in some of their places."""
    documents: Any = yaml.safe_load(yaml.safe_dump(GOOD))
    for _ in range(draw(st.integers(1, 4))):
        *path, last = draw(st.sampled_from(_places(documents)))
        at = documents
        for step in path:
            at = at[step]
        if draw(st.booleans()):
            at[last] = draw(_VALUES)
        elif isinstance(at, dict):
            at[draw(_TEXTS)] = at.pop(last)
    return yaml.safe_dump_all(documents, allow_unicode=True)


@pytest.mark.long
@settings(max_examples=400, deadline=None)
@given(_spoilt())
def test_spoilt_manifests_raise_nothing_and_publish_nothing_that_a_reader_would_refuse(text: str) -> None:
    table = ObjectTable()
    table.put("a.yaml", read_manifest("a.yaml", text.encode()))
    snapshot, faults = translate(ALPHA, table.objects)
    assert all(isinstance(sentence, str) for _, sentence in faults)
    for entries in publish(ALPHA, snapshot, Allocator(ALPHA), {}, now=1).values():
        for key, value in entries.items():
            if value is not None:
                _read(key, value)
    assert all(str(problem) for problem in table.problems())


def _read(key: bytes, value: bytes) -> None:
    """As a peer, or a node of our own, would. Raises DecodeError."""
    if key.startswith(keys.STATE):
        decode_entry(key, value, ALPHA)
    else:
        assert keys.parse_local_service(key)
        local.decode_service(value)
