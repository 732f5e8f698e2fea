"""Statements of handlers: they and all else that a handler changes are stored together, once, in order, or not at all."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.subscriptions.sql_shop import INSERT, PARK, Shop, delivery, lines, made, with_table
from tests.subscriptions.world import Left, Make, Right, World, left

from everlog import App, Retry, Tx
from everlog.errors import SqlFailed, StoreReadOnly
from everlog.store import Section
from everlog.stores.sqlite.section import SqliteSection

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
