"""What a cluster's reader hears, and what its brain wants done. Data only; `brain` has the rules."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any, Final, TypeAlias

from msgspec import Struct

from clustermesh.mesh.authority import Limits
from clustermesh.model import MAX_CLUSTERS, ClusterConfig
from clustermesh.store.follower import Changed, Interrupted, Listed
from clustermesh.store.operations import Digest, DigestOf, Renewals

SILENCE: Final = 120.0  # seconds; a writer beats every 60 (wire format of the heartbeat key)
SETTLE: Final = 30.0
AUDIT: Final = 600.0
AUDIT_SHARE: Final = 20.0  # seconds of the audit's that each cluster takes, where many are read from one etcd


class Terms(Struct, frozen=True, kw_only=True):
    """How a cluster is read. `max_clusters` is ours: a cluster's identities are numbered as we number them.

    Its writer is taken for dead after `silence` seconds without a beat, and to have written what it has once it has
    been beating for `settle` seconds. What was heard of it is compared with what it has every `audit` seconds, or a
    little sooner. Its services are withdrawn after `cache_ttl` seconds without an answer of its etcd, 0 for never
    (Cilium's option clustermesh-cache-ttl).
    """

    max_clusters: int = MAX_CLUSTERS
    limits: Limits = Limits()
    silence: float = SILENCE
    settle: float = SETTLE
    audit: float = AUDIT
    cache_ttl: float = 0.0


# -- what is heard ----------------------------------------------------------------------------------------------------


class Restored(Struct, frozen=True):
    """What was known of the cluster was read from disk."""

    config: ClusterConfig


class Connected(Struct, frozen=True):
    """An attempt begins."""


class Configured(Struct, frozen=True):
    """The configuration, None where there is none; `objection` says why it may not be used here."""

    config: ClusterConfig | None
    objection: str = ""


class Unread(Struct, frozen=True):
    """The configuration could not be read."""

    error: str


class Heard(Struct, frozen=True):
    """One item, or a part of it, of what is followed under `prefix`."""

    prefix: bytes
    item: Listed | Changed | Interrupted


class Attested(Struct, frozen=True):
    """Those of the keys asked for that are there, at `revision` or later, and when each was `created`, a revision, too.
    None of them where that cannot be read. At those of the deletions that are `ends`, a lease may have ended. The
    `renewals` are those of the leases that were asked for."""

    created: Mapping[bytes, int] | None
    revision: int = 0
    ends: Set[int] = frozenset()
    renewals: Renewals = Renewals()


class Audited(Struct, frozen=True):
    """The digest that was wanted of each prefix; None where that cannot be read."""

    digests: Mapping[bytes, Digest] | None


class Tick(Struct, frozen=True):
    """Time has passed; wanted when `due` says."""


class Broken(Struct, frozen=True):
    """The attempt has ended by itself."""

    error: str


class Removed(Struct, frozen=True):
    """The operator took the cluster out."""


Event: TypeAlias = Restored | Connected | Configured | Unread | Heard | Attested | Audited | Tick | Broken | Removed


# -- what is to be done -----------------------------------------------------------------------------------------------


class Ask(Struct, frozen=True):
    """Read the configuration; Configured or Unread is the answer."""


class Follow(Struct, frozen=True):
    """Follow everything under `prefix` from a list on, instead of what was followed there before.

    Lists are told whole. With `live` there is one after each cut, so that every change is heard as it happens.
    """

    prefix: bytes
    live: bool = False


class Attest(Struct, frozen=True):
    """Read since when `keys` are there, and at which of the `deletions`, revisions with one key each, a lease may have
    ended that is not `living`, and when `leases` were renewed; Attested is the answer."""

    keys: tuple[bytes, ...]
    deletions: Mapping[int, bytes] = {}
    living: int = 0
    leases: Set[int] = frozenset()


class Audit(Struct, frozen=True):
    """Read these digests; Audited is the answer."""

    wanted: tuple[DigestOf, ...]


class Put(Struct, frozen=True, gc=False):
    """The cluster has `value` at `name`, since `revision` where that is not 0."""

    kind: str
    name: Any
    value: Any
    revision: int


class Remove(Struct, frozen=True, gc=False):
    """The cluster has nothing at `name` any more."""

    kind: str
    name: Any
    revision: int


class Refuse(Struct, frozen=True):
    """`what` is not taken in, `why` says for which reason."""

    what: str
    why: str


class Accept(Struct, frozen=True):
    """`what` is refused no more."""

    what: str


class Unnamed(Struct, frozen=True):
    """So many keys of the table `kind` are refused beside those that were told one by one."""

    kind: str
    number: int


class Relisting(Struct, frozen=True):
    """All that the cluster has of `kind` is about to be put, or, `whole`, was put. Of a table that is short."""

    kind: str
    whole: bool


class Drain(Struct, frozen=True):
    """Forget all that is known of the cluster."""


class Withdraw(Struct, frozen=True):
    """Forget what is known of `kind`, for a while."""

    kind: str


class Again(Struct, frozen=True):
    """End this attempt and begin another after so many seconds, or a little less."""

    after: float


Command: TypeAlias = (
    Ask | Follow | Attest | Audit | Put | Remove | Refuse | Accept | Unnamed | Relisting | Drain | Withdraw | Again
)
