"""Appending: what is stored comes back as it was given, in order, all of a partition's records or none."""
# ruff: noqa: D103 - the name of a case is its sentence

from __future__ import annotations

import asyncio

import msgspec

from everlog.conformance.cases import case, holds, raises, same
from everlog.conformance.log.harness import (
    TOPIC,
    LogUnderTest,
    everything,
    numbers_of,
    opened,
    read_to_head,
    record,
    records,
    sender,
)
from everlog.errors import Closed, EventTooLarge, FeatureMissing, SequenceReused, TopicMissing
from everlog.log import Appended, ProducerBatch, Status, StreamEnd
from everlog.position import TopicPartition
from everlog.record import NewRecord, StoredRecord, derived_id


def _envelope(one: NewRecord | StoredRecord) -> tuple[object, ...]:
    """Return what both kinds of record hold, and `id` where the sender gave it."""
    return (
        one.type, one.data, one.key, one.partition, one.source, one.time_us, dict(one.headers or {}), one.schema,
        one.tags, one.flags, one.key_id, one.tenant,
    )  # fmt: skip


@case()
async def a_record_comes_back_as_it_was_given(harness: LogUnderTest) -> None:
    given = [
        NewRecord("a.plain/1", b'{"n":1}', "k", 0, "suite", 1),
        NewRecord(
            "a.full/2", b'{"n":2}', "K\u00fc\U0001f600", 0, "other", 2, "id-2", {"traceparent": "00-1-2-03", "x": ""}, 2**63
        ),
        NewRecord("a.room/1", b'{"n":3}', None, 0, "suite", -3, tags=("a", "b\u00fc"), flags=5, key_id="key-1", tenant="t"),
        NewRecord("a.empty/1", b"{}", "", 0, "suite", 4, headers={}),
    ]
    async with opened(harness) as log:
        await log.append(TOPIC, given)
        found = await read_to_head(log, everything())
        same([_envelope(one) for one in found], [_envelope(one) for one in given], "the records")
        same({one.topic for one in found}, {TOPIC}, "their topic")


@case()
async def data_comes_back_byte_for_byte(harness: LogUnderTest) -> None:
    texts = (
        "null",
        "0",
        "-1.50",
        "1e400",
        '""',
        '"]"',
        "[]",
        '[1,[2,"],["]]',
        ' {"a" : 1 } ',
        '{"a":"\u00fc\U0001f600"}',
        '{"a":"\\u00fc\\n"}',
    )
    given = [NewRecord("a.plain/1", text.encode(), "k", 0, "suite", 0) for text in texts]
    async with opened(harness) as log:
        await log.append(TOPIC, given)
        same([one.data for one in await read_to_head(log, everything())], [one.data for one in given], "the data")


@case()
async def types_and_sources_mix_in_one_append(harness: LogUnderTest) -> None:
    given = [NewRecord(f"a.t{n % 5}/1", b"%d" % n, f"{n}", 0, f"s{n % 3}", n, schema=n % 5) for n in range(100)]
    async with opened(harness) as log:
        await log.append(TOPIC, given)
        same([_envelope(one) for one in await read_to_head(log, everything())], [_envelope(one) for one in given], "the records")


@case()
async def a_partition_holds_its_records_in_the_order_of_the_append(harness: LogUnderTest) -> None:
    given = [record(number, partition=number * 7 % 4) for number in range(200)]
    async with opened(harness) as log:
        await log.append(TOPIC, given[:150])
        await log.append(TOPIC, given[150:])
        found = await read_to_head(log, everything())
        for partition in range(4):
            here = [one for one in found if one.partition == partition]
            same(numbers_of(here), [one.time_us for one in given if one.partition == partition], f"partition {partition}")


@case()
async def each_record_has_its_outcome_and_the_offset_at_which_it_is_read(harness: LogUnderTest) -> None:
    given = [record(number, partition=number % 3) for number in range(30)]
    async with opened(harness) as log:
        answer = await log.append(TOPIC, given)
        same(list(answer.statuses), [Status.STORED] * 30, "the outcomes")
        holds(answer.settled, "an append whose records are all stored is settled")
        stored = {(one.partition, one.offset): one.time_us for one in await read_to_head(log, everything())}
        found = [
            stored.get((new.partition, offset)) for new, offset in zip(given, answer.offsets, strict=True) if offset is not None
        ]
        same(found, list(range(30)), "the records at the offsets of the answer")


