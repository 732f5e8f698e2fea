"""The outbox: events on their way to the log, in the order of the commits, and the numbers that the relay gives them.

Who changes the store has the turn, so the rows of one transaction follow those of all that were committed before. A transaction of the
user's own may last: what it publishes is staged, in any order, and taken into the outbox under the turn once it is committed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from everlog.drivers.postgres.database import Connection
from everlog.drivers.postgres.guest import Row
from everlog.position import TopicPartition
from everlog.record import NewRecord
from everlog.store import RELAY, Emitted, Lease, OutboxRow
from everlog.stores.postgres.leases import check
from everlog.stores.postgres.rows import columns, first_of, key_bytes, rows_of, run

_COLUMNS: Final = "id, topic, partition, record, sequence, error"
# Both ask the index of refused rows, which is empty but for an alarm. A null key is equal to nothing: it waits behind nobody.
_BEHIND: Final = (
    "EXISTS (SELECT 1 FROM outbox AS r WHERE r.topic = o.topic AND r.key = o.key AND r.error IS NOT NULL AND r.id < o.id)"
)
_WAITING: Final = f"SELECT {_COLUMNS} FROM outbox AS o WHERE id > %s AND error IS NULL AND NOT {_BEHIND} ORDER BY id LIMIT %s"
_EMIT: Final = """
    INSERT INTO outbox (topic, partition, key, record)
    SELECT topic, partition, key, record FROM unnest(%s::text[], %s::integer[], %s::bytea[], %s::bytea[])
    WITH ORDINALITY AS e (topic, partition, key, record, place) ORDER BY place
"""
_TAKE_STAGED: Final = """
    WITH taken AS (DELETE FROM staged RETURNING id, topic, partition, key, record)
    INSERT INTO outbox (topic, partition, key, record) SELECT topic, partition, key, record FROM taken ORDER BY id
"""
# A row that has a number keeps it; the others get those behind the highest of their partition, in the order of their ids.
_NUMBER: Final = """
    UPDATE outbox SET sequence = n.sequence FROM (
        SELECT o.id, coalesce(i.highest, -1) + row_number() OVER (PARTITION BY o.topic, o.partition ORDER BY o.id) AS sequence
        FROM outbox AS o LEFT JOIN issued AS i ON i.topic = o.topic AND i.partition = o.partition
        WHERE o.id = ANY(%s) AND o.sequence IS NULL
    ) AS n WHERE outbox.id = n.id
"""
_ISSUE: Final = """
    INSERT INTO issued SELECT topic, partition, max(sequence) FROM outbox WHERE id = ANY(%s) GROUP BY topic, partition
    ON CONFLICT (topic, partition) DO UPDATE SET highest = greatest(issued.highest, excluded.highest)
"""
# The rows that wait are numbered without a gap, so what is below the lowest of them, and above the last that is still there, is gone.
_ACKNOWLEDGED: Final = """
    SELECT i.topic, i.partition, coalesce((
        SELECT max(g.number) FROM generate_series(greatest(i.highest - w.waiting, 0), i.highest) AS g (number)
        WHERE NOT EXISTS (
            SELECT 1 FROM outbox AS o WHERE o.topic = i.topic AND o.partition = i.partition AND o.sequence = g.number
        )
    ), -1)
    FROM issued AS i CROSS JOIN LATERAL (
        SELECT count(*) AS waiting FROM outbox AS o
        WHERE o.topic = i.topic AND o.partition = i.partition AND o.sequence IS NOT NULL
    ) AS w
"""

_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(NewRecord).decode


async def waiting(connection: Connection, after: int, limit: int) -> Sequence[OutboxRow]:
    """Return rows behind the id `after`, without those that were refused and those behind them."""
    return [_outbox_row(row) for row in await rows_of(connection, _WAITING, (after, limit))]


def staged_rows(emits: Sequence[Emitted]) -> list[Row]:
    """Return events as rows for a transaction of the user's own."""
    return [
        Row(one.topic, one.record.partition, None if one.record.key is None else key_bytes(one.record.key), _encode(one.record))
        for one in emits
    ]


async def has_staged(connection: Connection) -> bool:
    """Tell whether a transaction of the user's own has left something to take."""
    return await first_of(connection, "SELECT 1 FROM staged LIMIT 1") is not None


