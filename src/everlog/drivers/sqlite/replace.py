"""Putting a backup in the place of a file: the old one is moved aside with what is beside it, and never overwritten.

    copy of the backup, synced · old file aside · its WAL aside · copy gets the name · the bell begins anew

Whatever is killed in between, nobody opens what is half done: until the end the bell says that commits are missing, which every opening
refuses. Running it again does the rest.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import apsw

from everlog.drivers.sqlite.bell import Bell
from everlog.drivers.sqlite.connection import Kind, check_header, check_place, disconnect, is_open_here, look_into
from everlog.drivers.sqlite.disk import sync, sync_folder
from everlog.drivers.sqlite.rows import first_of
from everlog.drivers.sqlite.turn import Turn
from everlog.errors import CommandRefused, FileDamaged, FilePlace, FileStrange

_COPY: Final = "give the copy that `everlog backup` has made"
_STEP_BYTES: Final = 8 << 20
_SIDES: Final = ("-wal", "-shm", "-bell", "-turn", "-open")


@dataclass(frozen=True, slots=True)
class Replacement:
    """A checked copy of a backup, beside the file whose place it is to take.

    Attributes:
        path: The file.
        copy: The copy. It may be opened, and changed, before it is put in place.
    """

    path: Path
    copy: Path


def check_unused(path: Path) -> None:
    """Check that nobody has the file open.

    Raises:
        CommandRefused: A process has, or this one.
    """
    if is_open_here(path):
        raise CommandRefused(f"this process has {path} open: close it first")
    presence = os.open(path.with_name(path.name + "-open"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(presence, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise CommandRefused(
            f"a process has {path} open: stop whatever runs on it, also what is only stopped by a signal, and run this again"
        ) from None
    finally:
        os.close(presence)


@contextlib.contextmanager
def prepared(path: Path, kind: Kind, backup: Path) -> Generator[Replacement]:
    """Copy a backup to where it is to be put, and check the copy. What is not put in place is removed again.

    Raises:
        FileError: The backup is none of this kind, is damaged or newer, or there is no room for a copy of it.
        CommandRefused: There is no such file, or it is not a whole backup, or somebody has the file in whose place it is to be put.
    """
    backup = backup.resolve()
    path = path.resolve()
    if backup.is_dir():
        inside = backup / path.name
        named = f", {inside}" if inside.is_file() else ""
        raise CommandRefused(
            f"{backup} is a folder: give the copy of the {kind.name} that `everlog backup` has made in it{named}"
        )
    if not backup.is_file():
        raise CommandRefused(f"there is no file {backup}: {_COPY}")
    if backup.with_name(backup.name + "-wal").exists():
        raise CommandRefused(
            f"{backup} has a WAL beside it, so it is a file in use, or was copied by hand: give one that `everlog backup` has made, or "
            f"make one of it with `everlog backup`"
        )
    if check_header(backup, kind, instead=_COPY):
        raise FileStrange(f"{backup} is empty: expected a {kind.name} that `everlog backup` has copied")
    if backup == path:
        raise CommandRefused(f"{backup} is the file itself: give the copy that is to take its place")
    check_place(path)
    check_unused(path)
    copy = path.with_name(path.name + ".restoring")
    _remove(copy)
    try:
        _copy(backup, copy)
        _check(copy, kind, backup)
        yield Replacement(path, copy)
    finally:
        _remove(copy)


def put_in_place(replacement: Replacement, aside: str) -> list[Path]:
    """Give the copy the file's name; return where what was there before is now.

    Args:
        replacement: What `prepared` gave. Nobody has the copy open.
        aside: What is added to the name of the old file.

    Raises:
        CommandRefused: Somebody has opened the file meanwhile. Nothing was changed.
        FilePlace: Something cannot be renamed. Run it again.
    """
    path, copy = replacement.path, replacement.copy
    if (wal := copy.with_name(copy.name + "-wal")).exists() and wal.stat().st_size:
        raise FilePlace(f"{wal} was not moved into {copy.name}: nothing was changed; run it again")
    try:
        with _alone(path), copy.open("rb") as file:
            sync(file.fileno())
            moved = [_move(old, _aside(path, aside, old)) for old in _old(path)]
            copy.rename(path)
            sync_folder(path.parent)  # the new file has its name for good before anything less than the old bell stands beside it
            bell = Bell(path.with_name(path.name + "-bell"))
            bell.ring(0)
            bell.close()
            return moved
    except OSError as error:
        raise FilePlace(
            f"{path.parent}: {error.strerror or error}: {path.name} is not in place yet; see to it and run it again"
        ) from error


def _old(path: Path) -> list[Path]:
    """Return what has to be moved: the file first, since a WAL without its file is taken for nobody's."""
    return [old for old in (path, path.with_name(path.name + "-wal"), path.with_name(path.name + "-shm")) if os.path.lexists(old)]


def _aside(path: Path, word: str, old: Path) -> Path:
    return path.with_name(f"{path.name}.{word}{old.name.removeprefix(path.name)}")


def _move(old: Path, target: Path) -> Path:
    if os.path.lexists(target):
        raise FilePlace(f"{target} exists, and nothing is replaced: move it away, and run it again")
    old.rename(target)
    return target


@contextlib.contextmanager
def _alone(path: Path) -> Generator[None]:
    """Keep everybody from opening the file while another one takes its place.

    Raises:
        CommandRefused: Somebody has it open.
    """
    check_unused(path)  # who has it open may be stopped, and hold the turn for ever
    turn = Turn(path.with_name(path.name + "-turn"))
    try:
        in_order = turn.take()  # who opens it takes the turn first, and then says that it is there
        try:
            check_unused(path)
            yield
            in_order = True  # the new file is synced
        finally:
            turn.give(in_order=in_order)
    finally:
        turn.close()


def _copy(backup: Path, copy: Path) -> None:
    try:
        size, free = backup.stat().st_size, shutil.disk_usage(copy.parent).free
        if free < size:
            raise FilePlace(
                f"{copy.parent} has {free:,} bytes free, and a copy of {backup} needs {size:,}: make room; nothing was changed"
            )
        target = os.open(copy, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with backup.open("rb") as source:
                while data := source.read(_STEP_BYTES):
                    while data:
                        data = data[os.write(target, data) :]
            sync(target)
        finally:
            os.close(target)
    except OSError as error:
        raise FilePlace(f"{backup} cannot be copied to {copy} ({error.strerror or error}): nothing was changed") from error


def _check(copy: Path, kind: Kind, backup: Path) -> None:
    """Read every page of the copy."""
    connection = look_into(copy)
    try:
        wrong = first_of(connection, "PRAGMA integrity_check")
        if connection.reserve_bytes() != 8:
            wrong = "its pages carry no checksums"
    except apsw.Error as error:
        wrong = str(error)
    finally:
        disconnect(connection)
    if wrong != "ok":
        raise FileDamaged(
            f"{backup} is damaged ({str(wrong)[:300]}): nothing was changed; take another backup of the {kind.name}"
        )


def _remove(copy: Path) -> None:
    for side in ("", *_SIDES):
        with contextlib.suppress(OSError):
            copy.with_name(copy.name + side).unlink()
