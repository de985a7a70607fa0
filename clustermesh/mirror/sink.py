"""What of every peer is to stand in the cache: a fold over what its reader tells. Pure.

Rules
- A value is copied as it came. What an agent would not use of it is not copied: entries that the authority refuses, and
  a service without the backends that are not its cluster's (then encoded anew). Agents decide again for themselves.
- What was found in the cache at the start stands until its peer was listed: what it no longer has goes then, on the
  proof that agents ask for too, and what is refused by then.
- Of two nodes that want the same the one that stands in the cache stood first: who reads the cache anew, or takes it
  over from another mirror, decides as was decided before.
- Of what is judged the bytes are held, and of its meaning what judging takes.
- Nothing is decided before it can be: who holds an address is known once the own nodes are, and the peer's are listed.
- A cluster that is evicted (its id changed, its configuration is none that may be used) loses its canaries, its entries
  and its configuration; one that is merely away keeps everything, or where that is wished for all but its services and
  what belongs to them: agents still believe what they hear of it, for its canaries stand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from contextlib import suppress
from typing import Any, Final

from clustermesh.address import Prefix
from clustermesh.errors import Invalid
from clustermesh.mesh.authority import Limits
from clustermesh.mesh.brain import OF_SERVICES
from clustermesh.mesh.state import MeshState
from clustermesh.mesh.view import KINDS as JUDGED
from clustermesh.mirror.copies import (
    KINDS,
    Copy,
    cache_key,
    canary_key,
    copied_config,
    copied_kinds,
    outline,
    with_backends,
)
from clustermesh.mirror.weight import Weights
from clustermesh.model import Cluster, ClusterConfig, Stamp
from clustermesh.wire import RESOURCES, cluster_config, keys
from clustermesh.wire.kinds import ENDPOINTS, NODES, SERVICES, STAMPS

CONFIGS: Final = "cluster-config"
CANARIES: Final = "canaries"

_AT_ADDRESSES: Final = frozenset({NODES, ENDPOINTS, SERVICES})
_AS_IT_WAS: Final = object()
_USUAL: Final = Limits()

Want = Callable[[str, bytes, bytes | None], None]
"""Section, key, and the value it is to have or None."""
Seat = tuple[str, str, bytes | None]
"""Cluster, name of a node, and the value that the cache has of it, or None."""


class MirrorSink:
    """A `clustermesh.mesh.reader.Sink`. `own` is the own cluster's name: of that only what others must not take is put.

    `want` is told what the cache is to hold. `settle` decides again on what rests on something that moved.
    """

    def __init__(self, own: str, want: Want) -> None:
        self.state = MeshState(own)
        self.configs: dict[str, bytes] = {}
        self.on_listed: Callable[[], None] = lambda: None  # more may be complete than before
        self.is_connected: Callable[[str], bool] = lambda _cluster: True
        self.config_of: Callable[[str], ClusterConfig | None] = lambda _cluster: None  # with which it is read now
        self.limits_of: Callable[[str], Limits] = lambda _cluster: _USUAL
        self.on_change: Callable[[str, bytes, int], None] = lambda *_: None  # a service's, at a revision of its etcd
        self.on_stamps: Callable[[dict[bytes, Stamp], int], None] = lambda *_: None  # and when such were made
        self._own, self._want = own, want
        self._values: dict[str, dict[str, dict[Any, bytes]]] = {}  # by cluster, kind and name
        self._listed: dict[str, set[str]] = {}
        self._doubted: dict[str, set[str]] = {}  # kinds to be listed anew, for what was found after they were
        self._weights: dict[str, Weights] = {}
        self._undecided: dict[str, dict[tuple[str, Any], None]] = {}
        self._own_is_known = False

    @property
    def clusters(self) -> Set[str]:
        """Those of which something is held."""
        return self._values.keys() | self.configs.keys()

    # -- what a reader tells -------------------------------------------------------------------------------------------

    def put(self, cluster: str, kind: str, name: Any, value: Any, revision: int) -> None:
        if cluster == self._own:
            self.state.put(cluster, kind, name, value)
            return
        if revision and kind in (SERVICES, STAMPS):
            self._note_times(cluster, kind, name, value, revision)
        if kind == STAMPS:
            return
        table = self._table(cluster, kind)
        if not self._weigh(cluster, kind, name, table.get(name), value.value):
            self._leave_out(cluster, kind, name)
            return
        taken = self._put_outline(cluster, kind, name, value) if kind in JUDGED else value.value
        if taken is not value.value:
            self._weigh(cluster, kind, name, value.value, taken)
        if taken is None:
            self._leave_out(cluster, kind, name)
            return
        table[name] = taken
        self._judge(cluster, kind, name)

    def _leave_out(self, cluster: str, kind: str, name: Any) -> None:
        """There is no room for what it is now, and what it was is no more."""
        view = self.state.views.get(cluster) if kind in JUDGED else None
        if view is not None and name in view.table(kind):  # what it has dropped itself it is to remember
            self.state.remove(cluster, kind, name)
        if self._table(cluster, kind).pop(name, None) is not None:
            self._want(kind, cache_key(cluster, kind, name), None)

    def _note_times(self, cluster: str, kind: str, name: Any, value: Any, revision: int) -> None:
        if kind == SERVICES:
            self.on_change(cluster, cache_key(cluster, SERVICES, name), revision)
        else:
            self.on_stamps({cache_key(cluster, SERVICES, of): stamp for of, stamp in value.items()}, revision)

    def remove(self, cluster: str, kind: str, name: Any, _revision: int) -> None:
        if kind == STAMPS:
            return
        if kind in JUDGED:
            self.state.remove(cluster, kind, name)
        if cluster != self._own:
            self._drop(cluster, kind, name)

    def refuse(self, cluster: str, what: str, why: str) -> None:
        self.state.refuse(cluster, what, why)

    def accept(self, cluster: str, what: str) -> None:
        self.state.accept(cluster, what)

    def count_unnamed(self, cluster: str, kind: str, number: int) -> None:
        self.state.count_unnamed(cluster, kind, number)

    def listed(self, cluster: str, kind: str, *, whole: bool = True) -> None:
        if kind == STAMPS:
            return
        if not whole:
            self.state.listed(cluster, kind, whole=False)
            if cluster != self._own:
                self._weight(cluster).begin_list(kind)
            return
        self._doubted.get(cluster, set()).discard(kind)
        self._listed.setdefault(cluster, set()).add(kind)
        self.on_listed()

    def drain(self, cluster: str, kinds: Sequence[str] = JUDGED) -> None:
        """The cluster is evicted, or its services (`kinds`) are withdrawn; or it was disconnected, and its copies stay
        for a while."""
        if kinds != JUDGED:
            if self.is_connected(cluster):
                self._withdraw_services(cluster)
            return
        self.state.drain(cluster)
        self._listed.pop(cluster, None)
        if self.is_connected(cluster):
            self.forget(cluster)
            if (config := self.config_of(cluster)) is not None:  # another id, with which it is read from now on
                self.configure(cluster, config)

    def names(self, cluster: str, kind: str) -> Set[Any]:
        if kind == "short":  # its reader says when it has listed these
            listed, doubted = self._listed.get(cluster, set()), self._doubted.get(cluster, set())
            return self.state.names(cluster, kind) | self._short(cluster) | doubted | (set(KINDS) - listed)
        if kind == "dropped":
            return self.state.names(cluster, kind) | self._left_out(cluster)
        if kind == STAMPS:
            return frozenset()
        if kind in KINDS and cluster != self._own:
            return self._values.get(cluster, {}).get(kind, {}).keys()
        return self.state.names(cluster, kind)

    # -- what is known of clusters otherwise ---------------------------------------------------------------------------

    def found(self, cluster: str, kind: str, name: Any, value: bytes) -> None:
        """The cache has this, from somebody before us: it stands, and its cluster is asked whether it has it."""
        table = self._table(cluster, kind)
        if name in table:  # it is known, and stands or not
            return
        self._weight(cluster).found(kind, value)
        table[name] = value
        self._doubted.setdefault(cluster, set()).add(kind)
        self._want(kind, cache_key(cluster, kind, name), value)

    def seat(self, nodes: Iterable[Seat]) -> None:
        """Nodes of which the cache has something else than is wanted: what stands there comes first."""
        nodes = list(nodes)
        for cluster, name, _ in nodes:
            self.state.remove(cluster, NODES, name)
        for cluster, name, value in nodes:
            self._put_node(cluster, name, value)
        for cluster, name, _ in nodes:
            self._put_node(cluster, name, self._values.get(cluster, {}).get(NODES, {}).get(name))

    def know_own(self) -> None:
        """The own cluster's nodes are known, or are waited for no longer."""
        self._own_is_known = True
        self.state.admit_peers()

    def found_config(self, cluster: str, value: bytes) -> None:
        self.configs[cluster] = value
        self._want(CONFIGS, keys.cluster_config_key(cluster), value)

    def found_canary(self, cluster: str, key: bytes, value: bytes) -> None:
        """It stands: nothing is missing that its readers have."""
        self._want(CANARIES, key, value)

    def configure(self, cluster: str, config: ClusterConfig) -> None:
        """An attempt begins to read `cluster`, which may be read with `config`."""
        self.found_config(cluster, copied_config(config))
        absent = set(KINDS) - set(copied_kinds(config))
        self._listed.setdefault(cluster, set()).update(absent)
        for kind in absent:
            for name in list(self._values.get(cluster, {}).get(kind, ())):
                self._drop(cluster, kind, name)

    def retract(self, cluster: str) -> None:
        """The cluster was disconnected: its agents learn that first."""
        if self.configs.pop(cluster, None) is not None:
            self._want(CONFIGS, keys.cluster_config_key(cluster), None)

    def forget(self, cluster: str) -> None:
        """Nothing of the cluster stands any more: what says that it is complete goes first."""
        self.retract(cluster)
        for each in (self._listed, self._undecided, self._doubted, self._weights):
            each.pop(cluster, None)
        for kind in KINDS:
            self._want(CANARIES, canary_key(cluster, kind), None)
        for kind, table in self._values.pop(cluster, {}).items():
            for name in table:
                self._want(kind, cache_key(cluster, kind, name), None)

    def complete(self, cluster: str) -> Set[str]:
        """The kinds of which all is wanted that the cluster has, known since this process began."""
        listed = self._listed.get(cluster, set())
        decided = self._may_decide(cluster) and cluster not in self._undecided and not self.state.is_behind
        return listed if decided else listed - _AT_ADDRESSES

    def counts(self, cluster: str) -> dict[str, int]:
        """How many entries of each kind the cluster has, used or not."""
        return {kind: len(table) for kind, table in self._values.get(cluster, {}).items()}

    def weight(self, cluster: str) -> int:
        """What all that takes, of what it may."""
        return self._weights[cluster].size if cluster in self._weights else 0

    # -- what stands ---------------------------------------------------------------------------------------------------

    def settle(self) -> Iterator[None]:
        """Decide on what waited to be, and again on what rests on a node that came, went or moved: one in a turn."""
        state = self.state
        while state.judge():  # nodes, one turn's worth
            yield
        for cluster, name in state.take_nodes():
            self._judge_again(cluster, NODES, name)
            yield
        for kind, taken in ((ENDPOINTS, state.take_addresses()), (SERVICES, state.take_services())):
            for entry in taken:
                for cluster in state.rule(entry):
                    self._judge_again(cluster, kind, entry)
                yield
        for cluster in [each for each in self._undecided if self._may_decide(each)]:
            for kind, name in self._undecided.pop(cluster):
                self._judge_again(cluster, kind, name)
                yield

    def _judge_again(self, cluster: str, kind: str, name: Any) -> None:
        if name in self._values.get(cluster, {}).get(kind, ()) and self.is_connected(cluster):
            self._judge(cluster, kind, name)

    def _judge(self, cluster: str, kind: str, name: Any) -> None:
        value = self._values[cluster][kind][name]
        if kind in _AT_ADDRESSES and not self._may_decide(cluster):
            self._undecided.setdefault(cluster, {})[kind, name] = None
            return
        if kind in JUDGED:
            stands = self._stands(cluster, kind, name, value)
            if stands is _AS_IT_WAS:
                return
            value = stands  # type: ignore[assignment]
        self._want(kind, cache_key(cluster, kind, name), value)

    def _may_decide(self, cluster: str) -> bool:
        return self._own_is_known and NODES in self._listed.get(cluster, ())

    def _stands(self, cluster: str, kind: str, name: Any, value: bytes) -> bytes | object | None:
        """The bytes that are to stand, None for none."""
        state, refused = self.state, self.state.refusals(cluster).of(kind)
        if (held := state.views[cluster].table(kind).get(name)) is None:  # there is no room for it
            return None
        if kind == NODES:
            node = state.node(cluster, name)
            return None if node is None else value if node is held else _AS_IT_WAS
        if kind == SERVICES and name in refused:
            return with_backends(value, state.service(cluster, name))
        return None if name in refused or isinstance(name, Prefix) else value  # CIDRs come with their nodes

    def _withdraw_services(self, cluster: str) -> None:
        for kind in OF_SERVICES:
            for name in list(self._values.get(cluster, {}).get(kind, ())):
                self.remove(cluster, kind, name, 0)

    def _drop(self, cluster: str, kind: str, name: Any) -> None:
        value = self._values.get(cluster, {}).get(kind, {}).pop(name, None)
        if cluster in self._weights:
            self._weigh(cluster, kind, name, value, None)
        if value is not None:
            self._want(kind, cache_key(cluster, kind, name), None)

    def _table(self, cluster: str, kind: str) -> dict[Any, bytes]:
        return self._values.setdefault(cluster, {}).setdefault(kind, {})

    def _put_outline(self, cluster: str, kind: str, name: Any, value: Copy) -> bytes | None:
        """As much of it as there is room for, None for nothing."""
        sketch = outline(kind, value.entry)
        self.state.put(cluster, kind, name, sketch)
        held = self.state.views[cluster].table(kind).get(name)
        return None if held is None else value.value if held == sketch else with_backends(value.value, held)

    def _put_node(self, cluster: str, name: str, value: bytes | None) -> None:
        if value is None or (config := self.configs.get(cluster)) is None:
            return
        with suppress(Invalid):  # what its cluster says now counts
            owner = Cluster(name=cluster, id=cluster_config.decode(config).id)
            node = RESOURCES[NODES].decode(cache_key(cluster, NODES, name), value, owner)
            self.state.put(cluster, NODES, name, node)

    def _weight(self, cluster: str) -> Weights:
        if cluster not in self._weights:
            self.state.count_unnamed(cluster, "", 0)  # it is known from now on: there is where to say what is refused
            self._weights[cluster] = Weights(lambda: self.state.refusals(cluster))
        return self._weights[cluster]

    def _left_out(self, cluster: str) -> Set[str]:
        return self._weights[cluster].kinds_dropped if cluster in self._weights else frozenset()

    def _short(self, cluster: str) -> Set[str]:
        return self._weights[cluster].short if cluster in self._weights else frozenset()

    def _weigh(self, cluster: str, kind: str, name: Any, before: bytes | None, value: bytes | None) -> bool:
        return self._weight(cluster).take(kind, name, before, value, self.limits_of(cluster))
