"""Events whose handlers fail, and events that cannot be read: their keys wait, and the others go on."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Sequence
from itertools import pairwise

import pytest
from tests.subscriptions.keys import keys_in, of_key
from tests.subscriptions.world import PARTITIONS, Left, Make, Out, Right, left

from everlog import App, Delivery, Event, Retry, Tx
from everlog.contracts.topic import Topic
from everlog.errors import FileUnreadable, StartRefused
from everlog.store import Cause, Held, Slot, Unit

FAST = Delivery(start="beginning")


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


async def test_a_held_event_that_cannot_be_read_just_now_is_tried_again(
    world: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    app = App("app", delivery=Delivery(start="beginning", on_error={Exception: Retry(attempts=9, first_s=1, most_s=1)}))
    calls: list[int] = []

    @app.on(Left)
    async def handle(event: Left) -> None:
        calls.append(event.n)
        if len(calls) == 1:
            raise RuntimeError("once")

    w = await world(app)
    held = w.store.held
    failures = iter([FileUnreadable("the disk does not answer")] * 3)

    async def unreadable(slot: Slot, key: str, *, after: int = 0, limit: int = 1) -> Sequence[Held]:
        for error in failures:
            raise error
        return await held(slot, key, after=after, limit=limit)

    monkeypatch.setattr(w.store, "held", unreadable)
    await w.client.publish(Left("a", 1), Left("a", 2), Left("b", 3))
    await w.start()
    await w.settle(step_s=0.5)
    assert sorted(calls) == [1, 1, 2, 3]
    assert of_key([("a", n) for n in calls if n != 3], "a") == [1, 1, 2]
    assert caplog.text.count("is looked at again in 1 s") == 3


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
