"""The log in one SQLite file: many processes publish to it and read it at once.

    topic     id · name · spec                        producer  name · topic · part → numbers seen, hash of its newest batch
    part      topic · part → next, first, gone        chunk     id (commit number << 20 | place) · topic · part · first · last · logged_at · body

What is queued together becomes one chunk per partition, of any producers. Only `chunk` knows a chunk's bounds.
"""

from __future__ import annotations

from collections.abc import Coroutine, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Final, NamedTuple
from uuid import UUID

import apsw
import msgspec

from everlog.admission import Numbering, Part, Ruling, parts_of, rule, runs_of
from everlog.clock import Clock, to_us
from everlog.codec import MAX_CHUNK_BYTES, MAX_CHUNK_RECORDS, Batch, Chunk, ProducerRun, encode_chunk, split
from everlog.dedupe import Seen
from everlog.drivers.sqlite.connection import Kind, connect, disconnect
from everlog.drivers.sqlite.database import HEAD_TABLE, Database, Group, NothingStored, OutcomeUnknown
from everlog.drivers.sqlite.rows import first_of, rows_of
from everlog.errors import (
    Closed,
    EverlogError,
    FeatureMissing,
    FileError,
    LogError,
    LogReadOnly,
    StartRefused,
    TopicMissing,
)
from everlog.log import Appended, Backlog, Expect, Features, Log, ProducerBatch, Status, TopicSpec
from everlog.position import Offset, Position, TopicPartition
from everlog.record import MAX_DATA_BYTES, NewRecord
from everlog.topics import check_honoured, merged

_KIND: Final = Kind(
    "log",
    application_id=0x45564C47,  # "EVLG"
    version=1,
    tables=HEAD_TABLE
    + """;
    CREATE TABLE meta (name TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT, WITHOUT ROWID;
    INSERT INTO meta VALUES ('identity', randomblob(16));
    CREATE TABLE log_time (last_us INTEGER NOT NULL) STRICT;
    INSERT INTO log_time VALUES (0);
    CREATE TABLE topic (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, spec BLOB NOT NULL) STRICT;
    CREATE TABLE part (
        topic INTEGER NOT NULL, part INTEGER NOT NULL,
        next_offset INTEGER NOT NULL, first_offset INTEGER NOT NULL, gone_through_us INTEGER NOT NULL,
        PRIMARY KEY (topic, part)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE chunk (
        id INTEGER PRIMARY KEY, topic INTEGER NOT NULL, part INTEGER NOT NULL,
        first INTEGER NOT NULL, last INTEGER NOT NULL, logged_at_us INTEGER NOT NULL, body BLOB NOT NULL
    ) STRICT;
    CREATE UNIQUE INDEX chunk_place ON chunk (topic, part, last);
    CREATE TABLE producer (
        name TEXT NOT NULL, topic INTEGER NOT NULL, part INTEGER NOT NULL, highest INTEGER NOT NULL, missing BLOB NOT NULL,
        newest_first INTEGER NOT NULL, newest_count INTEGER NOT NULL, newest_content BLOB NOT NULL,
        named INTEGER NOT NULL, seen_us INTEGER NOT NULL,
        PRIMARY KEY (name, topic, part)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE idempotent (
        topic INTEGER NOT NULL, source TEXT NOT NULL, key TEXT NOT NULL,
        hash BLOB NOT NULL, part INTEGER NOT NULL, "offset" INTEGER NOT NULL, at_us INTEGER NOT NULL,
        PRIMARY KEY (topic, source, key)
    ) STRICT, WITHOUT ROWID;
    """,
)
_PLACE_BITS: Final = 20
_SESSION_IDLE_US: Final = 7 * 86_400 * 1_000_000
_SWEEP_EVERY_US: Final = 3_600 * 1_000_000
_REMEMBERED_PRODUCERS: Final = 50_000
_IDS_PER_LOOK: Final = 64
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
_NO_RANGES: Final = msgspec.msgpack.encode([])
_ranges: Final = msgspec.msgpack.Decoder(list[tuple[int, int]])
_specs: Final = msgspec.json.Decoder(TopicSpec)


class _Append(NamedTuple):
    topic: str
    records: Sequence[NewRecord]
    producer: ProducerBatch | None


class _Topic(NamedTuple):
    id: int
    spec: TopicSpec


class _Tail:
    """A partition's records that the group has added, on their way into chunks."""

    __slots__ = ("base", "records", "runs")

    def __init__(self, base: int) -> None:
        self.base = base
        self.records: list[NewRecord] = []
        self.runs: list[ProducerRun] = []


