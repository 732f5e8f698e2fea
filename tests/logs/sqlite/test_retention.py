"""Retention in a file: steps, free pages, the WAL, failures, and processes that are killed or work beside it."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import apsw
import pytest
from tests.logs.sqlite.log_file import KEPT, TOPIC, WHERE, change, damage, fill, fill_around, kept, opened, record

from everlog.drivers.sqlite.rows import first_of
from everlog.errors import FileDamaged, FileStrange, LogReadOnly
from everlog.log import Appended, ProducerBatch, Status
from everlog.logs.sqlite import SqliteLog, open_log, retention
from everlog.logs.sqlite.jobs import Done, Job
from everlog.logs.sqlite.retention import Deletion, GiveBack
from everlog.position import BEGINNING
from everlog.testing.clock import ManualClock

PATIENCE_S = 30.0
MB = 1_000_000


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log.db"


def watched(log: SqliteLog, seen: Callable[[Job], None]) -> None:
    """Call `seen` with each job before it is queued."""
    submit = log._database.submit

    def watching(job: Job) -> asyncio.Future[Done]:
        seen(job)
        return submit(job)

    object.__setattr__(log._database, "submit", watching)


def pages(log: SqliteLog) -> tuple[int, int]:
    """Return how many pages the file has, and how many of them are free."""
    with log.reading() as connection:
        return first_of(connection, "PRAGMA page_count"), first_of(connection, "PRAGMA freelist_count")


def size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


# ---- steps ----


async def test_a_step_deletes_no_more_than_its_bounds(path: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "STEP_CHUNKS", 10)
    monkeypatch.setattr(retention, "STEP_BYTES", 5_000)
    steps: list[int] = []
    async with opened(path, clock) as log:
        await fill(log, 30)
        await fill(log, 20, size=1_000)
        clock.advance(61)
        watched(log, lambda job: steps.extend(len(cut.chunks) for cut in job.cuts) if isinstance(job, Deletion) else None)
        assert await log.retain() == 50
    assert sum(steps) == 50
    assert max(steps) == 10
    assert max(steps[3:]) <= 6  # 5,000 bytes, and the chunk that goes beyond


async def test_partitions_with_little_to_delete_share_a_step(path: Path, clock: ManualClock) -> None:
    steps: list[Deletion] = []
    async with opened(path, clock) as log:
        await log.append(TOPIC, [record(0), record(1, partition=1)])
        clock.advance(61)
        watched(log, lambda job: steps.append(job) if isinstance(job, Deletion) else None)
        assert await log.retain() == 2
        assert await log.retain() == 0
    assert len(steps) == 1


async def test_where_nothing_may_go_nothing_is_written(path: Path, clock: ManualClock) -> None:
    jobs: list[Job] = []
    async with opened(path, clock) as log:
        await fill(log, 3)
        await log.append(KEPT, [record(0)])
        clock.advance(59)
        watched(log, jobs.append)
        await log.retain()
        clock.advance(3_600)
        await log.trim(TOPIC, await log.first(TOPIC))
    assert jobs == []


async def test_an_append_has_its_turn_between_two_steps(path: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "STEP_CHUNKS", 1)
    async with opened(path, clock) as log:
        await fill(log, 100)
        clock.advance(61)
        retaining = asyncio.create_task(log.retain())
        for number in range(100, 110):
            await log.append(TOPIC, [record(number)])
        assert not retaining.done()
        assert await retaining == 100
        assert await kept(log) == list(range(100, 110))


async def test_limits_that_are_set_while_it_deletes_stop_it(
    path: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "STEP_CHUNKS", 1)
    async with opened(path, clock) as log:
        await fill(log, 50)
        clock.advance(61)
        retaining = asyncio.create_task(log.retain())
        before = await log.first(TOPIC)
        for _ in range(1_000_000):  # until its first step is stored
            if await log.first(TOPIC) != before:
                break
            await asyncio.sleep(0)
        await log.set_retention(TOPIC, keep_s=None, keep_bytes=None)
        left = await kept(log)
        assert 0 < await retaining < 50
        assert await kept(log) == left
        assert await log.verify() == []


async def test_two_at_once_delete_each_chunk_once(path: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "STEP_CHUNKS", 3)
    async with opened(path, clock) as one, opened(path, clock) as two:
        await fill(one, 100)
        clock.advance(61)
        deleted = await asyncio.gather(one.retain(), two.retain())
        assert sum(deleted) + await one.retain() == 100
        assert await one.verify() == []
        head = await one.head(TOPIC)
        await fill(one, 50)
        await asyncio.gather(one.trim(TOPIC, await one.head(TOPIC)), two.trim(TOPIC, await two.head(TOPIC)))
        assert await two.first(TOPIC) == await one.head(TOPIC) != head
        assert await two.verify() == []


async def test_one_that_is_cancelled_between_two_steps_has_done_whole_steps(
    path: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "STEP_CHUNKS", 7)
    async with opened(path, clock) as log:
        await fill(log, 70)
        clock.advance(61)
        retaining = asyncio.create_task(log.retain())
        await log.append(TOPIC, [record(70)])
        retaining.cancel()
        with pytest.raises(asyncio.CancelledError):
            await retaining
        await log.append(TOPIC, [record(71)])
        left = await kept(log)
        assert len(left) % 7 == 2  # both appends, and whole steps less
        assert 2 < len(left) < 72
    async with opened(path, clock) as log:
        assert await log.verify() == []
        assert await kept(log) == left
        assert await log.retain() == len(left) - 2


# ---- pages ----


async def test_a_file_under_steady_traffic_stops_growing(path: Path, clock: ManualClock) -> None:
    wal = path.with_name("log.db-wal")
    sizes: list[int] = []
    wal_most = 0
    async with opened(path, clock, keep_s=None, keep_bytes=2 * MB) as log:
        for _ in range(60):
            for number in range(10):
                await log.append(TOPIC, [record(number, size=10_000, partition=number % 2) for _ in range(5)])
                wal_most = max(wal_most, size_of(wal))
            await log.retain()
            sizes.append(pages(log)[0] * 4_096)
        assert await log.verify() == []
    assert sizes[-1] <= sizes[20]  # 30 MB were stored, of which 10 by then
    assert max(sizes) < 2 * 2 * MB + 2 * MB
    assert wal_most < 8 * MB


async def test_a_file_gives_pages_back_when_much_is_deleted(path: Path, clock: ManualClock) -> None:
    given: list[GiveBack] = []
    async with opened(path, clock) as log:
        for number in range(30):
            await log.append(TOPIC, [record(number, size=900_000)])
        before, _ = pages(log)
        clock.advance(61)
        watched(log, lambda job: given.append(job) if isinstance(job, GiveBack) else None)
        await log.append(TOPIC, [record(30)])
        assert await log.retain() == 30
        after, free = pages(log)
        assert await log.verify() == []
        assert await kept(log) == [30]
    assert before * 4_096 > 27 * MB
    assert after * 4_096 < 6 * MB
    assert free <= 1_024  # kept for the next appends
    assert max(step.pages for step in given) <= 128
    assert size_of(path) < 6 * MB


async def test_free_pages_never_get_too_many_to_look_through(
    path: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "MOST_FREE_PAGES", 50)
    monkeypatch.setattr(retention, "STEP_BYTES", 100_000)
    free: list[int] = []
    async with opened(path, clock) as log:
        await fill(log, 60, size=50_000)
        clock.advance(61)
        watched(log, lambda job: free.append(pages(log)[1]))
        assert await log.retain() == 60
    assert max(free) <= 50 + 40  # and those of one step


async def test_a_file_of_four_mebibytes_is_not_made_smaller(path: Path, clock: ManualClock) -> None:
    jobs: list[Job] = []
    async with opened(path, clock) as log:
        await fill(log, 30, size=100_000)
        clock.advance(61)
        watched(log, jobs.append)
        assert await log.retain() == 30
    assert not [job for job in jobs if isinstance(job, GiveBack)]


# ---- what goes on ----


async def test_numbers_whose_chunks_are_gone_are_known_after_reopening(path: Path, clock: ManualClock) -> None:
    async with opened(path, clock) as log:
        for first in (0, 3):
            await log.append(
                TOPIC, [record(first + n) for n in range(3)], producer=ProducerBatch("relay", {0: first}, named=True)
            )
        clock.advance(61)
        assert await log.retain() == 6
    async with opened(path, clock) as log:
        assert await log.last_sequence("relay", TOPIC) == {0: 5}
        again = await log.append(TOPIC, [record(n) for n in range(6)], producer=ProducerBatch("relay", {0: 0}, named=True))
        assert list(again.statuses) == [Status.DUPLICATE] * 6
        more = await log.append(TOPIC, [record(6)], producer=ProducerBatch("relay", {0: 6}, named=True))
        assert list(more.offsets) == [6]
        assert await kept(log) == [6]


async def test_a_partition_counts_its_bytes_anew_after_all_of_it_was_deleted(path: Path, clock: ManualClock) -> None:
    for _ in range(3):
        async with opened(path, clock, keep_s=None, keep_bytes=25_000) as log:
            await fill(log, 8, size=10_000)
            await log.retain()
            assert await kept(log) == [5, 6, 7]
            await log.trim(TOPIC, await log.head(TOPIC))


async def test_another_process_that_appends_has_the_right_offsets_and_bytes(path: Path, clock: ManualClock) -> None:
    limits: dict[str, Any] = {"keep_s": None, "keep_bytes": 25_000}
    async with opened(path, clock, **limits) as one, opened(path, clock, **limits) as two:
        for number in range(12):
            await (one if number % 2 else two).append(TOPIC, [record(number, size=10_000)])
            if number % 3 == 0:
                await one.retain()
        await two.retain()
        assert await kept(one) == [9, 10, 11]
        assert (await one.head(TOPIC)).offsets[WHERE] == 11
        assert await two.verify() == []


# ---- failures ----


async def test_a_step_without_room_stores_nothing_and_appends_go_on(
    path: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise apsw.FullError("database or disk is full")

    async with opened(path, clock) as log:
        await fill(log, 3)
        clock.advance(61)
        with monkeypatch.context() as patch:
            patch.setattr("everlog.logs.sqlite.writer.delete", full)
            retaining, appended = await asyncio.gather(log.retain(), log.append(TOPIC, [record(3)]), return_exceptions=True)
            assert isinstance(retaining, LogReadOnly)
            assert isinstance(appended, Appended)
            assert appended.settled
        assert await kept(log) == [0, 1, 2, 3]
        assert await log.retain() == 3
        assert await log.verify() == []


async def test_damage_among_what_should_go_is_reported_and_appends_go_on(path: Path, clock: ManualClock) -> None:
    async with opened(path, clock) as log:
        await fill_around(log, b"y" * 200)
    damage(path, b"y" * 200)
    async with opened(path, clock) as log:
        clock.advance(61)
        head = await log.head(TOPIC)
        with pytest.raises(FileDamaged):
            await log.retain()
        assert (await log.append(TOPIC, [record(40)])).settled
        batch = await log.reader(head.offsets).next()
        assert [one.time_us for one in batch.records()] == [40]
        assert await log.first(TOPIC) != head


# ---- processes ----


class Child:
    """A role of `log_process.py` in a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def line(self) -> str:
        assert self.process.stdout is not None
        async with asyncio.timeout(PATIENCE_S):
            return (await self.process.stdout.readline()).decode().strip()

    async def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        return await self.process.wait()


