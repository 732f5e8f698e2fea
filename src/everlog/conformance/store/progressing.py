"""Progress: how far a partition is handled, and what is put back for units that were not applied."""
# ruff: noqa: D103 - the name of a case is its sentence

from __future__ import annotations

import msgspec

from everlog.conformance.cases import case, same
from everlog.conformance.store.harness import (
    MAIL,
    NEXT_SLOT,
    OTHER_TOPIC,
    SLOT,
    STATE,
    StoreUnderTest,
    Worker,
    at_work,
    finished,
    number,
    progress,
)
from everlog.position import BEGINNING, Offset, TopicPartition
from everlog.store import Add, Outcome, Progress, Put, Slot

_A = '["a"]'


async def _progress(worker: Worker, slot: Slot = SLOT) -> list[Progress]:
    return sorted((await worker.store.load(worker.leases[slot])).progress, key=lambda at: at.where)


@case()
async def a_slot_without_progress_has_none(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT) as worker:
        same(await _progress(worker), [], "the progress")


@case()
async def progress_is_written_with_the_units_of_its_call(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT) as worker:
        await worker.committed(worker.unit(finishes=finished(0, 1)), progress=[progress(1)])
        await worker.committed(worker.unit(finishes=finished(4)), progress=[progress(6, [2, 3, 5])])
        same(await _progress(worker), [progress(6, [2, 3, 5])], "the progress")


@case()
async def the_place_before_the_first_record_is_a_progress(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT) as worker:
        await worker.store.begin(SLOT.subscription, [progress(BEGINNING)])
        same(await _progress(worker), [progress(BEGINNING)], "the progress")


@case()
async def the_dedupe_numbers_come_back_as_they_were_given(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT) as worker:
        at = msgspec.structs.replace(progress(3), dedupe=b"\x00\xff numbers")
        await worker.committed(progress=[at])
        same(await _progress(worker), [at], "the progress")


@case()
async def what_a_unit_not_applied_would_have_finished_is_put_back(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT) as worker:
        await worker.committed(worker.writing({_A: Put(b'"text"')}))
        units = [
            worker.unit("ok", finishes=finished(5)),
            worker.unit("x", finishes=finished(7, 4), reads={(STATE, _A): 0}),
            worker.unit("x", finishes=finished(8)),
            worker.writing({_A: Add(1)}, "y", finishes=finished(2)),
        ]
        expected = [Outcome.COMMITTED, Outcome.CONFLICT, Outcome.DROPPED, Outcome.REFUSED]
        same(await worker.commit(*units, progress=[progress(9, [3, 6])]), expected, "the outcomes")
        same(await _progress(worker), [progress(9, [2, 3, 4, 6, 7, 8])], "the progress")


@case()
async def what_is_put_back_goes_to_its_own_partition(harness: StoreUnderTest) -> None:
    elsewhere = TopicPartition(OTHER_TOPIC, 0)
    async with at_work(harness, SLOT, Slot(MAIL, 0)) as worker:
        await worker.committed(worker.writing({_A: Put(number(1))}))
        stale = worker.unit(finishes=[*finished(1), (elsewhere, Offset(2))], reads={(STATE, _A): 0})
        of_mail = Slot(MAIL, 0)
        outcomes = await worker.store.commit(
            [stale, worker.unit(slot=of_mail, finishes=finished(1))],
            list(worker.leases.values()),
            [(SLOT, progress(5)), (SLOT, progress(5, topic=OTHER_TOPIC)), (of_mail, progress(5))],
        )
        same(list(outcomes), [Outcome.CONFLICT, Outcome.COMMITTED], "the outcomes")
        same(await _progress(worker), [progress(5, [1]), progress(5, [2], topic=OTHER_TOPIC)], "the progress")
        same(await _progress(worker, of_mail), [progress(5)], "the progress of the other subscription")


@case()
async def an_offset_put_back_that_is_unfinished_anyway_stands_there_once(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT) as worker:
        await worker.committed(worker.writing({_A: Put(number(1))}))
        await worker.commit(worker.unit(finishes=finished(3), reads={(STATE, _A): 0}), progress=[progress(5, [3, 4])])
        same(await _progress(worker), [progress(5, [3, 4])], "the progress")


@case()
async def a_unit_that_ran_again_finishes_its_record(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT) as worker:
        await worker.committed(worker.writing({_A: Put(number(1))}))
        await worker.commit(worker.unit(finishes=finished(3), reads={(STATE, _A): 0}), progress=[progress(5)])
        await worker.committed(worker.unit(finishes=finished(3)), progress=[progress(5)])
        same(await _progress(worker), [progress(5)], "the progress")


@case()
async def progress_of_a_fenced_slot_is_not_written(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT, NEXT_SLOT) as worker:
        await worker.committed(progress=[progress(1)])
        old = worker.leases[SLOT]
        await worker.store.release(old)
        await worker.take(SLOT)
        outcomes = await worker.store.commit(
            [worker.unit(finishes=finished(2)), worker.unit(slot=NEXT_SLOT)],
            [old, worker.leases[NEXT_SLOT]],
            [(SLOT, progress(2)), (NEXT_SLOT, progress(9, partition=1))],
        )
        same(list(outcomes), [Outcome.FENCED, Outcome.COMMITTED], "the outcomes")
        same(await _progress(worker), [progress(1)], "the progress of the fenced slot")
        same(await _progress(worker, NEXT_SLOT), [progress(9, partition=1)], "the progress of the other")


@case()
async def a_slot_is_one_partition_of_every_topic(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT, NEXT_SLOT) as worker:
        await worker.committed(progress=[progress(1), progress(2, topic=OTHER_TOPIC)])
        await worker.store.commit([], [worker.leases[NEXT_SLOT]], [(NEXT_SLOT, progress(3, partition=1))])
        same(await _progress(worker), [progress(1), progress(2, topic=OTHER_TOPIC)], "the progress of slot 0")
        same(await _progress(worker, NEXT_SLOT), [progress(3, partition=1)], "the progress of slot 1")


@case()
async def ten_thousand_unfinished_records_are_kept(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT) as worker:
        at = progress(2**40 + 20_000, range(2**40, 2**40 + 20_000, 2))
        await worker.committed(progress=[at])
        same([list(found.unfinished) for found in await _progress(worker)], [list(at.unfinished)], "the unfinished offsets")
