"""Reading: every record once, in order, pushed to who waits."""
# ruff: noqa: D103 - the name of a case is its sentence

from __future__ import annotations

import asyncio
import json

from everlog.codec import Batch
from everlog.conformance.cases import case, holds, raises, same, soon
from everlog.conformance.log.harness import (
    OTHER,
    TOPIC,
    LogUnderTest,
    everything,
    next_of,
    numbers_of,
    opened,
    read_through,
    read_to_head,
    record,
    records,
)
from everlog.errors import Closed
from everlog.log import Log, Reader
from everlog.position import BEGINNING, Offset, TopicPartition

_ZERO = TopicPartition(TOPIC, 0)
_ONE = TopicPartition(TOPIC, 1)
_ELSEWHERE = TopicPartition(OTHER, 0)


async def _last(log: Log, where: TopicPartition) -> Offset:
    return (await log.head(where.topic)).offsets[where]


async def _waiting(reader: Reader) -> asyncio.Task[Batch]:
    """Return a `next` that was started and waits."""
    task = asyncio.create_task(_next(reader))
    for _ in range(5):
        await asyncio.sleep(0)
    holds(not task.done(), "a reader waits while nothing is behind its offsets")
    return task


async def _next(reader: Reader) -> Batch:
    return await reader.next()


@case()
async def a_reader_begins_behind_the_offset_that_it_was_given(harness: LogUnderTest) -> None:
    async with opened(harness) as log:
        await log.append(TOPIC, records(0, 5))
        answer = await log.append(TOPIC, records(5, 10))
        for index, offset in enumerate(answer.offsets):  # also inside a chunk
            if offset is not None and index < 4:
                same(
                    numbers_of(await read_to_head(log, {_ZERO: offset})), list(range(6 + index, 10)), f"behind record {5 + index}"
                )


@case()
async def a_reader_at_the_head_sees_only_what_comes_later(harness: LogUnderTest) -> None:
    async with opened(harness) as log:
        await log.append(TOPIC, records(0, 5))
        reader = log.reader((await log.head(TOPIC)).offsets)
        await log.append(TOPIC, records(5, 7))
        same(numbers_of(list((await next_of(reader)).records())), [5, 6], "the records")


@case()
async def a_waiting_reader_is_woken_by_an_append(harness: LogUnderTest) -> None:
    async with opened(harness) as log:
        reader = log.reader(everything())
        for number in range(5):
            waiting = await _waiting(reader)
            await log.append(TOPIC, [record(number, partition=number % 4)])
            batch = await soon(waiting, "a waiting reader is woken by an append")
            same(numbers_of(list(batch.records())), [number], "the records")


@case()
async def a_cancelled_wait_loses_nothing(harness: LogUnderTest) -> None:
    async with opened(harness) as log:
        reader = log.reader({_ZERO: BEGINNING})
        for number in range(0, 60, 2):
            waiting = await _waiting(reader)
            appending = asyncio.ensure_future(log.append(TOPIC, [record(number), record(number + 1)]))
            if number % 4:
                await appending
            for _ in range(number % 7):  # cancelled before, while and after it is woken
                await asyncio.sleep(0)
            waiting.cancel()
            try:
                found = list((await waiting).records())
            except asyncio.CancelledError:
                await appending
                found = await read_through(reader, {_ZERO: await _last(log, _ZERO)})
            await appending
            same(numbers_of(found), [number, number + 1], "the records after a cancelled wait")


@case()
async def a_reader_is_woken_by_what_it_is_assigned_while_it_waits(harness: LogUnderTest) -> None:
    async with opened(harness) as log:
        await log.append(TOPIC, [record(1, partition=1)])
        reader = log.reader({_ZERO: BEGINNING})
        waiting = await _waiting(reader)
        reader.assign({_ONE: BEGINNING})
        batch = await soon(waiting, "a waiting reader is woken by an assignment with records")
        same(numbers_of(list(batch.records())), [1], "the records")
        await log.append(TOPIC, [record(2)])
        same(numbers_of(list((await next_of(reader)).records())), [2], "the records of what it had before")


@case()
async def a_reader_of_nothing_waits_until_it_is_assigned_something(harness: LogUnderTest) -> None:
    async with opened(harness) as log:
        await log.append(TOPIC, records(0, 3))
        reader = log.reader({})
        waiting = await _waiting(reader)
        reader.assign({_ZERO: BEGINNING})
        batch = await soon(waiting, "a reader of nothing is woken by its first assignment")
        same(numbers_of(list(batch.records())), [0, 1, 2], "the records")


