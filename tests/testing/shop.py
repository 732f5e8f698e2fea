"""The shop of the README, small: what the tests of the test kit test."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import msgspec

from everlog import App, Delivery, Event, Retry, Topic, Tx

orders = Topic("shop.orders", key="customer_id")
reservations = Topic("shop.reservations", key="order_id")
visits = Topic("shop.visits", key=None)


class Line(msgspec.Struct, frozen=True):
    sku: str
    quantity: int


@orders.event("shop.order_placed/1")
class OrderPlaced(Event):
    order_id: str
    customer_id: str
    branch: str
    lines: tuple[Line, ...]


@orders.event("shop.goods_delivered/1")
class GoodsDelivered(Event):
    customer_id: str
    branch: str
    sku: str
    quantity: int


@reservations.event("shop.stock_reserved/1")
class StockReserved(Event):
    order_id: str


@reservations.event("shop.stock_refused/1")
class StockRefused(Event):
    order_id: str
    missing: tuple[str, ...]


@visits.event("shop.visited/1")
class Visited(Event):
    page: str


inventory = App("inventory")
stock = inventory.state("stock/1", int)


@inventory.on(OrderPlaced)
async def reserve(order: OrderPlaced, tx: Tx) -> StockReserved | StockRefused:
    short = [x.sku for x in order.lines if await tx.get(stock, (order.branch, x.sku), 0) < x.quantity]
    if short:
        return StockRefused(order.order_id, tuple(short))
    for x in order.lines:
        tx.add(stock, (order.branch, x.sku), -x.quantity)
    return StockReserved(order.order_id)


@inventory.on(GoodsDelivered)
def take_in(fact: GoodsDelivered, tx: Tx) -> None:
    tx.add(stock, (fact.branch, fact.sku), fact.quantity)


class MailDown(Exception):
    pass


class PostOffice:
    """Sends mails, if it is up, and remembers who asked."""

    def __init__(self) -> None:
        self.is_up = True
        self.sent: list[tuple[str, str]] = []
        self.calls = 0

    def send(self, key: str, text: str) -> None:
        self.calls += 1
        if not self.is_up:
            raise MailDown(f"no answer to {text!r}")
        self.sent.append((key, text))


@asynccontextmanager
async def no_post_office() -> AsyncGenerator[PostOffice]:
    if not TYPE_CHECKING:
        raise AssertionError("a test gives its own")
    yield PostOffice()


notify = App(
    "notify", lifespan=no_post_office, delivery=Delivery(on_error={MailDown: Retry(attempts=20, first_s=10, most_s=600)})
)


@notify.on(StockReserved, StockRefused)
async def tell(fact: StockReserved | StockRefused, tx: Tx[PostOffice]) -> None:
    tx.resources.send(tx.idempotency_key, f"{type(fact).__name__} {fact.order_id}")


counting = App("counting")
counts = counting.state("counts/1", int)


@counting.on_batch(Visited, most=10)
async def count(visited: list[Visited], tx: Tx) -> None:
    for one in visited:
        tx.add(counts, one.page, 1)


ledger = App("ledger")


@ledger.on(StockReserved, StockRefused)
async def write_down(fact: StockReserved | StockRefused, tx: Tx) -> Sequence[Visited]:
    await tx.sql("CREATE TABLE IF NOT EXISTS facts (id TEXT PRIMARY KEY, name TEXT) STRICT")
    await tx.sql("INSERT INTO facts VALUES (?, ?)", fact.order_id, type(fact).__name__)
    ((number,),) = await tx.sql("SELECT count(*) FROM facts")
    return [Visited(f"fact {number}")]


def order(number: str, *, customer: str = "c", sku: str = "apple", quantity: int = 1) -> OrderPlaced:
    return OrderPlaced(number, customer, "b", (Line(sku, quantity),))


def delivery(quantity: int, sku: str = "apple") -> GoodsDelivered:
    return GoodsDelivered("supplier", "b", sku, quantity)
