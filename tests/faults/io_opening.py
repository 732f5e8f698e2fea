"""Calls to the disk that fail while a log or a store is being opened, one at each place. Run as `python -m tests.faults.io_opening log|store FOLDER [BUG]`.

Says what was found as JSON. In a process of its own, since the default VFS belongs to the whole process.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

import apsw
from tests.faults.io_errors import Found
from tests.faults.vfs import Fault, Faults, Recorder, install
from tests.processes.shop import Ordered, orders, results

from everlog import Client
from everlog.clock import SystemClock
from everlog.drivers.sqlite import database
from everlog.errors import FileDamaged, FileError, FilePlace, FileUnreadable
from everlog.logs.sqlite import open_log
from everlog.position import Offset, TopicPartition
from everlog.store import AppSpec, Progress, SubscriptionSpec
from everlog.stores.sqlite import open_store

EVENTS: Final = 6
_MOST_CALLS: Final = 200


class Opened(Protocol):
    """A log or a store."""

    async def verify(self) -> Sequence[str]:
        """Return what is wrong in it."""
        ...

    async def aclose(self) -> None:
        """Close it."""
        ...


class What(NamedTuple):
    """What is opened.

    Attributes:
        name: Of its file.
        fill: Puts something into an open one.
        open: Opens it.
        holds: Tells whether what was put into it is there.
    """

    name: str
    fill: Callable[[Any], Awaitable[None]]
    open: Callable[[str], Awaitable[Opened]]
    holds: Callable[[Any], Awaitable[bool]]


async def _fill_log(log: Any) -> None:
    await log.ensure_topic(results.spec())
    async with Client(log, source="shop", clock=SystemClock()) as client:
        for n in range(EVENTS):
            await client.publish(Ordered(f"k{n}", n, "p"))


async def _log_holds(log: Any) -> bool:
    backlog = await log.backlog(orders.name, {where.partition: -1 for where in (await log.head(orders.name)).offsets})
    return bool(backlog.count == EVENTS)


async def _fill_store(store: Any) -> None:
    handled = SubscriptionSpec("shop", {orders.name: ["shop.ordered/1"]}, [])
    await store.register(AppSpec("shop", [handled]), log=store.identity)
    for number in range(EVENTS):
        await store.begin("shop", [Progress(TopicPartition(orders.name, number), Offset(number))])


async def _store_holds(store: Any) -> bool:
    (subscription,) = (await store.status()).subscriptions
    return len(subscription.progress) == EVENTS


def _log_of(url: str) -> Awaitable[Opened]:
    return open_log(url, clock=SystemClock())


def _store_of(url: str) -> Awaitable[Opened]:
    return open_store(url, clock=SystemClock())


WHAT: Final[Mapping[str, What]] = {
    "log": What("log.db", _fill_log, _log_of, _log_holds),
    "store": What("store.db", _fill_store, _store_of, _store_holds),
}
CASES: Final = (
    ("xOpen", "", apsw.SQLITE_CANTOPEN),
    ("xOpen", "-wal", apsw.SQLITE_CANTOPEN),
    ("xOpen", "-wal", apsw.SQLITE_IOERR),
    ("xRead", "", apsw.SQLITE_IOERR_READ),
    ("xRead", "-wal", apsw.SQLITE_IOERR_READ),
    ("xWrite", "", apsw.SQLITE_IOERR_WRITE),
    ("xSync", "", apsw.SQLITE_IOERR_FSYNC),
)


async def _files_of_a_killed_process(folder: Path, what: What) -> Path:
    """Return a folder with the files as a process leaves them that is killed: with a WAL that has to be recovered."""
    left = folder / "left"
    left.mkdir()
    opened = await what.open(f"sqlite:{folder}/{what.name}")
    await what.fill(opened)
    _copy(folder, what, left)
    await opened.aclose()
    return left


def _copy(folder: Path, what: What, target: Path) -> None:
    for found in folder.glob(f"{what.name}*"):
        if not found.name.endswith("-shm"):
            shutil.copy(found, target)


async def _open_each(folder: Path, recorder: Recorder, what: What, left: Path, case: tuple[str, str, int]) -> Found:
    """Let the first call fail, then the second, and so on, until opening succeeds without coming to the failing one."""
    call, side, code = case
    runs, faults = 0, list[str]()
    for number in range(1, _MOST_CALLS):
        with tempfile.TemporaryDirectory(dir=folder) as place:
            _copy(left, what, Path(place))
            recorder.faults.met.clear()
            recorder.faults.arm(Fault(call, what.name + side, code, number))
            faults += [f"call {number}: {line}" for line in await _open_ill(recorder, what, f"sqlite:{place}/{what.name}")]
            is_met = bool(recorder.faults.met)
            recorder.faults.arm()
        runs += is_met
        if not is_met:
            break
    return Found(f"{call} of {what.name}{side} fails with {code} while it is opened", runs, faults)


async def _open_ill(recorder: Recorder, what: What, url: str) -> list[str]:
    """Open while a call fails, and again when the disk is well; return what is wrong."""
    wrong: list[str] = []
    opened: Opened | None = None
    threads = threading.active_count()
    try:
        opened = await what.open(url)
        if not await what.holds(opened):
            wrong.append("it was opened, and something is missing")
    except FileDamaged as error:
        wrong.append(f"it was taken for damage: {error}")
    except (FilePlace, FileUnreadable) as error:
        if str(Path(url.removeprefix("sqlite:"))) not in str(error):
            wrong.append(f"an error that does not say which file: {error}")
    except FileError as error:
        wrong.append(f"{type(error).__name__}: {error}")
    except Exception as error:
        wrong.append(f"no error of ours: {type(error).__name__}: {error}")
    if opened is not None:
        await opened.aclose()
    elif not _ends_soon(threads):
        wrong.append("a thread of the one that was not opened is still there")
    recorder.faults.arm()
    try:
        again = await what.open(url)
    except Exception as error:
        return [*wrong, f"with a disk that is well, {type(error).__name__}: {error}"]
    if not await what.holds(again):
        wrong.append("something is missing when the disk is well again")
    await again.aclose()
    return wrong


def _ends_soon(threads: int) -> bool:
    """Tell whether no more than so many threads are left in a moment: one that has told its error has still to end."""
    until_s = time.monotonic() + 5
    while threading.active_count() > threads and time.monotonic() < until_s:
        threading.Event().wait(0.001)
    return threading.active_count() <= threads


def _take_it_for_new() -> None:
    """The seeded bug: a file that cannot be read is set aside, and a new one takes its place."""
    any_database: Any = database.Database
    open_it = any_database.open

    async def anyway(self: Any) -> None:
        try:
            await open_it(self)
        except FileError:
            shutil.move(self.path, f"{self.path}.away")
            raise

    any_database.open = anyway


async def main(arguments: Sequence[str]) -> None:
    which, folder, *bugs = arguments
    recorder = install(None, Faults())
    what = WHAT[which]
    left = await _files_of_a_killed_process(Path(folder), what)
    if bugs:
        _take_it_for_new()
    found = [await _open_each(Path(folder), recorder, what, left, case) for case in CASES]
    sys.stdout.write(json.dumps(found))
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
