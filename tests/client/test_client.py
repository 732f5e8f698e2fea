"""A client on a log that answers as it is told: numbers, doubt, waiting, following."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, cast

import pytest
from tests.subscriptions.world import Free, Left, Right, free, left, right

from everlog.client import Client
from everlog.client import publisher as publisher_module
from everlog.contracts.record import Record
from everlog.errors import (
    Closed,
    EventRefused,
    EventTooLarge,
    EverlogError,
    FeatureMissing,
    IdempotencyKeyReused,
    KeyRefused,
    LogError,
    LogReadOnly,
    PositionRefused,
    PublishUnknown,
    RecordsGone,
    TopicMissing,
)
from everlog.key import partition_of
from everlog.log import Appended, ProducerBatch, Status
from everlog.logs.memory import MemoryLog
from everlog.position import BEGINNING, Offset, Position, TopicPartition
from everlog.record import NewRecord
from everlog.testing.clock import ManualClock


class AnsweringLog(MemoryLog):
    """A memory log that can lose answers, refuse, or not answer until it is told to."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(clock)
        self.sent: list[tuple[str, ProducerBatch, Sequence[NewRecord]]] = []
        self.answer: Callable[[str], str] = lambda _: "store"
        self.gate = asyncio.Event()
        self.gate.set()

    def append(
        self, topic: str, records: Sequence[NewRecord], *, producer: ProducerBatch | None = None, expect: object = None
    ) -> Coroutine[Any, Any, Appended]:
        assert producer is not None
        self.sent.append((topic, producer, records))
        answer = self.answer(topic)
        if answer == "readonly":
            return self._read_only()
        if answer == "unknown":
            return self._unknown(len(records))
        stored = super().append(topic, records, producer=producer)
        if answer == "lost":
            stored.close()
            return self._unknown(len(records))
        return self._gated(stored)

    async def _gated(self, stored: Coroutine[Any, Any, Appended]) -> Appended:
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            stored.close()
            raise
        return await stored

    async def _unknown(self, count: int) -> Appended:
        return Appended([Status.UNKNOWN] * count, [None] * count, [LogError("lost")] * count)

    async def _read_only(self) -> Appended:
        raise LogReadOnly("full")

    def numbers(self, topic: str, partition: int) -> list[int]:
        """Return every number in the order in which it was sent."""
        found: list[int] = []
        for name, producer, records in self.sent:
            if name == topic and partition in producer.first:
                count = sum(record.partition == partition for record in records)
                found.extend(range(producer.first[partition], producer.first[partition] + count))
        return found


class Bench:
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.log = AnsweringLog(self.clock)
        self.client = Client(self.log, source="test", clock=self.clock)

    async def logged(self, topic: str = left.name) -> list[tuple[str | None, bytes]]:
        found: list[tuple[str | None, bytes]] = []
        for where, last in (await self.log.head(topic)).offsets.items():
            if last < 0:
                continue
            batch = await self.log.reader({where: BEGINNING}).next(max_records=10**9, max_bytes=10**9)
            found.extend(
                (chunk.keys[at], bytes(chunk.slice(at))) for chunk in batch.chunks for at in range(chunk.start, chunk.length)
            )
        return found

    async def spin(self, task: asyncio.Future[Any]) -> None:
        """Move the clock until a task has ended."""
        async with asyncio.timeout(10):
            while not task.done():
                await asyncio.sleep(0)
                self.clock.advance(0.1)


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    made = Bench()
    yield made
    await made.client.aclose()
    await made.log.aclose()


# ---- numbers ----


@pytest.mark.parametrize("seed", range(5))
async def test_numbers_are_gapless_and_the_order_is_that_of_the_calls(bench: Bench, seed: int) -> None:
    dice = random.Random(seed)
    bench.log.answer = lambda _: dice.choice(("store", "store", "unknown", "lost"))
    order: dict[str, list[int]] = {}
    tasks: list[asyncio.Task[Any]] = []
    for n in range(300):
        key = f"k{dice.randrange(6)}"
        order.setdefault(key, []).append(n)
        tasks.append(asyncio.create_task(bench.client.publish(Left(key, n))))
        if dice.random() < 0.3:
            await asyncio.sleep(0)
            bench.clock.advance(0.05)
    await bench.spin(asyncio.ensure_future(asyncio.gather(*tasks)))
    for partition in range(left.partitions):
        numbers = bench.log.numbers(left.name, partition)
        firsts = list(dict.fromkeys(numbers))
        assert firsts == list(range(len(firsts)))  # n + 1 is never sent before n
    logged = await bench.logged()
    assert len(logged) == len(set(logged)) == 300  # each is stored once


