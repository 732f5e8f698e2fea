"""Held records: the queues of blocked and parked keys, and what a command line asks to do with them."""
# ruff: noqa: D103 - the name of a case is its sentence

from __future__ import annotations

import msgspec

from everlog.conformance.cases import case, raises, same
from everlog.conformance.store.harness import (
    MAIL,
    NEXT_SLOT,
    SLOT,
    STOCK,
    StoreUnderTest,
    Worker,
    at_work,
    behind,
    failed,
    held_offsets,
    number,
    stored,
    value_of,
)
from everlog.errors import LeaseLost
from everlog.store import Cause, HeldKey, Hold, Outcome, Put, Request, Retried, Slot, SubscriptionStatus


async def _due(worker: Worker, slot: Slot = SLOT) -> list[HeldKey]:
    """Return the held keys of a slot, which its next owner is told in the same words."""
    found = list(await worker.store.due(slot))
    same(list((await worker.store.load(worker.leases[slot])).held), found, "the held keys in what a new owner loads")
    return found


async def _hold(worker: Worker, *holds: Hold, slot: Slot = SLOT) -> list[int]:
    """Hold records; return the ids of the first one's key."""
    await worker.committed(worker.unit(slot=slot, holds=holds))
    return [held.id for held in await worker.store.held(slot, holds[0].key, limit=100)]


async def _status(worker: Worker, name: str = STOCK) -> SubscriptionStatus:
    return next(one for one in (await worker.store.status()).subscriptions if one.name == name)


@case()
async def a_held_record_comes_back_as_it_was_given(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT) as worker:
        hold = Hold("k", stored(3, "k"), Cause.FAILED, 2, "ValueError: ü", "Traceback …", 1_700_000_000_000_001)
        await _hold(worker, hold)
        (held,) = await worker.store.held(SLOT, "k")
        same((held.subscription, held.slot, held.held_at_us), (STOCK, 0, harness.clock.wall_us()), "where and when")
        same({name: getattr(held, name) for name in Hold.__struct_fields__}, msgspec.structs.asdict(hold), "the copy")


@case()
async def every_cause_comes_back(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT) as worker:
        holds = [msgspec.structs.replace(failed(offset), cause=cause) for offset, cause in enumerate(Cause)]
        await _hold(worker, *holds)
        same([held.cause for held in await worker.store.held(SLOT, "k", limit=10)], list(Cause), "the causes")


@case()
async def a_key_holds_its_records_in_the_order_in_which_they_came(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT, NEXT_SLOT) as worker:
        await _hold(worker, failed(1), behind(2), failed(3, "other"))
        await worker.committed(worker.unit(holds=[behind(4)]), worker.unit(holds=[behind(5), behind(6, "other")]))
        await _hold(worker, failed(9), slot=NEXT_SLOT)
        same(await held_offsets(worker.store), [1, 2, 4, 5], "the records of the key")
        same(await held_offsets(worker.store, "other"), [3, 6], "the records of the other key")
        same(await held_offsets(worker.store, slot=NEXT_SLOT), [9], "the records of that key in the other slot")


@case()
async def held_records_are_read_in_pages(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT) as worker:
        ids = await _hold(worker, failed(0), *[behind(offset) for offset in range(1, 7)])
        same(ids, sorted(set(ids)), "the ids")
        page = await worker.store.held(SLOT, "k", after=ids[1], limit=3)
        same([held.record.offset for held in page], [2, 3, 4], "a page")
        same([held.record.offset for held in await worker.store.held(SLOT, "k")], [0], "the first record alone")
        same(list(await worker.store.held(SLOT, "k", after=ids[-1])), [], "the page behind the last")


