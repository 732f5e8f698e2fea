"""Opening a SQLite file so that nothing acknowledged is lost: what is checked before, what is set, what is read back."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
import threading
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import apsw
import apsw.sqlite_extra
import msgspec

from everlog.errors import EverlogError, FileDamaged, FileNewer, FilePlace, FileStrange

MARKS: Final = {"log": 0x45564C47, "store": 0x45565354}  # "EVLG", "EVST"
"""The application ids in the headers of the files of Everlog, by what they are."""
_NAMES: Final = {mark: name for name, mark in MARKS.items()}
_OWN_FILES: Final = {
    "log": "the file of the log (log.db, where nothing else was chosen)",
    "store": "a store of that app (APP.db)",
}
_ANOTHER: Final = "choose another name"
_HEADER: Final = b"SQLite format 3\x00"
_BUSY_TIMEOUT_MS: Final = 10_000
PAGE_BYTES: Final = 4_096
_WAL_KEPT_BYTES: Final = 64 << 20
"""The WAL grows beyond this only while a long reader, such as a backup, holds it, and then gives the room back."""
_NETWORK_SYSTEMS: Final = (
    "nfs",
    "cifs",
    "smb",
    "fuse",
    "9p",
    "ceph",
    "gluster",
    "lustre",
    "afs",
    "gfs",
    "ocfs",
    "vboxsf",
    "davfs",
    "sshfs",
)
_CHECKSUM_VFS: Final = "cksmvfs"  # the name under which SQLite's cksumvfs registers itself
_open_files: weakref.WeakKeyDictionary[apsw.Connection, tuple[int, int]] = weakref.WeakKeyDictionary()
"""Which file each open connection of this process has, as device and inode."""
_open_files_lock: Final = threading.Lock()
"""Held while a connection is opened as well: a fork waits for it, so that the child knows every file that it inherits."""
_inherited: Final[set[tuple[int, int]]] = set()
"""The files that a process had open when this one was forked from it."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What a file is: its mark in the header, and the tables of a new one."""

    name: str
    application_id: int
    version: int
    tables: str


def check_place(path: Path) -> None:
    """Refuse what SQLite cannot keep its promises on; make the folder, for its owner alone.

    Raises:
        FilePlace: The platform, the folder or its file system is not one that it works on.
    """
    if sys.platform not in ("linux", "darwin"):
        raise FilePlace(f"the embedded log and store run on Linux and macOS, found {sys.platform}: use a server's URL instead")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise FilePlace(
            f"cannot make the folder {path.parent}: {error.strerror}: choose another place with --log-url or --store-url"
        ) from error
    system = file_system(path.parent)
    if is_network(system):
        raise FilePlace(f"{path.parent} is on {system}, where file locks and syncs are not kept: choose a local disk")
    for found in (path.parent, path):
        if found.exists() and not os.access(found, os.R_OK | os.W_OK):
            raise FilePlace(f"no permission to read and write {found}: run as its owner, or choose another place")


def is_network(system: str) -> bool:
    """Return whether file locks and syncs are not kept on this file system."""
    return any(system.startswith(name) for name in _NETWORK_SYSTEMS)


def file_system(folder: Path) -> str:
    """Return the name of the file system that `folder` is on; empty where the system does not say."""
    mounts = Path("/proc/self/mountinfo")
    if not mounts.exists():
        return ""
    device = folder.stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in mounts.read_text().splitlines():
        before, _, after = line.partition(" - ")
        if before.split()[2] == wanted:
            return after.split()[0]
    return ""


