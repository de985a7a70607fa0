"""Garbage never raises anything but DecodeError, from any decoder and any key parser."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from wire_values import ALPHA, CODECS, LABELS, N1, STATE, decode_identity, endpoint_slices, exports, go_values

from clustermesh.errors import DecodeError
from clustermesh.wire import RESOURCES, decode_entry, endpoint_slice, keys, service_export

DECODERS: dict[str, Callable[[bytes], Any]] = {noun: codec[2] for noun, codec in CODECS.items()}
DECODERS["identity"] = decode_identity
PARSERS = [getattr(keys, name) for name in dir(keys) if name.startswith("parse_")]
NASTY = {
    "empty": b"",
    "null": b"null",
    "list": b"[]",
    "object": b"{}",
    "deep list": b"[" * 200_000,
    "deep object": b'{"x":' * 200_000,
    "deep in a known map": b'{"labels":{"a":' + b"[" * 200_000,
    "huge integer": b"9" * 100_000,
    "huge id": b'{"id":' + b"9" * 100_000 + b"}",
    "huge exponent": b'{"id":1e999999999,"x":-1e-999999999}',
    "negative id": b'{"id":-1}',
    "fractional id": b'{"id":1.5}',
    "invalid UTF-8": b'{"cluster":"\xff\xfe"}',
    "overlong UTF-8": b'{"cluster":"\xc0\xaf"}',
    "surrogate in UTF-8": b'{"cluster":"\xed\xa0\x80"}',
    "lone high surrogate": b'{"cluster":"\\ud800","Name":"\\ud800"}',
    "lone low surrogate": b'{"cluster":"\\udc00x","Name":"\\udc00x"}',
    "control character": b'{"cluster":"\x00"}',
    "trailing": b"{} {}",
    "NaN": b'{"id":NaN}',
    "byte order mark": b"\xef\xbb\xbf{}",
}
SEEDS = [
    *STATE.values(),
    *(value for _, value in go_values()),
    b'{"service":{"cluster":"a","namespace":"b","name":"c","clusterID":1},"global":true,"affinity":"local"}',
    b'{"node":"n1","wireguardPublicKey":"aGVsbG9oZWxsb2hlbGxvaGVsbG9oZWxsb2hlbGxvMTI="}',
    b'{"observed":1,"published":2}',
]


def survives(decode: Callable[..., Any], *data: Any) -> None:
    with contextlib.suppress(DecodeError):
        decode(*data)


@pytest.mark.parametrize("noun", DECODERS)
@pytest.mark.parametrize("nasty", NASTY)
def test_nasty_bytes_are_refused(noun: str, nasty: str) -> None:
    survives(DECODERS[noun], NASTY[nasty])
    for resource in RESOURCES.values():
        with pytest.raises(DecodeError):
            decode_entry(resource.prefix("alpha") + b"1", NASTY[nasty], ALPHA)


@pytest.mark.parametrize("noun", DECODERS)
@given(data=st.binary(max_size=200))
def test_random_bytes(noun: str, data: bytes) -> None:
    survives(DECODERS[noun], data)


@st.composite
def mutations(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """A real value with a few bytes cut, replaced or doubled."""
    data = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.integers(0, 6)))
        data = data[:start] + draw(st.binary(max_size=6) | st.just(data[start:end] * 2)) + data[end:]
    return data


@pytest.mark.parametrize("noun", DECODERS)
@given(data=mutations(SEEDS))
def test_damaged_values(noun: str, data: bytes) -> None:
    survives(DECODERS[noun], data)


@pytest.mark.long
@given(data=st.data())
def test_damaged_slices(data: st.DataObject) -> None:
    """Past the checksum-less zstd frame as well as before it."""
    value = endpoint_slice.encode(data.draw(endpoint_slices))
    survives(endpoint_slice.decode, data.draw(mutations([value])))


@pytest.mark.long
@given(data=st.data())
def test_damaged_exports(data: st.DataObject) -> None:
    survives(service_export.decode, data.draw(mutations([service_export.encode(data.draw(exports))])))


scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["1.2.3.4", "TCP"])
)
trees = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def shaped(draw: st.DrawFn) -> bytes:
    """A real JSON value with some of its parts, at any depth, replaced by something of any type."""
    tree = json.loads(draw(st.sampled_from([seed for seed in SEEDS if seed.startswith(b"{")])))
    for _ in range(draw(st.integers(1, 4))):
        at: Any = tree
        while True:
            slots = list(at) if isinstance(at, dict) else list(range(len(at)))
            if not slots:
                break
            slot = draw(st.sampled_from(slots))
            if not isinstance(at[slot], (dict, list)) or draw(st.booleans()):
                at[slot] = draw(trees)
                break
            at = at[slot]
    return json.dumps(tree).encode()  # floats come as NaN and Infinity too, surrogates escaped


@pytest.mark.parametrize("noun", [noun for noun in DECODERS if noun not in ("identity", "endpoint_slice")])
@given(data=shaped())
def test_json_of_the_right_shape_and_the_wrong_content(noun: str, data: bytes) -> None:
    survives(DECODERS[noun], data)


@pytest.mark.parametrize("parse", PARSERS, ids=lambda parse: parse.__name__)
@given(key=st.binary(max_size=80) | mutations(list(STATE)))
@example(key=b"cilium/state/identities/v1/id/" + b"9" * 5000)
@example(key=b"cilium/state/ip/v1/default/" + b"1" * 5000)
@example(key="cilium/state/identities/v1/id/\u0661".encode())
@example(key=b"cilium/state/nodes/v1/alpha/n1\n")
@example(key=b"clustermesh/v1/agents/\xff")
def test_random_keys(parse: Callable[[bytes], Any], key: bytes) -> None:
    survives(parse, key)


@given(key=mutations(list(STATE)), value=mutations(SEEDS))
def test_damaged_entries(key: bytes, value: bytes) -> None:
    survives(decode_entry, key, value, ALPHA)


def test_error_shows_what_was_found_and_stays_short() -> None:
    with pytest.raises(DecodeError, match="must be an IPv4 or IPv6 address") as raised:
        decode_entry(b"cilium/state/nodes/v1/alpha/n1", N1.replace(b"172.18.0.2", b"x" * 10_000), ALPHA)
    assert len(str(raised.value)) < 300
    assert raised.value.field == "address"


def test_error_of_broken_text_shows_it() -> None:
    with pytest.raises(DecodeError, match="k8s:app=cart") as raised:
        decode_identity(LABELS[:40] + b"\xff")
    assert len(str(raised.value)) < 300
