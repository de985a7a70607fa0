"""Answers of the API, whole, cut anywhere, or garbage."""

from __future__ import annotations

from contextlib import suppress
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clustermesh.errors import DecodeError, Refused, Unavailable
from clustermesh.kube import decoding, faults
from clustermesh.kube.decoding import Lines, decode_events, decode_page
from clustermesh.kube.hearing import Bad, Failed, Gone, Page, Put, Received
from clustermesh.kube.resource import Resource


class _Thing(msgspec.Struct):
    metadata: dict[str, str]
    spec: int


def _decode(data: msgspec.Raw) -> tuple[str, int]:
    try:
        thing = msgspec.json.decode(data, type=_Thing)
        return f"{thing.metadata['namespace']}/{thing.metadata['name']}", thing.spec
    except (msgspec.ValidationError, KeyError) as e:
        raise DecodeError("thing", "?", str(e)) from e


THINGS = Resource(group="x.io", version="v1", plural="things", decode=_decode, key=lambda *name: "/".join(name))


def thing(name: str, spec: object, version: int) -> dict[str, object]:
    metadata = {"namespace": "n", "name": name, "resourceVersion": str(version)}
    return {"apiVersion": "x.io/v1", "kind": "Thing", "metadata": metadata, "spec": spec}


def line(kind: str, content: object) -> bytes:
    return msgspec.json.encode({"type": kind, "object": content}) + b"\n"


STREAM = b"".join(
    [
        line("ADDED", thing("a", 1, 5)),
        line("MODIFIED", thing("b", "bad", 6)),
        line("DELETED", thing("c", 3, 7)),
        line("BOOKMARK", {"kind": "Thing", "metadata": {"resourceVersion": "9"}}),
    ]
)
ENTRIES = ["n/a", "n/b", "n/c"]


def read(pieces: list[bytes]) -> list[Received[str, int] | Failed]:
    lines = Lines()
    return [event for piece in pieces for event in decode_events(THINGS, lines.feed(piece))]


def test_events_that_come_together_are_told_together() -> None:
    (received,) = read([STREAM])
    assert isinstance(received, Received)
    added, modified, deleted = received.entries
    assert added == Put("n/a", 1)
    assert isinstance(modified, Bad)
    assert modified.key == "n/b"
    assert deleted == Gone("n/c")
    assert received.version == "9"


@given(st.lists(st.integers(0, len(STREAM)), max_size=8))
def test_a_stream_cut_into_any_pieces_says_the_same(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(STREAM)]
    heard = read([STREAM[a:b] for a, b in pairwise(edges)])
    assert [entry.key for event in heard if isinstance(event, Received) for entry in event.entries] == ENTRIES
    assert isinstance(heard[-1], Received)
    assert heard[-1].version == "9"


@given(st.integers(0, len(STREAM) - 1))
def test_half_a_line_is_nothing(end: int) -> None:
    whole = STREAM[:end].count(b"\n")
    heard = read([STREAM[:end]])
    keys = [entry.key for event in heard if isinstance(event, Received) for entry in event.entries]
    assert keys == ENTRIES[:whole]


def test_an_error_comes_after_what_was_before_it() -> None:
    gone = line("ERROR", {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"})
    received, failed = read([STREAM + gone + STREAM])
    assert isinstance(received, Received)
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, faults.Expired)


@given(st.binary(max_size=60))
def test_garbage_ends_a_watch_and_raises_nothing(garbage: bytes) -> None:
    for event in read([garbage + b"\n"]):
        assert isinstance(event, Received | Failed)


@given(st.binary(max_size=60))
def test_garbage_is_no_list(garbage: bytes) -> None:
    with suppress(Unavailable):
        assert isinstance(decode_page(THINGS, garbage), Page)


def test_a_line_without_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "MAX_LINE", 100)
    lines = Lines()
    lines.feed(b"x" * 90)
    with pytest.raises(Unavailable):
        lines.feed(b"x" * 11)


@pytest.mark.parametrize("items", [None, [thing("a", 1, 5), thing("b", "bad", 6)]])
def test_a_page(items: list[object] | None) -> None:
    page = decode_page(THINGS, msgspec.json.encode({"metadata": {"resourceVersion": "9"}, "items": items}))
    assert (page.version, page.next) == ("9", "")
    assert [entry.key for entry in page.entries] == (["n/a", "n/b"] if items else [])


@pytest.mark.parametrize(
    ("code", "status", "header", "kind"),
    [
        (401, {}, "", faults.Unauthorized),
        (403, {"reason": "Forbidden"}, "", faults.Forbidden),
        (404, {}, "", faults.NotServed),
        (410, {"reason": "Expired"}, "", faults.Expired),
        (429, {}, "1", faults.Busy),
        (500, {"details": {"retryAfterSeconds": 2}}, "", faults.Busy),
        (503, {}, "", Unavailable),
        (504, {"message": "Timeout: Too large resource version: 9, current: 5"}, "", faults.Replaced),
        (422, {}, "", Refused),
        (302, {}, "", Unavailable),
    ],
)
def test_an_answer_says_what_to_do_next(code: int, status: dict[str, object], header: str, kind: type) -> None:
    read_back = faults.read_status(msgspec.json.encode(status))
    assert type(faults.fault(code, read_back, "list things", header)) is kind


def test_a_server_is_not_waited_for_for_ever() -> None:
    error = faults.fault(429, faults.Status(), "list things", "99999999")
    assert isinstance(error, faults.Busy)
    assert error.seconds == faults.MAX_WAIT
