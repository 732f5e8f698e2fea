"""Handling events again: a replay begins a new generation, a rewind sets the progress back, and whoever is at work is fenced."""
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
    finished,
    held_offsets,
    number,
    numbers_in_outbox,
    progress,
    value_of,
)
from everlog.errors import CommandRefused
from everlog.position import BEGINNING, Offset
from everlog.store import Again, Muted, Outcome, Put, Section, SlotState


def _replay(after: int = BEGINNING, *, keep_state: bool = False) -> Again:
    return Again(STOCK, {HERE: Offset(after)}, rebuilds=True, keep_state=keep_state)


def _rewind(after: int = BEGINNING) -> Again:
    return Again(STOCK, {HERE: Offset(after)}, rebuilds=False)


async def _handled(worker: Worker, *offsets: int, through: int, unfinished: tuple[int, ...] = ()) -> None:
    """Handle records: each writes its number into a row and publishes it."""
    for offset in offsets:
        unit = worker.writing({f'["{offset}"]': Put(number(offset))}, emits=[emitted(offset)], finishes=finished(offset))
        await worker.committed(unit)
    await worker.committed(progress=[progress(through, unfinished)])


async def _taken_anew(worker: Worker) -> SlotState:
    return await worker.store.load(await worker.take(SLOT))


def _muted(state: SlotState, *offsets: int, type_: str = "conformance.placed/1") -> list[bool]:
    (muted,) = state.muted
    return [muted.has(Offset(offset), type_) for offset in offsets]


@case()
async def a_replay_begins_with_empty_state_where_it_is_told(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT) as worker:
        await _handled(worker, 0, 1, through=1)
        same(await worker.store.start_again(_replay()), 2, "the generation")
        state = await _taken_anew(worker)
        same((state.generation, list(state.progress)), (2, [progress(-1)]), "where the slot stands")
        same(await value_of(worker.store, '["0"]'), None, "a row of the old generation")
        await _handled(worker, 0, through=0)
        same(await value_of(worker.store, '["0"]'), 0, "a row of the new generation")


@case()
async def a_replay_can_keep_the_state(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT) as worker:
        await _handled(worker, 0, 1, through=1)
        await worker.store.start_again(_replay(0, keep_state=True))
        same(list((await _taken_anew(worker)).progress), [progress(0)], "where the slot stands")
        same([await value_of(worker.store, f'["{n}"]') for n in (0, 1)], [0, 1], "the rows")
        same(await worker.store.collect(), 0, "the rows to collect")


@case()
async def what_is_in_flight_when_events_begin_again_is_never_committed(harness: StoreUnderTest) -> None:
    for again in (_replay(), _rewind()):
        async with at_work(harness, SLOT) as worker:
            await _handled(worker, 0, through=0)
            before = await numbers_in_outbox(worker.store)
            await worker.store.start_again(again)
            late = worker.writing({'["late"]': Put(b"1")}, emits=[emitted(9)], finishes=finished(1))
            same(await worker.commit(late, progress=[progress(1)]), [Outcome.FENCED], "the outcome")
            same(await value_of(worker.store, '["late"]'), None, "what it wrote")
            same(list((await _taken_anew(worker)).progress), [progress(-1)], "where the slot stands")
            same(await numbers_in_outbox(worker.store), before, "the outbox")


@case()
async def a_replay_knows_for_which_records_everything_was_published(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT) as worker:
        hold = worker.unit("k", holds=[failed(2)], finishes=finished(2))
        await worker.committed(hold)
        await _handled(worker, 0, 1, 4, through=4, unfinished=(3,))
        await worker.store.start_again(_replay())
        state = await _taken_anew(worker)
        same(_muted(state, 0, 1, 2, 3, 4, 5), [True, True, False, False, True, False], "what is published no more")
        same(await held_offsets(worker.store), [], "what is held")
        # Again, before the first replay has come to its end: 0 was handled once more, 3 for the first time.
        await _handled(worker, 0, 3, through=3, unfinished=(1, 2))
        await worker.store.start_again(_replay())
        same(_muted(await _taken_anew(worker), 0, 1, 2, 3, 4, 5), [True, True, False, True, True, False], "and then")


