"""Where an open file is: one that was deleted, moved or replaced is nobody's any more."""

from __future__ import annotations

import os
from pathlib import Path

from everlog.errors import FileDamaged


class Place:
    """Where a file was when it was opened. What a process writes into one that is not there any more is lost with the process."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._wal = path.with_name(f"{path.name}-wal")
        self._file = _identity(path)
        self._side = _identity(self._wal)

    def check(self) -> None:
        """Refuse to go on with a file that nobody else will find.

        Raises:
            FileDamaged: It was deleted, moved or replaced, or its WAL was.
        """
        for path, known in ((self._path, self._file), (self._wal, self._side)):
            if known is not None and _identity(path) != known:
                raise FileDamaged(
                    f"{path} is not the file any more that this process has open: it was deleted, moved or replaced while it was in use. Nothing "
                    f"is stored from here on; stop everything that has it open, and put it back, or a backup with `everlog restore`"
                )


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = os.stat(path)  # noqa: PTH116 a third of the time of `Path.stat`, before each commit
    except OSError:
        return None
    return found.st_dev, found.st_ino
