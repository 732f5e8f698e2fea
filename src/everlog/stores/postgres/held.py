"""Held records: the queues of keys whose turn has not come, and what a command line asks to do with them.

A key's queue is its rows by `id`. Only the first one is ever due; `next_attempt_us` of it says when, `NULL` that the key is parked. A row
that waits behind another has none either, and gets its turn by becoming the first: that one is due at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal

import msgspec

from everlog.drivers.postgres.database import Connection
from everlog.record import StoredRecord
from everlog.store import Cause, Held, HeldKey, Lease, ParkedKey, Request, Skipped, Slot
from everlog.stores.postgres.leases import check
from everlog.stores.postgres.rows import columns, first_of, key_bytes, key_text, rows_of, run

_COLUMNS: Final = "id, subscription, slot, key, record, cause, attempts, error, trace, next_attempt_us, held_at_us"
_FIRST_OF_ITS_KEY: Final = "NOT EXISTS (SELECT 1 FROM held AS b WHERE b.subscription = h.subscription AND b.slot = h.slot AND b.key = h.key AND b.id < h.id)"
PARKED: Final = "h.next_attempt_us IS NULL AND h.cause <> 'behind'"
"""What makes a key parked, said of its first row."""
_QUEUE: Final = f"SELECT {_COLUMNS} FROM held WHERE subscription = %s AND slot = %s AND key = %s AND id > %s ORDER BY id LIMIT %s"
_KEYS: Final = """
    SELECT k.key, k.records, h.next_attempt_us, h.cause FROM (
        SELECT key, count(*) AS records, min(id) AS first FROM held
        WHERE subscription = %(subscription)s AND slot = %(slot)s AND (%(after)s::bytea IS NULL OR key > %(after)s)
        GROUP BY key ORDER BY key LIMIT %(limit)s
    ) AS k JOIN held AS h ON h.id = k.first ORDER BY k.key
"""
_FIRST_OF_EACH: Final = f"""
    SELECT {_COLUMNS},
        (SELECT count(*) FROM held AS c WHERE c.subscription = h.subscription AND c.slot = h.slot AND c.key = h.key)
    FROM held AS h WHERE id > %(after)s AND (%(subscription)s::text IS NULL OR subscription = %(subscription)s)
    AND (%(key)s::bytea IS NULL OR key = %(key)s) AND (%(type)s::text IS NULL OR type = %(type)s)
    AND (%(error)s::text IS NULL OR strpos(error, %(error)s) > 0) AND {_FIRST_OF_ITS_KEY} ORDER BY id LIMIT %(limit)s
"""
_ASK: Final = f"""
    INSERT INTO request (subscription, slot, key, action, held_id)
    SELECT subscription, slot, key, %(action)s, id FROM held AS h WHERE subscription = %(subscription)s
    AND (h.key = %(key)s OR %(key)s::bytea IS NULL AND {PARKED}) AND (%(type)s::text IS NULL OR type = %(type)s)
    AND (%(error)s::text IS NULL OR strpos(error, %(error)s) > 0) AND (%(among)s::bigint[] IS NULL OR id = ANY(%(among)s))
    AND {_FIRST_OF_ITS_KEY} ORDER BY id
    ON CONFLICT (subscription, slot, key, action) DO UPDATE SET held_id = excluded.held_id
"""
_REQUESTS: Final = """
    SELECT id, subscription, slot, key, action FROM request
    WHERE (subscription, slot) IN (SELECT * FROM unnest(%s::text[], %s::integer[])) ORDER BY id
"""
_FIRST: Final = "SELECT min(id) FROM held WHERE subscription = %s AND slot = %s AND key = %s"
_SKIP: Final = """
    INSERT INTO skipped (subscription, key, record, error, skipped_at_us)
    SELECT subscription, key, record, error, now_us() FROM held WHERE id = %s
"""
_COUNTS: Final = f"""
    SELECT subscription, count(*) FILTER (WHERE {PARKED}), count(*) FROM held AS h WHERE {_FIRST_OF_ITS_KEY} GROUP BY subscription
