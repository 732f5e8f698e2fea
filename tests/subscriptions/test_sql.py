"""Statements of handlers: they and all else that a handler changes are stored together, once, in order, or not at all."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from tests.subscriptions.chaos import read_rows
from tests.subscriptions.test_chaos import Chaos
from tests.subscriptions.world import Left, Make, Out, Right, World, left

from everlog import App, Delivery, Retry, Tx
from everlog.errors import SqlFailed, SqlRefused, SqlTimeout, StoreReadOnly, TxClosed, TxRefused
from everlog.store import Lease, Put, Section, Slot, Unit
from everlog.stores.sqlite.section import SqliteSection
from everlog.subscriptions.sections import SECTION_S

TABLE = "CREATE TABLE IF NOT EXISTS lines (place INTEGER PRIMARY KEY, key TEXT, n INTEGER UNIQUE)"
INSERT = "INSERT INTO lines (key, n) VALUES (?, ?)"
AT_ONCE = Retry(attempts=3, first_s=0.01, most_s=0.01)
PARK = Retry(attempts=1)


def delivery(policy: Retry = AT_ONCE, **more: Any) -> Delivery:
    return Delivery(start="beginning", on_error={Exception: policy}, **more)


async def lines(w: World) -> list[tuple[str, int]]:
    """Return the committed rows of the table in the order in which they came."""
    section = await w.store.section()
    try:
        await section.mark(within_s=30)
        return [(key, n) for key, n in await section.execute("SELECT key, n FROM lines ORDER BY place", ())]
    finally:
        await section.roll_back()


async def with_table(w: World) -> World:
    section = await w.store.section()
    await section.mark(within_s=30)
    await section.execute(TABLE, ())
    await section.keep()
    await section.commit()
    return w


def commits(w: World) -> int:
    """Return the number of the last commit."""
    with w.store._database.reading() as connection:
        ((number,),) = connection.execute("SELECT number FROM head").fetchall()
    assert isinstance(number, int)
    return number


class Shop:
    """An app with one handler that writes a line and a row of state, and publishes."""

    def __init__(self, *, policy: Retry = AT_ONCE, **more: Any) -> None:
        self.app = App("app", delivery=delivery(policy, **more))
        self.seen = self.app.state("seen/1", int)
        self.calls: list[int] = []
        self.before: Callable[[Left, Tx], Awaitable[None]] | None = None
        self.after: Callable[[Left, Tx], Awaitable[None]] | None = None
        self.app.on(Left)(self.handle)

    async def handle(self, event: Left, tx: Tx) -> Out:
        self.calls.append(event.n)
        tx.put(self.seen, (event.key, event.n), event.n)
        if self.before is not None:
            await self.before(event, tx)
        await tx.sql(INSERT, event.key, event.n)
        if self.after is not None:
            await self.after(event, tx)
        return Out(event.key, event.n)

    async def stored(self, w: World) -> tuple[list[int], list[int], list[int]]:
        """Return the numbers in the table, in the state and among what was published, ascending."""
        rows = await w.rows("seen/1")
        return (
            sorted(n for _, n in await lines(w)),
            sorted(int(value) for value in rows.values()),
            sorted(event.n for event in await w.events(Out)),
        )


async def made(world: Make, shop: Shop, *, folder: Path | None = None) -> World:
    return await with_table(await world(shop.app, folder=folder))


@pytest.fixture(params=["memory", "file"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    return tmp_path if request.param == "file" else None


# ---- all of it or nothing ----


async def test_rows_state_events_and_progress_are_stored_together(world: Make, folder: Path | None) -> None:
    shop = Shop()
    w = await made(world, shop, folder=folder)
    await w.client.publish(*[Left(f"k{n % 5}", n) for n in range(50)])
    await w.start()
    await w.settle()
    await w.stop()
    everything = list(range(50))
    assert await shop.stored(w) == (everything, everything, everything)
    assert sorted(shop.calls) == everything
    for key in {key for key, _ in await lines(w)}:
        numbers = [n for k, n in await lines(w) if k == key]
        assert numbers == sorted(numbers)
    assert await w.store.verify() == []


STEPS = ["mark", "execute", "apply", "keep", "commit"]


@pytest.mark.parametrize("is_after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("step", STEPS)
async def test_a_crash_at_any_step_leaves_all_or_nothing(
    world: Make, step: str, is_after: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = Shop()
    w = await made(world, shop, folder=tmp_path)
    reached = asyncio.Event()
    whole = getattr(SqliteSection, step)

    async def stopping(self: SqliteSection, *arguments: Any, **named: Any) -> object:
        if reached.is_set():
            return await whole(self, *arguments, **named)
        result = await whole(self, *arguments, **named) if is_after else None
        reached.set()
        await asyncio.Event().wait()
        return result

    monkeypatch.setattr(SqliteSection, step, stopping)
    await w.client.publish(Left("a", 0), Left("a", 1), Left("b", 2))
    await w.start()
    async with asyncio.timeout(10):
        await reached.wait()
    await w.crash()
    monkeypatch.undo()
    rows, states, _ = await shop.stored(w)
    assert rows == states
    unfinished = await w.unfinished()
    assert unfinished == 3 - len(rows)


async def test_a_crash_after_each_number_of_turns_ends_as_if_there_had_been_none(world: Make, tmp_path: Path) -> None:
    shop = Shop()
    w = await made(world, shop, folder=tmp_path)
    dice = random.Random(1)
    for burst in range(12):
        await w.client.publish(*[Left(f"k{n % 3}", n) for n in range(burst * 10, burst * 10 + 10)])
        await w.start()
        for _ in range(dice.choice((1, 3, 10, 30, 60))):
            await asyncio.sleep(0)
        await w.crash()
        rows, states, _ = await shop.stored(w)
        assert rows == states
    await w.start()
    await w.settle(step_s=0.05)
    await w.stop()
    assert await shop.stored(w) == (list(range(120)),) * 3


async def test_a_conflict_takes_the_statements_back_and_runs_the_handler_again(world: Make, folder: Path | None) -> None:
    app = App("app", delivery=delivery())
    total = app.state("total/1", int)
    inside, may_go = asyncio.Event(), asyncio.Event()
    calls: list[int] = []

    @app.on(Left)
    async def handle(event: Left, tx: Tx) -> None:
        count = await tx.get(total, "all", 0)
        calls.append(event.n)
        if event.n == 0 and calls.count(0) == 1:
            inside.set()
            await may_go.wait()
        await tx.sql(INSERT, event.key, event.n)
        tx.put(total, "all", count + 1)

    w = await with_table(await world(app, folder=folder))
    await w.client.publish(Left("a", 0))
    await w.start()
    await inside.wait()
    await w.client.publish(Left("b", 1))
    await w.until(lambda: 1 in calls and not w.store._database._jobs.qsize())
    for _ in range(50):
        await w.tick()
    may_go.set()
    await w.settle(step_s=0.01)
    await w.stop()
    assert (await w.rows("total/1"))['["all"]'] == b"2"
    assert sorted(await lines(w)) == [("a", 0), ("b", 1)]
    assert calls.count(0) == 2


async def test_an_exception_takes_the_statements_back(world: Make, folder: Path | None) -> None:
    shop = Shop()
    shop.after = _fails_once(shop)
    w = await made(world, shop, folder=folder)
    await w.client.publish(Left("a", 0), Left("a", 1), Left("b", 2))
    await w.start()
    await w.settle(step_s=0.01)
    await w.stop()
    assert await shop.stored(w) == ([0, 1, 2],) * 3
    assert sorted(shop.calls) == [0, 0, 1, 2]


def _fails_once(shop: Shop) -> Callable[[Left, Tx], Awaitable[None]]:
    async def fail(event: Left, tx: Tx) -> None:
        if event.n == 0 and shop.calls.count(0) == 1:
            raise ValueError("once")

    return fail


async def test_what_it_publishes_wrongly_takes_the_statements_back(world: Make) -> None:
    app = App("app", delivery=delivery(PARK))

    @app.on(Left)
    async def handle(event: Left, tx: Tx) -> Any:
        await tx.sql(INSERT, event.key, event.n)
        return "no event" if event.n == 0 else None

    w = await with_table(await world(app))
    await w.client.publish(Left("a", 0), Left("b", 1))
    await w.start()
    await w.settle(step_s=0.01)
    await w.stop()
    assert await lines(w) == [("b", 1)]
    (parked,) = await w.store.parked()
    assert parked.first.error.startswith("TxRefused")


async def test_a_handler_goes_on_after_a_constraint_that_it_expected(world: Make, folder: Path | None) -> None:
    shop = Shop()
    failed: list[str] = []

    async def twice(event: Left, tx: Tx) -> None:
        with pytest.raises(SqlFailed, match=r"UNIQUE constraint failed: lines\.n") as caught:
            await tx.sql("INSERT INTO lines (key, n) VALUES ('x', 1000), ('y', ?)", event.n)
        failed.append(str(caught.value))
        await tx.sql("UPDATE lines SET key = upper(key) WHERE n = ?", event.n)

    shop.after = twice
    w = await made(world, shop, folder=folder)
    await w.client.publish(Left("a", 0), Left("b", 1))
    await w.start()
    await w.settle()
    await w.stop()
    assert sorted(await lines(w)) == [("A", 0), ("B", 1)]
    assert len(failed) == 2


async def test_a_constraint_that_it_did_not_expect_fails_it(world: Make) -> None:
    shop = Shop(policy=PARK)
    w = await made(world, shop)
    await w.client.publish(Left("a", 7), Left("b", 8))
    await w.start()
    await w.settle()
    await w.client.publish(Left("c", 7))
    await w.settle()
    await w.stop()
    assert await shop.stored(w) == ([7, 8], [7, 8], [7, 8])
    (parked,) = await w.store.parked()
    assert (parked.key, parked.first.error.partition(":")[0]) == ("c", "SqlFailed")


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


# ---- beside the others ----


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


# ---- batches, limits, ends ----


async def test_a_batch_has_its_statements_as_one_unit(world: Make, folder: Path | None) -> None:
    app = App("app", delivery=delivery(PARK))
    sizes: list[int] = []

    @app.on_batch(Left, most=10, wait_s=0)
    async def handle(events: Sequence[Left], tx: Tx) -> None:
        sizes.append(len(events))
        for event in events:
            await tx.sql(INSERT, event.key, event.n)
        if any(event.n == 13 for event in events):
            raise ValueError("13")

    w = await with_table(await world(app, folder=folder))
    await w.client.publish(*[Left(f"k{n}", n) for n in range(30)])
    await w.start()
    await w.settle(step_s=0.01)
    await w.stop()
    assert sorted(n for _, n in await lines(w)) == [n for n in range(30) if n != 13]
    assert [one.key for one in await w.store.parked()] == ["k13"]
    assert max(sizes) > 1


async def test_a_handler_that_is_cancelled_while_it_waits_for_its_turn_has_failed_alone(world: Make) -> None:
    shop = Shop(policy=PARK, time_limit_s=1.0)
    hold = asyncio.Event()

    async def stay(event: Left, tx: Tx) -> None:
        if event.key == "first":
            await hold.wait()

    shop.after = stay
    w = await made(world, shop)
    await w.start()
    section = await _nobodys(w)
    await w.client.publish(Left("first", 0), Left("second", 1))
    await w.until(lambda: len(shop.calls) == 2)
    for _ in range(12):
        w.clock.advance(0.25)
        await w.tick()
    await section.roll_back()
    hold.set()
    await w.client.publish(Left("third", 2))
    await w.settle()
    await w.stop()
    assert {(one.key, one.first.error.partition(":")[0]) for one in await w.store.parked()} == {
        ("first", "HandlerTimeout"),
        ("second", "HandlerTimeout"),
    }
    assert await shop.stored(w) == ([2], [2], [2])


async def _nobodys(w: World) -> Section:
    """Open a section beside the committer, so that no handler gets a turn."""
    section = await w.store.section()
    await section.mark(within_s=30)
    return section


async def test_a_handler_that_gives_up_waiting_for_its_turn_goes_on_without_statements(world: Make) -> None:
    app = App("app", delivery=delivery())
    seen = app.state("seen/1", int)
    given_up: list[int] = []

    @app.on(Left)
    async def handle(event: Left, tx: Tx) -> None:
        tx.put(seen, event.n, event.n)
        try:
            async with asyncio.timeout(0.01):
                await tx.sql(INSERT, event.key, event.n)
        except TimeoutError:
            given_up.append(event.n)

    w = await with_table(await world(app))
    await w.start()
    section = await _nobodys(w)
    await w.client.publish(Left("a", 0), Left("b", 1))
    await w.until(lambda: len(given_up) == 2)
    await section.roll_back()
    await w.settle()
    await w.stop()
    assert len(await w.rows("seen/1")) == 2
    assert await lines(w) == []


async def test_a_stop_lets_handlers_have_their_turns(world: Make, folder: Path | None) -> None:
    shop = Shop()
    entered = asyncio.Event()

    async def note(event: Left, tx: Tx) -> None:
        entered.set()
        for _ in range(5):
            await asyncio.sleep(0)

    shop.after = note
    w = await made(world, shop, folder=folder)
    await w.client.publish(*[Left(f"k{n}", n) for n in range(30)])
    await w.start()
    await entered.wait()
    await w.stop()
    rows, states, _ = await shop.stored(w)
    assert rows == states
    assert await w.unfinished() == 30 - len(rows)
    await w.start()
    await w.settle()
    await w.stop()
    assert await shop.stored(w) == (list(range(30)),) * 3


async def test_a_full_disk_holds_the_statements_up_and_loses_nothing(world: Make, tmp_path: Path) -> None:
    shop = Shop()
    w = await made(world, shop, folder=tmp_path)
    whole = w.store.section
    refused = 0

    async def section() -> SqliteSection:
        nonlocal refused
        if refused < 3:
            refused += 1
            raise StoreReadOnly("no room")
        return await whole()

    w.store.section = section  # type: ignore[method-assign]
    await w.client.publish(Left("a", 0), Left("a", 1))
    await w.start()
    await w.settle(step_s=0.2)
    await w.stop()
    assert await shop.stored(w) == ([0, 1],) * 3
    assert shop.calls == [0, 1]


async def test_units_that_shared_a_section_which_could_not_be_committed_are_not_lost(
    world: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those that only hold a record, which nobody would make again."""
    shop = Shop(policy=Retry(attempts=2, first_s=0.01, most_s=0.01))
    failures = 0

    @shop.app.on(Right)
    async def fails(event: Right, tx: Tx) -> None:
        nonlocal failures
        failures += 1
        raise ValueError("always")

    w = await made(world, shop, folder=tmp_path)
    whole = SqliteSection.commit
    broken = 0

    async def commit(self: SqliteSection) -> None:
        nonlocal broken
        if broken < 4:
            broken += 1
            await self.roll_back()
            raise StoreReadOnly("no room")
        await whole(self)

    monkeypatch.setattr(SqliteSection, "commit", commit)
    await w.client.publish(*[one for n in range(10) for one in (Left(f"k{n}", n), Right(f"r{n}", n))])
    await w.start()
    await w.settle(step_s=0.2)
    assert len(await w.store.parked()) == 10
    assert set((await w.store.survey("app")).owners) == set(range(left.partitions))
    await w.client.publish(*[Left(f"k{n}", 100 + n) for n in range(10)])
    await w.settle(step_s=0.2)
    await w.stop()
    everything = [*range(10), *range(100, 110)]
    assert await shop.stored(w) == (everything, everything, everything)
    assert await w.unfinished() == 0


