"""Competing: eight processes that publish to one log at once, against one."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import mean
from typing import Final

from benchmarks.harness import Benchmark, Row, Setting, Sides
from benchmarks.sample import order_events, publisher, settings_in
from benchmarks.service import child, heard

_PROCESSES: Final = 8


@contextmanager
def _processes(setting: Setting) -> Generator[Sides]:
    processes, seconds = (2, 0.1) if setting.is_quick else (_PROCESSES, 3.0)
    yield Sides(partial(_publish, setting.folder, processes, seconds), partial(_publish, setting.folder, 1, seconds))


def _publish(folder: Path, processes: int, seconds: float) -> Sequence[float]:
    """Return what all publish together in a second, and the share of the slowest beside the mean."""
    with tempfile.TemporaryDirectory(dir=folder) as log_folder, ExitStack() as stack:
        lines = [stack.enter_context(child(_publish_for, log_folder, seconds)) for _ in range(processes)]
        for line in lines:
            heard(line)
        for line in lines:
            line.send("go")
        rates = [heard(line) for line in lines]
    return sum(rates), min(rates) / mean(rates)


async def _publish_for(line: Connection, log_folder: str, seconds: float) -> None:
    """Publish one event after the other for so long, and tell how many a second."""
    events = order_events(1_000)
    async with publisher.connect(settings_in(Path(log_folder))) as client:
        await client.publish(events[0])
        line.send("ready")
        line.recv()
        started_s = now_s = time.monotonic()
        count = 0
        while now_s < started_s + seconds:
            await client.publish(events[count % len(events)])
            count += 1
            now_s = time.monotonic()
        line.send(count / (now_s - started_s))


PROCESSES: Final = Benchmark(
    name="processes",
    rows=[
        Row("processes-total", "/s", target=0.8),
        Row("processes-slowest", "of mean", target=0.3),
    ],
    ours_is="eight processes that publish one event after the other to one log, for 3 s: all together, and the slowest beside their mean",
    reference_is="one process that does so; for the slowest, which has nobody beside itself, that is 1",
    prepare=_processes,
    pairs=5,
)
