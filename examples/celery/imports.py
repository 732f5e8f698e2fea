"""What the tasks find out, and a service that reacts to it. It knows nothing of Celery."""

from everlog import App, Event, Topic

imports = Topic("erp.imports", key="customer")


@imports.event("erp.order_imported/1")
class OrderImported(Event):
    customer: str
    order: int


ledger = App("ledger")


@ledger.on(OrderImported)
async def book(fact: OrderImported) -> None:
    print(f"booked order {fact.order} of {fact.customer}", flush=True)
