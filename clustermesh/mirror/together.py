"""An API server and a mirror in one process: who leads does both.

The election of the API servers decides. Its leader then takes the mirrors' place, too, so that a mirror in a process of
its own stands by beside this one; as long as one leads there, this one copies nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

from clustermesh.apiserver import health as server_health
from clustermesh.apiserver import server as api
from clustermesh.apiserver.collector import few_collections
from clustermesh.apiserver.heard import heard
from clustermesh.apiserver.terms import serve_terms
from clustermesh.mirror import health as mirror_health
from clustermesh.mirror import server as mirrors
from clustermesh.mirror.agent_files import AgentAccess
from clustermesh.own_cluster import Settings
from clustermesh.sources.source import Source

_SERVER: Final = api.Timing()
_MIRROR: Final = mirrors.Timing()


class Mirrored(NamedTuple):
    """What a mirror is told: the `folder` of the connected clusters, and the rest as `mirror.run` is."""

    folder: Path
    http: Sequence[str]
    access: AgentAccess | None = None


async def run_both(
    settings: Settings,
    source: Source,
    http: Sequence[str],
    mirrored: Mirrored,
    timing: api.Timing = _SERVER,
    mirroring: mirrors.Timing = _MIRROR,
) -> None:
    """`apiserver.run` and `mirror.run` at once; each has health at an address of its own."""
    async with (
        settings.client() as client,
        settings.client() as copying,
        settings.client(timing.election) as voting,
        heard(source) as told,
    ):

        def stand() -> _Both:
            server = api.ApiServer(settings, told, client, voting, timing, settle)
            place = mirrors.stand(copying, voting, server.ownership, mirroring)
            folder, _, access = mirrored
            return _Both(server, mirrors.Mirror(settings, folder, copying, place, mirroring, access, settle))

        with few_collections() as settle:
            await serve_terms(stand, lambda current: _show(current, http, mirrored.http))


class _Both:
    def __init__(self, server: api.ApiServer, mirror: mirrors.Mirror) -> None:
        self.server, self.mirror, self.election = server, mirror, server.election

    def tasks(self) -> list[Coroutine[Any, Any, None]]:
        return [*self.server.tasks(), *self.mirror.work(), self._take_place(), self._stand_by(), self._step_down()]

    async def _take_place(self) -> None:
        await self.election.leading.wait()
        await self.mirror.election.run()

    async def _stand_by(self) -> None:
        """Who leads mirrors, too."""
        await self.election.following.wait()
        self.mirror.election.following.set()

    async def _step_down(self) -> None:
        await self.mirror.election.deposed.wait()
        self.election.deposed.set()


@contextmanager
def _show(current: Callable[[], _Both], http: Sequence[str], mirror_http: Sequence[str]) -> Iterator[None]:
    def of_server() -> server_health.Health:
        return current().server.health()  # of whoever is current by then

    def of_mirror() -> mirror_health.MirrorHealth:
        return current().mirror.report.health()

    with ExitStack() as stack:
        for address in http:
            stack.enter_context(server_health.health_server(address, of_server))
        for address in mirror_http:
            stack.enter_context(mirror_health.health_server(address, of_mirror))
        yield
