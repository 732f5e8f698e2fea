"""A log against a model of lists and sets, over random sequences of what senders, readers, clocks and retention do."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Coroutine
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from tests.conformance.adapters import LOGS

from everlog.clock import Steady
from everlog.conformance.log import LogUnderTest
from everlog.dedupe import Seen
from everlog.errors import RecordsGone, SequenceReused
from everlog.log import Log, ProducerBatch, Reader, Status, TopicSpec
from everlog.logs import memory
from everlog.logs.sqlite import retention
from everlog.position import BEGINNING, Offset, Position, TopicPartition
from everlog.record import NewRecord, StoredRecord

T = TypeVar("T")
TOPIC = "model.orders"
PARTITIONS = 2
KEEP_S = 3_600.0
SPEC = TopicSpec(TOPIC, key="id", partitions=PARTITIONS, keep_s=KEEP_S)

partitions = st.integers(0, PARTITIONS - 1)
counts = st.integers(1, 5)


def record(producer: str, number: int, partition: int) -> NewRecord:
    return NewRecord("model.happened/1", b'{"n":%d,"by":"%s"}' % (number, producer.encode()), "k", partition, "model", number)


class LogModel(RuleBasedStateMachine):
    """The log beside the model: per partition what it held and how much of that is gone, per producer and partition the numbers seen."""

    adapter: str

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.loop = asyncio.new_event_loop()
        self.stack = ExitStack()
        self.harness = self.stack.enter_context(LOGS[self.adapter](Path(self.folder.name)))
        self.held: list[list[tuple[str, int]]] = [[] for _ in range(PARTITIONS)]
        self.gone = [0] * PARTITIONS
        self.latest_us = self.harness.clock.wall_us()
        self.steady = Steady(self.harness.clock)
        self.seen: dict[tuple[str, int], set[int]] = {}
        self.sent = {(sender, partition): 0 for sender in "AB" for partition in range(PARTITIONS)}
        self.read: dict[int, int] = {}  # of each partition that is assigned: how many records were read
        self.newest: dict[tuple[str, int], tuple[int, int]] = {}
        self.log, self.reader = self.run(self.open())

    def run(self, steps: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(steps)

    async def open(self) -> tuple[Log, Reader]:
        log = await self.harness.open()
        await log.ensure_topic(SPEC)
        return log, log.reader({TopicPartition(TOPIC, p): Offset(read - 1) for p, read in self.read.items()})

    async def append(self, producer: str, first: int, count: int, partition: int) -> None:
        """Append numbered records, and check the outcomes against the model."""
        numbers = range(first, first + count)
        seen = self.seen.setdefault((producer, partition), set())
        new = [number for number in numbers if number not in seen]
        records = [record(producer, number, partition) for number in numbers]
        answer = await self.log.append(TOPIC, records, producer=ProducerBatch(producer, {partition: first}))
        assert [status is Status.STORED for status in answer.statuses] == [number in new for number in numbers]
        assert [status is Status.DUPLICATE for status in answer.statuses] == [number in seen for number in numbers]
        begin = len(self.held[partition])
        assert [offset for offset in answer.offsets if offset is not None] == list(range(begin, begin + len(new)))
        seen.update(new)
        self.held[partition].extend((producer, number) for number in new)
        if new:
            self.newest[producer, partition] = (first, count)

    @rule(partition=partitions, count=counts)
    def append_without_a_producer(self, partition: int, count: int) -> None:
        records = [record("", number, partition) for number in range(count)]
        answer = self.run(self.log.append(TOPIC, records))
        assert answer.settled
        self.held[partition].extend(("", number) for number in range(count))

    @rule(sender=st.sampled_from("AB"), partition=partitions, count=counts)
    def one_of_two_gapless_senders_goes_on(self, sender: str, partition: int, count: int) -> None:
        first = self.sent[sender, partition]
        self.sent[sender, partition] += count
        self.run(self.append("both", first, count, partition))
        numbers = [number for producer, number in self.held[partition] if producer == "both"]
        assert numbers == list(range(max(self.sent["A", partition], self.sent["B", partition])))

    @rule(sender=st.sampled_from("AB"), partition=partitions, count=counts, back=st.integers(0, 10))
    def a_sender_tries_again(self, sender: str, partition: int, count: int, back: int) -> None:
        first = max(0, self.sent[sender, partition] - back)
        self.sent[sender, partition] = max(self.sent[sender, partition], first + count)
        self.run(self.append("both", first, count, partition))

    @rule(partition=partitions, first=st.integers(0, 60), count=counts)
    def numbers_come_in_any_order(self, partition: int, first: int, count: int) -> None:
        self.run(self.append("any", first, count, partition))

    @rule(data=st.data())
    def the_newest_batch_comes_with_other_content(self, data: st.DataObject) -> None:
        if not self.newest:
            return
        producer, partition = data.draw(st.sampled_from(sorted(self.newest)))
        first, count = self.newest[producer, partition]
        others = [record("other", number, partition) for number in range(first, first + count)]
        with pytest.raises(SequenceReused):
            self.run(self.log.append(TOPIC, others, producer=ProducerBatch(producer, {partition: first})))

    @rule(sizes=st.lists(st.tuples(partitions, counts), min_size=2, max_size=6))
    def appends_are_called_at_once(self, sizes: list[tuple[int, int]]) -> None:
        async def at_once() -> None:
            calls = [self.log.append(TOPIC, [record("", n, p) for n in range(count)]) for p, count in sizes]
            await asyncio.gather(*calls)

        self.run(at_once())
        for partition, count in sizes:
            self.held[partition].extend(("", number) for number in range(count))

    @rule(seconds=st.sampled_from([0.001, 1.0, 3600.0]))
    def time_goes_on(self, seconds: float) -> None:
        self.harness.clock.advance(seconds)
        self.latest_us = max(self.latest_us, self.harness.clock.wall_us())

    @rule(seconds=st.sampled_from([-3600.0, -1.0, 1.0]))
    def somebody_sets_the_clock(self, seconds: float) -> None:
        self.harness.clock.jump(seconds)
        self.latest_us = max(self.latest_us, self.harness.clock.wall_us())

    @rule(partition=partitions, data=st.data())
    def a_partition_is_trimmed(self, partition: int, data: st.DataObject) -> None:
        before = data.draw(st.integers(-1, len(self.held[partition]) - 1))
        where = TopicPartition(TOPIC, partition)
        self.run(self.log.trim(TOPIC, Position(self.log.identity, {where: Offset(before)})))
        first = self.run(self.log.first(TOPIC)).offsets[where]
        # Whole chunks: of the one that the offset lies in, nothing goes.
        assert self.gone[partition] - 1 <= first <= max(before, self.gone[partition] - 1)
        self.gone[partition] = first + 1

    @rule()
    def what_is_too_old_is_deleted(self) -> None:
        async def retained() -> int:
            return await self.log.retain()

        before = self.run(self.kept())
        deleted = self.run(retained())
        first = self.run(self.log.first(TOPIC)).offsets
        assert deleted == sum(first[TopicPartition(TOPIC, p)] + 1 - self.gone[p] for p in range(PARTITIONS))
        surely_us = self.steady.wall_us() - KEEP_S * 1_000_000
        for p, records in enumerate(before):
            gone = first[TopicPartition(TOPIC, p)] + 1 - self.gone[p]
            assert all(one.logged_at_us >= surely_us for one in records[gone:])
            assert all(one.logged_at_us < self.latest_us - KEEP_S * 1_000_000 for one in records[:gone])
            self.gone[p] += gone

    @rule(partition=partitions, data=st.data())
    def a_partition_is_assigned(self, partition: int, data: st.DataObject) -> None:
        at = data.draw(st.integers(0, len(self.held[partition])))
        self.reader.assign({TopicPartition(TOPIC, partition): Offset(at - 1)})
        self.read.setdefault(partition, at)

    @rule(partition=partitions)
    def a_partition_is_revoked(self, partition: int) -> None:
        self.reader.revoke([TopicPartition(TOPIC, partition)])
        self.read.pop(partition, None)

    def unread(self) -> bool:
        return any(read < len(self.held[partition]) for partition, read in self.read.items())

    def lost(self) -> list[int]:
        """Return the partitions of which something was deleted that the reader has not read."""
        return [partition for partition, read in self.read.items() if read < self.gone[partition]]

    @precondition(lambda self: bool(self.lost()))
    @rule()
    def a_reader_is_told_what_is_gone_and_goes_on_behind_it(self) -> None:
        async def told() -> RecordsGone:
            async with asyncio.timeout(10):
                with pytest.raises(RecordsGone) as caught:
                    await self.reader.next()
            return caught.value

        while self.lost():
            error = self.run(told())
            partition = error.partition
            assert partition in self.lost()
            assert (error.after, error.first) == (self.read[partition] - 1, self.gone[partition] - 1)
            where = TopicPartition(TOPIC, partition)
            self.reader.revoke([where])
            self.reader.assign({where: Offset(error.first)})
            self.read[partition] = self.gone[partition]

    @precondition(lambda self: self.unread() and not self.lost())
    @rule(max_records=st.integers(1, 8))
    def a_reader_takes_what_is_next(self, max_records: int) -> None:
        async def next_records() -> list[StoredRecord]:
            async with asyncio.timeout(10):
                return list((await self.reader.next(max_records=max_records)).records())

        found = self.run(next_records())
        assert found
        for one in found:
            at = self.read[one.partition]
            producer, number = self.held[one.partition][at]
            assert (one.offset, one.producer, one.time_us) == (at, producer, number)
            assert one.sequence == (number if producer else -1)
            self.read[one.partition] += 1

    @precondition(lambda self: not self.unread())
    @rule(turns=st.integers(0, 4))
    def a_wait_for_nothing_is_cancelled(self, turns: int) -> None:
        async def cancelled() -> None:
            waiting = asyncio.ensure_future(self.reader.next())
            for _ in range(turns):
                await asyncio.sleep(0)
            assert not waiting.done()
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting

        self.run(cancelled())

    @rule()
    def the_log_is_opened_again(self) -> None:
        if self.log.features.durability == "memory":
            return
        self.run(self.log.aclose())
        self.log, self.reader = self.run(self.open())

    @invariant()
    def heads_backlogs_and_numbers_are_those_of_the_model(self) -> None:
        first = self.run(self.log.first(TOPIC))
        assert [first.offsets[TopicPartition(TOPIC, p)] for p in range(PARTITIONS)] == [gone - 1 for gone in self.gone]
        head = self.run(self.log.head(TOPIC))
        assert [head.offsets[TopicPartition(TOPIC, p)] for p in range(PARTITIONS)] == [len(held) - 1 for held in self.held]
        backlog = self.run(self.log.backlog(TOPIC, {p: Offset(read - 1) for p, read in self.read.items()}))
        waiting = {p: len(self.held[p]) - max(read, self.gone[p]) for p, read in self.read.items()}
        assert backlog.count == sum(waiting.values())
        for producer in ("both", "any"):
            highest = {p: max(seen) for (name, p), seen in self.seen.items() if name == producer and seen}
            assert dict(self.run(self.log.last_sequence(producer, TOPIC))) == highest

    def teardown(self) -> None:
        try:
            self.run(self.check_all())
        finally:
            self.run(self.log.aclose())
            self.loop.close()
            self.stack.close()
            self.folder.cleanup()

    async def kept(self) -> list[list[StoredRecord]]:
        """Read everything that is kept, by a new reader."""
        reader = self.log.reader((await self.log.first(TOPIC)).offsets)
        found: list[list[StoredRecord]] = [[] for _ in range(PARTITIONS)]
        while sum(map(len, found)) < sum(map(len, self.held)) - sum(self.gone):
            async with asyncio.timeout(10):
                for one in (await reader.next()).records():
                    found[one.partition].append(one)
        reader.close()
        return found

    async def check_all(self) -> None:
        """What is kept is what the model holds, the log's time never went back, and the log itself finds nothing wrong."""
        assert list(await self.log.verify()) == []
        for records, held, gone in zip(await self.kept(), self.held, self.gone, strict=True):
            assert [(one.producer, one.time_us) for one in records] == held[gone:]
            times = [one.logged_at_us for one in records]
            assert times == sorted(times)


