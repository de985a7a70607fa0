"""Joining Kubernetes clusters, and taking them apart: the order of the steps. What is written, `links` decides.

"A reads B" takes two things, in this order:

    1. B: ConfigMap clustermesh-remote-users   names remote-A: B lets A in
    2. A: Secret cilium-clustermesh            says where B is and what to show there, in one write

Where A has a mirror, that is what its Secret cilium-kvstoremesh says, and then cilium-clustermesh leads A's agents to
the mirror's copies. Taking apart goes the other way round. Each step does nothing where its end is reached, so whatever
interrupts, the same command again goes on from there.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from msgspec import Struct
from msgspec.structs import replace

from certs.rotation import PREVIOUS
from clustermesh.address import Prefix
from clustermesh.errors import ClusterMeshError, DecodeError, Invalid, Refused, Unavailable, first_of
from clustermesh.joining import external, names
from clustermesh.joining.checks import check_allowed, find_problems
from clustermesh.joining.invitations import disconnected
from clustermesh.joining.links import (
    Link,
    Mode,
    credentials,
    entries,
    entries_of,
    known_peers,
    link,
    pairs,
    replaced,
    unreadable_peers,
)
from clustermesh.joining.member import Entrance, Member
from clustermesh.joining.objects import Edit, Named, Objects, Secret
from clustermesh.joining.probe import probe
from clustermesh.joining.reading import read_member
from clustermesh.kube.client import KubeClient, Patience
from clustermesh.kube.config import find_access
from clustermesh.standalone.connect import Outcome, one_way
from clustermesh.standalone.users_file import readers_in, remote_user, with_user, without_user
from clustermesh.yaml_file import dump_yaml, mapping, parse_yaml

_PATIENCE: Final = Patience(waits=10)  # as kubectl
_USERS: Final = Path(names.USERS)  # what its problems are said of
_AT_ONCE: Final = "connected at the same time: the same command again looks anew"


class Site(Struct, frozen=True):
    """A cluster, and its API."""

    member: Member
    objects: Objects


class NotConnected(Refused):
    """There is nothing to take apart."""


class AuthorityReplaced(Unavailable):
    """What was signed by what was read of a cluster is worth nothing."""


class Wanted(Struct, frozen=True, kw_only=True):
    """What is asked for, beside the clusters. `unreached` says that this machine need not reach their etcds.

    The entrances are where others reach the source, and the destination, of which there is only one then.
    """

    mode: Mode = Mode.BIDIRECTIONAL
    source: Entrance | None = None
    destination: Entrance | None = None
    allowed: tuple[Prefix, ...] = ()
    unreached: bool = False


@asynccontextmanager
async def open_api(kubeconfig: str, context: str, namespace: str) -> AsyncIterator[Objects]:
    """The namespace `namespace` of the cluster that `context` of the kubeconfig names ("" for the current one, or for
    that of the pod, where no kubeconfig is named)."""
    async with KubeClient(find_access(kubeconfig or os.environ.get("KUBECONFIG", ""), context), _PATIENCE) as client:
        yield Objects(client, namespace)


async def read_site(objects: Objects, context: str) -> Site:
    """Raises the first thing that is wrong with the cluster of `context`, and says so."""
    try:
        return Site(await read_member(objects, context), objects)
    except* ClusterMeshError as group:
        error = first_of(group)
    if isinstance(error, Invalid) and not isinstance(error, DecodeError):  # says where
        raise error
    kind = Unavailable if isinstance(error, Unavailable) else Refused
    raise kind(f"{_shown(context)}: {error}") from error


async def connect(source: Site, destinations: Sequence[Site], wanted: Wanted, now: datetime) -> Outcome:
    """Let them read each other as `wanted` says; all is checked before any write.

    Raises an ExceptionGroup of every problem, with one error for each; ClusterMeshError when writing fails.
    """
    sites = {each.member.name: each for each in (source, *destinations)}
    links, problems = _links(source.member, [each.member for each in destinations], wanted)
    members = [each.member for each in (source, *destinations)]
    problems += [*check_allowed(links, wanted.allowed), *find_problems(members, links, now)]
    problems += [
        error
        for each in links
        if (error := await find_declared(sites[each.reader.name].objects, each.reader, each.owner.name))
    ]
    problems += await _probed(links, wanted.unreached)
    if problems:
        raise ExceptionGroup("cannot be connected", problems)
    outcome = Outcome([], [])
    for each in links:
        await _establish(each, sites, now, outcome)
    for each in links:
        reader, owner = sites[each.reader.name], sites[each.owner.name]
        if await _traces(reader, owner) < 2:
            with _changing(reader.member, outcome):
                raise Unavailable(f"it and {owner.member.name} were dis{_AT_ONCE}")
    outcome.warnings.extend(map(one_way, _one_way(links)))
    for site in sites.values():
        with _changing(site.member, outcome):
            if await check_unreplaced(site):
                again = "the same command again, once that has ended, makes its peers forget the old one"
                outcome.warnings.append(f"{site.member.name}: its authority is being replaced: {again}")
    return outcome


def _one_way(links: Sequence[Link]) -> Iterator[tuple[str, str]]:
    """Reader and owner, where the owner does not read the reader, and is not about to."""
    pairs_of = {(each.reader.name, each.owner.name) for each in links}
    for each in links:
        reader, owner = each.reader.name, each.owner.name
        if (owner, reader) not in pairs_of and reader not in known_peers(each.owner.entries):
            yield reader, owner


def _links(source: Member, destinations: list[Member], wanted: Wanted) -> tuple[list[Link], list[ClusterMeshError]]:
    said = {source.context: wanted.source} | {each.context: wanted.destination for each in destinations}
    links, problems = list[Link](), dict[str, ClusterMeshError]()
    for reader, owner in pairs(source, destinations, wanted.mode):
        entrance = said[owner.context] or owner.entrance
        if entrance is None:
            problems[owner.context] = Refused(f"{owner.name} is not reached from outside: {owner.hidden}")
        else:
            if owner.etcd is not None:
                entrance = replace(entrance, as_is=True)
            links.append(link(reader, owner, entrance, wanted.allowed))
    return links, list(problems.values())


async def _probed(links: Sequence[Link], unreached: bool) -> list[ClusterMeshError]:
    owners = {each.owner.name: each for each in links}.values()
    found = await asyncio.gather(*(probe(each.entrance, each.owner.name, each.owner.trusted) for each in owners))
    return [error for error in found if error is not None and not (unreached and not isinstance(error, Refused))]


async def _establish(link: Link, sites: Mapping[str, Site], now: datetime, outcome: Outcome) -> None:
    with _changing(sites[link.owner.name].member, outcome):
        await let_in(sites[link.owner.name], link.reader.name, outcome)
    with _changing(link.reader, outcome):
        await begin_reading(sites[link.reader.name].objects, link, now, outcome)


@contextmanager
def _changing(member: Member, outcome: Outcome) -> Iterator[None]:
    """What fails names the cluster, and what was done before it."""
    try:
        yield
    except ClusterMeshError as e:
        done = "".join(f"; done before: {each}" for each in outcome.done)
        again = "the same command goes on from there" if done else "nothing was changed before"
        kind = Unavailable if isinstance(e, Unavailable) else Refused
        raise kind(f"{_shown(member.context)} (cluster {member.name}): {e}{done}; {again}") from e


def _shown(context: str) -> str:
    return f"context {context or '(the current one)'}"


async def let_in(owner: Site, reader: str, outcome: Outcome) -> None:
    """The cluster `reader` may read `owner`."""
    user = remote_user(reader)
    if await change_users(owner.objects, lambda users: with_user(users, _USERS, user)):
        outcome.done.append(f"{owner.member.name} lets {reader} in as the user {user}")
    if owner.member.etcd is not None:
        outcome.warnings.append(external.adding(owner.member, user))


async def check_unreplaced(site: Site, remedy: str = "the same command again looks anew") -> bool:
    """Whether its authority is being replaced; AuthorityReplaced, with the `remedy`, where it is another one than was
    read.

    To be asked once it is written who is connected: who replaces an authority looks for that once the new one is there,
    so that one of the two sees the other."""
    kept, shown = [await site.objects.secret(each) for each in (names.AUTHORITY, names.SERVER_CERT)]
    if (kept.get("ca.crt", b""), shown.get("ca.crt", b"")) != (site.member.signer.ca, site.member.server.ca):
        raise AuthorityReplaced(f"the authority of {site.member.name} was replaced at the same time: {remedy}")
    return PREVIOUS in kept


async def begin_reading(
    objects: Objects, link: Link, now: datetime, outcome: Outcome, before: Mapping[str, bytes] | None = None
) -> None:
    """Write into the reader's `objects` what makes its agents read the owner. Raises Refused where that is declared,
    Unavailable where what the reader has of the owner is not what the entries `before` had."""
    ours, theirs = link.reader.name, link.owner.name
    if declared := await find_declared(objects, link.reader, theirs):
        raise declared
    agents, mirror = entries(link, credentials(link, now))
    where = names.COPIED if link.reader.mirrored else names.PEERS
    for secret, files in ((names.COPIED, mirror), (names.PEERS, agents)):
        if await objects.change_secret(secret, _replacing(theirs, files, before if secret == where else None)):
            outcome.done.append(f"{ours} reads {_place(secret, link)} (Secret {secret})")
    outcome.warnings.extend(_helm(link.reader))
    for name, error in unreadable_peers(link.reader).items():
        if name != theirs:
            outcome.warnings.append(f"Secret {names.PEERS} of {ours}: {name}: {error}")


async def find_declared(objects: Objects, reader: Member, peer: str) -> Refused | None:
    """Refused where a ClusterMeshPeer is what connects to `peer`: the API server would undo what is written."""
    held = [await objects.read("secrets", secret, Secret) for secret in (names.COPIED, names.PEERS)]
    if not any(found and peer in found.applied_by(names.DECLARED_MANAGER) for found in held):
        return None
    if peer not in {each.metadata.name for each in await objects.list(names.declared_path(objects.namespace), Named)}:
        return None  # what it left, where no API server of ours runs any more
    return Refused(
        f"{reader.name} is connected to {peer} by its ClusterMeshPeer {peer}: change it where it comes from, or "
        f"`kubectl delete clustermeshpeer -n {objects.namespace} {peer}`"
    )


def _place(secret: str, link: Link) -> str:
    if link.reader.mirrored and secret == names.PEERS:
        return f"the copies of {link.owner.name} in its own etcd"
    return f"{link.owner.name} at {link.entrance}"


def _helm(reader: Member) -> list[str]:
    """Helm writes what it keeps anew with the next upgrade."""
    kept = ", ".join(name for name in reader.helms if name != names.USERS)
    remedy = "put its clusters into clustermesh.config.clusters, or the next upgrade undoes this"
    return [f"{reader.name}: Helm keeps {kept}: {remedy}"] if kept else []


async def disconnect(source: Site, peer: str, destination: Site | None, mode: Mode) -> Outcome:
    """Take `source` and the cluster named `peer` apart, on the side of `source` first.

    With `destination` None, its API being gone, only that side is done, and that it goes away meanwhile is a warning:
    it must not keep anyone from leaving a dead cluster. Raises NotConnected where nothing is left of a connection and
    nothing tells that the name is right, Refused where a ClusterMeshPeer would connect them again, or one side may not
    be changed.
    """
    outcome, both = Outcome([], []), mode is not Mode.UNICAST
    if error := await find_declared(source.objects, source.member, peer):
        raise error
    with _changing(source.member, outcome):
        await _forget(source, peer, outcome)
        if both:
            await _expel(source, peer, outcome)
            await _uninvite(source, peer)
    if destination is None:
        if not outcome.done:
            connected = ", ".join(known_peers(source.member.entries)) or "no cluster"
            raise NotConnected(f"{source.member.name} is not connected to {peer}; it is connected to: {connected}")
        own = source.member.name
        told = f" and disconnect {own}: until then its calls of backends here go unanswered" if both else ""
        outcome.warnings.append(f"nothing was changed in {peer}: there, remove the user {remote_user(own)}{told}")
        return outcome
    try:
        with _changing(destination.member, outcome):
            if both:
                if error := await find_declared(destination.objects, destination.member, source.member.name):
                    raise error
                await _forget(destination, source.member.name, outcome)
            await _expel(destination, source.member.name, outcome)
            if both:
                await _uninvite(destination, source.member.name)
        ways = [(source, destination), (destination, source)]
        for reader, owner in ways if both else ways[:1]:
            if await _traces(reader, owner):
                outcome.warnings.append(f"{reader.member.name} and {owner.member.name} were {_AT_ONCE}")
    except Unavailable as e:
        outcome.warnings.append(f"not all was undone in {peer}: {e}")
    return outcome


async def _forget(reader: Site, peer: str, outcome: Outcome) -> None:
    # Agents first: a mirror that forgets first would look to them like a cluster that takes all of its services away.
    for secret in (names.PEERS, names.COPIED):
        if await reader.objects.change_secret(secret, _replacing(peer, {})):
            outcome.done.append(f"{reader.member.name} no longer reads {peer} (Secret {secret})")


async def _expel(owner: Site, peer: str, outcome: Outcome) -> None:
    if await change_users(owner.objects, lambda users: without_user(users, _USERS, remote_user(peer))):
        outcome.done.append(f"{owner.member.name} no longer lets {peer} in")
        if owner.member.etcd is not None:
            outcome.warnings.append(external.removing(owner.member, remote_user(peer)))


async def _traces(reader: Site, owner: Site) -> int:
    """How much by now tells that `reader` reads `owner`: 2 where it does, 0 where nothing does."""
    where = names.COPIED if reader.member.mirrored else names.PEERS
    lets_in = reader.member.name in await find_readers(owner.objects)
    return lets_in + (owner.member.name in await reader.objects.secret(where))


async def find_readers(objects: Objects) -> frozenset[str]:
    """The clusters that may read this one, by its list of users. Raises Invalid, and as `Objects`."""
    return readers_in((await objects.config(names.USERS)).get(names.USERS_KEY, "").encode(), names.USERS)


async def _uninvite(site: Site, peer: str) -> None:
    await site.objects.change_secret(names.INVITATIONS, lambda data: disconnected(data, peer))


def _replacing(peer: str, files: Mapping[str, bytes], before: Mapping[str, bytes] | None = None) -> Edit:
    def edit(data: Mapping[str, bytes]) -> Mapping[str, bytes]:
        if before is not None and any(data.get(key) != before.get(key) for key in entries_of(peer)):
            raise Unavailable(
                f"the connection to {peer} was changed at the same time: the same command again looks anew"
            )
        return replaced(data, peer, files)

    return edit


async def change_users(objects: Objects, change: Callable[[dict[str, Any]], dict[str, Any]]) -> bool:
    """Make the list of who may read what `change` makes of it; False where that is what it is. Raises as `Objects`."""

    def edit(data: Mapping[str, bytes]) -> Mapping[str, bytes]:
        document = mapping(parse_yaml(data.get(names.USERS_KEY, b""), names.USERS), names.USERS)
        changed = change(document)
        return data if changed == document else {**data, names.USERS_KEY: dump_yaml(changed)}

    return await objects.change_config(names.USERS, edit)
