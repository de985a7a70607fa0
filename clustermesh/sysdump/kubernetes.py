"""What is read of a cluster by its Kubernetes API: objects, logs, pages of servers, and what its nodes' agents tell."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final

import msgspec

from clustermesh.errors import DecodeError, Unavailable
from clustermesh.joining import names
from clustermesh.joining.connect import read_site
from clustermesh.joining.connections import list_connections
from clustermesh.joining.helm import list_releases
from clustermesh.joining.objects import Objects
from clustermesh.joining.status import read_status
from clustermesh.joining.versions import read_versions
from clustermesh.kube.faults import NotServed
from clustermesh.sysdump.gather import Bounds, Gathering, Source, as_json, as_list
from clustermesh.sysdump.redact import Redactor

_IN_NAMESPACE: Final = {
    "api/v1": ("services", "configmaps", "serviceaccounts", "events", "endpoints"),
    "apis/apps/v1": ("deployments", "daemonsets", "replicasets"),
    "apis/batch/v1": ("jobs", "cronjobs"),
    "apis/discovery.k8s.io/v1": ("endpointslices",),
    "apis/rbac.authorization.k8s.io/v1": ("roles", "rolebindings"),
    "apis/policy/v1": ("poddisruptionbudgets",),
    "apis/networking.k8s.io/v1": ("networkpolicies",),
}
_SERVICES_API: Final = ("apis/multicluster.x-k8s.io/v1beta1", "apis/multicluster.x-k8s.io/v1alpha1")
_EVERYWHERE: Final[Mapping[str, Sequence[str]]] = {
    "nodes": ("api/v1",),
    "namespaces": ("api/v1",),
    "clusterroles": ("apis/rbac.authorization.k8s.io/v1",),
    "clusterrolebindings": ("apis/rbac.authorization.k8s.io/v1",),
    "serviceexports": _SERVICES_API,
    "serviceimports": _SERVICES_API,
    "clustermeshpeers": ("apis/clustermesh.io/v1alpha1",),
    "ciliumnodes": ("apis/cilium.io/v2",),
    "customresourcedefinitions": ("apis/apiextensions.k8s.io/v1",),
}
"""By kind the versions of its API, of which the first that is served is read."""
_OURS: Final = ("clustermesh", "cilium", "multicluster")
"""Of what whole clusters have much of, only what has such a word in its name."""
_OF_MANY: Final = ("clusterroles", "clusterrolebindings", "customresourcedefinitions")
_MOST: Final = 500
"""Objects of one kind, and of one page of Secrets."""
_SECRETS, _PODS, _VALUES = "objects/secrets.json", "objects/pods.json", "values.json"
_OUR_PODS: Final = f"app.kubernetes.io/part-of in ({','.join(names.PRODUCTS)})"
_LEARNING: Final = 60.0
"""Seconds to read all Secrets, without which nobody knows what to take out, and all of our pods."""
_LINES: Final = 5000
"""Of a log."""
_NODES: Final = 10
"""Pods of one DaemonSet that are asked for their logs and tables."""
NODE_COMMANDS: Final = tuple(
    tuple(words.split())
    for words in (
        "node status",
        "node service list",
        "node backend list",
        "node refused",
        "node limits",
        "node ipcache list",
        "node encrypt status",
        "node map diff",
        "node bpf lb list",
        "node bpf affinity list",
        "node bpf ct list",
    )
)


class Dump:
    """Reads the cluster behind `objects`, which the user calls `context`."""

    def __init__(self, objects: Objects, context: str, bounds: Bounds) -> None:
        self._objects, self._context, self._bounds = objects, context, bounds
        self._pods: list[Mapping[str, Any]] = []
        self.redactor, self.gathering = Redactor(), Gathering(bounds)

    async def read(self) -> None:
        """Never raises: what cannot be read is noted. Where Secrets cannot be, no text of anybody's is in the archive,
        for nobody knows which of its words are theirs."""
        await self.gathering.ask([Source(_SECRETS, self._learn, _LEARNING)])
        self.redactor.blind = _SECRETS not in self.gathering.found.files
        await self.gathering.ask([*self._objects_of(), *self._states()])
        if self.redactor.blind:
            for what in (_VALUES, "logs, texts, and what agents tell"):
                self.gathering.found.missing[what] = "Secrets could not be read"
        else:
            await self.gathering.ask(list(self._of_pods()))

    async def _learn(self) -> bytes:
        """Names and sizes of all Secrets; what is in them is known to the redactor then."""
        found = self._every(self._at("api/v1", "secrets"))
        return self._packed(_SECRETS, [self.redactor.take_object({"kind": "Secret", **each}) async for each in found])

    async def _every(self, path: str, **said: str) -> AsyncIterator[Mapping[str, Any]]:
        """All objects there, page by page."""
        more = ""
        while True:
            page = _tree(await self._get(path, limit=str(_MOST), **said, **({"continue": more} if more else {})), path)
            for each in page.get("items", ()):
                yield each
            if not (more := page.get("metadata", {}).get("continue", "")):
                return

    async def _read_pods(self) -> bytes:
        """All of ours, those of no DaemonSet first, as the API server's; then what a page has of others."""
        path = self._at("api/v1", "pods")
        ours = [each async for each in self._every(path, labelSelector=_OUR_PODS)]
        self._pods = sorted(ours, key=lambda pod: (bool(_daemon(pod)), _is_well(pod)))
        page = _tree(await self._get(path, limit=str(_MOST)), path)
        if page.get("metadata", {}).get("continue"):
            self.gathering.found.missing[_PODS] = f"of others' pods those among the first {_MOST} are here"
        pods = [*self._pods, *(each for each in page.get("items", ()) if not _is_ours(each))]
        return self._packed(_PODS, self.redactor.take_object([{"kind": "Pod", **each} for each in pods]))

    def _at(self, group: str, plural: str) -> str:
        return f"/{group}/namespaces/{self._objects.namespace}/{plural}"

    def _objects_of(self) -> Iterator[Source]:
        yield Source(_PODS, self._read_pods, _LEARNING)
        for group, plurals in _IN_NAMESPACE.items():
            for plural in plurals:
                yield self._list(f"objects/{plural}.json", self._at(group, plural))
        for plural, groups in _EVERYWHERE.items():
            yield self._list(f"objects/{plural}.json", *(f"/{group}/{plural}" for group in groups))
        yield self._list("objects/global-services.json", "/api/v1/services")

    def _states(self) -> Iterator[Source]:
        asked = {"status": self._status, "versions": self._versions, "peers": self._peers}
        for name, ask in asked.items():
            yield Source(f"{name}.json", ask)
        if not self.redactor.blind:
            yield Source(_VALUES, self._values)
        yield Source("certificates.json", self._certificates)
        yield Source("kubernetes/version.json", partial(self._get, "/version"))
        yield Source("kubernetes/readyz.txt", partial(self._get, "/readyz", verbose=""))

    def _list(self, name: str, *paths: str) -> Source:
        return Source(name, partial(self._read_list, name, paths))

    async def _read_list(self, name: str, paths: Sequence[str]) -> bytes:
        for path in paths:
            try:
                found = _tree(await self._get(path, limit=str(_MOST)), path)
                break
            except NotServed:
                continue
        else:  # as of Cilium's kinds, where it is not installed
            return b"[]"
        plural = path.rpartition("/")[2]
        items = [{"kind": found.get("kind", "").removesuffix("List"), **each} for each in found.get("items", ())]
        if plural in _OF_MANY:
            items = [each for each in items if any(word in each["metadata"]["name"] for word in _OURS)]
        if name == "objects/global-services.json":
            items = [each for each in items if any("cilium" in key for key in each["metadata"].get("annotations", {}))]
        if found.get("metadata", {}).get("continue"):
            self.gathering.found.missing[name] = f"the first {_MOST} are here"
        return self._packed(name, self.redactor.take_object(items))

    def _packed(self, name: str, items: Sequence[Any]) -> bytes:
        """As many whole objects as there is room for."""
        data, kept = as_list(items, self.gathering.most)
        if kept < len(items):
            self.gathering.found.missing[name] = f"{kept} of {len(items)} are here, the others have no room"
        return data

    def _of_pods(self) -> Iterator[Source]:
        """What is asked of our pods; of most of a large DaemonSet's no more than their state."""
        seen = Counter[str]()
        for pod in self._pods:
            daemon = _daemon(pod)
            seen[daemon] += 1
            if not daemon or seen[daemon] <= _NODES:
                yield from self._of_pod(pod)
            elif _is_agent(pod):
                yield self._table(pod, NODE_COMMANDS[0])
        for daemon, pods in seen.items():
            if daemon and pods > _NODES:
                said = f"{_NODES} of {pods} pods are asked, first those that are not well"
                self.gathering.found.missing[f"logs and tables of {daemon}"] = said

    def _of_pod(self, pod: Mapping[str, Any]) -> Iterator[Source]:
        name, spec = pod["metadata"]["name"], pod["spec"]
        ended = {each["name"] for each in _statuses(pod) if each.get("restartCount")}
        for container in (*spec.get("initContainers", ()), *spec["containers"]):
            where = f"logs/{name}/{container['name']}"
            yield Source(f"{where}.log", partial(self._log, name, container["name"]))
            if container["name"] in ended:
                yield Source(f"{where}.before.log", partial(self._log, name, container["name"], previous="true"))
            for port in container.get("ports", ()):
                program = port.get("name") or str(port["containerPort"])
                if port.get("protocol", "TCP") == "TCP" and program not in ("etcd", "agent", "invitations"):
                    yield from self._pages(name, program, port["containerPort"])
        if _is_agent(pod):
            yield from (self._table(pod, words) for words in NODE_COMMANDS)

    def _table(self, pod: Mapping[str, Any], words: Sequence[str]) -> Source:
        name = pod["metadata"]["name"]
        node = pod["spec"].get("nodeName", name)
        return Source(f"nodes/{node}/{'-'.join(words[1:])}.json", partial(self._exec, name, words))

    def _pages(self, pod: str, program: str, port: int) -> Iterator[Source]:
        for page in ("metrics", "health" if program == "etcd-metrics" else "readyz"):
            at = f"{self._at('api/v1', 'pods')}/{pod}:{port}/proxy/{page}"
            yield Source(f"servers/{pod}/{program}.{page}", partial(self._get, at))

    async def _log(self, pod: str, container: str, **said: str) -> bytes:
        path = f"{self._at('api/v1', 'pods')}/{pod}/log"
        bounds = {"tailLines": str(_LINES), "limitBytes": str(4 * self._bounds.file), "timestamps": "true"}
        return await self._get(path, container=container, **bounds, **said)

    async def _exec(self, pod: str, words: Sequence[str]) -> bytes:
        path = f"{self._at('api/v1', 'pods')}/{pod}/exec"
        argv = ["clustermesh", *words, "-o", "json"]
        return await self._objects.client.execute(path, f"exec in {pod}", "agent", argv, self._bounds.file)

    async def _get(self, path: str, **params: str) -> bytes:
        return await self._objects.client.get(path, f"get {path}", params)

    async def _status(self) -> bytes:
        return as_json(await read_status(await read_site(self._objects, self._context)))

    async def _peers(self) -> bytes:
        site = await read_site(self._objects, self._context)
        return as_json(list_connections(site.member, datetime.now(UTC)))

    async def _versions(self) -> bytes:
        return as_json({name: each.number for name, each in (await read_versions(self._objects)).items()})

    async def _values(self) -> bytes:
        releases = await list_releases(self._objects)
        ours = [each.last for each in releases if each.chart in names.PRODUCTS]
        return as_json(
            [
                {
                    "release": each.name,
                    "chart": f"{each.chart.metadata.name}-{each.chart.metadata.version}",
                    "revision": each.version,
                    "status": each.info.status,
                    "values": self.redactor.take_values(each.config or {}),
                }
                for each in ours
            ]
        )

    async def _certificates(self) -> bytes:
        from certs.folder import inspect_files
        from clustermesh.joining.holders import hold_secrets

        holder = await hold_secrets(await read_site(self._objects, self._context))
        now = datetime.now(UTC)
        found = {place: inspect_files(await holder.read(place), now) for place in holder.places}
        return as_json({place: [_said(entry) for entry in entries] for place, entries in found.items()})


