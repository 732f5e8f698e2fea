"""The events of all benchmarks: typed, about 200 bytes of JSON, ordered by customer."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Final

import msgspec

from everlog import App, Event, Settings, Topic

CUSTOMERS: Final = 10_000
_FIRST: Final = datetime(2026, 1, 1, tzinfo=UTC)

orders = Topic("bench.orders", key="customer_id", partitions=8)
totals = Topic("bench.totals", key="customer_id", partitions=8)
publisher = App("publisher")


@orders.event("bench.order_placed/1")
class OrderPlaced(Event):
    order_id: str
    customer_id: str
    store_id: int
    sku: str
    quantity: int
    total_cents: int
    placed_at: Annotated[datetime, msgspec.Meta(tz=True)]
    channel: str


@totals.event("bench.order_totalled/1")
class OrderTotalled(Event):
    customer_id: str
    order_id: str
    sku: str
    channel: str
    placed_at: Annotated[datetime, msgspec.Meta(tz=True)]
    total_cents: int
    quantity: int


def totalled(order: OrderPlaced, total_cents: int) -> OrderTotalled:
    """Return what follows from an order, about as large."""
    return OrderTotalled(
        order.customer_id, order.order_id, order.sku, order.channel, order.placed_at, total_cents, order.quantity
    )


def order_events(count: int) -> list[OrderPlaced]:
    """Return different events, the same in every run."""
    dice = random.Random(count)
    return [
        OrderPlaced(
            order_id=f"order-{number:010d}",
            customer_id=f"customer-{dice.randrange(CUSTOMERS):06d}",
            store_id=number % 50,
            sku=f"sku-{number % 977:08d}",
            quantity=number % 9 + 1,
            total_cents=number * 7 % 10_000,
            placed_at=_FIRST + timedelta(seconds=number),
            channel="web-and-mobile",
        )
        for number in range(count)
    ]


def settings_in(folder: Path) -> Settings:
    """Return settings for a log and stores in a folder, whatever the environment says."""
    return Settings(log_url=f"sqlite:{folder}/log.db", store_url=f"sqlite:{folder}/{{app}}.db")
