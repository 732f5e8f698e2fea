"""An app at work in this process: opens what it needs, runs its subscriptions, and stops in order."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import random
import signal
from collections.abc import AsyncGenerator, Awaitable, Callable, Container, Coroutine, Generator, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any, Final, NamedTuple, NoReturn

from everlog.clock import Clock, SystemClock
from everlog.contracts.topic import Topic
from everlog.errors import UNREADABLE, EverlogError, LeaseLost, StoreReadOnly, WrongLog
from everlog.log import Log
from everlog.observe import Meters
from everlog.observe import meters as families
from everlog.observe.health import Vitals
from everlog.observe.meters import Measured
from everlog.observe.tracing import Tracing, tracing
from everlog.position import TopicPartition
from everlog.settings import Settings, is_absent, open_log, open_store, resolve, shown
from everlog.store import Landmark, Progress, Slot, Store, StoreStatus, Unit
from everlog.subscriptions.careful import Careful
from everlog.subscriptions.committer import Committer
from everlog.subscriptions.declaration import AppDeclaration
from everlog.subscriptions.engine import Engine
from everlog.subscriptions.feed import READ_AHEAD_BYTES
from everlog.subscriptions.fit import handled_by, landmarks_of
from everlog.subscriptions.measuring import Measuring
from everlog.subscriptions.mending import tell
from everlog.subscriptions.outlets import Outlets
from everlog.subscriptions.overlay import Overlay
from everlog.subscriptions.progress import SlotWork
from everlog.subscriptions.relay import Relay
from everlog.subscriptions.report import (
    ProgressReported,
    backlog_of,
    progress_topic,
    publish_reports,
    publish_retired,
    reports_of,
)
from everlog.subscriptions.slots import Slots
from everlog.subscriptions.start import begin, check_grown, check_log, check_replaced, unseen_types
from everlog.subscriptions.surroundings import Surroundings
from everlog.subscriptions.traced import traced
from everlog.subscriptions.units import Units
from everlog.subscriptions.watchdog import Watchdog
from everlog.subscriptions.worker import IGNORED_S

REPORT_EVERY_S: Final = 1.0
RETAIN_EVERY_S: Final = 10.0
_COLLECT_EVERY_S: Final = 0.05
_LOOK_EVERY_S: Final = 0.05
_TURN_EVERY_S: Final = 0.5
_SECOND_SIGNAL_EXIT: Final = 143
HANDLER_EXIT: Final = 70
"""The exit code of a process with a handler that could not be stopped (`EX_SOFTWARE`)."""

_logger: Final = logging.getLogger("everlog")


class Ready(NamedTuple):
    """What an app works with, once it does."""

    app: str
    log_url: str
    store_url: str
    status: StoreStatus
    waiting: Mapping[str, int]
    """How many events wait for each subscription."""


def end_process(why: str) -> NoReturn:
    """End the process at once: a handler in it cannot be stopped. What is committed stays, and the rest is handled again."""
    _logger.critical("%s", why)
    logging.shutdown()
    os._exit(HANDLER_EXIT)


class AppRuntime:
    """One app at work on an open log.

    Args:
        declaration: What to run.
        log: The log; closed by whoever opened it.
        settings: Where the store is, and how long things may take.
        clock: The time.
        careful: Shared by all apps of the process.
        meters: Where its numbers go; ``None``: nobody asks for them.
        end: Ends the process, and says why.
        store: Opens the store; ``None``: the one that the settings name.
        dice: Gives a number from 0 up to 1, for pauses that are not to be alike; ``None``: any.
    """

    def __init__(  # noqa: PLR0913 what a test gives in the place of the machine's own is a part of it
        self,
        declaration: AppDeclaration,
        log: Log,
        settings: Settings,
        clock: Clock,
        *,
        careful: Careful | None = None,
        meters: Meters | None = None,
        end: Callable[[str], NoReturn] = end_process,
        store: Callable[[], Awaitable[Store]] | None = None,
        dice: Callable[[], float] | None = None,
    ) -> None:
        self._declaration = declaration
        self._log = log
        self._settings = settings
        self._clock = clock
        self._careful = careful or Careful()
        self._meters = meters
        self._end = end
        self._open_store = store
        self._dice = random.random if dice is None else dice
        self._engines: dict[str, Engine] = {}
        self._slots: list[Slots] = []
        self._look = asyncio.Event()
        self._reported: list[ProgressReported] = []
        self._landmarks: dict[TopicPartition, Landmark] = {}
        self._measuring: Measuring | None = None
        self.store: Store
        self._committer: Committer
        self._relay: Relay

    async def run(
        self,
        stop: asyncio.Event,
        on_ready: Callable[[Ready], None] | None = None,
        on_begin: Callable[[], None] | None = None,
    ) -> None:
        """Work until `stop` is set; then finish what is in flight within the grace period, and give everything back.

        Raises:
            StartRefused: Something does not fit together. Nothing was handled.
            EverlogError: The log or the store cannot be used any more. What is committed stays.
        """
        async with AsyncExitStack() as stack:
            if self._open_store is not None:
                self.store = await self._open_store()
            else:
                self.store = await open_store(self._settings, self._declaration.name, clock=self._clock)
            stack.push_async_callback(_within, self._settings.grace_s, self.store.aclose)
            if self._meters is not None:
                self._measuring = Measuring(self._declaration.name, self._log, self.store, self._meters, self._clock)
                stack.callback(self._measuring.close)
            status = await self._prepare()
            resources: object = None
            if self._declaration.lifespan is not None:
                resources = await stack.enter_async_context(self._declaration.lifespan())
            if on_begin is not None:
                on_begin()
            stack.callback(self._close_engines)
            await self._build(resources, status)
            tasks = [asyncio.create_task(work) for work in self._work()]
            stack.push_async_callback(_cancelled, tasks, self._end)
            if on_ready is not None:
                url = shown(resolve(self._settings.store_url, app=self._declaration.name))
                now = await self.store.status()
                on_ready(
                    Ready(self._declaration.name, shown(resolve(self._settings.log_url)), url, now, await self._waiting(now))
                )
            stopping = asyncio.create_task(stop.wait())
            try:
                await asyncio.wait([stopping, *tasks], return_when=asyncio.FIRST_COMPLETED)
            finally:
                stopping.cancel()
            for task in tasks:
                if task.done():
                    task.result()  # raises: no task ends by itself
            await self._stop()

    async def _prepare(self) -> StoreStatus:
        """Register, make topics, check that everything belongs together, and decide where each subscription begins."""
        declaration, settings, log, store = self._declaration, self._settings, self._log, self.store
        for subscription in declaration.subscriptions:
            subscription.check()
        accepted: Container[str] = await unseen_types(declaration, log)
        if settings.new_types == "now":
            accepted = {name for subscription in declaration.subscriptions for name in subscription.branches}
        registered = await store.register(declaration.spec(), log=log.identity, accept=accepted)
        check_grown(declaration, registered, accepted)
        if settings.create_topics:
            for topic in (*declaration.topics, progress_topic):
                await log.ensure_topic(topic.spec())
        for subscription in declaration.subscriptions:
            if subscription.renamed_from is not None:
                await publish_retired(log, declaration.name, subscription.renamed_from, self._clock.wall_us())
        fit = await check_log(declaration.name, log, store, registered)
        if fit.replaced is not None and store.features.durability != "memory":
            if not settings.accept_new_store:
                check_replaced(declaration.name, store, {declaration.name: str(fit.replaced)})
            await tell(declaration.name, log, store, self._clock)  # now, so that it is accepted once
        stored = {subscription.name: subscription for subscription in fit.status.subscriptions}
        for subscription in declaration.subscriptions:
            await begin(log, store, subscription, stored.get(subscription.name))
        return await store.status()

    async def _waiting(self, status: StoreStatus) -> Mapping[str, int]:
        """Return how many events lie behind the progress of each subscription."""
        return {subscription.name: (await backlog_of(self._log, subscription)).count for subscription in status.subscriptions}

    async def _build(self, resources: object, status: StoreStatus) -> None:
        declaration, store, clock = self._declaration, self.store, self._clock
        names = [subscription.name for subscription in declaration.subscriptions]
        alive_s = max(subscription.delivery.time_limit_s for subscription in declaration.subscriptions)
        handled = {subscription.name: sorted(subscription.branches) for subscription in declaration.subscriptions}
        joined = await store.join(handled, alive_s=alive_s)
        versions = itertools.count(joined.version_base + 1)
        overlay = Overlay(store)
        groups = self._measuring.groups if self._measuring is not None else None
        self._committer = Committer(store, clock, self._snapshot, groups)
        self._relay = Relay(self._log, store, clock=clock)
        outlets = Outlets(self._log, create_topics=self._settings.create_topics)
        await outlets.open(declaration.topics)
        around = Surroundings(
            app=declaration.name,
            log=self._log,
            store=store,
            committer=self._committer,
            overlay=overlay,
            outlets=outlets,
            clock=clock,
            resources=resources,
            careful=self._careful,
            end=self._end,
            dice=self._dice,
        )
        stored = {subscription.name: subscription for subscription in status.subscriptions}
        spans: Tracing | None = tracing() if self._settings.tracing else None
        for declared in declaration.subscriptions:
            subscription = declared if spans is None else traced(declared, spans)
            units = Units(
                declaration.name,
                stored[subscription.name].origin,
                stored[subscription.name].generation,
                versions=versions,
                overlay=overlay,
                clock=clock,
            )
            engine = Engine(subscription, around, units, read_ahead_bytes=READ_AHEAD_BYTES // len(names))
            self._engines[subscription.name] = engine
            slots = Slots(engine, self._log, store, joined.member, clock=clock)
            self._slots.append(slots)
            await slots.settle()

    def _work(self) -> Sequence[Coroutine[Any, Any, None]]:
        engines = [task for engine in self._engines.values() for task in engine.tasks()]
        if self._measuring is not None:
            tallies = {name: engine.tally for name, engine in self._engines.items()}
            engines.append(self._measuring.run(tallies, self._relay))
        return [
            self._committer.run(),
            self._relay.run(),
            self._hear(),
            self._keep_share(),
            self._turn(),
            self._report(),
            self._retain(),
            *engines,
        ]

    def _snapshot(self, work: SlotWork, units: Sequence[Unit]) -> list[Progress]:
        return list(self._engines[work.slot.subscription].snapshot(work, units))

    async def _hear(self) -> None:
        """Pass the store's bell on."""
        while True:
            await self.store.wait(self._settings.lease_s / 3)
            self._relay.wake()
            self._look.set()

    async def _keep_share(self) -> None:
        """Keep an even share of the slots, and answer what command lines ask for."""
        while True:
            await self._look.wait()
            self._look.clear()
            try:
                for slots in self._slots:
                    await slots.settle()
                await self._answer()
            except (StoreReadOnly, *UNREADABLE) as error:  # it works on what it has, and looks again with the next stroke
                _logger.warning("%s: slots cannot be shared for now: %s", self._declaration.name, error)
            await self._clock.sleep(_LOOK_EVERY_S)  # one look for many commits

    async def _answer(self) -> None:
        owned = {
            Slot(name, number): (engine, work) for name, engine in self._engines.items() for number, work in engine.works.items()
        }
        for request in await self.store.requests(list(owned)):
            engine, work = owned[request.slot]
            try:
                if not await engine.answer(work, request):
                    self._look.set()
            except LeaseLost:
                engine.lose_slot(work)

    async def _turn(self) -> None:
        """Show the store that the event loop turns."""
        limit_s = max(subscription.delivery.time_limit_s for subscription in self._declaration.subscriptions)
        while True:
            self.store.turned()
            await self._clock.sleep(min(_TURN_EVERY_S, limit_s / 4))

    async def _report(self) -> None:
        while True:
            try:
                await self._report_once()
            except UNREADABLE as error:
                _logger.warning("%s: its progress is not shown for now: %s", self._declaration.name, error)
            await self._clock.sleep(REPORT_EVERY_S)

    async def _report_once(self) -> None:
        """Append where the app stands to the log, if that has changed. The process that sends the outbox speaks for all."""
        if not self._relay.is_ours:
            return
        status = await self.store.status()
        reports = reports_of(self.store.identity, status)
        changed = [report for report in reports if report not in self._reported]
        if not changed:
            return
        await self._keep_landmarks(status)
        try:
            await publish_reports(self._log, self._declaration.name, changed, self._clock.wall_us())
        except EverlogError as error:
            _logger.warning("%s: its progress is not shown for now: %s", self._declaration.name, error)
        else:
            self._reported = reports

    async def _keep_landmarks(self, status: StoreStatus) -> None:
        """Have the store remember what the log holds where the app stands: by that it knows a log that was put back from a backup."""
        if self.store.features.durability == "memory":
            return
        try:
            landmarks = await landmarks_of(self._log, handled_by(status), self._landmarks)
            if landmarks:
                await self.store.keep_landmarks(landmarks)
        except EverlogError as error:
            _logger.warning("%s: the store cannot remember where the log stands for now: %s", self._declaration.name, error)
        else:
            self._landmarks.update((one.where, one) for one in landmarks)

    async def _retain(self) -> None:
        """Have what the topics no longer keep deleted. The process that sends the outbox does it for all."""
        while True:
            if self._relay.is_ours and self._log.features.retention:
                try:
                    deleted = await self._log.retain()
                except EverlogError as error:
                    _logger.warning("%s: what its topics no longer keep stays for now: %s", self._declaration.name, error)
                else:
                    if deleted:
                        _logger.info("%s: deleted %d events that their topics no longer keep", self._declaration.name, deleted)
            if self._relay.is_ours:
                await self._collect()
            await self._clock.sleep(RETAIN_EVERY_S)

    async def _collect(self) -> None:
        """Remove the state of generations that a replay has ended, in small steps beside the work."""
        try:
            while await self.store.collect():
                await self._clock.sleep(_COLLECT_EVERY_S)
        except StoreReadOnly as error:
            _logger.warning("%s: the state of former generations stays for now: %s", self._declaration.name, error)

    def _close_engines(self) -> None:
        for engine in self._engines.values():
            engine.close()

    def accuse_running(self, task: asyncio.Task[Any] | None) -> str | None:
        """Store what the handler that keeps the event loop is called for; returns the subscription, or ``None`` where it is no handler here."""
        return next((whose for engine in self._engines.values() if (whose := engine.accuse_running(task)) is not None), None)

    async def _stop(self) -> None:
        """Finish what is in flight, as far as the grace period goes."""
        try:
            async with asyncio.timeout(self._settings.grace_s):
                await asyncio.gather(*[engine.stop() for engine in self._engines.values()])
                if self._relay.is_ours:
                    await self._relay.drain()
                    await self._report_once()
        except TimeoutError:
            _logger.warning(
                "%s: the grace period of %g s is over; what was in flight will be handled again",
                self._declaration.name,
                self._settings.grace_s,
            )


