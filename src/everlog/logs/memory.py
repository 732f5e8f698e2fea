"""A log in memory: complete, and gone with its process. For tests, and for trying things out.

It stores chunks as bytes, as the logs on disk do, so that a test against it encodes and decodes what it publishes.
"""

from __future__ import annotations

import asyncio
import heapq
from bisect import bisect_left
from collections.abc import Callable, Coroutine, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final
from uuid import UUID, uuid4
from weakref import WeakSet

import msgspec

from everlog.admission import Numbering, Once, Part, Ruling, hash_of, once_of, parts_of, rule, runs_of
from everlog.clock import Clock, Steady, to_us
from everlog.codec import Batch, Chunk, encode_chunk, split
from everlog.errors import Closed, EverlogError, FeatureMissing, PositionRefused, RecordsGone, TopicMissing
from everlog.log import ONCE_S, Appended, Backlog, Expect, Features, Log, ProducerBatch, Status, TopicSpec
from everlog.position import BEGINNING, Offset, Position, TopicPartition
from everlog.record import MAX_DATA_BYTES, NewRecord
from everlog.topics import check_honoured, check_limits, merged

_FEATURES: Final = Features(
    durability="memory",
    dedupes=True,
    conditional_append=False,
    idempotency_keys=True,
    total_order=True,
    log_time=True,
    retention=True,
    shared=False,
    backup=False,
    max_record_bytes=MAX_DATA_BYTES,
)
_SESSION_IDLE_US: Final = 7 * 24 * 3600 * 1_000_000


async def open_log(url: str, *, clock: Clock) -> Log:
    """Return a new, empty log. Each call makes another one."""
    if url != "memory:":
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
    """The chunks of one partition that are kept, and what went. `next` never goes back."""

    keeps_newest: bool
    chunks: list[_Stored] = []
    next: int = 0
    kept_bytes: int = 0
    gone_through_us: int | None = None
    newest: dict[str, Offset] = {}
    """The newest offset of each key, where the topic keeps these."""

    @property
    def before_first(self) -> Offset:
        """The offset before the oldest record that is kept."""
        return Offset((self.chunks[0].first if self.chunks else self.next) - 1)

    @property
    def last(self) -> Offset:
        """The offset of the newest record, kept or not."""
        return Offset(self.next - 1)

    @property
    def lost_through(self) -> Offset:
        """Up to which offset records are lost to whoever has not read them."""
        return BEGINNING if self.keeps_newest else self.before_first

    def behind(self, after: Offset) -> int:
        """Return the index of the first chunk with a record behind `after`; the number of chunks where none has."""
        return bisect_left(self.chunks, after + 1, key=lambda chunk: chunk.last)

    def count_behind(self, after: Offset) -> int:
        """Return how many records are kept behind `after`."""
        if not self.keeps_newest:
            return self.last - max(after, self.before_first)
        return sum(chunk.last - max(after, chunk.first - 1) for chunk in self.chunks[self.behind(after) :])

    def drop(self, count: int) -> int:
        """Let the `count` oldest chunks go, but for the newest record of a key that is to stay. Returns how many records went."""
        spared = sorted(self.newest.values())
        kept: list[_Stored] = []
        gone = 0
        for chunk in self.chunks[:count]:
            if bisect_left(spared, chunk.first) < bisect_left(spared, chunk.last + 1):
                kept.append(chunk)
                continue
            gone += chunk.last - chunk.first + 1
            self.kept_bytes -= len(chunk.body)
            self.gone_through_us = max(self.gone_through_us or chunk.newest_us, chunk.newest_us)
        self.chunks[:count] = kept
        return gone


