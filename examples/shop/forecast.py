"""forecast: says how many orders each branch will have on the day that begins, and measures how wrong it was, beside a naive guess.

Look at `learn` and `watch`: facts of different customers come in any order, also days late, so nothing that is learned may depend on it. What
is stored are counts per day. A day's forecast is made of the days before it and of nothing else, and whatever a late fact changes is
measured again. The naive guess is that a day is like the day before.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, timedelta

import msgspec

from contracts import BranchForecast, ForecastScore, StockRefused, StockReserved
from everlog import App, Delivery, Tx

KEEP = 0.9
"""What a day still counts a day later."""


class Demand(msgspec.Struct, frozen=True):
    """A branch's orders of each day, from the first to the last one known."""

    first: date
    orders: tuple[int, ...]

    @property
    def last(self) -> date:
        return self.first + timedelta(len(self.orders) - 1)


def learn(known: Demand | None, day: date) -> Demand:
    """Return the demand with one more order on a day."""
    if known is None:
        return Demand(day, (1,))
    first = min(known.first, day)
    orders = [0] * ((max(known.last, day) - first).days + 1)
    start = (known.first - first).days
    orders[start : start + len(known.orders)] = known.orders
    orders[(day - first).days] += 1
    return Demand(first, tuple(orders))


def expected(past: tuple[int, ...]) -> float:
    """Return the orders that the day after these will have: their mean, in which each day counts less than the next one."""
    weights = [KEEP**age for age in reversed(range(len(past)))]
    return sum(weight * orders for weight, orders in zip(weights, past, strict=True)) / sum(weights)


def misses(demand: Demand, since: date) -> Iterator[ForecastScore]:
    """Yield what was missed on each finished day from `since` on. The last day is not finished, and the first has no day before it."""
    for place in range(max(1, (since - demand.first).days), len(demand.orders) - 1):
        came, past = demand.orders[place], demand.orders[:place]
        yield ForecastScore(came, abs(came - expected(past)), abs(came - past[-1]))


def corrected(score: ForecastScore, before: Demand, after: Demand, since: date) -> ForecastScore:
    """Return the score of all branches after one branch's days from `since` on have changed."""
    old, new = list(misses(before, since)), list(misses(after, since))
    return ForecastScore(
        score.orders + sum(day.orders for day in new) - sum(day.orders for day in old),
        score.missed + sum(day.missed for day in new) - sum(day.missed for day in old),
        score.missed_naively + sum(day.missed_naively for day in new) - sum(day.missed_naively for day in old),
    )


forecast = App("forecast", delivery=Delivery(start="beginning"))
demands = forecast.state("demand/2", Demand)  # key: branch
scores = forecast.state("score/1", ForecastScore)  # one row


@forecast.on(StockReserved, StockRefused)
async def watch(fact: StockReserved | StockRefused, tx: Tx) -> BranchForecast | None:
    branch, day = fact.order.store_id, fact.order.placed_at.date()
    known = await tx.get(demands, branch)
    demand = learn(known, day)
    tx.put(demands, branch, demand)
    if known is None or day == known.last:
        return None  # no day has ended
    score = await tx.get(scores, "all", ForecastScore())
    score = corrected(score, known, demand, min(day, known.last))
    tx.put(scores, "all", score)
    past = demand.orders[:-1]
    return BranchForecast(branch, demand.last, expected(past), past[-1], score)
