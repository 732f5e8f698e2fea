"""What every case of the log's suite works with: a log under test, records, and a reader that is read to a known end."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Final, Protocol

from everlog.codec import Batch
from everlog.conformance.cases import MovableClock, soon
from everlog.log import Appended, Log, ProducerBatch, Reader, TopicSpec
from everlog.position import BEGINNING, Offset, TopicPartition
from everlog.record import NewRecord, StoredRecord

TOPIC: Final = "conformance.orders"
OTHER: Final = "conformance.payments"
SPEC: Final = TopicSpec(TOPIC, key="id", partitions=4)
OTHER_SPEC: Final = TopicSpec(OTHER, key="id", partitions=4)


class LogUnderTest(Protocol):
    """One log of its own for each case. Who makes it closes what was opened, and deletes it."""

    @property
    def clock(self) -> MovableClock:
        """The clock that every handle of the log was given."""
        ...

    async def open(self) -> Log:
        """Open the log: again after it was closed, or as another handle of it where `features.shared`.

        A log without durability is a new one each time.
        """
        ...


@asynccontextmanager
async def opened(harness: LogUnderTest) -> AsyncGenerator[Log]:
    """Open the log with the two topics of the suite, and close it."""
    log = await harness.open()
    try:
        await log.ensure_topic(SPEC)
        await log.ensure_topic(OTHER_SPEC)
        yield log
    finally:
        await log.aclose()


def record(number: int, *, partition: int = 0, text: str = "") -> NewRecord:
    """Return a record that its `number` tells apart."""
    data = b'{"n":%d,"text":"%s"}' % (number, text.encode())
    return NewRecord("conformance.happened/1", data, f"key-{number % 7}", partition, "suite", number)


def records(start: int, stop: int, *, partition: int = 0) -> list[NewRecord]:
    """Return the records `start` up to, but without, `stop`."""
    return [record(number, partition=partition) for number in range(start, stop)]


def sender(name: str, first: int, *, partition: int = 0, named: bool = False) -> ProducerBatch:
    """Return the batch of a producer whose first number in `partition` is `first`."""
    return ProducerBatch(name, {partition: first}, named=named)


async def numbered(log: Log, start: int, stop: int, *, name: str = "p", topic: str = TOPIC) -> Appended:
    """Append the records `start` to `stop` under these numbers, to partition 0."""
    return await log.append(topic, records(start, stop), producer=sender(name, start))


def everything(topic: str = TOPIC, partitions: int = SPEC.partitions) -> dict[TopicPartition, Offset]:
    """Return where a reader of the whole topic starts."""
    return {TopicPartition(topic, partition): BEGINNING for partition in range(partitions)}


async def read_to_head(log: Log, after: Mapping[TopicPartition, Offset]) -> list[StoredRecord]:
    """Read from behind `after` to where the head of each partition is now, through a reader of its own."""
    ends: dict[TopicPartition, Offset] = {}
    for topic in {where.topic for where in after}:
        ends.update((await log.head(topic)).offsets)
    reader = log.reader(after)
    try:
        return await read_through(reader, {where: ends[where] for where in after if ends[where] > after[where]})
    finally:
        reader.close()


async def read_through(reader: Reader, ends: Mapping[TopicPartition, Offset]) -> list[StoredRecord]:
    """Read until every partition was scanned through the offset given, and return all records that came."""
    waiting = dict(ends)
    found: list[StoredRecord] = []
    while waiting:
        batch = await next_of(reader)
        found.extend(batch.records())
        for where, offset in batch.through.items():
            if where in waiting and offset >= waiting[where]:
                del waiting[where]
    return found


async def next_of(reader: Reader) -> Batch:
    """Return the next batch of a reader for which something is there."""
    return await soon(reader.next(), "a reader returns what is behind its offsets")


def numbers_of(found: Sequence[StoredRecord]) -> list[int]:
    """Return the numbers of the suite's records: `record(number)` carries it as its time."""
    return [one.time_us for one in found]
