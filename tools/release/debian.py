"""Files of Debian packages that are installed on this machine, with those that they depend on."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from tools.release.archive import Entry

_SKIPPED: Final = frozenset(
    ("adduser", "debconf", "dpkg", "gcc-12-base", "init-system-helpers", "login", "passwd", "perl-base", "tar")
)
"""What maintainers' scripts need, which ran where the packages were installed."""
_USELESS: Final = re.compile(
    r"/usr/share/(doc|man|locale|lintian|bug|info|i18n|perl5|bash-completion|debconf)/|/__pycache__/|/etc/(init\.d|cron\.|default/)"
    r"|/lib/systemd/|/usr/lib/python3[0-9.]*/(test|idlelib|lib2to3|ensurepip|pydoc_data|turtledemo|tkinter)/"
)
_ALTERNATIVE: Final = re.compile(r"([a-z0-9][a-z0-9.+-]*)")


class Package(NamedTuple):
    """An installed one. `depends`: each a choice of names."""

    depends: list[list[str]]
    provides: list[str]


def packages_of(listing: str) -> dict[str, Package]:
    """What dpkg-query says, a line each: name, Depends, Pre-Depends, Provides, with tabs between."""
    found = {}
    for line in listing.splitlines():
        name, depends, before, provides = line.split("\t")
        choices = [[_name(one) for one in each.split("|")] for each in f"{depends},{before}".split(",") if each.strip()]
        found[name] = Package(choices, [_name(each) for each in provides.split(",") if each.strip()])
    return found


def closure(wanted: Iterable[str], installed: Mapping[str, Package]) -> set[str]:
    """`wanted` with all that they depend on. KeyError names one that is not installed."""
    by_provided = {virtual: name for name in sorted(installed) for virtual in installed[name].provides}
    done, asked = set[str](), [[each] for each in wanted]
    while asked:
        choice = asked.pop()
        name = next((each for each in choice if each in installed), "") or next(
            (by_provided[each] for each in choice if each in by_provided), ""
        )
        if not name:
            raise KeyError(" | ".join(choice))
        if name not in done and name not in _SKIPPED:
            done.add(name)
            asked += [each for each in installed[name].depends if not _SKIPPED.intersection(each)]
    return done


def files(wanted: Collection[str]) -> dict[str, Entry]:
    """What is in a root file system of those packages, with /bin, /lib and /sbin below /usr."""
    fields = "${Package}\t${Depends}\t${Pre-Depends}\t${Provides}\n"
    names = closure(wanted, packages_of(_dpkg("-W", "-f", "${db:Status-Status}\t" + fields)))
    return dict(_entries(_dpkg("-L", *sorted(names)).splitlines()))


def _entries(lines: Iterable[str]) -> Iterator[tuple[str, Entry]]:
    for line in sorted(set(lines)):
        path = Path(line)
        if not line.startswith("/") or _USELESS.search(line):
            continue
        place = re.sub(r"^/(bin|sbin|lib|lib64)/", r"/usr/\1/", line).removeprefix("/")
        if path.is_symlink():
            yield place, Entry(link=os.readlink(path))
        elif path.is_file():
            yield place, Entry(0o755 if path.stat().st_mode & 0o100 else 0o644, path)


def _dpkg(*words: str) -> str:
    done = subprocess.run(["dpkg-query", *words], capture_output=True, text=True, check=True)
    if words[0] != "-W":
        return done.stdout
    prefix = "installed\t"
    return "\n".join(each.removeprefix(prefix) for each in done.stdout.splitlines() if each.startswith(prefix))


def _name(relation: str) -> str:
    """The package of `libc6 (>= 2.34)` or `python3:any`."""
    found = _ALTERNATIVE.match(relation.strip())
    assert found is not None, relation
    return found[1]
