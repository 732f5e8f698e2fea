"""What a process that runs apps itself shows of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from everlog.observe.endpoint import Endpoint
from everlog.observe.health import Vitals
from everlog.observe.meters import Meters


@asynccontextmanager
async def serving(host: str, port: int, meters: Meters, vitals: Vitals) -> AsyncGenerator[Endpoint]:
    """Serve metrics and health, until the end of the block.

    Raises:
        StartRefused: As `Endpoint`.
    """
    endpoint = Endpoint(host, port, meters.snapshot, vitals.health)
    turning = asyncio.create_task(vitals.turn())
    try:
        yield endpoint
    finally:
        turning.cancel()
        endpoint.close()
