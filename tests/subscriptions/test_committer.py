"""The committer with a store that answers as it is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import cast

import pytest

from everlog.errors import SqlTimeout, StoreReadOnly
from everlog.position import Offset, TopicPartition
from everlog.store import Lease, Outcome, Progress, Slot, SlotState, Store, Unit
from everlog.subscriptions.committer import GROUP_BYTES, GROUP_UNITS, Committer, Pending
from everlog.subscriptions.progress import SlotWork
from everlog.testing.clock import ManualClock

WHERE = TopicPartition("t", 0)


class FakeStore:
    """Notes each commit, and answers with the outcomes of `judge`."""

    def __init__(self) -> None:
        self.groups: list[list[Unit]] = []
        self.leases: list[Sequence[Lease]] = []
        self.progress: list[Sequence[tuple[Slot, Progress]]] = []
        self.judge: Callable[[Unit], Outcome] = lambda _: Outcome.COMMITTED
        self.gate = asyncio.Event()
        self.gate.set()
        self.errors: list[Exception] = []

    async def commit(
        self, units: Sequence[Unit], leases: Sequence[Lease], progress: Sequence[tuple[Slot, Progress]]
    ) -> Sequence[Outcome]:
        await asyncio.sleep(0)
        await self.gate.wait()
        if self.errors:
            raise self.errors.pop(0)
        self.groups.append(list(units))
        self.leases.append(list(leases))
        self.progress.append(list(progress))
        outcomes: list[Outcome] = []
        broken: set[str | None] = set()
        owned = {lease.slot for lease in leases}
        for unit in units:
            if unit.slot not in owned:
                outcomes.append(Outcome.FENCED)
                continue
            outcome = Outcome.DROPPED if unit.lane in broken and unit.lane is not None else self.judge(unit)
            if outcome is not Outcome.COMMITTED:
                broken.add(unit.lane)
            outcomes.append(outcome)
        return outcomes


class Bench:
    def __init__(self) -> None:
        self.store = FakeStore()
        self.clock = ManualClock()
        self.committer = Committer(cast("Store", self.store), self.clock, lambda work, _: [Progress(WHERE, Offset(0))])
        self.works = [SlotWork(Lease(Slot("a", number), 1, 1), SlotState([], [])) for number in range(2)]
        self.told: list[tuple[int, Outcome]] = []
        self.version = 0

    def put(self, *, lane: str | None = None, size: int = 1, work: SlotWork | None = None) -> Pending:
        work = work or self.works[0]
        self.version += 1
        unit = Unit(work.slot, lane, self.version)
        unit.size = size
        pending = Pending(unit, work, lambda one, outcome: self.told.append((one.unit.version, outcome)))
        self.committer.put(pending)
        return pending


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    made = Bench()
    running = asyncio.create_task(made.committer.run())
    yield made
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def turns(count: int = 30) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_one_unit_is_committed_at_once_and_not_waited_with(bench: Bench) -> None:
    assert await bench.put().outcome() is Outcome.COMMITTED
    assert [len(group) for group in bench.store.groups] == [1]
    assert bench.clock.monotonic_s() == 1_000.0


async def test_what_is_finished_during_a_commit_is_the_next_group_in_the_order_of_finishing(bench: Bench) -> None:
    bench.store.gate.clear()
    bench.put()
    await turns()
    last = [bench.put() for _ in range(600)][-1]
    bench.store.gate.set()
    await last.outcome()
    assert [len(group) for group in bench.store.groups] == [1, GROUP_UNITS, GROUP_UNITS, 88]
    assert [unit.version for group in bench.store.groups for unit in group] == list(range(1, 602))
    assert [version for version, _ in bench.told] == list(range(1, 602))


async def test_a_group_ends_at_a_mebibyte(bench: Bench) -> None:
    bench.store.gate.clear()
    bench.put()
    await turns()
    last = [bench.put(size=GROUP_BYTES // 4) for _ in range(9)][-1]
    bench.store.gate.set()
    await last.outcome()
    assert [len(group) for group in bench.store.groups] == [1, 4, 4, 1]


async def test_a_unit_larger_than_a_group_goes_alone(bench: Bench) -> None:
    bench.put(size=3 * GROUP_BYTES)
    await bench.put().outcome()
    assert [len(group) for group in bench.store.groups] == [1, 1]


@pytest.mark.parametrize("outcome", [Outcome.CONFLICT, Outcome.REFUSED])
async def test_later_units_of_a_lane_that_broke_are_dropped_in_the_group_and_in_the_queue(bench: Bench, outcome: Outcome) -> None:
    bench.store.judge = lambda unit: outcome if unit.version == 1 else Outcome.COMMITTED
    bench.store.gate.clear()
    bench.put(lane="a")  # 1
    await turns()
    bench.put(lane="a")  # 2: in the queue when the outcome comes
    bench.put(lane="b")  # 3
    bench.put(lane=None)  # 4
    other = bench.put(lane="a", work=bench.works[1])  # 5: another slot
    bench.store.gate.set()
    await other.outcome()
    assert bench.told == [
        (1, outcome),
        (2, Outcome.DROPPED),
        (3, Outcome.COMMITTED),
        (4, Outcome.COMMITTED),
        (5, Outcome.COMMITTED),
    ]


async def test_a_dropped_unit_is_told_before_anything_behind_it_is_committed(bench: Bench) -> None:
    bench.store.judge = lambda unit: Outcome.CONFLICT if unit.version == 1 else Outcome.COMMITTED
    bench.put(lane="a")
    bench.put(lane="a")
    await bench.put(lane="b").outcome()
    assert bench.told == [(1, Outcome.CONFLICT), (2, Outcome.DROPPED), (3, Outcome.COMMITTED)]


async def test_a_store_that_takes_no_writes_is_asked_again_and_nothing_is_lost(bench: Bench) -> None:
    bench.store.errors = [StoreReadOnly("full"), StoreReadOnly("full")]
    outcome = bench.put().outcome()
    for _ in range(3):
        await turns()
        bench.clock.advance(2)
    assert await outcome is Outcome.COMMITTED
    assert [len(group) for group in bench.store.groups] == [1]


async def test_progress_alone_waits_a_moment_unless_it_is_urgent(bench: Bench) -> None:
    await bench.put().outcome()
    groups = len(bench.store.groups)
    bench.committer.touch(bench.works[0], urgent=False)
    await turns()
    assert len(bench.store.groups) == groups
    bench.committer.touch(bench.works[0], urgent=True)
    await turns()
    assert len(bench.store.groups) == groups + 1
    assert [slot for slot, _ in bench.store.progress[-1]] == [Slot("a", 0)]


async def test_units_carry_the_progress_of_their_slots_in_the_same_commit(bench: Bench) -> None:
    bench.store.gate.clear()
    bench.put()
    await turns()
    bench.put(work=bench.works[0])
    last = bench.put(work=bench.works[1])
    bench.store.gate.set()
    await last.outcome()
    assert {slot.number for slot, _ in bench.store.progress[-1]} == {0, 1}
    assert {lease.slot.number for lease in bench.store.leases[-1]} == {0, 1}


async def test_units_of_a_slot_that_was_lost_are_void_even_when_it_is_ours_again(bench: Bench) -> None:
    bench.store.gate.clear()
    bench.put()
    await turns()
    old = bench.put(work=bench.works[0]).outcome()
    bench.works[0].is_ours = False
    again = SlotWork(Lease(Slot("a", 0), 2, 1), SlotState([], []))
    new = bench.put(work=again).outcome()
    bench.store.gate.set()
    assert await old is Outcome.FENCED
    assert await new is Outcome.COMMITTED


async def test_draining_one_slot_does_not_wait_for_another(bench: Bench) -> None:
    """Another slot always has something to commit."""

    def endless(pending: Pending, outcome: Outcome) -> None:
        bench.version += 1
        bench.committer.put(Pending(Unit(bench.works[1].slot, None, bench.version), bench.works[1], endless))

    bench.committer.put(Pending(Unit(bench.works[1].slot, None, 0), bench.works[1], endless))
    bench.put(work=bench.works[0])
    async with asyncio.timeout(5):
        await bench.committer.drain(bench.works[0])
    assert (1, Outcome.COMMITTED) in bench.told


async def test_whoever_finishes_faster_than_the_store_commits_waits_for_room(bench: Bench) -> None:
    bench.store.gate.clear()
    bench.put()
    await turns()  # one is on its way
    while not bench.committer.is_full:
        bench.put()
    waiting = asyncio.create_task(bench.committer.room())
    await turns()
    assert not waiting.done()
    bench.store.gate.set()
    async with asyncio.timeout(5):
        await waiting
    assert not bench.committer.is_full


# ---- handlers with statements of their own ----


class FakeSection:
    """Notes what is applied to it; its steps wait for the store's gate."""

    has_ended = False

    def __init__(self, store: FakeStore) -> None:
        self._store = store
        self.errors: list[Exception] = []

    async def _step(self) -> None:
        await asyncio.sleep(0)
        await self._store.gate.wait()
        if self.errors:
            raise self.errors.pop(0)

    async def mark(self, *, within_s: float) -> None:
        await self._step()

    async def keep(self) -> None:
        await self._step()

    async def undo(self) -> None:
        await self._step()

    async def apply(
        self, units: Sequence[Unit], leases: Sequence[Lease], progress: Sequence[tuple[Slot, Progress]] = ()
    ) -> Sequence[Outcome]:
        await self._step()
        return await self._store.commit(units, leases, progress)

    async def commit(self) -> None:
        await self._step()

    async def roll_back(self) -> None:
        await asyncio.sleep(0)


