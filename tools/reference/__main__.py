"""`python -m tools.reference`."""

from __future__ import annotations

from tools.reference import COMMANDS, REFERENCE, annotated, chart, commands, resources

_HEAD = """# Reference

Made by `python -m tools.reference`; tests compare it with the code. Commands and flags are in
[commands.md](commands.md), metrics in [metrics.md](metrics.md)."""


def reference() -> str:
    """docs/reference.md."""
    return "\n\n".join([_HEAD, annotated.section(), chart.ports(), resources.section(), chart.values()]) + "\n"


if __name__ == "__main__":
    COMMANDS.write_text(commands.document())
    REFERENCE.write_text(reference())