def check_header(path: Path, kind: Kind, *, instead: str = "") -> bool:
    """Return whether the file is new or empty; refuse one that is not ours, before SQLite touches it.

    Read with `os.open`, and only before this process's first connection: closing any descriptor of the file drops the locks that
    SQLite holds in this process, and opening a strange file with SQLite already changes it.

    Args:
        path: The file.
        kind: What it should be.
        instead: What to do where it is another one; empty for a file that is to be worked on.

    Raises:
        FileStrange, FileNewer, FileDamaged: It is not a file of this kind that this Everlog reads.
    """
    try:
        info = path.stat()
    except FileNotFoundError:
        return True
    if not stat.S_ISREG(info.st_mode):
        raise FileStrange(f"{path} is not a file: expected a {kind.name} of Everlog")
    _check_not_inherited(path, info)
    if _is_open(info):
        return info.st_size == 0
    wal = path.with_name(path.name + "-wal")
    if info.st_size == 0:
        if wal.exists() and wal.stat().st_size > 0:
            raise FileDamaged(f"{path} is empty, but {wal.name} beside it is not: restore the {kind.name} from a backup")
        return True
    head = _header(path)
    if not any(head) and path.with_name(path.name + "-journal").exists():
        return False  # the power went while it was made, and its first sector was not written yet: SQLite rolls it back
    if len(head) < 100 or not head.startswith(_HEADER):
        raise FileStrange(
            f"{path} is no {kind.name} of Everlog (not a SQLite file, or its header is damaged): it was not touched; "
            f"{instead or f'restore it from a backup, or {_ANOTHER}'}"
        )
    if _marks(head) == (0, 0):
        if path.with_name(path.name + "-journal").exists():
            return False  # killed while it was made: SQLite rolls it back
        head = _header(path)  # another process may just have made it
    _check_marks(path, kind, head, instead)
    return False


def _check_marks(path: Path, kind: Kind, head: bytes, instead: str) -> None:
    """Refuse the header of another kind of file, or of another version of this one."""
    version, application_id = _marks(head)
    found = _NAMES.get(application_id)
    if found is not None and found != kind.name:
        raise FileStrange(
            f"{path}: expected a {kind.name} of Everlog, found a {found} of Everlog: it was not touched; "
            f"give {_OWN_FILES.get(kind.name, 'another file')}"
        )
    if application_id != kind.application_id:
        raise FileStrange(f"{path} is a SQLite file, but no {kind.name} of Everlog: it was not touched; {instead or _ANOTHER}")
    if version > kind.version:
        raise FileNewer(
            f"{path} is of version {version}, and this Everlog reads {kind.version}: upgrade Everlog. The file was not touched"
        )
    if version < kind.version:
        raise FileStrange(
            f"{path} is of version {version}, from before the first release, and this Everlog reads {kind.version}: it was not touched; "
            f"{instead or f'remove it, or {_ANOTHER}'}"
        )


def is_open_here(path: Path) -> bool:
    """Return whether this process has the file open: then nothing but SQLite may open it, or what is beside it, and close it again."""
    try:
        return _is_open(path.stat())
    except FileNotFoundError:
        return False


def _is_open(info: os.stat_result) -> bool:
    with _open_files_lock:
        return (info.st_dev, info.st_ino) in _open_files.values()


def _header(path: Path) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.pread(fd, 100, 0)
    finally:
        os.close(fd)


def _marks(head: bytes) -> tuple[int, int]:
    """Return version and application id of a SQLite header."""
    return int.from_bytes(head[60:64], "big"), int.from_bytes(head[68:72], "big")


def connect(path: Path | None, kind: Kind, *, create: bool, writes: bool) -> apsw.Connection:
    """Return a connection with every promise set and read back; `None` opens a database in memory.

    Args:
        path: The file; its header was checked.
        kind: What it is.
        create: Make the tables, where there are none.
        writes: Without it, the connection refuses to change anything.
    """
    load_checksums()
    if path is None:
        connection = apsw.Connection(":memory:", vfs="memdb")
        connection.execute(kind.tables).fetchall()
        return connection
    if create and not path.exists():
        os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))  # SQLite gives its side files the same mode
    connection = _opened(path, os.fspath(path), apsw.SQLITE_OPEN_READWRITE)
    connection.set_busy_timeout(_BUSY_TIMEOUT_MS)
    is_empty = not connection.execute("SELECT count(*) FROM sqlite_schema").get
    if create and is_empty:
        connection.pragma("page_size", PAGE_BYTES)
        connection.reserve_bytes(
            reserve=8
        )  # room for the page checksums; cannot be set later, and is undone if auto_vacuum comes first
        # In rollback mode, so that the mark is in the file's own header as soon as there is one, and not in the WAL alone.
        connection.pragma("journal_mode", "delete")
        connection.pragma("synchronous", "extra")
        with connection:
            # Incremental: retention gives pages back; cannot be set later either. It writes the first page, so it belongs to the
            # transaction: a power cut or a kill behind it would leave a file without our mark, refused for ever.
            connection.pragma("auto_vacuum", 2)
            connection.execute(kind.tables).fetchall()
            connection.pragma("application_id", kind.application_id)
            connection.pragma("user_version", kind.version)
    wanted: dict[str, str | int] = {
        "journal_mode": "wal",
        "synchronous": 2,
        "checkpoint_fullfsync": int(sys.platform == "darwin"),
        "fullfsync": int(sys.platform == "darwin"),
        "cell_size_check": 1,
        "trusted_schema": 0,
        "query_only": int(not writes),
        "mmap_size": 0,
        "journal_size_limit": _WAL_KEPT_BYTES,
    }
    for name, value in wanted.items():
        connection.pragma(name, value)
        found: object = connection.pragma(name)
        if found != value:
            raise FilePlace(
                f"{path}: expected PRAGMA {name}={value}, SQLite says {found!r}: the place cannot keep what is written"
            )
    if connection.reserve_bytes() != 8 or str(connection.pragma("checksum_verification")) != "1":
        raise FileDamaged(f"{path}: its pages carry no checksums: restore the {kind.name} from a backup")
    return connection


