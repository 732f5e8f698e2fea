"""The turn: which process may write a SQLite file now.

`flock` on a side file queues writers fairly; SQLite's own busy handler sleeps and retries, and let one of eight processes
wait for 4.5 s where this waits for 0.18 s.

    byte 0   1 while a process holds the turn: a writer that finds a 1 there follows one that was killed in the middle, or whose sync failed
    byte 1   how often a writer asked those who read one moment for long to let go of it, so that the WAL can be emptied; from 255 back to 0
"""

from __future__ import annotations

import fcntl
import os
import weakref
from pathlib import Path

_open_turns: weakref.WeakSet[Turn] = weakref.WeakSet()


class Turn:
    """The right to write one file. Used by one thread; taking it blocks without a time-out."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        _open_turns.add(self)

    def take(self) -> bool:
        """Wait for the turn and take it. Returns whether the last holder gave it back in order."""
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        in_order = os.pread(self._fd, 1, 0) != b"\x01"
        os.pwrite(self._fd, b"\x01", 0)
        return in_order

    def give(self, *, in_order: bool) -> None:
        """Pass the turn on. Without `in_order`, the next holder is told that what was written may not be synced."""
        if in_order:
            os.pwrite(self._fd, b"\x00", 0)
        fcntl.flock(self._fd, fcntl.LOCK_UN)

    def ask(self) -> None:
        """Ask whoever reads one moment for long to let go of it. Only by who holds the turn."""
        os.pwrite(self._fd, bytes([(self.asked() + 1) % 256]), 1)

    def asked(self) -> int:
        """Return a number that is another one after each `ask`, of any process."""
        return int.from_bytes(os.pread(self._fd, 1, 1), "big")

    def close(self) -> None:
        """Let go of the file. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _close_in_child() -> None:
    """Close inherited turns: a lock of `flock` belongs to the open file, which a forked child would share and hold."""
    for turn in list(_open_turns):
        turn.close()


os.register_at_fork(after_in_child=_close_in_child)
