"""The scripts of `clustermesh completion` in the shells that are here, and what they are answered."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from clustermesh.cli import main


@pytest.mark.parametrize(
    ("shell", "mark"), [("bash", "complete -o nosort"), ("zsh", "#compdef"), ("fish", "complete --no-files")]
)
def test_a_script_is_printed_that_the_shell_reads(shell: str, mark: str) -> None:
    result = CliRunner().invoke(main, ["completion", shell])
    assert result.exit_code == 0
    assert mark in result.output
    assert "_CLUSTERMESH_COMPLETE" in result.output
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=result.output, text=True, check=True)


def complete(words: str, kubeconfig: Path) -> list[str]:
    """What bash is told of the last of `words`."""
    environment = {
        "_CLUSTERMESH_COMPLETE": "bash_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split(" ")) - 1),
        "KUBECONFIG": str(kubeconfig),
    }
    said = CliRunner().invoke(main, env=environment, prog_name="clustermesh").output
    return [line.partition(",")[2] for line in said.splitlines() if line]


@pytest.mark.parametrize(
    ("words", "answers"),
    [
        ("clustermesh conn", ["connect"]),
        ("clustermesh connect --destination-c", ["--destination-context"]),
        ("clustermesh status --context a", ["alpha", "arctic"]),
        ("clustermesh connect --context alpha --destination-context beta,a", ["beta,alpha", "beta,arctic"]),
        ("clustermesh peers -o y", ["yaml"]),
        ("clustermesh completion f", ["fish"]),
    ],
)
def test_commands_flags_and_contexts_are_completed(words: str, answers: list[str], tmp_path: Path) -> None:
    path = tmp_path / "config"
    path.write_text("contexts: [{name: alpha}, {name: arctic}, {name: beta}, {junk: 1}]")
    assert complete(words, path) == answers


@pytest.mark.parametrize("text", ["", "[]", "contexts: 7", "contexts: [7]", "\0", "{"])
def test_a_kubeconfig_that_is_none_completes_nothing_and_says_nothing(text: str, tmp_path: Path) -> None:
    path = tmp_path / "config"
    path.write_text(text)
    assert complete("clustermesh status --context a", path) == []
