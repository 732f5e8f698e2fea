"""Applying units: one transaction for many handler calls, each of them whole or not at all.

Everything that the units are judged by is looked up first, a table in one statement; then they are judged, and each table gets its rows in
one statement. So a group takes as many round trips as tables it touches, however many units it has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from everlog.drivers.postgres.database import Connection
from everlog.rules.applying import Holding, Row, Rows, judge
from everlog.rules.names import Names
from everlog.store import Add, Lease, Outcome, Progress, Room, Slot, StateKey, Unit
from everlog.stores.postgres import outbox
from everlog.stores.postgres.leases import valid
from everlog.stores.postgres.names import names
from everlog.stores.postgres.rows import columns, key_bytes, rows_of, run, text_of
from everlog.stores.postgres.state import read, scan

_encode: Final = msgspec.msgpack.Encoder().encode

_VERSIONS: Final = """
    SELECT a.place, s.version
    FROM unnest(%s::text[], %s::integer[], %s::text[], %s::text[]) WITH ORDINALITY AS a (subscription, generation, state, key, place)
    JOIN state AS s USING (subscription, generation, state, key)
"""
_PUT_ROWS: Final = """
    INSERT INTO state SELECT * FROM unnest(%s::text[], %s::integer[], %s::text[], %s::text[], %s::bytea[], %s::bigint[])
    ON CONFLICT (subscription, generation, state, key) DO UPDATE SET value = excluded.value, version = excluded.version
"""
_DELETE_ROWS: Final = """
    DELETE FROM state WHERE (subscription, generation, state, key) IN
    (SELECT * FROM unnest(%s::text[], %s::integer[], %s::text[], %s::text[]))
"""
PUT_PROGRESS: Final = """
    INSERT INTO progress
    SELECT * FROM unnest(%s::text[], %s::integer[], %s::integer[], %s::text[], %s::bigint[], %s::bytea[], %s::bytea[])
    ON CONFLICT (subscription, generation, partition, topic)
    DO UPDATE SET through = excluded.through, unfinished = excluded.unfinished, dedupe = excluded.dedupe
"""
_HOLD: Final = """
    INSERT INTO held (subscription, generation, slot, key, type, record, cause, attempts, error, trace, next_attempt_us, held_at_us)
    SELECT subscription, generation, slot, key, type, record, cause, attempts, error, trace, next_attempt_us, now_us() FROM unnest(
        %s::text[], %s::integer[], %s::integer[], %s::bytea[], %s::text[], %s::bytea[], %s::text[], %s::integer[], %s::text[], %s::text[],
        %s::bigint[]
    ) WITH ORDINALITY AS h (subscription, generation, slot, key, type, record, cause, attempts, error, trace, next_attempt_us, place)
    ORDER BY place
"""
# What was only behind another has now failed itself. What could not be read stays so marked: newer code will redrive it.
_RETRIED: Final = """
    UPDATE held SET cause = r.cause, attempts = r.attempts, error = r.error, trace = r.trace, next_attempt_us = r.next_attempt_us
    FROM unnest(%s::text[], %s::integer[], %s::text[], %s::text[], %s::bigint[], %s::bigint[])
    AS r (cause, attempts, error, trace, next_attempt_us, id) WHERE held.id = r.id
"""
_SKIP: Final = """
    INSERT INTO skipped (subscription, key, record, error, skipped_at_us)
    SELECT subscription, key, record, error, now_us() FROM unnest(%s::text[], %s::bytea[], %s::bytea[], %s::text[])
    WITH ORDINALITY AS s (subscription, key, record, error, place) ORDER BY place
"""
_SET_TIMERS: Final = """
    INSERT INTO timer SELECT * FROM unnest(%s::text[], %s::text[], %s::bytea[], %s::bigint[], %s::bytea[])
    ON CONFLICT (subscription, name, key) DO UPDATE SET fires_us = excluded.fires_us, emitted = excluded.emitted
"""
_DELETE_TIMERS: Final = """
    DELETE FROM timer WHERE (subscription, name, key) IN (SELECT * FROM unnest(%s::text[], %s::text[], %s::bytea[]))
