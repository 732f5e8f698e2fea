"""Copying a file that is in use: what is in the copy, that it is whole or not there, and that writers are not held up."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import apsw
import pytest

from everlog.drivers.sqlite import backup as module
from everlog.drivers.sqlite.connection import Kind, connect, disconnect
from everlog.drivers.sqlite.database import HEAD_TABLE, Database, Group
from everlog.errors import Closed, FeatureMissing, FileDamaged, FilePlace

KIND = Kind("log", 0x45564C47, 1, HEAD_TABLE + "CREATE TABLE t (n INTEGER, body BLOB) STRICT;")
STEP_BYTES = module.STEP_PAGES * 4_096

Numbers = Database[int, int]
Progress = Callable[[int, int], None]


def insert(group: Group, jobs: Sequence[int]) -> Sequence[int]:
    """Store each number with 50 kB; a negative one removes its opposite."""
    for job in jobs:
        if job < 0:
            group.connection.execute("DELETE FROM t WHERE n = ?", (-job,))
        else:
            group.connection.execute("INSERT INTO t VALUES (?, randomblob(50000))", (job,))
    return [group.number] * len(jobs)


@asynccontextmanager
async def opened(path: Path | None) -> AsyncGenerator[Numbers]:
    made: Numbers = Database(path, KIND, insert, size_of=lambda job: 50_000, wall_us=lambda: 0)
    await made.open()
    try:
        yield made
    finally:
        await made.aclose()


async def filled(made: Numbers, count: int = 100) -> None:
    await asyncio.gather(*[made.submit(n) for n in range(1, count + 1)])


async def back_up(made: Numbers, target: Path, progress: Progress | None = None, *, check: bool = True) -> None:
    await made.back_up(target, progress=progress, check=check)


@contextmanager
def looking(path: Path) -> Generator[apsw.Connection]:
    """Open a copy as a log or a store does."""
    connection = connect(path, KIND, create=False, writes=False)
    try:
        yield connection
    finally:
        disconnect(connection)


def numbers(path: Path) -> list[int]:
    """Return what a sound copy holds."""
    with looking(path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return [n for (n,) in connection.execute("SELECT n FROM t ORDER BY n").fetchall()]  # type: ignore[misc]


class Usage(NamedTuple):
    """What `shutil.disk_usage` says, as far as it is asked."""

    free: int


def names(folder: Path) -> list[str]:
    return sorted(found.name for found in folder.iterdir())


# ---- what is in the copy ----


async def test_a_copy_is_one_file_for_its_owner_alone_with_all_that_was_committed(tmp_path: Path) -> None:
    async with opened(tmp_path / "a.db") as made:
        await filled(made)
        await back_up(made, tmp_path / "new" / "folder" / "b.db")
        assert names(tmp_path / "new" / "folder") == ["b.db"]
        assert (tmp_path / "new" / "folder" / "b.db").stat().st_mode & 0o777 == 0o600
        assert (tmp_path / "new" / "folder").stat().st_mode & 0o777 == 0o700
    assert numbers(tmp_path / "new" / "folder" / "b.db") == list(range(1, 101))


async def test_a_copy_keeps_what_cannot_be_set_later(tmp_path: Path) -> None:
    async with opened(tmp_path / "a.db") as made:
        await filled(made, 3)
        await back_up(made, tmp_path / "b.db")
    with looking(tmp_path / "b.db") as copy:
        assert copy.reserve_bytes() == 8
        found = [copy.pragma(name) for name in ("journal_mode", "page_size", "auto_vacuum", "application_id", "user_version")]
        assert found == ["wal", 4_096, 2, KIND.application_id, KIND.version]


async def test_a_flipped_bit_in_a_copy_is_found(tmp_path: Path) -> None:
    async with opened(tmp_path / "a.db") as made:
        await filled(made, 10)
        await back_up(made, tmp_path / "b.db")
    body = bytearray((tmp_path / "b.db").read_bytes())
    body[len(body) // 2] ^= 1
    (tmp_path / "b.db").write_bytes(body)
    with looking(tmp_path / "b.db") as copy, pytest.raises(apsw.IOError):
        copy.execute("SELECT n, body FROM t").fetchall()


async def test_pages_that_were_in_the_wal_alone_have_their_checksums_in_the_copy(tmp_path: Path) -> None:
    async with opened(tmp_path / "a.db") as made:
        await filled(made)
        for n in range(1, 100, 2):  # rewrites pages that are in the file, and puts others on the list of free ones
            await made.submit(-n)
        await made.submit(101)
        assert (tmp_path / "a.db-wal").stat().st_size > 0
        await back_up(made, tmp_path / "b.db", check=False)
    assert numbers(tmp_path / "b.db") == [*range(2, 101, 2), 101]


async def test_a_copy_without_checksums_would_be_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control of the test before, and of the check: the copy is written to a file that does not know yet that it has checksums."""
    whole = module._unsafe

    @contextmanager
    def unprepared(part: Path, page_bytes: int) -> Generator[apsw.Connection]:
        with whole(part, page_bytes):
            pass
        part.write_bytes(b"")
        connection = apsw.Connection(os.fspath(part), vfs="cksmvfs")
        for name in ("journal_mode", "synchronous"):
            connection.pragma(name, "off")
        yield connection
        connection.close()

    monkeypatch.setattr(module, "_unsafe", unprepared)
    async with opened(tmp_path / "a.db") as made:
        await filled(made)
        for n in range(1, 100, 2):
            await made.submit(-n)
        with pytest.raises(FileDamaged, match=r"the copy of .*a\.db was read again and is damaged"):
            await back_up(made, tmp_path / "b.db")
        assert not (tmp_path / "b.db").exists()


