"""Old and new code of one app in real processes: forward, back and forward again; and code that takes its processes down."""

from __future__ import annotations

import re
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.processes.premises import PATIENCE_S, Numbers, Premises, by_key, end, said, text_of, until
from tests.processes.yard import Process

TOPICS = """
import asyncio
import os
import pathlib

from everlog import App, Delivery, Event, Retry, Topic, Tx
from everlog.errors import HandlerKilled

orders = Topic("shop.orders", key="key", partitions=4)
results = Topic("shop.results", key="key", partitions=4)


@orders.event("shop.order_placed/1")
class OrderPlaced(Event):
    key: str
    n: int


@results.event("shop.order_shipped/1")
class OrderShipped(Event):
    key: str
    n: int
    by: str
    before: list[int]


"""

V2 = """
@orders.event("shop.order_placed/2")
class OrderPlacedAsGift(Event):
    key: str
    n: int
    wrapping: str


"""

HANDLER = """
app = App("shop", delivery=Delivery(start="beginning", concurrency=4, on_error={HandlerKilled: Retry(attempts=2, first_s=0.1)}))
shipped = app.state("shipped/1", list[int])


@app.on(TYPES)
async def ship(order: TYPES, tx: Tx) -> OrderShipped:
    print(f"CODE ships {order.key} {order.n}", flush=True)
    await asyncio.sleep(0.02)
    if order.key == "bad" and order.n == 1 and not pathlib.Path("mended").exists():
        os._exit(9)
    before = await tx.get(shipped, order.key, list[int]())
    tx.put(shipped, order.key, [*before, order.n])
    return OrderShipped(order.key, order.n, "CODE", before)
"""

OLD = TOPICS + HANDLER.replace("TYPES", "OrderPlaced").replace("CODE", "old")
NEW = (
    TOPICS
    + V2
    + HANDLER.replace("(TYPES)", "(OrderPlaced, OrderPlacedAsGift)")
    .replace("TYPES", "OrderPlaced | OrderPlacedAsGift")
    .replace("CODE", "new")
)

V1_NAME, V2_NAME = "shop.order_placed/1", "shop.order_placed/2"
APP = "shop/shop"
SLOTS = {0, 1, 2, 3}
KEYS = [f"k{number}" for number in range(10)]


@pytest.fixture
async def shop(folder: Path) -> AsyncIterator[Premises]:
    (folder / "old.py").write_text(OLD)
    (folder / "new.py").write_text(NEW)
    async with Premises(folder) as premises:
        yield premises


async def shipped(shop: Premises) -> tuple[Numbers, dict[tuple[str, int], str]]:
    """Return what was shipped, and by which code; each emitted event agrees with the state of its key."""
    events = await shop.events("shop.results", "shop.order_shipped/1")
    numbers = by_key((event["key"], event["n"]) for event in events)
    for event in events:
        assert event["before"] == numbers[event["key"]][: len(event["before"])]
        assert numbers[event["key"]][len(event["before"])] == event["n"]
    return numbers, {(event["key"], event["n"]): event["by"] for event in events}


async def until_lag(shop: Premises, count: int, *processes: Process) -> None:
    """Wait until all but so many events are handled."""

    async def lags() -> bool:
        status = await shop.status()
        return APP in status and status[APP]["lag"] == count == status[APP]["held_records"] and not status[APP]["outbox"]

    await until(lags, *processes)


async def until_held(shop: Premises, behind: dict[str, int]) -> None:
    """Wait until these keys are parked since the code cannot read an event of theirs, with so many behind it."""

    async def are_held() -> bool:
        return {key: one["behind"] for key, one in (await shop.parked("shop")).items()} == behind

    await until(are_held)
    for one in (await shop.parked("shop")).values():
        assert (one["state"], one["cause"], one["type"], one["attempts"]) == ("parked", "unreadable", V2_NAME, 0)
    table = await shop.cli("parked", "list", "shop")
    assert table.count("cannot be read") == len(behind)


