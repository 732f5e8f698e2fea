"""Applying units: one transaction for many handler calls, each of them whole or not at all.

Every unit is judged first, against the rows as the units before it leave them; only then is anything written. So a unit that is
not applied needs no savepoint, and each table gets its rows of the whole group in one statement.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import apsw
import msgspec

from everlog.drivers.sqlite.rows import first_of, rows_of
from everlog.rules.applying import Holding, Row, Rows, judge, span_of
from everlog.rules.names import Names
from everlog.store import Emitted, Lease, Outcome, Progress, Room, Slot, StateKey, Unit
from everlog.stores.sqlite import outbox
from everlog.stores.sqlite.leases import is_valid
from everlog.stores.sqlite.many import Insert
from everlog.stores.sqlite.names import names

_encode: Final = msgspec.msgpack.Encoder().encode

_ROW: Final = "SELECT value, version FROM state WHERE subscription = ? AND generation = ? AND state = ? AND key = ?"
# One step for all of them: between two steps the interpreter would be lent to the event loop, and waited for.
_VERSIONS: Final = (
    "SELECT json_group_array((SELECT version FROM state WHERE subscription = ?1 AND generation = ?2 AND state = ?3 AND key = asked.value) "
    "ORDER BY asked.key) FROM json_each(?4) AS asked"
)
_decode_versions: Final = msgspec.json.Decoder(list[int | None]).decode
_PUT_ROW: Final = Insert(
    "INSERT INTO state",
    6,
    "ON CONFLICT (subscription, generation, state, key) DO UPDATE SET value = excluded.value, version = excluded.version",
)
_DELETE_ROW: Final = "DELETE FROM state WHERE subscription = ? AND generation = ? AND state = ? AND key = ?"
SCAN: Final = (
    "SELECT key, value, version FROM state WHERE subscription = ?1 AND generation = ?2 AND state = ?3 AND key >= ?4 AND key < ?5 "
    "UNION ALL SELECT key, value, version FROM state WHERE subscription = ?1 AND generation = ?2 AND state = ?3 AND key = ?6 "
    "ORDER BY key"
)
_PUT_PROGRESS: Final = (
    "INSERT INTO progress (subscription, generation, partition, topic, through, unfinished, dedupe) VALUES (?, ?, ?, ?, ?, ?, ?) "
    "ON CONFLICT (subscription, generation, partition, topic) "
    "DO UPDATE SET through = excluded.through, unfinished = excluded.unfinished, dedupe = excluded.dedupe"
)
_HOLD: Final = (
    "INSERT INTO held (subscription, generation, slot, key, type, record, cause, attempts, error, trace, next_attempt_us, held_at_us) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
# What was only behind another has now failed itself. What could not be read stays so marked: newer code will redrive it.
_RETRIED: Final = "UPDATE held SET cause = ?, attempts = ?, error = ?, trace = ?, next_attempt_us = ? WHERE id = ?"
_IS_HELD: Final = "SELECT 1 FROM held WHERE id = ?"
_RELEASE: Final = "DELETE FROM held WHERE id = ?"
_SKIP: Final = "INSERT INTO skipped (subscription, key, record, error, skipped_at_us) VALUES (?, ?, ?, ?, ?)"
_SET_TIMER: Final = (
    "INSERT INTO timer VALUES (?, ?, ?, ?, ?) "
    "ON CONFLICT (subscription, name, key) DO UPDATE SET fires_us = excluded.fires_us, emitted = excluded.emitted"
)
_DELETE_TIMER: Final = "DELETE FROM timer WHERE subscription = ? AND name = ? AND key = ?"


def commit(
    connection: apsw.Connection,
    units: Sequence[Unit],
    leases: Sequence[Lease],
    progress: Sequence[tuple[Slot, Progress]],
    *,
    now_us: int,
) -> Sequence[Outcome]:
    """Carry out `Store.commit` inside the transaction of its group. Nothing is written before every unit was judged."""
    known = names(connection)
    owned = {lease.slot for lease in leases if is_valid(connection, lease)}
    stored = _Stored(connection, known)
    rows = Rows(stored.row, stored.shown, stored.versions([unit for unit in units if unit.reads]))
    judged = judge(units, owned, rows, Holding(stored.is_held, stored.room))
    applied = judged.applied
    progressed = [
        (
            slot.subscription, known.generation(slot.subscription), at.where.partition, at.where.topic, at.through,
            judged.unfinished(slot, at), at.dedupe,
        )
        for slot, at in progress
        if slot in owned
    ]  # fmt: skip
    holds = [
        (
            unit.slot.subscription, known.generation(unit.slot.subscription), unit.slot.number, hold.key, hold.record.type,
            _encode(hold.record), hold.cause.value, hold.attempts, hold.error, hold.trace, hold.next_attempt_us, now_us,
        )
        for unit in applied
        for hold in unit.holds
    ]  # fmt: skip
    stored.write(rows.changed)
    connection.executemany(_PUT_PROGRESS, progressed)
    connection.executemany(_HOLD, holds)
    outbox.emit(connection, _emitted(applied))
    _write_rest(connection, applied, now_us)
    return judged.outcomes


def _as_json(keys: Iterable[str]) -> str:
    return msgspec.json.encode(list(keys)).decode()


def _emitted(units: Sequence[Unit]) -> Sequence[Emitted]:
    return [emitted for unit in units for emitted in unit.emits]


def _write_rest(connection: apsw.Connection, units: Sequence[Unit], now_us: int) -> None:
    """Write what needs no judgement, a table at a time."""
    connection.executemany(
        _SKIP,
        [(unit.slot.subscription, skip.key, _encode(skip.record), skip.error, now_us) for unit in units for skip in unit.skips],
    )
    connection.executemany(_RELEASE, [(held_id,) for unit in units for held_id in unit.releases])
    connection.executemany(
        _RETRIED,
        [
            (retried.cause.value, retried.attempts, retried.error, retried.trace, retried.next_attempt_us, retried.held_id)
            for unit in units
            if (retried := unit.retried) is not None
        ],
    )
    timers = {(unit.slot.subscription, timer.name, timer.key): timer for unit in units for timer in unit.timers}
    connection.executemany(
        _SET_TIMER,
        [(*place, timer.fires_us, _encode(timer.emitted)) for place, timer in timers.items() if timer.emitted is not None],
    )
    connection.executemany(_DELETE_TIMER, [place for place, timer in timers.items() if timer.emitted is None])


class _Stored:
    """What the file holds before the commit."""

    def __init__(self, connection: apsw.Connection, known: Names) -> None:
        self._connection = connection
        self._names = known

    def versions(self, units: Iterable[Unit]) -> Mapping[StateKey, int]:
        """Return the versions of all that units have read, with one statement for each state."""
        asked: dict[str, dict[str, None]] = {}
        for unit in units:
            for state, key in unit.reads:
                asked.setdefault(state, {})[key] = None
        seen: dict[StateKey, int] = {}
        for state, keys in asked.items():
            found: bytes = first_of(self._connection, _VERSIONS, (*self._names.state(state), state, _as_json(keys)))
            versions = _decode_versions(found)
            seen.update(((state, key), version or 0) for key, version in zip(keys, versions, strict=True))
        return seen

    def row(self, key: StateKey) -> Row:
        """Return a row of state."""
        found: list[Row] = rows_of(self._connection, _ROW, (*self._names.state(key[0]), *key))
        return found[0] if found else (None, 0)

    def shown(self, state: str, prefix: str) -> Mapping[str, int]:
        """Return the keys and versions that a scan finds."""
        rows = rows_of(self._connection, SCAN, (*self._names.state(state), state, *span_of(prefix)))
        return {key: version for key, _, version in rows}

    def is_held(self, held_id: int) -> bool:
        """Tell whether a record is held."""
        return bool(rows_of(self._connection, _IS_HELD, (held_id,)))

    def room(self, subscription: str) -> Room:
        """Return how much a subscription holds."""
        rows = rows_of(self._connection, "SELECT records, bytes FROM holding WHERE subscription = ?", (subscription,))
        return Room(*rows[0]) if rows else Room(0, 0)

    def write(self, changed: Mapping[StateKey, Row]) -> None:
        """Bring changed rows of state into the database."""
        places = {key: (*self._names.state(key[0]), *key) for key in changed}
        _PUT_ROW.write(
            self._connection,
            [(*places[key], value, version) for key, (value, version) in changed.items() if value is not None],
        )
        self._connection.executemany(_DELETE_ROW, [places[key] for key, (value, _) in changed.items() if value is None])
