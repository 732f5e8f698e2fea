"""A store over its life: what it keeps when it is closed, shared and checked."""
# ruff: noqa: D103 - the name of a case is its sentence

from __future__ import annotations

from everlog.conformance.cases import case, raises, same
from everlog.conformance.store.harness import (
    LOG,
    SLOT,
    STATE,
    STOCK,
    StoreUnderTest,
    Worker,
    at_work,
    behind,
    emitted,
    failed,
    finished,
    held_offsets,
    number,
    numbers_in_outbox,
    opened,
    progress,
    value_of,
    version_of,
)
from everlog.errors import Closed
from everlog.position import TopicPartition
from everlog.store import RELAY, Outcome, Put, relay_producer


async def _fill(worker: Worker) -> int:
    """Put something into every part of the store; return the version of the row `["a"]`."""
    unit = worker.writing(
        {'["a"]': Put(number(1))}, finishes=finished(3), emits=[emitted(1), emitted(2)], holds=[failed(4), behind(5)]
    )
    await worker.committed(unit, progress=[progress(5, [2])])
    (first, _) = await worker.store.outbox(after=0, limit=10)
    await worker.store.number(worker.leases[RELAY], [first.id])
    await worker.store.request(STOCK, "k", "redrive")
    return unit.version


@case(needs="durability")
async def everything_is_there_when_it_is_opened_again(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT, RELAY) as worker:
        version = await _fill(worker)
        before = await worker.store.status()
        old, member = worker.leases[SLOT], worker.joined.member
        sender = relay_producer(worker.store.identity, worker.store.incarnation)
    async with at_work(harness) as worker:
        store = worker.store
        same(relay_producer(store.identity, store.incarnation), sender, "the name of its relay")
        same(await store.status(), before, "the status")
        same((await value_of(store, '["a"]'), await version_of(store, (STATE, '["a"]'))), (1, version), "the row")
        same(await held_offsets(store), [4, 5], "the held records")
        same([row.sequence for row in await store.outbox(after=0, limit=10)], [0, None], "the numbers in the outbox")
        same([(one.key, one.action) for one in await store.requests([SLOT])], [("k", "redrive")], "the requests")
        same(worker.joined.member > member, True, "a new member has a new number")
        new = await worker.take(SLOT)
        same(new.epoch > old.epoch, True, "a new lease has a higher epoch")
        same(list((await store.load(new)).progress), [progress(5, [2])], "the progress")


@case(needs="durability")
async def numbers_go_on_when_it_is_opened_again(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT, RELAY) as worker:
        await worker.committed(worker.unit(emits=[emitted(1), emitted(2)]))
        ids = [row.id for row in await worker.store.outbox(after=0, limit=10)]
        await worker.store.number(worker.leases[RELAY], ids)
        await worker.store.number(worker.leases[RELAY], [], done=ids)
    async with at_work(harness, SLOT, RELAY) as worker:
        same(dict(await worker.store.issued()), {TopicPartition(emitted(0).topic, 0): 1}, "the highest numbers")
        await worker.committed(worker.unit(emits=[emitted(3)]))
        rows = await worker.store.outbox(after=0, limit=10)
        same([row.sequence for row in await worker.store.number(worker.leases[RELAY], [rows[0].id])], [2], "the next number")


@case(needs="durability")
async def a_lease_of_before_it_was_closed_is_void(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT) as worker:
        old = worker.leases[SLOT]
    async with at_work(harness) as worker:
        same(list(await worker.store.commit([worker.unit()], [old], [])), [Outcome.FENCED], "the outcome")


@case(needs="shared")
async def what_one_handle_commits_another_reads_at_once(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT) as worker, opened(harness) as other:
        same((other.identity, other.incarnation), (worker.store.identity, worker.store.incarnation), "the identity")
        for count in range(1, 4):
            await worker.committed(worker.writing({'["a"]': Put(number(count))}, emits=[emitted(count)]))
            same(await value_of(other, '["a"]'), count, "the row")
            same(await numbers_in_outbox(other), list(range(1, count + 1)), "the outbox")


@case(needs="shared")
async def units_of_two_members_are_serializable(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT) as one, at_work(harness) as two:
        mine = await two.take(SLOT._replace(number=1))
        key = (STATE, '["a"]')
        await one.committed(one.unit(writes={key: Put(number(0))}))
        version = await version_of(two.store, key)
        await one.committed(one.unit(writes={key: Put(number(1))}))
        stale = two.unit(slot=mine.slot, reads={key: version}, writes={key: Put(number(9))})
        same(await two.commit(stale), [Outcome.CONFLICT], "the outcome")
        same(await value_of(one.store, '["a"]'), 1, "the row")


@case()
async def two_stores_have_two_identities(harness: StoreUnderTest) -> None:
    async with opened(harness) as store:
        same(store.identity not in (LOG, None), True, "a random identity")
        same(len(relay_producer(store.identity, store.incarnation)) > 32, True, "the name of the relay holds it")


@case()
async def a_sound_store_verifies(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT, RELAY) as worker:
        await _fill(worker)
        same(list(await worker.store.verify()), [], "what is wrong")


@case()
async def a_closed_store_refuses_and_closing_it_again_is_no_mistake(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT) as worker:
        await worker.store.aclose()
        await worker.store.aclose()
        with raises(Closed):
            await worker.commit(worker.unit())
        with raises(Closed):
            await worker.store.read([(STATE, '["a"]')])
