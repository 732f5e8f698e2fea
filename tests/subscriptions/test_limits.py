"""Time limits, cancellation, and what a handler publishes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from tests.subscriptions.world import PARTITIONS, Left, Make, Out, left

from everlog import App, Delivery, Retry, Tx
from everlog.contracts.topic import Topic
from everlog.errors import EventRefused, NotInHandler, TxClosed, TxRefused
from everlog.store import Unit

FAST = Delivery(start="beginning")


# ---- time limits and cancellation ----


async def test_a_handler_past_its_limit_is_cancelled_and_that_is_a_failed_attempt(world: Make) -> None:
    app = App(
        "app", delivery=Delivery(start="beginning", time_limit_s=8, on_error={Exception: Retry(attempts=2, first_s=0, most_s=0)})
    )
    cancelled: list[float] = []
    others: list[str] = []
    total = app.state("total/1", int)

    @app.on(Left)
    async def handle(event: Left, tx: Tx) -> None:
        if event.key != "slow":
            others.append(event.key)
            return
        tx.add(total, "x", 1)
        since = w.clock.monotonic_s()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(w.clock.monotonic_s() - since)
            raise

    w = await world(app)
    await w.client.publish(Left("slow"), Left("slow", 1), *[Left(f"k{n}") for n in range(10)])
    await w.start()
    await w.until(lambda: len(cancelled) == 2, step_s=0.25)
    await w.settle(step_s=0.25)
    assert all(8 <= seconds <= 10 for seconds in cancelled), cancelled
    assert len(others) == 10
    (parked,) = await w.store.parked()
    assert parked.first.error.startswith("HandlerTimeout")
    assert (parked.first.attempts, parked.records) == (2, 2)
    assert await w.rows("total/1") == {}


async def test_a_handler_just_below_its_limit_is_left_alone(world: Make) -> None:
    app = App("app", delivery=Delivery(start="beginning", time_limit_s=8, on_error={Exception: "park"}))
    done: list[float] = []

    @app.on(Left)
    async def handle(event: Left) -> None:
        await w.clock.sleep(7.9)
        done.append(w.clock.monotonic_s())

    w = await world(app)
    await w.start()
    for n in range(20):  # at every place between two looks of the watchdog
        await w.client.publish(Left(f"k{n}"))
        await w.until(lambda n=n: len(done) > n or w.has_ended, step_s=0.13)  # type: ignore[misc]
    assert (await w.store.status()).subscriptions[0].parked_keys == 0


async def test_a_timeout_inside_a_handler_works_and_touches_nothing_else(world: Make) -> None:
    app = App("app", delivery=FAST)
    outcomes: list[str] = []

    @app.on(Left)
    async def handle(event: Left) -> None:
        await asyncio.sleep(0)
        try:
            async with asyncio.timeout(0.001):
                await asyncio.Event().wait()
        except TimeoutError:
            outcomes.append("timeout")
        async with asyncio.timeout(5):
            await asyncio.sleep(0)
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.sleep(0))
        outcomes.append("done")

    w = await world(app)
    await w.client.publish(*[Left(f"k{n % 5}", n) for n in range(20)])
    await w.start()
    await w.until(lambda: outcomes.count("done") == 20)
    await w.settle()
    assert outcomes.count("timeout") == 20


async def test_a_handler_that_swallows_its_cancellation_has_failed_and_the_app_still_stops(world: Make) -> None:
    app = App("app", delivery=Delivery(start="beginning", time_limit_s=8, on_error={Exception: "park"}, concurrency=1))
    total = app.state("total/1", int)
    swallowed = 0

    @app.on(Left)
    async def handle(event: Left, tx: Tx) -> None:
        nonlocal swallowed
        if event.n == 0:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                swallowed += 1
        tx.add(total, event.key, 1)

    w = await world(app)
    await w.client.publish(Left("a", 0), Left("b", 1))
    await w.start()
    await w.until(lambda: swallowed == 1, step_s=0.5)
    while await w.unfinished():
        await w.tick(0.1)
    assert await w.rows("total/1") == {'["b"]': b"1"}  # the unit of the first was closed at its limit
    async with asyncio.timeout(5):
        await w.crash()  # cancels every task, and waits for it


async def test_a_cancellation_of_the_handlers_own_making_is_a_failed_attempt(world: Make) -> None:
    app = App("app", delivery=Delivery(start="beginning", on_error={Exception: "park"}))
    seen: list[str] = []

    @app.on(Left)
    async def handle(event: Left) -> None:
        if event.key == "bad":
            future = asyncio.get_running_loop().create_future()
            future.cancel()
            await future
        seen.append(event.key)

    w = await world(app)
    await w.client.publish(Left("bad"), Left("good"))
    await w.start()
    await w.until(lambda: seen == ["good"])
    await w.settle()
    assert (await w.store.status()).subscriptions[0].parked_keys == 1


async def test_tx_is_closed_when_the_handler_has_ended(world: Make) -> None:
    app = App("app", delivery=FAST)
    total = app.state("total/1", int)
    kept: list[Tx] = []

    @app.on(Left)
    async def handle(event: Left, tx: Tx) -> None:
        kept.append(tx)
        if event.n:
            await asyncio.sleep(0)

    w = await world(app)
    await w.client.publish(Left("a", 0), Left("a", 1))
    await w.start()
    await w.until(lambda: len(kept) == 2)
    await w.settle()
    for tx in kept:
        with pytest.raises(TxClosed):
            tx.add(total, "x", 1)
        with pytest.raises(TxClosed):
            await tx.get(total, "x")
        with pytest.raises(TxClosed):
            tx.publish(Out("a"))


# ---- what is emitted ----


async def test_publishing_with_the_client_inside_a_handler_is_refused(world: Make) -> None:
    app = App("app", delivery=FAST)
    errors: list[Exception] = []

    @app.on(Left)
    async def handle(event: Left) -> None:
        try:
            await w.client.publish(Out("a"))
        except NotInHandler as error:
            errors.append(error)
        await w.client.publish_direct(Out("direct"))

    w = await world(app)
    await w.client.publish(Left("a"))
    await w.start()
    await w.settle()
    assert len(errors) == 1
    assert "tx.publish" in str(errors[0])
    assert await w.events(Out) == [Out("direct")]
    await w.client.publish(Out("outside"))


async def test_emitted_events_carry_where_they_come_from_and_the_same_ids_on_a_second_run(world: Make) -> None:
    app = App("app", delivery=Delivery(start="beginning", on_error={Exception: Retry(attempts=9, first_s=0, most_s=0)}))
    keys: list[str] = []

    @app.on(Left)
    async def handle(event: Left, tx: Tx) -> Sequence[Out]:
        keys.append(tx.idempotency_key)
        tx.publish(Out("first"))
        return [Out("second"), Out("third")]

    w = await world(app)
    await w.client.publish(Left("a"), headers={"traceparent": "00-aa-bb-01", "correlationid": "c1", "tenant": "t"})
    crashes = 0

    async def lose_power(units: Sequence[Unit]) -> None:
        nonlocal crashes
        emitted = [one.record.id for unit in units for one in unit.emits]
        if emitted:
            ids.append(emitted)
            if len(ids) < 3:
                await asyncio.Event().wait()

    ids: list[list[str | None]] = []
    w.store.before_commit = lose_power
    for at in range(3):
        await w.start()
        await w.until(lambda at=at: len(ids) > at, step_s=0.1)  # type: ignore[misc]
        if at < 2:
            await w.crash()
    await w.settle()
    (left_record,) = await w.records(left)
    assert ids[0] == ids[1] == ids[2]
    assert len(set(ids[0])) == 3
    assert len(set(keys)) == 1
    assert keys[0] == f"app/app/test/{left_record.id}"
    outs = sorted(
        await w.records(Topic("test.out", key="key", partitions=PARTITIONS)), key=lambda record: ids[0].index(record.id)
    )
    assert [record.key for record in outs] == ["first", "second", "third"]
    for record in outs:
        assert record.source == "app"
        assert dict(record.headers) == {"traceparent": "00-aa-bb-01", "correlationid": "c1", "causationid": left_record.id}


async def test_what_a_handler_publishes_is_checked_when_it_ends(world: Make) -> None:
    app = App("app", delivery=Delivery(start="beginning", on_error={EventRefused: "park", TxRefused: "park"}))

    @app.on(Left)
    async def handle(event: Left, tx: Tx) -> Out | None:
        if event.n == 0:
            return Out(event.key, "x")  # type: ignore[arg-type]
        if event.n == 1:
            tx.publish("no event")  # type: ignore[arg-type]
        if event.n == 2:
            return "text"  # type: ignore[return-value]
        if event.n == 3:
            tx.publish(Out("a"), headers={"Bad Name": "x"})
        return None

    w = await world(app)
    await w.client.publish(*[Left(f"k{n}", n) for n in range(5)])
    await w.start()
    await w.settle()
    assert sorted(one.key for one in await w.store.parked()) == ["k0", "k1", "k2", "k3"]
