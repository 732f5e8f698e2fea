"""What a log answers to an append before it stores anything: the same rules in every log that numbers.

An append is split by partition; each part is admitted, refused or unknown as a whole. Nothing here does I/O, so that a log
can decide inside its transaction.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from itertools import groupby
from typing import Final

import msgspec

from everlog.codec import ProducerRun
from everlog.dedupe import Seen
from everlog.errors import EventTooLarge, EverlogError, IdempotencyKeyReused, LogError, SequenceReused
from everlog.log import DEDUPE_RANGE, ProducerBatch, Status, TopicSpec
from everlog.position import Offset
from everlog.record import NewRecord

_encode: Final = msgspec.msgpack.Encoder().encode


class Part(msgspec.Struct):
    """The records of one append that go to one partition.

    Attributes:
        partition: Where they go.
        indices: Where each stands in the append.
        records: They themselves, in the order given.
        first: The number of the first of them; -1 without a producer.
    """

    partition: int
    indices: list[int]
    records: list[NewRecord]
    first: int


class Ruling(msgspec.Struct, frozen=True):
    """What becomes of a part: the indices (into `part.records`) to store, or why there are none.

    `store` empty and no error: the log holds all of them already.
    """

    store: Sequence[int]
    status: Status = Status.STORED
    """Of the whole part: `STORED`, unless it is `REFUSED` or `UNKNOWN`."""
    error: EverlogError | None = None
    content: bytes = b""
    """Content hash of the part; empty without a producer."""


class Numbering(msgspec.Struct):
    """What a log remembers of one producer in one topic partition."""

    seen: Seen = msgspec.field(default_factory=Seen)
    newest_first: int = -1
    newest_count: int = 0
    newest_content: bytes = b""

    def take(self, part: Part, ruling: Ruling) -> None:
        """Mark what `ruling` stores as seen. Nothing changes where it stores nothing."""
        if ruling.store:
            for _, start, count in runs_of(part, ruling.store, "numbered"):
                self.seen.take(start, start + count)
            self.newest_first, self.newest_count, self.newest_content = part.first, len(part.records), ruling.content


def parts_of(topic: TopicSpec, records: Sequence[NewRecord], producer: ProducerBatch | None) -> list[Part]:
    """Split an append by partition, each part in the order given.

    Raises:
        ValueError: No record, a partition that the topic does not have, a producer without a name, or one without a
            number for a partition: mistakes of the caller, and not of what is sent.
    """
    if not records:
        raise ValueError(f"expected at least one record to append to {topic.name!r}, found none")
    if producer is not None and not producer.name:
        raise ValueError("expected a producer with a name, found an empty one: pass producer=None to append without numbers")
    parts: dict[int, Part] = {}
    for index, record in enumerate(records):
        part = parts.get(record.partition)
        if part is None:
            first = _first_number(topic, record.partition, producer)
            part = parts[record.partition] = Part(record.partition, [], [], first)
        part.indices.append(index)
        part.records.append(record)
    return list(parts.values())


def _first_number(topic: TopicSpec, partition: int, producer: ProducerBatch | None) -> int:
    if not 0 <= partition < topic.partitions:
        raise ValueError(f"topic {topic.name!r} has partitions 0 to {topic.partitions - 1}, found {partition}")
    if producer is None:
        return -1
    first = producer.first.get(partition, -1)
    if first < 0:
        raise ValueError(
            f"producer {producer.name!r} gave no number for partition {partition} of {topic.name!r}: "
            f"`ProducerBatch.first` names the first one of each partition, from 0"
        )
    return first


def rule(part: Part, numbering: Numbering | None, *, topic: str, producer: str, max_record_bytes: int) -> Ruling:
    """Say what becomes of a part, given what was seen of its producer; ``None`` without a producer.

    Raises:
        SequenceReused: It has the numbers of the newest part of this producer, and other content.
    """
    datas = [record.data for record in part.records]
    if max(map(len, datas)) > max_record_bytes:
        largest = max(part.records, key=lambda record: len(record.data))
        return Ruling((), Status.REFUSED, _too_large(largest, topic, max_record_bytes))
    if numbering is None:
        return Ruling(range(len(part.records)))
    content = content_of(part.records)
    if (part.first, len(part.records)) == (numbering.newest_first, numbering.newest_count):
        if content != numbering.newest_content:
            raise SequenceReused(
                f"producer {producer!r} sent {len(part.records)} records from number {part.first} to "
                f"{topic}/{part.partition} before, with other content: a number stands for the same bytes for ever"
            )
        # Known without asking `seen`, which forgets the head of a part that is longer than its range.
        return Ruling((), content=content)
    runs = numbering.seen.new_runs(part.first, len(part.records))
    if runs is None:
        return Ruling((), Status.UNKNOWN, _below_range(part, numbering.seen.highest, topic, producer))
    if runs == [(part.first, part.first + len(part.records))]:
        return Ruling(range(len(part.records)), content=content)
    return Ruling([number - part.first for start, stop in runs for number in range(start, stop)], content=content)


class Once(msgspec.Struct, frozen=True):
    """What was stored under an idempotency key."""

    hash: bytes
    partition: int
    offset: Offset
    at_us: int
    """When, by the log's time, in microseconds since 1970 UTC."""

    def check(self, record: NewRecord, topic: str) -> None:
        """Check that a record says the same.

        Raises:
            IdempotencyKeyReused: It does not.
        """
        if hash_of(record) != self.hash:
            raise IdempotencyKeyReused(
                f"{record.source!r} has stored another event under the idempotency key {record.once!r}, at offset {self.offset} of "
                f"{topic}/{self.partition}: one key stands for one event; give this one a key of its own"
            )


