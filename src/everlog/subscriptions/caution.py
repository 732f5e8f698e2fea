"""Caution after an unclean takeover: which records may have killed the slot's former owner, and how many to try at once.

nothing attempted     groups of four times `concurrency`, or batches: each is stored as an attempt before it starts
n attempted, n > 1    the process died with these: groups of n / 2, until they are through
1 attempted           that one did it: its key is blocked, and it is not tried now
"""

from __future__ import annotations

from collections.abc import Mapping

from everlog.position import Offset, TopicPartition
from everlog.store import Attempt
from everlog.subscriptions.lane import Waiting
from everlog.subscriptions.progress import READ_AHEAD_RECORDS, PartitionProgress


class Caution:
    """How one slot is worked on until all that its former owner can have had in hand is through.

    Args:
        partitions: Where its partitions stand.
        heads: Where each of them ended when the slot was taken: what came later killed nobody yet.
        attempt: What was attempted and did not end.
        most: The size of a group without suspects.
    """

    def __init__(
        self,
        partitions: Mapping[TopicPartition, PartitionProgress],
        heads: Mapping[TopicPartition, Offset],
        attempt: Attempt | None,
        most: int,
    ) -> None:
        self._partitions = partitions
        self._heads = heads
        self._most = most
        self._attempted = attempt.records if attempt is not None else ()
        suspects = [
            (where, offset) for where, offset in self._attempted if where in partitions and partitions[where].wants(offset)
        ]
        self._suspects = set(suspects)
        self._limit = max(1, len(suspects) // 2)
        self.blamed = suspects[0] if len(self._attempted) == 1 and suspects else None
        """The record that killed the former owner."""
        self._taken: dict[TopicPartition, int] = {}

    @property
    def limit(self) -> int:
        """How many records to try at once now."""
        return min(self._limit, self._most) if self._suspects else self._most

    def took(self, waiting: Waiting) -> bool:
        """Note that a record is about to be tried; tells whether it is the one to blame."""
        where = waiting.run.chunk.where
        place = where, waiting.run.chunk.offset(waiting.index)
        self._suspects.discard(place)
        self._taken[where] = self._taken.get(where, 0) + 1
        return place == self.blamed

    def left(self) -> Attempt:
        """Return what whoever takes the slot next should know: the suspects as they were, as long as one of them is not finished.

        All of them, so that the last one does not look as if it had been tried alone.
        """
        return Attempt(self._attempted if any(self._is_left(where, offset) for where, offset in self._attempted) else ())

    @property
    def is_over(self) -> bool:
        """Nothing is left that the former owner can have had in hand."""
        return not any(self._comes(where, offset) for where, offset in self._suspects) and all(
            self._is_through(where, partition) for where, partition in self._partitions.items()
        )

    def _comes(self, where: TopicPartition, offset: Offset) -> bool:
        """Tell whether a record will be taken: the code may not know its type any more, or it was deleted meanwhile."""
        partition = self._partitions[where]
        return offset > partition.taken or offset in partition.resuming

    def _is_left(self, where: TopicPartition, offset: Offset) -> bool:
        return where in self._partitions and (self._comes(where, offset) or offset in self._partitions[where].open)

    def _is_through(self, where: TopicPartition, partition: PartitionProgress) -> bool:
        if self._taken.get(where, 0) >= READ_AHEAD_RECORDS:
            return True
        if partition.resuming and partition.taken <= partition.resume_through:  # what a former owner left behind comes first
            return False
        return partition.taken >= self._heads.get(where, partition.taken)
