"""A subscription at work in this process: takes records, runs handlers, keeps each key in order.

One worker at a time is *active* and takes records from the current run. While its handler does not suspend, nothing else happens: no
task, timer or lane per event. When it does suspend, the event loop calls `_relieve`, which gives the suspended key a lane and makes
another worker active. A record whose key has a lane waits there, or is copied behind what the store holds for the key.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import random
import time
from collections import deque
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

from msgspec.structs import replace

from everlog.clock import Clock
from everlog.codec import Batch
from everlog.errors import EventRefused, HandlerTimeout, TxRefused
from everlog.log import Log
from everlog.position import Offset, TopicPartition
from everlog.record import StoredRecord
from everlog.store import Cause, Held, Hold, Lease, Outcome, Progress, Request, Retried, SlotState, Store, Unit
from everlog.subscriptions.call import Call
from everlog.subscriptions.committer import Committer, Pending
from everlog.subscriptions.context import in_handler
from everlog.subscriptions.declaration import Branch, SubscriptionDeclaration
from everlog.subscriptions.delivery import Retry
from everlog.subscriptions.failure import describe
from everlog.subscriptions.lane import Lane, Waiting
from everlog.subscriptions.overlay import Overlay
from everlog.subscriptions.progress import SlotWork
from everlog.subscriptions.run import Run, Unreadable, choose, lane_of
from everlog.subscriptions.tx import Tx
from everlog.subscriptions.units import Units

READ_AHEAD_BYTES: Final = 16 << 20
_TURN_S: Final = 0.001
"""How long records are taken before the event loop gets its turn."""
_TURN_EVERY: Final = 32
_CONFLICT_PAUSE_S: Final = 0.002
_LOOKS_PER_LIMIT: Final = 8

_logger: Final = logging.getLogger("everlog")


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the engines of one process share."""

    app: str
    log: Log
    store: Store
    committer: Committer
    overlay: Overlay
    clock: Clock
    resources: object


class Worker:
    """One handler call at a time. Attributes say what it does now, for whoever looks while it is suspended."""

    __slots__ = ("index", "is_timed_out", "key", "lane", "run", "task", "watched")

    def __init__(self) -> None:
        self.task: asyncio.Task[None] | None = None
        self.run: Run | None = None
        """The run of the record in its handler; ``None`` while it has none, or a held one."""
        self.index = -1
        self.key: str | None = None
        self.lane: Lane | None = None
        """Set once others may run: the lane of its key."""
        self.watched: object = None
        """What a time limit is kept on; ``None`` while no handler runs in a lane."""
        self.is_timed_out = False


