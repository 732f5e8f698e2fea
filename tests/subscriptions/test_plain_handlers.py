"""Handlers that are plain functions: they run in threads, and everything else holds as for others."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, cast

import pytest
from tests.subscriptions.keys import keys_in, number, of_key
from tests.subscriptions.world import Left, Make, Out, Right, out

from everlog import App, Delivery, Retry, Tx
from everlog.errors import HandlerExited, NotInHandler, TxClosed, TxRefused

FAST = Delivery(start="beginning")
PARK = Delivery(start="beginning", on_error={Exception: "park"})


# ---- order and concurrency ----


async def test_events_of_a_key_are_handled_in_order_and_never_two_at_once(world: Make) -> None:
    app = App("app", delivery=Delivery(start="beginning", concurrency=16))
    seen: list[tuple[str, int]] = []
    running: Counter[str] = Counter()
    overlaps: list[str] = []

    @app.on(Left)
    def handle(event: Left) -> None:
        running[event.key] += 1
        if running[event.key] > 1:
            overlaps.append(event.key)
        for _ in range(event.n % 5):
            threading.Event().wait(0)
        seen.append((event.key, event.n))
        running[event.key] -= 1

    w = await world(app)
    await w.client.publish(*[Left(f"k{n % 20}", n) for n in range(1_000)])
    await w.start()
    await w.settle()
    assert overlaps == []
    for k in range(20):
        assert of_key(seen, f"k{k}") == list(range(k, 1_000, 20))


async def test_as_many_functions_block_at_once_as_the_delivery_says(world: Make) -> None:
    app = App("app", delivery=FAST)
    everybody = threading.Barrier(64 + 1)
    names: set[str] = set()

    @app.on(Left)
    def handle(event: Left) -> None:
        names.add(threading.current_thread().name)
        everybody.wait(10)

    w = await world(app)
    await w.client.publish(*[Left(f"k{n}", n) for n in range(64)])
    await w.start()
    await asyncio.to_thread(everybody.wait, 10)
    await w.settle()
    assert len(names) == 64


async def test_a_function_that_blocks_holds_up_neither_the_event_loop_nor_other_keys(world: Make) -> None:
    app = App("app", delivery=Delivery(start="beginning", concurrency=2))
    gate = threading.Event()
    done: list[int] = []

    @app.on(Left)
    def handle(event: Left) -> None:
        if event.n == 0:
            gate.wait(10)
        done.append(event.n)

    w = await world(app)
    await w.client.publish(Left("slow", 0), *[Left("fast", n) for n in range(1, 20)])
    await w.start()
    await w.until(lambda: done == list(range(1, 20)))
    gate.set()
    await w.settle()


# ---- what a function may do ----


async def test_a_function_writes_publishes_and_returns_events(world: Make) -> None:
    app = App("app", delivery=FAST)
    total = app.state("total/1", int)
    last = app.state("last/1", int)
    keys: list[str] = []

    @app.on(Left)
    def handle(event: Left, tx: Tx) -> Sequence[Out]:
        keys.append(tx.idempotency_key)
        assert tx.record.event == event
        tx.add(total, "x", event.n)
        tx.put(last, event.key, event.n)
        if event.n == 2:
            tx.delete(last, event.key)
        tx.publish(Out(event.key, event.n, "published"), cause=tx.record)
        return [Out(event.key, event.n, "returned")]

    @app.on(Right)
    def without_tx(event: Right) -> Out:
        return Out(event.key, event.n, "right")

    w = await world(app)
    await w.client.publish(Left("a", 1), Left("b", 2), Right("c", 3))
    await w.start()
    await w.settle()
    assert await w.rows("total/1") == {'["x"]': b"3"}
    assert await w.rows("last/1") == {'["a"]': b"1"}
    assert sorted((one.n, one.by) for one in await w.events(Out)) == [
        (1, "published"),
        (1, "returned"),
        (2, "published"),
        (2, "returned"),
        (3, "right"),
    ]
    assert len(set(keys)) == 2


async def test_what_a_function_would_have_to_await_is_refused_with_what_to_do(world: Make) -> None:
    app = App("app", delivery=PARK)
    total = app.state("total/1", int)
    refused: list[str] = []

    @app.on(Left)
    def handle(event: Left, tx: Tx) -> None:
        for ask in (lambda: tx.get(total, "x"), lambda: tx.scan(total), lambda: tx.sql("SELECT 1")):
            with pytest.raises(TxRefused) as caught:
                ask()
            refused.append(str(caught.value))

    w = await world(app)
    await w.client.publish(Left("a"))
    await w.start()
    await w.settle()
    assert [text.partition(" ")[0] for text in refused] == ["tx.get", "tx.scan", "tx.sql"]
    assert all("make it async (async def" in text for text in refused)


async def test_publishing_with_the_client_in_a_function_is_refused(world: Make) -> None:
    app = App("app", delivery=FAST)
    errors: list[Exception] = []

    @app.on(Left)
    def handle(event: Left) -> None:
        try:
            asyncio.run(cast("Any", w.client.publish(Out("a"))))
        except NotInHandler as error:
            errors.append(error)

    w = await world(app)
    await w.client.publish(Left("a"))
    await w.start()
    await w.settle()
    assert len(errors) == 1
    assert "tx.publish" in str(errors[0])
    await w.client.publish(Out("outside"))


async def test_what_a_function_publishes_is_checked_when_it_ends(world: Make) -> None:
    app = App("app", delivery=PARK)

    @app.on(Left)
    def handle(event: Left, tx: Tx) -> Any:
        if event.n == 0:
            return Out(event.key, "x")  # type: ignore[arg-type]
        if event.n == 1:
            tx.publish("no event")  # type: ignore[arg-type]
        return "text" if event.n == 2 else None

    w = await world(app)
    await w.client.publish(*[Left(f"k{n}", n) for n in range(4)])
    await w.start()
    await w.settle()
    assert sorted(one.key for one in await w.store.parked()) == ["k0", "k1", "k2"]


# ---- failures ----


class Odd(BaseException):
    pass


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (ValueError("x"), "ValueError: x"),
        (SystemExit(3), "HandlerExited"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (StopIteration("x"), "StopIteration"),
        (asyncio.CancelledError(), "CancelledError"),
        (Odd("x"), "Odd: x"),
    ],
    ids=lambda one: type(one).__name__,
)
async def test_whatever_a_function_raises_is_a_failed_attempt(world: Make, error: BaseException, shown: str) -> None:
    app = App("app", delivery=PARK)
    done: list[int] = []

    @app.on(Left)
    def handle(event: Left) -> None:
        if event.n == 1:
            if isinstance(error, SystemExit):
                sys.exit(3)
            raise error
        done.append(event.n)

    w = await world(app)
    keys = keys_in(0, 3)
    await w.client.publish(*[Left(key, n) for n, key in enumerate(keys)])
    await w.start()
    await w.settle()
    assert sorted(done) == [0, 2]
    (parked,) = await w.store.parked()
    assert shown in parked.first.error
    assert "in handle" in parked.first.trace


async def test_a_policy_for_handlers_that_exit_holds_for_functions_too(world: Make) -> None:
    app = App("app", delivery=Delivery(start="beginning", on_error={HandlerExited: "skip"}))

    @app.on(Left)
    def handle(event: Left) -> None:
        sys.exit(1)

    w = await world(app)
    await w.client.publish(Left("a", 7))
    await w.start()
    await w.settle()
    assert [number(one.record.data) for one in await w.store.skipped()] == [7]


async def test_a_function_that_fails_is_tried_again_and_changes_nothing_before(world: Make) -> None:
    app = App("app", delivery=Delivery(start="beginning", on_error={Exception: Retry(attempts=9, first_s=1, most_s=1)}))
    total = app.state("total/1", int)
    tries: list[int] = []

    @app.on(Left)
    def handle(event: Left, tx: Tx) -> None:
        tx.add(total, "x", 1)
        tries.append(event.n)
        if len(tries) < 3:
            raise RuntimeError("not yet")

    w = await world(app)
    await w.client.publish(Left("a", 0), Left("a", 1))
    await w.start()
    await w.until(lambda: tries == [0, 0, 0, 1], step_s=0.5)
    await w.settle()
    assert await w.rows("total/1") == {'["x"]': b"2"}


async def test_a_function_past_its_limit_has_failed_and_its_tx_is_closed_while_it_still_runs(world: Make) -> None:
    app = App("app", delivery=Delivery(start="beginning", time_limit_s=8, on_error={Exception: "park"}))
    total = app.state("total/1", int)
    gate = threading.Event()
    errors: list[type[Exception]] = []

    @app.on(Left)
    def handle(event: Left, tx: Tx) -> None:
        tx.add(total, "x", 1)
        gate.wait(10)
        uses: list[Callable[[], None]] = [lambda: tx.add(total, "x", 1), lambda: tx.publish(Out("a"))]
        for use in uses:
            try:
                use()
            except TxClosed as error:
                errors.append(type(error))

    w = await world(app)
    await w.client.publish(Left("a", 0), Left("a", 1))
    await w.start()
    await w.tick()
    for _ in range(12):  # past the limit, and not so far that the process would end
        await w.tick(1)
        if not gate.is_set() and w.clock.monotonic_s() > 1_010.5:
            gate.set()
    await w.settle(step_s=0.1)
    assert errors == [TxClosed, TxClosed]
    (parked,) = await w.store.parked()
    assert parked.first.error.startswith("HandlerTimeout")
    assert await w.rows("total/1") == {}
    assert not any(unit.emits for units, _ in w.store.commits for unit in units)


async def test_a_function_that_never_returns_does_not_keep_the_app_from_ending(world: Make) -> None:
    app = App("app", delivery=FAST)
    gate = threading.Event()
    entered = threading.Event()

    @app.on(Left)
    def handle(event: Left) -> None:
        entered.set()
        gate.wait(30)

    w = await world(app)
    await w.client.publish(Left("a"))
    await w.start()
    await asyncio.to_thread(entered.wait, 5)
    try:
        async with asyncio.timeout(2):
            await w.crash()  # cancels every task, as the end of the grace period does
    finally:
        gate.set()


async def test_threads_end_with_the_app(world: Make) -> None:
    app = App("app", delivery=FAST)
    before = set(threading.enumerate())

    @app.on(Left)
    def handle(event: Left) -> None:
        threading.Event().wait(0.001)

    w = await world(app)
    await w.client.publish(*[Left(f"k{n}", n) for n in range(64)])
    await w.start()
    await w.settle()
    ours = {thread for thread in threading.enumerate() if thread.name.startswith("everlog-handler")} - before
    assert ours
    await w.stop()
    for thread in ours:
        await asyncio.to_thread(thread.join, 1)
    assert not any(thread.is_alive() for thread in ours)


async def test_a_batch_handler_may_be_a_plain_function(world: Make) -> None:
    app = App("app", delivery=PARK)
    total = app.state("total/1", int)
    threads: set[str] = set()

    @app.on_batch(Left, most=10)
    def handle(events: list[Left], tx: Tx) -> Sequence[Out]:
        threads.add(threading.current_thread().name)
        assert [record.event for record in tx.records] == events
        if any(event.n == 13 for event in events):
            raise RuntimeError("bad")
        tx.add(total, "x", len(events))
        return [Out(event.key, event.n) for event in events]

    w = await world(app)
    keys = keys_in(0, 5)
    await w.client.publish(*[Left(keys[n % 5], n) for n in range(50)])
    await w.start()
    await w.settle()
    assert all(name.startswith("everlog-handler") for name in threads)
    fine = [n for n in range(50) if n < 13 or n % 5 != 13 % 5]
    assert await w.rows("total/1") == {'["x"]': b"%d" % len(fine)}
    assert sorted(event.n for event in await w.events(Out)) == fine
    assert len(await w.records(out)) == len(fine)
