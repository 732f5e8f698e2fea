"""Copying a file that is in use: one moment of it, in small steps, while others write.

    under the turn: a commit · BEGIN        then: 1 MiB · sync · 1 MiB · sync · …        then: check the copy · give it its name

One read transaction stands for the whole copy. Without it, SQLite begins the copy anew whenever another process commits, and beside a
writer that never pauses it never ends. While it stands the WAL cannot be emptied, and grows by what is written meanwhile. A writer that
has to empty it, because another one was killed or the disk was full, asks for that in the turn's file; then the copy lets go and begins anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import threading
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import apsw

from everlog.drivers.sqlite.connection import Kind, connect, disconnect, load_checksums, look_into, translate
from everlog.drivers.sqlite.disk import sync, sync_folder
from everlog.drivers.sqlite.rows import first_of
from everlog.drivers.sqlite.turn import Turn
from everlog.errors import EverlogError, FileDamaged, FilePlace

STEP_PAGES: Final = 256
"""1 MiB, then a sync. Beside one writer on two cores, copying 1 GB: its 99.9th percentile is 7 to 15 ms, and 25 to 48 ms with steps of
4 MiB or a sync at the end, for then its own syncs wait for the copy's pages. The copy takes 2.0 s instead of 1.6 s."""
_MOST_BEGINNINGS: Final = 4
_LEFT_BYTES: Final = 64 << 20
"""Left for those who write meanwhile, where the copy goes to their disk."""
_STOP_S: Final = 5.0
"""How long a cancelled backup waits for the step that runs."""
_SHOWN: Final = 300
"""Characters of what SQLite says."""
_UNREADABLE: Final = (apsw.SQLITE_IOERR_READ, apsw.SQLITE_IOERR_SHORT_READ, apsw.SQLITE_IOERR_CORRUPTFS)

Tell = Callable[[int, int], None]
"""Is told how many bytes are copied, and of how many."""


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be copied where.

    Attributes:
        source: The file, open in this process.
        kind: What it is.
        target: The copy. Must not exist.
        check: Read the copy again before it gets its name.
    """

    source: Path
    kind: Kind
    target: Path
    check: bool


async def back_up(order: Order, progress: Tell | None) -> None:
    """Copy the file, and give the copy its name once it is whole, checked and synced. For the promises see the ports."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()
    ended.add_done_callback(lambda future: future.cancelled() or future.exception())  # nobody may wait for it any more
    stop = threading.Event()

    def tell(done: int, total: int) -> None:
        if progress is not None and not stop.is_set():
            loop.call_soon_threadsafe(progress, done, total)

    def work() -> None:
        error: BaseException | None = None
        try:
            _work(order, tell, stop)
        except BaseException as caught:
            error = caught
        with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody waits
            loop.call_soon_threadsafe(_end, ended, error)

    # A daemon and no executor's: it takes the turn, which has no time-out.
    threading.Thread(target=work, name="everlog-backup", daemon=True).start()
    try:
        await asyncio.shield(ended)
    except asyncio.CancelledError:
        stop.set()
        await asyncio.wait([ended], timeout=_STOP_S)
        raise


def _end(ended: asyncio.Future[None], error: BaseException | None) -> None:
    if error is None:
        ended.set_result(None)
    else:
        ended.set_exception(error)


class _Stopped(Exception):
    """The backup was cancelled."""


def _work(order: Order, tell: Tell, stop: threading.Event) -> None:
    """Do all of it in this thread. Whatever it raises, nothing is left."""
    target = order.target
    part = target.with_name(f"{target.name}.{secrets.token_hex(4)}.part")
    try:
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _refuse_existing(target)
        for _ in range(_MOST_BEGINNINGS):
            if _copy(order, part, tell, stop):
                break
        else:
            raise FilePlace(
                f"{order.source}: its writers failed {_MOST_BEGINNINGS} times while it was copied, and the copy gave way to them: there is no "
                f"backup; see that there is room and that processes are not killed, and run it again"
            )
        if order.check:
            _check(order, part, stop)
        if stop.is_set():
            raise _Stopped
        _name(part, target)
    except apsw.Error as error:
        raise _translated(error, order) from error
    except OSError as error:
        raise _no_place(target, error.strerror or str(error)) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


class _Moment(NamedTuple):
    """One moment of the source."""

    connection: apsw.Connection
    turn: Turn
    asked: int
    """`Turn.asked` of then."""


@contextlib.contextmanager
def _moment(order: Order) -> Generator[_Moment]:
    """Hold the present moment of the source."""
    turn = Turn(order.source.with_name(order.source.name + "-turn"))
    connection = connect(order.source, order.kind, create=False, writes=True)
    try:
        in_order = turn.take()
        try:
            in_order = _commit_nothing(connection, order.kind) and in_order
            connection.execute("BEGIN")
            first_of(connection, "SELECT number FROM head")  # from here on
            asked = turn.asked()
        finally:
            turn.give(in_order=in_order)
        yield _Moment(connection, turn, asked)
    finally:
        disconnect(connection)
        turn.close()


