"""Which cluster is looked into."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from clustermesh.cli import context_option, main
from clustermesh.cli.looking import find_cluster
from clustermesh.errors import ClusterMeshError


@pytest.fixture
def clusters(tmp_path: Path) -> Path:
    """A folder of two."""
    for number, name in enumerate(("alpha", "beta"), start=1):
        argv = ["init", str(tmp_path / name), "--name", name, "--id", str(number)]
        assert CliRunner().invoke(main, [*argv, "--endpoint", "https://127.0.0.1:2379"]).exit_code == 0
    return tmp_path


def found(usual: Path, *flags: str | Path, status: object = None, needed: bool = True) -> str:
    """Its name; "none" for none, "error" for an error. `usual` is where it is where nobody says otherwise."""

    @click.command()
    @context_option
    def look(context: Path) -> None:
        try:
            cluster = find_cluster(context, status, needed=needed)
        except ClusterMeshError:
            click.echo("error")
        else:
            click.echo("none" if cluster is None else cluster.name)

    for option in look.params:
        option.default = usual
    return CliRunner().invoke(look, [str(flag) for flag in flags]).stdout.strip()


def test_a_folder_that_was_given_counts_whatever_the_agent_says(clusters: Path) -> None:
    given = ("--context", clusters / "alpha")
    assert found(clusters / "beta", *given) == "alpha"
    assert found(clusters / "beta", *given, status={"context": str(clusters / "beta")}) == "alpha"
    assert found(clusters, "--context", clusters / "none", needed=False) == "error"


def test_then_the_agents_own_and_then_the_usual_one(clusters: Path) -> None:
    assert found(clusters / "alpha", status={"context": str(clusters / "beta")}) == "beta"
    for status in (None, {}, {"context": ""}, {"context": 7}, []):
        assert found(clusters / "alpha", status=status) == "alpha"


def test_where_there_is_none_it_is_an_error_only_where_it_is_needed(clusters: Path) -> None:
    for status in (None, {"context": str(clusters / "none")}):
        assert found(clusters / "none", status=status) == "error"
        assert found(clusters / "none", status=status, needed=False) == "none"