def look_into(path: Path) -> apsw.Connection:
    """Return a connection that changes nothing: it makes no side file and removes none, and the WAL stays as it is.

    What others commit meanwhile is seen by the next transaction, unless there is no WAL yet when it is opened.

    Raises:
        apsw.CantOpenError: There is a WAL without its index beside it, as in a folder that was copied: only a writer can take it up.
    """
    load_checksums()
    has_wal = path.with_name(path.name + "-wal").exists()
    uri = f"{path.absolute().as_uri()}?{'readonly_shm=1' if has_wal else 'immutable=1'}"
    connection = _opened(path, uri, apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI)
    connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
    connection.set_busy_timeout(_BUSY_TIMEOUT_MS)
    return connection


def _opened(path: Path, name: str, flags: int) -> apsw.Connection:
    """Open a file that is there, and note that this process has it open."""
    with _open_files_lock:
        info = path.stat()
        _check_not_inherited(path, info)
        connection = apsw.Connection(name, flags=flags, vfs=_CHECKSUM_VFS)
        _open_files[connection] = (info.st_dev, info.st_ino)
    return connection


def _check_not_inherited(path: Path, info: os.stat_result) -> None:
    """Refuse what was open when this process was forked.

    SQLite counts the locks that a process has on a file, and the child inherits the count without the locks: a connection that it opens
    believes itself protected, and the next process that closes the file deletes the WAL under it.
    """
    if (info.st_dev, info.st_ino) in _inherited:
        raise FilePlace(
            f"{path} was open in the process that this one (process {os.getpid()}) was forked from, and SQLite cannot open a file again "
            f"behind a fork: open it after the fork and not before, or close it before, or spawn processes instead of forking them"
        )


def _in_child() -> None:
    """Note what a forked child has inherited. What the parent's threads hold of it is never closed here, as SQLite wants it."""
    _inherited.update(_open_files.values())
    _open_files.clear()
    _open_files_lock.release()


os.register_at_fork(before=_open_files_lock.acquire, after_in_parent=_open_files_lock.release, after_in_child=_in_child)


def disconnect(connection: apsw.Connection) -> None:
    """Close a connection; the last one of all processes moves the WAL into the file."""
    with contextlib.suppress(apsw.Error):
        connection.close()
    with _open_files_lock:
        _open_files.pop(connection, None)


def load_checksums() -> None:
    """Make the checksum VFS known to this process. Idempotent."""
    if _CHECKSUM_VFS not in apsw.vfs_names():
        loader = apsw.Connection(":memory:")
        apsw.sqlite_extra.load(loader, "cksumvfs")
        loader.close()


def translate(error: apsw.Error, path: Path | None) -> EverlogError | None:
    """Return the damage that an error of SQLite stands for; ``None`` where it stands for none."""
    if isinstance(error, apsw.CorruptError | apsw.NotADBError) or getattr(error, "extendedresult", 0) == apsw.SQLITE_IOERR_DATA:
        why = "the checksum of a page is wrong" if getattr(error, "extendedresult", 0) == apsw.SQLITE_IOERR_DATA else str(error)
        return FileDamaged(
            f"{path}: SQLite found it damaged ({why}): nothing was skipped; restore it from a backup (everlog restore --help)"
        )
    return None


def undecodable(error: msgspec.MsgspecError, path: Path | None) -> FileDamaged:
    """Return the damage that a stored value stands for which cannot be decoded.

    A page that a disk gives back as zeros has a checksum that fits, and as the last one of a long value it is no fault to SQLite.
    """
    return FileDamaged(f"{path}: a stored value is not what was written ({error}): nothing was skipped; restore it from a backup")
