"""What the client does again by itself, and what it leaves to its caller."""

from __future__ import annotations

from typing import Any

import pytest

from clustermesh.errors import Unavailable
from clustermesh.store import methods
from clustermesh.store.client import EtcdClient
from clustermesh.store.faults import AuthChanged


class Failing:
    """A dialer whose first calls fail."""

    def __init__(self, *errors: Exception) -> None:
        self.errors, self.calls = list(errors), 0

    async def unary(self, _method: Any, _request: Any, _patience: float) -> str:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return "answer"


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
