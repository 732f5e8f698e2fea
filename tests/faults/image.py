"""What a power cut leaves of the files of a trace.

The machine: the page cache holds what was written; the disk holds what the last sync of each file made durable, and of what was written since
any of it: each sector of 512 bytes has, by itself, any content that it had since. So writes are torn and out of order, and a sector is whole,
as SQLite takes for granted too (SQLITE_IOCAP_POWERSAFE_OVERWRITE).

Assumed of the file system, as journalled ones (ext4, XFS) keep it:
- A size grows with the writes, and may lag behind them or be ahead of what they wrote, which then reads as zeros.
- A truncation has happened or not, as a whole, and what was written behind it is there only if it has.
- A new name, and a name that was deleted, is durable with the next sync of the folder: SQLite asks for one with the first sync of a WAL or a
  journal. Before that an image may have either; a file that comes back has its old content.
- `-shm` is gone. `-bell` and `-turn` are never synced: each has any content that it had, none, or is not there. `-open` is empty or not there.
- After a failed sync what was written before is in memory alone: Linux counts it as written, and no later sync writes it again.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.faults.vfs import Kind, Step

SECTOR: Final = 512
_NO_PLACE: Final = -1


@dataclass
class _File:
    """One file: in memory, on disk, and what lies between."""

    memory: bytearray = field(default_factory=bytearray)
    durable: bytearray = field(default_factory=bytearray)
    sectors: dict[int, list[tuple[int, bytes]]] = field(default_factory=dict[int, list[tuple[int, bytes]]])
    """Sector → what it held since the last sync: place in the trace, content."""
    sizes: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])
    """Each size since the last sync, with its place."""
    before: list[_File] = field(default_factory=list["_File"])
    """What it was before each truncation that is not synced."""

    def write(self, at: int, offset: int, data: bytes) -> None:
        end = offset + len(data)
        if end > len(self.memory):
            self.memory.extend(bytes(end - len(self.memory)))
            self.sizes.append((at, end))
        self.memory[offset:end] = data
        for sector in range(offset // SECTOR, (end - 1) // SECTOR + 1):
            self.sectors.setdefault(sector, []).append((at, bytes(self.memory[sector * SECTOR : (sector + 1) * SECTOR])))

    def truncate(self, at: int, size: int) -> None:
        if size >= len(self.memory):
            self.memory.extend(bytes(size - len(self.memory)))
            self.sizes.append((at, size))
            return
        self.before.append(self.frozen())
        del self.memory[size:]
        del self.durable[size:]
        kept = {sector: versions for sector, versions in self.sectors.items() if sector * SECTOR < size}
        self.sectors = {sector: list(versions) for sector, versions in kept.items()}
        self.sizes = [(place, old) for place, old in self.sizes if old < size]
        self.sizes.append((at, size))

    def sync(self, before: int) -> None:
        """Make durable what was written before a place of the trace."""
        self.before.clear()
        sizes = [size for place, size in self.sizes if place < before]
        if sizes:
            self._grow(sizes[-1])
        self.sizes = [(place, size) for place, size in self.sizes if place >= before]
        for sector, versions in list(self.sectors.items()):
            done = [content for place, content in versions if place < before]
            if done:
                self._put(self.durable, sector, done[-1])
            left = [(place, content) for place, content in versions if place >= before]
            if left:
                self.sectors[sector] = left
            else:
                del self.sectors[sector]

    def fail(self, dice: random.Random) -> None:
        """Count what was written as written, though perhaps none of it was."""
        kept = self.content(dice)
        self.durable = bytearray(kept)
        self.sectors.clear()
        self.before.clear()
        self.sizes = [] if len(kept) == len(self.memory) else [(_NO_PLACE, len(self.memory))]

    def frozen(self) -> _File:
        sectors = {sector: list(versions) for sector, versions in self.sectors.items()}
        return _File(bytearray(self.memory), bytearray(self.durable), sectors, list(self.sizes))

    def content(self, dice: random.Random) -> bytes:
        """Return what a cut now may leave."""
        if self.before and dice.random() < 0.5:
            return dice.choice(self.before).content(dice)
        share = dice.choice((0.0, 1.0, dice.random(), 0.5))  # all lost, all kept, torn
        found = bytearray(self.durable)
        sizes = [size for _, size in self.sizes]
        if sizes:
            size = sizes[-1] if share == 1.0 else len(found) if share == 0.0 else dice.choice([len(found), *sizes])
            found.extend(bytes(max(0, size - len(found))))
        for sector, versions in self.sectors.items():
            if dice.random() < share:
                newest = share == 1.0 or dice.random() < 0.7
                self._put(found, sector, versions[-1][1] if newest else dice.choice(versions)[1])
        return bytes(found)

    def _grow(self, size: int) -> None:
        self.durable.extend(bytes(max(0, size - len(self.durable))))

    @staticmethod
    def _put(target: bytearray, sector: int, content: bytes) -> None:
        start = sector * SECTOR
        content = content[: max(0, len(target) - start)]
        target[start : start + len(content)] = content


class Machine:
    """The files of one folder, step by step through a trace."""

    def __init__(self, seed: int) -> None:
        self._dice = random.Random(seed)
        self._files: dict[str, _File] = {}
        self._durable_names: set[str] = set()
        self._gone: dict[str, list[_File]] = {}  # deleted, and the folder was not synced since
        self._rung: dict[str, list[int]] = {}
        self.acknowledged: dict[str, int] = {}
        """The number of the last commit of each file that somebody may have been told of."""

    def apply(self, step: Step) -> None:
        """Do one step."""
        name = step.name
        match step.kind:
            case Kind.OPEN:
                self._files.setdefault(name, _File())
            case Kind.WRITE:
                self._file(name).write(step.at, step.a, step.body)
            case Kind.TRUNCATE:
                self._file(name).truncate(step.at, step.a)
            case Kind.SYNC:
                self._file(name).sync(step.a)
            case Kind.SYNC_FAILED:
                self._file(name).fail(self._dice)
            case Kind.DELETE:
                self._delete(name)
            case Kind.FOLDER_SYNC:
                self._durable_names = set(self._files)
                self._gone.clear()
            case Kind.BELL:
                self._rung.setdefault(name, []).append(step.a)
                self.acknowledged[name.removesuffix("-bell")] = step.a
            case Kind.MARK:
                pass

    def _file(self, name: str) -> _File:
        return self._files.setdefault(name, _File())

    def _delete(self, name: str) -> None:
        file = self._files.pop(name, None)
        if file is not None and name in self._durable_names:
            self._gone.setdefault(name, []).append(file)

    def cut(self, folder: Path, dice: random.Random) -> None:
        """Write what a power cut now may leave into an empty folder."""
        for name in sorted({*self._files, *self._gone}):
            file = self._left_of(name, dice)
            if file is not None:
                (folder / name).write_bytes(file.content(dice))
        for name in sorted(self._rung):
            database = name.removesuffix("-bell")
            numbers = self._rung[name]
            bells: Sequence[bytes] = [number.to_bytes(8, "little") for number in (numbers[-1], numbers[-1], dice.choice(numbers))]
            _put_perhaps(folder / name, (*bells, b""), dice)
            _put_perhaps(folder / f"{database}-turn", (b"\x00", b"\x01", b"\x00\x05", b""), dice)
            _put_perhaps(folder / f"{database}-open", (b"",), dice)

    def _left_of(self, name: str, dice: random.Random) -> _File | None:
        now = self._files.get(name)
        if now is not None and name in self._durable_names and name not in self._gone:
            return now
        choices: Sequence[_File | None] = [now, *self._gone.get(name, [None])]
        return dice.choice(choices)


def _put_perhaps(path: Path, contents: Sequence[bytes], dice: random.Random) -> None:
    if dice.random() < 0.85:
        path.write_bytes(dice.choice(contents))
