"""An answer to a transaction nests: what it repeats in all its parts counts together."""

from __future__ import annotations

import pytest

from clustermesh.mesh.tables import own_tables
from clustermesh.mesh.tally import MOST_WRITTEN
from clustermesh.model import ClusterConfig
from clustermesh.store import methods
from clustermesh.store import rpc_pb2 as pb
from clustermesh.store.faults import Oversized

HEADER = pb.ResponseHeader(cluster_id=1, revision=7)
KEY_VALUE = b"\x12\0"


def varint(number: int) -> bytes:
    return bytes([number & 127 | 128]) + varint(number >> 7) if number > 127 else bytes([number])


def field(number: int, value: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(value)) + value


def answer(*lists: bytes) -> bytes:
    return field(1, bytes(HEADER.SerializeToString())) + b"".join(field(3, field(1, each)) for each in lists)


@pytest.mark.parametrize("lists", [1, 2, 50])
def test_what_all_lists_of_one_answer_have_counts_together(lists: int) -> None:
    each = methods.MOST_FIELDS // lists
    with pytest.raises(Oversized):
        methods.decode(methods.TXN, answer(*[KEY_VALUE * each] * lists))
    decoded = methods.decode(methods.TXN, answer(*[KEY_VALUE * (each - 3)] * lists))
    assert [len(part.response_range.kvs) for part in decoded.responses] == [each - 3] * lists


def test_a_list_that_comes_in_countless_pieces_is_one() -> None:
    pieces = field(1, KEY_VALUE * 2) * (methods.MOST_FIELDS // 3 + 1)  # a decoder joins them
    with pytest.raises(Oversized):
        methods.decode(methods.TXN, field(3, pieces))


def test_numbers_of_fields_and_sizes_may_be_written_in_more_bytes_than_they_need() -> None:
    values = KEY_VALUE * methods.MOST_FIELDS
    size = len(values) | 1 << 32  # what is cut off is left to who decodes
    for number in (b"\x0a", b"\x8a\x00", b"\x8a\x80\x00"):
        inner = number + varint(len(values)) + values
        assert methods._is_crowded(field(3, inner), methods.TXN.nested)
        assert methods._is_crowded(field(3, number + varint(size) + values), methods.TXN.nested)


def test_bytes_that_only_look_like_many_fields_are_none() -> None:
    kv = pb.KeyValue(key=b"k", value=KEY_VALUE * methods.MOST_FIELDS).SerializeToString()
    decoded = methods.decode(methods.TXN, answer(field(2, kv)))
    assert len(decoded.responses[0].response_range.kvs[0].value) == 2 * methods.MOST_FIELDS


def test_the_largest_answer_that_an_audit_asks_for_is_taken_in() -> None:
    """Of each table as many keys as are remembered, and as many more as are asked for."""
    tables = [table.prefix for table in own_tables("alpha", ClusterConfig(id=1)) if table.required]
    lists = [
        pb.RangeResponse(
            header=HEADER,
            kvs=[pb.KeyValue(key=b"%s%06d" % (prefix, n), mod_revision=1 << 40) for n in range(2 * MOST_WRITTEN)],
            more=True,
            count=1 << 20,
        ).SerializeToString()
        for prefix in tables
    ]
    decoded = methods.decode(methods.TXN, answer(*lists))
    assert [len(part.response_range.kvs) for part in decoded.responses] == [2 * MOST_WRITTEN] * len(tables)


def test_the_answer_about_as_many_witnesses_as_one_transaction_may_ask_for_is_taken_in() -> None:
    kv = pb.KeyValue(key=bytes(1500), create_revision=1 << 40, mod_revision=1 << 40, version=1, lease=1 << 60)
    found = pb.RangeResponse(header=HEADER, kvs=[kv], count=1).SerializeToString()
    assert len(methods.decode(methods.TXN, answer(*[found] * 128)).responses) == 128
