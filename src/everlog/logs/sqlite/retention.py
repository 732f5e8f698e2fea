"""Deleting from a log file: what may go, found by reading, and a step of it, taken in a transaction of the writer thread.

    plan (event loop, reading)          step (writer thread, one transaction)          pages
    mark each partition ──► sweep ──► delete ≤ 256 chunks or about 2 MiB ──► … ──► give back what is free beyond a quarter of the file

What is found stays true until it is deleted, since chunks only get older and newer ones only get more; only the limits of a topic can be
changed meanwhile, so a step looks at them again.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence
from typing import Final, NamedTuple

import apsw
import msgspec

from everlog.drivers.sqlite.rows import first_of, rows_of
from everlog.log import TopicSpec
from everlog.logs.sqlite.tables import NEXT_OFFSET

STEP_CHUNKS: Final = 256
STEP_BYTES: Final = 2 << 20
STEP_PAGES: Final = 128
"""Most that one transaction deletes, looks at, and gives back: a publish that waits for it waits a few milliseconds."""
SPARE_PAGES: Final = 1_024
"""So many free pages (4 MiB) are left in the file in any case: the next appends take them."""
MOST_FREE_PAGES: Final = 131_072
"""Beyond so many (512 MiB) pages are given back while more is deleted: SQLite looks a page up in a list of all that are free."""

_ROWS_PER_LOOK: Final = 32
_specs: Final = msgspec.json.Decoder(TopicSpec)

Limits = tuple[float | None, int | None]
"""`keep_s` and `keep_bytes` of a topic."""


class Cut(NamedTuple):
    """Chunks of one partition that may go."""

    topic: int
    part: int
    limits: Limits | None
    """What the topic said when they were found; ``None`` where somebody asked for it whatever the topic says."""
    chunks: list[int]
    """Their ids, the oldest first."""


class Deletion(NamedTuple):
    """One step: a job of the writer thread. Its result is the number of records deleted."""

    cuts: Sequence[Cut]


class GiveBack(NamedTuple):
    """Free pages to take out of the file: a job of the writer thread. Its result is how many were."""

    pages: int


class Mark(NamedTuple):
    """Up to where a partition may be deleted: while one of the three says so of a chunk, it goes."""

    topic: int
    part: int
    limits: Limits | None
    before_us: float = 0
    """Logged before this moment."""
    keep_bytes: int | None = None
    """So many bytes are behind it."""
    last_most: int = -1
    """At most this last offset."""


def marks_by_limits(connection: apsw.Connection, wall_us: int) -> list[Mark]:
    """Return where the limits of the topics stand at a moment.

    Not by the time of the newest record: one writer whose clock is ahead would have everything deleted as old.
    """
    found: list[Mark] = []
    for topic, encoded in rows_of(connection, "SELECT id, spec FROM topic"):
        spec = _specs.decode(encoded)
        if spec.keep_s is not None or spec.keep_bytes is not None:
            before_us = 0 if spec.keep_s is None else wall_us - spec.keep_s * 1_000_000
            limits = (spec.keep_s, spec.keep_bytes)
            found.extend(Mark(topic, part, limits, before_us, spec.keep_bytes) for part in range(spec.partitions))
    return found


class _Row(NamedTuple):
    """A chunk that may go, in the order of commits."""

    id: int
    last: int
    size: int
    is_newest: bool
    """It holds the newest record of a key that is to stay."""


class _Strip:
    """The chunks of one partition that may go, oldest first, a few at a time."""

    def __init__(self, mark: Mark) -> None:
        self.mark = mark
        self._bytes_most: int | None = None  # `bytes_through` of a chunk that has `keep_bytes` behind it
        self._after = -1
        self._rows: deque[_Row] = deque()

    def next(self, connection: apsw.Connection) -> _Row | None:
        """Return the next chunk; ``None`` where no more may go."""
        if not self._rows:
            self._look(connection)
        return self._rows.popleft() if self._rows else None

    def _look(self, connection: apsw.Connection) -> None:
        mark = self.mark
        if self._bytes_most is None:
            newest: int = first_of(connection, _NEWEST, (mark.topic, mark.part)) or 0
            self._bytes_most = -1 if mark.keep_bytes is None else newest - mark.keep_bytes
        limit = 1 if self._after < 0 else _ROWS_PER_LOOK  # mostly the oldest stays, and one page is read
        for id_, last, logged_at_us, through, size, is_newest in rows_of(
            connection, _CHUNKS, (mark.topic, mark.part, self._after, limit)
        ):
            if not (logged_at_us < mark.before_us or through <= self._bytes_most or last <= mark.last_most):
                break
            self._rows.append(_Row(id_, last, size, bool(is_newest)))
            self._after = last


class Sweep:
    """Finds what may go behind marks, a step at a time. What it has passed over it does not look at again.

    Over all partitions it goes in the order of commits. Free pages are listed as they are freed, so that those at the end of the file stand
    where they are looked for first when it is made shorter: 2 GB partition by partition took 49 s, and take 4 s so.
    """

    def __init__(self, marks: Sequence[Mark]) -> None:
        self._new = [_Strip(mark) for mark in marks]
        self._heap: list[tuple[_Row, int, _Strip]] = []

    def next(self, connection: apsw.Connection) -> list[Cut]:
        """Return the chunks of one step; empty where it is done, or where it has only looked so far, and must be asked again."""
        if self._new:
            for _ in range(min(len(self._new), STEP_CHUNKS)):
                self._push(connection, self._new.pop())
            return []
        cuts: dict[tuple[int, int], Cut] = {}
        room_chunks, room_bytes = STEP_CHUNKS, STEP_BYTES
        while self._heap and room_chunks > 0 and room_bytes > 0:
            row, _, strip = heapq.heappop(self._heap)
            room_chunks -= 1
            if not row.is_newest:
                mark = strip.mark
                cut = cuts.setdefault((mark.topic, mark.part), Cut(mark.topic, mark.part, mark.limits, []))
                cut.chunks.append(row.id)
                room_bytes -= row.size
            self._push(connection, strip)
        return list(cuts.values())

    def _push(self, connection: apsw.Connection, strip: _Strip) -> None:
        row = strip.next(connection)
        if row is not None:
            heapq.heappush(self._heap, (row, id(strip), strip))

    @property
    def is_done(self) -> bool:
        """There is nothing left to look at."""
        return not self._new and not self._heap


_NEWEST: Final = "SELECT bytes_through FROM chunk WHERE topic = ? AND part = ? ORDER BY last DESC LIMIT 1"
_CHUNKS: Final = """
    SELECT id, last, logged_at_us, bytes_through, length(body), EXISTS (
        SELECT 1 FROM newest AS n WHERE n.topic = c.topic AND n.part = c.part AND n."offset" BETWEEN c.first AND c.last
    )
    FROM chunk AS c WHERE topic = ? AND part = ? AND last > ? ORDER BY last LIMIT ?
