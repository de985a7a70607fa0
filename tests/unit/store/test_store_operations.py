"""How writes are cut into transactions, and where a prefix ends."""

from hypothesis import given
from hypothesis import strategies as st

from clustermesh.store.operations import MAX_BYTES, MAX_OPS, Delete, Put, batches, prefix_end

KEYS = st.binary(min_size=1, max_size=3)
OPS = st.one_of(st.builds(Put, KEYS, st.binary(max_size=5)), st.builds(Delete, KEYS))


@given(st.lists(st.one_of(OPS, st.lists(OPS, min_size=1, max_size=5).map(tuple)), max_size=300))
def test_batches_write_what_the_ops_would_one_by_one(items) -> None:
    flat = [op for item in items for op in (item if isinstance(item, tuple) else (item,))]
    cut = list(batches(items))
    assert _applied([op for batch in cut for op in batch]) == _applied(flat)
    for batch in cut:
        assert 0 < len(batch) <= MAX_OPS
        assert len({op.key for op in batch}) == len(batch)


@given(st.lists(st.lists(st.integers(0, 10_000), min_size=1, max_size=9, unique=True), max_size=80))
def test_a_group_is_never_torn(groups) -> None:
    cut = list(batches([[Put(b"%d" % key, b"") for key in group] for group in groups]))
    written = [{op.key for op in batch} for batch in cut]
    assert all(any({b"%d" % key for key in group} <= batch for batch in written) for group in groups)


def test_a_batch_stays_below_what_etcd_takes_in_one_request() -> None:
    cut = list(batches([Put(b"%d" % i, b"x" * 300_000) for i in range(10)]))
    assert [len(batch) for batch in cut] == [3, 3, 3, 1]
    assert all(sum(len(op.value) for op in batch) <= MAX_BYTES for batch in cut)


def test_a_repeated_key_begins_a_new_transaction() -> None:
    ops = [Put(b"a", b"1"), Put(b"b", b"1"), Delete(b"a"), Put(b"c", b"1")]
    assert list(batches(ops)) == [ops[:2], ops[2:]]


@given(st.binary(max_size=4), st.binary(max_size=6))
def test_a_prefix_ends_just_behind_its_last_key(prefix, key) -> None:
    end = prefix_end(prefix)
    within = key >= prefix and (end == b"\0" or key < end)
    assert within == key.startswith(prefix)


def _applied(ops) -> dict[bytes, bytes]:
    table: dict[bytes, bytes] = {}
    for op in ops:
        if isinstance(op, Put):
            table[op.key] = op.value
        else:
            table.pop(op.key, None)
    return table
