"""Poisoning: how long the events of healthy keys wait while handlers of other keys raise, hang and exit, against the same without that.

A publisher and an app in a process of its own; events are published at a steady rate, whatever the app does, so that what holds one up shows
in those behind it.
"""

from __future__ import annotations

import asyncio
import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

from benchmarks.harness import Benchmark, Row, Setting, Sides
from benchmarks.sample import OrderPlaced, order_events, publisher, settings_in
from benchmarks.service import child, heard, run_as_service, run_until
from everlog import App, Delivery, Tx

_EVERY_S: Final = 0.003
_RAISING, _HANGING, _EXITING = range(3), range(3, 5), range(5, 6)
"""Of 100 customers: what the handler of their events does."""


@contextmanager
def _poison(setting: Setting) -> Generator[Sides]:
    count = 40 if setting.is_quick else 2_000
    events = order_events(count)
    yield Sides(
        partial(_healthy_p99, setting.folder, events, is_poisoned=True),
        partial(_healthy_p99, setting.folder, events, is_poisoned=False),
    )


def _kind(order: OrderPlaced) -> int:
    return int(order.customer_id.rpartition("-")[2]) % 100


def _is_healthy(order: OrderPlaced) -> bool:
    return _kind(order) not in (*_RAISING, *_HANGING, *_EXITING)


def _healthy_p99(folder: Path, events: Sequence[OrderPlaced], *, is_poisoned: bool) -> Sequence[float]:
    """Return the 99th percentile, in milliseconds, from when an event of a healthy key was to be published until its handler was called."""
    with tempfile.TemporaryDirectory(dir=folder) as log_folder:
        healthy = {order.order_id for order in events if _is_healthy(order)}
        with child(_handle, log_folder, len(healthy), is_poisoned) as line:
            heard(line)
            due_ns = run_as_service(_publish(Path(log_folder), events))
            handled_ns: dict[str, int] = heard(line)
    taken_ms = [(handled_ns[order_id] - due_ns[order_id]) / 1e6 for order_id in healthy]
    return (statistics.quantiles(taken_ms, n=100, method="inclusive")[98],)


async def _publish(log_folder: Path, events: Sequence[OrderPlaced]) -> dict[str, int]:
    """Publish at a steady rate, without waiting for an answer; return when each event was due."""
    due_ns: dict[str, int] = {}
    async with publisher.connect(settings_in(log_folder)) as client, asyncio.TaskGroup() as tasks:
        started_ns = time.monotonic_ns()
        for number, order in enumerate(events):
            due = started_ns + int(number * _EVERY_S * 1e9)
            await asyncio.sleep(max(0.0, (due - time.monotonic_ns()) / 1e9))
            due_ns[order.order_id] = time.monotonic_ns()
            tasks.create_task(client.publish(order))
    return due_ns


async def _handle(line: Connection, log_folder: str, healthy: int, is_poisoned: bool) -> None:
    """Be the app: handle events until all healthy ones were, and tell when each was."""
    logging.basicConfig(filename=Path(log_folder) / "said.log")  # a line per retry costs something, as everywhere
    app = App("poisoned", delivery=Delivery(start="beginning", time_limit_s=0.5))
    seen = app.state("seen/1", int)
    handled_ns: dict[str, int] = {}
    are_handled = asyncio.Event()

    @app.on(OrderPlaced)
    async def handle(order: OrderPlaced, tx: Tx) -> None:  # pyright: ignore[reportUnusedFunction] the app calls it
        if is_poisoned and not _is_healthy(order):
            await _fail(_kind(order))
        if _is_healthy(order):
            handled_ns.setdefault(order.order_id, time.monotonic_ns())
            if len(handled_ns) == healthy:
                are_handled.set()
        tx.add(seen, order.customer_id, 1)

    settings = settings_in(Path(log_folder))
    async with publisher.connect(settings):
        pass
    line.send("ready")
    await run_until(are_handled, app, settings)
    line.send(handled_ns)


async def _fail(kind: int) -> None:
    if kind in _RAISING:
        raise ValueError("poison")
    if kind in _EXITING:
        sys.exit("poison")
    await asyncio.Event().wait()


POISON: Final = Benchmark(
    name="poison",
    rows=[Row("poison-p99", "ms", target=1.2, lower_is_better=True)],
    ours_is="from a publish to the handler in another process, at 333 events/s, while the handlers of 6 % of the keys raise, hang or exit",
    reference_is="the same, and no handler fails",
    prepare=_poison,
)
