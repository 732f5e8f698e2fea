"""A world for tests: several apps on one log, in this process, with a time that is moved by hand."""

from __future__ import annotations

import asyncio
import random
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Final, TypeVar, overload

from everlog.app import App
from everlog.client import Client
from everlog.client.published import Published
from everlog.contracts.contract import contract_of
from everlog.contracts.event import AnyEvent
from everlog.logs.memory import MemoryLog
from everlog.settings import Settings, open_log
from everlog.store import ParkedKey
from everlog.subscriptions.state import Key, Readable, State, V_co, key_of, key_text
from everlog.testing.calls import Calls, Place
from everlog.testing.clock import ManualClock
from everlog.testing.failures import EventFailed, Unsettled
from everlog.testing.faults import Outage, Point
from everlog.testing.journal import Journal
from everlog.testing.motion import Motion
from everlog.testing.option import runner
from everlog.testing.passage import Passage
from everlog.testing.service import Around, Service, name_of
from everlog.testing.story import Standing, Story, story_of
from everlog.testing.watched import given

E = TypeVar("E", bound=AnyEvent)
D = TypeVar("D")

_LAG_S: Final = 0.02
_PATIENCE_S: Final = 0.1
_FIRST_MOVE_S: Final = 0.05
_LONGEST_MOVE_S: Final = 30.0
_MOST_MOVES: Final = 2_000
"""So many moves of the clock on which nothing gets done mean that it never will."""


