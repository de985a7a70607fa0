"""Where the Kubernetes API is and who we are there: a pod's service account, or a kubeconfig."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from clustermesh.errors import Refused, Unavailable
from clustermesh.kube.access import Access, Grant, tls_context
from clustermesh.kube.credentials import Credentials

SERVICE_ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_PATIENCE: Final = 60.0
"""Seconds that reading a kubeconfig may take; an exec plugin may ask a far server."""
_CREDENTIALS: Final = msgspec.json.Decoder(Credentials)


def find_access(kubeconfig: str = "", context: str = "", environ: Mapping[str, str] = os.environ) -> Access:
    """The kubeconfig where one is named, or none is but there is no service account; else the service account.

    `kubeconfig` may be several files with ":" between them, as KUBECONFIG may. Nothing is read yet.
    """
    if not (kubeconfig or context) and "KUBERNETES_SERVICE_HOST" in environ and (SERVICE_ACCOUNT / "token").exists():
        return in_cluster(SERVICE_ACCOUNT, environ)
    return from_kubeconfig(kubeconfig, context)


def in_cluster(folder: Path, environ: Mapping[str, str]) -> Access:
    """The service account that `folder` holds; its token is replaced from time to time."""

    async def read() -> Grant:
        host, port = environ.get("KUBERNETES_SERVICE_HOST", ""), environ.get("KUBERNETES_SERVICE_PORT", "443")
        files = (folder / "token", folder / "ca.crt")
        try:
            token, ca = (file.read_text().strip() for file in files)
        except (OSError, UnicodeDecodeError) as e:
            raise Refused(f"service account: {e}") from e
        server = f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
        return Grant(server=server, tls=tls_context(ca), header=f"Bearer {token}", files=files)

    return Access(read)


def from_kubeconfig(kubeconfig: str = "", context: str = "", patience: float = _PATIENCE) -> Access:
    """What `context` of a kubeconfig says ("" for the current one); `kubeconfig` "" is the default place."""

    async def read() -> Grant:
        found = await _ask(kubeconfig, context, patience)
        if found.error:
            raise Refused(f"kubeconfig: {found.error}")
        return Grant(
            server=found.server,
            tls=tls_context(found.ca, found.cert, found.key, verify=found.verify),
            server_name=found.server_name,
            proxy=found.proxy,
            header=found.header,
            impersonate=tuple(found.impersonate),
            expires=found.expires,
            files=tuple(map(Path, found.files)),
        )

    return Access(read)


async def _ask(kubeconfig: str, context: str, patience: float) -> Credentials:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "clustermesh.kube.credentials", kubeconfig, context),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(patience):
            output, _ = await process.communicate()
        return _CREDENTIALS.decode(output)
    except TimeoutError as e:
        raise Unavailable(f"kubeconfig: no credentials within {patience:g} s (does an exec plugin hang?)") from e
    except msgspec.DecodeError as e:
        raise Unavailable(f"kubeconfig: reading it ended with status {process.returncode}") from e
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):  # with the plugin that it may have started
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
