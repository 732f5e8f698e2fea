"""Appending: what is queued together in this process becomes one transaction, with one chunk per partition, of any producers.

    queue ──► lock the partitions ──► rule each append ──► chunks · numbers · ends ──► COMMIT ──► answers
              (in one order everywhere, so that two processes never wait for each other)

One group is under way at a time, so two calls append in the order of the calls; while it commits, the next one gathers.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

import msgspec
from psycopg.errors import UniqueViolation

from everlog.admission import Numbering, Once, hash_of, once_of
from everlog.appending import Append, Appending, Place
from everlog.clock import Steady
from everlog.codec import encode_chunk
from everlog.dedupe import Seen
from everlog.drivers.postgres.database import Connection, Database, NothingStored, OutcomeUnknown
from everlog.errors import Closed, EverlogError, TopicMissing
from everlog.log import ONCE_S, Appended, Status, TopicSpec
from everlog.record import NewRecord

_GROUP_BYTES: Final = 4 << 20
_GROUP_JOBS: Final = 4_096
_SESSION_IDLE_US: Final = 7 * 86_400 * 1_000_000
_SWEEP_EVERY_US: Final = 3_600 * 1_000_000
_NO_RANGES: Final = msgspec.msgpack.encode([])
_ranges: Final = msgspec.msgpack.Decoder(list[tuple[int, int]])
_specs: Final = msgspec.json.Decoder(TopicSpec)

_TOPICS: Final = "SELECT name, id, spec, segment FROM topic WHERE name = ANY(%s)"
# In the order of the key: whoever locks several locks them in that order.
_ENDS: Final = """
    SELECT topic, part, next_offset, bytes_through FROM part
    WHERE (topic, part) IN (SELECT * FROM unnest(%s::integer[], %s::integer[])) ORDER BY topic, part FOR UPDATE
"""
# The time of the whole log: no append is earlier than one that was committed before it, whatever the server's clock does.
_NOW: Final = "SELECT greatest(now_us(), (SELECT max(logged_at_us) FROM part))"
_NUMBERS: Final = """
    SELECT name, topic, part, highest, missing, newest_first, newest_count, newest_content FROM producer
    WHERE (name, topic, part) IN (SELECT * FROM unnest(%s::text[], %s::integer[], %s::integer[]))
"""
_ONCE: Final = 'SELECT hash, part, "offset", at_us FROM idempotent WHERE topic = %s AND source = %s AND key = %s AND at_us >= %s'
_REMEMBER: Final = """
    INSERT INTO idempotent VALUES (%s, %s, %s, %s, %s, %s, %s) ON CONFLICT (topic, source, key)
    DO UPDATE SET hash = excluded.hash, part = excluded.part, "offset" = excluded."offset", at_us = excluded.at_us
"""
# A bounded step with each key, so that they stay few.
_SWEEP_KEYS: Final = """
    DELETE FROM idempotent WHERE (topic, source, key) IN
    (SELECT topic, source, key FROM idempotent WHERE at_us < %s ORDER BY at_us LIMIT 100 FOR UPDATE SKIP LOCKED)
"""
_CHUNKS: Final = """
    INSERT INTO chunk (topic, segment, part, first, last, logged_at_us, bytes_through, size, body)
    SELECT topic, segment, part, first, last, %s, through, size, body FROM unnest(
        %s::integer[], %s::integer[], %s::integer[], %s::bigint[], %s::bigint[], %s::bigint[], %s::integer[], %s::bytea[]
    ) AS c (topic, segment, part, first, last, through, size, body)
"""
_MOVE_ENDS: Final = """
    UPDATE part SET next_offset = e.next, bytes_through = e.through, logged_at_us = %s
    FROM unnest(%s::integer[], %s::integer[], %s::bigint[], %s::bigint[]) AS e (topic, part, next, through)
    WHERE part.topic = e.topic AND part.part = e.part
"""
_NEWEST: Final = """
    INSERT INTO newest SELECT %s, %s, key, "offset" FROM unnest(%s::text[], %s::bigint[]) AS n (key, "offset")
    ON CONFLICT (topic, part, key) DO UPDATE SET "offset" = excluded."offset"
"""
_SEEN: Final = """
    INSERT INTO producer SELECT name, topic, part, highest, missing, first, count, content, named, %s FROM unnest(
        %s::text[], %s::integer[], %s::integer[], %s::bigint[], %s::bytea[], %s::bigint[], %s::integer[], %s::bytea[], %s::boolean[]
    ) AS p (name, topic, part, highest, missing, first, count, content, named)
    ON CONFLICT (name, topic, part) DO UPDATE SET highest = excluded.highest, missing = excluded.missing,
        newest_first = excluded.newest_first, newest_count = excluded.newest_count, newest_content = excluded.newest_content,
        named = producer.named OR excluded.named, seen_us = excluded.seen_us
