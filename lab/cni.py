"""Calling a CNI plugin as a container runtime does: environment in, JSON on standard input, JSON or an error out.

Specification: https://www.cni.dev/docs/spec/ (1.0.0), sections 2 (execution protocol) and 5 (result types).
"""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct

from clustermesh.errors import DecodeError, Refused, Unavailable

_SECONDS: Final = 20.0
_INTERFACE: Final = "eth0"


class Attachment(Struct, frozen=True, kw_only=True):
    """Which pod, in which network namespace: the same four things in ADD, CHECK and DEL."""

    container_id: str
    netns: str
    namespace: str
    pod: str


class _Ip(Struct):
    address: str


class _Result(Struct):
    ips: list[_Ip] = []


class _Error(Struct):
    code: int = 0
    msg: str = ""
    details: str = ""


class Plugin:
    """One plugin of `bin_folder`, with the network configuration `netconf` (its "type" names the executable)."""

    def __init__(self, bin_folder: Path, netconf: dict[str, Any]) -> None:
        self._bin_folder, self._netconf = bin_folder, netconf

    async def add(self, attachment: Attachment) -> tuple[dict[str, Any], tuple[str, ...]]:
        """The plugin's result as it gave it, and the pod's addresses without their lengths."""
        output = await self._call("ADD", attachment, {})
        try:
            result = msgspec.json.decode(output, type=_Result)
        except msgspec.DecodeError as error:
            raise DecodeError("result of CNI ADD", output, "must hold ips") from error
        if not result.ips:
            raise DecodeError("result of CNI ADD", output, "must hold an address in ips")
        return json.loads(output), tuple(ip.address.partition("/")[0] for ip in result.ips)

    async def check(self, attachment: Attachment, previous: dict[str, Any]) -> None:
        """Nothing where the attachment is as ADD left it; Refused with the plugin's words where it is not."""
        await self._call("CHECK", attachment, {"prevResult": previous})

    async def delete(self, attachment: Attachment, previous: dict[str, Any] | None) -> None:
        """Gone, also if it was never there (the plugin's duty)."""
        await self._call("DEL", attachment, {} if previous is None else {"prevResult": previous})

    async def _call(self, verb: str, attachment: Attachment, more: dict[str, Any]) -> bytes:
        plugin = self._bin_folder / str(self._netconf["type"])
        environment = {
            **os.environ,
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": attachment.container_id,
            "CNI_NETNS": attachment.netns,
            "CNI_IFNAME": _INTERFACE,
            "CNI_PATH": str(self._bin_folder),
            "CNI_ARGS": f"IgnoreUnknown=1;K8S_POD_NAMESPACE={attachment.namespace};K8S_POD_NAME={attachment.pod}",
        }
        pipe = asyncio.subprocess.PIPE
        child = await asyncio.create_subprocess_exec(plugin, stdin=pipe, stdout=pipe, stderr=pipe, env=environment)
        try:
            async with asyncio.timeout(_SECONDS):
                output, errors = await child.communicate(json.dumps(self._netconf | more).encode())
        except TimeoutError as error:
            raise Unavailable(f"CNI {verb} of {attachment.pod} took more than {_SECONDS:.0f} s") from error
        finally:
            if child.returncode is None:
                child.kill()
                await child.wait()
        if child.returncode:
            raise Refused(f"CNI {verb} of {attachment.pod}: {_explain(output, errors)}")
        return output


def _explain(output: bytes, errors: bytes) -> str:
    """What the plugin gave as its error object, or what it printed instead."""
    try:
        error = msgspec.json.decode(output, type=_Error)
    except msgspec.DecodeError:
        return (errors or output).decode(errors="replace").strip()[-500:]
    return f"{error.msg} (code {error.code}) {error.details}".strip()
