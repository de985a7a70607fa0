"""Clusters made of control planes and nodes, and how they are spoken to: kubectl and our own command."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec

from clustermesh.errors import Unavailable
from lab.kubernetes import ground
from lab.kubernetes.control_plane import KUBE, PORT, ControlPlane
from lab.kubernetes.ground import BUILD, NETWORK, PATIENCE
from lab.kubernetes.node import Node
from lab.machine import bin_folder

MESH: Final = "app.kubernetes.io/instance=clustermesh"
IMAGES: Final = BUILD / "images" / "containerd"
_COMMAND_SECONDS: Final = 300.0
_MOST_NODES: Final = 9


class Cluster:
    """The cluster `name`, whose id is `number`, of so many nodes."""

    def __init__(self, folder: Path, name: str, number: int, nodes: int) -> None:
        self.name, self.number, self._folder = name, number, folder
        self._names = [f"{name}-{n}" for n in range(1, _MOST_NODES + 1)]
        self.plane = ControlPlane(folder / "control-plane", name, NETWORK[number], f"10.{number}.0.0/16", self._names)
        self.nodes = [self._make_node(n) for n in range(1, nodes + 1)]

    def _make_node(self, number: int) -> Node:
        unique = 10 * self.number + number
        name = self._names[number - 1]
        return Node(self._folder / name, name, unique, NETWORK[unique], IMAGES)

    def start(self) -> None:
        """The processes, in the calling thread, without waiting for more than etcd."""
        for node in self.nodes:
            self._start_node(node)
        self.plane.start()

    def _start_node(self, node: Node) -> None:
        node.start(KUBE, self.plane.folder / f"{node.name}.kubeconfig", self.plane.authority)

    def start_rest(self) -> None:
        """What needs an API that answers: it ends, or backs off for long, where there is none. Raises Unavailable."""
        self.plane.until_ready()
        self.plane.start_clients()
        for node in self.nodes:
            (node.folder / "go").touch()

    def until_up(self) -> None:
        """The nodes are known, and this machine has routes to their pods, which call the API. Raises Unavailable."""
        self.until(lambda: len(self._pod_cidrs()) == len(self.nodes), "nodes registered")
        for name, cidr in self._pod_cidrs().items():
            (node,) = [each for each in self.nodes if each.name == name]
            ground.ip("route", "replace", cidr, "via", str(node.address))  # goes with the bridge

    def grow(self, *numbers: int) -> None:
        """By nodes of these numbers, which it never had, in the calling thread; `until_grown` is due."""
        new = [self._make_node(number) for number in numbers]
        self.nodes += new
        for node in new:
            self._start_node(node)
            (node.folder / "go").touch()

    def until_grown(self) -> None:
        """Its nodes run all that the chart has for them."""
        self.until_up()
        self.until_installed()

    def lose(self, node: Node) -> None:
        """Its power is cut, and it does not come back."""
        self.nodes.remove(node)
        node.vanish()

    def _pod_cidrs(self) -> dict[str, str]:
        """Of each node that has one."""
        found = self.plane.get("/api/v1/nodes")["items"]
        return {each["metadata"]["name"]: each["spec"]["podCIDR"] for each in found if "podCIDR" in each["spec"]}

    def stop(self) -> None:
        for node in self.nodes:
            node.stop()
        self.plane.stop()

    def install(self, *sets: str) -> str:
        """The chart, as a user puts it there; what the command said. There is no kube-proxy, hence k8sServiceHost."""
        said = [f"cluster.name={self.name}", f"cluster.id={self.number}", "image.pullPolicy=Never", *sets]
        said += [f"k8sServiceHost={self.plane.address}", f"k8sServicePort={PORT}"]
        return clustermesh("install", "--context", self.name, *(word for each in said for word in ("--set", each)))

    def until_installed(self) -> None:
        """Any pod may come to any node, for all have a network of pods, and all pods of the chart run."""

        def open_to_all() -> bool:
            nodes = self.plane.get("/api/v1/nodes")["items"]
            return all(_is_ready(each) and "taints" not in each["spec"] for each in nodes)

        self.until(open_to_all, "nodes ready")
        self.until_running("kube-system", MESH)

    def kubectl(self, *words: str, text: str = "") -> str:
        """Raises Unavailable with what it said."""
        return _run([str(KUBE), "kubectl", f"--kubeconfig={self.plane.kubeconfig}", *words], text)

    def apply(self, *manifests: Mapping[str, Any]) -> None:
        many = {"apiVersion": "v1", "kind": "List", "items": manifests}
        self.kubectl("apply", "-f", "-", text=msgspec.json.encode(many).decode())

    def pods(self, namespace: str, selector: str = "") -> list[Any]:
        return list(self.plane.get(f"/api/v1/namespaces/{namespace}/pods?labelSelector={selector}")["items"])

    def until_running(self, namespace: str, selector: str = "") -> None:
        """Until there are pods, and each is ready or has done its work."""

        def well() -> bool:
            pods = self.pods(namespace, selector)
            return bool(pods) and all(each["status"]["phase"] == "Succeeded" or _is_ready(each) for each in pods)

        self.until(well, f"pods of {namespace} running")

    def until(self, happened: Callable[[], bool], what: str, patience: float = PATIENCE) -> float:
        """The seconds that it took. Unavailable, with what the cluster says of itself, where it does not happen."""
        begun = time.monotonic()
        while not happened():
            self.plane.check()
            for node in self.nodes:
                node.check()
            if time.monotonic() - begun > patience:
                raise Unavailable(f"{self.name}: not within {patience:g} s: {what}\n{self.words()}")
            time.sleep(0.1)
        return time.monotonic() - begun

    def words(self) -> str:
        """What is worth knowing where something did not happen."""
        ends = [node.words() for node in self.nodes]
        try:
            ends.append(self.kubectl("get", "nodes,pods,services", "-A", "-o", "wide"))
            ends.append(self.kubectl("get", "events", "-A", "--sort-by=.lastTimestamp")[-3000:])
        except Unavailable as e:
            ends.append(str(e))
        return "\n".join(ends)


@contextmanager
def clusters(*names: str, nodes: int = 1, say: Callable[[str], None] = lambda _: None) -> Iterator[list[Cluster]]:
    """Clusters called so, up and with nothing in them; at the end nothing is left of them, whatever happened.

    Raises Unavailable; Refused where another process has some.
    """
    with ExitStack() as stack:
        stack.enter_context(ground.only_one())
        stack.enter_context(ground.standing())
        made = [Cluster(ground.FOLDER / name, name, n, nodes) for n, name in enumerate(names, 1)]
        say(f"starting {len(names)} control planes and {len(names) * nodes} nodes")
        for cluster in made:
            stack.callback(cluster.stop)
            cluster.start()
        for cluster in made:
            cluster.start_rest()
        _write_contexts(made)
        at_once(Cluster.until_up, made)
        yield made


def at_once(work: Callable[[Cluster], Any], of: Sequence[Cluster]) -> list[Any]:
    """The same for each, beside one another. It must start no process that is to stay."""
    pool = ThreadPoolExecutor(len(of))
    try:
        return list(pool.map(work, of))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # interrupted, they end with the clusters


def clustermesh(*words: str) -> str:
    """What our command says; the clusters are its contexts. Raises Unavailable."""
    return _run([str(bin_folder() / "clustermesh"), *words])


def _write_contexts(of: Sequence[Cluster]) -> None:
    """One kubeconfig with a context for each."""
    parts = [msgspec.json.decode(each.plane.kubeconfig.read_bytes()) for each in of]
    whole = {
        **parts[0],
        **{key: [one for part in parts for one in part[key]] for key in ("clusters", "users", "contexts")},
    }
    (ground.FOLDER / "kubeconfig").write_bytes(msgspec.json.encode(whole))


def _run(argv: Sequence[str], text: str = "") -> str:
    path = f"{BUILD}:{bin_folder()}:{os.environ.get('PATH', '')}"  # helm is in the first
    environment = {**os.environ, "PATH": path, "KUBECONFIG": str(ground.FOLDER / "kubeconfig")}
    try:
        done = subprocess.run(
            argv, input=text, capture_output=True, text=True, timeout=_COMMAND_SECONDS, env=environment, check=False
        )
    except subprocess.TimeoutExpired as e:
        raise Unavailable(f"{' '.join(argv)} has not ended after {_COMMAND_SECONDS:g} s") from e
    if done.returncode:
        raise Unavailable(f"{' '.join(argv)} exited with {done.returncode}: {done.stdout}{done.stderr}")
    return done.stdout


def _is_ready(what: Mapping[str, Any]) -> bool:
    """A pod or a node."""
    return any(each["type"] == "Ready" and each["status"] == "True" for each in what["status"].get("conditions", ()))
