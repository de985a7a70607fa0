"""Identity numbers against a brute-force twin that reads the bits one by one."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clustermesh.errors import Invalid
from clustermesh.model import Cluster
from clustermesh.wire import numbering

sizes = st.sampled_from([255, 511])


def owner_by_bits(identity: int, size: int) -> tuple[int, int]:
    """Scope and cluster id, from the number written in binary."""
    bits = f"{identity:032b}"
    return int(bits[:8], 2), int(bits[8 : 8 + len(f"{size:b}")], 2)


@given(size=sizes, identity=st.integers(0, 2**32 - 1) | st.integers(0, 2**18), data=st.data())
def test_cluster_owns_exactly_the_global_identities_with_its_bits(
    size: int, identity: int, data: st.DataObject
) -> None:
    cluster_id = data.draw(st.integers(1, size) | st.just(min(max(owner_by_bits(identity, size)[1], 1), size)))
    owned = identity in numbering.identity_range(cluster_id, size)
    assert owned == (owner_by_bits(identity, size) == (0, cluster_id))


@given(size=sizes, identity=st.integers(0, 2**24 - 1))
def test_cluster_of_reads_the_bits(size: int, identity: int) -> None:
    assert numbering.cluster_of(identity, size) == owner_by_bits(identity, size)[1]


@pytest.mark.parametrize(
    ("cluster_id", "size", "first", "last"),
    [
        (0, 255, 256, 65535),
        (1, 255, 65536, 131071),
        (2, 255, 131072, 196607),
        (255, 255, 255 << 16, (1 << 24) - 1),
        (0, 511, 256, 32767),
        (1, 511, 32768, 65535),
        (511, 511, 511 << 15, (1 << 24) - 1),
    ],
)
def test_range_of_a_cluster(cluster_id: int, size: int, first: int, last: int) -> None:
    owned = numbering.identity_range(cluster_id, size)
    assert (owned[0], owned[-1]) == (first, last)


@pytest.mark.parametrize("size", [255, 511])
def test_ranges_cover_the_global_scope_without_gap_or_overlap(size: int) -> None:
    ranges = [numbering.identity_range(cluster_id, size) for cluster_id in range(size + 1)]
    assert ranges[0].start == numbering.MIN_ALLOCATED
    assert ranges[-1].stop == 1 << 24
    assert all(before.stop == after.start for before, after in pairwise(ranges))


@pytest.mark.parametrize(("cluster_id", "size"), [(256, 255), (512, 511), (-1, 255), (1, 256), (1, 0)])
def test_impossible_cluster_has_no_range(cluster_id: int, size: int) -> None:
    with pytest.raises(Invalid):
        numbering.identity_range(cluster_id, size)


def test_host_of_another_cluster_is_a_remote_node() -> None:
    west = Cluster(name="west", id=2)
    assert numbering.remote_identity(numbering.HOST, west) == numbering.REMOTE_NODE
    assert numbering.remote_identity(8, west) == 8
    assert numbering.remote_identity(131500, west) == 131500
    with pytest.raises(Invalid, match="131072 to 196607"):
        numbering.remote_identity(65999, west)


def test_reserved_identities_have_their_labels() -> None:
    def labels(number: int) -> list[str]:
        return [f"{label.source}:{label.key}" for label in numbering.RESERVED[number]]

    assert labels(1) == ["reserved:host"]
    assert labels(7) == ["reserved:kube-apiserver", "reserved:remote-node"]
    assert labels(11) == []
    assert list(numbering.RESERVED) == list(range(12))
    assert numbering.is_reserved(255)
    assert not numbering.is_reserved(256)
