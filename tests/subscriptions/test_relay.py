"""The relay between a real store and a log that answers as it is told."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from itertools import count
from typing import Any
from uuid import uuid4

import msgspec
import pytest
from tests.subscriptions.world import LastingStore, Out, out

from everlog.contracts.contract import contract_of
from everlog.errors import EventTooLarge, LeaseLost, LogError, LogReadOnly
from everlog.key import partition_of
from everlog.log import Appended, ProducerBatch, Status
from everlog.logs.memory import MemoryLog
from everlog.position import BEGINNING, TopicPartition
from everlog.record import NewRecord
from everlog.store import RELAY, AppSpec, Emitted, Handover, Lease, OutboxRow, Slot, SubscriptionSpec, Unit
from everlog.subscriptions.relay import Relay
from everlog.testing.clock import ManualClock

PARTITIONS = out.partitions

Answer = Callable[[Sequence[NewRecord], Mapping[int, int]], str | None]
"""What to do with an append: `None` stores it, `lost` stores it and says unknown, `unknown`, `readonly`, `refuse:n` refuses the records of n."""


class AnsweringLog(MemoryLog):
    """A memory log whose answers a test decides, and that writes down what it was sent."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(clock)
        self.answers: Iterator[str | None] = iter(())
        self.poison: set[bytes] = set()
        self.sent: list[tuple[str, list[tuple[int, int, bytes]]]] = []
        self.before: Callable[[], Coroutine[Any, Any, None]] | None = None

    def append(
        self, topic: str, records: Sequence[NewRecord], *, producer: ProducerBatch | None = None, expect: object = None
    ) -> Coroutine[Any, Any, Appended]:
        numbers = dict(producer.first) if producer is not None else {}
        placed: list[tuple[int, int, bytes]] = []
        for record in records:
            number = numbers.get(record.partition, -1)
            placed.append((record.partition, number, record.data))
            numbers[record.partition] = number + 1
        self.sent.append((topic, placed))
        answer = next(self.answers, None)
        guilty = {record.partition for record in records if record.data in self.poison}
        if answer == "unknown":
            return self._say(records, lambda _: Status.UNKNOWN)
        if answer == "readonly":
            return self._read_only()
        if guilty:
            kept = [record for record in records if record.partition not in guilty]
            if kept:
                stored = super().append(topic, kept, producer=producer)
                stored.close()  # a memory log has stored it by now
            return self._say(records, lambda record: Status.REFUSED if record.partition in guilty else Status.STORED)
        appended = super().append(topic, records, producer=producer)
        if answer == "lost":
            appended.close()
            return self._say(records, lambda _: Status.UNKNOWN)
        return appended

    async def _say(self, records: Sequence[NewRecord], status: Callable[[NewRecord], Status]) -> Appended:
        statuses = [status(record) for record in records]
        errors = {Status.REFUSED: EventTooLarge("refused by the test"), Status.UNKNOWN: LogError("lost by the test")}
        return Appended(statuses, [None] * len(records), [errors.get(one) for one in statuses])

    async def _read_only(self) -> Appended:
        raise LogReadOnly("full")


class Bench:
    """A store with an outbox, a log, and a relay between them."""

    def __init__(self, store: LastingStore, log: AnsweringLog, clock: ManualClock, lease: Lease) -> None:
        self.store = store
        self.log = log
        self.clock = clock
        self.lease = lease
        self.versions = count(1 << 50)
        self.relay = self.new_relay()

    def new_relay(self) -> Relay:
        return Relay(self.log, self.store, clock=self.clock)

    async def emit(self, *events: Out, topic: str = out.name, handover: Handover | None = None) -> None:
        contract = contract_of(Out)
        emits = [
            Emitted(
                topic,
                NewRecord(
                    contract.name, data, event.key, partition_of(event.key, PARTITIONS), "app", 1, id=f"id{event.n}{event.key}"
                ),
            )
            for event, data in zip(events, contract.encode(events), strict=True)
        ]
        unit = Unit(self.lease.slot, None, next(self.versions))
        unit.emits = emits
        await self.store.commit([unit], [self.lease], [], handover=handover)
        self.relay.wake()

    async def hand_over(self, *events: Out, topic: str = out.name) -> bool:
        """Emit as the committer does, with what the relay asks for; tells whether they were handed over."""
        handover = self.relay.offer(has_events=True)
        await self.emit(*events, topic=topic, handover=handover)
        if handover is None:
            return False
        self.relay.handed(handover)
        return handover.numbered is not None

    @asynccontextmanager
    async def relaying(self) -> AsyncGenerator[None]:
        """Run the relay, from when it has caught up."""
        running = asyncio.create_task(self.relay.run())
        try:
            while self.relay._look_from is not None:
                await turn(self.clock, 0)
            yield
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    async def drain(self) -> None:
        """Run the relay until the outbox holds only what is parked."""
        running = asyncio.create_task(self.relay.run())
        try:
            async with asyncio.timeout(10):
                while True:
                    status = await self.store.status()
                    if status.outbox == status.outbox_parked:
                        break
                    await turn(self.clock)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    async def logged(self) -> list[tuple[str, int]]:
        """Return key and number of each stored event, by partition."""
        found: list[tuple[str, int]] = []
        for partition in range(PARTITIONS):
            where = TopicPartition(out.name, partition)
            if self.log.partition(where).next == 0:
                continue
            batch = await self.log.reader({where: BEGINNING}).next(max_records=1_000_000)
            for chunk in batch.chunks:
                events = [contract_of(Out).decode(chunk.slice(index)) for index in range(chunk.start, chunk.length)]
                found.extend((event.key, event.n) for event in events)
        return found


