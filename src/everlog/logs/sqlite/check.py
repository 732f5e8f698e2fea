"""Checking what lies below the records of a log file: its pages, and that nothing is missing but what retention deleted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import apsw

from everlog.drivers.sqlite.connection import connect, disconnect
from everlog.drivers.sqlite.rows import first_of, rows_of
from everlog.logs.sqlite.tables import LOG, NEXT_OFFSET


def faults(path: Path) -> list[str]:
    """Return what is wrong with the file, a line each. Others may write to it meanwhile."""
    connection = connect(path, LOG, create=False, writes=False)
    try:
        found = [f"{path}: {line}" for (line,) in rows_of(connection, "PRAGMA integrity_check") if line != "ok"]
        connection.execute("BEGIN")  # the counts are of one moment
        found.extend(_missing(connection, path))
        found.extend(_misplaced(connection))
        return found
    except apsw.Error as error:
        return [f"{path}: {error}"]
    finally:
        disconnect(connection)


def _missing(connection: apsw.Connection, path: Path) -> Iterator[str]:
    """Yield where records are missing. Each that was ever stored is held, or was counted when it was deleted."""
    ever = first_of(connection, f"SELECT coalesce(sum({NEXT_OFFSET}), 0) FROM part")
    total = first_of(connection, "SELECT total FROM head")
    if ever != total:
        yield f"{path}: expected {total:,} records since the log was made, found {ever:,}"
    deleted = first_of(connection, "SELECT coalesce(sum(gone), 0) FROM part")
    counted = first_of(connection, "SELECT records FROM gone")
    if deleted != counted:
        yield f"{path}: expected {counted:,} deleted records, found {deleted:,}"
    parts = rows_of(
        connection,
        f"""SELECT topic.name, part.part, first_offset, {NEXT_OFFSET}, gone, coalesce(sum(last - first + 1), 0), min(first)
            FROM part JOIN topic ON topic.id = part.topic LEFT JOIN chunk ON chunk.topic = part.topic AND chunk.part = part.part
            GROUP BY part.topic, part.part""",
    )
    for name, part, first, next_, gone, held, oldest in parts:
        if held != next_ - gone:
            yield f"{name}/{part}: expected {next_ - gone} records ({next_} stored, {gone} deleted), found {held}"
        if first != (next_ if oldest is None else oldest):
            yield f"{name}/{part}: expected its oldest record at offset {first}, found {'none' if oldest is None else oldest}"


def _misplaced(connection: apsw.Connection) -> Iterator[str]:
    """Yield the keys whose newest record should be kept and is not there."""
    lost = rows_of(
        connection,
        """SELECT topic.name, newest.part, newest.key, newest."offset" FROM newest JOIN topic ON topic.id = newest.topic
           WHERE NOT EXISTS (
               SELECT 1 FROM chunk AS c WHERE c.last = (
                   SELECT min(d.last) FROM chunk AS d
                   WHERE d.topic = newest.topic AND d.part = newest.part AND d.last >= newest."offset"
               ) AND c.topic = newest.topic AND c.part = newest.part AND c.first <= newest."offset"
           )""",
    )
    for name, part, key, offset in lost:
        yield f"{name}/{part}: expected the newest record of key {key!r} at offset {offset}, found none"
