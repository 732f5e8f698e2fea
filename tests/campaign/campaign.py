"""A campaign: producers, workers of two services, a follower and a janitor on one log, while a director kills, stops and restarts them.

At the end the faults stop, everything settles, and the history of all processes is judged.
"""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from tests.campaign import services
from tests.campaign.crew import PRODUCERS, Crew
from tests.campaign.harm import Harm
from tests.campaign.part import Role
from tests.campaign.plan import READY_S, WORKERS, Plan, Result
from tests.campaign.points import points_of
from tests.campaign.seen import history_of, watch
from tests.campaign.services import APPS, TOPICS

from everlog.clock import SystemClock
from everlog.conformance.judge import judge
from everlog.log import Log
from everlog.position import Offset, TopicPartition
from everlog.settings import Settings, open_log, open_store
from everlog.store import Store

SETTLE_S: Final = 60.0
SETTLE_WITH_A_BUG_S: Final = 8.0


class NeverSettles(AssertionError):
    """Faults are over, and something is still not handled: that is lost too."""


class Campaign:
    """One run.

    Args:
        folder: Where its files are made; empty.
        plan: What to do.
        server: Kills the server of log and stores, and starts it again, where the plan says so.
    """

    def __init__(self, folder: Path, plan: Plan, server: Callable[[], Awaitable[None]] | None = None) -> None:
        self._folder = folder
        self._plan = plan
        self._dice = random.Random(plan.seed)
        self.result = Result(plan)
        self._crew = Crew(folder, plan, self.result, self._dice)
        self._log: Log
        self._stores: dict[str, Store] = {}
        self._harm = Harm(self._crew, plan, self.result, self._dice, self._stores, server)

    async def run(self) -> Result:
        """Do all of it; what broke is in the result."""
        for name in ("journals", "backups"):
            (self._folder / name).mkdir()
        settings = Settings(
            log_url=self._plan.log_url or f"sqlite:{self._folder}/log.db",
            store_url=self._plan.store_url or f"sqlite:{self._folder}/{{app}}.db",
        )
        self._log = await open_log(settings, clock=SystemClock())
        try:
            for topic in (services.orders, services.returns, services.bills):
                await self._log.ensure_topic(topic.spec())
            for app in APPS:
                self._stores[app] = await open_store(settings, app, clock=SystemClock())
            await self._start()
            await (self._each_point() if self._plan.points_once else self._at_random())
            await self._settle()
            history = await history_of(self._folder, self._log, self._stores, self.result)
            self.result.faults = await asyncio.to_thread(judge, history)
        finally:
            await self._crew.end_all()
            for store in self._stores.values():
                await store.aclose()
            await self._log.aclose()
        return self.result

    async def _start(self) -> None:
        workers: Sequence[Role] = ("billing", "shipping") * WORKERS
        roles: Sequence[Role] = ("producer",) * PRODUCERS
        await asyncio.gather(*[self._crew.start(role) for role in (*roles, *workers, "follower", "janitor")])

    async def _at_random(self) -> None:
        began_s = time.monotonic()
        watching = asyncio.create_task(watch(self._crew, self._folder, self._plan, self.result))
        try:
            while time.monotonic() - began_s < self._plan.seconds:
                await asyncio.sleep(self._dice.uniform(0.5, 1.5) * self._plan.pause_s)
                await self._harm.inject()
                await self._crew.replace_dead()
        finally:
            watching.cancel()
        self.result.ran_s = time.monotonic() - began_s
        await self._harm.over()

    async def _each_point(self) -> None:
        """Kill at each named point: one of each role at a time, each as soon as its predecessor has died."""
        roles: Sequence[Role] = ("producer", "billing", "shipping", "janitor")
        async with asyncio.timeout(self._plan.seconds):
            await asyncio.gather(*[self._points_of(role) for role in roles])

    async def _points_of(self, role: Role) -> None:
        crew = self._crew
        for point in points_of(role):
            # What only one process of an app does at a time, none of the others may be doing.
            alone = "relay" in point
            for _ in range(len(crew.live[role]) if alone else 1):
                await crew.live[role].pop().end(signal.SIGTERM)
            process = await crew.start(role, (point, 1))
            try:
                async with asyncio.timeout(READY_S):
                    code = await process.child.wait()
            except TimeoutError:
                raise AssertionError(f"a {role} never comes by {point!r}:\n{crew.errors}") from None
            if code != -signal.SIGKILL:
                raise AssertionError(f"{role} was to kill itself at {point!r}, and ended with {code}:\n{crew.errors}")
            crew.live[role].remove(process)
            crew.armed.pop(process)
            for _ in range(WORKERS if alone else 1):
                await crew.start(role)
            self.result.injected[f"kill at {point}"] += 1
            self.result.survived[f"kill at {point}"] += 1

    # ---- the end ----

    async def _settle(self) -> None:
        """Stop the faults and the producers, and wait until everything is handled."""
        await self._crew.calm()
        await self._crew.end_in_order("producer")
        await self._crew.end_in_order("janitor")
        began_s = time.monotonic()
        for app in APPS:
            while not await self._is_settled(app):
                await self._crew.replace_dead()
                if time.monotonic() - began_s > (SETTLE_S if self._plan.bug is None else SETTLE_WITH_A_BUG_S):
                    if self._plan.bug is None:
                        raise NeverSettles(f"{app}: {await self._stores[app].status()}\n{self._crew.errors}")
                    break  # the judge says what is missing
                await self._stores[app].wait(0.1)
        self.result.settled_s = time.monotonic() - began_s
        await self._crew.end_in_order("follower")
        for role in ("billing", "shipping"):
            if self._plan.bug is None:
                await self._crew.end_in_order(role)

    async def _is_settled(self, app: str) -> bool:
        status = await self._stores[app].status()
        heads = await self._heads(app)
        progress = {one.where: one for subscription in status.subscriptions for one in subscription.progress}
        return (
            not status.outbox
            and not any(subscription.held_records for subscription in status.subscriptions)
            and all(head < 0 or (where in progress and progress[where].through >= head) for where, head in heads.items())
            and not any(one.unfinished for one in progress.values())
        )

    async def _heads(self, app: str) -> Mapping[TopicPartition, Offset]:
        return {where: offset for name in TOPICS[app] for where, offset in (await self._log.head(name)).offsets.items()}
