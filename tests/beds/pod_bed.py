"""A pod of the chart without a kubelet: its containers' own command lines, as processes that find what is mounted where
the pod says, with the capabilities that it names and no other.

Each has a mount namespace of its own, with an empty /var/lib and /run, and the network of this machine. Files are those
of the Secrets and ConfigMaps that the Kubernetes API has. They run as root without capabilities, not as the pod's user:
the checkout may be root's to read.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Final

from chart_bed import decoded
from kube_bed import KubeBed
from processes import child

_TOKEN_SECONDS: Final = 3600.0
_ARGS: Final = '"$@"'
_EXEC: Final = f"exec {_ARGS}"
# This machine's files, above which what is made goes to memory: mount points are none of the machine's.
_ROOT: Final = "/mnt/root"
_OWN_ROOT: Final = (
    "mounted=$(cut -d ' ' -f 5 /proc/self/mountinfo)",
    "mount -t tmpfs tmpfs /mnt",
    f"mkdir /mnt/upper /mnt/work {_ROOT}",
    f"mount -t overlay overlay -o lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work {_ROOT}",
    # What is below /mnt is covered; what others mounted may be gone by now.
    "for at in $mounted; do case $at in /|/mnt/*) ;; "
    f'*) mount --bind "$at" "{_ROOT}$at" || [ ! -e "$at" ] || exit 1; esac; done',
)


def missing() -> str:
    """What this machine lacks for it."""
    if shutil.which("unshare") is None or subprocess.run(["unshare", "--mount", "true"], check=False).returncode:
        return "no mount namespace of its own (root, unshare): a pod's files cannot stand where it mounts them"
    return ""


class Pod:
    """The pod that `template` describes in `namespace` of `bed`; `ip` is its address, one of the loopback."""

    def __init__(self, bed: KubeBed, folder: Path, namespace: str, template: Mapping[str, Any], ip: str) -> None:
        self._bed, self._folder, self._namespace, self._spec, self._ip = bed, folder, namespace, template["spec"], ip
        for volume in self._spec.get("volumes", ()):
            self._make(volume)
        if self._spec.get("automountServiceAccountToken", True):
            self._make_account()

    def refresh(self, name: str) -> None:
        """What a kubelet does some time after an object of the volume `name` has changed."""
        (volume,) = [each for each in self._spec["volumes"] if each["name"] == name]
        self._make(volume)

    def run(self, name: str, netns: str = "", before: Sequence[str] = ()) -> AbstractAsyncContextManager[Any]:
        """The container `name`, for as long as the block lasts; in the network namespace `netns`. `before` are lines of
        shell that make what a node has, as root who may do everything."""
        (container,) = [
            each for each in (*self._spec.get("initContainers", ()), *self._spec["containers"]) if each["name"] == name
        ]
        argv = [*container["command"], *container.get("args", ())]
        here = Path(sys.executable).parent
        env = {"PATH": f"{here}:{os.environ['PATH']}", **self._environment(container)}
        argv = [_expanded(each, env) for each in argv]
        makes = [*before, "mount -t tmpfs tmpfs /var/lib", "mount -t tmpfs tmpfs /run", *self._mounts(container)]
        folder = shlex.quote(str(self._folder.resolve()))
        volumes = f"mount --bind {folder} {_ROOT}{folder}"  # what changes in them later is to be seen
        script = " && ".join(
            [*_OWN_ROOT, volumes, f"exec chroot {_ROOT} sh -c {shlex.quote(' && '.join([*makes, _EXEC]))} sh {_ARGS}"]
        )
        kept = container.get("securityContext", {}).get("capabilities", {}).get("add", [])
        bounds = ",".join(["-all", *(f"+{each.lower()}" for each in kept)])
        setpriv = ["setpriv", "--pdeathsig", "KILL", f"--bounding-set={bounds}", f"--inh-caps={bounds}"]
        said = [f"{key}={value}" for key, value in env.items()]
        inside = ["nsenter", f"--net=/run/netns/{netns}"] if netns else []
        enters = [*inside, "unshare", "--mount", "--", "sh", "-c", script, "sh"]
        return child(*enters, *setpriv, "--", "env", "-i", *said, *argv)

    def _environment(self, container: Mapping[str, Any]) -> dict[str, str]:
        known = {"status.podIP": self._ip, "metadata.uid": "0b5c", "spec.nodeName": "w1", "status.hostIP": self._ip}
        env = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(self._bed.port)}
        for each in container.get("env", ()):
            env[each["name"]] = each["value"] if "value" in each else known[each["valueFrom"]["fieldRef"]["fieldPath"]]
        return env

    def path(self, volume: str) -> Path:
        """Where on this machine the volume is."""
        return self._folder / volume

    def _mounts(self, container: Mapping[str, Any]) -> list[str]:
        lines = []
        mounts = list(container.get("volumeMounts", ()))
        if self._spec.get("automountServiceAccountToken", True):
            account = {"name": ".account", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"}
            mounts += [] if any(each["mountPath"] == account["mountPath"] for each in mounts) else [account]
        for mount in mounts:
            if mount["mountPath"] == "/tmp":  # where tests, and perhaps the checkout, are
                continue
            source = self._folder / mount["name"] / mount.get("subPath", "")
            at, where = shlex.quote(mount["mountPath"]), shlex.quote(str(source))
            make = f"mkdir -p {at}" if source.is_dir() else f"mkdir -p $(dirname {at}) && touch {at}"
            lines += [f"{make} && mount --bind {where} {at}"]
        return lines

    def _make(self, volume: Mapping[str, Any]) -> None:
        folder = self._folder / volume["name"]
        folder.mkdir(parents=True, exist_ok=True)
        sources = volume.get("projected", {}).get("sources") or [volume]
        for source in sources:
            for name, data in self._files(source).items():
                made = folder / f".{name}.made"
                made.write_bytes(data)
                made.rename(folder / name)

    def _files(self, source: Mapping[str, Any]) -> dict[str, bytes]:
        if "serviceAccountToken" in source:
            return {source["serviceAccountToken"]["path"]: self._token()}
        for kind, plural in (("secret", "secrets"), ("configMap", "configmaps")):
            if kind not in source:
                continue
            said = source[kind]
            name = said.get("name") or said["secretName"]
            if name == "kube-root-ca.crt":
                data = {"ca.crt": self._bed.authority.ca.read_bytes()}
            else:
                try:
                    found = self._bed.ask("GET", f"/api/v1/namespaces/{self._namespace}/{plural}/{name}")
                except RuntimeError:
                    if said.get("optional"):
                        return {}
                    raise
                data = decoded(found) if kind == "secret" else {k: v.encode() for k, v in found["data"].items()}
            items = said.get("items") or [{"key": key, "path": key} for key in data]
            return {item["path"]: data[item["key"]] for item in items}
        return {}

    def _token(self) -> bytes:
        return self._bed.token(self._namespace, self._spec["serviceAccountName"], _TOKEN_SECONDS).encode()

    def _make_account(self) -> None:
        folder = self._folder / ".account"
        folder.mkdir(exist_ok=True)
        (folder / "token").write_bytes(self._token())
        (folder / "ca.crt").write_bytes(self._bed.authority.ca.read_bytes())


def _expanded(text: str, env: Mapping[str, str]) -> str:
    """As a kubelet does it: $(NAME)."""
    for name, value in env.items():
        text = text.replace(f"$({name})", value)
    return text
