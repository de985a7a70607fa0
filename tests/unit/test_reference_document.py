"""docs/commands.md says what `--help` says, and docs/reference.md what the code and the chart say."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tools.reference import COMMANDS, REFERENCE, ROOT, annotated, chart
from tools.reference.__main__ import reference

AGAIN = "`python -m tools.reference` makes it anew"
_ANNOTATION = re.compile(
    r'"((?:[a-z.-]+\.)?(?:cilium\.io|clustermesh\.io|io\.cilium|multicluster\.kubernetes\.io)[./][a-zA-Z0-9.-]+)"'
)
_NO_ANNOTATIONS = {
    "multicluster.kubernetes.io/service-name",  # labels of EndpointSlices
    "multicluster.kubernetes.io/source-cluster",
    "clustermesh.io/cleanup",  # of the DaemonSet that cleans nodes, which is nobody else's: a label, and ...
    "clustermesh.io/run",
}
_PLACES = ("clustermesh/sources", "clustermesh/multicluster", "clustermesh/joining", "clustermesh/declared", "agent")


def test_the_commands_are_what_they_say_of_themselves() -> None:
    """In a process of its own: click keeps the help option of a command as it was first asked for."""
    argv = [sys.executable, "-c", "from tools.reference.commands import document; print(document(), end='')"]
    found = subprocess.run(argv, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
    assert COMMANDS.read_text() == found, AGAIN


def test_the_reference_is_made_of_the_code_and_the_chart() -> None:
    assert REFERENCE.read_text() == reference(), AGAIN


def test_every_annotation_in_the_code_is_in_the_reference() -> None:
    sources = [path for place in _PLACES for path in (ROOT / place).rglob("*.py")]
    found = {name for path in sources for name in _ANNOTATION.findall(path.read_text()) if _is_one(path, name)}
    assert found
    assert found - _NO_ANNOTATIONS <= {name for each in annotated.ALL for name in each.names}


def _is_one(path: Path, name: str) -> bool:
    """Not a label of Cilium's identities, a group or a kind."""
    return "/" in name or "wg-pub-key" in name


def test_every_port_of_the_charts_values_is_in_the_reference() -> None:
    found = {key for key in chart.leaves() if key.rpartition(".")[2] in ("port", "nodePort")}
    assert found == {each.key for each in chart.PORTS if each.key}


def test_every_value_says_what_it_may_be() -> None:
    """By its own words or those above it; what the schema does not know is refused by Helm."""
    rows = [line.split(" | ") for line in chart.values().splitlines() if line.startswith("| `")]
    assert {row[0].strip("| `") for row in rows} >= set(chart.leaves())
    assert [row[0] for row in rows if row[1].strip() and not row[2].strip()] == []