class _Writer:
    """What the writer thread remembers of the file, valid while no other process commits."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._topics: dict[str, _Topic] = {}
        self._next: dict[tuple[int, int], int] = {}
        self._numberings: dict[tuple[str, int, int], Numbering] = {}
        self._last_us = 0
        self._swept_us = 0

    def apply(self, group: Group, jobs: Sequence[_Append | TopicSpec]) -> Sequence[Appended | Exception | None]:
        """Apply one group: topics at once, records as one chunk per partition at the end."""
        connection = group.connection
        if not group.alone or len(self._numberings) > _REMEMBERED_PRODUCERS:
            self._topics.clear()
            self._next.clear()
            self._numberings.clear()
            ((self._last_us,),) = rows_of(connection, "SELECT last_us FROM log_time")
        self._last_us = max(self._last_us, self._clock.wall_us())
        tails: dict[tuple[int, int], _Tail] = {}
        touched: dict[tuple[str, int, int], bool] = {}  # producers that sent something, and whether they gave a name
        results: list[Appended | Exception | None] = []
        for job in jobs:
            try:
                if isinstance(job, TopicSpec):
                    self._ensure(connection, job)
                    results.append(None)
                else:
                    results.append(self._append(connection, job, tails, touched))
            except (EverlogError, ValueError) as refusal:  # decided before anything of the job was changed
                results.append(refusal)
        self._write_chunks(group, tails)
        self._write_producers(connection, touched)
        return results

    def _topic(self, connection: apsw.Connection, name: str) -> _Topic | None:
        topic = self._topics.get(name)
        if topic is None:
            found = rows_of(connection, "SELECT id, spec FROM topic WHERE name = ?", (name,))
            if not found:
                return None
            topic = self._topics[name] = _Topic(found[0][0], _specs.decode(found[0][1]))
        return topic

    def _ensure(self, connection: apsw.Connection, declared: TopicSpec) -> None:
        topic = self._topic(connection, declared.name)
        if topic is None:
            connection.execute("INSERT INTO topic (name, spec) VALUES (?, ?)", (declared.name, msgspec.json.encode(declared)))
            number = connection.last_insert_rowid()
            parts = [(number, part) for part in range(declared.partitions)]
            connection.executemany("INSERT INTO part VALUES (?, ?, 0, 0, 0)", parts)
            return
        spec = merged(topic.spec, declared)
        if spec is not topic.spec:
            connection.execute("UPDATE topic SET spec = ? WHERE id = ?", (msgspec.json.encode(spec), topic.id))
            self._topics[declared.name] = _Topic(topic.id, spec)

    def _append(
        self,
        connection: apsw.Connection,
        job: _Append,
        tails: dict[tuple[int, int], _Tail],
        touched: dict[tuple[str, int, int], bool],
    ) -> Appended:
        topic = self._topic(connection, job.topic)
        if topic is None:
            raise TopicMissing(job.topic)
        name = job.producer.name if job.producer else ""
        ruled: list[tuple[Part, Numbering | None, Ruling]] = []
        for part in parts_of(topic.spec, job.records, job.producer):  # all are ruled before one is taken
            numbering = self._numbering(connection, name, topic.id, part.partition) if name else None
            ruled.append(
                (part, numbering, rule(part, numbering, topic=job.topic, producer=name, max_record_bytes=MAX_DATA_BYTES))
            )
        count = len(job.records)
        statuses = [Status.DUPLICATE] * count
        offsets: list[Offset | None] = [None] * count
        errors: list[EverlogError | None] = []
        for part, numbering, ruling in ruled:
            if ruling.error is not None:
                errors = errors or [None] * count
                for index in part.indices:
                    statuses[index], errors[index] = ruling.status, ruling.error
            if not ruling.store:
                continue
            if numbering is not None and job.producer is not None:
                numbering.take(part, ruling)
                touched[name, topic.id, part.partition] = job.producer.named
            place = (topic.id, part.partition)
            tail = tails.get(place)
            if tail is None:
                tail = tails[place] = _Tail(self._next_offset(connection, place))
            offset = tail.base + len(tail.records)
            tail.runs.extend(runs_of(part, ruling.store, name))
            for at in ruling.store:
                tail.records.append(part.records[at])
                index = part.indices[at]
                statuses[index], offsets[index] = Status.STORED, Offset(offset)
                offset += 1
        return Appended(statuses, offsets, errors)

    def _numbering(self, connection: apsw.Connection, name: str, topic: int, part: int) -> Numbering:
        known = self._numberings.get((name, topic, part))
        if known is None:
            found = rows_of(
                connection,
                "SELECT highest, missing, newest_first, newest_count, newest_content FROM producer "
                "WHERE name = ? AND topic = ? AND part = ?",
                (name, topic, part),
            )
            known = Numbering()
            for highest, missing, first, count, content in found:
                known = Numbering(Seen(highest, _ranges.decode(missing)), first, count, content)
            self._numberings[name, topic, part] = known
        return known

    def _next_offset(self, connection: apsw.Connection, place: tuple[int, int]) -> int:
        known = self._next.get(place)
        if known is None:
            ((known,),) = rows_of(connection, "SELECT next_offset FROM part WHERE topic = ? AND part = ?", place)
            self._next[place] = known
        return known

    def _write_chunks(self, group: Group, tails: Mapping[tuple[int, int], _Tail]) -> None:
        rows: list[tuple[Any, ...]] = []
        for (topic, part), tail in tails.items():
            for start, stop, records, runs in _pieces(tail):
                body = encode_chunk(records, runs, self._last_us)
                first, last = tail.base + start, tail.base + stop - 1
                rows.append((group.number << _PLACE_BITS | len(rows), topic, part, first, last, self._last_us, body))
            self._next[topic, part] = tail.base + len(tail.records)
        if rows:
            group.connection.executemany("INSERT INTO chunk VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
            nexts = [(self._next[place], *place) for place in tails]
            group.connection.executemany("UPDATE part SET next_offset = ? WHERE topic = ? AND part = ?", nexts)
            group.connection.execute("UPDATE log_time SET last_us = ?", (self._last_us,))

    def _write_producers(self, connection: apsw.Connection, touched: Mapping[tuple[str, int, int], bool]) -> None:
        if not touched:
            return
        now_us = self._clock.wall_us()
        rows: list[tuple[Any, ...]] = []
        for place, named in touched.items():
            known = self._numberings[place]
            missing = msgspec.msgpack.encode(known.seen.missing) if known.seen.missing else _NO_RANGES
            newest = (known.newest_first, known.newest_count, known.newest_content)
            rows.append((*place, known.seen.highest, missing, *newest, named, now_us))
        connection.executemany(
            "INSERT INTO producer VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET highest = excluded.highest, "
            "missing = excluded.missing, newest_first = excluded.newest_first, newest_count = excluded.newest_count, "
            "newest_content = excluded.newest_content, named = max(named, excluded.named), seen_us = excluded.seen_us",
            rows,
        )
        if now_us - self._swept_us > _SWEEP_EVERY_US:
            self._swept_us = now_us
            connection.execute("DELETE FROM producer WHERE NOT named AND seen_us < ?", (now_us - _SESSION_IDLE_US,))
            self._numberings.clear()


def _pieces(tail: _Tail) -> Iterator[tuple[int, int, Sequence[NewRecord], Sequence[ProducerRun]]]:
    """Yield the chunks that a tail becomes: start, stop, records, and the producers' runs cut to fit."""
    sizes = [len(record.data) for record in tail.records]
    if len(sizes) <= MAX_CHUNK_RECORDS and sum(sizes) <= MAX_CHUNK_BYTES:
        yield 0, len(sizes), tail.records, tail.runs
        return
    for start, stop in split(sizes):
        yield start, stop, tail.records[start:stop], list(_cut(tail.runs, start, stop))


