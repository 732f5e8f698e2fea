"""What is found in a file, healthy or damaged, so that the two can be compared."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import apsw

from everlog.drivers.sqlite.database import Database
from everlog.errors import EverlogError

SIDES = ("", "-wal", "-bell", "-turn", "-open")
"""The file and what is beside it; its shared memory (`-shm`) does not outlive its users."""

Files = Mapping[str, bytes]
"""Suffix → content."""


@dataclass
class Healthy:
    """A file as its users left it.

    Attributes:
        name: Of the file.
        files: It and what is beside it.
        earlier: The same at an earlier moment.
    """

    name: str
    files: Files
    earlier: Files


@dataclass
class Facts:
    """What a user finds: a value by name, or the error that came instead.

    Attributes:
        at_open: Why it could not be opened.
        read: What was asked for, by name.
        verified: What `verify` says is wrong.
    """

    at_open: EverlogError | None = None
    read: dict[str, object] = field(default_factory=dict[str, object])
    verified: list[str] = field(default_factory=list[str])

    @property
    def errors(self) -> Mapping[str, EverlogError]:
        """What could not be read, and why."""
        found = {"open": self.at_open, **self.read}
        return {name: error for name, error in found.items() if isinstance(error, EverlogError)}


@asynccontextmanager
async def reading(facts: Facts, name: str) -> AsyncGenerator[None]:
    """Note an error of ours as what was found. Another error passes through."""
    try:
        yield
    except EverlogError as error:
        facts.read[name] = error


def copied(path: Path) -> Files:
    """Return the files as a kill at this moment leaves them."""
    found = {suffix: path.with_name(path.name + suffix) for suffix in SIDES}
    return {suffix: side.read_bytes() for suffix, side in found.items() if side.exists()}


def laid_out(files: Files, folder: Path, name: str) -> Path:
    """Put the files into a folder, in place of what was there; return the path of the file itself."""
    for old in folder.iterdir():
        old.unlink()
    for suffix, content in files.items():
        (folder / f"{name}{suffix}").write_bytes(content)
    return folder / name


def checkpoint(path: Path) -> None:
    """Bring the whole WAL into the file and leave it where it is, so that the next commit begins it anew."""
    connection = apsw.Connection(str(path), vfs="cksmvfs")
    connection.execute("SELECT number FROM head").fetchall()  # only who has read knows that there is a WAL
    assert connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_FULL)[0] > 0
    connection.close()


async def let_go(database: Database[Any, Any]) -> None:
    """Close what a refused opening has left open, and wait until its thread has let go of the file: another one takes its place."""
    if database._is_open:
        await database.aclose()
    if database._thread is not None:
        await asyncio.to_thread(database._thread.join)
