"""routing: picks the branch that delivers.

Look at `route`: the nearest branch with a free van in the order's hour. Many customers share a branch's vans, and handlers run at the same
time; still no van is booked twice, because Everlog runs a handler again when a row that it read has changed before its commit.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

from contracts import OrderCleared, OrderRouted
from everlog import App, Delivery, Tx
from world import distance_km, nearest

VANS = 2
REACH_KM = 30


def candidates(home: str) -> Sequence[tuple[str, int]]:
    """Return the branches that could deliver, and how far they are: the nearest first, which is the customer's own."""
    near = ((branch, distance_km(home, branch)) for branch in nearest(home))
    return list(takewhile(lambda found: found[1] <= REACH_KM, near))


routing = App("routing", delivery=Delivery(start="beginning"))
booked = routing.state("booked/1", int)  # key: branch and hour


@routing.on(OrderCleared)
async def route(fact: OrderCleared, tx: Tx) -> OrderRouted:
    home, hour = fact.order.store_id, fact.order.placed_at.strftime("%Y-%m-%dT%H")
    branch, distance = home, 0  # it works late if nobody near has a van
    for near, km in candidates(home):
        if await tx.get(booked, (near, hour), 0) < VANS:
            branch, distance = near, km
            break
    tx.add(booked, (branch, hour), 1)
    return OrderRouted(fact.customer_id, fact.order, branch, distance)
