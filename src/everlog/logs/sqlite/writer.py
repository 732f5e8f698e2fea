"""What a log's writer thread does: rule each append, put what is queued together into one chunk per partition, of any producers.

Topics and steps of retention come the same way, so that one thread of a process writes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import apsw
import msgspec

from everlog.admission import Numbering, Once, hash_of, once_of
from everlog.appending import Append, Appending, Tail
from everlog.clock import Steady
from everlog.codec import encode_chunk
from everlog.dedupe import Seen
from everlog.drivers.sqlite.database import Group
from everlog.drivers.sqlite.rows import rows_of
from everlog.errors import EverlogError, TopicMissing
from everlog.log import ONCE_S, Appended, Status, TopicSpec
from everlog.logs.sqlite.jobs import Done, Job, Limiting
from everlog.logs.sqlite.retention import Deletion, GiveBack, delete, give_back
from everlog.logs.sqlite.tables import NEXT_OFFSET, PLACE_BITS
from everlog.record import NewRecord
from everlog.topics import merged

_SESSION_IDLE_US: Final = 7 * 86_400 * 1_000_000
_SWEEP_EVERY_US: Final = 3_600 * 1_000_000
_REMEMBERED_PRODUCERS: Final = 50_000
_END: Final = f"""
    SELECT {NEXT_OFFSET}, coalesce(
        (SELECT c.bytes_through FROM chunk AS c WHERE c.topic = part.topic AND c.part = part.part ORDER BY c.last DESC LIMIT 1), 0
    )
    FROM part WHERE topic = ? AND part = ?
