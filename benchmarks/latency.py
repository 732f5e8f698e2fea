"""Latency: from the call of `publish` in one process to the call of the handler in another, against JetStream that syncs every write.

One event is in flight at a time, and the next one follows a moment after the last was handled. The subscriber is awake and is pushed to; on
both sides it decodes the event into the same class, notes the time, tells the publisher over the same kind of pipe, and acknowledges.
"""

from __future__ import annotations

import asyncio
import itertools
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import msgspec

from benchmarks import jetstream
from benchmarks.harness import Benchmark, Row, Setting, Sides
from benchmarks.sample import OrderPlaced, order_events, publisher, settings_in
from benchmarks.service import child, closed, heard, run_as_service, run_until
from everlog import App, Delivery

_PAUSE_S: Final = 0.002
_WARM_UP: Final = 50
_run_numbers: Final = itertools.count()
_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder(OrderPlaced).decode

Publish = Callable[[OrderPlaced], Awaitable[object]]


@contextmanager
def _latency(setting: Setting) -> Generator[Sides]:
    events = order_events(5 if setting.is_quick else 1_000 + _WARM_UP)
    warm_up = 1 if setting.is_quick else _WARM_UP
    with ExitStack() as stack:
        ours = partial(_everlog, setting.folder, events, warm_up)
        if not setting.has_reference:
            yield Sides(ours)
            return
        url = stack.enter_context(jetstream.server(setting.folder))
        yield Sides(ours, partial(_jetstream, url, events, warm_up))


# ---- ours ----


def _everlog(folder: Path, events: Sequence[OrderPlaced], warm_up: int) -> Sequence[float]:
    """Return p50 and p99 in milliseconds, with a new log and a new store."""

    async def work(line: Connection) -> Sequence[float]:
        async with publisher.connect(settings) as client:
            return await _measured(client.publish, events, line, warm_up)

    with tempfile.TemporaryDirectory(dir=folder) as log_folder:
        settings = settings_in(Path(log_folder))
        with child(_subscribe, log_folder) as line:
            heard(line)
            return run_as_service(work(line))


async def _subscribe(line: Connection, log_folder: str) -> None:
    """Be the subscriber, until the line is closed."""
    app = App("subscriber", delivery=Delivery(start="beginning"))

    @app.on(OrderPlaced)
    async def handle(order: OrderPlaced) -> None:  # pyright: ignore[reportUnusedFunction] the app calls it
        line.send((order.order_id, time.monotonic_ns()))

    is_over = asyncio.Event()

    async def wait() -> None:
        await closed(line)
        is_over.set()

    settings = settings_in(Path(log_folder))
    async with publisher.connect(settings) as client:  # the topic is there before both sides begin
        await client.publish(order_events(1)[0])
    waiting = asyncio.ensure_future(wait())
    await run_until(is_over, app, settings)
    await waiting


# ---- JetStream ----


def _jetstream(url: str, events: Sequence[OrderPlaced], warm_up: int) -> Sequence[float]:
    """Return the same of nats-py, with a new durable push consumer that acknowledges each message."""
    name = f"latency{next(_run_numbers)}"

    async def work(line: Connection) -> Sequence[float]:
        connection: Any = await jetstream.client_module().connect(url)
        try:
            stream = connection.jetstream()
            return await _measured(lambda order: stream.publish(name, _encode(order)), events, line, warm_up)
        finally:
            await connection.close()

    with child(_subscribe_jetstream, url, name) as line:
        heard(line)
        return run_as_service(work(line))


async def _subscribe_jetstream(line: Connection, url: str, name: str) -> None:
    """Be the subscriber, until the line is closed."""
    connection: Any = await jetstream.client_module().connect(url)
    stream = connection.jetstream()
    await stream.add_stream(name=name, subjects=[name])

    async def handle(message: Any) -> None:
        order = _decode(message.data)
        line.send((order.order_id, time.monotonic_ns()))
        await message.ack()

    await stream.subscribe(name, cb=handle, durable=name, stream=name, manual_ack=True)
    line.send("ready")
    try:
        await closed(line)
    finally:
        await connection.close()


# ---- both ----


async def _measured(publish: Publish, events: Sequence[OrderPlaced], line: Connection, warm_up: int) -> Sequence[float]:
    """Publish event after event, each when the last one was handled; return p50 and p99 of the time until then, in milliseconds."""
    loop = asyncio.get_running_loop()
    taken_ms: list[float] = []
    arrived: asyncio.Future[int] = loop.create_future()
    expected = ""

    def hear() -> None:
        order_id, at_ns = line.recv()
        if order_id == expected:
            arrived.set_result(at_ns)

    loop.add_reader(line.fileno(), hear)
    try:
        for order in events:
            arrived, expected = loop.create_future(), order.order_id
            started_ns = time.monotonic_ns()
            await publish(order)
            taken_ms.append((await arrived - started_ns) / 1e6)
            await asyncio.sleep(_PAUSE_S)
    finally:
        loop.remove_reader(line.fileno())
    return _percentiles(taken_ms[warm_up:])


def _percentiles(taken_ms: Sequence[float]) -> Sequence[float]:
    cuts = statistics.quantiles(taken_ms, n=100, method="inclusive")
    return cuts[49], cuts[98]


LATENCY: Final = Benchmark(
    name="latency",
    rows=[
        Row("latency-p50", "ms", target=0.7, lower_is_better=True),
        Row("latency-p99", "ms", target=1.0, lower_is_better=True),
    ],
    ours_is="from the call of publish in one process to the handler in another, one event in flight, a pause of 2 ms between",
    reference_is="the same with nats-py on JetStream with sync_interval: always, a durable push consumer with an acknowledgement per message",
    prepare=_latency,
    needs=jetstream.NEEDS,
)
