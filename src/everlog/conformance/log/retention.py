"""Retention: what is deleted by a position or by a topic's limits, what never is, and what those are told who had not read it."""
# ruff: noqa: D103 - the name of a case is its sentence

from __future__ import annotations

from typing import Final

import msgspec

from everlog.clock import to_datetime
from everlog.conformance.cases import case, holds, raises, same
from everlog.conformance.log.harness import (
    OTHER,
    TOPIC,
    LogUnderTest,
    everything,
    next_of,
    numbered,
    numbers_of,
    opened,
    read_through,
    read_to_head,
    record,
    records,
    sender,
)
from everlog.errors import PositionRefused, RecordsGone
from everlog.log import Log, Status, TopicSpec
from everlog.position import BEGINNING, Offset, Position, TopicPartition

_ZERO: Final = TopicPartition(TOPIC, 0)
_ONE: Final = TopicPartition(TOPIC, 1)
_DAY_S: Final = 86_400.0
_MINUTE_S: Final = 60.0
_SMALL: Final = 25_000
_LIMITED: Final = "conformance.limited"
_NEWEST: Final = TopicSpec("conformance.newest", key="id", partitions=1, keep_s=_MINUTE_S, keep_newest=True)


async def _left(log: Log, topic: str = TOPIC) -> list[int]:
    return sorted(numbers_of(await read_to_head(log, (await log.first(topic)).offsets)))


async def _limited(log: Log, *, keep_s: float | None = None, keep_bytes: int | None = None) -> None:
    await log.ensure_topic(TopicSpec(_LIMITED, key="id", partitions=2, keep_s=keep_s, keep_bytes=keep_bytes))


# ---- trim ----


@case(needs="retention")
async def what_is_trimmed_is_gone_and_the_rest_stays(harness: LogUnderTest) -> None:
    async with opened(harness) as log:
        await log.append(TOPIC, records(0, 5))
        middle = await log.head(TOPIC)
        await log.append(TOPIC, [*records(5, 10), *records(10, 12, partition=1)])
        head = await log.head(TOPIC)
        await log.trim(TOPIC, middle)
        same(await _left(log), list(range(5, 12)), "the records left")
        same((await log.first(TOPIC)).offsets, middle.offsets, "the first position")
        same(await log.head(TOPIC), head, "the head")
        same((await log.backlog(TOPIC, {0: BEGINNING})).count, 5, "the backlog")
        await log.trim(TOPIC, middle)
        same((await log.first(TOPIC)).offsets, middle.offsets, "the first position after trimming again")
        same(list(await log.verify()), [], "the findings")


@case(needs="retention")
async def trimming_never_takes_a_record_behind_the_position(harness: LogUnderTest) -> None:
    async with opened(harness) as log:
        offsets = (await log.append(TOPIC, records(0, 10))).offsets
        await log.append(TOPIC, records(10, 15))
        await log.trim(TOPIC, Position(log.identity, {_ZERO: offsets[6] or BEGINNING}))
        same((await _left(log))[-8:], list(range(7, 15)), "the records behind the position")


@case(needs="retention")
async def trimming_touches_no_other_topic_and_no_partition_that_is_not_named(harness: LogUnderTest) -> None:
    async with opened(harness) as log:
        await log.append(TOPIC, [record(number, partition=number) for number in range(4)])
        await log.append(OTHER, [record(number, partition=number - 4) for number in range(4, 8)])
        head = await log.head(TOPIC)
        await log.trim(TOPIC, Position(log.identity, {_ONE: head.offsets[_ONE], **(await log.head(OTHER)).offsets}))
        same(await _left(log), [0, 2, 3], "the records left")
        same(await _left(log, OTHER), [4, 5, 6, 7], "the records of the other topic")


@case(needs="retention")
async def trimming_at_the_position_of_another_log_is_refused(harness: LogUnderTest) -> None:
    async with opened(harness) as log:
        await log.append(TOPIC, records(0, 3))
        other = msgspec.structs.replace(await log.head(TOPIC), log=type(log.identity)(int=1))
        with raises(PositionRefused):
            await log.trim(TOPIC, other)
        same(await _left(log), [0, 1, 2], "the records left")


