"""Network namespaces of this node, by their inodes, and work that is done inside of one."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Iterator
from glob import iglob
from typing import Final, TypeVar

T = TypeVar("T")

_NEW_NETWORK: Final = 0x40000000  # CLONE_NEWNET
_OWN: Final = "/proc/thread-self/ns/net"
_PLACES: Final = ("/run/netns/*", "/proc/[0-9]*/ns/net", "/proc/[0-9]*/task/[0-9]*/ns/net")


def in_each(work: Callable[[], T]) -> Iterator[tuple[str, T | OSError]]:
    """What `work` returns in every namespace that somebody lives in or has kept by name, or the error that it ended
    with, and a path to that namespace. They are looked for while they are asked for: all threads of a machine are gone
    over last. Nobody may know a way into one that only sockets still hold."""
    found = set[int]()
    namespaces = os.stat(_OWN).st_dev
    for path in _candidates():
        try:
            status = os.stat(path)
        except OSError:
            continue  # it ended meanwhile
        # On another device it is a file where one was mounted, or is about to be.
        if status.st_dev != namespaces or status.st_ino in found:
            continue
        done: T | OSError
        try:
            done = inside(path, work)
        except FileNotFoundError:
            continue  # whoever lived in it has ended; another may be found there yet
        except OSError as e:
            done = e
        found.add(status.st_ino)
        yield path, done


def _candidates() -> Iterator[str]:
    yield _OWN
    for place in _PLACES:
        yield from iglob(place)


def inside(path: str, work: Callable[[], T]) -> T:
    """What `work` returns or raises in the namespace at `path`: by a thread of its own, which ends there."""
    done: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            _enter(path)
            done.append(work())
        except BaseException as e:
            failed.append(e)

    thread = threading.Thread(target=run, name="network")
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return done[0]


def _enter(path: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if libc.setns(descriptor, _NEW_NETWORK) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), path)
    finally:
        os.close(descriptor)
