"""Members and leases: who owns a slot, when another may take it, and what the former owner can still do."""
# ruff: noqa: D103 - the name of a case is its sentence

from __future__ import annotations

import asyncio
import time

from everlog.conformance.cases import case, holds, raises, same
from everlog.conformance.store.harness import (
    MAIL,
    NEXT_SLOT,
    SLOT,
    STOCK,
    StoreUnderTest,
    Worker,
    at_once,
    at_work,
    emitted,
    failed,
    fall_silent,
    finished,
    held_offsets,
    let_others_run,
    number,
    numbers_in_outbox,
    opened,
    progress,
    value_of,
)
from everlog.errors import LeaseLost
from everlog.store import RELAY, Outcome, Put, Request, Slot, Store, Survey

_BRIEFLY_S = 0.001
"""`alive_s` of a member whose event loop is taken for stuck as soon as the clock moves."""


@case()
async def versions_of_two_members_never_meet(harness: StoreUnderTest) -> None:
    async with opened(harness) as store:
        first = await store.join({STOCK: []}, alive_s=60)
        await store.leave()
        second = await store.join({STOCK: []}, alive_s=60)
        holds(first.member != second.member, f"expected a new number, found {first.member} again")
        holds(abs(first.version_base - second.version_base) >= 2**40, f"expected 2**40 versions each, found {first}, {second}")


@case()
async def a_free_slot_is_taken_and_its_owner_is_given_the_same_lease_again(harness: StoreUnderTest) -> None:
    async with at_work(harness) as worker:
        lease = await worker.take(SLOT)
        same((lease.slot, lease.member), (SLOT, worker.joined.member), "what the lease covers")
        same(await worker.store.acquire(SLOT), lease, "the lease when it is asked for again")
        holds((await worker.take(NEXT_SLOT)).slot == NEXT_SLOT, "another slot is taken by itself")


@case()
async def a_survey_names_the_live_members_and_the_owner_of_each_slot(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT, NEXT_SLOT) as worker:
        await worker.store.release(worker.leases[NEXT_SLOT])
        me = worker.joined.member
        same(await worker.store.survey(STOCK), Survey([me], {0: me, 1: None}), "the survey")
        same(await worker.store.survey(MAIL), Survey([me], {}), "the survey of a subscription without owners")
        same(await worker.store.survey("unheard-of"), Survey([], {}), "the survey of nothing")


@case()
async def a_released_slot_is_free_at_once_and_the_old_lease_is_void(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT) as worker:
        old = worker.leases[SLOT]
        await worker.store.release(old)
        same(await worker.commit(worker.unit()), [Outcome.FENCED], "the outcome under the released lease")
        new = await worker.take(SLOT)
        holds(new.epoch > old.epoch, f"expected an epoch above {old.epoch}, found {new.epoch}")
        await worker.store.release(old)
        await worker.committed(worker.unit())


@case()
async def leaving_gives_every_slot_back_and_may_be_repeated(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT, NEXT_SLOT, RELAY) as worker:
        await worker.store.leave()
        await worker.store.leave()
        same(await worker.store.survey(STOCK), Survey([], {0: None, 1: None}), "the survey after leaving")
        same(await worker.commit(worker.unit()), [Outcome.FENCED], "the outcome after leaving")


@case()
async def a_unit_needs_the_lease_of_its_own_slot(harness: StoreUnderTest) -> None:
    async with at_work(harness, NEXT_SLOT) as worker:
        same(
            await worker.commit(worker.unit(), worker.unit(slot=NEXT_SLOT), worker.unit(slot=Slot(MAIL, 1))),
            [Outcome.FENCED, Outcome.COMMITTED, Outcome.FENCED],
            "the outcomes",
        )


@case()
async def the_relay_is_leased_like_any_slot(harness: StoreUnderTest) -> None:
    async with at_work(harness) as worker:
        lease = await worker.take(RELAY)
        state = await worker.store.load(lease)
        same(len(state.progress) + len(state.held), 0, "what stands in the relay's slot")
        await worker.store.release(lease)
        with raises(LeaseLost):
            await worker.store.load(lease)


@case(needs="shared")
async def two_members_are_both_in_the_survey(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT) as one, at_work(harness, NEXT_SLOT) as two:
        members = [one.joined.member, two.joined.member]
        holds(members == sorted(set(members)), f"expected ascending numbers, found {members}")
        for worker in (one, two):
            same(await worker.store.survey(STOCK), Survey(members, dict(enumerate(members))), "the survey")


@case()
async def a_member_is_in_the_survey_of_what_it_handles_alone(harness: StoreUnderTest) -> None:
    async with opened(harness) as store:
        me = (await store.join({STOCK: ["conformance.placed/1"]}, alive_s=60)).member
        same([list((await store.survey(name)).members) for name in (STOCK, MAIL)], [[me], []], "the members")


