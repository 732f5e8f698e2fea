"""The log in one SQLite file: many processes publish to it and read it at once. See the port for what each method promises."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import apsw
import msgspec

from everlog.appending import Append
from everlog.clock import Clock, Steady, to_us
from everlog.codec import Batch
from everlog.drivers.sqlite.database import Database, NothingStored, OutcomeUnknown
from everlog.drivers.sqlite.rows import first_of, rows_of
from everlog.errors import FeatureMissing, LogError, LogReadOnly, PositionRefused, StartRefused, TopicMissing
from everlog.log import Appended, Backlog, Expect, Features, Log, ProducerBatch, Status, TopicSpec
from everlog.logs.sqlite.check import faults
from everlog.logs.sqlite.jobs import Done, Job, Limiting, is_alone, size_of
from everlog.logs.sqlite.places import first_offsets, next_offsets, offsets_at, waiting
from everlog.logs.sqlite.reader import SqliteReader
from everlog.logs.sqlite.retention import Deletion, GiveBack, Mark, Sweep, marks_by_limits, pages_to_spare
from everlog.logs.sqlite.tables import LOG
from everlog.logs.sqlite.writer import Writer
from everlog.position import Offset, Position, TopicPartition
from everlog.record import MAX_DATA_BYTES, NewRecord
from everlog.topics import check_honoured, check_limits

_FEATURES: Final = Features(
    durability="fsync",
    dedupes=True,
    conditional_append=False,
    idempotency_keys=True,
    total_order=True,
    log_time=True,
    retention=True,
    shared=True,
    backup=True,
    max_record_bytes=MAX_DATA_BYTES,
)
_specs: Final = msgspec.json.Decoder(TopicSpec)


class SqliteLog:
    """A log in one file. See the port for what each method promises."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self._path = path
        self._steady = Steady(clock)
        self._ids: dict[str, int] = {}
        self._names: dict[int, str] = {}
        self._keep_newest: dict[str, bool] = {}
        self._identity = UUID(int=0)
        self._database: Database[Job, Done] = Database(
            path, LOG, Writer(self._steady).apply, size_of=size_of, wall_us=clock.wall_us, is_alone=is_alone
        )

    async def open(self) -> None:
        """Open the file, once, before anything else.

        Raises:
            FileError: It is strange, newer or damaged, or its place cannot hold it.
        """
        await self._database.open()
        try:
            with self.reading() as connection:
                ((identity,),) = rows_of(connection, "SELECT value FROM meta WHERE name = 'identity'")
        except BaseException:
            await self._database.aclose()
            raise
        self._identity = UUID(bytes=identity)

    @property
    def identity(self) -> UUID:
        return self._identity

    @property
    def features(self) -> Features:
        return _FEATURES

    def measure(self, told: Callable[[float], None]) -> None:
        """Tell of each commit from now on, as `everlog.observe.meters.Measured` says."""
        self._database.told = told

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
                if connection.in_transaction:  # damage has ended it already
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

    def keeps_newest(self, connection: apsw.Connection, name: str) -> bool:
        """Tell whether a topic keeps the newest record of each key, so that there are holes in its partitions."""
        known = self._keep_newest.get(name)
        if known is None:
            encoded = first_of(connection, "SELECT spec FROM topic WHERE name = ?", (name,))
            if encoded is None:
                return False
            known = self._keep_newest[name] = _specs.decode(encoded).keep_newest
        return known

    async def ensure_topic(self, topic: TopicSpec) -> None:
        check_honoured(topic, _FEATURES, adapter="the SQLite log")
        await self._written(self._database.submit(topic))

    async def set_retention(self, topic: str, *, keep_s: float | None, keep_bytes: int | None) -> None:
        check_limits(keep_s, keep_bytes)
        await self._written(self._database.submit(Limiting(topic, keep_s, keep_bytes)))

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

    async def _written(self, submitted: Any) -> Any:
        try:
            return await submitted
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
        return self._position(topic, first_offsets)

    async def head(self, topic: str) -> Position:
        return self._position(topic, next_offsets)

    async def position_at(self, topic: str, time: datetime) -> Position:
        time_us = to_us(time)
        return self._position(topic, lambda connection, number: offsets_at(connection, number, time_us))

    def _position(self, topic: str, found: Callable[[apsw.Connection, int], Mapping[int, int]]) -> Position:
        """Return the position before the offset that `found` gives for each partition."""
        with self.reading() as connection:
            offsets = found(connection, self._existing(connection, topic))
        return Position(self._identity, {TopicPartition(topic, part): Offset(offset - 1) for part, offset in offsets.items()})

    def _existing(self, connection: apsw.Connection, topic: str) -> int:
        number = self.topic_id(connection, topic)
        if number is None:
            raise TopicMissing(topic)
        return number

    async def backlog(self, topic: str, after: Mapping[int, Offset]) -> Backlog:
        count, oldest_us = 0, None
        with self.reading() as connection:
            number = self._existing(connection, topic)
            for part, offset in after.items():
                records, logged_at_us = waiting(connection, (number, part), offset)
                count += records
                if logged_at_us is not None:
                    oldest_us = logged_at_us if oldest_us is None else min(oldest_us, logged_at_us)
        return Backlog(count, oldest_us)

    async def gone_through(self, topic: str) -> Mapping[int, int]:
        with self.reading() as connection:
            query = "SELECT part, gone_through_us FROM part WHERE topic = ? AND gone > 0"
            return dict(rows_of(connection, query, (self._existing(connection, topic),)))

    async def trim(self, topic: str, before: Position) -> None:
        if before.log != self._identity:
            raise PositionRefused(
                f"the position belongs to log {before.log}, and this log is {self._identity}: nothing was deleted"
            )
        with self.reading() as connection:
            number = self._existing(connection, topic)
        places = [(where.partition, offset) for where, offset in before.offsets.items() if where.topic == topic]
        await self._delete([Mark(number, part, None, last_most=offset) for part, offset in places])

    async def retain(self) -> int:
        with self.reading() as connection:
            marks = marks_by_limits(connection, self._steady.wall_us())
        return await self._delete(marks)

    async def _delete(self, marks: Sequence[Mark]) -> int:
        """Delete what marks allow, and give back pages, a step at a time; return how many records were deleted."""
        records, sweep = 0, Sweep(marks)
        while not sweep.is_done:
            with self.reading() as connection:
                cuts = sweep.next(connection)
            if not cuts:
                await asyncio.sleep(0)
                continue
            deleted: int = await self._written(self._database.submit(Deletion(cuts)))
            records += deleted
            if not deleted and cuts[0].limits is not None:
                break  # another process is at it, or the limits were changed
            await self._give_back(is_last=False)
        await self._give_back(is_last=True)
        return records

    async def _give_back(self, *, is_last: bool) -> None:
        """Take free pages out of the file, a step at a time, as far as that is worth while."""
        while True:
            with self.reading() as connection:
                pages = pages_to_spare(connection, is_last=is_last)
            if not pages or not await self._written(self._database.submit(GiveBack(pages))):
                return

    async def read_stream(self, topic: str, key: str, *, after: Offset | None) -> Batch:  # noqa: ARG002 the port asks for them
        raise FeatureMissing("reading one stream", adapter="the SQLite log", instead="read the topic and choose the key")

    async def verify(self) -> Sequence[str]:
        return faults(self._path)

    async def backup(self, target: Path, *, progress: Callable[[int, int], None] | None = None, check: bool = True) -> None:
        await self._database.back_up(target, progress=progress, check=check)

    async def aclose(self) -> None:
        await self._database.aclose()


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