def _commit_nothing(connection: apsw.Connection, kind: Kind) -> bool:
    """Commit what is there already, and leave it in the WAL; tells whether it was possible.

    Who reads a WAL that is all in the file already locks every checkpoint out, and each commit of the others tries one in vain: after 6 s of
    that a publish took 1.1 ms instead of 0.5 ms, and rising.
    """
    connection.wal_autocheckpoint(0)
    try:
        # Not an UPDATE: SQLite writes no page for one that changes no byte.
        connection.execute(f"BEGIN IMMEDIATE; PRAGMA user_version = {kind.version}; COMMIT").fetchall()
    except apsw.Error:  # no room: there is nobody to be slowed down, and a backup to another disk is what is needed
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        return False
    return True


def _copy(order: Order, part: Path, tell: Tell, stop: threading.Event) -> bool:
    """Write a copy of the present moment, synced; tells whether it is whole. If not, a writer needs the WAL, and the copy gave way."""
    with _empty(part) as fd, _moment(order) as moment:
        page_bytes: int = first_of(moment.connection, "PRAGMA page_size")
        pages: int = first_of(moment.connection, "PRAGMA page_count")
        _refuse_small(order, pages * page_bytes)
        with _unsafe(part, page_bytes) as copy, copy.backup("main", moment.connection, "main") as backup:
            while not backup.done:
                if stop.is_set():
                    raise _Stopped
                if moment.turn.asked() != moment.asked:
                    return False
                backup.step(STEP_PAGES)
                sync(fd)
                tell((backup.page_count - backup.remaining) * page_bytes, pages * page_bytes)
        sync(fd)
    return True


@contextlib.contextmanager
def _empty(part: Path) -> Generator[int]:
    """Make the file anew, for its owner alone."""
    part.unlink(missing_ok=True)
    fd = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def _unsafe(part: Path, page_bytes: int) -> Generator[apsw.Connection]:
    """Open a file that may be lost: nothing but the copy is written, and who syncs it is not SQLite."""
    load_checksums()
    connection = apsw.Connection(os.fspath(part), flags=apsw.SQLITE_OPEN_READWRITE, vfs="cksmvfs")
    try:
        for name, value in (("journal_mode", "off"), ("synchronous", "off"), ("locking_mode", "exclusive")):
            connection.pragma(name, value)
        # Pages in the WAL carry no checksums yet. They get them when they are written to a file whose first page says that it has them.
        connection.pragma("page_size", page_bytes)
        connection.reserve_bytes(reserve=8)
        connection.execute("CREATE TABLE first_page (n INTEGER)").fetchall()
        yield connection
    finally:
        connection.close()


def _check(order: Order, part: Path, stop: threading.Event) -> None:
    """Read every page of the copy as whoever restores it will."""
    connection = look_into(part)
    try:
        connection.set_progress_handler(stop.is_set, 1_000)
        wrong = first_of(connection, "PRAGMA integrity_check")
        if connection.reserve_bytes() != 8:
            wrong = "its pages carry no checksums"
    except apsw.InterruptError as error:
        raise _Stopped from error
    except apsw.Error as error:
        wrong = str(error)
    finally:
        disconnect(connection)
    if wrong != "ok":
        raise FileDamaged(
            f"the copy of {order.source} was read again and is damaged ({wrong[:_SHOWN]}): there is no backup; see with `everlog verify` whether "
            f"{order.source.name} is, and otherwise choose another disk"
        )


def _name(part: Path, target: Path) -> None:
    """Give the copy its name, which nothing else may have taken meanwhile."""
    try:
        os.link(part, target)
    except FileExistsError:
        raise _exists(target) from None
    except OSError:  # the file system has no second names
        _refuse_existing(target)
        part.rename(target)
    sync_folder(target.parent)


def _refuse_existing(target: Path) -> None:
    if os.path.lexists(target):
        raise _exists(target)


def _exists(target: Path) -> FilePlace:
    return FilePlace(f"{target} exists, and a backup replaces nothing: choose another folder, or move it away")


def _refuse_small(order: Order, total: int) -> None:
    folder = order.target.parent
    needed = total + (_LEFT_BYTES if folder.stat().st_dev == order.source.stat().st_dev else 0)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise _no_place(order.target, f"it needs {needed:,} bytes, and {free:,} are free")


def _no_place(target: Path, why: str) -> FilePlace:
    return FilePlace(
        f"{target} cannot be written ({why}): there is no backup; make room, give permission, or choose another folder"
    )


def _translated(error: apsw.Error, order: Order) -> EverlogError:
    """Tell trouble with what is read from trouble with what is written."""
    damage = translate(error, order.source)
    if damage is not None:
        return damage
    if getattr(error, "extendedresult", 0) in _UNREADABLE:
        return FileDamaged(f"{order.source} cannot be read ({error}): there is no backup; look at its disk")
    return _no_place(order.target, str(error))
