"""An engine on a log and a store, both real, on a clock that is moved."""

from __future__ import annotations

import asyncio
import json
import logging
import random
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import apsw
import pytest
from tests.subscriptions.world import PARTITIONS, Free, Left, Make, Out, Right, World, left

from everlog import App, Delivery, Event, Retry, Tx
from everlog.contracts.topic import Topic
from everlog.errors import DeclarationError, EventRefused, NotInHandler, StartRefused, StartUndecided, TxClosed, TxRefused
from everlog.key import partition_of
from everlog.store import Cause, Held, Outcome, Slot, Unit
from everlog.subscriptions import progress as progress_module

FAST = Delivery(start="beginning")


def keys_in(partition: int, count: int) -> list[str]:
    """Return keys that belong to one partition."""
    found: list[str] = []
    for number in range(100_000):
        if partition_of(f"k{number}", PARTITIONS) == partition:
            found.append(f"k{number}")
            if len(found) == count:
                break
    return found


def of_key(seen: Sequence[tuple[str, int]], key: str) -> list[int]:
    return [n for k, n in seen if k == key]


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
    limit = handled + 20_000
    try:
        while sum(owner is not None for owner in (await w.store.survey("app")).owners.values()) != 2:
            assert handled < limit, "four slots are still kept after 20,000 events of one of them"
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


# ---- failures ----


async def test_a_failing_key_blocks_only_itself_and_its_later_events_follow_in_order(world: Make) -> None:
    app = App("app", delivery=FAST)
    broken = True
    seen: list[tuple[str, int]] = []

    @app.on(Left)
    async def handle(event: Left) -> None:
        if event.key == "bad" and event.n == 0 and broken:
            raise RuntimeError("not yet")
        seen.append((event.key, event.n))

    w = await world(app)
    await w.client.publish(*[Left(key, n) for n in range(10) for key in ("good", "bad")])
    await w.start()
    await w.until(lambda: of_key(seen, "good") == list(range(10)))
    await w.client.publish(*[Left(key, n) for n in range(10, 20) for key in ("good", "bad")])
    await w.until(lambda: of_key(seen, "good") == list(range(20)))
    assert of_key(seen, "bad") == []
    while await w.unfinished():
        await w.tick()
    (status,) = (await w.store.status()).subscriptions
    assert (status.blocked_keys, status.parked_keys, status.held_records) == (1, 0, 20)
    broken = False
    await w.until(lambda: len(of_key(seen, "bad")) == 20, step_s=1)
    assert of_key(seen, "bad") == list(range(20))
    await w.client.publish(Left("bad", 20))
    await w.until(lambda: of_key(seen, "bad") == list(range(21)))
    await w.settle()


@pytest.mark.parametrize("suspends", [False, True])
async def test_retries_back_off_and_the_last_attempt_parks(world: Make, caplog: pytest.LogCaptureFixture, suspends: bool) -> None:
    app = App("app", delivery=Delivery(start="beginning", on_error={OSError: Retry(attempts=4, first_s=10, most_s=30)}))
    at: list[float] = []

    @app.on(Left)
    async def handle(event: Left) -> None:
        at.append(w.clock.monotonic_s())
        if suspends:
            await asyncio.sleep(0)
        raise ConnectionError("down")

    w = await world(app)
    await w.client.publish(Left("a"), Left("b", 1))
    caplog.set_level(logging.INFO, "everlog")
    await w.start()
    await w.until(lambda: len(at) == 8, step_s=1)
    await w.settle()
    await w.stop()
    parked = await w.store.parked("app")
    assert [(one.key, one.records, one.first.cause, one.first.attempts, one.first.next_attempt_us) for one in parked] == [
        ("a", 1, Cause.FAILED, 4, None),
        ("b", 1, Cause.FAILED, 4, None),
    ]
    assert parked[0].first.error == "ConnectionError: down"
    assert "in handle" in parked[0].first.trace
    levels = [record.levelname for record in caplog.records if "key" in record.getMessage()]
    assert (levels.count("WARNING"), levels.count("ERROR")) == (6, 2)
    for first, second in zip(at[:2], at[2:4], strict=False):
        assert second - first <= 11


