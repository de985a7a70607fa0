"""`clustermesh-cni-install`: puts the CNI plugin on the node that this container runs on, and tells the runtime of it.

A node need not have Python. What the plugin needs of it goes along: the interpreter, the modules that it imports, their
libraries and the loader, in BIN/clustermesh-cni.d/KEY, where KEY is of their contents. The plugin itself is three lines
of shell that start it from there; it is replaced in one step, and then what no plugin names any more is removed.
"""

from __future__ import annotations

import argparse
import compileall
import fcntl
import hashlib
import json
import os
import py_compile
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from agent.cni import plugin
from certs.files import write_atomically
from clustermesh.errors import ClusterMeshError, Refused, Unavailable

NAME: Final = "clustermesh-cni"
CONFIGURATION: Final = "05-clustermesh.conflist"
ASIDE: Final = ".clustermesh_bak"
_PARTS: Final = f"{NAME}.d"
_NAMES_KEY: Final = re.compile(rb"/clustermesh-cni\.d/([0-9a-f]{16})/")
_CONFIGURATIONS: Final = (".conf", ".conflist", ".json")
# What is loaded when the plugin runs, and by its errors: modules' files, and what is mapped.
_LOADED: Final = """
import encodings.idna, encodings.latin_1, encodings.ascii, importlib.util, json, os, re, sys, traceback
spec = importlib.util.spec_from_file_location("plugin", sys.argv[1])
spec.loader.exec_module(importlib.util.module_from_spec(spec))
modules = [m.__file__ for m in sys.modules.values() if getattr(m, "__file__", None)]
with open("/proc/self/maps") as maps:
    mapped = {line.split(None, 5)[5].rstrip() for line in maps if " r-xp " in line and " /" in line}
print(json.dumps({"library": os.path.dirname(os.__file__), "modules": modules, "mapped": sorted(mapped)}))
"""


