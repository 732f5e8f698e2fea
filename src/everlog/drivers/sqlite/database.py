"""One SQLite file: a writer thread that commits in groups, a connection for reading, and the bell.

    event loop ── submit(job) ──► queue ──► writer thread: take the turn · BEGIN IMMEDIATE · apply(jobs) · COMMIT · ring · give the turn
               ◄── one call per group with every job's result ──┘

The thread is a daemon and no executor's: `flock` has no time-out, and a process that cannot get its turn must still be able to end.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import queue
import threading
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Final, Generic, NamedTuple, TypeVar

import apsw
import msgspec

from everlog.drivers.sqlite.backup import Order, back_up
from everlog.drivers.sqlite.bell import Bell
from everlog.drivers.sqlite.connection import (
    PAGE_BYTES,
    Kind,
    check_header,
    check_place,
    connect,
    disconnect,
    translate,
    undecodable,
)
from everlog.drivers.sqlite.place import Place
from everlog.drivers.sqlite.rows import first_of, rows_of
from everlog.drivers.sqlite.turn import Turn
from everlog.errors import Closed, FeatureMissing, FileDamaged, FilePlace, FileUnreadable

J = TypeVar("J")
R = TypeVar("R")

GROUP_BYTES: Final = 4 << 20
GROUP_JOBS: Final = 4_096

HEAD_TABLE: Final = "CREATE TABLE head (number INTEGER NOT NULL, at_us INTEGER NOT NULL, total INTEGER NOT NULL) STRICT; INSERT INTO head VALUES (0, 0, 0);"
"""Part of every kind's tables: the number and the time of the last commit, and room for what a kind counts."""


_LOOK_EVERY_S: Final = 1.0
"""How often a process that only reads looks whether its file is still there."""
_REWRITE_BYTES: Final = 1 << 16
"""SQLite writes less than 128 KiB at once."""

_NO_ROOM: Final = (
    apsw.FullError,
    apsw.IOError,
    apsw.ReadOnlyError,
    apsw.BusyError,
    apsw.LockedError,
    apsw.CantOpenError,
    apsw.NoMemError,
)


_presences: Final[set[int]] = set()
"""Descriptors that tell later openers of a file that this process has it open."""


def _absent_in_child() -> None:
    """Close what is inherited of that: a lock of `flock` belongs to the open file, and would say that the child has it open."""
    while _presences:
        os.close(_presences.pop())


os.register_at_fork(after_in_child=_absent_in_child)


class NothingStored(Exception):
    """A group was not committed, and nothing of it will ever show: no room, or no permission."""


class OutcomeUnknown(Exception):
    """The commit of a group failed: it may show up when the file is next recovered, or not."""


class _Word:
    """What became of a job that a thread waits for."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.result: object = None


class Group(NamedTuple):
    """What `apply` is told of its group."""

    connection: apsw.Connection
    number: int
    """The commit number that it will have."""
    at_us: int
    """Its time in microseconds since 1970 UTC: the wall time, but never before the last commit of the file."""
    alone: bool
    """No other process has committed since this one's last group: what was remembered of the file still holds."""


