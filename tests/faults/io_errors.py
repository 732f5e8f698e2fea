"""Calls to the disk that fail, one at each place of a short run. Run as `python -m tests.faults.io_errors log|store writing|reading FOLDER EVERY [BUG]`: says what was found as JSON.

In a process of its own, since the default VFS belongs to the whole process.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import apsw
from tests.faults import io_log, io_store
from tests.faults.power_shop import STORE, checkpoint_often, seed_a_bug
from tests.faults.vfs import FOREVER, Fault, Faults, Kind, Recorder, Trace, install, steps_of

MOST_CALLS: Final = 400


class Case(NamedTuple):
    """A call that fails.

    Attributes:
        call: SQLite's name of it.
        side: Of the file's name: empty for the file itself.
        code: What it fails with.
        times: How many calls fail from there on, or `FOREVER`, until the disk is well again.
    """

    call: str
    side: str
    code: int
    times: int = 1
    also: tuple[str, str, int] | None = None
    """Another call, side and code: all of these fail, until the disk is well again."""


CASES: Final[Sequence[Case]] = (
    Case("xWrite", "-wal", apsw.SQLITE_IOERR_WRITE),
    Case("xWrite", "-wal", apsw.SQLITE_FULL),
    Case("xWrite", "-wal", apsw.SQLITE_FULL, FOREVER),
    Case("xSync", "-wal", apsw.SQLITE_IOERR_FSYNC),
    Case("xSync", "-wal", apsw.SQLITE_IOERR_FSYNC, FOREVER),
    Case("xWrite", "", apsw.SQLITE_IOERR_WRITE),
    Case("xWrite", "", apsw.SQLITE_FULL, FOREVER),
    Case("xSync", "", apsw.SQLITE_IOERR_FSYNC),
    Case("xTruncate", "", apsw.SQLITE_IOERR_TRUNCATE),
    # Behind a failed sync the WAL is brought into the file before anything is told; and if that fails too, nothing is.
    Case("xSync", "-wal", apsw.SQLITE_IOERR_FSYNC, 1, ("xTruncate", "-wal", apsw.SQLITE_IOERR_TRUNCATE)),
    Case("xSync", "-wal", apsw.SQLITE_IOERR_FSYNC, 1, ("xWrite", "", apsw.SQLITE_FULL)),
    Case("xSync", "-wal", apsw.SQLITE_IOERR_FSYNC, 1, ("xSync", "", apsw.SQLITE_IOERR_FSYNC)),
)
READING: Final[Sequence[Case]] = (
    Case("xRead", "-wal", apsw.SQLITE_IOERR_READ),
    Case("xRead", "", apsw.SQLITE_IOERR_READ),
)


class Found(NamedTuple):
    """What one case came to.

    Attributes:
        case: In words.
        runs: How many runs met the failing call.
        faults: What was wrong, a line each.
    """

    case: str
    runs: int
    faults: Sequence[str]


Run = Callable[[Path, Recorder, Sequence[Fault]], Awaitable[list[str]]]


async def fail_each(folder: Path, recorder: Recorder, case: Case, name: str, run: Run, every: int) -> Found:
    """Let the first call fail, then the one `every` behind it, and so on, until a run ends before it comes to the failing call."""
    runs, faults = 0, list[str]()
    for number in range(1, MOST_CALLS, every):
        with tempfile.TemporaryDirectory(dir=folder) as place:
            recorder.trace = Trace(Path(place) / "trace")
            armed = [Fault(case.call, name + case.side, case.code, number, case.times)]
            if case.also is not None:
                call, side, code = case.also
                armed.append(Fault(call, name + side, code, 1, FOREVER))
            wrong = await run(Path(place), recorder, armed)
            is_met = armed[0] in recorder.faults.met
            recorder.faults.met.clear()
            wrong = [*wrong, *told_too_early(Path(place) / "trace")]
            recorder.faults.arm()
            recorder.trace.close()
            recorder.trace = None
        faults += [f"call {number}: {line}" for line in wrong]
        runs += is_met
        if not is_met:
            break
    lasting = " from there on" if case.times == FOREVER else ""
    also = f", and {case.also[0]} of {name}{case.also[1]} with {case.also[2]}" if case.also is not None else ""
    return Found(f"{case.call} of {name}{case.side} fails with {case.code}{lasting}{also}", runs, faults)


def told_too_early(trace: Path) -> list[str]:
    """Return which commits were told behind a failed sync of the WAL, before all of it was brought into the file."""
    suspect: set[str] = set()
    wrong: list[str] = []
    for step in steps_of(trace):
        database = step.name.removesuffix("-wal").removesuffix("-bell")
        if step.kind is Kind.SYNC_FAILED and step.name.endswith("-wal"):
            suspect.add(database)
        elif step.kind is Kind.TRUNCATE and step.name.endswith("-wal") and not step.a:
            suspect.discard(database)
        elif step.kind is Kind.BELL and database in suspect:
            wrong.append(f"{database}: commit {step.a} was told behind a failed sync, before the WAL was brought into the file")
    return wrong


async def main(arguments: Sequence[str]) -> None:
    which, calls, folder, every, *bugs = arguments
    recorder = install(None, Faults())
    checkpoint_often(8)
    for bug in bugs:
        seed_a_bug(bug)
    name, run = {"log": (io_log.LOG, io_log.run), "store": (STORE, io_store.run)}[which]
    found = [
        await fail_each(Path(folder), recorder, case, name, run, int(every))
        for case in (READING if calls == "reading" else CASES)
    ]
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
