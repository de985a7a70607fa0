"""What Helm keeps of a release, and what is none."""

from __future__ import annotations

import base64
import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clustermesh.errors import Invalid
from clustermesh.joining.helm import decode_release

KEPT = {
    "name": "mesh",
    "version": 3,
    "chart": {"metadata": {"name": "clustermesh", "version": "0.1.0"}, "values": {"a": {"b": 1, "c": 2}}},
    "config": {"a": {"b": 7}, "x": False},
}


def packed(document: object) -> bytes:
    return base64.b64encode(gzip.compress(json.dumps(document).encode()))


@pytest.mark.parametrize(("key", "value"), [("a.b", 7), ("a.c", 2), ("x", False), ("x.y", None), ("nothing", None)])
def test_a_value_is_the_given_one_or_the_charts(key: str, value: object) -> None:
    release = decode_release(packed(KEPT), "secret")
    assert release.value(key) == value
    assert (release.name, release.chart.metadata.name) == ("mesh", "clustermesh")


@given(st.binary() | st.binary().map(base64.b64encode) | st.binary().map(gzip.compress).map(base64.b64encode))
def test_garbage_is_no_release(data: bytes) -> None:
    with pytest.raises(Invalid):
        decode_release(data, "secret")


def test_a_release_that_grows_without_end_is_not_unpacked() -> None:
    with pytest.raises(Invalid, match="must be smaller"):
        decode_release(base64.b64encode(gzip.compress(bytes(65 << 20))), "secret")