class Database(Generic[J, R]):
    """One file, or a database in memory, shared by the tasks of one event loop."""

    def __init__(
        self,
        path: Path | None,
        kind: Kind,
        apply: Callable[[Group, Sequence[J]], Sequence[R | Exception]],
        *,
        size_of: Callable[[J], int],
        wall_us: Callable[[], int],
        tick: Callable[[], J | None] | None = None,
        tick_s: float = 1.0,
        is_alone: Callable[[J], bool] | None = None,
    ) -> None:
        """Prepare; `open` does the work.

        Args:
            path: The file; ``None`` keeps everything in memory.
            kind: What the file is.
            apply: Changes the database for the jobs of one group, in the writer thread, inside its transaction. Gives one result or
                error per job; a job with an error must have changed nothing.
            size_of: About how many bytes a job writes.
            wall_us: The wall time, in microseconds since 1970 UTC.
            tick: Asked by the writer thread every `tick_s` for a job of its own, even while the event loop is busy.
            tick_s: Seconds between ticks.
            is_alone: Tells of a job that it has a transaction of its own, so that its failure is not that of others.
        """
        self.path = path.resolve() if path is not None else None  # two names of one file have one turn and one bell
        self._kind = kind
        self._apply = apply
        self._size_of = size_of
        self._wall_us = wall_us
        self._tick = tick
        self._tick_s = tick_s
        self._is_alone = is_alone
        self._pid = os.getpid()
        self._jobs: queue.SimpleQueue[tuple[J, asyncio.Future[R] | _Word] | None] = queue.SimpleQueue()
        self._loop = asyncio.get_running_loop()
        self._put_off: tuple[J, asyncio.Future[R] | _Word] | None = None  # taken from the queue, for the next group
        self._closed = False
        self._last_number = -1
        self._lock = threading.Lock() if path is None else None  # in memory there is but one connection
        self._thread: threading.Thread | None = None
        self._turn: Turn | None = None
        self._presence = -1
        self._place: Place | None = None
        self._looked_s = 0.0
        self._is_open = False
        self._suspect = False  # what this process wrote last may not be synced
        self.told: Callable[[float], None] | None = None
        """Called with the seconds of each COMMIT, in the writer thread."""
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self.bell: Bell

    async def open(self) -> None:
        """Open the file, under the turn.

        Raises:
            FileError: It is strange, newer or damaged, or the place is not one for it. It was not touched.
        """
        opened: asyncio.Future[None] = self._loop.create_future()
        self._thread = threading.Thread(target=self._run, args=(opened,), name=f"everlog-{self._kind.name}", daemon=True)
        self._thread.start()
        await opened
        try:
            self.bell.listen()
        except OSError as error:
            await self.aclose()
            raise FilePlace(
                f"the system lets this user watch no more files ({error.strerror}), and {self.path} has to be watched: raise "
                f"fs.inotify.max_user_instances, or stop processes that need none"
            ) from error

    def submit(self, job: J) -> asyncio.Future[R]:
        """Queue a job; jobs are applied in the order of these calls.

        The future ends with the job's own result or error, with `NothingStored`, or with `OutcomeUnknown`.

        Raises:
            Closed: The database was closed, or this process is a fork of the one that opened it.
        """
        self._check_open()
        future: asyncio.Future[R] = self._loop.create_future()
        self._jobs.put((job, future))
        return future

    def do(self, job: J, within_s: float) -> bool:
        """Apply a job from any thread, while the event loop may be blocked; tells whether it was committed within the time.

        Blocks. For the last words of a process that has to end.
        """
        if self._closed or os.getpid() != self._pid:
            return False
        word = _Word()
        self._jobs.put((job, word))
        return word.done.wait(within_s) and not isinstance(word.result, BaseException)

    @contextlib.contextmanager
    def waiting(self) -> Generator[None]:
        """Let readers in while a job waits inside its transaction. Only in the writer thread; a file's readers never wait for it."""
        if self._lock is None:
            yield
            return
        self._lock.release()
        try:
            yield
        finally:
            self._lock.acquire()

    @contextlib.contextmanager
    def reading(self) -> Generator[apsw.Connection]:
        """Lend the reading connection, for one read on the event loop that ends before the next `await`.

        Raises:
            FileDamaged: A checksum of the pages read does not fit, or the file was deleted, moved or replaced.
            Closed: As `submit`.
        """
        self._check_open()
        if self._place is not None and (now_s := time.monotonic()) >= self._looked_s + _LOOK_EVERY_S:
            self._looked_s = now_s
            self._place.check()
        try:
            if self._lock is None:
                yield self._reader
            else:
                with self._lock:
                    yield self._reader
        except apsw.Error as error:
            damage = translate(error, self.path)
            if damage is not None:
                raise damage from error
            if isinstance(error, _NO_ROOM):
                raise FileUnreadable(
                    f"{self.path} could not be read just now ({error}): nothing is lost; see that its disk answers, and try again"
                ) from error
            raise
        except msgspec.MsgspecError as error:
            raise undecodable(error, self.path) from error

    async def back_up(self, target: Path, *, progress: Callable[[int, int], None] | None, check: bool) -> None:
        """Copy the file, as the ports promise.

        Raises:
            FeatureMissing: It is in memory.
            Closed: As `submit`.
        """
        self._check_open()
        if self.path is None:
            raise FeatureMissing(
                "a backup", adapter=f"the {self._kind.name} in memory", instead="use a file, for what is to outlive its process"
            )
        await back_up(Order(self.path, self._kind, target, check), progress)

    async def aclose(self) -> None:
        """Finish the jobs that were queued, and let go of the file. Idempotent."""
        if os.getpid() != self._pid or self._thread is None:
            self._closed = True
            return
        if not self._closed:
            self._closed = True
            self._jobs.put(None)
        await asyncio.shield(self._ended)
        self.bell.close()

    def _check_open(self) -> None:
        if self._closed:
            raise Closed(f"the {self._kind.name} {self.path or 'in memory'} was closed")
        if os.getpid() != self._pid:
            raise Closed(
                f"the {self._kind.name} was opened before a fork: open it after the fork and not before, or spawn instead of forking"
            )

    # ---- the writer thread ----

    def _run(self, opened: asyncio.Future[None]) -> None:
        try:
            self._open_files()
        except BaseException as error:
            self._let_go()
            if self.path is not None and isinstance(error, apsw.Error):
                error = translate(error, self.path) or FilePlace(
                    f"{self.path} cannot be opened now: {error}: see that no other program holds it, and that there is room"
                )
            self._tell(_fail, opened, error)
            self._tell(_succeed, self._ended)
            return
        self._is_open = True
        self._tell(_succeed, opened)
        next_tick = time.monotonic() + self._tick_s
        while True:
            try:
                timeout = None if self._tick is None else max(0.0, next_tick - time.monotonic())
                item = self._put_off or self._jobs.get(timeout=timeout)
                self._put_off = None
            except queue.Empty:
                assert self._tick is not None
                next_tick = time.monotonic() + self._tick_s
                job = self._tick()
                if job is not None:
                    self._commit([(job, None)])
                continue
            if item is None:
                break
            group, stop = self._gather(item)
            if self._tick is not None and time.monotonic() >= next_tick:
                next_tick = time.monotonic() + self._tick_s
                job = self._tick()
                if job is not None:
                    group.append((job, None))
            self._commit(group)
            if stop:
                break
        self._let_go()
        self._tell(_succeed, self._ended)

    def _gather(
        self, first: tuple[J, asyncio.Future[R] | _Word]
    ) -> tuple[list[tuple[J, asyncio.Future[R] | _Word | None]], bool]:
        """Return what is queued, up to a group's bounds, without waiting; and whether the end was among it."""
        group: list[tuple[J, asyncio.Future[R] | _Word | None]] = [first]
        if self._jobs.empty() or (self._is_alone is not None and self._is_alone(first[0])):
            return group, False
        size = self._size_of(first[0])
        while size < GROUP_BYTES and len(group) < GROUP_JOBS:
            try:
                item = self._jobs.get_nowait()
            except queue.Empty:
                break
            if item is None:
                return group, True
            if self._is_alone is not None and self._is_alone(item[0]):
                self._put_off = item
                break
            group.append(item)
            size += self._size_of(item[0])
        return group, False

    def _open_files(self) -> None:
        if self.path is None:
            self._writer = self._reader = connect(None, self._kind, create=True, writes=True)
            self.bell = Bell(None)
            return
        check_place(self.path)
        check_header(self.path, self._kind)  # before anything is put beside a strange file
        self._turn = Turn(self._beside("-turn"))
        self._suspect = not self._turn.take()
        try:
            self._open_under_turn(self.path)
        finally:
            self._turn.give(in_order=not self._suspect)

    def _open_under_turn(self, path: Path) -> None:
        is_new = check_header(path, self._kind)
        self.bell = Bell(self._beside("-bell"))
        rung = self.bell.number()
        if is_new and rung:
            raise self._missing(rung, 0)
        wal = self._beside("-wal")
        is_only_opener = self._is_only_opener()
        if is_only_opener and wal.exists() and wal.stat().st_size > 0:
            self._suspect = True  # the last process was killed, or the machine lost power
        self._writer = connect(path, self._kind, create=True, writes=True)
        number: int = first_of(self._writer, "SELECT number FROM head")
        if rung > number:
            # As it is: what is left of the WAL is evidence, and may still be put back.
            self._writer.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
            raise self._missing(rung, number)
        if self._suspect:
            try:
                self._sync_all()
            except apsw.FullError:
                pass  # it can be read; the next commit tries again, and until then nobody is told of what is not synced
        if is_only_opener and path.stat().st_size % PAGE_BYTES:
            raise FileDamaged(
                f"{path} ends inside a page, at byte {path.stat().st_size:,}: a part of it is missing. Restore it from a backup"
            )
        self._reader = connect(path, self._kind, create=False, writes=False)
        self._place = Place(path)
        if not self._suspect:
            self.bell.ring(number)

    def _beside(self, suffix: str) -> Path:
        assert self.path is not None
        return self.path.with_name(self.path.name + suffix)

    def _is_only_opener(self) -> bool:
        """Return whether no other process has the file open, and make this one known to later openers. Only under the turn."""
        self._presence = os.open(self._beside("-open"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        _presences.add(self._presence)
        try:
            fcntl.flock(self._presence, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            fcntl.flock(self._presence, fcntl.LOCK_SH)
            return False
        fcntl.flock(self._presence, fcntl.LOCK_SH)
        return True

    def _missing(self, rung: int, found: int) -> FileDamaged:
        return FileDamaged(
            f"{self.path}: commits up to number {rung} were acknowledged, and the file ends at {found}: acknowledged data is missing. "
            f"Put a backup back with `everlog restore --from FILE` (of a store: `everlog restore APP --from FILE`)"
        )

    def _sync_all(self) -> None:
        """Bring the whole WAL into the file, synced: before the first acknowledgement after what may not have been synced."""
        if self._turn is not None:
            self._turn.ask()  # a backup holds the WAL for as long as it takes
        self._sync_wal(write_again=True)
        self._writer.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
        self._sync_wal(write_again=False)  # a power cut would bring it back, older than the file
        self._suspect = False

    def _sync_wal(self, *, write_again: bool) -> None:
        """Make the WAL and its size durable. Only under the turn.

        Linux counts pages as written when their sync fails, and a later sync of the file leaves them out. So what is in memory alone is written
        again, before a checkpoint overwrites pages that only the WAL on the disk could mend.
        """
        wal = self._beside("-wal") if self.path is not None else None
        if wal is None or not wal.exists():
            return
        # By SQLite's own way to the file. The WAL has no locks, which closing a descriptor would drop.
        file = apsw.VFSFile("", os.fspath(wal), [apsw.SQLITE_OPEN_WAL | apsw.SQLITE_OPEN_READWRITE, 0])
        try:
            size = file.xFileSize() if write_again else 0
            for offset in range(0, size, _REWRITE_BYTES):
                file.xWrite(file.xRead(min(_REWRITE_BYTES, size - offset), offset), offset)
            file.xSync(apsw.SQLITE_SYNC_NORMAL)
        finally:
            file.xClose()

    def _commit(self, group: Sequence[tuple[J, asyncio.Future[R] | _Word | None]]) -> None:
        """Apply one group in one transaction, and tell every job's future."""
        jobs = [job for job, _ in group]
        results: Sequence[R | BaseException]
        try:
            if self._lock is None:
                results = self._commit_file(jobs)
            else:
                with self._lock:
                    results = self._transaction(jobs)
                self.bell.ring(self._last_number)
        except OSError as error:  # of the turn's file: the thread lives on, and nobody waits for ever
            self._suspect = True
            results = [OutcomeUnknown(str(error))] * len(jobs)
        settled = [(future, result) for (_, future), result in zip(group, results, strict=True) if future is not None]
        for future, result in settled:
            if isinstance(future, _Word):
                future.result = result
                future.done.set()
        self._tell(_settle, [(future, result) for future, result in settled if not isinstance(future, _Word)])

    def _commit_file(self, jobs: Sequence[J]) -> Sequence[R | BaseException]:
        assert self._turn is not None
        assert self._place is not None
        in_order = self._turn.take()
        try:
            try:
                self._place.check()
            except FileDamaged as error:
                return [error] * len(jobs)
            if self._suspect or not in_order:
                self._suspect = True
                try:
                    self._sync_all()
                except apsw.Error as error:
                    return [NothingStored(str(error))] * len(jobs)
            results = self._transaction(jobs)
            if self._last_number >= 0:  # before anybody is told: what is acknowledged is missed, should the WAL lose it
                with contextlib.suppress(OSError):  # it is committed; who waits looks again by itself
                    self.bell.ring(self._last_number)
            return results
        finally:
            self._turn.give(in_order=not self._suspect)

    def _transaction(self, jobs: Sequence[J]) -> Sequence[R | BaseException]:
        writer = self._writer
        results: Sequence[R | BaseException]
        try:
            writer.execute("BEGIN IMMEDIATE")
            ((number, last_us),) = rows_of(writer, "SELECT number, at_us FROM head")
            at_us = max(last_us, self._wall_us())
            alone = number == self._last_number
            self._last_number = -1
            results = self._apply(Group(writer, number + 1, at_us, alone), jobs)
            writer.execute("UPDATE head SET number = ?, at_us = ?", (number + 1, at_us))
        except BaseException as error:
            self._last_number = -1
            self._roll_back()
            failure = translate(error, self.path) if isinstance(error, apsw.Error) else None
            if isinstance(error, msgspec.MsgspecError):
                failure = undecodable(error, self.path)
            if failure is None and isinstance(error, _NO_ROOM):
                return [NothingStored(str(error))] * len(jobs)
            return [failure or error] * len(jobs)
        told = self.told
        began_s = time.perf_counter() if told is not None else 0.0
        try:
            writer.execute("COMMIT")
        except apsw.Error as error:
            self._suspect = True
            self._roll_back()
            if _is_of_writing(error) and self._stands_at(number):
                return [NothingStored(str(error))] * len(jobs)
            return [OutcomeUnknown(str(error))] * len(jobs)
        if told is not None:
            told(time.perf_counter() - began_s)
        self._last_number = number + 1
        return results

    def _stands_at(self, number: int) -> bool:
        """Tell whether the file still ends at this commit: the last frame, which makes a commit, was not written, and never will be.

        What COMMIT reports may also be the checkpoint behind it, when it has been stored.
        """
        try:
            found: int = first_of(self._writer, "SELECT number FROM head")
        except apsw.Error:
            return False
        return found == number

    def _roll_back(self) -> None:
        if self._writer.in_transaction:
            try:
                self._writer.execute("ROLLBACK")
            except apsw.Error:
                self._suspect = True

    def _let_go(self) -> None:
        """Close what was opened; the last one to close moves the WAL into the file."""
        for name in ("_reader", "_writer"):
            connection: apsw.Connection | None = getattr(self, name, None)
            if connection is not None:
                disconnect(connection)
        if self._turn is not None:
            self._turn.close()
        if not self._is_open and hasattr(self, "bell"):
            self.bell.close()
        if self._presence >= 0:
            _presences.discard(self._presence)
            os.close(self._presence)
            self._presence = -1
        while True:
            try:
                item = self._jobs.get_nowait()
            except queue.Empty:
                return
            if item is not None and not isinstance(item[1], _Word):
                self._tell(_fail, item[1], Closed(f"the {self._kind.name} was closed"))

    def _tell(self, function: Callable[..., None], *args: object) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *args)
        except RuntimeError:  # the loop has ended, and nobody waits any more
            if not self._loop.is_closed():
                raise


def _is_of_writing(error: apsw.Error) -> bool:
    """Tell whether a write has failed, and not a sync, after which nobody can say what is stored."""
    return isinstance(error, apsw.FullError) or getattr(error, "extendedresult", 0) == apsw.SQLITE_IOERR_WRITE


def _succeed(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _fail(future: asyncio.Future[object], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)


def _settle(pairs: Sequence[tuple[asyncio.Future[object], object]]) -> None:
    for future, result in pairs:
        if future.done():
            continue
        if isinstance(result, BaseException):
            future.set_exception(result)
        else:
            future.set_result(result)
