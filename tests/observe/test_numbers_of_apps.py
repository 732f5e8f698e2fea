"""What apps at work count, and where they say that they stand."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
from tests.observe.running import running, settings_in, until

from everlog import App, Delivery, Event, Retry, Topic, Tx
from everlog.observe import Meters
from everlog.observe.meters import Snapshot
from everlog.runtime import AppRuntime

orders = Topic("seen.orders", key="customer", partitions=4)
bills = Topic("seen.bills", key="customer", partitions=4)


@orders.event("seen.order_placed/1")
class OrderPlaced(Event):
    customer: str
    n: int = 0


@bills.event("seen.billed/1")
class Billed(Event):
    customer: str


def numbers(snapshot: Snapshot) -> dict[str, float]:
    """Return the numbers by name; each test has one app with one subscription."""
    return {name.removeprefix("everlog_"): value for name, _, value in snapshot.numbers}


def counts(snapshot: Snapshot) -> dict[tuple[str, ...], int]:
    return {(one.name.removeprefix("everlog_"), *one.labels): sum(one.counts) for one in snapshot.histograms}


Style = str


def make(style: Style, seen: list[str]) -> App[None]:
    """Return an app whose handler is of one style, and fails for the customers that are named so."""
    on_error: dict[type[Exception], Literal["skip"] | Retry] = {
        KeyError: "skip",
        RuntimeError: Retry(attempts=3, first_s=0.01, most_s=0.02),
    }
    app = App("billing", delivery=Delivery(on_error=on_error))
    sums = app.state("sums/1", int)

    def do(order: OrderPlaced) -> None:
        error = {"skip": KeyError, "poison": RuntimeError}.get(order.customer)
        if error is not None:
            raise error(order.customer)
        seen.append(order.customer)

    async def alone(order: OrderPlaced) -> None:
        do(order)

    async def add(order: OrderPlaced, tx: Tx) -> Billed:
        tx.add(sums, order.customer, 1)
        do(order)
        return Billed(order.customer)

    async def wait(order: OrderPlaced, tx: Tx) -> None:
        await asyncio.sleep(0)
        do(order)

    async def batch(several: list[OrderPlaced]) -> None:
        if len(several) > 1 and any(order.customer in ("skip", "poison") for order in several):
            raise ValueError("one of them")
        for order in several:
            do(order)

    register: dict[Style, Callable[[], object]] = {
        "without tx": lambda: app.on(OrderPlaced)(alone),
        "with effects": lambda: app.on(OrderPlaced)(add),
        "suspended": lambda: app.on(OrderPlaced)(wait),
        "plain": lambda: app.on(OrderPlaced)(do),
        "batch": lambda: app.on_batch(OrderPlaced, most=10)(batch),
    }
    register[style]()
    return app


@pytest.mark.parametrize("style", ["without tx", "with effects", "suspended", "plain", "batch"])
async def test_each_event_is_counted_once_with_what_became_of_it(style: Style, tmp_path: Path) -> None:
    seen: list[str] = []
    app, meters, settings = make(style, seen), Meters(), settings_in(tmp_path)
    customers = [f"customer {number % 50}" for number in range(500)]
    async with running(app, settings=settings, meters=meters):
        async with app.connect(settings) as client:
            await client.publish(*[OrderPlaced(customer, n) for n, customer in enumerate([*customers, "skip", "poison"])])
        await until(lambda: numbers(meters.snapshot()).get("parked_keys") == 1 and len(seen) == 500)
        await until(lambda: numbers(meters.snapshot()).get("subscription_lag_events") == 1)
        standing = numbers(meters.snapshot())
        assert standing["held_events"] == 1
        assert standing["blocked_keys"] == 0
        assert standing["subscription_lag_seconds"] == 0
        assert standing["subscription_paused"] == 0
    ended = numbers(meters.snapshot())
    assert ended["events_handled"] == 500
    assert ended["skipped_events"] == 1
    assert (ended["retries"], ended["parked"]) == (2, 1)
    assert ended["failures"] == 4
    assert ended["outbox_sent_events"] == (500 if style == "with effects" else 0)
    assert "subscription_lag_events" not in ended  # it stands nowhere any more
    made = counts(meters.snapshot())
    assert made["commit_seconds", "billing"] > 0
    assert made["group_units", "billing"] > 0
    assert made["sync_seconds", "log", ""] > 0
    assert made["sync_seconds", "store", "billing"] > 0


async def test_the_units_of_all_groups_are_the_calls_that_changed_something(tmp_path: Path) -> None:
    seen: list[str] = []
    app, meters, settings = make("with effects", seen), Meters(), settings_in(tmp_path)
    async with running(app, settings=settings, meters=meters):
        async with app.connect(settings) as client:
            await client.publish(*[OrderPlaced(f"customer {n}", n) for n in range(100)])
        await until(lambda: len(seen) == 100)
        await until(lambda: numbers(meters.snapshot()).get("subscription_lag_events") == 0)
    units = next(one for one in meters.snapshot().histograms if one.name == "everlog_group_units")
    assert units.total == 100


async def test_the_age_of_what_waits_is_shown(tmp_path: Path) -> None:
    app, meters, settings = App("billing"), Meters(), settings_in(tmp_path)
    gate = asyncio.Event()

    @app.on(OrderPlaced)
    async def stand(order: OrderPlaced) -> None:
        await gate.wait()

    async with running(app, settings=settings, meters=meters):
        async with app.connect(settings) as client:
            await client.publish(*[OrderPlaced("a", n) for n in range(5)])
        await until(lambda: numbers(meters.snapshot()).get("subscription_lag_events") == 5)
        gate.set()
        await until(lambda: numbers(meters.snapshot()).get("subscription_lag_events") == 0)


async def test_a_second_run_of_an_app_counts_on(tmp_path: Path) -> None:
    seen: list[str] = []
    app, meters, settings = make("without tx", seen), Meters(), settings_in(tmp_path)
    for number in (1, 2):
        async with running(app, settings=settings, meters=meters):
            async with app.connect(settings) as client:
                await client.publish(OrderPlaced("a"))
            await until(lambda number=number: len(seen) == number)  # type: ignore[misc]
        assert numbers(meters.snapshot())["events_handled"] == number


async def test_where_nobody_asks_nothing_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    app, settings = make("with effects", seen), settings_in(tmp_path)
    made: list[AppRuntime] = []
    build = AppRuntime._build

    async def watched(self: AppRuntime, resources: object, status: object) -> None:
        made.append(self)
        await build(self, resources, status)  # type: ignore[arg-type]

    monkeypatch.setattr(AppRuntime, "_build", watched)
    async with running(app, settings=settings):
        (runtime,) = made
        assert runtime._measuring is None
        assert runtime._committer._measure is None
        (branch,) = app.declaration().subscriptions[0].branches.values()
        (engine,) = runtime._engines.values()
        (called,) = engine.declaration.branches.values()
        assert called.handler.function is branch.handler.function