async def test_events_of_a_key_keep_the_order_of_the_calls(bench: Bench) -> None:
    tasks = [asyncio.create_task(bench.client.publish(*[Left("a", 10 * n + i) for i in range(10)])) for n in range(50)]
    await asyncio.gather(*tasks)
    assert [data for _, data in await bench.logged()] == [b'{"key":"a","n":%d}' % n for n in range(500)]


async def test_a_call_behind_the_first_one_does_not_overtake_it(bench: Bench) -> None:
    """The first call waits for its topic to be made; one that comes just then is later, and stays behind."""

    async def overtaking() -> None:
        while not bench.client._publisher.is_open(left):  # noqa: ASYNC110 the very next turn is meant
            await asyncio.sleep(0)
        await bench.client.publish(Left("a", 2))

    late = asyncio.create_task(overtaking())
    await asyncio.sleep(0)
    early = [asyncio.create_task(bench.client.publish(Left("a", n))) for n in range(2)]
    await asyncio.gather(*early)
    await late
    assert [data for _, data in await bench.logged()] == [b'{"key":"a","n":%d}' % n for n in range(3)]


async def test_a_number_that_the_log_did_not_take_stays_used(bench: Bench) -> None:
    await bench.client.publish(Left("a", 0))
    bench.log.answer = lambda _: "readonly"
    with pytest.raises(LogReadOnly):
        await bench.client.publish(Left("a", 1))
    bench.log.answer = lambda _: "store"
    await bench.client.publish(Left("a", 2))
    assert bench.log.numbers(left.name, partition_of("a", left.partitions)) == [0, 1, 2]
    assert [data for _, data in await bench.logged()] == [b'{"key":"a","n":0}', b'{"key":"a","n":2}']


# ---- doubt ----


async def test_a_lost_answer_is_asked_for_again_under_the_same_number(bench: Bench) -> None:
    answers = iter(["lost", "unknown", "lost"])
    bench.log.answer = lambda _: next(answers, "store")
    task = asyncio.create_task(bench.client.publish(Left("a", 1)))
    await bench.spin(task)
    assert len(await bench.logged()) == 1
    assert bench.log.numbers(left.name, partition_of("a", left.partitions)) == [0, 0, 0, 0]
    assert len({record for _, _, (record,) in bench.log.sent}) == 1  # the same bytes


async def test_no_answer_in_time_is_doubt_and_a_retry_stores_once(bench: Bench) -> None:
    bench.log.gate.clear()
    with pytest.raises(PublishUnknown, match="retry") as caught:
        await bench.client.publish(Left("a", 1), Left("b", 2), timeout_s=0.01)
    with pytest.raises(PublishUnknown) as again:
        await cast("Any", caught.value.retry)(timeout_s=0.01)
    bench.log.gate.set()
    published = await cast("Any", again.value.retry)()
    assert len(published.ids) == 2
    assert len(await bench.logged()) == 2


async def test_a_retry_names_the_events_of_the_whole_call(bench: Bench) -> None:
    bench.log.answer = lambda topic: "unknown" if topic == right.name else "store"
    with pytest.raises(PublishUnknown) as caught:
        await bench.client.publish(Left("a", 1), Right("a", 2), Left("b", 3), timeout_s=0.01)
    bench.log.answer = lambda _: "store"
    published = await cast("Any", caught.value.retry)()
    assert len(published.ids) == 3
    assert {where.topic for where in published.position.offsets} == {left.name, right.name}


async def test_waiting_for_room_ends_with_the_time_that_was_given(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher_module, "_IN_FLIGHT", 4)
    bench.log.gate.clear()
    first = asyncio.create_task(bench.client.publish(*[Left("a", n) for n in range(4)]))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    try:
        async with asyncio.timeout(1):
            with pytest.raises(EverlogError):
                await bench.client.publish(Left("a", 9), timeout_s=0.01)
    finally:
        bench.log.gate.set()
        await first


async def test_no_more_is_in_flight_than_the_log_can_tell_apart(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher_module, "_IN_FLIGHT", 10)
    await bench.client.publish(Left("a", -1))
    bench.log.gate.clear()
    tasks = [asyncio.create_task(bench.client.publish(Left("a", n))) for n in range(40)]
    for _ in range(20):
        await asyncio.sleep(0)
    assert len(bench.log.numbers(left.name, partition_of("a", left.partitions))) == 11
    bench.log.gate.set()
    await asyncio.gather(*tasks)
    assert [data for _, data in await bench.logged()] == [b'{"key":"a","n":%d}' % n for n in range(-1, 40)]