@pytest.mark.parametrize("adapter", LOGS)
def test_a_log_does_what_the_model_says(adapter: str) -> None:
    machine = type(f"LogModel_{adapter}", (LogModel,), {"adapter": adapter})
    run_state_machine_as_test(machine, settings=settings(max_examples=60, stateful_step_count=30, deadline=None))


def test_the_model_catches_a_dedupe_that_drops_what_is_not_above_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    def new_runs(self: Seen, start: int, count: int) -> list[tuple[int, int]]:
        start, stop = max(start, self.highest + 1), start + count
        return [(start, stop)] if start < stop else []

    monkeypatch.setattr(Seen, "new_runs", new_runs)
    machine = type("LogModel_seeded", (LogModel,), {"adapter": "memory"})
    seeded = settings(max_examples=200, deadline=None, database=None, report_multiple_bugs=False, phases=[Phase.generate])
    with pytest.raises(AssertionError):
        run_state_machine_as_test(machine, settings=seeded)


def test_the_model_catches_a_reader_that_passes_over_what_was_deleted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory._Partition, "lost_through", BEGINNING)
    machine = type("LogModel_seeded", (LogModel,), {"adapter": "memory"})
    seeded = settings(max_examples=200, deadline=None, database=None, report_multiple_bugs=False, phases=[Phase.generate])
    with pytest.raises((AssertionError, TimeoutError, pytest.fail.Exception)):
        run_state_machine_as_test(machine, settings=seeded)


