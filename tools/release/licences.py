"""`python -m tools.release.licences <PACKAGES >TEXT`: the licences and notices of all that is in a Go program.

A line of PACKAGES is a package: its folder, what it is of (module and version), and the folder of that, with tabs
between.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final

_NAMES: Final = re.compile(r"(?i)(un)?licen[cs]e|copying|copyright|notice|patents")
_RULE: Final = "=" * 100
_HEAD: Final = """\
This program is made of the modules below, unchanged. Of each the source is at https://proxy.golang.org/MODULE/@v/VERSION.zip,
that of Go itself at https://go.dev/dl; their licences and notices follow.
"""


def collect(packages: Iterable[str]) -> str:
    """One text for all: what several have word for word is there once. Raises ValueError for a module that has none."""
    owners = dict[str, set[str]]()
    modules, licensed = set[str](), set[str]()
    for folder, module, root in (line.split("\t") for line in packages):
        modules.add(module)
        for text in _texts(Path(folder), Path(root)):
            owners.setdefault(text, set()).add(module)
            licensed.add(module)
    if bare := sorted(modules - licensed):
        raise ValueError(f"without a licence: {', '.join(bare)}")
    parts = sorted((sorted(of), text) for text, of in owners.items())
    return _HEAD + "".join("\n".join(("", _RULE, *of, _RULE, "", text)) for of, text in parts)


def _texts(folder: Path, root: Path) -> Iterable[str]:
    """Those of the package in `folder`, and of what it is in."""
    for place in (folder, *folder.parents):
        if not place.is_relative_to(root):
            return
        for file in sorted(place.iterdir()):
            if file.is_file() and file.suffix != ".go" and _NAMES.match(file.name):
                yield file.read_text(errors="replace").strip() + "\n"


if __name__ == "__main__":
    sys.stdout.write(collect(sys.stdin.read().splitlines()))
