"""What is said of nodes that are not cleaned, by what kubelets say of the pods there."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from clustermesh.joining.node_cleanup import Pod, find_lacking

CRASHED = {
    "name": "cleanup",
    "ready": False,
    "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s restarting failed container"}},
    "lastState": {"terminated": {"exitCode": 1, "reason": "Error", "message": "removed a\nanother agent runs here\n"}},
}
PULLED = {"name": "cni-install", "state": {"waiting": {"reason": "ErrImageNeverPull"}}}
DONE = {"name": "cleanup", "ready": True, "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}}
READY = {"name": "done", "ready": True, "state": {"running": {}}}
WAITS = {"name": "done", "state": {"waiting": {"reason": "PodInitializing"}}}


@pytest.mark.parametrize(
    ("init", "containers", "expected"),
    [
        ([DONE, {**DONE, "name": "cni-install"}], [READY], []),
        ([DONE], [READY], []),
        ([CRASHED, PULLED], [WAITS], ["n1: cleanup: another agent runs here"]),
        ([DONE, PULLED], [WAITS], ["n1: cni-install: ErrImageNeverPull"]),
        ([DONE], [WAITS], ["n1: done: PodInitializing"]),
        ([{"name": "cleanup", "state": {"running": {}}}], [WAITS], ["n1: cleanup: runs"]),
        ([], [], ["n1: nothing has begun"]),
    ],
)
def test_a_node_is_named_with_what_is_not_done_there(
    init: list[Any], containers: list[Any], expected: list[str]
) -> None:
    status = {"initContainerStatuses": init, "containerStatuses": containers}
    pod = msgspec.convert({"spec": {"nodeName": "n1"}, "status": status}, Pod)
    assert list(find_lacking([pod])) == expected
