"""One app of a world, over all its starts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

from everlog.log import Log
from everlog.runtime import AppRuntime
from everlog.settings import Settings
from everlog.subscriptions.declaration import AppDeclaration
from everlog.testing.calls import Calls
from everlog.testing.clock import ManualClock
from everlog.testing.failures import EventFailed, Unsettled
from everlog.testing.faults import Outage, Plan
from everlog.testing.life import Life
from everlog.testing.member import MemberStore
from everlog.testing.motion import Motion
from everlog.testing.passage import Passage
from everlog.testing.watched import Lifespan, watched

LEASE_S: Final = 5.0
_ENDS_WITHIN_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Around:
    """What the apps of a world share."""

    log: Log
    outage: Outage
    clock: ManualClock
    motion: Motion
    calls: Calls
    dice: Callable[[], float]
    folder: Path | None


class _Run:
    """One start of the app."""

    def __init__(self, life: Life, store: MemberStore) -> None:
        self.life = life
        self.store = store
        self.stop = asyncio.Event()
        self.task: asyncio.Task[None]
        self.watch: asyncio.Task[None]


class Service:
    """Keeps one app at work: it is started again when it was killed.

    Args:
        declaration: What to run.
        around: What it shares with others.
        lifespan: What its handlers are given comes from here.
    """

    def __init__(self, declaration: AppDeclaration, around: Around, lifespan: Lifespan | None) -> None:
        self.declaration = declaration
        self.plan = Plan(around.clock)
        self.error: BaseException | None = None
        """Why it does not work any more."""
        self._around = around
        self._lifespan = lifespan
        self._keeper: MemberStore | None = None
        self._run: _Run | None = None
        self._seen: set[tuple[int, int]] = set()  # held records, and how often they had failed
        self._path = None if around.folder is None else around.folder / f"{declaration.name}.db"
        self._log_url = "memory:" if around.folder is None else f"sqlite:{around.folder / 'log.db'}"
        self._store_url = "sqlite::memory:" if self._path is None else f"sqlite:{self._path}"

    @property
    def store(self) -> MemberStore:
        """Its store, as whoever runs now has it open."""
        assert self._run is not None
        return self._run.store

    @property
    def has_ended(self) -> bool:
        """It has ended by itself."""
        return self._run is not None and self._run.task.done() and not self._run.life.fell.done()

    async def start(self) -> None:
        """Start it, and return when it works.

        Raises:
            EverlogError: It does not.
        """
        around = self._around
        if self._path is None and self._keeper is None:
            self._keeper = MemberStore(None, clock=around.clock, lease_s=LEASE_S)
            await self._keeper.open()
        life = Life(self.plan, around.motion)
        store = MemberStore(self._path, clock=around.clock, lease_s=LEASE_S, life=life, keeper=self._keeper)
        run = _Run(life, store)

        async def opened() -> MemberStore:
            await store.open()
            return store

        runtime = AppRuntime(
            watched(self.declaration, life, around.calls, self._lifespan),
            Passage(around.log, around.outage, around.clock, life),
            Settings(log_url=self._log_url, store_url=self._store_url, lease_s=LEASE_S, grace_s=_ENDS_WITHIN_S),
            around.clock,
            end=self._cannot_end,
            store=opened,
            dice=around.dice,
        )
        ready = asyncio.Event()
        run.task = asyncio.create_task(runtime.run(run.stop, lambda _: ready.set()))
        waiting = asyncio.create_task(ready.wait())
        try:
            await asyncio.wait([run.task, waiting], return_when=asyncio.FIRST_COMPLETED)
        except BaseException:  # the test is over
            run.task.cancel()
            with suppress(BaseException):
                await run.task
            raise
        finally:
            waiting.cancel()
        if run.task.done():
            await run.task
        self._run = run
        run.watch = asyncio.create_task(self._watch(run))

    async def _watch(self, run: _Run) -> None:
        """Answer to what happens to a start of the app."""
        fault = await run.life.fell
        with self._around.motion.working():
            try:
                if fault == "crash":
                    await self._bury(run)
                    await self.start()
                else:
                    await run.store.silence()
                    await self.start()
                    run.life.wake()  # it finds out that it has lost everything
                    run.stop.set()
                    await run.task
            except asyncio.CancelledError:
                raise
            except BaseException as error:
                self.error = error

    async def _bury(self, run: _Run) -> None:
        """End a start of the app where it is."""
        run.task.cancel()
        run.life.wake()
        done, _ = await asyncio.wait([run.task], timeout=_ENDS_WITHIN_S)
        if not done:
            raise Unsettled(f"a handler of app {self.declaration.name!r} does not let itself be cancelled")
        if not run.task.cancelled():
            run.task.exception()  # looked at: it was killed, whatever it says

    def check(self) -> None:
        """Raise what has ended the app.

        Raises:
            BaseException: That.
        """
        if self.error is not None:
            raise self.error
        if self.has_ended:
            assert self._run is not None
            self._run.task.result()
            raise Unsettled(f"app {self.declaration.name!r} has ended")

    def crash(self) -> None:
        """Kill it now."""
        assert self._run is not None
        self._run.life.fall("crash")

    def stall(self) -> None:
        """Hold it now, until another member has taken over."""
        assert self._run is not None
        self._run.life.fall("stall")

    async def aclose(self) -> None:
        """End it and let go of everything."""
        self.plan.clear()
        run = self._run
        if run is not None:
            run.watch.cancel()
            with suppress(asyncio.CancelledError):
                await run.watch
            await self._bury(run)
        if self._keeper is not None:
            await self._keeper.aclose()

    def _cannot_end(self, why: str) -> NoReturn:
        raise Unsettled(f"app {self.declaration.name!r}: {why}")

    def look_for_failures(self) -> None:
        """Note failures that no handler raised: it was cancelled, its event cannot be read, or what it returned cannot be published."""
        calls = self._around.calls
        for one in self.store.parked_now():
            first = one.first
            seen = first.id, first.attempts
            place = first.record.topic, first.record.partition, first.record.offset
            if not first.error or seen in self._seen or calls.knows_failure(self.declaration.name, one.subscription, place):
                continue
            self._seen.add(seen)
            whose = f"{name_of(self, one.subscription)}, {first.record.type} of key {first.record.key!r}"
            calls.fail(EventFailed(f"{whose}: {first.error}" + (f"\n\n{first.trace}" if first.trace else "")))


def name_of(service: Service, subscription: str) -> str:
    """Return a subscription as people read it."""
    app = service.declaration.name
    return app if app == subscription else f"{app}/{subscription}"
