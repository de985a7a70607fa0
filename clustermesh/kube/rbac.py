"""What this client may have to do at the Kubernetes API: one list of rules, and the ClusterRole made of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, NamedTuple

FOLLOW: Final = ("list", "watch")
"""What following a kind takes."""


class Rule(NamedTuple):
    """`verbs` on `resource`, a plural name, of the API group `group` ("" is the core)."""

    group: str
    resource: str
    verbs: tuple[str, ...] = FOLLOW


def cluster_role(name: str, rules: Iterable[Rule]) -> dict[str, Any]:
    """The ClusterRole `name` that allows `rules` and nothing else, as a document."""
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": {"name": name},
        "rules": [
            {"apiGroups": [rule.group], "resources": [rule.resource], "verbs": list(rule.verbs)} for rule in rules
        ],
    }
