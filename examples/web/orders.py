"""The facts about an order. One topic, so that what happened to a customer's orders is read in the order in which it happened."""

from everlog import Event, Topic

orders = Topic("web.orders", key="customer")


@orders.event("web.order_placed/1")
class OrderPlaced(Event):
    customer: str
    order: str
    item: str
    pieces: int


@orders.event("web.order_cleared/1")
class OrderCleared(Event):
    customer: str
    order: str
    item: str
    pieces: int


@orders.event("web.order_suspected/1")
class OrderSuspected(Event):
    customer: str
    order: str
    reason: str


@orders.event("web.stock_reserved/1")
class StockReserved(Event):
    customer: str
    order: str
    left: int


@orders.event("web.stock_refused/1")
class StockRefused(Event):
    customer: str
    order: str
    left: int
