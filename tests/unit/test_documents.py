"""What the documents name is there: pages and headings, commands with their options, values of the chart."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from clustermesh.cli import main
from tools.reference import ROOT, chart

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_LINK = re.compile(r"\]\(([^)\s]*?)(?:#([^)]*))?\)")
_COMMAND = re.compile(r"(?<!helm install )\bclustermesh (?=[a-z])((?:(?! #|`|\||;|\n).)*)")
_SETS = re.compile(r"--set(?:-string)? ([A-Za-z0-9.]+)=")
_LOOSE = {"agent"}  # another program's options


def anchors(page: Path) -> set[str]:
    """Of its headings, as GitHub makes them."""
    heads = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_pages_and_headings(page: Path) -> None:
    wrong = []
    for target, anchor in _LINK.findall(re.sub(r"`[^`\n]*`", "", page.read_text())):
        if "://" in target:
            continue
        path = page.parent / target if target else page
        if not path.is_file() or (anchor and anchor not in anchors(path)):
            wrong.append(f"{target}#{anchor}")
    assert wrong == []


def shown(page: Path) -> Iterator[str]:
    """Commands in code, inline or indented."""
    text = page.read_text()
    for line in text.splitlines():
        parts = [line] if line.startswith("    ") else re.findall(r"`([^`]+)`", line)
        for part in parts:
            yield from _COMMAND.findall(part)


def fault_of(command: str) -> str:
    """Why there is no such command, "" where there is."""
    words = command.replace("\\", " ").split()
    current: click.Command = main
    context = click.Context(main)
    while words and isinstance(current, click.Group):
        if words[0].startswith(("-", "...")) or words[0].isupper():
            return ""
        found = current.get_command(context, words[0])
        if found is None:
            return f"no command {words[0]!r}"
        current = found
        if words.pop(0) in _LOOSE:
            return ""
    known = {"--help", "-h"} | {name for each in current.params for name in (*each.opts, *each.secondary_opts)}
    asked = {word.partition("=")[0].rstrip(",.)") for word in words if re.match(r"--?[a-z]", word)}
    if current.context_settings.get("ignore_unknown_options"):
        return ""
    inner = words.index("--") if "--" in words else len(words)
    asked &= {word.partition("=")[0].rstrip(",.)") for word in words[:inner]}
    return f"no option {sorted(asked - known)}" if asked - known else ""


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "commands.md"], ids=lambda page: page.name)
def test_commands_are_there_with_their_options(page: Path) -> None:
    wrong = {command: fault for command in shown(page) if (fault := fault_of(command))}
    assert wrong == {}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_values_that_are_set_are_the_charts(page: Path) -> None:
    known = chart.leaves()
    ours = "\n".join(line for line in page.read_text().splitlines() if "image.override" not in line)  # Cilium's chart
    assert [key for key in _SETS.findall(ours) if key not in known and key != "KEY"] == []


@pytest.mark.parametrize(
    ("command", "fault"),
    [
        ("connect --context alpha --destination-context beta", ""),
        ("connekt --context alpha", "no command 'connekt'"),
        ("connect --contxt alpha", "no option ['--contxt']"),
        ("node bpf ct list", ""),
        ("node bpf ct lst", "no command 'lst'"),
        ("lab exec alpha-1 -- curl --silent", ""),
    ],
)
def test_what_is_not_there_is_found(command: str, fault: str) -> None:
    assert fault_of(command) == fault
