"""A file that is deleted, moved or replaced under a process: nothing more is acknowledged, and it is said."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.drivers.sqlite.test_database import numbers, opened

from everlog.drivers.sqlite import database as database_module
from everlog.errors import FileDamaged


def _delete(path: Path) -> None:
    path.unlink()


def _move(path: Path) -> None:
    path.rename(path.with_name("moved.db"))


def _replace(path: Path) -> None:
    shutil.copy(path, path.with_name("copy.db"))
    path.with_name("copy.db").replace(path)


def _delete_wal(path: Path) -> None:
    path.with_name(f"{path.name}-wal").unlink()


def _delete_folder(path: Path) -> None:
    shutil.rmtree(path.parent)


@pytest.mark.parametrize("harm", [_delete, _move, _replace, _delete_wal, _delete_folder])
async def test_nothing_is_acknowledged_into_a_file_that_nobody_will_find(harm: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "folder" / "a.db"
    path.parent.mkdir()
    async with opened(path) as database:
        await database.submit(1)
        harm(path)
        with pytest.raises(FileDamaged, match="is not the file any more that this process has open"):
            await database.submit(2)


async def test_who_only_reads_is_told_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database_module, "_LOOK_EVERY_S", 0.0)
    path = tmp_path / "a.db"
    async with opened(path) as database:
        await database.submit(1)
        assert numbers(database) == [1]
        _delete(path)
        with pytest.raises(FileDamaged, match="deleted, moved or replaced"), database.reading():
            pass
