"""The shop: its learners and choices, the demo's checks with a fault in each kind of evidence, and the demo itself."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as some

import forecast
import fraud
from contracts import (
    BranchForecast,
    ForecastScore,
    GoodsDelivered,
    Line,
    Order,
    OrderCleared,
    OrderRouted,
    OrderSuspected,
    StockRefused,
    StockReserved,
)
from demo_acts import choose_poison
from demo_checks import Evidence, check_all, interrupted
from demo_history import History, Key
from everlog import State, Tx
from files import read_articles, read_orders
from inventory import ArticleUnknown, departments, look_up, stock
from loyalty import CENTS_PER_POINT
from notify import words
from routing import REACH_KM, VANS, booked, candidates, route
from supplier import deliver
from world import STORES, bursts, dice, endless, nearest, opening_stock, with_bursts

SHOP = Path(__file__).parents[2] / "examples" / "shop"
NOON = datetime(2017, 1, 1, 12, tzinfo=UTC)


def order(number: int, *, cents: int = 2_000, at: datetime = NOON, store: str = "330") -> Order:
    return Order(str(number), store, at, (Line("1082185", 1, cents),))


class FakeTx:
    """State in a dict: enough for handlers that only read and write."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, Any], Any] = {}

    async def get(self, state: State[Any], key: Any, default: Any = None) -> Any:
        return self.rows.get((state.name, key), default)

    def put(self, state: State[Any], key: Any, value: Any) -> None:
        self.rows[state.name, key] = value

    def add(self, state: State[Any], key: Any, amount: int) -> None:
        self.rows[state.name, key] = self.rows.get((state.name, key), 0) + amount


# ---- fraud ----


def after(orders: list[Order]) -> fraud.Habits:
    habits = fraud.Habits()
    for one in orders:
        habits = fraud.learn(habits, one, is_suspect=False)
    return habits


USUAL = [order(day, cents=2_000 + 100 * day, at=NOON + timedelta(days=day)) for day in range(6)]


@pytest.mark.parametrize(
    ("known", "next_order", "reason"),
    [
        ([], order(9, cents=90_000), None),  # nothing is known yet
        (USUAL, order(9, cents=2_600, at=NOON + timedelta(days=9)), None),
        (USUAL, order(9, cents=50_000, at=NOON + timedelta(days=9)), "22.2 times the customer's usual amount"),
        (USUAL, order(9, cents=fraud.SMALL_CENTS, at=NOON + timedelta(days=9)), None),  # unusual, and too small to matter
        (USUAL[:4], order(9, cents=50_000, at=NOON + timedelta(days=9)), None),  # too few to judge
        (
            [order(n, at=NOON + timedelta(minutes=n)) for n in range(3)],
            order(9, at=NOON + timedelta(minutes=9)),
            "4 orders within 10 minutes",
        ),
        ([order(n, at=NOON + timedelta(minutes=n)) for n in range(3)], order(9, at=NOON + timedelta(minutes=10)), None),
    ],
)
def test_fraud_suspects_what_is_not_like_the_customer(known: list[Order], next_order: Order, reason: str | None) -> None:
    assert fraud.suspicion(after(known), next_order) == reason


@given(some.lists(some.integers(0, 50_000), min_size=2, max_size=30))
def test_welford_gives_the_mean_and_the_variance_of_all_amounts(amounts: list[int]) -> None:
    habits = after([order(n, cents=cents, at=NOON + timedelta(hours=n)) for n, cents in enumerate(amounts)])
    mean = sum(amounts) / len(amounts)
    assert habits.mean_cents == pytest.approx(mean)
    assert habits.squares == pytest.approx(sum((cents - mean) ** 2 for cents in amounts), abs=1e-3)


def test_a_suspected_amount_is_not_learned_but_its_time_is() -> None:
    habits = fraud.learn(after(USUAL), order(9, cents=50_000, at=NOON + timedelta(days=9)), is_suspect=True)
    assert (habits.count, habits.mean_cents) == (6, 2_250)
    assert habits.recent == (NOON + timedelta(days=9),)


# ---- forecast ----

DAYS = some.lists(some.dates(date(2017, 1, 1), date(2017, 1, 21)), min_size=1, max_size=40)


def learned(days: list[date]) -> tuple[forecast.Demand, ForecastScore]:
    demand, score = forecast.learn(None, days[0]), ForecastScore()
    for day in days[1:]:
        before, demand = demand, forecast.learn(demand, day)
        score = forecast.corrected(score, before, demand, min(day, before.last))
    return demand, score


