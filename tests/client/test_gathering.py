"""Single events that are published in one turn of the event loop leave together, and each call is told of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest
from tests.client.test_client import Bench
from tests.subscriptions.world import Left, Right, left, right

from everlog.errors import Closed, EventRefused, LogReadOnly, PublishUnknown
from everlog.key import partition_of
from everlog.position import TopicPartition


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench()
    await bench.client.publish(Left("first"))  # the topics are there
    await bench.client.publish(Right("first"))
    bench.log.sent.clear()
    yield bench
    await bench.log.aclose()


async def test_what_tasks_publish_in_one_turn_is_one_append(bench: Bench) -> None:
    await asyncio.gather(*[bench.client.publish(Left(f"k{n}", n)) for n in range(50)])
    (sent,) = bench.log.sent
    assert len(sent[2]) == 50


async def test_each_call_is_told_where_its_own_event_stands(bench: Bench) -> None:
    published = await asyncio.gather(*[bench.client.publish(Left(f"k{n}", n) if n % 3 else Right(f"k{n}", n)) for n in range(20)])
    for n, one in enumerate(published):
        topic = left if n % 3 else right
        where = TopicPartition(topic.name, partition_of(f"k{n}", topic.partitions))
        ((place, offset),) = one.position.offsets.items()
        assert place == where
        batch = await bench.log.reader({where: cast("Any", offset - 1)}).next()
        record = batch.chunks[0].record(batch.chunks[0].start)
        assert (record.key, record.id) == (f"k{n}", one.ids[0])


async def test_an_event_that_is_refused_fails_its_own_call_alone(bench: Bench) -> None:
    bad = Left("b", cast("Any", "no number"))
    first, refused, last = await asyncio.gather(
        bench.client.publish(Left("a", 1)), bench.client.publish(bad), bench.client.publish(Left("c", 3)), return_exceptions=True
    )
    assert isinstance(refused, EventRefused)
    assert not isinstance(first, BaseException)
    assert not isinstance(last, BaseException)
    assert {key for key, _ in await bench.logged()} == {"first", "a", "c"}


async def test_the_order_of_the_calls_is_kept_whichever_way_each_goes(bench: Bench) -> None:
    await asyncio.gather(
        bench.client.publish(Left("a", 1)),
        bench.client.publish(Left("a", 2), Left("a", 3)),
        bench.client.publish(Left("a", 4)),
        bench.client.publish(Left("a", 5), headers={"tenant": "x"}),
        bench.client.publish(Left("a", 6)),
    )
    assert [data for key, data in await bench.logged() if key == "a"] == [b'{"key":"a","n":%d}' % n for n in range(1, 7)]


async def test_an_answer_that_is_lost_is_asked_for_again_under_the_same_numbers(bench: Bench) -> None:
    answers = iter(["lost", "store"])
    bench.log.answer = lambda _: next(answers)
    calls = asyncio.gather(*[bench.client.publish(Left("a", n)) for n in range(3)])
    await bench.spin(calls)
    assert len(calls.result()) == 3
    assert len([key for key, _ in await bench.logged() if key == "a"]) == 3


async def test_each_call_without_an_answer_can_be_tried_again_and_is_stored_once(bench: Bench) -> None:
    bench.log.gate.clear()
    calls = await asyncio.gather(*[bench.client.publish(Left("a", n), timeout_s=0.01) for n in range(3)], return_exceptions=True)
    assert all(isinstance(call, PublishUnknown) for call in calls)
    bench.log.gate.set()
    await asyncio.gather(*[cast("PublishUnknown", call).retry() for call in calls])
    assert len([key for key, _ in await bench.logged() if key == "a"]) == 3


async def test_each_retry_is_told_of_its_own_event_even_when_it_is_not_the_first(bench: Bench) -> None:
    bench.log.gate.clear()
    calls = await asyncio.gather(
        *[bench.client.publish(Left(f"k{n}", n), timeout_s=0.01) for n in range(3)], return_exceptions=True
    )
    again = await asyncio.gather(*[cast("PublishUnknown", call).retry(timeout_s=0.01) for call in calls], return_exceptions=True)
    bench.log.gate.set()
    published = await asyncio.gather(*[cast("PublishUnknown", call).retry() for call in again])
    assert [len(one.ids) for one in published] == [1, 1, 1]
    assert len({id_ for one in published for id_ in one.ids}) == 3
    assert len(await bench.logged()) == 4


async def test_a_topic_that_refuses_says_nothing_about_what_left_with_it_for_another(bench: Bench) -> None:
    bench.log.answer = lambda topic: "readonly" if topic == left.name else "store"
    refused, stored = await asyncio.gather(
        bench.client.publish(Left("a", 1)), bench.client.publish(Right("b", 2)), return_exceptions=True
    )
    assert isinstance(refused, LogReadOnly)
    assert not isinstance(stored, BaseException)
    assert {key for key, _ in await bench.logged(right.name)} == {"first", "b"}


async def test_who_was_refused_is_not_sent_again_by_who_is_in_doubt(bench: Bench) -> None:
    bench.log.answer = lambda topic: "readonly" if topic == left.name else "unknown"
    calls = asyncio.gather(
        bench.client.publish(Left("a", 1), timeout_s=0.05),
        bench.client.publish(Right("b", 2), timeout_s=0.05),
        return_exceptions=True,
    )
    refused, unknown = await calls
    assert isinstance(refused, LogReadOnly)
    assert isinstance(unknown, PublishUnknown)
    bench.log.answer = lambda _: "store"
    await unknown.retry()
    assert {key for key, _ in await bench.logged(right.name)} == {"first", "b"}
    assert {key for key, _ in await bench.logged()} == {"first"}


async def test_a_log_that_takes_no_writes_refuses_every_call(bench: Bench) -> None:
    bench.log.answer = lambda _: "readonly"
    calls = await asyncio.gather(*[bench.client.publish(Left("a", n)) for n in range(3)], return_exceptions=True)
    assert all(isinstance(call, LogReadOnly) for call in calls)


async def test_a_call_that_is_cancelled_takes_no_other_along(bench: Bench) -> None:
    bench.log.gate.clear()
    calls = [asyncio.create_task(bench.client.publish(Left("a", n))) for n in range(3)]
    for _ in range(3):
        await asyncio.sleep(0)
    calls[1].cancel()
    bench.log.gate.set()
    ended = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(ended[1], asyncio.CancelledError)
    assert not isinstance(ended[0], BaseException)
    assert not isinstance(ended[2], BaseException)


async def test_a_log_that_was_closed_is_told_to_everybody_of_the_turn(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(*_: object) -> Any:
        raise Closed("the log was closed")

    monkeypatch.setattr(bench.client._publisher, "begin", closed)
    calls = [bench.client.publish(Left(key)) for key in ("a", "b")]
    async with asyncio.timeout(3):
        told = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(one) for one in told] == [Closed, Closed]


async def test_nobody_waits_for_a_sending_that_was_cancelled_before_it_began(bench: Bench) -> None:
    call = asyncio.ensure_future(bench.client.publish(Left("a")))
    before = asyncio.all_tasks()
    await asyncio.sleep(0)
    (sending,) = asyncio.all_tasks() - before
    sending.cancel()
    async with asyncio.timeout(3):
        await asyncio.wait([call])
        assert call.cancelled()
        assert not bench.log.sent
        await bench.client.publish(Left("b"))
    assert len(bench.log.sent) == 1


async def test_what_waits_for_the_end_of_the_turn_is_sent_once_where_another_call_sends_it(bench: Bench) -> None:
    first = asyncio.ensure_future(bench.client.publish(Left("a", 1)))
    second = asyncio.ensure_future(bench.client.publish(Left("a", 2), Left("a", 3)))
    await asyncio.gather(first, second)
    assert [len(sent[2]) for sent in bench.log.sent] == [1, 2]
