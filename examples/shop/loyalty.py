"""loyalty: points for customers, a whole one for each dollar of an order. It joins when the shop has long been open.

Look at `start="beginning"`: the log has kept everything, so a service that is written today knows every order since the first.
"""

from __future__ import annotations

from contracts import StockReserved
from everlog import App, Delivery, Tx

CENTS_PER_POINT = 100

loyalty = App("loyalty", delivery=Delivery(start="beginning"))
points = loyalty.state("points/1", int)  # key: customer


@loyalty.on(StockReserved)
async def reward(fact: StockReserved, tx: Tx) -> None:
    tx.add(points, fact.customer_id, fact.order.total_cents // CENTS_PER_POINT)
