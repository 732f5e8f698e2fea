"""New incarnations: a store that was put back from a backup, or whose log was, begins its numbers anew and forgets nothing else."""
# ruff: noqa: D103 - the name of a case is its sentence

from __future__ import annotations

from everlog.conformance.cases import case, raises, same
from everlog.conformance.store.harness import (
    HERE,
    SLOT,
    STATE,
    STOCK,
    TOPIC,
    StoreUnderTest,
    Worker,
    at_work,
    emitted,
    failed,
    held_offsets,
    number,
    numbers_in_outbox,
    opened,
    progress,
    value_of,
)
from everlog.errors import CommandRefused, LeaseLost
from everlog.position import Offset, TopicPartition
from everlog.record import NewRecord
from everlog.store import RELAY, Emitted, Incarnation, Landmark, Lease, Outcome, Progress, Put, Store


def _named(id_: str, *, partition: int = 0) -> Emitted:
    return Emitted(TOPIC, NewRecord("conformance.placed/1", b"{}", "k", partition, "conformance", 0, id_))


async def _ids(store: Store) -> list[str | None]:
    return [row.emitted.record.id for row in await store.outbox(after=0, limit=100)]


async def _relayed(worker: Worker) -> list[tuple[str | None, int | None]]:
    """Number everything as a new relay does; return ids with numbers."""
    store = worker.store
    await store.join({STOCK: []}, alive_s=3_600)
    lease = await worker.take(RELAY)
    rows = await store.number(lease, [row.id for row in await store.outbox(after=0, limit=100)])
    return [(row.emitted.record.id, row.sequence) for row in rows]


@case()
async def a_new_incarnation_gives_numbers_from_0_in_the_order_of_the_outbox(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT, RELAY) as worker:
        store = worker.store
        await worker.committed(worker.unit(emits=[_named("a"), _named("b"), _named("c", partition=1), _named("d")]))
        ids = [row.id for row in await store.outbox(after=0, limit=10)]
        await store.number(worker.leases[RELAY], ids[:3])
        await store.number(worker.leases[RELAY], [], done=ids[:1])
        before = store.incarnation
        await store.leave()
        await store.reincarnate(Incarnation(before + 1))
        same(store.incarnation, before + 1, "the incarnation")
        same(dict(await store.issued()), {}, "the highest numbers")
        same(await _relayed(worker), [("b", 0), ("c", 0), ("d", 1)], "what is sent, and its numbers")


@case()
async def an_event_that_the_log_has_already_is_not_sent_again(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT) as worker:
        store = worker.store
        await worker.committed(worker.unit(emits=[_named("a"), _named("b")]))
        await store.leave()
        await store.reincarnate(Incarnation(store.incarnation + 1, [(TOPIC, "a"), (TOPIC, "later"), ("elsewhere", "b")]))
        same(await _relayed(worker), [("b", 0)], "what is sent")
        await worker.take(SLOT)
        await worker.committed(worker.unit(emits=[_named("later"), _named("new")]))
        rows = [row.id for row in await store.outbox(after=0, limit=100)]
        sent = await store.number(worker.leases[RELAY], rows)
        same([(row.emitted.record.id, row.sequence) for row in sent], [("b", 0), ("new", 1)], "what is sent")
        same(await _ids(store), ["b", "new"], "the outbox")


@case()
async def nothing_of_who_worked_before_is_committed_any_more(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT, RELAY) as worker:
        store = worker.store
        await worker.committed(worker.unit(emits=[emitted(1)]))
        old = dict(worker.leases)
        await store.leave()
        await store.reincarnate(Incarnation(store.incarnation + 1))
        outcomes = await store.commit([worker.writing({'["a"]': Put(number(1))})], list(old.values()), [])
        same(list(outcomes), [Outcome.FENCED], "the outcome")
        with raises(LeaseLost):
            await store.number(old[RELAY], [1])
        await store.join({STOCK: []}, alive_s=3_600)
        taken: Lease = await worker.take(SLOT)
        same(taken.epoch > old[SLOT].epoch, True, "the epoch is above all that were given")


@case()
async def state_held_records_and_what_goes_not_back_stay(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT) as worker:
        store, other = worker.store, TopicPartition(TOPIC, 1)
        await store.begin(STOCK, [Progress(HERE, Offset(-1)), Progress(other, Offset(-1))])
        await worker.committed(
            worker.writing({'["a"]': Put(number(1))}, holds=[failed(3)]), progress=[progress(9, [2, 5]), progress(7, partition=1)]
        )
        await store.leave()
        back = Progress(HERE, Offset(4), [Offset(2)])
        await store.reincarnate(Incarnation(store.incarnation + 1, progress=[(STOCK, back)]))
        found = {one.name: one for one in (await store.status()).subscriptions}[STOCK]
        same(list(found.progress), [back, progress(7, partition=1)], "the progress")
        same((await value_of(store, '["a"]', STATE), await held_offsets(store)), (1, [3]), "state and held records")


@case()
async def a_store_at_work_is_not_reborn_and_no_incarnation_comes_twice(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT, RELAY) as worker:
        store = worker.store
        await worker.committed(worker.unit(emits=[_named("a")]))
        with raises(CommandRefused, "stop them first"):
            await store.reincarnate(Incarnation(store.incarnation + 1, [(TOPIC, "a")]))
        before = store.incarnation
        await store.leave()
        with raises(CommandRefused, "above"):
            await store.reincarnate(Incarnation(before, [(TOPIC, "a")]))
        same((store.incarnation, await _relayed(worker)), (before, [("a", 0)]), "the incarnation, and what is sent")


@case(needs="durability")
async def an_incarnation_outlives_whoever_began_it(harness: StoreUnderTest) -> None:
    async with opened(harness) as store:
        begun = store.incarnation + 3
        await store.reincarnate(Incarnation(begun))
    async with opened(harness) as store:
        same(store.incarnation, begun, "the incarnation")


@case()
async def acknowledged_is_the_highest_number_whose_row_is_gone(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT, RELAY) as worker:
        store, relay = worker.store, worker.leases[RELAY]
        await worker.committed(worker.unit(emits=[emitted(n) for n in range(4)]), worker.unit(emits=[emitted(9, partition=1)]))
        ids = [row.id for row in await store.outbox(after=0, limit=10)]
        await store.number(relay, ids)
        same(dict(await store.acknowledged()), {}, "nothing is, while every row is there")
        await store.number(relay, [], done=[ids[0], ids[2]])
        same(dict(await store.acknowledged()), {HERE: 2}, "the numbers")
        await store.number(relay, [], done=[ids[1], ids[3], ids[4]])
        same(dict(await store.acknowledged()), {HERE: 3, TopicPartition(TOPIC, 1): 0}, "the numbers")


@case()
async def the_newest_landmark_of_a_partition_is_kept_until_a_new_incarnation(harness: StoreUnderTest) -> None:
    async with opened(harness) as store:
        other = TopicPartition(TOPIC, 1)
        await store.keep_landmarks([Landmark(other, Offset(3), 30), Landmark(HERE, Offset(1), 10)])
        await store.keep_landmarks([Landmark(HERE, Offset(2), 20)])
        same(list(await store.landmarks()), [Landmark(HERE, Offset(2), 20), Landmark(other, Offset(3), 30)], "the landmarks")
        await store.reincarnate(Incarnation(store.incarnation + 1))
        same(list(await store.landmarks()), [], "the landmarks")
        same(await numbers_in_outbox(store), [], "the outbox")
