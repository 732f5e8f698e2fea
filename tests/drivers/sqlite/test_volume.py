"""Looking at a volume: each thing that can be wrong with one, forced where the system says it, and a sound one."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from everlog.drivers.sqlite import volume as module
from everlog.drivers.sqlite.bell import Bell
from everlog.drivers.sqlite.connection import Kind
from everlog.errors import FilePlace
from everlog.finding import Finding, Level

Patch = pytest.MonkeyPatch
GB = 1_000_000_000


class Usage(NamedTuple):
    free: int


def always(answer: object) -> Callable[..., Any]:
    def function(*_: object, **__: object) -> object:
        return answer

    return function


async def found(folder: Path, file_bytes: int = 0) -> dict[str, Finding]:
    findings = await module.examine_volume(folder, file_bytes)
    assert {one.subject for one in findings} == {str(folder)}
    return {one.name: one for one in findings}


def is_empty(folder: Path) -> bool:
    return not list(folder.iterdir())


@pytest.fixture
def place(tmp_path: Path) -> Path:
    made = tmp_path / ".everlog"
    made.mkdir(mode=0o700)
    return made


async def test_a_sound_place_is_ok_and_is_left_as_it_was(place: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr(module, "file_system", always("ext4"))
    monkeypatch.setattr(module, "sync", os.fsync)
    monkeypatch.setattr(module, "NO_SYNC_S", 0.0)  # in memory, where tests may run, it takes no time
    monkeypatch.setattr(module, "SLOW_SYNC_S", 60.0)
    monkeypatch.setattr(shutil, "disk_usage", always(Usage(80 * GB)))
    findings = await found(place)
    assert list(findings) == ["file system", "permissions", "free space", "sync", "locks", "bell", "SQLite's settings"]
    assert {one.level for one in findings.values()} == {Level.OK}, findings
    assert {one.advice for one in findings.values()} == {""}
    assert is_empty(place)


async def test_a_folder_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    findings = await found(tmp_path / "deep" / "er")
    assert findings["permissions"].found == "the folder is made with the first file"
    assert findings["locks"].level is Level.OK
    assert is_empty(tmp_path)


async def test_a_file_in_the_place_of_a_folder_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    finding = (await found(tmp_path / "file" / "deep"))["permissions"]
    assert (finding.level, finding.found) == (Level.PROBLEM, f"{tmp_path / 'file'} is no folder")


@pytest.mark.parametrize(
    ("system", "level", "advice"),
    [
        ("nfs4", Level.PROBLEM, "choose a local disk"),
        ("fuse.sshfs", Level.PROBLEM, "choose a local disk"),
        ("tmpfs", Level.WARNING, "gone when the machine starts again"),
        ("overlay", Level.OK, "goes with the container"),
        ("ext4", Level.OK, ""),
        ("", Level.OK, ""),
    ],
)
async def test_a_file_system_is_judged(place: Path, monkeypatch: Patch, system: str, level: Level, advice: str) -> None:
    monkeypatch.setattr(module, "file_system", always(system))
    findings = await found(place)
    assert findings["file system"].level is level
    assert advice in findings["file system"].advice
    assert ("locks" in findings) == (level is not Level.PROBLEM)  # on a network nothing is tried


async def test_a_folder_that_may_not_be_written_is_a_problem_and_nothing_is_tried(place: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr(os, "access", always(answer=False))  # root may do everything
    findings = await found(place)
    assert findings["permissions"].level is Level.PROBLEM
    assert "run as the user" in findings["permissions"].advice
    assert list(findings) == ["file system", "permissions", "free space"]


async def test_a_folder_that_others_may_look_into_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir(mode=0o750)
    finding = (await found(tmp_path / "open"))["permissions"]
    assert (finding.level, finding.found) == (Level.WARNING, "0750: others may look into it")
    assert f"chmod 700 {tmp_path / 'open'}" in finding.advice


@pytest.mark.parametrize(
    ("free", "file_bytes", "level"),
    [
        (80 * GB, 0, Level.OK),
        (80 * GB, 79 * GB, Level.OK),
        (80 * GB, 81 * GB, Level.WARNING),
        (1 << 30, 0, Level.OK),
        ((1 << 30) - 1, 0, Level.WARNING),
        ((64 << 20) - 1, 0, Level.PROBLEM),
    ],
)
async def test_free_space_is_judged(place: Path, monkeypatch: Patch, free: int, file_bytes: int, level: Level) -> None:
    monkeypatch.setattr(shutil, "disk_usage", always(Usage(free)))
    assert (await found(place, file_bytes))["free space"].level is level


@pytest.mark.parametrize(("seconds", "level"), [(0.001, Level.OK), (0.06, Level.WARNING), (0.000_001, Level.WARNING)])
async def test_the_time_of_a_sync_is_judged(place: Path, monkeypatch: Patch, seconds: float, level: Level) -> None:
    now_s = 0.0

    def sync(_: int) -> None:
        nonlocal now_s
        now_s += seconds

    monkeypatch.setattr(module, "sync", sync)
    monkeypatch.setattr(time, "perf_counter", lambda: now_s)
    finding = (await found(place))["sync"]
    assert finding.level is level
    assert finding.found == f"{seconds * 1_000:.2f} ms to bring 4 KiB to the disk"


async def test_locks_that_do_not_lock_are_a_problem(place: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr(fcntl, "flock", always(None))
    finding = (await found(place))["locks"]
    assert (finding.level, finding.found) == (Level.PROBLEM, "two can hold one lock at once")


async def test_locks_that_are_refused_are_a_problem(place: Path, monkeypatch: Patch) -> None:
    def refused(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refused)
    finding = (await found(place))["locks"]
    assert (finding.level, finding.found) == (Level.PROBLEM, "a file cannot be locked: Operation not supported")


async def test_a_bell_that_nobody_hears_is_a_problem(place: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr(module, "_ring", always(None))
    monkeypatch.setattr(module, "_BELL_S", 0.01)
    finding = (await found(place))["bell"]
    assert finding.level is Level.PROBLEM
    assert "wakes nobody" in finding.found


async def test_a_bell_that_cannot_be_watched_is_a_problem(place: Path, monkeypatch: Patch) -> None:
    def refused(*_: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(Bell, "listen", refused)
    finding = (await found(place))["bell"]
    assert finding.level is Level.PROBLEM
    assert "max_user_instances" in finding.advice


async def test_a_place_that_does_not_keep_sqlites_settings_is_a_problem(place: Path, monkeypatch: Patch) -> None:
    def refused(path: Path, _: Kind, **__: object) -> None:
        raise FilePlace(f"{path}: expected PRAGMA journal_mode=wal, SQLite says 'delete'")

    monkeypatch.setattr(module, "connect", refused)
    finding = (await found(place))["SQLite's settings"]
    assert (finding.level, finding.found) == (
        Level.PROBLEM,
        "there/probe.db: expected PRAGMA journal_mode=wal, SQLite says 'delete'",
    )


async def test_a_disk_that_takes_no_file_is_a_problem(place: Path, monkeypatch: Patch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryDirectory", refused)
    finding = (await found(place))["writing"]
    assert (finding.level, finding.found) == (Level.PROBLEM, "a file cannot be made there: No space left on device")
