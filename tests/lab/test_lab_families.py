"""Meshes of one address family, and of both with IPv6 the primary one: joined, answered at each address, encrypted.

Every other test here has a lab of both, IPv4 the primary one.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lab import bring_up, promises, teardown
from lab.plan import family_of, make_plan
from lab.streams import Capture


@pytest.mark.parametrize("families", [("ipv4",), ("ipv6",), ("ipv6", "ipv4")])
async def test_clusters_of_these_families_answer_at_each_address_and_nothing_is_clear(
    families: tuple[str, ...],
) -> None:
    folder = f"/run/clustermesh-lab-families-{os.getpid()}"
    try:
        lab = await bring_up.up(make_plan(nodes=1, pods=1, folder=folder, families=families), print, bound=True)
        assert {tuple(map(family_of, pod.addresses)) for pod in lab.pods("alpha")} == {families}
        capture = Capture(lab, promises.MARKER, promises.SELF_TEST)
        async with capture.running():
            both = await promises.answered_by_all(lab)
            secret = await promises.encrypted(lab, capture)
        assert both.held, both
        assert len(both.tcp.at) == len(families)
        assert secret.held, secret
    finally:
        left = teardown.down(Path(folder))
    assert left == []
