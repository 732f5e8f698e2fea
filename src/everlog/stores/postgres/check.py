"""Checking a store: what the server's own checks do not see."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Final, cast

import msgspec

from everlog.drivers.postgres.database import Connection
from everlog.position import Offset
from everlog.record import NewRecord, StoredRecord
from everlog.store import Attempt, Emitted
from everlog.stores.postgres.rows import rows_of

_PACKED: Final = (
    ("held", "record", StoredRecord),
    ("skipped", "record", StoredRecord),
    ("outbox", "record", NewRecord),
    ("staged", "record", NewRecord),
    ("timer", "emitted", Emitted),
    ("attempt", "attempt", Attempt),
)
_HOLDING: Final = """
    SELECT name, coalesce(c.records, 0), coalesce(c.bytes, 0), coalesce(h.records, 0), coalesce(h.bytes, 0)
    FROM (SELECT subscription AS name FROM holding UNION SELECT subscription FROM held) AS n
    LEFT JOIN holding AS c ON c.subscription = n.name
    LEFT JOIN (
        SELECT subscription, count(*) AS records, sum(octet_length(record)) AS bytes FROM held GROUP BY subscription
    ) AS h ON h.subscription = n.name
    WHERE (coalesce(c.records, 0), coalesce(c.bytes, 0)) <> (coalesce(h.records, 0), coalesce(h.bytes, 0))
"""
_NUMBERS: Final = """
    SELECT o.id, o.topic, o.partition, o.sequence, i.highest FROM outbox AS o LEFT JOIN issued AS i USING (topic, partition)
    WHERE o.sequence > coalesce(i.highest, -1)
"""


async def problems(connection: Connection) -> list[str]:
    """Return what is wrong with the store, a line each; nothing for a sound one."""
    found: list[str] = []
    for part in (_records, _state, _holding, _numbers, _progress):
        found.extend([line async for line in part(connection)])
    return found


async def _records(connection: Connection) -> AsyncIterator[str]:
    for table, column, kind in _PACKED:
        decoder = msgspec.msgpack.Decoder(kind)
        bodies = await rows_of(connection, cast("Any", f"SELECT {column} FROM {table}"))
        for number, (body,) in enumerate(bodies, start=1):
            try:
                decoder.decode(body)
            except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                yield f"{table}: the {column} in row {number} cannot be read ({error})"


async def _state(connection: Connection) -> AsyncIterator[str]:
    for state, key in await rows_of(connection, "SELECT state, key FROM state WHERE position('\\x00'::bytea IN value) > 0"):
        yield f"state: {key} of {state!r} holds zeros where JSON was written"


async def _holding(connection: Connection) -> AsyncIterator[str]:
    """Yield where what is counted of held records is not what is held: the bound on them would be another one."""
    for name, counted, counted_bytes, records, size in await rows_of(connection, _HOLDING):
        yield f"holding: {counted} records of {counted_bytes} bytes are counted of {name!r}, and {records} of {size} bytes are held"


async def _numbers(connection: Connection) -> AsyncIterator[str]:
    for row, topic, partition, sequence, highest in await rows_of(connection, _NUMBERS):
        yield f"outbox: row {row} has number {sequence} of {topic}/{partition}, where numbers up to {highest} were given"


async def _progress(connection: Connection) -> AsyncIterator[str]:
    rows = await rows_of(connection, "SELECT subscription, topic, partition, through, unfinished FROM progress")
    for name, topic, partition, through, body in rows:
        where = f"progress of {name!r} in {topic}/{partition}"
        try:
            unfinished = msgspec.msgpack.decode(body, type=list[Offset])
        except msgspec.MsgspecError as error:
            yield f"{where}: the unfinished offsets cannot be read ({error})"
            continue
        if unfinished != sorted(set(unfinished)) or (unfinished and unfinished[-1] > through):
            yield f"{where}: the unfinished offsets are out of order or above {through}"