"""

_decode: Final = msgspec.msgpack.Decoder(StoredRecord).decode


async def queue(connection: Connection, slot: Slot, key: str, after: int, limit: int) -> Sequence[Held]:
    """Return the first rows of a key behind the id `after`."""
    return [_held(row) for row in await rows_of(connection, _QUEUE, (*slot, key_bytes(key), after, limit))]


async def keys(connection: Connection, slot: Slot, after: str | None, limit: int | None) -> Sequence[HeldKey]:
    """Return the keys of a slot that have a queue, by key, from the one behind `after`; ``None`` starts with the first, or has no limit."""
    asked = {
        "subscription": slot.subscription,
        "slot": slot.number,
        "after": None if after is None else key_bytes(after),
        "limit": limit,
    }
    rows = await (await connection.execute(_KEYS, asked, binary=True)).fetchall()
    return [
        HeldKey(key_text(key), count, 0 if at is None and cause == "behind" else at, at is None and cause == "unreadable")
        for key, count, at, cause in rows
    ]


async def first_of_each(
    connection: Connection,
    subscription: str | None,
    after: int,
    limit: int,
    *,
    key: str | None,
    type_name: str | None,
    error: str | None,
) -> Sequence[ParkedKey]:
    """Return the keys that have a queue, by the id of its first row, from the one behind `after`."""
    asked = {
        "subscription": subscription,
        "after": after,
        "limit": limit,
        "key": None if key is None else key_bytes(key),
        "type": type_name,
        "error": error,
    }
    rows = await (await connection.execute(_FIRST_OF_EACH, asked, binary=True)).fetchall()
    return [ParkedKey(row[1], key_text(row[3]), row[-1], _held(row[:-1])) for row in rows]


async def counts(connection: Connection) -> dict[str, tuple[int, int]]:
    """Return how many keys are blocked, and how many are parked, by subscription."""
    return {name: (firsts - parked, parked) for name, parked, firsts in await rows_of(connection, _COUNTS)}


async def request(
    connection: Connection,
    subscription: str,
    key: str | None,
    action: Literal["redrive", "skip"],
    *,
    type_name: str | None,
    error: str | None,
    among: Sequence[int] | None,
) -> int:
    """File what is asked for; what is asked for already is not filed twice. Returns for how many keys."""
    asked = {
        "subscription": subscription,
        "key": None if key is None else key_bytes(key),
        "action": action,
        "type": type_name,
        "error": error,
        "among": None if among is None else list(among),
    }
    return (await connection.execute(_ASK, asked)).rowcount


async def requests(connection: Connection, slots: Sequence[Slot]) -> Sequence[Request]:
    """Return what is asked of these slots, by id."""
    rows = await rows_of(connection, _REQUESTS, columns(slots, 2))
    return [Request(number, Slot(name, slot), key_text(key), action) for number, name, slot, key, action in rows]


async def answer(connection: Connection, lease: Lease, asked: Request) -> None:
    """Carry out `Store.answer` inside its transaction. What was answered already is passed over."""
    await check(connection, lease, asked.slot)
    wanted = await first_of(connection, "DELETE FROM request WHERE id = %s RETURNING held_id", (asked.id,))
    place = (*asked.slot, key_bytes(asked.key))
    first = await first_of(connection, _FIRST, place)
    if wanted is None or first is None:
        return
    if asked.action == "redrive":
        await run(connection, "UPDATE held SET attempts = 0, next_attempt_us = now_us() WHERE id = %s", (first,))
    elif first == wanted:  # else the record that somebody wanted gone is gone, and this one has not failed
        await run(connection, _SKIP, (first,))
        await run(connection, "DELETE FROM held WHERE id = %s", (first,))
        following = await first_of(connection, _FIRST, place)
        await run(connection, "UPDATE held SET next_attempt_us = now_us() WHERE id = %s", (following,))


async def skipped(connection: Connection, subscription: str | None, after: int, limit: int) -> Sequence[Skipped]:
    """Return what was passed over, by id, from the one behind `after`."""
    rows = await rows_of(
        connection,
        "SELECT id, subscription, key, record, error, skipped_at_us FROM skipped "
        "WHERE id > %s AND (%s::text IS NULL OR subscription = %s) ORDER BY id LIMIT %s",
        (after, subscription, subscription, limit),
    )
    return [
        Skipped(number, name, key_text(key), _decode(record), error, at_us) for number, name, key, record, error, at_us in rows
    ]


async def forget_skipped(connection: Connection, subscription: str | None, through: int) -> int:
    """Remove what was passed over from the list; return how many."""
    query = "DELETE FROM skipped WHERE id <= %s AND (%s::text IS NULL OR subscription = %s)"
    return await run(connection, query, (through, subscription, subscription))


def _held(row: Sequence[Any]) -> Held:
    number, subscription, slot, key, record, cause, attempts, error, trace, next_attempt_us, held_at_us = row
    return Held(
        number,
        subscription,
        slot,
        key_text(key),
        _decode(record),
        Cause(cause),
        attempts,
        error,
        trace,
        next_attempt_us,
        held_at_us,
    )
