"""A certificate and its key are two files that must change as one; a rename changes only one.

So a new pair is laid down whole as NAME.key.next and then NAME.crt.next before either real file is touched, and
whoever opens the pair next finishes what was begun:

    NAME.crt.next   NAME.key.next   state                               `recover` does
    absent          absent          nothing was begun                   nothing
    absent          present         stopped while laying down           forgets it: the old pair is whole
    present         present         laid down whole                     renames the key, then the certificate
    present         absent          stopped between the two renames     renames the certificate

Each step is on disk before the next begins, so a power cut is no worse than a kill.
"""

from __future__ import annotations

from pathlib import Path

from certs.check import read_pair
from certs.errors import CertsError
from certs.files import rename_durably, sync_folder, write_atomically
from certs.issue import Pair


def certificate_file(folder: Path, name: str) -> Path:
    """Where the certificate `name` lives."""
    return folder / f"{name}.crt"


def key_file(folder: Path, name: str) -> Path:
    """Where the key of `name` lives."""
    return folder / f"{name}.key"


def write_pair(folder: Path, name: str, pair: Pair) -> None:
    """Replace certificate and key `name` in `folder` as one, mode 0600. Raises OSError."""
    recover(folder, name)
    certificate, key = certificate_file(folder, name), key_file(folder, name)
    if key.exists() and key.read_bytes() == pair.key_pem:
        write_atomically(certificate, pair.certificate_pem)  # one file changes: one rename is enough
        return
    write_atomically(_next(key), pair.key_pem)
    write_atomically(_next(certificate), pair.certificate_pem)
    recover(folder, name)


def recover(folder: Path, name: str) -> None:
    """Finish or forget an interrupted `write_pair`, by the table above. Raises OSError."""
    certificate, key = certificate_file(folder, name), key_file(folder, name)
    if not _next(certificate).exists():
        if _next(key).exists():
            _next(key).unlink()
            sync_folder(folder)
        return
    if _next(key).exists():
        rename_durably(_next(key), key)
    rename_durably(_next(certificate), certificate)


def load_pair(folder: Path, name: str) -> Pair:
    """The pair `name`; CertsError when a file is absent, unreadable or broken, or the two do not belong together."""
    try:
        recover(folder, name)
        certificate = certificate_file(folder, name).read_bytes()
        key = key_file(folder, name).read_bytes()
    except OSError as e:
        raise CertsError(f"{e.filename or folder / name}: {e.strerror}") from e
    return read_pair(certificate, key, str(folder / name))


def remove_pair(folder: Path, name: str) -> None:
    """Remove every file of the pair; absent is success. Raises OSError."""
    for path in (certificate_file(folder, name), key_file(folder, name)):
        _next(path).unlink(missing_ok=True)
        path.unlink(missing_ok=True)
    sync_folder(folder)


def _next(path: Path) -> Path:
    return path.with_name(path.name + ".next")
