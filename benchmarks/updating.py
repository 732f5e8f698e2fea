"""Updating: a handler that reads and writes a row of state and emits an event, against the same by hand in groups of 256.

On both sides every emitted event goes through an outbox into the log, and is there when the time is taken.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import AsyncGenerator, Generator, Iterator, Sequence
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Final

import apsw
import msgspec

from benchmarks import by_hand
from benchmarks.consuming import check_progress
from benchmarks.harness import Benchmark, Row, Setting, Sides
from benchmarks.sample import OrderPlaced, OrderTotalled, orders, settings_in, totalled, totals
from benchmarks.service import run_as_service, run_until
from everlog import App, Delivery, Settings, Tx
from everlog.clock import SystemClock
from everlog.drivers.sqlite.rows import rows_of
from everlog.key import partition_of
from everlog.settings import open_log

_GROUP: Final = 256
_SENT_AT_ONCE: Final = 1_000
_TABLES: Final = """
    CREATE TABLE total (key TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT, WITHOUT ROWID;
    CREATE TABLE progress (part INTEGER PRIMARY KEY, through INTEGER NOT NULL) STRICT;
    CREATE TABLE outbox (id INTEGER PRIMARY KEY AUTOINCREMENT, part INTEGER NOT NULL, key TEXT NOT NULL, data BLOB NOT NULL) STRICT;
"""
_PUT_TOTAL: Final = "INSERT INTO total VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value"
_PUT_PROGRESS: Final = "INSERT INTO progress VALUES (?, ?) ON CONFLICT (part) DO UPDATE SET through = excluded.through"
_decode_emitted: Final = msgspec.json.Decoder(list[OrderTotalled]).decode
_decode_number: Final = msgspec.json.Decoder(int).decode


@contextmanager
def _updates(setting: Setting) -> Generator[Sides]:
    count = 1_000 if setting.is_quick else 30_000
    folder = setting.backlogs.of(count, whose="-updates")
    yield Sides(partial(_consume, folder, count), partial(_by_hand, folder, count))


# ---- ours ----


def _consume(folder: Path, count: int) -> Sequence[float]:
    """Return events per second, from the first handler call until the last emitted event is in the log, of an app with a new store."""
    with tempfile.TemporaryDirectory(dir=folder) as store_folder:
        settings = replace(settings_in(folder), store_url=f"sqlite:{store_folder}/app.db", accept_new_store=True)
        return (run_as_service(_run_app(settings, count)),)


async def _run_app(settings: Settings, count: int) -> float:
    app = App("updater", delivery=Delivery(start="beginning"))
    sums = app.state("totals/1", int)
    first_s = 0.0

    @app.on(OrderPlaced)
    async def handle(order: OrderPlaced, tx: Tx) -> OrderTotalled:  # pyright: ignore[reportUnusedFunction] the app calls it
        nonlocal first_s
        first_s = first_s or time.perf_counter()
        total = await tx.get(sums, order.customer_id, 0) + order.total_cents
        tx.put(sums, order.customer_id, total)
        return totalled(order, total)

    async with _all_in_log(settings, count) as are_there:
        await run_until(are_there, app, settings)
        last_s = time.perf_counter()
    await check_progress(settings, count, app="updater")
    return count / (last_s - first_s)


@asynccontextmanager
async def _all_in_log(settings: Settings, count: int) -> AsyncGenerator[asyncio.Event]:
    """Lend an event that is set once so many more emitted events are in the log."""
    are_there = asyncio.Event()
    log = await open_log(settings, clock=SystemClock())
    try:
        await log.ensure_topic(totals.spec())
        reader = log.reader((await log.head(totals.name)).offsets)

        async def watch() -> None:
            left = count
            while left > 0:
                left -= sum([len(chunk) for chunk in (await reader.next()).chunks])
            are_there.set()

        watching = asyncio.ensure_future(watch())
        try:
            yield are_there
        finally:
            watching.cancel()
            await asyncio.wait([watching])
            reader.close()
    finally:
        await log.aclose()


# ---- by hand ----


def _by_hand(folder: Path, count: int) -> Sequence[float]:
    """Return events per second of the same work with three files of its own for state, outbox and progress, and for the emitted events."""
    with (
        tempfile.TemporaryDirectory(dir=folder) as own_folder,
        closing(apsw.Connection(os.fspath(folder / "log.db"))) as source,
        closing(by_hand.open_file(Path(own_folder) / "store.db")) as store,
        closing(by_hand.open_file(Path(own_folder) / "emitted.db")) as log,
    ):
        store.execute(_TABLES).fetchall()
        sender = _Sender(store, log)
        started_s = time.perf_counter()
        work = _records(source)
        while group := list(islice(work, _GROUP)):
            _apply(store, group)
            sender.send()
        taken_s = time.perf_counter() - started_s
    if sender.sent != count:
        raise RuntimeError(f"expected {count} emitted events in the log, found {sender.sent}")
    return (count / taken_s,)


def _records(source: apsw.Connection) -> Iterator[tuple[int, int, OrderPlaced]]:
    """Yield partition, offset and event of each record."""
    query = "SELECT part, first, body FROM chunk JOIN topic ON topic.id = chunk.topic WHERE topic.name = ? ORDER BY chunk.id"
    for part, first, body in source.execute(query, (orders.name,)):
        _, events = by_hand.events_of(body)
        for offset, event in enumerate(events, first):
            yield part, offset, event


def _apply(store: apsw.Connection, group: Sequence[tuple[int, int, OrderPlaced]]) -> None:
    """Handle a group in one transaction: state, outbox, progress."""
    emitted: list[OrderTotalled] = []
    through: dict[int, int] = {}
    store.execute("BEGIN IMMEDIATE")
    for part, offset, order in group:
        found: list[tuple[bytes]] = rows_of(store, "SELECT value FROM total WHERE key = ?", (order.customer_id,))
        total = (_decode_number(found[0][0]) if found else 0) + order.total_cents
        store.execute(_PUT_TOTAL, (order.customer_id, msgspec.json.encode(total)))
        emitted.append(totalled(order, total))
        through[part] = offset
    datas = by_hand.validated_by(_decode_emitted, emitted)
    store.executemany(
        "INSERT INTO outbox (part, key, data) VALUES (?, ?, ?)",
        [
            (partition_of(one.customer_id, by_hand.PARTITIONS), one.customer_id, data)
            for one, data in zip(emitted, datas, strict=True)
        ],
    )
    store.executemany(_PUT_PROGRESS, list(through.items()))
    store.execute("COMMIT")


class _Sender:
    """Moves the outbox into the log: read, appended, and deleted in a transaction of its own."""

    def __init__(self, store: apsw.Connection, log: apsw.Connection) -> None:
        self.sent = 0
        self._store = store
        self._log = log
        self._commits = 0
        self._nexts = [0] * by_hand.PARTITIONS

    def send(self) -> None:
        """Send what is there."""
        rows: list[tuple[int, int, str, bytes]] = rows_of(
            self._store, "SELECT id, part, key, data FROM outbox ORDER BY id LIMIT ?", (_SENT_AT_ONCE,)
        )
        datas: list[list[bytes]] = [[] for _ in range(by_hand.PARTITIONS)]
        keys: list[list[str]] = [[] for _ in range(by_hand.PARTITIONS)]
        for _, part, key, data in rows:
            datas[part].append(data)
            keys[part].append(key)
        self._commits += 1
        now_us = time.time_ns() // 1000
        by_hand.insert_chunks(self._log, self._commits, datas, keys, self._nexts, now_us, type_="bench.order_totalled/1")
        self._store.execute("DELETE FROM outbox WHERE id <= ?", (rows[-1][0],))
        self.sent += len(rows)


UPDATES: Final = Benchmark(
    name="consume-state",
    rows=[Row("consume-state", "/s", target=0.5)],
    ours_is="an app whose handler reads and puts one row of state and returns an event; timed from the first call until all of these are in the log",
    reference_is="the same by hand in apsw: a transaction per 256 events for state, outbox and progress, another that sends the outbox to a log",
    prepare=_updates,
)
