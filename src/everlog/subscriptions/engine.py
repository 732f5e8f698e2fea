"""A subscription at work in this process: its slots, its failures, its pauses. What takes the records is in `taking.py`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, Final

from everlog.errors import LeaseLost
from everlog.position import Offset, TopicPartition
from everlog.store import Lease, Progress, Request, Room, Slot, SlotState, Unit
from everlog.subscriptions.call import BatchCall, Call
from everlog.subscriptions.calls import Calls
from everlog.subscriptions.declaration import Branch, SubscriptionDeclaration
from everlog.subscriptions.feed import READ_AHEAD_BYTES, Feed
from everlog.subscriptions.gap import pass_or_stop
from everlog.subscriptions.groups import Groups
from everlog.subscriptions.holding import ROOM, Holding
from everlog.subscriptions.lane import Waiting
from everlog.subscriptions.lanes import Lanes
from everlog.subscriptions.outage import Outage
from everlog.subscriptions.parts import Job, Parts
from everlog.subscriptions.probing import Probing
from everlog.subscriptions.progress import SlotWork
from everlog.subscriptions.run import Run
from everlog.subscriptions.surroundings import Surroundings
from everlog.subscriptions.taking import Taking
from everlog.subscriptions.tally import Tally
from everlog.subscriptions.tx import Tx
from everlog.subscriptions.units import Units
from everlog.subscriptions.worker import IGNORED_S, Worker, keep_time_limit

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
        self.tally = Tally()
        """What was done here."""
        self._around = around
        self._committer = around.committer
        self._units = units
        self._prefix = f"{around.app}/{declaration.name}"
        self._works: dict[int, SlotWork] = {}
        reader = around.log.reader({})
        self._feed = Feed(
            reader,
            declaration.branches,
            self._arrived,
            read_ahead_bytes=read_ahead_bytes,
            lost=self._overtaken,
            changed=lambda work: self._committer.touch(work, urgent=True),
        )
        self._lanes = Lanes(around.clock, self._scheduled, most_s=declaration.delivery.longest_pause_s, dice=around.dice)
        self._calls = Calls(declaration, around)
        self._outage = Outage(around.clock, around.dice)
        self._holding = Holding(declaration, self, self._lanes, units, around, room, self.tally)
        parts = Parts(self._calls, self._feed, self._lanes, self._holding, units, around, self.tally)
        self._taking = Taking(declaration, self, parts)
        self._groups = Groups(declaration, self, parts)
        self._probing = Probing(self._prefix, declaration.name, self._outage, self._taking, self._lanes, around)
        self._is_stopping = False
        self._lost: list[SlotWork] = []  # whose handlers may still run

    # ---- slots ----

    def tasks(self) -> Sequence[Coroutine[Any, Any, None]]:
        """Return what has to run, each as a task, until cancelled; one that ends with an error ends the process."""
        limit_s = self.declaration.delivery.time_limit_s
        taking = self._taking
        watch = keep_time_limit(taking.workers, limit_s, self._around.clock, look=taking.register_active, ignored=self._give_up)
        return [self._feed.run(), self._lanes.run(), self._groups.run(), self._probing.run(), watch, *taking.tasks()]

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
        work = self._works[lease.slot.number] = SlotWork(lease, state)
        self._units.generation = state.generation
        for held in state.held:
            lane = self._lanes.lane(held.key, work)
            lane.held = held.records
            lane.is_taken_over = True
            lane.is_suspect = heads is not None
            if held.next_attempt_us is not None:
                self._lanes.set_due(lane, held.next_attempt_us)
            elif held.is_unreadable:  # perhaps this code knows it
                lane.is_due = True
                self._lanes.schedule(lane)
        self._around.overlay.own(self.declaration.name, is_whole=len(self._works) == self.declaration.slots)
        self._groups.open(work, heads, state.attempt)
        self._feed.open(work)

    def touch(self, slot: Slot) -> None:
        """Have the progress of a slot stored, though nothing was handled."""
        self._committer.touch(self._works[slot.number], urgent=True)

    async def close_slot(self, work: SlotWork) -> None:
        """Take nothing more of a slot, and wait until what is in flight is committed. What only waits is left to the next owner."""
        self.stop_taking(work)
        await self._taking.quiet(work)
        await self._groups.end(work)
        await self._committer.drain(work)
        self._forget(work)

    def lose_slot(self, work: SlotWork) -> None:
        """Another process owns the slot: what is in flight here is never committed."""
        if work.is_ours:
            _logger.warning(
                "%s: slot %d is not ours any more: another process owns it, or a replay has begun", self._prefix, work.slot.number
            )
            work.is_ours = False
            self.stop_taking(work)
            self._forget(work)
            self._lost.append(work)

    def may_take(self, number: int) -> bool:
        """Tell whether a slot can be taken anew: not while a handler runs here that was begun before it was lost. Nothing of it is committed."""
        self._lost = [work for work in self._lost if self._taking.is_at(work)]
        return all(work.slot.number != number for work in self._lost)

    async def _overtaken(self, work: SlotWork, where: TopicPartition, after: Offset, first: Offset) -> bool:
        """Answer to a gap; tells whether the slot is still ours.

        A process that was stopped for long may find one where another has handled everything: it has lost its slot, and nothing is missing.

        Raises:
            HistoryGone: It was not handled, and the delivery says to stop.
        """
        try:
            await self._around.store.load(work.lease)
        except LeaseLost:
            self.lose_slot(work)
            return False
        pass_or_stop(self.declaration, where, after, first)
        return True

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
        self._taking.register_active()
        lane = self._lanes.lane(request.key, work)
        if lane.is_running:
            return False
        lane.is_running = True
        try:
            await self._around.store.answer(work.lease, request)
        except BaseException:
            lane.is_running = False
            self._lanes.go_on(lane)  # somebody may have passed it by meanwhile
            raise
        lane.is_running = False
        lane.held = max(lane.held, 1)  # the store says how many there are when the lane looks
        lane.is_due = lane.is_probe = True
        self._lanes.schedule(lane)
        return True

    def snapshot(self, work: SlotWork, units: Sequence[Unit]) -> Sequence[Progress]:
        """Return the progress of a slot as it is once `units`, all of this slot, are committed."""
        self._taking.register_active()
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
        self._taking.register_active()
        work.is_open = False
        self._feed.shut(work)
        work.left_none.set()
        self._probing.wake()

    def finished(self, run: Run, offset: Offset) -> None:
        """Note that a record is finished for good."""
        self._feed.finished(run, offset)

    def finished_all(self, run: Run, offsets: Sequence[Offset]) -> None:
        """The same for several records of one run."""
        self._feed.finished_all(run, offsets)

    def defer(self, waiting: Waiting) -> None:
        """Let a record be handled in its lane."""
        self._taking.defer(waiting)

    def submit(self, job: Job) -> None:
        """Let a worker run a job."""
        self._taking.submit(job)

    def call(self, branch: Branch, event: object, run: Run, index: int) -> Call:
        """Return the call of a handler for a record."""
        return self._taking.call(branch, event, run, index)

    async def invoke(
        self, me: Worker, branch: Branch, event: object, call: Call, work: SlotWork
    ) -> tuple[Tx[Any] | None, object]:
        """Call a handler in a lane, under its time limit. Raises as `Calls.invoke`."""
        return await self._calls.invoke(
            me, branch, [event], call if branch.handler.batching is None else BatchCall(lambda: [call]), work
        )

    def fill_slot(self, work: SlotWork) -> None:
        """Take nothing more of a slot, since the subscription holds as much as it may; what is held can be redriven."""
        if work.full_since_s is None:
            self._taking.register_active()
            work.full_since_s = self._around.clock.monotonic_s()
            self._feed.shut(work)
            work.left_none.set()

    @property
    def is_stopping(self) -> bool:
        """Nothing more is to be begun."""
        return self._is_stopping

    def is_closing(self, work: SlotWork) -> bool:
        """Tell whether nothing more of the slot is to be begun."""
        return self._is_stopping or not work.is_open or not work.is_ours or work.full_since_s is not None

    def _forget(self, work: SlotWork) -> None:
        if self._works.get(work.slot.number) is work:
            del self._works[work.slot.number]
            self._around.overlay.own(self.declaration.name, is_whole=False)
        self._lanes.forget(work)
        self._feed.forget(work)

    def _scheduled(self) -> None:
        """Called when a lane waits for a worker."""
        self._taking.start_one()

    def _arrived(self) -> None:
        """Called when there is something to take."""
        if self.is_paused:
            self._probing.arrived()
        else:
            self._taking.start()

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

    def _go_on(self) -> None:
        """Take up what waited for the end of a pause."""
        self._probing.resume()
        for lane in list(self._lanes.by_key.values()):
            if lane.pending or lane.is_due:
                self._lanes.schedule(lane)
        self._groups.wake()
        self._taking.start()

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
        for worker in self._taking.workers:
            if worker.task is task and task is not None and worker.attempt is not None:
                self.accuse(worker)
                return self._prefix
        return None
