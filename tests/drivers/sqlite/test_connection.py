"""Opening a file: what is refused before SQLite sees it, and what a connection promises."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import apsw
import pytest

from everlog.drivers.sqlite import connection as module
from everlog.drivers.sqlite.connection import (
    Kind,
    check_header,
    check_place,
    connect,
    disconnect,
    is_open_here,
    look_into,
    translate,
)
from everlog.errors import FileDamaged, FileNewer, FilePlace, FileStrange

KIND = Kind("store", application_id=0x45565354, version=1, tables="CREATE TABLE t (n INTEGER) STRICT;")


def made(path: Path, kind: Kind = KIND) -> Path:
    disconnect(connect(path, kind, create=True, writes=True))
    return path


# ---- the place ----


@pytest.mark.parametrize("system", ["nfs", "nfs4", "cifs", "smb3", "fuse.sshfs", "fuseblk", "9p", "ceph", "glusterfs", "lustre"])
def test_network_and_fuse_file_systems_are_refused(system: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def file_system(_: Path) -> str:
        return system

    monkeypatch.setattr(module, "file_system", file_system)
    with pytest.raises(FilePlace, match=f"is on {system}, where file locks"):
        check_place(tmp_path / "a.db")


@pytest.mark.parametrize("system", ["ext4", "xfs", "btrfs", "overlay", "tmpfs", "apfs", ""])
def test_local_file_systems_are_accepted(system: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def file_system(_: Path) -> str:
        return system

    monkeypatch.setattr(module, "file_system", file_system)
    check_place(tmp_path / "a.db")


def test_the_folder_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    check_place(tmp_path / "deep" / "er" / "a.db")
    assert (tmp_path / "deep" / "er").stat().st_mode & 0o777 == 0o700


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FilePlace, match="cannot make the folder"):
        check_place(tmp_path / "file" / "a.db")


def test_a_missing_permission_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def access(path: Path, _: int) -> bool:
        return path.name != "a.db"

    (tmp_path / "a.db").touch()
    monkeypatch.setattr(os, "access", access)  # root may do everything
    with pytest.raises(FilePlace, match=r"no permission to read and write .*a\.db"):
        check_place(tmp_path / "a.db")


def test_another_platform_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "win32")
    with pytest.raises(FilePlace, match="Linux and macOS"):
        check_place(tmp_path / "a.db")


# ---- the header ----


def _text(path: Path) -> None:
    path.write_bytes(b"my diary, page 1\n" * 100)


def _short(path: Path) -> None:
    path.write_bytes(b"SQLite format 3\x00")


def _damaged(path: Path) -> None:
    made(path)
    body = bytearray(path.read_bytes())
    body[3] ^= 1
    path.write_bytes(body)


def _of_somebody_else(path: Path) -> None:
    other = apsw.Connection(os.fspath(path))
    other.execute("CREATE TABLE diary (page TEXT)")
    other.close()


def _of_another_kind(path: Path) -> None:
    made(path, Kind("log", application_id=0x45564C47, version=1, tables=KIND.tables))


def _newer(path: Path) -> None:
    made(path, Kind("store", application_id=KIND.application_id, version=2, tables=KIND.tables))


def _older(path: Path) -> None:
    made(path, Kind("store", application_id=KIND.application_id, version=0, tables=KIND.tables))


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (_text, FileStrange, "not a SQLite file"),
        (_short, FileStrange, "not a SQLite file"),
        (_damaged, FileStrange, "header is damaged"),
        (_of_somebody_else, FileStrange, "no store of Everlog"),
        (_of_another_kind, FileStrange, "expected a store of Everlog, found a log of Everlog"),
        (_newer, FileNewer, "of version 2, and this Everlog reads 1: upgrade Everlog"),
        (_older, FileStrange, "of version 0, from before the first release"),
    ],
)
def test_what_is_not_ours_is_refused_and_not_touched(
    make: Callable[[Path], None], error: type[Exception], text: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.db"
    make(path)
    before = {found.name: (found.read_bytes(), found.stat().st_mtime_ns) for found in tmp_path.iterdir()}
    with pytest.raises(error, match=text):
        check_header(path, KIND)
    assert {found.name: (found.read_bytes(), found.stat().st_mtime_ns) for found in tmp_path.iterdir()} == before


def test_a_missing_and_an_empty_file_are_new_and_ours_is_not(tmp_path: Path) -> None:
    assert check_header(tmp_path / "missing.db", KIND)
    (tmp_path / "empty.db").touch()
    assert check_header(tmp_path / "empty.db", KIND)
    assert not check_header(made(tmp_path / "a.db"), KIND)


def test_a_folder_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.db").mkdir()
    with pytest.raises(FileStrange, match="is not a file"):
        check_header(tmp_path / "a.db", KIND)


def test_an_empty_file_beside_a_wal_is_damage(tmp_path: Path) -> None:
    (tmp_path / "a.db").touch()
    (tmp_path / "a.db-wal").write_bytes(b"frames")
    with pytest.raises(FileDamaged, match=r"is empty, but a\.db-wal"):
        check_header(tmp_path / "a.db", KIND)


def test_a_file_that_this_process_has_open_is_not_opened_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    connection = connect(tmp_path / "a.db", KIND, create=True, writes=True)

    def refuse(*_: object, **__: object) -> int:
        raise AssertionError("closing a descriptor of the file would drop the locks that SQLite holds")

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        assert not check_header(tmp_path / "a.db", KIND)
    disconnect(connection)


# ---- the connection ----


def test_every_promise_is_set(tmp_path: Path) -> None:
    connection = connect(tmp_path / "a.db", KIND, create=True, writes=True)
    found = {
        name: connection.pragma(name)
        for name in ("journal_mode", "synchronous", "page_size", "auto_vacuum", "query_only", "mmap_size")
    }
    assert found == {
        "journal_mode": "wal",
        "synchronous": 2,
        "page_size": 4096,
        "auto_vacuum": 2,
        "query_only": 0,
        "mmap_size": 0,
    }
    assert (connection.reserve_bytes(), connection.pragma("checksum_verification")) == (8, "1")
    disconnect(connection)


def test_the_mark_is_in_the_files_own_header_at_once(tmp_path: Path) -> None:
    connection = connect(tmp_path / "a.db", KIND, create=True, writes=True)
    head = (tmp_path / "a.db").read_bytes()[:100]
    assert (int.from_bytes(head[60:64], "big"), int.from_bytes(head[68:72], "big")) == (KIND.version, KIND.application_id)
    disconnect(connection)


def test_a_connection_for_reading_refuses_to_write(tmp_path: Path) -> None:
    connection = connect(made(tmp_path / "a.db"), KIND, create=False, writes=False)
    with pytest.raises(apsw.ReadOnlyError):
        connection.execute("INSERT INTO t VALUES (1)")
    disconnect(connection)


def test_opening_again_keeps_what_was_written(tmp_path: Path) -> None:
    connection = connect(tmp_path / "a.db", KIND, create=True, writes=True)
    connection.execute("INSERT INTO t VALUES (7)")
    disconnect(connection)
    connection = connect(tmp_path / "a.db", KIND, create=True, writes=True)
    assert connection.execute("SELECT n FROM t").fetchall() == [(7,)]
    disconnect(connection)


def test_files_are_their_owners_alone(tmp_path: Path) -> None:
    connection = connect(tmp_path / "a.db", KIND, create=True, writes=True)
    connection.execute("INSERT INTO t VALUES (7)")
    assert {found.name: found.stat().st_mode & 0o777 for found in tmp_path.iterdir()} == {
        "a.db": 0o600,
        "a.db-wal": 0o600,
        "a.db-shm": 0o600,
    }
    disconnect(connection)


def test_a_file_without_page_checksums_is_refused(tmp_path: Path) -> None:
    bare = apsw.Connection(os.fspath(tmp_path / "a.db"), vfs="unix")
    bare.reserve_bytes(reserve=0)
    bare.execute(KIND.tables)
    bare.pragma("application_id", KIND.application_id)
    bare.close()
    with pytest.raises(FileDamaged, match="carry no checksums"):
        connect(tmp_path / "a.db", KIND, create=False, writes=True)


@pytest.mark.parametrize("offset", [20, 2_000, 4_000, -300, -9, -1])
def test_any_flipped_bit_of_a_page_is_caught(offset: int, tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    connection = connect(path, KIND, create=True, writes=True)
    connection.execute("WITH RECURSIVE s(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s LIMIT 3000) INSERT INTO t SELECT n FROM s")
    disconnect(connection)
    body = bytearray(path.read_bytes())
    page = 4  # a leaf of the table
    body[page * 4096 + offset % 4096] ^= 0x10
    path.write_bytes(body)
    connection = connect(path, KIND, create=False, writes=False)
    with pytest.raises(apsw.Error) as caught:
        connection.execute("SELECT sum(n) FROM t").fetchall()
    assert isinstance(translate(caught.value, path), FileDamaged)
    disconnect(connection)


def test_what_is_no_damage_is_not_translated() -> None:
    assert translate(apsw.BusyError("locked"), None) is None
    assert translate(apsw.FullError("full"), None) is None
    assert isinstance(translate(apsw.CorruptError("malformed"), None), FileDamaged)
    assert isinstance(translate(apsw.NotADBError("no"), None), FileDamaged)


# ---- looking ----


def test_looking_changes_nothing_whether_a_process_was_killed_or_not(tmp_path: Path) -> None:
    """A reader of SQLite's own would make side files, or move the WAL into the file when it closes."""
    path = made(tmp_path / "a.db")
    assert [found.name for found in tmp_path.iterdir()] == ["a.db"]
    connection = look_into(path)
    assert connection.execute("SELECT count(*) FROM t").get == 0
    disconnect(connection)
    assert [found.name for found in tmp_path.iterdir()] == ["a.db"]
    child = "import sys, os; from tests.drivers.sqlite.test_connection import killed; killed(sys.argv[1])"
    subprocess.run([sys.executable, "-c", child, str(path)], check=True)
    before = {found.name: found.read_bytes() for found in tmp_path.iterdir()}
    assert sorted(before) == ["a.db", "a.db-shm", "a.db-wal"]
    connection = look_into(path)
    assert connection.execute("SELECT n FROM t").get == 7
    with pytest.raises(apsw.ReadOnlyError):
        connection.execute("DELETE FROM t").fetchall()
    disconnect(connection)
    assert {found.name: found.read_bytes() for found in tmp_path.iterdir()} == before


