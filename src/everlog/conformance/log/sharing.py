"""Sharing: two handles of one log see one truth. Adapters test two processes beside this suite."""
# ruff: noqa: D103 - the name of a case is its sentence

from __future__ import annotations

import asyncio

from everlog.conformance.cases import case, raises, same, soon
from everlog.conformance.log.harness import (
    TOPIC,
    LogUnderTest,
    everything,
    next_of,
    numbered,
    numbers_of,
    opened,
    read_to_head,
    record,
    records,
)
from everlog.errors import RecordsGone
from everlog.log import Status, TopicSpec
from everlog.position import BEGINNING, TopicPartition


@case(needs="shared")
async def two_handles_are_one_log(harness: LogUnderTest) -> None:
    async with opened(harness) as one, opened(harness) as two:
        same(two.identity, one.identity, "the identity")
        await one.ensure_topic(TopicSpec("conformance.late", key=None, partitions=2))
        await two.append("conformance.late", [record(1, partition=1)])
        same(await one.head("conformance.late"), await two.head("conformance.late"), "the head")
        same(list(await one.topics()), list(await two.topics()), "the topics")


@case(needs="shared")
async def a_waiting_reader_is_woken_by_an_append_of_another_handle(harness: LogUnderTest) -> None:
    async with opened(harness) as one, opened(harness) as two:
        reader = one.reader(everything())
        for number in range(5):
            waiting = asyncio.create_task(next_of(reader))
            await asyncio.sleep(0)
            await two.append(TOPIC, [record(number, partition=number % 4)])
            batch = await soon(waiting, "a waiting reader is woken by an append of another handle")
            same(numbers_of(list(batch.records())), [number], "the records")


@case(needs="shared")
async def a_number_that_another_handle_stored_is_a_duplicate(harness: LogUnderTest) -> None:
    async with opened(harness) as one, opened(harness) as two:
        for start in range(0, 12, 3):
            same(list((await numbered(one, start, start + 3)).statuses), [Status.STORED] * 3, "the first handle's outcome")
            same(list((await numbered(two, start, start + 3)).statuses), [Status.DUPLICATE] * 3, "the second handle's")
        same(numbers_of(await read_to_head(two, everything())), list(range(12)), "the records")


@case(needs="shared")
async def two_handles_that_append_at_once_leave_neither_gap_nor_double(harness: LogUnderTest) -> None:
    async with opened(harness) as one, opened(harness) as two:
        calls = [
            log.append(TOPIC, records(start + 100 * step, start + 100 * step + 5))
            for step in range(30)
            for log, start in ((one, 0), (two, 50))
        ]
        answers = await asyncio.gather(*calls)
        offsets = sorted(offset for answer in answers for offset in answer.offsets if offset is not None)
        same(len(set(offsets)), 300, "the number of distinct offsets")
        found = await read_to_head(one, everything())
        same([one.offset for one in found], offsets, "the offsets read")
        for start in (0, 50):
            mine = [number for number in numbers_of(found) if number % 100 // 50 == start // 50]
            same(mine, [start + 100 * step + n for step in range(30) for n in range(5)], f"the order of the handle from {start}")


@case(needs="shared")
async def what_one_handle_deletes_is_gone_for_the_other(harness: LogUnderTest) -> None:
    async with opened(harness) as one, opened(harness) as two:
        if not one.features.retention:
            return
        await two.append(TOPIC, records(0, 3))
        reader = two.reader({TopicPartition(TOPIC, 0): BEGINNING})
        await one.trim(TOPIC, await one.head(TOPIC))
        same(await two.first(TOPIC), await one.head(TOPIC), "the first position")
        with raises(RecordsGone, TOPIC):
            await next_of(reader)
        offsets = (await two.append(TOPIC, records(3, 5))).offsets
        same(numbers_of(await read_to_head(one, (await one.first(TOPIC)).offsets)), [3, 4], "the records")
        same(len({*offsets, *(await one.append(TOPIC, records(5, 7))).offsets}), 4, "the number of distinct offsets")


@case(needs="shared")
async def limits_that_one_handle_sets_are_those_of_the_other(harness: LogUnderTest) -> None:
    async with opened(harness) as one, opened(harness) as two:
        if not one.features.retention:
            return
        await two.append(TOPIC, records(0, 3))
        await one.set_retention(TOPIC, keep_s=60.0, keep_bytes=None)
        harness.clock.advance(61)
        same(await two.retain(), 3, "the number of records deleted under the limit of the other")
        await two.append(TOPIC, records(3, 5))
        await one.set_retention(TOPIC, keep_s=None, keep_bytes=None)
        harness.clock.advance(61)
        same(await two.retain(), 0, "the number of records deleted without a limit")
