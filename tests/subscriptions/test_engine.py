"""An engine on a log and a store, both real, on a clock that is moved: order, progress and starting."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from pathlib import Path

import apsw
import pytest
from tests.subscriptions.keys import keys_in, of_key
from tests.subscriptions.world import Free, Left, Make, Out, Right, World

from everlog import App, Delivery, Event, Tx
from everlog.contracts.topic import Topic
from everlog.errors import DeclarationError, StartUndecided
from everlog.store import Unit
from everlog.subscriptions import progress as progress_module

FAST = Delivery(start="beginning")


# ---- order and concurrency ----


@pytest.mark.parametrize("concurrency", [1, 3, 64])
@pytest.mark.parametrize("in_files", [False, True], ids=["memory", "files"])
async def test_events_of_a_key_are_handled_in_order_and_never_two_at_once(
    world: Make, tmp_path: Path, in_files: bool, concurrency: int
) -> None:
    app = App("app", delivery=Delivery(start="beginning", concurrency=concurrency))
    dice = random.Random(concurrency)
    seen: list[tuple[str, int]] = []
    running: set[str] = set()
    most = 0

    @app.on(Left, Right)
    async def handle(event: Left | Right) -> None:
        nonlocal most
        assert event.key not in running
        running.add(event.key)
        most = max(most, len(running))
        for _ in range(dice.choice((0, 0, 1, 3, 10))):
            await asyncio.sleep(0)
        running.remove(event.key)
        seen.append((f"{type(event).__name__}{event.key}", event.n))

    w = await world(app, folder=tmp_path if in_files else None)
    for at in range(10):
        events = [cls(f"k{n % 17}", n) for n in range(at * 100, at * 100 + 100) for cls in (Left, Right)]
        await w.client.publish(*events)
        if at == 4:
            await w.start()
    await w.until(lambda: len(seen) >= 2000)
    await w.settle()
    await w.stop()
    for kind in ("Left", "Right"):
        for k in range(17):
            assert of_key(seen, f"{kind}k{k}") == list(range(k, 1000, 17))
    assert len(seen) == 2000
    assert most <= concurrency
    assert concurrency == 1 or most > 1


async def test_a_null_key_waits_for_nothing(world: Make) -> None:
    app = App("app", delivery=FAST)
    gate = asyncio.Event()
    done: list[int] = []

    @app.on(Free)
    async def handle(event: Free) -> None:
        if event.n == 0:
            await gate.wait()
        if event.n == 1:
            raise RuntimeError("no")
        done.append(event.n)

    w = await world(app)
    await w.client.publish(*[Free(n) for n in range(40)])
    await w.start()
    await w.until(lambda: len(done) == 38)
    gate.set()
    await w.until(lambda: len(done) == 39)
    held = await w.store.parked()
    assert [one.first.record.data for one in held] == [b'{"n":1}']


async def test_a_key_that_only_runs_long_holds_up_no_other_key(world: Make) -> None:
    app = App("app", delivery=FAST)
    gate = asyncio.Event()
    done: list[tuple[str, int]] = []
    slow, other = keys_in(0, 2)

    @app.on(Left)
    async def handle(event: Left) -> None:
        if (event.key, event.n) == (slow, 0):
            await gate.wait()
        done.append((event.key, event.n))

    w = await world(app)
    await w.client.publish(*[Left(key, n) for n in range(50) for key in (slow, other)])
    await w.start()
    await w.until(lambda: len(done) == 50)
    assert of_key(done, slow) == []
    gate.set()
    await w.until(lambda: len(done) == 100)
    assert of_key(done, slow) == list(range(50))


async def test_the_read_ahead_of_a_partition_is_bounded_while_a_key_runs_long(world: Make) -> None:
    app = App("app", delivery=FAST)
    gate = asyncio.Event()
    done: list[str] = []
    slow, other = keys_in(0, 2)
    elsewhere = keys_in(1, 1)[0]

    @app.on(Left)
    async def handle(event: Left) -> None:
        if event.key == slow:
            await gate.wait()
        done.append(event.key)

    w = await world(app)
    await w.client.publish(Left(slow))
    for at in range(0, 20_000, 2_000):
        await w.client.publish(*[Left(other, n) for n in range(at, at + 2_000)])
    await w.client.publish(*[Left(elsewhere, n) for n in range(3)])
    await w.start()
    await w.until(lambda: done.count(elsewhere) == 3)
    for _ in range(5):
        await w.tick()
    assert 9_000 <= done.count(other) <= progress_module.READ_AHEAD_RECORDS + 2_000
    gate.set()
    await w.until(lambda: len(done) == 20_004)
    assert len(done) == 20_004


async def test_what_waits_for_the_read_ahead_is_handled_once(world: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of a full partition wait in two places when another partition's chunk stands between them."""
    monkeypatch.setattr(progress_module, "READ_AHEAD_RECORDS", 100)
    app = App("app", delivery=Delivery(start="beginning", concurrency=8))
    gate = asyncio.Event()
    count = app.state("count/1", int)
    slow, other = keys_in(0, 2)
    between = keys_in(1, 1)[0]
    done: list[tuple[str, int]] = []

    @app.on(Left)
    async def handle(event: Left, tx: Tx) -> None:
        if event.key == slow:
            await gate.wait()
        if event.key == between and event.n == 100:
            gate.set()
        done.append((event.key, event.n))
        tx.add(count, event.key, 1)

    w = await world(app)
    await w.client.publish(Left(slow))
    for at in range(0, 300, 50):
        if at == 150:
            await w.client.publish(*[Left(between, n) for n in range(3_000)])
        await w.client.publish(*[Left(other, n) for n in range(at, at + 50)])
    await w.start()
    await w.until(lambda: len(of_key(done, between)) == 3_000 and len(of_key(done, other)) >= 300)
    await w.client.publish(Left(other, 300))  # behind whatever is read twice
    await w.until(lambda: (other, 300) in done)
    await w.settle()
    await w.stop()
    assert of_key(done, other) == list(range(301))
    assert await w.rows("count/1") == {f'["{slow}"]': b"1", f'["{other}"]': b"301", f'["{between}"]': b"3000"}


