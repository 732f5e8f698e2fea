"""What a log and a store of the shop hold, read as their users read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from tests.faults.power_shop import name_of
from tests.processes.shop import Ordered, orders, results
from tests.subscriptions.chaos import read_rows

from everlog.contracts.contract import contract_of
from everlog.drivers.sqlite.database import Database
from everlog.drivers.sqlite.rows import rows_of
from everlog.log import Log
from everlog.position import BEGINNING, Offset, TopicPartition
from everlog.record import StoredRecord
from everlog.store import Slot, Store


@dataclass
class Found:
    """What log and store hold."""

    logged: Mapping[TopicPartition, Sequence[tuple[Offset, str, str]]]
    """Offset, event and key of what was published."""
    first: Mapping[TopicPartition, Offset]
    """Behind which offset it begins; -1 where nothing was deleted."""
    emitted: list[StoredRecord]
    journal: Mapping[str, Sequence[str]]
    """By key: the events whose effect shows, in the order of their commits."""
    held: set[str]
    rows: Mapping[str, Mapping[str, Any]]


async def read(log: Log, store: Store) -> Found:
    """Read everything."""
    topics = {spec.name for spec in await log.topics()}
    logged: dict[TopicPartition, list[tuple[Offset, str, str]]] = {}
    first: Mapping[TopicPartition, Offset] = {}
    if orders.name in topics:
        first = (await log.first(orders.name)).offsets
        for where in first:
            logged[where] = []
        for record in await _records(log, orders.name, first):
            event = contract_of(Ordered).decode(record.data)
            logged[TopicPartition(record.topic, record.partition)].append((record.offset, name_of(event.by, event.n), event.key))
    emitted = await _records(log, results.name, (await log.first(results.name)).offsets) if results.name in topics else []
    rows: dict[str, Mapping[str, Any]] = {}
    status = await store.status()
    for name in ("journal/1", "totals/1", "shared/1"):
        if not status.subscriptions:  # nothing was registered yet
            rows[name] = {}
            continue
        found = {key: row.value for key, row in await store.scan(name, "[]") if row.value is not None}
        rows[name] = read_rows(found)
    journal = {key: [name_of(by, n) for by, n in value] for key, value in rows["journal/1"].items()}
    held: set[str] = set()
    for subscription, slot, key in rows_in(store, "SELECT DISTINCT subscription, slot, key FROM held"):
        for one in await store.held(Slot(subscription, slot), key, limit=1_000):
            event = contract_of(Ordered).decode(one.record.data)
            held.add(name_of(event.by, event.n))
    return Found(logged, first, emitted, journal, held, rows)


def rows_in(port: Log | Store, query: str) -> list[Any]:
    """Ask the file itself."""
    database: Database[Any, Any] = cast("Any", port)._database
    with database.reading() as connection:
        return rows_of(connection, query)


async def _records(log: Log, topic: str, first: Mapping[TopicPartition, Offset]) -> list[StoredRecord]:
    head = (await log.head(topic)).offsets
    found: list[StoredRecord] = []
    for where, last in head.items():
        through = first.get(where, BEGINNING)
        reader = log.reader({where: through})
        while through < last:
            batch = await reader.next()
            for chunk in batch.chunks:
                found.extend(chunk.record(index) for index in range(chunk.start, chunk.length))
            through = batch.through[where]
        reader.close()
    return found


async def lines_in(store: Store) -> list[tuple[str, str]]:
    """Return key and event of the rows of the app's own table, in the order in which they came."""
    if not rows_in(store, "SELECT 1 FROM sqlite_schema WHERE name = 'lines'"):
        return []
    return [(key, name_of(by, n)) for key, by, n in rows_in(store, "SELECT key, sender, n FROM lines ORDER BY place")]
