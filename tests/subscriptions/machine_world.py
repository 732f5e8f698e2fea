"""The world of the state machine: processes of one app, each on an event loop of its own, that run for as many turns as they are given.

A process that gets no turns is a process that the system has stopped; one that never gets another is one that was killed.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, TypeVar, cast

import pytest
from tests.subscriptions import machine_shop as shop
from tests.subscriptions.machine_store import LEASE_S, Cabinet, Faults, Handle, ShakyMemoryLog

from everlog.client import Client
from everlog.errors import StoreError
from everlog.log import Log
from everlog.runtime import AppRuntime
from everlog.settings import Settings
from everlog.subscriptions import taking
from everlog.testing.clock import ManualClock

T = TypeVar("T")

STEP_S = 1.0
"""So far the clock moves at once; between two steps everybody comes to rest, and gives a sign of life."""
_MOST_TURNS = 20_000


class Restless(AssertionError):
    """The processes never come to rest, or somebody waits for ever."""


class TurnLoop(asyncio.SelectorEventLoop):
    """An event loop that runs one turn at a time, on the machine's clock."""

    def __init__(self, clock: ManualClock) -> None:
        self._manual = clock
        super().__init__()

    def time(self) -> float:
        return self._manual.monotonic_s()

    def turn(self) -> bool:
        """Run what is ready now, once; tells whether there is or was anything."""
        inside = cast("Any", self)
        timers = inside._scheduled
        is_busy = bool(inside._ready) or bool(timers and timers[0]._when <= self.time())
        self.call_soon(self.stop)
        self.run_forever()
        return is_busy or bool(inside._ready)

    def end(self) -> None:
        """Cancel what is left, and close."""
        for _ in range(100):
            tasks = [task for task in asyncio.all_tasks(self) if not task.done()]
            if not tasks:
                break
            for task in tasks:
                task.cancel()
            for _ in range(50):
                self.turn()
        self.close()


class Process:
    """One process of the app, from its start to its end."""

    def __init__(self, world: World, name: str, *, is_new: bool) -> None:
        self.name = name
        self.is_stalled = False
        self.is_stopping = False
        self.loop = TurnLoop(world.clock)
        self.store: Handle | None = None
        self._world = world
        self._stop: asyncio.Event
        self._app = shop.shop_of(world.weather, concurrency=world.concurrency, is_new=is_new)
        self._task = self.loop.create_task(self._run())

    async def _run(self) -> None:
        world = self._world
        self._stop = asyncio.Event()
        self.store = await world.open_store(world.faults)
        await AppRuntime(self._app.declaration(), world.log, Settings(lease_s=LEASE_S), world.clock).run(self._stop)

    @property
    def has_ended(self) -> bool:
        """It was killed, or has come to its end."""
        return self._task.done() or (self.store is not None and self.store.is_dead)

    def stop(self) -> None:
        """Ask for a graceful stop, as SIGTERM does."""
        self.is_stopping = True
        self._stop.set()

    def kill(self) -> None:
        """End it where it is."""
        if self.store is not None:
            self.store.kill()

    def bury(self) -> None:
        """Close what it leaves behind.

        Raises:
            Exception: It has ended with an error that no fault explains.
        """
        is_dead = self.store is not None and self.store.is_dead
        self.loop.end()
        if not is_dead and not self._task.cancelled():
            error = self._task.exception()
            if error is not None and not isinstance(error, StoreError):
                raise error


class World:
    """Everything that outlives a process.

    Args:
        dice: Decides all that no step says.
    """

    def __init__(self, dice: random.Random) -> None:
        self.dice = dice
        self.clock = ManualClock()
        self.faults = Faults(dice)
        self.weather = shop.Weather(dice, lambda: self._running().name, lambda: self._running().kill())
        self.concurrency = dice.choice((1, 2, 5, 64))
        self.processes: dict[str, Process] = {}
        self._numbers = itertools.count(1)
        self._cabinet = Cabinet()
        self._patch = pytest.MonkeyPatch()
        self._patch.setattr("everlog.runtime.open_store", self._lend)
        self._patch.setattr(taking, "_TURN_S", 0.0)  # no run depends on how fast the machine is
        self.loop = TurnLoop(self.clock)
        self.log: Log = ShakyMemoryLog(self.clock, self.faults)
        self.store, self.client = self.do(self._open())

    async def _open(self) -> tuple[Handle, Client]:
        for topic in (shop.left, shop.right, shop.free, shop.out):
            await self.log.ensure_topic(topic.spec())
        client = Client(self.log, source="machine", clock=self.clock)
        client._spread = itertools.count()
        return await self.open_store(None), client

    async def open_store(self, faults: Faults | None) -> Handle:
        """Return a handle of the store."""
        handle = Handle(self._cabinet, clock=self.clock, faults=faults)
        await handle.open()
        return handle

    async def _lend(self, settings: Settings, name: str, *, clock: object) -> Handle:
        store = self._running().store
        assert store is not None
        return store

    def _running(self) -> Process:
        loop = asyncio.get_running_loop()
        return next(process for process in self.processes.values() if process.loop is loop)

    # ---- processes ----

    def start(self, place: str, *, is_new: bool) -> None:
        """Start a process where there is none."""
        if place not in self.processes:
            self.processes[place] = Process(self, f"{place}{next(self._numbers)}", is_new=is_new)

    def bury(self) -> None:
        """Take away the processes that have ended."""
        for place, process in list(self.processes.items()):
            if process.has_ended:
                del self.processes[place]
                process.bury()

    def end_all(self) -> None:
        """Kill what still runs."""
        for process in self.processes.values():
            process.kill()
        self.bury()

    # ---- time ----

    def turn(self) -> bool:
        """Give everybody who is not stopped one turn; tells whether anybody has something to do."""
        is_busy = self.loop.turn()
        for process in list(self.processes.values()):
            if not process.is_stalled and not process.has_ended:
                is_busy = process.loop.turn() or is_busy
        self.bury()
        return is_busy

    def rest(self) -> None:
        """Give turns until nobody has anything to do before the clock moves."""
        for _ in range(_MOST_TURNS):
            if not self.turn():
                return
        raise Restless("the processes never come to rest")

    def advance(self, seconds: float) -> None:
        """Move the clock, in small steps, with a sign of life from each process that is not stopped."""
        while seconds > 0:
            self.clock.advance(min(seconds, STEP_S))
            seconds -= STEP_S
            for process in self.processes.values():
                if process.store is not None and not process.is_stalled:
                    process.store.beat()
            self.rest()

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        """Do something in the world outside, while the processes go on."""
        task = self.loop.create_task(work)
        for _ in range(_MOST_TURNS):
            is_busy = self.turn()
            if task.done():
                return task.result()
            if not is_busy:
                self.clock.advance(0.1)
        raise Restless("something in the world outside has no end")

    def close(self) -> None:
        """End everything."""
        try:
            self.end_all()
            with suppress(Restless):
                self.do(self._close())
        finally:
            self.loop.end()
            self._cabinet.close()
            self._patch.undo()

    async def _close(self) -> None:
        await self.store.aclose()
        await self.log.aclose()