@case(needs="shared")
async def members_whose_types_another_one_exceeds_are_not_in_the_survey_while_it_lives(harness: StoreUnderTest) -> None:
    async with opened(harness) as old, opened(harness) as new:
        first = await old.join({STOCK: ["a/1"], MAIL: ["a/1"]}, alive_s=3_600)
        same(await _members(old), [first.member], "the members while it is alone")
        second = await new.join({STOCK: ["a/1", "a/2"], MAIL: ["a/1"]}, alive_s=_BRIEFLY_S)
        for store in (old, new):
            same(await _members(store), [second.member], "the members when newer code is there")
            same(await _members(store, MAIL), [first.member, second.member], "those of what both handle")
        fall_silent(harness)
        same(await _members(old), [first.member], "the members when the newer one is gone")


@case(needs="shared")
async def of_members_that_each_lack_something_those_that_agree_with_the_newest_are_in_the_survey(harness: StoreUnderTest) -> None:
    async with opened(harness) as one, opened(harness) as two, opened(harness) as three, opened(harness) as four:
        numbers = [
            (await store.join({STOCK: types}, alive_s=3_600)).member
            for store, types in ((one, ["a/1", "b/1"]), (two, ["a/1", "c/1"]), (three, ["a/1"]), (four, ["c/1", "a/1"]))
        ]
        same(await _members(one), [numbers[1], numbers[3]], "the members")
        await four.leave()
        same(await _members(one), [numbers[1]], "the members when the newest has left")
        await two.leave()
        same(await _members(three), [numbers[0]], "the members when the others have left")


async def _members(store: Store, subscription: str = STOCK) -> list[int]:
    return list((await store.survey(subscription)).members)


@case()
async def a_pause_is_in_the_status_until_it_ends(harness: StoreUnderTest) -> None:
    async with at_work(harness) as worker:
        store = worker.store
        same(await _paused(store), {STOCK: [], MAIL: []}, "the pauses before the first one")
        await store.pause(STOCK, "ConnectionError: no")
        await store.pause(MAIL, "TimeoutError")
        await store.pause(STOCK, "ConnectionError: still")
        same(await _paused(store), {STOCK: ["ConnectionError: still"], MAIL: ["TimeoutError"]}, "the pauses")
        await store.pause(STOCK, None)
        same(await _paused(store), {STOCK: [], MAIL: ["TimeoutError"]}, "the pauses when one has ended")
        await store.leave()
        same(await _paused(store), {STOCK: [], MAIL: []}, "the pauses of a member that has left")


@case(needs="shared")
async def each_live_member_pauses_for_itself(harness: StoreUnderTest) -> None:
    async with at_work(harness, alive_s=_BRIEFLY_S) as one, at_work(harness) as two:
        await one.store.pause(STOCK, "one")
        await two.store.pause(STOCK, "two")
        same(await _paused(two.store), {STOCK: ["one", "two"], MAIL: []}, "the pauses")
        fall_silent(harness)
        await two.store.pause(MAIL, "two")
        same(await _paused(two.store), {STOCK: ["two"], MAIL: ["two"]}, "the pauses when one is gone")


async def _paused(store: Store) -> dict[str, list[str]]:
    return {one.name: list(one.paused) for one in (await store.status()).subscriptions}


@case(needs="shared")
async def a_live_owner_keeps_its_slot(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT) as one, at_work(harness) as two:
        same(await two.store.acquire(SLOT), None, "what another member is given")
        await one.committed(one.unit())


@case(needs="shared")
async def an_owner_is_silent_for_a_whole_lease_before_it_is_replaced(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT, alive_s=_BRIEFLY_S) as one, at_work(harness, alive_s=_BRIEFLY_S) as two:
        harness.clock.advance(harness.lease_s * 0.9)
        same(await two.store.acquire(SLOT), None, "what another member is given within the lease")
        harness.clock.advance(harness.lease_s * 0.2)
        new = await two.take(SLOT)
        holds(new.epoch > one.leases[SLOT].epoch, "expected the epoch to be raised")
        same((await two.store.survey(STOCK)).owners, {0: two.joined.member}, "the owner")


@case(needs="shared")
async def a_silent_owner_goes_on_until_another_takes_its_slot(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT, alive_s=_BRIEFLY_S) as one, at_work(harness) as two:
        fall_silent(harness)
        await one.committed(one.writing({'["a"]': Put(number(1))}))
        await two.take(SLOT)
        same(await one.commit(one.writing({'["a"]': Put(number(2))})), [Outcome.FENCED], "the outcome after the takeover")
        same(await value_of(two.store, '["a"]'), 1, "the row")


@case(needs="shared")
async def who_lost_its_slot_changes_nothing_any_more(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT, RELAY, alive_s=_BRIEFLY_S) as one, at_work(harness) as two:
        await one.committed(one.unit(emits=[emitted(1)], holds=[failed(4)]), progress=[progress(1)])
        await one.store.request(STOCK, "k", "redrive")
        (asked,) = await one.store.requests([SLOT])
        await _taken_over(harness, two)
        late = one.writing({'["a"]': Put(number(1))}, finishes=finished(2), emits=[emitted(2)], holds=[failed(5)])
        same(await one.commit(late, progress=[progress(2)]), [Outcome.FENCED], "the outcome")
        await _every_door_is_shut(one, asked)
        same(await value_of(two.store, '["a"]'), None, "the row")
        same(await numbers_in_outbox(two.store), [1], "the outbox")
        same(await held_offsets(two.store), [4], "the held records")
        same(list((await two.store.load(two.leases[SLOT])).progress), [progress(1)], "the progress")
        same(list(await two.store.requests([SLOT])), [asked], "the requests")


