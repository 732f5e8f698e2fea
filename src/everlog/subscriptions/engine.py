"""A subscription at work in this process: takes records, runs handlers, keeps each key in order.

One worker at a time is *active* and takes records from the current run. While its handler does not suspend, nothing else happens: no
task, timer or lane per event. When it does suspend, the event loop calls `_relieve`, which gives the suspended key a lane and makes
another worker active. A record whose key has a lane waits there, or is copied behind what the store holds for the key.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, Final, cast

from msgspec.structs import replace

from everlog.errors import TxRefused
from everlog.position import Offset, TopicPartition
from everlog.store import Lease, Outcome, Progress, Request, SlotState, Unit
from everlog.subscriptions.call import Call
from everlog.subscriptions.committer import Pending
from everlog.subscriptions.context import in_handler
from everlog.subscriptions.declaration import Branch, SubscriptionDeclaration
from everlog.subscriptions.feed import READ_AHEAD_BYTES, Feed
from everlog.subscriptions.holding import Holding
from everlog.subscriptions.lane import Lane, Waiting
from everlog.subscriptions.lanes import Lanes
from everlog.subscriptions.progress import SlotWork
from everlog.subscriptions.run import Run, Unreadable, lane_of
from everlog.subscriptions.surroundings import Surroundings
from everlog.subscriptions.tx import Tx
from everlog.subscriptions.units import Units
from everlog.subscriptions.worker import Worker, keep_time_limit

_TURN_S: Final = 0.001
"""How long records are taken before the event loop gets its turn."""
_TURN_EVERY: Final = 32

_logger: Final = logging.getLogger("everlog")


class Engine:
    """Runs one subscription, on one event loop.

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
        self._works: dict[int, SlotWork] = {}
        reader = around.log.reader({})
        self._feed = Feed(reader, declaration.branches, self._start_active, read_ahead_bytes=read_ahead_bytes)
        self._lanes = Lanes(around.clock, self._start_one, most_s=declaration.delivery.longest_pause_s)
        self._holding = Holding(declaration, self, self._lanes, units, around)
        self._workers = [Worker() for _ in range(declaration.delivery.concurrency)]
        self._idle: list[asyncio.Future[None]] = []
        self._active: Worker | None = None
        self._quiet = asyncio.Event()
        self._is_stopping = False

    # ---- slots ----

    def tasks(self) -> Sequence[Coroutine[Any, Any, None]]:
        """Return what has to run, each as a task, until cancelled; one that ends with an error ends the process."""
        limit_s = self.declaration.delivery.time_limit_s
        watch = keep_time_limit(self._workers, limit_s, self._around.clock, self._register_active)
        return [self._feed.run(), self._lanes.run(), watch, *(self._work(worker) for worker in self._workers)]

    @property
    def works(self) -> Mapping[int, SlotWork]:
        """The slots that this process works on, by number."""
        return self._works

    def open_slot(self, lease: Lease, state: SlotState) -> None:
        """Begin to work on a slot that this process has acquired."""
        work = self._works[lease.slot.number] = SlotWork(lease, state.progress)
        for held in state.held:
            lane = self._lanes.lane(held.key, work)
            lane.held = held.records
            if held.next_attempt_us is not None:
                self._lanes.set_due(lane, held.next_attempt_us)
            elif held.is_unreadable:  # perhaps this code knows it
                lane.is_due = True
                self._lanes.schedule(lane)
        self._feed.open(work)

    async def close_slot(self, work: SlotWork) -> None:
        """Take nothing more of a slot, and wait until what is in flight is committed. What only waits is left to the next owner."""
        self.stop_taking(work)
        while self._is_busy(work):
            self._quiet.clear()
            await self._quiet.wait()
        await self._committer.drain(work)
        self._forget(work)

    def lose_slot(self, work: SlotWork) -> None:
        """Another process owns the slot: what is in flight here is never committed."""
        if work.is_ours:
            _logger.warning("%s: slot %d is owned by another process now", self._prefix, work.slot.number)
            work.is_ours = False
            self.stop_taking(work)
            self._forget(work)

    async def stop(self) -> None:
        """Take nothing more and wait until what is in flight is committed."""
        self._is_stopping = True
        await asyncio.gather(*[self.close_slot(work) for work in list(self._works.values())])

    def close(self) -> None:
        """Let go of the reader."""
        self._feed.close()

    async def answer(self, work: SlotWork, request: Request) -> bool:
        """Carry out a request to redrive or skip; tells whether it could: not while a handler of the key runs.

        Raises:
            LeaseLost: Another process owns the slot.
        """
        self._register_active()
        lane = self._lanes.lane(request.key, work)
        if lane.is_running:
            return False
        lane.is_running = True
        try:
            await self._around.store.answer(work.lease, request)
        finally:
            lane.is_running = False
        lane.held = max(lane.held, 1)  # the store says how many there are when the lane looks
        lane.is_due = True
        self._lanes.schedule(lane)
        return True

    def snapshot(self, work: SlotWork, units: Sequence[Unit]) -> Sequence[Progress]:
        """Return the progress of a slot as it is once `units`, all of this slot, are committed."""
        self._register_active()
        finishing: dict[TopicPartition, set[Offset]] = {}
        for unit in units:
            for where, offset in unit.finishes:
                finishing.setdefault(where, set()).add(offset)
        return [partition.snapshot(finishing.get(where, set())) for where, partition in work.partitions.items()]

    def stop_taking(self, work: SlotWork) -> None:
        """Take nothing more of a slot.

        What waits in its lanes stays there, and is stored as unfinished: a later record of the key whose handler runs now must see that
        it may not be committed first.
        """
        self._register_active()
        work.is_open = False
        self._feed.shut(work)

    def finished(self, run: Run, offset: Offset) -> None:
        """Note that a record is finished for good."""
        self._feed.finished(run, offset)

    def _is_busy(self, work: SlotWork) -> bool:
        self._register_active()
        is_taken = any(worker.run is not None and worker.run.work is work for worker in self._workers)
        return is_taken or any(lane.is_running for lane in self._lanes.of(work))

    def _forget(self, work: SlotWork) -> None:
        if self._works.get(work.slot.number) is work:
            del self._works[work.slot.number]
        self._lanes.forget(work)
        self._feed.forget(work)

    # ---- who is active ----

    async def _work(self, me: Worker) -> None:
        in_handler.set(True)
        me.task = asyncio.current_task()
        while True:
            if self._lanes.scheduled:
                await self._run_lane(me, self._lanes.scheduled.popleft())
            elif self._active is None and not self._feed.is_empty and not self._is_stopping:
                await self._take(me)
            else:
                waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                self._idle.append(waiter)
                await waiter

    def _start_active(self) -> None:
        """Wake a worker to take records, if none does and there are some."""
        if self._active is None and not self._feed.is_empty:
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
        active.lane = self._lanes.lane(lane_of(active.key, run.chunk, active.index), run.work)
        active.lane.is_running = True
        active.watched = object()

    # ---- records from the log ----

    async def _take(self, me: Worker) -> None:  # noqa: C901, PLR0912, PLR0915 the hot loop: a call per event would cost a third of it
        """Be the active worker: take records and run their handlers, until one suspends or none is left."""
        self._active = me
        loop = asyncio.get_running_loop()
        loop.call_soon(self._relieve)
        lanes, committer = self._lanes.by_key, self._committer
        until_s = time.perf_counter() + _TURN_S
        count = 0
        while (run := self._feed.next()) is not None:
            me.run = run
            for index, key, event, branch in run.items:
                if key in lanes or isinstance(branch, Unreadable):
                    self._defer(Waiting(run, index, event, branch), key)
                    continue
                me.index = index
                me.key = key
                try:
                    if branch.handler.takes_tx:
                        call = self._call(branch, event, run, index)
                        tx = Tx(call, self._around.overlay, self.declaration.name, self._around.resources)
                        try:
                            result = await branch.handler.function(event, tx)
                        finally:
                            tx.close()
                        if result is not None or tx.outgoing:
                            await self._open_outlets(tx, result)
                        if me.lane is None:
                            self._put(run, index, event, branch, call, tx, result)
                        else:
                            self._check_limit(me, branch)
                            self._finish(me.lane, Waiting(run, index, event, branch), call, tx, result)
                    else:
                        result = await branch.handler.function(event)
                        if result is not None:
                            await self._open_outlets(None, result)
                        if me.lane is not None:
                            self._check_limit(me, branch)
                            self._finish(me.lane, Waiting(run, index, event, branch), None, None, result)
                        elif result is not None:
                            self._put(run, index, event, branch, None, None, result)
                except asyncio.CancelledError:
                    failure = self._cancelled(me, branch)
                    if failure is None:
                        raise
                    await self._fail(me, Waiting(run, index, event, branch), failure)
                except Exception as error:
                    await self._fail(me, Waiting(run, index, event, branch), error)
                if me.lane is not None:
                    me.run = None
                    me.watched = None
                    await self._run_lane(me, me.lane)
                    return
                count += 1
                if count % _TURN_EVERY == 0 and (time.perf_counter() > until_s or committer.is_full):
                    me.run = None  # none of its records is in a handler now
                    await (committer.room() if committer.is_full else asyncio.sleep(0))
                    if self._is_stopping or self._feed.current is not run or (self._lanes.scheduled and not self._idle):
                        self._active = None
                        return
                    until_s = time.perf_counter() + _TURN_S
                    loop.call_soon(self._relieve)
                    me.run = run
            self._feed.end(run)
            committer.touch(run.work, urgent=self._feed.is_last)
        me.run = None
        self._active = None

    def _call(self, branch: Branch, event: object, run: Run, index: int) -> Call:
        return Call(self._prefix, self._around.log.identity, branch.contract, event, chunk=run.chunk, index=index)

    def _put(
        self, run: Run, index: int, event: object, branch: Branch, call: Call | None, tx: Tx[Any] | None, result: object
    ) -> None:
        """Queue what a handler did as a unit, if it did anything.

        Raises:
            EventRefused, TxRefused: What it publishes cannot be published.
        """
        if tx is not None and result is None and not tx.has_effects:
            self.finished(run, run.chunk.offset(index))
            return
        chunk = run.chunk
        offset = chunk.offset(index)
        if tx is not None and self._around.overlay.is_doomed(tx.reads, tx.scans):
            run.partition.take(offset, run)
            self._run_again(Waiting(run, index, event, branch, conflicts=1))
            return
        call = call or self._call(branch, event, run, index)
        unit = self._units.make(run.work.slot, chunk.keys[index], [(chunk.where, offset)], call, tx, result)
        if unit is None:
            self.finished(run, offset)
            return
        run.partition.take(offset, run)
        waiting = Waiting(run, index, event, branch)
        self._committer.put(Pending(unit, run.work, lambda pending, outcome: self._settled(pending, outcome, waiting)))

    def _finish(self, lane: Lane, waiting: Waiting, call: Call | None, tx: Tx[Any] | None, result: object) -> None:
        """End a call that was suspended: its unit, unless an earlier record of the key has to run again first."""
        if not lane.work.is_ours:
            return
        if lane.must_wait(waiting):
            lane.insert(waiting)
        elif result is None and (tx is None or not tx.has_effects):
            self.finished(waiting.run, waiting.run.chunk.offset(waiting.index))
            self._committer.touch(lane.work, urgent=self._feed.is_empty)
        else:
            self._put(waiting.run, waiting.index, waiting.event, cast("Branch", waiting.branch), call, tx, result)

    def _settled(self, pending: Pending, outcome: Outcome, waiting: Waiting) -> None:
        """Called by the committer once it is known what became of a unit."""
        self._units.settled(pending.unit, outcome)
        run, index = waiting.run, waiting.index
        if outcome is Outcome.COMMITTED:
            self.finished(run, run.chunk.offset(index))
            return
        if outcome is Outcome.FENCED or not pending.work.is_ours:
            self.lose_slot(pending.work)
            return
        self._register_active()
        if outcome is Outcome.REFUSED:
            waiting = replace(waiting, error=TxRefused("an addition found no number in its row"))
        elif outcome is Outcome.CONFLICT:
            waiting = replace(waiting, conflicts=waiting.conflicts + 1)
        self._run_again(waiting)

    def _run_again(self, waiting: Waiting) -> None:
        """Let a record wait for its lane, in the order in which it was taken."""
        run, index = waiting.run, waiting.index
        lane = self._lanes.lane(lane_of(run.chunk.keys[index], run.chunk, index), run.work)
        lane.insert(waiting)
        self._lanes.schedule_later(lane, waiting.conflicts)

    # ---- lanes ----

    def _defer(self, waiting: Waiting, key: str | None) -> None:
        """Put a record that cannot be handled at once into its lane."""
        run = waiting.run
        run.partition.take(run.chunk.offset(waiting.index), run)
        lane = self._lanes.lane(lane_of(key, run.chunk, waiting.index), run.work)
        if lane.held and not lane.pending:
            self._holding.hold_behind(lane, waiting)
        else:
            lane.pending.append(waiting)
            self._lanes.schedule(lane)

    async def _run_lane(self, me: Worker, lane: Lane) -> None:
        """Run what a lane has waiting, in order, and what it holds where that is due."""
        lane.is_scheduled = False
        lane.is_running = True
        me.lane = lane
        while lane.work.is_open and not self._is_stopping:
            if lane.pending and lane.held:
                self._holding.hold_behind(lane, lane.pending.popleft())
            elif lane.pending:
                await self._run_waiting(me, lane, lane.pending.popleft())
            elif lane.held and lane.is_due:
                await self._holding.run(me, lane)
            else:
                break
        lane.is_running = False
        me.lane = None
        self._quiet.set()
        self._lanes.leave(lane)

    async def _run_waiting(self, me: Worker, lane: Lane, waiting: Waiting) -> None:
        """Handle one record that has waited."""
        branch = waiting.branch
        if isinstance(branch, Unreadable):
            await self._holding.park(lane, waiting, branch)
            return
        if waiting.error is not None:
            await self._holding.fail(lane, waiting, waiting.error)
            return
        call = self._call(branch, waiting.event, waiting.run, waiting.index)
        try:
            tx, result = await self.invoke(me, branch, waiting.event, call)
            self._finish(lane, waiting, call, tx, result)
        except Exception as error:
            await self._holding.fail(lane, waiting, error)

    async def invoke(self, me: Worker, branch: Branch, event: object, call: Call) -> tuple[Tx[Any] | None, object]:
        """Call a handler in a lane, under its time limit.

        Raises:
            HandlerTimeout, HandlerCancelled: It was cancelled, by its limit or by what it awaited.
            Exception: What it raised.
        """
        handler = branch.handler
        tx: Tx[Any] | None = None
        me.watched = object()
        try:
            if handler.takes_tx:
                tx = Tx(call, self._around.overlay, self.declaration.name, self._around.resources)
                result = await handler.function(event, tx)
            else:
                result = await handler.function(event)
            if result is not None or (tx is not None and tx.outgoing):
                await self._open_outlets(tx, result)
            self._check_limit(me, branch)
        except asyncio.CancelledError:
            failure = self._cancelled(me, branch)
            if failure is None:
                raise
            raise failure from None
        else:
            return tx, result
        finally:
            me.watched = None
            if tx is not None:
                tx.close()

    async def _fail(self, me: Worker, waiting: Waiting, error: Exception) -> None:
        """Pass on the failure of a record that the active worker took."""
        self._register_active()  # where the handler had not been suspended
        self._start_active()
        me.watched = None
        assert me.lane is not None
        await self._holding.fail(me.lane, waiting, error)

    async def _open_outlets(self, tx: Tx[Any] | None, result: object) -> None:
        """Make the topics that a handler publishes to for the first time; a missing one fails the handler."""
        missing = self._around.outlets.missing(tx, result)
        if missing:
            await self._around.outlets.open(missing)

    def _cancelled(self, me: Worker, branch: Branch) -> Exception | None:
        return me.cancelled(branch.handler.name, self.declaration.delivery.time_limit_s)

    def _check_limit(self, me: Worker, branch: Branch) -> None:
        """Refuse what a handler did that swallowed its cancellation.

        Raises:
            HandlerTimeout: It did.
        """
        if me.is_timed_out:
            failure = self._cancelled(me, branch)
            if failure is not None:
                raise failure
