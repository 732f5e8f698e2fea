"""Two services that decide on an order. Neither knows the other one, nor that a browser is looking on."""

from everlog import App, Tx
from orders import OrderCleared, OrderPlaced, OrderSuspected, StockRefused, StockReserved

MOST_PIECES = 50
ON_STOCK_AT_FIRST = 100

risk = App("risk")
stock = App("stock")
left_of = stock.state("left/1", int)


@risk.on(OrderPlaced)
async def screen(order: OrderPlaced) -> OrderCleared | OrderSuspected:
    if order.pieces > MOST_PIECES:
        return OrderSuspected(order.customer, order.order, f"{order.pieces} pieces at once")
    return OrderCleared(order.customer, order.order, order.item, order.pieces)


@stock.on(OrderCleared)
async def reserve(order: OrderCleared, tx: Tx) -> StockReserved | StockRefused:
    left = await tx.get(left_of, order.item, ON_STOCK_AT_FIRST)
    if left < order.pieces:
        return StockRefused(order.customer, order.order, left)
    tx.put(left_of, order.item, left - order.pieces)
    return StockReserved(order.customer, order.order, left - order.pieces)