async def turn(clock: ManualClock, seconds: float = 0.5) -> None:
    """Let others run, then move the clock."""
    for _ in range(20):
        await asyncio.sleep(0)
    clock.advance(seconds)


def of(logged: Sequence[tuple[str, int]], key: str) -> list[int]:
    return [n for k, n in logged if k == key]


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    clock = ManualClock()
    store = LastingStore(None, clock=clock, changed=asyncio.Event())
    await store.open()
    await store.register(AppSpec("app", [SubscriptionSpec("app", {}, [])]), log=uuid4())
    await store.join({"app": []}, alive_s=3_600)
    lease = await store.acquire(Slot("app", 0))
    assert lease is not None
    log = AnsweringLog(clock)
    await log.ensure_topic(out.spec())
    yield Bench(store, log, clock, lease)
    await store.really_close()
    await log.aclose()


SAME = [key for key in (f"k{n}" for n in range(200)) if partition_of(key, PARTITIONS) == 0]
ELSEWHERE = next(key for key in (f"k{n}" for n in range(200)) if partition_of(key, PARTITIONS) == 1)


@pytest.mark.parametrize("answers", [[], ["unknown"], ["lost"], ["lost", "lost", "unknown"], ["readonly", "lost"]])
async def test_each_row_is_stored_once_and_in_order_whatever_the_log_answers(bench: Bench, answers: list[str]) -> None:
    bench.log.answers = iter(answers)
    for n in range(0, 60, 3):
        await bench.emit(Out(SAME[0], n), Out(SAME[1], n + 1), Out(ELSEWHERE, n + 2))
    await bench.drain()
    logged = await bench.logged()
    for at, key in enumerate((SAME[0], SAME[1], ELSEWHERE)):
        assert of(logged, key) == list(range(at, 60, 3))
    assert (await bench.store.status()).outbox == 0


async def test_numbers_are_committed_before_anything_is_sent(bench: Bench) -> None:
    await bench.emit(*[Out(SAME[0], n) for n in range(3)])
    seen: list[Mapping[TopicPartition, int]] = []
    number = bench.store.number

    async def noting(lease: Lease, rows: Sequence[int], *, done: Sequence[int] = ()) -> Sequence[OutboxRow]:
        assert not bench.log.sent or not rows
        numbered = await number(lease, rows, done=done)
        seen.append(await bench.store.issued())
        return numbered

    bench.store.number = noting  # type: ignore[method-assign]
    await bench.drain()
    assert seen[0] == {TopicPartition(out.name, 0): 2}
    assert [number for _, number, _ in bench.log.sent[0][1]] == [0, 1, 2]


async def test_a_successor_sends_the_same_bytes_under_the_same_numbers(bench: Bench) -> None:
    await bench.emit(*[Out(key, n) for n in range(5) for key in (SAME[0], ELSEWHERE)])
    bench.log.answers = iter(["lost"])
    running = asyncio.create_task(bench.relay.run())
    while not bench.log.sent:
        await turn(bench.clock, 0)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    bench.relay = bench.new_relay()
    await bench.emit(Out(SAME[0], 5))
    await bench.drain()
    first = bench.log.sent[0][1]
    again = [one for _, sent in bench.log.sent[1:] for one in sent]
    assert set(first) <= set(again)
    assert len({(partition, number) for partition, number, _ in {*first, *again}}) == len({*first, *again})
    assert of(await bench.logged(), SAME[0]) == list(range(6))


async def test_a_refused_row_parks_its_key_and_nothing_else(bench: Bench) -> None:
    bad, good = SAME[:2]
    (poison,) = contract_of(Out).encode([Out(bad, 2)])
    bench.log.poison = {poison}
    for n in range(5):
        await bench.emit(Out(bad, n), Out(good, n), Out(ELSEWHERE, n))
    await bench.drain()
    await bench.emit(Out(bad, 5), Out(good, 5))
    await bench.drain()
    logged = await bench.logged()
    assert of(logged, good) == list(range(6))
    assert of(logged, ELSEWHERE) == list(range(5))
    assert of(logged, bad) == [0, 1]  # what stands behind the refused one waits
    status = await bench.store.status()
    assert (status.outbox, status.outbox_parked) == (4, 4)


