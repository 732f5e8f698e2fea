"""Idempotency keys: one event per key, topic and source, for 7 days, whoever sends it."""
# ruff: noqa: D103 - the name of a case is its sentence

from __future__ import annotations

import asyncio
from typing import Final

import msgspec

from everlog.conformance.cases import case, raises, same
from everlog.conformance.log.harness import (
    OTHER,
    TOPIC,
    LogUnderTest,
    everything,
    numbers_of,
    opened,
    read_to_head,
    record,
    sender,
)
from everlog.errors import IdempotencyKeyReused
from everlog.log import ONCE_S, Appended, Log, Status
from everlog.record import NewRecord


def _once(number: int, key: str = "key", *, partition: int = 0, source: str = "suite") -> NewRecord:
    return msgspec.structs.replace(record(number, partition=partition), once=key, source=source)


async def _append(log: Log, one: NewRecord, first: int, *, producer: str = "p", topic: str = TOPIC) -> Appended:
    return await log.append(topic, [one], producer=sender(producer, first, partition=one.partition))


_DUPLICATE: Final = [Status.DUPLICATE]
_STORED: Final = [Status.STORED]


@case(needs="idempotency_keys")
async def an_event_is_stored_once_per_key_whoever_sends_it(harness: LogUnderTest) -> None:
    async with opened(harness) as log:
        await log.append(TOPIC, [record(9)], producer=sender("before", 0))
        same(list((await _append(log, _once(1), 0)).statuses), _STORED, "the first sending")
        for producer, first in (("p", 0), ("p", 1), ("q", 0)):
            answer = await _append(log, _once(1), first, producer=producer)
            same(
                (list(answer.statuses), list(answer.offsets)), (_DUPLICATE, [1]), f"the answer to {producer} with number {first}"
            )
        same(numbers_of(await read_to_head(log, everything())), [9, 1], "the records")


@case(needs="idempotency_keys")
async def a_number_that_was_used_for_a_repeat_is_used(harness: LogUnderTest) -> None:
    async with opened(harness) as log:
        await _append(log, _once(1), 0)
        await _append(log, _once(1), 0, producer="q")
        same(list((await log.append(TOPIC, [record(2)], producer=sender("q", 1))).statuses), _STORED, "the next number")
        same(dict(await log.last_sequence("q", TOPIC)), {0: 1}, "the last number")
        same(list((await log.append(TOPIC, [record(2)], producer=sender("q", 1))).statuses), _DUPLICATE, "the same again")
        same(numbers_of(await read_to_head(log, everything())), [1, 2], "the records")


@case(needs="idempotency_keys")
async def another_event_under_a_key_is_refused(harness: LogUnderTest) -> None:
    async with opened(harness) as log:
        await _append(log, _once(1), 0)
        others = (
            _once(2),
            msgspec.structs.replace(_once(1), type="conformance.other/1"),
            msgspec.structs.replace(_once(1), key="k"),
        )
        for number, other in enumerate(others, 1):
            with raises(IdempotencyKeyReused, "'key'"):
                await _append(log, other, number)
        same(numbers_of(await read_to_head(log, everything())), [1], "the records")


@case(needs="idempotency_keys")
async def keys_of_other_topics_and_sources_are_others(harness: LogUnderTest) -> None:
    async with opened(harness) as log:
        same(list((await _append(log, _once(1), 0)).statuses), _STORED, "the first")
        same(list((await _append(log, _once(2), 0, topic=OTHER)).statuses), _STORED, "in another topic")
        same(list((await _append(log, _once(3, source="other"), 1)).statuses), _STORED, "of another source")
        same(list((await _append(log, _once(4, "another"), 2)).statuses), _STORED, "another key")


@case(needs="idempotency_keys")
async def a_key_is_remembered_for_seven_days(harness: LogUnderTest) -> None:
    async with opened(harness) as log:
        await _append(log, _once(1), 0)
        harness.clock.advance(ONCE_S - 1)
        same(list((await _append(log, _once(1), 1)).statuses), _DUPLICATE, "after almost 7 days")
        harness.clock.advance(2)
        same(list((await _append(log, _once(2), 2)).statuses), _STORED, "after 7 days")
        same(list((await _append(log, _once(2), 3)).statuses), _DUPLICATE, "the next key")


@case(needs="idempotency_keys")
async def a_clock_that_jumps_ahead_forgets_no_key(harness: LogUnderTest) -> None:
    async with opened(harness) as log:
        await _append(log, _once(1), 0)
        harness.clock.jump(2 * ONCE_S)
        same(list((await _append(log, _once(1), 1)).statuses), _DUPLICATE, "after a jump of 14 days")


@case(needs="idempotency_keys")
async def of_many_that_send_at_once_one_is_first(harness: LogUnderTest) -> None:
    async with opened(harness) as log:
        calls = [_append(log, _once(1), 0, producer=f"p{number}") for number in range(20)]
        answers = await asyncio.gather(*calls)
        same([answer.statuses[0] for answer in answers].count(Status.STORED), 1, "how many were stored")
        same({answer.offsets[0] for answer in answers}, {0}, "where it is")
        same(numbers_of(await read_to_head(log, everything())), [1], "the records")


@case(needs="idempotency_keys shared")
async def a_key_of_another_handle_counts(harness: LogUnderTest) -> None:
    async with opened(harness) as one, opened(harness) as two:
        await _append(one, _once(1), 0)
        answer = await _append(two, _once(1), 0, producer="q")
        same((list(answer.statuses), list(answer.offsets)), (_DUPLICATE, [0]), "the answer")


@case(needs="idempotency_keys durability")
async def a_key_outlives_a_restart(harness: LogUnderTest) -> None:
    async with opened(harness) as log:
        await _append(log, _once(1), 0)
    async with opened(harness) as log:
        same(list((await _append(log, _once(1), 0, producer="q")).statuses), _DUPLICATE, "the answer")
