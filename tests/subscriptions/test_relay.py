"""The relay between a real store and a log that answers as it is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from itertools import count
from typing import Any
from uuid import uuid4

import pytest
from tests.subscriptions.world import LastingStore, Out, out

from everlog.contracts.contract import contract_of
from everlog.errors import EventTooLarge, LeaseLost, LogError, LogReadOnly
from everlog.key import partition_of
from everlog.log import Appended, ProducerBatch, Status
from everlog.logs.memory import MemoryLog
from everlog.position import BEGINNING, TopicPartition
from everlog.record import NewRecord
from everlog.store import RELAY, AppSpec, Emitted, Lease, OutboxRow, Slot, SubscriptionSpec, Unit
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

    async def emit(self, *events: Out, topic: str = out.name) -> None:
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
        await self.store.commit([unit], [self.lease], [])

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


async def test_a_drain_waits_for_what_came_while_the_relay_had_looked_already(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked, go_on = asyncio.Event(), asyncio.Event()
    outbox = bench.store.outbox

    async def slow(*, after: int, limit: int) -> Sequence[OutboxRow]:
        rows = await outbox(after=after, limit=limit)
        looked.set()
        await go_on.wait()
        return rows

    monkeypatch.setattr(bench.store, "outbox", slow)
    running = asyncio.create_task(bench.relay.run())
    try:
        await looked.wait()
        await bench.emit(Out("k", 1))
        draining = asyncio.create_task(bench.relay.drain())
        await turn(bench.clock)
        go_on.set()
        await asyncio.wait_for(draining, 10)
        assert (await bench.store.status()).outbox == 0
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
