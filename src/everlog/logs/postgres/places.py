"""Where things are in a log's schema: the edges of a topic's partitions, a moment in each, and what waits behind an offset."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from everlog.drivers.postgres.database import Connection
from everlog.log import Backlog
from everlog.position import Offset

_PARTS: Final = "SELECT part, next_offset, first_offset, gone_through_us, gone FROM part WHERE topic = %s"
_AT: Final = """
    SELECT p.part, coalesce(
        (
            SELECT c.first FROM chunk AS c
            WHERE c.topic = p.topic AND c.part = p.part AND c.last >= p.first_offset AND c.logged_at_us >= %(time)s ORDER BY c.last LIMIT 1
        ), p.next_offset
    ) FROM part AS p WHERE p.topic = %(topic)s
"""
_OLDEST: Final = """
    SELECT logged_at_us FROM chunk WHERE topic = %s AND part = %s AND last >= %s ORDER BY last LIMIT 1
"""
_COUNT: Final = """
    SELECT coalesce(sum(last - greatest(first, %(first)s) + 1), 0)::bigint FROM chunk
    WHERE topic = %(topic)s AND part = %(part)s AND last >= %(first)s
"""


async def topic_id(connection: Connection, name: str) -> int | None:
    """Return the number of a topic; ``None`` where there is none."""
    row = await (await connection.execute("SELECT id FROM topic WHERE name = %s", (name,))).fetchone()
    return None if row is None else row[0]


async def first_offsets(connection: Connection, topic: int) -> Mapping[int, int]:
    """Return the offset of the oldest record that each partition keeps, or of its next one."""
    return {part: first for part, _, first, _, _ in await _parts(connection, topic)}


async def next_offsets(connection: Connection, topic: int) -> Mapping[int, int]:
    """Return the offset that each partition gives next."""
    return {part: next_ for part, next_, _, _, _ in await _parts(connection, topic)}


async def offsets_at(connection: Connection, topic: int, time_us: int) -> Mapping[int, int]:
    """Return the first offset of each partition that has a chunk of this moment or later behind it."""
    return dict(await (await connection.execute(_AT, {"time": time_us, "topic": topic})).fetchall())


async def gone_through(connection: Connection, topic: int) -> Mapping[int, int]:
    """Return when the newest record deleted of each partition was logged; where none was, it is left out."""
    return {part: through_us for part, _, _, through_us, gone in await _parts(connection, topic) if gone}


async def waiting(connection: Connection, topic: int, after: Mapping[int, Offset]) -> Backlog:
    """Return what waits behind the offset of each partition named."""
    count, oldest_us = 0, None
    for part, next_, first, _, gone in await _parts(connection, topic):
        if part not in after:
            continue
        begin = max(after[part] + 1, first)
        row = await (await connection.execute(_OLDEST, (topic, part, begin))).fetchone()
        if row is None:
            continue
        oldest_us = row[0] if oldest_us is None else min(oldest_us, row[0])
        if gone == first:  # no hole: all that is gone lies before the first
            count += next_ - begin
        else:
            ((records,),) = await (await connection.execute(_COUNT, {"topic": topic, "part": part, "first": begin})).fetchall()
            count += records
    return Backlog(count, oldest_us)


async def _parts(connection: Connection, topic: int) -> list[tuple[int, int, int, int, int]]:
    return await (await connection.execute(_PARTS, (topic,))).fetchall()
