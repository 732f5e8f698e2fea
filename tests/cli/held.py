"""A store with held and skipped events in it, as workers that have gone left it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from uuid import uuid4

from everlog.clock import SystemClock
from everlog.position import Offset
from everlog.record import StoredRecord
from everlog.settings import Settings, open_store
from everlog.store import AppSpec, Cause, Hold, Skip, Slot, SubscriptionSpec, Unit

APP = "billing"
PLACED, RETURNED = "shop.order_placed/1", "shop.order_returned/1"
STEERING = "ev\x1b[31mil\n\u202e\x9bkey"
"""A key that a terminal would obey."""


def record(offset: int, key: str, *, type_name: str = PLACED, data: bytes = b'{"order":"1"}') -> StoredRecord:
    """Return a record as a log would give it."""
    return StoredRecord(
        topic="shop.orders", partition=0, offset=Offset(offset), id=f"id-{offset}", type=type_name, data=data, key=key,
        source="test", time_us=offset, logged_at_us=offset + 1, headers={}, schema=1, producer="p", sequence=offset,
    )  # fmt: skip


def failed(
    offset: int, key: str, *, error: str = "RuntimeError: no money", type_name: str = PLACED, cause: Cause = Cause.FAILED
) -> Hold:
    """Return the copy of a record that is parked."""
    return Hold(key, record(offset, key, type_name=type_name), cause, 2, error, "Traceback …\n  a line", None)


def behind(offset: int, key: str) -> Hold:
    """Return the copy of a record that waits behind another one."""
    return Hold(key, record(offset, key), Cause.BEHIND, 0, "", "", None)


def leave_behind(holds: Sequence[Hold], skips: Sequence[Skip] = (), *, subscription: str = APP) -> None:
    """Make the store of the app in the current folder, or add to it."""

    async def fill() -> None:
        store = await open_store(Settings(), APP, clock=SystemClock())
        try:
            names = [APP] if subscription == APP else [APP, subscription]
            specs = [SubscriptionSpec(name, {"shop.orders": [PLACED, RETURNED]}, []) for name in names]
            await store.register(AppSpec(APP, specs), log=uuid4())
            joined = await store.join({subscription: [PLACED, RETURNED]}, alive_s=60)
            slot = Slot(subscription, 0)
            lease = await store.acquire(slot)
            assert lease is not None
            unit = Unit(slot, None, joined.version_base + 1, holds=holds, skips=skips)
            await store.commit([unit], [lease], [])
            await store.leave()
        finally:
            await store.aclose()

    asyncio.run(fill())


def requests() -> int:
    """Return how many requests are filed in the store."""

    async def count() -> int:
        store = await open_store(Settings(), APP, clock=SystemClock())
        try:
            return len(await store.requests([Slot(APP, number) for number in range(4)]))
        finally:
            await store.aclose()

    return asyncio.run(count())