async def test_a_cancelled_call_gives_its_room_back(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher_module, "_IN_FLIGHT", 1)
    await bench.client.publish(Left("a", 0))
    bench.log.gate.clear()
    task = asyncio.create_task(bench.client.publish(Left("a", 1)))
    waiting = asyncio.create_task(bench.client.publish(Left("a", 2)))
    for _ in range(10):
        await asyncio.sleep(0)
    for one in (task, waiting):
        one.cancel()
    await asyncio.gather(task, waiting, return_exceptions=True)
    bench.log.gate.set()
    async with asyncio.timeout(5):
        await bench.client.publish(Left("a", 3))


async def test_a_named_producer_goes_on_where_its_predecessor_stopped(bench: Bench) -> None:
    for n in range(3):
        client = Client(bench.log, source="test", clock=bench.clock, producer="import")
        await client.publish(Left("a", 2 * n), Left("a", 2 * n + 1))
    assert bench.log.numbers(left.name, partition_of("a", left.partitions)) == list(range(6))
    assert len(await bench.logged()) == 6


# ---- refusals ----


async def test_nothing_is_sent_when_one_event_of_a_call_is_refused(bench: Bench) -> None:
    with pytest.raises(EventRefused, match=r"event 2 of 2.*field n"):
        await bench.client.publish(Left("a", 1), Left("a", "x"), Right("a"))  # type: ignore[arg-type]
    with pytest.raises(EventRefused, match="at least one"):
        await bench.client.publish()
    with pytest.raises(EventRefused, match="no contract"):
        await bench.client.publish(object())  # type: ignore[arg-type]
    with pytest.raises(EventTooLarge):
        await bench.client.publish(Left("a" * 1_000_001))
    with pytest.raises(EventTooLarge, match="batches"):
        await bench.client.publish(*[Left("a")] * 4_097)
    with pytest.raises(KeyRefused, match="leave out key="):
        await bench.client.publish(Left("a"), key="b")
    with pytest.raises(EventRefused, match="header"):
        await bench.client.publish(Left("a"), headers={"Not-Good": "x"})
    with pytest.raises(FeatureMissing):
        await bench.client.publish(Left("a"), within=object())
    for wrong in ("", "x" * 501, 7, "\ud800"):
        with pytest.raises(EventRefused, match="idempotency key"):
            await bench.client.publish(Left("a"), idempotency_key=cast("str", wrong))
    with pytest.raises(EventRefused, match="expected one event with an idempotency key, found 2"):
        await bench.client.publish(Left("a"), Left("b"), idempotency_key="x")
    assert bench.log.sent == []


async def test_an_event_with_an_idempotency_key_is_stored_once_and_a_repeat_is_told_where(bench: Bench) -> None:
    first = await bench.client.publish(Left("a", 1), idempotency_key="order-1")
    other = Client(bench.log, source="test", clock=bench.clock)
    again = await other.publish(Left("a", 1), idempotency_key="order-1")
    assert (list(again.ids), again.position.token()) == (list(first.ids), first.position.token())
    with pytest.raises(IdempotencyKeyReused, match="'order-1'"):
        await other.publish(Left("a", 2), idempotency_key="order-1")
    await other.publish(Left("a", 2), idempotency_key="order-2")
    stranger = Client(bench.log, source="another", clock=bench.clock)
    await stranger.publish(Left("a", 1), idempotency_key="order-1")
    assert sorted(data for _, data in await bench.logged()) == [b'{"key":"a","n":1}', b'{"key":"a","n":1}', b'{"key":"a","n":2}']


async def test_an_event_without_a_key_stands_where_the_first_of_its_idempotency_key_does(bench: Bench) -> None:
    found = {(await bench.client.publish(Free(1), idempotency_key="x")).position.token() for _ in range(6)}
    assert len(found) == 1
    assert len(await bench.logged(free.name)) == 1


async def test_answers_that_are_lost_and_a_key_store_once_as_well(bench: Bench) -> None:
    answers = iter(["lost", "unknown", "lost"])
    bench.log.answer = lambda _: next(answers, "store")
    task = asyncio.create_task(bench.client.publish(Left("a", 1), idempotency_key="k"))
    await bench.spin(task)
    first = task.result()
    again = await bench.client.publish(Left("a", 1), idempotency_key="k")
    assert (list(first.ids), first.position.token()) == (list(again.ids), again.position.token())
    await bench.client.publish(Left("a", 2))
    assert len(await bench.logged()) == 2


