"""Looking at the machine, as far as files in use by many processes rely on it: SQLite, open files, watches, clock and boot."""

from __future__ import annotations

import resource
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import apsw

from everlog.clock import Clock
from everlog.drivers.process import this_process
from everlog.finding import MACHINE, Finding, Level

FIRST_SAFE: Final = (3, 51, 3)
"""SQLite 3.7.0 to 3.51.2 lose acknowledged commits when two processes write and one brings the WAL into the file."""
FEW_FILES: Final = 256
FEW_INSTANCES: Final = 64
FEW_WATCHES: Final = 1_024
_INOTIFY: Final = Path("/proc/sys/fs/inotify")


def examine_machine(clock: Clock) -> Sequence[Finding]:
    """Return what there is to know of the machine."""
    return [_sqlite(), _open_files(), *_watches(), _boot(clock)]


def _sqlite() -> Finding:
    version = apsw.sqlite_lib_version()
    found = f"{version}, from apsw {apsw.apsw_version()}"
    if tuple(int(part) for part in version.split(".")[:3]) < FIRST_SAFE:
        return Finding(
            MACHINE,
            "SQLite",
            Level.PROBLEM,
            found,
            "it loses acknowledged commits when two processes write (all of 3.7.0 to 3.51.2): pip install --upgrade apsw",
        )
    return Finding(MACHINE, "SQLite", Level.OK, found)


def _open_files() -> Finding:
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    found = "no limit" if most == resource.RLIM_INFINITY else f"{most:,} in a process"
    if most != resource.RLIM_INFINITY and most < FEW_FILES:
        return Finding(
            MACHINE,
            "open files",
            Level.WARNING,
            found,
            "each log and each store takes ten, and clients take more: ulimit -n 4096",
        )
    return Finding(MACHINE, "open files", Level.OK, found)


def _watches() -> Sequence[Finding]:
    """Return what inotify allows; nothing where the system has none."""
    found: list[Finding] = []
    for name, few, what in (
        ("max_user_instances", FEW_INSTANCES, "inotify instances"),
        ("max_user_watches", FEW_WATCHES, "inotify watches"),
    ):
        try:
            most = int((_INOTIFY / name).read_text())
        except OSError:
            continue
        if most < few:
            advice = f"each process that opens a log or a store needs one of each: sysctl fs.inotify.{name}={few * 8}"
            found.append(Finding(MACHINE, what, Level.WARNING, f"{most:,} for a user", advice))
        else:
            found.append(Finding(MACHINE, what, Level.OK, f"{most:,} for a user"))
    return found


def _boot(clock: Clock) -> Finding:
    """Look for what leases live by."""
    try:
        boot = this_process().boot
    except (OSError, ValueError) as error:
        advice = "leases cannot be told from those of before the machine started: give /proc to the container"
        return Finding(MACHINE, "clock", Level.PROBLEM, f"the boot cannot be told: {error}", advice)
    return Finding(MACHINE, "clock", Level.OK, f"{clock.monotonic_s() / 3600:,.1f} h, boot {boot}")