# ---- whatever happens ----


class SqlChaos(Chaos):
    """Handlers that write lines of their own when the dice say so, and note in their state that they did."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.use = self.dice.choice((0.1, 0.5, 1.0))
        self.used = self.app.state("used/1", list[int])

    async def _handle(self, event: Left | Right, tx: Tx) -> Out:
        if self.dice.random() >= self.use:
            return await super()._handle(event, tx)
        early = self.dice.random() < 0.5
        if early:
            await self._write(event, tx)
        result = await super()._handle(event, tx)
        if not early:
            await self._write(event, tx)
        tx.put(self.used, event.key, [*await tx.get(self.used, event.key, list[int]()), event.n])
        if self.dice.random() < self.fail:
            raise RuntimeError("dice")
        return result

    async def _write(self, event: Left | Right, tx: Tx) -> None:
        await tx.sql(TABLE)
        await tx.sql(INSERT, event.key, event.n)
        if self.dice.random() < 0.1:
            with pytest.raises(SqlFailed):
                await tx.sql(INSERT, event.key, event.n)

    async def torn(self, w: World) -> list[str]:
        """Say where lines and state differ."""
        used = cast("dict[str, list[int]]", read_rows(await w.rows("used/1")))
        found: dict[str, list[int]] = {}
        for key, n in await lines(w):
            found.setdefault(key, []).append(n)
        return [
            f"{key}: {found.get(key)} {used.get(key)}" for key in found.keys() | used.keys() if found.get(key) != used.get(key)
        ]


@pytest.mark.parametrize("seed", range(200, 220))
async def test_whatever_happens_the_end_is_as_if_one_event_had_followed_the_other(world: Make, seed: int) -> None:
    chaos = SqlChaos(seed)
    w = await with_table(await world(chaos.app, shaky=random.Random(seed) if seed % 2 else None))
    assert await chaos.run(w, events=160, crashes=seed % 4) == []
    assert await chaos.torn(w) == []


@pytest.mark.parametrize("seed", range(300, 306))
async def test_it_is_so_in_files_too(world: Make, tmp_path: Path, seed: int) -> None:
    chaos = SqlChaos(seed)
    w = await with_table(await world(chaos.app, folder=tmp_path))
    assert await chaos.run(w, events=120, crashes=2) == []
    assert await chaos.torn(w) == []
    assert await w.store.verify() == []


async def test_statements_that_outlive_their_unit_are_caught(world: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    async def undo(self: Section) -> None:
        await self.keep()

    monkeypatch.setattr(SqliteSection, "undo", undo)
    for seed in range(200, 210):
        chaos = SqlChaos(seed)
        w = await with_table(await world(chaos.app))
        try:
            if await chaos.run(w, events=160, crashes=1) or await chaos.torn(w):
                return
        except (TimeoutError, AssertionError):
            return
    raise AssertionError("not caught")


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