@case()
async def offsets_of_a_partition_grow(harness: LogUnderTest) -> None:
    async with opened(harness) as log:
        offsets = [(await log.append(TOPIC, records(n, n + 3))).offsets for n in range(0, 30, 3)]
        flat = [offset for some in offsets for offset in some if offset is not None]
        same(flat, sorted(set(flat)), "the offsets")
        same(len(flat), 30, "their number")


@case()
async def an_id_that_was_given_is_kept_and_others_are_derived(harness: LogUnderTest) -> None:
    given = [record(0), msgspec.structs.replace(record(1), id="mine"), record(2)]
    async with opened(harness) as log:
        await log.append(TOPIC, given, producer=sender("p", 7))
        (first, mine, third) = await read_to_head(log, everything())
        same([first.id, mine.id, third.id], [derived_id("p", TOPIC, 0, 7), "mine", derived_id("p", TOPIC, 0, 9)], "the ids")
        same([(one.producer, one.sequence) for one in (first, mine, third)], [("p", 7), ("p", 8), ("p", 9)], "the numbers")


@case()
async def a_record_without_a_producer_has_an_id_from_its_offset(harness: LogUnderTest) -> None:
    async with opened(harness) as log:
        await log.append(TOPIC, records(0, 2))
        await log.append(TOPIC, records(2, 4))
        found = await read_to_head(log, everything())
        same([one.id for one in found], [derived_id("", TOPIC, 0, one.offset) for one in found], "the ids")
        same(len({one.id for one in found}), 4, "the number of distinct ids")
        same({(one.producer, one.sequence) for one in found}, {("", -1)}, "their producer")


@case()
async def each_partition_of_an_append_has_numbers_of_its_own(harness: LogUnderTest) -> None:
    given = [record(number, partition=number % 2) for number in range(6)]
    async with opened(harness) as log:
        await log.append(TOPIC, given, producer=ProducerBatch("p", {0: 10, 1: 20}))
        found = sorted((one.partition, one.sequence, one.time_us) for one in await read_to_head(log, everything()))
        same(found, [(0, 10, 0), (0, 11, 2), (0, 12, 4), (1, 20, 1), (1, 21, 3), (1, 22, 5)], "the numbers")


@case()
async def a_record_of_the_largest_size_is_stored_and_one_byte_more_is_refused(harness: LogUnderTest) -> None:
    async with opened(harness) as log:
        room = log.features.max_record_bytes - len(record(1).data)
        fits, exceeds = record(1, text="x" * room), record(2, text="x" * (room + 1))
        same(len(fits.data), log.features.max_record_bytes, "the size of the largest record")
        same(list((await log.append(TOPIC, [fits])).statuses), [Status.STORED], "the outcome of the largest")
        answer = await log.append(TOPIC, [exceeds])
        same(list(answer.statuses), [Status.REFUSED], "the outcome of one that is larger")
        holds(isinstance(answer.errors[0], EventTooLarge), f"a refusal says why: expected EventTooLarge, found {answer.errors!r}")
        same(list(answer.offsets), [None], "its offset")
        same([one.data for one in await read_to_head(log, everything())], [fits.data], "the data stored")


@case()
async def a_partition_with_a_refused_record_stores_none_and_the_others_store_all(harness: LogUnderTest) -> None:
    async with opened(harness) as log:
        huge = record(3, partition=1, text="x" * log.features.max_record_bytes)
        given = [record(0), record(1, partition=1), record(2), huge, record(4, partition=1), record(5, partition=2)]
        answer = await log.append(TOPIC, given, producer=ProducerBatch("p", {0: 0, 1: 0, 2: 0}))
        stored, refused = Status.STORED, Status.REFUSED
        same(list(answer.statuses), [stored, refused, stored, refused, refused, stored], "the outcomes")
        same([error is not None for error in answer.errors], [False, True, False, True, True, False], "which have a reason")
        holds(not answer.settled, "an append with a refused record is not settled")
        same(sorted(numbers_of(await read_to_head(log, everything()))), [0, 2, 5], "the records stored")


@case()
async def a_refused_number_stays_used_and_the_next_ones_are_taken(harness: LogUnderTest) -> None:
    async with opened(harness) as log:
        huge = record(1, text="x" * log.features.max_record_bytes)
        await log.append(TOPIC, [record(0)], producer=sender("p", 0))
        for _ in range(2):  # refused again when it is sent again
            same(list((await log.append(TOPIC, [huge], producer=sender("p", 1))).statuses), [Status.REFUSED], "the outcome")
        same(list((await log.append(TOPIC, [record(2)], producer=sender("p", 2))).statuses), [Status.STORED], "of the next")
        same(numbers_of(await read_to_head(log, everything())), [0, 2], "the records stored")