@case(needs="retention")
async def offsets_and_numbers_go_on_after_everything_was_deleted(harness: LogUnderTest) -> None:
    async with opened(harness) as log:
        await numbered(log, 0, 3)
        head = await log.head(TOPIC)
        await log.trim(TOPIC, head)
        same(await log.first(TOPIC), head, "the first position")
        same(await log.head(TOPIC), head, "the head")
        same(dict(await log.last_sequence("p", TOPIC)), {0: 2}, "the highest number")
        same(list((await numbered(log, 0, 3)).statuses), [Status.DUPLICATE] * 3, "what was sent before")
        same(list((await numbered(log, 0, 2)).statuses), [Status.DUPLICATE] * 2, "a part of what was sent before")
        (offset,) = (await log.append(TOPIC, [record(3)], producer=sender("p", 3))).offsets
        holds(offset is not None and offset > head.offsets[_ZERO], "offsets never come again")
        same(await _left(log), [3], "the records")


# ---- limits ----


@case(needs="retention")
async def what_is_older_than_the_topic_keeps_is_deleted(harness: LogUnderTest) -> None:
    async with opened(harness) as log:
        await _limited(log, keep_s=_MINUTE_S)
        for number in range(4):
            await log.append(_LIMITED, [record(2 * number), record(2 * number + 1, partition=1)])
            harness.clock.advance(25)
        same(await _left(log, _LIMITED), list(range(8)), "the records before")
        same(await log.retain(), 4, "the number of records deleted")
        same(await _left(log, _LIMITED), [4, 5, 6, 7], "the records")
        same(await log.retain(), 0, "the number of records deleted the second time")


@case(needs="retention")
async def the_newest_records_too_become_too_old(harness: LogUnderTest) -> None:
    async with opened(harness) as log:
        await _limited(log, keep_s=_MINUTE_S)
        await log.append(_LIMITED, records(0, 3))
        head = await log.head(_LIMITED)
        harness.clock.advance(_MINUTE_S + 1)
        same(await log.retain(), 3, "the number of records deleted")
        same(await log.first(_LIMITED), head, "the first position")
        same(await log.head(_LIMITED), head, "the head")
        await log.append(_LIMITED, records(3, 5))
        same(await _left(log, _LIMITED), [3, 4], "the records")
        same(list(await log.verify()), [], "the findings")


@case(needs="retention")
async def a_clock_that_jumps_deletes_nothing(harness: LogUnderTest) -> None:
    async with opened(harness) as log:
        await _limited(log, keep_s=_DAY_S)
        await log.append(_LIMITED, records(0, 3))
        harness.clock.jump(365 * _DAY_S)
        same(await log.retain(), 0, "the number of records deleted while the clock is a year ahead")
        await log.append(TOPIC, [record(3)])
        same(await log.retain(), 0, "the number of records deleted once the log's time is a year ahead")
        harness.clock.jump(-365 * _DAY_S)
        harness.clock.advance(_DAY_S + 1)
        same(await log.retain(), 3, "the number of records deleted when they are a day old")


@case(needs="retention")
async def a_partition_keeps_at_least_the_bytes_of_its_topic_and_no_chunk_more(harness: LogUnderTest) -> None:
    async with opened(harness) as log:
        await _limited(log, keep_bytes=_SMALL)
        for number in range(8):
            await log.append(_LIMITED, [record(number, text="x" * 10_000)])
        await log.append(_LIMITED, [record(8, partition=1, text="x" * 10_000)])
        same(await log.retain(), 5, "the number of records deleted")
        same(await _left(log, _LIMITED), [5, 6, 7, 8], "the records")
        same(await log.retain(), 0, "the number of records deleted the second time")
        for number in range(9, 12):
            await log.append(_LIMITED, [record(number, text="x" * 10_000)])
        same(await log.retain(), 3, "the number of records deleted after three more")


@case(needs="retention")
async def a_chunk_larger_than_the_topic_keeps_stays_as_long_as_it_is_the_newest(harness: LogUnderTest) -> None:
    async with opened(harness) as log:
        await _limited(log, keep_bytes=100)
        for number in range(3):
            await log.append(_LIMITED, [record(number, text="x" * 10_000)])
            await log.retain()
            same(await _left(log, _LIMITED), [number], "the records")