def _longest_limit_s(declarations: Sequence[AppDeclaration]) -> float:
    limits = [subscription.delivery.time_limit_s for declaration in declarations for subscription in declaration.subscriptions]
    return max(limits, default=0.0)


def _watchdog(declarations: Sequence[AppDeclaration], apps: Sequence[AppRuntime]) -> Watchdog:
    def accuse(task: asyncio.Task[Any] | None) -> str | None:
        return next((whose for app in apps if (whose := app.accuse_running(task)) is not None), None)

    return Watchdog(_longest_limit_s(declarations) + IGNORED_S, accuse=accuse, end=end_process)


async def _cancelled(tasks: Sequence[asyncio.Task[None]], end: Callable[[str], NoReturn]) -> None:
    for task in tasks:
        task.cancel()
    if not tasks:
        return
    ended, left = await asyncio.wait(tasks, timeout=IGNORED_S)
    for task in ended:
        if not task.cancelled():
            task.exception()  # looked at: whoever cancels has its reason already
    if left:
        end(
            f"a handler has ignored for {IGNORED_S:g} s that it was cancelled at the end of the grace period: the process ends without it, and "
            f"what it was doing is handled again"
        )


async def run_apps(
    declarations: Sequence[AppDeclaration],
    settings: Settings,
    *,
    clock: Clock | None = None,
    on_ready: Callable[[Ready], None] | None = None,
    second_signal_ends: bool = True,
    meters: Meters | None = None,
) -> None:
    """Run apps in this process, on one log, until SIGTERM or SIGINT, or until one of them cannot go on.

    A second signal ends the process at once; without `second_signal_ends` it changes nothing, for a process that others kill. Numbers go
    to `meters`, where they are given, and are served where the settings say so.

    Raises:
        StartRefused: One of them does not start.
        EverlogError: The log or a store cannot be used any more.
    """
    clock = clock or SystemClock()
    stop = asyncio.Event()
    if settings.metrics_port is not None:
        meters = meters or Meters()
    async with AsyncExitStack() as stack:
        stack.enter_context(_signals(stop, second_ends=second_signal_ends))
        vitals = await _served(stack, declarations, settings, clock, meters)
        await _refuse_new_log([declaration.name for declaration in declarations], settings, clock)
        log = await open_log(settings, clock=clock)
        try:
            if meters is not None and isinstance(log, Measured):
                log.measure(meters.histogram(families.SYNC_SECONDS, "log", "").add)
            careful = Careful()
            apps = [AppRuntime(declaration, log, settings, clock, careful=careful, meters=meters) for declaration in declarations]
            watching: list[asyncio.Task[None]] = []
            to_come = len(apps)

            def begin() -> None:
                nonlocal to_come
                to_come -= 1
                if not to_come:  # not before: a lifespan may load something large
                    watchdog = _watchdog(declarations, apps)
                    watchdog.start()
                    watching.append(asyncio.create_task(watchdog.run()))
                    watching[0].add_done_callback(lambda _: watchdog.close())

            def ready(what: Ready) -> None:
                vitals.ready()
                if on_ready is not None:
                    on_ready(what)

            runs = [asyncio.create_task(app.run(stop, ready, begin)) for app in apps]
            stopping = asyncio.create_task(_say_stopping(stop, vitals))
            try:
                await asyncio.wait(runs, return_when=asyncio.FIRST_EXCEPTION)
            finally:
                stopping.cancel()
                vitals.stopping()
                stop.set()
                results = await asyncio.gather(*runs, return_exceptions=True)
                await _cancelled(watching, end_process)
            for result in results:
                if isinstance(result, BaseException):
                    raise result
        finally:
            await _within(settings.grace_s, log.aclose)


