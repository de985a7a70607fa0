"""An etcd that is the operator's own (`etcd.enabled` of the chart): where it is, what is shown to it, and what is left
to whoever keeps its users."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from clustermesh.errors import Invalid
from clustermesh.joining import names
from clustermesh.joining.member import CertFiles, Entrance, Member
from clustermesh.joining.objects import Objects
from clustermesh.mesh.peer_files import PeerFile, parse_peer
from clustermesh.store.endpoint import parse

_CONFIG: Final = "etcd-config.yaml"


async def read_etcd(objects: Objects, config: Mapping[str, str], cluster: str, *, deployed: bool) -> PeerFile | None:
    """As `config` tells of it, or, where that is Cilium's, what the API server is told where that is `deployed`.

    Raises Invalid."""
    where, text = f"{names.CONFIG}: {names.ETCD_CONFIG}", config.get(names.ETCD_CONFIG)
    if text is None and deployed:
        where, text = f"{names.API_SERVER}: {_CONFIG}", (await objects.config(names.API_SERVER)).get(_CONFIG)
    if text is None:
        return None
    try:
        return parse_peer(cluster, text.encode(), names.MOUNT)
    except Invalid as e:
        place = f"ConfigMap {objects.namespace}/{where}: {e.field}"
        raise Invalid(place, e.value, f"{e.rule}: correct etcd.endpoints of the chart") from e


async def read_shown(objects: Objects) -> CertFiles:
    """What the cluster shows to that etcd."""
    data = await objects.secret(names.ETCD_CERT)
    return CertFiles(*(data.get(f"etcd-client{end}", b"") for end in ("-ca.crt", ".crt", ".key")))


def find_entrance(etcd: PeerFile) -> tuple[Entrance | None, str]:
    """Other clusters reach it where this one does; else why they cannot, and what to do."""
    places = [parse(url) for url in etcd.endpoints]
    if not all(each.secure for each in places):
        return None, (
            "its etcd is told by http:// (etcd.endpoints of the chart): clusters read each other by certificates; give "
            f"it TLS and https:// there, with etcd.ssl=true and the Secret {names.ETCD_CERT}"
        )
    ports = {each.port for each in places}
    if len(ports) > 1:
        several = ", ".join(map(str, sorted(ports)))
        return None, (
            f"its etcd (etcd.endpoints of the chart) is at several ports, {several}: say one place for other clusters "
            "with --source-endpoint or --destination-endpoint"
        )
    return Entrance(tuple(each.host for each in places), ports.pop(), as_is=True), ""


def adding(owner: Member, user: str) -> str:
    """What is to be done for `user` by hand."""
    return (
        f"{owner.name}: nobody here keeps the users of its etcd (etcd.enabled): where that asks for users, "
        f"`etcdctl user add {user} --no-password` and `etcdctl user grant-role {user} remote` let it in; where it does "
        "not, whoever its authority has signed for may write there"
    )


def removing(owner: Member, user: str) -> str:
    """As `adding`, when it is to read no more."""
    return (
        f"{owner.name}: nobody here keeps the users of its etcd (etcd.enabled): `etcdctl user delete {user}` keeps it "
        "out, and connections that are open end with a restart of etcd"
    )
