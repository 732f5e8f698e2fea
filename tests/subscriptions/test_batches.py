"""Handlers of batches: what they are given, and what they change together."""

from __future__ import annotations

import asyncio
import gc
import random
from collections.abc import Sequence
from typing import Any

import pytest
from tests.subscriptions.keys import keys_in, number
from tests.subscriptions.world import PARTITIONS, Free, Left, Make, Out, Right, left, out

from everlog import App, Delivery, Tx
from everlog.errors import DeclarationError, TxRefused
from everlog.store import Cause, Unit
from everlog.subscriptions.run import Run

FAST = Delivery(start="beginning")
PARK = Delivery(start="beginning", on_error={Exception: "park"})


# ---- what a batch is made of ----


async def test_a_batch_has_at_most_so_many_events_in_the_order_of_the_log(world: Make) -> None:
    app = App("app", delivery=FAST)
    batches: list[list[int]] = []

    @app.on_batch(Left, most=4)
    async def handle(events: list[Left], tx: Tx) -> None:
        assert [record.event for record in tx.records] == events
        assert [record.offset for record in tx.records] == sorted(record.offset for record in tx.records)
        batches.append([event.n for event in events])

    w = await world(app)
    key, other = keys_in(0, 2)
    await w.client.publish(*[Left((key, other)[n % 2], n) for n in range(10)])
    await w.start()
    await w.settle()
    assert batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


async def test_what_was_handled_is_not_kept_in_memory(world: Make) -> None:
    app = App("app", delivery=FAST)

    @app.on_batch(Left, most=4)
    async def handle(events: list[Left]) -> None: ...

    w = await world(app)
    await w.start()
    for n in range(30):
        await w.client.publish(Left("a", n))
        await w.settle()
    gc.collect()
    assert sum(isinstance(one, Run) for one in gc.get_objects()) <= PARTITIONS


async def test_one_batch_of_a_slot_is_in_flight_and_one_of_each_other_slot(world: Make) -> None:
    app = App("app", delivery=FAST)
    gate = asyncio.Event()
    running: list[str] = []

    @app.on_batch(Left, most=2)
    async def handle(events: list[Left]) -> None:
        running.append(events[0].key)
        await gate.wait()

    w = await world(app)
    keys = [keys_in(partition, 1)[0] for partition in range(PARTITIONS)]
    await w.client.publish(*[Left(key, n) for n in range(6) for key in keys])
    await w.start()
    await w.until(lambda: len(running) == PARTITIONS)
    for _ in range(3):
        await w.tick()
    assert sorted(running) == sorted(keys)
    gate.set()
    await w.settle()
    assert len(running) == 3 * PARTITIONS


async def test_two_batch_handlers_of_a_subscription_each_have_their_own_size(world: Make) -> None:
    app = App("app", delivery=FAST)
    lefts: list[int] = []
    rights: list[int] = []

    @app.on_batch(Left, most=3)
    async def few(events: list[Left]) -> None:
        lefts.append(len(events))

    @app.on_batch(Right, most=7)
    async def many(events: list[Right]) -> None:
        rights.append(len(events))

    w = await world(app)
    (key,) = keys_in(0, 1)
    await w.client.publish(*[Left(key, n) for n in range(7)])
    await w.client.publish(*[Right(key, n) for n in range(15)])
    await w.start()
    await w.settle()
    assert (lefts, rights) == ([3, 3, 1], [7, 7, 1])


async def test_a_batch_waits_for_more_until_it_is_full_or_its_time_is_over(world: Make) -> None:
    app = App("app", delivery=FAST)
    batches: list[list[int]] = []

    @app.on_batch(Left, most=3, wait_s=2.0)
    async def handle(events: list[Left]) -> None:
        batches.append([event.n for event in events])

    w = await world(app)
    (key,) = keys_in(0, 1)
    await w.start()
    await w.client.publish(Left(key, 0))
    for _ in range(3):
        await w.tick()
    w.clock.advance(1.9)
    await w.client.publish(Left(key, 1))
    for _ in range(3):
        await w.tick()
    assert batches == []
    w.clock.advance(0.2)
    await w.until(lambda: batches == [[0, 1]])
    await w.client.publish(*[Left(key, n) for n in range(2, 6)])
    await w.until(lambda: batches[1:] == [[2, 3, 4]])  # at once
    for _ in range(3):
        await w.tick()
    w.clock.advance(2.1)
    await w.until(lambda: batches[2:] == [[5]])