async def until_it_has_all(process: Process) -> None:
    """Wait until a process works on all slots."""
    count = 0
    while (
        not {int(n) for line in process.lines if "works on slot" in line for n in re.findall(r"\d+", line.split("slot")[1])}
        >= SLOTS
    ):
        count += 1
        await said(process, "works on slot", times=count)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_a_deploy_forward_back_and_forward_again_has_each_effect_once_in_order(
    shop: Premises, number: signal.Signals
) -> None:
    # The publisher is the first one of the new version: what the old code cannot read waits, with what is behind it.
    await shop.publish("new", V1_NAME, ("a", 0), ("b", 0))
    await shop.publish("new", V2_NAME, ("a", 1), wrapping="red")
    await shop.publish("new", V1_NAME, ("a", 2), ("b", 1))
    old = await shop.run("old")
    await until_held(shop, {"a": 1})
    await until_lag(shop, 2, old)

    # New code beside it has all slots, and redrives.
    new = await shop.run("new")
    await until_it_has_all(new)
    await until_lag(shop, 0, old, new)
    assert await shop.parked("shop") == {}
    await shop.publish("new", V2_NAME, *[(key, 0) for key in KEYS], wrapping="red")
    await shop.publish("new", V1_NAME, *[(key, n) for n in range(1, 5) for key in KEYS])
    await said(new, "new ships k", times=15)
    await end(old, number)
    await until_lag(shop, 0, new)
    _, by = await shipped(shop)
    assert by == {("a", 0): "old", ("b", 0): "old", ("b", 1): "old"} | {
        (key, n): "new"
        for key, numbers in shop.published.items()
        for n in numbers
        if (key, n) not in {("a", 0), ("b", 0), ("b", 1)}
    }

    # Back, while it works: what it had in hand is done by the old code, as far as that can.
    await shop.publish("new", V1_NAME, *[(key, n) for n in range(5, 10) for key in KEYS])
    await shop.publish("new", V2_NAME, ("a", 3), ("c", 0), wrapping="blue")
    await shop.publish("new", V1_NAME, ("c", 1), ("d", 0), ("c", 2))
    await said(new, "new ships k", times=60)
    await end(new, number)
    old = await shop.run("old")
    await shop.publish("new", V1_NAME, ("e", 0))
    await shop.publish("new", V2_NAME, ("e", 1), wrapping="blue")
    await shop.publish("new", V1_NAME, ("e", 2), ("e", 3), ("d", 1))
    await said(old, "old ships d 1")
    numbers, by = await until_back(shop, old)
    assert by["d", 1] == by["e", 0] == "old"
    assert numbers["e"] == [0]

    # And forward, while the old code works.
    await shop.publish("new", V1_NAME, *[(key, n) for n in range(10, 15) for key in KEYS])
    new = await shop.run("new")
    await end(old, number)
    await until_lag(shop, 0, new)
    assert await shop.parked("shop") == {}
    numbers, by = await shipped(shop)
    assert numbers == shop.published
    assert by["e", 1] == by["e", 3] == "new"
    await end(new, signal.SIGTERM)


async def until_back(shop: Premises, old: Process) -> tuple[Numbers, dict[tuple[str, int], str]]:
    """Wait until the old code is through with all that it can read; what of the rest the new code had done stays done."""

    async def is_through() -> bool:
        status = (await shop.status())[APP]
        return bool(status["lag"] == status["held_records"] and not status["outbox"])

    await until(is_through, old)
    await until_lag(shop, (await shop.status())[APP]["held_records"], old)
    numbers, by = await shipped(shop)
    await until_held(
        shop,
        {
            key: len(all_of[len(numbers.get(key, [])) + 1 :])
            for key, all_of in shop.published.items()
            if numbers.get(key, []) != all_of
        },
    )
    return numbers, by


async def test_a_handler_that_exits_the_process_on_one_event_ends_up_parked_and_the_others_go_on(shop: Premises) -> None:
    await shop.publish("old", V1_NAME, *[(key, n) for n in range(3) for key in (*KEYS[:5], "bad", *KEYS[5:])])
    supervisor = await shop.run("old", "--workers", "2", until="worker 1 is started")
    await until_lag(shop, 2, supervisor)
    one = (await shop.parked("shop"))["bad"]
    assert (one["state"], one["cause"], one["attempts"], one["behind"]) == ("parked", "killed", 2, 1)
    assert "took its process down" in await shop.cli("parked", "list", "shop")
    expected = {**shop.published, "bad": [0]}
    assert (await shipped(shop))[0] == expected

    deaths = re.findall(r"worker \d ended with code 9: starting again in ([\d.]+) s", text_of(supervisor))
    assert 2 <= len(deaths) <= 6
    for worker in (1, 2):
        started = text_of(supervisor).count(f"worker {worker} is started")
        assert started <= 1 + text_of(supervisor).count(f"worker {worker} ended with code 9")
    await shop.publish("old", V1_NAME, *[(key, 3) for key in KEYS])
    await until_lag(shop, 2, supervisor)
    assert text_of(supervisor).count("ended with code 9") == len(deaths)

    (shop.folder / "mended").touch()
    assert "handled: bad" in await shop.cli("parked", "redrive", "shop", "bad", "--wait-s", str(PATIENCE_S))
    await until_lag(shop, 0, supervisor)
    assert (await shipped(shop))[0] == shop.published
    await end(supervisor, signal.SIGTERM)