@given(DAYS, some.randoms())
def test_forecast_and_error_do_not_depend_on_the_order_in_which_facts_come(days: list[date], random: Any) -> None:
    shuffled = list(days)
    random.shuffle(shuffled)
    (one, its_score), (other, others_score) = learned(days), learned(shuffled)
    assert one == other
    assert msgspec.structs.astuple(its_score) == pytest.approx(msgspec.structs.astuple(others_score), abs=1e-6)


@given(DAYS, some.dates(date(2017, 1, 2), date(2017, 1, 21)))
def test_a_days_forecast_knows_only_the_days_before_it(days: list[date], day: date) -> None:
    past = [one for one in days if one < day]
    assume(past and min(days) < day)
    place = (day - min(days)).days
    first = min(days)
    all_days, past_days = (learned([*some_days, first, day])[0].orders[:place] for some_days in (days, past))
    assert forecast.expected(all_days) == forecast.expected(past_days)


def test_of_a_demand_that_never_changes_the_forecast_is_that_demand_and_misses_nothing() -> None:
    demand, score = learned([date(2017, 1, day) for day in range(1, 22) for _ in range(7)])
    assert forecast.expected(demand.orders) == pytest.approx(7)
    assert msgspec.structs.astuple(score) == pytest.approx((19 * 7, 0, 0))


def test_yesterday_counts_more_than_last_week() -> None:
    assert forecast.expected((10, 0, 0, 0, 70)) > forecast.expected((70, 0, 0, 0, 10))


async def test_forecast_says_what_it_expects_when_a_day_begins_and_not_before() -> None:
    tx = cast("Tx", FakeTx())

    async def on(day: int) -> BranchForecast | None:
        return await forecast.watch(StockReserved("c", order(day, at=NOON + timedelta(days=day)), "330"), tx)

    assert [await on(0), await on(0), await on(0)] == [None, None, None]
    second = await on(1)
    assert second == BranchForecast("330", date(2017, 1, 2), 3.0, 3, ForecastScore())
    third = await on(2)
    assert third is not None
    assert third.expected == pytest.approx((0.9 * 3 + 1) / 1.9)
    assert third.naive == 1
    assert msgspec.structs.astuple(third.score) == pytest.approx((1, 2, 2))  # 3 were expected on the second day, and 1 came


# ---- routing ----


def test_candidates_are_in_reach_the_nearest_first_and_the_own_branch_before_all() -> None:
    for home in STORES:
        found = candidates(home)
        assert found[0] == (home, 0)
        assert [km for _, km in found] == sorted(km for _, km in found)
        assert found[-1][1] <= REACH_KM


async def test_an_order_goes_to_the_nearest_branch_with_a_free_van_and_home_when_there_is_none() -> None:
    home = max(STORES, key=lambda branch: len(candidates(branch)))
    near = [branch for branch, _ in candidates(home)]
    tx = FakeTx()
    routed = [await route(OrderCleared("c", order(number, store=home)), cast("Tx", tx)) for number in range(len(near) * VANS + 1)]
    assert [fact.branch for fact in routed] == [branch for branch in near for _ in range(VANS)] + [home]
    assert tx.rows[booked.name, (home, "2017-01-01T12")] == VANS + 1


# ---- inventory ----


async def test_an_article_that_the_catalogue_lacks_cannot_be_looked_up() -> None:
    with pytest.raises(ArticleUnknown, match="1082185"):
        await look_up(cast("Tx", FakeTx()), "330", "1082185")


async def test_a_shelf_without_a_row_has_its_opening_stock() -> None:
    tx = FakeTx()
    tx.put(departments, "1082185", "PRODUCE")
    assert await look_up(cast("Tx", tx), "330", "1082185") == ("PRODUCE", opening_stock("330", "1082185", "PRODUCE"))
    tx.put(stock, ("330", "1082185"), 0)
    assert await look_up(cast("Tx", tx), "330", "1082185") == ("PRODUCE", 0)


# ---- the world ----


def test_the_world_is_the_same_in_every_process_and_another_with_another_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    here = dice("stock", "330", "1082185")
    program = "from world import dice; print(dice('stock', '330', '1082185'))"
    there = subprocess.run([sys.executable, "-c", program], cwd=SHOP, capture_output=True, text=True, check=True)
    assert float(there.stdout) == here
    monkeypatch.setenv("SHOP_SEED", "other")
    assert dice("stock", "330", "1082185") != here


def test_the_branches_are_the_stores_of_the_data() -> None:
    assert set(STORES) == {fact.order.store_id for fact in read_orders()}
    assert nearest("330")[0] == "330"


