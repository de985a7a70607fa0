"""What the agent's socket answers, and who answers it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from agent.api import Method
from agent.cni.methods import Pods
from agent.status import Status


def methods(status: Status, pods: Pods) -> dict[str, Method]:
    """What the socket answers."""

    def reading(read: Callable[[], Any]) -> Method:
        async def method(_params: dict[str, Any]) -> Any:
            return read()

        return method

    async def encrypt(_params: dict[str, Any]) -> Any:
        return await status.encrypt()

    async def map_diff(_params: dict[str, Any]) -> Any:
        return await status.map_diff()

    return {
        "status": reading(status.status),
        "services": reading(status.services),
        "backends": reading(status.backends),
        "ipcache": reading(status.ipcache),
        "refused": reading(status.refused),
        "encrypt": encrypt,
        "map_diff": map_diff,
        "cni_add": pods.add,
        "cni_del": pods.delete,
        "cni_check": pods.check,
        "cni_status": pods.status,
        "cni_gc": pods.collect_garbage,
    }
