"""How much a server may send of each exchange before somebody has read it, and what is lent for large messages. Pure.

Each exchange has a window of WINDOW bytes. What was read of it, or is part of a message that is not whole yet, is given
back; what nobody reads is not. A large message gets a window of its own, of its size, once it has begun. These are lent
out of MOST_LENT for all exchanges together, until the message was read or its exchange given up; who finds nothing left
waits, and so does who has not read the large message before. So what nobody reads is bounded, whatever a server sends,
and one that is only fast loses nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from clustermesh.store.exchange import Exchange
from clustermesh.store.frames import PREFIX, Broken

MAX_MESSAGE: Final = 16 << 20
WINDOW: Final = 1 << 20
LARGE: Final = WINDOW // 2  # bytes of a message
MOST_LENT: Final = 3 * MAX_MESSAGE
NO_ROOM: Final = "more was sent than there was room for"


class Room:
    """Of all exchanges together. `allow` tells the server of one that it may send so many bytes more."""

    def __init__(self, allow: Callable[[Exchange, int], None]) -> None:
        self._allow = allow
        self.lent, self.borrowers = 0, dict[Exchange, None]()  # these wait, in this order

    def came(self, exchange: Exchange, size: int) -> None:
        """Raises Broken where there was no room for that."""
        exchange.used += size
        if exchange.used > WINDOW:
            raise Broken(NO_ROOM)

    def begins(self, exchange: Exchange, size: int) -> None:
        """A message of `size` bytes has, and is not whole yet."""
        if size > LARGE and not exchange.begun:
            exchange.begun = size
            self.borrowers[exchange] = None
            self._lend()

    def waits(self, exchange: Exchange, message: bytes | bytearray) -> None:
        """It is whole, and to be read."""
        if not exchange.begun or exchange in self.borrowers:
            exchange.held += PREFIX.size + len(message)
            self.borrowers.pop(exchange, None)
        exchange.begun = 0

    def taken(self, exchange: Exchange, message: bytes | bytearray) -> None:
        """It was read. Of two of one size either may be taken for the one that room was lent to."""
        if exchange.lent and len(message) == exchange.lent:
            self._give_back(exchange)
        else:
            exchange.held -= PREFIX.size + len(message)
            self.credit(exchange)

    def credit(self, exchange: Exchange) -> None:
        """Room for more, once that is worth saying."""
        free = exchange.used - exchange.held
        if free >= WINDOW // 2 and exchange not in self.borrowers:
            self._grow(exchange, free)

    def ended(self, exchange: Exchange) -> None:
        """Nothing more comes of it; what is lent to it may be read still."""
        self.borrowers.pop(exchange, None)

    def given_up(self, exchange: Exchange) -> None:
        """Nobody reads any more of it."""
        self.borrowers.pop(exchange, None)  # else what it gives back is lent to its next message
        self._give_back(exchange)

    def _grow(self, exchange: Exchange, more: int) -> None:
        self._allow(exchange, more)
        exchange.used -= more

    def _lend(self) -> None:
        """To those who wait, as long as there is something left."""
        for exchange in list(self.borrowers):
            if exchange.lent:
                continue
            if self.lent + exchange.begun > MOST_LENT:
                return
            del self.borrowers[exchange]
            exchange.lent = exchange.begun
            self.lent += exchange.lent
            self._grow(exchange, PREFIX.size + exchange.lent - len(exchange.incoming))  # what is yet to come

    def _give_back(self, exchange: Exchange) -> None:
        if exchange.lent:
            self.lent -= exchange.lent
            exchange.lent = 0
            self._lend()
