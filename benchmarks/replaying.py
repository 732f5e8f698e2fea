"""Replaying: how much slower a publish is answered while the same process works off a backlog, against one that is idle."""

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
from everlog import App, Client, Delivery


@contextmanager
def _replay(setting: Setting) -> Generator[Sides]:
    folder = setting.backlogs.of(setting.events)
    events = order_events(10 if setting.is_quick else 300)
    yield Sides(partial(_busy, folder, setting.events, events), partial(_idle, folder, events))


def _busy(folder: Path, backlog: int, events: Sequence[OrderPlaced]) -> Sequence[float]:
    """Return the milliseconds of one publish while an app replays the log; the mean, of as many as fit into the replay."""

    async def work(store_folder: str) -> float:
        app = App("replayer", delivery=Delivery(start="beginning"))
        has_begun = asyncio.Event()
        handled = 0

        @app.on(OrderPlaced)
        async def handle(_: OrderPlaced) -> None:  # pyright: ignore[reportUnusedFunction] the app calls it
            nonlocal handled
            handled += 1
            has_begun.set()

        taken: list[float] = []
        is_over = asyncio.Event()

        async def publish_while_it_lasts() -> None:
            await has_begun.wait()
            async with publisher.connect(settings) as client:
                for event in events:
                    taken.append(await _publish_ms(client, event))
                    if handled >= backlog:
                        break
            is_over.set()

        settings = replace(settings_in(folder), store_url=f"sqlite:{store_folder}/app.db", accept_new_store=True)
        publishing = asyncio.ensure_future(publish_while_it_lasts())
        await run_until(is_over, app, settings)
        await publishing
        return sum(taken) / len(taken)

    with tempfile.TemporaryDirectory(dir=folder) as store_folder:
        return (run_as_service(work(store_folder)),)


def _idle(folder: Path, events: Sequence[OrderPlaced]) -> Sequence[float]:
    """Return the same of a process that does nothing else."""

    async def work() -> float:
        async with publisher.connect(settings_in(folder)) as client:
            taken = [await _publish_ms(client, event) for event in events]
        return sum(taken) / len(taken)

    return (run_as_service(work()),)


async def _publish_ms(client: Client, event: OrderPlaced) -> float:
    started_s = time.perf_counter()
    await client.publish(event)
    return 1_000 * (time.perf_counter() - started_s)


REPLAY: Final = Benchmark(
    name="publish-during-replay",
    rows=[Row("publish-during-replay", "ms", target=3.0, lower_is_better=True)],
    ours_is="await client.publish(event), one after the other, while an app of the same process works off a backlog",
    reference_is="the same in a process that does nothing else",
    prepare=_replay,
    warms_up=False,
)