def hash_of(record: NewRecord) -> bytes:
    """Return a hash of what a record says: type, key and data."""
    return blake2b(_encode((record.type, record.key, record.data)), digest_size=16).digest()


def once_of(records: Sequence[NewRecord]) -> NewRecord | None:
    """Return the record of an append that has an idempotency key; ``None`` where there is none."""
    return records[0] if len(records) == 1 and records[0].once is not None else None


def content_of(records: Sequence[NewRecord]) -> bytes:
    """Return a checksum of what the sender says: type, key and data of each record, in order. 8 bytes, against mistakes alone."""
    # JSON and MessagePack mark where each ends, so that no two lists of records give the same bytes. A hash took five times as long.
    data = b",".join([record.data for record in records])
    rest = zlib.crc32(_encode(([record.type for record in records], [record.key for record in records])))
    return zlib.crc32(data, rest).to_bytes(4, "little") + len(data).to_bytes(4, "little")


def runs_of(part: Part, indices: Sequence[int], producer: str) -> list[ProducerRun]:
    """Return the producer runs of the records of `part` at `indices`, as a chunk holds them."""
    if not producer:
        return [ProducerRun("", -1, len(indices))]
    if isinstance(indices, range):
        return [ProducerRun(producer, part.first + indices.start, len(indices))]
    return [ProducerRun(producer, start, stop - start) for start, stop in _ranges([part.first + at for at in indices])]


def _ranges(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield the half-open ranges that ascending numbers form."""
    for _, group in groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0]):
        run = [number for _, number in group]
        yield run[0], run[-1] + 1


def _too_large(record: NewRecord, topic: str, max_record_bytes: int) -> EventTooLarge:
    return EventTooLarge(
        f"{record.type!r} with key {record.key!r} has {len(record.data)} bytes of data, and an event of topic {topic!r} may have "
        f"{max_record_bytes}: store large content elsewhere and publish where it is"
    )


def _below_range(part: Part, highest: int, topic: str, producer: str) -> LogError:
    return LogError(
        f"producer {producer!r} sent number {part.first} to {topic}/{part.partition}, {highest - part.first} below the highest "
        f"seen: whether it is stored is known for {DEDUPE_RANGE} numbers, so keep fewer in flight and look into the log"
    )
