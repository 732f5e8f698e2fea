"""Reading a log file: chunks in the order in which they were committed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Final, Protocol

import apsw

from everlog.codec import Batch, Chunk
from everlog.drivers.sqlite.rows import first_of, rows_of
from everlog.errors import Closed, FileDamaged, FileError, RecordsGone
from everlog.logs.sqlite.places import lost_through
from everlog.position import Offset, TopicPartition

_IDS_PER_LOOK: Final = 64


class Source(Protocol):
    """What a reader needs of its log."""

    @property
    def strokes(self) -> int:
        """The bell's strokes so far."""
        ...

    async def heard(self, strokes: int) -> None:
        """Wait for a stroke after the `strokes`-th."""
        ...

    def wake(self) -> None:
        """Let every waiting reader look again."""
        ...

    def reading(self) -> AbstractContextManager[apsw.Connection]:
        """Lend the reading connection, in one transaction."""
        ...

    def topic_id(self, connection: apsw.Connection, name: str) -> int | None:
        """Return the number of a topic; ``None`` where there is none."""
        ...

    def topic_name(self, connection: apsw.Connection, number: int) -> str:
        """Return the name of a topic that has chunks."""
        ...

    def keeps_newest(self, connection: apsw.Connection, name: str) -> bool:
        """Tell whether a topic keeps the newest record of each key, so that there are holes in its partitions."""
        ...


class SqliteReader:
    """Reads chunks of its partitions in the order in which they were committed.

    Behind the head it looks into each partition; once all are read to the end as of one moment, it follows the commits.
    """

    def __init__(self, log: Source, after: Mapping[TopicPartition, Offset]) -> None:
        self._log = log
        self._after: dict[TopicPartition, Offset] = {}
        self._live_id: int | None = None  # every chunk up to this id is read; None: look into each partition
        self._gone: int | None = None  # so many records were deleted from the log when none of ours were lost; None: look
        self._closed = False
        self.assign(after)

    def assign(self, after: Mapping[TopicPartition, Offset]) -> None:
        for where, offset in after.items():
            if where not in self._after:
                self._after[where] = offset
                self._live_id = self._gone = None
        self._log.wake()

    def revoke(self, partitions: Sequence[TopicPartition]) -> None:
        for where in partitions:
            self._after.pop(where, None)

    def close(self) -> None:
        self._closed = True
        self._log.wake()

    async def next(self, *, max_records: int = 4_096, max_bytes: int = 1 << 20) -> Batch:
        while True:
            if self._closed:
                raise Closed("the reader was closed")
            strokes = self._log.strokes
            chunks = self._read(max_records, max_bytes)
            if chunks:
                return Batch(chunks, {chunk.where: chunk.last for chunk in chunks})
            await self._log.heard(strokes)

    def _read(self, max_records: int, max_bytes: int) -> Sequence[Chunk]:
        if not self._after:
            return []
        chunks: list[Chunk] = []
        records = size = 0
        with self._log.reading() as connection:
            self._check_gone(connection)
            was_live = self._live_id is not None
            ids = self._ids_live(connection) if was_live else self._ids_behind(connection)
            for id_, where in ids:
                ((first, body),) = rows_of(connection, "SELECT first, body FROM chunk WHERE id = ?", (id_,))
                try:
                    self._check_gap(connection, where, first)
                    chunk = Chunk.from_bytes(body, where, Offset(first), after=self._after[where])
                except FileError:
                    if chunks:
                        break  # what stands before the damage first; the next look meets it again
                    raise
                chunks.append(chunk)
                self._after[where] = chunk.last
                if was_live:
                    self._live_id = id_
                records += len(chunk)
                size += len(body)
                if records >= max_records or size >= max_bytes:
                    break
        return chunks

    def _check_gone(self, connection: apsw.Connection) -> None:
        """Check that nothing was deleted before it was read. One look at a number, unless retention has been at work.

        Raises:
            RecordsGone: It was; names the first partition found.
        """
        gone: int = first_of(connection, "SELECT records FROM gone")
        if gone == self._gone:
            return
        for where, after in self._after.items():
            topic = self._log.topic_id(connection, where.topic)
            if topic is None or self._log.keeps_newest(connection, where.topic):
                continue
            lost = lost_through(connection, topic, where.partition)
            if after < lost:
                raise RecordsGone(*where, after=after, first=lost)
        self._gone = gone

    def _check_gap(self, connection: apsw.Connection, where: TopicPartition, first: int) -> None:
        """Check that the next chunk of a partition begins where the last one ended.

        Raises:
            FileDamaged: Records are missing that retention has not deleted.
        """
        after = self._after[where]
        if first > after + 1 and not self._log.keeps_newest(connection, where.topic):
            raise FileDamaged(
                f"expected the record behind offset {after} of {where.topic}/{where.partition}, found the one at {first}: records are "
                f"missing, and retention has not deleted them. Restore the log from a backup"
            )

    def _ids_live(self, connection: apsw.Connection) -> Sequence[tuple[int, TopicPartition]]:
        """Return the next chunks behind the last commit read, of the partitions assigned."""
        while True:
            rows = rows_of(
                connection,
                "SELECT id, topic, part, last FROM chunk WHERE id > ? ORDER BY id LIMIT ?",
                (self._live_id, _IDS_PER_LOOK),
            )
            found: list[tuple[int, TopicPartition]] = []
            for id_, topic, part, last in rows:
                where = TopicPartition(self._log.topic_name(connection, topic), part)
                if last > self._after.get(where, last):
                    found.append((id_, where))
            if found or not rows:
                return found
            self._live_id = rows[-1][0]

    def _ids_behind(self, connection: apsw.Connection) -> Sequence[tuple[int, TopicPartition]]:
        """Return the next chunks of every partition, oldest commit first; go live where that is all there is."""
        found: list[tuple[int, TopicPartition]] = []
        is_all = True
        top: int = first_of(connection, "SELECT max(id) FROM chunk") or 0
        for where, after in self._after.items():
            topic = self._log.topic_id(connection, where.topic)
            if topic is None:
                continue
            rows = rows_of(
                connection,
                "SELECT id FROM chunk WHERE topic = ? AND part = ? AND last > ? ORDER BY last LIMIT ?",
                (topic, where.partition, after, _IDS_PER_LOOK),
            )
            found.extend((id_, where) for (id_,) in rows)
            is_all = is_all and len(rows) < _IDS_PER_LOOK
        found.sort()
        if not found and is_all:
            self._live_id = top
        return found