def main() -> None:
    """Entry point of the console script."""
    options = _parser().parse_args()
    try:
        if options.remove:
            remove(options.bin_dir, options.conf_dir)
        else:
            install(options.bin_dir, options.conf_dir, exclusive=options.exclusive)
    except ClusterMeshError as e:
        sys.exit(f"clustermesh-cni-install: {e}")
    except OSError as e:
        sys.exit(f"clustermesh-cni-install: {e.filename}: {e.strerror}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="clustermesh-cni-install", description=(__doc__ or "").partition("\n")[0])
    for option, usual, text in (
        ("--bin-dir", "/host/opt/cni/bin", "where the node's plugins are"),
        ("--conf-dir", "/host/etc/cni/net.d", "where its container runtime looks for the network"),
    ):
        parser.add_argument(option, type=Path, default=Path(usual), metavar="DIR", help=f"{text} (default {usual})")
    aside = f"rename other networks' files to *{ASIDE}, so that no runtime takes one of them"
    parser.add_argument("--exclusive", action="store_true", help=aside)
    parser.add_argument("--remove", action="store_true", help=f"take it off this node; *{ASIDE} have their names again")
    return parser


def install(binaries: Path, configurations: Path, *, exclusive: bool = False) -> None:
    """The plugin into `binaries`, then its configuration into `configurations`. Can be repeated, and run at once by
    several; pods may be attached meanwhile. Raises ClusterMeshError, OSError."""
    for folder in (binaries / _PARTS, configurations):
        folder.mkdir(parents=True, exist_ok=True)
    with _alone(binaries / _PARTS):
        _install_plugin(binaries)
    write_atomically(configurations / CONFIGURATION, _configuration(), 0o644)
    if exclusive:
        set_aside(configurations)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _install_plugin(binaries: Path) -> None:
    launcher = binaries / NAME
    before = _keys_in(launcher.read_bytes()) if launcher.exists() else set[str]()
    files = _files(_loaded())
    key = _key(files)
    _lay_down(binaries / _PARTS / key, files)
    write_atomically(launcher, _launcher(key), 0o755)
    for old in (binaries / _PARTS).iterdir():
        if old.name not in {key, *before}:  # who was started by the one before may still be loading
            shutil.rmtree(old, ignore_errors=True)


def set_aside(configurations: Path) -> None:
    """Every network but ours."""
    for path in sorted(configurations.iterdir()):
        if path.name != CONFIGURATION and path.suffix in _CONFIGURATIONS:
            path.replace(path.with_name(path.name + ASIDE))


def remove(binaries: Path, configurations: Path) -> None:
    """What `install` made, the configuration first; what it put aside is back. Can be repeated. Raises OSError."""
    (configurations / CONFIGURATION).unlink(missing_ok=True)
    for path in sorted(configurations.glob(f"*{ASIDE}")):
        if not (before := path.with_name(path.name.removesuffix(ASIDE))).exists():
            path.replace(before)
    (binaries / NAME).unlink(missing_ok=True)
    shutil.rmtree(binaries / _PARTS, ignore_errors=True)


def _configuration() -> bytes:
    said = {"cniVersion": "1.0.0", "name": "clustermesh", "plugins": [{"type": NAME}]}
    return json.dumps(said, indent=2).encode() + b"\n"


def _launcher(key: str) -> bytes:
    start = '"$d/ld.so" --library-path "$d/lib" "$d/bin/python3" -I -S -B "$d/plugin.py"'
    return f'#!/bin/sh\nd="${{0%/*}}/{_PARTS}/{key}/"\nexec {start}\n'.encode()


def _keys_in(launcher: bytes) -> set[str]:
    return {found.decode() for found in _NAMES_KEY.findall(launcher)}


def _loaded() -> Mapping[str, Any]:
    """What a run of the plugin loads, by asking one."""
    argv = [os.path.realpath(sys.executable), "-I", "-S", "-B", "-c", _LOADED, plugin.__file__]
    try:
        done = subprocess.run(argv, capture_output=True, timeout=60, check=True, text=True)
    except (OSError, subprocess.SubprocessError) as e:
        raise Unavailable(f"the plugin cannot be started here: {getattr(e, 'stderr', '') or e}") from e
    found: Mapping[str, Any] = json.loads(done.stdout)
    return found


def _files(loaded: Mapping[str, Any]) -> dict[str, Path]:
    """Where each file goes, and what it is."""
    interpreter, library = Path(os.path.realpath(sys.executable)), Path(loaded["library"])
    version = f"lib/python{sys.version_info.major}.{sys.version_info.minor}"
    files = {"bin/python3": interpreter, "plugin.py": Path(plugin.__file__), f"{version}/os.py": library / "os.py"}
    for module in map(Path, loaded["modules"]):
        if module.is_relative_to(library):
            files[f"{version}/{module.relative_to(library)}"] = module
    for mapped in map(Path, loaded["mapped"]):
        if mapped.name.startswith(("ld-", "ld.so")):
            files["ld.so"] = mapped
        elif mapped != interpreter and not mapped.is_relative_to(library):
            files[f"lib/{_called(mapped)}"] = mapped
    if "ld.so" not in files:
        raise Refused(f"{interpreter}: loads no libraries, which is not known how to carry to a node")
    return files


def _called(library: Path) -> str:
    """The name by which a library is asked for: libz.so.1 of libz.so.1.2.13."""
    found = re.fullmatch(r"(.+?\.so\.[0-9]+)(\.[0-9.]+)?", library.name)
    return found[1] if found else library.name


def _key(files: Mapping[str, Path]) -> str:
    digest = hashlib.sha256()
    for place, path in sorted(files.items()):
        digest.update(f"{place}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def _lay_down(folder: Path, files: Mapping[str, Path]) -> None:
    """`folder`, whole or not at all."""
    if folder.is_dir():
        return
    making = folder.with_name(f".{folder.name}")
    shutil.rmtree(making, ignore_errors=True)
    for place, path in files.items():
        (making / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, making / place)
        (making / place).chmod(0o755 if _is_program(place) else 0o644)
    for name in _folders(files):
        (making / name / "lib-dynload").mkdir(exist_ok=True)  # or the interpreter warns that it is not there
    unchecked = py_compile.PycInvalidationMode.UNCHECKED_HASH
    compileall.compile_dir(making, quiet=2, invalidation_mode=unchecked)  # the plugin is started for every pod
    making.rename(folder)


def _is_program(place: str) -> bool:
    return place in {"ld.so", "bin/python3"}


def _folders(files: Iterable[str]) -> set[str]:
    return {place.removesuffix("/os.py") for place in files if place.endswith("/os.py")}


if __name__ == "__main__":
    main()