class MemoryLog:
    """A `Log` in the memory of one event loop. An append is stored when it is called, before it is awaited."""

    def __init__(self, clock: Clock) -> None:
        self.identity: UUID = uuid4()
        self.features: Features = _FEATURES
        self._clock = clock
        self._steady = Steady(clock)
        self._topics: dict[str, TopicSpec] = {}
        self._partitions: dict[TopicPartition, _Partition] = {}
        self._numbers: dict[str, dict[TopicPartition, Numbering]] = {}  # by producer
        self._once: dict[tuple[str, str, str | None], Once] = {}  # by topic, source and idempotency key, the oldest first
        self._sessions: dict[str, int] = {}  # when each session producer was used last, the one idle longest first
        self._readers: WeakSet[MemoryReader] = WeakSet()
        self._commit = 0
        self._last_us = 0
        self._closed = False

    async def ensure_topic(self, topic: TopicSpec) -> None:
        self._check_open()
        check_honoured(topic, _FEATURES, adapter="the log in memory")
        if topic.partitions < 1:
            raise ValueError(f"topic {topic.name!r} needs at least one partition, found {topic.partitions}")
        stored = self._topics.get(topic.name)
        self._topics[topic.name] = topic if stored is None else merged(stored, topic)
        for partition in range(topic.partitions):
            self._partitions.setdefault(TopicPartition(topic.name, partition), _Partition(topic.keep_newest))

    async def set_retention(self, topic: str, *, keep_s: float | None, keep_bytes: int | None) -> None:
        check_limits(keep_s, keep_bytes)
        self._topics[topic] = msgspec.structs.replace(self._spec(topic), keep_s=keep_s, keep_bytes=keep_bytes)

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
        # Not `async def`: its body would run when it is awaited, and the order would be that of the awaits.
        try:
            if expect is not None:
                raise _no_streams("append(expect=...)")
            single = once_of(records)
            if single is None:
                return _answered(self._append(topic, records, producer))
            return _answered(self._append_once(topic, single, producer))
        except (EverlogError, ValueError) as error:
            return _failed(error)

    def _append_once(self, topic: str, record: NewRecord, producer: ProducerBatch | None) -> Appended:
        spec = self._spec(topic)
        once = self._known(topic, record)
        if once is None:
            appended = self._append(topic, [record], producer)
            offset = appended.offsets[0]
            if offset is not None:
                self._once.pop((topic, record.source, record.once), None)
                self._once[topic, record.source, record.once] = Once(hash_of(record), record.partition, offset, self._last_us)
            return appended
        once.check(record, topic)
        if producer is not None:  # the number of the record is used all the same
            (part,) = parts_of(spec, [record], producer)
            numbering = self._remember(producer).setdefault(TopicPartition(topic, part.partition), Numbering())
            largest = self.features.max_record_bytes
            numbering.take(part, rule(part, numbering, topic=topic, producer=producer.name, max_record_bytes=largest))
        return Appended([Status.DUPLICATE], [once.offset])

    def _append(self, topic: str, records: Sequence[NewRecord], producer: ProducerBatch | None) -> Appended:
        spec = self._spec(topic)
        parts = parts_of(spec, records, producer)
        name, numbers = (producer.name, self._remember(producer)) if producer else ("", None)
        rulings: list[Ruling] = []
        for part in parts:  # all are ruled before one is stored: what raises has stored nothing
            known = numbers.get(TopicPartition(topic, part.partition), Numbering()) if numbers is not None else None
            rulings.append(rule(part, known, topic=topic, producer=name, max_record_bytes=self.features.max_record_bytes))
        self._last_us = max(self._last_us, self._clock.wall_us())
        statuses = [Status.DUPLICATE] * len(records)
        offsets: list[Offset | None] = [None] * len(records)
        errors: list[EverlogError | None] = [None] * len(records)
        for part, ruling in zip(parts, rulings, strict=True):
            if ruling.error is not None:
                for index in part.indices:
                    statuses[index], errors[index] = ruling.status, ruling.error
            if not ruling.store:
                continue
            where = TopicPartition(topic, part.partition)
            if numbers is not None:
                numbers.setdefault(where, Numbering()).take(part, ruling)
            for at, offset in zip(ruling.store, self._store(where, part, ruling, name), strict=True):
                statuses[part.indices[at]], offsets[part.indices[at]] = Status.STORED, offset
            for reader in self._readers:
                reader.wake(where)
        return Appended(statuses, offsets, errors if any(errors) else ())

    def _known(self, topic: str, record: NewRecord) -> Once | None:
        """Return what was stored under a record's idempotency key within 7 days, and forget what is older."""
        since_us = self._steady.wall_us() - ONCE_S * 1_000_000  # a clock that jumps ahead has made none of them old
        while self._once:
            place, oldest = next(iter(self._once.items()))
            if oldest.at_us >= since_us:
                break
            del self._once[place]
        return self._once.get((topic, record.source, record.once))

    def _store(self, where: TopicPartition, part: Part, ruling: Ruling, producer: str) -> list[Offset]:
        partition = self._partitions[where]
        begin = partition.next
        for start, stop in split([len(part.records[at].data) for at in ruling.store]):
            taken = ruling.store[start:stop]
            records = [part.records[at] for at in taken]
            body = encode_chunk(records, runs_of(part, taken, producer), self._last_us)
            times = [self._last_us if record.logged_at_us is None else record.logged_at_us for record in records]
            first, partition.next = Offset(partition.next), partition.next + len(records)
            self._commit += 1
            partition.chunks.append(_Stored(first, partition.last, self._commit, min(times), max(times), body))
            partition.kept_bytes += len(body)
            if partition.keeps_newest:
                partition.newest.update({one.key: Offset(first + at) for at, one in enumerate(records) if one.key is not None})
        return [Offset(offset) for offset in range(begin, partition.next)]

    def _remember(self, producer: ProducerBatch) -> dict[TopicPartition, Numbering]:
        """Return the numbers of the producer, and forget the sessions that were idle for seven days."""
        now_us = self._steady.wall_us()  # a clock that jumps ahead has made nobody idle
        name = producer.name
        was_named = name in self._numbers and name not in self._sessions
        self._sessions.pop(name, None)
        if not producer.named and not was_named:
            self._sessions[name] = now_us
        while self._sessions:
            oldest, used_us = next(iter(self._sessions.items()))
            if used_us > now_us - _SESSION_IDLE_US:
                break
            del self._sessions[oldest], self._numbers[oldest]
        return self._numbers.setdefault(name, {})

    async def last_sequence(self, producer: str, topic: str) -> Mapping[int, int]:
        self._spec(topic)
        numbers = self._numbers.get(producer, {})
        return {where.partition: one.seen.highest for where, one in numbers.items() if where.topic == topic}

    def reader(self, after: Mapping[TopicPartition, Offset]) -> MemoryReader:
        reader = MemoryReader(self.partition)
        reader.assign(after)
        self._readers.add(reader)
        return reader

    async def first(self, topic: str) -> Position:
        return self._position(topic, lambda partition, _: partition.before_first)

    async def head(self, topic: str) -> Position:
        return self._position(topic, lambda partition, _: partition.last)

    async def position_at(self, topic: str, time: datetime) -> Position:
        time_us = to_us(time)

        def before(partition: _Partition, where: TopicPartition) -> Offset:
            # Not by bisection: what `move` brought carries times of another log.
            for stored in partition.chunks:
                if stored.newest_us >= time_us:
                    chunk = _chunk(stored, where, Offset(stored.first - 1))
                    return Offset(next(chunk.offset(i) for i in range(chunk.length) if chunk.logged_at_us(i) >= time_us) - 1)
            return partition.last

        return self._position(topic, before)

    async def backlog(self, topic: str, after: Mapping[int, Offset]) -> Backlog:
        self._spec(topic)
        count, oldest_us = 0, list[int]()
        for number, offset in after.items():
            where = TopicPartition(topic, number)
            partition = self.partition(where)
            if (at := partition.behind(offset)) < len(partition.chunks):
                chunk = _chunk(partition.chunks[at], where, offset)
                count += partition.count_behind(offset)
                oldest_us.append(chunk.logged_at_us(chunk.start))
        return Backlog(count, min(oldest_us, default=None))

    async def gone_through(self, topic: str) -> Mapping[int, int]:
        gone = {
            number: self._partitions[TopicPartition(topic, number)].gone_through_us
            for number in range(self._spec(topic).partitions)
        }
        return {number: gone_us for number, gone_us in gone.items() if gone_us is not None}

    async def trim(self, topic: str, before: Position) -> None:
        self._spec(topic)
        if before.log != self.identity:
            raise PositionRefused(
                f"the position belongs to log {before.log}, and this log is {self.identity}: nothing was deleted"
            )
        for where, offset in before.offsets.items():
            if where.topic == topic:
                partition = self.partition(where)
                partition.drop(partition.behind(offset))
        self._wake_all()

    async def retain(self) -> int:
        self._check_open()
        now_us = self._steady.wall_us()
        gone = 0
        for where, partition in list(self._partitions.items()):
            gone += partition.drop(_excess(self._spec(where.topic), partition, now_us))
            await asyncio.sleep(0)
        self._wake_all()
        return gone

    def _wake_all(self) -> None:
        """Have every reader look whether it is behind what was deleted."""
        for reader in self._readers:
            reader.wake()

    async def read_stream(self, topic: str, key: str, *, after: Offset | None) -> Batch:  # noqa: ARG002 - the port asks for them
        raise _no_streams("read_stream")

    async def verify(self) -> Sequence[str]:
        self._check_open()
        return []  # nothing lies below the records

    async def backup(self, target: Path, *, progress: Callable[[int, int], None] | None = None, check: bool = True) -> None:  # noqa: ARG002 - the port asks for them
        self._check_open()
        raise FeatureMissing("a backup", adapter="memory:", instead="use sqlite:, for what is to outlive its process")

    async def aclose(self) -> None:
        self._closed = True
        for reader in self._readers:
            reader.close()

    def partition(self, where: TopicPartition) -> _Partition:
        """Return a partition of a topic that exists.

        Raises:
            Closed: The log was closed.
            TopicMissing: The topic does not exist.
            ValueError: The topic has no such partition.
        """
        spec = self._spec(where.topic)
        if where not in self._partitions:
            raise ValueError(f"topic {where.topic!r} has partitions 0 to {spec.partitions - 1}, found {where.partition}")
        return self._partitions[where]

    def _position(self, topic: str, offset: Callable[[_Partition, TopicPartition], Offset]) -> Position:
        wheres = [TopicPartition(topic, partition) for partition in range(self._spec(topic).partitions)]
        return Position(self.identity, {where: offset(self._partitions[where], where) for where in wheres})

    def _spec(self, topic: str) -> TopicSpec:
        self._check_open()
        spec = self._topics.get(topic)
        if spec is None:
            raise TopicMissing(topic)
        return spec

    def _check_open(self) -> None:
        if self._closed:
            raise Closed("the log was closed: open it again with `open_log`")


