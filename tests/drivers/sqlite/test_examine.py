"""Looking at a file without changing it, in each state that processes leave it in."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import UUID

import apsw
import pytest

from everlog.drivers.sqlite import examine as module
from everlog.drivers.sqlite.connection import Kind
from everlog.drivers.sqlite.database import HEAD_TABLE, Database, Group
from everlog.drivers.sqlite.examine import Subject, examine
from everlog.drivers.sqlite.rows import first_of
from everlog.finding import Examined, Finding, Level
from everlog.testing.clock import ManualClock

KIND = Kind("log", 0x45564C47, 1, HEAD_TABLE + "CREATE TABLE t (n INTEGER, body BLOB) STRICT;")
IDENTITY = UUID(int=7)


def insert(group: Group, jobs: Sequence[int]) -> Sequence[int]:
    for job in jobs:
        group.connection.execute("INSERT INTO t VALUES (?, randomblob(5000))", (job,))
    return [group.number] * len(jobs)


@asynccontextmanager
async def opened(path: Path) -> AsyncGenerator[Database[int, int]]:
    made: Database[int, int] = Database(path, KIND, insert, size_of=lambda job: 50, wall_us=lambda: 0)
    await made.open()
    try:
        yield made
    finally:
        await made.aclose()


def look(connection: apsw.Connection) -> Examined:
    count = first_of(connection, "SELECT count(*) FROM t")
    return Examined([Finding("log", "rows", Level.OK, str(count))], IDENTITY)


async def found(path: Path) -> dict[str, Finding]:
    """Return what is found out about the file itself."""
    examined = await examine(Subject("log", path, KIND, "make one"), look, clock=ManualClock())
    assert {one.subject for one in examined.findings} == {"machine", str(path.parent), "log"}
    findings = {one.name: one for one in examined.findings if one.subject == "log"}
    assert examined.log == (IDENTITY if "rows" in findings else None)
    return findings


def contents(folder: Path) -> dict[str, tuple[str, int]]:
    """Return what would show that anything was written."""
    return {
        path.name: (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns) for path in sorted(folder.iterdir())
    }


async def test_a_sound_file_that_nobody_uses_is_ok_and_not_changed(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    async with opened(path) as made:
        await made.submit(1)
    before = contents(tmp_path)
    findings = await found(path)
    assert {one.level for one in findings.values()} == {Level.OK}
    assert list(findings) == ["file", "file's settings", "rows", "modes", "WAL"]
    assert findings["rows"].found == "1"
    assert findings["file"].found.endswith("bytes, at commit 1")
    assert contents(tmp_path) == before


_USER = """
import asyncio, sys
from pathlib import Path
from tests.drivers.sqlite.test_examine import opened
async def main():
    async with opened(Path(sys.argv[1])) as made:
        while order := sys.stdin.readline().strip():
            if order.isdigit():
                await made.submit(int(order))
            else:
                with made.reading() as connection:
                    connection.execute(order).fetchall()
            print("done", flush=True)
