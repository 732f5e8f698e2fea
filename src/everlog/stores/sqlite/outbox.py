"""The outbox: events on their way to the log, in the order of the commits, and the numbers that the relay gives them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, cast

import apsw
import msgspec

from everlog.drivers.sqlite.rows import first_of, rows_of
from everlog.position import TopicPartition
from everlog.record import NewRecord
from everlog.store import RELAY, Emitted, Lease, OutboxRow
from everlog.stores.sqlite.leases import check
from everlog.stores.sqlite.many import Insert

_COLUMNS: Final = "id, topic, partition, record, sequence, error"
# Both ask the index of refused rows, which is empty but for an alarm. A null key is equal to nothing: it waits behind nobody.
_BEHIND: Final = (
    "EXISTS (SELECT 1 FROM outbox AS r WHERE r.topic = o.topic AND r.key = o.key AND r.error IS NOT NULL AND r.id < o.id)"
)

_EMIT: Final = Insert("INSERT INTO outbox (topic, partition, key, record)", 4)

_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(NewRecord).decode


def waiting(connection: apsw.Connection, after: int, limit: int) -> Sequence[OutboxRow]:
    """Return rows behind the id `after`, without those that were refused and those behind them."""
    rows = rows_of(
        connection,
        f"SELECT {_COLUMNS} FROM outbox AS o WHERE id > ? AND error IS NULL AND NOT {_BEHIND} ORDER BY id LIMIT ?",
        (after, limit),
    )
    return [_outbox_row(row) for row in rows]


def emit(connection: apsw.Connection, emits: Sequence[Emitted]) -> None:
    """Put events into the outbox; the relay numbers them."""
    _EMIT.write(
        connection,
        [(emitted.topic, emitted.record.partition, emitted.record.key, _encode(emitted.record)) for emitted in emits],
    )


def number(connection: apsw.Connection, lease: Lease, rows: Sequence[int], done: Sequence[int]) -> Sequence[OutboxRow]:
    """Carry out `Store.number` inside the transaction of its group."""
    check(connection, lease, RELAY)
    _remove(connection, done)
    _drop_sent(connection, rows)
    numbers = _Numbers(connection)
    found = [
        _outbox_row(row)
        for first, last in _ranges(rows)
        for row in rows_of(connection, f"SELECT {_COLUMNS} FROM outbox WHERE id BETWEEN ? AND ? ORDER BY id", (first, last))
    ]
    numbered = numbers.give(found)
    numbers.write()
    return numbered


class _Numbers:
    """The numbers of one transaction: consecutive in each partition, behind those given before."""

    def __init__(self, connection: apsw.Connection) -> None:
        self._connection = connection
        self._before = issued(connection)
        self._highest = dict(self._before)
        self._given: list[tuple[int, int]] = []

    def next(self, emitted: Emitted) -> int:
        """Return the number of the next event of a topic and partition."""
        where = TopicPartition(emitted.topic, emitted.record.partition)
        sequence = self._highest[where] = self._highest.get(where, -1) + 1
        return sequence

    def give(self, rows: Iterable[OutboxRow]) -> list[OutboxRow]:
        """Return rows of the outbox, by id, with their numbers. One that has a number keeps it."""
        numbered: list[OutboxRow] = []
        for row in rows:
            if row.sequence is None:
                row = OutboxRow(row.id, row.emitted, self.next(row.emitted), row.error)  # noqa: PLW2901
                self._given.append((cast("int", row.sequence), row.id))
            numbered.append(row)
        return numbered

    def write(self) -> None:
        """Store what was given."""
        self._connection.executemany("UPDATE outbox SET sequence = ? WHERE id = ?", self._given)
        self._connection.executemany(
            "INSERT INTO issued VALUES (?, ?, ?) ON CONFLICT (topic, partition) DO UPDATE SET highest = excluded.highest",
            [(*where, highest) for where, highest in self._highest.items() if self._before.get(where) != highest],
        )


def _remove(connection: apsw.Connection, rows: Sequence[int]) -> None:
    connection.executemany("DELETE FROM outbox WHERE id BETWEEN ? AND ?", _ranges(rows))


def _ranges(ids: Iterable[int]) -> list[tuple[int, int]]:
    """Return the first and the last of each unbroken series of ids, ascending: rows of one commit have such."""
    ranges: list[tuple[int, int]] = []
    first = last = -1
    for one in sorted(set(ids)):
        if one != last + 1:
            if first >= 0:
                ranges.append((first, last))
            first = one
        last = one
    if first >= 0:
        ranges.append((first, last))
    return ranges


def _drop_sent(connection: apsw.Connection, rows: Sequence[int]) -> None:
    """Remove the rows whose events the log holds from a former incarnation. Each event is met once."""
    if first_of(connection, "SELECT 1 FROM sent_before LIMIT 1") is None:  # as nearly always
        return
    for row_id in rows:
        for row in rows_of(connection, f"SELECT {_COLUMNS} FROM outbox WHERE id = ? AND sequence IS NULL", (row_id,)):
            emitted = _outbox_row(row).emitted
            place = (emitted.topic, emitted.record.id)
            if first_of(connection, "SELECT 1 FROM sent_before WHERE topic = ? AND id = ?", place) is not None:
                connection.execute("DELETE FROM sent_before WHERE topic = ? AND id = ?", place)
                connection.execute("DELETE FROM outbox WHERE id = ?", (row_id,))


def refuse(connection: apsw.Connection, lease: Lease, row: int, error: str) -> None:
    """Carry out `Store.refuse` inside the transaction of its group."""
    check(connection, lease, RELAY)
    connection.execute("UPDATE outbox SET error = ? WHERE id = ?", (error, row))


def issued(connection: apsw.Connection) -> Mapping[TopicPartition, int]:
    """Return the highest number given in each topic partition."""
    rows = rows_of(connection, "SELECT topic, partition, highest FROM issued")
    return {TopicPartition(topic, partition): highest for topic, partition, highest in rows}


def acknowledged(connection: apsw.Connection) -> Mapping[TopicPartition, int]:
    """Return the highest number in each topic partition that was given and whose row is gone."""
    found: dict[TopicPartition, int] = {}
    for where, highest in issued(connection).items():
        number = highest
        waiting_numbers = (
            "SELECT sequence FROM outbox WHERE topic = ? AND partition = ? AND sequence IS NOT NULL ORDER BY sequence DESC"
        )
        for (sequence,) in rows_of(connection, waiting_numbers, where):
            if sequence != number:
                break
            number -= 1
        if number >= 0:
            found[where] = number
    return found


def start_anew(connection: apsw.Connection, sent: Sequence[tuple[str, str]]) -> None:
    """Take all numbers back, and remember what is not to be sent."""
    connection.execute("UPDATE outbox SET sequence = NULL")
    connection.execute("DELETE FROM issued")
    connection.execute("DELETE FROM sent_before")
    connection.executemany("INSERT OR IGNORE INTO sent_before VALUES (?, ?)", sent)


def sent_before(connection: apsw.Connection) -> Sequence[tuple[str, str]]:
    """Return topic and id of what is not to be sent."""
    return [(topic, id_) for topic, id_ in rows_of(connection, "SELECT topic, id FROM sent_before")]


def counts(connection: apsw.Connection) -> tuple[int, int]:
    """Return how many rows there are, and how many of them were refused or are behind one that was."""
    total: int = first_of(connection, "SELECT count(*) FROM outbox")
    refused = first_of(connection, "SELECT 1 FROM outbox WHERE error IS NOT NULL LIMIT 1")
    if refused is None:
        return total, 0
    parked: int = first_of(connection, f"SELECT count(*) FROM outbox AS o WHERE error IS NOT NULL OR {_BEHIND}")
    return total, parked


def _outbox_row(row: Sequence[Any]) -> OutboxRow:
    row_id, topic, _, record, sequence, error = row
    return OutboxRow(row_id, Emitted(topic, _decode(record)), sequence, error)