@case()
async def a_partition_that_is_assigned_again_goes_on_from_where_it_stands(harness: LogUnderTest) -> None:
    async with opened(harness) as log:
        await log.append(TOPIC, records(0, 5))
        reader = log.reader(everything())
        await read_through(reader, {_ZERO: await _last(log, _ZERO)})
        reader.assign({_ZERO: BEGINNING})
        await log.append(TOPIC, [record(5)])
        same(numbers_of(list((await next_of(reader)).records())), [5], "the records after assigning it again")


@case()
async def a_partition_that_is_revoked_and_assigned_goes_back(harness: LogUnderTest) -> None:
    async with opened(harness) as log:
        offsets = (await log.append(TOPIC, records(0, 5))).offsets
        reader = log.reader(everything())
        await read_through(reader, {_ZERO: await _last(log, _ZERO)})
        reader.revoke([_ZERO])
        reader.assign({_ZERO: offsets[1] or BEGINNING})
        same(numbers_of(list((await next_of(reader)).records())), [2, 3, 4], "the records after going back")


@case()
async def nothing_comes_of_a_partition_after_it_was_revoked(harness: LogUnderTest) -> None:
    async with opened(harness) as log:
        await log.append(TOPIC, [record(0), record(1, partition=1)])
        reader = log.reader({_ZERO: BEGINNING, _ONE: BEGINNING})
        reader.revoke([_ZERO, TopicPartition(TOPIC, 3)])  # one that was never assigned changes nothing
        same(numbers_of(list((await next_of(reader)).records())), [1], "the records of what is left")
        waiting = await _waiting(reader)
        reader.revoke([_ONE])
        reader.assign({_ELSEWHERE: BEGINNING})
        await log.append(TOPIC, [record(2), record(3, partition=1)])
        await log.append(OTHER, [record(4)])
        batch = await soon(waiting, "a waiting reader is woken by what it still has")
        same(numbers_of(list(batch.records())), [4], "the records after revoking while it waits")


@case()
async def a_revoked_partition_that_is_assigned_again_leaves_out_nothing(harness: LogUnderTest) -> None:
    async with opened(harness) as log:
        reader = log.reader({_ZERO: BEGINNING})
        await log.append(TOPIC, records(0, 4))
        batch = await next_of(reader)
        reader.revoke([_ZERO])
        await log.append(TOPIC, records(4, 8))
        reader.assign({_ZERO: batch.through[_ZERO]})
        found = list(batch.records()) + await read_through(reader, {_ZERO: await _last(log, _ZERO)})
        same(numbers_of(found), list(range(8)), "the records")


