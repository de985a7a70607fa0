"""What servers are told of their own cluster, in the words of Cilium's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest

from clustermesh.cli.own_cluster import PEERS, Duration, listen_at, mirrored
from clustermesh.errors import Invalid


def test_what_is_no_duration_is_wrong_usage() -> None:
    assert Duration().convert("1m30s", None, None) == 90
    with pytest.raises(click.BadParameter, match=r"'15' must be a time like 15s"):
        Duration().convert("15", None, None)


def test_health_is_served_where_any_of_the_flags_says() -> None:
    def flags(port: int | None = None, metrics: str = "") -> dict[str, Any]:
        return {"health_port": port, "prometheus_serve_addr": metrics}

    assert listen_at(None, flags(), "127.0.0.1:9881") == ["127.0.0.1:9881"]
    assert listen_at("[::1]:1", flags(), "127.0.0.1:9881") == ["[::1]:1"]
    assert listen_at(None, flags(9881, ":9964"), "127.0.0.1:9881") == [":9881", ":9964"]
    assert listen_at(None, flags(9881, "127.0.0.1:9964"), "")[1] == "127.0.0.1:9964"
    with pytest.raises(Invalid, match="--health-port"):
        listen_at("127.0.0.1:1", flags(9881), "")


def test_the_agents_files_of_a_cluster_without_a_folder_are_made_by_others() -> None:
    flags = {"cluster_name": "alpha", "clustermesh_config": None, "agents_config": None}
    assert mirrored(Path("none"), flags) == (PEERS, None)
    with pytest.raises(Invalid, match="--agents-config"):
        mirrored(Path("none"), {**flags, "agents_config": Path("agents")})
