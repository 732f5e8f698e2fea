"""Consuming: the handler calls of an app that works off a backlog, against decoding the same chunks and awaiting an empty function."""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

import apsw

from benchmarks import by_hand
from benchmarks.harness import Benchmark, Row, Setting, Sides
from benchmarks.sample import OrderPlaced, orders, settings_in
from benchmarks.service import run_as_service, run_until
from everlog import App, Delivery, Settings
from everlog.clock import SystemClock
from everlog.settings import open_store

Declare = Callable[[App, "Counted"], None]
"""Gives an app its handler."""


class Counted:
    """Counts events to the last one, and notes when the first and the last were handled."""

    def __init__(self, count: int) -> None:
        self._left = self._count = count
        self._first_s = self._last_s = 0.0
        self.is_done = asyncio.Event()

    def add(self, events: int) -> None:
        """Note that so many more are in a handler."""
        if self._left == self._count:
            self._first_s = time.perf_counter()
        self._left -= events
        if self._left <= 0 and not self.is_done.is_set():
            self._last_s = time.perf_counter()
            self.is_done.set()

    @property
    def per_second(self) -> float:
        """Events per second from the first call to the last."""
        return self._count / (self._last_s - self._first_s)


@contextmanager
def _one_by_one(setting: Setting) -> Generator[Sides]:
    count = 2_000 if setting.is_quick else 200_000
    folder = setting.backlogs.of(count)
    yield Sides(partial(consume_one_by_one, folder, count), partial(_decode, folder / "log.db", count, _await_each))


@contextmanager
def _in_batches(setting: Setting) -> Generator[Sides]:
    count = 2_000 if setting.is_quick else 200_000
    folder = setting.backlogs.of(count)
    yield Sides(partial(_consume, folder, count, _declare_batch), partial(_decode, folder / "log.db", count, _await_all))


def _declare_one(app: App, counted: Counted) -> None:
    @app.on(OrderPlaced)
    async def handle(_: OrderPlaced) -> None:  # pyright: ignore[reportUnusedFunction] the app calls it
        counted.add(1)


def _declare_batch(app: App, counted: Counted) -> None:
    @app.on_batch(OrderPlaced)
    async def handle(events: list[OrderPlaced]) -> None:  # pyright: ignore[reportUnusedFunction] the app calls it
        counted.add(len(events))


def consume_one_by_one(folder: Path, count: int) -> Sequence[float]:
    """Return events per second of an app with a new store and an async handler per event."""
    return _consume(folder, count, _declare_one)


def _consume(folder: Path, count: int, declare: Declare) -> Sequence[float]:
    """Return events per second, from the first handler call to the last, of an app with a new store.

    What it reads before the first call, at most one read of about 4,096 events, and its start and stop are not in it.
    """
    with tempfile.TemporaryDirectory(dir=folder) as store_folder:
        # The log remembers the stores of earlier runs under the app's name.
        settings = replace(settings_in(folder), store_url=f"sqlite:{store_folder}/app.db", accept_new_store=True)
        return (run_as_service(_run_app(settings, count, declare)),)


async def _run_app(settings: Settings, count: int, declare: Declare) -> float:
    app = App("consumer", delivery=Delivery(start="beginning"))
    counted = Counted(count)
    declare(app, counted)
    await run_until(counted.is_done, app, settings)
    await check_progress(settings, count)
    return counted.per_second


async def check_progress(settings: Settings, count: int, *, app: str = "consumer") -> None:
    """Check that every event is committed as finished: what was measured was the work itself."""
    store = await open_store(settings, app, clock=SystemClock())
    try:
        (subscription,) = (await store.status()).subscriptions
        finished = sum(one.through + 1 - len(one.unfinished) for one in subscription.progress)
    finally:
        await store.aclose()
    if finished < count:
        raise RuntimeError(f"expected {count} events to be committed as finished, found {finished}")


async def _await_each(events: Sequence[OrderPlaced]) -> None:
    for event in events:
        await _handle_one(event)


async def _handle_one(_: OrderPlaced) -> None:
    pass


async def _await_all(_: Sequence[OrderPlaced]) -> None:
    pass


def _decode(path: Path, count: int, handle: Callable[[Sequence[OrderPlaced]], Awaitable[None]]) -> Sequence[float]:
    """Return events per second of reading chunk after chunk, decoding envelope and events, and awaiting what becomes of them."""

    async def work(connection: apsw.Connection) -> int:
        seen = 0
        query = "SELECT body FROM chunk JOIN topic ON topic.id = chunk.topic WHERE topic.name = ? ORDER BY chunk.id"
        for (body,) in connection.execute(query, (orders.name,)):
            _, events = by_hand.events_of(body)
            await handle(events)
            seen += len(events)
        return seen

    connection = apsw.Connection(os.fspath(path))
    try:
        started_s = time.perf_counter()
        seen = run_as_service(work(connection))
        taken_s = time.perf_counter() - started_s
    finally:
        connection.close()
    if seen < count:
        raise RuntimeError(f"expected {count} events in the log, found {seen}")
    return (seen / taken_s,)


BACKLOG: Final = Benchmark(
    name="consume-backlog",
    rows=[Row("consume-backlog", "/s", target=0.35)],
    ours_is="an app with an async handler per event, progress committed to its store; timed from the first handler call to the last",
    reference_is="reading the same chunks from the same file, checksum, envelope and events decoded, an empty async function awaited per event",
    prepare=_one_by_one,
)
BATCHES: Final = Benchmark(
    name="consume-batches",
    rows=[Row("consume-batches", "/s", target=0.5)],
    ours_is="the same app with a handler of batches of at most 1,000",
    reference_is="reading the same chunks, checksum, envelope and events decoded, an empty async function awaited per chunk",
    prepare=_in_batches,
)