async def test_order_holds_when_a_row_is_in_doubt_while_a_refused_one_is_looked_for(bench: Bench) -> None:
    bad, good = SAME[:2]
    (poison,) = contract_of(Out).encode([Out(bad, 0)])
    bench.log.poison = {poison}
    await bench.emit(Out(good, 0), Out(bad, 0), Out(good, 1), Out(good, 2))
    bench.log.answers = iter([None, "unknown"])  # the whole is refused; then the first alone is in doubt
    await bench.drain()
    assert of(await bench.logged(), good) == [0, 1, 2]


async def test_a_number_that_was_refused_stays_used(bench: Bench) -> None:
    bad, good = SAME[:2]
    (poison,) = contract_of(Out).encode([Out(bad, 0)])
    bench.log.poison = {poison}
    await bench.emit(Out(bad, 0))
    await bench.drain()
    await bench.emit(Out(good, 1))
    await bench.drain()
    assert [number for _, sent in bench.log.sent for _, number, data in sent if data != poison] == [1]


async def test_a_topic_that_does_not_exist_does_not_hold_up_the_others(bench: Bench) -> None:
    """Somebody has deleted it."""
    await bench.emit(Out(SAME[0], 0), topic="test.unheard-of")
    await bench.emit(Out(SAME[0], 1))
    running = asyncio.create_task(bench.relay.run())
    try:
        async with asyncio.timeout(5):
            while not await bench.logged():
                await turn(bench.clock)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert of(await bench.logged(), SAME[0]) == [1]


async def test_another_relay_takes_the_lease_and_the_first_one_sends_no_more(bench: Bench) -> None:
    assert await bench.store.acquire(RELAY) is not None
    stale = Lease(RELAY, 1, 999)
    await bench.emit(Out(SAME[0], 0))
    with pytest.raises(LeaseLost):
        await bench.relay._send_all(stale)
    assert bench.log.sent == []


# ---- what commits hand over ----


async def test_what_a_commit_hands_over_is_sent_without_being_read_back(bench: Bench) -> None:
    read: list[int] = []
    outbox = bench.store.outbox

    async def noting(*, after: int, limit: int) -> Sequence[OutboxRow]:
        rows = await outbox(after=after, limit=limit)
        read.extend(row.id for row in rows)
        return rows

    bench.store.outbox = noting  # type: ignore[method-assign]
    async with bench.relaying():
        for n in range(5):
            assert await bench.hand_over(Out(SAME[0], 2 * n), Out(SAME[0], 2 * n + 1))
            await turn(bench.clock)
        await bench.relay.drain()
    assert of(await bench.logged(), SAME[0]) == list(range(10))
    assert read == []
    assert (await bench.store.status()).outbox == 0
    assert await bench.store.issued() == await bench.store.acknowledged() == {TopicPartition(out.name, 0): 9}


async def test_what_other_processes_committed_before_is_handed_over_first(bench: Bench) -> None:
    async with bench.relaying():
        handover = bench.relay.offer(has_events=True)
        assert handover is not None
        await bench.emit(Out(SAME[0], 0))  # by somebody else
        await bench.emit(Out(SAME[0], 1), handover=handover)
        assert [row.sequence for row in handover.numbered or ()] == [0, 1]
        bench.relay.handed(handover)
        await bench.relay.drain()
    assert of(await bench.logged(), SAME[0]) == [0, 1]


async def test_nothing_is_handed_over_without_the_lease(bench: Bench) -> None:
    async with bench.relaying():
        handover = bench.relay.offer(has_events=True)
        assert handover is not None
        await bench.store.release(handover.lease)
        await bench.emit(Out(SAME[0], 0), handover=handover)
        assert handover.numbered is None
        assert await bench.store.issued() == {}
        assert [row.sequence for row in await bench.store.outbox(after=0, limit=10)] == [None]
        bench.relay.handed(handover)
        await turn(bench.clock, 0)
    bench.relay = bench.new_relay()
    await bench.drain()
    assert of(await bench.logged(), SAME[0]) == [0]


async def test_rows_that_a_former_commit_left_are_not_removed_by_a_handover_that_does_nothing(bench: Bench) -> None:
    await bench.emit(Out(SAME[0], 0))
    (row,) = await bench.store.outbox(after=0, limit=1)
    stale = Handover(Lease(RELAY, 1, 999), 0, [row.id])
    await bench.emit(Out(SAME[0], 1), handover=stale)
    assert (stale.numbered, (await bench.store.status()).outbox) == (None, 2)


