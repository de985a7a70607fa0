"""etcd as a child process that is started again, over the same data, when the authorities that it trusts are others:
it reads them only when it starts. Its certificate it reads anew by itself.

    python -m clustermesh.store.keeper CA-FILE ETCD FLAG...

Whatever signal we get it gets; its end is ours. Little is imported here: this process stays as long as etcd does.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

_LOOK: Final = 1.0
"""Seconds between two looks at the file."""
_PATIENCE: Final = 10.0
"""Seconds that etcd may take to end."""
_PASSED_ON: Final = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT})
_HEARD: Final = _PASSED_ON | {signal.SIGCHLD}
_CERTIFICATE: Final = re.compile(b"-----BEGIN CERTIFICATE-----[^-]*-----END CERTIFICATE-----")


def keep(trusted: Path, argv: Sequence[str]) -> int:
    """Run `argv` until it ends, or a signal ends it; the exit code. Raises OSError where it cannot be started."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _HEARD)
    held, child = _read(trusted), _start(argv)
    while True:
        heard = signal.sigtimedwait(_HEARD, _LOOK)
        if heard is None:
            found = _read(trusted)
            if found and found != held:
                held, code = found, _end(child)
                if code is not None:
                    return code
                child = _start(argv)
        elif heard.si_signo != signal.SIGCHLD:
            os.kill(child, heard.si_signo)
        if (code := _ended(child)) is not None:
            return code


def kept(trusted: Path, argv: Sequence[str]) -> list[str]:
    """The command line that keeps `argv`."""
    # -P: a folder named "clustermesh" where this is called must not stand in for ours.
    return [sys.executable, "-P", "-m", "clustermesh.store.keeper", str(trusted), *argv]


def _start(argv: Sequence[str]) -> int:
    # The kernel kills it when we end, and it hears the signals that we hold back.
    return os.posix_spawnp("setpriv", ["setpriv", "--pdeathsig", "KILL", "--", *argv], os.environ, setsigmask=[])


def _end(child: int) -> int | None:
    """Have etcd end, to be started again; an exit code where we are asked to end meanwhile."""
    os.kill(child, signal.SIGTERM)
    deadline, asked = time.monotonic() + _PATIENCE, False
    while _ended(child) is None:
        heard = signal.sigtimedwait(_HEARD, max(0.0, deadline - time.monotonic()))
        asked |= heard is not None and heard.si_signo in _PASSED_ON
        if heard is None:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            break
    return 0 if asked else None


def _ended(child: int) -> int | None:
    """Its exit code, as a shell tells it; None while it runs."""
    pid, status = os.waitpid(child, os.WNOHANG)
    if not pid:
        return None
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _read(path: Path) -> frozenset[bytes]:
    """The certificates in it; none where it cannot be read, or is just being written."""
    try:
        return frozenset(_CERTIFICATE.findall(path.read_bytes()))
    except OSError:
        return frozenset()


if __name__ == "__main__":
    sys.exit(keep(Path(sys.argv[1]), sys.argv[2:]))
