"""The real kube-proxy on a real Kubernetes API, each in a network namespace of their own: the same as of our agent.

From its start to the last rule, from a patch to the rules that follow from it, memory, CPU while nothing changes and at
100 endpoint changes a second (what it runs to write rules included). `iptables` is the legacy one.

A start that takes more than a minute is ended. Then there is no program_s but unfinished_s, that minute, with the CPU
that kube-proxy had used by then, and what it ran: of its own, and in the kernel. The rest is not measured.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

from tests.bench.datapath._figures import SIZES

_PATIENCE: Final = 135.0
_KUBE: Final = Path("build/kube")


def _measured(mode: str, services: int) -> dict[str, list[float]]:
    for program, remedy in (("nft", "apt-get install nftables iptables"), (str(_KUBE), "tools/setup-kube")):
        if shutil.which(program) is None:
            raise RuntimeError(f"no {program} here: {remedy}")
    argv = (sys.executable, "-m", "tests.bench.datapath._kube_proxy", mode, str(services))
    command = ["unshare", "--net", *argv]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            said, _ = process.communicate(timeout=_PATIENCE)
        finally:
            if process.poll() is None:
                process.terminate()  # it ends what it has begun
    if process.returncode:
        raise RuntimeError(f"measuring kube-proxy failed with {process.returncode}")
    found: dict[str, list[float]] = json.loads(said)
    return {f"kube_proxy_{mode}_{services}_{name}": samples for name, samples in found.items()}


def _all() -> dict[str, Callable[[], Any]]:
    wanted = [(mode, services) for services in SIZES for mode in ("iptables", "nftables")]
    return {f"kube_proxy_{mode}_{services}": partial(_measured, mode, services) for mode, services in wanted}


FIGURES = _all()
