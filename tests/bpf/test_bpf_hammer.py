"""10,000 random changes of services while programs choose from them, sockets connect, packets are sent and the maps are
read.

Every answer is held against what the services were at that moment, as a log of the changes says it: who answers is, or
was during the question, a backend of this very service, and nobody is refused where somebody was there all the time.

    this process     planner, reconciler ──> maps <── choose.bpf.c by test runs    a process
                     log of all changes           <── connect() to the services    a process, in its namespace
                                                  <── packets from a pod to them   a process
                                                  <── the maps, entry by entry     a process
"""

from __future__ import annotations

import errno
import mmap
import os
import random
import socket
import struct
import tempfile
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from itertools import count
from pathlib import Path
from struct import Struct
from typing import NamedTuple

import pytest
from bpf_choice import REJECT, TRANSLATED, Chooser
from bpf_flows import TCP, UDP, Packet
from bpf_flows import read as flow
from bpf_maps import set_factors, write
from bpf_node import Node
from bpf_run import fork, program_test_run
from bpf_services import NEXT

from agent.bpf.layouts import BackendValue, Number, PodSource, ServiceKey, pack, unpack
from agent.bpf.syscalls import map_lookup
from agent.bpf.walk import groups_behind
from agent.eviction.copies import cookie_of
from agent.eviction.meaning import meaning_of
from agent.targets.maps import CHUNK, MapTarget
from clustermesh.address import Address, from_int, parse, to_int
from clustermesh.mesh.resolve import Backends, Frontend, Group, ServiceEntry
from clustermesh.model import Algorithm, BackendState, Protocol

pytestmark = pytest.mark.root

UPDATES = {"libbpf": 10_000, "bcc": 2_000}
SERVICES, CLUSTERS = 16, 3
POD = "10.1.0.5"
PORT = 8080
REFUSED, MISSING = 0, 1  # no addresses of backends
RECORD = Struct(
    "=QQHI"
)  # from and until when it was asked, of which service, the backend's IPv4 address or one of these


class Version(NamedTuple):
    """What a service was since `begin`: its backends, those of them whose clusters are not out, whether its clients
    stay with theirs, and whether there was such a service at all."""

    begin: int
    backends: frozenset[int] = frozenset()
    chosen: frozenset[int] = frozenset()
    has_affinity: bool = False
    is_there: bool = False


class State:
    """The services of this moment, as the planner is told them."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.entries: dict[int, ServiceEntry] = {}
        self.factors: dict[int, float] = {}

    def change(self) -> list[int]:
        """Change something; which services that concerns."""
        if self.rng.random() < 0.02:
            self.factors = {c: self.rng.choice((0.0, 0.3, 1.0)) for c in range(1, CLUSTERS) if self.rng.random() < 0.5}
            return [*self.entries]
        number = self.rng.randrange(SERVICES)
        if number in self.entries and self.rng.random() < 0.1:
            del self.entries[number]
        else:
            self.entries[number] = self._entry(number)
        return [number]

    def _entry(self, number: int) -> ServiceEntry:
        most, groups, resting = self.rng.choice((1, 2, 2, 4, 4, 20)), [], []
        for cluster in range(1, CLUSTERS + 1):
            if self.rng.random() < 0.6:
                groups.append(self._group(number, cluster, most, BackendState.ACTIVE))
            if self.rng.random() < 0.3:
                state = self.rng.choice((BackendState.QUARANTINED, BackendState.MAINTENANCE, BackendState.TERMINATING))
                resting.append(self._group(number, cluster, most, state))
        used = {address for group in groups for each in group.alike for address in each.addresses}
        return ServiceEntry(
            frontend(number),
            tuple(groups),
            affinity_seconds=self.rng.choice((0, 0, 60)),
            algorithm=Algorithm.MAGLEV if self.rng.random() < 0.1 else Algorithm.RANDOM,
            resting=tuple(group for group in resting if not used & {*group.alike[0].addresses}),
        )

    def _group(self, number: int, cluster: int, most: int, state: BackendState) -> Group:
        hosts = sorted(self.rng.sample(range(1, 64), self.rng.randint(1, most)))
        addresses = tuple(backend(number, cluster, host) for host in hosts)
        return Group(cluster, self.rng.randint(1, 9) * len(hosts), (Backends(addresses, PORT, state),))

    def version(self, number: int, begin: int) -> Version:
        entry = self.entries.get(number)
        if entry is None:
            return Version(begin)
        chosen = [group for group in entry.groups if self.factors.get(group.cluster_id, 1.0) > 0]
        sets = (frozenset(numbers_of(groups)) for groups in (entry.groups, chosen))
        return Version(begin, *sets, bool(entry.affinity_seconds), is_there=True)


_ports = [count(1024) for _ in range(SERVICES)]  # of calls, each of its own


def numbers_of(groups: Iterable[Group]) -> Iterator[int]:
    return (to_int(address) & 0xFFFFFFFF for group in groups for address in group.alike[0].addresses)


def frontend(number: int) -> Frontend:
    return Frontend(parse(f"10.96.1.{number}"), 80, Protocol.TCP if number % 2 else Protocol.UDP)


def backend(number: int, cluster: int, host: int) -> Address:
    """Of one service alone, and of the loopback device's."""
    return parse(f"127.{number + 1}.{cluster}.{host}")