"""
_NEWEST: Final = (
    'INSERT INTO newest VALUES (?, ?, ?, ?) ON CONFLICT (topic, part, key) DO UPDATE SET "offset" = excluded."offset"'
)
_SWEEP_KEYS: Final = (
    "DELETE FROM idempotent WHERE (topic, source, key) IN "
    "(SELECT topic, source, key FROM idempotent WHERE at_us < ? ORDER BY at_us LIMIT 100)"
)
_NO_RANGES: Final = msgspec.msgpack.encode([])
_ranges: Final = msgspec.msgpack.Decoder(list[tuple[int, int]])
_specs: Final = msgspec.json.Decoder(TopicSpec)


class _Topic(NamedTuple):
    id: int
    spec: TopicSpec


class Writer:
    """What the writer thread remembers of the file, valid while no other process commits."""

    def __init__(self, steady: Steady) -> None:
        self._steady = steady
        self._topics: dict[str, _Topic] = {}
        self._ends: dict[tuple[int, int], tuple[int, int]] = {}  # of each partition: next offset, bytes of its bodies
        self._numberings: dict[tuple[str, int, int], Numbering] = {}
        self._swept_us = 0

    def apply(self, group: Group, jobs: Sequence[Job]) -> Sequence[Done | Exception]:
        """Apply one group: topics and steps of retention at once, records as one chunk per partition at the end."""
        connection = group.connection
        if not group.alone or len(self._numberings) > _REMEMBERED_PRODUCERS:
            self._topics.clear()
            self._ends.clear()
            self._numberings.clear()
        appending = Appending(
            lambda name, topic, part: self._numbering(connection, name, topic, part),
            lambda place: self._end(connection, place)[0],
        )
        results: list[Done | Exception] = []
        for job in jobs:
            try:
                if isinstance(job, Append):
                    results.append(self._append(connection, job, appending, group.at_us))
                else:
                    results.append(self._other(connection, job))
            except (EverlogError, ValueError) as refusal:  # decided before anything of the job was changed
                results.append(refusal)
        self._write_chunks(group, appending.tails)
        self._write_producers(group, appending.touched)
        return results

    def _other(self, connection: apsw.Connection, job: TopicSpec | Limiting | Deletion | GiveBack) -> int | None:
        if isinstance(job, Deletion):
            cuts = [cut for cut in job.cuts if cut.limits in (None, self._limits(connection, cut.topic))]
            return sum([delete(connection, cut) for cut in cuts])
        if isinstance(job, GiveBack):
            return give_back(connection, job.pages)
        if isinstance(job, Limiting):
            self._limit(connection, job)
        else:
            self._ensure(connection, job)
        return None

    def _limits(self, connection: apsw.Connection, number: int) -> tuple[float | None, int | None]:
        """Return what a topic says now."""
        ((name,),) = rows_of(connection, "SELECT name FROM topic WHERE id = ?", (number,))
        topic = self._topic(connection, name)
        assert topic is not None
        return topic.spec.keep_s, topic.spec.keep_bytes

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
            connection.executemany("INSERT INTO part VALUES (?, ?, 0, 0, 0, 0)", parts)
            return
        self._put(connection, topic, merged(topic.spec, declared))

    def _limit(self, connection: apsw.Connection, job: Limiting) -> None:
        topic = self._topic(connection, job.topic)
        if topic is None:
            raise TopicMissing(job.topic)
        self._put(connection, topic, msgspec.structs.replace(topic.spec, keep_s=job.keep_s, keep_bytes=job.keep_bytes))

    def _put(self, connection: apsw.Connection, topic: _Topic, spec: TopicSpec) -> None:
        if spec is not topic.spec:
            connection.execute("UPDATE topic SET spec = ? WHERE id = ?", (msgspec.json.encode(spec), topic.id))
            self._topics[spec.name] = _Topic(topic.id, spec)

    def _append(self, connection: apsw.Connection, job: Append, appending: Appending, at_us: int) -> Appended:
        topic = self._topic(connection, job.topic)
        if topic is None:
            raise TopicMissing(job.topic)
        single = once_of(job.records)
        if single is None:  # as nearly always
            return appending.store(job, topic.id, topic.spec)
        once = _once(connection, topic.id, single, self._oldest_key_us)
        if once is not None:
            once.check(single, job.topic)
            return appending.known(job, topic.id, topic.spec, once)
        appended = appending.store(job, topic.id, topic.spec)
        if appended.statuses == [Status.STORED]:
            row = (topic.id, single.source, single.once, hash_of(single), single.partition, appended.offsets[0], at_us)
            connection.execute("INSERT OR REPLACE INTO idempotent VALUES (?, ?, ?, ?, ?, ?, ?)", row)
            connection.execute(_SWEEP_KEYS, (self._oldest_key_us,))  # a bounded step with each, so that they stay few
        return appended

    @property
    def _oldest_key_us(self) -> int:
        """Since when idempotency keys count. A clock that jumps ahead has made none of them old."""
        return self._steady.wall_us() - ONCE_S * 1_000_000

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

    def _end(self, connection: apsw.Connection, place: tuple[int, int]) -> tuple[int, int]:
        known = self._ends.get(place)
        if known is None:
            ((next_offset, size),) = rows_of(connection, _END, place)
            known = self._ends[place] = (next_offset, size)
        return known

    def _write_chunks(self, group: Group, tails: Mapping[tuple[int, int], Tail]) -> None:
        rows: list[tuple[Any, ...]] = []
        for place, tail in tails.items():
            _, through = self._ends[place]
            for piece in tail.pieces():
                body = encode_chunk(piece.records, piece.runs, group.at_us)
                through += len(body)
                number = group.number << PLACE_BITS | len(rows)
                rows.append((number, *place, piece.first, piece.last, group.at_us, through, body))
            self._ends[place] = (tail.next_offset, through)
            if tail.keeps_newest:
                newest = tail.newest().items()
                group.connection.executemany(_NEWEST, [(*place, key, offset) for key, offset in newest])
        if rows:
            group.connection.executemany("INSERT INTO chunk VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
            stored = sum([len(tail.records) for tail in tails.values()])
            group.connection.execute(
                "UPDATE head SET total = total + ?", (stored,)
            )  # so that `verify` misses what somebody deletes

    def _write_producers(self, group: Group, touched: Mapping[tuple[str, int, int], bool]) -> None:
        if not touched:
            return
        connection, now_us = group.connection, group.at_us
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
        steady_us = self._steady.wall_us()  # a clock that jumps ahead has made nobody idle
        if steady_us - self._swept_us > _SWEEP_EVERY_US:
            self._swept_us = steady_us
            connection.execute("DELETE FROM producer WHERE NOT named AND seen_us < ?", (steady_us - _SESSION_IDLE_US,))
            self._numberings.clear()


def _once(connection: apsw.Connection, topic: int, record: NewRecord, since_us: int) -> Once | None:
    """Return what was stored under a record's idempotency key since then."""
    rows = rows_of(
        connection,
        'SELECT hash, part, "offset", at_us FROM idempotent WHERE topic = ? AND source = ? AND key = ? AND at_us >= ?',
        (topic, record.source, record.once, since_us),
    )
    return Once(*rows[0]) if rows else None
