"""Who waits for room that all peers share is forgotten once it has left."""

from __future__ import annotations

import weakref

from clustermesh.mesh.refusals import Refusals
from clustermesh.mesh.room import Room, SharedRoom


def test_a_peer_that_left_while_it_waited_for_room_is_not_kept() -> None:
    shared = SharedRoom()
    room = Room(Refusals(), shared)
    shared.wait("nodes", room)
    left = weakref.ref(room)
    room.leave()
    del room
    assert left() is None