class World:
    """Apps at work in a test: `async with testing.World(inventory, notify) as world`.

    In memory, unless `real` says otherwise. Time stands still until `settle` or `advance` moves it, so that an hour takes milliseconds. Any number
    of worlds live beside each other, in one event loop or several.

    Args:
        apps: Who works in it.
        resources: What handlers of an app get as `tx.resources`, instead of what its lifespan gives.
        seed: The pauses between retries, and where events without key go, are the same for the same seed.
        real: A folder for a real log and real stores, in files; ``True``: a temporary one; ``False``: in memory; ``None``: in memory, unless pytest
            was started with `--everlog-real`.
    """

    def __init__(
        self, *apps: App[Any], resources: Mapping[App[Any], Any] | None = None, seed: int = 0, real: bool | Path | None = None
    ) -> None:
        names = [app.name for app in apps]
        twice = {name for name in names if names.count(name) > 1}
        if not apps or twice:
            found = f"two of the name {twice.pop()!r}" if twice else "none"
            raise ValueError(f"expected one or more apps, each of its own name, found {found}")
        strange = [app.name for app in resources or {} if app not in apps]
        if strange:
            raise ValueError(f"resources are given to {strange[0]!r}, which is not in this world: name it among the apps")
        self._apps = apps
        self._resources = dict(resources or {})
        self._seed = seed
        self._real = runner.is_real if real is None else real
        self._stack = AsyncExitStack()
        self._services: dict[str, Service] = {}
        self._incidents: list[str] = []
        self._is_open = False
        self.clock = ManualClock()
        """The time of this world, for what else a test has to give one."""
        self.client: Client
        """Publishes as `test`, and follows: for what takes a client, like a web application."""

    async def __aenter__(self) -> World:
        async with AsyncExitStack() as stack:
            folder = self._folder(stack)
            self._motion = Motion(0.0 if folder is None else _LAG_S)
            self._calls = Calls(self.clock, self.clock.monotonic_s())
            self._log = (
                MemoryLog(self.clock)
                if folder is None
                else await open_log(Settings(log_url=f"sqlite:{folder / 'log.db'}"), clock=self.clock)
            )
            stack.push_async_callback(self._log.aclose)
            self._outage = Outage(self.clock)
            self.journal = Journal(self._log)
            stack.callback(self.journal.close)
            self.client = Client(
                Passage(self._log, self._outage, self.clock),
                source="test",
                clock=self.clock,
                producer=f"test-{self._seed}",
                spread=self._seed,
            )
            stack.push_async_callback(self.client.aclose)
            dice = random.Random(self._seed).random  # noqa: S311 to be the same again, not a secret
            around = Around(self._log, self._outage, self.clock, self._motion, self._calls, dice, folder)
            for app in self._apps:
                declaration = app.declaration()
                lifespan = given(self._resources[app]) if app in self._resources else declaration.lifespan
                service = self._services[app.name] = Service(declaration, around, lifespan)
                stack.push_async_callback(service.aclose)
                await service.start()
            self._stack = stack.pop_all()
        self._is_open = True
        await self._still()
        return self

    def _folder(self, stack: AsyncExitStack) -> Path | None:
        if self._real is False:
            return None
        if self._real is True:
            return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="everlog-world-")))
        self._real.mkdir(parents=True, exist_ok=True)
        return self._real

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        __tracebackhide__ = True
        failed = error
        try:
            if error is None:
                self._raise_untold()
        except Exception as untold:
            failed = untold
            raise
        finally:
            if isinstance(failed, Exception) or _is_outcome(failed):
                await self._note(failed)
            self._is_open = False
            await self._stack.aclose()

    # ---- what a test does ----

    async def publish(self, *events: AnyEvent, key: object = None, headers: Mapping[str, str] | None = None) -> Published:
        """Publish events, as `Client.publish` does. What the apps make of them happens in `settle` and `advance`, or beside what the test awaits.

        Raises:
            EventRefused: An event breaks its contract. Nothing was stored.
            LogReadOnly: The log is down. Nothing was stored.
        """
        self._check_open()
        published = await self.client.publish(*events, key=key, headers=headers)
        await self.journal.read_on()
        return published

    async def settle(self, *, raises: bool = True, timeout_s: float = 10.0) -> None:
        """Return when nothing is left to do.

        Every event is handled by all who handle its type, or parked or skipped, and all that they publish is in the log. Where something waits for a retry, or for the end of an outage, time moves on to it.

        Args:
            raises: Raise what handlers raised, as soon as nothing else happens; ``False``: they are retried and parked as in earnest, and
                `failures` has what they raised.
            timeout_s: How long to wait for handlers, in seconds of real time.

        Raises:
            Exception: What a handler raised, with its own traceback.
            EventFailed: An event could not be handled, and no handler says why.
            Unsettled: It never settles: a handler does not end, or waits for what does not come.
        """
        __tracebackhide__ = True
        self._check_open()
        moves, step_s = 0, _FIRST_MOVE_S
        done: object = None
        while True:
            if self._is_down:  # a handler may wait for the end of it
                await self._motion.still(patience_s=_PATIENCE_S / 10)
            else:
                await self._still(timeout_s=timeout_s)
            await self.journal.read_on()
            self._check(raises=raises)
            left, now_done = await self._left()
            if not left:
                return
            if now_done != done:
                done, moves, step_s = now_done, 0, _FIRST_MOVE_S
            moves += 1
            if moves > _MOST_MOVES:
                raise Unsettled(
                    f"the world does not settle: time has moved on to {self.clock.monotonic_s() - self._calls.begun_s:,.0f} s, and still "
                    f"{'; '.join(left)}"
                )
            due_s = await self._due_s()
            self.clock.advance(step_s if due_s is None else due_s)
            step_s = min(_LONGEST_MOVE_S, 2 * step_s)

    async def advance(self, seconds: float, *, raises: bool = True) -> None:
        """Let time pass, and let the apps do what is due meanwhile. Handlers that wait for something are not waited for.

        Args:
            seconds: How much time.
            raises: As in `settle`.

        Raises:
            Exception: As in `settle`.
        """
        __tracebackhide__ = True
        self._check_open()
        if seconds < 0:
            raise ValueError(f"time cannot go back, found {seconds} s")
        end_s = self.clock.monotonic_s() + seconds
        self._happened(f"{seconds:g} s passed")
        patience_s = _PATIENCE_S
        while True:
            await self._motion.still(patience_s=patience_s)
            patience_s = _PATIENCE_S / 100  # who did not end then waits for time to pass, or for ever
            await self.journal.read_on()
            self._check(raises=raises)
            left_s = end_s - self.clock.monotonic_s()
            if left_s <= 0:
                return
            due_s = await self._due_s()
            step_s = left_s if due_s is None else min(left_s, due_s)
            # Time limits are looked after now and then, and are kept by the second.
            self.clock.advance(min(step_s, 1.0) if self._motion.has_calls else step_s)

    # ---- what a test looks at ----

    def events(self, type_: type[E]) -> list[E]:
        """Return all events of a type that were published, in the log's order."""
        contract = contract_of(type_)
        topic, name = contract.topic.name, contract.name
        return [contract.decode(one.data) for one in self.journal.records if one.topic == topic and one.type == name]

    @overload
    def read(self, state: Readable[V_co], key: Key) -> V_co | None: ...
    @overload
    def read(self, state: Readable[V_co], key: Key, default: D) -> V_co | D: ...
    def read(self, state: Readable[Any], key: Key, default: object = None) -> object:
        """Return a committed row of state; `default` where there is none."""
        value = self._owner(state).store.row((state.name, key_text(key)))
        return default if value is None else state.decode(value)

    def rows(self, state: Readable[V_co]) -> dict[tuple[str | int, ...], V_co]:
        """Return all committed rows of a state."""
        rows = self._owner(state).store.all_rows(state.name)
        return {key_of(key): state.decode(value) for key, value in rows if value is not None}

    def parked(self, app: App[Any] | None = None) -> list[Any]:
        """Return the events that have failed for good, and those that wait behind them are not among them.

        Args:
            app: Whose; ``None``: of all.
        """
        self._check_open()
        found: list[Any] = []
        for service in self._chosen(app):
            keys = service.store.parked_now()
            found.extend(self._event(service, one) for one in keys if one.first.next_attempt_us is None)
        return found

    def failures(self) -> list[BaseException]:
        """Return all that handlers raised so far, in its order."""
        return list(self._calls.failures)

    # ---- faults ----

    async def crash(self, app: App[Any], *, at: Point | None = None) -> None:
        """Kill an app as SIGKILL does: all that it has in hand is gone. It is started again at once, and goes on from what is stored.

        Args:
            app: Which.
            at: When it next gets there: ``"before_handler"``, ``"after_handler"`` (nothing is stored yet), ``"after_commit"`` (nothing that it
                publishes is sent yet), ``"before_append"`` (what it publishes is on its way), ``"after_append"`` (it does not know that it
                arrived). ``None``: now.
        """
        service = self._service(app)
        self._happened(f"{app.name} was killed" if at is None else f"{app.name} is killed at {at}")
        if at is not None:
            service.plan.arm("crash", at)
            return
        service.crash()
        await self._motion.still(patience_s=0)

    async def expire_lease(self, app: App[Any], *, at: Point | None = None) -> None:
        """Hold an app for longer than its lease, as when a container is stopped for a while.

        Another member takes over, and when the first one goes on, it finds that it may store nothing any more.

        Args:
            app: Which.
            at: When it next gets there, as in `crash`; ``None``: now.
        """
        service = self._service(app)
        self._happened(f"{app.name} lost its lease" if at is None else f"{app.name} loses its lease at {at}")
        if at is not None:
            service.plan.arm("stall", at)
            return
        service.stall()
        await self._motion.still(patience_s=0)

    def repeat(self, app: App[Any], calls: int = 1) -> None:
        """Call the handlers of an app twice for its next events, as after a crash before the commit.

        What the first call changes and publishes is gone; what it does outside the store happens twice.
        """
        self._service(app).plan.repeats += calls
        self._happened(f"{app.name} is called twice {calls} times")

    def log_outage(self, seconds: float) -> None:
        """Let the log be down for so many seconds of the world's time: nothing is stored in it or read from it."""
        self._check_open()
        self._outage.begin(seconds)
        self._happened(f"the log was down for {seconds:g} s")

    def store_outage(self, app: App[Any], seconds: float) -> None:
        """Let the store of an app take no writes for so many seconds of the world's time, as on a full disk."""
        self._service(app).plan.store.begin(seconds)
        self._happened(f"the store of {app.name} was down for {seconds:g} s")

    # ---- inside ----

    def _happened(self, what: str) -> None:
        self._check_open()
        self._incidents.append(f"at {self.clock.monotonic_s() - self._calls.begun_s:.3f} s {what}")

    def _check_open(self) -> None:
        if not self._is_open:
            raise RuntimeError("the world is not open: write `async with testing.World(…) as world`, and use it inside")

    async def _still(self, *, timeout_s: float = 10.0) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                await self._motion.still()
        except TimeoutError:
            running = [told.who for told in self._calls.all if told.did == "still runs"]
            what = f"{', '.join(running)} did not end" if running else "the apps did not come to rest"
            raise Unsettled(
                f"{what} within {timeout_s:g} s of real time: give settle another timeout_s, or let the time of the world pass with advance"
            ) from None

    def _check(self, *, raises: bool) -> None:
        __tracebackhide__ = True
        for service in self._services.values():
            service.check()
            service.look_for_failures()
        if raises:
            self._raise_untold()
        else:
            self._calls.untold.clear()

    def _raise_untold(self) -> None:
        """Raise the first failure that the test has not been told of."""
        __tracebackhide__ = True
        if not self._calls.untold:
            return
        error, *others = self._calls.untold
        self._calls.untold.clear()
        for other in others[:5]:
            error.add_note(f"also failed: {type(other).__name__}: {other}")
        if not isinstance(error, Exception):
            raise EventFailed(f"a handler raised {type(error).__name__}") from error
        raise error

    async def _left(self) -> tuple[list[str], object]:
        """Return what is left to do, a line each, and what changes when something gets done."""
        heads = await self.journal.heads()
        left: list[str] = []
        done: list[object] = []
        for service in self._services.values():
            status = await service.store.status()
            for one in status.subscriptions:
                name = name_of(service, one.name)
                waiting = sum(max(0, heads.get(at.where, at.through) - at.through) + len(at.unfinished) for at in one.progress)
                if waiting:
                    left.append(f"{name} has {waiting} events to handle")
                if one.blocked_keys:
                    left.append(f"{name} has {one.blocked_keys} keys to try again")
                done.append((waiting, one.held_records, one.parked_keys))
            if status.outbox != status.outbox_parked:
                left.append(f"{service.declaration.name} has {status.outbox - status.outbox_parked} events to send")
            done.append(status.outbox)
        return left, done

    @property
    def _is_down(self) -> bool:
        return bool(self._outage.left_s or any(service.plan.store.left_s for service in self._services.values()))

    async def _due_s(self) -> float | None:
        """Return in how many seconds the next retry is due, or the next outage over; ``None`` where there is neither."""
        now_us = self.clock.wall_us()
        due: list[float] = [self._outage.left_s]
        for service in self._services.values():
            due.append(service.plan.store.left_s)
            retries = [one.first.next_attempt_us for one in service.store.parked_now()]
            due.extend((at_us - now_us) / 1e6 for at_us in retries if at_us is not None)
        later = [one for one in due if one > 0]
        return min(later) + 0.000_1 if later else None

    def _chosen(self, app: App[Any] | None) -> Sequence[Service]:
        return list(self._services.values()) if app is None else [self._service(app)]

    def _service(self, app: App[Any]) -> Service:
        self._check_open()
        if app not in self._apps:
            raise ValueError(f"app {app.name!r} is not in this world: name it among those that it is made of")
        return self._services[app.name]

    def _owner(self, state: Readable[Any]) -> Service:
        self._check_open()
        whose = state.subscription if isinstance(state, State) else None
        for service in self._services.values():
            for one in service.declaration.subscriptions:
                if state.name in one.states and whose in (None, one.name):
                    return service
        raise ValueError(f"state {state.name!r} belongs to no app of this world")

    @staticmethod
    def _event(service: Service, parked: ParkedKey) -> Any:
        record = parked.first.record
        for one in service.declaration.subscriptions:
            branch = one.branches.get(record.type)
            if one.name == parked.subscription and branch is not None:
                try:
                    return branch.contract.decode(record.data)
                except Exception:  # it may be parked for that
                    return record
        return record

    # ---- the story ----

    def story(self) -> str:
        """Return what was published, and what every app did with it. A failed test says it by itself."""
        self._check_open()
        standings: list[Standing] = []
        for service in self._services.values():
            for one in service.declaration.subscriptions:
                held: dict[Place, str] = {}
                for key in service.store.held_now(one.name):
                    place = key.record.topic, key.record.partition, key.record.offset
                    if key.error:
                        how = "parked" if key.next_attempt_us is None else "to be tried again"
                        held[place] = f"{how} after {key.attempts} attempt{'' if key.attempts == 1 else 's'}, {key.error}"
                    else:
                        held[place] = "waits behind an earlier event of its key"
                is_finished = partial(service.store.finished_now, one.name)
                standings.append(Standing(name_of(service, one.name), frozenset(one.branches), is_finished, held))
        seconds = self.clock.monotonic_s() - self._calls.begun_s
        title = f"a world of {', '.join(self._services)} with seed {self._seed}, at {seconds:.3f} s"
        return story_of(title, self.journal.records, self._calls, standings, self._incidents)

    async def _note(self, error: BaseException | None) -> None:
        """Add the story to an error that ends the test."""
        if error is None or any(isinstance(note, Story) for note in getattr(error, "__notes__", ())):
            return
        try:
            await self.journal.read_on()
            error.add_note(self.story())
        except Exception as failed:
            error.add_note(f"everlog: what happened in the world cannot be told: {failed!r}")


def _is_outcome(error: BaseException | None) -> bool:
    """Tell whether an error is pytest's own word for a failure, which is no `Exception`."""
    return error is not None and type(error).__module__.startswith("_pytest.")
