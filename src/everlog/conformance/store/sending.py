"""The outbox: events in the order of the commits, and the numbers under which they go to the log."""
# ruff: noqa: D103 - the name of a case is its sentence

from __future__ import annotations

from collections.abc import Sequence

from everlog.conformance.cases import case, raises, same
from everlog.conformance.store.harness import (
    OTHER_TOPIC,
    SLOT,
    STATE,
    TOPIC,
    StoreUnderTest,
    Worker,
    at_work,
    emitted,
    number,
    numbers_in_outbox,
)
from everlog.errors import LeaseLost
from everlog.position import TopicPartition
from everlog.record import NewRecord
from everlog.store import RELAY, Emitted, OutboxRow, Outcome, Put


async def _emit(worker: Worker, *events: Emitted) -> list[int]:
    """Commit events, a unit each; return the ids of all rows in the outbox."""
    await worker.committed(*[worker.unit(emits=[event]) for event in events])
    return [row.id for row in await worker.store.outbox(after=0, limit=1_000)]


def _sequences(rows: Sequence[OutboxRow]) -> list[int | None]:
    return [row.sequence for row in rows]


@case()
async def an_event_comes_back_as_it_was_given(harness: StoreUnderTest) -> None:
    record = NewRecord(
        "conformance.full/2", b'{"n":"\xc3\xbc"}', "K\u00fc\U0001f600", 3, "source", -5, "id-1", {"correlationid": "c"}, 2**63,
        tags=("a",), flags=3, key_id="key-1", tenant="t",
    )  # fmt: skip
    async with at_work(harness, SLOT) as worker:
        await _emit(worker, Emitted(OTHER_TOPIC, record))
        (row,) = await worker.store.outbox(after=0, limit=10)
        same((row.emitted, row.sequence, row.error), (Emitted(OTHER_TOPIC, record), None, None), "the row")


@case()
async def the_outbox_has_the_order_of_commits_units_and_events(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT) as worker:
        await worker.committed(
            worker.unit(emits=[emitted(1), emitted(2, topic=OTHER_TOPIC)]), worker.unit(), worker.unit(emits=[emitted(3)])
        )
        await worker.committed(worker.unit(emits=[emitted(4, partition=5), emitted(5)]))
        same(await numbers_in_outbox(worker.store), [1, 2, 3, 4, 5], "the outbox")


@case()
async def events_of_units_that_are_not_applied_are_not_in_the_outbox(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT) as worker:
        key = (STATE, '["a"]')
        await worker.committed(worker.unit(writes={key: Put(number(1))}))
        outcomes = await worker.commit(worker.unit(emits=[emitted(1)], reads={key: 0}), worker.unit(emits=[emitted(2)]))
        same(outcomes, [Outcome.CONFLICT, Outcome.COMMITTED], "the outcomes")
        same(await numbers_in_outbox(worker.store), [2], "the outbox")


@case()
async def the_outbox_is_read_in_pages(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT) as worker:
        ids = await _emit(worker, *[emitted(n) for n in range(10)])
        same(ids, sorted(set(ids)), "the ids")
        page = await worker.store.outbox(after=ids[3], limit=4)
        same([row.emitted.record.time_us for row in page], [4, 5, 6, 7], "a page")
        same(list(await worker.store.outbox(after=ids[-1], limit=4)), [], "the page behind the last")


@case()
async def numbers_are_consecutive_from_0_per_topic_and_partition(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT, RELAY) as worker:
        ids = await _emit(
            worker,
            emitted(1),
            emitted(2, partition=1),
            emitted(3),
            emitted(4, topic=OTHER_TOPIC),
            emitted(5),
            emitted(6, partition=1),
        )
        relay = worker.leases[RELAY]
        rows = await worker.store.number(relay, ids[:4])
        same([row.emitted.record.time_us for row in rows], [1, 2, 3, 4], "the rows")
        same(_sequences(rows), [0, 0, 1, 0], "their numbers")
        same(_sequences(await worker.store.number(relay, ids[4:])), [2, 1], "the next numbers")
        found = {TopicPartition(TOPIC, 0): 2, TopicPartition(TOPIC, 1): 1, TopicPartition(OTHER_TOPIC, 0): 0}
        same(dict(await worker.store.issued()), found, "the highest numbers")
        same(_sequences(await worker.store.outbox(after=0, limit=10)), [0, 0, 1, 0, 2, 1], "the numbers in the outbox")