async def take_staged(connection: Connection) -> int:
    """Take what is staged into the outbox; return how many events that were."""
    return await run(connection, _TAKE_STAGED)


async def emit(connection: Connection, emits: Sequence[Emitted]) -> None:
    """Put events into the outbox; the relay numbers them."""
    if emits:
        await run(connection, _EMIT, columns(staged_rows(emits), 4))


async def number(connection: Connection, lease: Lease, rows: Sequence[int], done: Sequence[int]) -> Sequence[OutboxRow]:
    """Carry out `Store.number` inside its transaction."""
    await check(connection, lease, RELAY)
    rows = list(rows)
    if done:
        await run(connection, "DELETE FROM outbox WHERE id = ANY(%s)", (list(done),))
    await _drop_sent(connection, rows)
    if not rows:
        return []
    if await run(connection, _NUMBER, (rows,)):
        await run(connection, _ISSUE, (rows,))
    found = await rows_of(connection, f"SELECT {_COLUMNS} FROM outbox WHERE id = ANY(%s) ORDER BY id", (rows,))
    return [_outbox_row(row) for row in found]


async def _drop_sent(connection: Connection, rows: Sequence[int]) -> None:
    """Remove the rows whose events the log holds from a former incarnation. Each event is met once."""
    if await first_of(connection, "SELECT 1 FROM sent_before LIMIT 1") is None:  # as nearly always
        return
    new = f"SELECT {_COLUMNS} FROM outbox WHERE id = ANY(%s) AND sequence IS NULL ORDER BY id"
    for row in [_outbox_row(found) for found in await rows_of(connection, new, (list(rows),))]:
        place = (row.emitted.topic, row.emitted.record.id)
        if await run(connection, "DELETE FROM sent_before WHERE topic = %s AND id = %s", place):
            await run(connection, "DELETE FROM outbox WHERE id = %s", (row.id,))


async def refuse(connection: Connection, lease: Lease, row: int, error: str) -> None:
    """Carry out `Store.refuse` inside its transaction."""
    await check(connection, lease, RELAY)
    await run(connection, "UPDATE outbox SET error = %s WHERE id = %s", (error, row))


async def issued(connection: Connection) -> Mapping[TopicPartition, int]:
    """Return the highest number given in each topic partition."""
    rows = await rows_of(connection, "SELECT topic, partition, highest FROM issued")
    return {TopicPartition(topic, partition): highest for topic, partition, highest in rows}


async def acknowledged(connection: Connection) -> Mapping[TopicPartition, int]:
    """Return the highest number in each topic partition that was given and whose row is gone."""
    rows = await rows_of(connection, _ACKNOWLEDGED)
    return {TopicPartition(topic, partition): number for topic, partition, number in rows if number >= 0}


async def start_anew(connection: Connection, sent: Sequence[tuple[str, str]]) -> None:
    """Take all numbers back, and remember what is not to be sent."""
    await run(connection, "UPDATE outbox SET sequence = NULL")
    await run(connection, "DELETE FROM issued")
    await run(connection, "DELETE FROM sent_before")
    await run(
        connection,
        "INSERT INTO sent_before SELECT * FROM unnest(%s::text[], %s::text[]) ON CONFLICT DO NOTHING",
        columns(sent, 2),
    )


async def sent_before(connection: Connection) -> Sequence[tuple[str, str]]:
    """Return topic and id of what is not to be sent."""
    return [(topic, id_) for topic, id_ in await rows_of(connection, "SELECT topic, id FROM sent_before")]


async def counts(connection: Connection) -> tuple[int, int]:
    """Return how many rows there are, staged ones included, and how many of them were refused or are behind one that was."""
    total: int = await first_of(connection, "SELECT (SELECT count(*) FROM outbox) + (SELECT count(*) FROM staged)")
    if await first_of(connection, "SELECT 1 FROM outbox WHERE error IS NOT NULL LIMIT 1") is None:
        return total, 0
    parked: int = await first_of(connection, f"SELECT count(*) FROM outbox AS o WHERE error IS NOT NULL OR {_BEHIND}")
    return total, parked


def _outbox_row(row: Sequence[Any]) -> OutboxRow:
    row_id, topic, _, record, sequence, error = row
    return OutboxRow(row_id, Emitted(topic, _decode(record)), sequence, error)
