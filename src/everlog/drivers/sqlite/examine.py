"""Looking at a file in use without changing it: what a log and a store of this engine have in common.

Nothing is opened for writing, no turn is taken and no bell is rung, so that what a killed process has left is still there afterwards.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import apsw

from everlog.clock import Clock
from everlog.drivers.sqlite.connection import Kind, check_header, disconnect, is_open_here, look_into, translate
from everlog.drivers.sqlite.machine import examine_machine
from everlog.drivers.sqlite.rows import first_of
from everlog.drivers.sqlite.volume import examine_volume
from everlog.errors import FileError
from everlog.finding import Examined, Finding, Judgement, Level

LARGE_WAL_BYTES: Final = 64 << 20
_PAGE_BYTES: Final = 4_096
_SIDES: Final = ("", "-wal", "-shm", "-bell", "-turn", "-open")
_LOOKS: Final = 3

Look = Callable[[apsw.Connection], Examined]
"""The adapter's part: looks in one read transaction."""


@dataclass(frozen=True, slots=True)
class Subject:
    """What is looked at.

    Attributes:
        name: What the findings belong to.
        path: The file.
        kind: What it should be.
        missing: What to do where there is none yet.
    """

    name: str
    path: Path
    kind: Kind
    missing: str


async def examine(subject: Subject, look: Look, *, clock: Clock) -> Examined:
    """Return what is found out about a file, its place and the machine."""
    path = subject.path
    is_there = path.exists()
    findings = [*examine_machine(clock), *await examine_volume(path.parent, path.stat().st_size if is_there else 0)]
    if not is_there:
        return Examined([*findings, Finding(subject.name, "file", *_missing(subject))], None)
    inside = _inside(subject, look)
    around = [Finding(subject.name, "modes", *_modes(path)), Finding(subject.name, "WAL", *_wal(path))]
    return Examined([*findings, *inside.findings, *around], inside.log)


def _missing(subject: Subject) -> Judgement:
    rung = _rung(subject.path)
    if rung:
        advice = "put a backup back with `everlog restore --from FILE` (of a store: `everlog restore APP --from FILE`)"
        return Judgement(Level.PROBLEM, f"{subject.path} held commits up to number {rung}, and is gone", advice)
    return Judgement(Level.WARNING, f"there is none at {subject.path}", subject.missing)


def _rung(path: Path) -> int:
    """Return the number of the last commit that was acknowledged; 0 where nobody knows."""
    try:
        return int.from_bytes(_beside(path, "-bell").read_bytes()[:8], "little")
    except OSError:
        return 0


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _inside(subject: Subject, look: Look) -> Examined:
    """Look into the file."""

    def only(level: Level, found: str, advice: str) -> Examined:
        return Examined([Finding(subject.name, "file", level, found, advice)], None)

    path = subject.path
    try:
        if check_header(path, subject.kind):
            return only(Level.WARNING, f"{path} is empty", subject.missing)
        for _ in range(_LOOKS - 1):
            had_wal = _beside(path, "-wal").exists()
            examined = _read(subject, look)
            if had_wal or not _beside(path, "-wal").exists():
                return examined
        return _read(subject, look)  # others open and close it all the time
    except FileError as error:
        return only(Level.PROBLEM, str(error), "nothing can be read or written until that is mended")
    except apsw.CantOpenError:
        advice = "whoever opens it next takes the WAL up; if this is a copy, make it with `everlog backup` and not file by file"
        return only(
            Level.WARNING, f"{path.name}-wal has no {path.name}-shm beside it, and {path.name} was not looked into", advice
        )
    except apsw.Error as error:
        return only(Level.PROBLEM, str(translate(error, path) or error), "see what is left with `everlog verify`")


