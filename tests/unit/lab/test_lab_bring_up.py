"""When a lab is up: every web pod is behind the service on every node that is to know of it, in the kernel, too."""

from __future__ import annotations

from typing import Any

import pytest

from lab import bring_up
from lab.lab import PodStatus
from lab.plan import make_plan

HERE, THERE = ("10.1.1.2", "fd00:10:1:1::2"), ("10.2.1.2", "fd00:10:2:1::2")


class Standing:
    """A lab of two nodes that answers as it is told."""

    def __init__(self, behind: dict[str, tuple[str, ...]], pending: int) -> None:
        self.plan, self._behind, self._pending = make_plan(nodes=1, pods=1), behind, pending

    def pods(self, cluster: str) -> list[PodStatus]:
        addresses = {"alpha": HERE, "beta": THERE}[cluster]
        more: dict[str, Any] = {"namespace": "default", "cluster": cluster, "node": f"{cluster}-1", "ready": True}
        web = PodStatus(name="web-1", address=addresses[0], addresses=addresses, **more)
        return [web, PodStatus(name="client", address="10.9.9.9", addresses=("10.9.9.9",), **more)]

    async def ask_agent(self, node: str, method: str) -> Any:
        if method == "status":
            return {"targets": [{"pending": 0}, {"pending": self._pending}]}
        found, ips = self._behind[node], self.plan.cluster(node.removesuffix("-1")).web_ips
        kinds = {ip: [each for each in found if (":" in each) == (":" in ip)] for ip in ips}
        return [
            {"address": ip, "protocol": protocol, "backends": [{"address": each} for each in kinds[ip]]}
            for ip in ips
            for protocol in ("TCP", "UDP")
        ]


@pytest.mark.parametrize(
    ("connected", "alpha", "beta", "pending", "is_up"),
    [
        (True, HERE + THERE, HERE + THERE, 0, True),
        (True, HERE + THERE, HERE + THERE, 1, False),
        (True, HERE + THERE, HERE, 0, False),
        (True, THERE, HERE + THERE, 0, False),
        (True, HERE + THERE[:1], HERE + THERE, 0, False),
        (False, HERE, THERE, 0, True),
        (False, HERE, (), 0, False),
        (False, HERE[1:], THERE, 0, False),
    ],
)
async def test_a_lab_is_up_once_every_web_pod_is_called_from_every_node(
    connected: bool, alpha: tuple[str, ...], beta: tuple[str, ...], pending: int, is_up: bool
) -> None:
    lab: Any = Standing({"alpha-1": alpha, "beta-1": beta}, pending)
    assert await bring_up.all_lead_to_web(lab, connected=connected) is is_up
