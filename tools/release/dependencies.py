"""The distributions that one needs, as they are installed beside this interpreter."""

from __future__ import annotations

from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tools.release.archive import Entry


def needed(name: str) -> dict[str, Distribution]:
    """Everything that `name` asks for, and what that asks for: no extra that nobody asks for, not `name` itself."""
    found: dict[str, Distribution] = {}
    asked, done = [Requirement(name)], set[tuple[str, str]]()
    while asked:
        one = asked.pop()
        found[canonicalize_name(one.name)] = here = distribution(one.name)
        for extra in ["", *sorted(one.extras)]:
            if (one.name, extra) not in done:
                done.add((one.name, extra))
                every = map(Requirement, here.requires or ())
                asked += [each for each in every if each.marker is None or each.marker.evaluate({"extra": extra})]
    del found[canonicalize_name(name)]
    return found


def files_of(one: Distribution) -> dict[str, Entry]:
    """Its modules and data, by their paths in a folder of modules; no scripts, nothing that was compiled here."""
    kept = {}
    for path in one.files or ():
        name = str(path)
        if not name.startswith("..") and "__pycache__" not in name:
            kept[name] = Entry(0o644, Path(str(one.locate_file(path))))
    return kept
