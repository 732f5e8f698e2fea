"""Attempts: what the next owner of a slot is told of the end of the former one."""
# ruff: noqa: D103 - the name of a case is its sentence

from __future__ import annotations

import asyncio
import threading

from everlog.conformance.cases import case, holds, raises, same
from everlog.conformance.store.harness import (
    HERE,
    NEXT_SLOT,
    SLOT,
    StoreUnderTest,
    Worker,
    at_work,
    fall_silent,
)
from everlog.errors import LeaseLost
from everlog.position import Offset
from everlog.store import Attempt, Slot

_BRIEFLY_S = 0.001
"""`alive_s` of a member whose event loop is taken for stuck as soon as the clock moves."""
_RECORDS = Attempt([(HERE, Offset(3)), (HERE, Offset(5))])
_HELD = Attempt([], ("k", 7, 2))


async def _attempted(worker: Worker, slot: Slot = SLOT) -> Attempt | None:
    return (await worker.store.load(worker.leases[slot])).attempt


@case()
async def an_attempt_is_there_until_it_is_taken_back(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT, NEXT_SLOT) as worker:
        same(await _attempted(worker), None, "the attempt before the first one")
        for attempt in (_RECORDS, _HELD, Attempt([])):
            await worker.store.attempt(worker.leases[SLOT], attempt)
            same(await _attempted(worker), attempt, "the attempt")
            same(await _attempted(worker, NEXT_SLOT), None, "that of another slot")
        for _ in range(2):
            await worker.store.attempt(worker.leases[SLOT], None)
            same(await _attempted(worker), None, "the attempt when it has ended")


@case()
async def an_attempt_stays_when_the_slot_is_given_back(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT) as worker:
        await worker.store.attempt(worker.leases[SLOT], _RECORDS)
        await worker.store.release(worker.leases[SLOT])
        await worker.take(SLOT)
        same(await _attempted(worker), _RECORDS, "the attempt")


@case()
async def who_does_not_own_the_slot_attempts_nothing(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT) as worker:
        old = worker.leases[SLOT]
        await worker.store.attempt(old, _RECORDS)
        await worker.store.release(old)
        await worker.take(SLOT)
        for attempt in (_HELD, None):
            with raises(LeaseLost):
                await worker.store.attempt(old, attempt)
            same(worker.store.accuse(old, _HELD, within_s=10), False, "whether it is stored")
        same(await _attempted(worker), _RECORDS, "the attempt")


@case()
async def an_accusation_is_stored_while_the_event_loop_is_blocked(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT) as worker:
        told: list[bool] = []
        lease = worker.leases[SLOT]
        thread = threading.Thread(target=lambda: told.append(worker.store.accuse(lease, _HELD, within_s=10)))
        thread.start()
        thread.join()  # the loop does not turn meanwhile
        same(told, [True], "whether it is stored")
        same(await _attempted(worker), _HELD, "the attempt")


@case()
async def a_slot_that_was_given_back_is_taken_clean(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT) as worker:
        same(worker.leases[SLOT].is_unclean, False, "the first lease")
        await worker.store.release(worker.leases[SLOT])
        same((await worker.take(SLOT)).is_unclean, False, "the lease after it was given back")


@case(needs="shared")
async def a_slot_of_a_member_that_left_is_taken_clean(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT) as one, at_work(harness) as two:
        await one.store.leave()
        same((await two.take(SLOT)).is_unclean, False, "the lease")


@case(needs="shared")
async def a_slot_of_a_member_that_is_gone_is_taken_unclean_with_its_attempt(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT, NEXT_SLOT, alive_s=_BRIEFLY_S) as one, at_work(harness) as two:
        await one.store.attempt(one.leases[SLOT], _RECORDS)
        fall_silent(harness)
        holds((await two.take(SLOT)).is_unclean, "expected the slot to be unclean")
        holds((await two.take(NEXT_SLOT)).is_unclean, "expected the other slot to be unclean")
        same([await _attempted(two), await _attempted(two, NEXT_SLOT)], [_RECORDS, None], "the attempts")
        with raises(LeaseLost):
            await one.store.attempt(one.leases[SLOT], None)
        same(one.store.accuse(one.leases[SLOT], _HELD, within_s=10), False, "whether the former owner's is stored")
        same(await _attempted(two), _RECORDS, "the attempt afterwards")


@case(needs="shared")
async def a_slot_stays_unclean_when_members_that_are_gone_are_forgotten(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT, alive_s=_BRIEFLY_S):
        fall_silent(harness)
        async with at_work(harness), at_work(harness) as three:  # a member that joins forgets those that are gone
            holds((await three.take(SLOT)).is_unclean, "expected the slot to be unclean")


@case()
async def an_accusation_of_a_closed_store_is_not_stored(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT) as worker:
        await worker.store.aclose()
        told = await asyncio.to_thread(worker.store.accuse, worker.leases[SLOT], _HELD, within_s=0.01)
        same(told, False, "whether it is stored")