def test_an_order_of_a_burst_looks_like_any_other_and_the_real_ones_stay_as_they_are() -> None:
    real = read_orders(500)
    ours, orders = bursts(real, 3), with_bursts(real, 3)
    fraudulent = [fact for burst in ours for fact in burst]
    assert [fact for fact in orders if fact not in fraudulent] == real
    assert len(orders) == len(real) + len(fraudulent)
    assert len({fact.order.id for fact in orders}) == len(orders)
    assert all(fact.order.id.isdecimal() and len(fact.order.id) == len(real[0].order.id) for fact in fraudulent)
    assert all(len({fact.customer_id for fact in burst}) == 1 for burst in ours)
    times = [fact.order.placed_at for fact in orders]
    assert times == sorted(times)
    assert orders == with_bursts(real, 3)


def test_endless_orders_go_on_whole_weeks_later_under_other_ids() -> None:
    real = read_orders(900)  # three days
    orders = list(islice(endless(real), 2_000))
    assert orders[:900] == real
    assert len({fact.order.id for fact in orders}) == len(orders)
    assert all(
        later.order.placed_at - one.order.placed_at == timedelta(weeks=1)
        for one, later in zip(orders, orders[900:], strict=False)
    )


def test_every_article_of_an_order_is_in_the_catalogue() -> None:
    assert {line.sku for fact in read_orders() for line in fact.order.lines} == {article.sku for article in read_articles()}


def test_the_poison_order_is_cleared_alone_in_its_article_and_followed_by_another_of_its_customer() -> None:
    orders = with_bursts(read_orders(1_500), 6)
    poison = choose_poison(orders, (0.42, 0.6))
    place = orders.index(poison.fact)
    assert 0.42 <= place / len(orders) <= 0.6
    assert [fact for fact in orders for line in fact.order.lines if line.sku == poison.sku] == [poison.fact]
    assert any(fact.customer_id == poison.fact.customer_id for fact in orders[place + 1 :])


# ---- the checks of the demo ----

Fault = Callable[[Evidence], Evidence]


@pytest.fixture(scope="module")
def evidence() -> Evidence:
    """What a shop leaves behind in which everything went well."""
    orders = with_bursts(read_orders(900), 5)
    sold = {article.sku: article.department for article in read_articles()}
    history = History()
    habits: dict[str, fraud.Habits] = {}
    left: dict[Key, int] = {}
    points: Counter[Key] = Counter()
    demand: dict[Key, forecast.Demand] = {}
    score = ForecastScore()
    for placed in orders:
        customer, one = placed.customer_id, placed.order
        history.add(placed)
        known = habits.get(customer, fraud.Habits())
        reason = fraud.suspicion(known, one)
        habits[customer] = fraud.learn(known, one, is_suspect=reason is not None)
        if reason is not None:
            history.add(OrderSuspected(customer, one, reason))
            continue
        history.add(OrderCleared(customer, one))
        history.add(OrderRouted(customer, one, one.store_id, 0))
        shelves: dict[str, Key] = {line.sku: (one.store_id, line.sku) for line in one.lines}
        for sku, shelf in shelves.items():
            left.setdefault(shelf, opening_stock(one.store_id, sku, sold[sku]))
        missing = tuple(line for line in one.lines if left[shelves[line.sku]] < line.quantity)
        branch: Key = (one.store_id,)
        before = demand.get(branch)
        demand[branch] = forecast.learn(before, one.placed_at.date())
        if before is not None:
            score = forecast.corrected(score, before, demand[branch], min(one.placed_at.date(), before.last))
        if missing:
            refused = StockRefused(customer, one, one.store_id, missing)
            history.add(refused)
            for line in missing:
                fact = GoodsDelivered(one.store_id, line.sku, max(12, 2 * line.quantity))
                left[shelves[line.sku]] += fact.quantity
                history.add(fact)
        else:
            for line in one.lines:
                left[shelves[line.sku]] -= line.quantity
            points[customer,] += one.total_cents // CENTS_PER_POINT
            history.add(StockReserved(customer, one, one.store_id))
    mails = [
        {"key": str(n), "to": fact.customer_id, "text": words(fact)}
        for n, fact in enumerate((*history.suspected, *history.answered))
    ]
    return Evidence(orders, sold, history, left, points, demand, score, mails)


def in_evidence(name: str, change: Callable[[Any], Any]) -> Fault:
    def fault(evidence: Evidence) -> Evidence:
        return replace(evidence, **{name: change(getattr(evidence, name))})

    return fault


def in_history(name: str, change: Callable[[list[Any]], list[Any]]) -> Fault:
    def fault(evidence: Evidence) -> Evidence:
        return replace(evidence, history=replace(evidence.history, **{name: change(getattr(evidence.history, name))}))

    return fault


def doubled(facts: list[Any]) -> list[Any]:
    return [*facts, facts[-1]]


def lost(facts: list[Any]) -> list[Any]:
    return facts[1:]


def backwards(facts: list[Any]) -> list[Any]:
    return facts[::-1]


