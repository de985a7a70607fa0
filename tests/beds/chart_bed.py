"""The chart as Helm renders it, given to a real Kubernetes API."""

from __future__ import annotations

import base64
import subprocess
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import yaml
from kube_bed import PATIENCE, KubeBed, path_of

ROOT: Final = Path(__file__).parents[2]
CHART: Final = ROOT / "charts" / "clustermesh"
HELM: Final = ROOT / "build" / "helm"
GIVEN: Final = HELM.with_name("helm.licences").exists()
"""Whether it may be given away (`make dist`)."""
MISSING: Final = "" if HELM.exists() else "no Helm here: tools/setup-kube builds it (make test does so)"
ALPHA: Final = {"cluster": {"name": "alpha", "id": 1}}
_VERSION: Final = "--kube-version=1.34.2"

Values = Mapping[str, Any]

# Stand-ins for the definitions of others, of which only name and version are right: what is in an object nobody checks.
_OTHERS: Final = (
    ("monitoring.coreos.com", "ServiceMonitor", "servicemonitors"),
    ("cert-manager.io", "Certificate", "certificates"),
)


def merged(one: Values, other: Values) -> dict[str, Any]:
    """`one` with what `other` says besides or otherwise."""
    out = dict(one)
    for key, value in other.items():
        both = isinstance(value, Mapping) and isinstance(out.get(key), Mapping)
        out[key] = merged(out[key], value) if both else value
    return out


def nested(path: str, value: Any) -> dict[str, Any]:
    """{"a": {"b": value}} for "a.b"."""
    first, _, rest = path.partition(".")
    return {first: nested(rest, value) if rest else value}


def helm(command: str, values: Values, namespace: str = "kube-system") -> subprocess.CompletedProcess[str]:
    argv = [str(HELM), *command.split(), str(CHART), "--namespace", namespace, _VERSION, "--values", "-"]
    return subprocess.run(argv, input=yaml.safe_dump(dict(values)), text=True, capture_output=True, check=False)


def rendered(values: Values, namespace: str = "kube-system") -> list[dict[str, Any]]:
    """Every object of the chart."""
    done = helm("template clustermesh", merged(ALPHA, values), namespace)
    assert done.returncode == 0, done.stderr
    return [each for each in yaml.safe_load_all(done.stdout) if each]


def refused(values: Values) -> str:
    """Why the chart takes no such values."""
    done = helm("template clustermesh", values)
    assert done.returncode != 0, "was taken"
    return done.stderr


def named(objects: Iterable[Mapping[str, Any]], kind: str, name: str) -> Any:
    (found,) = [each for each in objects if each["kind"] == kind and each["metadata"]["name"] == name]
    return found


def apply(bed: KubeBed, objects: Iterable[Mapping[str, Any]], *, dry: bool = False) -> list[Any]:
    """Server-side, as `kubectl apply --server-side` does. A field that the API does not know is an error."""
    ask = "?fieldManager=test&fieldValidation=Strict" + ("&dryRun=All" if dry else "")
    return [
        bed.ask("PATCH", f"{path_of(each)}/{each['metadata']['name']}{ask}", each, "application/apply-patch+yaml")
        for each in objects
    ]


def define(bed: KubeBed, *plurals: str) -> list[dict[str, Any]]:
    """Have the API know these kinds, by the chart's own definitions, which are returned."""
    found = [yaml.safe_load((CHART / "crds" / f"{plural}.yaml").read_text()) for plural in plurals]
    until = time.monotonic() + PATIENCE
    for each in found:
        while _leaves(bed, each):  # of tests before
            assert time.monotonic() < until, "it does not go"
            time.sleep(0.1)
    apply(bed, found)
    for each in found:
        spec = each["spec"]
        while not _is_served(bed, f"{spec['group']}/{spec['versions'][0]['name']}", spec["names"]["plural"]):
            assert time.monotonic() < until, "it is not served"
            time.sleep(0.1)
    return found


def _leaves(bed: KubeBed, definition: Mapping[str, Any]) -> bool:
    try:
        found = bed.ask("GET", f"{path_of(definition)}/{definition['metadata']['name']}")
    except RuntimeError:
        return False
    return "deletionTimestamp" in found["metadata"]


def define_others(bed: KubeBed) -> None:
    """Have the API know the kinds of others that the chart may use."""
    for group, kind, plural in _OTHERS:
        schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
        definition = {
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": {"name": f"{plural}.{group}"},
            "spec": {
                "group": group,
                "names": {"kind": kind, "plural": plural},
                "scope": "Namespaced",
                "versions": [{"name": "v1", "served": True, "storage": True, "schema": schema}],
            },
        }
        apply(bed, [definition])
        deadline = time.monotonic() + bed.patience
        while not _is_served(bed, f"{group}/v1", plural) and time.monotonic() < deadline:
            time.sleep(0.05)


def _is_served(bed: KubeBed, api: str, plural: str) -> bool:
    try:
        return any(each["name"] == plural for each in bed.ask("GET", f"/apis/{api}")["resources"])
    except RuntimeError:
        return False


def decoded(secret: Mapping[str, Any]) -> dict[str, bytes]:
    return {key: base64.b64decode(value) for key, value in (secret.get("data") or {}).items()}
