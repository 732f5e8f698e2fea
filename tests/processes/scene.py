"""One log, one store, and workers that are started again as often as they die, until nothing is left to do."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from tests.processes.killers import PARTITIONS, Done, Job, Options, app_of, done, jobs
from tests.processes.yard import ROOT, Process

import everlog
from everlog import Settings
from everlog.clock import SystemClock
from everlog.contracts.contract import contract_of
from everlog.log import Log
from everlog.logs.sqlite import open_log
from everlog.position import BEGINNING, Offset
from everlog.store import Held, Slot, Store
from everlog.stores.sqlite import open_store

APP = "killers"


class NeverSettles(AssertionError):
    """The workers died more often than they may, or did not get through."""


class Scene:
    """Where workers die. All options of `killers.Options` may be given."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self._folder = folder
        self.mended = folder / "mended"
        self.options = Options(f"sqlite:{folder / 'log.db'}", f"sqlite:{folder / 'store.db'}", str(self.mended), **options)
        self.log: Log
        self.store: Store
        self.published: list[Job] = []
        self.workers: list[Process] = []

    async def __aenter__(self) -> Scene:
        self.log = await open_log(self.options.log_url, clock=SystemClock())
        for topic in (jobs, done):
            await self.log.ensure_topic(topic.spec())
        self.store = await open_store(self.options.store_url, clock=SystemClock())
        return self

    async def __aexit__(self, *error: object) -> None:
        for worker in self.workers:
            if worker.child.returncode is None:
                await worker.end()
        await self.store.aclose()
        await self.log.aclose()

    async def publish(self, *events: Job) -> None:
        async with app_of(self.options).connect(Settings(log_url=self.options.log_url)) as client:
            await client.publish(*events)
        self.published.extend(events)

    async def start(self, *, wait: bool = False) -> Process:
        """Start a worker; `wait`: until it works, or has died of it."""
        source = str(Path(everlog.__file__).parents[1])
        with (self._folder / "stderr.txt").open("ab") as errors:
            child = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "tests.processes.killers", msgspec.json.encode(self.options).decode(),
                stdout=asyncio.subprocess.PIPE, stderr=errors, cwd=ROOT,
                env={**os.environ, "PYTHONPATH": os.pathsep.join([source, str(ROOT)])},
            )  # fmt: skip
        worker = Process(child)
        self.workers.append(worker)
        if wait:
            await worker.said(1)
        return worker

    async def is_settled(self, *, most_held: int) -> bool:
        """Everything is handled, or parked, or waits behind what is parked."""
        status = await self.store.status()
        heads = (await self.log.head(jobs.name)).offsets
        places = [(subscription.blocked_keys, one) for subscription in status.subscriptions for one in subscription.progress]
        return (
            len(places) == PARTITIONS
            and not status.outbox
            and sum(subscription.held_records for subscription in status.subscriptions) <= most_held
            and all(not blocked and not one.unfinished and one.through >= heads[one.where] for blocked, one in places)
        )

    async def run(self, *, most_deaths: int, workers: int = 1, most_held: int = 1_000, within_s: float = 30.0) -> list[int]:
        """Start each worker again that has died until everything is settled; return how each of them ended.

        Raises:
            NeverSettles: One more has died than `most_deaths`, or time is over.
        """
        deaths: list[int] = []
        live = [await self.start() for _ in range(workers)]
        try:
            async with asyncio.timeout(within_s):
                while not await self.is_settled(most_held=most_held):
                    await self.store.wait(0.02)
                    for place, worker in enumerate(live):
                        if worker.child.returncode is not None:
                            deaths.append(worker.child.returncode)
                            if len(deaths) > most_deaths:
                                raise NeverSettles(f"died {len(deaths)} times: {deaths}\n{self.errors}")
                            live[place] = await self.start()
        except TimeoutError:
            raise NeverSettles(f"not settled, died {deaths}: {await self.store.status()}\n{self.errors}") from None
        for worker in live:
            assert await worker.said(1), self.errors
            code = await worker.end(signal.SIGTERM)
            assert code == 0, self.errors
        return deaths

    @property
    def errors(self) -> str:
        """What the workers said last."""
        return (self._folder / "stderr.txt").read_text()[-4_000:]

    async def handled(self) -> Mapping[str, Sequence[int]]:
        """Return the numbers that were handled, by key, in the order of their effects."""
        found: dict[str, list[int]] = {}
        for where, last in (await self.log.head(done.name)).offsets.items():
            reader = self.log.reader({where: BEGINNING})
            through = Offset(-1)
            while through < last:
                batch = await reader.next()
                for chunk in batch.chunks:
                    for index in range(chunk.start, chunk.length):
                        event = contract_of(Done).decode(chunk.record(index).data)
                        found.setdefault(event.key, []).append(event.n)
                through = batch.through[where]
            reader.close()
        return found

    async def counted(self) -> Mapping[str, int]:
        """Return how often an event of each key was counted."""
        rows = await self.store.scan("counts/1", "[]")
        return {msgspec.json.decode(key)[0]: msgspec.json.decode(row.value) for key, row in rows if row.value is not None}

    async def held(self, key: str) -> Sequence[Held]:
        """Return what is held of a key."""
        found: list[Held] = []
        for number in range(PARTITIONS):
            found.extend(await self.store.held(Slot(APP, number), key, limit=10_000))
        return found

    async def faults(self) -> list[str]:
        """Compare: all but what is held was handled once and in order, and what is held are the last ones of their keys, in order."""
        handled, counted = await self.handled(), await self.counted()
        wrong: list[str] = []
        for key in {event.key for event in self.published}:
            sent = [event.n for event in self.published if event.key == key]
            held = [contract_of(Job).decode(one.record.data).n for one in await self.held(key)]
            mine = list(handled.get(key, []))
            if mine + held != sent:
                wrong.append(f"{key}: sent {sent[:30]}, handled {mine[:30]}, held {held[:30]}")
            if counted.get(key, 0) != len(mine):
                wrong.append(f"{key}: {len(mine)} were handled, and {counted.get(key, 0)} counted")
        return wrong

    async def mend(self) -> None:
        """Mend the code, redrive everything, and run until nothing is held."""
        self.mended.touch()
        await self.store.request(APP, None, "redrive")
        assert await self.run(most_deaths=0, most_held=0) == []