async def test_a_topic_is_made_by_the_first_event_unless_that_is_forbidden(bench: Bench) -> None:
    strict = Client(bench.log, source="test", clock=bench.clock, create_topics=False)
    with pytest.raises(TopicMissing):
        await strict.publish(Left("a"))
    await bench.client.publish(Left("a"))
    await strict.publish(Left("a"))
    await bench.client.publish(Free(1), Free(2))
    assert {spec.name for spec in await bench.log.topics()} == {"test.left", "test.free"}


async def test_a_closed_client_refuses(bench: Bench) -> None:
    async with bench.client:
        pass
    await bench.client.aclose()
    with pytest.raises(Closed):
        await bench.client.publish(Left("a"))
    with pytest.raises(Closed):
        await anext(bench.client.follow(Left))


# ---- following ----


async def _take(records: AsyncIterator[Record[Any]], count: int) -> list[Record[Any]]:
    found: list[Record[Any]] = []
    async with asyncio.timeout(5):
        async for record in records:
            found.append(record)
            if len(found) == count:
                break
    return found


async def _fill(bench: Bench, count: int = 120, seed: int = 3) -> int:
    """Publish in batches of mixed types and keys; return how many are of the two types."""
    dice = random.Random(seed)
    for n in range(0, count, 6):
        await bench.client.publish(*[dice.choice((Left, Right))(f"k{dice.randrange(5)}", n + i) for i in range(6)])
    return count


@pytest.mark.parametrize("as_text", [False, True])
async def test_following_resumes_behind_any_record_with_exactly_the_rest(bench: Bench, as_text: bool) -> None:
    count = await _fill(bench)
    every = await _take(bench.client.follow(Left, Right, start="beginning"), count)
    places = [(record.topic, record.partition, record.offset) for record in every]
    assert len(set(places)) == count
    for at in range(0, count - 1, 7):
        after = every[at].position.token() if as_text else every[at].position
        rest = await _take(bench.client.follow(Left, Right, after=after), count - at - 1)
        assert sorted((record.topic, record.partition, record.offset) for record in rest) == sorted(places[at + 1 :])


async def test_positions_hold_for_a_filter_of_type_and_key_too(bench: Bench) -> None:
    await _fill(bench)
    every = await _take(bench.client.follow(Left, Right, start="beginning"), 120)
    mine = [record for record in every if isinstance(record.event, Left) and record.key == "k1"]
    assert mine
    found = await _take(bench.client.follow(Left, start="beginning", key="k1"), len(mine))
    assert [record.event for record in found] == [record.event for record in mine]
    for at in range(len(mine) - 1):
        rest = await _take(bench.client.follow(Left, after=found[at].position, key="k1"), len(mine) - at - 1)
        assert [record.offset for record in rest] == [record.offset for record in mine[at + 1 :]]


async def test_following_from_now_and_from_a_time(bench: Bench) -> None:
    await bench.client.publish(Left("a", 0))
    bench.clock.advance(60)
    middle = datetime.fromtimestamp(bench.clock.wall_us() / 1e6, UTC)
    await bench.client.publish(Left("a", 1))
    bench.clock.advance(60)
    following = asyncio.ensure_future(_take(bench.client.follow(Left), 1))
    for _ in range(10):
        await asyncio.sleep(0)
    await bench.client.publish(Left("a", 2))
    assert [record.event.n for record in await following] == [2]
    timed = await _take(bench.client.follow(Left, start=middle), 2)
    assert [record.event.n for record in timed] == [1, 2]
    assert timed[0].logged_at == middle
    assert timed[0].time == middle
    assert (timed[0].source, timed[0].type, timed[0].topic, timed[0].key) == ("test", "test.left/1", left.name, "a")


async def test_a_position_at_a_time_has_all_since_behind_it_in_every_topic_and_nothing_older(bench: Bench) -> None:
    await bench.client.publish(Left("a", 0), Right("a", 1))
    bench.clock.advance(60)
    middle = datetime.fromtimestamp(bench.clock.wall_us() / 1e6, UTC)
    await bench.client.publish(Left("a", 2), Left("b", 3), Right("c", 4))
    position = await bench.client.position_at(middle, Left, Right)
    for after in (position, position.token()):
        since = await _take(bench.client.follow(Left, Right, after=after), 3)
        assert sorted(record.event.n for record in since) == [2, 3, 4]


