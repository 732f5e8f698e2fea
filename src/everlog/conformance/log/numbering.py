"""Numbers: what a producer sent twice is stored once, and nothing that it sent is lost."""
# ruff: noqa: D103 - the name of a case is its sentence

from __future__ import annotations

from typing import Final

from everlog.conformance.cases import case, holds, raises, same
from everlog.conformance.log.harness import (
    OTHER,
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
from everlog.errors import SequenceReused
from everlog.log import DEDUPE_RANGE, ProducerBatch, Status

_DAY_S: Final = 24 * 3600
_STORED: Final = Status.STORED
_DUPLICATE: Final = Status.DUPLICATE


@case(needs="dedupes")
async def a_batch_that_is_sent_again_is_a_duplicate_and_stored_once(harness: LogUnderTest) -> None:
    async with opened(harness) as log:
        same(list((await numbered(log, 0, 3)).statuses), [_STORED] * 3, "the first sending")
        for _ in range(3):
            answer = await numbered(log, 0, 3)
            same(list(answer.statuses), [_DUPLICATE] * 3, "the next sending")
            same(list(answer.offsets), [None] * 3, "its offsets")
            holds(answer.settled, "duplicates are settled: they are in the log")
        same(numbers_of(await read_to_head(log, everything())), [0, 1, 2], "the records")


@case(needs="dedupes")
async def of_a_batch_that_was_seen_in_part_the_rest_is_stored(harness: LogUnderTest) -> None:
    async with opened(harness) as log:
        await numbered(log, 0, 2)
        await numbered(log, 4, 6)
        answer = await numbered(log, 0, 8)
        seen = {0, 1, 4, 5}
        same(list(answer.statuses), [_DUPLICATE if n in seen else _STORED for n in range(8)], "the outcomes")
        same([offset is None for offset in answer.offsets], [n in seen for n in range(8)], "which have no offset")
        same(numbers_of(await read_to_head(log, everything())), [0, 1, 4, 5, 2, 3, 6, 7], "the records")
        found = await read_to_head(log, everything())
        same([one.sequence for one in found], numbers_of(found), "their numbers")


@case(needs="dedupes")
async def a_number_that_is_missing_in_the_range_is_taken_however_late(harness: LogUnderTest) -> None:
    async with opened(harness) as log:
        await numbered(log, 1, 2)
        await numbered(log, DEDUPE_RANGE - 1, DEDUPE_RANGE)
        same(list((await numbered(log, 0, 1)).statuses), [_STORED], "the lowest number of the range")
        same(list((await numbered(log, 0, 1)).statuses), [_DUPLICATE], "the same again")
        same(list((await numbered(log, 1, 2)).statuses), [_DUPLICATE], "one seen before")
        same(numbers_of(await read_to_head(log, everything())), [1, DEDUPE_RANGE - 1, 0], "the records")


@case(needs="dedupes")
async def a_number_below_the_range_is_unknown_and_never_stored(harness: LogUnderTest) -> None:
    async with opened(harness) as log:
        await numbered(log, 1, 2)
        await numbered(log, DEDUPE_RANGE, DEDUPE_RANGE + 1)
        for start, stop in ((0, 1), (0, 2)):  # one never seen; and with one that was
            answer = await numbered(log, start, stop)
            same(answer.statuses[0], Status.UNKNOWN, "the outcome")
            holds(answer.errors[0] is not None, "what is unknown has a reason")
            holds(not answer.settled, "what is unknown is not settled")
        same(list((await numbered(log, 1, 2)).statuses), [_DUPLICATE], "the lowest number of the range")
        same(numbers_of(await read_to_head(log, everything())), [1, DEDUPE_RANGE], "the records")


@case(needs="dedupes")
async def a_batch_longer_than_the_range_is_a_duplicate_when_it_is_sent_again(harness: LogUnderTest) -> None:
    async with opened(harness) as log:
        count = DEDUPE_RANGE + 1_000
        same(set((await numbered(log, 0, count)).statuses), {_STORED}, "the first sending")
        same(set((await numbered(log, 0, count)).statuses), {_DUPLICATE}, "the second")
        same(len(await read_to_head(log, everything())), count, "the number of records")


@case(needs="dedupes")
async def numbers_of_two_topics_are_apart(harness: LogUnderTest) -> None:
    # "Drop what is not above the last" over both topics loses the second.
    async with opened(harness) as log:
        await numbered(log, 5, 6, topic=TOPIC)
        await numbered(log, 0, 3, topic=TOPIC)
        same(list((await numbered(log, 0, 3, topic=OTHER)).statuses), [_STORED] * 3, "the other topic's outcome")
        same(numbers_of(await read_to_head(log, everything(OTHER))), [0, 1, 2], "the other topic's records")


@case(needs="dedupes")
async def numbers_of_two_partitions_are_apart(harness: LogUnderTest) -> None:
    async with opened(harness) as log:
        await log.append(TOPIC, records(0, 3), producer=sender("p", 5))
        answer = await log.append(TOPIC, records(0, 3, partition=1), producer=sender("p", 5, partition=1))
        same(list(answer.statuses), [_STORED] * 3, "the outcome")
        mixed = [record(9), record(0, partition=1), record(9, partition=2)]
        answer = await log.append(TOPIC, mixed, producer=ProducerBatch("p", {0: 8, 1: 5, 2: 0}))
        same(list(answer.statuses), [_STORED, _DUPLICATE, _STORED], "the outcome over three partitions")


@case(needs="dedupes")
async def numbers_of_two_producers_are_apart(harness: LogUnderTest) -> None:
    async with opened(harness) as log:
        await numbered(log, 0, 3, name="p")
        same(list((await numbered(log, 0, 3, name="q")).statuses), [_STORED] * 3, "the other producer's outcome")
        same(numbers_of(await read_to_head(log, everything())), [0, 1, 2, 0, 1, 2], "the records")


@case(needs="dedupes")
async def two_gapless_senders_of_the_same_numbers_leave_each_once_and_in_order(harness: LogUnderTest) -> None:
    # A stalled relay and its successor: the same bytes under the same numbers, in pieces of other lengths, interleaved.
    async with opened(harness) as log:
        stalled, successor = 0, 0
        for step in range(40):
            if step % 3:
                await numbered(log, successor, successor + 1 + step % 4)
                successor += 1 + step % 4
            else:
                await numbered(log, stalled, stalled + 5)
                stalled += 5
        end = max(stalled, successor) + 10
        await numbered(log, stalled, end)
        await numbered(log, successor, end)
        same(numbers_of(await read_to_head(log, everything())), list(range(end)), "the records")


@case(needs="dedupes")
async def two_senders_at_once_leave_each_number_once_and_in_order(harness: LogUnderTest) -> None:
    async with opened(harness) as log:
        starts = [at for at in range(0, 120, 12) for _ in ("one", "the other")]
        for call in [log.append(TOPIC, records(at, at + 12), producer=sender("p", at)) for at in starts]:
            await call
        same(numbers_of(await read_to_head(log, everything())), list(range(120)), "the records")


@case(needs="dedupes")
async def other_content_under_the_numbers_of_the_newest_batch_is_an_error(harness: LogUnderTest) -> None:
    async with opened(harness) as log:
        await numbered(log, 0, 3)
        with raises(SequenceReused):
            await log.append(TOPIC, [record(0), record(1, text="other"), record(2)], producer=sender("p", 0))
        same(list((await numbered(log, 0, 3)).statuses), [_DUPLICATE] * 3, "the true batch afterwards")
        same(len(await read_to_head(log, everything())), 3, "the number of records")


@case(needs="dedupes")
async def an_append_that_raises_has_stored_nothing_in_any_partition(harness: LogUnderTest) -> None:
    async with opened(harness) as log:
        await log.append(TOPIC, [record(0, partition=1)], producer=sender("p", 0, partition=1))
        both = [record(5), record(1, partition=1, text="other"), record(6, partition=2)]
        with raises(SequenceReused):
            await log.append(TOPIC, both, producer=ProducerBatch("p", {0: 0, 1: 0, 2: 0}))
        same(numbers_of(await read_to_head(log, everything())), [0], "the records")
        same(await log.last_sequence("p", TOPIC), {1: 0}, "the highest numbers")


@case(needs="dedupes")
async def the_highest_number_of_each_partition_is_told(harness: LogUnderTest) -> None:
    async with opened(harness) as log:
        same(await log.last_sequence("p", TOPIC), {}, "of a producer that never sent")
        await log.append(TOPIC, records(0, 3), producer=sender("p", 4))
        await log.append(TOPIC, records(0, 3, partition=2), producer=sender("p", 0, partition=2))
        await numbered(log, 90, 91, name="q")
        await numbered(log, 50, 51, topic=OTHER)
        same(dict(await log.last_sequence("p", TOPIC)), {0: 6, 2: 2}, "after two appends")
        await log.append(TOPIC, [record(0)], producer=sender("p", 0))
        await log.append(TOPIC, records(0, 3), producer=sender("p", 4))
        same(dict(await log.last_sequence("p", TOPIC)), {0: 6, 2: 2}, "after a late and a repeated number")


@case(needs="dedupes")
async def records_without_a_producer_are_never_dropped(harness: LogUnderTest) -> None:
    async with opened(harness) as log:
        for _ in range(3):
            same(list((await log.append(TOPIC, records(0, 2))).statuses), [_STORED] * 2, "the outcome")
        same(numbers_of(await read_to_head(log, everything())), [0, 1] * 3, "the records")


@case(needs="dedupes")
async def a_named_producer_is_remembered_for_ever(harness: LogUnderTest) -> None:
    async with opened(harness) as log:
        await log.append(TOPIC, records(0, 2), producer=sender("relay", 0, named=True))
        for number in range(5):
            harness.clock.advance(100 * _DAY_S)
            await numbered(log, number, number + 1, name=f"session-{number}")
        answer = await log.append(TOPIC, records(0, 2), producer=sender("relay", 0, named=True))
        same(list(answer.statuses), [_DUPLICATE] * 2, "the outcome after 500 days")
        same(dict(await log.last_sequence("relay", TOPIC)), {0: 1}, "its highest number")


@case(needs="dedupes")
async def a_session_producer_is_remembered_for_six_days_after_each_use(harness: LogUnderTest) -> None:
    async with opened(harness) as log:
        for number in range(4):
            await numbered(log, number, number + 1)
            harness.clock.advance(6 * _DAY_S)
            await numbered(log, number, number + 1, name=f"other-{number}")
            same(list((await numbered(log, 0, number + 1)).statuses), [_DUPLICATE] * (number + 1), "the outcome")
