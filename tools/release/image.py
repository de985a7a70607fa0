"""The image: packages of Debian, what the wheel needs and the wheel, in one layer, as an OCI archive for containerd.

No container engine is asked: packages are copied as they are installed here. The Dockerfile asks Debian's servers.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import marshal
import platform
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from configparser import ConfigParser
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Final, NamedTuple

from tools.release import debian
from tools.release.archive import Entry, write_tar
from tools.release.dependencies import files_of, needed

NAME: Final = "docker.io/clustermesh/clustermesh"
_HERE: Final = Path(__file__).parent
MODULES: Final = f"usr/local/lib/python{sys.version_info.major}.{sys.version_info.minor}/dist-packages"
_USER: Final = 65532
_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_ARCHITECTURES: Final = {"x86_64": "amd64", "aarch64": "arm64"}
_UNCHECKED: Final = (1).to_bytes(4, "little")  # PEP 552: by its source's hash, and not compared with it
_SELDOM: Final = f"{MODULES}/kubernetes/"  # 50 MB of what only a kubeconfig needs, which a pod has not


class Base(NamedTuple):
    """Layers below, as the manifest of an image has them, and the digests in its config. Archives do not carry them."""

    layers: Sequence[Mapping[str, Any]] = ()
    diff_ids: Sequence[str] = ()


_NOTHING: Final = Base()


def build_image(wheel: Path, out: Path, version: str, seconds: int) -> Path:
    """The archive, its image called NAME:VERSION."""
    target = out / f"clustermesh-image-{version}-{_ARCHITECTURES[platform.machine()]}.tar"
    run = {"Cmd": ["clustermesh"], "Env": [f"PATH={_PATH}"], "User": f"{_USER}:{_USER}", "WorkingDir": "/"}
    write_image(target, root_file_system(wheel), f"{NAME}:{version}", run, seconds)
    return target


def write_image(
    target: Path, files: Mapping[str, Entry], name: str, run: Mapping[str, Any], seconds: int, base: Base = _NOTHING
) -> None:
    """The archive `target` of an image of `files` over a base, which runs as `run` says."""
    architecture = _ARCHITECTURES[platform.machine()]
    with tempfile.TemporaryFile() as layer:
        write_tar(layer, files, seconds)
        config = _config(architecture, [*base.diff_ids, f"sha256:{_digest(layer)}"], run, seconds)
        with target.open("wb") as archive:
            _write_archive(archive, layer, config, name, {"architecture": architecture, "os": "linux"}, base)


def root_file_system(wheel: Path) -> dict[str, Entry]:
    """Every file of it, by its path."""
    entries = {each: Entry(link=f"usr/{each}") for each in ("bin", "sbin", "lib", "lib64")}
    entries |= debian.files((_HERE / "debian-packages").read_text().split())
    for each in needed("clustermesh").values():
        entries |= {f"{MODULES}/{name}": entry for name, entry in files_of(each).items()}
    entries |= installed(wheel)
    entries |= {each: Entry() for each in ("dev", "proc", "root", "run", "sys", "var/lib")}
    return (
        entries
        | {
            "etc/group": Entry(0o644, f"root:x:0:\nclustermesh:x:{_USER}:\n".encode()),
            "etc/nsswitch.conf": Entry(0o644, b"hosts: files dns\n"),
            "etc/passwd": Entry(
                0o644, f"root:x:0:0::/root:/bin/sh\nclustermesh:x:{_USER}:{_USER}::/:/bin/sh\n".encode()
            ),
            "tmp": Entry(0o1777),
            "var/run": Entry(link="/run"),
            # What Cilium's chart starts, and what that reads.
            "usr/bin/clustermesh-apiserver": Entry(link="/usr/local/bin/clustermesh-apiserver"),
            "var/lib/cilium/etcd-config.yaml": Entry(0o644, _HERE / "etcd-config.yaml"),
        }
        | compiled(entries)
    )


def installed(wheel: Path) -> dict[str, Entry]:
    """As `pip install` does."""
    with zipfile.ZipFile(wheel) as packed:
        found = {f"{MODULES}/{name}": Entry(0o644, packed.read(name)) for name in packed.namelist()}
        (listed,) = [name for name in packed.namelist() if name.endswith(".dist-info/entry_points.txt")]
        parser = ConfigParser()
        parser.read_string(packed.read(listed).decode())
    for name, place in parser["console_scripts"].items():
        module, _, function = place.partition(":")
        script = f"#!/usr/bin/python3 -I\nimport sys\n\nfrom {module} import {function}\n\nsys.exit({function}())\n"
        found[f"usr/local/bin/{name}"] = Entry(0o755, script.encode())
    return found


def compiled(entries: Mapping[str, Entry]) -> dict[str, Entry]:
    """Modules start three times faster from this, and on a read-only root nobody could write it."""
    found = {}
    for path, entry in entries.items():
        if path.endswith(".py") and entry.content is not None and not path.startswith(_SELDOM):
            source = entry.content if isinstance(entry.content, bytes) else entry.content.read_bytes()
            code = compile(source, f"/{path}", "exec", dont_inherit=True)
            data = importlib.util.MAGIC_NUMBER + _UNCHECKED + importlib.util.source_hash(source) + marshal.dumps(code)
            found[importlib.util.cache_from_source(path)] = Entry(0o644, data)
    return found


def _config(architecture: str, layers: Sequence[str], run: Mapping[str, Any], seconds: int) -> dict[str, Any]:
    created = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "architecture": architecture,
        "config": dict(run),
        "created": created,
        "history": [{"created": created, "created_by": "make dist"}],
        "os": "linux",
        "rootfs": {"diff_ids": layers, "type": "layers"},
    }


def _write_archive(
    out: IO[bytes], layer: IO[bytes], config: Mapping[str, Any], name: str, platform: Mapping[str, str], base: Base
) -> None:
    """OCI's image layout: blobs by their digests, and an index that names the image."""
    kind = "application/vnd.oci.image"
    layer.seek(0)
    blobs: dict[str, bytes] = {}

    def put(data: bytes, media: str) -> dict[str, Any]:
        digest = hashlib.sha256(data).hexdigest()
        blobs[f"blobs/sha256/{digest}"] = data
        return {"mediaType": f"{kind}.{media}", "digest": f"sha256:{digest}", "size": len(data)}

    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{kind}.manifest.v1+json",
        "config": put(_json(config), "config.v1+json"),
        "layers": [*base.layers, put(layer.read(), "layer.v1.tar")],
    }
    named = {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name.rpartition(":")[2]}
    listed = put(_json(manifest), "manifest.v1+json") | {"platform": platform, "annotations": named}
    index = {"schemaVersion": 2, "mediaType": f"{kind}.index.v1+json", "manifests": [listed]}
    files = {"oci-layout": _json({"imageLayoutVersion": "1.0.0"}), "index.json": _json(index), **blobs}
    write_tar(out, {path: Entry(0o644, data) for path, data in files.items()}, 0)


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True).encode()


def _digest(data: IO[bytes]) -> str:
    data.seek(0)
    return hashlib.file_digest(data, "sha256").hexdigest()  # type: ignore[arg-type]  # any binary file does