def is_certain(version: Version) -> bool:
    """Whether somebody is there for everybody. A service with affinity keeps its number, so while its groups change
    their order the slots of one may for a moment be all of a cluster that is out."""
    return bool(version.chosen) and (not version.has_affinity or version.chosen == version.backends)


class Log:
    """What each service was when: a version is there from the beginning of the change that made it to the end of the
    one that replaced it."""

    def __init__(self) -> None:
        self.updates = 0
        self.factors: dict[int, float] = {}  # as they were last written
        self._versions = {number: [Version(0)] for number in range(SERVICES)}
        self._begins = {number: [0] for number in range(SERVICES)}
        self._ends = {number: list[int]() for number in range(SERVICES)}

    def note(self, number: int, version: Version, end: int) -> None:
        self._versions[number].append(version)
        self._begins[number].append(version.begin)
        self._ends[number].append(end)

    def latest(self, number: int) -> Version:
        return self._versions[number][-1]

    def fault(self, since: int, until: int, number: int, answer: int, reading: bool) -> str:
        """What is wrong with an answer, "" for nothing."""
        first, last = bisect_left(self._ends[number], since), bisect_right(self._begins[number], until)
        known = self._versions[number][first:last]
        if answer == REFUSED:
            return f"service {number} was refused" if all(map(is_certain, known)) else ""
        if answer == MISSING:
            return f"service {number} was missing" if all(version.is_there for version in known) else ""
        if any(answer in (version.backends if reading else version.chosen) for version in known):
            return ""
        return f"service {number} was answered by 127.{answer >> 16 & 255}.{answer >> 8 & 255}.{answer & 255}"