async def test_a_position_at_a_time_refuses_what_it_cannot_tell(bench: Bench) -> None:
    now = datetime.fromtimestamp(bench.clock.wall_us() / 1e6, UTC)
    with pytest.raises(EventRefused, match="at least one type"):
        await bench.client.position_at(now)
    with pytest.raises(ValueError, match="zone"):
        await bench.client.position_at(now.replace(tzinfo=None), Left)
    await bench.client.aclose()
    with pytest.raises(Closed):
        await bench.client.position_at(now, Left)


async def test_following_refuses_what_it_cannot(bench: Bench) -> None:
    other = MemoryLog(bench.clock)
    for token in ("nonsense", ""):  # an empty one is a mistake as well, and not the present
        with pytest.raises(PositionRefused):
            await anext(bench.client.follow(Left, after=token))
    foreign = Client(other, source="test", clock=bench.clock)
    published = await foreign.publish(Left("a"))
    with pytest.raises(PositionRefused):
        await anext(bench.client.follow(Left, after=published.position.token()))
    with pytest.raises(EventRefused):
        await anext(bench.client.follow())
    await other.aclose()


async def test_following_from_before_what_is_kept_names_the_oldest_position(bench: Bench) -> None:
    published = await bench.client.publish(Left("a", 0))
    await bench.client.publish(Left("a", 1), Left("b", 2))
    await bench.log.trim(left.name, await bench.log.head(left.name))
    await bench.client.publish(Left("a", 3))
    with pytest.raises(RecordsGone, match=r"test\.left/\d: .*deleted") as caught:
        await anext(bench.client.follow(Left, after=published.position))
    assert caught.value.oldest is not None
    (found,) = await _take(bench.client.follow(Left, after=caught.value.oldest), 1)
    assert found.event == Left("a", 3)
    (found,) = await _take(bench.client.follow(Left, start="beginning"), 1)
    assert found.event == Left("a", 3)


async def test_a_follower_that_is_overtaken_is_told_and_can_go_on(bench: Bench) -> None:
    following = bench.client.follow(Left, start="beginning")
    await bench.client.publish(Left("a", 0))
    assert (await anext(following)).event == Left("a", 0)
    await bench.client.publish(Left("a", 1))
    await bench.log.trim(left.name, await bench.log.head(left.name))
    await bench.client.publish(Left("a", 2))
    with pytest.raises(RecordsGone) as caught:
        await anext(following)
    (found,) = await _take(bench.client.follow(Left, after=caught.value.oldest), 1)
    assert found.event == Left("a", 2)


async def test_a_position_goes_on_from_the_oldest_in_partitions_that_it_does_not_name(bench: Bench) -> None:
    published = await bench.client.publish(Left("a", 0))
    await bench.client.publish(Right("a", 1))
    await bench.log.trim(right.name, await bench.log.head(right.name))
    await bench.client.publish(Right("a", 2))
    (found,) = await _take(bench.client.follow(Left, Right, after=published.position), 1)
    assert found.event == Right("a", 2)


async def test_following_refuses_a_position_of_another_log(bench: Bench) -> None:
    other = MemoryLog(bench.clock)
    published = await Client(other, source="test", clock=bench.clock).publish(Left("a"))
    await other.aclose()
    with pytest.raises(PositionRefused):
        await asyncio.wait_for(anext(bench.client.follow(Left, after=published.position)), 0.5)


async def test_following_refuses_a_position_that_the_log_has_not_reached(bench: Bench) -> None:
    published = await bench.client.publish(Left("a", 0))
    (where,) = published.position.offsets
    beyond = Position(bench.log.identity, {where: Offset(published.position.offsets[where] + 1)})
    with pytest.raises(PositionRefused, match=r"the log ends at 0: it was put back from a backup since"):
        await asyncio.wait_for(anext(bench.client.follow(Left, after=beyond)), 0.5)


async def test_the_position_of_a_publish_is_behind_what_it_stored(bench: Bench) -> None:
    published = await bench.client.publish(Left("a", 1), Right("b", 2), Left("a", 3))
    assert len(published.ids) == len(set(published.ids)) == 3
    every = await _take(bench.client.follow(Left, Right, start="beginning"), 3)
    assert {record.id for record in every} == set(published.ids)
    by_id = {record.id: record.event for record in every}
    assert [by_id[id_] for id_ in published.ids] == [Left("a", 1), Right("b", 2), Left("a", 3)]
    offsets: Mapping[TopicPartition, int] = published.position.offsets
    assert offsets[TopicPartition(left.name, partition_of("a", left.partitions))] == 1
