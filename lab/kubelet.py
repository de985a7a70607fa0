"""What a kubelet does, over a folder of YAML: run the Pods bound to this node and report how they are.

    python -m lab.kubelet --node NAME --host-ips IP,... --manifests DIR
                          --cni-conf FILE --cni-bin DIR --cgroup2 DIR

One task per Pod: namespace, CNI ADD, containers, readiness, status; when its document is gone: preStop, SIGTERM,
SIGKILL after the grace period, CNI DEL. What an earlier kubelet of this node left is removed first. CNI ADD is tried
again until it works, as a kubelet does while the agent starts.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from clustermesh.errors import ClusterMeshError
from lab import pod_files
from lab.cni import Attachment, Plugin
from lab.folder import FolderWatch
from lab.plan import family_of
from lab.pod_files import Container, Pod, PodFolder, Probe
from lab.sandbox import NETNS, Sandbox, kill_cgroup

_RETRY_SECONDS: Final = 0.1
_FIRST_PROBE_SECONDS: Final = 0.02
_RESCAN_SECONDS: Final = 2.0

Key = tuple[str, str]


class PodWorker:
    """One Pod on this node, from its document's appearance to its disappearance (`deleted`)."""

    def __init__(self, path: Path, pod: Pod, options: argparse.Namespace, plugin: Plugin) -> None:
        self.path, self.pod, self.deleted = path, pod, asyncio.Event()
        self._hosts, self._plugin = options.host_ips.split(","), plugin
        self._sandbox = Sandbox(f"{pod.metadata.namespace}_{pod.metadata.name}", options.cgroup2)
        self._addresses: tuple[str, ...] = ()
        self._ready = False
        self._up: set[str] = set()  # containers whose process runs

    def report(self) -> bool:
        """False where the file changed meanwhile or the Pod is gone; then a later look decides."""
        containers = self.pod.spec.containers
        status = pod_files.status(self._addresses, self._hosts, ready=self._ready, containers=containers)
        return pod_files.report(self.path, self.pod.key, self.pod.metadata.uid, status)

    @property
    def reported(self) -> tuple[tuple[str, ...], bool]:
        """What the Pod's status should say: addresses and readiness."""
        return self._addresses, self._ready

    async def run(self) -> None:
        await self._sandbox.make()
        attachment = Attachment(
            container_id=self._sandbox.id,
            netns=str(self._sandbox.netns),
            namespace=self.pod.metadata.namespace,
            pod=self.pod.metadata.name,
        )
        result = await self._attach(attachment)
        try:
            if result is not None:
                await self._plugin.check(attachment, result)
                await self._run_containers()
        finally:
            await self._delete(attachment, result)
            await self._sandbox.remove()

    async def _attach(self, attachment: Attachment) -> dict[str, Any] | None:
        """The result of the first ADD that worked; None where the Pod was deleted first."""
        said = ""
        while not self.deleted.is_set():
            try:
                result, addresses = await self._plugin.add(attachment)
                # A node's first address is of its primary family, and so has to be the pod's.
                primary = family_of(self._hosts[0])
                self._addresses = tuple(sorted(addresses, key=lambda address: family_of(address) != primary))
                return result
            except ClusterMeshError as error:
                if said != str(error):
                    said = str(error)
                    print(said, flush=True)
                with suppress(ClusterMeshError):  # the specification asks for DEL after a failed ADD
                    await self._plugin.delete(attachment, None)
                await asyncio.sleep(_RETRY_SECONDS)
        return None

    async def _delete(self, attachment: Attachment, result: dict[str, Any] | None) -> None:
        try:
            await self._plugin.delete(attachment, result)
        except ClusterMeshError as error:
            print(error, flush=True)

    async def _run_containers(self) -> None:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._keep(container)) for container in self.pod.spec.containers]
            tasks.append(group.create_task(self._watch_readiness()))
            await self.deleted.wait()
            await asyncio.sleep(self.pod.pre_stop_seconds)
            for task in tasks:
                task.cancel()

    async def _keep(self, container: Container) -> None:
        """Start it again whenever it ends (restartPolicy Always); end it in order when cancelled."""
        while True:
            process = await self._sandbox.start(container)
            self._up.add(container.name)
            try:
                code = await process.wait()
                print(f"{self.pod.metadata.name}/{container.name} ended: {code}", flush=True)
                self._tell(ready=False)  # the next probe may come when it runs again
            finally:
                self._up.discard(container.name)
                await self._end(process)
            await asyncio.sleep(1)

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        if process.returncode is not None:
            return
        process.send_signal(signal.SIGTERM)
        left = self.pod.spec.termination_grace_period_seconds - self.pod.pre_stop_seconds
        try:
            async with asyncio.timeout(max(left, 0.1)):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()

    async def _watch_readiness(self) -> None:
        probes = [container.readiness_probe for container in self.pod.spec.containers if container.readiness_probe]
        period = min((probe.period_seconds for probe in probes), default=1.0)
        while True:
            up = len(self._up) == len(self.pod.spec.containers)
            ready = up and all([await self._answers(probe) for probe in probes])
            self._tell(ready=ready)
            await asyncio.sleep(period if ready else _FIRST_PROBE_SECONDS)

    def _tell(self, *, ready: bool) -> None:
        if ready != self._ready:
            self._ready = ready
            self.report()

    async def _answers(self, probe: Probe) -> bool:
        """At every address: a real kubelet asks the first alone, which says nothing of the other family."""
        if probe.tcp_socket is None:
            return True
        try:
            async with asyncio.timeout(1):
                for address in self._addresses:
                    _, writer = await asyncio.open_connection(address, probe.tcp_socket.port)
                    writer.close()
        except OSError:
            return False
        return True