# ---- progress, stop and restart ----


async def test_progress_of_a_handler_that_was_suspended_and_changed_nothing_is_committed(world: Make) -> None:
    app = App("app", delivery=FAST)
    gate = asyncio.Event()
    calls: list[int] = []

    @app.on(Left)
    async def handle(event: Left) -> None:
        calls.append(event.n)
        await gate.wait()

    w = await world(app)
    await w.client.publish(Left("a", 1))
    await w.start()
    await w.until(lambda: calls == [1])
    for _ in range(3):
        await w.tick(0.1)
    gate.set()
    for _ in range(50):
        await w.tick(0.1)
    assert await w.unfinished() == 0
    await w.crash()
    await w.start()
    for _ in range(5):
        await w.tick(0.1)
    assert calls == [1]


async def test_a_stop_while_a_resumed_record_is_in_its_handler_does_not_run_it_again(world: Make) -> None:
    app = App("app", delivery=FAST)
    gate = asyncio.Event()
    entered = asyncio.Event()
    count = app.state("count/1", int)

    @app.on(Left)
    async def handle(event: Left, tx: Tx) -> None:
        if event.n == 0:
            entered.set()
            await gate.wait()
        tx.add(count, event.key, 1)

    w = await world(app)
    slow, other = keys_in(0, 2)
    await w.client.publish(Left(slow, 0), *[Left(other, n) for n in range(1, 50)])
    await w.start()
    while (await w.rows("count/1")).get(f'["{other}"]') != b"49":
        await w.tick()
    await w.crash()  # the slow one stays unfinished, and the others are finished

    entered.clear()
    alone = App("app", delivery=Delivery(start="beginning", concurrency=1))
    alone.state("count/1", int)
    alone.on(Left)(handle)
    w.now(alone)
    await w.start()
    await asyncio.wait_for(entered.wait(), 5)
    w.begin_stop()
    for _ in range(50):  # the app takes nothing more, and waits for the handler
        await asyncio.sleep(0)
    gate.set()
    await w.stop()
    assert await w.rows("count/1") == {f'["{slow}"]': b"1", f'["{other}"]': b"49"}

    await w.start()
    for _ in range(5):
        await w.tick()
    assert await w.rows("count/1") == {f'["{slow}"]': b"1", f'["{other}"]': b"49"}


