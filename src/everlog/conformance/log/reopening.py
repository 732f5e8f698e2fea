"""Reopening: what was acknowledged is there again, and so is all that was remembered."""
# ruff: noqa: D103 - the name of a case is its sentence

from __future__ import annotations

import asyncio

import msgspec

from everlog.conformance.cases import case, holds, raises, same
from everlog.conformance.log.harness import (
    SPEC,
    TOPIC,
    LogUnderTest,
    everything,
    numbered,
    numbers_of,
    opened,
    read_to_head,
    record,
    records,
    sender,
)
from everlog.errors import Closed, SequenceReused
from everlog.log import Appended, Log, Status, TopicSpec
from everlog.position import TopicPartition


@case(needs="durability")
async def a_log_that_is_opened_again_is_the_same(harness: LogUnderTest) -> None:
    async with opened(harness) as log:
        await log.ensure_topic(msgspec.structs.replace(SPEC, types={"a.b/1": b"{}"}))
        await log.append(TOPIC, [record(number, partition=number % 4) for number in range(50)])
        identity, topics, head = log.identity, await log.topics(), await log.head(TOPIC)
        before = await read_to_head(log, everything())
    async with opened(harness) as log:
        same(log.identity, identity, "its identity")
        same(list(await log.topics()), list(topics), "its topics")
        same(await log.head(TOPIC), head, "its head")
        found = await read_to_head(log, everything())
        same(sorted(found, key=lambda one: one.time_us), sorted(before, key=lambda one: one.time_us), "its records")


@case(needs="durability")
async def offsets_go_on_after_reopening(harness: LogUnderTest) -> None:
    offsets: list[int] = []
    for start in range(0, 9, 3):
        async with opened(harness) as log:
            offsets += [offset for offset in (await log.append(TOPIC, records(start, start + 3))).offsets if offset is not None]
    async with opened(harness) as log:
        same(offsets, sorted(set(offsets)), "the offsets")
        same(numbers_of(await read_to_head(log, everything())), list(range(9)), "the records")


@case(needs="durability")
async def numbers_are_remembered_after_reopening(harness: LogUnderTest) -> None:
    async with opened(harness) as log:
        if not log.features.dedupes:
            return
        await numbered(log, 0, 3)
        await numbered(log, 5, 8)
    async with opened(harness) as log:
        same(dict(await log.last_sequence("p", TOPIC)), {0: 7}, "the highest number")
        with raises(SequenceReused):
            await log.append(TOPIC, [record(5, text="other"), record(6), record(7)], producer=sender("p", 5))
        same(list((await numbered(log, 5, 8)).statuses), [Status.DUPLICATE] * 3, "the newest batch")
        expected = [Status.DUPLICATE] * 3 + [Status.STORED] * 2 + [Status.DUPLICATE] * 3 + [Status.STORED]
        same(list((await numbered(log, 0, 9)).statuses), expected, "all of it with the missing ones")
        same(sorted(numbers_of(await read_to_head(log, everything()))), list(range(9)), "the records")


@case(needs="durability")
async def the_time_of_the_log_does_not_go_back_over_reopening(harness: LogUnderTest) -> None:
    async with opened(harness) as log:
        if not log.features.log_time:
            return
        await log.append(TOPIC, [record(0)])
        latest = harness.clock.wall_us()
    harness.clock.jump(-3600)
    async with opened(harness) as log:
        await log.append(TOPIC, [record(1)])
        same([one.logged_at_us for one in await read_to_head(log, everything())], [latest] * 2, "the times")


@case(needs="durability")
async def what_was_trimmed_stays_gone_after_reopening(harness: LogUnderTest) -> None:
    async with opened(harness) as log:
        if not log.features.retention:
            return
        await numbered(log, 0, 3)
        head, gone_us = await log.head(TOPIC), harness.clock.wall_us()
        await log.trim(TOPIC, head)
    harness.clock.advance(60)
    async with opened(harness) as log:
        same(await log.first(TOPIC), head, "the first position")
        same(dict(await log.gone_through(TOPIC)), {0: gone_us}, "through when it is gone")
        same(list(await log.verify()), [], "the findings")
        same(await log.head(TOPIC), head, "the head")
        same(list((await numbered(log, 0, 3)).statuses), [Status.DUPLICATE] * 3, "what was sent before")
        (offset,) = (await log.append(TOPIC, [record(3)], producer=sender("p", 3))).offsets
        holds(offset is not None and offset > head.offsets[TopicPartition(TOPIC, 0)], "offsets never come again")
        same(numbers_of(await read_to_head(log, head.offsets)), [3], "the records")


@case(needs="durability")
async def the_newest_records_of_keys_are_known_after_reopening(harness: LogUnderTest) -> None:
    spec = TopicSpec("conformance.newest", key="id", partitions=1, keep_s=60.0, keep_newest=True)
    async with opened(harness) as log:
        if not log.features.retention:
            return
        await log.ensure_topic(spec)
        for number in range(14):  # of 7 keys
            await log.append(spec.name, [record(number)])
        harness.clock.advance(3600)
    async with opened(harness) as log:
        same(await log.retain(), 7, "the number of records deleted")
        same(numbers_of(await read_to_head(log, everything(spec.name, 1))), list(range(7, 14)), "the records")


@case(needs="durability")
async def closing_finishes_what_was_accepted(harness: LogUnderTest) -> None:
    async with opened(harness) as log:
        calls = [asyncio.ensure_future(log.append(TOPIC, [record(number)])) for number in range(20)]
        await log.aclose()
        answers = await asyncio.gather(*calls, return_exceptions=True)
        stored = [n for n, answer in enumerate(answers) if isinstance(answer, Appended) and answer.settled]
        others = [answer for answer in answers if not isinstance(answer, (Appended, Closed))]
        same(others, [], "other answers than an outcome and Closed")
    async with opened(harness) as log:
        found = numbers_of(await read_to_head(log, everything()))
        holds(set(stored) <= set(found), f"what was acknowledged is there: expected {stored}, found {found}")
        same(found, sorted(found), "their order")


@case(needs="durability")
async def a_second_closing_does_nothing(harness: LogUnderTest) -> None:
    log: Log = await harness.open()
    await asyncio.gather(log.aclose(), log.aclose())
    await log.aclose()
    async with opened(harness) as again:
        await again.append(TOPIC, [record(0)])
