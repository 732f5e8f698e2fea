"""Consuming: the handler calls of an app that works off a backlog, against decoding the same chunks and awaiting an empty function."""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

import apsw

from benchmarks import by_hand
from benchmarks.harness import Benchmark, Sides, run_as_service
from benchmarks.sample import OrderPlaced, order_events, orders, publisher, settings_in
from everlog import App, Delivery, Settings
from everlog.clock import SystemClock
from everlog.settings import open_store

_PUBLISHED_AT_ONCE: Final = 1_000


@contextmanager
def _backlog(folder: Path, is_quick: bool) -> Generator[Sides]:
    count = 2_000 if is_quick else 200_000
    run_as_service(_fill(settings_in(folder), count))
    yield Sides(partial(_consume, folder, count), partial(_decode, folder / "log.db", count))


async def _fill(settings: Settings, count: int) -> None:
    events = order_events(count)
    async with publisher.connect(settings) as client:
        for at in range(0, count, _PUBLISHED_AT_ONCE):
            await client.publish(*events[at : at + _PUBLISHED_AT_ONCE])


def _consume(folder: Path, count: int) -> float:
    """Return events per second, from the first handler call to the last, of an app with a new store.

    What it reads before the first call, at most one read of about 4,096 events, and its start and stop are not in it.
    """
    with tempfile.TemporaryDirectory(dir=folder) as store_folder:
        # The log remembers the stores of earlier runs under the app's name.
        settings = replace(settings_in(folder), store_url=f"sqlite:{store_folder}/app.db", accept_new_store=True)
        return run_as_service(_run_app(settings, count))


async def _run_app(settings: Settings, count: int) -> float:
    app = App("consumer", delivery=Delivery(start="beginning"))
    seen = 0
    first_s = last_s = 0.0
    is_done = asyncio.Event()

    @app.on(OrderPlaced)
    async def handle(_: OrderPlaced) -> None:
        nonlocal seen, first_s, last_s
        seen += 1
        if seen == 1:
            first_s = time.perf_counter()
        elif seen == count:
            last_s = time.perf_counter()
            is_done.set()

    running = asyncio.ensure_future(app.run(settings))
    waiting = asyncio.ensure_future(is_done.wait())
    await asyncio.wait([running, waiting], return_when=asyncio.FIRST_COMPLETED)
    if running.done():
        await running
    running.cancel()
    await asyncio.wait([running])
    await _check_progress(settings, count)
    return count / (last_s - first_s)


async def _check_progress(settings: Settings, count: int) -> None:
    """Check that every event is committed as finished: what was measured was the work itself."""
    store = await open_store(settings, "consumer", clock=SystemClock())
    try:
        (subscription,) = (await store.status()).subscriptions
        finished = sum(one.through + 1 - len(one.unfinished) for one in subscription.progress)
    finally:
        await store.aclose()
    if finished != count:
        raise RuntimeError(f"expected {count} events to be committed as finished, found {finished}")


def _decode(path: Path, count: int) -> float:
    """Return events per second of reading chunk after chunk, decoding envelope and events, and awaiting an empty handler for each."""

    async def handle(_: OrderPlaced) -> None:
        pass

    async def work(connection: apsw.Connection) -> int:
        seen = 0
        query = "SELECT body FROM chunk JOIN topic ON topic.id = chunk.topic WHERE topic.name = ? ORDER BY chunk.id"
        for (body,) in connection.execute(query, (orders.name,)):
            _, events = by_hand.events_of(body)
            for event in events:
                await handle(event)
            seen += len(events)
        return seen

    connection = apsw.Connection(os.fspath(path))
    try:
        started_s = time.perf_counter()
        seen = run_as_service(work(connection))
        taken_s = time.perf_counter() - started_s
    finally:
        connection.close()
    if seen != count:
        raise RuntimeError(f"expected {count} events in the log, found {seen}")
    return count / taken_s


BACKLOG: Final = Benchmark(
    name="consume-backlog",
    ours_is="an app with an async handler per event, progress committed to its store; timed from the first handler call to the last",
    reference_is="reading the same chunks from the same file, checksum, envelope and events decoded, an empty async function awaited per event",
    unit="events/s",
    prepare=_backlog,
    target=0.35,
)