async def test_a_copy_is_of_one_moment_however_much_is_committed_meanwhile(tmp_path: Path) -> None:
    async with opened(tmp_path / "a.db") as made:
        await filled(made)
        seen: list[tuple[int, int]] = []
        later: list[asyncio.Future[int]] = []

        def progress(done: int, total: int) -> None:
            seen.append((done, total))
            later.append(made.submit(1_000 + len(seen)))

        await back_up(made, tmp_path / "b.db", progress)
        assert await asyncio.gather(*later)
        assert len(seen) >= 5
        assert [total for _, total in seen] == [seen[0][1]] * len(seen)
        assert [done for done, _ in seen] == sorted({done for done, _ in seen})
        assert seen[-1][0] == seen[-1][1] == (tmp_path / "b.db").stat().st_size
    assert numbers(tmp_path / "b.db") == list(range(1, 101))


async def test_without_a_transaction_a_copy_would_begin_anew_with_each_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control of the test before, and of the one behind."""
    whole = module._moment

    @contextmanager
    def no_moment(order: module.Order) -> Generator[Any]:
        with whole(order) as moment:
            moment.connection.execute("COMMIT").fetchall()
            yield moment

    monkeypatch.setattr(module, "_moment", no_moment)
    async with opened(tmp_path / "a.db") as made:
        await filled(made)
        seen: list[int] = []

        def progress(done: int, _: int) -> None:
            seen.append(done)
            if len(seen) < 50:
                made.submit(1_000 + len(seen))

        await back_up(made, tmp_path / "b.db", progress)
        assert sorted(set(seen)) != seen
    assert numbers(tmp_path / "b.db") != list(range(1, 101))


_WRITER = """
import asyncio, sys
from pathlib import Path
from tests.drivers.sqlite.test_backup import opened
async def main():
    async with opened(Path(sys.argv[1])) as made:
        n = 0
        while True:
            n += 1
            await made.submit(n)
            print(n, flush=True)
