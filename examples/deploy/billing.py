"""What is deployed here: an app that bills orders."""

from everlog import App, Event, Topic

orders = Topic("shop.orders", key="customer", partitions=4)
bills = Topic("shop.bills", key="customer", partitions=4)


@orders.event("shop.order_placed/1")
class OrderPlaced(Event):
    order: str
    customer: str
    cents: int


@bills.event("shop.billed/1")
class Billed(Event):
    order: str
    customer: str
    cents: int


billing = App("billing")


@billing.on(OrderPlaced)
async def bill(order: OrderPlaced) -> Billed:
    return Billed(order.order, order.customer, order.cents)