class Hammer:
    """A process that asks again and again, until `stop` is set, and writes down what it was answered."""

    def __init__(self, once: Callable[..., None], chooser: Chooser, seed: int, stop: mmap.mmap) -> None:
        self.once, self._chooser, self._seed, self._stop = once, chooser, seed, stop
        self._answers = tempfile.TemporaryFile()  # noqa: SIM115  # the process writes, and this one reads later
        self.pid = 0

    def start(self) -> None:
        """In the network namespace of whoever calls."""
        self.pid = fork(self._ask)

    def _ask(self) -> None:
        os.nice(10)
        rng, listening = random.Random(self._seed), socket.socket()
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if self.once is connect:
            listening.bind(("", PORT))
            listening.listen(64)
        with self._answers as answers:
            while not self._stop[0]:
                self.once(self._chooser, rng, answers.write, listening)

    def answers(self) -> Iterator[tuple[int, int, int, int]]:
        """Once it has stopped."""
        _, status = os.waitpid(self.pid, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        with self._answers:
            self._answers.seek(0)
            yield from RECORD.iter_unpack(self._answers.read())


def choose(chooser: Chooser, rng: random.Random, write: Callable[[bytes], object], _: socket.socket) -> None:
    number = rng.randrange(SERVICES)
    at = frontend(number)
    key = pack(ServiceKey(at.address, at.port, 6 if at.protocol is Protocol.TCP else 17))
    client = from_int(rng.randrange(1, 4))
    packet = bytes(14) + key + struct.pack("=I16sI", rng.getrandbits(32), client, 0) + bytes(30)
    since = time.monotonic_ns()
    result = program_test_run(chooser.program, packet)
    until = time.monotonic_ns()
    if result.verdict == TRANSLATED:
        write(RECORD.pack(since, until, number, int.from_bytes(result.data[26:30], "big")))
    else:
        write(RECORD.pack(since, until, number, REFUSED if result.verdict == REJECT else MISSING))


def connect(chooser: Chooser, rng: random.Random, write: Callable[[bytes], object], listening: socket.socket) -> None:
    """What is no service at the moment is not reached at all: there is no such address in the namespace."""
    number = rng.randrange(SERVICES)
    at = frontend(number)
    kind = socket.SOCK_STREAM if at.protocol is Protocol.TCP else socket.SOCK_DGRAM
    with closing(socket.socket(socket.AF_INET, kind)) as client:
        client.settimeout(5)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        since = time.monotonic_ns()
        try:
            client.connect((f"10.96.1.{number}", 80))
        except ConnectionRefusedError:
            write(RECORD.pack(since, time.monotonic_ns(), number, REFUSED))
            return
        except OSError as error:
            if error.errno == errno.ENETUNREACH:
                write(RECORD.pack(since, time.monotonic_ns(), number, MISSING))
            return
        until = time.monotonic_ns()
        if kind == socket.SOCK_STREAM:
            listening.accept()[0].close()
        meant = meaning_of(chooser.datapath.maps["lb_meant"], cookie_of(client))
        assert meant is not None
        write(RECORD.pack(since, until, number, to_int(meant.backend) & 0xFFFFFFFF))


def send(chooser: Chooser, rng: random.Random, write: Callable[[bytes], object], _: socket.socket) -> None:
    """A packet that opens a connection, as a pod's whose sockets are not ours. What comes back of one that is not
    served is the refusal."""
    number = rng.randrange(SERVICES)
    at, port = frontend(number), next(_ports[number])
    protocol, target = (TCP if at.protocol is Protocol.TCP else UDP), f"10.96.1.{number}"
    frame = Packet(POD, port, target, at.port, protocol).frame()
    since = time.monotonic_ns()
    result = program_test_run(chooser.datapath.program_fd("from_pod"), frame, 1)
    until = time.monotonic_ns()
    if result.verdict != NEXT:
        write(RECORD.pack(since, until, number, REFUSED))
    elif (found := flow(result.data)).destination == target:
        write(RECORD.pack(since, until, number, MISSING))
    else:
        assert (found.source, found.source_port, found.destination_port) == (POD, port, PORT)
        write(RECORD.pack(since, until, number, to_int(parse(found.destination)) & 0xFFFFFFFF))


def read(chooser: Chooser, rng: random.Random, write: Callable[[bytes], object], _: socket.socket) -> None:
    """What is there, as far as it is: half of what is being written may be missing but the service itself, nothing may
    be another's."""
    number = rng.randrange(SERVICES)
    at = frontend(number)
    maps = chooser.datapath.maps
    key = pack(ServiceKey(at.address, at.port, 6 if at.protocol is Protocol.TCP else 17))
    since = time.monotonic_ns()
    if (head := map_lookup(maps["lb_services"], key, 20)) is None:
        write(RECORD.pack(since, time.monotonic_ns(), number, MISSING))
        return
    groups, slots = (lambda k: map_lookup(maps["lb_groups"], k, 96)), (lambda k: map_lookup(maps["lb_slots"], k, 64))
    for _, numbers in list(groups_behind(head, groups, slots)):
        for each in numbers:
            value = map_lookup(maps["lb_backends"], each, 28)
            if value is not None and unpack(BackendValue, value).cluster_id:
                found = unpack(BackendValue, value)
                write(RECORD.pack(since, time.monotonic_ns(), number, to_int(found.address) & 0xFFFFFFFF))


async def update(chooser: Chooser, state: State, log: Log) -> None:
    begin, concerned = time.monotonic_ns(), state.change()
    if state.factors != log.factors:
        await set_factors(chooser.datapath, state.factors)
        log.factors = state.factors
    size = state.rng.choice((1, CHUNK))  # entry by entry there are as many moments in between as there can be
    shared_from = state.rng.choice((2, CHUNK))  # by two threads, or by one
    for tracker in chooser.trackers:
        assert isinstance(tracker.target, MapTarget)
        tracker.target.chunk = size
        tracker.target.shared_from = shared_from
    for number in concerned:
        entry = state.entries.get(number)
        chooser.planner.update(("n", str(number)), [] if entry is None else [entry])
    await chooser.reconciler.flush()
    end = time.monotonic_ns()
    log.updates += 1
    for number in concerned:
        log.note(number, state.version(number, begin), end)


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """That of `make soak`, else always the same. No example of Hypothesis: what others did at the same time is not done
    again with it, so it is no use to run it again, over maps that are full by then."""
    return int(request.config.getoption("--hypothesis-seed", None) or 0)


@pytest.mark.hypothesis
@pytest.mark.both_loaders
async def test_no_answer_is_wrong_during_10000_random_changes(
    chooser: Chooser, cgroup: Path, node: Node, seed: int
) -> None:
    chooser.datapath.attach_sockets(cgroup)
    chooser.datapath.program_fd("from_pod")  # loaded here, once
    await write(chooser.datapath, "pod_sources", {Number(1): PodSource(parse(POD))})
    state, log, stop = State(random.Random(seed)), Log(), mmap.mmap(-1, 1)
    hammers = [Hammer(once, chooser, seed + 1, stop) for once in (choose, connect, send, read)]
    for hammer in hammers:
        node.call(hammer.start)
    try:
        while log.updates < UPDATES[chooser.datapath.loader]:
            await update(chooser, state, log)
    finally:
        stop[0] = 1
    for hammer in hammers:
        faults, answers = [], 0
        for answer in hammer.answers():
            answers += 1
            if fault := log.fault(*answer, hammer.once is read):
                faults.append(fault)
        assert faults == [], f"{len(faults)} of {answers} answers to {hammer.once.__name__}(), seed {seed}"
        assert answers > 100