asyncio.run(main())
"""


async def test_beside_a_process_that_writes_without_pause_a_copy_is_a_prefix_with_all_that_was_acknowledged(
    tmp_path: Path,
) -> None:
    path = tmp_path / "a.db"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", _WRITER, str(path), stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    acknowledged = 0

    async def listen() -> None:
        nonlocal acknowledged
        assert process.stdout is not None
        while line := await process.stdout.readline():
            acknowledged = int(line)

    acknowledged = int(await process.stdout.readline())
    listening = asyncio.ensure_future(listen())
    try:
        async with asyncio.timeout(60), opened(path) as made:
            before = 0
            for turn in range(4):
                while acknowledged < 50 * (turn + 1):
                    await made.bell.wait(made.bell.strokes)
                before = acknowledged
                await back_up(made, tmp_path / f"{turn}.db")
                found = numbers(tmp_path / f"{turn}.db")
                assert found == list(range(1, len(found) + 1))
                assert before <= len(found)
            assert acknowledged > before  # it went on
    finally:
        process.kill()
        await process.wait()
        await listening


# ---- whole, or not there ----


async def test_nothing_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "b.db").write_text("my diary")
    (tmp_path / "c.db").symlink_to(tmp_path / "nowhere")
    async with opened(tmp_path / "a.db") as made:
        before = names(tmp_path)
        for name in ("b.db", "c.db"):
            with pytest.raises(FilePlace, match=f"{name} exists, and a backup replaces nothing"):
                await back_up(made, tmp_path / name)
        assert names(tmp_path) == before
    assert (tmp_path / "b.db").read_text() == "my diary"


@pytest.mark.parametrize("has_links", [True, False])
async def test_a_name_that_is_taken_meanwhile_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_links: bool
) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    def take(*_: int) -> None:
        (tmp_path / "b.db").write_text("my diary")

    if not has_links:
        monkeypatch.setattr(os, "link", refused)
    async with opened(tmp_path / "a.db") as made:
        await filled(made)
        with pytest.raises(FilePlace, match=r"b\.db exists"):
            await back_up(made, tmp_path / "b.db", take)
        assert (tmp_path / "b.db").read_text() == "my diary"
        await back_up(made, tmp_path / "c.db")
        assert [name for name in names(tmp_path) if name.endswith(".part")] == []
    assert numbers(tmp_path / "c.db") == list(range(1, 101))


async def test_a_damaged_page_is_reported_and_no_backup_is_left(tmp_path: Path) -> None:
    async with opened(tmp_path / "a.db") as made:
        await filled(made)
    body = bytearray((tmp_path / "a.db").read_bytes())
    body[len(body) // 2] ^= 1
    (tmp_path / "a.db").write_bytes(body)
    async with opened(tmp_path / "a.db") as made:
        with pytest.raises(FileDamaged, match=r"a\.db: SQLite found it damaged"):
            await back_up(made, tmp_path / "out" / "b.db", check=False)
        assert names(tmp_path / "out") == []


def test_a_disk_that_cannot_be_read_is_reported_as_damage_of_the_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    error = apsw.IOError("disk I/O error")
    monkeypatch.setattr(error, "extendedresult", apsw.SQLITE_IOERR_READ, raising=False)
    order = module.Order(tmp_path / "a.db", KIND, tmp_path / "b.db", check=True)
    assert isinstance(module._translated(error, order), FileDamaged)
    monkeypatch.setattr(error, "extendedresult", apsw.SQLITE_IOERR_WRITE)
    assert isinstance(module._translated(error, order), FilePlace)


async def test_without_room_nothing_is_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def almost_full(_: object) -> Usage:
        return Usage(10_000)

    async with opened(tmp_path / "a.db") as made:
        await filled(made, 3)
        monkeypatch.setattr(shutil, "disk_usage", almost_full)
        with pytest.raises(FilePlace, match=r"it needs [\d,]+ bytes, and 10,000 are free.*there is no backup"):
            await back_up(made, tmp_path / "out" / "b.db")
        assert names(tmp_path / "out") == []


_FULL = """
import asyncio, shutil, sys
from pathlib import Path
from tests.drivers.sqlite.test_backup import Usage, back_up, opened
async def main():
    shutil.disk_usage = lambda _: Usage(1 << 40)
    async with opened(Path(sys.argv[1])) as made:
        await back_up(made, Path(sys.argv[2]) / "b.db")
try:
    asyncio.run(main())
except Exception as error:
    print(type(error).__name__, error)
print("left:", [path.name for path in Path(sys.argv[2]).iterdir()])
"""


async def test_a_disk_that_gets_full_leaves_nothing(tmp_path: Path) -> None:
    async with opened(tmp_path / "a.db") as made:
        await filled(made)
    small = tmp_path / "small"
    small.mkdir()
    mount = f"mount -t tmpfs -o size=1m tmpfs {small}"
    if (await _alone(mount)).returncode:
        pytest.skip("a small disk needs a mount namespace")
    result = await _alone(f'{mount} && exec "$@"', "sh", sys.executable, "-c", _FULL, str(tmp_path / "a.db"), str(small))
    assert result.stdout.splitlines()[0].startswith("FilePlace"), result.stderr
    assert "b.db cannot be written" in result.stdout
    assert result.stdout.splitlines()[1] == "left: []"


async def _alone(*script: str) -> subprocess.CompletedProcess[str]:
    """Run a shell script that may mount what nobody else sees."""
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", *script]
    try:
        return await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("unshare is not installed")


async def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    async with opened(tmp_path / "a.db") as made:
        with pytest.raises(FilePlace, match=r"b\.db cannot be written \(File exists"):
            await back_up(made, tmp_path / "file" / "b.db")


_BACKUP = """
import asyncio, sys
from pathlib import Path
from tests.drivers.sqlite.test_backup import back_up, opened
from everlog.drivers.sqlite import backup
sync = backup.sync
def stopping(fd):
    sync(fd)
    print("a step", flush=True)
    sys.stdin.readline()
backup.sync = stopping
async def main():
    async with opened(Path(sys.argv[1])) as made:
        await back_up(made, Path(sys.argv[2]))
