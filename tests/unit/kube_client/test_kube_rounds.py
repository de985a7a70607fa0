"""A list whose pages go round ends, and one whose pages do not is never taken for such a one."""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing
from itertools import chain, cycle

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kube_mirror import labelled

from clustermesh.kube.access import Access, Grant
from clustermesh.kube.client import KubeClient
from clustermesh.kube.follow import follow
from clustermesh.kube.hearing import Interrupted
from clustermesh.kube.rounds import Rounds


def _found(texts: chain[str]) -> int:
    """After how many texts it is seen that they go round."""
    rounds = Rounds()
    for number, text in enumerate(texts):
        if rounds.closes(text):
            return number
        rounds.note(text)
    return -1


@given(before=st.integers(0, 300), length=st.integers(1, 300))
def test_every_round_is_found_soon(before: int, length: int) -> None:
    texts = chain(map(str, range(before)), cycle([f"r{number}" for number in range(length)]))
    assert before + length <= _found(texts) <= 3 * (before + length)


@given(st.lists(st.text(max_size=3), unique=True, max_size=300))
def test_texts_that_differ_go_round_nowhere(texts: list[str]) -> None:
    assert _found(chain(texts)) == -1


@pytest.mark.parametrize("tokens", [["x"], ["a", "b"], ["a", "b", "c", "d", "e"]])
async def test_a_list_whose_pages_go_round_is_an_interruption(tokens: list[str]) -> None:
    nexts = chain(["first", "second"], cycle(tokens))

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        body = json.dumps({"metadata": {"resourceVersion": "9", "continue": next(nexts)}, "items": []}).encode()
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]

        async def grant() -> Grant:
            return Grant(server=f"http://127.0.0.1:{port}")

        async with KubeClient(Access(grant)) as client, aclosing(follow(client, labelled("things"))) as items:
            async with asyncio.timeout(10):
                item = await anext(items)
    assert isinstance(item, Interrupted)
    assert "list things: its pages go round" in str(item.error)
