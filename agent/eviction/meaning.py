"""Connected sockets, by the service and the backend that they mean."""

from __future__ import annotations

from typing import NamedTuple

from agent.bpf.layouts import MeantSocket, MeantValue


class Meaning(NamedTuple):
    """A service and one of its backends, over one protocol."""

    value: MeantValue
    protocol: int


Meant = dict[Meaning, list[MeantSocket]]
"""The sockets that mean each."""