class Engine:
    """Runs one subscription. All of it runs on one event loop.

    Args:
        declaration: What to run.
        around: What it shares with the process's other engines.
        units: Makes units from what handlers did.
        read_ahead_bytes: Most bytes of records that are taken and not finished.
    """

    def __init__(
        self,
        declaration: SubscriptionDeclaration,
        around: Surroundings,
        units: Units,
        *,
        read_ahead_bytes: int = READ_AHEAD_BYTES,
    ) -> None:
        self.declaration = declaration
        self._around = around
        self._committer = around.committer
        self._units = units
        self._prefix = f"{around.app}/{declaration.name}"
        self._read_ahead_bytes = read_ahead_bytes
        self._reader = around.log.reader({})
        self._works: dict[int, SlotWork] = {}
        self._by_partition: dict[TopicPartition, SlotWork] = {}
        self._runs: deque[Run] = deque()
        self._live: set[Run] = set()  # taken and not finished, so that their bytes are counted
        self._run: Run | None = None
        self._lanes: dict[str, Lane] = {}
        self._scheduled: deque[Lane] = deque()
        self._due: list[tuple[int, str]] = []
        self._due_changed = asyncio.Event()
        self._workers = [Worker() for _ in range(declaration.delivery.concurrency)]
        self._idle: list[asyncio.Future[None]] = []
        self._active: Worker | None = None
        self._room = asyncio.Event()
        self._quiet = asyncio.Event()
        self._is_stopping = False

    # ---- slots ----

    def tasks(self) -> Sequence[Coroutine[Any, Any, None]]:
        """Return what has to run, each as a task, until cancelled; one that ends with an error ends the process."""
        return [self._feed(), self._wake_due(), self._watch(), *(self._work(worker) for worker in self._workers)]

    @property
    def works(self) -> Mapping[int, SlotWork]:
        """The slots that this process works on, by number."""
        return self._works

    def open_slot(self, lease: Lease, state: SlotState) -> None:
        """Begin to work on a slot that this process has acquired."""
        work = SlotWork(lease, state.progress)
        self._works[lease.slot.number] = work
        for where in work.partitions:
            self._by_partition[where] = work
        for held in state.held:
            lane = self._lane(held.key, work)
            lane.held = held.records
            if held.next_attempt_us is not None:
                self._set_due(lane, held.next_attempt_us)
        self._reader.assign({where: partition.start for where, partition in work.partitions.items()})

    async def close_slot(self, work: SlotWork) -> None:
        """Take nothing more of a slot, and wait until what is in flight is committed. What only waits is left to the next owner."""
        self._stop_taking(work)
        while self._is_busy(work):
            self._quiet.clear()
            await self._quiet.wait()
        self._committer.touch(work, urgent=True)
        await self._committer.drain()
        self._forget(work)

    def lose_slot(self, work: SlotWork) -> None:
        """Another process owns the slot: what is in flight here is never committed."""
        if work.is_ours:
            _logger.warning("%s: slot %d is owned by another process now", self._prefix, work.slot.number)
            work.is_ours = False
            self._stop_taking(work)
            self._forget(work)

    async def stop(self) -> None:
        """Take nothing more and wait until what is in flight is committed."""
        self._is_stopping = True
        await asyncio.gather(*[self.close_slot(work) for work in list(self._works.values())])

    def close(self) -> None:
        """Let go of the reader."""
        self._reader.close()

    async def answer(self, work: SlotWork, request: Request) -> bool:
        """Carry out a request to redrive or skip; tells whether it could: not while a handler of the key runs.

        Raises:
            LeaseLost: Another process owns the slot.
        """
        self._register_active()
        lane = self._lane(request.key, work)
        if lane.is_running:
            return False
        lane.is_running = True
        try:
            await self._around.store.answer(work.lease, request)
        finally:
            lane.is_running = False
        lane.held = max(lane.held, 1)  # the store says how many there are when the lane looks
        lane.is_due = True
        self._schedule(lane)
        return True

    def snapshot(self, work: SlotWork, units: Sequence[Unit]) -> Iterable[Progress]:
        """Return the progress of a slot as it is once `units`, all of this slot, are committed."""
        self._register_active()
        finishing: dict[TopicPartition, set[Offset]] = {}
        for unit in units:
            for where, offset in unit.finishes:
                finishing.setdefault(where, set()).add(offset)
        return [partition.snapshot(finishing.get(where, set())) for where, partition in work.partitions.items()]

    def _stop_taking(self, work: SlotWork) -> None:
        self._register_active()
        work.is_open = False
        self._reader.revoke(list(work.partitions))
        for where in work.partitions:
            self._by_partition.pop(where, None)
        self._runs = deque(run for run in self._runs if run.work is not work)
        if self._run is not None and self._run.work is work:
            self._run = None
        for lane in self._lanes.values():
            if lane.work is work:
                lane.pending.clear()  # they are open, so they are stored as unfinished
        self._room.set()

    def _is_busy(self, work: SlotWork) -> bool:
        return any(lane.is_running for lane in self._lanes.values() if lane.work is work) or any(
            worker.run is not None and worker.run.work is work for worker in self._workers
        )

    def _forget(self, work: SlotWork) -> None:
        if self._works.get(work.slot.number) is work:
            del self._works[work.slot.number]
        for key in [key for key, lane in self._lanes.items() if lane.work is work]:
            del self._lanes[key]
        self._live = {run for run in self._live if run.work is not work}
        self._room.set()

    # ---- reading ----

    async def _feed(self) -> None:
        """Read chunks as long as there is room, and queue them as runs."""
        while True:
            while self._is_stopping or not self._has_room():
                self._room.clear()
                await self._room.wait()
            self._accept(await self._reader.next())
            await asyncio.sleep(0)

    def _accept(self, batch: Batch) -> None:
        for chunk in batch.chunks:
            work = self._by_partition.get(chunk.where)
            if work is not None and len(chunk):
                self._runs.append(Run(chunk, work, self.declaration.branches))
        self._start_active()

    def _has_room(self) -> bool:
        self._live = {run for run in self._live if not run.is_taken or run.open}
        held = sum([run.size for run in self._live]) + sum([run.size for run in self._runs])
        return held < self._read_ahead_bytes

    def _next_run(self) -> Run | None:
        """Return the run to take from; runs of a partition whose read-ahead is full wait, and so does its reading."""
        while self._run is None and self._runs:
            run = self._runs.popleft()
            partition = run.partition
            if partition.waiting or partition.is_full:
                if not partition.waiting:
                    self._reader.revoke([partition.where])
                partition.waiting.append(run)
                continue
            partition.begin(run)
            self._live.add(run)
            self._run = run
        return self._run

    def _end_run(self, run: Run) -> None:
        """Note that every record of the current run is taken."""
        run.is_taken = True
        run.partition.through = run.chunk.last
        run.partition.run = None
        self._run = None
        self._committer.touch(run.work, urgent=not self._runs)
        if not self._runs:
            self._room.set()

    def _finished(self, run: Run, offset: Offset) -> None:
        """Note that a record is finished for good, and let what waited for that go on."""
        partition = run.partition
        partition.done(offset)
        if partition.waiting and not partition.is_full and run.work.is_open:
            last = partition.waiting[-1].chunk.last
            self._runs.extendleft(reversed(partition.waiting))
            partition.waiting.clear()
            self._reader.assign({partition.where: last})
            self._start_active()
        if not run.open and run.is_taken:
            self._room.set()

    # ---- workers ----

    async def _work(self, me: Worker) -> None:
        in_handler.set(True)
        me.task = asyncio.current_task()
        while True:
            if self._scheduled:
                await self._run_lane(me, self._scheduled.popleft())
            elif self._active is None and (self._run is not None or self._runs) and not self._is_stopping:
                await self._take(me)
            else:
                waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                self._idle.append(waiter)
                await waiter

    def _start_active(self) -> None:
        """Wake a worker to take records, if none does and there are some."""
        if self._active is None and (self._run is not None or self._runs):
            self._start_one()

    def _start_one(self) -> None:
        while self._idle:
            waiter = self._idle.pop()
            if not waiter.done():
                waiter.set_result(None)
                return

    def _relieve(self) -> None:
        """Called by the event loop: if the active worker is suspended in its handler, another one becomes active."""
        self._register_active()
        self._start_active()

    def _register_active(self) -> None:
        """Give the key of the active worker's suspended handler a lane; from then on it is active no more."""
        active = self._active
        if active is None or active.run is None:
            return
        run = active.run
        self._active = None
        run.partition.take(run.chunk.offset(active.index), run)
        active.lane = self._lane(lane_of(active.key, run.chunk, active.index), run.work)
        active.lane.is_running = True
        active.watched = object()

    async def _take(self, me: Worker) -> None:  # noqa: C901, PLR0912, PLR0915 the hot loop: a call per event would cost a third of it
        """Be the active worker: take records and run their handlers, until one suspends or none is left."""
        self._active = me
        loop = asyncio.get_running_loop()
        loop.call_soon(self._relieve)
        lanes = self._lanes
        until_s = time.perf_counter() + _TURN_S
        count = 0
        while (run := self._next_run()) is not None:
            me.run = run
            for index, key, event, branch in run.items:
                if key in lanes or isinstance(branch, Unreadable):
                    self._defer(Waiting(run, index, event, branch), key)
                    continue
                me.index = index
                me.key = key
                handler = branch.handler
                tx: Tx[Any] | None = None
                try:
                    if handler.takes_tx:
                        call = self._call(branch, event, run, index)
                        tx = Tx(call, self._around.overlay, self.declaration.name, self._around.resources)
                        result = await handler.function(event, tx)
                        tx.close()
                        is_bare = result is None and not (tx.writes or tx.reads or tx.scans or tx.outgoing)
                    else:
                        result = await handler.function(event)
                        is_bare = result is None
                    if me.lane is None:
                        if not is_bare:
                            self._put(run, index, event, branch, tx, result)
                    else:
                        self._finish(me.lane, Waiting(run, index, event, branch), tx, result)
                except asyncio.CancelledError:
                    if tx is not None:
                        tx.close()
                    if not self._was_time_limit(me):
                        raise
                    await self._fail(me, Waiting(run, index, event, branch), self._timeout(branch))
                except Exception as error:
                    if tx is not None:
                        tx.close()
                    await self._fail(me, Waiting(run, index, event, branch), error)
                if me.lane is not None:
                    await self._leave(me, me.lane)
                    return
                count += 1
                if count % _TURN_EVERY == 0 and (time.perf_counter() > until_s or self._committer.is_full):
                    me.run = None  # none of its records is in a handler now
                    await (self._committer.room() if self._committer.is_full else asyncio.sleep(0))
                    if self._is_stopping or self._run is not run or (self._scheduled and not self._idle):
                        self._active = None
                        return
                    until_s = time.perf_counter() + _TURN_S
                    loop.call_soon(self._relieve)
                    me.run = run
            self._end_run(run)
        me.run = None
        self._active = None

    def _call(self, branch: Branch, event: object, run: Run, index: int) -> Call:
        return Call(self._prefix, self._around.log.identity, branch.contract, event, chunk=run.chunk, index=index)

    def _put(self, run: Run, index: int, event: object, branch: Branch, tx: Tx[Any] | None, result: object) -> None:
        """Queue what a handler did as a unit, if it did anything.

        Raises:
            EventRefused, TxRefused: What it publishes cannot be published.
        """
        chunk = run.chunk
        offset = chunk.offset(index)
        call = self._call(branch, event, run, index)
        unit = self._units.make(run.work.slot, chunk.keys[index], [(chunk.where, offset)], call, tx, result)
        if unit is None:
            self._finished(run, offset)
            return
        run.partition.take(offset, run)
        waiting = Waiting(run, index, event, branch)
        self._committer.put(Pending(unit, run.work, lambda pending, outcome: self._settled(pending, outcome, waiting)))

    def _finish(self, lane: Lane, waiting: Waiting, tx: Tx[Any] | None, result: object) -> None:
        """End a call that was suspended: its unit, unless an earlier record of the key has to run again first."""
        if not lane.work.is_ours:
            return
        if lane.is_stale:
            lane.is_stale = False
            lane.rerun(waiting)
        else:
            self._put(waiting.run, waiting.index, waiting.event, cast("Branch", waiting.branch), tx, result)

    def _settled(self, pending: Pending, outcome: Outcome, waiting: Waiting) -> None:
        """Called by the committer once it is known what became of a unit."""
        self._units.settled(pending.unit)
        run, index = waiting.run, waiting.index
        if outcome is Outcome.COMMITTED:
            self._finished(run, run.chunk.offset(index))
            return
        if outcome is Outcome.FENCED or not pending.work.is_ours:
            self.lose_slot(pending.work)
            return
        if not pending.work.is_open:
            return  # it stays unfinished, and the next owner runs it
        self._register_active()
        lane = self._lane(lane_of(run.chunk.keys[index], run.chunk, index), run.work)
        error = TxRefused("an addition found no number in its row") if outcome is Outcome.REFUSED else None
        conflicts = waiting.conflicts + (outcome is Outcome.CONFLICT)
        lane.rerun(replace(waiting, conflicts=conflicts, error=error))
        if lane.is_running:
            lane.is_stale = True
        self._schedule(lane)

    # ---- lanes ----

    def _lane(self, key: str, work: SlotWork) -> Lane:
        lane = self._lanes.get(key)
        if lane is None or lane.work is not work:
            lane = self._lanes[key] = Lane(key, work)
        return lane

    def _schedule(self, lane: Lane) -> None:
        """Let a worker take the lane, unless one has it: that one looks before it leaves."""
        if not lane.is_running and not lane.is_scheduled:
            lane.is_scheduled = True
            self._scheduled.append(lane)
            self._start_one()

    def _defer(self, waiting: Waiting, key: str | None) -> None:
        """Put a record that cannot be handled at once into its lane."""
        run = waiting.run
        run.partition.take(run.chunk.offset(waiting.index), run)
        lane = self._lane(lane_of(key, run.chunk, waiting.index), run.work)
        if lane.held and not lane.pending:
            self._hold_behind(lane, waiting)
            return
        lane.pending.append(waiting)
        self._schedule(lane)

    def _hold_behind(self, lane: Lane, waiting: Waiting) -> None:
        """Copy a record behind what the store holds for its key."""
        record = waiting.run.chunk.record(waiting.index)
        self._hold(lane, waiting, Hold(lane.key, record, Cause.BEHIND, 0, "", "", None))

    def _hold(self, lane: Lane, waiting: Waiting, hold: Hold) -> Pending:
        run = waiting.run
        offset = run.chunk.offset(waiting.index)
        unit = self._units.bare(lane.work.slot, None, [(run.chunk.where, offset)])
        unit.holds = [hold]
        unit.size = len(hold.record.data) + len(hold.trace)
        lane.held += 1
        lane.uncommitted += 1

        def settled(pending: Pending, outcome: Outcome) -> None:
            lane.uncommitted -= 1
            if outcome is Outcome.COMMITTED:
                self._finished(run, offset)
            else:
                self.lose_slot(pending.work)

        pending = Pending(unit, lane.work, settled)
        self._committer.put(pending)
        return pending

    async def _leave(self, me: Worker, lane: Lane) -> None:
        """End the active worker's turn after its handler was suspended: go on with what its key has waiting."""
        me.run = None
        me.watched = None
        await self._run_lane(me, lane)

    async def _run_lane(self, me: Worker, lane: Lane) -> None:
        """Run what a lane has waiting, in order, and what it holds where that is due."""
        lane.is_scheduled = False
        lane.is_running = True
        me.lane = lane
        while lane.work.is_open and not self._is_stopping:
            if lane.pending and (not lane.held or lane.reruns):
                await self._run_waiting(me, lane, lane.pop())
            elif lane.pending:
                self._hold_behind(lane, lane.pop())
            elif lane.held and lane.is_due:
                await self._run_held(me, lane)
            else:
                break
        lane.is_running = False
        lane.is_stale = False
        me.lane = None
        self._quiet.set()
        if lane.is_ordinary and self._lanes.get(lane.key) is lane:
            del self._lanes[lane.key]

    async def _run_waiting(self, me: Worker, lane: Lane, waiting: Waiting) -> None:
        """Handle one record that has waited."""
        branch = waiting.branch
        if isinstance(branch, Unreadable):
            await self._give_up(lane, waiting, Cause.UNREADABLE, 0, branch.why, "")
            return
        if waiting.error is not None:
            await self._fail(me, replace(waiting, error=None), waiting.error)
            return
        if waiting.conflicts > 1:
            await self._around.clock.sleep(random.uniform(0, _CONFLICT_PAUSE_S * min(waiting.conflicts, 50)))  # noqa: S311 jitter, no secret
        call = self._call(branch, waiting.event, waiting.run, waiting.index)
        try:
            tx, result = await self._invoke(me, branch, waiting.event, call)
            self._finish(lane, waiting, tx, result)
        except Exception as error:
            await self._fail(me, waiting, error)

    async def _invoke(self, me: Worker, branch: Branch, event: object, call: Call) -> tuple[Tx[Any] | None, object]:
        """Call a handler in a lane, under its time limit.

        Raises:
            HandlerTimeout: It ran past the limit and was cancelled.
            Exception: What it raised.
        """
        handler = branch.handler
        tx: Tx[Any] | None = None
        me.watched = object()
        try:
            if not handler.takes_tx:
                return None, await handler.function(event)
            tx = Tx(call, self._around.overlay, self.declaration.name, self._around.resources)
            return tx, await handler.function(event, tx)
        except asyncio.CancelledError:
            if not self._was_time_limit(me):
                raise
            raise self._timeout(branch) from None
        finally:
            me.watched = None
            if tx is not None:
                tx.close()

    # ---- failures ----

    async def _fail(self, me: Worker, waiting: Waiting, error: Exception) -> None:
        """Decide what follows a record's first failure, once the earlier units of its key are committed."""
        self._register_active()  # where the handler had not been suspended
        self._start_active()
        lane = me.lane
        assert lane is not None
        me.watched = None
        lane.is_running = True
        while (earlier := self._committer.last_of(lane.work.slot, lane.key)) is not None:
            await earlier.outcome()
        if not lane.work.is_ours:
            return
        if lane.reruns:  # it failed on what an earlier record of its key has to do again
            lane.is_stale = False
            lane.rerun(waiting)
            return
        handler = cast("Branch", waiting.branch).handler.name
        policy = self.declaration.delivery.policy(error)
        line, trace = describe(error)
        if policy == "skip":
            _logger.warning("%s: %s failed on key %r and is skipped, as on_error says: %s", self._prefix, handler, lane.key, line)
            unit = self._units.bare(lane.work.slot, None, [(waiting.run.chunk.where, waiting.run.chunk.offset(waiting.index))])
            self._committer.put(Pending(unit, lane.work, lambda pending, outcome: self._settled(pending, outcome, waiting)))
        elif policy == "stop":
            _logger.error(
                "%s: slot %d stops, as on_error says: %s failed: %s", self._prefix, lane.work.slot.number, handler, line
            )
            self._stop_taking(lane.work)
        else:
            delay_s = policy.delay_s(1, random=random.random) if isinstance(policy, Retry) else None
            await self._give_up(lane, waiting, Cause.FAILED, 1, line, trace, delay_s=delay_s)

    async def _give_up(
        self, lane: Lane, waiting: Waiting, cause: Cause, attempts: int, line: str, trace: str, *, delay_s: float | None = None
    ) -> None:
        """Hold a record, and with it its key, until its next attempt, or, without `delay_s`, until somebody says."""
        while (earlier := self._committer.last_of(lane.work.slot, lane.key)) is not None:
            await earlier.outcome()
        if lane.reruns:
            lane.rerun(waiting)
            return
        due_us = None if delay_s is None else self._around.clock.wall_us() + round(delay_s * 1e6)
        self._log_failure(lane.key, line, attempts, delay_s)
        record = waiting.run.chunk.record(waiting.index)
        pending = self._hold(lane, waiting, Hold(lane.key, record, cause, attempts, line, trace, due_us))
        if await pending.outcome() is Outcome.COMMITTED and due_us is not None:
            self._set_due(lane, due_us)

    def _log_failure(self, key: str, line: str, attempts: int, delay_s: float | None) -> None:
        if delay_s is None:
            _logger.error("%s: key %r is parked after %d attempts: %s", self._prefix, key, attempts, line)
        else:
            _logger.warning("%s: key %r failed attempt %d, next in %.1f s: %s", self._prefix, key, attempts, delay_s, line)

    async def _run_held(self, me: Worker, lane: Lane) -> None:
        """Try the first held record of a key, and, where it succeeds, those behind it, in order."""
        lane.is_due = False
        lane.due_us = None
        while lane.work.is_open:
            rows = await self._around.store.held(lane.work.slot, lane.key)
            if not rows:
                if lane.uncommitted:
                    await self._committer.drain()
                    continue
                lane.held = 0
                return
            held = rows[0]
            if held.next_attempt_us is None and held.cause is not Cause.BEHIND:
                return  # parked
            if not await self._run_held_record(me, lane, held):
                return

    async def _run_held_record(self, me: Worker, lane: Lane, held: Held) -> bool:
        """Try one held record; tells whether the next one's turn has come."""
        unit: Unit | None
        try:
            branch, event = self._readable(held.record)
            call = Call(self._prefix, self._around.log.identity, branch.contract, event, stored=held.record)
            tx, result = await self._invoke(me, branch, event, call)
            unit = self._units.make(lane.work.slot, None, [], call, tx, result)
        except Exception as error:
            return await self._failed_again(lane, held, error)
        unit = unit or self._units.bare(lane.work.slot, None, [])
        unit.releases = [held.id]
        outcome = await self._committed(lane, unit)
        if outcome is Outcome.REFUSED:
            return await self._failed_again(lane, held, TxRefused("an addition found no number in its row"))
        if outcome is Outcome.COMMITTED:
            lane.held = max(0, lane.held - 1)
        return outcome in (Outcome.COMMITTED, Outcome.CONFLICT)

    async def _failed_again(self, lane: Lane, held: Held, error: Exception) -> bool:
        line, trace = describe(error)
        attempts = held.attempts + 1
        policy = self.declaration.delivery.policy(error)
        delay_s = (
            policy.delay_s(attempts, random=random.random)
            if isinstance(policy, Retry) and not isinstance(error, Unhandled)
            else None
        )
        unit = self._units.bare(lane.work.slot, None, [])
        if policy == "skip":
            unit.releases = [held.id]
        else:
            due_us = None if delay_s is None else self._around.clock.wall_us() + round(delay_s * 1e6)
            cause = Cause.UNREADABLE if isinstance(error, Unhandled) else Cause.FAILED
            unit.retried = Retried(held.id, cause, attempts, line, trace, due_us)
            self._log_failure(lane.key, line, attempts, delay_s)
            if due_us is not None:
                self._set_due(lane, due_us)
        is_committed = await self._committed(lane, unit) is Outcome.COMMITTED
        if policy == "stop":
            self._stop_taking(lane.work)
        return is_committed and policy == "skip"

    async def _committed(self, lane: Lane, unit: Unit) -> Outcome:
        def settled(pending: Pending, outcome: Outcome) -> None:
            self._units.settled(pending.unit)
            if outcome is Outcome.FENCED:
                self.lose_slot(pending.work)

        pending = Pending(unit, lane.work, settled)
        self._committer.put(pending)
        return await pending.outcome()

    def _readable(self, record: StoredRecord) -> tuple[Branch, object]:
        branch = choose(record.type, self.declaration.branches)
        if isinstance(branch, Branch):
            return branch, branch.contract.decode(record.data)
        raise Unhandled(branch.why if branch is not None else f"the code handles no {record.type} any more")

    # ---- time ----

    def _set_due(self, lane: Lane, due_us: int) -> None:
        """Remember when a key's first held record is to be tried, at the latest after the longest pause: clocks jump."""
        policies = self.declaration.delivery.on_error.values()
        most_s = max([Retry().most_s, *(policy.most_s for policy in policies if isinstance(policy, Retry))])
        lane.due_us = min(due_us, self._around.clock.wall_us() + round(most_s * 1e6))
        heapq.heappush(self._due, (lane.due_us, lane.key))
        self._due_changed.set()

    async def _wake_due(self) -> None:
        """Schedule lanes when the next attempt of what they hold is due."""
        while True:
            now_us = self._around.clock.wall_us()
            while self._due and self._due[0][0] <= now_us:
                due_us, key = heapq.heappop(self._due)
                lane = self._lanes.get(key)
                if lane is not None and lane.due_us == due_us:
                    lane.due_us = None
                    lane.is_due = True
                    self._schedule(lane)
            self._due_changed.clear()
            waits: list[asyncio.Task[Any]] = [asyncio.create_task(self._due_changed.wait())]
            if self._due:
                until_due_s = max(0.0, (self._due[0][0] - now_us) / 1e6)
                waits.append(asyncio.create_task(self._around.clock.sleep(until_due_s)))
            try:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for wait in waits:
                    wait.cancel()

    async def _watch(self) -> None:
        """Cancel handlers that run past the time limit: one look at all workers, a few times per limit."""
        limit_s = self.declaration.delivery.time_limit_s
        since: dict[Worker, tuple[object, float]] = {}
        while True:
            await self._around.clock.sleep(limit_s / _LOOKS_PER_LIMIT)
            self._register_active()
            now_s = self._around.clock.monotonic_s()
            for worker in self._workers:
                known = since.get(worker)
                if worker.watched is None:
                    since.pop(worker, None)
                elif known is None or known[0] is not worker.watched:
                    since[worker] = (worker.watched, now_s)
                elif (
                    now_s - known[1] >= limit_s * (1 - 1 / _LOOKS_PER_LIMIT)
                    and worker.task is not None
                    and not worker.is_timed_out
                ):
                    worker.is_timed_out = True
                    worker.task.cancel()

    def _was_time_limit(self, me: Worker) -> bool:
        """Tell whether a cancellation is the time limit's, and take it back if so."""
        if not me.is_timed_out or me.task is None:
            return False
        me.is_timed_out = False
        me.task.uncancel()
        return True

    def _timeout(self, branch: Branch) -> HandlerTimeout:
        return HandlerTimeout(
            f"{branch.handler.name} ran past its time limit of {self.declaration.delivery.time_limit_s:g} s and was cancelled: "
            f"make it faster, or raise Delivery(time_limit_s=…)"
        )


class Unhandled(EventRefused):
    """A held record that the running code cannot read: parked at once, whatever the policy."""
