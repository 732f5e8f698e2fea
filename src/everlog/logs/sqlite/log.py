"""The log in one SQLite file: many processes publish to it and read it at once. See the port for what each method promises."""

from __future__ import annotations

from collections.abc import Coroutine, Generator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import apsw
import msgspec

from everlog.clock import Clock, to_us
from everlog.codec import Batch
from everlog.drivers.sqlite.connection import connect, disconnect
from everlog.drivers.sqlite.database import Database, NothingStored, OutcomeUnknown
from everlog.drivers.sqlite.rows import first_of, rows_of
from everlog.errors import FeatureMissing, LogError, LogReadOnly, StartRefused, TopicMissing
from everlog.log import Appended, Backlog, Expect, Features, Log, ProducerBatch, Status, TopicSpec
from everlog.logs.sqlite.reader import SqliteReader
from everlog.logs.sqlite.tables import LOG, NEXT_OFFSET
from everlog.logs.sqlite.writer import Append, Writer
from everlog.position import Offset, Position, TopicPartition
from everlog.record import MAX_DATA_BYTES, NewRecord
from everlog.topics import check_honoured

_FEATURES: Final = Features(
    durability="fsync",
    dedupes=True,
    conditional_append=False,
    idempotency_keys=False,
    total_order=True,
    log_time=True,
    retention=False,
    shared=True,
    max_record_bytes=MAX_DATA_BYTES,
)
_specs: Final = msgspec.json.Decoder(TopicSpec)


