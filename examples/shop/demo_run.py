"""One run of the demo: the processes, the watch on the log, and what somebody at the terminal does meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from contracts import BranchForecast, ForecastScore, OrderPlaced, OrderSuspected
from demo_fraud import Judge
from demo_hands import Hands
from demo_history import FACTS
from demo_processes import Processes
from demo_view import Picture, Service, View
from everlog import Client, Settings
from everlog.subscriptions.report import Lag, read_lags

SIDE_FILE: Final = "inventory.noted"
LEVEL_S: Final = 1.5
"""A service keeps up if it is not further behind than so many seconds of orders: it reports once a second."""
PATIENCE_S: Final = 90.0
"""Without a new fact."""
LEFT_S: Final = 15.0
"""An act waits so long for a service that somebody has stopped; then the demo brings it back."""
REFRESH_S: Final = 0.15
LAGS_EVERY_S: Final = 0.4


class DemoFailed(Exception):
    """The demo cannot go on."""


class Quit(Exception):
    """Somebody wants no more acts."""


@dataclass(frozen=True)
class Plan:
    """What is played: sizes, and the places in the stream where the acts begin."""

    orders: int | None
    speed: float
    bursts: int
    dead_s: float
    endless: bool = False
    kill_at: float = 0.2
    poison_between: tuple[float, float] = (0.42, 0.6)
    join_at: float = 0.72


@dataclass(frozen=True)
class Poison:
    """An order whose article the catalogue will lack."""

    fact: OrderPlaced
    sku: str


class Kill(msgspec.Struct):
    """What was known when inventory was killed by the demo."""

    noted: Sequence[str]
    committed: set[str]


class Run:
    """What the acts share.

    Attributes:
        input: The orders of one round, in the order in which they are placed.
        total: How many orders were placed in all; known when the storefront has ended.
        kill, flowed, joined: What acts 1 to 3 left; ``None`` for an act that was not played.
    """

    def __init__(
        self,
        plan: Plan,
        folder: Path,
        settings: Settings,
        *,
        orders: Sequence[OrderPlaced],
        poison: Poison,
        judge: Judge,
        view: View,
        picture: Picture,
    ) -> None:
        self.plan = plan
        self.folder = folder
        self.input = orders
        self.poison = poison
        self.judge = judge
        self.view = view
        self.picture = picture
        self.settings = settings
        urls = {"EVERLOG_LOG_URL": settings.log_url, "EVERLOG_STORE_URL": settings.store_url}
        self.processes = Processes(folder, {"SHOP_SIDE_FILE": str(folder / SIDE_FILE), **urls})
        self.hands = Hands(self.processes, picture, view, self.start, self.quit)
        self.total = len(orders)
        self.kill: Kill | None = None
        self.flowed: int | None = None
        self.joined: str | None = None
        self.lags: dict[str, Lag] = {}
        self.decided_before_poison: int | None = None
        self.is_cured = False
        self.wants_quit = False
        self._started_us: dict[str, int] = {}
        self._suspected: set[str] = set()
        self._score = ForecastScore()
        self._newest: dict[str, BranchForecast] = {}
        self._changed = asyncio.Event()

    # ---- watching the log ----

    async def watch_facts(self, client: Client) -> None:
        async for record in client.follow(*FACTS, start="beginning"):
            self.picture.counts[record.type.partition("/")[0].rpartition("_")[2]] += 1
            match record.event:
                case OrderPlaced() as fact if fact == self.poison.fact:
                    self.decided_before_poison = self.picture.decided
                case OrderSuspected() as fact:
                    self._suspected.add(fact.order.id)
                case BranchForecast() as fact:
                    self._show_forecast(fact)
                case _:
                    pass
            self._changed.set()

    def _show_forecast(self, fact: BranchForecast) -> None:
        before = self._newest.get(fact.branch)
        self._newest[fact.branch] = fact
        if fact.score.orders <= self._score.orders:
            return
        self._score = fact.score
        self.picture.forecast = errors(fact.score)
        if before is not None and (fact.day - before.day).days == 1:  # the naive guess for a day is what came on the day before
            self.picture.forecast += (
                f"; branch {fact.branch} on {before.day:%d %b}: {before.expected:.1f} expected, {fact.naive} came"
            )

    async def watch_lags(self, client: Client) -> None:
        while True:
            self.lags = {lag.report.app: lag for lag in await read_lags(client.log, time.time_ns() // 1000)}
            for name, service in self.picture.services.items():
                self._show_service(name, service)
            self.picture.fraud = self.judge.alarms(self._suspected, self.picture.counts["placed"]).shortly()
            self._changed.set()
            await asyncio.sleep(LAGS_EVERY_S)

    def _show_service(self, name: str, service: Service) -> None:
        lag = self.lags.get(name)
        is_new = lag is None or lag.reported_us < self._started_us.get(name, 0)
        if lag is not None:
            service.has_reported = True
            service.lag, service.waiting, service.handled = lag.count, lag.report.held_records, handled(lag)
        if name not in self._started_us:
            service.state = "not yet"
        elif name in self.hands.down:
            service.state = self.hands.down[name].how
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
            while self.plan.endless and self.picture.counts["placed"] >= self.picture.total:
                self.picture.total += len(self.input)
            self.view.refresh()
            await asyncio.sleep(REFRESH_S)

    # ---- waiting ----

    async def until(self, holds: Callable[[], bool], what: str, *, is_patient: bool = False, can_quit: bool = True) -> None:
        """Wait until something holds.

        Args:
            holds: What is waited for.
            what: Its name in an error.
            is_patient: It comes without the services, so that those which are stopped by hand may stay so.
            can_quit: Somebody who quits ends the wait.

        Raises:
            Quit: Somebody quits.
            DemoFailed: Nothing happens any more, or a process has ended.
        """
        seen, still_s, left_s = -1, 0.0, 0.0
        while not holds():
            if can_quit and self.wants_quit:
                raise Quit
            self._check_processes()
            began_s = time.monotonic()
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):  # to see that a process has ended
                    await self._changed.wait()
            passed_s = min(2.0, time.monotonic() - began_s)  # more, and it was this process that stood still
            still_s = still_s + passed_s if self.picture.counts.total() == seen or self.hands.down else 0.0
            left_s = left_s + passed_s if self.hands.down and not is_patient else 0.0
            seen = self.picture.counts.total()
            if left_s > LEFT_S:
                await self.hands.make_all_good()
            if still_s > PATIENCE_S and not self.hands.down:
                behind = {name: lag.count for name, lag in self.lags.items()}
                raise DemoFailed(f"waited {PATIENCE_S:.0f} s for {what}; facts {dict(self.picture.counts)}, behind: {behind}")

    async def until_placed(self, share: float, what: str) -> None:
        """Wait until a share of the orders is placed."""
        await self.until(lambda: self.picture.counts["placed"] >= share * len(self.input), what, is_patient=True)

    async def until_up(self, names: Sequence[str]) -> None:
        """Wait until some services are not down by hand."""
        for name in names:
            if name in self.hands.down:
                self.view.say(f"this act needs {name}: press r, or it comes back after {LEFT_S:.0f} s")
        await self.until(lambda: all(self.processes.is_running(name) and name not in self.hands.down for name in names), "you")

    def _check_processes(self) -> None:
        for name, code in self.processes.ended().items():
            if code or name != "storefront":
                raise DemoFailed(f"{name} ended with {code}: see {self.folder / name}.out")

    # ---- services ----

    def start(self, name: str) -> None:
        self._started_us[name] = time.time_ns() // 1000
        self.picture.services[name].state = "starting"
        self.processes.run_service(name)

    def quit(self) -> None:
        """Let the acts end, and the shop be closed and counted."""
        if not self.wants_quit:
            self.wants_quit = True
            self.view.say("you quit: what is placed is finished and counted; Ctrl-C ends at once")
            self._changed.set()

    def is_behind(self, name: str, most: float) -> bool:
        """Whether a service has more than `most` to do, or has not said yet since it was started."""
        lag = self.lags.get(name)
        return lag is None or lag.reported_us < self._started_us[name] or lag.count > most

    def inventory_says(self, number: str) -> int:
        """Return a number of inventory's newest report."""
        lag = self.lags.get("inventory")
        return getattr(lag.report, number) if lag is not None else 0

    def is_level(self, name: str) -> bool:
        """Tell whether a service has reported that it keeps up."""
        service = self.picture.services[name]
        return service.has_reported and service.lag <= LEVEL_S * self.plan.speed

    @property
    def unanswered(self) -> int:
        """Orders that were routed, and neither reserved nor refused."""
        return self.picture.counts["routed"] - self.picture.counts["reserved"] - self.picture.counts["refused"]

    def noted(self) -> list[str]:
        """Return what inventory has noted so far."""
        path = self.folder / SIDE_FILE
        return path.read_text().split() if path.exists() else []


def errors(score: ForecastScore) -> str:
    """Return both errors as shares of all orders."""
    if not score.orders:
        return "no day has ended"
    return f"error {score.missed / score.orders:.0%} · naive {score.missed_naively / score.orders:.0%}"


def handled(lag: Lag) -> int:
    """Return how many records a service has finished."""
    partitions = [one for topic in lag.report.topics.values() for one in topic.values()]
    return sum(one.through + 1 - one.unfinished for one in partitions) - lag.report.held_records
