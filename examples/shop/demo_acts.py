"""The acts of the demo, one function each, from the opening of the shop to its close."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from typing import Final

import msgspec

from contracts import OrderPlaced, StockRefused, StockReserved
from demo_checks import expected_suspects
from demo_history import read_facts, read_unsent
from demo_run import LEVEL_S, DemoFailed, Kill, Poison, Quit, Run, handled
from everlog import Client, Settings
from files import read_articles
from inventory import inventory

SERVICES: Final = ("fraud", "routing", "inventory", "supplier", "forecast", "notify")
LATE: Final = "loyalty"
NEEDED: Final = ("fraud", "routing", "inventory")
"""Without one of these no order reaches inventory."""
FRESH: Final = 5
"""So many orders have just begun when inventory is killed: the warehouse takes ten times as long as the look at the side file."""


def choose_poison(placed: Sequence[OrderPlaced], between: tuple[float, float]) -> Poison:
    """Return an order that fraud clears, with an article that nobody else buys, of a customer who soon orders again.

    Raises:
        DemoFailed: There is none in that part of the orders.
    """
    bought = Counter(line.sku for fact in placed for line in fact.order.lines)
    suspects = expected_suspects(placed)
    first, last = (int(share * len(placed)) for share in between)
    soon = max(20, len(placed) // 25)
    for place in range(first, last):
        fact = placed[place]
        later = [
            other
            for other in placed[place + 1 : place + soon]
            if other.customer_id == fact.customer_id and other.order.id not in suspects
        ]
        alone = [line.sku for line in fact.order.lines if bought[line.sku] == 1]
        if later and alone and fact.order.id not in suspects:
            return Poison(fact, alone[0])
    raise DemoFailed(f"no order between {first} and {last} can be made poison: take more orders")


async def play_acts(run: Run, client: Client) -> None:
    """Play everything; somebody who quits leaves out what has not been played."""
    await open_shop(run)
    try:
        await kill_inventory(run, client)
        await poison_and_cure(run)
        await join_late(run)
        if run.plan.endless:
            await play_on(run)
        await run.until_placed(1.0, "the last order")
    except Quit:
        pass
    await close_shop(run, client)


async def open_shop(run: Run) -> None:
    run.view.headline("opening")
    for name in SERVICES:
        run.start(name)
    options = {"--speed": run.plan.speed, "--bursts": run.plan.bursts, "--without": run.poison.sku}
    if run.plan.orders is not None:
        options["--orders"] = run.plan.orders
    words = [text for name, value in options.items() for text in (name, str(value))]
    run.processes.run_script("storefront", *words, *(["--endless"] if run.plan.endless else []))
    await run.until(lambda: run.picture.counts["placed"] > 0, "the first order", is_patient=True, can_quit=False)
    run.view.say(f"the catalogue is out, and orders come at {run.plan.speed:.0f} a second")


async def kill_inventory(run: Run, client: Client) -> None:
    """Act 1."""
    await run.until_placed(run.plan.kill_at, "enough orders")
    run.view.headline("act 1 of 3: kill -9 of inventory")
    await run.until_up(NEEDED)
    with run.hands.off(NEEDED):
        await run.until(lambda: run.is_level("inventory"), "inventory to know the catalogue")
        if not await orders_begin(run) and run.hands.done:
            run.view.say("nothing is left to be interrupted after what you did: no act 1")
            return
        await run.processes.kill("inventory")
        run.kill = Kill(run.noted(), await committed(run, client))
        in_flight = len(set(run.kill.noted) - run.kill.committed)
        run.view.say(f"killed, with {in_flight} orders in flight: begun, and nothing of them committed")
        await asyncio.sleep(run.plan.dead_s)
        run.view.say(f"nobody else noticed: {run.unanswered:,} routed orders wait in the log")
        run.start("inventory")
        began_s = time.monotonic()
        await run.until(lambda: run.unanswered < 0.1 * run.plan.speed, "inventory to catch up")
    run.view.say(f"inventory is back, and level after {time.monotonic() - began_s:.1f} s")


async def orders_begin(run: Run) -> bool:
    """Wait for a moment in which inventory begins several orders, for 4 s at most; how many are in flight is counted after the kill."""
    before = len(run.noted())
    for _ in range(2_000):
        await asyncio.sleep(0.002)
        now = len(run.noted())
        if now - before >= FRESH:
            return True
        before = now
    return False


async def committed(run: Run, client: Client) -> set[str]:
    """Return the orders that inventory has answered for good: in the log, or still in its outbox.

    Files are read from a copy of them, so that the service finds its own as the kill left them.
    """
    unsent = await read_unsent(inventory, _copied(run) if run.settings.store_url.startswith("sqlite:") else run.settings)
    sent = await read_facts(client, StockReserved, StockRefused)
    return {fact.order.id for fact in sent} | {msgspec.json.decode(data)["order"]["id"] for data in unsent if b'"order"' in data}


def _copied(run: Run) -> Settings:
    """Copy the files of inventory's store, and say where the copy is."""
    copy = run.folder / "store-after-the-kill"
    copy.mkdir()
    for file in (run.folder / ".everlog").glob("inventory.db*"):
        shutil.copy(file, copy)
    return Settings(store_url=f"sqlite:{copy}/{{app}}.db")


