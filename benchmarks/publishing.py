"""Publishing: from the call of `publish` until the log says that it is stored, against the same bytes stored by hand."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

from benchmarks import by_hand
from benchmarks.harness import Benchmark, Sides, run_as_service
from benchmarks.sample import OrderPlaced, order_events, publisher, settings_in

BATCH: Final = 1_000


@contextmanager
def _one_by_one(folder: Path, is_quick: bool) -> Generator[Sides]:
    events = order_events(20 if is_quick else 1_000)
    yield Sides(
        partial(_publish, folder, [[event] for event in events]),
        partial(_append, folder, [by_hand.validated([event])[0] for event in events], 1),
    )


@contextmanager
def _batches(folder: Path, is_quick: bool) -> Generator[Sides]:
    batches = _batches_of(2 if is_quick else 100)
    yield Sides(partial(_publish, folder, batches), partial(_insert, folder, batches))


@contextmanager
def _batches_raw(folder: Path, is_quick: bool) -> Generator[Sides]:
    batches = _batches_of(2 if is_quick else 100)
    yield Sides(
        partial(_publish, folder, batches),
        partial(_append, folder, [b"".join(by_hand.validated(batch)) for batch in batches], BATCH),
    )


def _batches_of(count: int) -> list[list[OrderPlaced]]:
    events = order_events(count * BATCH)
    return [events[at : at + BATCH] for at in range(0, len(events), BATCH)]


def _publish(folder: Path, calls: Sequence[Sequence[OrderPlaced]]) -> float:
    """Return events per second of one `publish` after the other, each awaited, to a new log."""

    async def work(log_folder: Path) -> float:
        async with publisher.connect(settings_in(log_folder)) as client:
            await client.publish(*calls[0])  # makes the topic
            started_s = time.perf_counter()
            for events in calls:
                await client.publish(*events)
            return sum(map(len, calls)) / (time.perf_counter() - started_s)

    with tempfile.TemporaryDirectory(dir=folder) as log_folder:
        return run_as_service(work(Path(log_folder)))


def _append(folder: Path, pieces: Sequence[bytes], events_each: int) -> float:
    """Return events per second of one `write` and `fdatasync` per piece to a new file."""
    with tempfile.TemporaryDirectory(dir=folder) as file_folder:
        fd = os.open(Path(file_folder) / "appended", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC)
        try:
            by_hand.append_synced(fd, pieces[0])
            started_s = time.perf_counter()
            for piece in pieces:
                by_hand.append_synced(fd, piece)
            return len(pieces) * events_each / (time.perf_counter() - started_s)
        finally:
            os.close(fd)


def _insert(folder: Path, batches: Sequence[list[OrderPlaced]]) -> float:
    """Return events per second of one transaction of chunks per batch into a new file."""
    with tempfile.TemporaryDirectory(dir=folder) as file_folder:
        connection = by_hand.open_file(Path(file_folder) / "chunks.db")
        try:
            nexts = [0] * by_hand.PARTITIONS
            by_hand.insert_batch(connection, 1, batches[0], nexts)
            started_s = time.perf_counter()
            for number, batch in enumerate(batches, 2):
                by_hand.insert_batch(connection, number, batch, nexts)
            return sum(map(len, batches)) / (time.perf_counter() - started_s)
        finally:
            connection.close()


ONE_BY_ONE: Final = Benchmark(
    name="publish-one-by-one",
    ours_is="await client.publish(event), one after the other",
    reference_is="write and fdatasync of each event's JSON, made before, to an appending file",
    unit="events/s",
    prepare=_one_by_one,
    target=0.7,
)
BATCHES: Final = Benchmark(
    name="publish-batches",
    ours_is="await client.publish(*1_000 events) to 8 partitions, one batch after the other",
    reference_is="the same by hand in apsw: proof by encode, decode, compare; chunks by key hash; one synced transaction per batch",
    unit="events/s",
    prepare=_batches,
    target=0.7,
)
BATCHES_RAW: Final = Benchmark(
    name="publish-batches-raw",
    ours_is="as publish-batches",
    reference_is="write and fdatasync of each batch's JSON, made before: no proof, no order, no way to find an event",
    unit="events/s",
    prepare=_batches_raw,
)
