"""A file with its writer thread: order, groups, failures, damage, and other processes."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import threading
import time
import warnings
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from everlog.drivers.sqlite.connection import Kind
from everlog.drivers.sqlite.database import HEAD_TABLE, Database, Group, NothingStored, OutcomeUnknown
from everlog.errors import Closed, EverlogError, FileDamaged, FileError, FileStrange

KIND = Kind("store", 0x45565354, 1, HEAD_TABLE + "CREATE TABLE t (n INTEGER, body BLOB) STRICT;")
BIG = 300_000

Numbers = Database[int, int]


def insert(group: Group, jobs: Sequence[int]) -> Sequence[int | EverlogError]:
    """Store each number; a negative one is refused, and 0 is a bug."""
    results: list[int | EverlogError] = []
    for job in jobs:
        if job == 0:
            raise ZeroDivisionError("a bug in a job")
        if job < 0:
            results.append(EverlogError(f"refused {job}"))
            continue
        group.connection.execute("INSERT INTO t VALUES (?, ?)", (job, b"x" * (job if job >= BIG else 0)))
        results.append(group.number)
    return results


def database(path: Path | None, **options: Callable[[], int | None] | float) -> Numbers:
    return Database(path, KIND, insert, size_of=lambda job: job, wall_us=lambda: 0, **options)  # type: ignore[arg-type]


@asynccontextmanager
async def opened(path: Path | None) -> AsyncGenerator[Numbers]:
    made = database(path)
    await made.open()
    try:
        yield made
    finally:
        await made.aclose()


def numbers(made: Numbers) -> list[int]:
    with made.reading() as connection:
        return [n for (n,) in connection.execute("SELECT n FROM t ORDER BY rowid").fetchall()]  # type: ignore[misc]


def beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def is_marked(path: Path) -> bool:
    """Return whether the last writer did not give its turn back in order."""
    return beside(path, "-turn").read_bytes()[:1] == b"\x01"


places = pytest.mark.parametrize("name", ["a.db", None])


def at(folder: Path, name: str | None) -> Path | None:
    return None if name is None else folder / name


# ---- jobs ----


@places
async def test_jobs_are_applied_in_the_order_in_which_they_were_submitted(name: str | None, tmp_path: Path) -> None:
    async with opened(at(tmp_path, name)) as made:
        await asyncio.gather(*[made.submit(n) for n in range(1, 2_001)])
        assert numbers(made) == list(range(1, 2_001))


async def test_jobs_that_queue_up_are_committed_together(tmp_path: Path) -> None:
    async with opened(tmp_path / "a.db") as made:
        await made.submit(1)
        commits = await asyncio.gather(*[made.submit(n) for n in range(2, 1_000)])
        assert len(set(commits)) < 500


async def test_a_group_is_closed_at_its_bounds(tmp_path: Path) -> None:
    async with opened(tmp_path / "a.db") as made:
        held = threading.Event()
        whole = made._apply

        def apply(group: Group, jobs: Sequence[int]) -> Sequence[int | Exception]:
            held.wait()
            return whole(group, jobs)

        made._apply = apply
        first = made.submit(1)
        later = [made.submit(3_000_000) for _ in range(3)]
        held.set()
        commits = await asyncio.gather(first, *later)
        assert commits[3] > commits[1]  # the second of 3 MB fills a group of 4 MiB


async def test_a_job_that_is_alone_has_a_transaction_of_its_own_in_its_place(tmp_path: Path) -> None:
    made: Numbers = Database(
        tmp_path / "a.db", KIND, insert, size_of=lambda job: job, wall_us=lambda: 0, is_alone=lambda job: job % 3 == 0
    )
    await made.open()
    held = threading.Event()
    whole = made._apply

    def apply(group: Group, jobs: Sequence[int]) -> Sequence[int | Exception]:
        held.wait()
        return whole(group, jobs)

    made._apply = apply
    submitted = [made.submit(n) for n in range(1, 13)]
    held.set()
    commits = await asyncio.gather(*submitted)
    assert numbers(made) == list(range(1, 13))
    assert all(commits.count(commits[n - 1]) == 1 for n in (3, 6, 9, 12))
    assert commits[4 - 1] == commits[5 - 1] != commits[7 - 1] == commits[8 - 1]
    await made.aclose()


@places
async def test_a_job_with_an_error_fails_alone(name: str | None, tmp_path: Path) -> None:
    async with opened(at(tmp_path, name)) as made:
        found = await asyncio.gather(*[made.submit(n) for n in (1, -2, 3)], return_exceptions=True)
        assert isinstance(found[1], EverlogError)
        assert numbers(made) == [1, 3]


@places
async def test_a_bug_in_a_job_stores_nothing_of_its_group_and_the_next_group_works(name: str | None, tmp_path: Path) -> None:
    async with opened(at(tmp_path, name)) as made:
        with pytest.raises(ZeroDivisionError):
            await made.submit(0)
        await made.submit(1)
        assert numbers(made) == [1]


async def test_what_was_queued_is_finished_before_it_closes(tmp_path: Path) -> None:
    async with opened(tmp_path / "a.db") as made:
        futures = [made.submit(n) for n in range(1, 500)]
        await made.aclose()
        assert all(future.done() and not future.exception() for future in futures)
    async with opened(tmp_path / "a.db") as made:
        assert numbers(made) == list(range(1, 500))


@places
async def test_a_closed_database_refuses(name: str | None, tmp_path: Path) -> None:
    async with opened(at(tmp_path, name)) as made:
        await made.aclose()
        await made.aclose()
        with pytest.raises(Closed, match="was closed"):
            await made.submit(1)
        with pytest.raises(Closed), made.reading():
            pass


async def test_a_forked_child_is_refused(tmp_path: Path) -> None:
    async with opened(tmp_path / "a.db") as made:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # that the writer's thread is not in the child is the point
            child = os.fork()
        if child == 0:
            try:
                made.submit(1)
            except Closed as error:
                os._exit(0 if "fork" in str(error) else 1)
            os._exit(2)
        _, status = os.waitpid(child, 0)  # noqa: ASYNC222 - it ends at once
        assert os.waitstatus_to_exitcode(status) == 0
        await made.submit(1)
        assert numbers(made) == [1]


async def test_the_tick_is_asked_while_the_event_loop_is_busy(tmp_path: Path) -> None:
    ticks: list[int] = []

    def tick() -> int:
        ticks.append(len(ticks) + 1)
        return ticks[-1]

    made = database(tmp_path / "a.db", tick=tick, tick_s=0.01)
    await made.open()
    until = time.monotonic() + 10
    while len(ticks) < 3 and time.monotonic() < until:
        pass
    await made.aclose()
    async with opened(tmp_path / "a.db") as made:
        assert numbers(made)[:2] == [1, 2]


async def test_the_tick_is_asked_while_jobs_keep_coming(tmp_path: Path) -> None:
    ticks: list[int] = []

    def tick() -> int:
        ticks.append(1_000_000 + len(ticks))
        return ticks[-1] if len(ticks) < 5 else 5

    made = database(tmp_path / "a.db", tick=tick, tick_s=0.001)
    await made.open()
    async with asyncio.timeout(10):
        while len(ticks) < 3:
            await asyncio.gather(*[made.submit(n) for n in range(1, 50)])
    await made.aclose()


# ---- failures ----


async def test_a_full_disk_stores_nothing_keeps_reading_and_resumes(tmp_path: Path) -> None:
    async with opened(tmp_path / "a.db") as made:
        await made.submit(1)
        most = made._writer.pragma("max_page_count")
        made._writer.pragma("max_page_count", 1)
        with pytest.raises(NothingStored, match="full"):
            await made.submit(BIG)
        assert numbers(made) == [1]
        made._writer.pragma("max_page_count", most)
        await made.submit(BIG)
        assert numbers(made) == [1, BIG]


async def test_after_a_failed_commit_the_wal_is_synced_before_the_next_acknowledgement(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    async with opened(path) as made:
        await made.submit(BIG)
        assert beside(path, "-wal").stat().st_size > BIG
        made._writer.set_commit_hook(lambda: True)
        with pytest.raises(OutcomeUnknown):
            await made.submit(2)
        assert is_marked(path)
        made._writer.set_commit_hook(None)
        await made.submit(3)
        assert beside(path, "-wal").stat().st_size < BIG
        assert not is_marked(path)


async def test_while_the_wal_cannot_be_synced_nothing_is_acknowledged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.db"
    async with opened(path) as made, opened(path) as other:
        await made.submit(1)
        made._suspect = True
        made._writer.set_busy_timeout(0)
        with other.reading() as connection:
            connection.execute("BEGIN; SELECT * FROM t").fetchall()  # a reader that keeps the WAL from being emptied
            await other.submit(2)
            with pytest.raises(NothingStored):
                await made.submit(3)
            connection.execute("COMMIT")
        assert is_marked(path)
        await made.submit(4)
        assert numbers(made) == [1, 2, 4]
        assert not is_marked(path)


# ---- files ----


@pytest.mark.parametrize("body", [b"my diary\n" * 1_000, b"SQLite format 3\x00" + b"\x00" * 4_080, b"x"])
async def test_a_strange_file_is_not_touched(body: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    path.write_bytes(body)
    for _ in range(2):
        with pytest.raises(FileStrange):
            await database(path).open()
    assert path.read_bytes() == body
    assert not beside(path, "-wal").exists()


async def test_an_empty_file_becomes_a_new_one(tmp_path: Path) -> None:
    (tmp_path / "a.db").touch()
    async with opened(tmp_path / "a.db") as made:
        await made.submit(1)
        assert numbers(made) == [1]


async def test_many_openers_of_a_new_file_find_one(tmp_path: Path) -> None:
    made = [database(tmp_path / "a.db") for _ in range(8)]
    await asyncio.gather(*[one.open() for one in made])
    await asyncio.gather(*[one.submit(n) for n, one in enumerate(made, start=1)])
    assert [sorted(numbers(one)) for one in made] == [list(range(1, 9))] * 8
    for one in made:
        await one.aclose()


async def test_the_commit_number_goes_on_and_the_bell_tells_it(tmp_path: Path) -> None:
    async with opened(tmp_path / "a.db") as made:
        assert [await made.submit(n) for n in (1, 2)] == [1, 2]
        assert made.bell.number() == 2
    async with opened(tmp_path / "a.db") as made:
        assert made.bell.number() == 2
        assert await made.submit(3) == 3


def crashed(path: Path, target: Path) -> Path:
    """Copy the file and what is beside it, as a power failure would leave them."""
    target.mkdir()
    for found in path.parent.iterdir():
        if found.is_file() and not found.name.endswith("-shm"):
            shutil.copy(found, target / found.name)
    return target / path.name


async def test_after_a_crash_what_was_acknowledged_is_there_and_synced_first(tmp_path: Path) -> None:
    async with opened(tmp_path / "a.db") as made:
        await made.submit(BIG)
        copy = crashed(tmp_path / "a.db", tmp_path / "crashed")
    async with opened(copy) as made:
        assert beside(copy, "-wal").stat().st_size == 0
        assert numbers(made) == [BIG]


@pytest.mark.parametrize("lost", ["flipped", "cut", "gone"])
async def test_acknowledged_commits_that_the_wal_lost_are_reported(lost: str, tmp_path: Path) -> None:
    async with opened(tmp_path / "a.db") as made:
        for n in range(1, 20):
            await made.submit(n)
        copy = crashed(tmp_path / "a.db", tmp_path / "crashed")
    wal = beside(copy, "-wal")
    body = bytearray(wal.read_bytes())
    if lost == "flipped":
        body[len(body) // 2] ^= 1
        wal.write_bytes(body)
    elif lost == "cut":
        wal.write_bytes(body[: len(body) // 2])
    else:
        wal.unlink()
    with pytest.raises(FileDamaged, match=r"commits up to number 19 were acknowledged.*everlog restore --from"):
        await database(copy).open()


async def test_a_file_that_went_is_reported_and_not_made_anew(tmp_path: Path) -> None:
    async with opened(tmp_path / "a.db") as made:
        await made.submit(1)
    (tmp_path / "a.db").unlink()
    with pytest.raises(FileDamaged, match="acknowledged data is missing"):
        await database(tmp_path / "a.db").open()
    assert not (tmp_path / "a.db").exists()


async def test_damage_is_named_when_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    async with opened(path) as made:
        await made.submit(BIG)
    body = bytearray(path.read_bytes())
    body[-100] ^= 1
    path.write_bytes(body)
    async with opened(path) as made:
        with pytest.raises(FileDamaged, match="nothing was skipped"), made.reading() as connection:
            connection.execute("SELECT n, body FROM t").fetchall()


async def test_after_a_refusal_the_place_can_be_used_again(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    path.write_bytes(b"my diary\n" * 1_000)
    with pytest.raises(FileError):
        await database(path).open()
    path.unlink()
    async with opened(path) as made:
        await made.submit(1)
        assert not is_marked(path)


# ---- other processes ----

_OTHER = """
import asyncio, os, signal, sys
from pathlib import Path
from everlog.drivers.sqlite.connection import Kind
from everlog.drivers.sqlite.database import Database, HEAD_TABLE
KIND = Kind("store", 0x45565354, 1, HEAD_TABLE + "CREATE TABLE t (n INTEGER, body BLOB) STRICT;")
def apply(group, jobs):
    for job in jobs:
        group.connection.execute("INSERT INTO t VALUES (?, x'')", (job,))
        if job == 666:
            os.kill(os.getpid(), signal.SIGKILL)
    return [group.number for _ in jobs]
