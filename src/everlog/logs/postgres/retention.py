"""Deleting from a log's schema: what may go is marked as gone at once, and given back to the disk a segment at a time.

Only a topic that keeps the newest record of each key has holes: of such a one, chunks are deleted row by row.
"""

from __future__ import annotations

from typing import Final, NamedTuple, cast

from psycopg import errors

from everlog.drivers.postgres.database import Connection, Database, NothingStored
from everlog.log import TopicSpec
from everlog.logs.postgres.segments import begin_next, drop_spent

_STEP_CHUNKS: Final = 256
# What may go is the beginning of a partition: each of the three says so of all chunks up to some place.
_KEPT: Final = """
    SELECT first FROM chunk WHERE topic = %(topic)s AND part = %(part)s AND last >= %(first)s
    AND NOT (logged_at_us < %(before)s OR bytes_through <= %(bytes)s OR last <= %(last_most)s) ORDER BY last LIMIT 1
"""
_GONE_AT: Final = "SELECT max(logged_at_us) FROM chunk WHERE topic = %s AND part = %s AND last >= %s AND last < %s"
_RAISE: Final = """
    UPDATE part SET first_offset = %(to)s, gone = gone + %(to)s - first_offset, gone_through_us = greatest(gone_through_us, %(at)s)
    WHERE topic = %(topic)s AND part = %(part)s
"""
_NOT_NEWEST: Final = """
    SELECT last, first, logged_at_us, size FROM chunk AS c
    WHERE topic = %(topic)s AND part = %(part)s AND last > %(after)s AND last < %(to)s
    AND NOT EXISTS (
        SELECT 1 FROM newest AS n WHERE n.topic = c.topic AND n.part = c.part AND n."offset" BETWEEN c.first AND c.last
    ) ORDER BY last LIMIT %(most)s
"""
_DELETE: Final = "DELETE FROM chunk WHERE topic = %s AND part = %s AND last = ANY(%s)"
_FIRST_LEFT: Final = """
    UPDATE part SET gone = gone + %(records)s, gone_through_us = greatest(gone_through_us, %(at)s), first_offset = coalesce(
        (SELECT c.first FROM chunk AS c WHERE c.topic = part.topic AND c.part = part.part ORDER BY c.last LIMIT 1), next_offset
    ) WHERE topic = %(topic)s AND part = %(part)s
"""


class Mark(NamedTuple):
    """Up to where a partition may be deleted: while one of the three says so of a chunk, it goes."""

    topic: int
    part: int
    spec: TopicSpec
    before_us: int = 0
    """Logged before this moment."""
    by_bytes: bool = False
    """So many bytes are behind it as the topic keeps."""
    last_most: int = -1
    """At most this last offset."""


async def delete(database: Database, mark: Mark) -> int:
    """Delete what a mark allows, in bounded steps; return how many records that were."""
    records = 0
    while True:
        step = await database.write(lambda connection: _step(connection, mark))
        records += step
        if not step or not mark.spec.keep_newest:
            return records


async def give_back(database: Database, topic: int, spec: TopicSpec) -> None:
    """Begin a topic's next segment where it is time, and drop those that nothing is kept of. What is in somebody's way is left for later."""
    try:
        await database.write(lambda connection: begin_next(connection, topic, spec))
        await database.write(lambda connection: drop_spent(connection, topic))
    except NothingStored as error:
        if not isinstance(error.__cause__, errors.LockNotAvailable | errors.InsufficientPrivilege | errors.DeadlockDetected):
            raise


async def _step(connection: Connection, mark: Mark) -> int:
    place = {"topic": mark.topic, "part": mark.part}
    found = await (
        await connection.execute(
            "SELECT next_offset, first_offset, bytes_through FROM part WHERE topic = %(topic)s AND part = %(part)s FOR UPDATE",
            place,
        )
    ).fetchone()
    if found is None:
        return 0
    next_, first, through = cast("tuple[int, int, int]", found)
    spec = mark.spec
    bytes_most = through - spec.keep_bytes if mark.by_bytes and spec.keep_bytes is not None else -1
    asked = {**place, "first": first, "before": mark.before_us, "bytes": bytes_most, "last_most": mark.last_most}
    kept = await (await connection.execute(_KEPT, asked)).fetchone()
    to = next_ if kept is None else cast("int", kept[0])
    if to <= first:
        return 0
    if spec.keep_newest:
        return await _thin(connection, mark, to)
    ((at_us,),) = await (await connection.execute(_GONE_AT, (mark.topic, mark.part, first, to))).fetchall()
    await connection.execute(_RAISE, {**place, "to": to, "at": at_us or 0})
    return to - first


async def _thin(connection: Connection, mark: Mark, to: int) -> int:
    """Delete chunks before an offset in which no newest record of a key is."""
    place = {"topic": mark.topic, "part": mark.part}
    rows = await (await connection.execute(_NOT_NEWEST, {**place, "after": -1, "to": to, "most": _STEP_CHUNKS})).fetchall()
    if not rows:
        return 0
    await connection.execute(_DELETE, (mark.topic, mark.part, [last for last, _, _, _ in rows]))
    records: int = sum(last - first + 1 for last, first, _, _ in rows)
    await connection.execute(_FIRST_LEFT, {**place, "records": records, "at": max(at_us for _, _, at_us, _ in rows)})
    return records