"""


class _Stored(NamedTuple):
    """What the schema holds before the commit, of what its units have to do with."""

    rows: Mapping[StateKey, Row]
    shown: Mapping[tuple[str, str], Mapping[str, int]]
    seen: Mapping[StateKey, int]
    held: frozenset[int]
    rooms: Mapping[str, Room]


async def commit(
    connection: Connection, units: Sequence[Unit], leases: Sequence[Lease], progress: Sequence[tuple[Slot, Progress]]
) -> Sequence[Outcome]:
    """Carry out `Store.commit` inside a transaction that has the turn. Nothing is written before every unit was judged."""
    owned = await valid(connection, leases) if leases else ()
    known = await names(connection)
    stored = await _look(connection, known, [unit for unit in units if unit.slot in owned])
    rows = Rows(stored.rows.__getitem__, lambda state, prefix: stored.shown[state, prefix], stored.seen)
    holding = Holding(stored.held.__contains__, lambda subscription: stored.rooms.get(subscription, Room(0, 0)))
    judged = judge(units, owned, rows, holding)
    await _write_rows(connection, known, rows.changed)
    progressed = [
        (
            slot.subscription, known.generation(slot.subscription), at.where.partition, at.where.topic, at.through,
            judged.unfinished(slot, at), at.dedupe,
        )
        for slot, at in progress
        if slot in owned
    ]  # fmt: skip
    if progressed:
        await run(connection, PUT_PROGRESS, columns(progressed, 7))
    await outbox.emit(connection, [emitted for unit in judged.applied for emitted in unit.emits])
    await _write_held(connection, known, judged.applied)
    await _write_timers(connection, judged.applied)
    return judged.outcomes


async def _look(connection: Connection, known: Names, units: Sequence[Unit]) -> _Stored:
    """Return what the units are judged by."""
    whole = dict.fromkeys(key for unit in units for key, write in unit.writes.items() if isinstance(write, Add))
    rows: dict[StateKey, Row] = {}
    if whole:
        rows = {key: (row.value, row.version) for key, row in zip(whole, await read(connection, known, list(whole)), strict=True)}
    seen = await _versions(connection, known, list(dict.fromkeys(key for unit in units for key in unit.reads if key not in rows)))
    shown = {
        place: {key: row.version for key, row in await scan(connection, known, *place)}
        for place in dict.fromkeys((one.state, one.prefix) for unit in units for one in unit.scans)
    }
    released = [held_id for unit in units for held_id in unit.releases]
    held: list[tuple[Any, ...]] = []
    if released:
        held = await rows_of(connection, "SELECT id FROM held WHERE id = ANY(%s)", (released,))
    rooms: list[tuple[Any, ...]] = []
    if any(unit.room is not None for unit in units):
        rooms = await rows_of(connection, "SELECT subscription, records, bytes FROM holding")
    return _Stored(
        rows, shown, seen, frozenset(one for (one,) in held), {name: Room(records, size) for name, records, size in rooms}
    )


async def _versions(connection: Connection, known: Names, keys: Sequence[StateKey]) -> Mapping[StateKey, int]:
    if not keys:
        return {}
    seen = dict.fromkeys(keys, 0)
    asked = columns([(*known.state(state), state, key) for state, key in keys], 4)
    for place, version in await rows_of(connection, _VERSIONS, asked):
        seen[keys[place - 1]] = version
    return seen


async def _write_rows(connection: Connection, known: Names, changed: Mapping[StateKey, Row]) -> None:
    put = [(*known.state(key[0]), *key, value, version) for key, (value, version) in changed.items() if value is not None]
    if put:
        await run(connection, _PUT_ROWS, columns(put, 6))
    gone = [(*known.state(key[0]), *key) for key, (value, _) in changed.items() if value is None]
    if gone:
        await run(connection, _DELETE_ROWS, columns(gone, 4))


async def _write_held(connection: Connection, known: Names, units: Sequence[Unit]) -> None:
    holds = [
        (
            unit.slot.subscription, known.generation(unit.slot.subscription), unit.slot.number, key_bytes(hold.key), hold.record.type,
            _encode(hold.record), hold.cause.value, hold.attempts, text_of(hold.error), text_of(hold.trace), hold.next_attempt_us,
        )
        for unit in units
        for hold in unit.holds
    ]  # fmt: skip
    if holds:
        await run(connection, _HOLD, columns(holds, 11))
    skips = [
        (unit.slot.subscription, key_bytes(skip.key), _encode(skip.record), text_of(skip.error))
        for unit in units
        for skip in unit.skips
    ]
    if skips:
        await run(connection, _SKIP, columns(skips, 4))
    released = [held_id for unit in units for held_id in unit.releases]
    if released:
        await run(connection, "DELETE FROM held WHERE id = ANY(%s)", (released,))
    retried = [
        (one.cause.value, one.attempts, text_of(one.error), text_of(one.trace), one.next_attempt_us, one.held_id)
        for unit in units
        if (one := unit.retried) is not None
    ]
    if retried:
        await run(connection, _RETRIED, columns(retried, 6))


async def _write_timers(connection: Connection, units: Sequence[Unit]) -> None:
    timers = {(unit.slot.subscription, timer.name, key_bytes(timer.key)): timer for unit in units for timer in unit.timers}
    put = [(*place, timer.fires_us, _encode(timer.emitted)) for place, timer in timers.items() if timer.emitted is not None]
    if put:
        await run(connection, _SET_TIMERS, columns(put, 5))
    gone = [place for place, timer in timers.items() if timer.emitted is None]
    if gone:
        await run(connection, _DELETE_TIMERS, columns(gone, 3))
