"""History: first, head, positions by time, what waits, and the log's own time."""
# ruff: noqa: D103 - the name of a case is its sentence

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

import msgspec

from everlog.clock import to_datetime
from everlog.conformance.cases import case, holds, raises, same
from everlog.conformance.log.harness import (
    OTHER,
    TOPIC,
    LogUnderTest,
    everything,
    numbers_of,
    opened,
    read_to_head,
    record,
    records,
)
from everlog.log import Log
from everlog.position import Offset, Position

_MOMENT: Final = timedelta(microseconds=1)


async def _records_behind(log: Log, position: Position) -> list[int]:
    return sorted(numbers_of(await read_to_head(log, position.offsets)))


@case()
async def first_and_head_of_an_empty_topic_name_every_partition(harness: LogUnderTest) -> None:
    async with opened(harness) as log:
        for position in (await log.first(TOPIC), await log.head(TOPIC)):
            same(set(position.offsets), set(everything()), "the partitions")
            same(position.log, log.identity, "the log")


@case()
async def everything_is_behind_first_and_nothing_behind_head(harness: LogUnderTest) -> None:
    async with opened(harness) as log:
        empty = await log.head(TOPIC)
        await log.append(TOPIC, [record(number, partition=number % 4) for number in range(10)])
        same(await _records_behind(log, await log.first(TOPIC)), list(range(10)), "behind first")
        same(await _records_behind(log, empty), list(range(10)), "behind the head of the empty topic")
        same(await _records_behind(log, await log.head(TOPIC)), [], "behind head")


@case()
async def a_sound_log_verifies_without_findings(harness: LogUnderTest) -> None:
    async with opened(harness) as log:
        same(list(await log.verify()), [], "the findings of an empty log")
        await log.append(TOPIC, [record(number, partition=number % 4) for number in range(10)])
        same(list(await log.verify()), [], "the findings")


@case()
async def a_position_survives_as_text(harness: LogUnderTest) -> None:
    async with opened(harness) as log:
        await log.append(TOPIC, [record(number, partition=number % 4) for number in range(10)])
        head = await log.head(TOPIC)
        same(Position.parse(head.token(), log=log.identity), head, "the position")


@case(needs="log_time")
async def a_record_has_the_time_of_the_log(harness: LogUnderTest) -> None:
    async with opened(harness) as log:
        times: list[int] = []
        for number in range(3):
            harness.clock.advance(60)
            times.append(harness.clock.wall_us())
            await log.append(TOPIC, [record(number)])
        same([one.logged_at_us for one in await read_to_head(log, everything())], times, "the times")


@case(needs="log_time")
async def the_time_of_the_log_never_goes_back_though_the_clock_does(harness: LogUnderTest) -> None:
    async with opened(harness) as log:
        await log.append(TOPIC, [record(0)])
        latest = harness.clock.wall_us()
        harness.clock.jump(-3600)
        await log.append(TOPIC, [record(1)])
        await log.append(OTHER, [record(2)])
        await log.append(TOPIC, [record(3, partition=1)])
        found = await read_to_head(log, {**everything(TOPIC), **everything(OTHER)})
        same([one.logged_at_us for one in found], [latest] * 4, "the times while the clock is behind")
        harness.clock.advance(3601)
        await log.append(TOPIC, [record(4)])
        (newest,) = [one for one in await read_to_head(log, everything()) if one.time_us == 4]
        same(newest.logged_at_us, latest + 1_000_000, "the time once the clock is ahead again")


@case(needs="log_time")
async def what_move_brings_keeps_its_time(harness: LogUnderTest) -> None:
    async with opened(harness) as log:
        moved = [msgspec.structs.replace(record(n), logged_at_us=1_000_000 * (n + 1)) for n in range(3)]
        await log.append(TOPIC, [*moved, record(3)])
        found = [one.logged_at_us for one in await read_to_head(log, everything())]
        same(found, [1_000_000, 2_000_000, 3_000_000, harness.clock.wall_us()], "the times")


@case(needs="log_time")
async def every_record_of_a_time_or_later_is_behind_its_position(harness: LogUnderTest) -> None:
    async with opened(harness) as log:
        times: list[datetime] = []
        for number in range(6):
            harness.clock.advance(10)
            times.append(to_datetime(harness.clock.wall_us()))
            await log.append(TOPIC, [record(2 * number, partition=number % 3), record(2 * number + 1, partition=3)])
        for number, time in enumerate(times):
            for asked, first in ((time, 2 * number), (time - _MOMENT, 2 * number), (time + _MOMENT, 2 * number + 2)):
                behind = await _records_behind(log, await log.position_at(TOPIC, asked))
                missing = set(range(first, 12)) - set(behind)
                same(sorted(missing), [], f"records missing behind {asked}")
        same(
            await _records_behind(log, await log.position_at(TOPIC, datetime(1970, 1, 1, tzinfo=UTC))),
            list(range(12)),
            "from 1970",
        )
        future = await log.position_at(TOPIC, times[-1] + timedelta(days=1))
        same(await _records_behind(log, future), [], "from tomorrow")


@case()
async def a_time_without_a_zone_is_refused(harness: LogUnderTest) -> None:
    async with opened(harness) as log:
        with raises(ValueError, "zone"):
            await log.position_at(TOPIC, datetime(2026, 1, 1))  # noqa: DTZ001 - that is the point


@case()
async def the_backlog_counts_at_least_what_waits(harness: LogUnderTest) -> None:
    async with opened(harness) as log:
        same((await log.backlog(TOPIC, {0: Offset(-1)})).count, 0, "of an empty topic")
        offsets = (await log.append(TOPIC, [record(number, partition=number % 2) for number in range(20)])).offsets
        everywhere = {partition: Offset(-1) for partition in range(4)}
        holds((await log.backlog(TOPIC, everywhere)).count >= 20, "20 records wait behind the beginning")
        holds((await log.backlog(TOPIC, {0: Offset(-1)})).count >= 10, "10 records wait in one partition")
        holds((await log.backlog(TOPIC, {0: offsets[10] or Offset(-1)})).count >= 4, "4 records wait behind the sixth")
        head = await log.head(TOPIC)
        done = await log.backlog(TOPIC, {where.partition: offset for where, offset in head.offsets.items()})
        same((done.count, done.oldest_us), (0, None), "at the head")
        same((await log.backlog(TOPIC, {})).count, 0, "of no partition")


@case(needs="total_order")
async def the_backlog_of_a_log_that_orders_its_commits_is_exact(harness: LogUnderTest) -> None:
    async with opened(harness) as log:
        await log.append(TOPIC, records(0, 5))
        offsets = (await log.append(TOPIC, records(5, 10))).offsets
        for index, offset in enumerate(offsets):
            same((await log.backlog(TOPIC, {0: offset or Offset(-1)})).count, 4 - index, f"behind record {5 + index}")


@case(needs="log_time")
async def the_backlog_tells_when_the_oldest_was_stored(harness: LogUnderTest) -> None:
    async with opened(harness) as log:
        times: list[int] = []
        for number in range(4):
            harness.clock.advance(10)
            times.append(harness.clock.wall_us())
            await log.append(TOPIC, [record(number, partition=3 - number)])
        behind = {partition: Offset(-1) for partition in range(4)}
        same((await log.backlog(TOPIC, behind)).oldest_us, times[0], "of everything")
        same((await log.backlog(TOPIC, {0: Offset(-1), 1: Offset(-1)})).oldest_us, times[2], "of two partitions")
