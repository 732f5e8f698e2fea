"""routing: picks the branch that delivers.

Look at `route`: the nearest branch with a free van in the order's hour. Many customers share a branch's vans, and handlers run at the same
time; still no van is booked twice, because Everlog runs a handler again when a row that it read has changed before its commit.
"""

from __future__ import annotations

from world import distance_km, nearest

from contracts import OrderCleared, OrderRouted
from everlog import App, Delivery, Tx

VANS = 2
REACH_KM = 30

routing = App("routing", delivery=Delivery(start="beginning"))
booked = routing.state("booked/1", int)  # key: branch and hour


@routing.on(OrderCleared)
async def route(fact: OrderCleared, tx: Tx) -> OrderRouted:
    home, hour = fact.order.store_id, fact.order.placed_at.strftime("%Y-%m-%dT%H")
    for branch in nearest(home):
        distance = distance_km(home, branch)
        if distance > REACH_KM:
            break
        if await tx.get(booked, (branch, hour), 0) < VANS:
            tx.add(booked, (branch, hour), 1)
            return OrderRouted(fact.customer_id, fact.order, branch, distance)
    tx.add(booked, (home, hour), 1)  # nobody near is free: the customer's own branch works late
    return OrderRouted(fact.customer_id, fact.order, home, 0)