class SqliteLog:
    """A log in one file. See the port for what each method promises."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self._path = path
        self._clock = clock
        self._ids: dict[str, int] = {}
        self._names: dict[int, str] = {}
        self._identity = UUID(int=0)
        self._database: Database[Append | TopicSpec, Appended | None] = Database(
            path,
            LOG,
            Writer().apply,
            size_of=_size,
            wall_us=clock.wall_us,
        )

    async def open(self) -> None:
        """Open the file, once, before anything else.

        Raises:
            FileError: It is strange, newer or damaged, or its place cannot hold it.
        """
        await self._database.open()
        with self.reading() as connection:
            ((identity,),) = rows_of(connection, "SELECT value FROM meta WHERE name = 'identity'")
        self._identity = UUID(bytes=identity)

    @property
    def identity(self) -> UUID:
        return self._identity

    @property
    def features(self) -> Features:
        return _FEATURES

    @property
    def strokes(self) -> int:
        """The bell's strokes so far, for readers."""
        return self._database.bell.strokes

    def wake(self) -> None:
        """Let every waiting reader look again."""
        self._database.bell.wake()

    async def heard(self, strokes: int) -> None:
        """Wait for a stroke after the `strokes`-th."""
        await self._database.bell.wait(strokes)

    @contextmanager
    def reading(self) -> Generator[apsw.Connection]:
        """Lend the reading connection, in one transaction: all that is read in it is of one moment."""
        with self._database.reading() as connection:
            connection.execute("BEGIN")
            try:
                yield connection
            finally:
                connection.execute("COMMIT")

    def topic_id(self, connection: apsw.Connection, name: str) -> int | None:
        """Return the number of a topic; ``None`` where there is none."""
        known = self._ids.get(name)
        if known is None:
            known = first_of(connection, "SELECT id FROM topic WHERE name = ?", (name,))
            if known is None:
                return None
            self._ids[name] = known
        return known

    def topic_name(self, connection: apsw.Connection, number: int) -> str:
        """Return the name of a topic that has chunks."""
        known = self._names.get(number)
        if known is None:
            ((known,),) = rows_of(connection, "SELECT name FROM topic WHERE id = ?", (number,))
            self._names[number] = known
        return known

    async def ensure_topic(self, topic: TopicSpec) -> None:
        check_honoured(topic, _FEATURES, adapter="the SQLite log")
        await self._written(self._database.submit(topic))

    async def topics(self) -> Sequence[TopicSpec]:
        with self.reading() as connection:
            return [_specs.decode(row[0]) for row in rows_of(connection, "SELECT spec FROM topic ORDER BY name")]

    def append(
        self,
        topic: str,
        records: Sequence[NewRecord],
        *,
        producer: ProducerBatch | None = None,
        expect: Expect | None = None,
    ) -> Coroutine[Any, Any, Appended]:
        if expect is not None:
            raise FeatureMissing("append(expect=...)", adapter="the SQLite log", instead="publish without a condition")
        return self._appended(self._database.submit(Append(topic, records, producer)), len(records))

    async def _appended(self, submitted: Any, count: int) -> Appended:
        try:
            result: Appended = await submitted
        except OutcomeUnknown as error:
            lost = LogError(
                f"{self._path}: the commit failed ({error}), so whether it is stored is unknown: send it again under its number"
            )
            return Appended([Status.UNKNOWN] * count, [None] * count, [lost] * count)
        except NothingStored as error:
            raise self._read_only(error) from error
        return result

    async def _written(self, submitted: Any) -> None:
        try:
            await submitted
        except (NothingStored, OutcomeUnknown) as error:
            raise self._read_only(error) from error

    def _read_only(self, error: Exception) -> LogReadOnly:
        return LogReadOnly(
            f"{self._path} takes no writes ({error}): nothing was stored, reading goes on; make room or give permission"
        )

    async def last_sequence(self, producer: str, topic: str) -> Mapping[int, int]:
        with self.reading() as connection:
            number = self.topic_id(connection, topic)
            query = "SELECT part, highest FROM producer WHERE name = ? AND topic = ?"
            return dict(rows_of(connection, query, (producer, number)))

    def reader(self, after: Mapping[TopicPartition, Offset]) -> SqliteReader:
        return SqliteReader(self, after)

    async def first(self, topic: str) -> Position:
        return self._edge(topic, "first_offset")

    async def head(self, topic: str) -> Position:
        return self._edge(topic, "next_offset")

    def _edge(self, topic: str, column: str) -> Position:
        with self.reading() as connection:
            rows = rows_of(
                connection,
                f"SELECT part, {NEXT_OFFSET}, first_offset FROM part WHERE topic = ?",
                (self._existing(connection, topic),),
            )
        chosen = {part: next_ if column == "next_offset" else first for part, next_, first in rows}
        return Position(self._identity, {TopicPartition(topic, part): Offset(edge - 1) for part, edge in chosen.items()})

    def _existing(self, connection: apsw.Connection, topic: str) -> int:
        number = self.topic_id(connection, topic)
        if number is None:
            raise TopicMissing(topic)
        return number

    async def position_at(self, topic: str, time: datetime) -> Position:
        time_us = to_us(time)
        offsets: dict[TopicPartition, Offset] = {}
        with self.reading() as connection:
            number = self._existing(connection, topic)
            parts = rows_of(connection, f"SELECT part, first_offset, {NEXT_OFFSET} FROM part WHERE topic = ?", (number,))
            for part, first, next_ in parts:
                low, high = first, next_  # the first record at or after the time lies in low … high
                while low < high:
                    middle = (low + high) // 2
                    ((start, last, logged_at_us),) = rows_of(
                        connection,
                        "SELECT first, last, logged_at_us FROM chunk WHERE topic = ? AND part = ? AND last >= ? ORDER BY last LIMIT 1",
                        (number, part, middle),
                    )
                    low, high = (last + 1, high) if logged_at_us < time_us else (low, min(start, middle))
                offsets[TopicPartition(topic, part)] = Offset(low - 1)
        return Position(self._identity, offsets)

    async def backlog(self, topic: str, after: Mapping[int, Offset]) -> Backlog:
        count, oldest_us = 0, None
        with self.reading() as connection:
            number = self._existing(connection, topic)
            for part, offset in after.items():
                ((next_, first),) = rows_of(
                    connection, f"SELECT {NEXT_OFFSET}, first_offset FROM part WHERE topic = ? AND part = ?", (number, part)
                )
                waiting = next_ - max(offset + 1, first)
                if waiting <= 0:
                    continue
                count += waiting
                ((logged_at_us,),) = rows_of(
                    connection,
                    "SELECT logged_at_us FROM chunk WHERE topic = ? AND part = ? AND last > ? ORDER BY last LIMIT 1",
                    (number, part, offset),
                )
                oldest_us = logged_at_us if oldest_us is None else min(oldest_us, logged_at_us)
        return Backlog(count, oldest_us)

    async def trim(self, topic: str, before: Position) -> None:  # noqa: ARG002 the port asks for them
        raise FeatureMissing("retention", adapter="the SQLite log", instead="keep everything for now")

    async def read_stream(self, topic: str, key: str, *, after: Offset | None) -> Batch:  # noqa: ARG002 the port asks for them
        raise FeatureMissing("reading one stream", adapter="the SQLite log", instead="read the topic and choose the key")

    async def verify(self) -> Sequence[str]:
        connection = connect(self._path, LOG, create=False, writes=False)
        try:
            found: list[str] = []
            for (line,) in rows_of(connection, "PRAGMA integrity_check"):
                if line != "ok":
                    found.append(f"{self._path}: {line}")
            gaps = connection.execute(
                f"""SELECT topic.name, part.part, first_offset, {NEXT_OFFSET}, coalesce(sum(last - first + 1), 0)
                   FROM part JOIN topic ON topic.id = part.topic LEFT JOIN chunk ON chunk.topic = part.topic AND chunk.part = part.part
                   GROUP BY part.topic, part.part"""
            )
            ends = first_of(connection, f"SELECT coalesce(sum({NEXT_OFFSET}), 0) FROM part")
            total = first_of(connection, "SELECT total FROM head")
            if ends != total:
                found.append(f"{self._path}: expected {total:,} records since the log was made, found {ends:,}")
            for name, part, first, next_, held in gaps:
                if held != next_ - first:
                    found.append(f"{name}/{part}: expected {next_ - first} records from offset {first} on, found {held}")
            return found
        except apsw.Error as error:
            return [f"{self._path}: {error}"]
        finally:
            disconnect(connection)

    async def aclose(self) -> None:
        await self._database.aclose()


def _size(job: Append | TopicSpec) -> int:
    return 1_000 if isinstance(job, TopicSpec) else sum([len(record.data) for record in job.records]) + 100 * len(job.records)


async def open_log(url: str, *, clock: Clock) -> Log:
    """Open, or make, the log in the file that `sqlite:PATH` names.

    Raises:
        StartRefused: The URL names no file.
        FileError: The file is strange, newer or damaged, or its place cannot hold it. It was not touched.
    """
    place = url.removeprefix("sqlite:")
    if not place or place == ":memory:" or "?" in place:
        raise StartRefused(f"expected sqlite:PATH as log, found {url!r}: for a log in memory use memory:")
    log = SqliteLog(Path.cwd() / place, clock)
    await log.open()
    return log
