"""The demo on real Kubernetes clusters: chart, connection, a global Service, failover, and everything gone again."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Final

from msgspec import Struct

from clustermesh.errors import Refused
from lab.demo import Audience, Failover
from lab.kubernetes import ground
from lab.kubernetes.cluster import Cluster, at_once, clustermesh, clusters
from lab.kubernetes.workloads import Load, call, run_client, run_web
from lab.records import Traffic, add

_CLAIMS: Final = 8  # fewer verdicts than this: the run ended early
_NAMESPACE: Final = "demo"
_ESTIMATE: Final = 100  # seconds on two cores
_SETTLE_SECONDS: Final = 2.0


class Outcome(Struct, kw_only=True):
    """What `clustermesh demo --kubernetes --json` prints. `ok` only where every claim held and nothing was left."""

    ok: bool = False
    clusters: int = 2
    nodes: int = 2
    kubernetes: str = ""
    requests: int = 0
    failed: int = 0
    answers: dict[str, int] = {}
    failover: Failover = Failover()
    seconds: dict[str, float] = {}
    left_behind: list[str] = []


class Demo:
    """One run. `outcome` holds what is known so far, also where it ends early; `begun` once anything was made."""

    def __init__(self, audience: Audience) -> None:
        self._audience = audience
        self.begun = False
        self._held: list[bool] = []
        self._traffic: list[Traffic] = []
        self._began = time.monotonic()
        self.outcome = Outcome()

    def run(self) -> None:
        """Raises Refused where this machine cannot, Unavailable where it fails; KeyboardInterrupt also for SIGTERM."""
        if why := ground.missing():
            raise Refused(why)
        with _terminated_like_interrupted():
            self._audience.step(0, f"Two Kubernetes clusters on this machine; about {_ESTIMATE} s for all of it")
            try:
                with clusters("alpha", "beta", say=self._doing) as made:
                    self._show(made)
                    self._audience.doing("removing everything")
            finally:
                if self.begun:
                    self._look_back()

    def _doing(self, sentence: str) -> None:
        self.begun = True
        self._audience.doing(sentence)

    def _show(self, made: Sequence[Cluster]) -> None:
        alpha, beta = made
        version = str(alpha.plane.get("/version")["gitVersion"])
        self.outcome.kubernetes = version
        self._claim("up", True, f"two kube-apiservers, two kubelets, Kubernetes {version}; no network, no kube-proxy")
        self._install(made)
        self._join(alpha, beta)
        self._share(made)
        self._fail_over(alpha)
        self._look(made)
        self._part(alpha)

    def _install(self, made: Sequence[Cluster]) -> None:
        self._audience.step(1, "clustermesh install --context alpha, and beta: the chart, by Helm")
        at_once(Cluster.install, made)
        for cluster in made:
            run_web(cluster, _NAMESPACE)
        run_client(made[0], _NAMESPACE)
        self._audience.doing("waiting for the chart's pods")
        at_once(Cluster.until_installed, made)
        at_once(lambda cluster: cluster.until_running(_NAMESPACE), made)
        own = self._call(made[0])
        self._claim(
            "installed", own.clusters == {"alpha"}, f"nodes are ready; a pod calls a Service of its own: {_said(own)}"
        )

    def _join(self, alpha: Cluster, beta: Cluster) -> None:
        self._audience.step(2, "clustermesh enable, then connect --context alpha --destination-context beta")
        at_once(enable, [alpha, beta])
        clustermesh("connect", "--context=alpha", "--destination-context=beta")
        self._audience.doing("clustermesh status --wait, in both")
        at_once(until_connected, [alpha, beta])
        own = self._call(alpha)
        self._claim("connected", own.clusters == {"alpha"}, f"connected; nothing is shared yet: {_said(own)}")

    def _share(self, made: Sequence[Cluster]) -> None:
        self._audience.step(3, "kubectl annotate service web service.cilium.io/global=true")
        for cluster in made:
            annotate(cluster, _NAMESPACE, "global=true")
        seconds = self._until(made[0], {"alpha", "beta"})
        both = self._call(made[0], 200)
        self._claim("shared", both.clusters == {"alpha", "beta"}, f"{_said(both)}, {seconds:.1f} s later")

    def _fail_over(self, alpha: Cluster) -> None:
        self._audience.step(4, "alpha's pods go, and come back, while the client calls")
        load = Load(alpha, _NAMESPACE)
        self._audience.load(load)
        with load.running():
            time.sleep(_SETTLE_SECONDS)
            scale(alpha, _NAMESPACE, 0)
            time.sleep(_SETTLE_SECONDS)
            scale(alpha, _NAMESPACE, 1)
            time.sleep(_SETTLE_SECONDS)
        traffic = load.traffic
        self._count(traffic)
        self.outcome.failover = Failover(
            requests=traffic.requests, failed=traffic.failed, longest_gap_ms=traffic.longest_gap_ms
        )
        held = not traffic.failed and traffic.clusters == {"alpha", "beta"}
        self._claim("failover", held, f"{_said(traffic)}; longest gap {traffic.longest_gap_ms} ms")

    def _look(self, made: Sequence[Cluster]) -> None:
        self._audience.step(5, "clustermesh status")
        said = [clustermesh("status", "--context", cluster.name) for cluster in made]
        line = next((line.strip() for line in said[0].splitlines() if "lobal" in line), "")
        self._claim("status", True, f"nothing is wrong in either; {line}")

    def _part(self, alpha: Cluster) -> None:
        self._audience.step(6, "clustermesh disconnect, while the client calls")
        load = Load(alpha, _NAMESPACE)
        self._audience.load(load)
        with load.running():
            clustermesh("disconnect", "--context=alpha", "--destination-context=beta")
            time.sleep(_SETTLE_SECONDS)
        self._count(load.traffic)
        self._until(alpha, {"alpha"})
        after = self._call(alpha)
        held = not load.traffic.failed and after.clusters == {"alpha"}
        self._claim("disconnected", held, f"meanwhile {_said(load.traffic)}; then {_said(after)}")

    def _look_back(self) -> None:
        left = ground.left_behind()
        self.outcome.left_behind = left
        self._claim("removed", not left, f"left behind: {', '.join(left) or 'nothing'}")
        self.outcome.ok = len(self._held) == _CLAIMS and all(self._held)

    def _call(self, cluster: Cluster, requests: int = 40) -> Traffic:
        traffic = call(cluster, _NAMESPACE, requests=requests)
        self._count(traffic)
        return traffic

    def _until(self, cluster: Cluster, wanted: set[str]) -> float:
        """Until `wanted`, and nobody else, answer."""
        return cluster.until(lambda: self._call(cluster).clusters == wanted, f"answers of {', '.join(wanted)}")

    def _count(self, traffic: Traffic) -> None:
        self._traffic.append(traffic)
        whole = add(self._traffic)
        self.outcome.requests, self.outcome.failed, self.outcome.answers = whole.requests, whole.failed, whole.answers

    def _claim(self, name: str, held: bool, sentence: str) -> None:
        self._held.append(held)
        self.outcome.seconds[name] = round(time.monotonic() - self._began, 1)
        self._audience.claim(held, sentence)


def enable(cluster: Cluster) -> str:
    """Open it to other clusters, at a port of its node."""
    return clustermesh("enable", "--context", cluster.name, "--service-type=NodePort")


def until_connected(cluster: Cluster) -> str:
    """What `clustermesh status` says, once it is well. Raises Unavailable."""
    wait = f"--wait-duration={ground.PATIENCE:g}s"
    return clustermesh("status", "--context", cluster.name, "--wait", wait)


def annotate(cluster: Cluster, namespace: str, *said: str) -> None:
    """The Service `web`, with Cilium's annotations."""
    words = [f"service.cilium.io/{each}" for each in said]
    cluster.kubectl("annotate", "service", "web", f"--namespace={namespace}", "--overwrite", *words)


def scale(cluster: Cluster, namespace: str, replicas: int) -> None:
    """The Deployment `web`, until its pods are there, or all gone."""
    cluster.kubectl("scale", "deployment", "web", f"--namespace={namespace}", f"--replicas={replicas}")
    if replicas:
        cluster.until(lambda: len(cluster.pods(namespace, "app=web")) == replicas, "pods made")
        cluster.until_running(namespace, "app=web")
    else:
        cluster.until(lambda: not cluster.pods(namespace, "app=web"), "no pod left")


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before: Callable[..., object] | int | None = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _said(traffic: Traffic) -> str:
    answers = " and ".join(f"{count} answers from {name}" for name, count in traffic.answers.items()) or "no answer"
    why = "; ".join(f"{count} times {error}" for error, count in traffic.errors.items())
    return f"{answers}, {traffic.failed} failed" + (f" ({why})" if why else "")