@pytest.mark.parametrize("adapter", LOGS)
@given(
    steps=st.lists(st.one_of(st.lists(st.integers(0, 4), min_size=1, max_size=4), st.sampled_from([10, 70])), max_size=30),
    at_once=st.integers(1, 4),
)
@settings(deadline=None, max_examples=60)
def test_the_newest_record_of_each_key_is_there_whatever_is_deleted(
    adapter: str, steps: list[list[int] | int], at_once: int
) -> None:
    spec = TopicSpec("model.newest", key="id", partitions=1, keep_s=60.0, keep_newest=True)
    where = TopicPartition(spec.name, 0)

    async def run(harness: LogUnderTest) -> None:
        log = await harness.open()
        await log.ensure_topic(spec)
        newest: dict[str, int] = {}
        stored = 0
        for step in steps:
            if isinstance(step, int):
                harness.clock.advance(step)
                await log.retain()
            else:
                records = [NewRecord("model.happened/1", b"{}", f"k{key}", 0, "model", stored + n) for n, key in enumerate(step)]
                await log.append(spec.name, records)
                newest |= {f"k{key}": stored + n for n, key in enumerate(step)}
                stored += len(step)
            reader = log.reader((await log.first(spec.name)).offsets)
            found: list[StoredRecord] = []
            while stored and (not found or found[-1].offset < stored - 1):
                async with asyncio.timeout(10):
                    found += (await reader.next()).records()
            reader.close()
            assert {one.key: one.offset for one in found} == newest
            for after in (BEGINNING, Offset(stored // 2)):
                assert (await log.backlog(spec.name, {0: after})).count == len([one for one in found if one.offset > after])
            assert (await log.head(spec.name)).offsets[where] == stored - 1
            assert list(await log.verify()) == []
        await log.aclose()

    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(retention, "STEP_CHUNKS", at_once)
        with LOGS[adapter](Path(folder)) as harness:
            asyncio.run(run(harness))