def killed(path: str) -> None:
    """Commit a row and end as if killed."""
    connection = connect(Path(path), KIND, create=False, writes=True)
    connection.execute("INSERT INTO t VALUES (7)").fetchall()
    os._exit(0)


def test_whether_this_process_has_a_file_open_is_known(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    assert not is_open_here(path)
    connection = connect(path, KIND, create=True, writes=True)
    (tmp_path / "b.db").symlink_to(path)
    assert is_open_here(tmp_path / "b.db")
    disconnect(connection)
    assert not is_open_here(path)


def test_a_wal_that_grew_behind_a_long_reader_gives_its_room_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WAL_KEPT_BYTES", 100_000)
    path = made(tmp_path / "a.db")
    writer, reader = (connect(path, KIND, create=False, writes=writes) for writes in (True, False))
    reader.execute("BEGIN; SELECT * FROM t").fetchall()
    for _ in range(3):
        writer.execute(
            "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c LIMIT 10000) INSERT INTO t SELECT n FROM c"
        )
    wal = tmp_path / "a.db-wal"
    assert wal.stat().st_size > 200_000
    reader.execute("COMMIT").fetchall()
    writer.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
    writer.execute("INSERT INTO t VALUES (1)").fetchall()
    assert wal.stat().st_size <= 100_000
    disconnect(reader)
    disconnect(writer)
