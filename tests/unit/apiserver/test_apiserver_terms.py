"""Who was deposed begins again with nothing in mind."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import nullcontext
from typing import Any

from clustermesh.apiserver.terms import serve_terms


class Term:
    """A process that is deposed as soon as it runs; it is its own election."""

    def __init__(self) -> None:
        self.deposed, self.ended = asyncio.Event(), False

    @property
    def election(self) -> Term:
        return self

    def tasks(self) -> list[Coroutine[Any, Any, None]]:
        return [self._work()]

    async def _work(self) -> None:
        self.deposed.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.ended = True


async def test_who_is_deposed_ends_and_another_one_begins_in_its_place() -> None:
    made: list[Term] = []

    def make() -> Term:
        made.append(Term())
        return made[-1]

    serving = asyncio.create_task(serve_terms(make, lambda _who: nullcontext()))  # type: ignore[type-var]
    async with asyncio.timeout(60):
        while len(made) < 3:
            await asyncio.sleep(0)
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)
    assert all(term.ended for term in made[:2])
