"""inventory: reserves all goods of an order, or refuses it; and takes deliveries in.

Look at `reserve`: it may be killed at any line. What it read and put is committed together with the fact that it returns, or not at all,
so no piece is ever reserved twice or lost. `ArticleUnknown` is an order that cannot be handled: its customer waits, everybody else goes on.
"""

from __future__ import annotations

import asyncio
from collections import Counter

from contracts import ArticleListed, GoodsDelivered, OrderRouted, StockRefused, StockReserved
from everlog import App, Delivery, Retry, Tx
from sidefile import note
from world import opening_stock

WAREHOUSE_S = 0.02


class ArticleUnknown(Exception):
    """The catalogue does not have it (yet): catalogue and orders are two topics, and no order is promised between topics."""


inventory = App(
    "inventory", delivery=Delivery(start="beginning", on_error={ArticleUnknown: Retry(attempts=5, first_s=0.2, most_s=1.0)})
)
departments = inventory.state("departments/1", str)  # key: sku
stock = inventory.state("stock/1", int)  # key: branch and sku; a shelf that nobody has touched has no row


async def look_up(tx: Tx, branch: str, sku: str) -> tuple[str, int]:
    """Return an article's department, and how many a branch has of it."""
    department = await tx.get(departments, sku)
    if department is None:
        raise ArticleUnknown(f"article {sku} is not in the catalogue")
    left = await tx.get(stock, (branch, sku))
    return department, opening_stock(branch, sku, department) if left is None else left


@inventory.on(ArticleListed)
async def list_article(fact: ArticleListed, tx: Tx) -> None:
    tx.put(departments, fact.sku, fact.department)


@inventory.on(GoodsDelivered)
async def take_in(fact: GoodsDelivered, tx: Tx) -> None:
    _, left = await look_up(tx, fact.branch, fact.sku)
    tx.put(stock, (fact.branch, fact.sku), left + fact.quantity)


@inventory.on(OrderRouted)
async def reserve(fact: OrderRouted, tx: Tx) -> StockReserved | StockRefused:
    note(fact.order.id)  # for the demo, which counts what a kill interrupts
    await asyncio.sleep(WAREHOUSE_S)  # a call to the warehouse, say: 64 of them wait at once
    wanted: Counter[str] = Counter()
    shelves: dict[str, tuple[str, int]] = {}
    for line in fact.order.lines:
        wanted[line.sku] += line.quantity
        shelves[line.sku] = await look_up(tx, fact.branch, line.sku)
    missing = tuple(line for line in fact.order.lines if shelves[line.sku][1] < wanted[line.sku])
    if missing:
        return StockRefused(fact.customer_id, fact.order, fact.branch, missing)
    for sku, (_, left) in shelves.items():
        tx.put(stock, (fact.branch, sku), left - wanted[sku])
    return StockReserved(fact.customer_id, fact.order, fact.branch)