class MemoryReader:
    """A `Reader` of a `MemoryLog`, woken by the appends to what it was assigned."""

    def __init__(self, partition: Callable[[TopicPartition], _Partition]) -> None:
        self._partition = partition
        self._after: dict[TopicPartition, Offset] = {}
        self._bell = asyncio.Event()
        self._closed = False

    async def next(self, *, max_records: int = 4_096, max_bytes: int = 1 << 20) -> Batch:
        while True:
            if self._closed:
                raise Closed("the reader or its log was closed")
            self._bell.clear()
            # What is taken is returned without an await between, so that a cancelled `next` has taken nothing.
            if (batch := self._taken(max_records, max_bytes)).chunks:
                return batch
            await self._bell.wait()

    def _taken(self, max_records: int, max_bytes: int) -> Batch:
        ready: list[tuple[int, int, TopicPartition, int]] = []
        for where, after in self._after.items():
            partition = self._partition(where)
            if after < partition.lost_through:
                raise RecordsGone(*where, after=after, first=partition.lost_through)
            if (at := partition.behind(after)) < len(partition.chunks):
                ready.append((partition.chunks[at].oldest_us, partition.chunks[at].commit, where, at))
        heapq.heapify(ready)
        chunks: list[Chunk] = []
        through: dict[TopicPartition, Offset] = {}
        while ready and max_records > 0 and max_bytes > 0:
            _, _, where, at = heapq.heappop(ready)
            partition = self._partition(where)
            stored = partition.chunks[at]
            chunk = _chunk(stored, where, self._after[where])
            chunks.append(chunk)
            through[where] = stored.last
            max_records -= len(chunk)
            max_bytes -= len(stored.body)
            if at + 1 < len(partition.chunks):
                following = partition.chunks[at + 1]
                heapq.heappush(ready, (following.oldest_us, following.commit, where, at + 1))
        self._after.update(through)
        return Batch(chunks, through)

    def assign(self, after: Mapping[TopicPartition, Offset]) -> None:
        for where, offset in after.items():
            self._partition(where)
            self._after.setdefault(where, offset)
        self._bell.set()

    def revoke(self, partitions: Sequence[TopicPartition]) -> None:
        for where in partitions:
            self._after.pop(where, None)

    def wake(self, where: TopicPartition | None = None) -> None:
        """Note that there is something new in a partition, or in any."""
        if where is None or where in self._after:
            self._bell.set()

    def close(self) -> None:
        self._closed = True
        self._bell.set()


def _excess(spec: TopicSpec, partition: _Partition, now_us: int) -> int:
    """Return how many of the oldest chunks the topic's limits do not keep."""
    count = 0
    left_bytes = partition.kept_bytes
    for chunk in partition.chunks:
        left_bytes -= len(chunk.body)
        is_too_old = spec.keep_s is not None and chunk.newest_us < now_us - spec.keep_s * 1_000_000
        is_too_much = spec.keep_bytes is not None and left_bytes >= spec.keep_bytes
        if not (is_too_old or is_too_much):
            break
        count += 1
    return count


def _chunk(stored: _Stored, where: TopicPartition, after: Offset) -> Chunk:
    return Chunk.from_bytes(stored.body, where, stored.first, after=after)


def _no_streams(what: str) -> FeatureMissing:
    return FeatureMissing(
        what, adapter="memory:", instead="append without a condition, and let one subscription own the decision"
    )


async def _answered(appended: Appended) -> Appended:
    return appended


async def _failed(error: EverlogError | ValueError) -> Appended:
    raise error
