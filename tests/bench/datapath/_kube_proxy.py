"""Measures a kube-proxy in this network namespace, which is to be empty: MODE SERVICES. Prints {name: samples}."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

from kube_bed import PROGRAM, KubeBed
from ports import free_port

from clustermesh.store.client import EtcdClient
from tests.bench.controlplane._objects import Objects, service_name
from tests.bench.controlplane._programs import folder, kubernetes, registered

_PATIENCE: Final = 60.0  # seconds until it is given up
_OFTEN: Final = 0.02
_BACKENDS: Final = 10
_CHANGES: Final = 6
_MOST: Final = 15.0  # seconds of single changes
_APART: Final = 1.5  # seconds between them: kube-proxy writes once a second at most
_RATE: Final = 100  # changes a second
_WINDOW: Final = 6.0  # seconds that CPU is read over
_TICKS: Final = os.sysconf("SC_CLK_TCK")
_SYNCED: Final = re.compile(r"^kubeproxy_sync_proxy_rules_last_timestamp_seconds(?:\{.*IPv4.*\})? (\S+)$", re.M)


class _KubeProxy:
    """A process of it, with its metrics."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self._process, self._port = process, port

    async def synced(self, after: float) -> float:
        """When (time.time()) it had last written rules, once that is later than `after`."""
        while (at := await asyncio.to_thread(self._last)) <= after:
            if self._process.poll() is not None:
                raise RuntimeError(f"kube-proxy ended with {self._process.returncode}")
            await asyncio.sleep(_OFTEN)
        return at

    def _last(self) -> float:
        with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{self._port}/metrics", timeout=60) as page:
            found = _SYNCED.search(page.read().decode())
            return float(found[1]) if found else 0.0
        return 0.0

    def cpu(self) -> float:
        """Seconds, with what it ran."""
        return sum(_ticks(self._process.pid)) / _TICKS

    def running(self) -> Mapping[str, float]:
        """What it runs now has used so far: seconds of its own, and in the kernel."""
        own = kernel = 0
        for each in map(int, filter(str.isdigit, os.listdir("/proc"))):
            with suppress(OSError):  # it has ended
                if _parent(each) == self._process.pid:
                    user, system, *_ = _ticks(each)
                    own, kernel = own + user, kernel + system
        return {"own": own / _TICKS, "kernel": kernel / _TICKS}

    def resident_mb(self) -> float:
        lines = Path(f"/proc/{self._process.pid}/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024

    async def cpu_percent(self) -> float:
        began, before = time.monotonic(), self.cpu()
        await asyncio.sleep(_WINDOW)
        return 100 * (self.cpu() - before) / (time.monotonic() - began)


def _fields(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _parent(pid: int) -> int:
    return int(_fields(pid)[1])


def _ticks(pid: int) -> list[int]:
    """Of its own and in the kernel, then the same of what it has run."""
    return list(map(int, _fields(pid)[11:15]))


async def measure(mode: str, services: int) -> Mapping[str, list[float]]:
    objects = Objects(services, backends=_BACKENDS)
    with folder() as home:
        async with kubernetes(home, objects) as api:
            began = time.time()
            async with _running(mode, home, api) as proxy:
                try:
                    async with asyncio.timeout(_PATIENCE):
                        programmed = await proxy.synced(0.0) - began
                except TimeoutError:
                    print(f"kube-proxy has not written its rules within {_PATIENCE:g} s: ended", file=sys.stderr)
                    used = {f"unfinished_run_{whose}_cpu_s": [seconds] for whose, seconds in proxy.running().items()}
                    return {"unfinished_s": [_PATIENCE], "unfinished_proxy_cpu_s": [proxy.cpu()], **used}
                used = proxy.cpu()
                _check_whole(mode, services)
                changes = await _change_some(proxy, api, objects)
                memory, idle = proxy.resident_mb(), await proxy.cpu_percent()
                changing = asyncio.create_task(_change_all_the_time(api, objects))
                busy = await proxy.cpu_percent()
                changing.cancel()
    return {
        "program_s": [programmed],
        "program_cpu_s": [used],
        "change_ms": changes,
        "rss_mb": [memory],
        "idle_cpu_percent": [idle],
        "changes_cpu_percent": [busy],
    }


@asynccontextmanager
async def _running(mode: str, home: Path, api: KubeBed) -> AsyncIterator[_KubeProxy]:
    port = free_port()
    config = api.write_kubeconfig("admin", cert="admin")
    argv = [
        *("setpriv", "--pdeathsig", "KILL", "--"),
        str(PROGRAM),
        "proxy",
        f"--kubeconfig={config}",
        "--hostname-override=node-0",
        f"--proxy-mode={mode}",
        "--cluster-cidr=10.128.0.0/9",
        "--conntrack-max-per-core=0",
        "--conntrack-tcp-timeout-established=0",
        "--conntrack-tcp-timeout-close-wait=0",
        f"--healthz-bind-address=127.0.0.1:{free_port()}",
        f"--metrics-bind-address=127.0.0.1:{port}",
    ]
    process = _start(argv, home)
    try:
        yield _KubeProxy(process, port)
    except RuntimeError as e:
        raise RuntimeError(f"{e}: {(home / 'kube-proxy.log').read_text()[-2000:]}") from e
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # nft may have minutes to go
        process.wait()


def _start(argv: list[str], home: Path) -> subprocess.Popen[bytes]:
    with (home / "kube-proxy.log").open("wb") as log:
        return subprocess.Popen(
            argv, env=_with_legacy(home), stdin=subprocess.DEVNULL, stdout=log, stderr=log, process_group=0
        )


def _with_legacy(home: Path) -> dict[str, str]:
    """An environment in which iptables is the legacy one."""
    links = home / "bin"
    links.mkdir()
    for family in ("iptables", "ip6tables"):
        for verb in ("", "-save", "-restore"):
            found = shutil.which(f"{family}-legacy{verb}")
            if found is None:
                raise RuntimeError(f"no {family}-legacy{verb} here: apt-get install iptables")
            (links / f"{family}{verb}").symlink_to(found)
    return {**os.environ, "PATH": f"{links}:{os.environ['PATH']}"}


def _check_whole(mode: str, services: int) -> None:
    """RuntimeError where the kernel has not got each service."""
    listing = ["nft", "list", "map", "ip", "kube-proxy", "service-ips"]
    command = ["iptables-legacy-save", "-t", "nat"] if mode == "iptables" else listing
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = len(re.findall(r"-A KUBE-SERVICES .*cluster IP" if mode == "iptables" else r": goto service-", text))
    if found < services:
        raise RuntimeError(f"kube-proxy has written {found} of {services} services")


async def _change_some(proxy: _KubeProxy, api: KubeBed, objects: Objects) -> list[float]:
    """Milliseconds from a patch until the rules are written, of each of some changes one by one."""
    took, until = [], time.monotonic() + _MOST
    for number in range(_CHANGES):
        await asyncio.sleep(_APART)
        namespace, name = service_name(number)
        path = f"/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices/{name}-abcde"
        endpoints = objects.slice(number, objects.spare(number))["endpoints"][1:]
        change = {"endpoints": endpoints}
        asked = time.time()
        await asyncio.to_thread(api.ask, "PATCH", path, change, "application/merge-patch+json")
        took.append(1000 * (await proxy.synced(asked) - asked))
        if time.monotonic() > until:
            break
    return took


async def _change_all_the_time(api: KubeBed, objects: Objects) -> None:
    """Slices where the API keeps them, at the rate, until cancelled: each time one endpoint is another."""
    async with EtcdClient(api.etcd.endpoints) as client:
        began, number = time.monotonic(), 0
        while True:
            which = number % objects.services
            made = objects.slice(which, objects.spare(number))
            made["endpoints"] = made["endpoints"][1:]
            await client.transact([registered(objects.slice_key(which), made)])
            number += 1
            await asyncio.sleep(max(began + number / _RATE - time.monotonic(), 0.0))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    print(json.dumps(asyncio.run(measure(sys.argv[1], int(sys.argv[2])))))
