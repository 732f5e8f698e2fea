"""Looking at the place of a file: whether its volume keeps what SQLite, the turn and the bell rely on.

What has to be tried is tried in a folder of its own, which is removed again.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final

import apsw

from everlog.drivers.sqlite.bell import Bell
from everlog.drivers.sqlite.connection import Kind, connect, disconnect, file_system, is_network
from everlog.drivers.sqlite.disk import sync
from everlog.errors import EverlogError
from everlog.finding import Finding, Judgement, Level

LOW_BYTES: Final = 1 << 30
NO_BYTES: Final = 64 << 20
"""With less than this a group of publishes, and the WAL around it, may not fit."""
SLOW_SYNC_S: Final = 0.05
NO_SYNC_S: Final = 5e-6
"""No disk syncs that fast: something between says that it has."""
_SYNCS: Final = 7
_BELL_S: Final = 1.0
_IN_MEMORY: Final = ("tmpfs", "ramfs")
_PROBE: Final = Kind("probe", application_id=0, version=1, tables="CREATE TABLE probe (n INTEGER) STRICT;")


async def examine_volume(folder: Path, file_bytes: int) -> Sequence[Finding]:
    """Return what there is to know of the place of a file.

    Args:
        folder: Where the file is, or would be made.
        file_bytes: How big it is.
    """
    subject = str(folder)
    place = _nearest(folder)
    found = [
        Finding(subject, "file system", *_file_system(place)),
        Finding(subject, "permissions", *_permissions(folder, place)),
        Finding(subject, "free space", *_free(place, file_bytes)),
    ]
    if any(one.level is Level.PROBLEM for one in found[:2]):
        return found  # nothing can be tried there
    trials: tuple[tuple[str, Callable[[Path], Awaitable[Judgement]]], ...] = (
        ("sync", _sync),
        ("locks", _locks),
        ("bell", _bell),
        ("SQLite's settings", _settings),
    )
    try:
        with tempfile.TemporaryDirectory(prefix=".everlog-doctor-", dir=place) as made:
            found += [Finding(subject, name, *await trial(Path(made))) for name, trial in trials]
    except OSError as error:
        found.append(
            Finding(
                subject,
                "writing",
                Level.PROBLEM,
                f"a file cannot be made there: {error.strerror}",
                "make room, or give permission",
            )
        )
    return found


def _nearest(folder: Path) -> Path:
    """Return the folder, or the first one above it that exists."""
    return next(one for one in (folder, *folder.parents) if one.is_dir())


def _file_system(place: Path) -> Judgement:
    system = file_system(place)
    if is_network(system):
        return Judgement(
            Level.PROBLEM, system, "file locks and syncs are not kept there: choose a local disk with --log-url or --store-url"
        )
    if system in _IN_MEMORY:
        return Judgement(Level.WARNING, f"{system}, in memory", "all of it is gone when the machine starts again: choose a disk")
    if system == "overlay":
        return Judgement(
            Level.OK, system, "a container's own layer: what is stored there goes with the container, unless this is a volume"
        )
    return Judgement(Level.OK, system or "local")


def _permissions(folder: Path, place: Path) -> Judgement:
    for one in (folder, *folder.parents):
        if one.exists() and not one.is_dir():
            return Judgement(Level.PROBLEM, f"{one} is no folder", "choose another place with --log-url or --store-url")
    if not os.access(place, os.R_OK | os.W_OK | os.X_OK):
        return Judgement(
            Level.PROBLEM,
            f"this user may not write {place}",
            f"run as the user {_owner(place)} that it belongs to, or give permission",
        )
    if place != folder:
        return Judgement(Level.OK, "the folder is made with the first file")
    mode = place.stat().st_mode & 0o777
    if mode & 0o077:
        return Judgement(
            Level.WARNING,
            f"{mode:04o}: others may look into it",
            f"chmod 700 {place}, or keep the files in a folder of their own",
        )
    return Judgement(Level.OK, f"{mode:04o}")


def _owner(path: Path) -> str:
    try:
        return path.owner()
    except KeyError:  # a user without a name, as in a container
        return str(path.stat().st_uid)


def _free(place: Path, file_bytes: int) -> Judgement:
    free = shutil.disk_usage(place).free
    found = f"{free / 1e9:,.1f} GB free"
    if free < NO_BYTES:
        return Judgement(Level.PROBLEM, f"{free:,} bytes free", "publishing is refused when the disk is full: make room")
    if free < max(LOW_BYTES, file_bytes):
        return Judgement(
            Level.WARNING, found, "less than a GiB, or than the file itself: make room, or let retention delete what is old"
        )
    return Judgement(Level.OK, found)


async def _sync(made: Path) -> Judgement:
    seconds: list[float] = []
    fd = os.open(made / "sync", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        for number in range(_SYNCS):
            os.pwrite(fd, os.urandom(4_096), number * 4_096)
            began_s = time.perf_counter()
            sync(fd)
            seconds.append(time.perf_counter() - began_s)
    finally:
        os.close(fd)
    middle_s = statistics.median(seconds)
    found = f"{middle_s * 1_000:.2f} ms to bring 4 KiB to the disk"
    if middle_s > SLOW_SYNC_S:
        return Judgement(
            Level.WARNING, found, "every publish that is awaited waits for it: choose a faster disk, or publish in batches"
        )
    if middle_s < NO_SYNC_S:
        return Judgement(Level.WARNING, found, "no disk is that fast: what is acknowledged may be lost with the power")
    return Judgement(Level.OK, found)


async def _locks(made: Path) -> Judgement:
    first = os.open(made / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    second = os.open(made / "lock", os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(first, fcntl.LOCK_EX)
        try:
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return Judgement(Level.OK, "a file is locked by one process at a time")
        return Judgement(
            Level.PROBLEM, "two can hold one lock at once", "several processes would damage the file: choose a local disk"
        )
    except OSError as error:
        return Judgement(Level.PROBLEM, f"a file cannot be locked: {error.strerror}", "choose a local disk")
    finally:
        os.close(first)
        os.close(second)


async def _bell(made: Path) -> Judgement:
    advice = "readers would hear of new events every 5 s: choose another volume, or see the limits of inotify"
    bell = Bell(made / "bell")
    try:
        bell.listen()
        strokes = bell.strokes
        began_s = time.perf_counter()
        threading.Thread(target=_ring, args=(made / "bell",)).start()
        await bell.wait(strokes, seconds=_BELL_S)
        took_ms = (time.perf_counter() - began_s) * 1_000
        if bell.strokes == strokes:
            return Judgement(Level.PROBLEM, f"a written file wakes nobody within {_BELL_S:g} s", advice)
        return Judgement(Level.OK, f"heard after {took_ms:.1f} ms")
    except OSError as error:
        return Judgement(
            Level.PROBLEM,
            f"a file cannot be watched: {error.strerror}",
            "raise fs.inotify.max_user_instances and max_user_watches",
        )
    finally:
        bell.close()


def _ring(path: Path) -> None:
    with path.open("r+b") as file:
        file.write((1).to_bytes(8, "little"))


async def _settings(made: Path) -> Judgement:
    try:
        connection = connect(made / "probe.db", _PROBE, create=True, writes=True)
    except (EverlogError, apsw.Error) as error:
        return Judgement(Level.PROBLEM, str(error).replace(str(made), "there"), "choose a local disk")
    try:
        connection.execute("INSERT INTO probe VALUES (1)").fetchall()
        if connection.execute("PRAGMA integrity_check").get != "ok":
            return Judgement(Level.PROBLEM, "what SQLite wrote cannot be read", "choose another disk")
    except apsw.Error as error:
        return Judgement(Level.PROBLEM, f"SQLite cannot write there: {error}", "choose another disk")
    finally:
        disconnect(connection)
    return Judgement(Level.OK, "a new file keeps all of them: WAL, full sync, page checksums")
