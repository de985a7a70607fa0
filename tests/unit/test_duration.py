"""Times in flags, as Cilium's charts write them."""

from __future__ import annotations

import pytest

from clustermesh.duration import parse_cache_ttl, parse_duration, parse_ttl
from clustermesh.errors import Invalid


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("15s", 15), ("10m0s", 600), ("1h30m", 5400), ("1.5s", 1.5), ("250ms", 0.25), ("0s", 0), ("0", 0)],
)
def test_durations_are_gos(text: str, seconds: float) -> None:
    assert parse_duration(text, "field") == seconds


@pytest.mark.parametrize("text", ["", "15", "s", "1d", "-1s", "1s ", "1..5s", "10m and more", "1\u0661s"])
def test_what_is_no_duration_is_said(text: str) -> None:
    with pytest.raises(Invalid, match="must be a time like 15s"):
        parse_duration(text, "field")


@pytest.mark.parametrize("text", ["721h", "99999999h", "720h1ms", "9" * 400 + "ms", "9" * 5000 + "h"])
def test_what_is_longer_than_a_month_is_a_mistake(text: str) -> None:
    assert parse_duration("720h", "field") == 720 * 3600
    with pytest.raises(Invalid, match="must be at most 720h"):
        parse_duration(text, "field")


def test_a_lease_lasts_a_second_at_least() -> None:
    assert [parse_ttl(text, "field") for text in ("1s", "15m0s")] == [1, 900]
    for text in ("0", "999ms"):
        with pytest.raises(Invalid, match="must be from 1s to 720h"):
            parse_ttl(text, "field")


def test_services_are_withdrawn_never_or_after_longer_than_an_etcd_that_is_well_is_silent() -> None:
    assert [parse_cache_ttl(text, "field") for text in ("0s", "90s", "10m0s")] == [0, 90, 600]
    for text in ("1ms", "89s"):
        with pytest.raises(Invalid, match="0s for never, or 90s or more"):
            parse_cache_ttl(text, "field")
