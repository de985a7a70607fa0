"""Collecting what is wrong with an object while everything else of it goes on."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

from clustermesh.errors import Invalid
from clustermesh.sources.objects import Ref

T = TypeVar("T")
V = TypeVar("V")


class Fault(NamedTuple):
    """A part of `ref` that is left out, and why."""

    ref: Ref
    sentence: str


class Faults(list[Fault]):
    """What was wrong so far, in the order it was found."""

    def note(self, ref: Ref, fault: Invalid) -> None:
        self.append(Fault(ref, str(fault)))

    def check(self, ref: Ref, rule: Callable[[str, V], T], field: str, value: V) -> T | None:
        """What `rule` makes of `value`, or None and a fault."""
        try:
            return rule(field, value)
        except Invalid as e:
            self.note(ref, e)
            return None
