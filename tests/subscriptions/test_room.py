"""How much a subscription may hold: at the bound its slots stop, and nothing is dropped."""

from __future__ import annotations

import asyncio
import logging

import pytest
from tests.subscriptions.keys import keys_in, number, of_key
from tests.subscriptions.world import Left, Make, World

from everlog import App, Delivery
from everlog.store import Room, Slot
from everlog.subscriptions.slots import FULL_PAUSE_S

PARK = Delivery(start="beginning", on_error={Exception: "park"})


class Shop:
    """An app with keys that fail until they are mended."""

    def __init__(self, *, batch: bool) -> None:
        self.app = App("app", delivery=PARK)
        self.bad: set[str] = set()
        self.done: list[tuple[str, int]] = []
        (self.app.on_batch(Left)(self.handle_all) if batch else self.app.on(Left)(self.handle))

    async def handle(self, event: Left) -> None:
        if event.key in self.bad:
            raise RuntimeError("bad")
        self.done.append((event.key, event.n))

    async def handle_all(self, events: list[Left]) -> None:
        if any(event.key in self.bad for event in events):
            raise RuntimeError("bad")
        self.done.extend((event.key, event.n) for event in events)


async def until_full(w: World) -> None:
    async with asyncio.timeout(5):
        while not any(work.full_since_s for work in w.engines()["app"].works.values()):
            await w.tick()


async def held(w: World) -> int:
    return sum(one.held_records for one in (await w.store.status()).subscriptions)


BOTH = pytest.mark.parametrize("batch", [False, True], ids=["one by one", "batches"])


@BOTH
async def test_at_the_bound_a_slot_stops_with_an_alarm_and_drops_nothing(
    world: Make, caplog: pytest.LogCaptureFixture, batch: bool
) -> None:
    shop = Shop(batch=batch)
    w = await world(shop.app, room=Room(10, 1 << 20))
    bad, good = keys_in(0, 2)
    (elsewhere,) = keys_in(1, 1)
    shop.bad = {bad}
    await w.client.publish(*[Left(key, n) for n in range(30) for key in (bad, good, elsewhere)])
    await w.start()
    await until_full(w)
    await w.until(lambda: len(of_key(shop.done, elsewhere)) == 30)  # the other slots go on
    for _ in range(20):
        await w.tick(0.1)
    assert await held(w) == 10
    assert [record.levelno for record in caplog.records if "nothing is lost" in record.getMessage()] == [logging.CRITICAL]
    await w.client.publish(*[Left(key, n) for n in range(30, 40) for key in (bad, good)])
    for _ in range(20):
        await w.tick(FULL_PAUSE_S / 3)
    assert await held(w) == 10
    shop.bad = set()
    await w.store.request("app", None, "redrive")
    await w.until(lambda: len(shop.done) == 110, step_s=1)
    await w.settle(step_s=1)
    assert of_key(shop.done, bad) == of_key(shop.done, good) == list(range(40))
    assert await held(w) == 0


@BOTH
async def test_a_redrive_frees_room_and_the_slot_goes_on_by_itself(world: Make, batch: bool) -> None:
    shop = Shop(batch=batch)
    w = await world(shop.app, room=Room(6, 1 << 20))
    first, second = keys_in(0, 2)
    shop.bad = {first, second}
    await w.client.publish(*[Left(key, n) for n in range(5) for key in (first, second)])
    await w.start()
    await until_full(w)
    shop.bad = {second}
    await w.store.request("app", first, "redrive")
    await w.until(lambda: len(of_key(shop.done, first)) >= 3, step_s=0.1)
    await w.until(lambda: len(of_key(shop.done, first)) == 5, step_s=1)
    while await w.unfinished():
        await w.tick(1)
    assert await held(w) == 5
    rows = await w.store.held(Slot("app", 0), second, limit=100)
    assert [number(one.record.data) for one in rows] == list(range(5))
    assert of_key(shop.done, first) == list(range(5))


@BOTH
async def test_the_order_of_a_key_holds_when_a_small_event_would_fit_behind_a_large_one_that_does_not(
    world: Make, batch: bool
) -> None:
    shop = Shop(batch=batch)
    bad = keys_in(0, 1)[0] + "x" * 0
    sizes = [len(b'{"key":"%s","n":%d}' % (bad.encode(), n)) for n in (1, 10**15, 2)]
    w = await world(shop.app, room=Room(100, sizes[0] + sizes[2] + 5))
    shop.bad = {bad}
    await w.client.publish(Left(bad, 1), Left(bad, 10**15), Left(bad, 2))
    await w.start()
    await until_full(w)
    for _ in range(10):
        await w.tick(0.1)
    rows = await w.store.held(Slot("app", 0), bad, limit=100)
    assert [number(one.record.data) for one in rows] == [1]
    shop.bad = set()
    await w.store.request("app", None, "redrive")
    await w.until(lambda: len(shop.done) == 3, step_s=1)
    assert of_key(shop.done, bad) == [1, 10**15, 2]


@BOTH
@pytest.mark.parametrize("how", ["stop", "crash"])
async def test_a_full_subscription_can_be_stopped_and_loses_nothing(world: Make, batch: bool, how: str) -> None:
    shop = Shop(batch=batch)
    w = await world(shop.app, room=Room(4, 1 << 20))
    keys = keys_in(0, 4)
    shop.bad = set(keys[:3])
    await w.client.publish(*[Left(key, n) for n in range(6) for key in keys])
    for _ in range(3):
        await w.start()
        await until_full(w)
        await (w.stop() if how == "stop" else w.crash())
        assert await held(w) == 4
    shop.bad = set()
    await w.start()
    for _ in range(10):
        await w.store.request("app", None, "redrive")
        for _ in range(10):
            await w.tick(2)
    await w.settle(step_s=1)
    for key in keys:
        assert of_key(shop.done, key) == list(range(6))


@BOTH
async def test_what_is_skipped_by_hand_frees_room_too(world: Make, batch: bool) -> None:
    shop = Shop(batch=batch)
    w = await world(shop.app, room=Room(3, 1 << 20))
    (bad,) = keys_in(0, 1)
    shop.bad = {bad}
    await w.client.publish(*[Left(bad, n) for n in range(8)])
    await w.start()
    await until_full(w)
    for _ in range(8):
        await w.store.request("app", bad, "skip")
        for _ in range(6):
            await w.tick(2.5)
    await w.settle(step_s=1)
    assert shop.done == []
    assert [number(one.record.data) for one in await w.store.skipped()] == list(range(8))