asyncio.run(main())
"""


async def test_a_killed_backup_leaves_nothing_under_the_name(tmp_path: Path) -> None:
    async with opened(tmp_path / "a.db") as made:
        await filled(made)
    target = tmp_path / "out" / "b.db"
    for steps in (1, 4):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", _BACKUP, str(tmp_path / "a.db"), str(target), stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert process.stdin is not None
        assert process.stdout is not None
        for _ in range(steps):
            assert await process.stdout.readline() == b"a step\n"
            process.stdin.write(b"\n")
        process.send_signal(signal.SIGKILL)
        await process.wait()
    assert [name.endswith(".part") for name in names(tmp_path / "out")] == [True, True]
    async with opened(tmp_path / "a.db") as made:
        await back_up(made, target)
    assert numbers(target) == list(range(1, 101))


async def test_a_cancelled_backup_ends_with_its_step_and_leaves_nothing(tmp_path: Path) -> None:
    async with opened(tmp_path / "a.db") as made:
        await filled(made)
        begun = asyncio.Event()

        def progress(*_: int) -> None:
            begun.set()

        running = asyncio.ensure_future(back_up(made, tmp_path / "out" / "b.db", progress))
        await begun.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert names(tmp_path / "out") == []


async def test_what_is_in_memory_and_what_is_closed_cannot_be_copied(tmp_path: Path) -> None:
    async with opened(None) as made:
        with pytest.raises(FeatureMissing, match="a backup is not offered by the log in memory"):
            await back_up(made, tmp_path / "b.db")
    with pytest.raises(Closed):
        await back_up(made, tmp_path / "b.db")
    assert names(tmp_path) == []


# ---- those who write meanwhile ----


async def test_a_writer_that_has_to_empty_the_wal_is_let_in_and_the_copy_begins_anew(tmp_path: Path) -> None:
    async with opened(tmp_path / "a.db") as made, opened(tmp_path / "a.db") as other:
        await filled(made)
        seen: list[int] = []
        after: list[asyncio.Future[int]] = []

        def progress(done: int, _: int) -> None:
            seen.append(done)
            if len(seen) == 2:
                other._suspect = True  # as when its last commit failed, or another process was killed in the middle
                after.append(other.submit(101))

        async with asyncio.timeout(5):  # the busy handler would wait for ten
            await back_up(made, tmp_path / "b.db", progress)
            await after[0]
        assert sorted(seen) != seen
    assert numbers(tmp_path / "b.db") == list(range(1, 102))


async def test_a_copy_that_had_to_give_way_again_and_again_is_given_up(tmp_path: Path) -> None:
    async with opened(tmp_path / "a.db") as made, opened(tmp_path / "a.db") as other:
        await filled(made, 400)  # steps enough for a writer to come in between on a busy machine
        beginnings: list[int] = []

        def progress(done: int, _: int) -> None:
            if done == STEP_BYTES:
                beginnings.append(done)
                other._suspect = True
                other.submit(1_000 + len(beginnings))

        async with asyncio.timeout(20):
            with pytest.raises(FilePlace, match=r"its writers failed 4 times while it was copied.*there is no backup"):
                await back_up(made, tmp_path / "out" / "b.db", progress)
        assert len(beginnings) == 4
        assert names(tmp_path / "out") == []


async def test_the_wal_can_be_brought_into_the_file_up_to_the_moment_that_is_copied(tmp_path: Path) -> None:
    """A reader of a WAL that is all in the file already would lock every checkpoint out."""
    async with opened(tmp_path / "a.db") as made:
        await filled(made, 3)
        made._writer.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
        with module._moment(module.Order(tmp_path / "a.db", KIND, tmp_path / "b.db", check=False)):
            await made.submit(4)
            _, moved = made._writer.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
            assert moved > 0


async def test_a_source_without_room_can_still_be_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without_room(path: Path, kind: Kind, *, create: bool, writes: bool) -> apsw.Connection:
        connection = connect(path, kind, create=create, writes=writes)
        connection.pragma("query_only", 1)
        return connection

    monkeypatch.setattr("everlog.drivers.sqlite.backup.connect", without_room)
    async with opened(tmp_path / "a.db") as made:
        await filled(made)
        await back_up(made, tmp_path / "b.db")
        assert (tmp_path / "a.db-turn").read_bytes()[:1] == b"\x01"  # the next writer sees to what may not be synced
        await made.submit(101)
    assert numbers(tmp_path / "b.db") == list(range(1, 101))


# ---- putting it back ----


async def test_a_copy_put_beside_a_newer_bell_is_refused_and_says_what_to_remove(tmp_path: Path) -> None:
    async with opened(tmp_path / "a.db") as made:
        await filled(made, 3)
        await back_up(made, tmp_path / "b.db")
        await made.submit(4)
    shutil.copy(tmp_path / "b.db", tmp_path / "a.db")
    with pytest.raises(FileDamaged, match=r"acknowledged data is missing.*everlog restore --from FILE"):
        async with opened(tmp_path / "a.db"):
            pass
    (tmp_path / "a.db-bell").unlink()
    async with opened(tmp_path / "a.db") as made:
        assert await made.submit(4)
    assert numbers(tmp_path / "a.db") == [1, 2, 3, 4]
