"""A subscription at work in this process: takes records, runs handlers, keeps each key in order.

One worker at a time is *active* and takes records from the current run. While its handler does not suspend, nothing else happens: no
task, timer or lane per event. When it does suspend, the event loop calls `_relieve`, which gives the suspended key a lane and makes
another worker active. A record whose key has a lane waits there, or is copied behind what the store holds for the key.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, Final, cast

from msgspec.structs import replace

from everlog.errors import HandlerExited, TxRefused
from everlog.position import Offset, TopicPartition
from everlog.store import Lease, Outcome, Progress, Request, Room, SlotState, Unit
from everlog.subscriptions.call import BatchCall, Call
from everlog.subscriptions.calls import Calls
from everlog.subscriptions.committer import Pending
from everlog.subscriptions.context import in_handler
from everlog.subscriptions.declaration import Branch, SubscriptionDeclaration
from everlog.subscriptions.feed import READ_AHEAD_BYTES, Feed
from everlog.subscriptions.groups import Groups, Job
from everlog.subscriptions.holding import ROOM, Holding
from everlog.subscriptions.lane import Lane, Waiting
from everlog.subscriptions.lanes import Lanes
from everlog.subscriptions.outage import Outage
from everlog.subscriptions.probing import Probing
from everlog.subscriptions.progress import SlotWork
from everlog.subscriptions.run import Run, Unreadable, lane_of
from everlog.subscriptions.surroundings import Surroundings
from everlog.subscriptions.tx import Tx
from everlog.subscriptions.units import Units
from everlog.subscriptions.worker import IGNORED_S, Worker, keep_time_limit

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
        room: How much the subscription may hold.
    """

    def __init__(
        self,
        declaration: SubscriptionDeclaration,
        around: Surroundings,
        units: Units,
        *,
        read_ahead_bytes: int = READ_AHEAD_BYTES,
        room: Room = ROOM,
    ) -> None:
        self.declaration = declaration
        self._around = around
        self._committer = around.committer
        self._units = units
        self._prefix = f"{around.app}/{declaration.name}"
        self._works: dict[int, SlotWork] = {}
        reader = around.log.reader({})
        self._feed = Feed(reader, declaration.branches, self._arrived, read_ahead_bytes=read_ahead_bytes)
        self._lanes = Lanes(around.clock, self._start_one, most_s=declaration.delivery.longest_pause_s)
        self._calls = Calls(declaration, around)
        self._outage = Outage(around.clock, random.random)
        self._holding = Holding(declaration, self, self._lanes, units, around, room)
        self._groups = Groups(
            declaration,
            self,
            calls=self._calls,
            feed=self._feed,
            lanes=self._lanes,
            holding=self._holding,
            units=units,
            around=around,
        )
        self._probing = Probing(self._prefix, declaration.name, self._outage, self, self._lanes, around)
        self._jobs: deque[Job] = deque()
        self._workers = [Worker() for _ in range(declaration.delivery.concurrency)]
        self._idle: list[asyncio.Future[None]] = []
        self._active: Worker | None = None
        self._quiet = asyncio.Event()
        self._is_stopping = False

    # ---- slots ----

    def tasks(self) -> Sequence[Coroutine[Any, Any, None]]:
        """Return what has to run, each as a task, until cancelled; one that ends with an error ends the process."""
        limit_s = self.declaration.delivery.time_limit_s
        watch = keep_time_limit(self._workers, limit_s, self._around.clock, look=self._register_active, ignored=self._give_up)
        works = [self._work(worker) for worker in self._workers]
        return [self._feed.run(), self._lanes.run(), self._groups.run(), self._probing.run(), watch, *works]

    @property
    def works(self) -> Mapping[int, SlotWork]:
        """The slots that this process works on, by number."""
        return self._works

    def open_slot(self, lease: Lease, state: SlotState, heads: Mapping[TopicPartition, Offset] | None = None) -> None:
        """Begin to work on a slot that this process has acquired.

        Args:
            lease: The lease on it.
            state: Where it stands.
            heads: Where the log ends now, if the former owner did not give it back: up to there caution is needed.
        """
        work = self._works[lease.slot.number] = SlotWork(lease, state.progress)
        blamed = state.attempt.held if state.attempt is not None else None
        for held in state.held:
            lane = self._lanes.lane(held.key, work)
            lane.held = held.records
            lane.is_suspect = heads is not None
            if blamed is not None and blamed[0] == held.key:
                lane.blamed = blamed[1:]
                lane.is_due = True
                self._lanes.schedule(lane)
                continue
            if held.next_attempt_us is not None:
                self._lanes.set_due(lane, held.next_attempt_us)
            elif held.is_unreadable:  # perhaps this code knows it
                lane.is_due = True
                self._lanes.schedule(lane)
        self._groups.open(work, heads, state.attempt)
        self._feed.open(work)

    async def close_slot(self, work: SlotWork) -> None:
        """Take nothing more of a slot, and wait until what is in flight is committed. What only waits is left to the next owner."""
        self.stop_taking(work)
        while self._is_busy(work):
            self._quiet.clear()
            await self._quiet.wait()
        await self._groups.end(work)
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
        self._probing.wake()
        await asyncio.gather(*[self.close_slot(work) for work in list(self._works.values())])

    def close(self) -> None:
        """Let go of the reader, and end what is still at work."""
        self._groups.close()
        self._calls.close()
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
        work.left_none.set()
        self._probing.wake()

    def finished(self, run: Run, offset: Offset) -> None:
        """Note that a record is finished for good."""
        self._feed.finished(run, offset)

    def fill_slot(self, work: SlotWork) -> None:
        """Take nothing more of a slot, since the subscription holds as much as it may; what is held can be redriven."""
        if work.full_since_s is None:
            self._register_active()
            work.full_since_s = self._around.clock.monotonic_s()
            self._feed.shut(work)
            work.left_none.set()

    def is_closing(self, work: SlotWork) -> bool:
        """Tell whether nothing more of the slot is to be begun."""
        return self._is_stopping or not work.is_open or not work.is_ours or work.full_since_s is not None

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
            if self._jobs:
                await self._jobs.popleft()(me)
                self._quiet.set()
            elif self._lanes.scheduled:
                await self._run_lane(me, self._lanes.scheduled.popleft())
            elif self._active is None and not self._feed.is_empty and not self._is_stopping and not self.is_paused:
                await self._take(me)
            else:
                waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                self._idle.append(waiter)
                await waiter

    def submit(self, job: Job) -> None:
        """Let a worker run a job."""
        self._jobs.append(job)
        self._start_one()

    def _arrived(self) -> None:
        """Called when there is something to take."""
        if self.is_paused:
            self._probing.arrived()
        else:
            self._start_active()

    def _start_active(self) -> None:
        """Wake a worker to take records, if none does and there are some."""
        if self._active is None and not self._feed.is_empty and not self.is_paused:
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
        lanes, committer, context = self._lanes.by_key, self._committer, self._calls.context
        succeeded = self.succeeded if self._outage.is_listening else None
        until_s = time.perf_counter() + _TURN_S
        count = 0
        while (run := self._feed.next()) is not None:
            me.run = run
            for index, key, event, branch in run.items:
                if key in lanes or type(branch) is not Branch:
                    self.defer(Waiting(run, index, event, branch))
                    continue
                me.index = index
                me.key = key
                tx: Tx[Any] | None = None
                try:
                    if branch.handler.takes_tx:
                        call = self.call(branch, event, run, index)
                        tx = Tx(call, context)
                        try:
                            result = await branch.handler.function(event, tx)
                        finally:
                            tx.close()
                        if result is not None or tx.outgoing:
                            await self._calls.open_outlets(tx, result)
                        if me.lane is None:
                            self._put(run, index, event, branch, call, tx, result)
                        else:
                            self._calls.check_limit(me, branch)
                            self._finish(me.lane, Waiting(run, index, event, branch), call, tx, result)
                    else:
                        result = await branch.handler.function(event)
                        if result is not None:
                            await self._calls.open_outlets(None, result)
                        if me.lane is not None:
                            self._calls.check_limit(me, branch)
                            self._finish(me.lane, Waiting(run, index, event, branch), None, None, result)
                        elif result is not None:
                            self._put(run, index, event, branch, None, None, result)
                    if succeeded is not None:
                        succeeded(lane_of(key, run.chunk, index))
                except asyncio.CancelledError:
                    failure = self._calls.cancelled(me, branch)
                    if failure is None:
                        raise
                    await self._fail(me, Waiting(run, index, event, branch), failure, tx)
                except SystemExit as error:
                    await self._fail(me, Waiting(run, index, event, branch), HandlerExited(branch.handler.name, error.code), tx)
                except Exception as error:
                    await self._fail(me, Waiting(run, index, event, branch), error, tx)
                if me.lane is not None:
                    me.run = None
                    me.watched = None
                    await self._run_lane(me, me.lane)
                    return
                count += 1
                if count % _TURN_EVERY == 0 and (time.perf_counter() > until_s or committer.is_full):
                    me.run = None  # none of its records is in a handler now
                    await (committer.room() if committer.is_full else asyncio.sleep(0))
                    is_due_elsewhere = (self._lanes.scheduled or self._jobs) and not self._idle
                    if self._is_stopping or self.is_paused or self._feed.current is not run or is_due_elsewhere:
                        self._active = None
                        return
                    succeeded = self.succeeded if self._outage.is_listening else None
                    until_s = time.perf_counter() + _TURN_S
                    loop.call_soon(self._relieve)
                    me.run = run
            self._feed.end(run)
            committer.touch(run.work, urgent=self._feed.is_last)
        me.run = None
        self._active = None

    def call(self, branch: Branch, event: object, run: Run, index: int) -> Call:
        """Return the call of a handler for a record."""
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
            tx.abandon()
            self._run_again(Waiting(run, index, event, branch, conflicts=1))
            return
        call = call or self.call(branch, event, run, index)
        unit = self._units.make(run.work.slot, chunk.keys[index], [(chunk.where, offset)], call, tx, result)
        if unit is None:
            self.finished(run, offset)
            return
        run.partition.take(offset, run)
        waiting = Waiting(run, index, event, branch)
        target = self._committer if tx is None or tx.exclusive is None else tx.exclusive
        target.put(Pending(unit, run.work, lambda pending, outcome: self._settled(pending, outcome, waiting)))

    def _finish(self, lane: Lane, waiting: Waiting, call: Call | None, tx: Tx[Any] | None, result: object) -> None:
        """End a call that was suspended: its unit, unless an earlier record of the key has to run again first."""
        if not lane.work.is_ours or lane.must_wait(waiting):
            if tx is not None:
                tx.abandon()
            if lane.work.is_ours:
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

    def defer(self, waiting: Waiting) -> None:
        """Put a record that cannot be handled at once into its lane."""
        run = waiting.run
        run.partition.take(run.chunk.offset(waiting.index), run)
        lane = self._lanes.lane(lane_of(run.chunk.keys[waiting.index], run.chunk, waiting.index), run.work)
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
            is_full = lane.work.full_since_s is not None  # then only what is held goes on
            if lane.pending and lane.held and not is_full:
                self._holding.hold_behind(lane, lane.pending.popleft())
            elif self.is_paused and not lane.is_probe and lane.work.left is None:
                break
            elif lane.pending and not lane.held and not is_full:
                await self._run_waiting(me, lane, lane.pending.popleft())
            elif lane.held and lane.is_due:
                await self._holding.run(me, lane)
            else:
                break
            lane.is_probe = False
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
        call = self.call(branch, waiting.event, waiting.run, waiting.index)
        tx: Tx[Any] | None = None
        try:
            tx, result = await self.invoke(me, branch, waiting.event, call, lane.work)
            self._finish(lane, waiting, call, tx, result)
            if self._outage.is_listening:
                self.succeeded(lane.key)
        except Exception as error:
            if tx is not None:
                tx.abandon()
            await self._holding.fail(lane, waiting, error)

    async def invoke(
        self, me: Worker, branch: Branch, event: object, call: Call, work: SlotWork
    ) -> tuple[Tx[Any] | None, object]:
        """Call a handler in a lane, under its time limit. Raises as `Calls.invoke`."""
        return await self._calls.invoke(me, branch, [event], call if branch.handler.batching is None else BatchCall([call]), work)

    async def _fail(self, me: Worker, waiting: Waiting, error: Exception, tx: Tx[Any] | None) -> None:
        """Pass on the failure of a record that the active worker took."""
        if tx is not None:
            tx.abandon()
        self._register_active()  # where the handler had not been suspended
        self._start_active()
        me.watched = None
        assert me.lane is not None
        await self._holding.fail(me.lane, waiting, error)

    # ---- outages ----

    @property
    def is_paused(self) -> bool:
        """What the handlers need does not answer: one event is tried now and then."""
        return self._outage.reason is not None

    @property
    def is_listening(self) -> bool:
        """Something failed lately: successes are to be told."""
        return self._outage.is_listening

    def succeeded(self, key: str) -> None:
        """Note that an event of a key was handled."""
        if self._outage.succeeded(key):
            self._go_on()

    def failed(self, key: str, error: Exception) -> None:
        """Note that an event of a key failed, with an error that is to be tried again."""
        if self._outage.failed(key, error):
            self._probing.pause()

    async def probe(self) -> None:
        """Wait until the subscription goes on, or one event may be tried."""
        await self._probing.permit()

    def take_one(self) -> Lane | None:
        """Take one record for a probe and return its lane, which has to be scheduled; ``None`` where there is none."""
        self._register_active()
        if self._active is not None:  # between two records: it will see the pause
            return None
        while (run := self._feed.next()) is not None:
            for index, key, event, branch in run.items:
                self.defer(Waiting(run, index, event, branch))
                lane = self._lanes.by_key.get(lane_of(key, run.chunk, index))
                if lane is not None and lane.pending and not lane.held:
                    return lane
            self._feed.end(run)
            self._committer.touch(run.work, urgent=self._feed.is_last)
        return None

    def _go_on(self) -> None:
        """Take up what waited for the end of a pause."""
        self._probing.resume()
        for lane in list(self._lanes.by_key.values()):
            if lane.pending or lane.is_due:
                self._lanes.schedule(lane)
        self._groups.wake()
        self._start_active()

    # ---- handlers that cannot be stopped ----

    def _give_up(self, worker: Worker) -> None:
        """End the process: a handler has ignored its cancellation."""
        self.accuse(worker)
        handler = worker.attempt
        place = "" if handler is None else f" (slot {handler[0].slot.number})"
        self._around.end(
            f"{self._prefix}: a handler{place} ran past its time limit of {self.declaration.delivery.time_limit_s:g} s and went on for "
            f"{IGNORED_S:g} s after it was cancelled: the process ends, so that its event can be kept apart"
        )

    def accuse(self, worker: Worker, *, within_s: float = 2.0) -> None:
        """Store what a handler that cannot be stopped is called for, so that whoever takes over knows. Blocks; from any thread."""
        attempt = worker.attempt
        if attempt is not None:
            work, what = attempt
            self._around.store.accuse(work.lease, what, within_s=within_s)

    def accuse_running(self, task: asyncio.Task[Any] | None) -> str | None:
        """Do the same for the handler that keeps the event loop; returns the subscription, or ``None`` where it is none of its handlers.

        From any thread, while the event loop is blocked.

        Args:
            task: The task that runs now.
        """
        for worker in self._workers:
            if worker.task is task and task is not None and worker.attempt is not None:
                self.accuse(worker)
                return self._prefix
        return None
