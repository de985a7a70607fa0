"""Run an etcd of our own: one member, one child process, told apart from all others by its process id.

`command` is the whole configuration, for whoever execs etcd in the foreground; `LocalEtcd` starts it as a child, waits
until it answers, and stops it. Every fresh data folder gets a cluster id of its own, so that clients notice an etcd
that was started empty: etcd derives the id from its addresses and the token alone.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from clustermesh.errors import Refused, Unavailable
from clustermesh.store.client import EtcdClient
from clustermesh.store.endpoint import Endpoint, parse
from clustermesh.store.tls import Tls

QUOTA: Final = 2 << 30  # bytes; etcd turns read-only beyond it
_WILDCARDS: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}
_LOG_TAIL: Final = 64 << 10


def command(
    data_dir: Path,
    listen_urls: Sequence[str],
    tls: Tls | None = None,
    *,
    binary: str = "etcd",
    flags: Sequence[str] = (),
) -> list[str]:
    """The argv of an etcd that listens for clients on `listen_urls`.

    With `tls` (the server's own) a client must show a certificate of the same CA. `flags` come last and
    so win. The peer port is a random one of the loopback, for nobody.
    """
    peer = ("http" if tls is None else "https") + "://127.0.0.1"
    urls = ",".join(str(parse(url)) for url in listen_urls)
    argv = [binary, "--name=local", f"--data-dir={data_dir}"]
    argv += [f"--listen-client-urls={urls}", f"--advertise-client-urls={urls}"]
    argv += [f"--listen-peer-urls={peer}:0", f"--initial-advertise-peer-urls={peer}:2380"]
    argv += [f"--initial-cluster=local={peer}:2380", f"--initial-cluster-token={secrets.token_hex(16)}"]
    # Alone it elects itself, which takes up to two of these times: until then it answers nobody.
    argv += ["--heartbeat-interval=20", "--election-timeout=200"]
    argv += ["--auto-compaction-retention=1h", f"--quota-backend-bytes={QUOTA}"]
    # The gateway would call etcd with the server's own certificate, whoever asks.
    argv += ["--enable-grpc-gateway=false", "--logger=zap", "--log-outputs=stderr", "--log-level=warn"]
    if tls is not None:
        for side in ("", "peer-"):
            argv += [f"--{side}cert-file={tls.cert}", f"--{side}key-file={tls.key}"]
            argv += [f"--{side}trusted-ca-file={tls.ca}", f"--{side}client-cert-auth"]
    return [*argv, *flags]


class LocalEtcd:
    """An etcd child process; its standard error goes to `log`. The kernel kills it when our thread ends.

    `client_tls` is who asks for its health (default: the server's own certificate, which then must be good for clients
    too). `endpoints` are its URLs as a client on this machine dials them. `log` is DATA_DIR.log unless it is named.
    """

    def __init__(
        self,
        data_dir: Path,
        listen_urls: Sequence[str],
        tls: Tls | None = None,
        *,
        client_tls: Tls | None = None,
        flags: Sequence[str] = (),
        log: Path | None = None,
    ) -> None:
        self.data_dir, self.tls, self.client_tls = data_dir, tls, client_tls or tls
        self.log = log or data_dir.with_name(data_dir.name + ".log")
        self._listen = [parse(url) for url in ([listen_urls] if isinstance(listen_urls, str) else listen_urls)]
        self.flags = flags
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start = 0

    @property
    def endpoints(self) -> list[str]:
        return [str(Endpoint(_WILDCARDS.get(at.host, at.host), at.port, at.secure)) for at in self._listen]

    @property
    def pid(self) -> int | None:
        """Its process id while it runs."""
        running = self._process is not None and self._process.poll() is None
        return self._process.pid if running and self._process is not None else None

    async def start(self, patience: float = 30.0) -> None:
        """Start it and wait up to `patience` seconds until it answers.

        Refused: no etcd installed, an address taken, a certificate is no good. Unavailable: it ended or did not answer.
        """
        if self.pid is not None:
            return
        for address in self._listen:
            _check_free(address)
        self._spawn()
        try:
            async with asyncio.timeout(patience):
                await self._answering()
        except TimeoutError as e:
            await self.stop()
            raise Unavailable(f"etcd did not answer within {patience:g} s, see {self.log}: {self._last_words()}") from e
        except BaseException:
            await self.stop()
            raise

    async def stop(self, patience: float = 10.0) -> None:
        """Ask it to end, and after `patience` seconds no longer ask."""
        process = self._process
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            await _ended(process, patience)
        self.kill()

    def kill(self) -> None:
        """End it at once, as a power cut would, and wait for that."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def _spawn(self) -> None:
        binary = shutil.which("etcd")
        if binary is None:
            raise Refused("there is no etcd program: install etcd 3.4 or newer (Debian: apt-get install etcd-server)")
        argv = command(self.data_dir, [str(at) for at in self._listen], self.tls, binary=binary, flags=self.flags)
        argv = ["setpriv", "--pdeathsig", "KILL", "--", *argv]  # no preexec_fn: threads and fork do not mix
        self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._log_start = log.tell()
            # A process group of its own: Ctrl-C ends us, and we end it, after its clients.
            self._process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, process_group=0)

    async def _answering(self) -> None:
        async with EtcdClient(self.endpoints[-1:], self.client_tls, timeout=2.0) as client:
            while True:
                if self.pid is None:
                    raise Unavailable(f"etcd ended at once, see {self.log}: {self._last_words()}")
                try:
                    if (await client.status()).leader:
                        return
                except Unavailable:
                    pass
                await asyncio.sleep(0.05)

    def _last_words(self) -> str:
        """The last error that etcd logged since it was started, or else the first thing it said (of a wrong flag)."""
        with self.log.open("rb") as log:
            log.seek(max(self._log_start, log.seek(0, os.SEEK_END) - _LOG_TAIL))
            lines = log.read().decode(errors="replace").splitlines()
        spoken = (line.strip() for line in lines if line.strip())
        return next((said for said in map(_logged_error, reversed(lines)) if said), next(spoken, "it said nothing"))


def _logged_error(line: str) -> str:
    try:
        entry = json.loads(line)
        return f"{entry['msg']}: {entry['error']}"
    except (ValueError, TypeError, KeyError):
        return ""


def _check_free(address: Endpoint) -> None:
    """Refused where somebody else listens at `address`: an etcd there would answer for ours."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address.host, address.port))
        except OSError as e:
            raise Refused(f"etcd cannot listen on {address}: {e.strerror}") from e


async def _ended(process: subprocess.Popen[bytes], patience: float) -> None:
    """Wait for the end of `process`, `patience` seconds at most."""
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    watched = os.pidfd_open(process.pid)
    loop.add_reader(watched, ended.set)
    try:
        with suppress(TimeoutError):
            async with asyncio.timeout(patience):
                await ended.wait()
    finally:
        loop.remove_reader(watched)
        os.close(watched)