@case()
async def reading_has_neither_gap_nor_double_while_others_append(harness: LogUnderTest) -> None:
    count, writers = 120, 4
    async with opened(harness) as log:
        expected: dict[int, list[int]] = {0: [], 1: [], 2: [], 3: []}

        async def write(writer: int) -> None:
            for step in range(count // writers):
                start = (writer * count + step) * 10
                partition = (writer + step) % 4
                call = log.append(TOPIC, records(start, start + 1 + step % 7, partition=partition))
                expected[partition].extend(range(start, start + 1 + step % 7))
                await call

        reader = log.reader(everything())
        tasks = [asyncio.create_task(write(writer)) for writer in range(writers)]
        found: list[tuple[int, int]] = []
        total = sum(1 + step % 7 for step in range(count // writers)) * writers
        while len(found) < total:
            batch = await soon(reader.next(max_records=5), "a reader keeps up with what is appended")
            found.extend((one.partition, one.time_us) for one in batch.records())
        await asyncio.gather(*tasks)
        for partition, numbers in expected.items():
            same([number for where, number in found if where == partition], numbers, f"partition {partition}")


@case()
async def a_batch_ends_with_the_chunk_that_reaches_a_bound(harness: LogUnderTest) -> None:
    async with opened(harness) as log:
        for start in range(0, 200, 10):
            await log.append(TOPIC, records(start, start + 10, partition=start // 10 % 2))
        for bounds in ({"max_records": 25}, {"max_bytes": 700}, {"max_records": 1}, {"max_bytes": 1}):
            reader = log.reader(everything())
            found: list[int] = []
            while len(found) < 200:
                batch = await soon(reader.next(**bounds), "a reader returns what is behind its offsets")
                before = batch.chunks[:-1]
                holds(
                    sum(len(chunk) for chunk in before) < bounds.get("max_records", 1000),
                    f"a batch keeps {bounds} but for its last chunk",
                )
                holds(
                    sum(len(chunk.data) for chunk in before) < bounds.get("max_bytes", 1 << 20),
                    f"a batch keeps {bounds} but for its last chunk",
                )
                found.extend(numbers_of(list(batch.records())))
            same(sorted(found), list(range(200)), f"the records read with {bounds}")


@case()
async def another_reader_goes_on_where_a_batch_ended(harness: LogUnderTest) -> None:
    async with opened(harness) as log:
        for start in range(0, 60, 6):
            await log.append(TOPIC, records(start, start + 6, partition=start // 6 % 4))
        after = everything()
        found: list[int] = []
        while len(found) < 60:
            reader = log.reader(after)
            batch = await soon(reader.next(max_records=7), "a reader returns what is behind its offsets")
            reader.close()
            found.extend(numbers_of(list(batch.records())))
            after.update(batch.through)
        same(sorted(found), list(range(60)), "the records")


@case()
async def what_was_scanned_covers_every_record_that_came(harness: LogUnderTest) -> None:
    async with opened(harness) as log:
        await log.append(TOPIC, [record(number, partition=number % 4) for number in range(40)])
        batch = await next_of(log.reader(everything()))
        holds(len(batch.chunks) > 0, "a batch holds something")
        for chunk in batch.chunks:
            holds(batch.through[chunk.where] >= chunk.last, f"`through` covers {chunk.where}")


@case()
async def readers_do_not_take_from_each_other(harness: LogUnderTest) -> None:
    async with opened(harness) as log:
        one, two = log.reader(everything()), log.reader(everything())
        await log.append(TOPIC, records(0, 3))
        same(numbers_of(list((await next_of(one)).records())), [0, 1, 2], "the first reader's records")
        one.close()
        one.close()
        same(numbers_of(list((await next_of(two)).records())), [0, 1, 2], "the second reader's records")


@case()
async def one_reader_waits_for_several_topics(harness: LogUnderTest) -> None:
    async with opened(harness) as log:
        reader = log.reader({**everything(TOPIC), **everything(OTHER)})
        for number, topic in enumerate((OTHER, TOPIC, OTHER)):
            waiting = await _waiting(reader)
            await log.append(topic, [record(number, partition=2)])
            batch = await soon(waiting, "a reader of two topics is woken by each")
            same([(one.topic, one.time_us) for one in batch.records()], [(topic, number)], "the record")


@case()
async def a_busy_partition_does_not_starve_another(harness: LogUnderTest) -> None:
    async with opened(harness) as log:
        for number in range(20):
            await log.append(TOPIC, [record(number)])
        await log.append(TOPIC, [record(777, partition=1)])
        reader = log.reader({_ZERO: BEGINNING, _ONE: BEGINNING})
        for number in range(20, 120):
            await log.append(TOPIC, [record(number)])
            harness.clock.advance(0.001)
            batch = await soon(reader.next(max_records=1), "a reader returns what is behind its offsets")
            if any(one.partition == 1 for one in batch.records()):
                return
        holds(False, "a record behind 20 of a busier partition comes within 100 batches of one chunk")


@case()
async def a_chunk_says_of_its_records_what_they_say_themselves(harness: LogUnderTest) -> None:
    async with opened(harness) as log:
        await log.append(TOPIC, records(0, 20))
        for chunk in (await next_of(log.reader(everything()))).chunks:
            data = json.loads(chunk.data)
            same(len(data), chunk.length, "the elements of its JSON array")
            for index in range(chunk.start, chunk.length):
                one = chunk.record(index)
                type_name, schema = chunk.types[chunk.type_of[index] if chunk.type_of else 0]
                told = (chunk.offset(index), chunk.keys[index], type_name, schema, chunk.slice(index), chunk.logged_at_us(index))
                same(told, (one.offset, one.key, one.type, one.schema, one.data, one.logged_at_us), f"record {index}")
                same(data[index], json.loads(one.data), f"element {index}")


@case()
async def a_waiting_reader_is_told_that_the_log_was_closed(harness: LogUnderTest) -> None:
    async with opened(harness) as log:
        reader = log.reader(everything())
        waiting = await _waiting(reader)
        await log.aclose()
        with raises(Closed):
            await soon(waiting, "a waiting reader is told that the log was closed")
