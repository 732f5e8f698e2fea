"""Processes as other processes see them: whether the one that wrote its name down is still the one that runs."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Process:
    """One process of one boot. A number that is given to another process later has another start.

    Attributes:
        pid: Its number within `namespace`.
        start: When it started, in clock ticks since boot; 0 where the system does not say.
        boot: The identity of the machine's boot.
        namespace: The PID namespace that `pid` counts in; empty where the system has but one.
    """

    pid: int
    start: int
    boot: str
    namespace: str


def this_process() -> Process:
    """Return the process that asks."""
    pid = os.getpid()
    if sys.platform == "linux":
        stat = _stat(pid)
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return Process(pid, stat[1] if stat else 0, boot, str(Path("/proc/self/ns/pid").readlink()))
    else:  # noqa: RET505 - mypy knows the branches of `sys.platform` by their form
        return Process(pid, 0, _boot_session(), "")


def is_dead(process: Process, *, seen_from: Process) -> bool:
    """Return whether `process` has certainly ended. ``False`` also where `seen_from` cannot know: another boot, another namespace."""
    if (process.boot, process.namespace) != (seen_from.boot, seen_from.namespace):
        return False
    if sys.platform == "linux":
        stat = _stat(process.pid)
        if stat is not None:
            state, start = stat
            return state in "ZX" or process.start not in (0, start)  # a zombie runs no more, and only waits for its parent
    try:
        os.kill(process.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False  # it runs, and belongs to somebody else
    return False


class Deaths:
    """Tells at once when one of some processes ends, where the system can (Linux, by pidfd). Elsewhere silence has to be noticed."""

    def __init__(self, tell: Callable[[], None]) -> None:
        self._tell = tell
        self._watched: dict[Process, int] = {}
        self._loop = asyncio.get_running_loop()

    def watch(self, processes: Collection[Process], *, seen_from: Process) -> None:
        """Watch these processes, and no longer those that were watched before and are not among them."""
        for process in self._watched.keys() - set(processes):
            self._end(process)
        if not hasattr(os, "pidfd_open"):
            return
        for process in processes:
            is_near = (process.boot, process.namespace) == (seen_from.boot, seen_from.namespace)
            if process == seen_from or process in self._watched or not is_near or is_dead(process, seen_from=seen_from):
                continue
            try:
                fd = os.pidfd_open(process.pid)
            except OSError:  # it has ended, which whoever asks next will see
                continue
            self._watched[process] = fd
            self._loop.add_reader(fd, self._ended, process)

    def _ended(self, process: Process) -> None:
        self._end(process)
        self._tell()

    def _end(self, process: Process) -> None:
        fd = self._watched.pop(process)
        self._loop.remove_reader(fd)
        os.close(fd)

    def close(self) -> None:
        """Watch nothing any more."""
        for process in list(self._watched):
            self._end(process)


def _stat(pid: int) -> tuple[str, int] | None:
    """Return the state and the start of a process; ``None`` where /proc does not show it."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # the name before it may hold spaces and parentheses
    return fields[0], int(fields[19])


def _boot_session() -> str:
    import subprocess  # only macOS pays for it

    return subprocess.run(
        ["/usr/sbin/sysctl", "-n", "kern.bootsessionuuid"], check=True, capture_output=True, text=True
    ).stdout.strip()
