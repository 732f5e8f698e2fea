"""Rows of state that several handlers read and write."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Sequence
from typing import Any, cast

import apsw
from tests.subscriptions.world import Left, Make, Right

from everlog import App, Delivery, Retry, Tx
from everlog.store import Outcome, Unit

FAST = Delivery(start="beginning")


async def test_two_handlers_that_read_and_write_one_row_while_suspended_lose_no_write(world: Make) -> None:
    app = App("app", delivery=FAST)
    total = app.state("total/1", int)
    attempts = 0

    @app.on(Left)
    async def handle(event: Left, tx: Tx) -> None:
        nonlocal attempts
        attempts += 1
        value = await tx.get(total, "all", 0)
        for _ in range(5):
            await asyncio.sleep(0)
        tx.put(total, "all", value + 1)

    w = await world(app)
    await w.client.publish(*[Left(f"k{n}", n) for n in range(100)])
    await w.start()
    while (await w.rows("total/1")).get('["all"]') != b"100":
        await w.tick(0.05)
    assert attempts > 100
    await w.settle()
    (status,) = (await w.store.status()).subscriptions
    assert (status.blocked_keys, status.parked_keys) == (0, 0)


async def test_conflicts_do_not_count_as_attempts(world: Make) -> None:
    app = App("app", delivery=Delivery(start="beginning", on_error={Exception: Retry(attempts=1)}))
    total = app.state("total/1", int)

    @app.on(Left)
    async def handle(event: Left, tx: Tx) -> None:
        value = await tx.get(total, "all", 0)
        for _ in range(3):
            await asyncio.sleep(0)
        tx.put(total, "all", value + 1)

    w = await world(app)
    await w.client.publish(*[Left(f"k{n % 20}", n) for n in range(100)])
    await w.start()
    while (await w.rows("total/1")).get('["all"]') != b"100":
        await w.tick(0.05)
    assert (await w.store.status()).subscriptions[0].parked_keys == 0


async def test_additions_are_blind(world: Make) -> None:
    app = App("app", delivery=FAST)
    total = app.state("total/1", int)
    calls = 0

    @app.on(Left)
    async def handle(event: Left, tx: Tx) -> None:
        nonlocal calls
        calls += 1
        await asyncio.sleep(0)
        tx.add(total, "all", event.n)

    w = await world(app)
    await w.client.publish(*[Left(f"k{n}", n) for n in range(200)])
    await w.start()
    await w.settle()
    assert calls == 200
    assert await w.rows("total/1") == {'["all"]': str(sum(range(200))).encode()}
    assert not any(outcome is not Outcome.COMMITTED for _, outcomes in w.store.commits for outcome in outcomes)


async def test_a_reader_of_a_counter_that_is_always_added_to_gets_its_turn(world: Make) -> None:
    app = App("app", delivery=FAST)
    total = app.state("total/1", int)
    added = 0
    read: list[int] = []

    @app.on(Left)
    async def add(event: Left, tx: Tx) -> None:
        nonlocal added
        added += 1
        tx.add(total, "all", 1)

    @app.on(Right)
    async def look(event: Right, tx: Tx) -> None:
        read.append(await tx.get(total, "all", 0))

    w = await world(app)
    for at in range(0, 30_000, 3_000):
        await w.client.publish(*[Left(f"k{n % 50}", n) for n in range(at, at + 3_000)])
        if at == 0:
            await w.client.publish(Right("r"))
    await w.start()
    await w.until(lambda: bool(read))
    assert added < 10_000


async def test_order_holds_when_units_conflict_again_and_again(world: Make) -> None:
    """Three events of one key whose units wait in one group; the row that they all read is changed under them."""
    app = App("app", delivery=Delivery(start="beginning", concurrency=16))
    hot = app.state("hot/1", int)
    order = app.state("order/1", list[int])
    dice = random.Random(11)

    @app.on(Left)
    async def handle(event: Left, tx: Tx) -> None:
        value = await tx.get(hot, "row", 0)
        mine = await tx.get(order, event.key, list[int]())
        for _ in range(dice.choice((0, 0, 1, 2))):
            await asyncio.sleep(0)
        tx.put(hot, "row", value + 1)
        tx.put(order, event.key, [*mine, event.n])

    w = await world(app, shaky=dice)
    await w.client.publish(*[Left(f"k{n % 4}", n) for n in range(400)])
    await w.start()
    await w.until(lambda: w.has_ended or sum(len(units) for units, _ in w.store.commits) >= 400, step_s=0.01)
    await w.settle(step_s=0.01)
    rows = await w.rows("order/1")
    for k in range(4):
        assert json.loads(rows[f'["k{k}"]']) == list(range(k, 400, 4))
    assert (await w.rows("hot/1"))['["row"]'] == b"400"


async def test_order_holds_when_a_dropped_event_fails_on_its_second_run(world: Make) -> None:
    """A's unit conflicts and B's, behind it, is dropped; then A fails. B must not overtake it."""
    app = App("app", delivery=Delivery(start="beginning", on_error={Exception: Retry(attempts=9, first_s=0.1, most_s=0.1)}))
    hot = app.state("hot/1", int)
    seen: list[int] = []
    runs: dict[int, int] = {}

    @app.on(Left)
    async def handle(event: Left, tx: Tx) -> None:
        runs[event.n] = runs.get(event.n, 0) + 1
        value = await tx.get(hot, "row", 0)
        if event.n == 0 and runs[0] == 2:
            raise RuntimeError("on the second run")
        tx.put(hot, "row", value + 1)
        seen.append(event.n)

    w = await world(app)
    first = True

    async def change_the_row(units: Sequence[Unit]) -> None:
        nonlocal first
        if first and any(unit.writes for unit in units):
            first = False
            await w.store._write(_bump)

    w.store.before_commit = change_the_row
    await w.client.publish(*[Left("a", n) for n in range(3)])
    await w.start()
    await w.settle(step_s=0.05)
    committed = [n for n in seen if n >= 0]
    assert committed[-3:] == [0, 1, 2]
    assert runs[0] == 3


async def test_order_holds_when_a_refused_addition_is_followed_by_more_of_its_key(world: Make) -> None:
    app = App("app", delivery=Delivery(start="beginning", on_error={Exception: "park"}))
    mixed = app.state("mixed/1", cast("type[Any]", int | str))
    done = app.state("done/1", list[int])

    @app.on(Left)
    async def handle(event: Left, tx: Tx) -> None:
        mine = await tx.get(done, event.key, list[int]())
        if event.n == 0:
            tx.add(mixed, "row", 1)
        tx.put(done, event.key, [*mine, event.n])

    @app.on(Right)
    async def spoil(event: Right, tx: Tx) -> None:
        tx.put(mixed, "row", "no number")

    w = await world(app)
    await w.client.publish(Right("z"))
    await w.start()
    await w.settle()
    await w.client.publish(*[Left("a", n) for n in range(4)])
    await w.settle(step_s=0.05)
    assert (await w.rows("done/1")).get('["a"]') is None
    assert [(one.key, one.records) for one in await w.store.parked()] == [("a", 4)]


async def test_held_keys_that_write_one_row_get_on_when_somebody_else_has_changed_it(world: Make) -> None:
    """Whoever reads what a doomed unit wrote is doomed too; that must end once the first of them is known to be."""
    app = App("app", delivery=Delivery(start="beginning", on_error={Exception: Retry(attempts=99, first_s=0, most_s=0)}))
    hot = app.state("hot/1", int)
    failed: set[str] = set()
    calls = 0

    @app.on(Left)
    async def handle(event: Left, tx: Tx) -> None:
        nonlocal calls
        calls += 1
        if event.key not in failed:
            failed.add(event.key)
            raise RuntimeError("once")
        tx.put(hot, "row", await tx.get(hot, "row", 0) + 1)

    w = await world(app)
    changes = 0

    async def change_the_row(units: Sequence[Unit]) -> None:
        nonlocal changes
        if changes < 3 and any(unit.writes for unit in units):
            changes += 1
            await w.store._write(_bump)

    w.store.before_commit = change_the_row
    await w.client.publish(*[Left(f"k{n}") for n in range(60)])
    await w.start()
    await w.settle(step_s=0.01)
    assert calls < 2_000


def _bump(connection: apsw.Connection) -> None:
    connection.execute(
        "INSERT INTO state SELECT name, generation, 'hot/1', '[\"row\"]', x'313030', 77 FROM subscription WHERE true "
        "ON CONFLICT DO UPDATE SET value = x'313030', version = 77"
    )


async def test_a_handler_reads_its_own_writes_and_those_of_finished_units_that_are_not_committed(world: Make) -> None:
    app = App("app", delivery=FAST)
    total = app.state("total/1", int)
    seen: list[tuple[int, int]] = []
    gate = asyncio.Event()

    @app.on(Left)
    async def handle(event: Left, tx: Tx) -> None:
        before = await tx.get(total, event.key, 0)
        tx.put(total, event.key, before + 1)
        seen.append((before, await tx.get(total, event.key, -1)))

    w = await world(app)

    async def hold_up(units: Sequence[Unit]) -> None:
        if any(unit.writes for unit in units):
            await gate.wait()

    w.store.before_commit = hold_up
    await w.client.publish(*[Left("a", n) for n in range(10)])
    await w.start()
    await w.until(lambda: len(seen) == 10)
    assert seen == [(n, n + 1) for n in range(10)]
    gate.set()
    await w.settle()
    assert await w.rows("total/1") == {'["a"]': b"10"}


async def test_another_subscription_reads_a_state_and_may_not_write_it(world: Make) -> None:
    app = App("app", delivery=FAST)
    total = app.state("total/1", int)
    other = app.subscription("other", delivery=Delivery(start="beginning", on_error={Exception: "park"}))
    read: list[int] = []

    @app.on(Left)
    async def write(event: Left, tx: Tx) -> None:
        tx.put(total, event.key, event.n)

    @other.on(Right)
    async def look(event: Right, tx: Tx) -> None:
        read.append(await tx.get(total, event.key, 0))
        tx.put(total, event.key, 0)

    w = await world(app)
    await w.client.publish(Left("a", 7))
    await w.start()
    await w.settle()
    await w.client.publish(Right("a"))
    await w.settle()
    assert read == [7]
    (parked,) = await w.store.parked("other")
    assert parked.first.error.startswith("TxRefused")
    assert await w.rows("total/1") == {'["a"]': b"7"}