async def poison_and_cure(run: Run) -> None:
    """Act 2."""
    order, who = run.poison.fact.order, run.poison.fact.customer_id
    await run.until(lambda: run.decided_before_poison is not None, "the poison order", is_patient=True)
    run.view.headline("act 2 of 3: a poison order")
    run.view.say(f"order {order.id} has article {run.poison.sku}, which the catalogue lacks")
    await run.until(lambda: run.inventory_says("parked_keys") == 1, "inventory to park the order")
    await run.until(lambda: run.inventory_says("held_records") >= 2, "a second order of the customer")
    run.flowed = run.picture.decided - (run.decided_before_poison or 0)
    behind = run.inventory_says("held_records") - 1
    run.view.say(f"tried 5 times, then parked; {behind} more of customer {who} wait behind it")
    run.view.say(f"everybody else is served: {run.flowed:,} orders decided meanwhile")
    await run.until_up(["inventory"])
    await cure(run)
    run.view.say(f"customer {who} is served too, in the order of their orders")


async def cure(run: Run) -> None:
    """Publish the missing article, and have the customer's orders tried again. Nobody quits before it is done."""
    who = run.poison.fact.customer_id
    with run.hands.off(["inventory"]):
        article = next(article for article in read_articles() if article.sku == run.poison.sku)
        (run.folder / "missing-article.jsonl").write_bytes(msgspec.json.encode(article) + b"\n")
        await run.processes.command("publish", "contracts", "shop.article_listed/1", "missing-article.jsonl")
        run.view.say("cure: everlog publish contracts shop.article_listed/1")
        await run.processes.command("parked", "redrive", "inventory", who)
        run.view.say(f"      everlog parked redrive inventory {who}")
        run.is_cured = True
        await run.until(lambda: run.inventory_says("held_records") == 0, "the customer's orders", can_quit=False)


async def join_late(run: Run) -> None:
    """Act 3."""
    await run.until_placed(run.plan.join_at, "more orders")
    run.view.headline("act 3 of 3: a service that joins late")
    began_s = time.monotonic()
    run.start(LATE)
    run.view.say("loyalty was written today: it begins with the first order")
    with run.hands.off([LATE]):
        await run.until(lambda: not run.is_behind(LATE, LEVEL_S * run.plan.speed), "loyalty to catch up")
    run.joined = f"{handled(run.lags[LATE]):,} facts in {time.monotonic() - began_s:.1f} s"
    run.view.say(f"loyalty is level: {run.joined}, its start included")


async def play_on(run: Run) -> None:
    """The act without end: orders go on, and the services are yours."""
    run.view.headline("play on: kill, pause and restart what you like; q ends")
    await run.until(lambda: False, "you to quit", is_patient=True)


async def close_shop(run: Run, client: Client) -> None:
    """Let everything that was placed be finished, and stop all in order."""
    run.view.headline("closing")
    if run.wants_quit:
        await run.processes.stop_one("storefront")
    everybody = (*SERVICES, LATE)
    with run.hands.off(everybody):
        await run.hands.make_all_good()
        for name in everybody:
            if not run.processes.is_running(name):
                run.start(name)
        await run.until(lambda: not run.processes.is_running("storefront"), "the storefront to end", can_quit=False)
        run.total = len(await read_facts(client, OrderPlaced))
        run.picture.total = run.total
        await run.until(lambda: run.picture.counts["placed"] == run.total, "the last order", can_quit=False)
        if run.decided_before_poison is not None and not run.is_cured:
            await run.until(lambda: run.inventory_says("parked_keys") == 1, "inventory to park the order", can_quit=False)
            await cure(run)
        await run.until(lambda: run.picture.decided >= run.total, "the last decision", can_quit=False)
        await run.until(lambda: not any(run.is_behind(name, 0) for name in everybody), "every service to finish", can_quit=False)
        codes = await run.processes.stop()
    bad = {name: code for name, code in codes.items() if code}
    if bad:
        raise DemoFailed(f"ended with an error when asked to stop: {bad}; see {run.folder}/*.out")
