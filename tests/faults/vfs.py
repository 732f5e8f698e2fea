"""A VFS below SQLite's checksums: it writes down what reaches the files, in one order for all processes, and fails calls on purpose.

    everlog ──► checksum VFS ──► Recorder ──► the platform's own
                                    └──► trace: one file that all processes append to, under one lock

The checksum VFS stacks itself on what is the default when it is loaded. So `install` comes before the first file is opened, and needs a process
of its own.

A record of the trace (little-endian), with the file's name and the body behind it:

    magic "\\xf5TRC" · kind u8 · name u16 · body u32 · a u64 · b u64 · crc32 of all of these u32
"""

from __future__ import annotations

import fcntl
import json
import os
import struct
import sys
import threading
import zlib
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path
from typing import Any, Final, NamedTuple

import apsw

from everlog.drivers.sqlite.bell import Bell

MAGIC: Final = b"\xf5TRC"
_HEAD: Final = struct.Struct("<4sBHIQQI")
_MADE_WITH_FOLDER_SYNC: Final = apsw.SQLITE_OPEN_MAIN_JOURNAL | apsw.SQLITE_OPEN_WAL
FOREVER: Final = 1 << 60


class Kind(IntEnum):
    """What a step of a trace is. `a` and `b` are named where they mean something."""

    OPEN = 1
    """A file was opened; it is made where it was not there."""
    WRITE = 2
    """`a`: at which byte."""
    TRUNCATE = 3
    """`a`: the new size."""
    SYNC = 4
    """What was written to the file before byte `a` of the trace is durable."""
    SYNC_FAILED = 5
    """A sync of the file failed. What was written before is in memory alone, and no later sync writes it: Linux counts it as written."""
    DELETE = 6
    FOLDER_SYNC = 7
    """Which names there are is durable."""
    BELL = 8
    """`a`: the number that was rung. Everything up to that commit is synced, and who waits for it is told after this."""
    MARK = 9
    """Something that was told to somebody: JSON."""


class Step(NamedTuple):
    """One record of a trace."""

    at: int
    """Its byte in the trace."""
    kind: Kind
    name: str
    body: bytes
    a: int
    b: int

    def mark(self) -> Mapping[str, Any]:
        """Return what a `MARK` says."""
        found: Mapping[str, Any] = json.loads(self.body)
        return found


class Trace:
    """The file that all processes append to. What is recorded inside `alone` happens at that place of the order."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._threads = threading.RLock()
        self._depth = 0

    def close(self) -> None:
        os.close(self._fd)

    @contextmanager
    def alone(self) -> Generator[None]:
        """Keep every other thread and process from recording. A killed holder lets go by itself."""
        with self._threads:
            if not self._depth:
                fcntl.flock(self._fd, fcntl.LOCK_EX)
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1
                if not self._depth:
                    fcntl.flock(self._fd, fcntl.LOCK_UN)

    def length(self) -> int:
        """Return how many bytes it has: what was recorded before them has been done."""
        with self.alone():
            return os.fstat(self._fd).st_size

    def add(self, kind: Kind, name: str, body: bytes = b"", a: int = 0, b: int = 0) -> None:
        """Record one step."""
        encoded = name.encode()
        checksum = zlib.crc32(body, zlib.crc32(encoded, zlib.crc32(struct.pack("<BQQ", kind, a, b))))
        with self.alone():
            os.write(self._fd, _HEAD.pack(MAGIC, kind, len(encoded), len(body), a, b, checksum) + encoded + body)

    def mark(self, **said: object) -> None:
        """Record what was told to somebody."""
        self.add(Kind.MARK, "", json.dumps(said).encode())


def steps_of(path: Path) -> Iterator[Step]:
    """Yield the steps of a trace. One that its process was killed in is passed over: it was not done."""
    body = path.read_bytes()
    at = 0
    while (at := body.find(MAGIC, at)) >= 0 and at + _HEAD.size <= len(body):
        _, kind, names, length, a, b, checksum = _HEAD.unpack_from(body, at)
        start = at + _HEAD.size
        name, data = body[start : start + names], body[start + names : start + names + length]
        if checksum != zlib.crc32(data, zlib.crc32(name, zlib.crc32(struct.pack("<BQQ", kind, a, b)))):
            at += 1
            continue
        yield Step(at, Kind(kind), name.decode(), data, a, b)
        at = start + names + length


class Fault(NamedTuple):
    """Calls that fail: `times` of them from the `first` one on, of one method on one file.

    Attributes:
        call: `xWrite`, `xSync`, `xTruncate`, `xRead` or `xOpen`.
        name: The file's name, side file's suffix included.
        code: SQLite's extended error code.
        first: From 1.
        times: How many.
    """

    call: str
    name: str
    code: int
    first: int
    times: int = 1


class Faults:
    """Counts calls, and says which of them fail. Armed and healed while others call."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._armed: Sequence[Fault] = ()
        self.calls: dict[tuple[str, str], int] = {}
        """How often each method was called on each file since the last `arm`."""
        self.failed = 0
        """How many calls have failed since then."""
        self.met: set[Fault] = set()
        """Which faults have ever failed a call."""

    def arm(self, *faults: Fault) -> None:
        """Count from 0, and fail these calls from now on; none of them heals what was armed before."""
        with self._lock:
            self._armed = faults
            self.calls.clear()
            self.failed = 0

    def check(self, call: str, name: str) -> None:
        """Count a call, and raise what it fails with."""
        with self._lock:
            number = self.calls[call, name] = self.calls.get((call, name), 0) + 1
            for fault in self._armed:
                if (fault.call, fault.name) == (call, name) and fault.first <= number < fault.first + fault.times:
                    self.failed += 1
                    self.met.add(fault)
                    raise apsw.exception_for(fault.code)


