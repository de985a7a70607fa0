"""An agent's process: its options, its locks, what this kernel has, and the datapath, opened beside all imports."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from agent import api
from agent.bpf.bpffs import ensure_bpffs
from agent.bpf.loader import Datapath, find_object
from agent.bpf.probe import Feature, probe
from agent.bpf.sizes import by_option
from agent.memory import keep_what_is_there
from agent.options import Options, parse
from agent.wireguard import keys as wireguard_keys
from clustermesh import logs
from clustermesh.errors import ClusterMeshError, Invalid, Refused, first_of, sentence
from clustermesh.standalone import context as contexts


def main() -> None:
    """Until it is told to stop. Exit codes: 0 stopped, 1 failed, 2 wrong usage or input."""
    options = parse()
    error: BaseException | None = None
    logs.set_up(options.log_format, "agent")
    try:
        asyncio.run(_until_stopped(options))
    except* (ClusterMeshError, OSError) as group:
        error = first_of(group)
    if error is not None:
        print(f"error: {sentence(error)}", file=sys.stderr)
        sys.exit(2 if isinstance(error, Invalid) else 1)


async def _until_stopped(options: Options) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    agent = asyncio.create_task(run(options))
    stopped = asyncio.create_task(stop.wait())
    await asyncio.wait({agent, stopped}, return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if not agent.done():
        agent.cancel()
    with suppress(asyncio.CancelledError):
        await agent


async def run(options: Options) -> None:
    """Run the agent until cancelled. Raises Refused or Unavailable where this node cannot run one at all."""
    _check_cluster(options)
    with api.alone(options.run_dir, options.state_dir), api.alone_in_network():
        private_key = wireguard_keys.load_or_create(options.state_dir / "wireguard.key")
        features = _check_features(options)
        with api.alone_over(options.pins):
            async with _opened(options, _loads_by_bcc(options.loader, features)) as opening:
                from agent.work import work

                keep_what_is_there()
                await work(options, private_key, features, opening)


def _check_cluster(options: Options) -> None:
    """What is wrong there is said before anything is made. It is read again beside the rest that takes its time."""
    if options.cluster_name is None:
        contexts.load(options.context)
    else:
        from agent.own_cluster import own_cluster

        own_cluster(options)


def _check_features(options: Options) -> list[Feature]:
    """What this kernel has, found out by trying."""
    ensure_bpffs(options.bpffs)
    return check_needed(_with_loader(options.loader, probe(options.bpffs)))


def _with_loader(loader: str, features: list[Feature]) -> list[Feature]:
    """BCC needs no libbpf."""
    return [each._replace(needed=each.needed and (each.name != "libbpf" or loader == "libbpf")) for each in features]


def check_needed(features: list[Feature]) -> list[Feature]:
    """Refused, with what to do, where something is missing without which there is no datapath."""
    lacking = [each for each in features if each.needed and not each.present]
    if first := [each for each in lacking if each.name == "bpf"]:
        lacking = first  # without it nothing else was tried
    if lacking:
        raise Refused("; ".join(f"{each.sentence} ({each.remedy})" for each in lacking))
    return features


def _loads_by_bcc(loader: str, features: list[Feature]) -> bool:
    if loader != "auto":
        return loader == "bcc"
    try:
        find_object()
    except Refused:
        return True
    return not all(each.present for each in features if each.name == "libbpf")


@asynccontextmanager
async def _opened(options: Options, by_bcc: bool) -> AsyncIterator[asyncio.Task[Datapath]]:
    """Being opened in a thread, and let go of after the block.

    The kernel verifies the programs, and nobody holds the interpreter's lock: meanwhile the rest of the agent is
    imported, and what was kept is restored.
    """
    sizes = by_option(
        options.bpf_lb_map_max,
        options.bpf_lb_affinity_map_max,
        options.bpf_sock_rev_map_max,
        options.bpf_ct_global_tcp_max,
    )
    cache = options.bcc_cache if by_bcc else None
    memory = int(options.bpf_map_dynamic_size_ratio * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    opening = asyncio.create_task(asyncio.to_thread(Datapath.open, None, options.pins, sizes, memory, cache))
    await asyncio.sleep(0)  # the thread begins
    try:
        yield opening
    finally:
        with suppress(Exception):  # it failed: the block knows, or ended before that mattered
            (await opening).close()
