"""One request on a connection, and what comes of it."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from clustermesh.store.parts import NOTHING, Around, Parts
from clustermesh.store.status import Code


class Exchange:
    """One request and what answers it."""

    __slots__ = ("begun", "block", "closing", "held", "id", "incoming", "lent", "outgoing", "parts", "used", "window")

    def __init__(self, block: bytes, parts: Parts | None) -> None:
        self.block, self.id, self.parts = block, 0, parts  # 0 until it is opened
        self.outgoing, self.closing = bytearray(), False
        self.incoming, self.used, self.held = bytearray(), 0, 0  # bytes since the last credit; those not read yet
        self.begun = self.lent = 0  # bytes of a large message that is not whole yet; of one that room was lent to
        self.window = 0

    @property
    def is_sent(self) -> bool:
        return self.id != 0 and not self.outgoing


class Message(NamedTuple):
    """One came, whole, or a part of one."""

    exchange: Exchange
    data: bytes | bytearray
    around: Around = NOTHING

    @property
    def whole(self) -> bytes | bytearray:
        """What is to be decoded."""
        if self.around is NOTHING:  # as most are
            return self.data
        return b"".join((self.around.head, self.data, self.around.tail))


class Ended(NamedTuple):
    """Nothing more comes of this exchange."""

    exchange: Exchange
    code: Code
    details: str


Event: TypeAlias = Message | Ended
