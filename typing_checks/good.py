"""Typed code as users write it: both type checkers accept every line, and infer what the `assert_type` lines say."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import assert_type

import httpx
import msgspec
from pydantic import BaseModel

import everlog
from everlog import App, Client, Delivery, Event, Record, Retry, Settings, State, Topic, Tx
from everlog.errors import PoisonAt

# ---- contracts: all that services share ----

orders = Topic("shop.orders", key="customer_id")
reservations = Topic("shop.reservations", key="order_id", partitions=4, keep_s=86_400.0)
readings = Topic("shop.readings", key=None)
prices = Topic("shop.prices", key="sku", keep_bytes=500_000_000, keep_newest=True)


class Line(msgspec.Struct, frozen=True):
    sku: str
    quantity: int


@orders.event("shop.order_placed/1")
class OrderPlaced(Event):
    order_id: str
    customer_id: str
    branch: str
    lines: tuple[Line, ...]


@orders.event("shop.order_cancelled/1")
class OrderCancelled(Event):
    order_id: str
    customer_id: str
    reason: str | None = None


@reservations.event("shop.stock_reserved/1")
class StockReserved(Event):
    order_id: str


@reservations.event("shop.stock_refused/1")
class StockRefused(Event):
    order_id: str
    missing: tuple[str, ...] = msgspec.field(default_factory=tuple[str, ...])


@readings.event("shop.measured/1")
class Measured(BaseModel):
    sensor: str
    celsius: float


# ---- inventory: state, and events as results ----

inventory = App("inventory")
stock = inventory.state("stock/1", int)
assert_type(stock, State[int])


@inventory.on(OrderPlaced)
async def reserve(order: OrderPlaced, tx: Tx) -> StockReserved | StockRefused:
    short = [x.sku for x in order.lines if await tx.get(stock, (order.branch, x.sku), 0) < x.quantity]
    if short:
        return StockRefused(order.order_id, tuple(short))
    for x in order.lines:
        tx.add(stock, (order.branch, x.sku), -x.quantity)
    return StockReserved(order.order_id)


def shown(count: int | None) -> str:
    return "nothing" if count is None else str(count)


@inventory.on(Measured)
async def note_down(reading: Measured, tx: Tx) -> None:
    assert_type(reading.celsius, float)
    tx.publish(Measured(sensor="mirror", celsius=reading.celsius))


@inventory.on(OrderCancelled)
async def give_back(order: OrderCancelled, tx: Tx) -> Sequence[StockReserved]:
    assert_type(await tx.get(stock, order.order_id), int | None)
    assert_type(await tx.get(stock, order.order_id, 0), int)
    print(shown(await tx.get(stock, order.order_id)))
    async for key, quantity in tx.scan(stock, (order.order_id,)):
        assert_type(quantity, int)
        tx.put(stock, key, quantity + 1)
    tx.delete(stock, order.order_id)
    tx.publish(StockRefused(order.order_id, missing=("apple",)), headers={"tenant": "north"})
    return [StockReserved(order.order_id)]


# ---- notify: a client with a lifespan, its own retries ----


@asynccontextmanager
async def mailer() -> AsyncGenerator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url="https://mail.example") as http:
        yield http


notify = App(
    "notify",
    lifespan=mailer,
    delivery=Delivery(start="now", on_error={httpx.TransportError: Retry(attempts=20), ValueError: "park"}),
)


@notify.on(StockReserved, StockRefused)
async def tell(fact: StockReserved | StockRefused, tx: Tx[httpx.AsyncClient]) -> None:
    assert_type(tx.resources, httpx.AsyncClient)
    await tx.resources.post("/send", json={"order": fact.order_id}, headers={"Idempotency-Key": tx.idempotency_key})


# ---- other forms of a handler ----

emails = notify.subscription("emails", delivery=Delivery(start=datetime(2026, 1, 1, tzinfo=UTC), concurrency=8, time_limit_s=5))
sent = emails.state("sent/1", str)


@emails.on(OrderPlaced)
async def without_tx(order: OrderPlaced) -> None:
    print(order.branch)


@emails.on(OrderCancelled)
async def with_resources(order: OrderCancelled, tx: Tx[httpx.AsyncClient]) -> None:
    tx.put(sent, order.order_id, "cancelled")
    print([record.offset for record in tx.records])


@emails.on(StockReserved)
def plain(fact: StockReserved, tx: Tx[httpx.AsyncClient]) -> StockRefused | None:
    tx.put(sent, fact.order_id, "reserved")
    return None if fact.order_id else StockRefused(fact.order_id)


# ---- batches ----

warehouse = App("warehouse")
counts = warehouse.state("counts/1", int)


@warehouse.on_batch(OrderPlaced)
async def load(orders: list[OrderPlaced], tx: Tx) -> Sequence[StockReserved]:
    assert_type(await tx.get(counts, "orders", 0), int)
    tx.add(counts, "orders", len(orders))
    for record in tx.records:
        tx.publish(StockReserved(record.id), cause=record)
    return [StockReserved(order.order_id) for order in orders]


@warehouse.on_batch(StockReserved, StockRefused, most=500, wait_s=0.5)
def load_plain(facts: list[StockReserved | StockRefused]) -> None:
    for index, fact in enumerate(facts):
        if not fact.order_id:
            raise PoisonAt(index)


@warehouse.on_batch(OrderCancelled, most=10)
def load_with_tx(orders: list[OrderCancelled], tx: Tx) -> None:
    tx.add(counts, "cancelled", len(orders))


# ---- a client ----


async def publish_and_follow() -> None:
    async with inventory.connect(Settings(log_url="memory:", lease_s=2)) as client:
        assert_type(client, Client)
        await client.publish(OrderPlaced("1", "c", "b", (Line("apple", 1),)), idempotency_key="basket 7", timeout_s=2)
        async for record in client.follow(OrderPlaced, start="beginning"):
            assert_type(record, Record[OrderPlaced])
            assert_type(record.event.lines, tuple[Line, ...])
            break


async def test_a_handler_stays_a_plain_function(tx: Tx) -> None:
    """A decorator returns what it was given, so that a test calls it with the types it was declared with."""
    order = OrderPlaced("1", "c", "b", (Line("apple", 1),))
    assert_type(await reserve(order, tx), StockReserved | StockRefused)
    assert_type(await load([order], tx), Sequence[StockReserved])
    assert_type(load_plain([StockReserved("1"), StockRefused("1")]), None)


# ---- a script ----


def script() -> None:
    with everlog.blocking(inventory) as client:
        print(client.publish(StockReserved("1"), idempotency_key="basket 8").ids)
        for record in client.follow(OrderPlaced, OrderCancelled, start="beginning", timeout_s=1.0):
            assert_type(record, Record[OrderPlaced | OrderCancelled])
