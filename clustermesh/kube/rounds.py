"""Whether the pages of a list go round. Pure."""

from __future__ import annotations


class Rounds:
    """Of the texts that come it holds one, and a newer one each time twice as many have come (Brent's algorithm): a
    round is found within three times the texts up to its end, however long it is."""

    def __init__(self) -> None:
        self._held: str | None = None
        self._left = self._most = 1

    def closes(self, text: str) -> bool:
        """Whether `text` came before; not each time that one does."""
        return text == self._held

    def note(self, text: str) -> None:
        self._left -= 1
        if not self._left:
            self._held, self._most = text, self._most * 2
            self._left = self._most
