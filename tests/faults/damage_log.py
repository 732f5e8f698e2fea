"""A log to be damaged: made by the real adapter, in three conditions, and read in every way that users have."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final, cast

from tests.faults.damage_facts import Facts, Healthy, checkpoint, copied, let_go, reading

from everlog.clock import to_datetime
from everlog.errors import EverlogError
from everlog.log import Log, ProducerBatch, TopicSpec
from everlog.logs.sqlite import SqliteLog
from everlog.position import Offset, Position, TopicPartition
from everlog.record import NewRecord, StoredRecord
from everlog.testing.clock import ManualClock

ORDERS: Final = "shop.orders"
PICTURES: Final = "shop.pictures"
STOCK: Final = "shop.stock"
TOPICS: Final[Mapping[str, int]] = {ORDERS: 3, PICTURES: 1, STOCK: 1}
RELAY: Final = "relay-of-the-shop"
_FILE: Final = "log.db"


def record(number: int, *, partition: int = 0, size: int = 0) -> NewRecord:
    """Return a record that its `number` tells apart; its data is of at least `size` bytes, of which no two pages are alike."""
    text = b"".join(b"%d.%d " % (number, at) for at in range(size // 8))
    return NewRecord("shop.happened/1", b'{"n":%d,"text":"%s"}' % (number, text), f"key-{number % 5}", partition, "shop", number)


async def healthy(folder: Path) -> Mapping[str, Healthy]:
    """Return the log in each condition: killed with everything in the WAL, killed with a half reused WAL, closed."""
    path, clock = folder / _FILE, ManualClock()
    log = SqliteLog(path, clock)
    await log.open()
    for name, partitions in TOPICS.items():
        await log.ensure_topic(TopicSpec(name, key="id", partitions=partitions, keep_newest=name == STOCK, keep_s=3_600))
    await _fill(log, clock, 0)
    early = copied(path)
    await _fill(log, clock, 1_000)
    await log.trim(ORDERS, Position(log.identity, {TopicPartition(ORDERS, 1): Offset(3)}))
    await log.trim(PICTURES, Position(log.identity, {TopicPartition(PICTURES, 0): Offset(2)}))  # leaves free pages
    killed = copied(path)
    checkpoint(path)
    await _few(log, clock, 2_000)
    await log.trim(PICTURES, Position(log.identity, {TopicPartition(PICTURES, 0): Offset(3)}))
    reused = copied(path)
    await _few(log, clock, 3_000)
    await log.aclose()
    closed = copied(path)
    return {
        "in the WAL": Healthy(_FILE, killed, early),
        "half reused WAL": Healthy(_FILE, reused, killed),
        "closed": Healthy(_FILE, closed, reused),
    }


async def _fill(log: Log, clock: ManualClock, base: int) -> None:
    """Append a chunk of many records, chunks of one, and records that overflow their page, as named, session and no producer."""
    many = [record(base + at) for at in range(1_000 if base == 0 else 60)]
    await log.append(ORDERS, many, producer=ProducerBatch(f"session-{base}", {0: 0}))
    await _few(log, clock, base)
    for number in range(3):
        await log.append(PICTURES, [record(base + number, size=9_000 * (number + 1))])


async def _few(log: Log, clock: ManualClock, base: int) -> None:
    for number in range(4):
        clock.advance(1)
        for partition in range(3):
            first = (await log.last_sequence(RELAY, ORDERS)).get(partition, -1) + 1
            await log.append(
                ORDERS,
                [record(base + number, partition=partition)],
                producer=ProducerBatch(RELAY, {partition: first}, named=True),
            )
    await log.append(STOCK, [record(base + number) for number in range(3)])


async def look(folder: Path) -> Facts:
    """Return what a user finds: at the opening, by reading, by `verify`, and by appending."""
    facts, clock = Facts(), ManualClock()
    clock.advance(100)
    log = SqliteLog(folder / _FILE, clock)
    try:
        await log.open()
    except EverlogError as error:
        facts.at_open = error
        await let_go(log._database)
        return facts
    try:
        await _read(log, facts)
        facts.verified = list(await log.verify())
        await _append(log, facts)
    finally:
        async with reading(facts, "close"):
            await log.aclose()
    return facts


async def look_again(folder: Path, facts: Facts) -> None:
    """Note what became of the record that was appended behind the damage, once the log was closed."""
    log = SqliteLog(folder / _FILE, ManualClock())
    async with reading(facts, "append, later"):
        try:
            await log.open()
        except EverlogError:
            await let_go(log._database)
            raise
        try:
            appended = cast("tuple[object, Offset]", facts.read["append"])
            last = await _tail(log, TopicPartition(ORDERS, 2), Offset(appended[1] - 1))
            facts.read["append, later"] = last.time_us
        finally:
            await log.aclose()


async def _read(log: SqliteLog, facts: Facts) -> None:
    facts.read["identity"] = log.identity
    async with reading(facts, "topics"):
        facts.read["topics"] = await log.topics()
    for name, partitions in TOPICS.items():
        for what, ask in (("first", log.first), ("head", log.head), ("gone", log.gone_through)):
            async with reading(facts, f"{what} of {name}"):
                facts.read[f"{what} of {name}"] = await ask(name)
        async with reading(facts, f"moments of {name}"):
            moments = [to_datetime(ManualClock().wall_us() + seconds * 1_000_000) for seconds in (0, 3, 7)]
            facts.read[f"moments of {name}"] = [await log.position_at(name, moment) for moment in moments]
        async with reading(facts, f"backlog of {name}"):
            facts.read[f"backlog of {name}"] = await log.backlog(name, {part: Offset(2) for part in range(partitions)})
        for part in range(partitions):
            async with reading(facts, f"records of {name}/{part}"):
                facts.read[f"records of {name}/{part}"] = await _records(log, TopicPartition(name, part))
    for producer in (RELAY, "session-0", "session-1000"):
        async with reading(facts, f"numbers of {producer}"):
            facts.read[f"numbers of {producer}"] = await log.last_sequence(producer, ORDERS)


async def _records(log: SqliteLog, where: TopicPartition) -> list[StoredRecord]:
    through, head = (await log.first(where.topic)).offsets[where], (await log.head(where.topic)).offsets[where]
    found: list[StoredRecord] = []
    reader = log.reader({where: through})
    try:
        while through < head:
            batch = await reader.next()
            found.extend(batch.records())
            through = batch.through[where]
    finally:
        reader.close()
    return found


async def _append(log: SqliteLog, facts: Facts) -> None:
    """Append one record, and one again that was stored before: it must not be stored a second time."""
    async with reading(facts, "append"):
        appended = await log.append(ORDERS, [record(9_999, partition=2)])
        (offset,) = appended.offsets
        assert offset is not None, appended
        found = await _tail(log, TopicPartition(ORDERS, 2), Offset(offset - 1))
        facts.read["append"] = (list(appended.statuses), offset, found.time_us)
    async with reading(facts, "append again"):
        sent = ProducerBatch(RELAY, {0: 1}, named=True)
        again = await log.append(ORDERS, [record(1)], producer=sent)
        facts.read["append again"] = list(again.statuses)


async def _tail(log: SqliteLog, where: TopicPartition, after: Offset) -> StoredRecord:
    reader = log.reader({where: after})
    try:
        (one,) = (await reader.next()).records()
        return one
    finally:
        reader.close()
