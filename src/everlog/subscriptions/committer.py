"""The committer: takes finished units in the order in which they finished, and commits them in groups with their progress."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, Final, Protocol

from everlog.clock import Clock
from everlog.errors import SqlError, StoreReadOnly
from everlog.store import Lease, Outcome, Progress, Section, Slot, Store, Unit
from everlog.subscriptions.progress import SlotWork
from everlog.subscriptions.sections import SECTION_S, Exclusive

GROUP_UNITS: Final = 256
GROUP_BYTES: Final = 1 << 20
PROGRESS_EVERY_S: Final = 0.05
"""How often progress alone is committed while more is being handled; what has effects is committed at once."""
_QUEUE_UNITS: Final = 4 * GROUP_UNITS
_READ_ONLY_PAUSE_S: Final = 1.0

_logger: Final = logging.getLogger("everlog")


class Pending:
    """A finished unit on its way into the store, and who wants to know what became of it."""

    __slots__ = ("_done", "_outcome", "settle", "unit", "work")

    def __init__(self, unit: Unit, work: SlotWork, settle: Callable[[Pending, Outcome], None]) -> None:
        self.unit = unit
        self.work = work
        self.settle = settle
        """Called once, on the event loop, right after the outcome is known."""
        self._done: asyncio.Future[Outcome] | None = None
        self._outcome: Outcome | None = None

    def outcome(self) -> asyncio.Future[Outcome]:
        """Return a future of what became of it."""
        if self._done is None:
            self._done = asyncio.get_running_loop().create_future()
            if self._outcome is not None:
                self._done.set_result(self._outcome)
        return self._done

    def tell(self, outcome: Outcome) -> None:
        """Say what became of it, once."""
        self._outcome = outcome
        self.settle(self, outcome)
        if self._done is not None and not self._done.done():
            self._done.set_result(outcome)


class Measure(Protocol):
    """Somebody who wants to know how large groups are, and how long their commits take."""

    def committed(self, units: int, seconds: float) -> None:
        """Note a commit. There may be progress alone in it."""
        ...


class Committer:
    """One per process and store.

    Args:
        store: Where units go.
        clock: The time.
        snapshot: Returns the progress of a slot as it is once units are committed.
        measure: Is told of each commit; ``None``: nobody is.
    """

    def __init__(
        self,
        store: Store,
        clock: Clock,
        snapshot: Callable[[SlotWork, Sequence[Unit]], Iterable[Progress]],
        measure: Measure | None = None,
    ) -> None:
        self._store = store
        self._clock = clock
        self._snapshot = snapshot
        self._measure = measure
        self._queue: deque[Pending | Exclusive] = deque()
        self._group: list[Pending] = []
        self._inside: Exclusive | None = None  # the handler whose turn it is
        self._dirty: dict[SlotWork, None] = {}
        self._wake = asyncio.Event()
        self._is_urgent = False
        self._drained: dict[SlotWork, list[asyncio.Future[None]]] = {}

    def put(self, pending: Pending, exclusive: Exclusive | None = None) -> None:
        """Queue a finished unit; or end with it the turn at the store's statements that its handler has."""
        if exclusive is not None:
            exclusive.put(pending)
            return
        self._queue.append(pending)
        self._wake.set()

    def enter(self) -> Exclusive:
        """Queue for a turn at the store's statements, which comes when what is queued now is applied and nothing else will be."""
        loop = asyncio.get_running_loop()
        exclusive = Exclusive(loop.create_future(), loop.create_future())
        self._queue.append(exclusive)
        self._wake.set()
        return exclusive

    def touch(self, work: SlotWork, *, urgent: bool) -> None:
        """Note that a slot's progress has changed; `urgent`: nothing else is waiting to be handled."""
        self._dirty[work] = None
        self._is_urgent = self._is_urgent or urgent
        self._wake.set()

    def last_of(self, slot: Slot, lane: str) -> Pending | None:
        """Return the last unit of a lane that is not committed yet."""
        for pending in self._newest_first():
            if pending.unit.lane == lane and pending.unit.slot == slot:
                return pending
        return None

    def _newest_first(self) -> Iterator[Pending]:
        """Yield the units that are not committed yet."""
        inside = (self._inside,) if self._inside is not None else ()
        for one in chain(reversed(self._queue), inside, reversed(self._group)):
            pending = one.pending if isinstance(one, Exclusive) else one
            if pending is not None:
                yield pending

    @property
    def is_full(self) -> bool:
        """So much is queued that handlers should wait: the store is slower than they are."""
        return len(self._queue) >= _QUEUE_UNITS

    async def room(self) -> None:
        """Wait until less is queued."""
        while self.is_full:
            queued = self._queue[-GROUP_UNITS]
            await (queued.outcome() if isinstance(queued, Pending) else asyncio.shield(queued.finished))

    async def drain(self, work: SlotWork) -> None:
        """Wait until what is queued of a slot so far is committed, and its progress behind that; whatever other slots do."""
        while (last := next((one for one in self._newest_first() if one.work is work), None)) is not None:
            await last.outcome()
        if not work.is_ours:
            return
        committed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._drained.setdefault(work, []).append(committed)
        self.touch(work, urgent=True)
        await committed

    async def run(self) -> None:
        """Commit until cancelled.

        Raises:
            StoreError: The outcome of a commit is unknown: the process has to start anew from what is stored.
        """
        last_s = self._clock.monotonic_s() - PROGRESS_EVERY_S
        while True:
            if not self._queue and not self._dirty:
                self._wake.clear()
                await self._wake.wait()
                continue
            pause_s = last_s + PROGRESS_EVERY_S - self._clock.monotonic_s()
            if not self._queue and not self._is_urgent and pause_s > 0:
                self._wake.clear()
                await self._woken_within(pause_s)
                continue
            if self._queue and isinstance(self._queue[0], Exclusive):
                await self._commit_section()
            else:
                await self._commit()
            last_s = self._clock.monotonic_s()

    async def _woken_within(self, seconds: float) -> None:
        """Wait until a unit comes or progress gets urgent, at most `seconds`."""
        timer = asyncio.get_running_loop().call_later(seconds, self._wake.set)
        try:
            await self._wake.wait()
        finally:
            timer.cancel()

    async def _commit(self) -> None:
        group = self._group = self._take(GROUP_UNITS)
        works = {pending.work: None for pending in group} | self._dirty
        self._dirty.clear()
        self._is_urgent = False
        units = [pending.unit for pending in group]
        drained = [
            waiter for work in works for waiter in self._drained.pop(work, ())
        ]  # before the look at progress: later ones wait for the next
        leases, progress = self._progress(works, units)
        began_s = self._clock.monotonic_s() if self._measure is not None else 0.0
        outcomes = await self._stored(units, leases, progress)
        if self._measure is not None:
            self._measure.committed(len(units), self._clock.monotonic_s() - began_s)
        self._group = []
        for waiter in drained:
            if not waiter.done():
                waiter.set_result(None)
        self._tell(group, outcomes)

    def _progress(
        self, works: Iterable[SlotWork], units: Sequence[Unit]
    ) -> tuple[Sequence[Lease], Sequence[tuple[Slot, Progress]]]:
        """Return leases and progress of the slots as they are once the units are committed."""
        works = [work for work in works if work.is_ours]
        progress: list[tuple[Slot, Progress]] = []
        for work in works:
            own = [unit for unit in units if unit.slot == work.slot] if len(works) > 1 else units
            progress.extend((work.slot, one) for one in self._snapshot(work, own))
        return [work.lease for work in works], progress

    def _tell(self, group: Sequence[Pending], outcomes: Sequence[Outcome]) -> None:
        """Say what became of units, and take what stands on those that were not applied out of the queue."""
        for pending, outcome in zip(group, outcomes, strict=True):
            pending.tell(outcome)
        void = [pending.unit for pending, outcome in zip(group, outcomes, strict=True) if outcome is not Outcome.COMMITTED]
        if void:
            self._drop(void)

    # ---- handlers with statements of their own ----

    async def _commit_section(self) -> None:
        """Let handlers run their statements, one after another, and commit their units with these; and units that are queued between them."""
        try:
            section = await self._store.section()
        except StoreReadOnly as error:
            await self._wait_for_room(error)
            return
        applied = self._group = []
        turns: list[Pending] = []  # those of the applied that cannot be applied again without their statements
        try:
            try:
                until_s = self._clock.monotonic_s() + SECTION_S
                while self._queue and len(applied) < GROUP_UNITS and self._clock.monotonic_s() < until_s:
                    if isinstance(self._queue[0], Exclusive):
                        await self._run_exclusive(section, self._queue[0], applied, turns)
                    else:
                        await self._apply_queued(section, applied)
                await self._end_section(section, applied)
            finally:
                self._inside = None
                await section.roll_back()
        except (SqlError, StoreReadOnly) as error:
            self._group = []
            self._queue.extendleft(one for one in reversed(applied) if one not in turns)
            self._tell(turns, [Outcome.DROPPED] * len(turns))
            if isinstance(error, StoreReadOnly):
                await self._wait_for_room(error)
            elif turns:
                _logger.warning("statements of %d handlers were taken back, which run again: %s", len(turns), error)
            return
        self._group = []
        self._tell(applied, [Outcome.COMMITTED] * len(applied))

    async def _run_exclusive(self, section: Section, exclusive: Exclusive, applied: list[Pending], turns: list[Pending]) -> None:
        """Give the first in the queue its turn, and apply its unit behind its statements."""
        if exclusive.finished.done():  # without a statement: it was cancelled while it waited, or went on without them
            self._queue.popleft()
            if exclusive.pending is not None:
                self._queue.appendleft(exclusive.pending)
            return
        await section.mark(within_s=SECTION_S)
        self._queue.popleft()  # behind the `await`: where the section has ended, it waits for the next one
        self._inside = exclusive
        exclusive.grant(section)
        limit = asyncio.ensure_future(self._clock.sleep(SECTION_S))
        waits: list[asyncio.Future[Any]] = [exclusive.finished, limit]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            limit.cancel()
            if not exclusive.finished.done():
                exclusive.expire()
        pending, self._inside = exclusive.pending, None
        if pending is None:
            await section.undo()
            return
        applied.append(pending)  # where whoever asks for the last unit of its key finds it
        turns.append(pending)
        (outcome,) = await section.apply([pending.unit], [pending.work.lease] if pending.work.is_ours else [])
        if outcome is Outcome.COMMITTED:
            await section.keep()
            return
        await section.undo()
        applied.remove(pending)
        turns.remove(pending)
        self._tell([pending], [outcome])

    async def _end_section(self, section: Section, applied: Sequence[Pending]) -> None:
        """Commit a section with the progress of its units, and of all else that has got further: handlers with statements never pause."""
        dirty, self._dirty, self._is_urgent = self._dirty, {}, False
        works = {pending.work: None for pending in applied} | dirty
        drained = {work: self._drained.pop(work) for work in works if work in self._drained}
        try:
            await section.apply([], *self._progress(works, [pending.unit for pending in applied]))
            began_s = self._clock.monotonic_s() if self._measure is not None else 0.0
            await section.commit()
            if self._measure is not None:
                self._measure.committed(len(applied), self._clock.monotonic_s() - began_s)
        except (SqlError, StoreReadOnly):
            for work, waiters in drained.items():
                self._drained.setdefault(work, []).extend(waiters)
            for work in dirty:
                self.touch(work, urgent=True)
            raise
        for waiter in (waiter for waiters in drained.values() for waiter in waiters):
            if not waiter.done():
                waiter.set_result(None)

    async def _apply_queued(self, section: Section, applied: list[Pending]) -> None:
        """Apply what is queued before the next handler with statements."""
        group = self._take(GROUP_UNITS - len(applied))
        applied.extend(group)
        leases = {pending.work: pending.work.lease for pending in group}
        outcomes = await section.apply([pending.unit for pending in group], list(leases.values()))
        void = [(one, outcome) for one, outcome in zip(group, outcomes, strict=True) if outcome is not Outcome.COMMITTED]
        for pending, _ in void:
            applied.remove(pending)
        self._tell([pending for pending, _ in void], [outcome for _, outcome in void])

    # ---- the queue ----

    async def _stored(
        self, units: Sequence[Unit], leases: Sequence[Lease], progress: Sequence[tuple[Slot, Progress]]
    ) -> Sequence[Outcome]:
        """Commit; where the store takes no writes, again and again."""
        while True:
            try:
                return await self._store.commit(units, leases, progress)
            except StoreReadOnly as error:
                await self._wait_for_room(error)

    async def _wait_for_room(self, error: StoreReadOnly) -> None:
        _logger.error("nothing can be committed, and nothing is lost; trying again in %g s: %s", _READ_ONLY_PAUSE_S, error)
        await self._clock.sleep(_READ_ONLY_PAUSE_S)

    def _take(self, most: int) -> list[Pending]:
        """Return what is queued, up to a group's bounds and to the next handler with statements."""
        group: list[Pending] = []
        size = 0
        while self._queue and len(group) < most and size < GROUP_BYTES:
            pending = self._queue[0]
            if isinstance(pending, Exclusive):
                break
            self._queue.popleft()
            if not pending.work.is_ours:  # the slot may be ours again, under another lease: what was done under this one is void
                pending.tell(Outcome.FENCED)
                continue
            group.append(pending)
            size += pending.unit.size
        return group

    def _drop(self, void: Sequence[Unit]) -> None:
        """Take what stands on units that were not applied out of the queue: later units of their lanes, and units that read their writes.

        They could never be committed, and whoever read *their* writes meanwhile would have to run again too.
        """
        lanes = {(unit.slot, unit.lane) for unit in void if unit.lane is not None}
        versions = {unit.version for unit in void}
        kept: deque[Pending | Exclusive] = deque()
        gone: list[Pending] = []
        for one in self._queue:
            pending = one.pending if isinstance(one, Exclusive) else one
            if pending is None:
                kept.append(one)
                continue
            unit = pending.unit
            if (unit.slot, unit.lane) in lanes or _reads(unit, versions):
                gone.append(pending)
                versions.add(unit.version)
                if unit.lane is not None:
                    lanes.add((unit.slot, unit.lane))
            else:
                kept.append(one)
        self._queue = kept
        for pending in gone:
            pending.tell(Outcome.DROPPED)


def _reads(unit: Unit, versions: set[int]) -> bool:
    return not versions.isdisjoint(unit.reads.values()) or any(
        version in versions for scan in unit.scans for _, version in scan.rows
    )