@case()
async def what_a_replay_handles_for_the_first_time_is_published(harness: StoreUnderTest) -> None:
    """Records of types that the subscription had passed by: until they are handled, over as many replays as there are."""
    paid = "conformance.paid/1"
    async with at_work(harness, SLOT) as worker:
        await _handled(worker, 0, through=4)
        again = Again(STOCK, {HERE: BEGINNING}, rebuilds=True, grown={TOPIC: [paid]})
        await worker.store.start_again(again)
        state = await _taken_anew(worker)
        same(_muted(state, 0, 2, 4, 5), [True, True, True, False], "what is published no more")
        same(_muted(state, 0, 2, 4, 5, type_=paid), [False] * 4, "of the new type")
        (stored,) = [one for one in (await worker.store.status()).subscriptions if one.name == STOCK]
        same(
            {topic: sorted(types) for topic, types in stored.types.items()}, {TOPIC: [paid, "conformance.placed/1"]}, "the types"
        )
        # Again, in the middle: 0 and 2 are finished, 1 is not.
        await _handled(worker, 0, 2, through=2, unfinished=(1,))
        await worker.store.start_again(_replay())
        state = await _taken_anew(worker)
        same(_muted(state, 0, 1, 2, 3, 4, 5), [True] * 5 + [False], "what is published no more after a second replay")
        same(_muted(state, 0, 1, 2, 3, 4, 5, type_=paid), [True, False, True, False, False, False], "of the new type")
        # And again, before it has come as far as the second.
        await _handled(worker, 0, 1, through=1)
        await worker.store.start_again(_replay())
        state = await _taken_anew(worker)
        same(_muted(state, 0, 1, 2, 3, 4, 5, type_=paid), [True, True, True, False, False, False], "after a third")


@case()
async def held_records_before_the_start_stay_held(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT) as worker:
        await worker.committed(worker.unit("k", holds=[failed(1)], finishes=finished(1)))
        await worker.committed(worker.unit("b", holds=[failed(3, "b")], finishes=finished(3)))
        await _handled(worker, 0, 2, 4, through=4)
        await worker.store.request(STOCK, "k", "redrive")
        await worker.store.request(STOCK, "b", "redrive")
        await worker.store.start_again(_replay(2))
        same(await held_offsets(worker.store), [1], "what is held of the first key")
        same(await held_offsets(worker.store, "b"), [], "what is held of the second")
        same([asked.key for asked in await worker.store.requests([SLOT])], ["k"], "the requests")
        (one,) = (await worker.store.status()).subscriptions[1:] or (await worker.store.status()).subscriptions[:1]
        same(one.held_records, 1, "how many are held")


@case()
async def a_rewind_keeps_the_state_and_publishes_again(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT) as worker:
        await _handled(worker, 0, 1, through=1)
        await worker.store.start_again(_replay())
        await _taken_anew(worker)
        await _handled(worker, 0, through=0)
        same(await worker.store.start_again(_rewind()), 2, "the generation")
        state = await _taken_anew(worker)
        same((list(state.progress), list(state.muted)), ([progress(-1)], list[Muted]()), "where the slot stands")
        same(await value_of(worker.store, '["0"]'), 0, "a row")


@case()
async def rows_of_former_generations_are_collected_in_steps(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT) as worker:
        await _handled(worker, 0, 1, 2, through=2)
        await worker.store.start_again(_replay())
        await _taken_anew(worker)
        await _handled(worker, 0, through=0)
        same([await worker.store.collect(limit=2) for _ in range(3)], [2, 1, 0], "the rows of each step")
        same(await value_of(worker.store, '["0"]'), 0, "a row of the new generation")


@case()
async def who_read_a_row_of_the_old_generation_is_in_conflict_once(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT) as worker:
        await _handled(worker, 0, through=0)
        (before,) = await worker.store.read([(STATE, '["0"]')])
        await worker.store.start_again(_replay())
        await _taken_anew(worker)
        unit = worker.unit(reads={(STATE, '["0"]'): before.version}, writes={(STATE, '["0"]'): Put(b"7")})
        same(await worker.commit(unit), [Outcome.CONFLICT], "the outcome")
        (now,) = await worker.store.read([(STATE, '["0"]')])
        same(now.version, 0, "the version of the row that is not there any more")


@case()
async def what_cannot_begin_again_changes_nothing(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT) as worker:
        await _handled(worker, 0, through=0)
        with raises(CommandRefused):
            await worker.store.start_again(Again("nobody", {}, rebuilds=True))
        with raises(CommandRefused):
            await worker.store.start_again(_replay(1))
        await _handled(worker, 1, through=1)  # nobody is fenced
        same((await worker.store.load(worker.leases[SLOT])).generation, 1, "the generation")


@case(needs="sql")
async def tables_of_the_app_are_emptied_in_the_same_transaction(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT) as worker:
        store = worker.store
        section = await store.section()
        await section.mark(within_s=30)
        await section.execute("CREATE TABLE lines (n INTEGER)", ())
        await section.execute("INSERT INTO lines VALUES (1)", ())
        await section.keep()
        await section.commit()
        await _handled(worker, 0, through=0)

        async def lines() -> list[tuple[object, ...]]:
            section = await store.section()
            try:
                await section.mark(within_s=30)
                return await section.execute("SELECT n FROM lines", ())
            finally:
                await section.roll_back()

        async def empty(section: Section) -> None:
            await section.execute("DELETE FROM lines", ())

        async def fail(section: Section) -> None:
            await empty(section)
            raise CommandRefused("no")

        with raises(CommandRefused):
            await store.start_again(_replay(), fail)
        same(await lines(), [(1,)], "the lines, where the app could not empty its tables")
        await _handled(worker, 1, through=1)
        await store.start_again(_replay(), empty)
        same(await lines(), [], "the lines")
        same((await _taken_anew(worker)).generation, 2, "the generation")
