"""What the first process of a node is told, as JSON in its folder. Standard library only, like the process itself.

<home>/node.json            NodeSpec
<home>/services/NAME.json   Service: present = it runs, absent = it is stopped
<home>/running.json         {NAME: {"pid": pid inside the node, "starts": how often it was started}}
<home>/log/NAME.log         what the service printed; init.log is the first process's own
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class NodeSpec:
    """`folder` is the whole lab's, and of it the node sees only `binds`; `cgroup` is its own in the host's cgroup2
    tree, and `cgroup2` where that tree is mounted; each of `private` becomes an empty tmpfs. What the node writes
    below /var/lib is its own too.
    """

    name: str
    folder: str
    cgroup: str
    cgroup2: str
    binds: list[str] = field(default_factory=list)
    private: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Service:
    """One process kept running: started again `restart` seconds after it ended."""

    argv: list[str]
    restart: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Running:
    """One service as it is: its pid inside the node (0 while it is down), and how often it was started."""

    pid: int
    starts: int


def write(path: Path, value: NodeSpec | Service | dict[str, Running]) -> None:
    """Atomically; readers see the old file or the new one."""
    plain: Any = {k: asdict(v) for k, v in value.items()} if isinstance(value, dict) else asdict(value)
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(plain))
    os.replace(part, path)


def read_spec(home: Path) -> NodeSpec:
    return NodeSpec(**json.loads((home / "node.json").read_text()))


def read_services(home: Path) -> dict[str, Service]:
    """Every service asked for, by name. One removed while reading is not asked for."""
    services = {}
    for path in (home / "services").glob("[!.]*.json"):
        try:
            services[path.stem] = Service(**json.loads(path.read_text()))
        except FileNotFoundError:
            continue
    return services


def read_running(home: Path) -> dict[str, Running]:
    """What runs, by name; empty before the first service was started."""
    try:
        plain = json.loads((home / "running.json").read_text())
    except FileNotFoundError:
        return {}
    return {name: Running(**value) for name, value in plain.items()}