"""


class _Topic(NamedTuple):
    id: int
    spec: TopicSpec
    segment: int


class _Queued(NamedTuple):
    job: Append
    done: asyncio.Future[Appended]


class Writer:
    """Appends what is queued, a group at a time."""

    def __init__(self, database: Database, steady: Steady) -> None:
        self._database = database
        self._steady = steady
        self._queue: deque[_Queued] = deque()
        self._task: asyncio.Task[None] | None = None
        self._swept_us = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False

    def begin(self) -> None:
        """Work on the running event loop from now on: an append may be called before the loop runs, and is queued all the same."""
        self._loop = asyncio.get_running_loop()

    def submit(self, job: Append) -> asyncio.Future[Appended]:
        """Queue an append.

        The future raises `NothingStored` or `OutcomeUnknown` where its group was not committed.
        """
        if self._closed or self._loop is None:
            raise Closed(f"{self._database.place.shown} was closed")
        done: asyncio.Future[Appended] = self._loop.create_future()
        self._queue.append(_Queued(job, done))
        if self._task is None or self._task.done():
            self._task = self._loop.create_task(self._run(), name="everlog log: append")
        return done

    async def aclose(self) -> None:
        """Append what is queued, and take no more."""
        self._closed = True
        if self._task is not None:
            await self._task

    async def _run(self) -> None:
        while self._queue:
            group = self._take()
            try:
                results = await self._commit([one.job for one in group])
            except (NothingStored, OutcomeUnknown, EverlogError) as error:
                results = [error] * len(group)
            for one, result in zip(group, results, strict=True):
                if one.done.done():  # nobody waits for it any more
                    continue
                if isinstance(result, Exception):
                    one.done.set_exception(result)
                    one.done.exception()  # looked at: its caller may be gone by now
                else:
                    one.done.set_result(result)

    def _take(self) -> list[_Queued]:
        group: list[_Queued] = []
        size = 0
        while self._queue and len(group) < _GROUP_JOBS and size < _GROUP_BYTES:
            group.append(self._queue.popleft())
            size += group[-1].job.size
        return group

    async def _commit(self, jobs: Sequence[Append]) -> Sequence[Appended | Exception]:
        while True:
            try:
                return await self._database.write(lambda connection: self._apply(connection, jobs))
            except NothingStored as error:
                # Two processes stored the same idempotency key, or a producer's first number, at once: the second sees it now.
                if not isinstance(error.__cause__, UniqueViolation):
                    raise

    async def _apply(self, connection: Connection, jobs: Sequence[Append]) -> Sequence[Appended | Exception]:
        places = sorted({(job.topic, record.partition) for job in jobs for record in job.records})
        topics = await _topics(connection, sorted({job.topic for job in jobs}))
        ends = await _ends(connection, [(topics[name].id, part) for name, part in places if name in topics])
        if ends:  # a segment may have been begun while the partitions were waited for
            topics = await _topics(connection, list(topics))
        ((at_us,),) = await (await connection.execute(_NOW, binary=True)).fetchall()
        numberings = await _numberings(
            connection,
            sorted(
                {
                    (job.producer.name, topics[job.topic].id, record.partition)
                    for job in jobs
                    if job.producer is not None and job.topic in topics
                    for record in job.records
                }
            ),
        )

        def numbering(name: str, topic: int, part: int) -> Numbering:
            return numberings.setdefault((name, topic, part), Numbering())

        appending = Appending(numbering, lambda place: ends[place][0])
        results: list[Appended | Exception] = []
        for job in jobs:
            try:
                results.append(await self._append(connection, job, topics.get(job.topic), appending, at_us))
            except (EverlogError, ValueError) as refusal:  # decided before anything of the job was changed
                results.append(refusal)
        segments = {topic.id: topic.segment for topic in topics.values()}
        await _write_chunks(connection, appending, ends, segments, at_us)
        await self._write_producers(connection, appending, numberings, at_us)
        return results

    async def _append(
        self, connection: Connection, job: Append, topic: _Topic | None, appending: Appending, at_us: int
    ) -> Appended:
        if topic is None:
            raise TopicMissing(job.topic)
        single = once_of(job.records)
        if single is None:  # as nearly always
            return appending.store(job, topic.id, topic.spec)
        oldest_us = min(at_us, self._steady.wall_us()) - ONCE_S * 1_000_000
        once = await _once(connection, topic.id, single, oldest_us)
        if once is not None:
            once.check(single, job.topic)
            return appending.known(job, topic.id, topic.spec, once)
        appended = appending.store(job, topic.id, topic.spec)
        if appended.statuses == [Status.STORED]:
            row = (topic.id, single.source, single.once, hash_of(single), single.partition, appended.offsets[0], at_us)
            await connection.execute(_REMEMBER, row)
            await connection.execute(_SWEEP_KEYS, (oldest_us,))
        return appended

    async def _write_producers(
        self, connection: Connection, appending: Appending, numberings: dict[tuple[str, int, int], Numbering], at_us: int
    ) -> None:
        if not appending.touched:
            return
        rows: list[tuple[Any, ...]] = []
        for place, named in sorted(appending.touched.items()):
            known = numberings[place]
            missing = msgspec.msgpack.encode(known.seen.missing) if known.seen.missing else _NO_RANGES
            rows.append(
                (*place, known.seen.highest, missing, known.newest_first, known.newest_count, known.newest_content, named)
            )
        await connection.execute(_SEEN, (at_us, *_columns(rows)))
        steady_us = self._steady.wall_us()  # a clock that jumps ahead has made nobody idle
        if steady_us - self._swept_us > _SWEEP_EVERY_US:
            self._swept_us = steady_us
            await connection.execute(
                "DELETE FROM producer WHERE NOT named AND seen_us < %s", (min(steady_us, at_us) - _SESSION_IDLE_US,)
            )


async def _topics(connection: Connection, names: Sequence[str]) -> dict[str, _Topic]:
    found = await connection.execute(_TOPICS, (names,), binary=True)
    return {name: _Topic(id_, _specs.decode(spec), segment) for name, id_, spec, segment in await found.fetchall()}


async def _ends(connection: Connection, places: Iterable[Place]) -> dict[Place, tuple[int, int]]:
    """Lock partitions until the transaction ends, and return the next offset and the bytes of each."""
    places = list(places)
    if not places:
        return {}
    found = await connection.execute(_ENDS, _columns(places), binary=True)
    return {(topic, part): (next_, through) for topic, part, next_, through in await found.fetchall()}


async def _numberings(connection: Connection, asked: Sequence[tuple[str, int, int]]) -> dict[tuple[str, int, int], Numbering]:
    if not asked:
        return {}
    rows = await (await connection.execute(_NUMBERS, _columns(asked), binary=True)).fetchall()
    return {
        (name, topic, part): Numbering(Seen(highest, _ranges.decode(missing)), first, count, content)
        for name, topic, part, highest, missing, first, count, content in rows
    }


async def _once(connection: Connection, topic: int, record: NewRecord, since_us: int) -> Once | None:
    """Return what was stored under a record's idempotency key since then."""
    # Records of one key may be for different partitions: only the key itself is certain to be locked by whoever else sends it.
    await connection.execute(
        "SELECT pg_advisory_xact_lock(hashtextextended(%s, %s))", (f"everlog {record.source} {record.once}", topic)
    )
    found = await connection.execute(_ONCE, (topic, record.source, record.once, since_us), binary=True)
    row = await found.fetchone()
    return None if row is None else Once(*row)


async def _write_chunks(
    connection: Connection, appending: Appending, ends: dict[Place, tuple[int, int]], segments: dict[int, int], at_us: int
) -> None:
    chunks: list[tuple[Any, ...]] = []
    moved: list[tuple[int, int, int, int]] = []
    for (topic, part), tail in appending.tails.items():
        _, through = ends[topic, part]
        for piece in tail.pieces():
            body = encode_chunk(piece.records, piece.runs, at_us)
            through += len(body)
            chunks.append((topic, segments[topic], part, piece.first, piece.last, through, len(body), body))
        moved.append((topic, part, tail.next_offset, through))
        if tail.keeps_newest:
            newest = tail.newest()
            await connection.execute(_NEWEST, (topic, part, list(newest), list(newest.values())))
    if chunks:
        await connection.execute(_CHUNKS, (at_us, *_columns(chunks)), binary=True)
        await connection.execute(_MOVE_ENDS, (at_us, *_columns(moved)), binary=True)


def _columns(rows: Sequence[Sequence[Any]]) -> list[list[Any]]:
    """Return rows as columns, which one statement takes as arrays."""
    return [list(column) for column in zip(*rows, strict=True)]
