"""The feed: reads chunks ahead of the handlers, within bounds, and lends them out as runs, one at a time."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

from everlog.codec import Batch
from everlog.errors import UNREADABLE, RecordsGone
from everlog.log import Reader
from everlog.position import Offset, TopicPartition
from everlog.subscriptions.declaration import Branch
from everlog.subscriptions.inbox import Inbox
from everlog.subscriptions.progress import SlotWork
from everlog.subscriptions.run import Run

READ_AHEAD_BYTES: Final = 16 << 20
"""Most bytes of records that a process has read and not finished."""

_UNREADABLE_PAUSE_S: Final = 1.0

_QUEUED_BYTES: Final = 2 << 20
"""So many bytes wait at most to be taken: enough for the next two reads, and little memory."""


_logger: Final = logging.getLogger("everlog")


class Feed:
    """What one subscription has read and not finished.

    Args:
        reader: Reads the partitions of the slots that are open; closed by `aclose`.
        branches: What is handled.
        arrived: Called when there is something to take.
        lost: Called for a slot, a partition, where it stood, and where it goes on, when retention has deleted what was not handled here; tells
            whether the slot is still ours, and may raise.
        changed: Called when a slot's progress has changed without a record.
        read_ahead_bytes: Most bytes of records read and not finished.
    """

    def __init__(
        self,
        reader: Reader,
        branches: Mapping[str, Branch],
        arrived: Callable[[], None],
        *,
        read_ahead_bytes: int,
        lost: Callable[[SlotWork, TopicPartition, Offset, Offset], Awaitable[bool]],
        changed: Callable[[SlotWork], None],
    ) -> None:
        self._reader = reader
        self._branches = branches
        self._arrived = arrived
        self._lost = lost
        self._changed = changed
        self._read_ahead_bytes = read_ahead_bytes
        self._by_partition: dict[TopicPartition, SlotWork] = {}
        self._runs: deque[Run] = deque()
        self._live: set[Run] = set()  # lent out, and not finished
        self._begun = 0
        self._room = asyncio.Event()
        self.current: Run | None = None
        """The run that records are taken from; ``None`` between two."""

    @property
    def is_empty(self) -> bool:
        """There is nothing to take."""
        return self.current is None and not self._runs

    @property
    def is_last(self) -> bool:
        """Nothing is read beyond the current run."""
        return not self._runs

    def open(self, work: SlotWork) -> None:
        """Read the partitions of a slot."""
        for where in work.partitions:
            self._by_partition[where] = work
        self._reader.assign({where: partition.start for where, partition in work.partitions.items()})

    def shut(self, work: SlotWork) -> None:
        """Read them no more, and lend out none of their records."""
        self._reader.revoke(list(work.partitions))
        for where in work.partitions:
            self._by_partition.pop(where, None)
        self._runs = deque(run for run in self._runs if run.work is not work)
        if self.current is not None and self.current.work is work:
            self.current = None
        if work.inbox is not None:
            work.inbox.close()
        self._room.set()

    def forget(self, work: SlotWork) -> None:
        """Count what was lent out of a slot no more."""
        self._live = {run for run in self._live if run.work is not work}
        self._room.set()

    async def run(self) -> None:
        """Read as long as there is room, until cancelled."""
        while True:
            while not self._has_room():
                self._room.clear()
                await self._room.wait()
            try:
                batch = await self._reader.next()
            except RecordsGone as gone:
                await self._pass_gap(gone)
            except UNREADABLE as error:
                _logger.error("%s; reading again in %g s", error, _UNREADABLE_PAUSE_S)
                await asyncio.sleep(_UNREADABLE_PAUSE_S)
            else:
                self._accept(batch)
            await asyncio.sleep(0)

    async def _pass_gap(self, gone: RecordsGone) -> None:
        """Go on behind what retention has deleted before it was read.

        Raises:
            HistoryGone: It was not handled, and the delivery says to stop.
        """
        where, after, first = TopicPartition(gone.topic, gone.partition), Offset(gone.after), Offset(gone.first)
        self._reader.revoke([where])  # whatever follows: the others go on
        work = self._by_partition.get(where)
        if work is None:
            return
        partition = work.partitions[where]
        if partition.is_lost(after, first) and not await self._lost(work, where, after, first):
            return
        if self._by_partition.get(where) is not work:
            return
        partition.pass_gap(first)
        self._reader.assign({where: first})
        self._changed(work)

    def _accept(self, batch: Batch) -> None:
        for chunk in batch.chunks:
            work = self._by_partition.get(chunk.where)
            if work is not None and len(chunk):
                run = Run(chunk, work, self._branches)
                partition = run.partition
                partition.read(chunk)
                if work.inbox is not None:
                    work.inbox.put(run)
                else:
                    (partition.waiting or self._runs).append(run)
        self._arrived()

    def _has_room(self) -> bool:
        self._live = {run for run in self._live if not run.is_taken or run.open}
        queued = sum([run.size for run in self._runs])
        queued += sum({work: work.inbox.size for work in self._by_partition.values() if work.inbox is not None}.values())
        if queued >= _QUEUED_BYTES:
            return False
        return queued + sum([run.size for run in self._live]) < self._read_ahead_bytes

    def next(self) -> Run | None:
        """Return the run to take from; ``None`` where there is none.

        The runs of a partition whose read-ahead is full wait, and so does its reading: the others go on.
        """
        while self.current is None and self._runs:
            run = self._runs.popleft()
            partition = run.partition
            if partition.is_full:
                self._reader.revoke([partition.where])
                partition.waiting.extend([run, *(one for one in self._runs if one.partition is partition)])
                self._runs = deque(one for one in self._runs if one.partition is not partition)
                continue
            if not run.number:  # else an inbox has begun it
                self._begin(run)
            self.current = run
        return self.current

    def _begin(self, run: Run) -> None:
        self._begun += 1
        run.number = self._begun
        run.partition.begin(run)
        self._live.add(run)

    def divert(self, work: SlotWork) -> None:
        """Give what is read of a slot to an inbox of its own from now on."""
        work.inbox = Inbox(self._begin, self.end)

    def undivert(self, work: SlotWork) -> None:
        """Give what is read of a slot, and what its inbox still holds, to whoever is active."""
        assert work.inbox is not None
        self._runs.extendleft(reversed(work.inbox.close()))
        work.inbox = None
        self._arrived()

    def end(self, run: Run) -> None:
        """Note that every record of a run is taken."""
        run.is_taken = True
        run.partition.end(run)
        if self.current is run:
            self.current = None
        self._room.set()

    def finished(self, run: Run, offset: Offset) -> None:
        """Note that a record is finished for good, and let what waited for that go on."""
        run.partition.done(offset)
        run.work.done(run.partition.where, offset)
        self._go_on(run)

    def finished_all(self, run: Run, offsets: Sequence[Offset]) -> None:
        """The same for several records of one run."""
        partition = run.partition
        partition.done_all(offsets, run)
        if run.work.left is not None:
            for offset in offsets:
                run.work.done(partition.where, offset)
        self._go_on(run)

    def _go_on(self, run: Run) -> None:
        """Let what waited for a record of a run go on."""
        partition = run.partition
        if partition.waiting and not partition.is_full and run.work.is_open:
            last = partition.waiting[-1].chunk.last
            self._runs.extendleft(reversed(partition.waiting))
            partition.waiting.clear()
            self._reader.assign({partition.where: last})
            self._arrived()
        if not run.open and run.is_taken:
            self._room.set()

    def close(self) -> None:
        """Let go of the reader."""
        self._reader.close()
