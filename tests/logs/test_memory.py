"""What the log in memory adds to the port: its URL, and sessions that are forgotten."""

from __future__ import annotations

import gc

import pytest

from everlog.codec import MAX_CHUNK_RECORDS
from everlog.errors import Closed, TopicMissing
from everlog.log import Log, ProducerBatch, Status, TopicSpec
from everlog.logs.memory import MemoryLog, open_log
from everlog.position import BEGINNING, TopicPartition
from everlog.record import NewRecord
from everlog.testing.clock import ManualClock

DAY_S = 24 * 3600
TOPIC = "shop.orders"
WHERE = TopicPartition(TOPIC, 0)


def record(number: int, data: bytes = b"{}") -> NewRecord:
    return NewRecord("shop.order_placed/1", data, "k", 0, "shop", number)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


async def log_with(clock: ManualClock) -> Log:
    log = await open_log("memory:", clock=clock)
    await log.ensure_topic(TopicSpec(TOPIC, key="id", partitions=1))
    return log


async def kept(log: Log) -> list[int]:
    if (await log.first(TOPIC)) == (await log.head(TOPIC)):
        return []
    batch = await log.reader({WHERE: BEGINNING}).next(max_records=1_000_000, max_bytes=1 << 40)
    return [one.time_us for one in batch.records()]


async def test_each_opening_is_another_log(clock: ManualClock) -> None:
    one, two = await open_log("memory:", clock=clock), await open_log("memory:", clock=clock)
    await one.ensure_topic(TopicSpec(TOPIC, key=None))
    assert one.identity != two.identity
    assert await two.topics() == []


@pytest.mark.parametrize("url", ["memory:name", "memory://host", "sqlite:x", "memory"])
async def test_a_url_with_more_than_the_scheme_is_refused(url: str, clock: ManualClock) -> None:
    with pytest.raises(ValueError, match="memory:"):
        await open_log(url, clock=clock)


async def test_a_topic_without_partitions_is_refused(clock: ManualClock) -> None:
    log = await open_log("memory:", clock=clock)
    with pytest.raises(ValueError, match="at least one partition"):
        await log.ensure_topic(TopicSpec(TOPIC, key=None, partitions=0))


async def test_a_session_producer_that_is_idle_for_seven_days_is_forgotten(clock: ManualClock) -> None:
    log = await log_with(clock)
    await log.append(TOPIC, [record(0)], producer=ProducerBatch("session", {0: 0}))
    await log.append(TOPIC, [record(0)], producer=ProducerBatch("relay", {0: 0}, named=True))
    clock.advance(7 * DAY_S)
    await log.append(TOPIC, [record(1)], producer=ProducerBatch("other", {0: 0}))
    assert await log.last_sequence("session", TOPIC) == {}
    assert await log.last_sequence("relay", TOPIC) == {0: 0}
    assert await log.last_sequence("other", TOPIC) == {0: 0}


async def test_a_session_producer_that_gives_a_name_once_is_remembered(clock: ManualClock) -> None:
    log = await log_with(clock)
    await log.append(TOPIC, [record(0)], producer=ProducerBatch("p", {0: 0}))
    await log.append(TOPIC, [record(1)], producer=ProducerBatch("p", {0: 1}, named=True))
    await log.append(TOPIC, [record(2)], producer=ProducerBatch("p", {0: 2}))
    clock.advance(30 * DAY_S)
    await log.append(TOPIC, [record(0)], producer=ProducerBatch("q", {0: 0}))
    answer = await log.append(TOPIC, [record(0)], producer=ProducerBatch("p", {0: 0}))
    assert list(answer.statuses) == [Status.DUPLICATE]


async def test_a_large_append_is_cut_into_chunks_and_runs_follow(clock: ManualClock) -> None:
    log = await log_with(clock)
    await log.append(TOPIC, [record(n) for n in range(MAX_CHUNK_RECORDS + 1)], producer=ProducerBatch("p", {0: 10}))
    batch = await log.reader({WHERE: BEGINNING}).next(max_records=10_000)
    assert [len(chunk) for chunk in batch.chunks] == [MAX_CHUNK_RECORDS, 1]
    assert batch.chunks[1].producer(0) == ("p", 10 + MAX_CHUNK_RECORDS)


async def test_older_chunks_of_other_partitions_come_first(clock: ManualClock) -> None:
    log = await open_log("memory:", clock=clock)
    await log.ensure_topic(TopicSpec(TOPIC, key=None, partitions=3))
    for number in range(6):
        clock.advance(1)
        await log.append(TOPIC, [NewRecord("a/1", b"1", None, (5 - number) % 3, "shop", number)])
    reader = log.reader({TopicPartition(TOPIC, partition): BEGINNING for partition in range(3)})
    assert [one.time_us for one in (await reader.next()).records()] == [0, 1, 2, 3, 4, 5]


async def test_a_reader_of_what_does_not_exist_is_refused(clock: ManualClock) -> None:
    log = await log_with(clock)
    with pytest.raises(TopicMissing):
        log.reader({TopicPartition("shop.missing", 0): BEGINNING})
    with pytest.raises(ValueError, match="partitions 0 to 0"):
        log.reader({TopicPartition(TOPIC, 1): BEGINNING})


async def test_a_closed_reader_raises_closed_and_its_log_goes_on(clock: ManualClock) -> None:
    log = await log_with(clock)
    reader = log.reader({WHERE: BEGINNING})
    await log.append(TOPIC, [record(0)])
    reader.close()
    with pytest.raises(Closed):
        await reader.next()
    assert await kept(log) == [0]


async def test_a_reader_that_nobody_holds_is_let_go(clock: ManualClock) -> None:
    log = MemoryLog(clock)
    await log.ensure_topic(TopicSpec(TOPIC, key=None, partitions=1))
    log.reader({WHERE: BEGINNING})
    gc.collect()
    assert len(log._readers) == 0  # pyright: ignore[reportPrivateUsage] - nothing else shows it