class Kubelet:
    """The Pods of one node: which have a worker, against which have a document."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._plugin = Plugin(options.cni_bin, json.loads(options.cni_conf.read_text()))
        self._folder = PodFolder(options.manifests, options.node)
        self._workers: dict[Key, PodWorker] = {}
        self._changed = asyncio.Event()

    async def run(self) -> None:
        await remove_leftovers(self._options.cgroup2, self._plugin)
        watch = FolderWatch(self._options.manifests)
        asyncio.get_running_loop().add_reader(watch.fileno(), self._changed.set)
        async with asyncio.TaskGroup() as group:
            while True:
                self._changed.clear()
                watch.rearm()
                self._step(group)
                with suppress(TimeoutError):
                    async with asyncio.timeout(_RESCAN_SECONDS):
                        await self._changed.wait()

    def _step(self, group: asyncio.TaskGroup) -> None:
        """Begin what is new, end what is gone or was replaced, report again what someone overwrote."""
        wanted = self._folder.read()
        for key in wanted.keys() - self._workers.keys():
            self._workers[key] = PodWorker(*wanted[key], self._options, self._plugin)
            group.create_task(self._live(key))
        for key, worker in self._workers.items():
            path, pod = wanted.get(key, (worker.path, None))
            if pod is None or pod.metadata.uid != worker.pod.metadata.uid:
                worker.deleted.set()
            elif not worker.deleted.is_set() and worker.reported != (_addresses(pod), _is_ready(pod)):
                worker.path = path
                worker.report()

    async def _live(self, key: Key) -> None:
        """One Pod's whole life. Its failure is its own: shown, and tried again while the document is there."""
        try:
            await self._workers[key].run()
        except* (ClusterMeshError, OSError) as errors:
            print(f"{key[0]}/{key[1]}: {errors.exceptions[0]!r}", flush=True)
            await asyncio.sleep(1)
        finally:
            del self._workers[key]
            self._changed.set()


def _addresses(pod: Pod) -> tuple[str, ...]:
    return tuple(each.get("ip", "") for each in pod.status.get("podIPs") or ())


def _is_ready(pod: Pod) -> bool:
    conditions = pod.status.get("conditions") or []
    return any(condition.get("type") == "Ready" and condition.get("status") == "True" for condition in conditions)


async def remove_leftovers(cgroup2: Path, plugin: Plugin) -> None:
    """Sandboxes of a kubelet that died: it knew what ran in them, this one does not."""
    for cgroup in (cgroup2 / "kubepods").glob("*/"):
        await kill_cgroup(cgroup)
    for netns in NETNS.glob("*_*"):
        namespace, _, pod = netns.name.partition("_")
        with suppress(ClusterMeshError):
            await plugin.delete(
                Attachment(container_id=netns.name, netns=str(netns), namespace=namespace, pod=pod), None
            )
        await Sandbox(netns.name, cgroup2).remove()


def main() -> None:
    options = argparse.ArgumentParser(description="runs the Pods of one node of the lab")
    options.add_argument("--node", required=True)
    options.add_argument("--host-ips", required=True)
    for name in ("manifests", "cni-conf", "cni-bin", "cgroup2"):
        options.add_argument(f"--{name}", type=Path, required=True)
    asyncio.run(Kubelet(options.parse_args()).run())


if __name__ == "__main__":
    main()
