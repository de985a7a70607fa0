"""What the client does again by itself, and what it leaves to its caller."""

from __future__ import annotations

from typing import Any

import pytest

from clustermesh.errors import Unavailable
from clustermesh.store import methods
from clustermesh.store import rpc_pb2 as pb
from clustermesh.store.client import EtcdClient
from clustermesh.store.digest import read_digests
from clustermesh.store.faults import AuthChanged
from clustermesh.store.lease_ends import find_lease_ends
from clustermesh.store.operations import DigestOf


class Failing:
    """A dialer whose first calls fail."""

    def __init__(self, *errors: Exception, answer: Any = "answer") -> None:
        self.errors, self.calls, self.answer = list(errors), 0, answer

    async def unary(self, _method: Any, _request: Any, _patience: float) -> Any:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return self.answer


def client(dialer: Failing, monkeypatch: pytest.MonkeyPatch) -> EtcdClient:
    made = EtcdClient(["http://127.0.0.1:1"])
    monkeypatch.setattr(made, "_dialer", dialer)
    return made


async def test_a_call_that_met_a_change_of_users_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    dialer = Failing(AuthChanged("old"), AuthChanged("old"))
    assert await client(dialer, monkeypatch).call(methods.RANGE, None) == "answer"
    assert dialer.calls == 3


async def test_it_is_not_made_again_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    dialer = Failing(*[AuthChanged("old")] * 10)
    with pytest.raises(AuthChanged):
        await client(dialer, monkeypatch).call(methods.RANGE, None)
    assert dialer.calls == 4


async def test_a_call_whose_outcome_is_unknown_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    dialer = Failing(Unavailable("gone"))
    with pytest.raises(Unavailable):
        await client(dialer, monkeypatch).call(methods.RANGE, None)
    assert dialer.calls == 1


@pytest.mark.parametrize("lists", [0, 1, 3])
async def test_who_answers_another_number_of_questions_than_was_asked_gave_no_answer(
    lists: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = pb.TxnResponse(responses=[pb.ResponseOp(response_range=pb.RangeResponse())] * lists)
    etcd = client(Failing(answer=odd), monkeypatch)
    for asked in (
        read_digests(etcd, [DigestOf(b"a/", 0, 0, 1), DigestOf(b"b/", 0, 0, 1)]),
        find_lease_ends(etcd, {7: b"a", 8: b"b"}, 1),
        etcd.created([b"a", b"b"]),
    ):
        with pytest.raises(Unavailable, match=f"2 questions and {lists} answers came"):
            await asked