async def main():
    database = Database(Path(sys.argv[1]), KIND, apply, size_of=lambda job: 1, wall_us=lambda: 0)
    await database.open()
    for number in sys.argv[2:]:
        await database.submit(int(number))
    await database.aclose()
asyncio.run(main())
"""


async def other_process(path: Path, *jobs: int) -> int:
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", _OTHER, str(path), *map(str, jobs))
    return await process.wait()


async def test_another_process_wakes_who_waits_after_it_committed(tmp_path: Path) -> None:
    async with opened(tmp_path / "a.db") as made:
        running = asyncio.ensure_future(other_process(tmp_path / "a.db", 41, 42))
        async with asyncio.timeout(10):
            strokes = made.bell.strokes
            while numbers(made) != [41, 42]:
                await made.bell.wait(strokes, seconds=60)  # no backstop: only the bell
                strokes = made.bell.strokes
        assert await running == 0


async def test_a_writer_killed_inside_its_transaction_leaves_its_turn_marked(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    async with opened(path) as made:
        await made.submit(BIG)
        assert await other_process(path, 5, 666) == -signal.SIGKILL
        assert is_marked(path)
        assert numbers(made) == [BIG, 5]
        await made.submit(6)
        assert not is_marked(path)
        assert beside(path, "-wal").stat().st_size < BIG  # it was synced and emptied first
        assert numbers(made) == [BIG, 5, 6]


async def test_the_next_opener_follows_up_on_a_killed_one(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    assert await other_process(path, 5, 666) == -signal.SIGKILL
    assert beside(path, "-wal").stat().st_size > 0
    async with opened(path) as made:
        assert beside(path, "-wal").stat().st_size == 0
        assert not is_marked(path)
        assert numbers(made) == [5]