async def test_a_stop_does_not_wait_for_more_events(world: Make) -> None:
    app = App("app", delivery=FAST)
    batches: list[list[int]] = []

    @app.on_batch(Left, wait_s=60.0)
    async def handle(events: list[Left]) -> None:
        batches.append([event.n for event in events])

    w = await world(app)
    await w.client.publish(Left("a", 1))
    await w.start()
    for _ in range(3):
        await w.tick()
    await w.stop()
    assert batches == []
    assert await w.unfinished() == 1
    await w.start()
    await w.settle(step_s=1)
    assert batches == [[1]]


async def test_a_batch_that_waits_for_more_leaves_out_what_cannot_be_read(world: Make) -> None:
    app = App("app", delivery=FAST)
    seen: list[int] = []

    @app.on_batch(Left, wait_s=1.0)
    async def handle(events: list[Left]) -> None:
        seen.extend(event.n for event in events)

    w = await world(app)
    broken, good = keys_in(0, 2)
    await w.append_raw(left, "test.left/1", b"{}", broken)
    await w.client.publish(Left(good, 1), Left(broken, 2), Left(good, 3))
    await w.append_raw(left, "test.left/1", b"{}", broken)
    await w.append_raw(left, "test.left/9", b"{}", good)
    await w.client.publish(Left(good, 4))
    await w.start()
    await w.settle(step_s=0.1)
    assert seen == [1, 3]
    parked = await w.store.parked()
    assert sorted((one.key, one.records, one.first.cause) for one in parked) == sorted(
        [(broken, 3, Cause.UNREADABLE), (good, 2, Cause.UNREADABLE)]
    )


async def test_events_without_a_key_come_in_batches_and_a_bad_one_holds_up_nothing(world: Make) -> None:
    app = App("app", delivery=PARK)
    done: list[int] = []

    @app.on_batch(Free)
    async def handle(events: list[Free]) -> None:
        for event in events:
            if event.n % 10 == 3:
                raise RuntimeError("bad")
        done.extend(event.n for event in events)

    w = await world(app)
    await w.client.publish(*[Free(n) for n in range(40)])
    await w.start()
    await w.settle()
    assert sorted(done) == [n for n in range(40) if n % 10 != 3]
    assert sorted(number(one.first.record.data) for one in await w.store.parked()) == [3, 13, 23, 33]


async def test_a_batch_has_neither_one_record_nor_a_key_of_its_own(world: Make) -> None:
    app = App("app", delivery=FAST)
    refused: list[str] = []

    @app.on_batch(Left)
    async def handle(events: list[Left], tx: Tx) -> None:
        for ask in (lambda: tx.record, lambda: tx.idempotency_key):
            with pytest.raises(TxRefused) as caught:
                ask()
            refused.append(str(caught.value))

    w = await world(app)
    await w.client.publish(Left("a"))
    await w.start()
    await w.settle()
    assert len(refused) == 2
    assert all("tx.records" in text for text in refused)


@pytest.mark.parametrize("first_is_batch", [False, True])
def test_a_subscription_has_batch_handlers_or_others_and_the_message_says_what_to_write(first_is_batch: bool) -> None:
    app = App("app")

    async def one(event: Any) -> None: ...

    async def many(events: list[Any]) -> None: ...

    (app.on_batch(Left)(many) if first_is_batch else app.on(Left)(one))
    with pytest.raises(DeclarationError, match=r"subscription 'app'.*a subscription of its own: @app\.subscription\("):
        (app.on(Right)(one) if first_is_batch else app.on_batch(Right)(many))
    other = app.subscription("other")
    (other.on(Right)(one) if first_is_batch else other.on_batch(Right)(many))


@pytest.mark.parametrize("wrong", [{"most": 0}, {"wait_s": -1.0}])
def test_a_batch_that_cannot_be_is_refused(wrong: dict[str, Any]) -> None:
    async def handle(events: list[Left]) -> None: ...

    with pytest.raises(DeclarationError, match="most of at least 1 and wait_s of at least 0"):
        App("app").on_batch(Left, **wrong)(handle)


# ---- one unit ----


@pytest.mark.parametrize("after", [False, True], ids=["before the commit", "after the commit"])
async def test_what_a_batch_changes_is_there_whole_or_not_at_all_when_the_process_dies(world: Make, after: bool) -> None:
    app = App("app", delivery=FAST)
    count = app.state("count/1", int)
    calls = 0

    @app.on_batch(Left)
    async def handle(events: list[Left], tx: Tx) -> Sequence[Out]:
        nonlocal calls
        calls += 1
        for event in events:
            tx.add(count, event.n, 1)
        return [Out(event.key, event.n) for event in events]

    w = await world(app)
    keys = keys_in(0, 5)
    await w.client.publish(*[Left(keys[n % 5], n) for n in range(50)])
    committed = 0

    async def lose_power(units: Sequence[Unit]) -> None:
        nonlocal committed
        if any(unit.writes for unit in units) and not after:
            await asyncio.Event().wait()
        if committed and after:
            await asyncio.Event().wait()
        committed += any(bool(unit.writes) for unit in units)

    w.store.before_commit = lose_power
    await w.start()
    await w.until(lambda: calls == 1 and bool(committed) == after)
    for _ in range(3):
        await w.tick()
    await w.crash()
    w.store.before_commit = None
    assert len(await w.rows("count/1")) == (50 if after else 0)
    await w.start()
    await w.settle(step_s=0.1)
    assert set((await w.rows("count/1")).values()) == {b"1"}
    assert sorted(event.n for event in await w.events(Out)) == list(range(50))
    assert calls == (1 if after else 2)


