"""Certificates as commands show them."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from certs.folder import Entry


def state(entry: Entry) -> str:
    if entry.problem:
        return "unfit"
    return "renewal due" if entry.due else "good"


def fault_of(entry: Entry) -> str:
    """In words; "" where there is none."""
    if entry.due and entry.facts is not None and not entry.problem:
        return f"{entry.name}: expires on {entry.facts.not_after:%F}"
    return entry.problem


def row(entry: Entry, now: datetime) -> tuple[object, ...]:
    said = entry.facts
    if said is None:
        return (entry.name, None, state(entry), None, None, None)
    return (
        entry.name,
        said.common_name,
        state(entry),
        f"{said.not_after:%F}",
        (said.not_after - now).days,
        said.hosts,
    )


def as_json(entry: Entry, now: datetime) -> dict[str, object]:
    said = entry.facts
    known: dict[str, object] = {}
    if said is not None:
        known = {
            "commonName": said.common_name,
            "issuer": said.issuer,
            "hosts": list(said.hosts),
            "subjectKeyId": said.key_id,
            "notBefore": said.not_before.isoformat(),
            "notAfter": said.not_after.isoformat(),
            "daysLeft": (said.not_after - now).days,
        }
    return {"name": entry.name, "state": state(entry), "problem": entry.problem, "renewalDue": entry.due, **known}