class _File(apsw.VFSFile):
    """One open file."""

    def __init__(self, recorder: Recorder, name: str | apsw.URIFilename | None, flags: list[int]) -> None:
        self._recorder = recorder
        path = name.filename() if isinstance(name, apsw.URIFilename) else name
        self._name = Path(path).name if path is not None else ""  # SQLite's temporary files have none
        self._is_traced = bool(self._name) and not flags[0] & apsw.SQLITE_OPEN_READONLY
        self._owes_folder_sync = bool(flags[0] & _MADE_WITH_FOLDER_SYNC)
        super().__init__("unix", name, flags)

    def xRead(self, amount: int, offset: int) -> bytes:  # noqa: N802 SQLite's names
        self._recorder.faults.check("xRead", self._name)
        return super().xRead(amount, offset)

    def xWrite(self, data: Any, offset: int) -> None:  # noqa: N802
        self._recorder.faults.check("xWrite", self._name)
        if not self._is_traced or self._recorder.trace is None:
            return super().xWrite(data, offset)
        with self._recorder.trace.alone():
            self._recorder.trace.add(Kind.WRITE, self._name, bytes(data), offset)
            return super().xWrite(data, offset)

    def xTruncate(self, newsize: int) -> None:  # noqa: N802
        self._recorder.faults.check("xTruncate", self._name)
        if not self._is_traced or self._recorder.trace is None:
            return super().xTruncate(newsize)
        with self._recorder.trace.alone():
            self._recorder.trace.add(Kind.TRUNCATE, self._name, a=newsize)
            return super().xTruncate(newsize)

    def xSync(self, flags: int) -> None:  # noqa: N802
        trace = self._recorder.trace if self._is_traced else None
        before = trace.length() if trace is not None else 0
        try:
            self._recorder.faults.check("xSync", self._name)
        except apsw.Error:
            if trace is not None:
                trace.add(Kind.SYNC_FAILED, self._name, a=before)
            raise
        if self._recorder.swallows_sync_of(self._name):
            return
        super().xSync(flags)
        if trace is not None:
            trace.add(Kind.SYNC, self._name, a=before)
            if self._owes_folder_sync:  # as `unixSync` does for a new journal and a new WAL
                self._owes_folder_sync = False
                trace.add(Kind.FOLDER_SYNC, "")


class Recorder(apsw.VFS):
    """Passes all on to the platform's VFS, and records and fails on the way."""

    def __init__(self, trace: Trace | None, faults: Faults, *, unsynced: str = "") -> None:
        """Become the default VFS of the process.

        Args:
            trace: Where to record; ``None`` records nothing.
            faults: What fails.
            unsynced: Syncs of files whose names end so are left out, as a seeded bug; empty: of none.
        """
        self.trace = trace
        self.faults = faults
        self._unsynced = unsynced
        super().__init__("recorder", "unix", makedefault=True)

    def swallows_sync_of(self, name: str) -> bool:
        return bool(self._unsynced) and name.endswith(self._unsynced)

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> apsw.VFSFile:  # noqa: N802
        path = name.filename() if isinstance(name, apsw.URIFilename) else name
        self.faults.check("xOpen", Path(path).name if path is not None else "")
        if path is None or self.trace is None or flags[0] & apsw.SQLITE_OPEN_READONLY:
            return _File(self, name, flags)
        with self.trace.alone():
            self.trace.add(Kind.OPEN, Path(path).name)
            return _File(self, name, flags)

    def xDelete(self, filename: str, syncdir: bool) -> None:  # noqa: N802
        if self.trace is None:
            return super().xDelete(filename, syncdir)
        with self.trace.alone():
            self.trace.add(Kind.DELETE, Path(filename).name)
            if syncdir:
                self.trace.add(Kind.FOLDER_SYNC, "")
            return super().xDelete(filename, syncdir)


def install(trace: Trace | None, faults: Faults | None = None, *, unsynced: str = "") -> Recorder:
    """Put the recorder below everything that this process opens from now on, and record the bell, which does not go through SQLite.

    The recorder's trace can be another one later.

    Raises:
        RuntimeError: A file was opened already, and the checksum VFS is on the platform's.
    """
    if "cksmvfs" in apsw.vfs_names():
        raise RuntimeError(
            "expected a process that has opened no file yet: the checksum VFS is loaded and stays on what it found"
        )
    sys.unraisablehook = lambda _: None  # apsw tells of every error that a VFS returns; they are on purpose
    recorder = Recorder(trace, faults or Faults(), unsynced=unsynced)
    ring = Bell.ring

    def recorded(self: Bell, number: int) -> None:
        if self._path is not None and recorder.trace is not None:
            recorder.trace.add(Kind.BELL, self._path.name, a=number)
        ring(self, number)

    Bell.ring = recorded  # type: ignore[method-assign]
    return recorder
