"""A log in memory: complete, and gone with its process. For tests, and for trying things out.

It stores chunks as bytes, as the logs on disk do, so that a test against it encodes and decodes what it publishes.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import Coroutine, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, NoReturn
from uuid import UUID, uuid4
from weakref import WeakSet

import msgspec

from everlog.admission import Numbering, Part, Ruling, parts_of, rule, runs_of
from everlog.clock import Clock, to_us
from everlog.codec import Batch, Chunk, encode_chunk, split
from everlog.errors import Closed, EverlogError, FeatureMissing, PositionRefused, TopicMissing
from everlog.log import Appended, Backlog, Expect, Features, Log, ProducerBatch, Status, TopicSpec
from everlog.position import BEGINNING, Offset, Position, TopicPartition
from everlog.record import MAX_DATA_BYTES, NewRecord
from everlog.topics import merged

_FEATURES: Final = Features(
    durability="memory",
    dedupes=True,
    conditional_append=False,
    idempotency_keys=False,
    total_order=True,
    log_time=True,
    retention=True,
    shared=False,
    max_record_bytes=MAX_DATA_BYTES,
)
_SESSION_IDLE_US: Final = 7 * 24 * 3600 * 1_000_000


async def open_log(url: str, *, clock: Clock) -> Log:
    """Return a new, empty log. Each call makes another one."""
    if url.rstrip("/") != "memory:":
        raise ValueError(f"expected the URL memory:, found {url!r}: a log in memory has no name and no settings")
    return MemoryLog(clock)


class _Stored(msgspec.Struct, frozen=True):
    """One chunk, and what finds it: its bounds, its place among all chunks, the log's times of its records."""

    first: Offset
    last: Offset
    commit: int
    oldest_us: int
    newest_us: int
    body: bytes


class _Partition(msgspec.Struct):
    """One partition: the chunks that are kept, and what was trimmed. `next` never goes back."""

    chunks: list[_Stored] = []
    next: int = 0
    kept_bytes: int = 0
    gone_through_us: int | None = None

    @property
    def before_first(self) -> Offset:
        """The offset before the oldest record that is kept."""
        return Offset((self.chunks[0].first if self.chunks else self.next) - 1)

    def behind(self, after: Offset) -> int:
        """Return the index of the first chunk with a record behind `after`; the number of chunks where none has."""
        return bisect_left(self.chunks, after + 1, key=lambda chunk: chunk.last)

    def drop(self, count: int) -> None:
        """Forget the `count` oldest chunks."""
        gone, self.chunks = self.chunks[:count], self.chunks[count:]
        for chunk in gone:
            self.kept_bytes -= len(chunk.body)
            self.gone_through_us = max(self.gone_through_us or chunk.newest_us, chunk.newest_us)


class _Producer(msgspec.Struct):
    """What is remembered of one producer: its numbers in each partition, and since when it is idle."""

    named: bool
    used_us: int
    numbering: dict[TopicPartition, Numbering] = {}