def dearer(facts: list[Any]) -> list[Any]:
    changed = msgspec.structs.replace(facts[0].order, lines=(Line("1082185", 1, 1),))
    return [msgspec.structs.replace(facts[0], order=changed), *facts[1:]]


def first_row(change: Callable[[Any], Any]) -> Callable[[Mapping[Key, Any]], Mapping[Key, Any]]:
    def changed(rows: Mapping[Key, Any]) -> Mapping[Key, Any]:
        first = next(iter(rows))
        return {**rows, first: change(rows[first])}

    return changed


def without_first_row(rows: Mapping[Key, Any]) -> Mapping[Key, Any]:
    return dict(list(rows.items())[1:])


def one_more(number: int) -> int:
    return number + 1


def more_demand(demand: forecast.Demand) -> forecast.Demand:
    return msgspec.structs.replace(demand, orders=(*demand.orders[:-1], demand.orders[-1] + 1))


def better(score: ForecastScore) -> ForecastScore:
    return msgspec.structs.replace(score, missed=score.missed - 1)


def test_nothing_is_found_in_a_shop_where_everything_went_well(evidence: Evidence) -> None:
    assert evidence.history.suspected
    assert evidence.history.refused
    assert check_all(evidence) == []


@pytest.mark.parametrize(
    ("fault", "found"),
    [
        (in_history("placed", doubled), "placed more than once"),
        (in_history("placed", lost), "never placed"),
        (in_history("placed", dearer), "in the log with other contents"),
        (in_history("answered", doubled), "decided more than once"),
        (in_history("suspected", doubled), "decided more than once"),
        (in_history("answered", lost), "never decided"),
        (in_history("answered", dearer), "decided with other contents"),
        (in_history("answered", backwards), "answered in another order"),
        (in_history("cleared", lost), "never screened"),
        (in_history("routed", doubled), "routed more than once"),
        (in_history("suspected", lost), "suspected or cleared where the input says otherwise"),
        (in_history("delivered", doubled), "delivered more or less often"),
        (in_history("delivered", lost), "delivered more or less often"),
        (in_history("reserved", doubled), "a shelf on which"),
        (in_history("reserved", lost), "a shelf on which"),
        (in_evidence("stock", first_row(one_more)), "a shelf on which"),
        (in_evidence("stock", without_first_row), "a shelf on which"),
        (in_evidence("points", first_row(one_more)), "other points than earned"),
        (in_evidence("points", without_first_row), "other points than earned"),
        (in_evidence("demand", first_row(more_demand)), "other orders on a day"),
        (in_evidence("demand", without_first_row), "other orders on a day"),
        (in_evidence("score", better), "a wrong forecast error"),
        (in_evidence("mails", doubled), "told to a customer"),
        (in_evidence("mails", lost), "told to a customer"),
    ],
)
def test_each_fault_is_found(evidence: Evidence, fault: Fault, found: str) -> None:
    assert any(found in line for line in check_all(fault(evidence)))


def answers(*ids: str) -> History:
    history = History()
    for number in ids:
        history.add(StockReserved("c", order(int(number)), "330"))
    return history


@pytest.mark.parametrize(
    ("noted", "committed", "noted_after", "answered", "faults"),
    [
        (["1", "2", "3"], {"1"}, ["2", "3", "4"], ["1", "2", "3", "4"], []),
        (["1", "2"], {"1"}, ["2"], ["1"], ["lost by the kill: 2"]),
        (["1", "2"], {"1"}, ["2"], ["1", "2", "2"], ["doubled by the kill: 2"]),
        (["1", "2"], {"1"}, ["2"], ["1", "1", "2"], ["doubled by the kill: 1"]),
        (["1", "2"], {"1"}, ["3"], ["1", "2", "3"], ["in flight at the kill, and not run again: 2"]),
        (["1", "2"], {"1"}, ["1", "2"], ["1", "2"], ["run again after the kill although it was committed: 1"]),
        (["1"], {"1"}, [], ["1"], ["nothing was in flight when inventory was killed, so that the kill shows nothing"]),
    ],
)
def test_what_a_kill_did_is_worked_out(
    noted: list[str], committed: set[str], noted_after: list[str], answered: list[str], faults: list[str]
) -> None:
    found = interrupted(noted, committed, noted_after, answers(*answered)).faults()
    assert [fault.removeprefix("1 × ") for fault in found] == faults


async def test_the_supplier_sends_what_was_refused() -> None:
    refused = StockRefused("c", order(1), "330", (Line("1", 2, 0), Line("2", 30, 0)))
    assert await deliver(refused) == [GoodsDelivered("330", "1", 12), GoodsDelivered("330", "2", 60)]