async def test_a_retry_waits_for_its_time(world: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random, "random", lambda: 0.99)
    app = App("app", delivery=Delivery(start="beginning", on_error={Exception: Retry(attempts=9, first_s=8, most_s=20)}))
    at: list[float] = []

    @app.on(Left)
    async def handle(event: Left) -> None:
        at.append(w.clock.monotonic_s())
        raise RuntimeError("down")

    w = await world(app)
    await w.client.publish(Left("a"))
    await w.start()
    await w.until(lambda: len(at) == 6, step_s=0.5)
    gaps = [later - earlier for earlier, later in pairwise(at)]
    for gap, expected in zip(gaps, [7.92, 15.84, 19.8, 19.8, 19.8], strict=True):
        assert expected <= gap <= expected + 1


async def test_a_clock_set_back_does_not_delay_a_retry_beyond_the_longest_pause(world: Make) -> None:
    app = App("app", delivery=FAST)
    calls = 0

    @app.on(Left)
    async def handle(event: Left) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise RuntimeError("down")

    w = await world(app)
    w.clock.jump(100_000)
    await w.client.publish(Left("a"))
    await w.start()
    await w.until(lambda: calls == 1)
    while not (await w.store.status()).subscriptions[0].blocked_keys:
        await w.tick()
    await w.stop()
    w.clock.jump(-100_000)
    before = w.clock.monotonic_s()
    await w.start()
    await w.until(lambda: calls == 2, step_s=1)
    assert w.clock.monotonic_s() - before <= 40


@pytest.mark.parametrize("suspends", [False, True])
@pytest.mark.parametrize(("policy", "handled", "parked"), [("skip", [0, 2, 3], 0), ("park", [0], 1)])
async def test_on_error_decides(world: Make, policy: str, handled: list[int], parked: int, suspends: bool) -> None:
    app = App("app", delivery=Delivery(start="beginning", on_error={ValueError: policy}))  # type: ignore[dict-item]
    seen: list[int] = []
    calls = 0

    @app.on(Left)
    async def handle(event: Left) -> None:
        nonlocal calls
        calls += 1
        if suspends:
            await asyncio.sleep(0)
        if event.n == 1:
            raise UnicodeError("x")  # a subclass of ValueError
        seen.append(event.n)

    w = await world(app)
    await w.client.publish(*[Left("a", n) for n in range(4)])
    await w.start()
    await w.settle(step_s=1)
    assert seen == handled
    assert (await w.store.status()).subscriptions[0].parked_keys == parked
    assert calls == len(handled) + 1


async def test_on_error_stop_stops_the_slot_and_keeps_the_event(world: Make, caplog: pytest.LogCaptureFixture) -> None:
    app = App("app", delivery=Delivery(start="beginning", on_error={ValueError: "stop"}))
    seen: list[tuple[str, int]] = []
    is_broken = True
    key, same = keys_in(0, 2)
    other = keys_in(1, 1)[0]

    @app.on(Left)
    async def handle(event: Left) -> None:
        if event.n == 3 and is_broken and event.key == key:
            raise ValueError("x")
        seen.append((event.key, event.n))

    w = await world(app)
    await w.client.publish(*[Left(key, n) for n in range(6)])
    await w.start()
    await w.until(lambda: "stops, as on_error says" in caplog.text)
    await w.client.publish(Left(same, 0), Left(other, 0))
    await w.until(lambda: (other, 0) in seen)
    for _ in range(5):
        await w.tick(0.5)
    assert of_key(seen, key) == [0, 1, 2]
    assert of_key(seen, same) == []
    await w.stop()
    is_broken = False
    await w.start()
    await w.settle()
    assert of_key(seen, key) == list(range(6))


async def test_a_parked_key_is_redriven_in_order(world: Make) -> None:
    app = App("app", delivery=Delivery(start="beginning", on_error={Exception: "park"}))
    broken = True
    seen: list[int] = []

    @app.on(Left)
    async def handle(event: Left) -> None:
        if broken and event.n == 0:
            raise RuntimeError("x")
        seen.append(event.n)

    w = await world(app)
    await w.client.publish(*[Left("a", n) for n in range(5)])
    await w.start()
    await w.settle()
    assert seen == []
    assert await w.store.request("app", "a", "redrive") == 1
    for _ in range(20):
        await w.tick(0.1)
    assert seen == []
    assert (await w.store.status()).subscriptions[0].parked_keys == 1
    broken = False
    await w.store.request("app", None, "redrive")
    await w.until(lambda: len(seen) == 5, step_s=0.1)
    assert seen == list(range(5))
    await w.client.publish(Left("a", 5))
    await w.until(lambda: seen == list(range(6)), step_s=0.1)


