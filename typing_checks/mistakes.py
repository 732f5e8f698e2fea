"""Mistakes that users make. Each marked line is reported by both type checkers, and no other line is. Never run."""

from __future__ import annotations

import httpx

import everlog
from everlog import App, Client, Delivery, Event, Retry, Settings, Topic, Tx
from everlog.errors import PoisonAt
from typing_checks.good import (
    Line,
    Measured,
    OrderCancelled,
    OrderPlaced,
    StockRefused,
    StockReserved,
    load,
    load_plain,
    notify,
    stock,
)

# ---- declarations ----

keyless = Topic("shop.keyless")  # must be reported: say what the key is, even when it is `None`
twelve = Topic("shop.twelve", key="order_id", partitions="12")  # must be reported
week = Topic("shop.week", key="order_id", keep_s="7d")  # must be reported
later = Delivery(start="later")  # must be reported
many = Retry(attempts="many")  # must be reported
ignored = Delivery(on_error={OSError: "ignore"})  # must be reported
settings = Settings(log="memory:")  # must be reported: it is `log_url`


@keyless.event  # must be reported: the type on the wire is missing
class Nameless(Event):
    order_id: str


# ---- events ----

without_lines = OrderPlaced("1", "c", "b")  # must be reported
number_for_text = StockReserved(1)  # must be reported
list_for_tuple = StockRefused("1", ["apple"])  # must be reported
unknown_field = StockReserved(order="1")  # must be reported


def change(order: OrderPlaced) -> None:
    order.order_id = "2"  # must be reported: what happened does not change


# ---- handlers ----

app = App("app")


@app.on(OrderPlaced)  # must be reported: the handler takes another type
async def another_type(fact: StockReserved, tx: Tx) -> None: ...


@app.on(StockReserved, StockRefused)  # must be reported: the handler takes only one of them
async def only_one(fact: StockReserved) -> None: ...


@app.on(OrderPlaced)  # must be reported: the event comes first
async def wrong_order(tx: Tx, order: OrderPlaced) -> None: ...


@app.on(OrderPlaced)  # must be reported: only events are results
async def result_is_text(order: OrderPlaced) -> str:
    return order.order_id


@app.on(OrderPlaced)  # must be reported: this app has no lifespan that yields a client
async def other_resources(order: OrderPlaced, tx: Tx[httpx.AsyncClient]) -> None: ...


@app.on(OrderPlaced)  # must be reported: the handler takes another type, and being plain does not change that
def another_type_plain(fact: StockReserved, tx: Tx) -> None: ...


@app.on(OrderPlaced)  # must be reported: only events are results
def plain_result_is_text(order: OrderPlaced) -> str:
    return order.order_id


@app.on_batch(OrderPlaced)  # must be reported: a batch is a list
async def no_list(order: OrderPlaced) -> None: ...


@app.on_batch(OrderPlaced)  # must be reported: the list is of another type
async def another_list(facts: list[StockReserved], tx: Tx) -> None: ...


@app.on_batch(StockReserved, StockRefused)  # must be reported: the list has events of both types
def list_of_one(facts: list[StockReserved]) -> None: ...


@app.on(OrderPlaced)  # must be reported: one event is no list
async def list_of_events(orders: list[OrderPlaced]) -> None: ...


@app.on_batch(OrderPlaced)  # must be reported: only events are results
async def batch_result_is_a_number(orders: list[OrderPlaced]) -> int:
    return len(orders)


@app.on_batch(OrderPlaced, most="10")  # must be reported
async def size_is_text(orders: list[OrderPlaced]) -> None: ...


@app.on_batch(OrderPlaced, wait=1.0)  # must be reported: it is `wait_s`
async def no_unit(orders: list[OrderPlaced]) -> None: ...


@app.on_batch(OrderPlaced, 10)  # must be reported: sizes are named
async def size_without_a_name(orders: list[OrderPlaced]) -> None: ...


async def call_handlers(tx: Tx) -> None:
    await load_plain([])  # must be reported: a plain function is not awaited
    await load([StockReserved("1")], tx)  # must be reported: of another type
    raise PoisonAt("1")  # must be reported: the place in the batch


@notify.on(OrderCancelled)
async def inside(order: OrderCancelled, tx: Tx[httpx.AsyncClient]) -> None:
    print(order.order_number)  # must be reported
    tx.resources.send("/send", to=order.customer_id)  # must be reported
    tx.put(stock, order.order_id, "many")  # must be reported: the state holds numbers
    tx.add(stock, order.order_id, "1")  # must be reported
    tx.put(order.order_id, stock, 1)  # must be reported: the state comes first
    tx.put("stock/1", order.order_id, 1)  # must be reported: a state, not its name
    tx.put(stock, 1.5, 1)  # must be reported: a float is no key
    quantity: str = await tx.get(stock, order.order_id, 0)  # must be reported
    print(await tx.get(stock, order.order_id) + 1, quantity)  # must be reported: nothing may be stored there
    print(tx.get(stock, order.order_id, 0) + 1)  # must be reported: reads are awaited


@app.on(Measured)
async def wrong_model_field(reading: Measured) -> None:
    print(reading.fahrenheit)  # must be reported
    print(Measured(sensor="a", celsius=None))  # must be reported


# ---- a client ----


async def follow(client: Client) -> None:
    await client.publish(OrderPlaced)  # must be reported: the class, not an event
    await client.publish("order placed")  # must be reported
    await client.publish(StockReserved("1"), OrderPlaced("1", "c", "b", (Line("apple", "1"),)))  # must be reported
    async for _ in client.follow(OrderPlaced, start="tomorrow"):  # must be reported
        break
    async for record in client.follow(OrderPlaced):
        print(record.event.line)  # must be reported: it is `lines`
        print(record.payload)  # must be reported: it is `event`


def script() -> None:
    with everlog.blocking("inventory") as client:  # must be reported: the app, not its name
        client.publish("order placed")  # must be reported
    for record in everlog.blocking(app).follow(OrderPlaced):
        print(record.event.line)  # must be reported: it is `lines`
