"""Tar archives whose bytes follow from what is in them, and from nothing else: sorted, all root's, of one time."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO


@dataclass(frozen=True, slots=True)
class Entry:
    """A file (`content`, or where it is read from), a link, or else a folder."""

    mode: int = 0o755
    content: bytes | Path | None = None
    link: str = ""


FOLDER = Entry()


def write_tar(out: IO[bytes], entries: Mapping[str, Entry], seconds: int) -> None:
    """`entries` by their paths, with the folders above them, as of `seconds` since 1970."""
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for path, entry in sorted(with_folders(entries).items()):
            info = tarfile.TarInfo(path)
            info.mtime, info.mode = seconds, entry.mode
            if entry.link:
                info.type, info.linkname, info.mode = tarfile.SYMTYPE, entry.link, 0o777
                tar.addfile(info)
            elif entry.content is None:
                info.type = tarfile.DIRTYPE
                tar.addfile(info)
            else:
                content = entry.content if isinstance(entry.content, bytes) else entry.content.read_bytes()
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def with_folders(entries: Mapping[str, Entry]) -> dict[str, Entry]:
    above = {str(parent) for path in entries for parent in PurePosixPath(path).parents}
    return dict.fromkeys(above - {"."}, FOLDER) | dict(entries)


def read_tar(data: IO[bytes]) -> dict[str, Entry]:
    """What `write_tar` writes again: the files of an archive that somebody else wrote."""
    with tarfile.open(fileobj=data, mode="r:*") as tar:
        return {each.name: Entry(0o644, _content(tar, each)) for each in tar.getmembers() if each.isreg()}


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    found = tar.extractfile(member)
    return found.read() if found else b""


def paths_below(folder: Path, names: Iterable[str]) -> dict[str, Entry]:
    """The files `names` of `folder`, with no more of their modes than whether they are programs."""
    return {name: Entry(0o755 if (folder / name).stat().st_mode & 0o100 else 0o644, folder / name) for name in names}


def write_folder(folder: Path, entries: Mapping[str, Entry]) -> None:
    """`entries` as files below `folder`."""
    for path, entry in sorted(with_folders(entries).items()):
        target = folder / path
        if entry.link:
            target.symlink_to(entry.link)
        elif entry.content is None:
            target.mkdir(mode=entry.mode, parents=True, exist_ok=True)
        else:
            target.write_bytes(entry.content if isinstance(entry.content, bytes) else entry.content.read_bytes())
            target.chmod(entry.mode)