@asynccontextmanager
async def children(path: Path, clock: ManualClock, *roles: Sequence[str]) -> AsyncGenerator[list[Child]]:
    """Start processes, a role with its argument each, by whose clock it is now."""
    script = [str(Path(__file__).with_name("log_process.py")), str(path), str(clock.wall_us())]
    started = [
        Child(await asyncio.create_subprocess_exec(sys.executable, *script, *role, stdout=asyncio.subprocess.PIPE))
        for role in roles
    ]
    try:
        yield started
    finally:
        for child in started:
            if child.process.returncode is None:
                await child.end(signal.SIGKILL)


async def moved_to(log: SqliteLog, offset: int) -> None:
    """Wait until another process has deleted everything up to an offset."""
    async with asyncio.timeout(PATIENCE_S):
        while (await log.first(TOPIC)).offsets[WHERE] < offset:
            await log.heard(log.strokes)


async def test_a_process_that_is_killed_while_it_deletes_leaves_a_sound_file(path: Path, clock: ManualClock) -> None:
    in_the_middle = 0
    for _ in range(3):
        async with opened(path, clock) as log:
            begin = (await log.head(TOPIC)).offsets[WHERE]
            await fill(log, 300)
            head = (await log.head(TOPIC)).offsets[WHERE]
            clock.advance(61)
            async with children(path, clock, ["retainer", "1"]) as (child,):
                await moved_to(log, begin + 10)
        # It is killed now, and nobody else has the file open: whoever opens it next recovers it.
        async with opened(path, clock) as log:
            assert await log.verify() == []
            first = (await log.first(TOPIC)).offsets[WHERE]
            assert begin + 10 <= first <= head
            assert (await log.head(TOPIC)).offsets[WHERE] == head
            in_the_middle += first < head
            left = await kept(log)
            assert left == list(range(300))[300 - len(left) :]
            assert await log.retain() == head - first
            assert child.process.returncode == -signal.SIGKILL
    assert in_the_middle  # otherwise it was always too late to be a test


