"""Where agents are led once a mirror, or the port of the own etcd, is otherwise than when they were told."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace
from test_joining_checks import ALPHA, NOW, member

from clustermesh.joining import names
from clustermesh.joining.leading import misled
from clustermesh.joining.links import Link, credentials, entries, link, replaced
from clustermesh.joining.member import Entrance, Member
from clustermesh.mesh.peer_files import PeerFile

COPIED, DIRECT = replace(ALPHA, mirrored=True), ALPHA
EXTERNAL = PeerFile(
    name="alpha",
    endpoints=("https://etcd.example:2379",),
    ca=Path("/etc/ca"),
    cert=Path("/etc/crt"),
    key=Path("/etc/key"),
)


OWNERS = (member("beta", 2), member("gamma", 3, "alpha"))  # the one with an authority of its own


def reading(reader: Member, owner: Member) -> Link:
    return link(reader, owner, owner.entrance or Entrance((), 0), ())


SHOWN = {owner.name: credentials(reading(ALPHA, owner), NOW) for owner in OWNERS}


def joined(reader: Member, *owners: Member) -> Member:
    """As `connect` leaves it."""
    for owner in owners:
        agents, mirror = entries(reading(reader, owner), SHOWN[owner.name])
        held = replaced(reader.peers, owner.name, agents), replaced(reader.copied, owner.name, mirror)
        reader = replace(reader, peers=held[0], copied=held[1])
    return reader


def led(reader: Member) -> Member:
    for name, (agents, mirror) in misled(reader).items():
        held = replaced(reader.peers, name, agents), replaced(reader.copied, name, mirror)
        reader = replace(reader, peers=held[0], copied=held[1])
    return reader


SHAPES = {
    "mirror": COPIED,
    "mirror at another port": replace(COPIED, port=3379),
    "no mirror": DIRECT,
    "no mirror, another port": replace(DIRECT, port=3379),
    "own etcd, mirror": replace(COPIED, etcd=EXTERNAL),
    "own etcd": replace(DIRECT, etcd=EXTERNAL),
}


@pytest.mark.parametrize("was", SHAPES)
@pytest.mark.parametrize("now", SHAPES)
def test_agents_are_led_as_if_they_were_connected_now(was: str, now: str) -> None:
    if (SHAPES[was].etcd is None) != (SHAPES[now].etcd is None):
        return  # not while connected
    wanted = joined(SHAPES[now], *OWNERS)
    before = joined(SHAPES[was], *OWNERS)
    found = replace(SHAPES[now], peers=before.peers, copied=before.copied)
    after = led(found)
    assert (dict(after.peers), dict(after.copied)) == (dict(wanted.peers), dict(wanted.copied))
    assert misled(after) == {}
    assert (misled(found) == {}) == (before.peers == wanted.peers)
    halves = replace(found, peers=after.peers), replace(found, copied=after.copied)
    half = halves[found.mirrored]  # what is written first
    assert (dict(led(half).peers), dict(led(half).copied)) == (dict(wanted.peers), dict(wanted.copied))


@pytest.mark.parametrize("helms", [(names.PEERS,), (names.COPIED,), (names.PEERS, names.COPIED)])
def test_what_helm_keeps_is_left_to_it(helms: tuple[str, ...]) -> None:
    assert misled(replace(joined(COPIED, *OWNERS), mirrored=False, helms=helms)) == {}


def test_who_is_half_disconnected_or_nowhere_to_be_found_is_not_led_anywhere() -> None:
    whole = joined(COPIED, *OWNERS)
    for mirrored in (True, False):
        assert misled(replace(whole, peers={}, mirrored=mirrored)) == {}
        assert misled(replace(whole, copied={}, mirrored=mirrored)) == {}


def test_limits_that_an_operator_changed_go_along() -> None:
    before = joined(COPIED, OWNERS[0])
    changed = before.copied["beta"] + b"clustermesh-limits: {nodes: 7}\n"
    after = led(replace(before, copied={**before.copied, "beta": changed}, mirrored=False))
    assert after.peers["beta"] == changed
