"""The ports that the kernel gives to no socket that binds to none, as far as an agent asked for that.

What an agent added to net.ipv4.ip_local_reserved_ports is written down before it is there: whatever ends an agent, the
next one, or `node cleanup`, takes back what was added and nothing else. Both last until the machine is booted anew.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final

from agent.netlink import translate

_SETTING: Final = Path("/proc/sys/net/ipv4/ip_local_reserved_ports")


class ReservedPorts:
    """Written down in `folder`. `setting` is the kernel's, of this thread's network namespace."""

    def __init__(self, folder: Path, setting: Path = _SETTING) -> None:
        self._record, self._setting = folder / "reserved-ports", setting

    def hold(self, wanted: Collection[int]) -> str:
        """Reserve these beside what others have reserved, and what was held of others no more; says what was taken
        back. Raises Refused or Unavailable."""
        ours = _parse(_read(self._record)) if self._record.exists() else set()
        if not ours and not wanted:
            self._record.unlink(missing_ok=True)
            return ""
        found = _parse(_read(self._setting))
        others = found - ours
        added = set(wanted) - others
        if ours | added != ours:
            _write(self._record, ours | added)
        if others | added != found:
            _write(self._setting, others | added)
        if not added:
            self._record.unlink(missing_ok=True)
        elif added != ours:
            _write(self._record, added)
        return _text(found - others - added)


def _parse(text: str) -> set[int]:
    """`8080,9000-9010`."""
    found = re.findall(r"(\d{1,5})(?:-(\d{1,5}))?", text, re.ASCII)
    return {port for first, last in found for port in range(int(first), int(last or first) + 1)}


def _text(ports: Collection[int]) -> str:
    """As the kernel writes them."""
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in _ranges(ports))


def _ranges(ports: Collection[int]) -> Iterator[tuple[int, int]]:
    firsts = (port for port in sorted(ports) if port - 1 not in ports)
    lasts = (port for port in sorted(ports) if port + 1 not in ports)
    return zip(firsts, lasts, strict=True)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError as e:
        raise translate(f"read {path}", e) from e


def _write(path: Path, ports: Collection[int]) -> None:
    try:
        path.write_text(f"{_text(ports)}\n")
    except OSError as e:
        raise translate(f"write {_text(ports)} into {path}", e) from e