@case(needs="retention")
async def either_limit_is_enough(harness: LogUnderTest) -> None:
    async with opened(harness) as log:
        await _limited(log, keep_s=_MINUTE_S, keep_bytes=_SMALL)
        for number in range(4):
            await log.append(_LIMITED, [record(number, text="x" * 10_000)])
        same(await log.retain(), 1, "the number of records beyond the size")
        harness.clock.advance(_MINUTE_S + 1)
        same(await log.retain(), 3, "the number of records beyond the age")


@case(needs="retention")
async def a_topic_without_limits_keeps_everything(harness: LogUnderTest) -> None:
    async with opened(harness) as log:
        for number in range(5):
            await log.append(TOPIC, [record(number, text="x" * 10_000)])
            harness.clock.advance(1_000 * 86_400)
            same(await log.retain(), 0, "the number of records deleted")
        same(await _left(log), list(range(5)), "the records")


@case(needs="retention")
async def limits_that_are_set_are_honoured_by_the_next_retain(harness: LogUnderTest) -> None:
    async with opened(harness) as log:
        await log.append(TOPIC, records(0, 3))
        await log.append(OTHER, records(3, 6))
        harness.clock.advance(_MINUTE_S + 1)
        await log.set_retention(TOPIC, keep_s=_MINUTE_S, keep_bytes=None)
        same(await _left(log), [0, 1, 2], "the records before")
        same(await log.retain(), 3, "the number of records deleted")
        same(await _left(log, OTHER), [3, 4, 5], "the records of the other topic")


@case(needs="retention")
async def a_thousand_chunks_are_deleted_in_one_call(harness: LogUnderTest) -> None:
    async with opened(harness) as log:
        await _limited(log, keep_s=_MINUTE_S)
        for start in range(0, 1_000, 2):
            await log.append(_LIMITED, [record(start), record(start + 1, partition=1)])
        harness.clock.advance(_MINUTE_S + 1)
        await log.append(_LIMITED, [record(1_000)])
        same(await log.retain(), 1_000, "the number of records deleted")
        same(await _left(log, _LIMITED), [1_000], "the records")
        same(list(await log.verify()), [], "the findings")


@case(needs="retention")
async def deleting_goes_on_while_others_append_and_read(harness: LogUnderTest) -> None:
    async with opened(harness) as log:
        await _limited(log, keep_bytes=1_000)
        reader = log.reader({TopicPartition(_LIMITED, 0): BEGINNING})
        found: list[int] = []
        for number in range(200):
            await log.append(_LIMITED, [record(number)])
            found += numbers_of(list((await next_of(reader)).records()))
            if number % 10 == 0:
                await log.retain()
        same(found, list(range(200)), "the records read")
        await log.retain()
        left = await _left(log, _LIMITED)
        holds(0 < len(left) < 100, f"expected some of 200 records to be kept, found {len(left)}")
        same(left, list(range(200 - len(left), 200)), "the records kept")


# ---- what is gone ----


@case(needs="retention")
async def the_time_through_which_a_partition_is_gone_is_that_of_its_newest_deleted_record(harness: LogUnderTest) -> None:
    async with opened(harness) as log:
        same(dict(await log.gone_through(TOPIC)), {}, "where nothing was deleted")
        await log.append(TOPIC, records(0, 3))
        harness.clock.advance(10)
        await log.append(TOPIC, [record(3), record(4, partition=1)])
        moment = harness.clock.wall_us()
        middle = await log.head(TOPIC)
        harness.clock.advance(10)
        await log.append(TOPIC, records(5, 7))
        await log.trim(TOPIC, middle)
        same(dict(await log.gone_through(TOPIC)), {0: moment, 1: moment}, "after it was deleted")
        same(dict(await log.gone_through(OTHER)), {}, "of the other topic")


@case(needs="retention")
async def a_time_that_is_gone_is_where_the_records_begin(harness: LogUnderTest) -> None:
    async with opened(harness) as log:
        times: list[int] = []
        for number in range(6):
            harness.clock.advance(10)
            times.append(harness.clock.wall_us())
            await log.append(TOPIC, [record(number, partition=number % 2)])
            if number == 3:
                middle = await log.head(TOPIC)
                await log.trim(TOPIC, middle)
        for time_us in (0, *times[:4]):
            found = await log.position_at(TOPIC, to_datetime(time_us))
            same(found, await log.first(TOPIC), f"the position of {to_datetime(time_us)}")
        later = await log.position_at(TOPIC, to_datetime(times[5]))
        same(numbers_of(await read_to_head(log, later.offsets)), [5], "the records from the newest time on")
        await log.trim(TOPIC, await log.head(TOPIC))
        for time_us in (0, times[5], times[5] + 1):
            found = await log.position_at(TOPIC, to_datetime(time_us))
            same(found, await log.head(TOPIC), f"the position of {to_datetime(time_us)} where all is gone")


