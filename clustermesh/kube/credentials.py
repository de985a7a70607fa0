"""`python -m clustermesh.kube.credentials KUBECONFIG CONTEXT`: what a kubeconfig says, as one JSON object.

The package `kubernetes` knows every way that a kubeconfig can name credentials (files, data, exec plugins, OIDC). It is
imported in this short process only: it costs 35 MB, and an exec plugin that hangs is ended with it.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec
from msgspec import Struct

from clustermesh.errors import Refused, sentence
from clustermesh.kube.kubeconfig import check_kubeconfig


class Credentials(Struct, kw_only=True):
    """PEM texts, not files, for what they were read from may be temporary; `files` are those that were read."""

    server: str = ""
    ca: str = ""
    cert: str = ""
    key: str = ""
    verify: bool = True
    server_name: str = ""
    proxy: str = ""
    header: str = ""
    impersonate: list[tuple[str, str]] = []
    expires: float = 0.0
    files: list[str] = []
    error: str = ""


class _Said(logging.Handler):
    """The package logs why an exec plugin failed, and goes on without credentials."""

    def __init__(self) -> None:
        super().__init__()
        self.sentences: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.sentences.append(record.getMessage())


def read(kubeconfig: str, context: str) -> Credentials:
    """Raises ClusterMeshError, and whatever the package raises."""
    from kubernetes.config.kube_config import KUBE_CONFIG_DEFAULT_LOCATION, KubeConfigMerger

    for path in (kubeconfig or KUBE_CONFIG_DEFAULT_LOCATION).split(os.pathsep):
        if path and Path(path).expanduser().exists():  # as kubectl does, the package leaves out what is not there
            check_kubeconfig(Path(path).expanduser())
    said = _Said()
    logging.getLogger().addHandler(said)
    try:
        merger = KubeConfigMerger(kubeconfig or KUBE_CONFIG_DEFAULT_LOCATION)
        if merger.config is None:
            raise FileNotFoundError(f"no kubeconfig at {kubeconfig or KUBE_CONFIG_DEFAULT_LOCATION}")
        found = _load(merger, context)
    finally:
        logging.getLogger().removeHandler(said)
    if said.sentences and not (found.header or found.cert):
        raise PermissionError("; ".join(said.sentences))
    return found


def _load(merger: Any, context: str) -> Credentials:
    from kubernetes.client import Configuration
    from kubernetes.config.kube_config import KubeConfigLoader

    _check_context(merger.config, context)
    with tempfile.TemporaryDirectory() as folder:
        loader = KubeConfigLoader(
            merger.config,
            context or None,
            config_base_path=None,
            config_persister=merger.save_changes,
            temp_file_path=folder,
        )
        _check_user(loader)
        configuration = Configuration()
        loader.load_and_set(configuration)
        found = _credentials(configuration)
    expiry = getattr(loader, "expiry", None)
    found.expires = expiry.timestamp() if expiry else 0.0
    found.files = [*merger.paths, *_files(loader)]
    found.impersonate = list(_impersonation(loader._user.value if loader._user else {}))
    return found


def _check_context(config: Any, context: str) -> None:
    known = [str(each.safe_get("name")) for each in config.safe_get("contexts") or ()]
    if context and context not in known:
        raise Refused(f"there is no context {context}; there are: {', '.join(sorted(known)) or 'none'}")


def _check_user(loader: Any) -> None:
    """The package takes who is not there for nobody, and asks without credentials."""
    some, named = loader._config.safe_get("users"), loader.current_context["context"].get("user")
    if named and not (some and loader._config["users"].get_with_name(named, safe=True)):
        raise Refused(f"context {loader.current_context['name']}: its user {named} is not among the users")


def _credentials(configuration: Any) -> Credentials:
    return Credentials(
        server=configuration.host,
        ca=_text(configuration.ssl_ca_cert),
        cert=_text(configuration.cert_file),
        key=_text(configuration.key_file),
        verify=configuration.verify_ssl,
        server_name=configuration.tls_server_name or "",
        proxy=_proxy(configuration),
        header=_header(configuration.api_key.get("BearerToken", "")),
    )


def _header(said: str) -> str:
    """The package hands on what a tokenFile ends with; kubectl takes a token without the white space around it."""
    scheme, _, token = said.partition(" ")
    return f"{scheme} {token.strip()}" if said else ""


def _impersonation(user: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The headers for what the package passes over, and kubectl does not: `as`, `as-uid`, `as-groups` and
    `as-user-extra`."""
    for field, header in (("as", "Impersonate-User"), ("as-uid", "Impersonate-Uid")):
        if user.get(field):
            yield header, user[field]
    yield from (("Impersonate-Group", group) for group in user.get("as-groups") or ())
    for name, values in (user.get("as-user-extra") or {}).items():
        yield from ((f"Impersonate-Extra-{quote(name.lower(), safe='')}", value) for value in values)


def _proxy(configuration: Any) -> str:
    """None ("") where NO_PROXY has the server."""
    from kubernetes.client.rest import should_bypass_proxies

    around = should_bypass_proxies(configuration.host, no_proxy=configuration.no_proxy or "")
    return "" if around else configuration.proxy or ""


def _text(path: str | None) -> str:
    return Path(path).read_text() if path else ""


def _files(loader: Any) -> list[str]:
    """The files that the chosen context names; each may be replaced by a newer one."""
    named = [
        (loader._cluster, "certificate-authority"),
        *((loader._user, key) for key in ("client-certificate", "client-key", "tokenFile") if loader._user),
    ]
    return [
        str(Path(loader._get_base_path(node.path), node[key])) for node, key in named if node.safe_get(key) is not None
    ]


def main(argv: list[str]) -> None:
    try:
        found = read(*argv)
    except Exception as e:
        found = Credentials(error=sentence(e))
    sys.stdout.buffer.write(msgspec.json.encode(found))


if __name__ == "__main__":
    main(sys.argv[1:])
