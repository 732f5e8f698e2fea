"""Handlers with statements beside each other and beside those without."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

from tests.subscriptions.chaos import read_rows
from tests.subscriptions.sql_shop import INSERT, Shop, commits, delivery, lines, made, with_table
from tests.subscriptions.world import Left, Make, Out, Right, World

from everlog import App, Retry, Tx
from everlog.store import Lease, Put, Slot, Unit


async def test_statements_of_one_handler_may_be_awaited_together(world: Make) -> None:
    app = App("app", delivery=delivery())
    found: list[Any] = []

    @app.on(Left)
    async def handle(event: Left, tx: Tx) -> None:
        found.extend(await asyncio.gather(*[tx.sql("INSERT INTO lines (n) VALUES (?) RETURNING n", n) for n in range(5)]))

    w = await with_table(await world(app))
    await w.client.publish(Left("a", 0))
    await w.start()
    await w.settle()
    await w.stop()
    assert found == [[(n,)] for n in range(5)]


async def test_many_handlers_with_statements_share_transactions(world: Make, tmp_path: Path) -> None:
    shop = Shop(concurrency=64)
    w = await made(world, shop, folder=tmp_path)
    await w.client.publish(*[Left(f"k{n}", n) for n in range(300)])
    before = commits(w)
    await w.start()
    await w.settle()
    used = commits(w) - before
    await w.stop()
    assert await shop.stored(w) == (list(range(300)),) * 3
    assert used < 100, used


async def test_handlers_without_statements_go_on_while_one_has_the_store(world: Make, folder: Path | None) -> None:
    app = App("app", delivery=delivery())
    seen = app.state("seen/1", int)
    inside = asyncio.Event()
    called: list[int] = []
    all_called = asyncio.Event()

    @app.on(Left)
    async def with_statements(event: Left, tx: Tx) -> None:
        await tx.sql(INSERT, event.key, event.n)
        inside.set()
        await all_called.wait()

    @app.on(Right)
    async def without(event: Right, tx: Tx) -> None:
        await inside.wait()
        tx.put(seen, event.n, await tx.get(seen, event.n, 0) + 1)
        called.append(event.n)
        if len(called) == 20:
            all_called.set()

    w = await with_table(await world(app, folder=folder))
    await w.client.publish(Left("a", 0))
    await w.client.publish(*[Right(f"k{n}", n) for n in range(20)])
    await w.start()
    await w.settle()
    await w.stop()
    assert await lines(w) == [("a", 0)]
    assert sorted(called) == list(range(20))
    assert len(await w.rows("seen/1")) == 20


async def test_events_of_a_key_stay_in_order_whether_their_handlers_have_statements_or_not(
    world: Make, folder: Path | None
) -> None:
    app = App("app", delivery=delivery(Retry(attempts=100, first_s=0.001, most_s=0.002)))
    journal = app.state("journal/1", list[int])
    dice = random.Random(5)

    @app.on(Left)
    async def handle(event: Left, tx: Tx) -> Out:
        way = dice.randrange(4)
        if way == 0:
            await tx.sql(INSERT, event.key, event.n)
        mine = await tx.get(journal, event.key, list[int]())
        if way == 1:
            await asyncio.sleep(0)
        if way == 2 and dice.random() < 0.2:
            raise RuntimeError("dice")
        tx.put(journal, event.key, [*mine, event.n])
        return Out(event.key, event.n)

    w = await with_table(await world(app, folder=folder))
    await w.client.publish(*[Left(f"k{n % 4}", n) for n in range(200)])
    await w.start()
    await w.settle(step_s=0.001)
    await w.stop()
    for k in range(4):
        expected = [n for n in range(200) if n % 4 == k]
        assert [event.n for event in await w.events(Out) if event.key == f"k{k}"] == expected
        assert [n for key, n in await lines(w) if key == f"k{k}"] == sorted(n for key, n in await lines(w) if key == f"k{k}")


async def test_an_event_that_fails_at_once_behind_one_with_statements_in_conflict_stays_behind_it(world: Make) -> None:
    """Between its end and its judgement a unit with statements is in nobody's queue."""
    app = App("app", delivery=delivery(Retry(attempts=100, first_s=0.001, most_s=0.002)))
    row = app.state("row/1", int)
    calls: list[int] = []
    failed = False

    @app.on(Left)
    async def handle(event: Left, tx: Tx) -> Out:
        nonlocal failed
        calls.append(event.n)
        if event.n == 1:
            before = await tx.get(row, "r", 0)
            if calls.count(1) == 1:
                await _change_row(w)
            await tx.sql(INSERT, event.key, event.n)
            tx.put(row, "r", before + 1)
            return Out(event.key, 1)
        if not failed:
            failed = True
            raise ValueError("at once")
        return Out(event.key, event.n)

    w = await with_table(await world(app))
    await w.client.publish(Left("a", 1), Left("a", 2), Left("a", 3))
    await w.start()
    await w.settle(step_s=0.001)
    await w.stop()
    assert calls.count(1) == 2
    assert [event.n for event in await w.events(Out)] == [1, 2, 3]