def _said(entry: Any) -> dict[str, object]:
    said = entry.facts
    known = {} if said is None else {"commonName": said.common_name, "hosts": said.hosts, "notAfter": said.not_after}
    return {"name": entry.name, "problem": entry.problem, "renewalDue": entry.due, **known}


def _tree(data: bytes, path: str) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as e:
        raise DecodeError(path, data[:80].decode(errors="replace"), f"must be JSON: {e}") from e
    if not isinstance(found, dict):
        raise Unavailable(f"{path}: is no list")
    return found


def _is_ours(pod: Mapping[str, Any]) -> bool:
    labels = pod["metadata"].get("labels") or {}
    return labels.get("app.kubernetes.io/part-of") in names.PRODUCTS


def _is_agent(pod: Mapping[str, Any]) -> bool:
    return any(each["name"] == "agent" for each in pod["spec"]["containers"])


def _daemon(pod: Mapping[str, Any]) -> str:
    """The DaemonSet that it is of; "" of none."""
    owners = pod["metadata"].get("ownerReferences") or ()
    return next((each["name"] for each in owners if each["kind"] == "DaemonSet"), "")


def _is_well(pod: Mapping[str, Any]) -> bool:
    return all(each.get("ready") and not each.get("restartCount") for each in _statuses(pod))


def _statuses(pod: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    status = pod.get("status") or {}
    return (*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ()))
