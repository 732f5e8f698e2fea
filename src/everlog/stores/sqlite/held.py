"""Held records: the queues of keys whose turn has not come, and what a command line asks to do with them.

A key's queue is its rows by `id`. Only the first one is ever due; `next_attempt_us` of it says when, `NULL` that the key is parked. A row
that waits behind another has none either, and gets its turn by becoming the first: that one is due at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal

import apsw
import msgspec

from everlog.drivers.sqlite.rows import first_of, rows_of
from everlog.record import StoredRecord
from everlog.store import Cause, Held, HeldKey, Lease, ParkedKey, Request, Skipped, Slot
from everlog.stores.sqlite.leases import check

_COLUMNS: Final = "id, subscription, slot, key, record, cause, attempts, error, trace, next_attempt_us, held_at_us"
_FIRST_OF_ITS_KEY: Final = "NOT EXISTS (SELECT 1 FROM held AS b WHERE b.subscription = h.subscription AND b.slot = h.slot AND b.key = h.key AND b.id < h.id)"
PARKED: Final = "h.next_attempt_us IS NULL AND h.cause <> 'behind'"
"""What makes a key parked, said of its first row."""

_decode: Final = msgspec.msgpack.Decoder(StoredRecord).decode


def queue(connection: apsw.Connection, slot: Slot, key: str, after: int, limit: int) -> Sequence[Held]:
    """Return the first rows of a key behind the id `after`."""
    sql = f"SELECT {_COLUMNS} FROM held WHERE subscription = ? AND slot = ? AND key = ? AND id > ? ORDER BY id LIMIT ?"
    return [_held(row) for row in rows_of(connection, sql, (*slot, key, after, limit))]


def keys(connection: apsw.Connection, slot: Slot, after: str | None, limit: int) -> Sequence[HeldKey]:
    """Return the keys of a slot that have a queue, by key, from the one behind `after`; ``None`` starts with the first."""
    # SQLite takes the other columns from the row that has the min(): https://sqlite.org/lang_select.html#bareagg
    rows = rows_of(
        connection,
        "SELECT key, count(*), min(id), next_attempt_us, cause FROM held "
        f"WHERE subscription = ? AND slot = ? AND key {'>=' if after is None else '>'} ? GROUP BY key ORDER BY key LIMIT ?",
        (*slot, after or "", limit),
    )
    return [
        HeldKey(key, count, 0 if at is None and cause == "behind" else at, at is None and cause == "unreadable")
        for key, count, _, at, cause in rows
    ]


def first_of_each(
    connection: apsw.Connection,
    subscription: str | None,
    after: int,
    limit: int,
    *,
    key: str | None,
    type_name: str | None,
    error: str | None,
) -> Sequence[ParkedKey]:
    """Return the keys that have a queue, by the id of its first row, from the one behind `after`."""
    rows = rows_of(
        connection,
        f"SELECT {_COLUMNS}, "
        "(SELECT count(*) FROM held AS c WHERE c.subscription = h.subscription AND c.slot = h.slot AND c.key = h.key) "
        "FROM held AS h WHERE id > ?1 AND (?2 IS NULL OR subscription = ?2) AND (?4 IS NULL OR key = ?4) "
        f"AND (?5 IS NULL OR type = ?5) AND (?6 IS NULL OR instr(error, ?6) > 0) AND {_FIRST_OF_ITS_KEY} ORDER BY id LIMIT ?3",
        (after, subscription, limit, key, type_name, error),
    )
    return [ParkedKey(row[1], row[3], row[-1], _held(row[:-1])) for row in rows]


def counts(connection: apsw.Connection, subscription: str) -> tuple[int, int, int, int]:
    """Return how many keys are blocked, how many are parked, how many records are held, and their bytes."""
    parked, firsts = rows_of(
        connection,
        f"SELECT coalesce(sum({PARKED}), 0), count(*) FROM held AS h WHERE subscription = ? AND {_FIRST_OF_ITS_KEY}",
        (subscription,),
    )[0]
    records, size = next(
        iter(rows_of(connection, "SELECT records, bytes FROM holding WHERE subscription = ?", (subscription,))), (0, 0)
    )
    return firsts - parked, parked, records, size


def request(
    connection: apsw.Connection,
    subscription: str,
    key: str | None,
    action: Literal["redrive", "skip"],
    *,
    type_name: str | None,
    error: str | None,
    among: Sequence[int] | None,
) -> int:
    """File what is asked for; what is asked for already is not filed twice. Returns for how many keys."""
    which = "h.key = ?2" if key is not None else f"?2 IS NULL AND {PARKED}"
    found = rows_of(
        connection,
        f"SELECT slot, key, id FROM held AS h WHERE subscription = ?1 AND {which} AND (?3 IS NULL OR type = ?3) "
        f"AND (?4 IS NULL OR instr(error, ?4) > 0) AND (?5 IS NULL OR id IN (SELECT value FROM json_each(?5))) "
        f"AND {_FIRST_OF_ITS_KEY} ORDER BY id",
        (subscription, key, type_name, error, None if among is None else msgspec.json.encode(among).decode()),
    )
    connection.executemany(
        "INSERT INTO request (subscription, slot, key, action, held_id) VALUES (?, ?, ?, ?, ?) "
        "ON CONFLICT (subscription, slot, key, action) DO UPDATE SET held_id = excluded.held_id",
        [(subscription, slot, held_key, action, first) for slot, held_key, first in found],
    )
    return len(found)


def requests(connection: apsw.Connection, slots: Sequence[Slot]) -> Sequence[Request]:
    """Return what is asked of these slots, by id."""
    found: list[Request] = []
    for slot in slots:
        rows = rows_of(connection, "SELECT id, key, action FROM request WHERE subscription = ? AND slot = ? ORDER BY id", slot)
        found.extend(Request(number, slot, key, action) for number, key, action in rows)
    return sorted(found)


def answer(connection: apsw.Connection, lease: Lease, asked: Request, now_us: int) -> None:
    """Carry out `Store.answer` inside the transaction of its group. What was answered already is passed over."""
    check(connection, lease, asked.slot)
    wanted = first_of(connection, "DELETE FROM request WHERE id = ? RETURNING held_id", (asked.id,))
    first = _first(connection, asked)
    if wanted is None or first is None:
        return
    if asked.action == "redrive":
        connection.execute("UPDATE held SET attempts = 0, next_attempt_us = ? WHERE id = ?", (now_us, first))
    elif first == wanted:  # else the record that somebody wanted gone is gone, and this one has not failed
        connection.execute(
            "INSERT INTO skipped (subscription, key, record, error, skipped_at_us) "
            "SELECT subscription, key, record, error, ? FROM held WHERE id = ?",
            (now_us, first),
        )
        connection.execute("DELETE FROM held WHERE id = ?", (first,))
        connection.execute("UPDATE held SET next_attempt_us = ? WHERE id = ?", (now_us, _first(connection, asked)))


def skipped(connection: apsw.Connection, subscription: str | None, after: int, limit: int) -> Sequence[Skipped]:
    """Return what was passed over, by id, from the one behind `after`."""
    rows = rows_of(
        connection,
        "SELECT id, subscription, key, record, error, skipped_at_us FROM skipped "
        "WHERE id > ?1 AND (?2 IS NULL OR subscription = ?2) ORDER BY id LIMIT ?3",
        (after, subscription, limit),
    )
    return [Skipped(number, name, key, _decode(record), error, at_us) for number, name, key, record, error, at_us in rows]


def forget_skipped(connection: apsw.Connection, subscription: str | None, through: int) -> int:
    """Remove what was passed over from the list; return how many."""
    connection.execute("DELETE FROM skipped WHERE id <= ?1 AND (?2 IS NULL OR subscription = ?2)", (through, subscription))
    return connection.changes()


def _first(connection: apsw.Connection, asked: Request) -> int | None:
    sql = "SELECT min(id) FROM held WHERE subscription = ? AND slot = ? AND key = ?"
    first: int | None = first_of(connection, sql, (*asked.slot, asked.key))
    return first


def _held(row: Sequence[Any]) -> Held:
    number, subscription, slot, key, record, cause, attempts, error, trace, next_attempt_us, held_at_us = row
    return Held(
        number, subscription, slot, key, _decode(record), Cause(cause), attempts, error, trace, next_attempt_us, held_at_us
    )
