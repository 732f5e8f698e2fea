"""A run: the records of one chunk on their way to handlers, decoded as one piece where they are of one type."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from itertools import repeat
from typing import TYPE_CHECKING, Any, NamedTuple

from everlog.codec import Chunk
from everlog.errors import EventRefused
from everlog.position import Offset
from everlog.subscriptions.declaration import Branch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from everlog.subscriptions.progress import PartitionProgress, SlotWork


class Unreadable(NamedTuple):
    """A record that is for this subscription and that its code cannot read."""

    why: str


Item = tuple[int, str | None, Any, Branch | Unreadable]
"""Index in the chunk, key, event (``None`` where it is unreadable), and what to do with it."""


class Run:
    """Records of one chunk, taken one by one by whichever worker is active. Memory is held until all are finished."""

    __slots__ = (
        "_branches",
        "_count",
        "_indices",
        "_items",
        "branch",
        "chunk",
        "is_taken",
        "number",
        "open",
        "partition",
        "size",
        "work",
    )

    def __init__(self, chunk: Chunk, work: SlotWork, branches: Mapping[str, Branch]) -> None:
        self.chunk = chunk
        self.work = work
        self.partition: PartitionProgress = work.partitions[chunk.where]
        self.open = 0
        """Records taken and not finished, beside those in a handler now."""
        self.number = 0
        """Its place in the order in which runs were begun; set when it is."""
        self.is_taken = False
        """No record is left to take."""
        self.size = len(chunk.data)
        self._count = chunk.length
        self._indices = iter(range(chunk.start, chunk.length))
        self._branches = branches
        self._items: Iterator[Item] | None = None
        self.branch: Branch | None = None
        """What handles all its records, where they were decoded as one piece; known once `items` was asked for."""

    @property
    def items(self) -> Iterator[Item]:
        """The records that are left to take. Decoded when they are first asked for: what is read ahead waits as bytes."""
        if self._items is None:
            self._items = self._decode(self._branches)
        return self._items

    @property
    def taken(self) -> Offset | None:
        """The offset of the last record taken; ``None`` before the first."""
        left = operator.length_hint(self._indices)
        index = self._count - left - 1
        return self.chunk.offset(index) if index >= self.chunk.start else None

    def _decode(self, branches: Mapping[str, Branch]) -> Iterator[Item]:
        chunk = self.chunk
        if chunk.type_of is None and chunk.first > self.partition.resume_through:
            branch = branches.get(chunk.types[0][0])
            if branch is not None:
                try:
                    events = branch.contract.decode_list(chunk.data)
                except EventRefused:  # find the broken ones record by record
                    return self._one_by_one(branches)
                self.branch = branch
                if chunk.start:
                    del events[: chunk.start]
                    return zip(self._indices, chunk.keys[chunk.start :], events, repeat(branch), strict=False)
                return zip(self._indices, chunk.keys, events, repeat(branch), strict=False)
        return self._one_by_one(branches)

    def _one_by_one(self, branches: Mapping[str, Branch]) -> Iterator[Item]:
        chunk = self.chunk
        choices = [choose(name, branches) for name, _ in chunk.types]
        partition = self.partition
        for index in self._indices:
            offset = chunk.offset(index)
            choice = choices[chunk.type_of[index] if chunk.type_of is not None else 0]
            is_wanted = choice is not None and partition.wants(offset)
            partition.resuming.discard(offset)  # whoever takes it answers for it as soon as anybody can look
            if choice is None or not is_wanted:
                continue
            if isinstance(choice, Unreadable):
                yield index, chunk.keys[index], None, choice
                continue
            try:
                event = choice.contract.decode(chunk.slice(index))
            except EventRefused as error:
                yield index, chunk.keys[index], None, Unreadable(str(error))
            else:
                yield index, chunk.keys[index], event, choice


def choose(name: str, branches: Mapping[str, Branch]) -> Branch | Unreadable | None:
    """Return how a type is handled; ``None`` for one that is none of the subscription's."""
    branch = branches.get(name)
    if branch is not None:
        return branch
    base = name.rpartition("/")[0]
    known = [other for other in branches if other.rpartition("/")[0] == base]
    return (
        Unreadable(f"the code handles {', '.join(sorted(known))} and not {name}: deploy code that handles it") if known else None
    )


def lane_of(key: str | None, chunk: Chunk, index: int) -> str:
    """Return the lane of a record: its key, or, where it has none, its own place."""
    return key if key is not None else f"@{chunk.where.topic}/{chunk.where.partition}/{chunk.offset(index)}"
