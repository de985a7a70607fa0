"""What of every peer is to stand in the cache: a fold over what its reader tells. Pure.

Rules
- A value is copied as it came. What an agent would not use of it is not copied: entries that the authority refuses, and
  a service without the backends that are not its cluster's (then encoded anew). Agents decide again for themselves.
- What was found in the cache at the start stands until its peer was listed: what it no longer has goes then, on the
  proof that agents ask for too, and what is refused by then.
- Nothing is decided before it can be: who holds an address is known once the own nodes are, and the peer's are listed.
- A cluster that is evicted (its id changed, its configuration is none that may be used) loses its canaries, its entries
  and its configuration; one that is merely away keeps everything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, Set
from typing import Any, Final

from clustermesh.address import Prefix
from clustermesh.mesh.state import MeshState
from clustermesh.mesh.view import KINDS as JUDGED
from clustermesh.mirror.copies import KINDS, cache_key, canary_key, copied_config, copied_kinds
from clustermesh.model import ClusterConfig
from clustermesh.wire import keys
from clustermesh.wire import service as wire_service
from clustermesh.wire.kinds import ENDPOINTS, NODES, SERVICES

CONFIGS: Final = "cluster-config"
CANARIES: Final = "canaries"

_AT_ADDRESSES: Final = frozenset({NODES, ENDPOINTS, SERVICES})
_AS_IT_WAS: Final = object()

Want = Callable[[str, bytes, bytes | None], None]
"""Section, key, and the value it is to have or None."""


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
        self._own, self._want = own, want
        self._values: dict[str, dict[str, dict[Any, bytes]]] = {}  # by cluster, kind and name
        self._listed: dict[str, set[str]] = {}
        self._undecided: dict[str, dict[tuple[str, Any], None]] = {}
        self._own_is_known = False

    @property
    def clusters(self) -> Set[str]:
        """Those of which something is held."""
        return self._values.keys() | self.configs.keys()

    # -- what a reader tells -------------------------------------------------------------------------------------------

    def put(self, cluster: str, kind: str, name: Any, value: Any, _revision: int) -> None:
        if cluster == self._own:
            self.state.put(cluster, kind, name, value)
            return
        self._table(cluster, kind)[name] = value.value
        if kind in JUDGED:
            self.state.put(cluster, kind, name, value.entry)
        self._judge(cluster, kind, name)

    def remove(self, cluster: str, kind: str, name: Any, _revision: int) -> None:
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

    def listed(self, cluster: str, kind: str) -> None:
        self.state.listed(cluster, kind)
        self._listed.setdefault(cluster, set()).add(kind)
        self.on_listed()

    def drain(self, cluster: str, kinds: Sequence[str] = JUDGED) -> None:
        """The cluster is evicted; or it was disconnected, and its copies stay for a while."""
        if kinds == JUDGED:
            self.state.drain(cluster)
            self._listed.pop(cluster, None)
        if self.is_connected(cluster):
            self.forget(cluster)
            if (config := self.config_of(cluster)) is not None:  # another id, with which it is read from now on
                self.configure(cluster, config)

    def names(self, cluster: str, kind: str) -> Set[Any]:
        if kind == "short":  # its reader says when it has listed these
            return self.state.names(cluster, kind) | (set(KINDS) - self._listed.get(cluster, set()))
        if kind in KINDS and cluster != self._own:
            return self._values.get(cluster, {}).get(kind, {}).keys()
        return self.state.names(cluster, kind)

    # -- what is known of clusters otherwise ---------------------------------------------------------------------------

    def found(self, cluster: str, kind: str, name: Any, value: bytes) -> None:
        """The cache has had this since before this process."""
        self._table(cluster, kind)[name] = value
        self._want(kind, cache_key(cluster, kind, name), value)

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
        self._listed.setdefault(cluster, set()).update(set(KINDS) - set(copied_kinds(config)))

    def retract(self, cluster: str) -> None:
        """The cluster was disconnected: its agents learn that first."""
        if self.configs.pop(cluster, None) is not None:
            self._want(CONFIGS, keys.cluster_config_key(cluster), None)

    def forget(self, cluster: str) -> None:
        """Nothing of the cluster stands any more: what says that it is complete goes first."""
        self.retract(cluster)
        self._listed.pop(cluster, None)
        self._undecided.pop(cluster, None)
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
            return wire_service.encode(state.service(cluster, name))
        return None if name in refused or isinstance(name, Prefix) else value  # CIDRs come with their nodes

    def _drop(self, cluster: str, kind: str, name: Any) -> None:
        if self._values.get(cluster, {}).get(kind, {}).pop(name, None) is not None:
            self._want(kind, cache_key(cluster, kind, name), None)

    def _table(self, cluster: str, kind: str) -> dict[Any, bytes]:
        return self._values.setdefault(cluster, {}).setdefault(kind, {})