async def test_a_skipped_event_is_gone_and_its_key_goes_on(world: Make) -> None:
    app = App("app", delivery=Delivery(start="beginning", on_error={Exception: "park"}))
    seen: list[int] = []

    @app.on(Left)
    async def handle(event: Left) -> None:
        if event.n in (0, 3):
            raise RuntimeError("x")
        seen.append(event.n)

    w = await world(app)
    await w.client.publish(*[Left("a", n) for n in range(6)])
    await w.start()
    await w.settle()
    await w.store.request("app", "a", "skip")
    await w.until(lambda: seen == [1, 2], step_s=0.1)
    while not (await w.store.status()).subscriptions[0].parked_keys:
        await w.tick(0.1)
    await w.store.request("app", "a", "skip")
    await w.until(lambda: seen == [1, 2, 4, 5], step_s=0.1)
    await w.settle(step_s=0.1)
    assert (await w.store.status()).subscriptions[0].held_records == 0


async def test_held_keys_survive_a_crash(world: Make) -> None:
    app = App("app", delivery=Delivery(start="beginning", on_error={Exception: Retry(attempts=100, first_s=1, most_s=1)}))
    broken = True
    seen: list[int] = []

    @app.on(Left)
    async def handle(event: Left) -> None:
        if broken:
            raise RuntimeError("x")
        seen.append(event.n)

    w = await world(app)
    await w.client.publish(*[Left("a", n) for n in range(5)])
    await w.start()
    while await w.unfinished():
        await w.tick(0.1)
    await w.crash()
    await w.client.publish(*[Left("a", n) for n in range(5, 10)])
    broken = False
    await w.start()
    await w.until(lambda: len(seen) == 10, step_s=0.5)
    await w.settle()
    assert seen == list(range(10))