async def _served(
    stack: AsyncExitStack, declarations: Sequence[AppDeclaration], settings: Settings, clock: Clock, meters: Meters | None
) -> Vitals:
    """Return the health of what is about to run, which is served with its numbers where the settings say so, up to the end of the stack."""
    vitals = Vitals(len(declarations), limit_s=_longest_limit_s(declarations) + 2 * IGNORED_S, clock=clock)
    if settings.metrics_port is not None and meters is not None:
        from everlog.observe.serving import serving  # with an HTTP server, which nobody else needs

        await stack.enter_async_context(serving(settings.metrics_host, settings.metrics_port, meters, vitals))
    return vitals


async def _say_stopping(stop: asyncio.Event, vitals: Vitals) -> None:
    await stop.wait()
    vitals.stopping()


async def _refuse_new_log(apps: Sequence[str], settings: Settings, clock: Clock) -> None:
    """Make no log in the place of one that was lost.

    Raises:
        WrongLog: There is none, and the store of an app has worked with one.
    """
    url = resolve(settings.log_url)
    if not await is_absent("log", url):
        return
    for app in apps:
        if await is_absent("store", resolve(settings.store_url, app=app)):
            continue
        store = await open_store(settings, app, clock=clock)
        try:
            log = (await store.status()).log
        finally:
            await store.aclose()
        if log is not None and store.features.durability != "memory":
            raise WrongLog(
                f"there is no log at {shown(url)}, and the store of app {app!r} has worked with log {log}: say where that is with --log-url, put its "
                f"backup back with `everlog restore --from FILE`, or give another store with --store-url. No log was made"
            )


