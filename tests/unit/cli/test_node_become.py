"""Commands that become a program of the agent: with what the agent of this node was told."""

from __future__ import annotations

import os
from collections.abc import Sequence

import pytest
from click.testing import CliRunner

from clustermesh.cli.node import command

_USUAL = {"--bpffs": "/sys/fs/bpf", "--state-dir": "/var/lib/clustermesh", "--run-dir": "/run/clustermesh"}


@pytest.mark.parametrize(
    ("words", "module", "options", "flags"),
    [
        ("cleanup -f", "agent.cleanup", _USUAL | {"--device": "cm-wg0"}, []),
        (
            "cleanup -f --all-state --device wg7 --bpffs /b",
            "agent.cleanup",
            _USUAL | {"--device": "wg7", "--bpffs": "/b"},
            ["--all-state"],
        ),
        (
            "prepare-downgrade --context /c --node n1 --run-dir /r",
            "agent.older.downgrade",
            _USUAL | {"--device": "cm-wg0", "--context": "/c", "--node": "n1", "--run-dir": "/r"},
            [],
        ),
    ],
)
def test_a_command_hands_on_each_option_once(
    monkeypatch: pytest.MonkeyPatch, words: str, module: str, options: dict[str, str], flags: Sequence[str]
) -> None:
    became: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda _program, given: became.append(given))
    CliRunner().invoke(command, words.split(), catch_exceptions=False)
    [[_, *become, of]], given = [each[:4] for each in became], became[0][4:]
    assert (become, of) == (["-P", "-m"], module)
    count = 2 * len(options)
    assert dict(zip(given[:count:2], given[1:count:2], strict=True)) == options
    assert given[count:] == flags