@case()
async def due_keys_are_listed_by_key_with_the_time_of_their_first_record(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT) as worker:
        await _hold(
            worker,
            failed(1, "b", next_attempt_us=50),
            behind(2, "b"),
            failed(3, "a"),
            failed(4, "c", next_attempt_us=40),
            behind(5, "a"),
        )
        keys = [HeldKey("a", 2, None), HeldKey("b", 2, 50), HeldKey("c", 1, 40)]
        same(await _due(worker), keys, "the held keys")
        same(list(await worker.store.due(SLOT, after="a", limit=1)), keys[1:2], "a page of them")
        same(list(await worker.store.due(SLOT, after="c")), [], "the page behind the last")


@case()
async def an_empty_key_is_listed_too(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT) as worker:
        await _hold(worker, failed(1, ""), failed(2, "a"))
        same([held.key for held in await _due(worker)], ["", "a"], "the held keys")


@case()
async def a_released_record_makes_the_next_one_of_its_key_due_now(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT) as worker:
        ids = await _hold(worker, failed(1, next_attempt_us=harness.clock.wall_us() + 10**9), behind(2), behind(3))
        await worker.committed(worker.unit(releases=ids[:1]))
        (due,) = await _due(worker)
        same(due.next_attempt_us is not None and due.next_attempt_us <= harness.clock.wall_us(), True, "due now")
        same((await _status(worker)).parked_keys, 0, "the parked keys")
        await worker.committed(worker.unit(releases=ids[1:]))
        same(await _due(worker), [], "the held keys when the last one is released")


@case()
async def a_held_record_is_released_once(harness: StoreUnderTest) -> None:
    """The second unit that releases it has handled it a second time: nothing of it is applied, in the same commit or in a later one."""
    async with at_work(harness, SLOT) as worker:
        (first,) = await _hold(worker, failed(1))
        (other,) = await _hold(worker, failed(2, "other"))
        units = [worker.writing({'["a"]': Put(number(n))}, releases=[first]) for n in (1, 2)]
        same(await worker.commit(*units), [Outcome.COMMITTED, Outcome.CONFLICT], "the outcomes in one commit")
        late = worker.writing({'["a"]': Put(number(3))}, releases=[other, first])
        same(await worker.commit(late), [Outcome.CONFLICT], "the outcome in a later one")
        same(await value_of(worker.store, '["a"]'), 1, "the row")
        same([held.key for held in await _due(worker)], ["other"], "the held keys")


@case()
async def a_record_held_behind_one_that_is_finished_already_is_due_now(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT) as worker:
        await _hold(worker, behind(2))
        (due,) = await _due(worker)
        same(due.next_attempt_us is not None and due.next_attempt_us <= harness.clock.wall_us(), True, "due now")
        same(await worker.store.request(STOCK, None, "redrive"), 0, "the parked keys")


@case()
async def a_failed_retry_sets_attempts_error_and_the_next_attempt(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT) as worker:
        ids = await _hold(worker, failed(1, attempts=1, next_attempt_us=10), behind(2))
        await worker.committed(worker.unit(retried=Retried(ids[0], Cause.FAILED, 2, "KeyError: 'x'", "another", 99)))
        (held,) = await worker.store.held(SLOT, "k")
        same((held.attempts, held.error, held.trace, held.next_attempt_us), (2, "KeyError: 'x'", "another", 99), "the record")
        same(await _due(worker), [HeldKey("k", 2, 99)], "the held keys")
        await worker.committed(worker.unit(retried=Retried(ids[0], Cause.FAILED, 3, "KeyError: 'x'", "another", None)))
        same(await _due(worker), [HeldKey("k", 2, None)], "the held keys when no attempt is left")


@case()
async def a_record_that_was_behind_and_fails_for_good_is_parked(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT) as worker:
        ids = await _hold(worker, failed(1, next_attempt_us=1), behind(2))
        await worker.committed(worker.unit(releases=ids[:1]))
        await worker.committed(worker.unit(retried=Retried(ids[1], Cause.FAILED, 12, "ValueError", "", None)))
        same(await _due(worker), [HeldKey("k", 1, None)], "the held keys")
        same((await _status(worker)).parked_keys, 1, "the parked keys")