async def _taken_over(harness: StoreUnderTest, by: Worker) -> None:
    fall_silent(harness)
    await by.take(SLOT)
    await by.take(RELAY)


async def _every_door_is_shut(loser: Worker, asked: Request) -> None:
    (row,) = await loser.store.outbox(after=0, limit=10)
    slot, relay = loser.leases[SLOT], loser.leases[RELAY]
    with raises(LeaseLost):
        await loser.store.load(slot)
    with raises(LeaseLost):
        await loser.store.answer(slot, asked)
    with raises(LeaseLost):
        await loser.store.number(relay, [row.id], done=[row.id])
    with raises(LeaseLost):
        await loser.store.refuse(relay, row.id, "no")


@case(needs="shared")
async def releasing_a_lost_lease_is_passed_over(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT, alive_s=_BRIEFLY_S) as one, at_work(harness) as two:
        fall_silent(harness)
        await two.take(SLOT)
        await one.store.release(one.leases[SLOT])
        await one.store.leave()
        await two.committed(two.unit())


@case(needs="shared")
async def the_next_owner_finds_what_the_former_one_committed(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT, alive_s=_BRIEFLY_S) as one, at_work(harness) as two:
        await one.committed(one.unit(finishes=finished(1), holds=[failed(3, next_attempt_us=77)]), progress=[progress(4, [2])])
        fall_silent(harness)
        state = await two.store.load(await two.take(SLOT))
        same(list(state.progress), [progress(4, [2])], "the progress")
        same([(held.key, held.records, held.next_attempt_us) for held in state.held], [("k", 1, 77)], "the held keys")


@case(needs="shared")
async def a_busy_event_loop_does_not_cost_the_lease(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT), at_work(harness) as two:
        harness.clock.advance(harness.lease_s * 0.9)
        _keep_the_loop_busy(harness.lease_s)
        harness.clock.advance(harness.lease_s * 0.9)
        same(await two.store.acquire(SLOT), None, "what another member is given")


def _keep_the_loop_busy(seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass


@case(needs="shared")
async def a_loop_that_turned_again_renews_its_lease(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT, alive_s=_BRIEFLY_S) as one, at_work(harness) as two:
        harness.clock.advance(harness.lease_s * 0.9)
        one.store.turned()
        _keep_the_loop_busy(harness.lease_s)
        harness.clock.advance(harness.lease_s * 0.9)
        same(await two.store.acquire(SLOT), None, "what another member is given")


@case(needs="shared")
async def a_loop_that_does_not_turn_loses_its_slots(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT, alive_s=_BRIEFLY_S), at_work(harness) as two:
        harness.clock.advance(harness.lease_s * 0.9)
        _keep_the_loop_busy(harness.lease_s)
        harness.clock.advance(harness.lease_s * 0.9)
        await two.take(SLOT)


@case(needs="shared")
async def a_member_that_left_is_replaced_at_once(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT) as one, at_work(harness) as two:
        await one.store.leave()
        await two.take(SLOT)
        same(list((await two.store.survey(STOCK)).members), [two.joined.member], "the members")


@case(needs="shared")
async def releasing_wakes_who_waits(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT, alive_s=_BRIEFLY_S) as one, at_work(harness, alive_s=_BRIEFLY_S) as two:
        harness.clock.advance(_BRIEFLY_S * 2)  # no more heartbeats, which would wake it too
        waiting = asyncio.ensure_future(_until_free(two.store))
        await let_others_run()
        await one.store.release(one.leases[SLOT])
        await at_once(waiting, "a released slot wakes who waits for it")


async def _until_free(store: Store) -> None:
    while await store.acquire(SLOT) is None:
        await store.wait(3_600)


@case(needs="shared")
async def what_another_handle_changes_between_two_waits_is_not_missed(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT) as one, opened(harness) as other:
        seen: list[int] = []
        for count in range(1, 4):
            await one.committed(one.unit(emits=[emitted(count)]))
            while len(seen) < count:
                await at_once(other.wait(3_600), "a commit of another handle wakes who waits")
                seen = await numbers_in_outbox(other)


@case()
async def waiting_ends_when_its_time_has_passed(harness: StoreUnderTest) -> None:
    async with opened(harness) as store:
        waiting = asyncio.ensure_future(_waits(store, 3))
        for _ in range(3):
            await let_others_run()
            harness.clock.advance(60)
        await at_once(waiting, "a wait ends when its seconds have passed")


async def _waits(store: Store, times: int) -> None:
    for _ in range(times):
        await store.wait(60)


@case()
async def ones_own_commits_wake_too(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT) as worker:
        for count in range(1, 4):
            await worker.committed(worker.unit(emits=[emitted(count)]))
            await at_once(worker.store.wait(3_600), "a commit wakes who waits")
