"""From a frontend's entry to its backends, as the programs go: its groups, their slots, the backends' numbers. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from agent.bpf.layouts import (
    GROUPS_PER_BLOCK,
    SLOTS_PER_BLOCK,
    GroupsKey,
    LbGroup,
    Number,
    ServiceValue,
    SlotsKey,
    packer,
    unpack,
)

Lookup = Callable[[bytes], bytes | None]
_NUMBER, _GROUP, _GROUPS_KEY, _SLOTS_KEY = map(packer, (Number, LbGroup, GroupsKey, SlotsKey))
_NUMBER_SIZE, _GROUP_SIZE = len(_NUMBER(0)), len(_GROUP(0, 0, 0, 0))


def groups_behind(head: bytes, groups: Lookup, slots: Lookup) -> Iterator[tuple[LbGroup, list[bytes]]]:
    """Each group of the service whose value is `head`, with the keys of its backends; what is missing is left out."""
    service = unpack(ServiceValue, head)
    number = service.service_id
    for index in range(service.groups):
        if (block := groups(_GROUPS_KEY(number, index // GROUPS_PER_BLOCK))) is None:
            continue
        at = index % GROUPS_PER_BLOCK * _GROUP_SIZE
        group, ids = unpack(LbGroup, block[at : at + _GROUP_SIZE]), b""
        for each in range(-(-group.slots // SLOTS_PER_BLOCK)):
            ids += slots(_SLOTS_KEY(number, index, each)) or b""
        end = min(group.slots * _NUMBER_SIZE, len(ids))  # the last block may be filled up with one of them
        yield group, [ids[at : at + _NUMBER_SIZE] for at in range(0, end, _NUMBER_SIZE)]
