"""Growing: what the same work costs on a large log, against a small one."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

from benchmarks.harness import Benchmark, Row, Setting, Sides
from benchmarks.sample import OrderPlaced, order_events, publisher, settings_in
from benchmarks.service import run_as_service, run_until
from everlog import App, Client, Delivery, Settings

_SMALL: Final = 100
"""How many times fewer events the small log holds."""


@contextmanager
def _growth(setting: Setting) -> Generator[Sides]:
    large = setting.backlogs.of(setting.events)
    small = setting.backlogs.of(max(1, setting.events // _SMALL))
    events = order_events(5 if setting.is_quick else 300)
    times = 1 if setting.is_quick else 5
    yield Sides(partial(_measured, large, events, times), partial(_measured, small, events, times))


def _measured(folder: Path, events: Sequence[OrderPlaced], times: int) -> Sequence[float]:
    """Return milliseconds: of one publish, of one event to a follower, of opening and closing, of a new subscription's first event."""

    async def work() -> Sequence[float]:
        return (
            await _append_ms(folder, events),
            await _tail_ms(folder, events),
            sum([await _open_ms(folder) for _ in range(times)]) / times,
            sum([await _subscribe_ms(folder) for _ in range(times)]) / times,
        )

    return run_as_service(work())


async def _append_ms(folder: Path, events: Sequence[OrderPlaced]) -> float:
    async with publisher.connect(settings_in(folder)) as client:
        await client.publish(events[0])
        started_s = time.perf_counter()
        for event in events:
            await client.publish(event)
        return 1_000 * (time.perf_counter() - started_s) / len(events)


async def _tail_ms(folder: Path, events: Sequence[OrderPlaced]) -> float:
    """Return the time from a publish until somebody who follows the log from now on has the event."""
    async with publisher.connect(settings_in(folder)) as client:
        following = asyncio.ensure_future(_follow(client, len(events)))
        await asyncio.sleep(0)  # it stands at the end of the log now
        started_s = time.perf_counter()
        for event in events:
            await client.publish(event)
        await following
        return 1_000 * (time.perf_counter() - started_s) / len(events)


async def _follow(client: Client, count: int) -> None:
    left = count
    async for _ in client.follow(OrderPlaced, start="now"):
        left -= 1
        if not left:
            return


async def _open_ms(folder: Path) -> float:
    started_s = time.perf_counter()
    async with publisher.connect(settings_in(folder)):
        pass
    return 1_000 * (time.perf_counter() - started_s)


async def _subscribe_ms(folder: Path) -> float:
    """Return the time from the start of an app with a new store until its handler has the first event of all."""
    is_there = asyncio.Event()
    app = App("newcomer", delivery=Delivery(start="beginning"))
    first_s = 0.0

    @app.on(OrderPlaced)
    async def handle(_: OrderPlaced) -> None:  # pyright: ignore[reportUnusedFunction] the app calls it
        nonlocal first_s
        first_s = first_s or time.perf_counter()
        is_there.set()

    with tempfile.TemporaryDirectory(dir=folder) as store_folder:
        settings: Settings = replace(settings_in(folder), store_url=f"sqlite:{store_folder}/app.db", accept_new_store=True)
        started_s = time.perf_counter()
        await run_until(is_there, app, settings)
    return 1_000 * (first_s - started_s)


GROWTH: Final = Benchmark(
    name="growth",
    rows=[
        Row("growth-append", "ms", target=1.3, lower_is_better=True),
        Row("growth-tail", "ms", target=1.3, lower_is_better=True),
        Row("growth-open", "ms", target=1.3, lower_is_better=True),
        Row("growth-subscribe", "ms", target=1.3, lower_is_better=True),
    ],
    ours_is="a publish; a publish until a follower has it; opening and closing; a new subscription's start until its first event: on a large log",
    reference_is="the same on a log with a hundredth of the events",
    prepare=_growth,
)