async def test_a_graceful_stop_leaves_nothing_half_done_and_a_restart_handles_exactly_the_rest(world: Make) -> None:
    app = App("app", delivery=Delivery(start="beginning", concurrency=4))
    dice = random.Random(5)
    seen: list[tuple[str, int]] = []
    count = app.state("count/1", int)

    @app.on(Left)
    async def handle(event: Left, tx: Tx) -> Out:
        for _ in range(dice.choice((0, 1, 4))):
            await asyncio.sleep(0)
        seen.append((event.key, event.n))
        tx.add(count, event.key, 1)
        return Out(event.key, event.n)

    w = await world(app)
    await w.client.publish(*[Left(f"k{n % 9}", n) for n in range(900)])
    for goal in (50, 200, 333, 700):
        await w.start()
        await w.until(lambda goal=goal: len(seen) >= goal)  # type: ignore[misc]
        await w.stop()
    await w.start()
    await w.until(lambda: len(seen) >= 900)
    await w.settle()
    await w.stop()
    assert len(seen) == 900  # a graceful stop runs nothing twice
    for k in range(9):
        assert of_key(seen, f"k{k}") == list(range(k, 900, 9))
    outs = await w.events(Out)
    assert sorted(event.n for event in outs) == list(range(900))
    assert set((await w.rows("count/1")).values()) == {b"100"}


async def test_a_slot_can_be_given_back_while_other_slots_keep_the_store_busy(world: Make) -> None:
    """`drain` waits for what was queued before it, and not until nobody has anything to commit."""
    app = App("app", delivery=FAST)
    count = app.state("count/1", int)
    stop = False
    handled = 0
    busy = keys_in(1, 1)[0]

    @app.on(Left)
    async def handle(event: Left, tx: Tx) -> None:
        nonlocal handled
        handled += 1
        tx.add(count, event.key, 1)

    w = await world(app)
    n = 0

    async def feed() -> None:
        nonlocal n
        while not stop:
            await w.client.publish(*[Left(busy, n + i) for i in range(20)])
            n += 20
            await asyncio.sleep(0)

    await w.start()
    feeding = asyncio.create_task(feed())
    await w.until(lambda: handled > 200)
    # Another member comes: half of the slots are its.
    await _join_stranger(w)
    limit = handled + 100_000
    try:
        while sum(owner is not None for owner in (await w.store.survey("app")).owners.values()) != 2:
            assert handled < limit, "four slots are still kept after 100,000 events of one of them"
            await w.tick(0.05)
    finally:
        stop = True
        await feeding


async def _join_stranger(w: World) -> None:
    """Write a second live member into the store, which takes nothing."""

    def join(connection: apsw.Connection) -> None:
        connection.execute(
            "INSERT INTO member SELECT number + 1, pid, pid_start, boot_id, pid_namespace, handles, seen_s + 100000, paused FROM member"
        )

    await w.store._write(join)


# ---- starting ----


async def test_more_than_ten_thousand_waiting_events_need_a_word(world: Make) -> None:
    app = App("app")
    seen: list[int] = []

    @app.on(Left)
    async def handle(event: Left) -> None:
        seen.append(event.n)

    w = await world(app)
    for at in range(0, 10_001, 3_334):
        await w.client.publish(*[Left("a", n) for n in range(at, at + 3_334)])
    with pytest.raises(StartUndecided, match=r'start="beginning".*start="now"'):
        await w.start()
    late = App("app", delivery=Delivery(start="now"))
    late.on(Left)(handle)
    w.now(late)
    await w.start()
    await w.client.publish(Left("a", -1))
    await w.until(lambda: bool(seen))
    assert seen == [-1]


async def test_two_topics_with_unequal_partitions_are_refused(world: Make) -> None:
    narrow = Topic("test.narrow", key="key", partitions=2)

    @narrow.event("test.narrow/1")
    class Narrow(Event):
        key: str

    app = App("app", delivery=FAST)

    @app.on(Left, Narrow)
    async def handle(event: Left | Narrow) -> None: ...

    w = await world(app)
    with pytest.raises(DeclarationError, match="different numbers of partitions"):
        await w.start()


async def test_a_slow_store_holds_handlers_up(world: Make) -> None:
    app = App("app", delivery=FAST)
    total = app.state("total/1", int)
    calls = 0
    gate = asyncio.Event()

    @app.on(Left)
    async def handle(event: Left, tx: Tx) -> None:
        nonlocal calls
        calls += 1
        tx.add(total, "x", 1)

    w = await world(app)

    async def wait(units: Sequence[Unit]) -> None:
        if units:
            await gate.wait()

    w.store.before_commit = wait
    for at in range(0, 12_000, 3_000):
        await w.client.publish(*[Left(f"k{n}", n) for n in range(at, at + 3_000)])
    await w.start()
    await w.until(lambda: calls >= 1_000)
    for _ in range(20):
        await w.tick()
    assert calls < 2_500
    gate.set()
    await w.until(lambda: calls == 12_000)
    await w.settle()
    assert await w.rows("total/1") == {'["x"]': b"12000"}
