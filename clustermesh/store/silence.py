"""How long silence is borne on a connection to etcd, and when it is broken by a question; and how much chatter. Pure.

Hundreds of calls may share one connection, and whatever is heard on it tells that etcd is there. So where nothing is,
one of them asks, for all; only where nobody hears an answer does each ask for itself. Beside that each does so seldom:
a call can be forgotten on the way while others of its connection go on.
"""

from __future__ import annotations

import math
import random
from enum import Enum, auto

from msgspec import Struct

_EARLY = 0.8
_CHATTER_AT_ONCE = 1000
_CHATTER_A_SECOND = 20.0  # an idle etcd tells once in ten minutes that nothing has happened; at most ten a second
_CHATTER_SIZE = 256


class Silence(Struct, frozen=True):
    """How much of it is borne, in seconds. After `quiet` without a word on the connection, or `alone` without one on
    this call, etcd is asked, and has `grace` to answer. Each connection asks a little sooner, all its calls at once:
    thousands that read one etcd hear the same things at the same time."""

    grace: float
    quiet: float = math.inf
    alone: float = math.inf


class Pulse:
    """Of one connection: when something was `heard` on it last, and when it was `asked` for a sign of life."""

    def __init__(self, rng: random.Random | None = None) -> None:
        self.heard = self.asked = -math.inf
        self.early = (rng or random.Random()).uniform(_EARLY, 1.0)


class Chatter:
    """What is said on one watch and tells of no change: hearing it costs, too."""

    def __init__(self) -> None:
        self._much, self._at = 0.0, -math.inf

    def is_too_much(self, now: float, size: int) -> bool:
        """With the next one, of `size` bytes."""
        self._much = max(0.0, self._much - (now - self._at) * _CHATTER_A_SECOND) + 1 + size // _CHATTER_SIZE
        self._at = now
        return self._much > _CHATTER_AT_ONCE


class Step(Enum):
    WAIT = auto()
    ASK = auto()
    GIVE_UP = auto()


class Wait:
    """For the next response of one call, since `since`; where it is the answer to a request, it `is_asked` for."""

    def __init__(self, pulse: Pulse, silence: Silence, since: float, *, is_asked: bool = False) -> None:
        self._pulse, self._silence, self._since = pulse, silence, since
        self._asked = since if is_asked else None

    @property
    def due(self) -> float:
        """When to take the next step, if nothing is heard before."""
        if self._asked is not None:
            return self._asked + self._silence.grace
        if self._others_ask:
            return min(self._pulse.asked + self._silence.grace, self._alone)
        return min(self._quiet, self._alone)

    def step(self, now: float) -> Step:
        """What to do at `now`; to ask is taken for done."""
        if now < self.due:
            return Step.WAIT
        if self._asked is not None:
            return Step.GIVE_UP
        if now >= self._quiet and not self._others_ask:
            self._pulse.asked = now
        self._asked = now
        return Step.ASK

    @property
    def _others_ask(self) -> bool:
        """Whether another call has asked, and none was heard of since."""
        return self._pulse.asked > max(self._pulse.heard, self._since)

    @property
    def _quiet(self) -> float:
        return max(self._pulse.heard, self._since) + self._silence.quiet * self._pulse.early

    @property
    def _alone(self) -> float:
        return self._since + self._silence.alone * self._pulse.early
