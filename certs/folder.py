"""A cluster's certificates on disk: ca.crt, ca.key and NAME.crt, NAME.key for each leaf; files 0600, the folder 0700.

ca.crt may hold more than one certificate: the first signs, all are trusted. The clock is read only by the caller.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path

from cryptography import x509

from certs.check import (
    Facts,
    check_authority,
    check_leaf,
    check_time,
    check_use,
    facts,
    read_certificates,
    read_pair,
    renewal_due,
)
from certs.errors import CertsError
from certs.files import private_folder, sweep
from certs.issue import Pair, create_authority, issue, renew_authority
from certs.names import Leaf, unique
from certs.pair import certificate_file, load_pair, write_pair

AUTHORITY = "ca"


@dataclass(frozen=True, slots=True)
class Entry:
    """One certificate of a folder. `problem` is "" while it is good; `facts` is None when it cannot be read."""

    name: str
    facts: Facts | None
    problem: str
    due: bool


def initialise(
    folder: Path, leaves: Mapping[str, Leaf], now: datetime, *, authority: Pair | None = None
) -> dict[str, str]:
    """Make `folder` hold an authority and every one of `leaves`; what is good already is left as it is.

    `authority` is one to bring in instead of making one. Returns what was written, by name, with the reason. An
    authority that is there but unusable is never replaced: CertsError. Raises OSError.
    """
    private_folder(folder)
    sweep(folder)
    written: dict[str, str] = {}
    signer = _ensure_authority(folder, authority, now, written)
    for name, leaf in leaves.items():
        reason = leaf_fault(folder, name, leaf, signer, now)
        if reason:
            write_pair(folder, name, issue(signer, leaf, now))
            written[name] = reason
    return written


def leaf_fault(folder: Path, name: str, wanted: Leaf, authority: Pair, now: datetime) -> str:
    """Why the leaf `name` in `folder` cannot serve as `wanted` under `authority` now, or soon; "" when it can."""
    if not certificate_file(folder, name).exists():
        return "was absent"
    try:
        return pair_fault(load_pair(folder, name), wanted, authority, now, name)
    except CertsError as e:
        return str(e)


def pair_fault(pair: Pair, wanted: Leaf, authority: Pair, now: datetime, name: str) -> str:
    """Why `pair` cannot serve as `wanted` under `authority` for long, "" when it can; CertsError when not even now."""
    check_leaf(pair.certificate, (authority.certificate, *authority.chain), now, name)
    check_use(pair.certificate, wanted, name)
    # A leaf that ends with its authority cannot be given more time by issuing it again.
    ends_early = pair.certificate.not_valid_after_utc < authority.certificate.not_valid_after_utc
    return "was about to expire" if ends_early and renewal_due(pair.certificate, now) else ""


def load_authority(folder: Path, now: datetime) -> Pair:
    """The folder's authority with its key, fit to sign at `now`; CertsError when it is absent, broken or expired."""
    pair = load_pair(folder, AUTHORITY)
    name = str(certificate_file(folder, AUTHORITY))
    check_authority(pair.certificate, name)
    check_time(pair.certificate, now, name)
    return pair


def trusted(folder: Path) -> tuple[x509.Certificate, ...]:
    """Every certificate the folder's ca.crt trusts; CertsError when it is absent or broken."""
    path = certificate_file(folder, AUTHORITY)
    return read_certificates(_read(path), str(path))