async def test_a_copy_that_is_committed_while_the_queue_is_read_is_not_forgotten(
    world: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that is asked over a network may answer with what was true before a commit."""
    app = App("app", delivery=Delivery(start="beginning", on_error={Exception: Retry(attempts=9, first_s=0, most_s=0)}))
    seen: list[int] = []
    calls = 0

    @app.on(Left)
    async def handle(event: Left, tx: Tx) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise RuntimeError("once")
        seen.append(event.n)
        tx.publish(Out(event.key, event.n))

    w = await world(app)

    async def publish_behind(units: Sequence[Unit]) -> None:
        """The first event is about to succeed: the second one comes, and is copied behind it."""
        if any(unit.releases for unit in units) and not behind and not behind_was:
            behind.append(True)
            await w.client.publish(Left("a", 1))
            for _ in range(50):
                await asyncio.sleep(0)
        elif behind and any(unit.holds for unit in units):
            await is_read.wait()  # the copy is committed behind the look

    async def answer_late(slot: Slot, key: str, *, after: int = 0, limit: int = 1) -> Sequence[Held]:
        rows = await held(slot, key, after=after, limit=limit)
        if not rows and behind:
            commits = len(w.store.commits)
            is_read.set()
            async with asyncio.timeout(5):
                while not any(unit.holds for units, _ in w.store.commits[commits:] for unit in units):
                    w.changed.clear()
                    await w.changed.wait()
            behind.clear()  # once is enough
            behind_was.append(True)
            for _ in range(20):
                await asyncio.sleep(0)
        return rows

    is_read = asyncio.Event()
    behind: list[bool] = []
    behind_was: list[bool] = []
    held = w.store.held
    monkeypatch.setattr(w.store, "held", answer_late)
    w.store.before_commit = publish_behind
    await w.client.publish(Left("a", 0))
    await w.start()
    await w.until(lambda: bool(behind_was), step_s=0.01)
    await w.client.publish(Left("a", 2))
    for _ in range(100):
        await w.tick(0.01)
    assert seen == [0, 1, 2]


# ---- what cannot be read ----


async def test_an_unknown_type_is_skipped(world: Make) -> None:
    app = App("app", delivery=FAST)
    seen: list[int] = []

    @app.on(Left)
    async def handle(event: Left) -> None:
        seen.append(event.n)

    w = await world(app)
    await w.append_raw(left, "other.thing/1", b"{}", "a")
    await w.client.publish(Left("a", 1))
    await w.append_raw(left, "other.thing/1", b"not even JSON", "a")
    await w.start()
    await w.settle()
    assert seen == [1]
    assert (await w.store.status()).subscriptions[0].held_records == 0


@pytest.mark.parametrize(
    ("type_name", "data"),
    [
        ("test.left/2", b'{"key":"a","extra":1}'),
        ("test.left/1", b'{"key":"a","n":"x"}'),
        ("test.left/1", b'{"n":1}'),
        ("test.left/1", b"[]"),
    ],
)
async def test_what_cannot_be_read_is_parked_with_its_bytes_and_later_events_of_its_key_wait(
    world: Make, type_name: str, data: bytes
) -> None:
    app = App("app", delivery=FAST)
    seen: list[tuple[str, int]] = []

    @app.on(Left)
    async def handle(event: Left) -> None:
        await asyncio.sleep(0)
        seen.append((event.key, event.n))

    w = await world(app)
    await w.client.publish(Left("a", 0))
    await w.append_raw(left, type_name, data, "a")
    await w.client.publish(Left("a", 1), Left("b", 0))
    await w.start()
    await w.settle()
    assert of_key(seen, "b") == [0]
    assert of_key(seen, "a") == [0]
    (parked,) = await w.store.parked()
    first = parked.first
    assert (parked.key, parked.records, first.cause, first.record.type, first.record.data) == (
        "a",
        2,
        Cause.UNREADABLE,
        type_name,
        data,
    )
    await w.store.request("app", "a", "skip")
    await w.until(lambda: of_key(seen, "a") == [0, 1], step_s=0.1)


async def test_an_unknown_version_is_redriven_by_itself_once_the_code_knows_it(world: Make) -> None:
    old = App("app", delivery=FAST)
    seen: list[tuple[str, int]] = []

    @old.on(Left)
    async def handle_old(event: Left) -> None:
        seen.append((event.key, event.n))

    w = await world(old)
    await w.append_raw(left, "test.left/1", b'{"key":"a","n":0}', "a")
    versioned = Topic("test.left", key="key", partitions=PARTITIONS)

    @versioned.event("test.left/2")
    class Left2(Event):
        key: str
        m: int

    await w.append_raw(left, "test.left/2", b'{"key":"a","m":1}', "a")
    await w.append_raw(left, "test.left/1", b'{"key":"a","n":2}', "a")
    await w.start()
    await w.settle()
    assert seen == [("a", 0)]
    await w.stop()

    new = App("app", delivery=FAST)

    @new.on(Left)
    async def handle_one(event: Left) -> None:
        seen.append((event.key, event.n))

    @new.on(Left2)
    async def handle_two(event: Left2) -> None:
        seen.append((event.key, event.m))

    w.now(new)
    w.settings = type(w.settings)(log_url="memory:", store_url="sqlite::memory:", new_types="now")
    await w.start()
    for _ in range(20):
        await w.tick(0.5)
    assert seen == [("a", 0), ("a", 1), ("a", 2)]


async def test_a_held_record_that_the_code_cannot_read_is_parked_whatever_the_policy(world: Make) -> None:
    """Code that was rolled back must not lose what newer code held."""
    new = App("app", delivery=Delivery(start="beginning", on_error={Exception: "park"}))

    @new.on(Left)
    async def fail(event: Left) -> None:
        raise RuntimeError("x")

    @new.on(Right)
    async def also(event: Right) -> None:
        pass

    w = await world(new)
    await w.client.publish(Left("a", 0))
    await w.start()
    await w.settle()
    await w.stop()
    assert (await w.store.status()).subscriptions[0].held_records == 1

    old = App("app", delivery=Delivery(start="beginning", on_error={Exception: "skip"}))

    @old.on(Right)
    async def handle(event: Right) -> None:
        pass

    w.now(old)
    await w.start()
    await w.store.request("app", "a", "redrive")
    for _ in range(20):
        await w.tick(0.1)
    assert (await w.store.status()).subscriptions[0].held_records == 1


async def test_what_retention_deleted_before_it_was_handled_is_not_passed_over_in_silence(world: Make) -> None:
    app = App("app", delivery=Delivery(start="beginning", on_gap="stop"))
    seen: list[int] = []

    @app.on(Left)
    async def handle(event: Left) -> None:
        seen.append(event.n)

    w = await world(app)
    await w.client.publish(Left("a", 0))
    await w.start()
    await w.settle()
    await w.stop()
    for n in (1, 2, 3):
        await w.client.publish(Left("a", n))
    head = await w.log.head(left.name)
    await w.log.trim(left.name, head)
    await w.client.publish(Left("a", 4))
    with pytest.raises(StartRefused, match=r"(?i)retention|deleted|gone|gap"):
        await w.start()


# ---- state and conflicts ----


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
    assert added < 20_000


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