"""


def delete(connection: apsw.Connection, cut: Cut) -> int:
    """Delete the chunks of a cut, and write down what is gone; return how many records that were.

    Chunks that another process has deleted meanwhile are passed over.
    """
    place = (cut.topic, cut.part)
    chunks: list[tuple[int]] = []
    records = newest_us = 0
    for id_ in cut.chunks:
        for first, last, logged_at_us in rows_of(connection, "SELECT first, last, logged_at_us FROM chunk WHERE id = ?", (id_,)):
            chunks.append((id_,))
            records += last - first + 1
            newest_us = max(newest_us, logged_at_us)
    if not chunks:
        return 0
    next_offset: int = first_of(connection, f"SELECT {NEXT_OFFSET} FROM part WHERE topic = ? AND part = ?", place)
    connection.executemany("DELETE FROM chunk WHERE id = ?", chunks)
    first_left = first_of(connection, "SELECT first FROM chunk WHERE topic = ? AND part = ? ORDER BY last LIMIT 1", place)
    connection.execute(
        "UPDATE part SET next_offset = ?, first_offset = ?, gone_through_us = max(gone_through_us, ?), gone = gone + ? "
        "WHERE topic = ? AND part = ?",
        (next_offset, next_offset if first_left is None else first_left, newest_us, records, *place),
    )
    connection.execute("UPDATE gone SET records = records + ?", (records,))
    return records


def pages_to_spare(connection: apsw.Connection, *, is_last: bool) -> int:
    """Return how many free pages the file should give back in the next step; 0 for none.

    Appends take free pages first, so a file under steady traffic has no need to shrink and to grow again: a quarter of it may be free.

    Args:
        connection: To read with.
        is_last: Nothing more will be deleted now. While more will, only what is too much to look through is given back.
    """
    free: int = first_of(connection, "PRAGMA freelist_count")
    pages: int = first_of(connection, "PRAGMA page_count")
    kept = max(SPARE_PAGES, min(pages // 4, MOST_FREE_PAGES)) if is_last else MOST_FREE_PAGES
    # Measured: a page takes 10 µs, and 1 µs more for every 2,000 that are free. A step shall take 3 ms.
    return max(0, min(free - kept, STEP_PAGES, 3_000 // (10 + free // 2_000)))


def give_back(connection: apsw.Connection, pages: int) -> int:
    """Take free pages out of the file, moving what lies behind them; return how many. The checkpoint makes the file smaller."""
    before: int = first_of(connection, "PRAGMA page_count")
    rows_of(connection, f"PRAGMA incremental_vacuum({pages})")
    after: int = first_of(connection, "PRAGMA page_count")
    return before - after
