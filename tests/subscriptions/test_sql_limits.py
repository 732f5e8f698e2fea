"""Statements that take too long, and what they cannot do."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from tests.subscriptions.sql_shop import INSERT, PARK, Shop, delivery, lines, made, with_table
from tests.subscriptions.world import Left, Make, Right

from everlog import App, Retry, Tx
from everlog.errors import SqlRefused, SqlTimeout, TxClosed, TxRefused
from everlog.subscriptions.sections import SECTION_S

# ---- too long ----


async def _awaits(event: Left, tx: Tx) -> None:
    await asyncio.sleep(0.1)


async def _blocks(event: Left, tx: Tx) -> None:
    time.sleep(0.6)  # noqa: ASYNC251 that is the fault


async def _never_ends(event: Left, tx: Tx) -> None:
    await tx.sql("WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT count(*) FROM n")


async def _writes_for_ever(event: Left, tx: Tx) -> None:
    await tx.sql(
        "INSERT INTO lines (key, n) WITH RECURSIVE n(x) AS (SELECT 100 UNION ALL SELECT x + 1 FROM n) SELECT '', x FROM n"
    )


async def _catches_it(event: Left, tx: Tx) -> None:
    with pytest.raises(SqlTimeout):
        await _never_ends(event, tx)


async def _catches_a_long_write(event: Left, tx: Tx) -> None:
    with pytest.raises(SqlTimeout):
        await _writes_for_ever(event, tx)


async def _ends_the_transaction(event: Left, tx: Tx) -> None:
    with pytest.raises(SqlRefused):
        await tx.sql("INSERT OR ROLLBACK INTO lines (key, n) VALUES ('', ?)", event.n)


SLOW = [_blocks, _never_ends, _writes_for_ever, _catches_it, _catches_a_long_write, _ends_the_transaction]


@pytest.mark.parametrize("slow", [_awaits, *SLOW], ids=lambda slow: slow.__name__)
async def test_who_keeps_the_store_for_too_long_has_failed_and_takes_nobody_along(
    world: Make, slow: Callable[[Left, Tx], Awaitable[None]], tmp_path: Path
) -> None:
    shop = Shop(policy=PARK)
    is_inside = asyncio.Event()

    async def maybe(event: Left, tx: Tx) -> None:
        if event.key == "slow":
            is_inside.set()
            await slow(event, tx)

    shop.after = maybe
    counted = shop.app.state("counted/1", int)

    @shop.app.on(Right)
    async def plainly(event: Right, tx: Tx) -> None:
        tx.put(counted, event.n, (await tx.get(counted, event.n, 0)) + 1)

    w = await made(world, shop, folder=tmp_path)
    await w.client.publish(*[Left(f"k{n}" if n != 10 else "slow", n) for n in range(21)])
    await w.client.publish(*[Right(f"k{n}", n) for n in range(40)])
    await w.start()
    if slow is _awaits:  # the clock of the test is the limit's
        await is_inside.wait()
        w.clock.advance(SECTION_S)
    await w.settle(step_s=0.001)
    assert not w.has_ended
    await w.stop()
    others = [n for n in range(21) if n != 10]
    assert await shop.stored(w) == (others, others, others)
    (parked,) = await w.store.parked()
    assert (parked.key, parked.records) == ("slow", 1)
    assert parked.first.error.startswith("SqlRefused: the statement ended" if slow is _ends_the_transaction else "SqlTimeout")
    assert set((await w.rows("counted/1")).values()) == {b"1"}
    assert len(await w.rows("counted/1")) == 40
    assert await w.store.verify() == []


async def test_a_held_record_whose_turn_takes_too_long_stays_held(world: Make, tmp_path: Path) -> None:
    shop = Shop(policy=Retry(attempts=3, first_s=0.01, most_s=0.01))
    shop.after = _never_ends
    w = await made(world, shop, folder=tmp_path)
    await w.client.publish(Left("a", 0), Left("a", 1))
    await w.start()
    await w.settle(step_s=0.01)
    await w.stop()
    assert shop.calls == [0, 0, 0]
    assert await shop.stored(w) == ([], [], [])
    (parked,) = await w.store.parked()
    assert (parked.records, parked.first.attempts) == (2, 3)


async def test_a_row_that_it_wrote_in_vain_is_shown_to_nobody(world: Make, tmp_path: Path) -> None:
    """Whoever read it would be in conflict for ever."""
    app = App("app", delivery=delivery(PARK))
    total = app.state("total/1", int)

    @app.on(Left)
    async def handle(event: Left, tx: Tx) -> None:
        tx.put(total, "all", (await tx.get(total, "all", 0)) + 1)
        if event.n == 0:
            await tx.sql(INSERT, event.key, event.n)
            await _blocks(event, tx)

    w = await with_table(await world(app, folder=tmp_path))
    await w.client.publish(Left("a", 0))
    await w.start()
    await w.settle(step_s=0.01)
    await w.client.publish(*[Left(f"k{n}", n) for n in range(1, 6)])
    await w.settle(step_s=0.01)
    await w.stop()
    assert (await w.rows("total/1"))['["all"]'] == b"5"


# ---- what it cannot do ----


@pytest.mark.parametrize(
    "query", ["SELECT * FROM state", "DELETE FROM held", "COMMIT", "PRAGMA user_version", "CREATE TABLE everlog_x (a)"]
)
async def test_a_refusal_can_be_caught_and_takes_nothing_back(world: Make, query: str) -> None:
    shop = Shop()

    async def refused(event: Left, tx: Tx) -> None:
        with pytest.raises(SqlRefused):
            await tx.sql(query)
        assert await tx.sql("SELECT n FROM lines WHERE n = ?", event.n) == [(event.n,)]

    shop.after = refused
    w = await made(world, shop)
    await w.client.publish(Left("a", 0))
    await w.start()
    await w.settle()
    await w.stop()
    assert await shop.stored(w) == ([0], [0], [0])
    assert await w.store.verify() == []


async def test_a_handler_that_has_ended_runs_no_statement(world: Make) -> None:
    shop = Shop()
    kept: list[Tx] = []
    strays: list[asyncio.Task[object]] = []

    async def keep(event: Left, tx: Tx) -> None:
        kept.append(tx)
        strays.append(asyncio.create_task(_later(tx)))

    shop.before = keep
    w = await made(world, shop)
    await w.client.publish(Left("a", 0))
    await w.start()
    await w.settle()
    with pytest.raises(TxClosed):
        await kept[0].sql("SELECT 1")
    with pytest.raises(TxClosed):
        await strays[0]
    await w.stop()
    assert await shop.stored(w) == ([0], [0], [0])


async def _later(tx: Tx) -> object:
    for _ in range(1_000):
        await asyncio.sleep(0)
    return await tx.sql(INSERT, "stray", 1_000)


async def test_a_statement_that_nobody_waits_for_is_not_run(world: Make) -> None:
    app = App("app", delivery=delivery())
    tasks: list[asyncio.Task[Any]] = []
    seen = app.state("seen/1", int)

    @app.on(Left)
    async def handle(event: Left, tx: Tx) -> None:
        tx.put(seen, event.n, 1)
        tasks.append(asyncio.create_task(tx.sql(INSERT, event.key, event.n)))
        await asyncio.sleep(0)

    w = await with_table(await world(app))
    await w.client.publish(Left("a", 0), Left("a", 1))
    await w.start()
    await w.settle()
    found = await asyncio.gather(*tasks, return_exceptions=True)
    await w.stop()
    assert len(await w.rows("seen/1")) == 2
    assert len(await lines(w)) == sum(not isinstance(one, BaseException) for one in found)


@pytest.mark.parametrize("reading", ["get", "scan"])
async def test_who_has_lost_its_turn_reads_nothing_in_that_of_another(world: Make, tmp_path: Path, reading: str) -> None:
    app = App("app", delivery=delivery(PARK))
    seen = app.state("seen/1", int)
    is_inside, go_on, has_tried = asyncio.Event(), asyncio.Event(), asyncio.Event()
    found: list[object] = []

    async def read(tx: Tx) -> object:
        return await tx.get(seen, "all") if reading == "get" else [one async for one in tx.scan(seen)]

    @app.on(Left)
    async def handle(event: Left, tx: Tx) -> None:
        await tx.sql(INSERT, event.key, event.n)
        if event.key == "slow":
            is_inside.set()
            await go_on.wait()
            try:
                found.append(await read(tx))
            finally:
                has_tried.set()
        else:
            go_on.set()
            await has_tried.wait()
        tx.put(seen, "all", event.n)

    w = await with_table(await world(app, folder=tmp_path))
    await w.client.publish(Left("slow", 0))
    await w.start()
    await is_inside.wait()
    w.clock.advance(SECTION_S)
    await w.client.publish(Left("other", 1))
    await has_tried.wait()
    await w.settle(step_s=0.001)
    assert found == []
    (parked,) = await w.store.parked()
    assert (parked.key, parked.first.error.partition(":")[0]) == ("slow", "SqlTimeout")


async def test_a_read_that_waits_for_a_turn_when_the_handler_ends_is_told_so(world: Make) -> None:
    app = App("app", delivery=delivery())
    seen = app.state("seen/1", int)
    tasks: list[asyncio.Task[Any]] = []

    @app.on(Left)
    async def handle(event: Left, tx: Tx) -> None:
        tx.put(seen, event.n, 1)
        tasks.append(asyncio.create_task(tx.sql(INSERT, event.key, event.n)))
        await asyncio.sleep(0)  # it has asked for its turn, and waits
        tasks.append(asyncio.create_task(tx.get(seen, "other")))
        await asyncio.sleep(0)

    w = await with_table(await world(app))
    await w.client.publish(Left("a", 0))
    await w.start()
    await w.settle()
    for one in await asyncio.gather(*tasks, return_exceptions=True):
        assert isinstance(one, TxClosed)
    assert len(await w.rows("seen/1")) == 1


async def test_a_plain_handler_is_refused(world: Make) -> None:
    app = App("app", delivery=delivery(PARK))
    told: list[str] = []

    @app.on(Left)
    def handle(event: Left, tx: Tx) -> None:
        try:
            tx.sql("SELECT 1")  # type: ignore[unused-coroutine] # pyright: ignore[reportUnusedCoroutine]
        except TxRefused as error:
            told.append(str(error))

    w = await world(app)
    await w.client.publish(Left("a", 0))
    await w.start()
    await w.settle()
    await w.stop()
    assert told == ["tx.sql has to be awaited, and this handler is a plain function: make it async (async def …)"]
