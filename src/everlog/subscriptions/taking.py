"""Taking records: who runs which handler, and when.

One worker at a time is *active* and takes records from the current run. While its handler does not suspend, nothing else happens: no
task, timer or lane per event. When it does suspend, the event loop calls `_relieve`, which gives the suspended key a lane and makes
another worker active. A record whose key has a lane waits there, or is copied behind what the store holds for the key.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Coroutine, Sequence
from typing import Any, Final, Protocol, cast

from msgspec.structs import replace

from everlog.errors import HandlerExited, TxRefused
from everlog.store import Outcome
from everlog.subscriptions.call import Call
from everlog.subscriptions.committer import Pending
from everlog.subscriptions.context import in_handler
from everlog.subscriptions.declaration import Branch, SubscriptionDeclaration
from everlog.subscriptions.lane import Lane, Waiting
from everlog.subscriptions.parts import Job, Parts
from everlog.subscriptions.progress import SlotWork
from everlog.subscriptions.run import Run, Unreadable, lane_of
from everlog.subscriptions.turns import let_others_run
from everlog.subscriptions.tx import Tx
from everlog.subscriptions.worker import Worker

_TURN_S: Final = 0.00025
"""How long records are taken before the event loop gets its turn."""
_TURN_EVERY: Final = 32


class Host(Protocol):
    """What the subscription knows of itself."""

    @property
    def is_stopping(self) -> bool:
        """Nothing more is to be begun."""
        ...

    @property
    def is_paused(self) -> bool:
        """Only what is tried as a probe runs."""
        ...

    @property
    def is_listening(self) -> bool:
        """Successes are to be told."""
        ...

    def succeeded(self, key: str) -> None:
        """Note that an event of a key was handled."""
        ...

    def lose_slot(self, work: SlotWork) -> None:
        """Note that another process owns the slot."""
        ...

    async def invoke(
        self, me: Worker, branch: Branch, event: object, call: Call, work: SlotWork
    ) -> tuple[Tx[Any] | None, object]:
        """Call a handler in a lane, under its time limit; raises what it raises."""
        ...


class Taking:
    """The workers of one subscription.

    Args:
        declaration: Whose.
        host: What the subscription knows of itself.
        parts: What it is made of.
    """

    def __init__(self, declaration: SubscriptionDeclaration, host: Host, parts: Parts) -> None:
        self._host = host
        self._calls = parts.calls
        self._feed = parts.feed
        self._lanes = parts.lanes
        self._holding = parts.holding
        self._units = parts.units
        self._committer = parts.around.committer
        self._overlay = parts.around.overlay
        self._tally = parts.tally
        self._log = parts.around.log.identity
        self._key_prefix = parts.units.key_prefix
        self._jobs: deque[Job] = deque()
        self.workers = [Worker() for _ in range(declaration.delivery.concurrency)]
        self._idle: list[asyncio.Future[None]] = []
        self._active: Worker | None = None
        self._quiet = asyncio.Event()

    def tasks(self) -> Sequence[Coroutine[Any, Any, None]]:
        """Return what has to run, each as a task, until cancelled."""
        return [self._work(worker) for worker in self.workers]

    async def quiet(self, work: SlotWork) -> None:
        """Wait until no handler of a slot runs."""
        while self._is_busy(work):
            self._quiet.clear()
            await self._quiet.wait()

    def is_at(self, work: SlotWork) -> bool:
        """Tell whether a handler of a slot that was lost still runs: its lanes are forgotten, and its workers know."""
        return any(worker.work is work or (worker.run is not None and worker.run.work is work) for worker in self.workers)

    def _is_busy(self, work: SlotWork) -> bool:
        self.register_active()
        is_taken = any(worker.run is not None and worker.run.work is work for worker in self.workers)
        return is_taken or any(lane.is_running for lane in self._lanes.of(work))

    # ---- who is active ----

    async def _work(self, me: Worker) -> None:
        in_handler.set(True)
        me.task = asyncio.current_task()
        while True:
            if self._jobs:
                await self._jobs.popleft()(me)
                self._quiet.set()
            elif self._lanes.scheduled:
                lane = self._lanes.scheduled.popleft()
                lane.is_scheduled = False
                if not lane.is_running:  # else a request for it is being answered, and it is scheduled behind that
                    await self._run_lane(me, lane)
            elif self._active is None and not self._feed.is_empty and not self._host.is_stopping and not self._host.is_paused:
                await self._take(me)
            else:
                waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                self._idle.append(waiter)
                await waiter

    def submit(self, job: Job) -> None:
        """Let a worker run a job."""
        self._jobs.append(job)
        self.start_one()

    def start(self) -> None:
        """Wake a worker to take records, if none does and there are some."""
        if self._active is None and not self._feed.is_empty and not self._host.is_paused:
            self.start_one()

    def start_one(self) -> None:
        """Wake a worker, if one is idle."""
        while self._idle:
            waiter = self._idle.pop()
            if not waiter.done():
                waiter.set_result(None)
                return

    def _relieve(self) -> None:
        """Called by the event loop: if the active worker is suspended in its handler, another one becomes active."""
        self.register_active()
        self.start()

    def register_active(self) -> None:
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
        lanes, committer, context, overlay = self._lanes.by_key, self._committer, self._calls.context, self._overlay
        succeeded = self._host.succeeded if self._host.is_listening else None
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
                    self._tally.handled += count
                    await self._run_lane(me, me.lane)
                    return
                count += 1
                if count % _TURN_EVERY == 0 and (time.perf_counter() > until_s or committer.is_full or overlay.is_awaited):
                    me.run = None  # none of its records is in a handler now
                    self._tally.handled += count
                    count = 0
                    await self._let_others()
                    is_due_elsewhere = (self._lanes.scheduled or self._jobs) and not self._idle
                    if self._host.is_stopping or self._host.is_paused or self._feed.current is not run or is_due_elsewhere:
                        self._active = None
                        return
                    succeeded = self._host.succeeded if self._host.is_listening else None
                    until_s = time.perf_counter() + _TURN_S
                    loop.call_soon(self._relieve)
                    me.run = run
            self._feed.end(run)
            committer.touch(run.work, urgent=self._feed.is_last)
        me.run = None
        self._tally.handled += count
        self._active = None

    async def _let_others(self) -> None:
        """Wait for those that are behind: the store, readers of what is added to, and whoever else needs the event loop."""
        if self._overlay.is_awaited:
            await self._overlay.read_by_all()
        await (self._committer.room() if self._committer.is_full else let_others_run())

    def call(self, branch: Branch, event: object, run: Run, index: int) -> Call:
        """Return the call of a handler for a record."""
        call = Call(self._key_prefix, self._log, branch.contract, event, chunk=run.chunk, index=index)
        call.muted = run.partition.muted
        return call

    def _put(
        self, run: Run, index: int, event: object, branch: Branch, call: Call | None, tx: Tx[Any] | None, result: object
    ) -> None:
        """Queue what a handler did as a unit, if it did anything.

        Raises:
            EventRefused, TxRefused: What it publishes cannot be published.
        """
        if tx is not None and result is None and not tx.has_effects:
            self._feed.finished(run, run.chunk.offset(index))
            return
        chunk = run.chunk
        offset = chunk.offset(index)
        if tx is not None and self._overlay.is_doomed(tx.reads, tx.scans):
            run.partition.take(offset, run)
            tx.abandon()
            self._run_again(Waiting(run, index, event, branch, conflicts=1))
            return
        call = call or self.call(branch, event, run, index)
        unit = self._units.make(run.work.slot, chunk.keys[index], [(chunk.where, offset)], call, tx, result)
        if unit is None:
            self._feed.finished(run, offset)
            return
        run.partition.take(offset, run)
        waiting = Waiting(run, index, event, branch)
        pending = Pending(unit, run.work, lambda pending, outcome: self._settled(pending, outcome, waiting))
        self._committer.put(pending, None if tx is None else tx.exclusive)

    def _finish(self, lane: Lane, waiting: Waiting, call: Call | None, tx: Tx[Any] | None, result: object) -> None:
        """End a call that was suspended: its unit, unless an earlier record of the key has to run again first."""
        if not lane.work.is_ours or lane.must_wait(waiting):
            if tx is not None:
                tx.abandon()
            if lane.work.is_ours:
                lane.insert(waiting)
        elif result is None and (tx is None or not tx.has_effects):
            self._tally.handled += 1
            self._feed.finished(waiting.run, waiting.run.chunk.offset(waiting.index))
            self._committer.touch(lane.work, urgent=self._feed.is_empty)
        else:
            self._put(waiting.run, waiting.index, waiting.event, cast("Branch", waiting.branch), call, tx, result)
            self._tally.handled += 1

    def _settled(self, pending: Pending, outcome: Outcome, waiting: Waiting) -> None:
        """Called by the committer once it is known what became of a unit."""
        self._units.settled(pending.unit, outcome)
        run, index = waiting.run, waiting.index
        if outcome is Outcome.COMMITTED:
            self._feed.finished(run, run.chunk.offset(index))
            return
        if outcome is Outcome.FENCED or not pending.work.is_ours:
            self._host.lose_slot(pending.work)
            return
        self.register_active()
        if outcome is Outcome.REFUSED:
            waiting = replace(waiting, error=TxRefused("an addition found no number in its row"))
        elif outcome is Outcome.CONFLICT:
            waiting = replace(waiting, conflicts=waiting.conflicts + 1)
        self._run_again(waiting)

    def _run_again(self, waiting: Waiting) -> None:
        """Let a record wait for its lane, in the order in which it was taken."""
        lane = self._lanes.lane(waiting.lane_key, waiting.run.work)
        lane.insert(waiting)
        self._lanes.schedule_later(lane, waiting.conflicts)

    # ---- lanes ----

    def defer(self, waiting: Waiting) -> None:
        """Put a record that cannot be handled at once into its lane."""
        run = waiting.run
        run.partition.take(run.chunk.offset(waiting.index), run)
        lane = self._lanes.lane(waiting.lane_key, run.work)
        if lane.held and not lane.pending:
            self._holding.hold_behind(lane, waiting)
        else:
            lane.pending.append(waiting)
            self._lanes.schedule(lane)

    async def _run_lane(self, me: Worker, lane: Lane) -> None:
        """Run what a lane has waiting, in order, and what it holds where that is due."""
        lane.is_running = True
        me.lane = lane
        while lane.work.is_open and not self._host.is_stopping:
            is_full = lane.work.full_since_s is not None  # then only what is held goes on
            if lane.pending and lane.held and not is_full:
                self._holding.hold_behind(lane, lane.pending.popleft())
            elif self._host.is_paused and not lane.is_probe and lane.work.left is None:
                break
            elif lane.pending and not lane.held and not is_full:
                lane.is_probe = False
                await self._run_waiting(me, lane, lane.pending.popleft())
            elif lane.held and lane.is_due:
                lane.is_probe = False
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
        call = self.call(branch, waiting.event, waiting.run, waiting.index)
        tx: Tx[Any] | None = None
        try:
            tx, result = await self._host.invoke(me, branch, waiting.event, call, lane.work)
            self._finish(lane, waiting, call, tx, result)
            if self._host.is_listening:
                self._host.succeeded(lane.key)
        except Exception as error:
            if tx is not None:
                tx.abandon()
            await self._holding.fail(lane, waiting, error)

    async def _fail(self, me: Worker, waiting: Waiting, error: Exception, tx: Tx[Any] | None) -> None:
        """Pass on the failure of a record that the active worker took."""
        if tx is not None:
            tx.abandon()
        if me.is_timed_out:  # it answered its cancellation with another error; the next event must not pay for it
            error = self._calls.cancelled(me, cast("Branch", waiting.branch)) or error
        self.register_active()  # where the handler had not been suspended
        self.start()
        me.watched = None
        assert me.lane is not None
        await self._holding.fail(me.lane, waiting, error)

    def take_one(self) -> Lane | None:
        """Take one record for a probe and return its lane, which has to be scheduled; ``None`` where there is none."""
        self.register_active()
        if self._active is not None:  # between two records: it will see the pause
            return None
        while (run := self._feed.next()) is not None:
            for index, _, event, branch in run.items:
                waiting = Waiting(run, index, event, branch)
                self.defer(waiting)
                lane = self._lanes.by_key.get(waiting.lane_key)
                if lane is not None and lane.pending and not lane.held:
                    return lane
            self._feed.end(run)
            self._committer.touch(run.work, urgent=self._feed.is_last)
        return None
