"""All that the services of the shop know of each other: the facts, and the topics that hold them.

No service imports another one. Who wants to know something reads here in which topic it is said, and writes a handler for it.
Every fact about an order has its customer as key, so one customer's orders stay in order through the whole shop.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import msgspec

from everlog import Event, Topic

catalogue = Topic("shop.catalogue", key="sku")
orders = Topic("shop.orders", key="customer_id")
screening = Topic("shop.screening", key="customer_id")
routes = Topic("shop.routes", key="customer_id")
reservations = Topic("shop.reservations", key="customer_id")
deliveries = Topic("shop.deliveries", key="branch")


class Line(msgspec.Struct, frozen=True):
    sku: str
    quantity: int
    """In pieces; in thousandths where goods are not sold by piece."""
    total_cents: int


class Order(msgspec.Struct, frozen=True):
    """What the customer wants. Later facts carry it along, so that nobody has to ask another service for it."""

    id: str
    store_id: str
    placed_at: Annotated[datetime, msgspec.Meta(tz=True)]
    lines: tuple[Line, ...]

    @property
    def total_cents(self) -> int:
        return sum(line.total_cents for line in self.lines)


@catalogue.event("shop.article_listed/1")
class ArticleListed(Event):
    sku: str
    department: str
    category: str
    brand: str


@orders.event("shop.order_placed/1")
class OrderPlaced(Event):
    customer_id: str
    order: Order


@screening.event("shop.order_cleared/1")
class OrderCleared(Event):
    customer_id: str
    order: Order


@screening.event("shop.order_suspected/1")
class OrderSuspected(Event):
    customer_id: str
    order: Order
    reason: str


@routes.event("shop.order_routed/1")
class OrderRouted(Event):
    customer_id: str
    order: Order
    branch: str
    distance_km: int


@reservations.event("shop.stock_reserved/1")
class StockReserved(Event):
    customer_id: str
    order: Order
    branch: str
    departments: dict[str, int]
    """How many lines of the order are of each department."""


@reservations.event("shop.stock_refused/1")
class StockRefused(Event):
    customer_id: str
    order: Order
    branch: str
    departments: dict[str, int]
    missing: tuple[Line, ...]


@deliveries.event("shop.goods_delivered/1")
class GoodsDelivered(Event):
    branch: str
    sku: str
    quantity: int
