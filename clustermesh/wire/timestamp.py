"""RFC 3339 times, as heartbeats, canaries and service exports hold them; in the model Unix time in seconds."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Final

from clustermesh.errors import Invalid

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_RULE: Final = "must be a time like 2026-01-31T23:59:59Z"
_FORM: Final = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2})(?:[.,][0-9]+)?(?:Z|([+-])([0-9]{2}):([0-9]{2}))"
)


def format_time(seconds: int) -> str:
    """Unix time as "2026-01-31T23:59:59Z"; Invalid outside the years 1 to 9999."""
    try:
        return (_EPOCH + timedelta(seconds=seconds)).isoformat().removesuffix("+00:00") + "Z"
    except OverflowError as e:
        raise Invalid("time", seconds, _RULE) from e


def parse_time(text: str) -> int:
    """Unix time of an RFC 3339 text, in whole seconds (rounded down); Invalid for anything else."""
    match = _FORM.fullmatch(text)
    if match is None:
        raise Invalid("time", text, _RULE)
    clock, sign, hours, minutes = match.groups()
    try:
        seconds = (datetime.fromisoformat(clock).replace(tzinfo=UTC) - _EPOCH) // timedelta(seconds=1)
    except ValueError as e:
        raise Invalid("time", text, _RULE) from e
    if sign is None:
        return seconds
    if int(hours) > 23 or int(minutes) > 59:
        raise Invalid("time", text, _RULE)
    offset = int(hours) * 3600 + int(minutes) * 60
    return seconds - offset if sign == "+" else seconds + offset
