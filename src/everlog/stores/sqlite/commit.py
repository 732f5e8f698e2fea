"""Applying units: one transaction for many handler calls, each of them whole or not at all.

Every unit is judged first, against the rows as the units before it leave them; only then is anything written. So a unit that is
not applied needs no savepoint, and each table gets its rows of the whole group in one statement.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

import apsw
import msgspec

from everlog.amount import total
from everlog.drivers.sqlite.rows import first_of, rows_of
from everlog.position import Offset, TopicPartition
from everlog.store import Add, Emitted, Lease, Outcome, Progress, Put, Room, ScanRead, Slot, StateKey, Unit
from everlog.stores.sqlite import outbox
from everlog.stores.sqlite.leases import is_valid
from everlog.stores.sqlite.many import Insert
from everlog.stores.sqlite.names import Names, names

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

_Row = tuple[bytes | None, int]


class Span(NamedTuple):
    """The keys that start with the whole elements of a prefix: those in `low` ≤ key < `high`, and `exact`."""

    low: str
    high: str
    exact: str


def span_of(prefix: str) -> Span:
    """Return where in the order of texts the keys with this prefix stand.

    In canonical JSON an element is followed by `,` or by `]`. So behind `["a"` come `["a",…` and `["a"]` itself, never `["ab"]`; and of
    `[1`, which is also the start of `[12]`, `[1,` is not. `-` is the sign after `,` and a backslash the one after `[`.
    """
    if prefix == "[]":
        return Span("[", "\\", "")
    return Span(prefix[:-1] + ",", prefix[:-1] + "-", prefix)


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
    rows = _Rows(connection, known)
    rows.look([unit for unit in units if unit.reads])
    held = _Held(connection)
    outcomes: list[Outcome] = []
    applied: list[Unit] = []
    put_back: dict[tuple[Slot, TopicPartition], set[Offset]] = {}
    broken_lanes: set[tuple[Slot, str | None]] = set()
    for unit in units:
        lane = (unit.slot, unit.lane)
        if unit.slot not in owned:
            outcome = Outcome.FENCED
        elif lane in broken_lanes:
            outcome = Outcome.DROPPED
        elif unit.releases and not held.has(unit.releases):
            outcome = Outcome.CONFLICT
        elif unit.holds and not held.has_room(unit):
            outcome = Outcome.FULL
        else:
            outcome = rows.apply(unit)
        outcomes.append(outcome)
        if outcome is Outcome.COMMITTED:
            applied.append(unit)
            held.add(unit)
            continue
        if unit.lane is not None:
            broken_lanes.add(lane)
        for where, offset in unit.finishes:
            put_back.setdefault((unit.slot, where), set()).add(offset)
    progressed = [
        (
            slot.subscription, known.generation(slot.subscription), at.where.partition, at.where.topic, at.through,
            _unfinished(at, put_back.get((slot, at.where))), at.dedupe,
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
    rows.write()
    connection.executemany(_PUT_PROGRESS, progressed)
    connection.executemany(_HOLD, holds)
    outbox.emit(connection, _emitted(applied))
    _write_rest(connection, applied, now_us)
    return outcomes


def _as_json(keys: Iterable[str]) -> str:
    return msgspec.json.encode(list(keys)).decode()


def _unfinished(progress: Progress, put_back: set[Offset] | None) -> bytes:
    if not put_back:
        return _encode(sorted(progress.unfinished))
    # An offset above `through` is not claimed to be finished, so it needs no exception.
    return _encode(sorted({*progress.unfinished, *(offset for offset in put_back if offset <= progress.through)}))


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


class _Held:
    """What is held, and how much of it by each subscription, as the units applied so far leave it."""

    def __init__(self, connection: apsw.Connection) -> None:
        self._connection = connection
        self._held: dict[str, Room] = {}
        self._released: set[int] = set()

    def has(self, ids: Sequence[int]) -> bool:
        """Tell whether all of these are held still: whoever handled one that is gone has handled it a second time."""
        return self._released.isdisjoint(ids) and all(rows_of(self._connection, _IS_HELD, (one,)) for one in ids)

    def has_room(self, unit: Unit) -> bool:
        """Tell whether the unit's copies fit."""
        if unit.room is None:
            return True
        after = self._with(unit)
        return after.records <= unit.room.records and after.size_bytes <= unit.room.size_bytes

    def add(self, unit: Unit) -> None:
        """Count what a unit that is applied holds and releases."""
        self._released.update(unit.releases)
        if unit.holds:
            self._held[unit.slot.subscription] = self._with(unit)

    def _with(self, unit: Unit) -> Room:
        name = unit.slot.subscription
        held = self._held.get(name)
        if held is None:
            rows = rows_of(self._connection, "SELECT records, bytes FROM holding WHERE subscription = ?", (name,))
            held = Room(*rows[0]) if rows else Room(0, 0)
        return Room(held.records + len(unit.holds), held.size_bytes + sum(len(hold.record.data) for hold in unit.holds))