@case()
async def parked_lists_every_held_key_by_its_first_record(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT, NEXT_SLOT, Slot(MAIL, 0)) as worker:
        await _hold(worker, failed(1, "b"), behind(2, "b"), failed(3, "a", next_attempt_us=7))
        await _hold(worker, failed(4, "c"), slot=NEXT_SLOT)
        await _hold(worker, failed(5, "d"), slot=Slot(MAIL, 0))
        found = await worker.store.parked()
        same(
            [(one.subscription, one.key, one.records) for one in found],
            [(STOCK, "b", 2), (STOCK, "a", 1), (STOCK, "c", 1), (MAIL, "d", 1)],
            "the keys",
        )
        same([one.first.record.offset for one in found], [1, 3, 4, 5], "the first records")
        same([one.key for one in await worker.store.parked(STOCK)], ["b", "a", "c"], "the keys of one subscription")
        page = await worker.store.parked(STOCK, after=found[0].first.id, limit=1)
        same([one.key for one in page], ["a"], "a page of them")


@case()
async def parked_keys_are_found_by_key_by_type_and_by_error(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT, NEXT_SLOT) as worker:
        other = msgspec.structs.replace(stored(3, "b"), type="shop.other/1")
        await _hold(worker, failed(1, "a"), behind(2, "a"), Hold("b", other, Cause.FAILED, 1, "KeyError: 'x' + 100%", "", None))
        await _hold(worker, failed(4, "a"), slot=NEXT_SLOT)
        store, kind = worker.store, stored(1, "a").type
        same([one.first.record.offset for one in await store.parked(key="a")], [1, 4], "the queues of a key")
        same([one.key for one in await store.parked(type="shop.other/1")], ["b"], "the keys of a type")
        same([one.key for one in await store.parked(STOCK, error="'x' + 100%")], ["b"], "the keys with an error")
        same([one.key for one in await store.parked(error="X")], [], "an error is found as it is written")
        same([one.first.record.offset for one in await store.parked(STOCK, key="a", type=kind, limit=1)], [1], "a page")
        same(list(await store.parked(key="b", type=kind)), [], "a key that is of another type")
        same(list(await store.parked(MAIL, key="a")), [], "the key in another subscription")


@case()
async def the_status_counts_blocked_and_parked_keys_and_held_records(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT, Slot(MAIL, 0)) as worker:
        await _hold(worker, failed(1, "a"), behind(2, "a"), failed(3, "b", next_attempt_us=7), failed(4, "c"))
        found = await _status(worker)
        same((found.blocked_keys, found.parked_keys, found.held_records), (1, 2, 4), "blocked, parked, held")
        same(found.held_bytes >= sum(len(stored(offset).data) for offset in (1, 2, 3, 4)), True, "the bytes of what is held")
        other = await _status(worker, MAIL)
        same(
            (other.blocked_keys, other.parked_keys, other.held_records, other.held_bytes),
            (0, 0, 0, 0),
            "those of another subscription",
        )


@case()
async def a_request_for_every_parked_key_leaves_those_that_are_being_retried(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT, NEXT_SLOT) as worker:
        await _hold(worker, failed(1, "a"), failed(2, "b", next_attempt_us=9))
        await _hold(worker, failed(3, "c"), slot=NEXT_SLOT)
        same(await worker.store.request(STOCK, None, "redrive"), 2, "the number of keys")
        asked = await worker.store.requests([SLOT, NEXT_SLOT])
        same(
            [(one.slot, one.key, one.action) for one in asked],
            [(SLOT, "a", "redrive"), (NEXT_SLOT, "c", "redrive")],
            "the requests",
        )
        same([one.id for one in asked], sorted({one.id for one in asked}), "their ids")
        same([one.key for one in await worker.store.requests([NEXT_SLOT])], ["c"], "the requests of one slot")