@case()
async def an_append_larger_than_a_chunk_is_stored_whole(harness: LogUnderTest) -> None:
    async with opened(harness) as log:
        answer = await log.append(TOPIC, records(0, 10_000), producer=sender("p", 0))
        same(set(answer.statuses), {Status.STORED}, "the outcomes")
        found = await read_to_head(log, everything())
        same(numbers_of(found), list(range(10_000)), "the records")
        same([one.sequence for one in found], list(range(10_000)), "their numbers")
        same([one.offset for one in found], list(answer.offsets), "their offsets")


@case()
async def an_append_of_many_bytes_is_stored_whole(harness: LogUnderTest) -> None:
    async with opened(harness) as log:
        given = [record(number, partition=number % 2, text="x" * 400_000) for number in range(10)]
        same(set((await log.append(TOPIC, given)).statuses), {Status.STORED}, "the outcomes")
        found = await read_to_head(log, everything())
        same(sorted(numbers_of(found)), list(range(10)), "the records")
        same({len(one.data) for one in found}, {len(given[0].data)}, "their sizes")


@case()
async def appends_are_stored_in_the_order_of_the_calls(harness: LogUnderTest) -> None:
    async with opened(harness) as log:
        calls = [log.append(TOPIC, [record(n), record(1000 + n, partition=1)]) for n in range(100)]
        for call in reversed(calls):  # awaiting them in another order changes nothing
            await call
        found = await read_to_head(log, everything())
        same(numbers_of([one for one in found if one.partition == 0]), list(range(100)), "partition 0")
        same(numbers_of([one for one in found if one.partition == 1]), list(range(1000, 1100)), "partition 1")


@case()
async def topics_are_apart(harness: LogUnderTest) -> None:
    async with opened(harness) as log:
        await log.append("conformance.payments", records(0, 3))
        same(await read_to_head(log, everything()), [], "the records of the other topic")


@case()
async def a_call_that_makes_no_sense_is_refused_and_stores_nothing(harness: LogUnderTest) -> None:
    async with opened(harness) as log:
        with raises(ValueError):
            await log.append(TOPIC, [])
        for partition in (-1, 4):
            with raises(ValueError, "partition"):
                await log.append(TOPIC, [record(0), record(1, partition=partition)])
        with raises(ValueError):
            await log.append(TOPIC, [record(0), record(1, partition=1)], producer=sender("p", 0))
        same(await read_to_head(log, everything()), [], "the records")


@case()
async def a_call_that_is_refused_harms_no_other(harness: LogUnderTest) -> None:
    async with opened(harness) as log:
        await log.append(TOPIC, [record(0)], producer=sender("p", 0))
        for number in range(1, 60, 3):  # called at once, so that a log which commits in groups has them in one
            calls = [
                log.append(TOPIC, [record(number)]),
                log.append(TOPIC, [record(number, partition=9)]),
                log.append("conformance.missing", [record(number)]),
                log.append(TOPIC, [record(number + 1)]),
                log.append(TOPIC, [record(0, text="other")], producer=sender("p", 0)),
                log.append(TOPIC, []),
                log.append(TOPIC, [record(number + 2)]),
            ]
            answers = await asyncio.gather(*calls, return_exceptions=True)
            kinds = [type(answer) for answer in answers]
            same(kinds, [Appended, ValueError, TopicMissing, Appended, SequenceReused, ValueError, Appended], "the outcomes")
        same(numbers_of(await read_to_head(log, everything())), list(range(61)), "the records")


@case()
async def a_condition_that_the_log_cannot_check_is_refused_and_stores_nothing(harness: LogUnderTest) -> None:
    async with opened(harness) as log:
        if log.features.conditional_append:
            return
        with raises(FeatureMissing):
            await log.append(TOPIC, [record(0)], expect=StreamEnd.NONE)
        with raises(FeatureMissing):
            await log.read_stream(TOPIC, "key-0", after=None)
        same(await read_to_head(log, everything()), [], "the records")


@case()
async def a_closed_log_raises_closed(harness: LogUnderTest) -> None:
    async with opened(harness) as log:
        reader = log.reader({TopicPartition(TOPIC, 0): (await log.head(TOPIC)).offsets[TopicPartition(TOPIC, 0)]})
        await log.aclose()
        await log.aclose()
        with raises(Closed):
            await log.append(TOPIC, [record(0)])
        with raises(Closed):
            await log.head(TOPIC)
        with raises(Closed):
            await log.topics()
        with raises(Closed):
            await reader.next()
