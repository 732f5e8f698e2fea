"""The same typed application on FastStream with NATS JetStream: a handler per event, and publishing one event after the other.

As FastStream's documentation has it for JetStream: a pull subscriber with a durable consumer, here of 500 messages a request, messages decoded by
type, an acknowledgement per message after its handler. Its msgspec serializer is used, which is faster than the pydantic one that it has by default.
"""

from __future__ import annotations

import asyncio
import importlib
import itertools
import logging
import time
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Final

import msgspec

from benchmarks import consuming, jetstream, publishing
from benchmarks.consuming import Counted
from benchmarks.harness import Benchmark, Row, Setting, Sides
from benchmarks.sample import OrderPlaced, order_events
from benchmarks.service import run_as_service

_STREAM: Final = "bench"
_SUBJECT: Final = "orders"
_PULLED_AT_ONCE: Final = 500
_run_numbers: Final = itertools.count()
_encode: Final = msgspec.json.Encoder().encode


@contextmanager
def _peer(setting: Setting) -> Generator[Sides]:
    ours_count, theirs_count = (2_000, 50) if setting.is_quick else (200_000, 10_000)
    published = order_events(20 if setting.is_quick else 500)
    backlog = setting.backlogs.of(ours_count)

    def ours() -> Sequence[float]:
        return (
            *consuming.consume_one_by_one(backlog, ours_count),
            *publishing.publish(setting.folder, [[event] for event in published]),
        )

    with ExitStack() as stack:
        if not setting.has_reference:
            yield Sides(ours)
            return
        url = stack.enter_context(jetstream.server(setting.folder))
        run_as_service(_fill(url, order_events(theirs_count)))
        yield Sides(ours, partial(_faststream, url, theirs_count, published))


async def _fill(url: str, events: Sequence[OrderPlaced]) -> None:
    connection: Any = await jetstream.client_module().connect(url)
    try:
        stream = connection.jetstream()
        await stream.add_stream(name=_STREAM, subjects=[_SUBJECT])
        for at in range(0, len(events), 1_000):
            await asyncio.gather(*[stream.publish(_SUBJECT, _encode(event)) for event in events[at : at + 1_000]])
    finally:
        await connection.close()


def _faststream(url: str, count: int, published: Sequence[OrderPlaced]) -> Sequence[float]:
    return run_as_service(_consume(url, count)), run_as_service(_publish(url, published))


async def _consume(url: str, count: int) -> float:
    """Return events per second, from the first handler call to the last, of an app with a new durable consumer."""
    nats: Any = importlib.import_module("faststream.nats")
    broker = _broker(url)
    counted = Counted(count)

    async def handle(_: OrderPlaced) -> None:
        counted.add(1)

    broker.subscriber(
        _SUBJECT,
        stream=nats.JStream(_STREAM, declare=False),
        durable=f"consumer{next(_run_numbers)}",
        pull_sub=nats.PullSub(batch_size=_PULLED_AT_ONCE),
    )(handle)

    async with broker:
        await broker.start()
        await counted.is_done.wait()
    return counted.per_second


async def _publish(url: str, events: Sequence[OrderPlaced]) -> float:
    """Return events per second of one publish after the other, each acknowledged, to a stream of its own."""
    nats: Any = importlib.import_module("faststream.nats")
    name = f"published{next(_run_numbers)}"
    broker = _broker(url)
    to_stream = broker.publisher(name, stream=nats.JStream(name))
    async with broker:
        await broker.start()
        await to_stream.publish(events[0])  # makes the stream
        started_s = time.perf_counter()
        for event in events:
            await to_stream.publish(event)
        return len(events) / (time.perf_counter() - started_s)


def _broker(url: str) -> Any:
    nats: Any = importlib.import_module("faststream.nats")
    serializer: Any = importlib.import_module("fast_depends.msgspec")
    return nats.NatsBroker(url, serializer=serializer.MsgSpecSerializer(), log_level=logging.CRITICAL, logger=None)


PEER: Final = Benchmark(
    name="faststream",
    rows=[Row("faststream-consume", "/s", target=30.0), Row("faststream-publish", "/s")],
    ours_is="a typed app with an async handler per event on a backlog; and publishing one event after the other",
    reference_is="the same app on FastStream with JetStream, sync_interval: always, a durable pull consumer of 500, msgspec; and its publisher",
    prepare=_peer,
    needs=["faststream", *jetstream.NEEDS],
    pairs=5,
)