class MemoryLog:
    """A `Log` in the memory of one event loop. An append is stored when it is called, before it is awaited."""

    def __init__(self, clock: Clock) -> None:
        self.identity: UUID = uuid4()
        self.features: Features = _FEATURES
        self._clock = clock
        self._topics: dict[str, TopicSpec] = {}
        self._partitions: dict[TopicPartition, _Partition] = {}
        self._producers: dict[str, _Producer] = {}  # the one that is idle longest first
        self._readers: WeakSet[MemoryReader] = WeakSet()
        self._commit = 0
        self._last_us = 0
        self._closed = False

    async def ensure_topic(self, topic: TopicSpec) -> None:
        self._check_open()
        stored = self._topics.get(topic.name)
        if stored is None and topic.partitions < 1:
            raise ValueError(f"topic {topic.name!r} needs at least one partition, found {topic.partitions}")
        self._topics[topic.name] = topic if stored is None else merged(stored, topic)
        for partition in range(topic.partitions):
            self._partitions.setdefault(TopicPartition(topic.name, partition), _Partition())

    async def topics(self) -> Sequence[TopicSpec]:
        self._check_open()
        return [self._topics[name] for name in sorted(self._topics)]

    def append(
        self,
        topic: str,
        records: Sequence[NewRecord],
        *,
        producer: ProducerBatch | None = None,
        expect: Expect | None = None,
    ) -> Coroutine[Any, Any, Appended]:
        # No `async def`: its body would run when it is awaited, and the order would be that of the awaits.
        try:
            if expect is not None:
                self._refuse_streams("append(expect=...)")
            return _returned(self._append(topic, records, producer))
        except (EverlogError, ValueError) as error:
            return _raised(error)

    def _append(self, topic: str, records: Sequence[NewRecord], producer: ProducerBatch | None) -> Appended:
        spec = self._topic(topic)
        parts = parts_of(spec, records, producer)
        name = producer.name if producer else ""
        known = self._producer(producer) if producer else None
        ruled: list[tuple[Part, Ruling, Numbering | None]] = []
        for part in parts:  # all are ruled before one is stored: what raises has stored nothing
            # A copy of nothing: a producer is remembered in a partition once something of it is stored there.
            numbering = known.numbering.get(TopicPartition(topic, part.partition), Numbering()) if known else None
            ruling = rule(part, numbering, topic=topic, producer=name, max_record_bytes=self.features.max_record_bytes)
            ruled.append((part, ruling, numbering))
        statuses = [Status.DUPLICATE] * len(records)
        offsets: list[Offset | None] = [None] * len(records)
        errors: list[EverlogError | None] = [None] * len(records)
        self._last_us = max(self._last_us, self._clock.wall_us())
        for part, ruling, numbering in ruled:
            if ruling.error is not None:
                for index in part.indices:
                    statuses[index], errors[index] = ruling.status, ruling.error
            if not ruling.store:
                continue
            where = TopicPartition(topic, part.partition)
            first = self._partitions[where].next
            self._store(where, part, ruling, name)
            if known and numbering:
                numbering.take(part, ruling)
                known.numbering[where] = numbering
            for step, at in enumerate(ruling.store):
                index = part.indices[at]
                statuses[index], offsets[index] = Status.STORED, Offset(first + step)
            self._retain(spec, where)
            for reader in self._readers:
                reader.wake(where)
        return Appended(statuses, offsets, errors if any(errors) else ())

    def _store(self, where: TopicPartition, part: Part, ruling: Ruling, producer: str) -> None:
        partition = self._partitions[where]
        for start, stop in split([len(part.records[at].data) for at in ruling.store]):
            indices = ruling.store[start:stop]
            records = [part.records[at] for at in indices]
            body = encode_chunk(records, runs_of(part, indices, producer), self._last_us)
            times = [self._last_us if record.logged_at_us is None else record.logged_at_us for record in records]
            self._commit += 1
            first, partition.next = Offset(partition.next), partition.next + len(records)
            partition.chunks.append(_Stored(first, Offset(partition.next - 1), self._commit, min(times), max(times), body))
            partition.kept_bytes += len(body)

    def _producer(self, batch: ProducerBatch) -> _Producer:
        """Return what is remembered of the producer, as the one used last; forget those that are idle for too long."""
        now_us = self._clock.wall_us()
        known = self._producers.pop(batch.name, None) or _Producer(batch.named, now_us)
        known.named, known.used_us = known.named or batch.named, now_us
        self._producers[batch.name] = known
        idle = [n for n, p in self._producers.items() if not p.named and p.used_us <= now_us - _SESSION_IDLE_US]
        for name in idle:
            del self._producers[name]
        return known

    def _retain(self, spec: TopicSpec, where: TopicPartition) -> None:
        """Drop the oldest chunks that the topic's limits do not keep; never the newest one."""
        partition = self._partitions[where]
        count = 0
        left_bytes = partition.kept_bytes
        for chunk in partition.chunks[:-1]:
            left_bytes -= len(chunk.body)
            too_old = spec.keep_s is not None and chunk.newest_us < self._last_us - spec.keep_s * 1_000_000
            too_much = spec.keep_bytes is not None and left_bytes >= spec.keep_bytes
            if not (too_old or too_much):
                break
            count += 1
        partition.drop(count)

    async def last_sequence(self, producer: str, topic: str) -> Mapping[int, int]:
        self._topic(topic)
        known = self._producers.get(producer)
        numbering = known.numbering if known else {}
        return {where.partition: one.seen.highest for where, one in numbering.items() if where.topic == topic}

    def reader(self, after: Mapping[TopicPartition, Offset]) -> MemoryReader:
        self._check_open()
        reader = MemoryReader(self)
        reader.assign(after)
        self._readers.add(reader)
        return reader

    def chunks_behind(self, where: TopicPartition, after: Offset) -> Sequence[_Stored]:
        """Return the chunks of a partition that hold a record behind `after`, oldest first.

        Raises:
            Closed: The log was closed.
        """
        partition = self._partition(where)
        return partition.chunks[partition.behind(after) :]

    async def first(self, topic: str) -> Position:
        return self._position(topic, lambda partition: partition.before_first)

    async def head(self, topic: str) -> Position:
        return self._position(topic, lambda partition: Offset(partition.next - 1))

    async def position_at(self, topic: str, time: datetime) -> Position:
        ...
