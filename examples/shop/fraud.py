"""fraud: clears an order, or suspects it.

Look at `screen`: it reads what the shop has learned of the customer, judges, learns, and returns one of two facts. The state and the
fact are committed together, so a crash between the two cannot happen. `suspicion` and `learn` are plain functions: no I/O, easy to test.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from math import sqrt

import msgspec

from contracts import Order, OrderCleared, OrderPlaced, OrderSuspected
from everlog import App, Delivery, Tx

WINDOW = timedelta(minutes=10)
MOST_IN_WINDOW = 3
FEWEST_TO_JUDGE = 5
DEVIATIONS = 6
SMALL_CENTS = 100_00


class Habits(msgspec.Struct, frozen=True):
    """What is known of a customer's orders: mean and variance by Welford's method, which needs no history, and the latest times."""

    count: int = 0
    mean_cents: float = 0.0
    squares: float = 0.0
    recent: tuple[datetime, ...] = ()


def suspicion(habits: Habits, order: Order) -> str | None:
    """Return why the order is not like its customer; ``None`` where it is."""
    in_window = sum(order.placed_at - time < WINDOW for time in habits.recent)
    if in_window >= MOST_IN_WINDOW:
        return f"{in_window + 1} orders within {WINDOW.seconds // 60} minutes"
    if habits.count >= FEWEST_TO_JUDGE and order.total_cents > SMALL_CENTS:
        deviation = sqrt(habits.squares / (habits.count - 1))
        if order.total_cents > habits.mean_cents + DEVIATIONS * deviation:
            return f"{order.total_cents / max(habits.mean_cents, 1):.1f} times the customer's usual amount"
    return None


def learn(habits: Habits, order: Order, *, is_suspect: bool) -> Habits:
    """Return the habits with this order. A suspected amount is not learned; its time is."""
    recent = (*(time for time in habits.recent if order.placed_at - time < WINDOW), order.placed_at)
    if is_suspect:
        return msgspec.structs.replace(habits, recent=recent)
    count = habits.count + 1
    mean = habits.mean_cents + (order.total_cents - habits.mean_cents) / count
    squares = habits.squares + (order.total_cents - habits.mean_cents) * (order.total_cents - mean)
    return Habits(count, mean, squares, recent)


fraud = App("fraud", delivery=Delivery(start="beginning"))
habits_of = fraud.state("habits/1", Habits)


@fraud.on(OrderPlaced)
async def screen(fact: OrderPlaced, tx: Tx) -> OrderCleared | OrderSuspected:
    habits = await tx.get(habits_of, fact.customer_id, Habits())
    reason = suspicion(habits, fact.order)
    tx.put(habits_of, fact.customer_id, learn(habits, fact.order, is_suspect=reason is not None))
    if reason is not None:
        return OrderSuspected(fact.customer_id, fact.order, reason)
    return OrderCleared(fact.customer_id, fact.order)