@case()
async def numbers_follow_the_order_of_the_ids_whatever_the_order_asked_for(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT, RELAY) as worker:
        ids = await _emit(worker, *[emitted(n) for n in range(5)])
        await worker.store.number(worker.leases[RELAY], [ids[3], ids[0], ids[4], ids[1], ids[2]])
        same(_sequences(await worker.store.outbox(after=0, limit=10)), [0, 1, 2, 3, 4], "the numbers in the outbox")


@case()
async def a_row_keeps_the_number_that_it_has(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT, RELAY) as worker:
        ids = await _emit(worker, emitted(1), emitted(2), emitted(3))
        relay = worker.leases[RELAY]
        await worker.store.number(relay, ids[:2])
        same(_sequences(await worker.store.number(relay, ids)), [0, 1, 2], "the numbers")


@case()
async def rows_that_are_done_go_and_their_numbers_are_never_given_again(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT, RELAY) as worker:
        relay = worker.leases[RELAY]
        first = await _emit(worker, emitted(1), emitted(2))
        await worker.store.number(relay, first)
        rows = await worker.store.number(relay, [], done=first)
        same(len(rows), 0, "the number of rows")
        same(await numbers_in_outbox(worker.store), [], "the outbox")
        same(dict(await worker.store.issued()), {TopicPartition(TOPIC, 0): 1}, "the highest numbers")
        second = await _emit(worker, emitted(3))
        same(second[0] > first[-1], True, "a new row has an id above those of rows that are gone")
        same(_sequences(await worker.store.number(relay, second)), [2], "the next number")


@case()
async def numbering_and_removing_are_one_commit(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT, RELAY) as worker:
        ids = await _emit(worker, emitted(1), emitted(2), emitted(3))
        relay = worker.leases[RELAY]
        await worker.store.number(relay, ids[:2])
        rows = await worker.store.number(relay, ids[2:], done=ids[:2])
        same(([row.id for row in rows], _sequences(rows)), (ids[2:], [2]), "the rows")
        same(await numbers_in_outbox(worker.store), [3], "the outbox")


@case()
async def a_refused_row_and_those_of_its_topic_and_key_behind_it_are_left_out(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT, RELAY) as worker:
        ids = await _emit(
            worker,
            emitted(1, key="a"), emitted(2, key="a"), emitted(3, key="b"), emitted(4, key="a"), emitted(5, topic=OTHER_TOPIC, key="a"),
        )  # fmt: skip
        relay = worker.leases[RELAY]
        await worker.store.number(relay, ids)
        await worker.store.refuse(relay, ids[1], "too large")
        same(await numbers_in_outbox(worker.store), [1, 3, 5], "the outbox: what was before it, and other keys")
        await _emit(worker, emitted(6, key="a"), emitted(7, key="c"))
        same(await numbers_in_outbox(worker.store), [1, 3, 5, 7], "the outbox: what came later is behind it too")
        found = await worker.store.status()
        same((found.outbox, found.outbox_parked), (7, 3), "all, and those that wait")


@case()
async def a_refused_row_without_key_holds_up_nobody(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT, RELAY) as worker:
        ids = await _emit(worker, emitted(1, key=None), emitted(2, key=None), emitted(3, key=""))
        await worker.store.refuse(worker.leases[RELAY], ids[0], "too large")
        same(await numbers_in_outbox(worker.store), [2, 3], "the outbox")
        same((await worker.store.status()).outbox_parked, 1, "those that wait")


@case()
async def only_the_relay_numbers_and_refuses(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT, RELAY) as worker:
        ids = await _emit(worker, emitted(1))
        old = worker.leases[RELAY]
        await worker.store.release(old)
        for lease in (old, worker.leases[SLOT]):
            with raises(LeaseLost):
                await worker.store.number(lease, ids, done=ids)
            with raises(LeaseLost):
                await worker.store.refuse(lease, ids[0], "no")
        same(await numbers_in_outbox(worker.store), [1], "the outbox")
        same(dict(await worker.store.issued()), {}, "the highest numbers")
