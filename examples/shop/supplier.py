"""supplier: sends to a branch what it had to refuse. It keeps nothing.

Look at what is missing here: nobody calls the supplier. It heard of a refusal and says what it did; inventory heard that.
"""

from __future__ import annotations

from contracts import GoodsDelivered, StockRefused
from everlog import App, Delivery

CASE = 12

supplier = App("supplier", delivery=Delivery(start="beginning"))


@supplier.on(StockRefused)
async def deliver(fact: StockRefused) -> list[GoodsDelivered]:
    return [GoodsDelivered(fact.branch, line.sku, max(CASE, 2 * line.quantity)) for line in fact.missing]
