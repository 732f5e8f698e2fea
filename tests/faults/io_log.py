"""A short run of a publisher and a follower while calls to the log's files fail."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from tests.faults.vfs import Fault, Recorder
from tests.processes.shop import Ordered, orders

from everlog import Client
from everlog.clock import SystemClock
from everlog.conformance.history import History, Told
from everlog.conformance.judge import judge
from everlog.errors import FileUnreadable, LogReadOnly, PublishUnknown
from everlog.log import Log
from everlog.logs.sqlite import SqliteLog
from everlog.position import BEGINNING, Position, TopicPartition

LOG: Final = "log.db"
_EVENTS: Final = 6
_TIMEOUT_S: Final = 0.05
_WELL_AGAIN_S: Final = 10.0


class Hurried(SystemClock):
    """A clock whose waits are a twentieth: how long a pause between attempts is, is tested elsewhere."""

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds / 20)


class _Publisher:
    """Publishes numbered events, each of a key of its own, and notes what it was told."""

    def __init__(self, client: Client, history: History) -> None:
        self._client = client
        self._history = history
        self.unknown: list[tuple[int, PublishUnknown]] = []

    async def publish(self, n: int, timeout_s: float) -> None:
        self._history.sends("p", n, orders.name, f"k{n}")
        try:
            published = await self._client.publish(Ordered(f"k{n}", n, "p"), timeout_s=timeout_s)
        except LogReadOnly:
            self._history.told(n, Told.REFUSED)
        except PublishUnknown as error:
            self._history.told(n, Told.UNKNOWN)
            self.unknown.append((n, error))
        else:
            # Empty where a lost answer was asked for again: it was stored before.
            for where, offset in published.position.offsets.items() or [(None, None)]:
                self._history.told(n, Told.STORED, where, offset)

    async def retry(self) -> None:
        for n, error in self.unknown:
            await error.retry(timeout_s=_WELL_AGAIN_S)
            self._history.told(n, Told.STORED)


async def run(folder: Path, recorder: Recorder, faults: Sequence[Fault]) -> list[str]:
    """Publish while the disk is well, ill and well again, in one process; return what is wrong."""
    history, wrong = History(), list[str]()
    log = SqliteLog(folder / LOG, Hurried())
    await log.open()
    try:
        async with Client(log, source="shop", clock=Hurried()) as client:
            publisher = _Publisher(client, history)
            await publisher.publish(0, _WELL_AGAIN_S)
            begun = asyncio.Event()
            following = asyncio.create_task(_follow(client, history, begun))
            await begun.wait()
            recorder.faults.arm(*faults)
            for n in range(1, _EVENTS):
                await publisher.publish(n, _TIMEOUT_S)
                with suppress(FileUnreadable):
                    await log.head(orders.name)  # reading goes on, or says that it cannot
            recorder.faults.arm()
            await publisher.retry()
            await publisher.publish(_EVENTS, _WELL_AGAIN_S)
            if history.answers[_EVENTS].told is not Told.STORED:
                wrong.append("the disk is well again, and nothing is stored")
            async with asyncio.timeout(_WELL_AGAIN_S):
                await following
    except Exception as error:  # a reader that stops, a publish that ends in no way of the three
        return [f"{type(error).__module__}.{type(error).__name__}: {error}"]
    finally:
        recorder.faults.arm()
        await log.aclose()
    await _read_all(folder, history, wrong)
    return wrong + [str(found) for found in judge(history)]


async def _follow(client: Client, history: History, begun: asyncio.Event) -> None:
    """Follow from the beginning to the last event, and go on behind the last one where a read has failed."""
    after: Position | None = None
    while True:
        try:
            async for record in client.follow(Ordered, start="beginning", after=after):
                stored, after = record.stored, record.position
                history.read(
                    "follower", TopicPartition(stored.topic, stored.partition), stored.offset, record.event.n, stored.key
                )
                begun.set()
                if record.event.n == _EVENTS:
                    return
        except FileUnreadable:
            await asyncio.sleep(0)


async def _read_all(folder: Path, history: History, wrong: list[str]) -> None:
    log = SqliteLog(folder / LOG, SystemClock())
    await log.open()
    try:
        wrong.extend(await log.verify())
        await _read(log, history)
    finally:
        await log.aclose()


async def _read(log: Log, history: History) -> None:
    for where, last in (await log.head(orders.name)).offsets.items():
        reader, through = log.reader({where: BEGINNING}), BEGINNING
        while through < last:
            batch = await reader.next()
            for chunk in batch.chunks:
                for index in range(chunk.start, chunk.length):
                    record = chunk.record(index)
                    history.read("reader", where, record.offset, int((record.key or "k-1")[1:]), record.key)
            through = batch.through[where]
        reader.close()
