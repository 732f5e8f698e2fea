"""The three acts of the demo, and the watch on the log that goes on beside them."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from contracts import OrderPlaced, StockRefused, StockReserved
from demo_checks import expected_suspects
from demo_history import FACTS, read_facts, read_unsent
from demo_processes import Processes
from demo_view import Picture, Service, View
from everlog import Client, Settings
from everlog.subscriptions.report import Lag, read_lags
from files import read_articles
from inventory import inventory

SERVICES: Final = ("fraud", "routing", "inventory", "supplier", "forecast", "notify")
LATE: Final = "loyalty"
SIDE_FILE: Final = "inventory.noted"
LEVEL_S: Final = 1.5
"""A service keeps up if it is not further behind than so many seconds of orders: it reports once a second."""
FRESH: Final = 5
"""So many orders have just begun when inventory is killed: the warehouse takes ten times as long as the look at the side file."""
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
        later = [
            other
            for other in orders[place + 1 : place + soon]
            if other.customer_id == fact.customer_id and other.order.id not in suspects
        ]
        alone = [line.sku for line in fact.order.lines if bought[line.sku] == 1]
        if later and alone and fact.order.id not in suspects:
            return Poison(fact, alone[0])
    raise DemoFailed(f"no order between {first} and {last} can be made poison: take more orders")


class Kill(msgspec.Struct):
    """What was known when inventory was killed."""

    noted: Sequence[str]
    committed: set[str]


class Demo:
    """One run: processes, the watch on the log, and what was seen."""

    def __init__(
        self, plan: Plan, folder: Path, orders: Sequence[OrderPlaced], poison: Poison, view: View, picture: Picture
    ) -> None:
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
        self.decided_before_poison: int | None = None
        self._changed = asyncio.Event()

    # ---- watching the log ----

    async def watch_facts(self, client: Client) -> None:
        async for record in client.follow(*FACTS, start="beginning"):
            self.picture.counts[record.type.partition("/")[0].rpartition("_")[2]] += 1
            if record.key == self.poison.fact.customer_id and record.event == self.poison.fact:
                self.decided_before_poison = self.picture.decided
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
        elif service.lag <= LEVEL_S * self.plan.speed or service.state == "running":
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
                raise DemoFailed(
                    f"waited {PATIENCE_S:.0f} s for {what}; placed {self.picture.counts['placed']}, behind: {behind}"
                )
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):  # to see that a process has ended
                    await self._changed.wait()

    def start(self, name: str) -> None:
        self.started_us[name] = time.time_ns() // 1000
        self.picture.services[name].state = "starting"
        self.processes.run_service(name)

    def is_behind(self, name: str, most: float) -> bool:
        """Whether a service has more than `most` to do, or has not said yet since it was started."""
        lag = self.lags.get(name)
        return lag is None or lag.reported_us < self.started_us[name] or lag.count > most

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

    async def kill_inventory(self, client: Client) -> Kill:
        """Act 1."""
        await self.until(lambda: self.picture.counts["placed"] >= self.plan.kill_at * len(self.orders), "enough orders")
        self.view.headline("act 1 of 3: kill -9 of inventory")
        before = len(self.noted())
        for _ in range(2_000):  # until some have begun within the last moment; how many were in flight is counted afterwards
            await asyncio.sleep(0.002)
            now = len(self.noted())
            if now - before >= FRESH:
                break
            before = now
        await self.processes.kill("inventory")
        kill = Kill(self.noted(), await self.committed(client))
        in_flight = len(set(kill.noted) - kill.committed)
        self.view.say(f"killed, with {in_flight} orders in flight: begun, and nothing of them committed")
        await asyncio.sleep(self.plan.dead_s)
        self.view.say(f"nobody else noticed: {self.unanswered:,} routed orders wait in the log")
        self.start("inventory")
        began_s = time.monotonic()
        await self.until(lambda: self.unanswered < 0.1 * self.plan.speed, "inventory to catch up")
        self.view.say(f"inventory is back, and level after {time.monotonic() - began_s:.1f} s")
        return kill

    @property
    def answered(self) -> int:
        return self.picture.counts["reserved"] + self.picture.counts["refused"]

    @property
    def unanswered(self) -> int:
        """Orders that were routed, and neither reserved nor refused."""
        return self.picture.counts["routed"] - self.answered

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
        return {fact.order.id for fact in sent} | {
            msgspec.json.decode(data)["order"]["id"] for data in unsent if b'"order"' in data
        }

    async def poison_and_cure(self) -> int:
        """Act 2. Returns how many orders of others were decided while one customer waited."""
        order, sku, who = self.poison.fact.order, self.poison.sku, self.poison.fact.customer_id
        await self.until(lambda: self.decided_before_poison is not None, "the poison order")
        self.view.headline("act 2 of 3: a poison order")
        self.view.say(f"order {order.id} has article {sku}, which the catalogue lacks")
        await self.until(lambda: self._report("parked_keys") == 1, "inventory to park the order")
        await self.until(lambda: self._report("held_records") >= 2, "a second order of the customer")
        flowed = self.picture.decided - (self.decided_before_poison or 0)
        behind = self._report("held_records") - 1
        self.view.say(f"tried 5 times, then parked; {behind} more of customer {who} wait behind it")
        self.view.say(f"everybody else is served: {flowed:,} orders decided meanwhile")
        article = next(article for article in read_articles() if article.sku == sku)
        (self.folder / "missing-article.jsonl").write_bytes(msgspec.json.encode(article) + b"\n")
        await self.processes.command("publish", "contracts", "shop.article_listed/1", "missing-article.jsonl")
        self.view.say("cure: everlog publish contracts shop.article_listed/1")
        await self.processes.command("parked", "redrive", "inventory", who)
        self.view.say(f"      everlog parked redrive inventory {who}")
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
        await self.until(lambda: not self.is_behind("loyalty", LEVEL_S * self.plan.speed), "loyalty to catch up")
        level = f"{_handled(self.lags['loyalty']):,} facts in {time.monotonic() - began_s:.1f} s"
        self.view.say(f"loyalty is level: {level}, its start included")
        return level

    async def close_shop(self) -> None:
        self.view.headline("closing")
        total = len(self.orders)
        await self.until(lambda: self.picture.counts["placed"] == total, "the last order")
        await self.until(lambda: self.picture.decided >= total, "the last decision")
        await self.until(lambda: not any(self.is_behind(name, 0) for name in self.started_us), "every service to finish")
        codes = await self.processes.stop()
        bad = {name: code for name, code in codes.items() if code}
        if bad:
            raise DemoFailed(f"ended with an error when asked to stop: {bad}; see {self.folder}/*.out")


def _handled(lag: Lag) -> int:
    partitions = [one for topic in lag.report.topics.values() for one in topic.values()]
    return sum(one.through + 1 - one.unfinished for one in partitions) - lag.report.held_records
