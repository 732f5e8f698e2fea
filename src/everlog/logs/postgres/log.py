"""The log in a schema of a PostgreSQL database. See the port for what each method promises."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final, LiteralString, TypeVar
from uuid import UUID

import msgspec
from psycopg.errors import UniqueViolation

from everlog.appending import Append
from everlog.clock import Clock, Steady, to_us
from everlog.codec import Batch
from everlog.drivers.postgres.bell import Bell
from everlog.drivers.postgres.database import Connection, Database, NothingStored, NotRead, OutcomeUnknown
from everlog.drivers.postgres.place import Place, place_of
from everlog.errors import FeatureMissing, LogError, LogReadOnly, LogUnreachable, PositionRefused, TopicMissing
from everlog.log import Appended, Backlog, Expect, Features, Log, ProducerBatch, Status, TopicSpec
from everlog.logs.postgres import places
from everlog.logs.postgres.check import faults
from everlog.logs.postgres.reader import PostgresReader
from everlog.logs.postgres.retention import Mark, delete, give_back
from everlog.logs.postgres.segments import make_topic_table
from everlog.logs.postgres.tables import LOG
from everlog.logs.postgres.writer import Writer
from everlog.position import Offset, Position, TopicPartition
from everlog.record import MAX_DATA_BYTES, NewRecord
from everlog.topics import check_honoured, check_limits, merged

T = TypeVar("T")

SCHEMA: Final = "everlog"
"""The schema of a log whose URL names none."""
_FEATURES: Final = Features(
    durability="fsync",
    dedupes=True,
    conditional_append=False,
    idempotency_keys=True,
    total_order=False,
    log_time=True,
    retention=True,
    shared=True,
    backup=False,
    max_record_bytes=MAX_DATA_BYTES,
)
_specs: Final = msgspec.json.Decoder(TopicSpec)


class PostgresLog:
    """A log in one schema. See the port for what each method promises."""

    def __init__(self, place: Place, clock: Clock) -> None:
        self._place = place
        self._steady = Steady(clock)
        self._database = Database(place, LOG)
        self._writer = Writer(self._database, self._steady)
        self._identity = UUID(int=0)

    async def open(self) -> None:
        """Connect, once, before anything else.

        Raises:
            StartRefused: The server does not let us in, or the schema is not one that this can use.
            LogUnreachable: The server does not answer.
        """
        await self._database.open()
        self._writer.begin()
        try:
            ((self._identity,),) = await self._rows("SELECT identity FROM identity")
        except BaseException:
            await self._database.aclose()
            raise

    @property
    def identity(self) -> UUID:
        return self._identity

    @property
    def features(self) -> Features:
        return _FEATURES

    @property
    def bell(self) -> Bell:
        """What wakes readers."""
        return self._database.bell

    def measure(self, told: Callable[[float], None]) -> None:
        """Tell of each commit from now on, as `everlog.observe.meters.Measured` says."""
        self._database.told = told

    async def look(self, work: Callable[[Connection], Awaitable[T]], *, is_one_moment: bool = False) -> T:
        """Read, for readers too.

        Raises:
            LogUnreachable: The server did not answer for a while.
        """
        try:
            return await self._database.read(work, is_one_moment=is_one_moment)
        except NotRead as error:
            raise LogUnreachable(f"{self._place.shown} cannot be read ({error}): start the server; nothing is lost") from error

    async def _rows(self, query: LiteralString, *values: object) -> list[tuple[Any, ...]]:
        async def read(connection: Connection) -> list[tuple[Any, ...]]:
            return await (await connection.execute(query, values or None)).fetchall()

        return await self.look(read)

    # ---- topics ----

    async def ensure_topic(self, topic: TopicSpec) -> None:
        check_honoured(topic, _FEATURES, adapter="the PostgreSQL log")
        found = await self._rows("SELECT spec FROM topic WHERE name = %s", topic.name)
        if found and merged(stored := _specs.decode(found[0][0]), topic) is stored:
            return  # as nearly always: a role that may not make tables still runs

        async def ensured(connection: Connection) -> None:
            row = await (
                await connection.execute("SELECT id, spec FROM topic WHERE name = %s FOR UPDATE", (topic.name,))
            ).fetchone()
            if row is None:
                await _make(connection, topic)
                return
            spec = _specs.decode(row[1])
            if (new := merged(spec, topic)) is not spec:
                await connection.execute("UPDATE topic SET spec = %s WHERE id = %s", (msgspec.json.encode(new), row[0]))

        while True:
            try:
                await self._written(ensured)
            except LogReadOnly as error:
                cause = error.__cause__
                if cause is not None and isinstance(cause.__cause__, UniqueViolation):
                    continue  # another process made it at the same time
                raise
            return

    async def set_retention(self, topic: str, *, keep_s: float | None, keep_bytes: int | None) -> None:
        check_limits(keep_s, keep_bytes)

        async def limited(connection: Connection) -> None:
            row = await (await connection.execute("SELECT id, spec FROM topic WHERE name = %s FOR UPDATE", (topic,))).fetchone()
            if row is None:
                raise TopicMissing(topic)
            spec = msgspec.structs.replace(_specs.decode(row[1]), keep_s=keep_s, keep_bytes=keep_bytes)
            await connection.execute("UPDATE topic SET spec = %s WHERE id = %s", (msgspec.json.encode(spec), row[0]))

        await self._written(limited)

    async def topics(self) -> Sequence[TopicSpec]:
        rows = await self._rows('SELECT spec FROM topic ORDER BY name COLLATE "C"')
        return [_specs.decode(spec) for (spec,) in rows]

    # ---- appending ----

    def append(
        self,
        topic: str,
        records: Sequence[NewRecord],
        *,
        producer: ProducerBatch | None = None,
        expect: Expect | None = None,
    ) -> Coroutine[Any, Any, Appended]:
        if expect is not None:
            raise FeatureMissing("append(expect=...)", adapter="the PostgreSQL log", instead="publish without a condition")
        return self._appended(self._writer.submit(Append(topic, records, producer)), len(records))

    async def _appended(self, submitted: Awaitable[Appended], count: int) -> Appended:
        try:
            return await submitted
        except OutcomeUnknown as error:
            lost = LogError(
                f"{self._place.shown}: the server did not answer to COMMIT ({error}), so whether it is stored is unknown: send it again under "
                f"its number"
            )
            return Appended([Status.UNKNOWN] * count, [None] * count, [lost] * count)
        except NothingStored as error:
            raise self._read_only(error) from error

    async def _written(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        try:
            return await self._database.write(work)
        except (NothingStored, OutcomeUnknown) as error:
            raise self._read_only(error) from error

    def _read_only(self, error: Exception) -> LogReadOnly:
        return LogReadOnly(
            f"{self._place.shown} takes no writes ({error}): nothing was stored; start the server, make room or give permission"
        )

    async def last_sequence(self, producer: str, topic: str) -> Mapping[int, int]:
        rows = await self._rows(
            "SELECT p.part, p.highest FROM producer AS p JOIN topic AS t ON t.id = p.topic WHERE p.name = %s AND t.name = %s",
            producer,
            topic,
        )
        return dict(rows)

    # ---- reading ----

    def reader(self, after: Mapping[TopicPartition, Offset]) -> PostgresReader:
        return PostgresReader(self, after)

    async def first(self, topic: str) -> Position:
        return await self._position(topic, places.first_offsets)

    async def head(self, topic: str) -> Position:
        return await self._position(topic, places.next_offsets)

    async def position_at(self, topic: str, time: datetime) -> Position:
        time_us = to_us(time)
        return await self._position(topic, lambda connection, number: places.offsets_at(connection, number, time_us))

    async def _position(self, topic: str, found: Callable[[Connection, int], Awaitable[Mapping[int, int]]]) -> Position:
        """Return the position before the offset that `found` gives for each partition."""
        offsets = await self._of_topic(topic, found)
        return Position(self._identity, {TopicPartition(topic, part): Offset(offset - 1) for part, offset in offsets.items()})

    async def _of_topic(self, topic: str, work: Callable[[Connection, int], Awaitable[T]]) -> T:
        async def read(connection: Connection) -> T:
            number = await places.topic_id(connection, topic)
            if number is None:
                raise TopicMissing(topic)
            return await work(connection, number)

        return await self.look(read, is_one_moment=True)

    async def backlog(self, topic: str, after: Mapping[int, Offset]) -> Backlog:
        return await self._of_topic(topic, lambda connection, number: places.waiting(connection, number, after))

    async def gone_through(self, topic: str) -> Mapping[int, int]:
        return await self._of_topic(topic, places.gone_through)

    async def read_stream(self, topic: str, key: str, *, after: Offset | None) -> Batch:  # noqa: ARG002 the port asks for them
        raise FeatureMissing("reading one stream", adapter="the PostgreSQL log", instead="read the topic and choose the key")

    # ---- keeping ----

    async def trim(self, topic: str, before: Position) -> None:
        if before.log != self._identity:
            raise PositionRefused(
                f"the position belongs to log {before.log}, and this log is {self._identity}: nothing was deleted"
            )
        ((number, spec),) = await self._numbered(topic)
        for where, offset in before.offsets.items():
            if where.topic == topic:
                await self._deleted(Mark(number, where.partition, spec, last_most=offset))
        await self._given_back(number, spec)

    async def retain(self) -> int:
        records = 0
        for number, spec in await self._numbered():
            if spec.keep_s is None and spec.keep_bytes is None:
                continue
            ((now_us,),) = await self._rows("SELECT now_us()")
            before_us = 0 if spec.keep_s is None else min(now_us, self._steady.wall_us()) - round(spec.keep_s * 1_000_000)
            for part in range(spec.partitions):
                records += await self._deleted(Mark(number, part, spec, before_us, spec.keep_bytes is not None))
            await self._given_back(number, spec)
        return records

    async def _numbered(self, topic: str | None = None) -> list[tuple[int, TopicSpec]]:
        rows = await self._rows("SELECT id, spec FROM topic WHERE %s::text IS NULL OR name = %s ORDER BY name", topic, topic)
        if topic is not None and not rows:
            raise TopicMissing(topic)
        return [(number, _specs.decode(spec)) for number, spec in rows]

    async def _deleted(self, mark: Mark) -> int:
        try:
            return await delete(self._database, mark)
        except (NothingStored, OutcomeUnknown) as error:
            raise self._read_only(error) from error

    async def _given_back(self, topic: int, spec: TopicSpec) -> None:
        try:
            await give_back(self._database, topic, spec)
        except (NothingStored, OutcomeUnknown) as error:
            raise self._read_only(error) from error

    async def verify(self) -> Sequence[str]:
        topics = await self._numbered()
        return await self.look(lambda connection: faults(connection, topics), is_one_moment=True)

    async def backup(self, target: Path, *, progress: Callable[[int, int], None] | None = None, check: bool = True) -> None:  # noqa: ARG002 the port asks for them
        raise FeatureMissing(
            "a backup into one file",
            adapter="the PostgreSQL log",
            instead="pg_dump --schema, or the server's own base backups and WAL archive",
        )

    async def aclose(self) -> None:
        await self._writer.aclose()
        await self._database.aclose()


async def _make(connection: Connection, topic: TopicSpec) -> None:
    found = await connection.execute(
        "INSERT INTO topic (name, spec, keeps_newest, segment, segment_since_us) VALUES (%s, %s, %s, 1, now_us()) RETURNING id",
        (topic.name, msgspec.json.encode(topic), topic.keep_newest),
    )
    ((number,),) = await found.fetchall()
    await connection.execute(
        "INSERT INTO part SELECT %s, part, 0, 0, 0, 0, 0, 0 FROM generate_series(0, %s) AS part", (number, topic.partitions - 1)
    )
    await make_topic_table(connection, number)


async def open_log(url: str, *, clock: Clock) -> Log:
    """Open, or make, the log in the schema that `postgresql://…/DATABASE?schema=NAME` names; without one in `everlog`.

    Raises:
        StartRefused: The URL cannot be read, the server does not let us in, or the schema is not one that this can use.
        LogUnreachable: The server does not answer.
    """
    log = PostgresLog(place_of(url, schema=SCHEMA), clock)
    await log.open()
    return log
