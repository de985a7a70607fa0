"""What the tests ask the API with does not fail them."""

from __future__ import annotations

import socket

from kube_bed import KubeBed


def test_connections_that_the_server_has_ended_are_made_anew(bed: KubeBed) -> None:
    """As it does with those that nobody used for a minute and a half."""
    bed.ask_many([("GET", "/readyz", None)] * 20)
    idle = [bed._idle.get_nowait() for _ in range(bed._idle.qsize())]
    assert idle
    for connection in idle:
        connection.sock.shutdown(socket.SHUT_RDWR)
        bed._idle.put(connection)
    assert bed.ask("GET", "/readyz") == "ok"
