"""Checking a log's schema: that chunks follow one another, that their bytes are those that were written, and that counts agree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from everlog.codec import Chunk
from everlog.drivers.postgres.database import Connection
from everlog.errors import FileError
from everlog.log import TopicSpec
from everlog.position import Offset, TopicPartition

_ROWS: Final = 32
_CHUNKS: Final = """
    SELECT first, last, bytes_through, size, body FROM chunk WHERE topic = %s AND part = %s AND last >= %s ORDER BY last LIMIT %s
"""


async def faults(connection: Connection, topics: Sequence[tuple[int, TopicSpec]]) -> list[str]:
    """Return what is wrong, a line each."""
    found: list[str] = []
    for topic, spec in topics:
        parts = await (
            await connection.execute(
                "SELECT part, next_offset, first_offset, bytes_through, gone FROM part WHERE topic = %s ORDER BY part", (topic,)
            )
        ).fetchall()
        if [row[0] for row in parts] != list(range(spec.partitions)):
            found.append(f"topic {spec.name!r}: expected {spec.partitions} partitions, found {len(parts)}")
        for part, next_, first, through, gone in parts:
            found.extend(
                [
                    f"{spec.name}/{part}: {line}"
                    for line in await _partition(
                        connection, (topic, part), TopicPartition(spec.name, part), next_, first, through, gone
                    )
                ]
            )
    return found


async def _partition(
    connection: Connection, place: tuple[int, int], where: TopicPartition, next_: int, first: int, through: int, gone: int
) -> list[str]:
    found: list[str] = []
    has_holes = gone != first
    expected, kept, bytes_through = first, 0, 0
    while True:
        rows = await (await connection.execute(_CHUNKS, (*place, max(expected, first), _ROWS), binary=True)).fetchall()
        for begin, last, chunk_through, size, body in rows:
            if begin != expected and not (has_holes and begin > expected):
                found.append(f"expected the chunk of offset {expected}, found one that begins at {begin}")
            if len(body) != size:
                found.append(f"the chunk of offset {begin} should have {size} bytes, and has {len(body)}")
            if chunk_through <= bytes_through:
                found.append(f"the chunk of offset {begin} counts {chunk_through} bytes, and the one before it {bytes_through}")
            try:
                chunk = Chunk.from_bytes(bytes(body), where, Offset(begin), after=Offset(begin - 1))
                if chunk.last != last:
                    found.append(f"the chunk of offset {begin} should end at {last}, and ends at {chunk.last}")
            except FileError as error:
                found.append(str(error))
            expected, bytes_through = last + 1, chunk_through
            kept += last - begin + 1
        if len(rows) < _ROWS:
            break
    if expected != next_ and (kept or first != next_) and not (has_holes and expected < next_ and kept == next_ - gone):
        found.append(f"expected chunks up to offset {next_ - 1}, found them up to {expected - 1}")
    if kept != next_ - gone:
        found.append(f"{next_} records were stored and {gone} of them deleted, and {kept} are there")
    if kept and bytes_through > through:
        found.append(f"{through} bytes are counted, and {bytes_through} up to its last chunk")
    return found