def _read(subject: Subject, look: Look) -> Examined:
    rung = _rung(subject.path)  # first: a writer rings behind its commit
    has_wal = _has_wal(subject.path)
    connection = look_into(subject.path)
    try:
        connection.execute("BEGIN").fetchall()
        number: int = first_of(connection, "SELECT number FROM head")
        own = look(connection)
        file = Judgement(Level.OK, f"{subject.path}: {subject.path.stat().st_size:,} bytes, at commit {number:,}")
        if rung > number:
            file = Judgement(
                Level.PROBLEM,
                f"{subject.path}: commits up to number {rung} were acknowledged, and the file ends at {number}",
                "put a backup back with `everlog restore --from FILE` (of a store: `everlog restore APP --from FILE`)",
            )
        settings = _settings(connection, has_wal=has_wal)
    finally:
        disconnect(connection)
    findings = [Finding(subject.name, "file", *file), Finding(subject.name, "file's settings", *settings), *own.findings]
    return Examined(findings, own.log)


def _has_wal(path: Path) -> bool:
    """Return whether the file says of itself that it has a WAL, also where there is none just now."""
    if is_open_here(path):
        return True  # by what this Everlog opens, which sets it
    with path.open("rb") as file:
        return file.read(20)[18:20] == b"\x02\x02"


def _settings(connection: apsw.Connection, *, has_wal: bool) -> Judgement:
    """Look at what is set in the file itself and cannot be set later."""
    expected = {"page_size": _PAGE_BYTES, "auto_vacuum": 2, "checksum_verification": 1}
    wrong = [
        f"{name}={found}, not {value}" for name, value in expected.items() if str(found := connection.pragma(name)) != str(value)
    ]
    if connection.reserve_bytes() != 8:
        wrong.append("no room for page checksums")
    if not has_wal:
        wrong.append("no WAL")
    if wrong:
        advice = "another program has made or changed it: publish its events into a new one"
        return Judgement(Level.PROBLEM, "; ".join(wrong), advice)
    return Judgement(Level.OK, "WAL, page checksums, room is given back")


def _modes(path: Path) -> Judgement:
    """Look at who may do what with the file and those beside it."""
    owner = path.stat().st_uid
    for found in [side for suffix in _SIDES if (side := _beside(path, suffix)).exists()]:
        info = found.stat()
        if not os.access(found, os.R_OK | os.W_OK):
            return Judgement(Level.PROBLEM, f"this user may not read and write {found}", "run as its owner, or give permission")
        if info.st_uid != owner:
            advice = f"somebody ran a command as another user: chown it like {path.name}"
            return Judgement(Level.PROBLEM, f"{found} belongs to user {info.st_uid}, and {path.name} to {owner}", advice)
        if info.st_mode & 0o077:
            return Judgement(
                Level.WARNING, f"{found} has mode {info.st_mode & 0o777:04o}", f"others may read it: chmod 600 {found}"
            )
    return Judgement(Level.OK, "0600, and so is what is beside it")


def _wal(path: Path) -> Judgement:
    """Look at how much waits to be brought into the file."""
    try:
        size = _beside(path, "-wal").stat().st_size
    except FileNotFoundError:
        size = 0
    if size == 0:
        return Judgement(Level.OK, "empty")
    if is_open_here(path):
        return Judgement(Level.OK, f"{size:,} bytes")
    try:
        with _beside(path, "-shm").open("rb") as file:
            head = file.read(100)
        # SQLite's index of the WAL: the last frame's number at byte 16, and at byte 96 the last one that is in the file already.
        last, moved = struct.unpack_from("=I", head, 16)[0], struct.unpack_from("=I", head, 96)[0]
        waiting = max(0, last - moved) * _PAGE_BYTES
    except (OSError, struct.error):
        waiting = size
    found = f"{size:,} bytes, {waiting:,} of them not in the file yet"
    if waiting > LARGE_WAL_BYTES:
        advice = (
            "a reader that does not end holds them: a backup, a verify, a process that was stopped; they go once it has ended"
        )
        return Judgement(Level.WARNING, found, advice)
    return Judgement(Level.OK, found)