asyncio.run(main())
"""


class User:
    """Another process that has the file open, and does what it is told: commits a number, or runs SQL in its reader."""

    def __init__(self, path: Path) -> None:
        command = [sys.executable, "-c", _USER, str(path)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def do(self, *orders: str | int) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        for order in orders:
            self._process.stdin.write(f"{order}\n")
            self._process.stdin.flush()
            assert self._process.stdout.readline() == "done\n"

    def end(self) -> None:
        self._process.communicate("")


@pytest.fixture
def user(tmp_path: Path) -> Iterator[User]:
    made = User(tmp_path / "a.db")
    yield made
    made.end()


async def test_a_file_in_use_is_seen_as_it_is_and_not_changed(tmp_path: Path, user: User) -> None:
    for n in range(1, 4):
        user.do(n)
        before = contents(tmp_path)
        findings = await found(tmp_path / "a.db")
        assert findings["rows"].found == str(n)  # in the WAL alone
        assert {one.level for one in findings.values()} == {Level.OK}
        assert contents(tmp_path) == before
    user.do(4)


async def test_a_process_may_look_at_what_it_has_open_itself(tmp_path: Path) -> None:
    """Opening and closing a file of its own would drop the locks that SQLite has on it in this process."""
    path = tmp_path / "a.db"
    async with opened(path) as made:
        await made.submit(1)
        locks = held_locks(tmp_path)
        findings = await found(path)
        assert findings["rows"].found == "1"
        assert {one.level for one in findings.values()} == {Level.OK}
        assert held_locks(tmp_path) == locks


def held_locks(folder: Path) -> set[tuple[str, ...]]:
    """Return the POSIX locks on the files of a folder, as Linux shows them; nothing elsewhere."""
    shown = Path("/proc/locks")
    inodes = {str(path.stat().st_ino) for path in folder.iterdir()}
    lines = [line.split()[1:] for line in shown.read_text().splitlines()] if shown.exists() else []
    return {tuple(line) for line in lines if line[0] == "POSIX" and line[4].rpartition(":")[2] in inodes}


_KILLED = """
import asyncio, os, signal, sys
from pathlib import Path
from tests.drivers.sqlite.test_examine import opened
async def main():
    async with opened(Path(sys.argv[1])) as made:
        await made.submit(1)
        os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
