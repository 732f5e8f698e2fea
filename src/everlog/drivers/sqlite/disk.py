"""Bringing a file and its name to the disk for good."""

from __future__ import annotations

import fcntl
import os
import sys
from pathlib import Path


def sync(fd: int) -> None:
    """Return once the content of an open file is on the disk itself."""
    if sys.platform == "darwin":
        fcntl.fcntl(fd, fcntl.F_FULLFSYNC)  # its fsync leaves the bytes in the disk's own cache
    else:
        os.fdatasync(fd)


def sync_folder(folder: Path) -> None:
    """Return once the names in a folder are on the disk."""
    fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