class _Rows:
    """The rows of state as the units applied so far leave them. Each is read at most once and written at most once."""

    def __init__(self, connection: apsw.Connection, known: Names) -> None:
        self._connection = connection
        self._names = known
        self._seen: dict[StateKey, int] = {}  # versions before any unit was applied
        self._rows: dict[StateKey, _Row] = {}  # what was read or changed
        self._changed: dict[StateKey, _Row] = {}

    def look(self, units: Iterable[Unit]) -> None:
        """Read the versions of all that units have read, with one statement for each state."""
        asked: dict[str, dict[str, None]] = {}
        for unit in units:
            for state, key in unit.reads:
                asked.setdefault(state, {})[key] = None
        for state, keys in asked.items():
            found: bytes = first_of(self._connection, _VERSIONS, (*self._names.state(state), state, _as_json(keys)))
            versions = _decode_versions(found)
            self._seen.update(((state, key), version or 0) for key, version in zip(keys, versions, strict=True))

    def apply(self, unit: Unit) -> Outcome:
        """Take the unit's writes, if all that it read still stands and its amounts can be added. Otherwise take nothing."""
        for key, version in unit.reads.items():
            if self._version(key) != version:
                return Outcome.CONFLICT
        for scan in unit.scans:
            if not self._still_shows(scan):
                return Outcome.CONFLICT
        changes: dict[StateKey, _Row] = {}
        for key, write in unit.writes.items():
            if isinstance(write, Put):
                changes[key] = (write.value, unit.version)
            elif isinstance(write, Add):
                added = total(self._row(key)[0], write.amount)
                if added is None:
                    return Outcome.REFUSED
                changes[key] = (added, unit.version)
            else:
                changes[key] = (None, 0)
        self._rows.update(changes)
        self._changed.update(changes)
        return Outcome.COMMITTED

    def write(self) -> None:
        """Bring the changes into the database."""
        places = {key: (*self._names.state(key[0]), *key) for key in self._changed}
        _PUT_ROW.write(
            self._connection,
            [(*places[key], value, version) for key, (value, version) in self._changed.items() if value is not None],
        )
        self._connection.executemany(_DELETE_ROW, [places[key] for key, (value, _) in self._changed.items() if value is None])

    def _version(self, key: StateKey) -> int:
        row = self._rows.get(key)
        if row is None:
            seen = self._seen.get(key)
            if seen is not None:
                return seen
            row = self._row(key)
        return row[1]

    def _row(self, key: StateKey) -> _Row:
        row = self._rows.get(key)
        if row is None:
            found: list[_Row] = rows_of(self._connection, _ROW, (*self._names.state(key[0]), *key))
            row = self._rows[key] = found[0] if found else (None, 0)
        return row

    def _still_shows(self, scan: ScanRead) -> bool:
        span = span_of(scan.prefix)
        place = self._names.state(scan.state)
        now = {key: version for key, _, version in rows_of(self._connection, SCAN, (*place, scan.state, *span))}
        for (state, key), (value, version) in self._changed.items():
            if state == scan.state and (span.low <= key < span.high or key == span.exact):
                if value is None:
                    now.pop(key, None)
                else:
                    now[key] = version
        return now == dict(scan.rows)
