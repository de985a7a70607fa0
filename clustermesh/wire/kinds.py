"""What every kind of data is called, here and everywhere: tables, sections of the ledger, metrics, status.

`entries.RESOURCES` says of each where it is and how it is decoded.
"""

from __future__ import annotations

from typing import Final

NODES: Final = "nodes"
IDENTITIES: Final = "identities"
ENDPOINTS: Final = "endpoints"
SERVICES: Final = "services"
SERVICE_EXPORTS: Final = "service_exports"
ENDPOINT_SLICES: Final = "endpoint_slices"
LOCAL_SERVICES: Final = "local_services"
STAMPS: Final = "stamps"
