"""A log in a file of its own, for tests of what is below the port."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from everlog.drivers.sqlite.connection import connect, disconnect
from everlog.log import TopicSpec
from everlog.logs.sqlite import SqliteLog
from everlog.logs.sqlite.tables import LOG
from everlog.position import TopicPartition
from everlog.record import NewRecord
from everlog.testing.clock import ManualClock

TOPIC = "shop.orders"
KEPT = "shop.stock"
KEEP_S = 60.0
WHERE = TopicPartition(TOPIC, 0)


def record(number: int, *, size: int = 0, partition: int = 0) -> NewRecord:
    """Return a record that its `number` tells apart."""
    return NewRecord("shop.order_placed/1", b'"%s"' % (b"x" * size), f"k{number % 7}", partition, "shop", number)


@asynccontextmanager
async def opened(
    path: Path, clock: ManualClock, *, keep_s: float | None = KEEP_S, keep_bytes: int | None = None
) -> AsyncGenerator[SqliteLog]:
    """Open the log with a topic of two partitions that has limits, and one of one partition that keeps the newest of each key."""
    log = SqliteLog(path, clock)
    await log.open()
    try:
        await log.ensure_topic(TopicSpec(TOPIC, key="id", partitions=2, keep_s=keep_s, keep_bytes=keep_bytes))
        await log.ensure_topic(TopicSpec(KEPT, key="id", partitions=1, keep_s=KEEP_S, keep_newest=True))
        yield log
    finally:
        await log.aclose()


async def fill(log: SqliteLog, chunks: int, *, size: int = 0) -> None:
    """Append so many records to partition 0, a chunk each."""
    for number in range(chunks):
        await log.append(TOPIC, [record(number, size=size)])


async def fill_around(log: SqliteLog, text: bytes) -> None:
    """Append 40 chunks to partition 0, one of which holds the text, on a page that has no part in appending more."""
    for number in range(40):
        data = text if number == 20 else b"x" * len(text)
        await log.append(TOPIC, [msgspec.structs.replace(record(number), data=b'"%s"' % data)])


def damage(path: Path, text: bytes) -> None:
    """Change a byte of a text, where it stands in a closed log."""
    body = bytearray(path.read_bytes())
    assert body.count(text) == 1
    body[body.index(text) + len(text) // 2] ^= 1
    path.write_bytes(body)


def change(path: Path, *statements: str) -> None:
    """Change a closed log behind its back."""
    connection = connect(path, LOG, create=False, writes=True)
    for statement in statements:
        connection.execute(statement)
    disconnect(connection)


async def kept(log: SqliteLog, topic: str = TOPIC) -> list[int]:
    """Return the numbers of the records that are kept in partition 0."""
    where = TopicPartition(topic, 0)
    first, head = (await log.first(topic)).offsets[where], (await log.head(topic)).offsets[where]
    found: list[int] = []
    reader = log.reader({where: first})
    while first < head:
        batch = await reader.next()
        found += [one.time_us for one in batch.records()]
        first = batch.through[where]
    reader.close()
    return found