def renew(folder: Path, name: str, now: datetime, wanted: Leaf | None = None, *, fresh_key: bool = False) -> Pair:
    """Issue the leaf `name` again with the names it has and the hosts of `wanted` added.

    `wanted` stands in whole for a leaf that is absent or unreadable. The key is kept unless `fresh_key`: then only one
    file changes. The authority renews itself with its key, so that all it signed stays good.
    Raises CertsError, OSError.
    """
    if name == AUTHORITY:
        pair = renew_authority(load_pair(folder, AUTHORITY), now)
        write_pair(folder, AUTHORITY, pair)
        return pair
    signer = load_authority(folder, now)
    old = _readable(folder, name)
    if old is not None:
        leaf = leaf_of(old)
    elif wanted is not None:
        leaf = wanted
    else:
        raise CertsError(f"{certificate_file(folder, name)}: is not there or not readable, so its names are not known")
    hosts = unique((*leaf.hosts, *(wanted.hosts if wanted else ())))
    leaf = Leaf(leaf.common_name, server=leaf.server, hosts=hosts)
    pair = issue(signer, leaf, now, key=None if old is None or fresh_key else old.key)
    write_pair(folder, name, pair)
    return pair


def inspect(folder: Path, now: datetime, expected: Iterable[str] = ()) -> list[Entry]:
    """Every certificate in `folder`, the authority first; those of `expected` also when absent. No error for one."""
    names = sorted({p.stem for p in folder.glob("*.crt")} | {AUTHORITY, *expected})
    names.sort(key=lambda n: n != AUTHORITY)
    return [_inspect_one(folder, name, now) for name in names]


def inspect_files(data: Mapping[str, bytes], now: datetime) -> list[Entry]:
    """Every certificate with a key among `data`, files by name, as of a Secret; the authority is called "ca".

    A leaf is to be signed by its NAME-ca.crt, or else by ca.crt.
    """
    names = [name.removesuffix(".crt") for name in data if name.endswith(".crt")]
    kept = [name for name in names if f"{name}.key" in data]
    return [_judge(partial(_entry_of, data), name, now, f"{name}-ca.crt" in data) for name in kept]


def _inspect_one(folder: Path, name: str, now: datetime) -> Entry:
    return _judge(lambda file: _read(folder / file), name, now)


def _judge(read: Callable[[str], bytes], name: str, now: datetime, own: bool = False) -> Entry:
    """`own` says that it has a bundle of its own. `read` raises CertsError."""
    said, due, file = None, False, f"{name}.crt"
    try:
        certificate = read_certificates(read(file), file)[0]
        said, due = facts(certificate, file), renewal_due(certificate, now)
        read_pair(read(file), read(f"{name}.key"), name)
        if name == AUTHORITY:
            check_time(certificate, now, file)
            check_authority(certificate, file)
        else:
            bundle = f"{name}-{AUTHORITY}.crt" if own else f"{AUTHORITY}.crt"
            check_leaf(certificate, read_certificates(read(bundle), bundle), now, file)
    except CertsError as e:
        return Entry(name, said, str(e), due)
    return Entry(name, said, "", due)


def _entry_of(data: Mapping[str, bytes], file: str) -> bytes:
    if file not in data:
        raise CertsError(f"{file}: is not there")
    return data[file]


def _ensure_authority(folder: Path, brought: Pair | None, now: datetime, written: dict[str, str]) -> Pair:
    present = [p for p in (certificate_file(folder, AUTHORITY), folder / f"{AUTHORITY}.key") if p.exists()]
    if present:
        here = load_authority(folder, now)
        if brought is not None and here.certificate != brought.certificate:
            raise CertsError(f"{folder}: has another authority already; move it away to bring this one in")
        return here
    pair = brought or create_authority(now)
    check_authority(pair.certificate, "the authority to bring in")
    check_time(pair.certificate, now, "the authority to bring in")
    write_pair(folder, AUTHORITY, pair)
    written[AUTHORITY] = "was absent" if brought is None else "brought in"
    return pair


def _readable(folder: Path, name: str) -> Pair | None:
    try:
        return load_pair(folder, name)
    except CertsError:
        return None


def leaf_of(pair: Pair) -> Leaf:
    """What `pair` was issued for."""
    said = facts(pair.certificate)
    return Leaf(said.common_name, server=said.server and bool(said.hosts), hosts=said.hosts)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as e:
        raise CertsError(f"{path}: {e.strerror}") from e
