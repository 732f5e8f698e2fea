"""The tables that the chunks of a topic are in: one segment after another, each dropped whole once nothing in it is kept.

A segment is begun while another is appended to; appends go on into the one that the topic names when their partition is locked.
"""

from __future__ import annotations

from typing import Any, Final, cast

from psycopg import errors, sql

from everlog.drivers.postgres.database import Connection
from everlog.log import TopicSpec

_LARGEST_BYTES: Final = 256 << 20
_SMALLEST_BYTES: Final = 4 << 20
_SHARE: Final = 8
"""A segment holds about so small a part of what is kept: so much more than the limits is on disk at most."""
_SHORTEST_US: Final = 60 * 1_000_000
_WAIT_FOR_TABLE: Final = "SET LOCAL lock_timeout TO 200"
"""Readers that come later wait behind whoever waits for a table."""


async def make_topic_table(connection: Connection, topic: int) -> None:
    """Make the table that a topic's segments belong to, and the first of them."""
    parent = sql.Identifier(f"chunk_{topic}")
    await connection.execute(
        sql.SQL("CREATE TABLE {} PARTITION OF chunk FOR VALUES IN ({}) PARTITION BY LIST (segment)").format(
            parent, sql.Literal(topic)
        )
    )
    await begin(connection, topic, 1)


async def begin(connection: Connection, topic: int, segment: int) -> None:
    """Make a segment. It is attached once it is whole, so that nobody who reads or appends waits."""
    parent, child = sql.Identifier(f"chunk_{topic}"), sql.Identifier(f"chunk_{topic}_{segment}")
    # Bodies are written once and never compressed by the server: they are small by now, or encrypted.
    await connection.execute(sql.SQL("CREATE TABLE {} (LIKE {} INCLUDING STORAGE)").format(child, parent))
    # Nothing in it is ever changed, so what is there to VACUUM is only that all see it.
    await connection.execute(sql.SQL("ALTER TABLE {} SET (autovacuum_vacuum_insert_scale_factor = 1)").format(child))
    await connection.execute(
        sql.SQL("ALTER TABLE {} ATTACH PARTITION {} FOR VALUES IN ({})").format(parent, child, sql.Literal(segment))
    )


async def begin_next(connection: Connection, topic: int, spec: TopicSpec) -> bool:
    """Begin a topic's next segment, where the newest is large or old enough. In a transaction of its own."""
    found = await (
        await connection.execute(
            "SELECT segment, segment_since_us, now_us(), pg_total_relation_size(format('chunk_%%s_%%s', id, segment)::regclass) "
            "FROM topic WHERE id = %s FOR UPDATE SKIP LOCKED",
            (topic,),
        )
    ).fetchone()
    if found is None:  # somebody else is at it
        return False
    segment, since_us, now_us, size = cast("tuple[int, int, int, int]", found)
    if not _is_full(spec, size, now_us - since_us):
        return False
    try:
        async with connection.transaction():  # a savepoint: a role that may not make tables goes on in this one
            await begin(connection, topic, segment + 1)
    except errors.InsufficientPrivilege:
        return False
    await connection.execute("UPDATE topic SET segment = %s, segment_since_us = %s WHERE id = %s", (segment + 1, now_us, topic))
    return True


def _is_full(spec: TopicSpec, size: int, age_us: int) -> bool:
    most = _LARGEST_BYTES
    if spec.keep_bytes is not None:
        most = min(most, max(_SMALLEST_BYTES, spec.keep_bytes * spec.partitions // _SHARE))
    if size >= most:
        return True
    is_empty = size <= 64 << 10  # its indexes' first pages
    return spec.keep_s is not None and not is_empty and age_us >= max(_SHORTEST_US, spec.keep_s * 1e6 / _SHARE)


async def drop_spent(connection: Connection, topic: int) -> int:
    """Drop the segments that nothing in is kept of; return how many. In a transaction of its own."""
    await connection.execute(_WAIT_FOR_TABLE)
    ((newest,),) = await (await connection.execute("SELECT segment FROM topic WHERE id = %s FOR UPDATE", (topic,))).fetchall()
    # With all partitions locked, nobody is about to append to an older segment.
    await connection.execute("SELECT 1 FROM part WHERE topic = %s ORDER BY part FOR UPDATE", (topic,))
    dropped = 0
    for segment in await _segments(connection, topic):
        table = sql.Identifier(f"chunk_{topic}_{segment}")
        kept = sql.SQL(
            "SELECT 1 FROM {} AS c JOIN part AS p ON p.topic = c.topic AND p.part = c.part AND c.last >= p.first_offset LIMIT 1"
        ).format(table)
        if segment >= newest or await (await connection.execute(kept)).fetchone() is not None:
            continue
        await connection.execute(sql.SQL("DROP TABLE {}").format(table))
        dropped += 1
    return dropped


async def _segments(connection: Connection, topic: int) -> list[int]:
    found: list[tuple[Any, ...]] = await (
        await connection.execute(
            "SELECT c.relname FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid WHERE i.inhparent = %s::regclass",
            (f"chunk_{topic}",),
        )
    ).fetchall()
    return sorted(int(name.rpartition("_")[2]) for (name,) in found)
