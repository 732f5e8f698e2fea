"""Outages: what pauses a subscription, what happens while it is paused, and what ends it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.subscriptions.keys import keys_in, of_key
from tests.subscriptions.world import Left, Make, World

from everlog import App, Delivery, Retry
from everlog.subscriptions.outage import PROBE_MOST_S, WINDOW_KEYS, WINDOW_S, Outage
from everlog.testing.clock import ManualClock

DEFAULT = Delivery(start="beginning")
ONCE = Delivery(start="beginning", on_error={Exception: Retry(attempts=1)})


# ---- the decision ----


def outage(clock: ManualClock | None = None) -> Outage:
    return Outage(clock or ManualClock(), lambda: 0.5)


@pytest.mark.parametrize(
    ("results", "why"),
    [
        ("v", None),
        ("vv", None),
        ("vvv", "the last 3 keys all failed with ValueError"),
        ("vvo", None),
        ("vov" + "o" * 16, None),
        ("vov" + "o" * 17, "20 of the last 20 keys failed, most with OSError"),
        ("v" + "." * 9 + "v" * 9, None),
        ("v" + "." * 9 + "v" * 10, "11 of the last 20 keys failed, most with ValueError"),
        ("v.vv", None),
    ],
)
def test_what_pauses(results: str, why: str | None) -> None:
    one = outage()
    errors = {"v": ValueError("x"), "o": OSError("x")}
    for number, result in enumerate(results):
        if result == ".":
            one.succeeded(f"k{number}")
        else:
            assert one.failed(f"k{number}", errors[result]) == (why is not None and number == len(results) - 1)
    assert one.reason == why


def test_a_key_counts_once_with_what_it_came_to_last() -> None:
    one = outage()
    for _ in range(50):
        one.failed("a", ValueError())
        assert not one.failed("b", ValueError())
    assert one.failed("c", ValueError())


def test_what_is_long_ago_does_not_count() -> None:
    clock = ManualClock()
    one = outage(clock)
    for key in "abcdefgh":
        assert not one.failed(key, ValueError())
        clock.advance(WINDOW_S / 2 + 1)


def test_nothing_is_noted_unless_something_has_failed_lately() -> None:
    clock = ManualClock()
    one = outage(clock)
    listening = [one.is_listening]
    one.failed("a", ValueError())
    listening.append(one.is_listening)
    for key in "ba":
        one.succeeded(key)
        listening.append(one.is_listening)
        clock.advance(WINDOW_S + 1)
    one.succeeded("c")
    listening.append(one.is_listening)
    assert listening == [False, True, True, False, False]


@given(st.lists(st.tuples(st.sampled_from("abcdefghijklmnopqrstuvwxyz"), st.sampled_from("vo."), st.floats(0, 20)), max_size=300))
def test_a_pause_begins_only_with_a_failure_and_ends_with_a_success(steps: list[tuple[str, str, float]]) -> None:
    clock = ManualClock()
    one = outage(clock)
    errors = {"v": ValueError("x"), "o": OSError("x")}
    for key, result, pause_s in steps:
        was_paused = one.reason is not None
        clock.advance(pause_s)
        if result == ".":
            assert one.succeeded(key) == was_paused
            assert one.reason is None
        else:
            assert one.failed(key, errors[result]) == (one.reason is not None and not was_paused)
            assert one.is_listening
        assert len(one._last) <= WINDOW_KEYS


def test_probes_are_further_and_further_apart_up_to_a_minute() -> None:
    one = Outage(ManualClock(), lambda: 1.0)
    assert [one.next_probe_s() for _ in range(8)] == [1, 2, 4, 8, 16, 32, 60, 60]
    assert Outage(ManualClock(), lambda: 0.0).next_probe_s() == 0.5
    for _ in range(2_000):  # and nothing overflows
        assert one.next_probe_s() <= PROBE_MOST_S
    for key in "abc":
        one.failed(key, ValueError())
    assert one.next_probe_s() == 1


# ---- a subscription in an outage ----


class Shop:
    """An app whose handler needs something that may be down."""

    def __init__(self, delivery: Delivery = DEFAULT, *, batch: bool = False) -> None:
        self.app = App("app", delivery=delivery)
        self.is_down = False
        self.fails: Callable[[Left], bool] = lambda _: self.is_down
        self.done: list[tuple[str, int]] = []
        self.calls = 0
        if batch:
            self.app.on_batch(Left)(self.handle_all)
        else:
            self.app.on(Left)(self.handle)

    async def handle(self, event: Left) -> None:
        self.calls += 1
        if self.fails(event):
            raise ConnectionError("down")
        self.done.append((event.key, event.n))

    async def handle_all(self, events: list[Left]) -> None:
        self.calls += 1
        if any(self.fails(event) for event in events):
            raise ConnectionError("down")
        self.done.extend((event.key, event.n) for event in events)


async def paused(w: World) -> list[str]:
    return [why for one in (await w.store.status()).subscriptions for why in one.paused]


async def until_paused(w: World, *, step_s: float = 0.0) -> None:
    async with asyncio.timeout(10):
        while not await paused(w):
            await w.tick(step_s)


@pytest.mark.parametrize("batch", [False, True], ids=["one by one", "batches"])
@pytest.mark.parametrize("delivery", [DEFAULT, ONCE], ids=["default", "one attempt"])
async def test_an_outage_parks_nothing_and_everything_is_handled_in_order_when_it_is_over(
    world: Make, batch: bool, delivery: Delivery
) -> None:
    shop = Shop(delivery, batch=batch)
    w = await world(shop.app)
    await w.start()
    await w.client.publish(*[Left(f"k{n % 30}", n) for n in range(300)])
    await w.until(lambda: len(shop.done) == 300)
    shop.is_down = True
    await w.client.publish(*[Left(f"k{n % 30}", n) for n in range(300, 600)])
    await until_paused(w)
    before = shop.calls
    for _ in range(400):  # ten minutes
        await w.tick(1.5)
    assert shop.calls - before <= 40
    (status,) = (await w.store.status()).subscriptions
    # Who failed before it was seen to be an outage has no attempt left where there is but one.
    assert status.parked_keys <= (2 if delivery is ONCE else 0)
    assert status.held_records < 300
    for held in [one for key in range(30) for slot in range(4) for one in await w.store.held(_slot(slot), f"k{key}")]:
        assert held.attempts <= 2
    shop.is_down = False
    await w.until(lambda: len(shop.done) >= 600 - 20 * status.parked_keys, step_s=5)
    while await paused(w):
        await w.tick(0.1)
    await w.store.request("app", None, "redrive")
    await w.until(lambda: len(shop.done) == 600, step_s=1)
    await w.settle(step_s=1)
    for k in range(30):
        assert of_key(shop.done, f"k{k}") == list(range(k, 600, 30))


def _slot(number: int) -> Any:
    from everlog.store import Slot

    return Slot("app", number)


@pytest.mark.parametrize("batch", [False, True], ids=["one by one", "batches"])
async def test_an_outage_is_seen_with_little_traffic_too(world: Make, batch: bool) -> None:
    shop = Shop(batch=batch)
    shop.is_down = True
    w = await world(shop.app)
    await w.start()
    for n in range(120):
        await w.client.publish(Left(f"k{n}", n))
        for _ in range(10):
            await w.tick(0.5)
    assert w.engines()["app"].is_paused  # the status forgets it as the clock outruns the heartbeats
    (status,) = (await w.store.status()).subscriptions
    assert status.parked_keys == 0
    shop.is_down = False
    await w.until(lambda: len(shop.done) == 120, step_s=1)
    await w.settle(step_s=1)
    assert await paused(w) == []


@pytest.mark.parametrize("batch", [False, True], ids=["one by one", "batches"])
async def test_three_bad_keys_hold_up_a_healthy_event_for_a_moment_only(world: Make, batch: bool) -> None:
    shop = Shop(batch=batch)
    shop.fails = lambda event: event.key in bad
    w = await world(shop.app)
    *bad, good, better = keys_in(0, 5)
    await w.start()
    await w.client.publish(*[Left(key) for key in bad])
    await until_paused(w)
    for _ in range(400):
        await w.tick(1)
    await w.client.publish(*[Left(key, 1) for key in bad], Left(good, 1), Left(better, 1))
    since = w.clock.monotonic_s()
    await w.until(lambda: len(shop.done) == 2, step_s=0.1)
    assert w.clock.monotonic_s() - since <= 2
    await w.client.publish(Left(better, 2))
    await w.until(lambda: len(shop.done) == 3, step_s=0.1)
    assert w.clock.monotonic_s() - since <= 5


@pytest.mark.parametrize("batch", [False, True], ids=["one by one", "batches"])
async def test_the_status_shows_a_pause_and_clears_it(world: Make, batch: bool) -> None:
    shop = Shop(batch=batch)
    shop.is_down = True
    w = await world(shop.app)
    await w.start()
    await w.client.publish(*[Left(f"k{n}", n) for n in range(10)])
    await until_paused(w)
    (why,) = await paused(w)
    assert why == "the last 3 keys all failed with ConnectionError"
    shop.is_down = False
    await w.until(lambda: len(shop.done) == 10, step_s=0.5)
    while await paused(w):
        await w.tick()
    await w.client.publish(Left("k1", 10))
    await w.until(lambda: len(shop.done) == 11)


@pytest.mark.parametrize("how", ["stop", "crash"])
@pytest.mark.parametrize("batch", [False, True], ids=["one by one", "batches"])
async def test_a_paused_subscription_can_be_stopped_and_goes_on_where_it_was(world: Make, batch: bool, how: str) -> None:
    shop = Shop(batch=batch)
    shop.is_down = True
    w = await world(shop.app)
    await w.client.publish(*[Left(f"k{n % 12}", n) for n in range(60)])
    for _ in range(3):
        await w.start()
        await until_paused(w, step_s=0.1)
        for _ in range(5):
            await w.tick(1)
        await (w.stop() if how == "stop" else w.crash())
        assert await paused(w) == []
    shop.is_down = False
    await w.start()
    await w.until(lambda: len(shop.done) == 60, step_s=1)
    await w.settle(step_s=1)
    (status,) = (await w.store.status()).subscriptions
    assert (status.held_records, status.parked_keys) == (0, 0)
    for k in range(12):
        assert of_key(shop.done, f"k{k}") == list(range(k, 60, 12))


@pytest.mark.parametrize("batch", [False, True], ids=["one by one", "batches"])
async def test_slots_are_given_back_while_paused(world: Make, batch: bool) -> None:
    shop = Shop(batch=batch)
    shop.is_down = True
    w = await world(shop.app)
    await w.start()
    await w.client.publish(*[Left(f"k{n % 12}", n) for n in range(60)])
    await until_paused(w)
    engine = w.engines()["app"]
    before = shop.calls
    for number in (0, 1):
        work = engine.works[number]
        async with asyncio.timeout(2):
            await engine.close_slot(work)
        await w.store.release(work.lease)
    assert shop.calls - before <= 4
    shop.is_down = False
    await w.until(lambda: len(shop.done) == 60, step_s=1)
    await w.settle(step_s=1)
    for k in range(12):
        assert of_key(shop.done, f"k{k}") == list(range(k, 60, 12))


@pytest.mark.parametrize("seed", range(5))
async def test_many_keys_of_which_some_fail_at_random_are_not_an_outage(world: Make, seed: int) -> None:
    dice = random.Random(seed)
    shop = Shop(Delivery(start="beginning", on_error={Exception: Retry(attempts=1_000, first_s=0.2, most_s=1)}))
    shop.fails = lambda _: dice.random() < 0.3
    w = await world(shop.app)
    pauses = 0
    pause = w.store.pause

    async def count(subscription: str, reason: str | None) -> None:
        nonlocal pauses
        pauses += reason is not None
        await pause(subscription, reason)

    w.store.pause = count  # type: ignore[method-assign]
    await w.start()
    for at in range(0, 2_000, 100):
        await w.client.publish(*[Left(f"k{n % 150}", n) for n in range(at, at + 100)])
        for _ in range(5):
            await w.tick(0.2)
    await w.until(lambda: len(shop.done) == 2_000, step_s=0.2)
    assert pauses <= 1  # the very first keys may look like one; the first probe ends it
    for k in range(150):
        assert of_key(shop.done, f"k{k}") == list(range(k, 2_000, 150))
