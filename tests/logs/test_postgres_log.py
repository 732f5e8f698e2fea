"""What only a log with many writers at once can get wrong: a reader that passes over what commits late, segments, a server that dies."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Generator

import psycopg
import pytest
from tests.postgres import PostgresSchema
from tests.servers import postgres_url

from everlog.clock import SystemClock
from everlog.drivers.postgres.database import Connection, NothingStored
from everlog.log import Log, ProducerBatch, Reader, Status, TopicSpec
from everlog.logs import postgres
from everlog.logs.postgres import segments
from everlog.logs.postgres.log import PostgresLog
from everlog.logs.postgres.reader import PostgresReader
from everlog.position import BEGINNING, Offset, TopicPartition
from everlog.record import NewRecord

WRITERS = 64
APPENDS = 12
PARTITIONS = 4
TOPIC = "postgres.orders"


@pytest.fixture
def schema() -> Generator[PostgresSchema]:
    made = PostgresSchema(postgres_url())
    yield made
    made.drop()


def record(number: int, partition: int, source: str) -> NewRecord:
    return NewRecord("postgres.happened/1", b'{"n":%d}' % number, f"k{partition}", partition, source, number)


class Moody:
    """Makes the transactions of a log last for random times, and a tenth of them fail at the end."""

    def __init__(self, log: PostgresLog, dice: random.Random) -> None:
        self._dice = dice
        self._apply = log._writer._apply
        log._writer._apply = self.apply  # type: ignore[method-assign, assignment]
        self.failures = 0

    async def apply(self, connection: Connection, jobs: object) -> object:
        results = await self._apply(connection, jobs)  # type: ignore[arg-type]
        await asyncio.sleep(self._dice.random() * 0.02)
        if self._dice.random() < 0.1:
            self.failures += 1
            await connection.execute("SELECT 1 / 0")
        return results


async def write(schema: PostgresSchema, number: int) -> tuple[int, dict[int, int]]:
    """Append under numbers, from a connection pool of its own, until all is stored; return the failures met, and the last number of each partition."""
    dice = random.Random(number)
    log = await postgres.open_log(schema.url, clock=SystemClock())
    assert isinstance(log, PostgresLog)
    moody = Moody(log, dice)
    last: dict[int, int] = {}
    try:
        for _ in range(APPENDS):
            partition = dice.randrange(PARTITIONS)
            first = last.get(partition, -1) + 1
            count = dice.randint(1, 5)
            records = [record(one, partition, f"w{number}") for one in range(first, first + count)]
            while True:
                try:
                    answer = await log.append(TOPIC, records, producer=ProducerBatch(f"w{number}", {partition: first}))
                except Exception as error:
                    if not isinstance(error.__cause__, NothingStored):
                        raise
                    continue
                assert list(answer.statuses) == [Status.STORED] * count
                break
            last[partition] = first + count - 1
    finally:
        await log.aclose()
    return moody.failures, last


async def follow(reader: Reader, total: int | None, found: dict[TopicPartition, list[Offset]]) -> None:
    while total is None or sum(map(len, found.values())) < total:
        for one in (await reader.next(max_records=7)).records():
            found.setdefault(TopicPartition(one.topic, one.partition), []).append(one.offset)


def everywhere() -> dict[TopicPartition, Offset]:
    return {TopicPartition(TOPIC, partition): BEGINNING for partition in range(PARTITIONS)}


async def race(schema: PostgresSchema) -> tuple[Log, int, dict[TopicPartition, list[Offset]], dict[int, list[tuple[str, int]]]]:
    """Let all write while readers follow; return the log, how often a transaction failed, what was followed, and what is stored."""
    log = await postgres.open_log(schema.url, clock=SystemClock())
    await log.ensure_topic(TopicSpec(TOPIC, key="id", partitions=PARTITIONS))
    followed: dict[TopicPartition, list[Offset]] = {}
    reader = log.reader(everywhere())
    following = asyncio.create_task(follow(reader, None, followed))
    results = await asyncio.gather(*[write(schema, number) for number in range(WRITERS)])
    total = sum(highest + 1 for _, last in results for highest in last.values())
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    async with asyncio.timeout(20):
        await follow(reader, total, followed)
    reader.close()
    stored: dict[int, list[tuple[str, int]]] = {}
    again = log.reader(everywhere())
    count = 0
    while count < total:
        for one in (await again.next()).records():
            stored.setdefault(one.partition, []).append((one.source, one.sequence))
            count += 1
    again.close()
    return log, sum(failures for failures, _ in results), followed, stored


async def test_no_reader_passes_over_what_commits_late(schema: PostgresSchema) -> None:
    await check_race(schema)


async def check_race(schema: PostgresSchema) -> None:
    async with asyncio.timeout(120):
        log, failures, followed, stored = await race(schema)
    assert failures > WRITERS * APPENDS // 40
    for where, offsets in followed.items():
        assert offsets == list(range(len(stored[where.partition]))), "each offset once, in order, as it was committed"
    for places in stored.values():
        for writer in {source for source, _ in places}:
            numbers = [number for source, number in places if source == writer]
            assert numbers == list(range(len(numbers))), "each record once, in the order of its sender"
    assert list(await log.verify()) == []
    await log.aclose()


async def test_the_race_catches_a_reader_that_goes_by_what_it_saw_last(
    schema: PostgresSchema, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = PostgresReader._read

    async def hasty(self: PostgresReader, max_records: int, max_bytes: int) -> list[object]:
        chunks = await whole(self, max_records, max_bytes)
        if len(chunks) > 2:  # as one that has passed over what came late
            for one in chunks[1:-1]:
                self._after[one.where] = max(self._after[one.where], one.last)
            chunks = [chunks[0], chunks[-1]]
        return list(chunks)

    monkeypatch.setattr(PostgresReader, "_read", hasty)
    with pytest.raises((AssertionError, TimeoutError)):
        async with asyncio.timeout(30):
            await check_race(schema)


# ---- segments ----


async def test_what_retention_takes_is_given_back_by_dropping_whole_tables(
    schema: PostgresSchema, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segments, "_SMALLEST_BYTES", 1 << 20)
    log = await postgres.open_log(schema.url, clock=SystemClock())
    await log.ensure_topic(TopicSpec(TOPIC, key="id", partitions=1, keep_bytes=2 << 20))
    text = b'{"t":"' + b"x" * 50_000 + b'"}'
    for number in range(40):
        await log.append(TOPIC, [NewRecord("postgres.happened/1", text, "k", 0, "s", number) for _ in range(10)])
        await log.retain()
    tables = "SELECT count(*), sum(pg_total_relation_size(inhrelid)) FROM pg_inherits JOIN topic ON inhparent = format('chunk_%s', id)::regclass"
    ((count, size),) = schema.run(tables)
    assert 2 <= count <= 6
    assert size < 8 << 20, "20 MB were stored, 2 are kept"
    first = (await log.first(TOPIC)).offsets[TopicPartition(TOPIC, 0)]
    reader = log.reader({TopicPartition(TOPIC, 0): first})
    found: list[Offset] = []
    while not found or found[-1] < 399:
        found += [one.offset for one in (await reader.next()).records()]
    assert found == list(range(first + 1, 400))
    assert schema.run("SELECT n_dead_tup FROM pg_stat_user_tables WHERE relname = 'chunk_1_1'") in ([], [(0,)])
    assert list(await log.verify()) == []
    reader.close()
    await log.aclose()


async def test_a_segment_in_use_is_dropped_later_and_keeps_nobody_waiting(
    schema: PostgresSchema, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segments, "_SMALLEST_BYTES", 1 << 16)
    log = await postgres.open_log(schema.url, clock=SystemClock())
    await log.ensure_topic(TopicSpec(TOPIC, key="id", partitions=1, keep_bytes=1 << 16))
    text = b'{"t":"' + b"x" * 50_000 + b'"}'
    for number in range(6):
        await log.append(TOPIC, [NewRecord("postgres.happened/1", text, "k", 0, "s", number)])
    await log.retain()
    before = schema.run("SELECT count(*) FROM pg_inherits")

    with psycopg.connect(schema.server) as slow:
        slow.execute(f"SELECT count(*) FROM {schema.name}.chunk".encode())  # its lock lasts as long as its transaction
        for number in range(6):
            await log.append(TOPIC, [NewRecord("postgres.happened/1", text, "k", 0, "s", number)])
        async with asyncio.timeout(5):
            await log.retain()
        assert schema.run("SELECT count(*) FROM pg_inherits") >= before
    await log.retain()
    await log.retain()
    assert list(await log.verify()) == []
    await log.aclose()