async def test_publishers_readers_and_retention_in_processes_of_their_own(path: Path, clock: ManualClock) -> None:
    watchers = [["reader", "fast"], ["reader", "slow"], ["retainer", "64"]]
    async with children(path, clock, *watchers) as (fast, slow, retainer):
        for child in (fast, slow, retainer):
            assert await child.line() == "ready"
        async with children(path, clock, ["publisher", "one"], ["publisher", "two"]) as (one, two):
            for child in (one, two):
                assert await child.line() == "published 4000"
        told: list[int] = []
        for child in (fast, slow):
            child.process.send_signal(signal.SIGTERM)
            _, count, _, through = (await child.line()).split()
            assert int(through) == 2 * 4_000 - 1
            assert await child.process.wait() == 0
            told.append(int(count))
        assert await retainer.end(signal.SIGTERM) == 0
    assert told[1] > 0  # the slow one was overtaken: otherwise nothing was tested
    log = await open_log(f"sqlite:{path}", clock=clock)
    assert await log.verify() == []
    first, head = (await log.first(TOPIC)).offsets[WHERE], (await log.head(TOPIC)).offsets[WHERE]
    assert BEGINNING < first < head == 2 * 4_000 - 1
    for name in ("one", "two"):
        assert await log.last_sequence(name, TOPIC) == {0: 3_999}
        again = await log.append(TOPIC, [record(0, size=500)], producer=ProducerBatch(name, {0: 0}, named=True))
        assert list(again.statuses) == [Status.DUPLICATE]
    await log.aclose()
    assert size_of(path) < 6 * MB


async def test_a_log_from_before_the_first_release_is_refused_by_name(path: Path, clock: ManualClock) -> None:
    async with opened(path, clock):
        pass
    change(path, "PRAGMA user_version = 1")
    with pytest.raises(FileStrange, match=r"of version 1, from before the first release.*not touched"):
        async with opened(path, clock):
            pass
