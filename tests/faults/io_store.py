"""A short run of a worker while calls to its store's files fail."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import apsw
from tests.faults.io_log import LOG, Hurried
from tests.faults.power_judge import Knowledge, faults_of, is_settled
from tests.faults.power_shop import STORE, name_of, settings_of
from tests.faults.vfs import Fault, Recorder
from tests.processes.shop import Ordered, app, orders, results

from everlog import Client
from everlog.clock import SystemClock
from everlog.errors import EverlogError, FileDamaged, FilePlace, StoreError
from everlog.key import partition_of
from everlog.log import Log
from everlog.logs.sqlite import SqliteLog
from everlog.runtime import AppRuntime
from everlog.stores.sqlite import SqliteStore

_EVENTS: Final = 24
_TOGETHER: Final = 3
_SETTLES_WITHIN_S: Final = 20.0
_LOOK_S: Final = 0.005
_FAILURES: Final = 3
"""A disk that stays ill is well again after so many calls have failed."""


class _Worker:
    """An app at work, started again where it says that the process has to start anew."""

    def __init__(self, folder: Path, log: Log) -> None:
        self._folder = folder
        self._log = log
        self._stop = asyncio.Event()
        self._ready = asyncio.Event()
        self._running = asyncio.create_task(self._run())
        self.wrong: list[str] = []
        self.restarts = 0

    async def ready(self) -> None:
        await self._ready.wait()

    async def _run(self) -> None:
        while not self._stop.is_set():
            runtime = AppRuntime(app.declaration(), self._log, settings_of(self._folder), Hurried())
            try:
                await runtime.run(self._stop, lambda _: self._ready.set())
            except FilePlace as error:  # it cannot be opened while the disk is ill
                if not self.restarts:
                    self.wrong.append(f"the worker was refused: {error}")
            except FileDamaged as error:
                self.wrong.append(f"the worker took it for damage: {error}")
            except StoreError:
                self.restarts += 1  # nobody knows whether its commit is stored; `everlog run --workers` starts it again
            except EverlogError as error:
                self.wrong.append(f"the worker ended: {type(error).__name__}: {error}")
            except apsw.Error as error:
                self.wrong.append(f"the worker ended with an error of the database: {type(error).__name__}: {error}")
            if len(self.wrong) > 2:
                return
            await asyncio.sleep(_LOOK_S)

    async def stop(self) -> None:
        self._stop.set()
        await self._running


async def run(folder: Path, recorder: Recorder, faults: Sequence[Fault]) -> list[str]:
    """Let a worker handle events while its disk is ill and well again; return what is wrong."""
    known = Knowledge()
    log = SqliteLog(folder / LOG, Hurried())
    await log.open()
    for topic in (orders, results):
        await log.ensure_topic(topic.spec())
    worker = _Worker(folder, log)
    watcher = SqliteStore(folder / STORE, clock=SystemClock(), lease_s=1.0)  # opened while the disk is well
    await watcher.open()
    try:
        async with Client(log, source="shop", clock=Hurried()) as client:
            await worker.ready()
            recorder.faults.arm(*faults)
            for first in range(0, _EVENTS, _TOGETHER):
                await _publish(client, known, range(first, first + _TOGETHER))
                await asyncio.sleep(_LOOK_S)
            async with asyncio.timeout(_SETTLES_WITHIN_S):
                while recorder.faults.failed < _FAILURES and not await is_settled(log, watcher):
                    await watcher.wait(_LOOK_S)
            recorder.faults.arm()
            try:
                async with asyncio.timeout(_SETTLES_WITHIN_S):
                    while not await is_settled(log, watcher):
                        await watcher.wait(_LOOK_S)
            except TimeoutError:
                worker.wrong.append("the disk is well again, and the worker does not go on")
    finally:
        recorder.faults.arm()
        await worker.stop()
        await watcher.aclose()
        await log.aclose()
    return [*worker.wrong, *await faults_of(folder, known, run=False)]


async def _publish(client: Client, known: Knowledge, numbers: range) -> None:
    for n in numbers:
        event = Ordered(f"k{n % 7}", n, "p")
        known.marks.append({"what": "send", "sender": "p", "events": [[name_of("p", n), event.key]]})
        published = await client.publish(event)
        ((_, offset),) = published.position.offsets.items()
        place = [name_of("p", n), partition_of(event.key, orders.partitions), offset]
        known.marks.append({"what": "told", "events": [place]})
