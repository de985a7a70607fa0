"""The service map. Entries of one service refer to each other, so they are written and deleted in an order."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from agent.bpf.layouts import ServiceKey, ServiceValue
from agent.bpf.loader import Datapath
from agent.targets.maps import MapTarget


class ServiceMapTarget(MapTarget[ServiceKey, ServiceValue]):
    """lb4_services: slot 0 says how many slots there are, so it is written after them and deleted before them."""

    def __init__(self, datapath: Datapath) -> None:
        name = "lb4_services"
        super().__init__(name, datapath.maps[name], ServiceKey, ServiceValue)

    async def upsert(self, entries: Mapping[ServiceKey, ServiceValue]) -> None:
        await super().upsert(dict(sorted(entries.items(), key=lambda entry: entry[0].slot == 0)))

    async def delete(self, keys: Collection[ServiceKey]) -> None:
        await super().delete(sorted(keys, key=lambda key: key.slot != 0))
