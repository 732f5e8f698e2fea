"""How far the partitions of a slot are handled, kept in memory between two commits."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Final

from everlog.codec import Chunk
from everlog.position import Offset, TopicPartition
from everlog.store import Lease, Muted, Progress, Slot, SlotState
from everlog.subscriptions.inbox import Inbox
from everlog.subscriptions.run import Run

READ_AHEAD_RECORDS: Final = 10_000
"""Most records of a partition between the oldest unfinished one and the newest taken."""


class PartitionProgress:
    """One partition: everything up to what was taken is finished, but for what is `open`."""

    def __init__(self, stored: Progress, muted: Muted | None = None) -> None:
        self.where = stored.where
        self.muted = muted
        """What a replay does not publish again; ``None`` where none is under way."""
        self.through = stored.through
        """The end of the last run that was taken whole."""
        self.resume_through = stored.through
        self.resuming: set[Offset] = set(stored.unfinished)
        """Offsets at or before `resume_through` that a former owner left unfinished, and that are not read again yet."""
        self.open: dict[Offset, Run] = {}
        """Taken and not finished: in a suspended handler, waiting in a lane, or in a unit that is not committed."""
        self.queued = 0
        """Runs that were read and not taken whole."""
        self.run: Run | None = None
        """The run that is being taken now."""
        self.waiting: deque[Run] = deque()
        """Runs that wait because the read-ahead is full; the reader reads no more of the partition meanwhile."""
        self._ahead: deque[Run] = deque()
        self._read = self.start
        """The last offset that was read."""
        self._gap: Offset | None = None
        """Up to here the log was deleted before it was read; what was read before that is still to take."""

    def read(self, chunk: Chunk) -> None:
        """Note that a chunk was read, which is to be taken.

        What was left unfinished in a hole before it will never come: newer records of its keys have replaced it.
        """
        self.queued += 1
        if self.resuming and chunk.first > self._read + 1:
            self.resuming = {offset for offset in self.resuming if not self._read < offset < chunk.first}
        self._read = max(self._read, chunk.last)

    def is_lost(self, after: Offset, first: Offset) -> bool:
        """Tell whether anything is lost when the log begins behind `first`, to a reader that stands at `after`."""
        return first > max(after, self.resume_through) or any(offset <= first for offset in self.resuming)

    def pass_gap(self, first: Offset) -> None:
        """Go on behind `first`, once all that was read before is taken: what lies between is gone."""
        self.resuming = {offset for offset in self.resuming if offset > first}
        self._gap = first if self._gap is None else max(self._gap, first)
        self._close_gap()

    def _close_gap(self) -> None:
        if self._gap is not None and not self.queued:
            self.through = max(self.through, self._gap)
            self.resume_through = max(self.resume_through, self._gap)
            self._gap = None

    @property
    def start(self) -> Offset:
        """Where a reader has to begin: before the first unfinished record."""
        return min([Offset(offset - 1) for offset in self.resuming], default=self.through)

    def wants(self, offset: Offset) -> bool:
        """Tell whether a record is still to be handled, when it is read again after a takeover."""
        return offset > self.resume_through or offset in self.resuming

    def begin(self, run: Run) -> None:
        """Note that the records of a run are taken from now on."""
        self.run = run
        self._drop_finished()
        self._ahead.append(run)

    def end(self, run: Run) -> None:
        """Note that every record of it is taken."""
        self.through = run.chunk.last
        self.run = None
        self.queued -= 1
        self._close_gap()

    @property
    def taken(self) -> Offset:
        """The last offset that was looked at."""
        taken = self.run.taken if self.run is not None else None
        return self.through if taken is None else max(self.through, taken)

    @property
    def is_full(self) -> bool:
        """So many records were taken since the oldest unfinished one that no more should be."""
        self._drop_finished()
        return sum([len(run.chunk) for run in self._ahead]) >= READ_AHEAD_RECORDS

    def _drop_finished(self) -> None:
        while self._ahead and self._ahead[0].is_taken and not self._ahead[0].open:
            self._ahead.popleft()

    def take(self, offset: Offset, run: Run) -> None:
        """Note that a record is taken and not finished."""
        if offset not in self.open:
            self.open[offset] = run
            run.open += 1

    def take_all(self, offsets: Sequence[Offset], run: Run) -> None:
        """Note that records of a run are taken, for the first time, and not finished."""
        before = len(self.open)
        self.open.update(dict.fromkeys(offsets, run))
        run.open += len(self.open) - before

    def done(self, offset: Offset) -> None:
        """Note that a record is finished for good."""
        run = self.open.pop(offset, None)
        if run is not None:
            run.open -= 1

    def done_all(self, offsets: Sequence[Offset], run: Run) -> None:
        """Note that records of a run are finished for good."""
        before = len(self.open)
        for offset in offsets:
            self.open.pop(offset, None)
        run.open -= before - len(self.open)

    def snapshot(self, finishing: set[Offset]) -> Progress:
        """Return the progress as it is once the units that finish `finishing` are committed."""
        unfinished = {*self.open, *self.resuming} - finishing
        return Progress(self.where, max(self.taken, self.resume_through), sorted(unfinished))


class SlotWork:
    """A slot that this process owns: its lease, and where its partitions stand."""

    def __init__(self, lease: Lease, state: SlotState) -> None:
        self.lease = lease
        self.slot: Slot = lease.slot
        muted = {one.where: one for one in state.muted}
        self.partitions: Mapping[TopicPartition, PartitionProgress] = {
            one.where: PartitionProgress(one, muted.get(one.where)) for one in state.progress
        }
        self.is_ours = True
        """The lease was not lost."""
        self.is_open = True
        """New records are taken; cleared to give the slot back, or by a policy that stops it."""
        self.inbox: Inbox | None = None
        """Where its runs go while it is worked on group by group; ``None`` where whoever is active takes them."""
        self.left: set[tuple[TopicPartition, Offset]] | None = None
        """What is not finished of the group that is run now; ``None`` while none is."""
        self.left_none = asyncio.Event()
        """Set once nothing of it is left."""
        self.full_since_s: float | None = None
        """Since when it takes nothing because the subscription holds as much as it may, as monotonic time."""

    def muted(self, where: TopicPartition) -> Muted | None:
        """Return what a replay does not publish again of a partition; ``None`` where none is under way."""
        partition = self.partitions.get(where)
        return None if partition is None else partition.muted

    def done(self, where: TopicPartition, offset: Offset) -> None:
        """Note that a record of the group that is run now is finished."""
        if self.left is not None:
            self.left.discard((where, offset))
            if not self.left:
                self.left_none.set()
