"""All that the services of the shop know of each other: the facts, and the topics that hold them.

No service imports another one. Who wants to know something reads here in which topic it is said, and writes a handler for it.
Every fact about an order has its customer as key, so one customer's orders stay in order through the whole shop.
"""

from __future__ import annotations

from datetime import date, datetime
from typing import Annotated

import msgspec

from everlog import Event, Topic

catalogue = Topic("shop.catalogue", key="sku")
orders = Topic("shop.orders", key="customer_id")
screening = Topic("shop.screening", key="customer_id")
routes = Topic("shop.routes", key="customer_id")
reservations = Topic("shop.reservations", key="customer_id")
deliveries = Topic("shop.deliveries", key="branch")
forecasts = Topic("shop.forecasts", key="branch")


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


@reservations.event("shop.stock_refused/1")
class StockRefused(Event):
    customer_id: str
    order: Order
    branch: str
    missing: tuple[Line, ...]


@deliveries.event("shop.goods_delivered/1")
class GoodsDelivered(Event):
    branch: str
    sku: str
    quantity: int


class ForecastScore(msgspec.Struct, frozen=True):
    """How wrong forecasts were, over all branches and finished days: sums, so that an error of 40 % is `missed` / `orders` = 0.4."""

    orders: int = 0
    missed: float = 0.0
    """By how many orders the forecasts missed, in all."""
    missed_naively: float = 0.0
    """By how many the guess missed that a day is like the day before."""


@forecasts.event("shop.branch_forecast/1")
class BranchForecast(Event):
    """A branch's day has begun."""

    branch: str
    day: date
    expected: float
    """Orders on this day, from the days before it alone."""
    naive: int
    """Orders on the day before."""
    score: ForecastScore
    """Of all branches and days that had ended by then."""
