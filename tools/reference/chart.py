"""The chart's values, which values.yaml says and values.schema.json bounds, and the ports that they name."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

import yaml

from tools.reference import ROOT, code, table

_CHART: Final = ROOT / "charts" / "clustermesh"
_KEY: Final = re.compile(r"^( *)(\w+):")
_COMMENT: Final = re.compile(r"^ *# ?(?:-- )?(.*)$")


class Port(NamedTuple):
    """`key` is the value that has its number, or "" where `number` has it."""

    key: str
    protocol: str
    listens: str
    called_by: str
    number: str = ""


PORTS: Final = (
    Port(
        "encryption.wireguard.port", "UDP", "every node (the kernel's WireGuard, or wireguard-go)",
        "every node of every cluster; `clustermesh-agent --port`",
    ),
    Port(
        "clustermesh.apiserver.etcd.port", "TCP, TLS with certificates of both sides", "the API server's pod: etcd, "
        "and the Service `clustermesh-apiserver`", "this cluster's agents and mirror; other clusters by the Service",
    ),
    Port(
        "clustermesh.apiserver.service.nodePort", "TCP, the same", "every node: the Service, of type NodePort or "
        "LoadBalancer", "other clusters' mirrors, or agents where there is none",
    ),
    Port(
        "clustermesh.apiserver.metrics.port", "TCP, HTTP", "API server: /livez, /readyz, /metrics",
        "kubelet, Prometheus",
    ),
    Port("clustermesh.apiserver.metrics.kvstoremesh.port", "TCP, HTTP", "mirror: the same", "kubelet, Prometheus"),
    Port("clustermesh.apiserver.metrics.etcd.port", "TCP, HTTP", "etcd: /health, /metrics", "kubelet, Prometheus"),
    Port(
        "prometheus.port", "TCP, HTTP", "agent: /livez, /readyz, /metrics, on 127.0.0.1, or with `prometheus.enabled` "
        "on every address", "kubelet; Prometheus",
    ),
    Port("clustermesh.invitations.port", "TCP, TLS", "`clustermesh invite serve`", "newcomers that have a token"),
    Port("clustermesh.invitations.metrics.port", "TCP, HTTP", "the same: /metrics", "Prometheus"),
    Port(
        "clustermesh.invitations.service.nodePort", "TCP, TLS", "every node: the Service "
        "`clustermesh-invitations`", "newcomers",
    ),
    Port(
        "", "TCP, UDP", "no socket: programs at the node's devices send calls from outside on from there, as "
        "`loadBalancer.snatPorts` or the node's `ip_local_port_range` say", "answers of backends elsewhere",
        "10000-29999",
    ),
    Port("", "TCP, UDP", "no socket: node ports of Services", "who calls them from outside", "30000-32767"),
)  # fmt: skip


def ports() -> str:
    found = _usual()
    rows = [
        (each.number or str(found[each.key]), each.protocol, each.listens, each.called_by, code(each.key))
        for each in PORTS
    ]
    return f"""## Ports

The numbers are the chart's usual ones; programs that are run without it have the same, but for etcd (2379). A Service's
`healthCheckNodePort` is answered over HTTP on every node.

{table(("port", "protocol", "who listens", "who calls", "value of the chart"), rows)}"""


def values() -> str:
    text = (_CHART / "values.yaml").read_text()
    rows = _rows("", yaml.safe_load(text), _schema(), _comments(text))
    return f"""## Values of the chart

Of `charts/clustermesh/values.yaml`, which says the same with examples. What cannot be is refused by Helm with the key's
name.

{table(("key", "usually", "may be", "what it says"), rows)}"""


def leaves() -> list[str]:
    """The keys that have a value."""
    return list(_usual())


def _usual() -> dict[str, Any]:
    return dict(_leaves("", yaml.safe_load((_CHART / "values.yaml").read_text()), _schema()))


def _leaves(path: str, node: Any, schema: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    if not _has_keys(node, schema):
        yield path, node
        return
    for key, value in node.items():
        yield from _leaves(f"{path}.{key}" if path else key, value, schema["properties"].get(key, {}))


def _schema() -> Mapping[str, Any]:
    found: Mapping[str, Any] = json.loads((_CHART / "values.schema.json").read_text())
    return found


def _rows(
    path: str, node: Any, schema: Mapping[str, Any], says: Mapping[str, str]
) -> Iterator[tuple[str, str, str, str]]:
    """A key without a value of its own has a row where something is said of all in it."""
    inner = _has_keys(node, schema)
    if path and (not inner or path in says):
        yield code(path), "" if inner else _value(node), "" if inner else _may_be(schema), says.get(path, "")
    if inner:
        for key, value in node.items():
            yield from _rows(f"{path}.{key}" if path else key, value, schema.get("properties", {}).get(key, {}), says)


def _has_keys(node: Any, schema: Mapping[str, Any]) -> bool:
    """Of its own, and not such as Kubernetes has there."""
    return isinstance(node, dict) and "properties" in schema


def _value(node: Any) -> str:
    return code(json.dumps(node))


def _may_be(schema: Mapping[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(_may_be(each) for each in schema["anyOf"])
    if "const" in schema:
        return code(str(schema["const"]))
    if "enum" in schema:
        return ", ".join(code(str(each)) for each in schema["enum"] if each != "")
    kind = schema.get("type", "")
    found = [" or ".join(kind) if isinstance(kind, list) else kind]
    if {"minimum", "maximum"} <= schema.keys():
        found.append(f"{schema['minimum']} to {schema['maximum']}")
    elif "minimum" in schema:
        found.append(f"{schema['minimum']} or more")
    if "pattern" in schema:
        found.append(code(schema["pattern"]))
    return ", ".join(filter(None, found))


def _comments(text: str) -> dict[str, str]:
    """What stands above each key, in one paragraph."""
    found, path, above = dict[str, str](), list[tuple[int, str]](), list[str]()
    for line in text.splitlines():
        if comment := _COMMENT.match(line):
            above.append(comment[1].strip())
            continue
        if key := _KEY.match(line):
            path = [each for each in path if each[0] < len(key[1])] + [(len(key[1]), key[2])]
            if above:
                found[".".join(name for _, name in path)] = " ".join(above)
        above = []
    return found