"""


async def killed(path: Path) -> None:
    """Leave a file as a killed process does: with a WAL, its index, and nobody who has it open."""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", _KILLED, str(path))
    assert await process.wait() == -signal.SIGKILL


async def test_what_a_killed_process_left_is_seen_and_still_there(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    await killed(path)
    before = contents(tmp_path)
    assert {"a.db-wal", "a.db-shm"} < set(before)
    findings = await found(path)
    assert findings["rows"].found == "1"
    assert {one.level for one in findings.values()} == {Level.OK}
    assert contents(tmp_path) == before


async def test_a_wal_without_its_index_is_left_to_who_opens_it_next(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    await killed(path)
    (tmp_path / "a.db-shm").unlink()
    before = contents(tmp_path)
    finding = (await found(path))["file"]
    assert finding.level is Level.WARNING
    assert "a.db was not looked into" in finding.found
    assert contents(tmp_path) == before


async def test_a_missing_file_is_said_with_what_to_do_and_not_made(tmp_path: Path) -> None:
    finding = (await found(tmp_path / "a.db"))["file"]
    assert (finding.level, finding.found, finding.advice) == (
        Level.WARNING,
        f"there is none at {tmp_path / 'a.db'}",
        "make one",
    )
    assert contents(tmp_path) == {}


async def test_an_empty_file_counts_as_missing(tmp_path: Path) -> None:
    (tmp_path / "a.db").touch()
    finding = (await found(tmp_path / "a.db"))["file"]
    assert (finding.level, finding.advice) == (Level.WARNING, "make one")


async def test_a_file_that_went_is_a_problem(tmp_path: Path) -> None:
    async with opened(tmp_path / "a.db") as made:
        await made.submit(1)
    (tmp_path / "a.db").unlink()
    finding = (await found(tmp_path / "a.db"))["file"]
    assert finding.level is Level.PROBLEM
    assert "held commits up to number 1, and is gone" in finding.found


async def test_acknowledged_commits_that_are_missing_are_a_problem(tmp_path: Path) -> None:
    async with opened(tmp_path / "a.db") as made:
        await made.submit(1)
        shutil.copytree(tmp_path, tmp_path / "copy", ignore=shutil.ignore_patterns("*-wal", "*-shm"))
    path = tmp_path / "copy" / "a.db"
    finding = (await found(path))["file"]
    assert finding.level is Level.PROBLEM
    assert "commits up to number 1 were acknowledged, and the file ends at 0" in finding.found
    assert "`everlog restore --from FILE`" in finding.advice


@pytest.mark.parametrize(
    ("body", "text"),
    [(b"my diary\n" * 1_000, "is no log of Everlog"), (b"SQLite format 3\x00" + b"\x00" * 4_080, "no log of Everlog")],
)
async def test_a_strange_file_is_a_problem_and_not_touched(tmp_path: Path, body: bytes, text: str) -> None:
    (tmp_path / "a.db").write_bytes(body)
    finding = (await found(tmp_path / "a.db"))["file"]
    assert finding.level is Level.PROBLEM
    assert text in finding.found
    assert (tmp_path / "a.db").read_bytes() == body


async def test_a_damaged_file_is_a_problem(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    async with opened(path) as made:
        await asyncio.gather(*[made.submit(n) for n in range(1, 100)])
    body = bytearray(path.read_bytes())
    for page in range(4_096, len(body), 4_096):
        body[page + 100] ^= 1
    path.write_bytes(body)
    finding = (await found(path))["file"]
    assert finding.level is Level.PROBLEM
    assert "everlog verify" in finding.advice


async def test_settings_that_another_program_made_are_a_problem(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    connection = apsw.Connection(os.fspath(path))
    connection.execute(KIND.tables).fetchall()
    connection.pragma("application_id", KIND.application_id)
    connection.pragma("user_version", KIND.version)
    connection.close()
    finding = (await found(path))["file's settings"]
    assert finding.level is Level.PROBLEM
    assert finding.found == "auto_vacuum=0, not 2; checksum_verification=0, not 1; no room for page checksums; no WAL"


@pytest.mark.parametrize("name", ["a.db", "a.db-bell"])
async def test_what_others_may_read_is_a_warning(tmp_path: Path, name: str) -> None:
    async with opened(tmp_path / "a.db"):
        pass
    (tmp_path / name).chmod(0o640)
    finding = (await found(tmp_path / "a.db"))["modes"]
    assert (finding.level, finding.found) == (Level.WARNING, f"{tmp_path / name} has mode 0640")


async def test_a_file_beside_it_that_belongs_to_somebody_else_is_a_problem(tmp_path: Path) -> None:
    async with opened(tmp_path / "a.db"):
        pass
    try:
        os.chown(tmp_path / "a.db-turn", 12_345, -1)
    except PermissionError:
        pytest.skip("only root gives files away")
    finding = (await found(tmp_path / "a.db"))["modes"]
    assert finding.level is Level.PROBLEM
    assert f"{tmp_path / 'a.db-turn'} belongs to user 12345" in finding.found


async def test_a_file_that_this_user_may_not_use_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(tmp_path / "a.db"):
        pass

    def access(path: Path, _: int) -> bool:
        return path.name != "a.db-turn"

    monkeypatch.setattr(os, "access", access)
    finding = (await found(tmp_path / "a.db"))["modes"]
    assert (finding.level, finding.found) == (
        Level.PROBLEM,
        f"this user may not read and write {tmp_path / 'a.db-turn'}",
    )


async def test_a_wal_that_a_reader_keeps_large_is_a_warning_until_it_ends(
    tmp_path: Path, user: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LARGE_WAL_BYTES", 100_000)
    user.do(1, "BEGIN", "SELECT n FROM t", *range(2, 30))
    finding = (await found(tmp_path / "a.db"))["WAL"]
    assert finding.level is Level.WARNING
    assert "a reader that does not end" in finding.advice
    user.do("COMMIT", "PRAGMA query_only=0", "PRAGMA wal_checkpoint(FULL)")
    finding = (await found(tmp_path / "a.db"))["WAL"]
    assert finding.level is Level.OK
    assert finding.found.endswith("bytes, 0 of them not in the file yet")
    assert (tmp_path / "a.db-wal").stat().st_size > 100_000


async def test_a_file_that_was_opened_while_it_was_looked_at_is_looked_at_again(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    async with opened(path) as made:
        await made.submit(1)
    looks = 0

    def busy(connection: apsw.Connection) -> Examined:
        nonlocal looks
        looks += 1
        (tmp_path / "a.db-wal").touch()
        (tmp_path / "a.db-shm").touch()
        return look(connection)

    await examine(Subject("log", path, KIND, "make one"), busy, clock=ManualClock())
    assert looks == 2
