"""Where things are in a log file: the edges of a topic's partitions, a moment in each, and what waits behind an offset."""

from __future__ import annotations

from collections.abc import Mapping

import apsw

from everlog.drivers.sqlite.rows import first_of, rows_of
from everlog.logs.sqlite.tables import NEXT_OFFSET
from everlog.position import Offset


def first_offsets(connection: apsw.Connection, topic: int) -> Mapping[int, int]:
    """Return the offset of the oldest record that each partition keeps, or of its next one."""
    return dict(rows_of(connection, "SELECT part, first_offset FROM part WHERE topic = ?", (topic,)))


def next_offsets(connection: apsw.Connection, topic: int) -> Mapping[int, int]:
    """Return the offset that each partition gives next."""
    return dict(rows_of(connection, f"SELECT part, {NEXT_OFFSET} FROM part WHERE topic = ?", (topic,)))


def lost_through(connection: apsw.Connection, topic: int, part: int) -> Offset:
    """Return the offset before the oldest record that a partition keeps."""
    first: int | None = first_of(connection, "SELECT first_offset FROM part WHERE topic = ? AND part = ?", (topic, part))
    return Offset((first or 0) - 1)


def offsets_at(connection: apsw.Connection, topic: int, time_us: int) -> Mapping[int, int]:
    """Return the first offset of each partition that has a chunk of this moment or later behind it, by bisection."""
    found: dict[int, int] = {}
    next_ = next_offsets(connection, topic)
    for part, first in first_offsets(connection, topic).items():
        low, high = first, next_[part]  # it lies in low … high
        while low < high:
            middle = (low + high) // 2
            chunks = rows_of(
                connection,
                "SELECT first, last, logged_at_us FROM chunk WHERE topic = ? AND part = ? AND last >= ? ORDER BY last LIMIT 1",
                (topic, part, middle),
            )
            if chunks and chunks[0][2] < time_us:
                low = chunks[0][1] + 1
            else:  # in the chunk or before it; or all from the middle on is deleted
                high = min(chunks[0][0], middle) if chunks else middle
        found[part] = low
    return found


def waiting(connection: apsw.Connection, place: tuple[int, int], offset: int) -> tuple[int, int | None]:
    """Return how many records of a partition are behind an offset, and when the oldest was logged; 0 and ``None`` where there is none."""
    oldest: int | None = first_of(
        connection,
        "SELECT logged_at_us FROM chunk WHERE topic = ? AND part = ? AND last > ? ORDER BY last LIMIT 1",
        (*place, offset),
    )
    if oldest is None:
        return 0, None
    part = f"SELECT {NEXT_OFFSET}, first_offset, gone FROM part WHERE topic = ? AND part = ?"
    ((next_, first, gone),) = rows_of(connection, part, place)
    if gone == first:  # no hole: all that is gone lies before the first
        return next_ - max(offset + 1, first), oldest
    chunks = "SELECT sum(last - max(first, ?3) + 1) FROM chunk WHERE topic = ?1 AND part = ?2 AND last >= ?3"
    return first_of(connection, chunks, (*place, offset + 1)), oldest
