"""Publishing: from the call of `publish` until the log says that it is stored, against the same bytes stored by hand."""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

from benchmarks import by_hand
from benchmarks.harness import Benchmark, Row, Setting, Sides
from benchmarks.sample import OrderPlaced, order_events, publisher, settings_in
from benchmarks.service import run_as_service

BATCH: Final = 1_000
_TASKS: Final = 256


@contextmanager
def _one_by_one(setting: Setting) -> Generator[Sides]:
    events = order_events(20 if setting.is_quick else 1_000)
    yield Sides(
        partial(publish, setting.folder, [[event] for event in events]),
        partial(_append, setting.folder, [by_hand.validated([event])[0] for event in events], 1),
    )


@contextmanager
def _concurrent(setting: Setting) -> Generator[Sides]:
    events = order_events(_TASKS if setting.is_quick else 200 * _TASKS)
    yield Sides(partial(_publish_at_once, setting.folder, events))


@contextmanager
def _batches(setting: Setting) -> Generator[Sides]:
    batches = _batches_of(2 if setting.is_quick else 100)
    yield Sides(partial(publish, setting.folder, batches), partial(_insert, setting.folder, batches))


@contextmanager
def _batches_raw(setting: Setting) -> Generator[Sides]:
    batches = _batches_of(2 if setting.is_quick else 100)
    yield Sides(
        partial(publish, setting.folder, batches),
        partial(_append, setting.folder, [b"".join(by_hand.validated(batch)) for batch in batches], BATCH),
    )


def _batches_of(count: int) -> list[list[OrderPlaced]]:
    events = order_events(count * BATCH)
    return [events[at : at + BATCH] for at in range(0, len(events), BATCH)]


def publish(folder: Path, calls: Sequence[Sequence[OrderPlaced]]) -> Sequence[float]:
    """Return events per second of one `publish` after the other, each awaited, to a new log."""

    async def work(log_folder: Path) -> float:
        async with publisher.connect(settings_in(log_folder)) as client:
            await client.publish(*calls[0])  # makes the topic
            started_s = time.perf_counter()
            for events in calls:
                await client.publish(*events)
            return sum(map(len, calls)) / (time.perf_counter() - started_s)

    with tempfile.TemporaryDirectory(dir=folder) as log_folder:
        return (run_as_service(work(Path(log_folder))),)


def _publish_at_once(folder: Path, events: Sequence[OrderPlaced]) -> Sequence[float]:
    """Return events per second of tasks that publish at once, each one event after the other, to a new log."""

    async def work(log_folder: Path) -> float:
        left = iter(events)

        async def publish_some() -> None:
            for event in left:
                await client.publish(event)

        async with publisher.connect(settings_in(log_folder)) as client:
            await client.publish(events[0])  # makes the topic
            started_s = time.perf_counter()
            await asyncio.gather(*[publish_some() for _ in range(_TASKS)])
            return len(events) / (time.perf_counter() - started_s)

    with tempfile.TemporaryDirectory(dir=folder) as log_folder:
        return (run_as_service(work(Path(log_folder))),)


def _append(folder: Path, pieces: Sequence[bytes], events_each: int) -> Sequence[float]:
    """Return events per second of one `write` and `fdatasync` per piece to a new file."""
    with tempfile.TemporaryDirectory(dir=folder) as file_folder:
        fd = os.open(Path(file_folder) / "appended", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC)
        try:
            by_hand.append_synced(fd, pieces[0])
            started_s = time.perf_counter()
            for piece in pieces:
                by_hand.append_synced(fd, piece)
            return (len(pieces) * events_each / (time.perf_counter() - started_s),)
        finally:
            os.close(fd)


def _insert(folder: Path, batches: Sequence[list[OrderPlaced]]) -> Sequence[float]:
    """Return events per second of one transaction of chunks per batch into a new file."""
    with tempfile.TemporaryDirectory(dir=folder) as file_folder:
        connection = by_hand.open_file(Path(file_folder) / "chunks.db")
        try:
            nexts = [0] * by_hand.PARTITIONS
            by_hand.insert_batch(connection, 1, batches[0], nexts)
            started_s = time.perf_counter()
            for number, batch in enumerate(batches, 2):
                by_hand.insert_batch(connection, number, batch, nexts)
            return (sum(map(len, batches)) / (time.perf_counter() - started_s),)
        finally:
            connection.close()


ONE_BY_ONE: Final = Benchmark(
    name="publish-one-by-one",
    rows=[Row("publish-one-by-one", "/s", target=0.7)],
    ours_is="await client.publish(event), one after the other",
    reference_is="write and fdatasync of each event's JSON, made before, to an appending file",
    prepare=_one_by_one,
)
CONCURRENT: Final = Benchmark(
    name="publish-concurrent",
    rows=[Row("publish-concurrent", "/s", target=50_000)],
    ours_is="256 tasks that each publish one event after the other, every one awaited",
    reference_is=None,
    prepare=_concurrent,
)
BATCHES: Final = Benchmark(
    name="publish-batches",
    rows=[Row("publish-batches", "/s", target=0.7)],
    ours_is="await client.publish(*1_000 events) to 8 partitions, one batch after the other",
    reference_is="the same by hand in apsw: proof by encode, decode, compare; chunks by key hash; one synced transaction per batch",
    prepare=_batches,
)
BATCHES_RAW: Final = Benchmark(
    name="publish-batches-raw",
    rows=[Row("publish-batches-raw", "/s")],
    ours_is="as publish-batches",
    reference_is="write and fdatasync of each batch's JSON, made before: no proof, no order, no way to find an event",
    prepare=_batches_raw,
)
