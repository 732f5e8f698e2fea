"""make demo: the shop as separate processes, three acts, and a summary that is checked against the input file.

It exits with 1, and says what, if the numbers do not add up. Everything it shows comes from the log; everything it checks comes from the
log, the stores and the side file in which inventory notes an order before it does anything else.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import shlex
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
from contracts import ArticleListed, OrderPlaced, StockRefused, StockReserved
from demo_checks import Evidence, Interrupted, balance, check_all, expected_suspects, interrupted
from demo_history import FACTS, read_facts, read_history, read_state, read_unsent
from demo_processes import EVERLOG, CommandFailed, Processes
from demo_view import LiveView, Picture, PlainView, Service, View
from files import read_articles, read_orders
from forecast import demands, expected, forecast
from inventory import inventory, stock
from loyalty import loyalty, points
from world import DEFAULT_SEED, opening_stock, with_bursts

from everlog import App, Client, Settings
from everlog.subscriptions.report import Lag, read_lags

SERVICES: Final = ("fraud", "routing", "inventory", "supplier", "forecast", "notify")
ROOT: Final = Path(__file__).parents[2]
SIDE_FILE: Final = "inventory.noted"
LEVEL: Final = 50
"""A service that is so many events behind, or fewer, keeps up."""
PATIENCE_S: Final = 90.0
REFRESH_S: Final = 0.15
LAGS_EVERY_S: Final = 0.4


class DemoFailed(Exception):
    """The demo cannot go on."""


@dataclass(frozen=True)
class Plan:
    """What is played: sizes, and the places in the stream where the acts begin."""

    orders: int | None
    speed: float
    bursts: int
    dead_s: float
    kill_at: float = 0.2
    poison_between: tuple[float, float] = (0.42, 0.6)
    join_at: float = 0.72


FULL: Final = Plan(orders=None, speed=240.0, bursts=12, dead_s=3.0)
FAST: Final = Plan(orders=1_500, speed=250.0, bursts=4, dead_s=1.0)


@dataclass(frozen=True)
class Poison:
    """An order whose article the catalogue will lack."""

    fact: OrderPlaced
    sku: str


def choose_poison(orders: Sequence[OrderPlaced], between: tuple[float, float]) -> Poison:
    """Return an order that fraud clears, with an article that nobody else buys, of a customer who soon orders again.

    Raises:
        DemoFailed: There is none in that part of the orders.
    """
    bought = Counter(line.sku for fact in orders for line in fact.order.lines)
    suspects = expected_suspects(orders)
    first, last = (int(share * len(orders)) for share in between)
    soon = max(20, len(orders) // 25)
    for place in range(first, last):
        fact = orders[place]
        later = [other for other in orders[place + 1 : place + soon] if other.customer_id == fact.customer_id and other.order.id not in suspects]
        alone = [line.sku for line in fact.order.lines if bought[line.sku] == 1]
        if later and alone and fact.order.id not in suspects:
            return Poison(fact, alone[0])
    raise DemoFailed(f"no order between {first} and {last} can be made poison: take more orders")


class Demo:
    """One run: processes, the watch on the log, and what was seen."""

    def __init__(self, plan: Plan, folder: Path, orders: Sequence[OrderPlaced], poison: Poison, view: View, picture: Picture) -> None:
        self.plan = plan
        self.folder = folder
        self.orders = orders
        self.poison = poison
        self.view = view
        self.picture = picture
        self.settings = Settings(log_url=f"sqlite:{folder}/.everlog/log.db", store_url=f"sqlite:{folder}/.everlog/{{app}}.db")
        self.processes = Processes(folder, {"SHOP_SIDE_FILE": str(folder / SIDE_FILE)})
        self.lags: dict[str, Lag] = {}
        self.started_us: dict[str, int] = {}
        self._changed = asyncio.Event()

    # ---- watching the log ----

    async def watch_facts(self, client: Client) -> None:
        async for record in client.follow(*FACTS, start="beginning"):
            self.picture.counts[record.type.partition("/")[0].rpartition("_")[2]] += 1
            self._changed.set()

    async def watch_lags(self, client: Client) -> None:
        while True:
            self.lags = {lag.report.app: lag for lag in await read_lags(client.log, time.time_ns() // 1000)}
            for name, service in self.picture.services.items():
                self._show_service(name, service)
            self._changed.set()
            await asyncio.sleep(LAGS_EVERY_S)

    def _show_service(self, name: str, service: Service) -> None:
        lag = self.lags.get(name)
        is_new = lag is None or lag.reported_us < self.started_us.get(name, 0)
        if lag is not None:
            service.lag, service.waiting, service.handled = lag.count, lag.report.held_records, _handled(lag)
        if name not in self.started_us:
            service.state = "not yet"
        elif not self.processes.is_running(name):
            service.state = "killed"
        elif is_new:
            service.state = "starting"
        elif service.lag <= LEVEL or service.state == "running":
            service.state = "running"
        else:
            service.state = "catching up"

    async def draw(self) -> None:
        while True:
            self.view.refresh()
            await asyncio.sleep(REFRESH_S)

    async def until(self, holds: Callable[[], bool], what: str) -> None:
        """Wait until something holds.

        Raises:
            DemoFailed: It does not within the time that the demo waits at most, or a process has ended.
        """
        deadline_s = time.monotonic() + PATIENCE_S
        while not holds():
            for name, code in self.processes.ended().items():
                if code or name != "storefront":
                    raise DemoFailed(f"{name} ended with {code}: see {self.folder / name}.out")
            if time.monotonic() > deadline_s:
                behind = {name: lag.count for name, lag in self.lags.items()}
                raise DemoFailed(f"waited {PATIENCE_S:.0f} s for {what}; placed {self.picture.counts['placed']}, behind: {behind}")
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), 1.0)

    def start(self, name: str) -> None:
        self.started_us[name] = time.time_ns() // 1000
        self.picture.services[name].state = "starting"
        self.processes.run_service(name)

    def is_level(self, name: str, most: int = LEVEL) -> bool:
        """Whether a service has reported since it was started, and is about level with the log."""
        lag = self.lags.get(name)
        return lag is not None and lag.reported_us > self.started_us[name] and lag.count <= most

    # ---- the acts ----

    async def open_shop(self) -> None:
        self.view.headline("opening")
        for name in SERVICES:
            self.start(name)
        options = {"--speed": self.plan.speed, "--bursts": self.plan.bursts, "--without": self.poison.sku}
        if self.plan.orders is not None:
            options["--orders"] = self.plan.orders
        self.processes.run_script("storefront", *[text for name, value in options.items() for text in (name, str(value))])
        await self.until(lambda: self.picture.counts["placed"] > 0, "the first order")
        self.view.say(f"the catalogue is out, and orders come at {self.plan.speed:.0f} a second")

    async def kill_inventory(self, client: Client) -> Callable[[], tuple[Sequence[str], set[str], Sequence[str]]]:
        """Act 1. Returns a function that gives what `interrupted` has to know, once the shop is closed."""
        await self.until(lambda: self.picture.counts["placed"] >= self.plan.kill_at * len(self.orders), "enough orders")
        self.view.headline("act 1 of 3: kill -9 of inventory")
        noted, committed = self.noted, set[str]()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(5):  # a moment with work in flight; what that was is counted afterwards
                while len(noted()) - self.picture.counts["reserved"] - self.picture.counts["refused"] < 8:
                    await asyncio.sleep(0.001)
        await self.processes.kill("inventory")
        before = noted()
        committed.update(await self.committed(client))
        in_flight = len(set(before) - committed)
        self.view.say(f"killed, with {in_flight} orders in flight: begun, and nothing of them committed")
        answered = self.picture.counts["reserved"] + self.picture.counts["refused"]
        await asyncio.sleep(self.plan.dead_s)
        waiting = self.picture.counts["routed"] - answered
        self.view.say(f"nobody else noticed: {waiting:,} routed orders wait in the log")
        self.start("inventory")
        began_s = time.monotonic()
        await self.until(lambda: self.is_level("inventory"), "inventory to catch up")
        self.view.say(f"inventory is back and level after {time.monotonic() - began_s:.1f} s")
        return lambda: (before, committed, noted()[len(before) :])

    def noted(self) -> list[str]:
        """Return what inventory has noted so far."""
        path = self.folder / SIDE_FILE
        return path.read_text().split() if path.exists() else []

    async def committed(self, client: Client) -> set[str]:
        """Return the orders that inventory has answered for good: in the log, or still in its outbox.

        Read from a copy of its store, so that the service finds its files as the kill left them.
        """
        copy = self.folder / "store-after-the-kill"
        copy.mkdir()
        for file in (self.folder / ".everlog").glob("inventory.db*"):
            shutil.copy(file, copy)
        unsent = await read_unsent(inventory, Settings(store_url=f"sqlite:{copy}/{{app}}.db"))
        sent = await read_facts(client, StockReserved, StockRefused)
        return {fact.order.id for fact in sent} | {msgspec.json.decode(data)["order"]["id"] for data in unsent if b'"order"' in data}

    async def poison_and_cure(self) -> int:
        """Act 2. Returns how many orders of others were decided while one customer waited."""
        order, sku, who = self.poison.fact.order, self.poison.sku, self.poison.fact.customer_id
        place = self.orders.index(self.poison.fact)
        await self.until(lambda: self.picture.counts["placed"] > place, "the poison order")
        self.view.headline("act 2 of 3: a poison order")
        self.view.say(f"order {order.id} has article {sku}, which the catalogue lacks")
        decided = self.picture.decided
        await self.until(lambda: self._report("parked_keys") == 1, "inventory to park the order")
        await self.until(lambda: self._report("held_records") >= 2, "a second order of the customer")
        flowed = self.picture.decided - decided
        behind = self._report("held_records") - 1
        self.view.say(f"tried 5 times, then parked; {behind} more of customer {who} wait behind it")
        self.view.say(f"everybody else is served: {flowed:,} orders decided meanwhile")
        article = next(article for article in read_articles() if article.sku == sku)
        (self.folder / "missing-article.jsonl").write_bytes(msgspec.json.encode(article) + b"\n")
        await self.processes.command("publish", "contracts", _wire_name(ArticleListed), "missing-article.jsonl")
        self.view.say("cure: everlog publish contracts shop.article_listed/1")
        await self.processes.command("parked", "redrive", "inventory")
        self.view.say("      everlog parked redrive inventory")
        await self.until(lambda: self._report("held_records") == 0, "the customer's orders")
        self.view.say(f"customer {who} is served too, in the order of their orders")
        return flowed

    def _report(self, number: str) -> int:
        lag = self.lags.get("inventory")
        return getattr(lag.report, number) if lag is not None else 0

    async def join_late(self) -> str:
        """Act 3. Returns what the new service did."""
        await self.until(lambda: self.picture.counts["placed"] >= self.plan.join_at * len(self.orders), "more orders")
        self.view.headline("act 3 of 3: a service that joins late")
        began_s = time.monotonic()
        self.start("loyalty")
        self.view.say("loyalty was written today: it begins with the first order")
        await self.until(lambda: self.is_level("loyalty"), "loyalty to catch up")
        level = f"{_handled(self.lags['loyalty']):,} facts behind it after {time.monotonic() - began_s:.1f} s, start included"
        self.view.say(f"loyalty is level, with {level}")
        return level

    async def close_shop(self) -> None:
        self.view.headline("closing")
        total = len(self.orders)
        await self.until(lambda: self.picture.counts["placed"] == total, "the last order")
        await self.until(lambda: self.picture.decided >= total, "the last decision")
        await self.until(lambda: all(self.is_level(name, 0) for name in self.started_us), "every service to finish")
        codes = await self.processes.stop()
        bad = {name: code for name, code in codes.items() if code}
        if bad:
            raise DemoFailed(f"ended with an error when asked to stop: {bad}; see {self.folder}/*.out")


def _handled(lag: Lag) -> int:
    partitions = [one for topic in lag.report.topics.values() for one in topic.values()]
    return sum(one.through + 1 - one.unfinished for one in partitions) - lag.report.held_records


def _wire_name(cls: type[ArticleListed]) -> str:
    return next(name for name, contract in cls_topic_contracts(cls))
