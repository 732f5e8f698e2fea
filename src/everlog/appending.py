"""What a group of appends becomes: an answer for each record, and the records of each partition on their way into chunks.

The same in every log that numbers and stores chunks. Nothing here does I/O: what a log has stored is asked of it, and comes from a dict where it
was looked up before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import count as count_from
from typing import NamedTuple, cast

from everlog.admission import Numbering, Once, Part, Ruling, parts_of, rule, runs_of
from everlog.codec import MAX_CHUNK_BYTES, MAX_CHUNK_RECORDS, ProducerRun, split
from everlog.errors import EverlogError
from everlog.log import Appended, ProducerBatch, Status, TopicSpec
from everlog.position import Offset
from everlog.record import MAX_DATA_BYTES, NewRecord

Place = tuple[int, int]
"""A topic by its number, and a partition."""


class Append(NamedTuple):
    """One call of `append`."""

    topic: str
    records: Sequence[NewRecord]
    producer: ProducerBatch | None

    @property
    def size(self) -> int:
        """About how many bytes it writes."""
        return sum([len(record.data) for record in self.records]) + 100 * len(self.records)


class Piece(NamedTuple):
    """A chunk to be written."""

    first: int
    last: int
    records: Sequence[NewRecord]
    runs: Sequence[ProducerRun]


class Tail:
    """A partition's records that the group has added."""

    __slots__ = ("base", "keeps_newest", "records", "runs")

    def __init__(self, base: int, *, keeps_newest: bool) -> None:
        self.base = base
        """The offset of the first."""
        self.keeps_newest = keeps_newest
        self.records: list[NewRecord] = []
        self.runs: list[ProducerRun] = []

    @property
    def next_offset(self) -> int:
        """The offset behind the last."""
        return self.base + len(self.records)

    def newest(self) -> dict[str, int]:
        """Return the offset of the newest record of each key."""
        return {record.key: offset for offset, record in enumerate(self.records, self.base) if record.key is not None}

    def pieces(self) -> Iterator[Piece]:
        """Yield the chunks that it becomes, with the producers' runs cut to fit."""
        sizes = [len(record.data) for record in self.records]
        if len(sizes) <= MAX_CHUNK_RECORDS and sum(sizes) <= MAX_CHUNK_BYTES:
            yield Piece(self.base, self.next_offset - 1, self.records, self.runs)
            return
        for start, stop in split(sizes):
            yield Piece(self.base + start, self.base + stop - 1, self.records[start:stop], list(_cut(self.runs, start, stop)))


class Appending:
    """One group.

    Args:
        numbering: Returns what was seen of a producer in a topic's partition; what is taken changes it.
        end: Returns the next offset of a partition.
    """

    def __init__(self, numbering: Callable[[str, int, int], Numbering], end: Callable[[Place], int]) -> None:
        self._numbering = numbering
        self._end = end
        self.tails: dict[Place, Tail] = {}
        self.touched: dict[tuple[str, int, int], bool] = {}
        """Producers that sent something, by topic and partition, and whether they gave a name."""

    def store(self, job: Append, topic: int, spec: TopicSpec) -> Appended:
        """Rule an append, and take what of it is to be stored."""
        name = job.producer.name if job.producer else ""
        ruled: list[tuple[Part, Numbering | None, Ruling]] = []
        for part in parts_of(spec, job.records, job.producer):  # all are ruled before one is taken
            numbering = self._numbering(name, topic, part.partition) if name else None
            ruled.append(
                (part, numbering, rule(part, numbering, topic=job.topic, producer=name, max_record_bytes=MAX_DATA_BYTES))
            )
        count = len(job.records)
        is_whole = all([len(ruling.store) == len(part.records) for part, _, ruling in ruled])
        statuses = [Status.STORED if is_whole else Status.DUPLICATE] * count
        firsts: dict[int, int] = {}
        offsets: list[Offset | None] = [None] * count
        errors: list[EverlogError | None] = []
        for part, numbering, ruling in ruled:
            if ruling.error is not None:
                errors = errors or [None] * count
                for index in part.indices:
                    statuses[index], errors[index] = ruling.status, ruling.error
            if not ruling.store:
                continue
            if numbering is not None and job.producer is not None:
                numbering.take(part, ruling)
                self.touched[name, topic, part.partition] = job.producer.named
            place = (topic, part.partition)
            tail = self.tails.get(place)
            if tail is None:
                tail = self.tails[place] = Tail(self._end(place), keeps_newest=spec.keep_newest)
            offset = tail.next_offset
            tail.runs.extend(runs_of(part, ruling.store, name))
            if is_whole:
                tail.records.extend(part.records)
                firsts[part.partition] = offset
                continue
            for at in ruling.store:
                tail.records.append(part.records[at])
                index = part.indices[at]
                statuses[index], offsets[index] = Status.STORED, Offset(offset)
                offset += 1
        if is_whole:  # as nearly always: one pass for all
            nexts = {partition: count_from(first) for partition, first in firsts.items()}
            offsets = [cast("Offset", next(nexts[record.partition])) for record in job.records]
        return Appended(statuses, offsets, errors)

    def known(self, job: Append, topic: int, spec: TopicSpec, once: Once) -> Appended:
        """Answer with what was stored under the idempotency key; the number of the record is used all the same."""
        if job.producer is not None:
            name = job.producer.name
            (part,) = parts_of(spec, job.records, job.producer)
            numbering = self._numbering(name, topic, part.partition)
            ruling = rule(part, numbering, topic=job.topic, producer=name, max_record_bytes=MAX_DATA_BYTES)
            numbering.take(part, ruling)
            if ruling.store:
                self.touched[name, topic, part.partition] = job.producer.named
        return Appended([Status.DUPLICATE], [once.offset])


def _cut(runs: Sequence[ProducerRun], start: int, stop: int) -> Iterator[ProducerRun]:
    """Yield the parts of `runs` that cover the places from `start` up to, but without, `stop`."""
    at = 0
    for name, first, count in runs:
        low, high = max(at, start), min(at + count, stop)
        if low < high:
            yield ProducerRun(name, first + low - at if name else -1, high - low)
        at += count
