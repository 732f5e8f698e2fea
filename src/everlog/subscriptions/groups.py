"""Slots that are worked on group by group: batches for a handler that takes several events, and whatever follows an unclean takeover.

One group of a slot is in hand at a time, and the next one is taken when all of it is committed or held. A group that may kill the process
is stored as an attempt before it starts, and only one such group runs in the process at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Final, Protocol, cast

from msgspec.structs import replace

from everlog.clock import Clock
from everlog.errors import HandlerKilled, LeaseLost
from everlog.position import Offset, TopicPartition
from everlog.store import Attempt
from everlog.subscriptions import batches
from everlog.subscriptions.batches import Batches
from everlog.subscriptions.careful import note
from everlog.subscriptions.caution import Caution
from everlog.subscriptions.declaration import Branch, SubscriptionDeclaration
from everlog.subscriptions.handler import Batching
from everlog.subscriptions.lane import Waiting
from everlog.subscriptions.parts import Job, Parts
from everlog.subscriptions.progress import SlotWork
from everlog.subscriptions.run import Unreadable
from everlog.subscriptions.worker import Worker

CAREFUL_TIMES: Final = 4
"""How many times `concurrency` is tried at once after an unclean takeover. Each group costs four commits: with smaller ones, a service that is killed
again and again falls behind for good; with larger ones a killer takes more deaths to be found."""


class Host(batches.Host, Protocol):
    """What runs the handlers."""

    def submit(self, job: Job) -> None:
        """Let a worker run a job."""
        ...

    async def probe(self) -> None:
        """Wait until the subscription goes on, or one event may be tried."""
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
        sizes = [branch.handler.batching.most for branch in declaration.branches.values() if branch.handler.batching is not None]
        self._most = max(sizes, default=declaration.delivery.concurrency)
        self._host = host
        self._batches = Batches(host, parts)
        self._feed = parts.feed
        self._lanes = parts.lanes
        self._holding = parts.holding
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
            most = self._most if self._batching is not None else self._most * CAREFUL_TIMES
            caution = Caution(work.partitions, heads, attempt, most)
            if caution.is_over and (attempt is None or attempt.held is not None):
                caution = None
        held = attempt.held if attempt is not None else None
        if caution is None and held is None and self._batching is None:
            return
        self._feed.divert(work)
        if (
            caution is not None or held is not None
        ):  # what is held and may kill is tried behind it: a slot has one note of an attempt
            self._careful.reserve()
        self._loops[work] = asyncio.create_task(self._work_on(work, caution, held))
        self._changed.set()

    async def run(self) -> None:
        """Pass on the error of a loop that ended with one, until cancelled."""
        try:
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
        finally:
            self.close()

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

    async def _work_on(self, work: SlotWork, caution: Caution | None, held: tuple[str, int, int] | None) -> None:
        try:
            if caution is not None or held is not None:
                try:
                    if held is not None:  # before the note of it gives way to that of a group
                        await self._holding.blame(work, *held)
                    if caution is not None:
                        await self._work_with_caution(work, caution)
                finally:
                    self._careful.leave()
            if self._batching is None:
                if not self._host.is_closing(work):
                    self._feed.undivert(work)
                return
            while (group := await self._gather(work, None)) is not None:
                await self._run(work, group)
        except LeaseLost:
            self._host.lose_slot(work)

    async def _work_with_caution(self, work: SlotWork, caution: Caution) -> None:
        """Work on a slot until all that its former owner can have had in hand is through."""
        while not self._is_over(work, caution):
            group = await self._gather(work, caution)
            if group is None:
                break
            if [caution.took(waiting) for waiting in group] == [True]:
                await self._blame(work, group[0], caution)
            elif group:
                await self._run_carefully(work, group, caution)
        if work.is_ours:  # where it is given back first, whoever is next goes on
            await note(self._store, self._clock, work.lease, caution.left() if self._host.is_closing(work) else None)

    @staticmethod
    def _is_over(work: SlotWork, caution: Caution) -> bool:
        assert work.inbox is not None
        return caution.is_over and not work.inbox.has_returned

    async def _gather(self, work: SlotWork, caution: Caution | None) -> Sequence[Waiting] | None:
        """Wait for records and return what to run together; ``None`` at the end."""
        inbox = work.inbox
        assert inbox is not None
        while not self._host.is_closing(work):
            if caution is not None and self._is_over(work, caution):
                return []
            if not inbox.is_empty and self._host.is_paused:
                await self._host.probe()
                if self._host.is_closing(work):
                    break
            limit = caution.limit if caution is not None else self._most
            group = self._take(work, 1 if self._host.is_paused else limit)
            if group:
                batching = self._batching_of(group[0])
                if batching is not None and batching.wait_s and not self._host.is_paused:
                    await self._fill(work, group, min(limit, batching.most), batching.wait_s)
                return group
            self._committer.touch(work, urgent=inbox.is_empty)  # what came to nothing
            if inbox.is_empty and not (caution is not None and self._is_over(work, caution)):
                await inbox.wait()
            else:
                await asyncio.sleep(0)
                await self._committer.room()
        return None

    async def _fill(self, work: SlotWork, group: list[Waiting], limit: int, wait_s: float) -> None:
        """Wait for more, until the batch is full or the time is over."""
        assert work.inbox is not None
        until_s = self._clock.monotonic_s() + wait_s
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
        """Take records that are run together: for a batch those of one handler. What has a lane goes there.

        A record of a blocked key is copied behind it at once, so that it neither ends the batch nor uses up a probe.
        """
        inbox = work.inbox
        assert inbox is not None
        group: list[Waiting] = []
        if self._batching is None:
            while len(group) < most and (waiting := inbox.take()) is not None:
                group.append(waiting)
            return group
        first = like
        behind = 0
        while len(group) < most and behind < self._most:
            if first is not None and not self._lanes.by_key:  # as nearly always: no key is looked at
                alike = inbox.take_alike(most - len(group))
                if alike and cast("Branch", alike[0].branch).handler is not cast("Branch", first.branch).handler:
                    inbox.give_back(alike)
                    break
                group.extend(alike)
                if len(group) == most:
                    break
            if (waiting := inbox.take()) is None:
                break
            lane = self._lanes.by_key.get(waiting.lane_key)
            if lane is not None and lane.held and not lane.pending:
                self._host.defer(waiting)
                behind += 1
                continue
            if lane is not None or isinstance(waiting.branch, Unreadable):
                if not group and like is None:
                    return [waiting]
                inbox.give_back([waiting])
                break
            if first is not None and cast("Branch", first.branch).handler is not waiting.branch.handler:
                inbox.give_back([waiting])
                break
            first = first or waiting
            batching = waiting.branch.handler.batching
            most = min(most, batching.most) if batching is not None else most
            group.append(waiting)
        return group

    def _batching_of(self, waiting: Waiting) -> Batching | None:
        """Return how a record's batch is put together; ``None`` where the record goes to its lane."""
        if not isinstance(waiting.branch, Branch) or waiting.lane_key in self._lanes.by_key:
            return None
        return waiting.branch.handler.batching

    async def _blame(self, work: SlotWork, waiting: Waiting, caution: Caution) -> None:
        """Block the key of the record that killed the slot's former owner, without a call of its handler."""
        if isinstance(waiting.branch, Branch):
            waiting = replace(waiting, error=HandlerKilled(waiting.branch.handler.name))
        await self._run_in_lanes(work, [waiting])
        await self._end_attempt(work, caution)

    async def _run_carefully(self, work: SlotWork, group: Sequence[Waiting], caution: Caution) -> None:
        """Run a group under an attempt, alone in the process."""
        places = [(waiting.run.chunk.where, waiting.run.chunk.offset(waiting.index)) for waiting in group]
        async with self._careful:
            if self._host.is_closing(work):
                return
            await note(self._store, self._clock, work.lease, Attempt(places))
            await self._run(work, group)
            await self._end_attempt(work, caution)

    async def _end_attempt(self, work: SlotWork, caution: Caution) -> None:
        """Store that the process lives on behind a group: what is suspected now is what was not tried yet."""
        if work.is_ours:
            await self._committer.drain(work)  # else what came to nothing would look as if it had not ended
            await note(self._store, self._clock, work.lease, caution.left())

    async def _run(self, work: SlotWork, group: Sequence[Waiting]) -> None:
        if self._batching_of(group[0]) is None:
            await self._run_in_lanes(work, group)
            return
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        async def job(me: Worker) -> None:
            try:
                await self._batches.run(me, work, group)
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
