"""What was done about a cluster's invitations, for whoever asks later: a Kubernetes Event and a line of the log."""

from __future__ import annotations

import logging
from collections import Counter
from datetime import UTC, datetime
from typing import Final

from clustermesh.errors import ClusterMeshError, printable
from clustermesh.joining import names
from clustermesh.joining.objects import Objects

_LOG: Final = logging.getLogger(__name__)
_MOST_NOTED, _SHOWN = 1000, 5
"""Sources that are remembered, and that a line names."""
_MOST: Final = 900
"""Characters of a message; an Event takes 1024."""


class SentAway:
    """Who was answered with a status alone, of whom there is no line each: anybody could fill the log with them."""

    def __init__(self) -> None:
        self._counts = Counter[tuple[int, str]]()

    def note(self, status: int, source: str) -> None:
        key = (status, source)
        known = key in self._counts or len(self._counts) < _MOST_NOTED
        self._counts[key if known else (status, "others")] += 1

    def tell(self) -> str:
        """Those since the last time, the most first; "" for none."""
        counts, self._counts = self._counts, Counter()
        said = [f"{times} times {status} to {source}" for (status, source), times in counts.most_common(_SHOWN)]
        said += [f"{len(counts) - _SHOWN} more"] if len(counts) > _SHOWN else []
        return f"{counts.total()} were sent away who would join: {', '.join(said)}" if counts else ""


async def record(
    objects: Objects, reason: str, message: str, *, warning: bool = False, about: str = names.INVITATIONS
) -> None:
    """An Event of the Secret `about`. Never raises for an Event that cannot be written: the log has it."""
    said = printable(message)[:_MOST]
    _LOG.log(logging.WARNING if warning else logging.INFO, "%s: %s", reason, said)
    now, namespace = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}", objects.namespace
    event = {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"generateName": "clustermesh-invitation-", "namespace": namespace},
        "involvedObject": {"apiVersion": "v1", "kind": "Secret", "name": about, "namespace": namespace},
        "reason": reason,
        "message": said,
        "type": "Warning" if warning else "Normal",
        "source": {"component": "clustermesh"},
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    }
    try:
        await objects.send("POST", f"/api/v1/namespaces/{namespace}/events", "create events", event)
    except ClusterMeshError as e:
        _LOG.warning("the event %s is not written: %s", reason, e)
