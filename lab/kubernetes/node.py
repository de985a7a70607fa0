"""A node: kubelet, containerd and runc, in namespaces of their own that end with its first process (node_init.sh)."""

from __future__ import annotations

import json
import subprocess
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, Final

import msgspec

from clustermesh.errors import Unavailable
from lab.kubernetes.ground import CONTROLLERS, GROUPS, NAME, NETWORK, ip

DNS: Final = "10.96.0.10"
"""Where pods ask for names, whether anybody is there or not."""
PAUSE: Final = "localhost.local/pause:1"
_NOTHING: Final = {f"{fs}.{what}": "0%" for fs in ("nodefs", "imagefs") for what in ("available", "inodesFree")}


class Node:
    """`name` at `address`; `number` is unlike every other's on this machine. `images` is a state of containerd."""

    def __init__(self, folder: Path, name: str, number: int, address: IPv4Address, images: Path) -> None:
        self.folder, self.name, self.address = folder, name, address
        self._short, self._images = f"{NAME}-{number}", images
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True)

    def start(self, kube: Path, kubeconfig: Path, authority: Path) -> None:
        """Containerd at once; the kubelet once there is a file `go` in the folder, for it backs off for long where
        there is no API server."""
        ip("netns", "add", self._short)
        ip("link", "add", self._short, "type", "veth", "peer", "name", "eth0", "netns", self._short)
        ip("link", "set", self._short, "master", NAME, "up")
        for line in ("link set lo up", f"address add {self.address}/24 dev eth0", "link set eth0 up"):
            ip("-n", self._short, *line.split())
        ip("-n", self._short, "route", "add", "default", "via", str(NETWORK[1]))
        groups = [GROUPS / each / self._short for each in CONTROLLERS]
        for each in groups:
            each.mkdir()
        for file in ("cpuset.cpus", "cpuset.mems"):
            (GROUPS / "cpuset" / self._short / file).write_bytes((GROUPS / "cpuset" / file).read_bytes())
        self._write_configurations(authority)
        join = 'until [ "$1" = -- ]; do echo $$ >"$1/cgroup.procs"; shift; done; shift; exec "$@"'
        apart = ["unshare", "--mount", "--pid", "--uts", "--ipc", "--cgroup", "--fork", "--kill-child"]
        script = [str(Path(__file__).with_name("node_init.sh")), str(self.folder), str(kube), str(kubeconfig)]
        init = [*apart, "sh", *script, self.name, str(self.address), str(self._images)]
        argv = ["sh", "-c", join, "sh", *map(str, groups), "--", "nsenter", f"--net=/run/netns/{self._short}", *init]
        with (self.folder / "init.log").open("ab") as log:
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "--", *argv],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                process_group=0,
            )

    def check(self) -> None:
        """Unavailable where the node has ended."""
        if self._process is None or self._process.poll() is not None:
            raise Unavailable(f"node {self.name} has ended: {self.words()}")

    def stop(self) -> None:
        """At once. What is left on the machine, `ground.remove` takes away."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def vanish(self) -> None:
        """As a power cut does to who is at the other end: no goodbye comes, and nothing answers at its address."""
        ip("link", "del", self._short)
        self.stop()

    def routes(self) -> str:
        """All of its kernel's, of IPv4."""
        argv = ["ip", "-n", self._short, "-4", "route", "show", "table", "all"]
        return subprocess.run(argv, capture_output=True, text=True, check=True).stdout

    def words(self) -> str:
        """The end of what its programs said."""
        logs = [self.folder / f"{each}.log" for each in ("init", "containerd", "kubelet")]
        return "\n".join(f"{each.name}: {each.read_text()[-1500:]}" for each in logs if each.exists())

    def _write_configurations(self, authority: Path) -> None:
        cri = {
            "sandbox_image": PAUSE,
            "restrict_oom_score_adj": True,  # less than one has takes CAP_SYS_RESOURCE
            "disable_apparmor": True,
            "containerd": {"runtimes": {"runc": {"runtime_type": "io.containerd.runc.v2"}}},
        }
        plugins = {"io.containerd.grpc.v1.cri": cri}
        (self.folder / "containerd.toml").write_text(_toml({"version": 2, "plugins": plugins}))
        (self.folder / "resolv.conf").write_text("")
        kubelet = {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {"anonymous": {"enabled": False}, "x509": {"clientCAFile": str(authority)}},
            "authorization": {"mode": "AlwaysAllow"},  # whoever has a certificate: the API server
            "cgroupDriver": "cgroupfs",
            "clusterDNS": [DNS],
            "clusterDomain": "cluster.local",
            "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
            "evictionHard": {"memory.available": "0%", **_NOTHING},  # the disk is everybody's
            "failCgroupV1": False,
            "failSwapOn": False,
            "imageGCHighThresholdPercent": 100,
            "imageGCLowThresholdPercent": 99,
            "maxOpenFiles": 20000,
            "nodeStatusUpdateFrequency": "4s",
            "oomScoreAdj": 0,
            "resolvConf": str(self.folder / "resolv.conf"),
            "syncFrequency": "2s",  # how soon a pod sees that its Secret changed
            "volumePluginDir": "/var/lib/kubelet/volume-plugins",
        }
        (self.folder / "kubelet.yaml").write_bytes(msgspec.json.encode(kubelet))  # JSON is YAML


def _toml(values: dict[str, Any], path: str = "") -> str:
    """Tables and plain values, which JSON writes as TOML does."""
    plain = "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items() if not isinstance(value, dict))
    inner = {f'{path}"{key}"': value for key, value in values.items() if isinstance(value, dict)}
    return plain + "".join(f"[{key}]\n{_toml(value, f'{key}.')}" for key, value in inner.items())