async def _change_row(w: World) -> None:
    """Change the row under the handler that has read it, as another process would."""
    with w.store._database.reading() as connection:
        ((slot, epoch, member),) = connection.execute(
            "SELECT slot, epoch, member FROM lease WHERE subscription = 'app' AND member IS NOT NULL LIMIT 1"
        ).fetchall()
    lease = Lease(Slot("app", int(str(slot))), int(str(epoch)), int(str(member)))
    await w.store.commit([Unit(lease.slot, None, 1 << 60, writes={("row/1", '["r"]'): Put(b"40")})], [lease], [])


async def test_what_a_handler_reads_in_its_turn_is_committed_and_validated(world: Make, folder: Path | None) -> None:
    app = App("app", delivery=delivery())
    total = app.state("total/1", int)

    @app.on(Left)
    async def handle(event: Left, tx: Tx) -> None:
        await tx.sql(INSERT, event.key, event.n)
        count = await tx.get(total, "all", 0)
        scanned = [value async for _, value in tx.scan(total)]
        assert scanned in ([], [count])
        tx.put(total, "all", count + 1)

    w = await with_table(await world(app, folder=folder))
    await w.client.publish(*[Left(f"k{n}", n) for n in range(8)])
    await w.start()
    await w.settle(step_s=0.01)
    await w.stop()
    assert (await w.rows("total/1"))['["all"]'] == b"8"
    assert len(await lines(w)) == 8


async def test_a_reader_of_an_addition_does_not_wait_for_itself_in_its_turn(world: Make) -> None:
    app = App("app", delivery=delivery())
    total = app.state("total/1", int)
    seen = app.state("seen/1", int)

    @app.on(Left)
    async def handle(event: Left, tx: Tx) -> None:
        await tx.sql(INSERT, event.key, event.n)
        tx.put(seen, event.n, await tx.get(total, "all", 0))

    @app.on(Right)
    async def add(event: Right, tx: Tx) -> None:
        tx.add(total, "all", 1)

    w = await with_table(await world(app))
    for n in range(20):
        await w.client.publish(Right(f"k{n}", n), Left(f"k{n}", n))
    await w.start()
    await w.settle(step_s=0.001)
    await w.stop()
    assert len(await lines(w)) == 20
    assert (await w.rows("total/1"))['["all"]'] == b"20"


async def test_handlers_that_share_a_row_of_state_see_each_other_in_their_turns_and_never_conflict(
    world: Make, tmp_path: Path
) -> None:
    app = App("app", delivery=delivery())
    total = app.state("total/1", int)
    calls = 0

    @app.on(Left)
    async def handle(event: Left, tx: Tx) -> None:
        nonlocal calls
        calls += 1
        await tx.sql(INSERT, event.key, event.n)
        assert [value async for _, value in tx.scan(total)] in ([], [event.n])
        tx.put(total, "all", await tx.get(total, "all", 0) + 1)

    w = await with_table(await world(app, folder=tmp_path))
    await w.client.publish(*[Left("a", n) for n in range(20)])
    await w.start()
    await w.settle()
    assert (calls, read_rows(await w.rows("total/1"))) == (20, {"all": 20})
    many = [Left(f"k{n}", 100 + n) for n in range(60)]
    app_now = App("app", delivery=delivery())
    again = app_now.state("total/1", int)
    begun = 0

    @app_now.on(Left)
    async def count(event: Left, tx: Tx) -> None:
        nonlocal begun
        begun += 1
        await tx.sql(INSERT, event.key, event.n)
        tx.put(again, "all", await tx.get(again, "all", 0) + 1)

    await w.stop()
    w.now(app_now)
    await w.client.publish(*many)
    await w.start()
    await w.settle()
    assert (begun, read_rows(await w.rows("total/1"))) == (60, {"all": 80})