async def test_a_handler_that_changes_nothing_is_not_called_again_for_what_it_did_before_a_crash(world: Make) -> None:
    """Progress is stored while more is waiting, and not only when all is done."""
    app = App("app", delivery=FAST)
    calls: list[int] = []
    gate = asyncio.Event()

    @app.on_batch(Left, most=5)
    async def handle(events: list[Left]) -> None:
        calls.extend(event.n for event in events)
        if len(calls) == 50:
            await gate.wait()

    w = await world(app)
    (key,) = keys_in(0, 1)
    await w.client.publish(*[Left(key, n) for n in range(100)])
    await w.start()
    await w.until(lambda: len(calls) == 50)
    w.clock.advance(1)
    for _ in range(50):
        await w.tick(0.1)
    await w.crash()
    gate.set()
    await w.start()
    await w.settle(step_s=0.1)
    assert len(calls) == 105  # the one that was in hand again


async def test_batches_of_two_slots_that_change_one_row_lose_nothing(world: Make) -> None:
    app = App("app", delivery=FAST)
    total = app.state("total/1", int)
    other = app.subscription("other", delivery=FAST)
    others = other.state("others/1", int)

    @app.on_batch(Left, most=7)
    async def handle(events: list[Left], tx: Tx) -> None:
        have = await tx.get(total, "x", 0)
        for _ in range(3):
            await asyncio.sleep(0)
        tx.put(total, "x", have + len(events))

    @other.on_batch(Left, most=3)
    async def look(events: list[Left], tx: Tx) -> None:
        await tx.get(total, "x", 0)  # in conflict with the other subscription's batches
        have = await tx.get(others, "x", 0)
        await asyncio.sleep(0)
        tx.put(others, "x", have + len(events))

    w = await world(app, shaky=random.Random(1))
    await w.client.publish(*[Left(f"k{n}", n) for n in range(200)])
    await w.start()
    await w.settle(step_s=0.05)
    assert await w.rows("total/1") == {'["x"]': b"200"}
    assert await w.rows("others/1") == {'["x"]': b"200"}
    assert [one.held_records for one in (await w.store.status()).subscriptions] == [0, 0]


async def test_what_a_batch_publishes_has_the_same_ids_whatever_batch_its_cause_is_in(world: Make) -> None:
    sizes = iter([7, 3])
    ids: list[dict[str, str | None]] = []
    loose: list[set[str | None]] = []

    def newer() -> App[None]:
        app = App("app", delivery=FAST)

        @app.on_batch(Left, most=next(sizes))
        async def handle(events: list[Left], tx: Tx) -> Sequence[Out]:
            for record in tx.records:
                tx.publish(Out(record.event.key, record.event.n, "caused"), cause=record)
            return [Out(event.key, event.n, "loose") for event in events]

        return app

    w = await world(newer())
    (key,) = keys_in(0, 1)
    await w.client.publish(*[Left(key, n) for n in range(20)])
    hang = True

    async def lose_power(units: Sequence[Unit]) -> None:
        emitted = [one.record for unit in units for one in unit.emits]
        if emitted:
            ids[-1].update({r.data.decode(): r.id for r in emitted if b"caused" in r.data})
            loose[-1].update(r.id for r in emitted if b"loose" in r.data)
            if hang:
                await asyncio.Event().wait()

    w.store.before_commit = lose_power
    ids.append({})
    loose.append(set())
    await w.start()
    await w.until(lambda: len(ids[0]) == 7)
    await w.crash()
    hang = False
    ids.append({})
    loose.append(set())
    w.now(newer())
    await w.start()
    await w.settle(step_s=0.1)
    assert len(ids[1]) == 20
    assert all(ids[1][data] == id_ for data, id_ in ids[0].items())
    records = await w.records(out)
    assert len({record.id for record in records}) == len(records) == 40
    causes = {record.id: record for record in await w.records(left)}
    for record in records:
        if b"caused" in record.data:
            assert b'"n":%d' % number(causes[record.headers["causationid"]].data) in record.data
