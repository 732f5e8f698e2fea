"""forecast: learns, order by order, how many lines of each department are asked for in each hour of the day.

Look at `learn`: facts of different customers come in any order, so what is learned must not depend on it. A sum in which each day counts
less than the next one does not: older facts are added with less weight, whenever they come.
"""

from __future__ import annotations

from datetime import date

import msgspec

from contracts import StockRefused, StockReserved
from everlog import App, Delivery, Tx

KEEP = 0.8
"""What a day's demand still counts on the next day."""


class Demand(msgspec.Struct, frozen=True):
    """The weighted lines of all days up to `last`, which counts fully."""

    lines: float
    first: date
    last: date


def learn(demand: Demand | None, day: date, lines: int) -> Demand:
    """Return the demand with some lines that were asked for on a day."""
    if demand is None:
        return Demand(float(lines), day, day)
    last = max(demand.last, day)
    weighed = demand.lines * KEEP ** (last - demand.last).days + lines * KEEP ** (last - day).days
    return Demand(weighed, min(demand.first, day), last)


def expected(demand: Demand) -> float:
    """Return the lines that the next day will ask for: the weighted mean of all days since the first."""
    days = (demand.last - demand.first).days + 1
    return demand.lines * (1 - KEEP) / (1 - KEEP**days)


forecast = App("forecast", delivery=Delivery(start="beginning"))
demands = forecast.state("demand/1", Demand)  # key: department and hour of the day


@forecast.on(StockReserved, StockRefused)
async def watch(fact: StockReserved | StockRefused, tx: Tx) -> None:
    placed_at = fact.order.placed_at
    for department, lines in fact.departments.items():
        key = (department, placed_at.hour)
        known = await tx.get(demands, key)
        tx.put(demands, key, learn(known, placed_at.date(), lines))
