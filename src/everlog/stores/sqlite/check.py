"""Checking a store: what SQLite can see, and what only we can."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import apsw
import msgspec

from everlog.position import Offset
from everlog.record import NewRecord, StoredRecord
from everlog.store import Attempt, Emitted


def problems(connection: apsw.Connection) -> Sequence[str]:
    """Return what is wrong with the store, a line each; nothing for a sound one."""
    return [
        *_pages(connection),
        *_records(connection),
        *_state(connection),
        *_holding(connection),
        *_numbers(connection),
        *_progress(connection),
    ]


def _pages(connection: apsw.Connection) -> Iterator[str]:
    for (line,) in connection.execute("PRAGMA integrity_check"):
        if line != "ok":
            yield f"SQLite: {line}"


_PACKED: Final = (
    ("held", "record", StoredRecord),
    ("skipped", "record", StoredRecord),
    ("outbox", "record", NewRecord),
    ("timer", "emitted", Emitted),
    ("attempt", "attempt", Attempt),
)


def _records(connection: apsw.Connection) -> Iterator[str]:
    for table, column, kind in _PACKED:
        decoder = msgspec.msgpack.Decoder(kind)
        for number, (body,) in enumerate(connection.execute(f"SELECT {column} FROM {table}"), start=1):
            try:
                decoder.decode(body)
            except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                yield f"{table}: the {column} in row {number} cannot be read ({error})"


def _state(connection: apsw.Connection) -> Iterator[str]:
    for state, key, value in connection.execute("SELECT state, key, value FROM state"):
        if 0 in value:
            yield f"state: {key} of {state!r} holds zeros where JSON was written"


def _holding(connection: apsw.Connection) -> Iterator[str]:
    """Yield where what is counted of held records is not what is held: the bound on them would be another one."""
    rows = connection.execute(
        "SELECT name, coalesce(c.records, 0), coalesce(c.bytes, 0), coalesce(h.records, 0), coalesce(h.bytes, 0) "
        "FROM (SELECT subscription AS name FROM holding UNION SELECT subscription FROM held) "
        "LEFT JOIN holding AS c ON c.subscription = name "
        "LEFT JOIN (SELECT subscription, count(*) AS records, sum(length(record)) AS bytes FROM held GROUP BY subscription) AS h "
        "ON h.subscription = name"
    )
    for name, counted, counted_bytes, records, size in rows:
        if (counted, counted_bytes) != (records, size):
            yield f"holding: {counted} records of {counted_bytes} bytes are counted of {name!r}, and {records} of {size} bytes are held"


def _numbers(connection: apsw.Connection) -> Iterator[str]:
    rows = connection.execute(
        "SELECT o.id, o.topic, o.partition, o.sequence, i.highest FROM outbox AS o LEFT JOIN issued AS i USING (topic, partition) "
        "WHERE o.sequence IS NOT NULL AND o.sequence > coalesce(i.highest, -1)"
    )
    for row, topic, partition, sequence, highest in rows:
        yield f"outbox: row {row} has number {sequence} of {topic}/{partition}, where numbers up to {highest} were given"


def _progress(connection: apsw.Connection) -> Iterator[str]:
    for name, topic, partition, through, body in connection.execute(
        "SELECT subscription, topic, partition, through, unfinished FROM progress"
    ):
        where = f"progress of {name!r} in {topic}/{partition}"
        try:
            unfinished = msgspec.msgpack.decode(body, type=list[Offset])
        except msgspec.MsgspecError as error:
            yield f"{where}: the unfinished offsets cannot be read ({error})"
            continue
        if unfinished != sorted(set(unfinished)) or (unfinished and unfinished[-1] > through):
            yield f"{where}: the unfinished offsets are out of order or above {through}"