@case()
async def a_request_names_a_key_that_is_blocked_as_well(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT) as worker:
        await _hold(worker, failed(1, next_attempt_us=9))
        same(await worker.store.request(STOCK, "k", "skip"), 1, "the number of keys")


@case()
async def a_request_is_for_what_was_looked_at_and_for_nothing_that_came_since(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT) as worker:
        await _hold(worker, failed(1, "a"), behind(2, "a"), failed(3, "b"))
        seen = [one.first.id for one in await worker.store.parked(STOCK)]
        await _hold(worker, failed(4, "c"))
        await worker.committed(worker.unit(releases=seen[:1]))
        same(await worker.store.request(STOCK, None, "skip", among=seen), 1, "the number of keys")
        same(await worker.store.request(STOCK, "a", "skip", among=seen), 0, "the number of keys whose first record is another")
        same(await worker.store.request(STOCK, None, "skip", among=[]), 0, "the number of keys among none")
        same([one.key for one in await worker.store.requests([SLOT])], ["b"], "the requests")


@case()
async def a_request_that_matches_nothing_says_so(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT) as worker:
        await _hold(worker, failed(1))
        same(await worker.store.request(STOCK, "unheard-of", "redrive"), 0, "the number of keys")
        same(await worker.store.request(MAIL, None, "redrive"), 0, "the number of keys")
        same(list(await worker.store.requests([SLOT, Slot(MAIL, 0)])), [], "the requests")


@case()
async def redriving_makes_the_first_record_due_now_with_no_attempts(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT) as worker:
        await _hold(worker, failed(1, attempts=12), behind(2))
        await _answer(worker, "redrive")
        (held,) = await worker.store.held(SLOT, "k")
        same((held.record.offset, held.attempts, held.next_attempt_us), (1, 0, harness.clock.wall_us()), "the first record")
        same(await _due(worker), [HeldKey("k", 2, harness.clock.wall_us())], "the held keys")


@case()
async def skipping_removes_the_first_record_and_makes_the_next_one_due(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT) as worker:
        await _hold(worker, failed(1, attempts=12), behind(2), behind(3))
        await _answer(worker, "skip")
        same(await held_offsets(worker.store), [2, 3], "the records of the key")
        (due,) = await _due(worker)
        same(due.next_attempt_us is not None and due.next_attempt_us <= harness.clock.wall_us(), True, "due now")


@case()
async def skipping_the_last_record_frees_the_key(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT) as worker:
        await _hold(worker, failed(1))
        await _answer(worker, "skip")
        same(await _due(worker), [], "the held keys")


@case()
async def an_answered_request_is_forgotten_and_not_carried_out_again(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT) as worker:
        await _hold(worker, failed(1), failed(2))
        asked = await _answer(worker, "skip")
        await worker.store.answer(worker.leases[SLOT], asked)
        same(await held_offsets(worker.store), [2], "the records of the key")


@case()
async def a_request_is_answered_by_the_owner_of_its_slot_alone(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT, NEXT_SLOT) as worker:
        await _hold(worker, failed(1))
        await worker.store.request(STOCK, "k", "skip")
        (asked,) = await worker.store.requests([SLOT])
        with raises(LeaseLost):
            await worker.store.answer(worker.leases[NEXT_SLOT], asked)
        same((await held_offsets(worker.store), len(await worker.store.requests([SLOT]))), ([1], 1), "what is left")


async def _answer(worker: Worker, action: str) -> Request:
    """Have the first record of `k` redriven or skipped; check that the request is gone."""
    same(await worker.store.request(STOCK, "k", "skip" if action == "skip" else "redrive"), 1, "the number of keys")
    (asked,) = await worker.store.requests([SLOT])
    await worker.store.answer(worker.leases[SLOT], asked)
    same(list(await worker.store.requests([SLOT])), [], "the requests")
    return asked
