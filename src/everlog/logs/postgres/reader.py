"""A reader of a log's schema: one statement a look, which brings what is next of every partition, and a wait for the bell."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final, Protocol

from everlog.codec import Batch, Chunk
from everlog.drivers.postgres.bell import Bell
from everlog.drivers.postgres.database import Connection
from everlog.errors import Closed, FileDamaged, RecordsGone
from everlog.position import Offset, TopicPartition

_MOST_CHUNKS: Final = 64
"""Of one partition in one look."""

# Bodies are stored beside the table, so those that the window leaves out are never read.
_NEXT: Final = """
    SELECT place, first_offset, keeps_newest, first, body FROM (
        SELECT a.place, p.first_offset, t.keeps_newest, c.first, c.last, c.logged_at_us, c.body,
            sum(c.size) OVER w - c.size AS bytes_before, sum(c.last - c.first + 1) OVER w - (c.last - c.first + 1) AS records_before
        FROM unnest(%(topics)s::text[], %(parts)s::integer[], %(afters)s::bigint[]) WITH ORDINALITY AS a (topic, part, after, place)
        JOIN topic AS t ON t.name = a.topic
        JOIN part AS p ON p.topic = t.id AND p.part = a.part
        LEFT JOIN LATERAL (
            SELECT first, last, logged_at_us, size, body FROM chunk
            WHERE chunk.topic = t.id AND chunk.part = a.part AND chunk.last > greatest(a.after, p.first_offset - 1)
            ORDER BY chunk.last LIMIT %(most)s
        ) AS c ON TRUE
        WHERE c.last IS NOT NULL OR a.after < p.first_offset - 1
        WINDOW w AS (ORDER BY c.logged_at_us, a.place, c.last)
    ) AS looked WHERE first IS NULL OR (bytes_before < %(bytes)s AND records_before < %(records)s)
    ORDER BY logged_at_us NULLS FIRST, place, last
"""

_Row = tuple[int, int, bool, int | None, bytes | None]
"""Place, first offset, whether the topic has holes, and a chunk; ``None`` twice for a partition of which what was to be read next is gone."""


class Readable(Protocol):
    """What a reader needs of its log."""

    @property
    def bell(self) -> Bell:
        """What wakes it."""
        ...

    async def look(self, work: Callable[[Connection], Awaitable[list[_Row]]]) -> list[_Row]:
        """Read, as `Database.read` does."""
        ...


class PostgresReader:
    """A `Reader` of some partitions."""

    def __init__(self, log: Readable, after: Mapping[TopicPartition, Offset]) -> None:
        self._log = log
        self._after = dict(after)
        self._assigned = 0
        self._closed = False

    def assign(self, after: Mapping[TopicPartition, Offset]) -> None:
        for where, offset in after.items():
            self._after.setdefault(where, offset)
        self._assigned += 1
        self._log.bell.wake()

    def revoke(self, partitions: Sequence[TopicPartition]) -> None:
        for where in partitions:
            self._after.pop(where, None)
        self._assigned += 1

    def close(self) -> None:
        self._closed = True
        self._log.bell.wake()

    async def next(self, *, max_records: int = 4_096, max_bytes: int = 1 << 20) -> Batch:
        while True:
            strokes, assigned = self._log.bell.strokes, self._assigned
            self._check_open()
            chunks = await self._read(max_records, max_bytes)
            self._check_open()
            if assigned != self._assigned:
                continue  # what it read may be of a partition that was taken from it meanwhile; nothing was moved yet
            for chunk in chunks:
                self._after[chunk.where] = chunk.last
            if chunks:
                return Batch(chunks, {chunk.where: chunk.last for chunk in chunks})
            await self._log.bell.wait(strokes)

    def _check_open(self) -> None:
        if self._closed:
            raise Closed("the reader was closed")

    async def _read(self, max_records: int, max_bytes: int) -> list[Chunk]:
        """Return what is next, without moving on."""
        if not self._after:
            return []
        places = list(self._after.items())
        asked = {
            "topics": [where.topic for where, _ in places],
            "parts": [where.partition for where, _ in places],
            "afters": [after for _, after in places],
            "most": _MOST_CHUNKS,
            "bytes": max_bytes,
            "records": max_records,
        }

        async def looked(connection: Connection) -> list[_Row]:
            return await (await connection.execute(_NEXT, asked, prepare=True, binary=True)).fetchall()

        chunks: list[Chunk] = []
        through = dict(places)
        for place, first_offset, has_holes, first, body in await self._log.look(looked):
            where, after = places[place - 1]
            if after < first_offset - 1 and not has_holes:
                raise RecordsGone(*where, after=after, first=first_offset - 1)
            if first is None or body is None:
                continue
            try:
                if first > through[where] + 1 and not has_holes:
                    raise _missing(where, through[where], first)
                chunk = Chunk.from_bytes(bytes(body), where, Offset(first), after=through[where])
            except FileDamaged:
                if chunks:
                    break  # what stands before the damage first; the next look meets it again
                raise
            chunks.append(chunk)
            through[where] = chunk.last
        return chunks


def _missing(where: TopicPartition, after: Offset, first: int) -> FileDamaged:
    return FileDamaged(
        f"expected the record behind offset {after} of {where.topic}/{where.partition}, found the one at {first}: records are "
        f"missing, and retention has not deleted them. Restore the log from a backup"
    )
