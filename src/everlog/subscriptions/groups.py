"""Slots that are worked on group by group: batches for a handler that takes several events, and whatever follows an unclean takeover.

One group of a slot is in hand at a time, and the next one is taken when all of it is committed or held. A group that may kill the process
is stored as an attempt before it starts, and only one such group runs in the process at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast

from msgspec.structs import replace

from everlog.clock import Clock
from everlog.errors import HandlerKilled, LeaseLost, PoisonAt, TxRefused
from everlog.position import Offset, TopicPartition
from everlog.store import Attempt, Outcome
from everlog.subscriptions.call import BatchCall, Call
from everlog.subscriptions.caution import Caution
from everlog.subscriptions.committer import Pending
from everlog.subscriptions.declaration import Branch, SubscriptionDeclaration
from everlog.subscriptions.lane import Waiting
from everlog.subscriptions.lanes import conflict_pause_us
from everlog.subscriptions.parts import Job, Parts
from everlog.subscriptions.progress import SlotWork
from everlog.subscriptions.run import Run, Unreadable, lane_of
from everlog.subscriptions.worker import Worker


class Host(Protocol):
    """What runs the handlers."""

    def defer(self, waiting: Waiting) -> None:
        """Let a record be handled in its lane."""
        ...

    def submit(self, job: Job) -> None:
        """Let a worker run a job."""
        ...

    def call(self, branch: Branch, event: object, run: Run, index: int) -> Call:
        """Return the call of a handler for a record."""
        ...

    def finished(self, run: Run, offset: Offset) -> None:
        """Note that a record is finished for good."""
        ...

    def lose_slot(self, work: SlotWork) -> None:
        """Note that another process owns the slot."""
        ...

    def is_closing(self, work: SlotWork) -> bool:
        """Tell whether no more of the slot is to be begun."""
        ...

    @property
    def is_paused(self) -> bool:
        """The subscription is paused: one event is tried now and then."""
        ...

    async def probe(self) -> None:
        """Wait until the subscription goes on, or one event may be tried."""
        ...

    def succeeded(self, key: str) -> None:
        """Note that an event of a key was handled."""
        ...

    @property
    def is_listening(self) -> bool:
        """Successes count."""
        ...


class Groups:
    """The slots of one subscription that are worked on group by group.

    Args:
        declaration: Whose.
        host: Runs handlers.
        parts: What it is made of.
    """

    def __init__(self, declaration: SubscriptionDeclaration, host: Host, parts: Parts) -> None:
        self._batching = declaration.batching
        self._most = declaration.delivery.concurrency if self._batching is None else self._batching.most
        self._host = host
        self._calls = parts.calls
        self._feed = parts.feed
        self._lanes = parts.lanes
        self._holding = parts.holding
        self._units = parts.units
        self._committer = parts.around.committer
        self._store = parts.around.store
        self._careful = parts.around.careful
        self._clock: Clock = parts.around.clock
        self._loops: dict[SlotWork, asyncio.Task[None]] = {}
        self._changed = asyncio.Event()

    def open(self, work: SlotWork, heads: Mapping[TopicPartition, Offset] | None, attempt: Attempt | None) -> None:
        """Begin to work on a slot, if it is to be worked on group by group.

        Args:
            work: The slot, before anything of it is read.
            heads: Where the log ended when the slot was taken from an owner that did not give it back; ``None`` where it did.
            attempt: What was attempted and did not end.
        """
        caution: Caution | None = None
        if heads is not None:
            caution = Caution(work.partitions, heads, attempt, self._most)
            if caution.is_over:
                caution = None
        if caution is None and self._batching is None:
            return
        self._feed.divert(work)
        self._loops[work] = asyncio.create_task(self._work_on(work, caution))
        self._changed.set()

    async def run(self) -> None:
        """Pass on the error of a loop that ended with one, until cancelled."""
        while True:
            self._changed.clear()
            changed = asyncio.create_task(self._changed.wait())
            try:
                await asyncio.wait([changed, *self._loops.values()], return_when=asyncio.FIRST_COMPLETED)
            finally:
                changed.cancel()
            for work, loop in list(self._loops.items()):
                if loop.done():
                    del self._loops[work]
                    loop.result()

    async def end(self, work: SlotWork) -> None:
        """Wait until the group in hand is through; nothing more is taken, once the slot's inbox is closed."""
        loop = self._loops.get(work)
        if loop is not None:
            await asyncio.wait([loop])

    def wake(self) -> None:
        """Let every slot look again whether it may take something."""
        for work in self._loops:
            if work.inbox is not None:
                work.inbox.wake()

    def close(self) -> None:
        """End whatever is still at work."""
        for loop in self._loops.values():
            loop.cancel()

    # ---- one slot ----

    async def _work_on(self, work: SlotWork, caution: Caution | None) -> None:
        try:
            while (group := await self._gather(work, caution)) is not None:
                if caution is None:
                    await self._run(work, group)
                elif [caution.took(waiting) for waiting in group] == [True]:
                    await self._blame(work, group[0])
                elif group:
                    await self._run_carefully(work, group)
                if caution is not None and caution.is_over:
                    caution = None
                if caution is None and self._batching is None:
                    if not self._host.is_closing(work):
                        self._feed.undivert(work)
                    return
        except LeaseLost:
            self._host.lose_slot(work)

    async def _gather(self, work: SlotWork, caution: Caution | None) -> Sequence[Waiting] | None:
        """Wait for records and return what to run together; ``None`` at the end."""
        inbox = work.inbox
        assert inbox is not None
        while not self._host.is_closing(work):
            if caution is not None and caution.is_over:
                return []
            if not inbox.is_empty and self._host.is_paused:
                await self._host.probe()
                if self._host.is_closing(work):
                    break
            limit = caution.limit if caution is not None else self._most
            group = self._take(work, 1 if self._host.is_paused else limit)
            if group:
                if self._batching is not None and self._batching.wait_s and not self._host.is_paused:
                    await self._fill(work, group, limit)
                return group
            self._committer.touch(work, urgent=inbox.is_empty)  # what came to nothing
            if inbox.is_empty:
                await inbox.wait()
        return None

    async def _fill(self, work: SlotWork, group: list[Waiting], limit: int) -> None:
        """Wait for more, until the group is full or the time is over."""
        assert self._batching is not None
        assert work.inbox is not None
        until_s = self._clock.monotonic_s() + self._batching.wait_s
        while len(group) < limit and not self._host.is_closing(work):
            left_s = until_s - self._clock.monotonic_s()
            if left_s <= 0:
                return
            waits = [asyncio.ensure_future(work.inbox.wait()), asyncio.ensure_future(self._clock.sleep(left_s))]
            try:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for wait in waits:
                    wait.cancel()
            more = self._take(work, limit - len(group), like=group[0])
            if not more and not work.inbox.is_empty:  # what comes next is not for this group
                return
            group.extend(more)

    def _take(self, work: SlotWork, most: int, like: Waiting | None = None) -> list[Waiting]:
        """Take records that are run together: for a batch those of one handler. What has a lane goes there."""
        inbox = work.inbox
        assert inbox is not None
        group: list[Waiting] = []
        if self._batching is None:
            while len(group) < most and (waiting := inbox.take()) is not None:
                group.append(waiting)
            return group
        first = like
        lanes = self._lanes.by_key
        while len(group) < most and (waiting := inbox.take()) is not None:
            run = waiting.run
            if (
                isinstance(waiting.branch, Unreadable)
                or lane_of(run.chunk.keys[waiting.index], run.chunk, waiting.index) in lanes
            ):
                if not group and like is None:
                    return [waiting]
                inbox.give_back([waiting])
                break
            if first is not None and cast("Branch", first.branch).handler is not waiting.branch.handler:
                inbox.give_back([waiting])
                break
            first = first or waiting
            group.append(waiting)
        return group

    async def _blame(self, work: SlotWork, waiting: Waiting) -> None:
        """Block the key of the record that killed the slot's former owner, without a call of its handler."""
        if isinstance(waiting.branch, Branch):
            waiting = replace(waiting, error=HandlerKilled(waiting.branch.handler.name))
        await self._run_in_lanes(work, [waiting])
        if work.is_ours:
            await self._committer.drain(work)
            await self._store.attempt(work.lease, None)

    async def _run_carefully(self, work: SlotWork, group: Sequence[Waiting]) -> None:
        """Run a group under an attempt, alone in the process."""
        places = [(waiting.run.chunk.where, waiting.run.chunk.offset(waiting.index)) for waiting in group]
        async with self._careful:
            if self._host.is_closing(work):
                return
            await self._store.attempt(work.lease, Attempt(places))
            await self._run(work, group)
            if work.is_ours:
                await self._committer.drain(work)  # else what came to nothing would look as if it had not ended
                await self._store.attempt(work.lease, None)

    async def _run(self, work: SlotWork, group: Sequence[Waiting]) -> None:
        first = group[0]
        is_batch = (
            self._batching is not None and isinstance(first.branch, Branch) and self._lane_key(first) not in self._lanes.by_key
        )
        if not is_batch:
            await self._run_in_lanes(work, group)
            return
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        async def job(me: Worker) -> None:
            try:
                await self._run_batch(me, work, group)
            except BaseException as error:
                if not done.done():
                    done.set_exception(error if isinstance(error, Exception) else asyncio.CancelledError())
                raise
            if not done.done():
                done.set_result(None)

        self._host.submit(job)
        await done

    async def _run_in_lanes(self, work: SlotWork, group: Sequence[Waiting]) -> None:
        """Let each record run in its lane, and wait until all are finished, or the slot is given back."""
        if self._host.is_closing(work):  # since the group was taken: all of it is stored as unfinished
            return
        work.left = {(waiting.run.chunk.where, waiting.run.chunk.offset(waiting.index)) for waiting in group}
        work.left_none.clear()
        for waiting in group:
            self._host.defer(waiting)
        await work.left_none.wait()
        work.left = None

    # ---- batches ----

    async def _run_batch(self, me: Worker, work: SlotWork, group: Sequence[Waiting]) -> None:
        """Run a batch as one unit; one that fails is halved until the bad event is alone, whose key is then blocked."""
        is_probe = self._host.is_paused
        segments: list[tuple[Sequence[Waiting], Exception | None]] = [(group, None)]
        conflicts = 0
        while segments:
            if self._host.is_closing(work):  # what is left is stored as unfinished
                return
            if self._host.is_paused and not is_probe:
                assert work.inbox is not None
                work.inbox.give_back([waiting for segment, _ in reversed(segments) for waiting in segment])
                return
            segment, error = segments.pop()
            segment = [waiting for waiting in segment if not self._is_behind(waiting, work)]
            if not segment:
                continue
            if error is None:
                outcome, error = await self._try(me, work, segment)
                if outcome is Outcome.COMMITTED:
                    conflicts = 0
                    continue
                if outcome in (Outcome.CONFLICT, Outcome.DROPPED):
                    conflicts += 1
                    await self._clock.sleep(conflict_pause_us(conflicts) / 1e6)
                    segments.append((segment, None))
                    continue
                if error is None:
                    return
            if len(segment) == 1:
                await self._fail(segment[0], work, error)
            elif isinstance(error, PoisonAt) and 0 <= error.index < len(segment):
                at = error.index
                segments.append((segment[at + 1 :], None))
                segments.append(([segment[at]], error))
                segments.append((segment[:at], None))
            else:
                middle = len(segment) // 2
                segments.append((segment[middle:], None))
                segments.append((segment[:middle], None))

    async def _try(self, me: Worker, work: SlotWork, segment: Sequence[Waiting]) -> tuple[Outcome | None, Exception | None]:
        """Call the handler for a segment and commit what it did; returns the outcome, or why the handler failed."""
        branch = cast("Branch", segment[0].branch)
        calls = [self._host.call(cast("Branch", one.branch), one.event, one.run, one.index) for one in segment]
        call = BatchCall(calls)
        tx: Any = None
        try:
            tx, result = await self._calls.invoke(me, branch, [one.event for one in segment], call, work)
            if not work.is_ours:
                return None, None
            finishes = [(one.run.chunk.where, one.run.chunk.offset(one.index)) for one in segment]
            unit = self._units.make(work.slot, None, finishes, call, tx, result)
            if unit is None:
                outcome = Outcome.COMMITTED
            else:
                pending = Pending(unit, work, lambda pending, outcome: self._units.settled(pending.unit, outcome))
                (self._committer if tx is None or tx.exclusive is None else tx.exclusive).put(pending)
                outcome = await pending.outcome()
        except Exception as error:
            return None, error
        finally:
            if tx is not None:
                tx.abandon()
        if outcome is Outcome.FENCED:
            self._host.lose_slot(work)
            return None, None
        if outcome is Outcome.REFUSED:
            return None, TxRefused("an addition found no number in its row")
        if outcome is Outcome.COMMITTED:
            for one in segment:
                self._host.finished(one.run, one.run.chunk.offset(one.index))
                if self._host.is_listening:
                    self._host.succeeded(self._lane_key(one))
        return outcome, None

    def _is_behind(self, waiting: Waiting, work: SlotWork) -> bool:
        """Copy a record behind what its key holds by now; tells whether there was something."""
        lane = self._lanes.by_key.get(self._lane_key(waiting))
        if lane is None or lane.work is not work:
            return False
        self._host.defer(waiting)
        return True

    async def _fail(self, waiting: Waiting, work: SlotWork, error: Exception) -> None:
        """Block the key of an event that fails alone."""
        cause = error.__cause__ if isinstance(error, PoisonAt) else None
        lane = self._lanes.lane(self._lane_key(waiting), work)
        lane.is_running = True
        try:
            await self._holding.fail(lane, waiting, cause if isinstance(cause, Exception) else error)
        finally:
            lane.is_running = False
            if lane.pending or (lane.held and lane.is_due):
                self._lanes.schedule(lane)
            else:
                self._lanes.leave(lane)

    @staticmethod
    def _lane_key(waiting: Waiting) -> str:
        run = waiting.run
        return lane_of(run.chunk.keys[waiting.index], run.chunk, waiting.index)