@pytest.fixture
def sections(bench: Bench) -> list[FakeSection]:
    """The sections that the store has begun."""
    begun: list[FakeSection] = []

    async def section() -> FakeSection:
        await asyncio.sleep(0)
        begun.append(FakeSection(bench.store))
        return begun[-1]

    bench.store.section = section  # type: ignore[attr-defined] # pyright: ignore[reportAttributeAccessIssue]
    return begun


def unit_of(bench: Bench, *, lane: str | None = None, number: int = 0) -> Pending:
    """Return the unit of a handler with statements: it is not put into the queue."""
    bench.version += 1
    work = bench.works[number]
    return Pending(
        Unit(work.slot, lane, bench.version), work, lambda one, outcome: bench.told.append((one.unit.version, outcome))
    )


async def test_turns_without_a_pause_do_not_keep_the_progress_of_other_slots_back(
    bench: Bench, sections: list[FakeSection]
) -> None:
    waiting = [bench.committer.enter() for _ in range(600)]
    draining = asyncio.ensure_future(bench.committer.drain(bench.works[1]))
    given = 0
    for exclusive in waiting:
        await exclusive.wait()
        exclusive.put(unit_of(bench))
        given += 1
        if draining.done():
            break
    assert given < len(waiting)
    for exclusive in waiting[given:]:
        exclusive.abandon()
    await draining