# ---- readers ----


@case(needs="retention")
async def a_reader_that_has_read_what_is_deleted_goes_on(harness: LogUnderTest) -> None:
    async with opened(harness) as log:
        reader = log.reader(everything())
        for start in range(0, 9, 3):
            await log.append(TOPIC, [*records(start, start + 3), record(100 + start, partition=1)])
            head = await log.head(TOPIC)
            found = numbers_of(await read_through(reader, {where: head.offsets[where] for where in (_ZERO, _ONE)}))
            same(sorted(found), [start, start + 1, start + 2, 100 + start], "the records")
            await log.trim(TOPIC, head)


@case(needs="retention")
async def a_reader_is_told_what_was_deleted_before_it_was_read(harness: LogUnderTest) -> None:
    async with opened(harness) as log:
        await log.append(TOPIC, records(0, 3))
        reader = log.reader(everything())
        same(numbers_of(list((await next_of(reader)).records())), [0, 1, 2], "before")
        await log.append(TOPIC, records(3, 5))
        await log.trim(TOPIC, await log.head(TOPIC))
        await log.append(TOPIC, [*records(5, 7), record(7, partition=1)])
        first = (await log.first(TOPIC)).offsets[_ZERO]
        for _ in range(2):
            try:
                await next_of(reader)
            except RecordsGone as error:
                same((error.topic, error.partition, error.first), (*_ZERO, first), "what the reader is told")
                holds(error.after < first, f"it stood before {first}, found {error.after}")
            else:
                holds(False, "a reader passed over records 3 and 4 in silence")
        reader.revoke([_ZERO])
        same(numbers_of(list((await next_of(reader)).records())), [7], "of the other partition")
        reader.assign({_ZERO: first})
        same(numbers_of(list((await next_of(reader)).records())), [5, 6], "from the oldest that is kept")


@case(needs="retention")
async def a_reader_is_told_though_nothing_came_after_what_was_deleted(harness: LogUnderTest) -> None:
    async with opened(harness) as log:
        await log.append(TOPIC, records(0, 3))
        waiting = log.reader(everything())
        beginning = log.reader(everything())
        same(numbers_of(list((await next_of(waiting)).records())), [0, 1, 2], "before")
        await log.append(TOPIC, records(3, 5))
        await log.trim(TOPIC, await log.head(TOPIC))
        for reader in (waiting, beginning):
            with raises(RecordsGone, TOPIC):
                await next_of(reader)


@case(needs="retention")
async def a_reader_that_is_assigned_before_what_is_kept_is_told(harness: LogUnderTest) -> None:
    async with opened(harness) as log:
        offsets = (await log.append(TOPIC, records(0, 3))).offsets
        await log.append(TOPIC, records(3, 6))
        newest = (await log.append(TOPIC, records(6, 9))).offsets
        await log.trim(TOPIC, Position(log.identity, {_ZERO: newest[0] or BEGINNING}))
        first = (await log.first(TOPIC)).offsets[_ZERO]
        for offset in (BEGINNING, offsets[0], offsets[2]):
            with raises(RecordsGone, str(first)):
                await next_of(log.reader({_ZERO: offset or BEGINNING}))
        for offset, expected in ((first, [6, 7, 8]), (newest[0], [7, 8])):
            found = await read_to_head(log, {_ZERO: offset or BEGINNING})
            same(numbers_of(found), expected, f"the records behind {offset}")


# ---- topics that keep the newest record of each key ----


@case(needs="retention")
async def the_newest_record_of_each_key_stays(harness: LogUnderTest) -> None:
    async with opened(harness) as log:
        await log.ensure_topic(_NEWEST)
        for number in range(21):  # of 7 keys
            await log.append(_NEWEST.name, [record(number)])
        harness.clock.advance(_MINUTE_S + 1)
        same(await log.retain(), 14, "the number of records deleted")
        same(await _left(log, _NEWEST.name), list(range(14, 21)), "the records")
        await log.append(_NEWEST.name, [record(23)])  # of the key of 16
        harness.clock.advance(_MINUTE_S + 1)
        same(await log.retain(), 1, "the number of records deleted once one has a successor")
        same(await _left(log, _NEWEST.name), [14, 15, 17, 18, 19, 20, 23], "the records with a hole")
        same(await log.retain(), 0, "the number of records deleted the last time")
        same(list(await log.verify()), [], "the findings")


