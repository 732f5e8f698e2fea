"""A disk of two mebibytes that gets full. Run as `unshare -m python -m tests.faults.io_full_disk log|store FOLDER`: says what is wrong as JSON.

In a mount namespace of its own: nobody else sees the disk, and it goes with the process.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Final

from tests.faults.io_log import Hurried
from tests.faults.power_judge import Knowledge, faults_of, is_settled
from tests.faults.power_shop import LOG, STORE, name_of, settings_of
from tests.processes.shop import Ordered, app, orders, results

from everlog import Client
from everlog.clock import SystemClock
from everlog.errors import EverlogError, LogReadOnly, PublishUnknown
from everlog.key import partition_of
from everlog.logs.sqlite import SqliteLog
from everlog.runtime import AppRuntime
from everlog.stores.sqlite import SqliteStore

SIZE_BYTES: Final = 2 << 20
_BALLAST_BYTES: Final = 256 << 10
_EVENTS: Final = 20
_PATIENCE_S: Final = 20.0


class Disk:
    """A file system in memory, and a file on it that can be taken away."""

    def __init__(self, folder: Path) -> None:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE_BYTES}", "none", str(folder)], check=True)
        self._ballast = folder / "ballast"
        self._rest = folder / "rest"
        self._ballast.write_bytes(bytes(_BALLAST_BYTES))

    def fill(self) -> None:
        """Take all room that is left."""
        with self._rest.open("wb", buffering=0) as file:
            for size in (4_096, 1):
                try:
                    while file.write(bytes(size)) == size:
                        pass
                except OSError:
                    pass

    def make_room(self) -> None:
        self._ballast.unlink()


async def fill_a_log(folder: Path) -> list[str]:
    """Publish until it is refused, make room, and publish on."""
    disk, known, wrong = Disk(folder), Knowledge(), list[str]()
    log = SqliteLog(folder / LOG, Hurried())
    await log.open()
    store = SqliteStore(folder / STORE, clock=SystemClock(), lease_s=1.0)  # the judge asks for one: made while there is room
    await store.open()
    await store.aclose()
    async with Client(log, source="shop", clock=Hurried()) as client:
        told, n = True, 0
        while told:
            told = await _publish(client, known, n)
            n += 1
        if not n > _EVENTS:
            wrong.append(f"{n} events filled the disk: it was no test")
        stored = sum(offset + 1 for offset in (await log.head(orders.name)).offsets.values())
        if stored < n - 1:
            wrong.append(f"expected to read at least {n - 1} events on a full disk, found {stored}")
        disk.fill()
        if await _publish(client, known, n):
            wrong.append("an event was taken on a disk without room")
        wrong += await _read_by_another(folder, stored)
        disk.make_room()
        for more in range(n + 1, n + 1 + _EVENTS):
            if not await _publish(client, known, more):
                wrong.append(f"there is room again, and event {more} is not taken")
    await log.aclose()
    return wrong + await faults_of(folder, known, run=False)


async def _read_by_another(folder: Path, stored: int) -> list[str]:
    """Open the log once more while its disk is full; return what is wrong."""
    try:
        other = SqliteLog(folder / LOG, Hurried())
        await other.open()
    except EverlogError as error:
        return [f"on a full disk the log cannot be opened: {error}"]
    found = sum(offset + 1 for offset in (await other.head(orders.name)).offsets.values())
    await other.aclose()
    return [] if found == stored else [f"expected to read {stored} events, found {found}"]


async def fill_a_store(folder: Path) -> list[str]:
    """Let a worker's store get full, make room, and let it go on; the log is elsewhere."""
    disk_folder = folder / "disk"
    disk_folder.mkdir()
    disk, known, wrong = Disk(disk_folder), Knowledge(), list[str]()
    (folder / STORE).symlink_to(disk_folder / STORE)
    log = SqliteLog(folder / LOG, Hurried())
    await log.open()
    for topic in (orders, results):
        await log.ensure_topic(topic.spec())
    watcher = SqliteStore(folder / STORE, clock=SystemClock(), lease_s=1.0)  # opened while there is room
    await watcher.open()
    stop, ready = asyncio.Event(), asyncio.Event()
    runtime = AppRuntime(app.declaration(), log, settings_of(folder), Hurried())
    running = asyncio.create_task(runtime.run(stop, lambda _: ready.set()))
    await ready.wait()
    async with Client(log, source="shop", clock=Hurried()) as client, asyncio.timeout(_PATIENCE_S):
        disk.fill()
        for n in range(_EVENTS):
            await _publish(client, known, n)
        for _ in range(3):
            await watcher.wait(0.05)  # some attempts, each of which fails
        if await is_settled(log, watcher):
            wrong.append("the disk was not full: it was no test")
        disk.make_room()
        while not running.done() and not await is_settled(log, watcher):
            await watcher.wait(0.05)
    if running.done():
        wrong.append(f"the worker ended: {running.exception()!r}")
    stop.set()
    await asyncio.wait([running])
    await watcher.aclose()
    await log.aclose()
    return wrong + await faults_of(folder, known, run=False)


async def _publish(client: Client, known: Knowledge, n: int) -> bool:
    """Publish one event; return whether it was stored. One whose answer is unknown is given up."""
    event = Ordered(f"k{n % 7}", n, "p")
    known.marks.append({"what": "send", "sender": f"p{n}", "events": [[name_of("p", n), event.key]]})
    try:
        published = await client.publish(event, timeout_s=1)
    except (LogReadOnly, PublishUnknown):
        return False
    ((_, offset),) = published.position.offsets.items()
    known.marks.append({"what": "told", "events": [[name_of("p", n), partition_of(event.key, orders.partitions), offset]]})
    return True


def main() -> None:
    which, folder = sys.argv[1:]
    wrong = asyncio.run({"log": fill_a_log, "store": fill_a_store}[which](Path(folder)))
    sys.stdout.write(json.dumps(wrong))


if __name__ == "__main__":
    main()