async def _within(seconds: float, close: Callable[[], Awaitable[None]]) -> None:
    """Close something, but do not wait for ever: a stopped process may hold the file's turn."""
    try:
        async with asyncio.timeout(seconds):
            await close()
    except TimeoutError:
        _logger.warning("a file could not be closed within %g s: another process holds it. What is committed is safe", seconds)


@contextlib.contextmanager
def _signals(stop: asyncio.Event, *, second_ends: bool) -> Generator[None]:
    """Set `stop` at the first SIGTERM, SIGINT or SIGHUP; the second may end the process at once: nothing is half committed."""
    loop = asyncio.get_running_loop()

    def stop_now(number: int) -> None:
        if stop.is_set() and second_ends:
            os._exit(_SECOND_SIGNAL_EXIT if number == signal.SIGTERM else 128 + number)
        stop.set()

    numbers: tuple[signal.Signals, ...] = (signal.SIGTERM, signal.SIGINT)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # `nohup` means that it stays so
        numbers = (*numbers, signal.SIGHUP)
    try:
        for number in numbers:
            loop.add_signal_handler(number, stop_now, number)
    except (ValueError, RuntimeError):  # not the main thread: whoever has it handles signals
        numbers = ()
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


@contextlib.asynccontextmanager
async def opened_log(settings: Settings, clock: Clock, topics: Sequence[Topic] = ()) -> AsyncGenerator[Log]:
    """Open the log that the settings name, with these topics in it, and close it at the end."""
    log = await open_log(settings, clock=clock)
    try:
        if settings.create_topics:
            for topic in topics:
                await log.ensure_topic(topic.spec())
        yield log
    finally:
        await log.aclose()