@case(needs="retention")
async def first_backlog_and_positions_are_right_where_records_are_missing_between(harness: LogUnderTest) -> None:
    async with opened(harness) as log:
        await log.ensure_topic(_NEWEST)
        offsets: list[Offset] = []
        times: list[int] = []
        for number in (0, 1, 8, 15, 22, 2, 9):  # 0, 22 and 9 are the newest of their keys
            harness.clock.advance(10)
            times.append(harness.clock.wall_us())
            offsets += [one for one in (await log.append(_NEWEST.name, [record(number)])).offsets if one is not None]
        harness.clock.advance(_MINUTE_S + 1)
        await log.retain()
        where = TopicPartition(_NEWEST.name, 0)
        same(await _left(log, _NEWEST.name), [0, 9, 22], "the records")
        same((await log.first(_NEWEST.name)).offsets[where], BEGINNING, "the first position")
        same((await log.head(_NEWEST.name)).offsets[where], offsets[-1], "the head")
        for behind, count in ((BEGINNING, 3), (offsets[0], 2), (offsets[2], 2), (offsets[4], 1), (offsets[6], 0)):
            same((await log.backlog(_NEWEST.name, {0: behind})).count, count, f"the backlog behind {behind}")
        same((await log.backlog(_NEWEST.name, {0: offsets[1]})).oldest_us, times[4], "when the oldest behind the hole was stored")
        for time_us, expected in ((times[0], [0, 22, 9]), (times[2], [22, 9]), (times[5], [9]), (times[6] + 1, [])):
            position = await log.position_at(_NEWEST.name, to_datetime(time_us))
            same(numbers_of(await read_to_head(log, position.offsets)), expected, f"the records from {to_datetime(time_us)} on")


@case(needs="retention")
async def a_reader_goes_over_what_newer_records_of_its_key_have_replaced(harness: LogUnderTest) -> None:
    async with opened(harness) as log:
        await log.ensure_topic(_NEWEST)
        where = TopicPartition(_NEWEST.name, 0)
        reader = log.reader({where: BEGINNING})
        for number in (0, 7, 14, 1):
            await log.append(_NEWEST.name, [record(number)])
        harness.clock.advance(_MINUTE_S + 1)
        await log.retain()
        head = (await log.head(_NEWEST.name)).offsets
        same(numbers_of(await read_through(reader, head)), [14, 1], "the records")
        for number in (21, 28):
            await log.append(_NEWEST.name, [record(number)])
        harness.clock.advance(_MINUTE_S + 1)
        await log.retain()
        same(numbers_of(await read_through(reader, (await log.head(_NEWEST.name)).offsets)), [28], "the records after")


@case(needs="retention")
async def trimming_spares_the_newest_record_of_each_key(harness: LogUnderTest) -> None:
    async with opened(harness) as log:
        await log.ensure_topic(msgspec.structs.replace(_NEWEST, keep_s=None))
        for number in range(10):
            await log.append(_NEWEST.name, [record(number)])
        await log.trim(_NEWEST.name, await log.head(_NEWEST.name))
        same(await _left(log, _NEWEST.name), list(range(3, 10)), "the records")


@case(needs="retention")
async def a_chunk_that_holds_one_newest_record_stays_whole(harness: LogUnderTest) -> None:
    async with opened(harness) as log:
        await log.ensure_topic(_NEWEST)
        await log.append(_NEWEST.name, records(0, 7))
        await log.append(_NEWEST.name, records(7, 13))  # all keys but the one of 6
        await log.append(_NEWEST.name, records(14, 20))
        harness.clock.advance(_MINUTE_S + 1)
        await log.retain()
        left = await _left(log, _NEWEST.name)
        holds({6, *range(14, 20)} <= set(left), f"expected the newest record of each of 7 keys, found {left}")
        holds(not set(left) & set(range(7, 13)), f"expected none of a chunk without a newest record, found {left}")