def _cut(runs: Sequence[ProducerRun], start: int, stop: int) -> Iterator[ProducerRun]:
    """Yield the parts of `runs` that cover the places from `start` up to, but without, `stop`."""
    at = 0
    for name, first, count in runs:
        low, high = max(at, start), min(at + count, stop)
        if low < high:
            yield ProducerRun(name, first + low - at if name else -1, high - low)
        at += count


class SqliteReader:
    """Reads chunks of its partitions in the order in which they were committed.

    Behind the head it looks into each partition; once all are read to the end as of one moment, it follows the commits.
    """

    def __init__(self, log: SqliteLog, after: Mapping[TopicPartition, Offset]) -> None:
        self._log = log
        self._after: dict[TopicPartition, Offset] = {}
        self._live_id: int | None = None  # every chunk up to this id is read; None: look into each partition
        self._closed = False
        self.assign(after)

    def assign(self, after: Mapping[TopicPartition, Offset]) -> None:
        for where, offset in after.items():
            if where not in self._after:
                self._after[where] = offset
                self._live_id = None
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
            was_live = self._live_id is not None
            ids = self._ids_live(connection) if was_live else self._ids_behind(connection)
            for id_, where in ids:
                ((first, body),) = rows_of(connection, "SELECT first, body FROM chunk WHERE id = ?", (id_,))
                try:
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


class SqliteLog:
    """A log in one file. See the port for what each method promises."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self._path = path
        self._clock = clock
        self._ids: dict[str, int] = {}
        self._names: dict[int, str] = {}
        self._identity = UUID(int=0)
        self._database: Database[_Append | TopicSpec, Appended | None] = Database(
            path,
            _KIND,
            _Writer(clock).apply,
            size_of=_size,
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
        return self._appended(self._database.submit(_Append(topic, records, producer)), len(records))

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
                "SELECT part, next_offset, first_offset FROM part WHERE topic = ?",
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
            parts = rows_of(connection, "SELECT part, first_offset, next_offset FROM part WHERE topic = ?", (number,))
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
                    connection, "SELECT next_offset, first_offset FROM part WHERE topic = ? AND part = ?", (number, part)
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
        connection = connect(self._path, _KIND, create=False, writes=False)
        try:
            found: list[str] = []
            for (line,) in rows_of(connection, "PRAGMA integrity_check"):
                if line != "ok":
                    found.append(f"{self._path}: {line}")
            gaps = connection.execute(
                """SELECT topic.name, part.part, first_offset, next_offset, coalesce(sum(last - first + 1), 0)
                   FROM part JOIN topic ON topic.id = part.topic LEFT JOIN chunk ON chunk.topic = part.topic AND chunk.part = part.part
                   GROUP BY part.topic, part.part"""
            )
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


def _size(job: _Append | TopicSpec) -> int:
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
