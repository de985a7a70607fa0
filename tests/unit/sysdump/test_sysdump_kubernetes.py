"""Which pods of a cluster that has very many are asked for what."""

from __future__ import annotations

import json
from typing import Any, cast

from clustermesh.errors import Unavailable
from clustermesh.joining.objects import Objects
from clustermesh.sysdump.gather import Bounds
from clustermesh.sysdump.kubernetes import Dump

MANY = 1201


def pod(name: str, container: str, daemon: str = "", *, ours: bool = True, ready: bool = True) -> dict[str, Any]:
    labels = {"app.kubernetes.io/part-of": "clustermesh"} if ours else {}
    owners = {"ownerReferences": [{"kind": "DaemonSet", "name": daemon}]} if daemon else {}
    return {
        "metadata": {"name": name, "labels": labels, **owners},
        "spec": {"nodeName": f"node-of-{name}", "containers": [{"name": container}]},
        "status": {"containerStatuses": [{"name": container, "ready": ready}]},
    }


PODS = [
    *(pod(f"another-{n:04}", "x", ours=False) for n in range(600)),
    *(pod(f"clustermesh-agent-{n:04}", "agent", "clustermesh-agent", ready=n != 700) for n in range(MANY)),
    pod("clustermesh-apiserver-1", "apiserver"),
    *(pod(f"clustermesh-wireguard-{n:04}", "wireguard", "clustermesh-wireguard") for n in range(MANY)),
]


class Api:
    """Lists pods by pages and labels, and has logs; where `slow`, Secrets take longer than there is time."""

    namespace = "kube-system"

    def __init__(self, *, slow: bool = False) -> None:
        self.client, self.slow, self.asked = self, slow, list[str]()

    async def get(self, path: str, what: str, params: dict[str, str]) -> bytes:
        self.asked.append(path)
        if path.endswith("/secrets"):
            if self.slow:
                raise TimeoutError
            return b"{}"
        if path.endswith("/pods"):
            return json.dumps(listed(params)).encode()
        if path.endswith("/log"):
            return b"a log"
        raise Unavailable(path)

    async def execute(self, *_: object) -> bytes:
        return b"{}"


def listed(params: dict[str, str]) -> dict[str, Any]:
    pods = [each for each in PODS if each["metadata"]["labels"]] if "labelSelector" in params else PODS
    start = int(params.get("continue", "0"))
    end = start + int(params["limit"])
    return {"items": pods[start:end], "metadata": {"continue": str(end)} if end < len(pods) else {}}


async def dumped(api: Api) -> Dump:
    dump = Dump(cast(Objects, api), "alpha", Bounds())
    await dump.read()
    return dump


async def test_the_api_servers_come_before_thousands_of_agents_of_which_ten_tell_all() -> None:
    dump = await dumped(api := Api())
    logs = [path.split("/")[-2] for path in api.asked if path.endswith("/log")]
    assert logs[0] == "clustermesh-apiserver-1"
    agents = [each for each in logs if each.startswith("clustermesh-agent")]
    assert (len(agents), agents[0], len(logs)) == (10, "clustermesh-agent-0700", 21)
    found = dump.gathering.found
    assert sum(path.endswith("/status.json") for path in found.files) == MANY
    assert sum(path.endswith("/bpf-lb-list.json") for path in found.files) == 10
    names = [each["metadata"]["name"] for each in json.loads(found.files["objects/pods.json"])]
    assert (names[0], names[1]) == ("clustermesh-apiserver-1", "clustermesh-agent-0700")
    for daemon in ("agent", "wireguard"):
        said = found.missing[f"logs and tables of clustermesh-{daemon}"]
        assert said == f"10 of {MANY} pods are asked, first those that are not well"


async def test_who_cannot_read_secrets_in_time_does_not_read_values_from_them_either() -> None:
    dump = await dumped(Api(slow=True))
    found = dump.gathering.found
    assert found.missing["values.json"] == "Secrets could not be read"
    assert "values.json" not in found.files
    assert not any(path.startswith(("logs/", "nodes/")) for path in found.files)
