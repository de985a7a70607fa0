"""Pod CIDRs found in manifests, and overlaps between clusters, against comparing every pair."""

from __future__ import annotations

import ipaddress
import itertools
import json
import os
from pathlib import Path

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from clustermesh.address import parse_prefix, prefix_text
from clustermesh.standalone.pod_cidrs import PodCidr, find_overlap, read_pod_cidrs

NODE = "apiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\nspec: {{podCIDR: {cidr}, podCIDRs: [{cidr}, {v6}]}}\n"


def _networks(manifests: Path) -> list[str]:
    return sorted(prefix_text(c.prefix) for c in read_pod_cidrs(manifests, "alpha"))


def test_nodes_are_found_in_every_form_people_write(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.yaml").write_text(
        "kind: Service\n---\n" + NODE.format(name="n1", cidr="10.1.0.0/24", v6="fd00:1::/64") + "---\n---\n"
    )
    node = {
        "kind": "Node",
        "metadata": {"name": "n2", "labels": {"mood": "\N{GRINNING FACE}"}},
        "spec": {"podCIDR": "10.1.1.0/24"},
    }
    (tmp_path / "sub" / "b.json").write_text(json.dumps(node, indent="\t"))
    listed = {
        "kind": "List",
        "items": [{"kind": "Node", "metadata": {"name": "n3"}, "spec": {"podCIDRs": ["10.1.2.0/24"]}}],
    }
    (tmp_path / "sub" / "c.yml").write_text(json.dumps(listed))
    (tmp_path / "ignored.txt").write_text(NODE.format(name="n4", cidr="10.1.9.0/24", v6="fd00:9::/64"))
    assert _networks(tmp_path) == ["10.1.0.0/24", "10.1.1.0/24", "10.1.2.0/24", "fd00:1::/64"]


def test_what_is_broken_hides_nothing_beside_it(tmp_path: Path) -> None:
    (tmp_path / "good.yaml").write_text(NODE.format(name="n1", cidr="10.1.0.0/24", v6="fd00:1::/64"))
    (tmp_path / "broken.yaml").write_text("podCIDR: [")
    (tmp_path / "broken.json").write_text('{"podCIDR": ')
    (tmp_path / "deep.json").write_text('{"podCIDR": ' + "[" * 100_000)
    (tmp_path / "deep.yaml").write_text("podCIDR: " + "[" * 100_000)
    (tmp_path / "odd.yaml").write_text(
        "[podCIDR]\n---\nkind: Node\n---\n{kind: Node, spec: {podCIDR: 7, podCIDRs: x}}\n"
        "---\n{kind: Node, spec: [podCIDR], metadata: 1}\n"
        "---\n&a {items: [*a, 3]}\n"
    )
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "dead.yaml").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe.yaml")
    assert _networks(tmp_path) == ["10.1.0.0/24", "fd00:1::/64"]


def test_absent_folder_has_no_nodes(tmp_path: Path) -> None:
    assert read_pod_cidrs(tmp_path / "none", "alpha") == []


def _cidr(text: str, cluster: str) -> PodCidr:
    return PodCidr(parse_prefix(text), cluster, "n")


def test_overlap_names_the_pair_in_the_order_asked() -> None:
    ours, theirs = [_cidr("10.1.0.0/16", "a"), _cidr("10.9.0.0/24", "a")], [_cidr("10.1.7.0/24", "b")]
    assert find_overlap(ours, theirs) == (ours[0], theirs[0])
    assert find_overlap(theirs, ours) == (theirs[0], ours[0])


def _network(version: int, bits: int, cut: int) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    # Sixteen addresses and all lengths, so that overlaps are as common as their absence; of IPv6 only those above 8::,
    # since ::/1 holds the addresses that IPv4 is mapped to.
    width, bits = (32, bits) if version == 4 else (128, bits | 8)
    value = (bits << (width - 4)) >> (width - cut) << (width - cut)
    kind = ipaddress.IPv4Network if version == 4 else ipaddress.IPv6Network
    return kind((value, cut))


NETWORKS = st.builds(_network, st.sampled_from([4, 4, 4, 6]), st.integers(0, 15), st.sampled_from([1, 2, 3, 4, 4, 4]))


@settings(suppress_health_check=[HealthCheck.too_slow], max_examples=400)
@example([_network(4, 0, 1), _network(4, 0, 4)], [_network(4, 1, 4)])
@given(st.lists(NETWORKS, max_size=8), st.lists(NETWORKS, max_size=8))
def test_overlap_is_found_iff_comparing_every_pair_finds_one(first: list[object], second: list[object]) -> None:
    ours = [PodCidr(parse_prefix(str(n)), "a", str(i)) for i, n in enumerate(first)]  # type: ignore[arg-type]
    theirs = [PodCidr(parse_prefix(str(n)), "b", str(i)) for i, n in enumerate(second)]  # type: ignore[arg-type]
    pairs = {
        (a, b)
        for a, b in itertools.product(ours, theirs)
        if type(first[int(a.node)]) is type(second[int(b.node)]) and first[int(a.node)].overlaps(second[int(b.node)])
    }
    found = find_overlap(ours, theirs)
    assert (found in pairs) if pairs else found is None
