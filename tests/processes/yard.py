"""Starts processes on one log and one store, kills them, and compares the end with what was acknowledged."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from tests.processes.shop import LINE_EVERY, SHARE_EVERY, Done, Ordered, orders, results
from tests.subscriptions.chaos import Outcome, Sent, faults, read_rows

import everlog
from everlog.clock import SystemClock
from everlog.contracts.contract import contract_of
from everlog.log import Log
from everlog.logs.sqlite import open_log
from everlog.position import BEGINNING, Offset
from everlog.record import StoredRecord
from everlog.store import Store
from everlog.stores.sqlite import open_store

ROOT = Path(__file__).parents[2]


class Process:
    """A child, and the lines that it has said so far."""

    def __init__(self, child: asyncio.subprocess.Process) -> None:
        self.child = child
        self.lines: list[str] = []
        self._more = asyncio.Event()
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.child.stdout is not None
        while line := await self.child.stdout.readline():
            if line.endswith(b"\n"):
                self.lines.append(line.decode().strip())
            self._more.set()
        self._more.set()

    async def said(self, count: int) -> bool:
        """Wait until it has said so many lines; ``False`` if it ended before."""
        while len(self.lines) < count:
            if self._reading.done():
                return False
            self._more.clear()
            if len(self.lines) < count:
                await self._more.wait()
        return True

    def send(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            self.child.send_signal(number)

    @property
    def is_stopped(self) -> bool:
        """Every thread of it stands still; where the system does not say, taken for granted."""
        stats = [path.read_text() for path in Path(f"/proc/{self.child.pid}/task").glob("*/stat")]
        return all(text.rpartition(")")[2].split()[0] == "T" for text in stats)

    async def end(self, number: signal.Signals = signal.SIGKILL) -> int:
        """Send a signal and wait for the end; read what it said until then."""
        self.send(number)
        if number is signal.SIGKILL:
            self.send(signal.SIGCONT)
        code = await self.child.wait()
        await self._reading
        return code


class Yard:
    """One log, one store, and the processes on them."""

    def __init__(self, folder: Path, *, lease_s: float = 1.0) -> None:
        self._errors = folder / "stderr.txt"
        self.lease_s = lease_s
        self.log_url = f"sqlite:{folder / 'log.db'}"
        self.store_url = f"sqlite:{folder / 'shop.db'}"
        self.log: Log
        self.store: Store
        self.processes: list[Process] = []
        self.publishers: dict[str, Process] = {}

    async def __aenter__(self) -> Yard:
        self.log = await open_log(self.log_url, clock=SystemClock())
        for topic in (orders, results):
            await self.log.ensure_topic(topic.spec())
        self.store = await open_store(self.store_url, clock=SystemClock(), lease_s=self.lease_s)
        return self

    async def __aexit__(self, *error: object) -> None:
        for process in self.processes:
            if process.child.returncode is None:
                await process.end()
        await self.store.aclose()
        await self.log.aclose()

    async def _start(self, *arguments: str) -> Process:
        # Not `-m`: pytest's path finds `tests` by this folder, and so does the child.
        source = str(Path(everlog.__file__).parents[1])
        with self._errors.open("ab") as errors:
            child = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "tests.processes.shop", *arguments, stdout=asyncio.subprocess.PIPE, stderr=errors, cwd=ROOT,
                env={**os.environ, "PYTHONPATH": os.pathsep.join([source, str(ROOT)])},
            )  # fmt: skip
        process = Process(child)
        self.processes.append(process)
        return process

    async def worker(self, *, bug: str = "none", wait: bool = True) -> Process:
        """Start a worker, and by default wait until it works."""
        process = await self._start("worker", self.log_url, self.store_url, str(self.lease_s), bug)
        if wait:
            assert await process.said(1), self._errors.read_text()[-3_000:]
        return process

    async def publisher(self, name: str, seed: int, count: int) -> Process:
        """Start a publisher, and wait until it publishes."""
        process = self.publishers[name] = await self._start("publisher", self.log_url, name, str(seed), str(count))
        assert await process.said(1), self._errors.read_text()[-3_000:]
        return process

    async def owners(self) -> Mapping[int, int | None]:
        return (await self.store.survey("shop")).owners

    async def shares(self) -> list[int]:
        """Return how many slots each owner has, ascending."""
        found: dict[int, int] = {}
        for owner in (await self.owners()).values():
            if owner is not None:
                found[owner] = found.get(owner, 0) + 1
        return sorted(found.values())

    async def until_shares(self, expected: Sequence[int], *, within_s: float = 10.0) -> float:
        """Wait until the slots are shared so; return how long that took. Woken by the store's bell."""
        loop = asyncio.get_running_loop()
        since = loop.time()
        while (found := await self.shares()) != list(expected):
            assert loop.time() - since < within_s, f"expected shares {expected}, found {found} after {within_s} s"
            await self.store.wait(0.05)
        return loop.time() - since

    async def settle(self, *, within_s: float = 20.0) -> None:
        """Wait until every record is finished and every emitted event is in the log."""
        loop = asyncio.get_running_loop()
        since = loop.time()
        while True:
            status = await self.store.status()
            heads = (await self.log.head(orders.name)).offsets
            done = [
                not one.unfinished and one.through >= heads[one.where] and not subscription.held_records
                for subscription in status.subscriptions
                for one in subscription.progress
            ]
            if done and all(done) and not status.outbox:
                return
            assert loop.time() - since < within_s, f"never settles: {status}\n{self._errors.read_text()[-3_000:]}"
            await self.store.wait(0.1)

    async def records(self, topic: str) -> list[StoredRecord]:
        found: list[StoredRecord] = []
        for where, last in (await self.log.head(topic)).offsets.items():
            reader = self.log.reader({where: BEGINNING})
            through = Offset(-1)
            while through < last:
                batch = await reader.next()
                for chunk in batch.chunks:
                    found.extend(chunk.record(index) for index in range(chunk.start, chunk.length))
                through = batch.through[where]
            reader.close()
        return found

    async def lines(self) -> list[tuple[Any, ...]]:
        """Return the rows of the app's own table, in the order in which they came."""
        section = await self.store.section()
        try:
            await section.mark(within_s=5)
            if not await section.execute("SELECT 1 FROM sqlite_schema WHERE name = 'lines'", ()):
                return []
            return await section.execute("SELECT key, sender, n FROM lines ORDER BY place", ())
        finally:
            await section.roll_back()

    async def faults(self) -> list[str]:
        """Compare: what was acknowledged is in the log once; what is in the log has its effects once, in order."""
        logged = [contract_of(Ordered).decode(record.data) for record in await self.records(orders.name)]
        wrong: list[str] = []
        for name, process in self.publishers.items():
            have = [(event.key, event.n) for event in logged if event.by == name]
            acknowledged = [tuple(one) for line in process.lines if line.startswith("[") for one in json.loads(line)]
            if lost := set(acknowledged) - set(have):
                wrong.append(f"publisher {name}: {len(lost)} acknowledged events are not in the log: {sorted(lost)[:5]}")
            if len(set(have)) != len(have):
                wrong.append(f"publisher {name}: an event is in the log twice")
            for key in {key for key, _ in have}:
                numbers = [n for k, n in have if k == key]
                if numbers != sorted(numbers):
                    wrong.append(f"publisher {name}: key {key} is in the log in another order than published: {numbers[:20]}")
        rows = {
            name: read_rows({key: row.value for key, row in await self.store.scan(name, "[]") if row.value is not None})
            for name in ("journal/1", "totals/1", "shared/1")
        }
        emitted = await self.records(results.name)
        done = [contract_of(Done).decode(record.data) for record in emitted]
        journal = {key: [(by, n) for by, n in cast("Any", value)] for key, value in rows["journal/1"].items()}
        # One topic here, several publishers: the log's order of a key is the order of all of them.
        for key, handled in journal.items():
            if handled != [(event.by, event.n) for event in logged if event.key == key]:
                wrong.append(f"{key}: handled in another order than logged")
        lines = await self.lines()
        for key, handled in journal.items():
            expected = [(by, n) for by, n in handled if n % LINE_EVERY == 0]
            if [(by, n) for k, by, n in lines if k == key] != expected:
                wrong.append(f"{key}: its lines are not those of its state")
        found = Outcome(
            journal, cast("Any", rows["totals/1"]), cast("Any", rows["shared/1"]),
            [(one.key, one.text) for one in done], [record.id for record in emitted],
        )  # fmt: skip
        return wrong + faults([Sent(event.by, event.key, event.n) for event in logged], found, share_every=SHARE_EVERY)