async def test_a_commit_without_an_answer_is_found_in_the_table(bench: Bench) -> None:
    async with bench.relaying():
        handover = bench.relay.offer(has_events=True)
        assert handover is not None
        await bench.emit(Out(SAME[0], 0), handover=handover)
        handover.numbered = None  # the answer is lost
        bench.relay.handed(handover)
        assert not await bench.hand_over(Out(SAME[0], 1))
        await bench.relay.drain()
        assert await bench.hand_over(Out(SAME[0], 2))
        await bench.relay.drain()
    assert of(await bench.logged(), SAME[0]) == [0, 1, 2]


async def test_what_is_handed_over_behind_a_refused_row_waits(bench: Bench) -> None:
    bad, good = SAME[:2]
    (poison,) = contract_of(Out).encode([Out(bad, 0)])
    bench.log.poison = {poison}
    async with bench.relaying():
        assert await bench.hand_over(Out(bad, 0), Out(good, 0))
        assert await bench.hand_over(Out(bad, 1), Out(good, 1))  # before the refusal is known
        await turn(bench.clock)
        await bench.hand_over(Out(bad, 2), Out(good, 2))
        assert not await bench.hand_over(Out(bad, 3), Out(good, 3))
        await bench.relay.drain()
    logged = await bench.logged()
    assert (of(logged, bad), of(logged, good)) == ([], [0, 1, 2, 3])
    status = await bench.store.status()
    assert (status.outbox, status.outbox_parked) == (4, 4)


async def test_what_is_handed_over_for_a_missing_topic_is_sent_once_it_is_there(bench: Bench) -> None:
    async with bench.relaying():
        assert await bench.hand_over(Out(SAME[0], 0), topic="test.unheard-of")
        assert await bench.hand_over(Out(SAME[0], 1))
        await bench.relay.drain()
        assert (await bench.store.status()).outbox == 1
        await bench.log.ensure_topic(msgspec.structs.replace(out.spec(), name="test.unheard-of"))
        await bench.relay.drain()
        assert (await bench.store.status()).outbox == 0
    assert of(await bench.logged(), SAME[0]) == [1]


async def test_only_so_much_is_handed_over_as_memory_should_hold(bench: Bench) -> None:
    held = asyncio.Event()
    append = bench.log.append

    async def slowly(*args: Any, **named: Any) -> Appended:
        await held.wait()
        return await append(*args, **named)

    bench.log.append = slowly  # type: ignore[method-assign]
    async with bench.relaying():
        handed: list[bool] = []
        for n in range(20):
            handed.append(await bench.hand_over(Out(SAME[0], n)))
            await turn(bench.clock, 0)
        assert handed == [True] * 5 + [False] * 15  # one is being sent, and four wait
        held.set()
        await bench.relay.drain()
    assert of(await bench.logged(), SAME[0]) == list(range(20))


@pytest.mark.parametrize("seed", range(40))
async def test_order_holds_whoever_commits_and_whatever_gets_lost(bench: Bench, seed: int) -> None:
    dice = random.Random(seed)
    bench.log.answers = iter([dice.choice(["unknown", "lost", "readonly", None, None, None]) for _ in range(60)])
    numbers = dict.fromkeys((SAME[0], SAME[1], ELSEWHERE), 0)

    def events() -> list[Out]:
        made: list[Out] = []
        for _ in range(dice.randrange(1, 4)):
            key = dice.choice(list(numbers))
            made.append(Out(key, numbers[key]))
            numbers[key] += 1
        return made

    under_way: Handover | None = None
    async with bench.relaying():
        for _ in range(60):
            match dice.randrange(6):
                case 0 | 1 if under_way is None:
                    await bench.hand_over(*events())
                case 2 if under_way is None:
                    under_way = bench.relay.offer(has_events=True)
                case 3 if under_way is not None:
                    await bench.emit(*events(), handover=under_way)
                    if dice.random() < 0.3:
                        under_way.numbered = None
                    bench.relay.handed(under_way)
                    under_way = None
                case 4:
                    await bench.emit(*events())
                case _:
                    await turn(bench.clock, dice.choice([0, 0.5]))
        if under_way is not None:
            bench.relay.handed(under_way)
    if dice.random() < 0.5:
        bench.relay = bench.new_relay()
    await bench.drain()
    logged = await bench.logged()
    assert {key: of(logged, key) for key in numbers} == {key: list(range(count)) for key, count in numbers.items()}
    _check_numbers(bench)


def _check_numbers(bench: Bench) -> None:
    firsts: dict[tuple[int, int], bytes] = {}
    for _, sent in bench.log.sent:
        for partition, number, data in sent:
            assert firsts.setdefault((partition, number), data) == data  # nothing else under the same number
            assert number == 0 or (partition, number - 1) in firsts  # and none before the one before it
