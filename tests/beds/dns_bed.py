"""A real CoreDNS beside a real Kubernetes API, and questions to it."""

from __future__ import annotations

import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from kube_bed import KubeBed
from ports import free_port

PROGRAM: Final = Path(__file__).parents[2] / "build" / "coredns"
MISSING: Final = "" if PROGRAM.exists() else "no CoreDNS here: tools/setup-kube builds it (make test does so)"
_KINDS: Final = {"A": 1, "AAAA": 28}
_CONFIG: Final = """.:{port} {{
  errors
  kubernetes cluster.local clusterset.local {{
    kubeconfig {kubeconfig}
    multicluster clusterset.local
  }}
}}
"""


class Dns:
    """It listens on this port of the loopback."""

    def __init__(self, port: int) -> None:
        self._port = port

    def ask(self, name: str, kind: str = "A") -> list[str]:
        """The addresses of `name`, sorted; none where nobody answers."""
        labels = b"".join(bytes([len(part)]) + part.encode() for part in name.split("."))
        question = struct.pack(">HHHHHH", 7, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack(">HH", _KINDS[kind], 1)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            asking.settimeout(2)
            try:
                asking.connect(("127.0.0.1", self._port))
                asking.send(question)
                answer = asking.recv(4096)
            except OSError:
                return []
        return sorted(_addresses(answer, len(question)))


def _addresses(answer: bytes, at: int) -> Iterator[str]:
    (records,) = struct.unpack(">H", answer[6:8])
    for _ in range(records):
        while 0 < answer[at] < 192:
            at += answer[at] + 1
        at += 2 if answer[at] else 1
        kind, _, _, length = struct.unpack(">HHIH", answer[at : at + 10])
        at += 10 + length
        if kind in _KINDS.values():
            yield socket.inet_ntop(socket.AF_INET if kind == 1 else socket.AF_INET6, answer[at - length : at])


@contextmanager
def dns(bed: KubeBed, folder: Path) -> Iterator[Dns]:
    """It answers for what is in this API."""
    port = free_port()
    config = folder / "Corefile"
    config.write_text(_CONFIG.format(port=port, kubeconfig=bed.write_kubeconfig("dns", cert="admin")))
    with subprocess.Popen([str(PROGRAM), "-conf", str(config), "-quiet"]) as process:
        try:
            yield Dns(port)
        finally:
            process.kill()