async def test_the_unit_of_a_handler_with_statements_is_the_last_of_its_lane_before_it_is_applied(
    bench: Bench, sections: list[FakeSection]
) -> None:
    exclusive = bench.committer.enter()
    await exclusive.wait()
    assert bench.committer.last_of(bench.works[0].slot, "k") is None
    pending = unit_of(bench, lane="k")
    exclusive.put(pending)
    assert bench.committer.last_of(bench.works[0].slot, "k") is pending
    assert await pending.outcome() is Outcome.COMMITTED
    assert bench.committer.last_of(bench.works[0].slot, "k") is None


async def test_when_a_section_is_lost_units_without_statements_are_committed_again_and_the_others_told(
    bench: Bench, sections: list[FakeSection]
) -> None:
    first, second = bench.committer.enter(), bench.committer.enter()
    before = bench.put(lane=None)
    await first.wait()
    lost, beside = unit_of(bench, lane="k"), bench.put(lane="l")
    first.put(lost)
    await second.wait()
    sections[0].errors.append(SqlTimeout("too long"))
    second.abandon()
    assert await lost.outcome() is Outcome.DROPPED
    assert await before.outcome() is Outcome.COMMITTED
    assert await beside.outcome() is Outcome.COMMITTED
    assert [outcome for _, outcome in bench.told].count(Outcome.COMMITTED) == 2


async def test_a_turn_that_was_not_begun_when_its_section_was_lost_comes_with_the_next_one(
    bench: Bench, sections: list[FakeSection]
) -> None:
    first, second = bench.committer.enter(), bench.committer.enter()
    await first.wait()
    lost = unit_of(bench)
    first.put(lost)
    sections[0].errors.append(SqlTimeout("too long"))
    assert await lost.outcome() is Outcome.DROPPED
    async with asyncio.timeout(5):
        await second.wait()
    kept = unit_of(bench)
    second.put(kept)
    assert await kept.outcome() is Outcome.COMMITTED
    assert len(sections) == 2
