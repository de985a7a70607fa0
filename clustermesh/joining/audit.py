"""What was done about a cluster's invitations, for whoever asks later: a Kubernetes Event and a line of the log."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import Final

from clustermesh.errors import ClusterMeshError, printable
from clustermesh.joining import names
from clustermesh.joining.objects import Objects

_LOG: Final = logging.getLogger(__name__)
_MOST: Final = 900
"""Characters of a message; an Event takes 1024."""


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
